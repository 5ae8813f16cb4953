//! Why records are held, and what is kept of them.

use std::collections::HashSet;

use super::ledger;
use super::run::Progress;
use super::unique::Clash;
use super::{Applier, Outcome, Pending};
use crate::error::{Error, Result};
use crate::failpoint::crash_point;
use crate::merge;
use crate::record::RowId;
use crate::state::State;
use crate::store::actors::Actors;
use crate::store::books::conflicts::{self, ConflictKind};
use crate::store::held::{self, HoldKind};
use crate::store::imports;
use crate::store::session::Session;
use crate::store::states::States;

/// Rows of its own that a held record is tried again for, when they change.
const OWN_ROWS_MAX: usize = 256;

/// Why a part of a batch does not go in.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The database refused some statement.
    Whole(Error),
    /// These rows are refused.
    Rows(Vec<(RowId, Error)>),
    /// These rows refer to rows that are not there: (row, missing).
    Missing(Vec<(RowId, RowId)>),
    /// Other rows have their values of unique columns.
    Clash(Vec<Clash>),
    /// These records build on what is not here: (index, the row concerned).
    Gap(Vec<(usize, RowId)>),
    /// These records wait for an operator, by the policy of their class.
    Undecided(Vec<(usize, RowId)>),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Whole(error)
    }
}

/// Why a record is held.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    pub(crate) kind: HoldKind,
    pub(crate) text: String,
    /// The rows whose arrival lets it be tried again.
    pub(crate) needs: Vec<RowId>,
}

impl Hold {
    pub(super) fn new(kind: HoldKind, text: String) -> Self {
        Self { kind, text, needs: Vec::new() }
    }

    pub(super) fn of(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Whole(error) => Self::new(HoldKind::Refused, error.chain()),
            Refusal::Rows(rows) => Self::new(
                HoldKind::Refused,
                rows.first().map_or_else(String::new, |(_, error)| error.chain()),
            ),
            Refusal::Missing(rows) => missing(rows.iter().map(|(_, target)| target)),
            Refusal::Clash(list) => match list.first() {
                Some(one) => clash(one),
                None => Self::new(HoldKind::UniqueClash, String::new()),
            },
            Refusal::Gap(list) => gap(list.iter().map(|(_, row)| row)),
            Refusal::Undecided(list) => match list.first() {
                Some((_, row)) => undecided(row),
                None => Self::new(HoldKind::Undecided, String::new()),
            },
        }
    }

    /// Whether the items are known and joinable, and only the tables wait.
    fn joins(&self) -> bool {
        match self.kind {
            HoldKind::Refused | HoldKind::Missing | HoldKind::UniqueClash => true,
            HoldKind::Class
            | HoldKind::Column
            | HoldKind::Clock
            | HoldKind::Gap
            | HoldKind::Undecided
            | HoldKind::MergeDiffers
            | HoldKind::Keyless
            | HoldKind::Undecodable => false,
        }
    }
}

/// Names both rows, by class and key: never what they hold.
fn clash(clash: &Clash) -> Hold {
    let Clash { row, other, columns } = clash;
    Hold {
        kind: HoldKind::UniqueClash,
        text: format!(
            "row `{}` of `{}` is to have what row `{}` has already in the unique column {}: change one of them, on any server",
            row.key,
            row.class,
            other.key,
            columns.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
        ),
        needs: vec![row.clone(), other.clone()],
    }
}

fn undecided(row: &RowId) -> Hold {
    Hold {
        kind: HoldKind::Undecided,
        text: format!(
            "an edit of row `{}` of `{}` did not know of another, and the policy of that class is `hold`: decide with `branchline conflicts`",
            row.key, row.class
        ),
        needs: vec![row.clone()],
    }
}

