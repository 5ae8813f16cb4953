//! Messages that could not be read, kept as they came. They are read again when another key is known,
//! by the clock, and by hand; and go when all that they could have said came another way.

use super::{HoldKind, Patience};
use crate::error::Result;
use crate::id::RecordId;
use crate::record::header::FORMAT;
use crate::store::session::{Datum, Session};

/// Messages of one neighbour that cannot be read and are kept. Whatever comes above that is as bad,
/// and its sender has it still.
const UNREADABLE_MAX: i64 = 1_000;

/// What a message is read with: another key, or a later format, is a cause to try again.
async fn keys(session: &mut Session) -> Result<String> {
    let sql = "SELECT count(*) FROM @sync_origin WHERE public_key IS NOT NULL";
    let keys = session.query_one(sql, vec![]).await?.int(0)?;
    Ok(format!("{FORMAT} {keys}"))
}

/// Keeps a message that does not decode, as it came, once.
pub async fn write(
    session: &mut Session,
    server: i64,
    acks: bool,
    message: &[u8],
    reason: &str,
    patience: Patience,
    now: i64,
) -> Result<()> {
    let known = keys(session).await?;
    session
        .execute(
            "INSERT INTO @sync_held (server_id, kind, reason, classes, payload, held_at, lane, known, \
             next_attempt) SELECT $1, $2, $3, '', $4, $5, $6, $7, $8 \
             WHERE NOT EXISTS (SELECT 1 FROM @sync_held WHERE kind = $2 \
             AND server_id = $1 AND payload = $4) \
             AND (SELECT count(*) FROM @sync_held WHERE kind = $2 AND server_id = $1) < $9",
            vec![
                server.into(),
                HoldKind::Undecodable.as_str().into(),
                reason.into(),
                message.to_vec().into(),
                Datum::time(now),
                (if acks { "acks" } else { "records" }).into(),
                known.into(),
                super::time(patience.next(0, now)),
                UNREADABLE_MAX.into(),
            ],
        )
        .await?;
    Ok(())
}

/// A message that could not be read and may be readable now.
#[derive(Debug)]
pub struct Message {
    /// `sync_held.id`.
    pub id: i64,
    /// The neighbour it came from.
    pub server: i64,
    /// When it came, milliseconds since 1970.
    pub held_at: i64,
    /// Whether it lay among the acknowledgements.
    pub acks: bool,
    /// The message as it came.
    pub body: Vec<u8>,
}

/// Messages that could not be read, and are due by the clock or were tried with other keys.
pub async fn due(session: &mut Session, now: i64, limit: i64) -> Result<Vec<Message>> {
    let known = keys(session).await?;
    let rows = session
        .query(
            "SELECT id, server_id, held_at, lane, payload FROM @sync_held \
             WHERE kind = 'UNDECODABLE' AND (next_attempt <= $1 OR coalesce(known, '') <> $2) \
             ORDER BY id LIMIT $3",
            vec![Datum::time(now), known.into(), limit.into()],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Message {
                id: row.int(0)?,
                server: row.int(1)?,
                held_at: row.time(2)?,
                acks: row.opt_text(3)? == Some("acks"),
                body: row.bytes(4)?.to_vec(),
            })
        })
        .collect()
}

/// Notes that a message was tried again in vain.
pub async fn again(
    session: &mut Session,
    id: i64,
    reason: &str,
    patience: Patience,
    now: i64,
) -> Result<()> {
    let known = keys(session).await?;
    let gone = "SELECT EXISTS (SELECT 1 FROM @sync_held WHERE id = $1)";
    if session.query_one(gone, vec![id.into()]).await?.flag(0)? {
        super::tried(session, id, HoldKind::Undecodable, reason, &known, patience, now).await?;
    }
    Ok(())
}

/// Removes a message that was read after all, or that says nothing new any more.
pub async fn done(session: &mut Session, id: i64) -> Result<()> {
    super::remove(session, &[id]).await
}

/// Whether all that a lost acknowledgement could have said is known by another: nothing that was
/// sent to the neighbour before `held_at` is unanswered.
pub async fn all_answered(session: &mut Session, server: i64, held_at: i64) -> Result<bool> {
    let row = session
        .query_one(
            "SELECT NOT EXISTS (SELECT 1 FROM @sync_server_record WHERE server_id = $1 \
             AND state IN ('SENT', 'SENT_AGAIN') AND sent_at <= $2) \
             AND NOT EXISTS (SELECT 1 FROM @sync_server s, @sync_record r WHERE s.id = $1 \
             AND s.role = 'PARENT' AND r.state IN ('SENT', 'SENT_AGAIN') AND r.sent_at <= $2)",
            vec![server.into(), Datum::time(held_at)],
        )
        .await?;
    row.flag(0)
}

/// Whether all of these records of a neighbour came by another message, and are decided.
pub async fn all_came(session: &mut Session, server: i64, records: &[RecordId]) -> Result<bool> {
    let mut list: Vec<uuid::Uuid> = records.iter().map(|record| record.0).collect();
    list.sort_unstable();
    list.dedup();
    let wanted = i64::try_from(list.len()).unwrap_or(i64::MAX);
    let sql = format!(
        "SELECT count(*) FROM @sync_import WHERE server_id = $1 AND state <> 'PENDING' AND {}",
        session.dialect().any("uuid", 2)
    );
    Ok(session.query_one(&sql, vec![server.into(), list.into()]).await?.int(0)? == wanted)
}

/// Whether a neighbour was heard of after a message of it was held.
pub async fn heard_since(session: &mut Session, server: i64, held_at: i64) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM @sync_server WHERE id = $1 AND last_contact > $2)";
    session.query_one(sql, vec![server.into(), Datum::time(held_at)]).await?.flag(0)
}
