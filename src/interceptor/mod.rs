//! The interceptor: the connection of an application that embeds the publisher.
//!
//! [`SyncConnection`] stands before an ordinary diesel-async connection. It promises:
//!
//! - Plain Diesel queries and transactions run through it unchanged, with their results, errors and
//!   number of round trips. On a database without sync tables it is an ordinary connection.
//! - When an outermost transaction, or a single statement outside one, has committed, its [`Wake`]
//!   is rung: the relay that waits for it publishes the record at once.
//! - On SQLite, one transaction becomes one record: the end of each is marked in `sync_change`, in
//!   the transaction itself, when it has captured something.
//! - A COMMIT that fails has rolled back, and the connection can be used on. A connection whose
//!   transaction was cancelled is broken, and pools discard it.
//!
//! Triggers capture; nothing here does. What goes round this connection is captured just as well,
//! and found by polling: so a ring is a hint, and a lost one costs time only.
//!
//! It does not implement `DerefMut`: diesel-async would go round it (`deref_connection.rs` there).
//!
//! # What it cannot see
//! - A transaction opened by raw SQL (`batch_execute("BEGIN")`): its statements ring early, and on
//!   SQLite carry no marks, so neighbours may share a record. `batch_execute` of the COMMIT, and of
//!   anything else outside a transaction, rings, and on SQLite marks, when it is done.
//! - On PostgreSQL, a function that writes and is called as `SELECT * FROM f(…)`: nothing rings.
//! - A statement or COMMIT on PostgreSQL that is cancelled, and commits all the same.
//!
//! # On SQLite
//! - `transaction` begins with BEGIN IMMEDIATE. A deferred transaction that reads before it writes
//!   fails with "database is locked", whatever the busy timeout, when another connection has written
//!   between; the relay writes after every commit. For long reads there is
//!   [`deferred_transaction`](SyncConnection::deferred_transaction).
//! - `establish` sets a busy timeout of [`BUSY_TIMEOUT`]; the database has other writers now.
//! - `last_insert_rowid()` is left alone; SQL's `changes()` is not, once a statement outside a
//!   transaction, or a COMMIT, has put a mark. Diesel's own count of rows is right.
//! - As any SQLite connection of diesel-async it needs the multi-thread runtime.

mod connection;
mod pg;
mod pool;
mod sqlite;
mod transaction;
mod wake;

use std::future::Future;

use diesel::query_builder::{AsQuery, QueryFragment, QueryId};
use diesel::{ConnectionResult, QueryResult, SqliteConnection};
use diesel_async::pooled_connection::PoolableConnection;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncPgConnection};

pub use connection::SyncConnection;
pub use pool::{pool_config, pool_manager};
pub use sqlite::BUSY_TIMEOUT;
pub use transaction::{AsyncFunc, SyncTransactionManager, TransactionBuilder};
pub use wake::Wake;

/// The interceptor on PostgreSQL.
pub type SyncPgConnection = SyncConnection<AsyncPgConnection>;

/// The interceptor on SQLite.
pub type SyncSqliteConnection = SyncConnection<SyncConnectionWrapper<SqliteConnection>>;

/// A connection that [`SyncConnection`] can stand before: PostgreSQL's and SQLite's. What happens
/// around a commit is written for each.
///
/// Sealed: nobody else implements it.
pub trait Intercepted: AsyncConnection + PoolableConnection + sealed::Sealed + 'static {
    /// Connects. `url` is what [`AsyncConnection::establish`] takes, or `sqlite:PATH`.
    #[doc(hidden)]
    fn open(url: &str) -> impl Future<Output = ConnectionResult<Self>> + Send;

    /// Runs SQL text, and rings when it ran outside a transaction.
    #[doc(hidden)]
    fn batch(&mut self, sql: &str, wake: &Wake) -> impl Future<Output = QueryResult<()>> + Send;

    /// Runs a query that yields rows. A ring comes after its last row.
    #[doc(hidden)]
    fn load_ringing<'conn, 'query, T>(
        &'conn mut self,
        source: T,
        wake: &Wake,
    ) -> Self::LoadFuture<'conn, 'query>
    where
        T: AsQuery + 'query,
        T::Query: QueryFragment<Self::Backend> + QueryId + 'query;

    /// Runs a statement.
    #[doc(hidden)]
    fn execute_ringing<'conn, 'query, T>(
        &'conn mut self,
        source: T,
        wake: &Wake,
    ) -> Self::ExecuteFuture<'conn, 'query>
    where
        T: QueryFragment<Self::Backend> + QueryId + 'query;

    /// Opens a transaction, or a savepoint in one that is open.
    #[doc(hidden)]
    fn begin(&mut self) -> impl Future<Output = QueryResult<()>> + Send;

    /// Opens a transaction by this text. An error inside another.
    #[doc(hidden)]
    fn begin_sql(&mut self, sql: &str) -> impl Future<Output = QueryResult<()>> + Send;

    /// Commits the transaction and rings, or releases the savepoint. After an error nothing of it
    /// is left.
    #[doc(hidden)]
    fn commit(&mut self, wake: &Wake) -> impl Future<Output = QueryResult<()>> + Send;
}

mod sealed {
    /// Keeps [`Intercepted`](super::Intercepted) to this crate.
    pub trait Sealed {}
}
