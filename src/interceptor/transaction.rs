//! Transactions: the manager that Diesel's `transaction` runs on, and the ones of our own that a
//! connection has for isolation levels and SQLite's ways to begin.

use diesel::QueryResult;
use diesel::SqliteConnection;
use diesel::connection::TransactionManagerStatus;
use diesel::result::Error;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, AsyncPgConnection, TransactionManager};

use super::{Intercepted, SyncConnection};
use crate::failpoint::crash_point;

/// An async closure of which the future is known to be `Send`; implemented by all of them.
/// diesel-async has the same, but keeps it to itself.
pub trait AsyncFunc<T, R>:
    AsyncFnOnce(T) -> R + FnOnce(T) -> <Self as AsyncFunc<T, R>>::Fut
{
    /// What the closure returns.
    type Fut: Future<Output = R>;
}

impl<F, T, Fut, R> AsyncFunc<T, R> for F
where
    F: AsyncFnOnce(T) -> R + FnOnce(T) -> Fut,
    Fut: Future<Output = R>,
{
    type Fut = Fut;
}

/// Begins, commits and rolls back through the manager of the connection within, with its state; at
/// the end of an outermost transaction it has the mark put and the bell rung.
#[derive(Debug)]
pub struct SyncTransactionManager;

type Inner<C> = <C as AsyncConnection>::TransactionManager;

impl<C: Intercepted> TransactionManager<SyncConnection<C>> for SyncTransactionManager {
    type TransactionStateData = <Inner<C> as TransactionManager<C>>::TransactionStateData;

    async fn begin_transaction(conn: &mut SyncConnection<C>) -> QueryResult<()> {
        conn.inner.begin().await
    }

    async fn rollback_transaction(conn: &mut SyncConnection<C>) -> QueryResult<()> {
        Inner::<C>::rollback_transaction(&mut conn.inner).await
    }

    async fn commit_transaction(conn: &mut SyncConnection<C>) -> QueryResult<()> {
        crash_point!("host.wrote");
        conn.inner.commit(&conn.wake).await?;
        crash_point!("host.committed");
        Ok(())
    }

    fn transaction_manager_status_mut(
        conn: &mut SyncConnection<C>,
    ) -> &mut TransactionManagerStatus {
        Inner::<C>::transaction_manager_status_mut(&mut conn.inner)
    }

    fn is_broken_transaction_manager(conn: &mut SyncConnection<C>) -> bool {
        Inner::<C>::is_broken_transaction_manager(&mut conn.inner)
    }
}

/// As `TransactionManager::transaction`, begun by `sql`. Not an `async fn`: the future must be known
/// to be `Send`, whatever the closure.
#[allow(clippy::manual_async_fn)]
fn run<'a, 'conn, C, R, E, F>(
    conn: &'conn mut SyncConnection<C>,
    sql: String,
    callback: F,
) -> impl Future<Output = Result<R, E>> + Send + 'conn
where
    C: Intercepted,
    for<'r> F: AsyncFnOnce(&'r mut SyncConnection<C>) -> Result<R, E>
        + AsyncFunc<&'r mut SyncConnection<C>, Result<R, E>, Fut: Send>
        + Send
        + 'a,
    E: From<Error> + Send + 'a,
    R: Send + 'a,
    'a: 'conn,
{
    async move {
        conn.inner.begin_sql(&sql).await?;
        match callback(&mut *conn).await {
            Ok(value) => {
                SyncTransactionManager::commit_transaction(conn).await?;
                Ok(value)
            }
            Err(user_error) => match SyncTransactionManager::rollback_transaction(conn).await {
                // A broken manager is the consequence; the closure's error is the cause.
                Ok(()) | Err(Error::BrokenTransactionManager) => Err(user_error),
                Err(rollback_error) => Err(rollback_error.into()),
            },
        }
    }
}

/// Declares a method that runs a transaction begun by a text of its own.
macro_rules! transaction_begun_by {
    ($(#[$doc:meta])* $name:ident, $sql:literal) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// `AlreadyInTransaction` inside another; the closure's, after a rollback; those of BEGIN
        /// and COMMIT.
        ///
        /// # Cancel safety
        /// As with `transaction`: the connection is broken afterwards.
        pub fn $name<'a, 'conn, R, E, F>(
            &'conn mut self,
            callback: F,
        ) -> impl Future<Output = Result<R, E>> + Send + 'conn
        where
            for<'r> F: AsyncFnOnce(&'r mut Self) -> Result<R, E>
                + AsyncFunc<&'r mut Self, Result<R, E>, Fut: Send>
                + Send
                + 'a,
            E: From<Error> + Send + 'a,
            R: Send + 'a,
            'a: 'conn,
        {
            run(self, $sql.to_owned(), callback)
        }
    };
}

