//! `sync_import`: what came in. It is what makes applying idempotent.

use std::collections::HashMap;

use super::apply::Incoming;
use super::bulk;
use super::session::{Datum, Session};
use crate::error::{Error, Result};
use crate::id::RecordId;
use crate::state::State;

/// How records that are known stand, with the error of one that is held.
pub type Known = HashMap<RecordId, (State, Option<String>)>;

/// Which of these records are known here, whichever way they came: imported, or our own.
pub async fn known(
    session: &mut Session,
    originals: impl Iterator<Item = RecordId>,
) -> Result<Known> {
    #[cfg(test)]
    if crate::sim::sabotage::is_out(crate::sim::sabotage::Sabotage::Dedupe) {
        return Ok(Known::new());
    }
    let list: Vec<uuid::Uuid> = originals.map(|original| original.0).collect();
    let dialect = session.dialect();
    let mut known = Known::new();
    let sql = format!(
        "SELECT original_uuid, state, error_message FROM @sync_import WHERE {}",
        dialect.any("original_uuid", 1)
    );
    for row in session.query(&sql, vec![list.clone().into()]).await? {
        let state =
            row.text(1)?.parse().map_err(|_| Error::failed("`sync_import.state` is unknown"))?;
        known.insert(RecordId(row.uuid(0)?), (state, row.opt_text(2)?.map(str::to_owned)));
    }
    let sql = format!(
        "SELECT original_uuid FROM @sync_record WHERE source_server_id IS NULL AND {}",
        dialect.any("original_uuid", 1)
    );
    for row in session.query(&sql, vec![list.into()]).await? {
        known.entry(RecordId(row.uuid(0)?)).or_insert((State::Committed, None));
    }
    Ok(known)
}

/// Notes that committed records came again.
pub async fn again(session: &mut Session, known: &Known) -> Result<()> {
    if known.is_empty() {
        return Ok(());
    }
    let list: Vec<uuid::Uuid> = known.keys().map(|original| original.0).collect();
    let sql = format!(
        "UPDATE @sync_import SET retry_count = retry_count + 1, state = CASE \
         WHEN state IN ('COMMITTED', 'COMMITTED_AND_CONFIRMATION_SENT') THEN 'ALREADY_COMMITTED' \
         ELSE state END WHERE {}",
        session.dialect().any("original_uuid", 1)
    );
    session.execute(&sql, vec![list.into()]).await?;
    Ok(())
}

/// Books records that go into the tables in this transaction.
pub async fn committed(
    session: &mut Session,
    server: i64,
    records: impl Iterator<Item = &Incoming>,
    now: i64,
) -> Result<()> {
    let rows = records.map(|record| line(record, State::Committed, None, server, now)).collect();
    write(session, rows).await
}

/// Books a record that is held.
pub async fn failed(
    session: &mut Session,
    server: i64,
    record: &Incoming,
    state: State,
    message: &str,
    now: i64,
) -> Result<()> {
    write(session, vec![line(record, state, Some(message), server, now)]).await
}

/// Books a record that the rules refuse.
pub async fn rejected(
    session: &mut Session,
    server: i64,
    record: &Incoming,
    message: &str,
    now: i64,
) -> Result<()> {
    write(session, vec![line(record, State::Rejected, Some(message), server, now)]).await
}

/// Notes that a record is coming in, in parts.
pub async fn pending(
    session: &mut Session,
    server: i64,
    original: RecordId,
    uuid: RecordId,
    now: i64,
) -> Result<()> {
    session
        .execute(
            "INSERT INTO @sync_import (original_uuid, uuid, state, server_id, timestamp) \
             VALUES ($1, $2, 'PENDING', $3, $4) ON CONFLICT (original_uuid) DO NOTHING",
            vec![original.into(), uuid.into(), server.into(), Datum::time(now)],
        )
        .await?;
    Ok(())
}

fn line(
    record: &Incoming,
    state: State,
    message: Option<&str>,
    server: i64,
    now: i64,
) -> Vec<Datum> {
    vec![
        record.original().into(),
        record.uuid.into(),
        state.as_str().into(),
        message.map(str::to_owned).into(),
        server.into(),
        Datum::time(now),
    ]
}

async fn write(session: &mut Session, rows: Vec<Vec<Datum>>) -> Result<()> {
    bulk::insert(
        session,
        "@sync_import",
        &[
            ("original_uuid", "uuid"),
            ("uuid", "uuid"),
            ("state", "text"),
            ("error_message", "text"),
            ("server_id", "int"),
            ("timestamp", "timestamptz"),
        ],
        rows,
        "ON CONFLICT (original_uuid) DO UPDATE SET state = excluded.state, \
         error_message = excluded.error_message, timestamp = excluded.timestamp",
    )
    .await?;
    Ok(())
}

/// Committed records of a link whose acknowledgement has not been confirmed: by their name on the hop.
pub async fn unconfirmed(session: &mut Session, server: i64, limit: i64) -> Result<Vec<RecordId>> {
    let rows = session
        .query(
            "SELECT uuid FROM @sync_import WHERE server_id = $1 AND state = 'COMMITTED' LIMIT $2",
            vec![server.into(), limit.into()],
        )
        .await?;
    rows.iter().map(|row| Ok(RecordId(row.uuid(0)?))).collect()
}

/// Notes that the acknowledgement of committed records lies with the broker.
pub async fn confirmed(session: &mut Session, server: i64, records: Vec<RecordId>) -> Result<()> {
    if records.is_empty() {
        return Ok(());
    }
    let list: Vec<uuid::Uuid> = records.iter().map(|record| record.0).collect();
    let sql = format!(
        "UPDATE @sync_import SET state = 'COMMITTED_AND_CONFIRMATION_SENT' \
         WHERE server_id = $1 AND state = 'COMMITTED' AND {}",
        session.dialect().any("uuid", 2)
    );
    session.execute(&sql, vec![server.into(), list.into()]).await?;
    Ok(())
}

/// The newest records of a link that are in the tables, by their names on the hop.
pub async fn newest(session: &mut Session, server: i64, limit: i64) -> Result<Vec<RecordId>> {
    let rows = session
        .query(
            "SELECT uuid FROM @sync_import WHERE server_id = $1 AND state IN ('COMMITTED', \
             'COMMITTED_AND_CONFIRMATION_SENT', 'ALREADY_COMMITTED') \
             ORDER BY timestamp DESC LIMIT $2",
            vec![server.into(), limit.into()],
        )
        .await?;
    rows.iter().map(|row| Ok(RecordId(row.uuid(0)?))).collect()
}
