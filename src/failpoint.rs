//! Named points at which a test has the process die, as by SIGKILL. They are there in debug builds
//! and with the feature `failpoints`; a release build has none of this.
//!
//! `BRANCHLINE_CRASH=publish.numbered:7` has the binary abort when it comes to that point for the
//! seventh time. `BRANCHLINE_CLOCK_SKEW_MS=-3000` has its clock be three seconds slow.
//! [`POINTS`] are all of them, in the order of a change's way.

/// Every point, with what has been done when the process dies there.
pub const POINTS: [(&str, &str); 22] = [
    ("host.wrote", "the host has written, and not committed"),
    ("host.committed", "the host has committed, and nobody was woken"),
    ("seal.begun", "changes were seen, and none is sealed"),
    ("seal.sealed", "changes are sealed, not committed"),
    ("publish.numbered", "messages have their running numbers, and none is published"),
    ("publish.written", "messages are handed over, not confirmed"),
    ("publish.confirmed", "the broker confirmed, and nothing is noted"),
    ("publish.sent", "records are SENT"),
    ("deliver.begun", "messages were delivered, and nothing is applied"),
    ("apply.applied", "a batch is applied, not committed"),
    ("apply.committed", "a batch is committed, and nobody was told"),
    ("answer.published", "the sender was told, and it is not noted"),
    ("deliver.answered", "the answer is noted, and the messages are still in the queue"),
    ("settle.begun", "an answer came in, not committed"),
    ("settle.settled", "an answer is committed, and still in the queue"),
    ("forward.waiting", "a record to be passed on waits, and was not published"),
    ("cleanup.half", "a batch of old lines is deleted, not the others"),
    ("held.written", "a record is held, not committed"),
    ("held.tried", "a held record was tried again, not committed"),
    ("held.dropped", "a held record is dropped, not committed"),
    ("init.migrated", "the sync tables are there, without an identity"),
    ("init.renewed", "a new identity is written, not committed"),
];

/// Ends the process here when the plan says so; nothing in a release build.
macro_rules! crash_point {
    ($point:literal) => {
        #[cfg(any(feature = "failpoints", debug_assertions))]
        $crate::failpoint::reach($point);
    };
}
pub(crate) use crash_point;

#[cfg(any(feature = "failpoints", debug_assertions))]
mod plan {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

    struct Plan {
        point: String,
        hit: u64,
    }

    static PLAN: OnceLock<Plan> = OnceLock::new();
    static REACHED: AtomicU64 = AtomicU64::new(0);

    /// Takes a plan, `point:hit`, for this process; the first one counts.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when it names no point: a misspelt plan must not pass a test.
    pub fn arm(plan: &str) -> crate::Result<()> {
        let wrong = || crate::Error::config(format!("`{plan}` names no crash point and hit"));
        let (point, hit) = plan.rsplit_once(':').unwrap_or((plan, "1"));
        let hit = hit.parse().map_err(|_| wrong())?;
        if !super::POINTS.iter().any(|(name, _)| *name == point) {
            return Err(wrong());
        }
        let _ = PLAN.set(Plan { point: point.to_owned(), hit });
        Ok(())
    }

    static SKEW_MS: AtomicI64 = AtomicI64::new(0);

    /// Has this process's clock be wrong by so many milliseconds.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when it is no number.
    pub fn skew(text: &str) -> crate::Result<()> {
        let wrong = || crate::Error::config(format!("`{text}` is no number of milliseconds"));
        SKEW_MS.store(text.parse().map_err(|_| wrong())?, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn skew_ms() -> i64 {
        SKEW_MS.load(Ordering::Relaxed)
    }

    pub(crate) fn reach(point: &str) {
        let Some(plan) = PLAN.get() else { return };
        debug_assert!(super::POINTS.iter().any(|(name, _)| *name == point), "{point}");
        if plan.point == point && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == plan.hit {
            std::process::abort();
        }
    }
}
#[cfg(any(feature = "failpoints", debug_assertions))]
pub use plan::{arm, skew};
#[cfg(any(feature = "failpoints", debug_assertions))]
pub(crate) use plan::{reach, skew_ms};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_a_point() {
        assert!(arm("publish.nowhere:1").is_err());
        assert!(arm("publish.sent:many").is_err());
    }

    #[test]
    fn every_point_stands_once_in_the_list() {
        let names: std::collections::BTreeSet<_> = POINTS.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), POINTS.len());
    }
}
