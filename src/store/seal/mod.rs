//! Sealing: the changes of committed transactions become records.
//!
//! Everything happens in one transaction under the seal lock (the row of `sync_self`): changes are
//! taken, row states move on, records, one server record for each child and the origin's signature
//! are written. So a crash leaves either the changes or the records, never both and never neither.

mod coalesce;
mod follow;
mod keyless;
mod keys;
pub mod observed;
pub mod order;
mod read;
mod ways;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

pub use read::Shapes;

use self::coalesce::{Coalesced, Net};
use self::keys::Locals;
use self::read::Transaction;
use self::ways::Ways;
use super::actors::Actors;
use super::books::conflicts::{self, ConflictKind, Entry, Side};
use super::books::{self, Identity, Neighbour};
use super::held;
use super::outbox::{self, NewRecord};
use super::session::{Datum, Dialect, Session};
use super::sqlite;
use super::states::{Place, States};
use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::id::RecordId;
use crate::merge::{Clock, RowState, Stamp, Time, TreeMerge};
use crate::record::{Body, Item, Op, Value, limits, payload};
use crate::rules::Rules;

/// What sealing needs to know. All of it is read in the same transaction or does not change.
pub struct Sealer<'a> {
    /// The tracked classes.
    pub catalog: &'a Catalog,
    /// This server, as read under the seal lock.
    pub identity: Identity,
    /// The neighbours with their rules.
    pub neighbours: &'a [(Neighbour, Rules)],
    /// How classes merge.
    pub merge: &'a TreeMerge,
    /// Bounds.
    pub bounds: Bounds,
}

/// Bounds of sealing.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Changes that are read at a time; a larger transaction is read whole.
    pub changes_max: usize,
    /// A pause between changes that ends a transaction on SQLite where nobody marked it, in ms.
    pub sqlite_gap_ms: i64,
    /// Bytes of items in a record before the transaction travels in parts.
    pub part_bytes_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { changes_max: 5_000, sqlite_gap_ms: 10_000, part_bytes_max: 512 << 10 }
    }
}

/// What a round of sealing did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sealed {
    /// Changes taken.
    pub changes: usize,
    /// Records made.
    pub records: usize,
    /// Whether more may be waiting.
    pub more: bool,
}

/// Takes the seal lock: until the transaction ends, nobody else seals, applies or counts.
pub async fn lock(session: &mut Session) -> Result<()> {
    let sql = match session.dialect() {
        Dialect::Postgres => "SELECT id FROM @sync_self WHERE id = 1 FOR UPDATE",
        // The transaction is IMMEDIATE: it has the lock already.
        Dialect::Sqlite => "SELECT id FROM @sync_self WHERE id = 1",
    };
    match session.query_opt(sql, vec![]).await? {
        Some(_) => Ok(()),
        None => Err(Error::config("this database is no server yet: run `branchline init`")),
    }
}

/// A record that is ready to be written.
struct Ready {
    body: Vec<Body>,
    original: RecordId,
    classes: BTreeSet<Arc<str>>,
    committed_at: i64,
}

