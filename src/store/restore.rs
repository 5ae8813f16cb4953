//! A server whose database was put back to an older state begins a new incarnation. What it sealed
//! since, or had not been acknowledged when the backup was made, is sealed anew: the same edits, by the
//! same times, but by the new incarnation. So they hide nothing of what the former one did and this
//! database has lost, and an edit that a neighbour knows after all loses and wins as it did.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::actors::Actors;
use super::books::{self, Identity, Neighbour};
use super::links::stored;
use super::outbox::{self, NewRecord};
use super::session::{Datum, Dialect, Session};
use super::states::States;
use super::{Store, recover, settle, time};
use crate::catalog::Catalog;
use crate::error::Result;
use crate::id::{Actor, RecordId};
use crate::merge::{RowState, Seen, Stamp, Time};
use crate::record::{Body, Item, Op, RowId, limits, payload};
use crate::rules::Rules;

/// Records read at a time.
const RECORDS_MAX: i64 = 500;

/// Bytes of items in a part.
const PART_BYTES_MAX: usize = 512 << 10;

/// Whether this server knows that its database is older than what it has said.
pub async fn has_fallen(session: &mut Session) -> Result<bool> {
    let sql = "SELECT count(*) FROM @sync_self WHERE fallen_at IS NOT NULL";
    session.query_one(sql, vec![]).await?.flag(0)
}

/// On a start: whether this server has fallen back, as was noted before, or as the database's own
/// identity says (on PostgreSQL: a database that was put back by a copy or a dump is another one).
pub async fn look(store: &Store) -> Result<bool> {
    let mut session = store.read().await?;
    let identity = books::identity(&mut session).await?;
    let place = match session.dialect() {
        Dialect::Postgres => books::identity::database_identity(&mut session).await?,
        // A file has nothing that a copy of it has not.
        Dialect::Sqlite => None,
    };
    let other = place.is_some()
        && identity.database_identity.is_some()
        && place != identity.database_identity;
    let fallen = has_fallen(&mut session).await?;
    session.rollback().await?;
    if fallen || !other {
        return Ok(fallen);
    }
    let mut session = store.begin().await?;
    note(&mut session, "its database is another one than before").await?;
    session.commit().await?;
    tracing::warn!("this database is a copy of the former one: a new incarnation follows");
    Ok(true)
}

/// Notes that this server's database is older than what it has said. Says whether that is news.
pub async fn note(session: &mut Session, why: &str) -> Result<bool> {
    let news = session
        .execute(
            "UPDATE @sync_self SET fallen_at = $1 WHERE id = 1 AND fallen_at IS NULL",
            vec![Datum::time(time::now())],
        )
        .await?;
    if news > 0 {
        books::audit::note(session, "branchline", "restored", why).await?;
    }
    Ok(news > 0)
}

/// What a new incarnation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// The new one.
    pub incarnation: u32,
    /// Records that were sealed anew.
    pub records: usize,
}

/// Begins a new incarnation. The caller holds the seal lock, has sealed everything, and commits.
pub async fn renew(
    session: &mut Session,
    actors: &mut Actors,
    catalog: &Catalog,
    neighbours: &[(Neighbour, Rules)],
    identity: &Identity,
) -> Result<Renewed> {
    let old = identity.actor();
    let known = actors.all().filter(|known| known.actor.server == old.server);
    let incarnation =
        known.map(|k| k.actor.incarnation).max().unwrap_or(0).max(old.incarnation) + 1;
    let actor = Actor { server: old.server, incarnation };
    let key = identity.signing_key.verifying_key().to_bytes();
    actors.learn(session, actor, Some(key), Some(&identity.nickname)).await?;
    let ids = unacknowledged(session, actors.number(old).unwrap_or(0)).await?;
    let mut anew = Anew::new(old, actor);
    for some in ids.chunks(usize::try_from(RECORDS_MAX).unwrap_or(1)) {
        let bodies = bodies(session, some).await?;
        anew.times.extend(bodies.iter().map(|body| body.time));
        anew.first = bodies.iter().map(|body| body.number).chain(anew.first).min();
    }
    let mut number = 0;
    for some in ids.chunks(usize::try_from(RECORDS_MAX).unwrap_or(1)) {
        let bodies = bodies(session, some).await?;
        let mut records = Vec::with_capacity(bodies.len());
        for body in bodies {
            number += 1;
            records.push(anew.record(body, number)?);
        }
        remove(session, some).await?;
        outbox::write_sealed(session, actors, &identity.signing_key, neighbours, records).await?;
    }
    anew.rename(session, actors, catalog).await?;
    // Up to where this database has what it sealed as the former one.
    let last = anew.first.map_or(identity.next_number, |first| first).saturating_sub(1);
    begin(session, identity, incarnation, number + 1, last).await?;
    Ok(Renewed { incarnation, records: ids.len() })
}

