//! From joined states to the tables: which rows are there, and with which values.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::ledger::Conflict;
use super::write::{RowWrite, Writer, targets};
use super::{Applier, Pending, Refusal};
use crate::catalog::Tracked;
use crate::error::Result;
use crate::merge::{RowState, Won};
use crate::record::{Op, RowId, Value};
use crate::store::actors::Actors;
use crate::store::rows::{self, Found};
use crate::store::session::Session;
use crate::store::states::{Place, States};

/// What a batch does to one row, joined over all its records.
#[derive(Debug)]
pub(super) struct Work {
    tracked: Arc<Tracked>,
    row: RowId,
    /// Values of the columns that were won, the last of each.
    values: BTreeMap<Arc<str>, Value>,
    /// Whether `values` are all columns: an insert won.
    whole: bool,
}

/// The works of a batch, and the conflicts that joining found.
#[derive(Debug, Default)]
pub(super) struct Joined {
    pub(super) works: Vec<Work>,
    pub(super) conflicts: Vec<Conflict>,
}

fn place(tracked: &Tracked, row: &RowId) -> Place {
    (tracked.id, Arc::clone(&row.key))
}

impl Applier<'_> {
    /// Joins all items of a slice with the states of their rows, record by record.
    pub(super) async fn join(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        states: &mut States,
        slice: &[Pending<'_>],
    ) -> Result<Joined, Refusal> {
        let mut places = Vec::new();
        for record in slice {
            for item in record.items.iter().filter_map(|n| record.incoming.body.items.get(*n)) {
                places.push(place(rows::tracked_class(self.catalog, &item.row.class)?, &item.row));
            }
        }
        states.load(session, actors, places).await?;
        let mut joined = Joined::default();
        let mut at: HashMap<RowId, usize> = HashMap::new();
        let mut gaps = Vec::new();
        for (n, record) in slice.iter().enumerate() {
            match self.gap(states, record)? {
                Some(row) => gaps.push((n, row)),
                None => self.join_record(states, record, &mut joined, &mut at)?,
            }
        }
        if !gaps.is_empty() {
            return Err(Refusal::Gap(gaps));
        }
        Ok(joined)
    }

    /// The first row of a record that builds on a change that is not here.
    fn gap(&self, states: &States, record: &Pending<'_>) -> Result<Option<RowId>> {
        for item in record.items.iter().filter_map(|n| record.incoming.body.items.get(*n)) {
            let tracked = rows::tracked_class(self.catalog, &item.row.class)?;
            let none = RowState::default();
            let state = states.peek(&place(tracked, &item.row)).unwrap_or(&none);
            if state.gap(item) {
                return Ok(Some(item.row.clone()));
            }
        }
        Ok(None)
    }

    fn join_record(
        &self,
        states: &mut States,
        record: &Pending<'_>,
        joined: &mut Joined,
        at: &mut HashMap<RowId, usize>,
    ) -> Result<()> {
        let stamp = record.incoming.stamp();
        for item in record.items.iter().filter_map(|n| record.incoming.body.items.get(*n)) {
            let tracked = rows::tracked_class(self.catalog, &item.row.class)?;
            let state = states.change(place(tracked, &item.row));
            let outcome = state.join_item(item, stamp, self.merge.class(&item.row.class));
            let n = *at.entry(item.row.clone()).or_insert_with(|| {
                joined.works.push(Work {
                    tracked: Arc::clone(tracked),
                    row: item.row.clone(),
                    values: BTreeMap::new(),
                    whole: false,
                });
                joined.works.len() - 1
            });
            let work = &mut joined.works[n];
            let all = matches!(outcome.won, Won::All);
            work.whole |= all && item.op == Op::Insert;
            for (name, value) in &item.values {
                if outcome.won.has(name) {
                    work.values.insert(Arc::clone(name), value.clone());
                }
            }
            for conflict in outcome.conflicts {
                joined.conflicts.push(Conflict::new(item, conflict, record.incoming));
            }
        }
        Ok(())
    }

    /// Brings the tables to what the joined states say. Yields the rows that are there now.
    pub(super) async fn show(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        states: &mut States,
        found: &mut Found,
        works: Vec<Work>,
    ) -> Result<Vec<RowId>, Refusal> {
        let mut writer = Writer { session, catalog: self.catalog, found };
        writer.locate(works.iter().map(|work| &work.row), true).await?;
        let plan = plan(&writer, states, works)?;
        let mut touched: Vec<RowId> = plan.inserts.iter().map(|row| row.row.clone()).collect();
        touched.extend(plan.updates.iter().map(|row| row.row.clone()));

        let (first, kept) = self.leaving(&mut writer, states, plan.deletes).await?;
        self.delete(&mut writer, states, first).await?;

        let wanted: HashSet<RowId> =
            plan.inserts.iter().chain(&plan.updates).flat_map(targets).collect();
        writer.locate(wanted.iter(), false).await?;
        let mut inserts = plan.inserts;
        self.revive(&mut writer, actors, states, &mut inserts, wanted).await?;
        let later = writer.insert(inserts).await?;
        let mut updates = plan.updates;
        updates.extend(later);
        writer.update(updates).await?;

        let (second, _) = self.leaving(&mut writer, states, kept).await?;
        self.delete(&mut writer, states, second).await?;
        Ok(touched)
    }

    /// Rows that leave, cut into those that nothing left alive refers to, and those kept for now.
    async fn leaving(
        &self,
        writer: &mut Writer<'_>,
        states: &States,
        rows: Vec<(Arc<Tracked>, RowId)>,
    ) -> Result<(Vec<(Arc<Tracked>, RowId)>, Vec<(Arc<Tracked>, RowId)>)> {
        let _ = states;
        let leaving: HashSet<RowId> = rows.iter().map(|(_, row)| row.clone()).collect();
        let (mut free, mut kept) = (Vec::new(), Vec::new());
        for (tracked, row) in rows {
            let referrers = rows::referrers(writer.session, self.catalog, &tracked, &row).await?;
            if referrers.iter().all(|(_, other, _, _)| leaving.contains(other)) {
                free.push((tracked, row));
            } else {
                kept.push((tracked, row));
            }
        }
        // A row that stays keeps what it refers to: those that leave only with it stay as well.
        loop {
            let staying: HashSet<RowId> = kept.iter().map(|(_, row)| row.clone()).collect();
            let mut moved = Vec::new();
            let mut still = Vec::new();
            for (tracked, row) in free {
                let referrers =
                    rows::referrers(writer.session, self.catalog, &tracked, &row).await?;
                if referrers.iter().any(|(_, other, _, _)| staying.contains(other)) {
                    moved.push((tracked, row));
                } else {
                    still.push((tracked, row));
                }
            }
            free = still;
            if moved.is_empty() {
                return Ok((free, kept));
            }
            kept.extend(moved);
        }
    }

    /// Deletes rows, children first; what they held goes into their shadows.
    async fn delete(
        &self,
        writer: &mut Writer<'_>,
        states: &mut States,
        rows: Vec<(Arc<Tracked>, RowId)>,
    ) -> Result<(), Refusal> {
        let mut by_class: BTreeMap<usize, (Arc<Tracked>, Vec<RowId>)> = BTreeMap::new();
        for (tracked, row) in rows {
            let rank = self.catalog.rank(tracked.id);
            by_class.entry(rank).or_insert_with(|| (tracked, Vec::new())).1.push(row);
        }
        for (_, (tracked, rows)) in by_class.into_iter().rev() {
            let locals: Vec<(RowId, rows::Local)> = rows
                .iter()
                .filter_map(|row| Some((row.clone(), writer.found.get(row)??.clone())))
                .collect();
            let images = rows::read(writer.session, self.catalog, &tracked, &locals).await?;
            for (row, values) in images {
                let state = states.change(place(&tracked, &row));
                let mut shadow: BTreeMap<Arc<str>, Value> = values.into_iter().collect();
                shadow.extend(state.shadow.take().unwrap_or_default());
                state.shadow = Some(shadow);
            }
            writer.delete(&tracked, &rows).await?;
        }
        Ok(())
    }

    /// Rows that were deleted and are referred to again come back from their shadows, with what
    /// they refer to in turn.
    async fn revive(
        &self,
        writer: &mut Writer<'_>,
        actors: &Actors,
        states: &mut States,
        inserts: &mut Vec<RowWrite>,
        wanted: HashSet<RowId>,
    ) -> Result<(), Refusal> {
        let mut wanted = wanted;
        loop {
            let coming: HashSet<RowId> = inserts.iter().map(|row| row.row.clone()).collect();
            let missing: Vec<RowId> = wanted
                .into_iter()
                .filter(|row| !writer.found.has(row) && !coming.contains(row))
                .collect();
            if missing.is_empty() {
                return Ok(());
            }
            let mut places = Vec::new();
            for row in &missing {
                let tracked = rows::tracked_class(self.catalog, &row.class)?;
                places.push((Arc::clone(tracked), row.clone(), place(tracked, row)));
            }
            states
                .load(writer.session, actors, places.iter().map(|(_, _, place)| place.clone()))
                .await?;
            wanted = HashSet::new();
            for (tracked, row, place) in places {
                let shadowed = states.peek(&place).is_some_and(|state| state.shadow.is_some());
                if !shadowed {
                    continue;
                }
                let values = states.change(place).shadow.take().unwrap_or_default();
                let write = RowWrite { tracked, row, values };
                wanted.extend(targets(&write));
                inserts.push(write);
            }
            writer.locate(wanted.iter(), false).await?;
        }
    }
}

