//! `sync_held`: records that cannot go into the tables yet, and messages that do not decode.

pub mod answers;
pub mod messages;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use sha2::{Digest as _, Sha256};

use super::apply::{Hold, Incoming};
use super::bulk;
use super::session::{Datum, Session};
use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::id::RecordId;
use crate::merge::TreeMerge;
use crate::record::{Body, RowId, payload};
use crate::state::State;

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
    /// Another row has its value of a unique column.
    UniqueClash,
    /// Its edits are concurrent, and the policy of their class is `hold`.
    Undecided,
    /// A class merges otherwise here than the root of the tree says.
    MergeDiffers,
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
            Self::UniqueClash => "UNIQUE_CLASH",
            Self::Undecided => "UNDECIDED",
            Self::MergeDiffers => "MERGE_DIFFERS",
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

/// The longest wait before a held record is tried again.
const WAIT_MAX_MS: i64 = 3_600_000;

/// How often what is held is tried again by the clock.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The first wait, in ms; it doubles with each try, up to an hour.
    pub retry_after_ms: i64,
    /// Tries by the clock before only a cause or a person tries it again.
    pub retries_max: i64,
}

impl Patience {
    /// When the next try is due after `tries` failures; `None`: it is given up.
    fn next(self, tries: i64, now: i64) -> Option<i64> {
        let doubled = u32::try_from(tries.clamp(0, 20)).unwrap_or(20);
        let wait = self.retry_after_ms.max(1).saturating_mul(1 << doubled).min(WAIT_MAX_MS);
        (tries < self.retries_max).then(|| now.saturating_add(wait))
    }
}

/// What a record is tried against beside its rows: under another schema, or where the tree merges
/// anew, it is due.
async fn schema(session: &mut Session) -> Result<String> {
    let row = session
        .query_one(
            "SELECT count(*), coalesce(max(id), 0), coalesce(sum(shape), 0), \
             coalesce(sum(length(definition)), 0), max(tracked_at), \
             (SELECT merge FROM @sync_self WHERE id = 1) FROM @sync_tracked",
            vec![],
        )
        .await?;
    let mut digest = Sha256::new();
    for n in 0..4 {
        digest.update(row.int(n)?.to_be_bytes());
    }
    digest.update(row.opt_time(4)?.unwrap_or_default().to_be_bytes());
    digest.update(row.opt_bytes(5)?.unwrap_or_default());
    Ok(digest.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect())
}

/// Makes the lines of a kind due.
pub async fn stir_kind(session: &mut Session, kind: HoldKind) -> Result<u64> {
    let sql = "UPDATE @sync_held SET known = NULL WHERE kind = $1";
    session.execute(sql, vec![kind.as_str().into()]).await
}

