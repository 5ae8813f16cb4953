//! A batch on its way: tried whole, cut where it is refused, until all of it is in or held.

use std::collections::HashSet;

use super::hold::{Hold, Refusal, guilty};
use super::join::Joined;
use super::view::View;
use super::{Applied, Applier, Outcome, Pending, ledger, refuses};
use crate::error::{Kind, Result};
use crate::record::RowId;
use crate::state::State;
use crate::store::actors::Actors;
use crate::store::books::conflicts::{self, ConflictKind, Entry, Side};
use crate::store::held;
use crate::store::imports;
use crate::store::session::Session;
use crate::store::states::States;

/// What is to be done next.
enum Step<'a> {
    /// Try to apply these.
    Try(Vec<Pending<'a>>),
    /// Hold this one: all before it that touch its rows are dealt with.
    Hold(Pending<'a>, Hold),
}

/// What a batch has come to so far.
pub(super) struct Progress<'p> {
    pub(super) outcomes: &'p mut [Option<Outcome>],
    pub(super) applied: &'p mut Applied,
}

impl Progress<'_> {
    pub(super) fn held(&mut self, at: usize, outcome: Outcome) {
        self.applied.held += 1;
        self.outcomes[at] = Some(outcome);
    }
}

impl Applier<'_> {
    /// Tries slices of the batch, the whole first.
    pub(super) async fn run(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        pending: Vec<Pending<'_>>,
        outcomes: &mut [Option<Outcome>],
        applied: &mut Applied,
    ) -> Result<()> {
        let mut progress = Progress { outcomes, applied };
        let mut steps = vec![Step::Try(pending)];
        while let Some(step) = steps.pop() {
            let slice = match step {
                Step::Try(slice) => self.screen(session, actors, slice, &mut progress).await?,
                Step::Hold(record, reason) => {
                    let outcome = self.set_aside(session, actors, &record, reason).await?;
                    progress.held(record.at, outcome);
                    continue;
                }
            };
            if slice.is_empty() {
                continue;
            }
            match self.attempt(session, actors, &slice).await? {
                Ok(rows) => {
                    progress.applied.committed += slice.len();
                    progress.applied.rows.extend(rows);
                    for record in slice {
                        let (uuid, state) = (record.incoming.uuid, State::Committed);
                        progress.outcomes[record.at] = Some(Outcome { uuid, state, message: None });
                    }
                }
                Err(refusal) => cut(slice, &refusal, &mut steps),
            }
        }
        Ok(())
    }

    /// Tries a slice, and where the database refuses it, once more with care for rows that take each
    /// other's values. Nothing is left of what was refused.
    async fn attempt(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        slice: &[Pending<'_>],
    ) -> Result<Result<Vec<RowId>, Refusal>> {
        let mut carefully = false;
        loop {
            session.batch("SAVEPOINT branchline_slice").await?;
            let refusal = match self.slice(session, actors, slice, carefully).await {
                Ok(rows) => {
                    session.batch("RELEASE SAVEPOINT branchline_slice").await?;
                    return Ok(Ok(rows));
                }
                Err(Refusal::Whole(error)) if !refuses(&error) => return Err(error),
                Err(refusal) => refusal,
            };
            session
                .batch(
                    "ROLLBACK TO SAVEPOINT branchline_slice; \
                     RELEASE SAVEPOINT branchline_slice",
                )
                .await?;
            match &refusal {
                Refusal::Whole(error) if !carefully && error.kind() == Kind::Constraint => {
                    carefully = true;
                }
                _ => return Ok(Err(refusal)),
            }
        }
    }

    /// Joins, writes, and books one slice.
    async fn slice(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        slice: &[Pending<'_>],
        carefully: bool,
    ) -> Result<Vec<RowId>, Refusal> {
        let mut states = States::default();
        let Joined { rows, conflicts, images, .. } =
            self.join(session, actors, &mut states, slice).await?;
        let mut entries = ledger::entries(session, self.catalog, conflicts, None).await?;
        let view = View { catalog: self.catalog, merge: self.merge };
        let shown = view.show(session, actors, &mut states, (rows, images), carefully).await?;
        entries.extend(shown.revived.into_iter().map(revived));
        states.save(session, actors).await?;
        conflicts::write(session, actors, entries, self.now).await?;
        // States of rows are no records, unless they were held as such.
        let booked = slice.iter().filter(|r| r.held.is_some() || !r.incoming.is_state());
        let imports = booked.map(|record| record.incoming);
        imports::committed(session, self.source.id, imports, self.now).await?;
        let held: Vec<i64> = slice.iter().filter_map(|record| record.held).collect();
        held::done(session, &held).await?;
        let fresh = slice.iter().filter(|r| r.held.is_none() && !r.incoming.is_state());
        self.pass_on(session, actors, fresh.map(|r| (r.incoming, r.items.len()))).await?;
        Ok(shown.touched)
    }
}

/// Takes out what is refused for certain, halves what is not known. The order of records that touch
/// one row stays: a record is held only after those before it are in, or held.
fn cut<'r>(slice: Vec<Pending<'r>>, refusal: &Refusal, steps: &mut Vec<Step<'r>>) {
    let named = guilty(&slice, refusal);
    if named.is_empty() && slice.len() > 1 {
        let mut first = slice;
        let second = first.split_off(first.len() / 2);
        steps.push(Step::Try(second));
        steps.push(Step::Try(first));
        return;
    }
    let mut next = Vec::new();
    let mut rest: Vec<Pending<'r>> = Vec::new();
    let mut touched: HashSet<RowId> = HashSet::new();
    for (n, record) in slice.into_iter().enumerate() {
        let reason = named.iter().find(|(at, _)| *at == n).map(|(_, reason)| reason.clone());
        let reason = if named.is_empty() { Some(Hold::of(refusal)) } else { reason };
        let Some(reason) = reason else {
            touched.extend(record.let_in().map(|item| item.row.clone()));
            rest.push(record);
            continue;
        };
        if record.let_in().any(|item| touched.contains(&item.row)) {
            next.push(Step::Try(std::mem::take(&mut rest)));
            touched.clear();
        }
        next.push(Step::Hold(record, reason));
    }
    next.push(Step::Try(rest));
    steps.extend(next.into_iter().rev());
}

