//! From joined states to the tables: which rows are there, and with which values.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::hold::Refusal;
use super::join::{Images, place};
use super::leave::{Leaving, leaving};
use super::unique;
use super::write::{RowWrite, Writer, targets};
use crate::catalog::{Catalog, Class, Tracked};
use crate::error::Result;
use crate::merge::TreeMerge;
use crate::record::{RowId, Value};
use crate::store::actors::Actors;
use crate::store::revived;
use crate::store::rows::{self, Found};
use crate::store::session::Session;
use crate::store::states::States;

/// What showing came to.
#[derive(Default)]
pub(super) struct Shown {
    /// Rows that were written or went: held records may wait for them.
    pub(super) touched: Vec<RowId>,
    /// Rows that are there although they are dead, since now, with a row that refers to each.
    pub(super) revived: Vec<(RowId, RowId)>,
}

/// What is to be done to the tables.
#[derive(Default)]
struct Plan {
    inserts: Vec<RowWrite>,
    updates: Vec<RowWrite>,
    deletes: Vec<(Arc<Tracked>, RowId)>,
}

/// What brings the tables to what the states say.
pub(super) struct View<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) merge: &'a TreeMerge,
}

impl View<'_> {
    /// Brings the tables to what the joined states of `rows` say. `carefully`: rows that take each
    /// other's unique values are parked first, which costs a look at every such value.
    pub(super) async fn show(
        &self,
        session: &mut Session,
        actors: &Actors,
        states: &mut States,
        (rows, images): (Vec<(Arc<Tracked>, RowId)>, Images),
        carefully: bool,
    ) -> Result<Shown, Refusal> {
        let mut found = Found::default();
        let standing = revived::list(session).await?;
        let mut writer = Writer::new(session, self.catalog, &mut found, carefully);
        writer.locate(rows.iter().map(|(_, row)| row), true).await?;
        writer.begin().await?;
        let Plan { mut inserts, updates, deletes } = self.plan(&writer, states, &rows, images)?;
        let mut shown = Shown::default();
        shown.touched.extend(inserts.iter().chain(&updates).map(|write| write.row.clone()));
        let loosened = !deletes.is_empty() || updates.iter().any(RowWrite::refers);

        let first = leaving(&mut writer, deletes).await?;
        shown.touched.extend(first.free.iter().map(|(_, row)| row.clone()));
        self.delete(&mut writer, states, &first).await?;

        let wanted: HashMap<RowId, RowId> = inserts
            .iter()
            .chain(&updates)
            .flat_map(|write| {
                let row = &write.row;
                targets(self.catalog, write).into_iter().map(move |target| (target, row.clone()))
            })
            .collect();
        writer.locate(wanted.keys(), false).await?;
        shown.revived = self.revive(&mut writer, actors, states, &mut inserts, wanted).await?;
        let mut updates = updates;
        let parked = if carefully {
            unique::park(&mut writer, &inserts, &mut updates, &first.kept).await?
        } else {
            Vec::new()
        };
        let later = writer.insert(inserts).await?;
        updates.extend(later);
        writer.update(updates).await?;

        // What waited for its referrers, and what was there for the sake of rows that went.
        let mut rest: Vec<(Arc<Tracked>, RowId)> =
            first.kept.into_iter().map(|(tracked, row, _)| (tracked, row)).collect();
        if loosened {
            self.add_standing(&mut writer, actors, states, &standing, &mut rest).await?;
        }
        let second = leaving(&mut writer, rest).await?;
        shown.touched.extend(second.free.iter().map(|(_, row)| row.clone()));
        self.delete(&mut writer, states, &second).await?;
        self.stay(&mut writer, states, &second, parked).await?;
        let stay = second.kept.into_iter().map(|(_, row, referrer)| (row, referrer));
        shown.revived.extend(stay);
        writer.finish().await?;
        shown.revived.retain(|(row, _)| !standing.contains(row));
        self.book(writer.session, states, &rows, &standing, &shown).await?;
        Ok(shown)
    }

    /// Compares the joined states with what is there, and takes the values to be written out of the
    /// shadows.
    fn plan(
        &self,
        writer: &Writer<'_>,
        states: &mut States,
        rows: &[(Arc<Tracked>, RowId)],
        mut images: Images,
    ) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        let mut absent = Vec::new();
        for (tracked, row) in rows {
            let at = place(tracked, row);
            if let Some(mut image) = images.remove(row).filter(|_| !writer.found.has(row)) {
                // What is here already has won; the rest is nowhere but in the image.
                let shadow = &mut states.change(at.clone()).shadow;
                image.extend(shadow.take().unwrap_or_default());
                *shadow = Some(image);
            }
            let policy = self.merge.class(&row.class).policy;
            let alive = states.peek(&at).is_none_or(|state| state.alive_under(policy));
            match (alive, writer.found.has(row)) {
                (true, true) => {
                    if states.peek(&at).is_some_and(|state| state.shadow.is_some()) {
                        let values = states.change(at).shadow.take().unwrap_or_default();
                        plan.updates.extend(row_write(tracked, row, values));
                    }
                }
                (true, false) if self.is_complete(states, tracked, row) => {
                    let values = states.change(at).shadow.take().unwrap_or_default();
                    plan.inserts.extend(row_write(tracked, row, values));
                }
                (true, false) => absent.push((row.clone(), row.clone())),
                (false, true) => plan.deletes.push((Arc::clone(tracked), row.clone())),
                (false, false) => {
                    states.change(at).shadow.get_or_insert_default();
                }
            }
        }
        if absent.is_empty() { Ok(plan) } else { Err(Refusal::Missing(absent)) }
    }

    /// Whether a row that is not in the table can be put there from its shadow: that is all of it. A
    /// change of some columns never names those of the key, an image always does.
    fn is_complete(&self, states: &States, tracked: &Tracked, row: &RowId) -> bool {
        let class = &tracked.class;
        states.peek(&place(tracked, row)).and_then(|state| state.shadow.as_ref()).is_some_and(
            |shadow| class.key.iter().all(|n| shadow.contains_key(&class.columns[*n].name)),
        )
    }

    /// Rows that stay although they are dead: what their states won is written, and what was parked
    /// comes back.
    async fn stay(
        &self,
        writer: &mut Writer<'_>,
        states: &mut States,
        leaving: &Leaving,
        parked: Vec<RowWrite>,
    ) -> Result<(), Refusal> {
        let stays: HashSet<&RowId> = leaving.kept.iter().map(|(_, row, _)| row).collect();
        let mut writes: Vec<RowWrite> =
            parked.into_iter().filter(|write| stays.contains(&write.row)).collect();
        for (tracked, row, _) in &leaving.kept {
            let at = place(tracked, row);
            if states.peek(&at).is_some_and(|state| state.shadow.is_some()) {
                let values = states.change(at).shadow.take().unwrap_or_default();
                writes.extend(row_write(tracked, row, values));
            }
        }
        let wanted: Vec<RowId> =
            writes.iter().flat_map(|write| targets(self.catalog, write)).collect();
        writer.locate(wanted.iter(), false).await?;
        writer.update(writes).await
    }

    /// Deletes rows, those that refer before those that they refer to; what they held goes into
    /// their shadows.
    pub(super) async fn delete(
        &self,
        writer: &mut Writer<'_>,
        states: &mut States,
        leaving: &Leaving,
    ) -> Result<(), Refusal> {
        for (tracked, rows) in leaving.by_class() {
            let locals: Vec<(RowId, rows::Local)> = rows
                .iter()
                .filter_map(|row| Some(((*row).clone(), writer.found.get(row)??.clone())))
                .collect();
            let images = rows::read(writer.session, self.catalog, tracked, &locals).await?;
            for (row, values) in images {
                let state = states.change(place(tracked, &row));
                let mut shadow: BTreeMap<Arc<str>, Value> = values.into_iter().collect();
                shadow.extend(state.shadow.take().unwrap_or_default());
                state.shadow = Some(shadow);
            }
        }
        for round in leaving.rounds(self.catalog) {
            writer.loosen(&round.loose).await?;
            for (tracked, rows) in round.classes {
                writer.delete(&tracked, &rows).await?;
            }
        }
        Ok(())
    }

    /// Rows that were deleted and are referred to again come back from their shadows, with what
    /// they refer to in turn. Yields them, each with a row that refers to it.
    async fn revive(
        &self,
        writer: &mut Writer<'_>,
        actors: &Actors,
        states: &mut States,
        inserts: &mut Vec<RowWrite>,
        wanted: HashMap<RowId, RowId>,
    ) -> Result<Vec<(RowId, RowId)>, Refusal> {
        let mut wanted = wanted;
        let mut revived = Vec::new();
        loop {
            let coming: HashSet<RowId> = inserts.iter().map(|row| row.row.clone()).collect();
            wanted.retain(|row, _| !writer.found.has(row) && !coming.contains(row));
            if wanted.is_empty() {
                return Ok(revived);
            }
            let mut missing = Vec::new();
            for (row, referrer) in std::mem::take(&mut wanted) {
                missing.push((
                    Arc::clone(rows::tracked_class(self.catalog, &row.class)?),
                    row,
                    referrer,
                ));
            }
            missing.sort_by(|(_, a, _), (_, b, _)| a.cmp(b));
            let places = missing.iter().map(|(tracked, row, _)| place(tracked, row));
            states.load(writer.session, actors, places).await?;
            for (tracked, row, referrer) in missing {
                let policy = self.merge.class(&row.class).policy;
                let at = place(&tracked, &row);
                let dead = states.peek(&at).is_some_and(|state| !state.alive_under(policy));
                if !dead || !self.is_complete(states, &tracked, &row) {
                    continue;
                }
                let values = states.change(at).shadow.take().unwrap_or_default();
                let Some(write) = row_write(&tracked, &row, values) else { continue };
                let targets = targets(self.catalog, &write).into_iter();
                wanted.extend(targets.map(|target| (target, row.clone())));
                inserts.push(write);
                revived.push((row, referrer));
            }
            writer.locate(wanted.keys(), false).await?;
        }
    }

    /// Dead rows that stand for the sake of others: they may go now.
    pub(super) async fn add_standing(
        &self,
        writer: &mut Writer<'_>,
        actors: &Actors,
        states: &mut States,
        standing: &HashSet<RowId>,
        rest: &mut Vec<(Arc<Tracked>, RowId)>,
    ) -> Result<()> {
        let known: HashSet<RowId> = rest.iter().map(|(_, row)| row.clone()).collect();
        let mut more = Vec::new();
        for row in standing.iter().filter(|row| !known.contains(row)) {
            if let Some(tracked) = self.catalog.class(&row.class) {
                more.push((Arc::clone(tracked), row.clone()));
            }
        }
        more.sort_by(|(_, a), (_, b)| a.cmp(b));
        states.load(writer.session, actors, more.iter().map(|(t, row)| place(t, row))).await?;
        writer.locate(more.iter().map(|(_, row)| row), true).await?;
        more.retain(|(tracked, row)| {
            let policy = self.merge.class(&row.class).policy;
            let dead = states.peek(&place(tracked, row)).is_some_and(|s| !s.alive_under(policy));
            dead && writer.found.has(row)
        });
        rest.extend(more);
        Ok(())
    }

    /// Keeps the list of rows that are dead and stand.
    async fn book(
        &self,
        session: &mut Session,
        states: &States,
        rows: &[(Arc<Tracked>, RowId)],
        standing: &HashSet<RowId>,
        shown: &Shown,
    ) -> Result<()> {
        revived::add(session, self.catalog, shown.revived.iter().map(|(row, _)| row)).await?;
        if standing.is_empty() {
            return Ok(());
        }
        let lives = |(tracked, row): &&(Arc<Tracked>, RowId)| {
            let policy = self.merge.class(&row.class).policy;
            states.peek(&place(tracked, row)).is_some_and(|state| state.alive_under(policy))
        };
        let again: HashSet<&RowId> = shown.revived.iter().map(|(row, _)| row).collect();
        let alive = rows.iter().filter(lives).map(|(_, row)| row);
        let gone = shown.touched.iter().filter(|row| standing.contains(*row));
        let ended = alive.chain(gone).filter(|row| standing.contains(*row) && !again.contains(row));
        revived::remove(session, self.catalog, ended).await
    }
}

/// A write of those values whose columns the table has (still).
fn row_write(
    tracked: &Arc<Tracked>,
    row: &RowId,
    values: BTreeMap<Arc<str>, Value>,
) -> Option<RowWrite> {
    let has = |name: &str| is_written(&tracked.class, name);
    let values: BTreeMap<_, _> = values.into_iter().filter(|(name, _)| has(name)).collect();
    let write = RowWrite { tracked: Arc::clone(tracked), row: row.clone(), values };
    (!write.values.is_empty()).then_some(write)
}

fn is_written(class: &Class, name: &str) -> bool {
    class.position(name).is_some_and(|n| class.surrogate != Some(n) && !class.columns[n].generated)
}
