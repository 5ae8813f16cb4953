//! The relay: seals what was committed, and publishes what waits for each neighbour.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::failpoint::crash_point;
use crate::id::RecordId;
use crate::record::batch::Tree;
use crate::record::header::{self, Header, MessageKind};
use crate::record::messages::{Group, GroupRecord, Records};
use crate::store::books::Neighbour;
use crate::store::seal::{self, Bounds, Sealer};
use crate::store::session::{Datum, Session};
use crate::store::settle::{self, Outbound, Pace};
use crate::store::{batches, time};
use crate::transport::{Lane, Outcome, Outgoing, Queue};
use crate::worker::engine::{Context, Engine};

/// Seals everything that is committed. Says how many records were made.
///
/// # Errors
/// `Busy` when another process has the seal lock, `Unreachable` when the database is away; nothing
/// is lost then.
pub async fn seal(engine: &Engine) -> Result<usize> {
    let mut records = 0;
    loop {
        if !has_changes(engine).await? {
            return Ok(records);
        }
        let _busy = engine.activity.busy();
        crash_point!("seal.begun");
        let mut session = engine.store.begin().await?;
        seal::lock(&mut session).await?;
        let mut context = engine.context(&mut session).await?;
        let more = seal_in(engine, &mut session, &mut context).await?;
        crash_point!("seal.sealed");
        session.commit().await?;
        records += more.records;
        engine.activity.moved(more.records);
        if more.records > 0 {
            engine.outbox.notify_waiters();
        }
        if !more.more {
            return Ok(records);
        }
    }
}

async fn has_changes(engine: &Engine) -> Result<bool> {
    let mut session = engine.store.read().await?;
    let row = session.query_one("SELECT EXISTS (SELECT 1 FROM @sync_change)", vec![]).await?;
    let some = row.flag(0)?;
    session.rollback().await?;
    Ok(some)
}

/// The bounds of sealing as they are configured.
#[must_use]
pub fn bounds(config: &Config) -> Bounds {
    Bounds {
        changes_max: config.seal_changes_max,
        sqlite_gap_ms: millis(config.sqlite_gap),
        ..Bounds::default()
    }
}

/// Seals one window of changes in a transaction that holds the seal lock.
pub async fn seal_in(
    engine: &Engine,
    session: &mut Session,
    context: &mut Context,
) -> Result<seal::Sealed> {
    let span = tracing::debug_span!("seal", server.id = %context.identity.server);
    let mut shapes = engine.shapes();
    let bounds = bounds(&engine.config);
    let mut sealer = Sealer {
        catalog: &context.catalog,
        identity: context.identity.clone(),
        neighbours: &context.neighbours,
        merge: &context.merge,
        bounds,
    };
    let sealed = sealer.seal(session, &mut context.actors, &mut shapes).await?;
    context.identity = sealer.identity;
    engine.learn_shapes(shapes);
    if sealed.changes > 0 {
        let _in = span.enter();
        tracing::debug!(change.count = sealed.changes, record.count = sealed.records, "sealed");
    }
    Ok(sealed)
}

/// Seals everything in a transaction that holds the seal lock: an applier must see every local
/// change before it joins.
pub async fn seal_all_in(
    engine: &Engine,
    session: &mut Session,
    context: &mut Context,
) -> Result<usize> {
    let mut records = 0;
    loop {
        let sealed = seal_in(engine, session, context).await?;
        records += sealed.records;
        if !sealed.more {
            return Ok(records);
        }
    }
}

/// A message that is ready, and the records in it.
struct Ready {
    outgoing: Outgoing,
    number: u64,
    records: Vec<(RecordId, bool)>,
}

