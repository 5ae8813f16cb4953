//! `sync_held`: records that cannot go into the tables yet, and messages that do not decode.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::apply::{Hold, Incoming};
use super::bulk;
use super::session::{Datum, Session};
use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::id::RecordId;
use crate::record::{RowId, payload};

/// Why something is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoldKind {
    /// A class is not tracked here.
    Class,
    /// A column is not here.
    Column,
    /// A clock is far ahead.
    Clock,
    /// The database refuses it.
    Refused,
    /// A referenced row is not here.
    Missing,
    /// It builds on a change that is not here.
    Gap,
    /// It does not decode, or is not who it says.
    Undecodable,
    /// A row of this server that has no key and so no name elsewhere; `server_id` is 0.
    Keyless,
}

impl HoldKind {
    /// The name in `sync_held.kind`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Class => "UNKNOWN_CLASS",
            Self::Column => "UNKNOWN_COLUMN",
            Self::Clock => "CLOCK",
            Self::Refused => "REFUSED",
            Self::Missing => "MISSING_ROW",
            Self::Gap => "GAP",
            Self::Undecodable => "UNDECODABLE",
            Self::Keyless => "NO_KEY",
        }
    }
}

impl fmt::Display for HoldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Parts of a record as they are kept.
#[derive(Serialize, Deserialize)]
struct Kept(Vec<ByteBuf>);

/// The parts of a record as `sync_held.payload` has them.
pub(super) fn pack<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Result<Vec<u8>> {
    let kept = Kept(parts.map(|part| ByteBuf::from(part.to_vec())).collect());
    rmp_serde::to_vec(&kept)
        .map_err(|error| Error::failed("a held record cannot be stored").with_source(error))
}

/// First wait before a held record is tried again; doubles up to [`WAIT_MAX_MS`].
const WAIT_MS: i64 = 10_000;
const WAIT_MAX_MS: i64 = 3_600_000;

/// How long after the `tries`th failure the next try is due.
fn wait_ms(tries: i64) -> i64 {
    let doubled = u32::try_from(tries.clamp(0, 20)).unwrap_or(20);
    WAIT_MS.saturating_mul(1 << doubled).min(WAIT_MAX_MS)
}

/// Sets a record aside with the rows that it waits for.
pub(super) async fn write(
    session: &mut Session,
    catalog: &Catalog,
    server: i64,
    record: &Incoming,
    hold: &Hold,
    now: i64,
) -> Result<()> {
    let payload = pack(record.parts.iter().map(|(bytes, _)| bytes.as_ref()))?;
    let classes = record.classes();
    let row = session
        .query_one(
            "INSERT INTO @sync_held (original_uuid, uuid, server_id, kind, reason, classes, payload, \
             next_attempt, held_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
             ON CONFLICT (original_uuid) DO UPDATE SET kind = excluded.kind, reason = excluded.reason \
             RETURNING id",
            vec![
                record.original().into(),
                record.uuid.into(),
                server.into(),
                hold.kind.as_str().into(),
                hold.text.as_str().into(),
                classes.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(",").into(),
                payload.into(),
                Datum::time(now + wait_ms(0)),
                Datum::time(now),
            ],
        )
        .await?;
    needs(session, catalog, row.int(0)?, &hold.needs).await
}

async fn needs(session: &mut Session, catalog: &Catalog, held: i64, rows: &[RowId]) -> Result<()> {
    let rows = rows
        .iter()
        .filter_map(|row| Some((*catalog.ids.get(&row.class)?, &row.key)))
        .map(|(class, key)| vec![held.into(), class.into(), key.to_string().into()])
        .collect();
    bulk::insert(
        session,
        "@sync_held_need",
        &[("held_id", "bigint"), ("class_id", "int"), ("key", "text")],
        rows,
        "ON CONFLICT DO NOTHING",
    )
    .await?;
    Ok(())
}

/// Keeps a message that does not decode, as it came.
pub async fn write_undecodable(
    session: &mut Session,
    server: i64,
    message: &[u8],
    reason: &str,
    now: i64,
) -> Result<()> {
    session
        .execute(
            "INSERT INTO @sync_held (server_id, kind, reason, classes, payload, held_at) \
             VALUES ($1, $2, $3, '', $4, $5)",
            vec![
                server.into(),
                HoldKind::Undecodable.as_str().into(),
                reason.into(),
                message.to_vec().into(),
                Datum::time(now),
            ],
        )
        .await?;
    Ok(())
}

