//! What was sent and what came in, for people: `records` and `imports`.

use std::collections::HashMap;

use uuid::Uuid;

use super::audit;
use super::servers::{Neighbour, Role, named};
use crate::error::{Error, Result};
use crate::store::session::Row;
use crate::store::{Datum, Session};

/// A line of `sync_record` with what became of it at each child.
#[derive(Clone, Debug)]
pub struct Record {
    /// `sync_record.id`.
    pub id: i64,
    /// On this hop.
    pub uuid: Uuid,
    /// Of the record that first caused it.
    pub original_uuid: Uuid,
    /// When it was committed at its origin, milliseconds since 1970.
    pub timestamp: i64,
    /// Where it stands on the way to the parent.
    pub state: String,
    /// How often it was sent again to the parent.
    pub retry_count: i64,
    /// The classes in it.
    pub contained_classes: String,
    /// The server that committed it.
    pub origin: Option<String>,
    /// The origin's running number.
    pub number: i64,
    /// In how many parts it is stored.
    pub parts: i64,
    /// Bytes of its payload (of the first part).
    pub payload_bytes: i64,
    /// What the parent said.
    pub error_message: Option<String>,
    /// The neighbour that it came from; `None` for a record of our own.
    pub source: Option<String>,
    /// One entry for each child that it is for.
    pub servers: Vec<ServerRecord>,
}

/// A line of `sync_server_record`.
#[derive(Clone, Debug)]
pub struct ServerRecord {
    /// The child.
    pub nickname: String,
    /// Where the record stands on its way there.
    pub state: String,
    /// How often it was sent again.
    pub retry_count: i64,
    /// What the child said.
    pub error_message: Option<String>,
}

/// A line of `sync_import`.
#[derive(Clone, Debug)]
pub struct Import {
    /// As the neighbour sent it.
    pub uuid: Uuid,
    /// Of the record that first caused it.
    pub original_uuid: Uuid,
    /// What became of it here.
    pub state: String,
    /// How often it was tried again.
    pub retry_count: i64,
    /// Why it is not in.
    pub error_message: Option<String>,
    /// The neighbour that sent it.
    pub server: Option<String>,
    /// When it came in, milliseconds since 1970.
    pub timestamp: i64,
}

/// Which records to show.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter<'a> {
    /// Only those in this state (for `server`, where it is given).
    pub state: Option<&'a str>,
    /// Only those for this neighbour (of imports: from it).
    pub server: Option<&'a Neighbour>,
    /// The newest so many.
    pub limit: u32,
}

const COLUMNS: &str = "r.id, r.uuid, r.original_uuid, r.timestamp, r.state, r.retry_count, \
    r.contained_classes, o.nickname, r.number, r.parts, length(r.payload), r.error_message, \
    s.nickname";
const FROM: &str = "FROM @sync_record r LEFT JOIN @sync_origin o ON o.id = r.origin_id \
    LEFT JOIN @sync_server s ON s.id = r.source_server_id";

fn record(row: &Row) -> Result<Record> {
    let owned = |index| Ok::<_, Error>(row.opt_text(index)?.map(str::to_owned));
    Ok(Record {
        id: row.int(0)?,
        uuid: row.uuid(1)?,
        original_uuid: row.uuid(2)?,
        timestamp: row.time(3)?,
        state: row.text(4)?.to_owned(),
        retry_count: row.int(5)?,
        contained_classes: row.text(6)?.to_owned(),
        origin: owned(7)?,
        number: row.int(8)?,
        parts: row.int(9)?,
        payload_bytes: row.int(10)?,
        error_message: owned(11)?,
        source: owned(12)?,
        servers: Vec::new(),
    })
}

/// The newest records, oldest of them first.
pub async fn list(session: &mut Session, filter: Filter<'_>) -> Result<Vec<Record>> {
    let (mut conditions, mut binds) = (Vec::new(), vec![Datum::from(filter.limit)]);
    match filter.server {
        Some(server) if server.role == Role::Child => {
            binds.push(server.id.into());
            let mut inner = "r.id IN (SELECT record_id FROM @sync_server_record \
                             WHERE server_id = $2"
                .to_owned();
            if let Some(state) = filter.state {
                binds.push(state.into());
                inner.push_str(" AND state = $3");
            }
            inner.push(')');
            conditions.push(inner);
        }
        _ => {
            if let Some(state) = filter.state {
                binds.push(state.into());
                conditions.push("r.state = $2".to_owned());
            }
        }
    }
    let filter = if conditions.is_empty() {
        String::new()
    } else {
        format!("WHERE {}", conditions.join(" AND "))
    };
    let sql = format!("SELECT {COLUMNS} {FROM} {filter} ORDER BY r.id DESC LIMIT $1");
    let rows = session.query(&sql, binds).await?;
    let mut records = rows.iter().rev().map(record).collect::<Result<Vec<_>>>()?;
    add_servers(session, &mut records).await?;
    Ok(records)
}

