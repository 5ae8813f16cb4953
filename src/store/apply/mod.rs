//! Applying: what came in becomes rows, exactly once in effect.
//!
//! A batch of records is joined with the states of its rows first; what is then written is a
//! function of the joined states alone, class by class, in one transaction with the states, the
//! `sync_import` rows and the copies that are passed on. A batch that the database refuses is rolled
//! back to a savepoint and halved until only the guilty are left; those are held, and everything
//! else goes in.

mod ledger;
mod view;
mod write;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::actors::Actors;
use super::books::Neighbour;
use super::held::{self, Due, HoldKind, Patience};
use super::imports;
use super::outbox::{self, NewRecord, Places};
use super::rows::{self, Found};
use super::session::Session;
use super::states::States;
use crate::catalog::Catalog;
use crate::error::{Error, Kind, Result};
use crate::failpoint::crash_point;
use crate::id::RecordId;
use crate::merge::{self, Stamp, TreeMerge};
use crate::record::{Body, RowId, payload::Sealed};
use crate::rules::Rules;
use crate::state::State;

/// A record as it came in, complete, verified and decoded.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// Its name on the hop it came by.
    pub uuid: RecordId,
    /// What its origin committed, all parts of it together.
    pub body: Body,
    /// Its parts as they came, to be passed on.
    pub parts: Vec<(Bytes, [u8; 32])>,
    /// Where the parts stand in the batches that the origin signed.
    pub places: Places,
}

impl Incoming {
    /// The record that first caused it.
    #[must_use]
    pub fn original(&self) -> RecordId {
        RecordId(self.body.original_uuid)
    }

    fn stamp(&self) -> Stamp {
        self.body.stamp()
    }

    /// The classes of its items.
    #[must_use]
    pub fn classes(&self) -> BTreeSet<Arc<str>> {
        self.body.items.iter().map(|item| Arc::clone(&item.row.class)).collect()
    }
}

/// What became of a record: what its sender is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The record by its name on this hop.
    pub uuid: RecordId,
    /// COMMITTED, ALREADY_COMMITTED, FAILED, FAILED_AND_STOPPED or REJECTED.
    pub state: State,
    /// Why it is held or refused.
    pub message: Option<String>,
}

/// Why a part of a batch does not go in.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The database refused some statement.
    Whole(Error),
    /// These rows are refused.
    Rows(Vec<(RowId, Error)>),
    /// These rows refer to rows that are not there: (row, missing).
    Missing(Vec<(RowId, RowId)>),
    /// These records build on what is not here: (index, the row concerned).
    Gap(Vec<(usize, RowId)>),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Whole(error)
    }
}

/// Everything that applying needs beside the transaction and the records.
pub struct Applier<'a> {
    /// The tracked classes.
    pub catalog: &'a Catalog,
    /// How they merge.
    pub merge: &'a TreeMerge,
    /// The neighbours with their rules, the source included.
    pub neighbours: &'a [(Neighbour, Rules)],
    /// Where the records came from.
    pub source: &'a Neighbour,
    /// Its rules.
    pub rules: &'a Rules,
    /// Now, in milliseconds since 1970.
    pub now: i64,
    /// A stamp further ahead than this is held, in milliseconds.
    pub skew_hold_ms: i64,
    /// How often held records are tried again.
    pub patience: Patience,
}

/// What a batch did.
#[derive(Debug, Default)]
pub struct Applied {
    /// In the order of the records.
    pub outcomes: Vec<Outcome>,
    /// Records that went into the tables.
    pub committed: usize,
    /// Records that are held now.
    pub held: usize,
    /// Rows that were written: held records may wait for them.
    pub rows: Vec<RowId>,
}

/// A record on its way through a batch.
struct Pending<'a> {
    at: usize,
    incoming: &'a Incoming,
    /// Items that the rules let in.
    items: Vec<usize>,
    /// Its line in `sync_held` when it is tried again.
    held: Option<i64>,
}

