//! All tasks of one server. A stub, until the worker itself comes in.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::{Error, Result};

/// All tasks of one server.
pub struct Worker {}

/// What a [`Worker::sync`] did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Records sent and taken in.
    pub moved: u64,
    /// Records held here.
    pub held: u64,
}

impl Worker {
    /// Opens the database and the brokers.
    pub async fn open(_config: Config) -> Result<Self> {
        Ok(Self {})
    }

    /// Exchanges until a round moves nothing for `idle`.
    pub async fn sync(&self, _idle: Duration) -> Result<Outcome> {
        Err(Error::failed("the worker is not built yet"))
    }

    /// Exchanges until `stop`.
    pub async fn run(&self, stop: CancellationToken) -> Result<()> {
        stop.cancelled().await;
        Ok(())
    }
}
