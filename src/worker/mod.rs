//! The worker: all tasks of one server.
//!
//! [`Worker::run`] goes on until it is stopped; [`Worker::sync`] until nothing has moved for a
//! while. Both run the same tasks: the relay, and for each link one that publishes, one that takes
//! records in and one that takes acknowledgements in; cleanup and what is due by the clock beside
//! them. A task that fails backs off and starts over from the database: no task ends the others.

pub mod activity;
mod control;
mod deliver;
pub mod engine;
mod greeter;
mod hello;
mod intake;
mod joins;
mod links;
mod reply;
mod restore;
mod rows;
#[cfg(test)]
pub(crate) mod steps;
pub(crate) mod tasks;
mod unreadable;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::engine::Engine;
use self::tasks::Duty;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::interceptor::Wake;
use crate::store::books;

/// Runs everything of one server.
pub struct Worker {
    engine: Arc<Engine>,
}

/// What [`Worker::sync`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Records sealed, sent, taken in and acknowledged.
    pub moved: u64,
    /// Records that are held now.
    pub held: u64,
}

/// What became of a held record that was tried by hand.
#[derive(Clone, Debug)]
pub struct Tried {
    /// Its number in `sync_held`.
    pub id: i64,
    /// Its line, where it is still held; `None`: it went in.
    pub held: Option<books::held::Held>,
}

/// How long the tasks get to finish what they have in hand.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// How often `sync` looks whether everything is idle.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Worker {
    /// Opens the database. Nothing runs yet.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when the database is no server yet,
    /// [`Unreachable`](crate::Kind::Unreachable) when it is away.
    pub async fn open(config: Config) -> Result<Self> {
        Self::open_with(config, Wake::default()).await
    }

    /// Like [`open`](Self::open), with a wake that writers in this process ring.
    pub async fn open_with(config: Config, wake: Wake) -> Result<Self> {
        Ok(Self { engine: Arc::new(Engine::open(config, wake).await?) })
    }

    /// The database.
    #[must_use]
    pub fn store(&self) -> &crate::store::Store {
        &self.engine.store
    }

    /// Records sealed, sent, taken in and acknowledged so far.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.engine.activity.total()
    }

    /// Runs until `stop` is cancelled; then finishes what is in hand.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing, like a crash: prefer `stop`.
    pub async fn run(&self, stop: CancellationToken) -> Result<()> {
        tasks::run(Arc::clone(&self.engine), Duty::All, stop).await;
        self.engine.close().await;
        Ok(())
    }

    /// Tries held records at once, these or all, and says what became of each; and what kept their
    /// senders from being told, which is done later then.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when nothing is held by one of the numbers.
    pub async fn retry(
        &self,
        ids: Option<&[i64]>,
        actor: &str,
    ) -> Result<(Vec<Tried>, Option<Error>)> {
        let engine = &self.engine;
        let mut session = engine.store.begin().await?;
        let ids = match ids {
            None => books::held::ids(&mut session).await?,
            Some(ids) => ids.to_vec(),
        };
        for id in &ids {
            if books::held::find(&mut session, *id).await?.is_none() {
                session.rollback().await?;
                return Err(Error::config(format!("nothing is held by the number {id}")));
            }
        }
        books::held::at_once(&mut session, Some(&ids), actor).await?;
        session.commit().await?;
        deliver::try_all_held(engine).await?;
        let unread = unreadable::retry(engine).await.err();
        let untold = self.tell().await.err().or(unread);
        let mut session = engine.store.read().await?;
        let mut tried = Vec::with_capacity(ids.len());
        for id in ids {
            tried.push(Tried { id, held: books::held::find(&mut session, id).await? });
        }
        session.rollback().await?;
        Ok((tried, untold))
    }

    /// Tells neighbours what became of records that were held, once, and closes the transports.
    ///
    /// # Errors
    /// [`Unreachable`](crate::Kind::Unreachable) when a broker is away: it waits in the database.
    pub async fn tell(&self) -> Result<()> {
        let told = reply::answer_left(&self.engine).await;
        self.engine.close().await;
        told
    }

    /// Exchanges until nothing has moved for `idle`. Never waits for a neighbour's answer.
    ///
    /// # Errors
    /// The trouble of a task that had not passed in the end: a broker or database that is away.
    pub async fn sync(&self, idle: Duration) -> Result<Outcome> {
        let stop = CancellationToken::new();
        let engine = Arc::clone(&self.engine);
        let tasks = tokio::spawn(tasks::run(Arc::clone(&engine), Duty::All, stop.clone()));
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if engine.activity.is_idle(idle) || tasks.is_finished() {
                break;
            }
        }
        stop.cancel();
        // Tasks that do not come to an end are as good as crashed: nothing is lost.
        let _ = tokio::time::timeout(STOP_WITHIN, tasks).await;
        engine.close().await;
        if let Some(trouble) = engine.activity.trouble() {
            return Err(trouble);
        }
        let mut session = engine.store.read().await?;
        let held = session.query_one("SELECT count(*) FROM @sync_held", vec![]).await?.int(0)?;
        session.rollback().await?;
        let held = u64::try_from(held).unwrap_or(0);
        Ok(Outcome { moved: engine.activity.total(), held })
    }
}