/// Sets a record aside with the rows that it waits for.
pub(super) async fn write(
    session: &mut Session,
    catalog: &Catalog,
    server: i64,
    record: &Incoming,
    hold: &Hold,
    patience: Patience,
    now: i64,
) -> Result<()> {
    let known = schema(session).await?;
    let payload = pack(record.parts.iter().map(|(bytes, _)| bytes.as_ref()))?;
    let classes = record.classes();
    let row = session
        .query_one(
            "INSERT INTO @sync_held (original_uuid, uuid, server_id, kind, reason, classes, payload, \
             next_attempt, held_at, known) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
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
                time(patience.next(0, now)),
                Datum::time(now),
                known.into(),
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

/// A time, or none.
fn time(millis: Option<i64>) -> Datum {
    millis.map_or(Datum::Time(None), Datum::time)
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
    /// An operator lets its concurrent edits in.
    pub decided: bool,
}

/// Held records that are due by the clock, or by a cause: another schema than they were tried
/// against, or a row that they wait for. Oldest first.
pub async fn due(session: &mut Session, now: i64, limit: usize) -> Result<Vec<Due>> {
    let some = "SELECT EXISTS (SELECT 1 FROM @sync_held WHERE original_uuid IS NOT NULL)";
    if !session.query_one(some, vec![]).await?.flag(0)? {
        return Ok(Vec::new());
    }
    let known = schema(session).await?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let found = session
        .query(
            "SELECT id FROM @sync_held WHERE original_uuid IS NOT NULL \
             AND (next_attempt <= $1 OR coalesce(known, '') <> $2) ORDER BY id LIMIT $3",
            vec![Datum::time(now), known.into(), limit.into()],
        )
        .await?;
    let ids = found.iter().map(|row| row.int(0)).collect::<Result<Vec<i64>>>()?;
    load(session, ids).await
}

/// Makes the lines due that wait for one of `rows`, which were written in this transaction. Says how
/// many.
pub async fn stir(session: &mut Session, catalog: &Catalog, rows: &[RowId]) -> Result<u64> {
    let some = "SELECT EXISTS (SELECT 1 FROM @sync_held_need)";
    if rows.is_empty() || !session.query_one(some, vec![]).await?.flag(0)? {
        return Ok(0);
    }
    let mut by_class: BTreeMap<i32, Vec<String>> = BTreeMap::new();
    for row in rows {
        if let Some(class) = catalog.ids.get(&row.class) {
            by_class.entry(*class).or_default().push(row.key.to_string());
        }
    }
    let any = session.dialect().any("key", 2);
    let sql = format!(
        "UPDATE @sync_held SET known = NULL WHERE id IN \
         (SELECT held_id FROM @sync_held_need WHERE class_id = $1 AND {any})"
    );
    let mut count = 0;
    for (class, keys) in by_class {
        count += session.execute(&sql, vec![class.into(), keys.into()]).await?;
    }
    Ok(count)
}

async fn load(session: &mut Session, ids: Vec<i64>) -> Result<Vec<Due>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT id, uuid, server_id, payload, decided FROM @sync_held \
         WHERE {} AND original_uuid IS NOT NULL ORDER BY id",
        session.dialect().any("id", 1)
    );
    let mut list = Vec::new();
    for row in session.query(&sql, vec![Datum::Ints(ids)]).await? {
        list.push(Due {
            id: row.int(0)?,
            server: row.int(2)?,
            decided: row.flag(4)?,
            incoming: Incoming {
                uuid: RecordId(row.uuid(1)?),
                body: body(row.bytes(3)?)?,
                parts: Vec::new(),
                places: Vec::new(),
            },
        });
    }
    Ok(list)
}

/// What the payload of a held record says.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) when it is damaged.
pub fn body(payload: &[u8]) -> Result<Body> {
    let kept: Kept = rmp_serde::from_slice(payload)
        .map_err(|error| Error::decode("a held record is damaged").with_source(error))?;
    payload::decode_parts(kept.0.iter().map(|part| part.as_slice()))
}

/// The lines of held records that came once more, by the record that first caused them. A sender
/// that delivers again is a cause to try again; one that was given up begins anew.
pub(super) async fn reopen(
    session: &mut Session,
    originals: Vec<RecordId>,
    now: i64,
) -> Result<HashMap<RecordId, i64>> {
    if originals.is_empty() {
        return Ok(HashMap::new());
    }
    let list: Vec<uuid::Uuid> = originals.into_iter().map(|original| original.0).collect();
    let sql = format!(
        "UPDATE @sync_held SET {AT_ONCE} WHERE {} RETURNING original_uuid, id",
        session.dialect().any("original_uuid", 2)
    );
    let rows = session.query(&sql, vec![Datum::time(now), list.into()]).await?;
    rows.iter().map(|row| Ok((RecordId(row.uuid(0)?), row.int(1)?))).collect()
}

/// Makes a line due, and gives one that was given up its tries back.
const AT_ONCE: &str = "retry_count = CASE WHEN next_attempt IS NULL THEN 0 ELSE retry_count END, \
    next_attempt = $1";

/// Makes held lines due at once: these, or all.
pub async fn at_once(session: &mut Session, ids: Option<&[i64]>, now: i64) -> Result<u64> {
    let mut binds = vec![Datum::time(now)];
    // A row without a key waits for nothing but its key.
    let mut sql = format!("UPDATE @sync_held SET {AT_ONCE} WHERE kind <> 'NO_KEY'");
    if let Some(ids) = ids {
        sql.push_str(&format!(" AND {}", session.dialect().any("id", 2)));
        binds.push(Datum::Ints(ids.to_vec()));
    }
    session.execute(&sql, binds).await
}

