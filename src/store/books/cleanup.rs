//! Cleanup: what is old and done with goes, in small batches, and the report says what went.
//!
//! The rules are the seed's. A server with a parent deletes records that are COMMITTED or
//! NOT_SUPPOSED_TO_SYNC (REJECTED counts as such) and have no child still waiting. The root deletes
//! such rows of `sync_server_record`, then records in any state that have no such row left. An
//! import goes once its sender can no longer send it again: it was confirmed, and the sender has
//! been in contact since, long enough to have read that. What a later reader lacks is sent as
//! whole-row state.

use super::identity::identity;
use super::{Attempts, invites, servers};
use crate::error::Result;
use crate::failpoint::crash_point;
use crate::store::{Datum, Store};

/// Rows deleted in one transaction.
const BATCH_ROWS_MAX: u32 = 1_000;

/// A sender that was heard of this much later than an import has read its acknowledgement.
const SETTLED_AFTER_MS: i64 = 86_400_000;

/// What a cleanup deleted, table by table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Rows of `sync_record`.
    pub records: u64,
    /// Rows of `sync_server_record`, beside those that went with their record.
    pub server_records: u64,
    /// Rows of `sync_import`.
    pub imports: u64,
    /// Rows of `sync_part` without a record.
    pub parts: u64,
    /// Rows of `sync_batch` without a record.
    pub batches: u64,
    /// Rows of `sync_transmission`.
    pub transmissions: u64,
    /// Children whose invitation expired unused.
    pub invitations: u64,
}

/// Whether the task is due.
#[must_use]
pub fn is_due(last: Option<i64>, every: std::time::Duration, now: i64) -> bool {
    let every = i64::try_from(every.as_millis()).unwrap_or(i64::MAX);
    every > 0 && last.is_none_or(|last| now.saturating_sub(last) >= every)
}

/// Deletes what is older than `before` (milliseconds since 1970) and done with.
///
/// # Errors
/// Those of the database. What was deleted before stays deleted: run it again.
///
/// # Cancel safety
/// Each batch is a transaction of its own.
pub async fn cleanup(store: &Store, before: i64, actor: &str) -> Result<Cleaned> {
    let mut session = store.read().await?;
    identity(&mut session).await?;
    let has_parent = servers::parent(&mut session).await?.is_some();
    session.rollback().await?;

    let mut done = Cleaned { invitations: expire(store, actor).await?, ..Cleaned::default() };
    if has_parent {
        done.records = repeat(store, CHILD_RECORDS, before).await?;
    } else {
        done.server_records = repeat(store, ROOT_SERVER_RECORDS, before).await?;
        done.records = repeat(store, ROOT_RECORDS, before).await?;
    }
    crash_point!("cleanup.half");
    done.imports = repeat(store, IMPORTS, before).await?;
    done.parts = repeat(store, PARTS, before).await?;
    done.batches = repeat(store, BATCHES, before).await?;
    done.transmissions = repeat(store, TRANSMISSIONS, before).await?;

    let mut session = store.begin().await?;
    let now = Datum::time(crate::store::time::now());
    session.execute("UPDATE @sync_self SET last_cleanup = $1 WHERE id = 1", vec![now]).await?;
    session.commit().await?;
    Ok(done)
}

async fn expire(store: &Store, actor: &str) -> Result<u64> {
    let mut session = store.begin().await?;
    let count = invites::evict_expired(&mut session, actor).await?;
    session.commit().await?;
    Ok(count)
}

const CHILD_RECORDS: &str = "DELETE FROM @sync_record WHERE id IN (SELECT r.id FROM @sync_record r \
    WHERE r.timestamp < $1 AND r.state IN ('COMMITTED', 'NOT_SUPPOSED_TO_SYNC', 'REJECTED') \
    AND NOT EXISTS (SELECT 1 FROM @sync_server_record s WHERE s.record_id = r.id \
        AND s.state NOT IN ('COMMITTED', 'NOT_SUPPOSED_TO_SYNC', 'REJECTED')) \
    ORDER BY r.id LIMIT $2)";