impl SyncConnection<SyncConnectionWrapper<SqliteConnection>> {
    transaction_begun_by!(
        /// Runs a transaction that takes the write lock at once. So does `transaction`.
        immediate_transaction,
        "BEGIN IMMEDIATE"
    );
    transaction_begun_by!(
        /// Runs a transaction that, without WAL, keeps readers out as well.
        exclusive_transaction,
        "BEGIN EXCLUSIVE"
    );
    transaction_begun_by!(
        /// Runs a transaction that takes no lock until it needs one: for long reads beside a
        /// writer. A write after a read may fail in it with "database is locked", at once.
        deferred_transaction,
        "BEGIN DEFERRED"
    );
}

impl SyncConnection<AsyncPgConnection> {
    /// Begins a transaction with an isolation level and other traits of PostgreSQL's.
    ///
    /// ```no_run
    /// # async fn example(conn: &mut branchline::interceptor::SyncPgConnection) {
    /// conn.build_transaction()
    ///     .serializable()
    ///     .run(async |_conn| Ok::<_, diesel::result::Error>(()))
    ///     .await
    ///     .expect("it commits");
    /// # }
    /// ```
    pub fn build_transaction(&mut self) -> TransactionBuilder<'_> {
        TransactionBuilder { conn: self, isolation: "", mode: "", deferrable: "" }
    }
}

/// A transaction that is about to begin, made by [`SyncConnection::build_transaction`].
#[must_use = "a transaction begins with `run`"]
#[derive(Debug)]
pub struct TransactionBuilder<'conn> {
    conn: &'conn mut SyncConnection<AsyncPgConnection>,
    isolation: &'static str,
    mode: &'static str,
    deferrable: &'static str,
}

impl<'conn> TransactionBuilder<'conn> {
    /// READ COMMITTED.
    pub fn read_committed(self) -> Self {
        Self { isolation: " ISOLATION LEVEL READ COMMITTED", ..self }
    }

    /// REPEATABLE READ.
    pub fn repeatable_read(self) -> Self {
        Self { isolation: " ISOLATION LEVEL REPEATABLE READ", ..self }
    }

    /// SERIALIZABLE.
    pub fn serializable(self) -> Self {
        Self { isolation: " ISOLATION LEVEL SERIALIZABLE", ..self }
    }

    /// READ ONLY.
    pub fn read_only(self) -> Self {
        Self { mode: " READ ONLY", ..self }
    }

    /// READ WRITE.
    pub fn read_write(self) -> Self {
        Self { mode: " READ WRITE", ..self }
    }

    /// DEFERRABLE: only of use when it is SERIALIZABLE and READ ONLY.
    pub fn deferrable(self) -> Self {
        Self { deferrable: " DEFERRABLE", ..self }
    }

    /// NOT DEFERRABLE.
    pub fn not_deferrable(self) -> Self {
        Self { deferrable: " NOT DEFERRABLE", ..self }
    }

    /// Runs the transaction.
    ///
    /// # Errors
    /// `AlreadyInTransaction` inside another; the closure's, after a rollback; those of BEGIN and
    /// COMMIT.
    ///
    /// # Cancel safety
    /// As with `transaction`: the connection is broken afterwards.
    pub fn run<'a, R, E, F>(self, callback: F) -> impl Future<Output = Result<R, E>> + Send + 'conn
    where
        for<'r> F: AsyncFnOnce(&'r mut SyncConnection<AsyncPgConnection>) -> Result<R, E>
            + AsyncFunc<&'r mut SyncConnection<AsyncPgConnection>, Result<R, E>, Fut: Send>
            + Send
            + 'a,
        E: From<Error> + Send + 'a,
        R: Send + 'a,
        'a: 'conn,
    {
        let sql = format!("BEGIN TRANSACTION{}{}{}", self.isolation, self.mode, self.deferrable);
        run(self.conn, sql, callback)
    }
}