/// The line about a row that is there for the sake of another.
fn revived((row, referrer): (RowId, RowId)) -> Entry {
    Entry {
        note: Some(format!(
            "it was deleted, and is there because row `{}` of `{}` refers to it",
            referrer.key, referrer.class
        )),
        row,
        column: None,
        kind: ConflictKind::Revived,
        winner: Side::default(),
        loser: Side::default(),
        original: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Actor, RecordId, ServerId};
    use crate::merge::{Seen, Time};
    use crate::record::{Body, Item, Op};
    use crate::store::apply::Incoming;

    fn row(key: &str) -> RowId {
        RowId { class: "bed".into(), key: key.into() }
    }

    /// A record that touches one row.
    fn record(key: &str) -> Incoming {
        let item = Item {
            row: row(key),
            op: Op::Update,
            values: Vec::new(),
            seen: Seen::new(),
            erased: Seen::new(),
            stamps: Vec::new(),
            base: None,
        };
        let uuid = RecordId::fresh();
        let server = ServerId(uuid::Uuid::nil());
        let body = Body {
            original_uuid: uuid.0,
            origin: Actor { server, incarnation: 1 },
            number: 1,
            time: Time::default(),
            committed_at: 0,
            part: (0, 1),
            items: vec![item],
        };
        Incoming { uuid, body, parts: Vec::new(), places: Vec::new() }
    }

    /// What is done to records that touch these rows, in order: `try 0 1`, `hold 2`.
    fn steps(keys: &[&str], refusal: &Refusal) -> Vec<String> {
        let records: Vec<Incoming> = keys.iter().map(|key| record(key)).collect();
        let slice = records.iter().enumerate();
        let slice = slice.map(|(at, incoming)| {
            let items = vec![0];
            Pending { at, incoming, items, held: None, decided: false }
        });
        let mut steps = Vec::new();
        cut(slice.collect(), refusal, &mut steps);
        let text = |step: Step<'_>| match step {
            Step::Try(slice) => {
                let list: Vec<String> = slice.iter().map(|one| one.at.to_string()).collect();
                format!("try {}", list.join(" "))
            }
            Step::Hold(one, _) => format!("hold {}", one.at),
        };
        steps.into_iter().rev().map(text).collect()
    }

    #[test]
    fn a_record_is_held_only_after_those_before_it_that_touch_its_rows() {
        let gap = Refusal::Gap(vec![(2, row("a"))]);
        assert_eq!(steps(&["a", "b", "a", "c"], &gap), ["try 0 1", "hold 2", "try 3"]);
        let gap = Refusal::Gap(vec![(2, row("c"))]);
        assert_eq!(steps(&["a", "b", "c", "a"], &gap), ["hold 2", "try 0 1 3"]);
    }

    #[test]
    fn all_that_touch_a_refused_row_are_held_in_their_order() {
        let missing = Refusal::Missing(vec![(row("a"), row("x"))]);
        let expected = ["hold 0", "hold 2", "hold 3", "try 1"];
        assert_eq!(steps(&["a", "b", "a", "a"], &missing), expected);
    }

    #[test]
    fn what_nobody_is_to_blame_for_is_halved() {
        let whole = || Refusal::Whole(crate::error::Error::constraint("no"));
        assert_eq!(steps(&["a", "b", "c"], &whole()), ["try 0", "try 1 2"]);
        assert_eq!(steps(&["a"], &whole()), ["hold 0", "try "]);
    }
}
