//! From records to the joined states of their rows.
//!
//! What an item wins goes into the row's shadow at once, also for a row that is in its table: the
//! row as it should be is the table's with the shadow laid over it. Showing the state in the table
//! takes the shadow out; a row that cannot be shown yet keeps it (`docs/ARCHITECTURE.md`, "The merge").

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::hold::Refusal;
use super::ledger::Conflict;
use super::{Applier, Pending};
use crate::catalog::Tracked;
use crate::error::Result;
use crate::merge::{ClassMerge, Fate, Policy, RowState};
use crate::record::{Item, Op, RowId, Value};
use crate::store::actors::Actors;
use crate::store::rows;
use crate::store::session::Session;
use crate::store::states::{Place, States};

/// The rows of a batch, each once, and the conflicts that joining found.
#[derive(Default)]
pub(super) struct Joined {
    pub(super) rows: Vec<(Arc<Tracked>, RowId)>,
    pub(super) conflicts: Vec<Conflict>,
    /// What whole states say of rows, won or not: a row of which nothing is here is made from it.
    pub(super) images: Images,
    known: HashSet<RowId>,
}

/// Images of rows, as whole states bring them.
pub(super) type Images = HashMap<RowId, BTreeMap<Arc<str>, Value>>;

pub(super) fn place(tracked: &Tracked, row: &RowId) -> Place {
    (tracked.id, Arc::clone(&row.key))
}

impl Pending<'_> {
    /// The items that the rules let in.
    pub(super) fn let_in(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter_map(|n| self.incoming.body.items.get(*n))
    }
}

impl Applier<'_> {
    /// Joins all items of a slice with the states of their rows, record by record. What must not be
    /// joined yet is refused, and then nothing is.
    pub(super) async fn join(
        &self,
        session: &mut Session,
        actors: &Actors,
        states: &mut States,
        slice: &[Pending<'_>],
    ) -> Result<Joined, Refusal> {
        let mut places = Vec::new();
        for item in slice.iter().flat_map(|record| record.let_in()) {
            places.push(place(rows::tracked_class(self.catalog, &item.row.class)?, &item.row));
        }
        states.load(session, actors, places).await?;
        let mut joined = Joined::default();
        let (mut gaps, mut undecided) = (Vec::new(), Vec::new());
        for (n, record) in slice.iter().enumerate() {
            match self.waits(states, record)? {
                Some((Fate::Undecided, row)) => undecided.push((n, row)),
                Some((_, row)) => gaps.push((n, row)),
                None => self.join_record(states, record, &mut joined)?,
            }
        }
        match (gaps.is_empty(), undecided.is_empty()) {
            (true, true) => Ok(joined),
            (false, _) => Err(Refusal::Gap(gaps)),
            (true, false) => Err(Refusal::Undecided(undecided)),
        }
    }

    /// How a class merges for a record: what an operator decided on merges as `columns`.
    fn merging(&self, record: &Pending<'_>, class: &str) -> ClassMerge {
        let mut merge = self.merge.class(class).clone();
        if record.decided && merge.policy == Policy::Hold {
            merge.policy = Policy::Columns;
        }
        merge
    }

    /// The first row of a record that must not be joined yet, and why. A record is joined whole or
    /// not at all.
    fn waits(&self, states: &States, record: &Pending<'_>) -> Result<Option<(Fate, RowId)>> {
        let stamp = record.incoming.stamp();
        for item in record.let_in() {
            let tracked = rows::tracked_class(self.catalog, &item.row.class)?;
            let none = RowState::default();
            let state = states.peek(&place(tracked, &item.row)).unwrap_or(&none);
            if state.gap(item) && !state.seen.has(stamp) {
                return Ok(Some((Fate::Gap, item.row.clone())));
            }
            if self.merge.class(&item.row.class).policy == Policy::Hold && !record.decided {
                let fate = state
                    .clone()
                    .join_item(item, stamp, &self.merging(record, &item.row.class))
                    .fate;
                if fate.holds() {
                    return Ok(Some((fate, item.row.clone())));
                }
            }
        }
        Ok(None)
    }

    /// Joins one record.
    pub(super) fn join_record(
        &self,
        states: &mut States,
        record: &Pending<'_>,
        joined: &mut Joined,
    ) -> Result<()> {
        let stamp = record.incoming.stamp();
        for item in record.let_in() {
            let tracked = rows::tracked_class(self.catalog, &item.row.class)?;
            let state = states.change(place(tracked, &item.row));
            let outcome = if record.decided {
                state.join_item(item, stamp, &self.merging(record, &item.row.class))
            } else {
                state.join_item(item, stamp, self.merge.class(&item.row.class))
            };
            if joined.known.insert(item.row.clone()) {
                joined.rows.push((Arc::clone(tracked), item.row.clone()));
            }
            if item.op == Op::State && !item.values.is_empty() {
                joined.images.insert(item.row.clone(), item.values.iter().cloned().collect());
            }
            for conflict in outcome.conflicts {
                let column = conflict.column.as_ref();
                let waiting = column.and_then(|column| state.shadow.as_ref()?.get(column).cloned());
                joined.conflicts.push(Conflict::new(item, conflict, record.incoming, waiting));
            }
            let won = item.values.iter().filter(|(name, _)| outcome.won.has(name));
            let mut won = won.peekable();
            if won.peek().is_some() {
                let shadow = state.shadow.get_or_insert_default();
                shadow.extend(won.map(|(name, value)| (Arc::clone(name), value.clone())));
            }
        }
        Ok(())
    }
}