// (record_id, server_id) pairs: a row value, as the table has no id of its own.
const ROOT_SERVER_RECORDS: &str = "DELETE FROM @sync_server_record WHERE (record_id, server_id) IN \
    (SELECT s.record_id, s.server_id FROM @sync_server_record s \
    JOIN @sync_record r ON r.id = s.record_id WHERE r.timestamp < $1 \
    AND s.state IN ('COMMITTED', 'NOT_SUPPOSED_TO_SYNC', 'REJECTED') LIMIT $2)";

const ROOT_RECORDS: &str = "DELETE FROM @sync_record WHERE id IN (SELECT r.id FROM @sync_record r \
    WHERE r.timestamp < $1 \
    AND NOT EXISTS (SELECT 1 FROM @sync_server_record s WHERE s.record_id = r.id) \
    ORDER BY r.id LIMIT $2)";

const IMPORTS: &str = "DELETE FROM @sync_import WHERE original_uuid IN \
    (SELECT i.original_uuid FROM @sync_import i LEFT JOIN @sync_server s ON s.id = i.server_id \
    WHERE i.timestamp < $1 \
    AND i.state IN ('COMMITTED_AND_CONFIRMATION_SENT', 'ALREADY_COMMITTED', 'REJECTED') \
    AND (s.id IS NULL OR (s.last_contact >= $3 AND s.last_contact > i.timestamp)) LIMIT $2)";

const PARTS: &str = "DELETE FROM @sync_part WHERE (original_uuid, part) IN \
    (SELECT p.original_uuid, p.part FROM @sync_part p \
    JOIN @sync_import i ON i.original_uuid = p.original_uuid \
    WHERE i.timestamp < $1 AND i.state NOT IN ('PENDING', 'FAILED', 'FAILED_AND_STOPPED') \
    AND NOT EXISTS (SELECT 1 FROM @sync_record r WHERE r.original_uuid = p.original_uuid) \
    AND NOT EXISTS (SELECT 1 FROM @sync_held h WHERE h.original_uuid = p.original_uuid) LIMIT $2)";

const BATCHES: &str = "DELETE FROM @sync_batch WHERE id IN (SELECT b.id FROM @sync_batch b \
    WHERE NOT EXISTS (SELECT 1 FROM @sync_record r WHERE r.batch_id = b.id) \
    AND NOT EXISTS (SELECT 1 FROM @sync_part p WHERE p.batch_id = b.id) LIMIT $2)";

const TRANSMISSIONS: &str = "DELETE FROM @sync_transmission WHERE id IN \
    (SELECT id FROM @sync_transmission WHERE timestamp < $1 ORDER BY id LIMIT $2)";

/// Runs a deleting statement until it finds less than a batch, a transaction each.
async fn repeat(store: &Store, sql: &str, before: i64) -> Result<u64> {
    let (mut total, mut attempts) = (0, Attempts::default());
    loop {
        let count = match delete_batch(store, sql, before).await {
            Err(error) if attempts.again(&error).await => continue,
            other => other?,
        };
        total += count;
        if count < u64::from(BATCH_ROWS_MAX) {
            return Ok(total);
        }
        attempts = Attempts::default();
    }
}

async fn delete_batch(store: &Store, sql: &str, before: i64) -> Result<u64> {
    let mut session = store.begin().await?;
    // Batches and records are made under this lock, one after the other.
    super::lock(&mut session).await?;
    let mut binds = vec![Datum::time(before), BATCH_ROWS_MAX.into()];
    if sql.contains("$3") {
        binds.push(Datum::time(before.saturating_add(SETTLED_AFTER_MS)));
    }
    let count = session.execute(sql, binds).await?;
    session.commit().await?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_task_that_never_ran_is_due() {
        let week = Duration::from_secs(7 * 86_400);
        assert!(is_due(None, week, 0));
        assert!(!is_due(Some(0), week, 604_799_999));
        assert!(is_due(Some(0), week, 604_800_000));
        assert!(!is_due(None, Duration::ZERO, i64::MAX));
    }
}
