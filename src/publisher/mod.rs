//! The publisher: interceptor and relay for an application that embeds them.
//!
//! [`Publisher`] seals and publishes what the application commits, within milliseconds: connections
//! that are opened through it ring its relay. What comes in is a worker's business, which runs
//! beside the application as `branchline worker`, or within it as a [`Worker`](crate::Worker).

pub mod relay;

use std::sync::Arc;

use diesel::ConnectionResult;
use diesel_async::pooled_connection::AsyncDieselConnectionManager;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::{Kind, Result};
use crate::interceptor::{Intercepted, SyncConnection, Wake, pool_manager};
use crate::store::books::{self, LinkState};
use crate::worker::engine::Engine;
use crate::worker::tasks::{self, Duty};

/// Publishes what an application commits.
///
/// Any number of processes may publish for one server, and a worker beside them: sealing has one
/// lock, and each link is one process's for as long as it has messages under way there.
///
/// ```no_run
/// use branchline::Publisher;
/// use branchline::config::Config;
/// use branchline::interceptor::SyncPgConnection;
/// use tokio_util::sync::CancellationToken;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let config = Config::load("branchline.toml".as_ref(), true, &[])?;
/// let publisher = Publisher::open(config).await?;
/// let mut connection: SyncPgConnection = publisher.connect().await?;
/// let stop = CancellationToken::new();
/// let relay = tokio::spawn(publisher.run(stop.clone()));
/// // … ordinary Diesel queries on `connection` …
/// stop.cancel();
/// relay.await??;
/// # Ok(())
/// # }
/// ```
pub struct Publisher {
    engine: Arc<Engine>,
}

impl Publisher {
    /// Opens the server's database. Nothing runs yet.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when the database is no server yet,
    /// [`Unreachable`](crate::Kind::Unreachable) when it is away.
    pub async fn open(config: Config) -> Result<Self> {
        Ok(Self { engine: Arc::new(Engine::open(config, Wake::new()).await?) })
    }

    /// The bell that commits of the application ring: for connections that are made otherwise.
    #[must_use]
    pub fn wake(&self) -> Wake {
        self.engine.wake.clone()
    }

    /// Opens a connection to the server's database whose commits are published at once.
    ///
    /// # Errors
    /// Those of `AsyncConnection::establish`; also when `C` is the other database's.
    pub async fn connect<C: Intercepted>(&self) -> ConnectionResult<SyncConnection<C>> {
        SyncConnection::establish_with(self.url(), self.wake()).await
    }

    /// A manager of such connections, for pools (deadpool, bb8).
    #[must_use]
    pub fn pool_manager<C: Intercepted>(&self) -> AsyncDieselConnectionManager<SyncConnection<C>> {
        pool_manager(self.url(), self.wake())
    }

    fn url(&self) -> &str {
        self.engine.config.database_url.as_deref().unwrap_or_default()
    }

    /// Seals and publishes until `stop` is cancelled, then what was committed by then. A database or
    /// broker that is away is waited for: what was committed meanwhile goes out afterwards.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing, like a crash: prefer `stop`.
    pub fn run(&self, stop: CancellationToken) -> impl Future<Output = Result<()>> + Send + use<> {
        let engine = Arc::clone(&self.engine);
        async move {
            tasks::run(Arc::clone(&engine), Duty::Publish, stop).await;
            let last = flush(&engine).await;
            engine.close().await;
            match last {
                // It waits in the database, for the next process.
                Err(error) if matches!(error.kind(), Kind::Unreachable | Kind::Busy) => {
                    tracing::warn!(error = %error.chain(), "the last commits are not with the broker");
                    Ok(())
                }
                other => other,
            }
        }
    }
}

/// Seals and publishes what the application committed last.
async fn flush(engine: &Engine) -> Result<()> {
    relay::seal(engine).await?;
    let mut session = engine.store.read().await?;
    let neighbours = books::neighbours(&mut session).await?;
    session.rollback().await?;
    for neighbour in neighbours {
        if neighbour.state == LinkState::Joined && !neighbour.disabled {
            while relay::publish(engine, &neighbour).await? > 0 {}
        }
    }
    Ok(())
}
