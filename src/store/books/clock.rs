//! After the clock went back: times that we wrote and that have not come yet would keep us waiting
//! for as long as it was ahead.

use crate::error::Result;
use crate::store::{Datum, Session};

/// Draws what waits for a time that is later than it could be to `now`. Stamps are not touched: they
/// are logical, and never go back.
pub async fn went_back(session: &mut Session, now: i64) -> Result<u64> {
    let mut count = 0;
    for sql in [
        "UPDATE @sync_record SET sent_at = $1 \
         WHERE state IN ('SENT', 'SENT_AGAIN') AND sent_at > $1",
        "UPDATE @sync_server_record SET sent_at = $1 \
         WHERE state IN ('SENT', 'SENT_AGAIN') AND sent_at > $1",
        "UPDATE @sync_self SET last_cleanup = $1 WHERE last_cleanup > $1",
        "UPDATE @sync_server SET last_contact = $1 WHERE last_contact > $1",
    ] {
        count += session.execute(sql, vec![Datum::time(now)]).await?;
    }
    // No wait is longer than an hour.
    let sql = "UPDATE @sync_held SET next_attempt = $1 WHERE next_attempt > $2";
    let late = now.saturating_add(2 * 3_600_000);
    Ok(count + session.execute(sql, vec![Datum::time(now), Datum::time(late)]).await?)
}
