//! Whole-row states on the way to a neighbour: a first load, a row that it lacks, a repair. Sending
//! one again does no harm. Rows have the form of a record's items, with the operation `State`.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;
use uuid::Uuid;

use super::item::{Counts, Names, WireActor, WireClass, Writer, uuid_of};
use super::{Item, Op, RowId, Value, decode, limits};
use crate::error::{Error, Result};
use crate::id::Actor;
use crate::merge::RowState;

/// Rows in a load message at the most.
const ROWS_MAX: usize = 65_536;

/// States of rows, with or without values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Load {
    /// Whether nothing follows.
    pub last: bool,
    /// Which load it belongs to: the invitation's or the request's uuid; nil when it is no matter.
    pub id: Uuid,
    /// Its place in that load, from 0.
    pub sequence: u64,
    /// The rows.
    pub rows: Vec<LoadRow>,
}

/// The state of a row.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadRow {
    /// Its class.
    pub class: Arc<str>,
    /// Its key.
    pub key: Arc<str>,
    /// What is known of its stamps; the shadow does not travel by itself.
    pub state: RowState,
    /// The row's image, from the table or the shadow; empty when stamps alone are sent.
    pub values: Vec<(Arc<str>, Value)>,
}

#[derive(Serialize, Deserialize)]
struct WireLoad<'a> {
    last: bool,
    #[serde(borrow)]
    id: &'a Bytes,
    sequence: u64,
    #[serde(borrow, deserialize_with = "decode::bounded::<_, _, { limits::ACTORS_MAX }>")]
    actors: Vec<WireActor<'a>>,
    #[serde(borrow, deserialize_with = "decode::bounded::<_, _, { limits::CLASSES_MAX }>")]
    classes: Vec<WireClass<'a>>,
    #[serde(borrow, deserialize_with = "decode::bounded::<_, _, ROWS_MAX>")]
    rows: Vec<&'a Bytes>,
}

impl Load {
    /// A message without rows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the state of a row, without its values.
    pub fn push(&mut self, class: Arc<str>, key: Arc<str>, state: &RowState) {
        let state = RowState { shadow: None, ..state.clone() };
        self.rows.push(LoadRow { class, key, state, values: Vec::new() });
    }

    /// Every actor that the states name, once.
    #[must_use]
    pub fn actors(&self) -> BTreeSet<Actor> {
        self.rows.iter().flat_map(|row| row.state.actors()).collect()
    }

    /// The body's bytes.
    ///
    /// # Errors
    /// [`Failed`](crate::Kind::Failed) when a limit of [`limits`] is broken: send fewer rows.
    pub fn encode(&self) -> Result<Vec<u8>> {
        if self.rows.len() > ROWS_MAX {
            return Err(Error::failed("a load has too many rows for one message"));
        }
        let mut writer = Writer::default();
        let mut counts = Counts::new();
        let mut items = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            items.push(writer.item(&row.item(), &mut counts)?.1);
        }
        let names = writer.into_names()?;
        let wire = WireLoad {
            last: self.last,
            id: Bytes::new(self.id.as_bytes()),
            sequence: self.sequence,
            actors: names.wire_actors(),
            classes: names.wire_classes(),
            rows: items.iter().map(|item| Bytes::new(item)).collect(),
        };
        rmp_serde::to_vec(&wire)
            .map_err(|error| Error::failed("a load cannot be encoded").with_source(error))
    }

    /// The body from its bytes.
    ///
    /// # Errors
    /// [`Decode`](crate::Kind::Decode) for bytes that are none, or break a limit.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let wire: WireLoad<'_> = decode::exact(bytes)?;
        let names = Names::read(&wire.actors, &wire.classes)?;
        let mut counts = Counts::new();
        let mut rows = Vec::new();
        for bytes in wire.rows {
            rows.push(LoadRow::of(names.item(bytes, &mut counts)?)?);
        }
        Ok(Self { last: wire.last, id: uuid_of(wire.id)?, sequence: wire.sequence, rows })
    }
}

impl LoadRow {
    /// The row as the item of a record.
    #[must_use]
    pub fn item(&self) -> Item {
        Item {
            row: RowId { class: Arc::clone(&self.class), key: Arc::clone(&self.key) },
            op: Op::State,
            values: self.values.clone(),
            seen: self.state.seen.clone(),
            erased: self.state.erased.clone(),
            stamps: self.state.columns.iter().map(|(name, at)| (Arc::clone(name), *at)).collect(),
            base: self.state.base,
        }
    }

    fn of(item: Item) -> Result<Self> {
        if item.op != Op::State {
            return Err(Error::decode("a load holds something else than the state of a row"));
        }
        let Item { row, values, seen, erased, stamps, base, .. } = item;
        let columns = stamps.into_iter().collect();
        let state = RowState { base, columns, seen, erased, shadow: None };
        Ok(Self { class: row.class, key: row.key, state, values })
    }
}
