//! `sync_alarm`, and which held lines a person was told of.

use uuid::Uuid;

use crate::error::Result;
use crate::store::{Datum, Session};

/// Notes that a condition began. Says whether it is news: it was not there, or had ended.
pub async fn raise(
    session: &mut Session,
    key: &str,
    kind: &str,
    text: &str,
    now: i64,
) -> Result<bool> {
    let count = session
        .execute(
            "INSERT INTO @sync_alarm (key, kind, text, raised_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (key) DO UPDATE SET kind = excluded.kind, text = excluded.text, \
             raised_at = excluded.raised_at, told_at = NULL, cleared_at = NULL \
             WHERE sync_alarm.cleared_at IS NOT NULL",
            vec![key.into(), kind.into(), text.into(), Datum::time(now)],
        )
        .await?;
    Ok(count > 0)
}

/// Notes that a person was told.
pub async fn told(session: &mut Session, key: &str, now: i64) -> Result<()> {
    let sql = "UPDATE @sync_alarm SET told_at = $2 WHERE key = $1";
    session.execute(sql, vec![key.into(), Datum::time(now)]).await?;
    Ok(())
}

/// Notes that a condition ended. The next time it is news again.
pub async fn clear(session: &mut Session, key: &str, now: i64) -> Result<bool> {
    let sql = "UPDATE @sync_alarm SET cleared_at = $2 WHERE key = $1 AND cleared_at IS NULL";
    Ok(session.execute(sql, vec![key.into(), Datum::time(now)]).await? > 0)
}

/// Conditions that last: key, kind, text and since when.
pub async fn lasting(session: &mut Session) -> Result<Vec<(String, String, String, i64)>> {
    let rows = session
        .query(
            "SELECT key, kind, text, raised_at FROM @sync_alarm WHERE cleared_at IS NULL \
             ORDER BY raised_at, key",
            vec![],
        )
        .await?;
    let owned = |text: &str| text.to_owned();
    rows.iter()
        .map(|row| {
            Ok((owned(row.text(0)?), owned(row.text(1)?), owned(row.text(2)?), row.time(3)?))
        })
        .collect()
}

/// A held line that nobody was told of.
#[derive(Clone, Debug)]
pub struct Quiet {
    /// `sync_held.id`.
    pub id: i64,
    /// The record that first caused it; `None` for a message that cannot be read.
    pub original_uuid: Option<Uuid>,
    /// The neighbour that sent it.
    pub server: Option<String>,
    /// Why, by kind.
    pub kind: String,
    /// Why, for people.
    pub reason: String,
    /// The classes in it.
    pub classes: String,
    /// Whether it was given up.
    pub stopped: bool,
}

/// Whether there are held lines that nobody was told of.
pub async fn any_quiet(session: &mut Session) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM @sync_held WHERE alarmed_at IS NULL)";
    session.query_one(sql, vec![]).await?.flag(0)
}

/// Takes held lines that nobody was told of, for this process to tell: `limit` of them, and how many
/// more there were, which are taken as well.
pub async fn take_quiet(
    session: &mut Session,
    limit: usize,
    now: i64,
) -> Result<(Vec<Quiet>, usize)> {
    let taken = session
        .query(
            "UPDATE @sync_held SET alarmed_at = $1 WHERE alarmed_at IS NULL RETURNING id",
            vec![Datum::time(now)],
        )
        .await?;
    let mut ids = taken.iter().map(|row| row.int(0)).collect::<Result<Vec<i64>>>()?;
    ids.sort_unstable();
    let more = ids.len().saturating_sub(limit);
    ids.truncate(limit);
    let sql = format!(
        "SELECT h.id, h.original_uuid, s.nickname, h.kind, h.reason, h.classes, \
         h.next_attempt IS NULL AND h.retry_count > 0 FROM @sync_held h \
         LEFT JOIN @sync_server s ON s.id = h.server_id WHERE {} ORDER BY h.id",
        session.dialect().any("h.id", 1)
    );
    let rows = session.query(&sql, vec![Datum::Ints(ids)]).await?;
    let list = rows
        .iter()
        .map(|row| {
            Ok(Quiet {
                id: row.int(0)?,
                original_uuid: row.opt_uuid(1)?,
                server: row.opt_text(2)?.map(str::to_owned),
                kind: row.text(3)?.to_owned(),
                reason: row.text(4)?.to_owned(),
                classes: row.text(5)?.to_owned(),
                stopped: row.flag(6)?,
            })
        })
        .collect::<Result<_>>()?;
    Ok((list, more))
}
