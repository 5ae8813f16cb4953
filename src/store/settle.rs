//! What is waiting for a neighbour, what was sent, and what became of it: the states of
//! `sync_server_record` for a child, of `sync_record` for the parent.

use super::books::{Neighbour, Role};
use super::session::{Datum, Session};
use super::{bulk, links};
use crate::error::Result;
use crate::id::RecordId;
use crate::link::Mark;
use crate::state::State;

/// A record that is to be sent now.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// `sync_record.id`.
    pub id: i64,
    /// Its name on the hop.
    pub uuid: RecordId,
    /// The record that first caused it.
    pub original: RecordId,
    /// Its payload (the first part of it).
    pub payload: Vec<u8>,
    /// The batch that its origin signed.
    pub batch: i64,
    /// Its place in there.
    pub index: u32,
    /// How many parts it has.
    pub parts: u32,
    /// Whether it was sent before.
    pub again: bool,
}

/// How the sending side treats one link.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Records read at a time.
    pub records_max: usize,
    /// Records sent and not acknowledged, at the most.
    pub unacknowledged_max: usize,
    /// How long an acknowledgement may take before a record is sent again, in ms; doubles with
    /// each time.
    pub resend_after_ms: i64,
}

/// Doublings of the resend time.
const DOUBLINGS_MAX: u32 = 5;

const COLUMNS: &str =
    "r.id, r.uuid, r.original_uuid, r.payload, r.batch_id, r.batch_index, r.parts";

/// Where the state of a link's records stands.
fn source(neighbour: &Neighbour) -> &'static str {
    match neighbour.role {
        Role::Parent => "@sync_record r",
        Role::Child => "@sync_server_record s JOIN @sync_record r ON r.id = s.record_id",
    }
}

/// The alias of the table with the state, and the condition that picks the link.
fn link(neighbour: &Neighbour) -> (&'static str, &'static str) {
    match neighbour.role {
        Role::Parent => ("r", "$1 = $1"),
        Role::Child => ("s", "s.server_id = $1"),
    }
}

/// Whether anything may have to be sent to a neighbour: nothing as long as this server knows that its
/// database is older than what it has said. [`pending`] says what.
pub async fn some(
    session: &mut Session,
    neighbour: &Neighbour,
    pace: Pace,
    now: i64,
) -> Result<bool> {
    let (t, link) = link(neighbour);
    let from = source(neighbour);
    let sql = format!(
        "SELECT (EXISTS (SELECT 1 FROM {from} WHERE {link} \
         AND {t}.state IN ('NEW', 'PENDING', 'SEND_FAILED')) \
         OR EXISTS (SELECT 1 FROM {from} WHERE {link} AND {})) \
         AND NOT EXISTS (SELECT 1 FROM @sync_self WHERE fallen_at IS NOT NULL)",
        overdue(t)
    );
    let mark = mark(session, neighbour, now).await?;
    let binds = overdue_binds(neighbour, pace, mark, now);
    session.query_one(&sql, binds).await?.flag(0)
}