/// Publishes one batch of what waits for a neighbour. Says how many records lie with the broker now.
///
/// # Errors
/// `Unreachable` when the broker is away or refuses: the records are SEND_FAILED, and wait.
pub async fn publish(engine: &Engine, neighbour: &Neighbour) -> Result<usize> {
    let pace = Pace {
        records_max: engine.config.batch_records_max * BATCHES_A_ROUND,
        unacknowledged_max: engine.config.unacknowledged_max,
        resend_after_ms: millis(engine.config.resend_after),
    };
    let now = time::now();
    let mut session = engine.store.read().await?;
    let some = settle::some(&mut session, neighbour, pace, now).await?;
    session.rollback().await?;
    if !some {
        return Ok(0);
    }
    let mut session = engine.store.begin().await?;
    let until = now + millis(CLAIM);
    if !settle::claim(&mut session, neighbour, engine.session, now, until).await? {
        // Another process is at it; what waits does not wait for us.
        session.rollback().await?;
        return Ok(0);
    }
    // Read under the claim: what another process has just sent is not NEW any more.
    let waiting = settle::pending(&mut session, neighbour, pace, now).await?;
    if waiting.is_empty() {
        session.rollback().await?;
        return Ok(0);
    }
    let _busy = engine.activity.busy();
    let context = engine.context(&mut session).await?;
    let ready = prepare(engine, &mut session, &context, neighbour, waiting, now).await?;
    session.commit().await?;

    crash_point!("publish.numbered");
    let transport = engine.transport_of(neighbour)?;
    let (messages, records): (Vec<_>, Vec<_>) =
        ready.into_iter().map(|ready| (ready.outgoing, (ready.number, ready.records))).unzip();
    let outcomes = match transport.publish(messages).await {
        Ok(outcomes) => outcomes,
        Err(error) => vec![Outcome::Refused(error.chain()); records.len()],
    };
    crash_point!("publish.confirmed");

    let booked = Booked::of(outcomes.into_iter().zip(records));
    let mut session = engine.store.begin().await?;
    let published = booked.sent.iter().map(|(_, records)| records.len()).sum();
    for (number, records) in &booked.sent {
        settle::sent(&mut session, neighbour, records, *number, time::now()).await?;
    }
    let refused = booked.refused;
    if let Some((reason, records)) = &refused {
        settle::send_failed(&mut session, neighbour, records, reason).await?;
    }
    settle::release(&mut session, neighbour, engine.session).await?;
    session.commit().await?;
    crash_point!("publish.sent");
    engine.activity.moved(published);
    match refused {
        None => Ok(published),
        Some((reason, _)) => Err(Error::unreachable(format!(
            "records for `{}` are not with the broker: {reason}",
            neighbour.nickname
        ))),
    }
}

/// What became of the records of a round.
#[derive(Default)]
struct Booked {
    /// Records of which all messages are with the broker, by the number of the last.
    sent: Vec<(u64, Vec<(RecordId, bool)>)>,
    /// Records of which some message was refused, and why.
    refused: Option<(String, Vec<(RecordId, bool)>)>,
}

impl Booked {
    fn of(outcomes: impl Iterator<Item = (Outcome, (u64, Vec<(RecordId, bool)>))>) -> Self {
        let mut booked = Self::default();
        let mut refused: Vec<(RecordId, bool)> = Vec::new();
        let mut sent: BTreeMap<RecordId, (u64, bool)> = BTreeMap::new();
        for (outcome, (number, records)) in outcomes {
            match outcome {
                Outcome::Confirmed => {
                    sent.extend(records.into_iter().map(|(uuid, again)| (uuid, (number, again))));
                }
                Outcome::Refused(reason) => {
                    refused.extend(records);
                    booked.refused = Some((reason, Vec::new()));
                }
            }
        }
        for record in &refused {
            sent.remove(&record.0);
        }
        let mut by_number: BTreeMap<u64, Vec<(RecordId, bool)>> = BTreeMap::new();
        for (uuid, (number, again)) in sent {
            by_number.entry(number).or_default().push((uuid, again));
        }
        booked.sent = by_number.into_iter().collect();
        if let Some((_, records)) = &mut booked.refused {
            *records = refused;
        }
        booked
    }
}

/// How long a process that died in the middle of a round keeps a link from others. A round that takes
/// longer may meet another's: records are sent twice then, which harms nobody.
const CLAIM: Duration = Duration::from_secs(10);

/// Messages that one round puts together.
const BATCHES_A_ROUND: usize = 8;