/// The record with this uuid, on this hop or its original.
///
/// # Errors
/// [`Config`](crate::Kind::Config) when there is none.
pub async fn find(session: &mut Session, uuid: Uuid) -> Result<Record> {
    let sql = format!("SELECT {COLUMNS} {FROM} WHERE r.uuid = $1 OR r.original_uuid = $1");
    let row = session.query_opt(&sql, vec![uuid.into()]).await?.ok_or_else(|| {
        Error::config(format!("there is no record `{uuid}` (it may be cleaned up already)"))
    })?;
    let mut records = vec![record(&row)?];
    add_servers(session, &mut records).await?;
    records.pop().ok_or_else(|| Error::failed("the record is gone"))
}

async fn add_servers(session: &mut Session, records: &mut [Record]) -> Result<()> {
    let ids: Vec<i64> = records.iter().map(|record| record.id).collect();
    let sql = format!(
        "SELECT sr.record_id, s.nickname, sr.state, sr.retry_count, sr.error_message \
         FROM @sync_server_record sr JOIN @sync_server s ON s.id = sr.server_id \
         WHERE {} ORDER BY sr.record_id, sr.server_id",
        session.dialect().any("sr.record_id", 1)
    );
    let mut by_record: HashMap<i64, Vec<ServerRecord>> = HashMap::new();
    for row in session.query(&sql, vec![ids.into()]).await? {
        by_record.entry(row.int(0)?).or_default().push(ServerRecord {
            nickname: row.text(1)?.to_owned(),
            state: row.text(2)?.to_owned(),
            retry_count: row.int(3)?,
            error_message: row.opt_text(4)?.map(str::to_owned),
        });
    }
    for record in records {
        record.servers = by_record.remove(&record.id).unwrap_or_default();
    }
    Ok(())
}

/// What may be set back to NEW: what is on its way, failed or was refused. What a neighbour has, or
/// what the rules kept back, stays.
const RESETTABLE: &str =
    "('PENDING', 'SENT', 'SENT_AGAIN', 'SEND_FAILED', 'FAILED', 'FAILED_AND_STOPPED', 'REJECTED')";

/// Sets records back to NEW so that they are sent again: one, or all that are FAILED_AND_STOPPED;
/// for one neighbour, or for all.
///
/// # Errors
/// [`Config`](crate::Kind::Config) when there is no such record.
pub async fn reset(
    session: &mut Session,
    uuid: Option<Uuid>,
    server: Option<&Neighbour>,
    actor: &str,
) -> Result<u64> {
    super::lock(session).await?;
    let (which, mut binds) = match uuid {
        Some(uuid) => (
            format!("id = $1 AND state IN {RESETTABLE}"),
            vec![Datum::from(find(session, uuid).await?.id)],
        ),
        None => ("state = 'FAILED_AND_STOPPED'".to_owned(), Vec::new()),
    };
    const SET: &str = "state = 'NEW', retry_count = 0, error_message = NULL, sent_at = NULL, \
                       link_number = NULL";
    let mut count = 0;
    if server.is_none_or(|server| server.role == Role::Parent) {
        let sql = format!("UPDATE @sync_record SET {SET} WHERE {which}");
        count += session.execute(&sql, binds.clone()).await?;
    }
    if server.is_none_or(|server| server.role == Role::Child) {
        let which = which.replace("id = $1", "record_id = $1");
        let mut sql = format!("UPDATE @sync_server_record SET {SET} WHERE {which}");
        if let Some(server) = server {
            binds.push(server.id.into());
            sql.push_str(&format!(" AND server_id = ${}", binds.len()));
        }
        count += session.execute(&sql, binds).await?;
    }
    let what = uuid.map_or("all FAILED_AND_STOPPED".to_owned(), |uuid| uuid.to_string());
    let whom = server.map_or("all neighbours".to_owned(), named);
    audit::note(session, actor, "records reset", &format!("{what} for {whom}: {count}")).await?;
    Ok(count)
}

/// The newest imports, oldest of them first.
pub async fn imports(session: &mut Session, filter: Filter<'_>) -> Result<Vec<Import>> {
    let (mut conditions, mut binds) = (vec!["1 = 1".to_owned()], vec![Datum::from(filter.limit)]);
    if let Some(state) = filter.state {
        binds.push(state.into());
        conditions.push(format!("i.state = ${}", binds.len()));
    }
    if let Some(server) = filter.server {
        binds.push(server.id.into());
        conditions.push(format!("i.server_id = ${}", binds.len()));
    }
    let sql = format!(
        "SELECT i.uuid, i.original_uuid, i.state, i.retry_count, i.error_message, s.nickname, \
         i.timestamp FROM @sync_import i LEFT JOIN @sync_server s ON s.id = i.server_id \
         WHERE {} ORDER BY i.timestamp DESC, i.original_uuid DESC LIMIT $1",
        conditions.join(" AND ")
    );
    let rows = session.query(&sql, binds).await?;
    rows.iter()
        .rev()
        .map(|row| {
            Ok(Import {
                uuid: row.uuid(0)?,
                original_uuid: row.uuid(1)?,
                state: row.text(2)?.to_owned(),
                retry_count: row.int(3)?,
                error_message: row.opt_text(4)?.map(str::to_owned),
                server: row.opt_text(5)?.map(str::to_owned),
                timestamp: row.time(6)?,
            })
        })
        .collect()
}
