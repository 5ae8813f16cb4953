//! What is held, for people: `held`.

use uuid::Uuid;

use super::audit;
use crate::error::{Error, Result};
use crate::failpoint::crash_point;
use crate::record::{Body, header::Opened};
use crate::state::State;
use crate::store::Session;
use crate::store::held::{self, HoldKind};
use crate::store::session::Row;

/// A line of `sync_held`.
#[derive(Clone, Debug)]
pub struct Held {
    /// `sync_held.id`.
    pub id: i64,
    /// The record that first caused it; `None` for a message that cannot be read.
    pub original_uuid: Option<Uuid>,
    /// The record by its name on the hop it came by.
    pub uuid: Option<Uuid>,
    /// The neighbour that sent it, or this server for a row of its own; `None` when it is gone.
    pub server: Option<String>,
    /// Why, by kind.
    pub kind: String,
    /// Why, for people.
    pub reason: String,
    /// The classes in it.
    pub classes: String,
    /// Tries by the clock.
    pub retry_count: i64,
    /// When the clock tries it next, milliseconds since 1970; `None`: only a cause or a person does.
    pub next_attempt: Option<i64>,
    /// Since when it is held, milliseconds since 1970.
    pub held_at: i64,
}

/// A held record in full.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Its line.
    pub held: Held,
    /// The rows that it waits for: class and key.
    pub waits_for: Vec<(String, String)>,
    /// What is in it.
    pub content: Content,
}

/// What is in a held line.
#[derive(Clone, Debug)]
pub enum Content {
    /// A record.
    Record(Box<Body>),
    /// Bytes that are no record to us: how many, and what their header says, where it is one.
    Message(usize, Option<String>),
}

const SELECT: &str = "SELECT h.id, h.original_uuid, h.uuid, \
    CASE WHEN h.server_id = 0 THEN (SELECT nickname FROM @sync_self) ELSE s.nickname END, \
    h.kind, h.reason, h.classes, \
    h.retry_count, h.next_attempt, h.held_at";
const FROM: &str = "FROM @sync_held h LEFT JOIN @sync_server s ON s.id = h.server_id";

fn line(row: &Row) -> Result<Held> {
    Ok(Held {
        id: row.int(0)?,
        original_uuid: row.opt_uuid(1)?,
        uuid: row.opt_uuid(2)?,
        server: row.opt_text(3)?.map(str::to_owned),
        kind: row.text(4)?.to_owned(),
        reason: row.text(5)?.to_owned(),
        classes: row.text(6)?.to_owned(),
        retry_count: row.int(7)?,
        next_attempt: row.opt_time(8)?,
        held_at: row.time(9)?,
    })
}

/// What is held, the oldest first, `limit` lines at the most.
pub async fn list(session: &mut Session, limit: u32) -> Result<Vec<Held>> {
    let sql = format!("{SELECT} {FROM} ORDER BY h.id LIMIT $1");
    session.query(&sql, vec![limit.into()]).await?.iter().map(line).collect()
}

/// The numbers of all that is held.
pub async fn ids(session: &mut Session) -> Result<Vec<i64>> {
    let rows = session.query("SELECT id FROM @sync_held ORDER BY id", vec![]).await?;
    rows.iter().map(|row| row.int(0)).collect()
}

/// One line; `None` when nothing is held by that number.
pub async fn find(session: &mut Session, id: i64) -> Result<Option<Held>> {
    let sql = format!("{SELECT} {FROM} WHERE h.id = $1");
    session.query_opt(&sql, vec![id.into()]).await?.as_ref().map(line).transpose()
}

fn nothing(id: i64) -> Error {
    Error::config(format!("nothing is held by the number {id}: `branchline held` lists what is"))
}

/// One held record in full.
///
/// # Errors
/// [`Config`](crate::Kind::Config) when nothing is held by that number.
pub async fn show(session: &mut Session, id: i64) -> Result<Shown> {
    let held = find(session, id).await?.ok_or_else(|| nothing(id))?;
    let rows = session
        .query(
            "SELECT t.class, n.key FROM @sync_held_need n \
             JOIN @sync_tracked t ON t.id = n.class_id WHERE n.held_id = $1 ORDER BY 1, 2",
            vec![id.into()],
        )
        .await?;
    let waits_for = rows
        .iter()
        .map(|row| Ok((row.text(0)?.to_owned(), row.text(1)?.to_owned())))
        .collect::<Result<_>>()?;
    let row =
        session.query_one("SELECT payload FROM @sync_held WHERE id = $1", vec![id.into()]).await?;
    let payload = row.bytes(0)?;
    let content = if held.kind == HoldKind::Undecodable.as_str() {
        Content::Message(payload.len(), says(payload))
    } else {
        Content::Record(Box::new(held::body(payload)?))
    };
    Ok(Shown { held, waits_for, content })
}

/// What the header of a message says, which nobody has verified.
fn says(message: &[u8]) -> Option<String> {
    let header = Opened::parse(bytes::Bytes::copy_from_slice(message)).ok()?.header;
    Some(format!(
        "{} {} of epoch {} from {}",
        header.kind.as_str(),
        header.number,
        header.epoch,
        header.sender
    ))
}

/// Gives a held record up: it will not go in here, and its sender is told REJECTED. What was passed
/// on of it stays passed on. Part of the caller's transaction.
///
/// # Errors
/// [`Config`](crate::Kind::Config) when nothing is held by that number.
pub async fn drop(session: &mut Session, id: i64, actor: &str) -> Result<Held> {
    super::lock(session).await?;
    let held = find(session, id).await?.ok_or_else(|| nothing(id))?;
    let reason = format!("dropped by an operator; it was held: {}", held.reason);
    if let Some(original) = held.original_uuid {
        let rejected = State::Rejected.as_str();
        session
            .execute(
                "UPDATE @sync_import SET state = $2, error_message = $3 WHERE original_uuid = $1",
                vec![original.into(), rejected.into(), reason.as_str().into()],
            )
            .await?;
        held::answers::note(session, &[id], rejected, Some(&reason)).await?;
    }
    held::remove(session, &[id]).await?;
    let what = held
        .original_uuid
        .map_or("no record".to_owned(), |uuid| format!("record {uuid} ({})", held.classes));
    let from = held.server.as_deref().unwrap_or("a server that is gone");
    let detail = format!("{id}: {what} of `{from}`, {}: {}", held.kind, held.reason);
    audit::note(session, actor, "held drop", &detail).await?;
    crash_point!("held.dropped");
    Ok(held)
}

/// Makes held records due at once, one that was given up as well; audited. Part of the caller's
/// transaction.
pub async fn at_once(session: &mut Session, ids: Option<&[i64]>, actor: &str) -> Result<u64> {
    let count = held::at_once(session, ids, crate::store::time::now()).await?;
    let which = ids.map_or("all".to_owned(), |ids| {
        ids.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
    });
    audit::note(session, actor, "held retry", &format!("{which}: {count}")).await?;
    Ok(count)
}