async fn prepare(
    engine: &Engine,
    session: &mut Session,
    context: &Context,
    neighbour: &Neighbour,
    waiting: Vec<Outbound>,
    now: i64,
) -> Result<Vec<Ready>> {
    let many: Vec<RecordId> =
        waiting.iter().filter(|record| record.parts > 1).map(|record| record.original).collect();
    let mut further = settle::parts(session, many).await?;
    let rules = context.neighbour(neighbour.id).map(|(_, rules)| rules);
    let mut pieces: Vec<Piece> = Vec::new();
    for record in waiting {
        let first = (record.payload, record.batch, record.index);
        let own = further
            .extract_if(.., |(original, ..)| *original == record.original && record.parts > 1)
            .map(|(_, _, payload, batch, index)| (payload, batch, index));
        for (payload, batch, index) in std::iter::once(first).chain(own) {
            let payload = match rules {
                Some(rules) => keep_back(payload, rules)?,
                None => payload,
            };
            pieces.push(Piece { uuid: record.uuid, again: record.again, payload, batch, index });
        }
    }
    let bounds = (engine.config.batch_records_max, engine.config.batch_bytes_max);
    let cut = cut(pieces, bounds);
    let (epoch, first) = settle::numbers(session, neighbour, cut.len(), now).await?;
    let mut ready = Vec::with_capacity(cut.len());
    for (pieces, number) in cut.into_iter().zip(first..) {
        let records = pieces.iter().map(|piece| (piece.uuid, piece.again)).collect();
        let body = Records { groups: groups(session, context, pieces).await? }.encode()?;
        let header = Header {
            kind: MessageKind::Records,
            sender: context.identity.server,
            receiver: neighbour.server,
            epoch,
            number,
        };
        let sealed =
            header::seal(&header, &body, &context.identity.signing_key, engine.config.zstd_level)?;
        ready.push(Ready {
            outgoing: outgoing(&header, neighbour, Lane::Records, sealed),
            number,
            records,
        });
    }
    Ok(ready)
}

/// A sealed message on its way to a neighbour.
pub fn outgoing(
    header: &Header,
    neighbour: &Neighbour,
    lane: Lane,
    sealed: header::Sealed,
) -> Outgoing {
    Outgoing {
        queue: Queue { to: neighbour.server, from: header.sender, lane },
        message_id: crate::id::in_order(),
        kind: header.kind.as_str(),
        compressed: sealed.compressed,
        sender: header.sender,
        body: sealed.bytes,
    }
}

/// A part of a record on its way into a message.
struct Piece {
    uuid: RecordId,
    again: bool,
    payload: Vec<u8>,
    batch: i64,
    index: u32,
}

/// Leaves out what the rules keep back from this neighbour.
fn keep_back(payload: Vec<u8>, rules: &crate::rules::Rules) -> Result<Vec<u8>> {
    let classes = crate::record::payload::classes(&payload)?;
    if classes.iter().all(|class| rules.sends(class)) {
        return Ok(payload);
    }
    Ok(crate::record::payload::filter(&payload, |class| rules.sends(class))?.payload)
}

/// Cuts pieces into messages by count and bytes.
fn cut(pieces: Vec<Piece>, (records_max, bytes_max): (usize, usize)) -> Vec<Vec<Piece>> {
    let mut messages: Vec<Vec<Piece>> = Vec::new();
    let mut bytes = 0;
    for piece in pieces {
        let size = piece.payload.len();
        match messages.last_mut() {
            Some(message) if message.len() < records_max && bytes + size <= bytes_max => {
                bytes += size;
                message.push(piece);
            }
            _ => {
                bytes = size;
                messages.push(vec![piece]);
            }
        }
    }
    messages
}

/// Puts the records of a message together with the signatures of their batches.
async fn groups(
    session: &mut Session,
    context: &Context,
    pieces: Vec<Piece>,
) -> Result<Vec<Group>> {
    let mut ids: Vec<i64> = pieces.iter().map(|piece| piece.batch).collect();
    ids.sort_unstable();
    ids.dedup();
    let batches = batches::read(session, &context.actors, Datum::Ints(ids)).await?;
    let mut groups: Vec<(i64, Group)> = Vec::new();
    for piece in pieces {
        let record =
            GroupRecord { uuid: piece.uuid, index: piece.index, payload: piece.payload.into() };
        match groups.last_mut() {
            // Records of one batch stand together as long as their order allows.
            Some((batch, group)) if *batch == piece.batch => group.records.push(record),
            _ => {
                let known = batches
                    .get(&piece.batch)
                    .ok_or_else(|| Error::failed(format!("batch {} is gone", piece.batch)))?;
                groups.push((
                    piece.batch,
                    Group {
                        origin: known.origin,
                        count: known.count,
                        signature: known.signature,
                        absent: Vec::new(),
                        records: vec![record],
                    },
                ));
            }
        }
    }
    for (batch, group) in &mut groups {
        let tree: &Tree = &batches[batch].tree;
        let present: Vec<u32> = group.records.iter().map(|record| record.index).collect();
        group.absent = tree.absent(&present)?;
    }
    Ok(groups.into_iter().map(|(_, group)| group).collect())
}

/// A duration in whole milliseconds.
#[must_use]
pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
