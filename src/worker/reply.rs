//! Acknowledgements: what became of records, said to the sender, and what the sender said of ours.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::engine::{Context, Engine};
use super::{deliver, restore, rows};
use crate::error::{Error, Result};
use crate::failpoint::crash_point;
use crate::id::RecordId;
use crate::link::{Inbound, Range, Word};
use crate::publisher::relay;
use crate::record::header::{self, Header, MessageKind};
use crate::record::messages::{AckGroup, AckReason, AckState, Acks};
use crate::state::State;
use crate::store::apply::Outcome;
use crate::store::books::{self, Neighbour};
use crate::store::{Session, held, imports, links, settle, time};
use crate::transport::{Lane, Outcome as Published};

/// Records in one acknowledgement at the most.
const RECORDS_MAX: usize = 4_000;

/// Tells a neighbour what became of its records, waits for the broker's confirm, and notes that.
/// `last` is up to which message of it everything has come in; (0, 0) says nothing about it.
pub(super) async fn acknowledge(
    engine: &Engine,
    neighbour: &Neighbour,
    outcomes: &[Outcome],
    last: (u64, u64),
) -> Result<()> {
    for some in outcomes.chunks(RECORDS_MAX) {
        let body = acks(some, last).encode()?;
        send(engine, neighbour, MessageKind::Acks, Lane::Acks, &body).await?;
        crash_point!("answer.published");
        let committed: Vec<RecordId> = some
            .iter()
            .filter(|outcome| outcome.state == State::Committed)
            .map(|outcome| outcome.uuid)
            .collect();
        let mut session = engine.store.begin().await?;
        imports::confirmed(&mut session, neighbour.id, committed).await?;
        session.commit().await?;
    }
    Ok(())
}

/// Tells a neighbour up to where its messages have come in: the answer to each hello.
pub(super) async fn position(
    engine: &Engine,
    neighbour: &Neighbour,
    inbound: &Inbound,
) -> Result<()> {
    say(engine, neighbour, inbound, Vec::new()).await
}

async fn say(
    engine: &Engine,
    neighbour: &Neighbour,
    inbound: &Inbound,
    gaps: Vec<Range>,
) -> Result<()> {
    let (in_epoch, in_number) = (inbound.epoch(), inbound.floor());
    let body = Acks { in_epoch, in_number, gaps, ..Acks::default() }.encode()?;
    send(engine, neighbour, MessageKind::Acks, Lane::Acks, &body).await?;
    Ok(())
}

/// Asks for what is missing, once it has been for a while and was not asked for lately. Says whether
/// something is missing.
pub(super) async fn ask(engine: &Engine, neighbour: &Neighbour) -> Result<bool> {
    let mut session = engine.store.read().await?;
    let inbound = links::inbound(&mut session, neighbour.id).await?;
    session.rollback().await?;
    if inbound.due(time::now()).is_empty() {
        return Ok(inbound.has_gaps());
    }
    let _busy = engine.activity.busy();
    let mut session = engine.store.begin().await?;
    links::lock(&mut session, neighbour.id).await?;
    let mut inbound = links::inbound(&mut session, neighbour.id).await?;
    let now = time::now();
    let due = inbound.due(now);
    inbound.asked(now);
    links::save_asked(&mut session, neighbour.id, &inbound).await?;
    session.commit().await?;
    if !due.is_empty() {
        tracing::info!(link.peer = %neighbour.nickname, gaps = ?due, "messages are missing: asked for again");
        say(engine, neighbour, &inbound, due).await?;
    }
    Ok(inbound.has_gaps())
}

/// Records that are said again to a neighbour that has fallen back, the newest.
const KNOWN_MAX: i64 = 40_000;

/// Tells a neighbour what it sent and we have, as far back as it may matter.
pub(super) async fn acknowledge_known(engine: &Engine, neighbour: &Neighbour) -> Result<()> {
    let mut session = engine.store.read().await?;
    let known = imports::newest(&mut session, neighbour.id, KNOWN_MAX).await?;
    session.rollback().await?;
    let state = State::AlreadyCommitted;
    let outcomes: Vec<Outcome> =
        known.into_iter().map(|uuid| Outcome { uuid, state, message: None }).collect();
    acknowledge(engine, neighbour, &outcomes, (0, 0)).await
}