/// Records for a neighbour in the order in which they were sealed or taken in: what has not been
/// sent, and what was not acknowledged in time.
pub async fn pending(
    session: &mut Session,
    neighbour: &Neighbour,
    pace: Pace,
    now: i64,
) -> Result<Vec<Outbound>> {
    let (t, link) = link(neighbour);
    let from = source(neighbour);
    let sent = session
        .query_one(
            &format!(
                "SELECT count(*) FROM {from} WHERE {link} AND {t}.state IN ('SENT', 'SENT_AGAIN')"
            ),
            vec![neighbour.id.into()],
        )
        .await?;
    let mut found = Vec::new();
    if sent.int(0)? > 0 {
        found = unanswered(session, neighbour, pace, now).await?;
    }
    #[cfg(test)]
    if crate::sim::sabotage::is_out(crate::sim::sabotage::Sabotage::Resend) {
        found.clear();
    }
    let waiting = usize::try_from(sent.int(0)?).unwrap_or(usize::MAX);
    let room = pace.unacknowledged_max.saturating_sub(waiting);
    let limit = room.min(pace.records_max.saturating_sub(found.len()));
    if limit > 0 {
        let sql = format!(
            "SELECT {COLUMNS} FROM {from} WHERE {link} \
             AND {t}.state IN ('NEW', 'PENDING', 'SEND_FAILED') ORDER BY r.id LIMIT $2"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        for row in session.query(&sql, vec![neighbour.id.into(), limit.into()]).await? {
            found.push(outbound(&row, false)?);
        }
    }
    Ok(found)
}

/// The condition for records that may have to be sent again. Binds: see [`overdue_binds`].
fn overdue(t: &str) -> String {
    format!(
        "{t}.state IN ('SENT', 'SENT_AGAIN') AND ({t}.sent_at IS NULL OR {t}.sent_at < $2 \
         OR ({t}.link_number <= $3 AND {t}.sent_at < $4))"
    )
}

fn overdue_binds(neighbour: &Neighbour, pace: Pace, mark: Mark, now: i64) -> Vec<Datum> {
    vec![
        neighbour.id.into(),
        Datum::time(now - pace.resend_after_ms),
        links::stored(mark.number).into(),
        Datum::time(mark.at),
    ]
}

/// What the neighbour has had for long enough to have answered.
async fn mark(session: &mut Session, neighbour: &Neighbour, now: i64) -> Result<Mark> {
    let (epoch, _, heard) = links::outbound(session, neighbour.id).await?;
    Ok(heard.unanswered(epoch, now).unwrap_or_default())
}

/// Records that were sent and are to be sent again: those that the neighbour misses, those whose
/// acknowledgement is overdue, those whose message is known to have come in and that are not
/// answered all the same. Each time they wait twice as long.
async fn unanswered(
    session: &mut Session,
    neighbour: &Neighbour,
    pace: Pace,
    now: i64,
) -> Result<Vec<Outbound>> {
    let (t, link) = link(neighbour);
    let from = source(neighbour);
    let mark = mark(session, neighbour, now).await?;
    let sql = format!(
        "SELECT {COLUMNS}, {t}.retry_count, {t}.sent_at, {t}.link_number FROM {from} WHERE {link} \
         AND {} ORDER BY r.id LIMIT $5",
        overdue(t)
    );
    let mut binds = overdue_binds(neighbour, pace, mark, now);
    binds.push(i64::try_from(pace.records_max).unwrap_or(i64::MAX).into());
    let mut found = Vec::new();
    for row in session.query(&sql, binds).await? {
        let Some(sent_at) = row.opt_time(8)? else {
            found.push(outbound(&row, true)?);
            continue;
        };
        let tries = u32::try_from(row.int(7)?).unwrap_or(0).min(DOUBLINGS_MAX);
        let came_in = row.opt_int(9)?.is_some_and(|n| n <= links::stored(mark.number));
        let wait = if came_in && sent_at < mark.at {
            crate::link::ANSWER_GRACE_MS.min(pace.resend_after_ms)
        } else {
            pace.resend_after_ms
        };
        if sent_at < now - (wait << tries) {
            found.push(outbound(&row, true)?);
        }
    }
    Ok(found)
}

/// When the oldest record was sent to a neighbour that has not answered for it.
pub async fn oldest_unanswered(
    session: &mut Session,
    neighbour: &Neighbour,
) -> Result<Option<i64>> {
    let (t, link) = link(neighbour);
    let from = source(neighbour);
    let sql = format!(
        "SELECT min({t}.sent_at) FROM {from} WHERE {link} AND {t}.state IN ('SENT', 'SENT_AGAIN')"
    );
    session.query_one(&sql, vec![neighbour.id.into()]).await?.opt_time(0)
}

fn outbound(row: &super::Row, again: bool) -> Result<Outbound> {
    let narrow = |index| Ok::<_, crate::Error>(u32::try_from(row.int(index)?).unwrap_or(0));
    Ok(Outbound {
        id: row.int(0)?,
        uuid: RecordId(row.uuid(1)?),
        original: RecordId(row.uuid(2)?),
        payload: row.bytes(3)?.to_vec(),
        batch: row.int(4)?,
        index: narrow(5)?,
        parts: narrow(6)?,
        again,
    })
}

/// Claims a link for one round of publishing: two processes that published at once would send
/// everything twice. A claim of another process counts until it is released, or is `now`; one that
/// ends later than it could was made by a clock that was ahead, and does not count.
/// Says whether the link is ours.
pub async fn claim(
    session: &mut Session,
    neighbour: &Neighbour,
    process: uuid::Uuid,
    now: i64,
    until: i64,
) -> Result<bool> {
    let claimed = session
        .execute(
            "UPDATE @sync_server SET relay_session = $2, relay_until = $3 WHERE id = $1 \
             AND (relay_session IS NULL OR relay_session = $2 OR relay_until < $4 \
             OR relay_until > $5)",
            vec![
                neighbour.id.into(),
                process.into(),
                Datum::time(until),
                Datum::time(now),
                Datum::time(until.saturating_add(until.saturating_sub(now))),
            ],
        )
        .await?;
    Ok(claimed > 0)
}

/// Gives a link free for other processes.
pub async fn release(
    session: &mut Session,
    neighbour: &Neighbour,
    process: uuid::Uuid,
) -> Result<()> {
    session
        .execute(
            "UPDATE @sync_server SET relay_session = NULL WHERE id = $1 AND relay_session = $2",
            vec![neighbour.id.into(), process.into()],
        )
        .await?;
    Ok(())
}

/// Takes `count` running numbers of the link; yields the epoch and the first of them.
pub async fn numbers(
    session: &mut Session,
    neighbour: &Neighbour,
    count: usize,
    now: i64,
) -> Result<(u64, u64)> {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let row = session
        .query_one(
            "UPDATE @sync_server SET out_number = out_number + $2, \
             out_epoch = CASE WHEN out_epoch = 0 THEN $3 ELSE out_epoch END \
             WHERE id = $1 RETURNING out_epoch, out_number",
            vec![neighbour.id.into(), count.into(), now.into()],
        )
        .await?;
    let last = row.int(1)?;
    Ok((u64::try_from(row.int(0)?).unwrap_or(0), u64::try_from(last - count + 1).unwrap_or(0)))
}

/// Sets the state of records on one link where they are in one of the states of `from`.
async fn set(
    session: &mut Session,
    neighbour: &Neighbour,
    uuids: Vec<uuid::Uuid>,
    set: &str,
    from: &str,
    mut binds: Vec<Datum>,
) -> Result<u64> {
    if uuids.is_empty() {
        return Ok(0);
    }
    let dialect = session.dialect();
    // `binds` come first: `set` names them.
    let n = binds.len();
    let sql = match neighbour.role {
        Role::Parent => {
            let any = dialect.any("uuid", n + 1);
            format!("UPDATE @sync_record SET {set} WHERE {any} AND state IN ({from})")
        }
        Role::Child => {
            let any = dialect.any("uuid", n + 2);
            format!(
                "UPDATE @sync_server_record SET {set} WHERE server_id = ${} AND state IN ({from}) \
                 AND record_id IN (SELECT id FROM @sync_record WHERE {any})",
                n + 1
            )
        }
    };
    if neighbour.role == Role::Child {
        binds.push(neighbour.id.into());
    }
    binds.push(uuids.into());
    session.execute(&sql, binds).await
}

/// States from which a record may come to be SENT. A faster acknowledgement is not undone.
const SENDABLE: &str = "'NEW', 'PENDING', 'SEND_FAILED', 'SENT', 'SENT_AGAIN'";

/// Records whose message lies with the broker.
pub async fn sent(
    session: &mut Session,
    neighbour: &Neighbour,
    records: &[(RecordId, bool)],
    number: u64,
    now: i64,
) -> Result<()> {
    let number = i64::try_from(number).unwrap_or(i64::MAX);
    for (again, state, count) in [(false, State::Sent, 0), (true, State::SentAgain, 1)] {
        let list = records.iter().filter(|(_, is)| *is == again).map(|(uuid, _)| uuid.0).collect();
        let assign = format!(
            "state = '{}', sent_at = $1, link_number = $2, error_message = NULL, \
             retry_count = retry_count + {count}",
            state.as_str()
        );
        let binds = vec![Datum::time(now), number.into()];
        set(session, neighbour, list, &assign, SENDABLE, binds).await?;
    }
    Ok(())
}

/// Records whose message the broker did not take. An outage consumes no retries.
pub async fn send_failed(
    session: &mut Session,
    neighbour: &Neighbour,
    records: &[(RecordId, bool)],
    reason: &str,
) -> Result<()> {
    let list = records.iter().map(|(uuid, _)| uuid.0).collect();
    let assign = format!("state = '{}', error_message = $1", State::SendFailed.as_str());
    set(session, neighbour, list, &assign, "'NEW', 'PENDING', 'SEND_FAILED'", vec![reason.into()])
        .await?;
    Ok(())
}

/// What a neighbour says became of records. COMMITTED is never undone; COMMITTED may follow
/// anything. Says how many records moved.
pub async fn acknowledged(
    session: &mut Session,
    neighbour: &Neighbour,
    state: State,
    records: Vec<RecordId>,
) -> Result<u64> {
    let list: Vec<uuid::Uuid> = records.into_iter().map(|record| record.0).collect();
    let (state, from) = match state {
        State::Committed | State::AlreadyCommitted => (State::Committed, REOPENABLE),
        other => (other, UNDECIDED),
    };
    let assign = match state {
        State::Committed => "state = 'COMMITTED', error_message = NULL".to_owned(),
        other => format!("state = '{}'", other.as_str()),
    };
    set(session, neighbour, list, &assign, from, Vec::new()).await
}

/// States that an acknowledgement "committed" ends.
const REOPENABLE: &str = "'NEW', 'PENDING', 'SEND_FAILED', 'SENT', 'SENT_AGAIN', 'FAILED', \
    'FAILED_AND_STOPPED', 'REJECTED'";

/// States that an acknowledgement "not committed" changes.
const UNDECIDED: &str = "'NEW', 'PENDING', 'SEND_FAILED', 'SENT', 'SENT_AGAIN', 'FAILED', \
    'FAILED_AND_STOPPED'";

/// The reasons that came with acknowledgements.
pub async fn reasons(
    session: &mut Session,
    neighbour: &Neighbour,
    reasons: &[(RecordId, String)],
) -> Result<()> {
    for (record, reason) in reasons {
        let list = vec![record.0];
        let from = "'FAILED', 'FAILED_AND_STOPPED', 'REJECTED'";
        set(session, neighbour, list, "error_message = $1", from, vec![reason.as_str().into()])
            .await?;
    }
    Ok(())
}

/// Further parts of records, by the original record, in order.
pub async fn parts(
    session: &mut Session,
    originals: Vec<RecordId>,
) -> Result<Vec<(RecordId, u32, Vec<u8>, i64, u32)>> {
    if originals.is_empty() {
        return Ok(Vec::new());
    }
    let list: Vec<uuid::Uuid> = originals.iter().map(|original| original.0).collect();
    let sql = format!(
        "SELECT original_uuid, part, payload, batch_id, batch_index FROM @sync_part WHERE {} \
         ORDER BY original_uuid, part",
        session.dialect().any("original_uuid", 1)
    );
    let narrow = |value| u32::try_from(value).unwrap_or(0);
    let mut parts = Vec::new();
    for row in session.query(&sql, vec![list.into()]).await? {
        parts.push((
            RecordId(row.uuid(0)?),
            narrow(row.int(1)?),
            row.bytes(2)?.to_vec(),
            row.int(3)?,
            narrow(row.int(4)?),
        ));
    }
    Ok(parts)
}

/// Keeps parts of a record that is still coming in.
pub async fn keep_parts(
    session: &mut Session,
    parts: Vec<(RecordId, u32, Vec<u8>, i64, u32)>,
) -> Result<()> {
    let rows = parts
        .into_iter()
        .map(|(original, part, payload, batch, index)| {
            vec![original.into(), part.into(), payload.into(), batch.into(), index.into()]
        })
        .collect();
    bulk::insert(
        session,
        "@sync_part",
        &[
            ("original_uuid", "uuid"),
            ("part", "int"),
            ("payload", "bytea"),
            ("batch_id", "bigint"),
            ("batch_index", "int"),
        ],
        rows,
        "ON CONFLICT DO NOTHING",
    )
    .await?;
    Ok(())
}

/// Notes that a neighbour was heard of.
pub async fn contact(session: &mut Session, neighbour: &Neighbour, now: i64) -> Result<()> {
    session
        .execute(
            "UPDATE @sync_server SET last_contact = $2, last_contact_state = 'ok' WHERE id = $1",
            vec![neighbour.id.into(), Datum::time(now)],
        )
        .await?;
    Ok(())
}
