//! One server, for a program that operates it: its configuration, how it stands, and everything an
//! operator does. The command line is a thin layer over this.
//!
//! Each action is one transaction, noted in `sync_audit` under the name given to
//! [`Server::open`], and repeated a little later where a lock is in the way. Nothing runs in the
//! background: exchanging is a [`Worker`](crate::Worker)'s, publishing also a
//! [`Publisher`](crate::Publisher)'s.

mod classes;
mod conflicts;
mod held;
mod links;
mod records;

use crate::catalog::decide::Request;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::publisher::relay;
use crate::store::books::check::{self, Facts};
use crate::store::books::identity::{self, Made};
use crate::store::books::status::{self, Status};
use crate::store::books::{self, Attempts, Identity, audit};
use crate::store::track::{self, Report};
use crate::store::{Session, Store, time};

pub use self::classes::RuleSet;

/// A server, to be operated.
pub struct Server {
    config: Config,
    store: Store,
    actor: String,
}

/// Runs `$work` in a transaction with the session `$session`, and commits it; again, a little
/// later, when a lock was in the way. A macro, because the future of a function that takes a
/// borrowing closure cannot be spawned.
macro_rules! transaction {
    ($self:ident, $session:ident => $work:expr) => {{
        let mut attempts = Attempts::default();
        loop {
            let mut session = $self.store.begin().await?;
            let done = async {
                let $session = &mut session;
                $work
            }
            .await;
            match session.end(done).await {
                Err(error) if attempts.again(&error).await => {}
                other => break other,
            }
        }
    }};
}
use transaction;

impl Server {
    /// Opens the server's database. `actor` is who the audit names.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) without a database URL,
    /// [`Unreachable`](crate::Kind::Unreachable) when the database is away.
    pub async fn open(config: Config, actor: impl Into<String>) -> Result<Self> {
        let store = Store::connect(config.database_url()?, config.limits()).await?;
        Ok(Self { config, store, actor: actor.into() })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The database.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Opens a snapshot for reading; an error where `init` has not been run.
    async fn read(&self) -> Result<Session> {
        let mut session = self.store.read().await?;
        books::identity(&mut session).await?;
        Ok(session)
    }

    /// Makes the sync tables and the identity, or brings both up to date. Safe to repeat.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) for a bad nickname, and for another nickname than a server
    /// with neighbours has.
    pub async fn init(&self, nickname: &str, new_identity: bool) -> Result<(Identity, Made)> {
        identity::init(&self.store, nickname, new_identity, &self.actor).await
    }

    /// Puts tables under capture, or brings capture up to date. What was refused, and why, stands
    /// in the report; the rest is captured all the same.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn track(&self, request: Request) -> Result<Report> {
        transaction!(self, session => {
            let report = track::track(session, request.clone()).await?;
            let detail = format!("{} classes", report.classes.len());
            audit::note(session, &self.actor, "track", &detail).await?;
            Ok(report)
        })
    }

    /// Puts every table under capture that the default rules do not keep back.
    ///
    /// # Errors
    /// [`Failed`](crate::Kind::Failed) naming the first table that is refused.
    pub async fn track_all(&self) -> Result<Report> {
        let report = self.track(Request { all: true, ..self.config.track_request() }).await?;
        match report.refusals.first() {
            None => Ok(report),
            Some(refusal) => Err(Error::failed(format!("`{}`: {}", refusal.class, refusal.text))),
        }
    }

    /// Takes tables out of capture, all where none is named; yields which.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) for a table that is not under capture.
    pub async fn untrack(&self, tables: &[String]) -> Result<Vec<String>> {
        transaction!(self, session => {
            let settings = self.config.merge_settings()?;
            let bounds = relay::bounds(&self.config);
            let names = track::untrack(session, tables, &settings, bounds).await?;
            audit::note(session, &self.actor, "untrack", &names.join(", ")).await?;
            Ok(names)
        })
    }

    /// How the server stands, in one snapshot.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when `init` has not been run.
    pub async fn status(&self) -> Result<Status> {
        let mut session = self.read().await?;
        let status = status::status(&mut session, time::now()).await?;
        session.rollback().await?;
        Ok(status)
    }

    /// What is captured, what is not, what is held, and the status, in one snapshot.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when `init` has not been run.
    pub async fn facts(&self) -> Result<Facts> {
        let mut session = self.read().await?;
        let facts = check::facts(&mut session, time::now()).await?;
        session.rollback().await?;
        Ok(facts)
    }

    /// Classes whose triggers are gone or out of date.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn broken_capture(&self) -> Result<Vec<String>> {
        let mut session = self.read().await?;
        let catalog = track::load(&mut session).await?;
        let broken = track::broken(&mut session, &catalog).await?;
        session.rollback().await?;
        Ok(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spawnable<T: Send>(_: impl FnOnce(&'static Server) -> T) {}

    #[test]
    fn every_action_can_be_spawned() {
        spawnable(|server| server.init("a", false));
        spawnable(|server| server.track(Request::default()));
        spawnable(|server| server.untrack(&[]));
        spawnable(|server| server.status());
        spawnable(|server| server.facts());
        spawnable(|server| server.invite("a", false, std::time::Duration::ZERO));
        spawnable(|server| server.join("", false));
        spawnable(|server| server.evict("a"));
        spawnable(|server| server.set_disabled("a", true));
        spawnable(|server| server.drop_held(1));
        spawnable(|server| server.reset(None, None));
        spawnable(|server| server.records(None, None, 1));
        spawnable(|server| server.propagate(&[], None));
        spawnable(|server| server.cleanup(std::time::Duration::ZERO));
    }
}
