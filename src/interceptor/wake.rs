//! The bell between a connection that commits and the relay in the same process.

use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

/// Rung by connections when something is committed, awaited by the relay. Cheap to clone; all
/// clones are one bell.
///
/// A ring is never lost: one that comes while nobody waits is remembered, and ends the next wait at
/// once. Several of them count as one, so a waiter looks for everything that is there.
#[derive(Clone, Debug, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// A bell that nobody else has.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The bell of this process: that of every connection that was made without one, as by
    /// `AsyncConnection::establish`.
    #[must_use]
    pub fn process() -> Self {
        static PROCESS: OnceLock<Wake> = OnceLock::new();
        PROCESS.get_or_init(Self::default).clone()
    }

    /// Rings. Never waits.
    pub fn ring(&self) {
        self.0.notify_one();
    }

    /// Waits until it is rung, or has been since the last wait. Meant for one waiter: of several,
    /// each ring wakes one.
    ///
    /// # Cancel safety
    /// Dropping the future loses no ring.
    pub async fn notified(&self) {
        self.0.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::Wake;

    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_ring_before_the_wait_is_remembered_once() {
        let wake = Wake::new();
        wake.clone().ring();
        wake.ring();
        wake.notified().await;
        assert!(timeout(SOON, wake.notified()).await.is_err());
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_loses_no_ring() {
        let wake = Wake::new();
        {
            let wait = wake.notified();
            tokio::pin!(wait);
            assert!(timeout(SOON, &mut wait).await.is_err());
            wake.ring();
        }
        timeout(SOON, wake.notified()).await.expect("the ring is still there");
    }

    #[tokio::test]
    async fn the_process_has_one() {
        Wake::process().ring();
        timeout(SOON, Wake::process().notified()).await.expect("it is the same bell");
    }
}
