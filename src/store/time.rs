//! Milliseconds since 1970 and their RFC 3339 text in UTC, as SQLite stores them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Now, by this machine's clock.
#[must_use]
pub fn now() -> i64 {
    #[cfg(test)]
    if let Some(now) = crate::sim::seams::now() {
        return now;
    }
    #[cfg(any(feature = "failpoints", debug_assertions))]
    return millis(SystemTime::now()) + crate::failpoint::skew_ms();
    #[cfg(not(any(feature = "failpoints", debug_assertions)))]
    millis(SystemTime::now())
}

/// Waits; in a simulation not at all.
pub(crate) async fn pause(duration: Duration) {
    #[cfg(test)]
    if crate::sim::seams::now().is_some() {
        return;
    }
    tokio::time::sleep(duration).await;
}

fn millis(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
    }
}

/// `2024-01-02T03:04:05.678Z`. Times before 1970 or after 9999 are drawn to the nearest bound.
#[must_use]
pub fn format(millis: i64) -> String {
    const LAST: u64 = 253_402_300_799_999;
    let millis = u64::try_from(millis).unwrap_or(0).min(LAST);
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis)).to_string()
}

/// The inverse of [`format`]; takes any precision.
#[must_use]
pub fn parse(text: &str) -> Option<i64> {
    humantime::parse_rfc3339_weak(text).ok().map(millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_comes_back_from_its_text() {
        for time in [0, 1, 1_732_485_600_123, 253_402_300_799_999] {
            assert_eq!(parse(&format(time)), Some(time));
        }
        assert_eq!(parse("yesterday"), None);
    }
}
