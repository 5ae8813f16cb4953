//! What operators did (`sync_audit`), and exchanges that failed (`sync_transmission`).

use crate::error::Result;
use crate::store::Session;

/// An operator's action.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// Who: a user of the machine.
    pub actor: String,
    /// Which command.
    pub action: String,
    /// With what.
    pub detail: String,
}

/// A failed exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct Transmission {
    /// The neighbour, where it is known.
    pub server_id: Option<i64>,
    /// `out` or `in`.
    pub direction: String,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// What went wrong.
    pub error_message: String,
}

/// Notes an action. Part of the caller's transaction: no action without its line.
pub async fn note(session: &mut Session, actor: &str, action: &str, detail: &str) -> Result<()> {
    session
        .execute(
            "INSERT INTO @sync_audit (actor, action, detail) VALUES ($1, $2, $3)",
            vec![actor.into(), action.into(), detail.into()],
        )
        .await?;
    Ok(())
}

/// The newest actions, newest first.
pub async fn list(session: &mut Session, limit: u32) -> Result<Vec<Entry>> {
    let rows = session
        .query(
            "SELECT timestamp, actor, action, detail FROM @sync_audit ORDER BY id DESC LIMIT $1",
            vec![limit.into()],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Entry {
                timestamp: row.time(0)?,
                actor: row.text(1)?.to_owned(),
                action: row.text(2)?.to_owned(),
                detail: row.text(3)?.to_owned(),
            })
        })
        .collect()
}

/// Notes a failed exchange.
pub async fn transmission(
    session: &mut Session,
    server_id: Option<i64>,
    direction: &str,
    error_message: &str,
) -> Result<()> {
    session
        .execute(
            "INSERT INTO @sync_transmission (server_id, direction, error_message) VALUES ($1, $2, $3)",
            vec![server_id.into(), direction.into(), error_message.into()],
        )
        .await?;
    Ok(())
}

/// The newest failed exchanges, newest first.
pub async fn transmissions(session: &mut Session, limit: u32) -> Result<Vec<Transmission>> {
    let rows = session
        .query(
            "SELECT server_id, direction, timestamp, error_message FROM @sync_transmission \
             ORDER BY id DESC LIMIT $1",
            vec![limit.into()],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Transmission {
                server_id: row.opt_int(0)?,
                direction: row.text(1)?.to_owned(),
                timestamp: row.time(2)?,
                error_message: row.text(3)?.to_owned(),
            })
        })
        .collect()
}
