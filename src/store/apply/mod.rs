//! Applying: what came in becomes rows, exactly once in effect.
//!
//! A batch of records is joined with the states of its rows first; what is then written is a
//! function of the joined states alone, class by class, in one transaction with the states, the
//! `sync_import` rows and the copies that are passed on. A batch that the database refuses is rolled
//! back to a savepoint and halved until only the guilty are left; those are held, and everything
//! else goes in.

mod effects;
mod hold;
mod join;
mod leave;
mod ledger;
mod resolve;
mod run;
mod sweep;
mod unique;
mod view;
mod whole;
mod write;

pub use resolve::{Keep, resolve};
pub use sweep::sweep;

pub(super) use hold::Hold;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::actors::Actors;
use super::books::Neighbour;
use super::held::{self, Due, Patience};
use super::imports;
use super::outbox::{self, NewRecord, Places};
use super::session::Session;
use crate::catalog::Catalog;
use crate::error::{Error, Kind, Result};
use crate::id::RecordId;
use crate::merge::{Stamp, TreeMerge};
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
    /// An operator lets its concurrent edits in.
    decided: bool,
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
            pending.push(Pending { at, incoming, items, held, decided: false });
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
            decided: due.decided,
        });
        self.run(session, actors, pending.collect(), &mut outcomes, &mut applied).await?;
        applied.outcomes = outcomes.into_iter().flatten().collect();
        Ok(applied)
    }

    /// Items of classes that are received from the source.
    fn allowed(&self, incoming: &Incoming) -> Vec<usize> {
        let items = incoming.body.items.iter().enumerate();
        items.filter(|(_, item)| self.rules.receives(&item.row.class)).map(|(n, _)| n).collect()
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

    async fn reject(&self, session: &mut Session, incoming: &Incoming) -> Result<Outcome> {
        let message = "nothing of it is received from this server by the rules".to_owned();
        imports::rejected(session, self.source.id, incoming, &message, self.now).await?;
        Ok(Outcome { uuid: incoming.uuid, state: State::Rejected, message: Some(message) })
    }
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