impl Sealer<'_> {
    /// Seals one window of changes. The caller holds the seal lock and commits.
    ///
    /// # Errors
    /// [`Failed`](crate::Kind::Failed) when a captured change cannot be read; nothing is lost then,
    /// and nothing is sealed.
    pub async fn seal(
        &mut self,
        session: &mut Session,
        actors: &mut Actors,
        shapes: &mut Shapes,
    ) -> Result<Sealed> {
        let window = read::window(
            session,
            self.catalog,
            shapes,
            self.bounds.changes_max,
            self.bounds.sqlite_gap_ms,
        )
        .await?;
        let mut sealed = Sealed { changes: window.seqs.len(), records: 0, more: window.more };
        if window.seqs.is_empty() {
            return Ok(sealed);
        }
        let mut clock = Clock::after(Time(self.identity.clock));
        let mut states = States::default();
        let mut ready = Vec::new();
        let mut touched = Vec::new();
        let mut lost = Vec::new();
        let mut open = VecDeque::from(window.transactions);
        while let Some(transaction) = open.pop_front() {
            let at = transaction.changes.iter().map(|change| change.changed_at).max();
            let at = at.unwrap_or_default();
            let later = follow::Later { window: &open, seqs: &window.seqs, more: window.more };
            let ways = self.ways(session, shapes, transaction, later).await?;
            let Coalesced { nets, keyless } = coalesce::coalesce(ways, self.merge);
            keyless.keep(session, self.identity.actor(), at).await?;
            if nets.is_empty() {
                continue;
            }
            touched.extend(nets.iter().map(|net| net.row.clone()));
            let record =
                self.stamp(session, actors, &mut states, &mut clock, nets, at, &mut lost).await?;
            ready.push(record);
        }
        states.save(session, actors).await?;
        self.identity.clock = clock.last().0;
        sealed.records = ready.len();
        self.write(session, actors, ready).await?;
        conflicts::write(session, actors, lost, super::time::now()).await?;
        held::stir(session, self.catalog, &touched).await?;
        take(session, window.seqs).await?;
        Ok(sealed)
    }

    /// What a transaction did to each row, and to those whose key or references depend on that.
    async fn ways(
        &self,
        session: &mut Session,
        shapes: &mut Shapes,
        mut transaction: Transaction,
        later: follow::Later<'_>,
    ) -> Result<Ways> {
        keys::fill_missing_uuids(session, &mut transaction).await?;
        let mut ways = Ways::of(transaction);
        let mut locals = Locals::new(self.merge);
        loop {
            locals.resolve(session, self.catalog, &mut ways).await?;
            if !follow::follow(session, self.catalog, shapes, &mut ways, later).await? {
                return Ok(ways);
            }
        }
    }

    /// Gives a transaction its stamp and moves the states of its rows on.
    #[allow(clippy::too_many_arguments)]
    async fn stamp(
        &mut self,
        session: &mut Session,
        actors: &Actors,
        states: &mut States,
        clock: &mut Clock,
        nets: Vec<Net>,
        committed_at: i64,
        lost: &mut Vec<Entry>,
    ) -> Result<Ready> {
        let places: Vec<Place> =
            nets.iter().map(|net| (net.tracked.id, Arc::clone(&net.row.key))).collect();
        states.load(session, actors, places.iter().cloned()).await?;
        let latest = places
            .iter()
            .filter_map(|place| states.peek(place))
            .map(|state| state.seen.latest())
            .max()
            .unwrap_or_default();
        let origin = self.identity.actor();
        let time = clock.tick(u64::try_from(committed_at).unwrap_or(0), latest);
        let stamp = Stamp { time, actor: origin };
        let mut items = Vec::with_capacity(nets.len());
        let mut classes = BTreeSet::new();
        for (net, place) in nets.into_iter().zip(places) {
            classes.insert(Arc::clone(&net.row.class));
            let state = states.change(place);
            lost.extend(unseen(&net, state, stamp));
            items.push(item(net, state, stamp));
        }
        let number = self.next_number();
        let original = RecordId::fresh();
        let body = self.parts(original, number, stamp, committed_at, items)?;
        Ok(Ready { body, original, classes, committed_at })
    }

    fn next_number(&mut self) -> u64 {
        let number = self.identity.next_number;
        self.identity.next_number += 1;
        number
    }

    /// Cuts the items into parts that fit a message.
    fn parts(
        &self,
        original: RecordId,
        number: u64,
        stamp: Stamp,
        committed_at: i64,
        items: Vec<Item>,
    ) -> Result<Vec<Body>> {
        let mut cut: Vec<Vec<Item>> = vec![Vec::new()];
        let mut bytes = 0;
        for item in items {
            let size = payload::size_hint(&item);
            let full = cut.last().is_some_and(|part| {
                !part.is_empty()
                    && (bytes + size > self.bounds.part_bytes_max
                        || part.len() >= limits::ITEMS_MAX)
            });
            if full {
                cut.push(Vec::new());
                bytes = 0;
            }
            bytes += size;
            if let Some(part) = cut.last_mut() {
                part.push(item);
            }
        }
        let count = u32::try_from(cut.len())
            .map_err(|_| Error::failed("a transaction has too many parts"))?;
        let bodies = cut.into_iter().zip(0..).map(|(items, part)| Body {
            original_uuid: original.0,
            origin: stamp.actor,
            number,
            time: stamp.time,
            committed_at,
            part: (part, count),
            items,
        });
        Ok(bodies.collect())
    }

    /// Writes the records with their signature, and this server's counters.
    async fn write(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        ready: Vec<Ready>,
    ) -> Result<()> {
        actors.admit(session, [self.identity.actor()]).await?;
        let mut records = Vec::new();
        for record in ready {
            let number = record.body.first().map_or(0, |body| body.number);
            let parts = payload::encode_parts(&record.body)?;
            records.push(NewRecord {
                uuid: record.original,
                original: record.original,
                timestamp: record.committed_at,
                classes: record.classes,
                origin: self.identity.actor(),
                number,
                parts,
                source: None,
            });
        }
        outbox::write_sealed(session, actors, &self.identity.signing_key, self.neighbours, records)
            .await?;
        books::identity::save_counters(session, self.identity.clock, self.identity.next_number)
            .await
    }
}