fn missing<'a>(rows: impl Iterator<Item = &'a RowId> + Clone) -> Hold {
    let first = rows.clone().next().map(|row| row.class.to_string()).unwrap_or_default();
    Hold {
        kind: HoldKind::Missing,
        text: format!("it refers to a row of `{first}` that is not here yet"),
        needs: rows.cloned().collect(),
    }
}

fn gap<'a>(rows: impl Iterator<Item = &'a RowId> + Clone) -> Hold {
    let first = rows.clone().next().map(|row| row.class.to_string()).unwrap_or_default();
    Hold {
        kind: HoldKind::Gap,
        text: format!("it builds on a change of a row of `{first}` that is not here yet"),
        needs: rows.cloned().collect(),
    }
}

/// The records of a slice that a refusal names, with the reason for each.
pub(super) fn guilty(slice: &[Pending<'_>], refusal: &Refusal) -> Vec<(usize, Hold)> {
    let touching = |row: &RowId| -> Vec<usize> {
        let touches =
            |record: &&Pending<'_>| record.incoming.body.items.iter().any(|i| i.row == *row);
        slice.iter().enumerate().filter(|(_, r)| touches(r)).map(|(n, _)| n).collect()
    };
    let mut list: Vec<(usize, Hold)> = Vec::new();
    match refusal {
        Refusal::Whole(_) => {}
        Refusal::Gap(gaps) => {
            for (at, row) in gaps {
                list.push((*at, gap(std::iter::once(row))));
            }
        }
        Refusal::Undecided(rows) => {
            for (at, row) in rows {
                list.push((*at, undecided(row)));
            }
        }
        Refusal::Clash(clashes) => {
            for one in clashes {
                list.extend(touching(&one.row).into_iter().map(|n| (n, clash(one))));
            }
        }
        Refusal::Missing(rows) => {
            for (row, target) in rows {
                list.extend(
                    touching(row).into_iter().map(|n| (n, missing(std::iter::once(target)))),
                );
            }
        }
        Refusal::Rows(rows) => {
            for (row, error) in rows {
                let hold = Hold::new(HoldKind::Refused, error.chain());
                list.extend(touching(row).into_iter().map(|n| (n, hold.clone())));
            }
        }
    }
    list
}

impl Applier<'_> {
    /// Holds what cannot be applied whatever the tables hold: unknown classes and columns, a clock
    /// far ahead.
    pub(super) async fn screen<'r>(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        slice: Vec<Pending<'r>>,
        progress: &mut Progress<'_>,
    ) -> Result<Vec<Pending<'r>>> {
        let mut fit = Vec::with_capacity(slice.len());
        for record in slice {
            match self.misfit(&record) {
                None => fit.push(record),
                Some(reason) => {
                    let outcome = self.set_aside(session, actors, &record, reason).await?;
                    progress.held(record.at, outcome);
                }
            }
        }
        Ok(fit)
    }

    fn misfit(&self, record: &Pending<'_>) -> Option<Hold> {
        let body = &record.incoming.body;
        // Whole states bring the stamps of others along.
        let stamp = record.incoming.stamp();
        let newest = body.items.iter().map(|item| merge::newest(item, stamp)).max();
        let newest = newest.unwrap_or(stamp.time).max(stamp.time).millis();
        let ahead = i64::try_from(newest).unwrap_or(i64::MAX).saturating_sub(self.now);
        if ahead > self.skew_hold_ms {
            return Some(Hold::new(
                HoldKind::Clock,
                format!(
                    "its clock is {} s ahead of ours: mend the clock of server {}",
                    ahead / 1_000,
                    body.origin.server
                ),
            ));
        }
        for item in record.items.iter().filter_map(|n| body.items.get(*n)) {
            let Some(tracked) = self.catalog.class(&item.row.class) else {
                return Some(Hold::new(
                    HoldKind::Class,
                    format!(
                        "the class `{}` is not tracked here: run `branchline track`",
                        item.row.class
                    ),
                ));
            };
            if let Some(why) = self.merge.difference(&item.row.class) {
                return Some(Hold::new(
                    HoldKind::MergeDiffers,
                    format!(
                        "`{}` merges otherwise here than the root of the tree says ({why}): make `branchline.toml` and the table agree",
                        item.row.class
                    ),
                ));
            }
            let strange =
                item.values.iter().find(|(name, _)| tracked.class.position(name).is_none());
            if let Some((name, _)) = strange {
                return Some(Hold::new(
                    HoldKind::Column,
                    format!(
                        "`{}` has no column `{name}` here: migrate this database, then run `branchline track`",
                        item.row.class
                    ),
                ));
            }
        }
        None
    }

    /// Sets a record aside. What is known and joinable joins the states at once: only the tables
    /// wait.
    pub(super) async fn set_aside(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        record: &Pending<'_>,
        mut reason: Hold,
    ) -> Result<Outcome> {
        if reason.joins() {
            let mut states = States::default();
            match self.join(session, actors, &mut states, std::slice::from_ref(record)).await {
                Ok(joined) => {
                    let entries =
                        ledger::entries(session, self.catalog, joined.conflicts, None).await?;
                    states.save(session, actors).await?;
                    conflicts::write(session, actors, entries, self.now).await?;
                    let own = joined.rows.into_iter().map(|(_, row)| row);
                    let known: HashSet<RowId> = reason.needs.iter().cloned().collect();
                    reason.needs.extend(own.filter(|row| !known.contains(row)).take(OWN_ROWS_MAX));
                }
                Err(Refusal::Whole(error)) => return Err(error),
                Err(other) => reason = Hold::of(&other),
            }
        }
        if reason.kind == HoldKind::Undecided
            && !conflicts::is_undecided(session, record.incoming.original().0).await?
        {
            self.tell_undecided(session, actors, record).await?;
        }
        self.hold(session, actors, record, reason).await
    }

    /// Puts what an operator has to decide on into the ledger, as `columns` would decide it.
    async fn tell_undecided(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        record: &Pending<'_>,
    ) -> Result<()> {
        let tried = Pending { items: record.items.clone(), decided: true, ..*record };
        let mut states = States::default();
        let joined = self.join(session, actors, &mut states, std::slice::from_ref(&tried)).await;
        let joined = match joined {
            Ok(joined) => joined,
            Err(Refusal::Whole(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        actors.admit(session, [record.incoming.body.origin]).await?;
        let kind = Some(ConflictKind::Undecided);
        let entries = ledger::entries(session, self.catalog, joined.conflicts, kind).await?;
        conflicts::write(session, actors, entries, self.now).await
    }

    /// Sets a record aside, and passes it on all the same.
    async fn hold(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        record: &Pending<'_>,
        reason: Hold,
    ) -> Result<Outcome> {
        let incoming = record.incoming;
        let mut state = State::Failed;
        if let Some(id) = record.held {
            let stopped =
                held::again(session, self.catalog, id, &reason, self.patience, self.now).await?;
            if stopped {
                state = State::FailedAndStopped;
            }
        } else {
            tracing::warn!(
                record.uuid = %incoming.uuid, link.peer = %self.source.nickname,
                reason = %reason.text, "a record is held"
            );
            let (source, patience) = (self.source.id, self.patience);
            if incoming.is_state() {
                let kept = incoming.to_be_held()?;
                held::write(session, self.catalog, source, &kept, &reason, patience, self.now)
                    .await?;
            } else {
                held::write(session, self.catalog, source, incoming, &reason, patience, self.now)
                    .await?;
                let item = std::iter::once((incoming, record.items.len()));
                self.pass_on(session, actors, item).await?;
            }
            crash_point!("held.written");
        }
        imports::failed(session, self.source.id, incoming, state, &reason.text, self.now).await?;
        Ok(Outcome { uuid: incoming.uuid, state, message: Some(reason.text) })
    }
}
