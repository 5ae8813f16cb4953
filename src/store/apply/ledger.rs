//! The conflict ledger: both sides of every concurrent edit, for review.

use std::collections::HashMap;
use std::sync::Arc;

use super::Incoming;
use crate::catalog::Catalog;
use crate::error::Result;
use crate::merge::{self, Stamp};
use crate::record::{Item, RowId, Value};
use crate::store::actors::Actors;
use crate::store::bulk;
use crate::store::rows::{self, Found};
use crate::store::session::{Datum, Session};

/// A conflict that joining found.
#[derive(Debug)]
pub(super) struct Conflict {
    row: RowId,
    /// The column; `None` where an edit met a delete.
    column: Option<Arc<str>>,
    theirs: (Stamp, Option<Value>),
    ours: Stamp,
    theirs_won: bool,
    original: uuid::Uuid,
}

impl Conflict {
    pub(super) fn new(item: &Item, conflict: merge::Conflict, incoming: &Incoming) -> Self {
        let value = conflict.column.as_ref().and_then(|column| {
            item.values.iter().find(|(name, _)| name == column).map(|(_, value)| value.clone())
        });
        Self {
            row: item.row.clone(),
            column: conflict.column,
            theirs: (conflict.theirs, value),
            ours: conflict.ours,
            theirs_won: conflict.theirs_won,
            original: incoming.body.original_uuid,
        }
    }

    /// Whether both sides wrote the same: nothing was lost.
    fn of_equals(&self, before: &Before) -> bool {
        let ours = self.column.as_ref().and_then(|column| {
            let values = before.get(&self.row)?;
            values.iter().find(|(name, _)| name == column).map(|(_, value)| value)
        });
        ours.is_some() && ours == self.theirs.1.as_ref()
    }
}

/// Values of rows before they are written over.
pub(super) type Before = HashMap<RowId, Vec<(Arc<str>, Value)>>;

/// Reads the rows that conflicts are about, before anything is written.
pub(super) async fn before(
    session: &mut Session,
    catalog: &Catalog,
    conflicts: &[Conflict],
) -> Result<Before> {
    let mut before = Before::new();
    let mut by_class: HashMap<Arc<str>, Vec<Arc<str>>> = HashMap::new();
    for conflict in conflicts {
        by_class
            .entry(Arc::clone(&conflict.row.class))
            .or_default()
            .push(Arc::clone(&conflict.row.key));
    }
    for (class, keys) in by_class {
        let tracked = rows::tracked_class(catalog, &class)?;
        let mut found = Found::default();
        found.locate(session, catalog, tracked, keys.clone(), false).await?;
        let mut locals = Vec::new();
        for key in keys {
            let row = RowId { class: Arc::clone(&class), key };
            if let Some(Some(local)) = found.get(&row) {
                locals.push((row.clone(), local.clone()));
            }
        }
        before.extend(rows::read(session, catalog, tracked, &locals).await?);
    }
    Ok(before)
}

/// Writes the ledger.
pub(super) async fn write(
    session: &mut Session,
    actors: &Actors,
    conflicts: Vec<Conflict>,
    before: &Before,
    now: i64,
) -> Result<()> {
    let name = |stamp: &Stamp| {
        let known = actors.known(stamp.actor).and_then(|known| known.nickname.clone());
        known.unwrap_or_else(|| stamp.actor.server.to_string())
    };
    let time = |stamp: &Stamp| Datum::time(i64::try_from(stamp.time.millis()).unwrap_or(i64::MAX));
    let rows = conflicts
        .into_iter()
        .filter(|conflict| !conflict.of_equals(before))
        .map(|conflict| {
            let ours = conflict.column.as_ref().and_then(|column| {
                let values = before.get(&conflict.row)?;
                values.iter().find(|(name, _)| name == column).map(|(_, value)| text(value))
            });
            let theirs = conflict.theirs.1.as_ref().map(text);
            let ours = (ours.flatten(), conflict.ours);
            let theirs = (theirs.flatten(), conflict.theirs.0);
            let (winner, loser) = if conflict.theirs_won { (theirs, ours) } else { (ours, theirs) };
            let kind = if conflict.column.is_some() { "COLUMN" } else { "EDIT_AND_DELETE" };
            vec![
                Datum::from(&*conflict.row.class),
                Datum::from(&*conflict.row.key),
                Datum::from(conflict.column.map(|column| column.to_string())),
                Datum::from(kind),
                Datum::from(winner.0),
                Datum::from(name(&winner.1)),
                time(&winner.1),
                Datum::from(loser.0),
                Datum::from(name(&loser.1)),
                time(&loser.1),
                Datum::from(conflict.original),
                Datum::time(now),
            ]
        })
        .collect();
    bulk::insert(
        session,
        "@sync_conflict",
        &[
            ("class", "text"),
            ("key", "text"),
            ("column_name", "text"),
            ("kind", "text"),
            ("winner_value", "text"),
            ("winner_server", "text"),
            ("winner_time", "timestamptz"),
            ("loser_value", "text"),
            ("loser_server", "text"),
            ("loser_time", "timestamptz"),
            ("original_uuid", "uuid"),
            ("detected_at", "timestamptz"),
        ],
        rows,
        "",
    )
    .await?;
    Ok(())
}

/// A value as a person reads it; `None` for NULL.
fn text(value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Text(text) => text.clone(),
        Value::Bytes(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        Value::Ref(row) => format!("{}:{}", row.class, row.key),
    })
}