/// Notes that a held record was tried again in vain. A try by the clock counts; says whether it is
/// given up now: then only a cause or a person tries it again.
pub(super) async fn again(
    session: &mut Session,
    catalog: &Catalog,
    id: i64,
    hold: &Hold,
    patience: Patience,
    now: i64,
) -> Result<bool> {
    let known = schema(session).await?;
    let stopped = tried(session, id, hold.kind, &hold.text, &known, patience, now).await?;
    session.execute("DELETE FROM @sync_held_need WHERE held_id = $1", vec![id.into()]).await?;
    needs(session, catalog, id, &hold.needs).await?;
    if stopped {
        let state = State::FailedAndStopped.as_str();
        answers::note(session, &[id], state, Some(&hold.text)).await?;
    }
    Ok(stopped)
}

/// Whether anything is held because this server merges its class otherwise than the tree.
pub async fn differed(session: &mut Session) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM @sync_held WHERE kind = 'MERGE_DIFFERS')";
    session.query_one(sql, vec![]).await?.flag(0)
}

/// Records that were held because this server merged their classes otherwise are due at once, when
/// it does no more.
pub async fn agreed(session: &mut Session, merge: &TreeMerge) -> Result<()> {
    let sql =
        "SELECT id, classes FROM @sync_held WHERE kind = 'MERGE_DIFFERS' AND known IS NOT NULL";
    let mut ids = Vec::new();
    for row in session.query(sql, vec![]).await? {
        if row.text(1)?.split(',').all(|class| merge.difference(class).is_none()) {
            ids.push(vec![row.int(0)?.into()]);
        }
    }
    session.execute_each("UPDATE @sync_held SET known = NULL WHERE id = $1", ids).await?;
    Ok(())
}

/// Notes a try, and when the next is due.
async fn tried(
    session: &mut Session,
    id: i64,
    kind: HoldKind,
    text: &str,
    known: &str,
    patience: Patience,
    now: i64,
) -> Result<bool> {
    let row = session
        .query_one(
            "UPDATE @sync_held SET kind = $2, reason = $3, known = $4, \
             retry_count = retry_count + CASE WHEN next_attempt <= $5 THEN 1 ELSE 0 END \
             WHERE id = $1 RETURNING retry_count, next_attempt",
            vec![id.into(), kind.as_str().into(), text.into(), known.into(), Datum::time(now)],
        )
        .await?;
    let Some(due) = row.opt_time(1)? else { return Ok(true) };
    if due > now {
        return Ok(false);
    }
    // Only time cures a clock that is days ahead: nothing else would wake the record.
    let patience = match kind {
        HoldKind::Clock => Patience { retries_max: i64::MAX, ..patience },
        _ => patience,
    };
    let next = patience.next(row.int(0)?, now);
    session
        .execute(
            // One that is given up is worth another alarm.
            "UPDATE @sync_held SET next_attempt = $2, \
             alarmed_at = CASE WHEN $3 THEN NULL ELSE alarmed_at END WHERE id = $1",
            vec![id.into(), time(next), next.is_none().into()],
        )
        .await?;
    Ok(next.is_none())
}

/// Removes held records that went in; whoever sent them is to be told.
pub async fn done(session: &mut Session, ids: &[i64]) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    answers::note(session, ids, State::Committed.as_str(), None).await?;
    remove(session, ids).await
}

/// Removes lines.
pub(super) async fn remove(session: &mut Session, ids: &[i64]) -> Result<()> {
    for table in ["@sync_held_need WHERE held_id = $1", "@sync_held WHERE id = $1"] {
        let binds = ids.iter().map(|id| vec![Datum::from(*id)]).collect();
        session.execute_each(&format!("DELETE FROM {table}"), binds).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Patience;

    #[test]
    fn the_wait_doubles_up_to_an_hour_and_ends() {
        let patience = Patience { retry_after_ms: 5_000, retries_max: 20 };
        let waits: Vec<_> = (0..21).map(|tries| patience.next(tries, 1_000)).collect();
        assert_eq!(waits[..3], [Some(6_000), Some(11_000), Some(21_000)]);
        assert_eq!(waits[19], Some(3_601_000));
        assert_eq!(waits[20], None);
        assert_eq!(Patience { retry_after_ms: 0, retries_max: 0 }.next(0, 0), None);
    }
}
