//! The databases. All SQL lives here.
//!
//! The two databases differ in how a connection runs a statement, in their catalogs and in their
//! triggers: that is `postgres/` and `sqlite/`. What is done **in** a transaction (sealing,
//! applying, bookkeeping) is the same on both, and is written once, over [`Session`]: an open
//! transaction that runs SQL text with typed binds.

pub mod actors;
pub mod apply;
pub mod batches;
pub mod books;
pub mod bulk;
pub mod due;
pub mod held;
pub mod image;
pub mod imports;
pub mod keysql;
pub mod links;
pub mod outbox;
pub mod postgres;
pub mod recover;
pub mod restore;
pub mod revived;
pub mod rows;
pub mod seal;
pub mod session;
pub mod settle;
pub mod sqlite;
pub mod states;
pub mod time;
pub mod track;

use std::time::Duration;

pub use session::{Cell, Datum, Dialect, Row, Session};

use crate::error::{Error, Result};

/// Bounds of what a store asks of its database. Each has a default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// PostgreSQL connections of one process. SQLite uses one to write and one to read.
    pub connections_max: usize,
    /// How long to wait for a connection.
    pub connect_within: Duration,
    /// How long one statement may take (`statement_timeout`).
    pub statement_within: Duration,
    /// How long to wait for another's lock (`lock_timeout`, `busy_timeout`); on PostgreSQL below
    /// `deadlock_timeout`, so that it is always us who give way.
    pub lock_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 8,
            connect_within: Duration::from_secs(10),
            statement_within: Duration::from_secs(600),
            lock_within: Duration::from_millis(700),
        }
    }
}

/// One server's database. Cheap to clone; all clones share its connections.
#[derive(Clone)]
pub struct Store {
    inner: Inner,
    address: String,
}

#[derive(Clone)]
enum Inner {
    Postgres(postgres::Database),
    Sqlite(sqlite::Database),
}

impl Store {
    /// Opens the database at `url`: `postgres://…` or `sqlite:PATH`. Connects at once, so that a
    /// database that is away is noticed here.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) for a URL that is neither, or a SQLite file that is not
    /// there; [`Unreachable`](crate::Kind::Unreachable) when nothing answers.
    pub async fn connect(url: &str, limits: Limits) -> Result<Self> {
        let inner = if let Some(path) = sqlite_path(url) {
            Inner::Sqlite(sqlite::Database::open(path, limits).await?)
        } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            Inner::Postgres(postgres::Database::connect(url, limits).await?)
        } else {
            return Err(Error::config(
                "the database URL must begin with `postgres://` or `sqlite:`",
            ));
        };
        Ok(Self { inner, address: without_password(url) })
    }

    /// Which SQL it speaks.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        match self.inner {
            Inner::Postgres(_) => Dialect::Postgres,
            Inner::Sqlite(_) => Dialect::Sqlite,
        }
    }

    /// Where the database is, without a password.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Opens a transaction that may write: READ COMMITTED on PostgreSQL, IMMEDIATE on SQLite (so
    /// there is one at a time).
    pub async fn begin(&self) -> Result<Session> {
        match &self.inner {
            Inner::Postgres(database) => Ok(Session::postgres(database.begin().await?)),
            Inner::Sqlite(database) => Ok(Session::sqlite(database.begin().await?)),
        }
    }

    /// Opens a transaction that only reads, and sees one snapshot throughout.
    pub async fn read(&self) -> Result<Session> {
        match &self.inner {
            Inner::Postgres(database) => Ok(Session::postgres(database.read().await?)),
            Inner::Sqlite(database) => Ok(Session::sqlite(database.read().await?)),
        }
    }

    /// Makes or updates the sync tables. Safe to repeat.
    pub async fn migrate(&self) -> Result<()> {
        match &self.inner {
            Inner::Postgres(database) => database.migrate().await,
            Inner::Sqlite(database) => database.migrate().await,
        }
    }
}

pub(crate) fn sqlite_path(url: &str) -> Option<&str> {
    let path = url.strip_prefix("sqlite:")?;
    Some(path.strip_prefix("//").unwrap_or(path))
}

/// `scheme://user:…@host` with the password left out.
#[must_use]
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let Some((login, host)) = rest.rsplit_once('@') else { return url.to_owned() };
    let user = login.split(':').next().unwrap_or_default();
    format!("{scheme}://{user}@{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        assert_eq!(without_password("amqp://u:p@ss@h:1/x"), "amqp://u@h:1/x");
        assert_eq!(without_password("postgres://h/x"), "postgres://h/x");
        assert_eq!(without_password("sqlite:/a@b"), "sqlite:/a@b");
    }

    #[test]
    fn a_sqlite_url_is_a_path() {
        assert_eq!(sqlite_path("sqlite:a/b.db"), Some("a/b.db"));
        assert_eq!(sqlite_path("sqlite:///a/b.db"), Some("/a/b.db"));
        assert_eq!(sqlite_path("postgres://h"), None);
    }
}