/// Asks for whole rows.
pub(super) async fn ask_rows(
    engine: &Engine,
    neighbour: &Neighbour,
    rows: Vec<(String, String)>,
) -> Result<()> {
    let body = Acks { rows, ..Acks::default() }.encode()?;
    send(engine, neighbour, MessageKind::Acks, Lane::Acks, &body).await?;
    Ok(())
}

/// Tells neighbours what became of records that were held, where they were not told yet. A broker
/// that is away is told later.
pub(super) async fn answer_left(engine: &Engine) -> Result<()> {
    let mut session = engine.store.read().await?;
    let servers = held::answers::servers(&mut session).await?;
    if servers.is_empty() {
        return session.rollback().await;
    }
    let neighbours = books::neighbours(&mut session).await?;
    session.rollback().await?;
    let mut trouble = None;
    for neighbour in neighbours.iter().filter(|neighbour| servers.contains(&neighbour.id)) {
        if let Err(error) = answer_one(engine, neighbour).await {
            // The others are told all the same.
            trouble = Some(error);
        }
    }
    trouble.map_or(Ok(()), Err)
}

async fn answer_one(engine: &Engine, neighbour: &Neighbour) -> Result<()> {
    loop {
        let mut session = engine.store.read().await?;
        let limit = i64::try_from(RECORDS_MAX).unwrap_or(i64::MAX);
        let left = held::answers::left(&mut session, neighbour.id, limit).await?;
        session.rollback().await?;
        if left.is_empty() || neighbour.disabled {
            return Ok(());
        }
        acknowledge(engine, neighbour, &left, (0, 0)).await?;
        let mut session = engine.store.begin().await?;
        held::answers::told(&mut session, neighbour.id, &left).await?;
        session.commit().await?;
    }
}

/// Acknowledges what was committed and never confirmed: after a crash, or an outage.
pub(super) async fn acknowledge_left(engine: &Engine, neighbour: &Neighbour) -> Result<()> {
    loop {
        let mut session = engine.store.read().await?;
        let limit = i64::try_from(RECORDS_MAX).unwrap_or(i64::MAX);
        let left = imports::unconfirmed(&mut session, neighbour.id, limit).await?;
        session.rollback().await?;
        if left.is_empty() {
            return Ok(());
        }
        let outcomes: Vec<Outcome> = left
            .into_iter()
            .map(|uuid| Outcome { uuid, state: State::Committed, message: None })
            .collect();
        acknowledge(engine, neighbour, &outcomes, (0, 0)).await?;
    }
}

fn acks(outcomes: &[Outcome], last: (u64, u64)) -> Acks {
    let mut by_state: BTreeMap<u8, AckGroup> = BTreeMap::new();
    let mut reasons = Vec::new();
    for outcome in outcomes {
        let state = match outcome.state {
            State::Committed => AckState::Committed,
            State::Rejected => AckState::Rejected,
            State::Failed => AckState::Failed,
            State::FailedAndStopped => AckState::FailedAndStopped,
            _ => AckState::AlreadyCommitted,
        };
        by_state
            .entry(state as u8)
            .or_insert_with(|| AckGroup { state, records: Vec::new() })
            .records
            .push(outcome.uuid);
        if let Some(message) = &outcome.message {
            reasons.push(AckReason { record: outcome.uuid, message: message.clone() });
        }
    }
    Acks::new(last.0, last.1, by_state.into_values().collect(), reasons)
}

/// Seals a body for a neighbour, publishes it and waits for the confirm. Yields its number.
pub(super) async fn send(
    engine: &Engine,
    neighbour: &Neighbour,
    kind: MessageKind,
    lane: Lane,
    body: &[u8],
) -> Result<u64> {
    let mut session = engine.store.begin().await?;
    let identity = crate::store::books::identity(&mut session).await?;
    let (epoch, number) = match lane {
        // Whoever is no neighbour has no numbers: it is told that it is refused.
        Lane::Records if neighbour.id != 0 => {
            settle::numbers(&mut session, neighbour, 1, time::now()).await?
        }
        _ => (neighbour.out_epoch, 0),
    };
    session.commit().await?;
    let header =
        Header { kind, sender: identity.server, receiver: neighbour.server, epoch, number };
    let sealed = header::seal(&header, body, &identity.signing_key, engine.config.zstd_level)?;
    let outgoing = relay::outgoing(&header, neighbour, lane, sealed);
    let outcomes = engine.transport_of(neighbour)?.publish(vec![outgoing]).await?;
    match outcomes.into_iter().next() {
        Some(Published::Confirmed) => Ok(number),
        Some(Published::Refused(reason)) => Err(Error::unreachable(format!(
            "the {} for `{}` is not with the broker: {reason}",
            kind.as_str(),
            neighbour.nickname
        ))),
        None => Err(Error::failed("the transport said nothing of a message")),
    }
}