/// A held record that may go in now.
#[derive(Debug)]
pub struct Due {
    /// `sync_held.id`.
    pub id: i64,
    /// The neighbour it came from.
    pub server: i64,
    /// The record.
    pub incoming: Incoming,
}

/// Held records that are due by the clock, or wait for one of `rows`; oldest first.
pub async fn due(
    session: &mut Session,
    catalog: &Catalog,
    rows: &[RowId],
    now: i64,
    limit: i64,
) -> Result<Vec<Due>> {
    let some = session
        .query_one(
            "SELECT EXISTS (SELECT 1 FROM @sync_held WHERE original_uuid IS NOT NULL)",
            vec![],
        )
        .await?;
    if !some.flag(0)? {
        return Ok(Vec::new());
    }
    let mut ids: Vec<i64> = Vec::new();
    let found = session
        .query(
            "SELECT id FROM @sync_held h WHERE original_uuid IS NOT NULL AND (next_attempt <= $1 \
             OR (kind IN ('UNKNOWN_CLASS', 'UNKNOWN_COLUMN') AND EXISTS \
             (SELECT 1 FROM @sync_tracked t WHERE t.tracked_at > h.held_at))) ORDER BY id LIMIT $2",
            vec![Datum::time(now), limit.into()],
        )
        .await?;
    for row in found {
        ids.push(row.int(0)?);
    }
    for row in rows {
        let Some(class) = catalog.ids.get(&row.class) else { continue };
        let found = session
            .query(
                "SELECT held_id FROM @sync_held_need WHERE class_id = $1 AND key = $2",
                vec![(*class).into(), row.key.to_string().into()],
            )
            .await?;
        for row in found {
            ids.push(row.int(0)?);
        }
    }
    ids.sort_unstable();
    ids.dedup();
    load(session, ids).await
}

async fn load(session: &mut Session, ids: Vec<i64>) -> Result<Vec<Due>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT id, uuid, server_id, payload FROM @sync_held \
         WHERE {} AND original_uuid IS NOT NULL ORDER BY id",
        session.dialect().any("id", 1)
    );
    let mut list = Vec::new();
    for row in session.query(&sql, vec![Datum::Ints(ids)]).await? {
        let kept: Kept = rmp_serde::from_slice(row.bytes(3)?)
            .map_err(|error| Error::decode("a held record is damaged").with_source(error))?;
        let parts = kept.0.iter().map(|part| part.as_slice());
        let body = payload::decode_parts(parts)?;
        list.push(Due {
            id: row.int(0)?,
            server: row.int(2)?,
            incoming: Incoming {
                uuid: RecordId(row.uuid(1)?),
                body,
                parts: Vec::new(),
                places: Vec::new(),
            },
        });
    }
    Ok(list)
}

/// Notes that a held record was tried again in vain. Says whether it is given up now: after `max`
/// tries only a cause or a person tries it again.
pub(super) async fn again(
    session: &mut Session,
    catalog: &Catalog,
    id: i64,
    hold: &Hold,
    now: i64,
    max: i64,
) -> Result<bool> {
    let row = session
        .query_one(
            "UPDATE @sync_held SET kind = $2, reason = $3, retry_count = retry_count + 1 \
             WHERE id = $1 RETURNING retry_count",
            vec![id.into(), hold.kind.as_str().into(), hold.text.as_str().into()],
        )
        .await?;
    let tries = row.int(0)?;
    let stopped = tries >= max;
    if matches!(hold.kind, HoldKind::Class | HoldKind::Column) {
        // Until the schema changes once more.
        session
            .execute(
                "UPDATE @sync_held SET held_at = $2 WHERE id = $1",
                vec![id.into(), Datum::time(now)],
            )
            .await?;
    }
    let next = if stopped { Datum::Time(None) } else { Datum::time(now + wait_ms(tries)) };
    session
        .execute("UPDATE @sync_held SET next_attempt = $2 WHERE id = $1", vec![id.into(), next])
        .await?;
    session.execute("DELETE FROM @sync_held_need WHERE held_id = $1", vec![id.into()]).await?;
    needs(session, catalog, id, &hold.needs).await?;
    Ok(stopped)
}

/// Removes held records that went in.
pub async fn done(session: &mut Session, ids: &[i64]) -> Result<()> {
    for table in ["@sync_held_need WHERE held_id = $1", "@sync_held WHERE id = $1"] {
        let binds = ids.iter().map(|id| vec![Datum::from(*id)]).collect();
        session.execute_each(&format!("DELETE FROM {table}"), binds).await?;
    }
    Ok(())
}