async fn begin(
    session: &mut Session,
    identity: &Identity,
    incarnation: u32,
    next_number: u64,
    last: u64,
) -> Result<()> {
    session
        .execute(
            "UPDATE @sync_origin SET number = $3, highest = $3 WHERE uuid = $1 AND incarnation = $2",
            vec![identity.server.into(), identity.incarnation.into(), stored(last).into()],
        )
        .await?;
    let place = books::identity::database_identity(session).await?;
    session
        .execute(
            "UPDATE @sync_self SET incarnation = $1, next_number = $2, fallen_at = NULL, \
             database_identity = $3 WHERE id = 1",
            vec![incarnation.into(), stored(next_number).into(), place.into()],
        )
        .await?;
    // New numbers on every link, and whatever is under way goes again with them.
    session
        .execute(
            "UPDATE @sync_server SET out_number = 0, outbound = NULL, \
             out_epoch = CASE WHEN out_epoch >= $1 THEN out_epoch + 1 ELSE $1 END \
             WHERE state = 'JOINED'",
            vec![time::now().into()],
        )
        .await?;
    recover::begin(session).await?;
    for table in ["record", "server_record"] {
        session
            .execute(
                &format!(
                    "UPDATE @sync_{table} SET sent_at = NULL, link_number = NULL \
                     WHERE state IN ('SENT', 'SENT_AGAIN')"
                ),
                vec![],
            )
            .await?;
    }
    session.execute("UPDATE @sync_row_due SET link_number = NULL", vec![]).await?;
    session
        .execute(
            "UPDATE @sync_invite SET load_from = NULL, load_to = NULL WHERE loaded_at IS NULL",
            vec![],
        )
        .await?;
    let detail = format!("incarnation {incarnation}");
    books::audit::note(session, "branchline", "new incarnation", &detail).await
}

/// Our own records that no neighbour has said a word about, in their order.
async fn unacknowledged(session: &mut Session, origin: u32) -> Result<Vec<i64>> {
    let rows = session
        .query(
            "SELECT r.id FROM @sync_record r WHERE r.source_server_id IS NULL AND r.origin_id = $1 \
             AND r.state NOT IN ('COMMITTED', 'FAILED', 'FAILED_AND_STOPPED', 'REJECTED') \
             AND NOT EXISTS (SELECT 1 FROM @sync_server_record s WHERE s.record_id = r.id \
             AND s.state IN ('COMMITTED', 'FAILED', 'FAILED_AND_STOPPED', 'REJECTED')) \
             AND (EXISTS (SELECT 1 FROM @sync_server_record s WHERE s.record_id = r.id \
             AND s.state <> 'NOT_SUPPOSED_TO_SYNC') OR (r.state <> 'NOT_SUPPOSED_TO_SYNC' \
             AND EXISTS (SELECT 1 FROM @sync_server WHERE role = 'PARENT'))) ORDER BY r.id",
            vec![origin.into()],
        )
        .await?;
    rows.iter().map(|row| row.int(0)).collect()
}

async fn bodies(session: &mut Session, ids: &[i64]) -> Result<Vec<Body>> {
    let sql = format!(
        "SELECT original_uuid, payload, parts FROM @sync_record WHERE {} ORDER BY id",
        session.dialect().any("id", 1)
    );
    let mut list = Vec::with_capacity(ids.len());
    for row in session.query(&sql, vec![Datum::Ints(ids.to_vec())]).await? {
        let original = RecordId(row.uuid(0)?);
        let mut parts = vec![row.bytes(1)?.to_vec()];
        if row.int(2)? > 1 {
            let further = settle::parts(session, vec![original]).await?;
            parts.extend(further.into_iter().map(|(_, _, payload, _, _)| payload));
        }
        list.push(payload::decode_parts(parts.iter().map(Vec::as_slice))?);
    }
    Ok(list)
}

async fn remove(session: &mut Session, ids: &[i64]) -> Result<()> {
    let any = session.dialect().any("id", 1);
    for sql in [
        format!(
            "DELETE FROM @sync_part WHERE original_uuid IN \
             (SELECT original_uuid FROM @sync_record WHERE {any})"
        ),
        format!("DELETE FROM @sync_record WHERE {any}"),
    ] {
        session.execute(&sql, vec![Datum::Ints(ids.to_vec())]).await?;
    }
    Ok(())
}

/// Edits of the former incarnation on their way into the new one.
struct Anew {
    old: Actor,
    new: Actor,
    /// The stamps of what is sealed anew.
    times: BTreeSet<Time>,
    /// The lowest number of them.
    first: Option<u64>,
    /// What each row had of the former incarnation beside them.
    kept: HashMap<RowId, Kept>,
}