/// Takes in what a neighbour says of our records. What does not decode is held and alarmed; the
/// records are sent again then, so nothing is lost.
pub(super) async fn settle(engine: &Engine, neighbour: &Neighbour, bodies: &[Bytes]) -> Result<()> {
    let _busy = engine.activity.busy();
    let mut session = engine.store.begin().await?;
    let context = engine.context(&mut session).await?;
    let now = time::now();
    let mut moved = 0;
    let (mut skipped, mut room) = (Vec::new(), false);
    for body in bodies {
        let acks =
            deliver::open(&context, neighbour, body).and_then(|acks| Acks::decode(&acks.body()?));
        let acks = match acks {
            Ok(acks) => acks,
            Err(error) => {
                tracing::error!(link.peer = %neighbour.nickname, error = %error.chain(), "an acknowledgement is held");
                held::messages::write(
                    &mut session,
                    neighbour.id,
                    true,
                    body,
                    &error.chain(),
                    engine.patience(),
                    now,
                )
                .await?;
                continue;
            }
        };
        let taken = take(engine, &mut session, &context, neighbour, acks).await?;
        moved += taken.moved;
        skipped.extend(taken.skipped);
        room |= taken.room;
    }
    settle::contact(&mut session, neighbour, now).await?;
    crash_point!("settle.begun");
    session.commit().await?;
    engine.activity.moved(usize::try_from(moved).unwrap_or(usize::MAX));
    if !skipped.is_empty() {
        // What went in them goes again, in others.
        engine.ask_hello(neighbour.id, skipped);
    }
    if moved > 0 || room {
        // There is room in the window again.
        engine.outbox.notify_waiters();
    }
    Ok(())
}

/// Takes in one acknowledgement that was held.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) when it still cannot be read; it is not held once more.
pub(super) async fn settle_one(engine: &Engine, neighbour: &Neighbour, body: &Bytes) -> Result<()> {
    let mut session = engine.store.begin().await?;
    let context = engine.context(&mut session).await?;
    let acks = deliver::open(&context, neighbour, body)?;
    let acks = Acks::decode(&acks.body()?)?;
    let taken = take(engine, &mut session, &context, neighbour, acks).await?;
    session.commit().await?;
    engine.ask_hello(neighbour.id, taken.skipped);
    Ok(())
}

/// What an acknowledgement came to.
struct Taken {
    /// Records that moved.
    moved: u64,
    /// Numbers that will not come any more.
    skipped: Vec<Range>,
    /// Whether there may be something to send now.
    room: bool,
}

/// Books what an acknowledgement says.
async fn take(
    engine: &Engine,
    session: &mut Session,
    context: &Context,
    neighbour: &Neighbour,
    acks: Acks,
) -> Result<Taken> {
    let mut moved = 0;
    for group in acks.groups {
        let state = match group.state {
            AckState::Committed => State::Committed,
            AckState::AlreadyCommitted => State::AlreadyCommitted,
            AckState::Failed => State::Failed,
            AckState::FailedAndStopped => State::FailedAndStopped,
            AckState::Rejected => State::Rejected,
        };
        moved += settle::acknowledged(session, neighbour, state, group.records).await?;
    }
    let reasons: Vec<(RecordId, String)> =
        acks.reasons.into_iter().map(|reason| (reason.record, reason.message)).collect();
    settle::reasons(session, neighbour, &reasons).await?;
    let word = Word { epoch: acks.in_epoch, number: acks.in_number, gaps: acks.gaps };
    let reaction = links::hear(session, neighbour, &word, time::now()).await?;
    if reaction.beyond {
        let why = "it has messages that were never sent";
        restore::note(engine, session, neighbour, why).await?;
    }
    let rows = rows::wanted(session, context, neighbour, &acks.rows).await?;
    Ok(Taken { moved, skipped: reaction.skipped, room: reaction.advanced || rows > 0 })
}
