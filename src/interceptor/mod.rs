//! stub
use std::sync::Arc;
/// Rings when something was committed.
#[derive(Clone, Debug, Default)]
pub struct Wake(Arc<tokio::sync::Notify>);
impl Wake {
    /// Rings.
    pub fn ring(&self) {
        self.0.notify_one();
    }
    /// Waits for a ring.
    pub async fn notified(&self) {
        self.0.notified().await;
    }
}