impl Applier<'_> {
    /// Applies `records` in their order. The caller holds the seal lock, has sealed everything, and
    /// commits. Records that cannot go in are held in the same transaction.
    ///
    /// # Errors
    /// An error that is not a record's fault (`Busy`, `Unreachable`, `Failed`): roll back and try
    /// again, nothing was done.
    pub async fn apply(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        records: &[Incoming],
    ) -> Result<Applied> {
        let mut applied = Applied::default();
        let mut outcomes: Vec<Option<Outcome>> = vec![None; records.len()];
        let known = imports::known(session, records.iter().map(Incoming::original)).await?;
        let reopened = held::reopen(session, failed(&known), self.now).await?;
        let mut fresh = BTreeSet::new();
        let mut pending = Vec::new();
        for (at, incoming) in records.iter().enumerate() {
            let original = incoming.original();
            let held = reopened.get(&original).copied();
            if let Some((state, message)) = known.get(&original)
                && held.is_none()
            {
                outcomes[at] = Some(again(incoming, *state, message.clone()));
                continue;
            }
            if !fresh.insert(original) {
                let state = State::AlreadyCommitted;
                outcomes[at] = Some(Outcome { uuid: incoming.uuid, state, message: None });
                continue;
            }
            let items = self.allowed(incoming);
            if items.is_empty() && !incoming.body.items.is_empty() {
                outcomes[at] = Some(self.reject(session, incoming).await?);
                continue;
            }
            pending.push(Pending { at, incoming, items, held });
        }
        imports::again(session, &known).await?;
        self.run(session, actors, pending, &mut outcomes, &mut applied).await?;
        applied.outcomes = outcomes.into_iter().flatten().collect();
        Ok(applied)
    }

    /// Tries held records again, all that came from this applier's source. What goes in is
    /// acknowledged like any other record.
    pub async fn retry(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        due: &[Due],
    ) -> Result<Applied> {
        let mut applied = Applied::default();
        let mut outcomes: Vec<Option<Outcome>> = vec![None; due.len()];
        let pending = due.iter().enumerate().map(|(at, due)| Pending {
            at,
            incoming: &due.incoming,
            items: self.allowed(&due.incoming),
            held: Some(due.id),
        });
        self.run(session, actors, pending.collect(), &mut outcomes, &mut applied).await?;
        applied.outcomes = outcomes.into_iter().flatten().collect();
        Ok(applied)
    }

    /// Tries slices of the batch, the whole first.
    async fn run(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        pending: Vec<Pending<'_>>,
        outcomes: &mut [Option<Outcome>],
        applied: &mut Applied,
    ) -> Result<()> {
        let mut slices = vec![pending];
        while let Some(mut slice) = slices.pop() {
            slice = self.screen(session, actors, slice, outcomes, applied).await?;
            if slice.is_empty() {
                continue;
            }
            session.batch("SAVEPOINT branchline_slice").await?;
            match self.slice(session, actors, &slice).await {
                Ok(rows) => {
                    session.batch("RELEASE SAVEPOINT branchline_slice").await?;
                    applied.committed += slice.len();
                    applied.rows.extend(rows);
                    for record in slice {
                        let uuid = record.incoming.uuid;
                        let state = State::Committed;
                        outcomes[record.at] = Some(Outcome { uuid, state, message: None });
                    }
                }
                Err(refusal) => {
                    let refusal = match refusal {
                        Refusal::Whole(error) if !refuses(&error) => return Err(error),
                        other => other,
                    };
                    session
                        .batch(
                            "ROLLBACK TO SAVEPOINT branchline_slice; \
                             RELEASE SAVEPOINT branchline_slice",
                        )
                        .await?;
                    self.cut(session, actors, slice, refusal, &mut slices, outcomes, applied)
                        .await?;
                }
            }
        }
        Ok(())
    }

    /// Takes out what is refused for certain; halves what is not known.
    #[allow(clippy::too_many_arguments)]
    async fn cut<'r>(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        slice: Vec<Pending<'r>>,
        refusal: Refusal,
        slices: &mut Vec<Vec<Pending<'r>>>,
        outcomes: &mut [Option<Outcome>],
        applied: &mut Applied,
    ) -> Result<()> {
        let guilty = guilty(&slice, &refusal);
        let mut rest = Vec::with_capacity(slice.len());
        let mut taken = 0;
        let single = slice.len() == 1;
        for (n, record) in slice.into_iter().enumerate() {
            let reason = guilty.iter().find(|(at, _)| *at == n).map(|(_, reason)| reason.clone());
            let reason = match (reason, single) {
                (Some(reason), _) => reason,
                (None, true) => Hold::of(&refusal),
                (None, false) => {
                    rest.push(record);
                    continue;
                }
            };
            taken += 1;
            applied.held += 1;
            outcomes[record.at] = Some(self.hold(session, actors, &record, reason).await?);
        }
        if taken > 0 {
            slices.push(rest);
        } else {
            let second = rest.split_off(rest.len() / 2);
            slices.push(second);
            slices.push(rest);
        }
        Ok(())
    }

    /// Items of classes that are received from the source.
    fn allowed(&self, incoming: &Incoming) -> Vec<usize> {
        let items = incoming.body.items.iter().enumerate();
        items.filter(|(_, item)| self.rules.receives(&item.row.class)).map(|(n, _)| n).collect()
    }

    /// Holds what cannot be applied whatever the tables hold: unknown classes and columns, a clock
    /// far ahead.
    async fn screen<'r>(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        slice: Vec<Pending<'r>>,
        outcomes: &mut [Option<Outcome>],
        applied: &mut Applied,
    ) -> Result<Vec<Pending<'r>>> {
        let mut fit = Vec::with_capacity(slice.len());
        for record in slice {
            match self.misfit(&record) {
                None => fit.push(record),
                Some(reason) => {
                    applied.held += 1;
                    outcomes[record.at] = Some(self.hold(session, actors, &record, reason).await?);
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

    /// Joins, writes, and books one slice.
    async fn slice(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        slice: &[Pending<'_>],
    ) -> Result<Vec<RowId>, Refusal> {
        let mut states = States::default();
        let mut found = Found::default();
        let joined = self.join(session, actors, &mut states, slice).await?;
        let before = ledger::before(session, self.catalog, &joined.conflicts).await?;
        rows::uncaptured(session, true).await?;
        let written = self.show(session, actors, &mut states, &mut found, joined.works).await?;
        rows::uncaptured(session, false).await?;
        states.save(session, actors).await?;
        ledger::write(session, actors, joined.conflicts, &before, self.now).await?;
        let imports = slice.iter().map(|record| record.incoming);
        imports::committed(session, self.source.id, imports, self.now).await?;
        let held: Vec<i64> = slice.iter().filter_map(|record| record.held).collect();
        held::done(session, &held).await?;
        let fresh = slice.iter().filter(|record| record.held.is_none());
        self.pass_on(session, actors, fresh.map(|r| (r.incoming, r.items.len()))).await?;
        Ok(written)
    }

    /// Writes the copies for the other neighbours.
    async fn pass_on(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        records: impl Iterator<Item = (&Incoming, usize)>,
    ) -> Result<()> {
        if self.neighbours.iter().all(|(neighbour, _)| neighbour.id == self.source.id) {
            return Ok(());
        }
        let mut copies = Vec::new();
        for (incoming, items) in records {
            actors.admit(session, [incoming.body.origin]).await?;
            let mut classes = incoming.classes();
            let mut parts: Vec<Sealed> = incoming
                .parts
                .iter()
                .map(|(bytes, leaf)| Sealed { payload: bytes.to_vec(), leaf: *leaf })
                .collect();
            if items < incoming.body.items.len() {
                classes.retain(|class| self.rules.receives(class));
                for part in &mut parts {
                    part.payload = crate::record::payload::filter(&part.payload, |class| {
                        self.rules.receives(class)
                    })?
                    .payload;
                }
            }
            copies.push((
                NewRecord {
                    uuid: RecordId::fresh(),
                    original: incoming.original(),
                    timestamp: incoming.body.committed_at,
                    classes,
                    origin: incoming.body.origin,
                    number: incoming.body.number,
                    parts,
                    source: Some(self.source.id),
                },
                incoming.places.clone(),
            ));
        }
        outbox::write(session, actors, self.neighbours, copies).await
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
            held::write(session, self.catalog, source, incoming, &reason, patience, self.now)
                .await?;
            let item = std::iter::once((incoming, record.items.len()));
            self.pass_on(session, actors, item).await?;
            crash_point!("held.written");
        }
        imports::failed(session, self.source.id, incoming, state, &reason.text, self.now).await?;
        Ok(Outcome { uuid: incoming.uuid, state, message: Some(reason.text) })
    }

    async fn reject(&self, session: &mut Session, incoming: &Incoming) -> Result<Outcome> {
        let message = "nothing of it is received from this server by the rules".to_owned();
        imports::rejected(session, self.source.id, incoming, &message, self.now).await?;
        Ok(Outcome { uuid: incoming.uuid, state: State::Rejected, message: Some(message) })
    }
}

/// Why a record is held.
#[derive(Clone, Debug)]
pub(super) struct Hold {
    pub(super) kind: HoldKind,
    pub(super) text: String,
    /// The rows whose arrival lets it be tried again.
    pub(super) needs: Vec<RowId>,
}

impl Hold {
    fn new(kind: HoldKind, text: String) -> Self {
        Self { kind, text, needs: Vec::new() }
    }

    fn of(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Whole(error) => Self::new(HoldKind::Refused, error.chain()),
            Refusal::Rows(rows) => Self::new(
                HoldKind::Refused,
                rows.first().map_or_else(String::new, |(_, error)| error.chain()),
            ),
            Refusal::Missing(rows) => missing(rows.iter().map(|(_, target)| target)),
            Refusal::Gap(list) => gap(list.iter().map(|(_, row)| row)),
        }
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
fn guilty(slice: &[Pending<'_>], refusal: &Refusal) -> Vec<(usize, Hold)> {
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

/// Those of the known records that are held.
fn failed(known: &imports::Known) -> Vec<RecordId> {
    let held = known.iter().filter(|(_, (state, _))| State::HELD.contains(state));
    held.map(|(original, _)| *original).collect()
}

/// The answer to a record that is known: how it stands.
fn again(incoming: &Incoming, state: State, message: Option<String>) -> Outcome {
    let state = match state {
        State::Failed | State::FailedAndStopped | State::Rejected => state,
        _ => State::AlreadyCommitted,
    };
    Outcome { uuid: incoming.uuid, state, message }
}

/// Whether an error may be a record's fault. A host's trigger refuses in words of its own, which no
/// list knows: what is neither a lock nor an absence is the record's, and is tried again later.
fn refuses(error: &Error) -> bool {
    !error.is_transient() && error.kind() != Kind::Config
}

/// Whether an error of the database is worth the same work again at once.
#[must_use]
pub fn retry_at_once(error: &Error) -> bool {
    error.kind() == Kind::Busy
}