/// Removes changes that are dealt with. On SQLite everything up to the last of them is.
async fn take(session: &mut Session, seqs: Vec<i64>) -> Result<()> {
    let Some(last) = seqs.iter().max().copied() else { return Ok(()) };
    match session.dialect() {
        Dialect::Postgres => {
            let sql = "DELETE FROM @sync_change WHERE seq = ANY($1)";
            session.execute(sql, vec![Datum::Ints(seqs)]).await.map(|_| ())
        }
        Dialect::Sqlite => sqlite::changes::take_up_to(session, last).await,
    }
}

/// Values of other servers that had won and were not in the table yet, and that a local change
/// writes over without having seen them.
fn unseen(net: &Net, state: &RowState, stamp: Stamp) -> Vec<Entry> {
    let Some(waiting) = state.shadow.as_ref().filter(|_| state.alive()) else { return Vec::new() };
    let entry = |column: Option<Arc<str>>, ours: Option<Value>, theirs: Option<Value>| Entry {
        row: net.row.clone(),
        kind: if column.is_some() { ConflictKind::Column } else { ConflictKind::EditAndDelete },
        winner: Side { stamp: Some(stamp), value: ours },
        loser: Side {
            stamp: column
                .as_ref()
                .map_or_else(|| state.seen.iter().max(), |name| state.stamp_of(name)),
            value: theirs,
        },
        column,
        note: Some("the edit that lost had not come into the table yet".to_owned()),
        original: None,
    };
    if net.op == Op::Delete {
        return vec![entry(None, None, None)];
    }
    let written = net.values.iter().filter_map(|(name, value)| {
        let theirs = waiting.get(name).filter(|theirs| *theirs != value)?;
        Some(entry(Some(Arc::clone(name)), Some(value.clone()), Some(theirs.clone())))
    });
    written.collect()
}

/// Moves the state of a row on by a local change, and makes the item that says so.
fn item(net: Net, state: &mut RowState, stamp: Stamp) -> Item {
    let columns = net.values.iter().map(|(name, _)| Arc::clone(name));
    let (seen, erased) = state.touch_local(net.op, columns, stamp);
    let waiting = state.shadow.take();
    match net.op {
        Op::Delete => {
            let mut shadow: BTreeMap<_, _> = net.shadow.into_iter().collect();
            shadow.extend(waiting.unwrap_or_default());
            state.shadow = Some(shadow);
        }
        // What waits to be written and was written over here is settled; the rest waits on.
        Op::Update => {
            let left: BTreeMap<_, _> = waiting
                .into_iter()
                .flatten()
                .filter(|(name, _)| !net.values.iter().any(|(written, _)| written == name))
                .collect();
            state.shadow = Some(left).filter(|left| !left.is_empty());
        }
        Op::Insert | Op::State => {}
    }
    Item {
        row: net.row,
        op: net.op,
        values: net.values,
        seen,
        erased,
        stamps: Vec::new(),
        base: None,
    }
}