/// What a row had of the former incarnation beside what is sealed anew, and the last of that.
#[derive(Clone, Copy, Default)]
struct Kept {
    seen: Time,
    erased: Time,
    latest: Time,
}

impl Anew {
    fn new(old: Actor, new: Actor) -> Self {
        Self { old, new, times: BTreeSet::new(), first: None, kept: HashMap::new() }
    }

    /// The record, by the new incarnation.
    fn record(&mut self, body: Body, number: u64) -> Result<NewRecord> {
        let original = RecordId::fresh();
        let classes: BTreeSet<Arc<str>> =
            body.items.iter().map(|item| Arc::clone(&item.row.class)).collect();
        let timestamp = body.committed_at;
        let items = body.items.into_iter().map(|item| self.item(item, body.time)).collect();
        let head =
            Body { original_uuid: original.0, origin: self.new, number, items: vec![], ..body };
        let parts = payload::encode_parts(&cut(&head, items))?;
        Ok(NewRecord {
            uuid: original,
            original,
            timestamp,
            classes,
            origin: self.new,
            number,
            parts,
            source: None,
        })
    }

    fn item(&mut self, mut item: Item, at: Time) -> Item {
        let seen = self.time_of(&item.seen).filter(|at| !self.times.contains(at));
        let erased = self.time_of(&item.erased).filter(|at| !self.times.contains(at));
        let kept = self.kept.entry(item.row.clone()).or_default();
        kept.seen = kept.seen.max(seen.unwrap_or_default());
        kept.erased = kept.erased.max(erased.unwrap_or_default());
        kept.latest = kept.latest.max(at);
        let before = *kept;
        if item.op == Op::Delete {
            // A delete erases what its server had seen.
            kept.erased = kept.erased.max(kept.seen);
        }
        item.seen = self.moved(&item.seen, before.seen);
        item.erased = self.moved(&item.erased, before.erased);
        item
    }

    /// A list with the new incarnation in the place of the former, where it speaks of these edits.
    fn moved(&self, list: &Seen, kept: Time) -> Seen {
        let Some(at) = self.time_of(list).filter(|at| self.times.contains(at)) else {
            return list.clone();
        };
        let mut moved = list.clone();
        moved.0.remove(&self.old);
        if kept > Time::default() {
            moved.touch(Stamp { time: kept, actor: self.old });
        }
        moved.touch(Stamp { time: at, actor: self.new });
        moved
    }

    /// The time that a list has for the former incarnation.
    fn time_of(&self, list: &Seen) -> Option<Time> {
        list.0.get(&self.old).copied()
    }

    fn stamp(&self, stamp: Stamp) -> Stamp {
        if stamp.actor == self.old && self.times.contains(&stamp.time) {
            Stamp { actor: self.new, ..stamp }
        } else {
            stamp
        }
    }

    /// Brings the states of all their rows along.
    async fn rename(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        catalog: &Catalog,
    ) -> Result<()> {
        let rows: Vec<(&RowId, &Kept)> = self.kept.iter().collect();
        for some in rows.chunks(usize::try_from(RECORDS_MAX).unwrap_or(1)) {
            let mut states = States::default();
            let place = |row: &RowId| Some((*catalog.ids.get(&row.class)?, Arc::clone(&row.key)));
            states.load(session, actors, some.iter().filter_map(|(row, _)| place(row))).await?;
            for (row, kept) in some {
                let Some(place) = place(row) else { continue };
                let state = states.change(place);
                let mut seen = self.moved(&state.seen, kept.seen);
                seen.touch(Stamp { time: kept.latest, actor: self.new });
                let moved = RowState {
                    base: state.base.map(|stamp| self.stamp(stamp)),
                    columns: state
                        .columns
                        .iter()
                        .map(|(name, stamp)| (Arc::clone(name), self.stamp(*stamp)))
                        .collect(),
                    seen,
                    erased: self.moved(&state.erased, kept.erased),
                    shadow: state.shadow.take(),
                };
                *state = moved;
            }
            states.save(session, actors).await?;
        }
        Ok(())
    }
}

/// Cuts items into parts.
fn cut(head: &Body, items: Vec<Item>) -> Vec<Body> {
    let mut parts: Vec<Vec<Item>> = vec![Vec::new()];
    let mut bytes = 0;
    for item in items {
        let size = payload::size_hint(&item);
        let full = parts.last().is_some_and(|part| {
            !part.is_empty() && (bytes + size > PART_BYTES_MAX || part.len() >= limits::ITEMS_MAX)
        });
        if full {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(part) = parts.last_mut() {
            part.push(item);
        }
    }
    let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    let numbered = parts.into_iter().zip(0..);
    numbered.map(|(items, part)| Body { part: (part, count), items, ..head.clone() }).collect()
}