/// What is to be done to the tables.
struct Plan {
    inserts: Vec<RowWrite>,
    updates: Vec<RowWrite>,
    deletes: Vec<(Arc<Tracked>, RowId)>,
}

/// Compares the joined states with what is there.
fn plan(writer: &Writer<'_>, states: &mut States, works: Vec<Work>) -> Result<Plan, Refusal> {
    let mut plan = Plan { inserts: Vec::new(), updates: Vec::new(), deletes: Vec::new() };
    let mut absent = Vec::new();
    for work in works {
        let Work { tracked, row, values, whole } = work;
        let place = place(&tracked, &row);
        let alive = states.peek(&place).is_none_or(RowState::alive);
        match (alive, writer.found.has(&row)) {
            (true, true) => {
                if !values.is_empty() {
                    plan.updates.push(RowWrite { tracked, row, values });
                }
            }
            (true, false) => {
                let shadow = states.change(place).shadow.take();
                if !whole && shadow.is_none() {
                    absent.push((row.clone(), row));
                    continue;
                }
                let mut all = shadow.unwrap_or_default();
                all.extend(values);
                plan.inserts.push(RowWrite { tracked, row, values: all });
            }
            (false, true) => {
                states.change(place).shadow = Some(values);
                plan.deletes.push((tracked, row));
            }
            (false, false) => {
                let state = states.change(place);
                let mut shadow = state.shadow.take().unwrap_or_default();
                shadow.extend(values);
                state.shadow = Some(shadow);
            }
        }
    }
    if absent.is_empty() { Ok(plan) } else { Err(Refusal::Missing(absent)) }
}
