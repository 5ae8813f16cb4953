//! SQLite: the end of each transaction is marked in `sync_change`, in that transaction. What belongs
//! together runs in one task of the blocking thread, which is never cancelled half way: so the ring
//! comes from there too, even when nobody waits for the result any more.

use std::time::Duration;

use diesel::backend::Backend;
use diesel::connection::{
    AnsiTransactionManager, Connection as _, LoadConnection, SimpleConnection as _,
    TransactionManager as _, TransactionManagerStatus,
};
use diesel::query_builder::{
    AsQuery, CollectedQuery, MoveableBindCollector as _, QueryBuilder as _, QueryFragment, QueryId,
};
use diesel::result::Error;
use diesel::row::IntoOwnedRow;
use diesel::sqlite::{Sqlite, SqliteQueryBuilder};
use diesel::{
    ConnectionError, ConnectionResult, ExpressionMethods as _, OptionalExtension as _,
    QueryDsl as _, QueryResult, RunQueryDsl as _, SqliteConnection,
};
use diesel_async::AsyncConnection as _;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use futures_util::{FutureExt as _, StreamExt as _, TryFutureExt as _, future, stream};

use super::{Intercepted, Wake, sealed};

/// How long a connection made by `establish` waits for another's lock. A host sets its own with
/// `PRAGMA busy_timeout`.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

type Wrapper = SyncConnectionWrapper<SqliteConnection>;

diesel::table! {
    main.sync_change (seq) {
        seq -> BigInt,
        op -> Integer,
    }
}

diesel::table! {
    /// A view. Its trigger writes the mark, so that `last_insert_rowid()` stays the host's.
    main.sync_mark (op) {
        op -> Integer,
    }
}

/// `sync_change.op` of a mark "a transaction ended here".
const MARK: i32 = 4;
/// `sync_change.op` of a note that the triggers make for themselves: nothing was captured yet.
const NOTE: i32 = 5;

impl sealed::Sealed for Wrapper {}

impl Intercepted for Wrapper {
    async fn open(url: &str) -> ConnectionResult<Self> {
        let path = crate::store::sqlite_path(url).unwrap_or(url);
        let mut connection = Self::establish(path).await?;
        let sql = format!("PRAGMA busy_timeout = {}", BUSY_TIMEOUT.as_millis());
        connection
            .spawn_blocking(move |connection| connection.batch_execute(&sql))
            .await
            .map_err(ConnectionError::CouldntSetupConfiguration)?;
        Ok(connection)
    }

    async fn batch(&mut self, sql: &str, wake: &Wake) -> QueryResult<()> {
        let (sql, wake) = (sql.to_owned(), wake.clone());
        self.spawn_blocking(move |connection| batch(connection, &sql, &wake)).await
    }

    fn load_ringing<'conn, 'query, T>(
        &'conn mut self,
        source: T,
        wake: &Wake,
    ) -> Self::LoadFuture<'conn, 'query>
    where
        T: AsQuery + 'query,
        T::Query: QueryFragment<Sqlite> + QueryId + 'query,
    {
        let statement = match Statement::new(&source.as_query()) {
            Ok(statement) => statement,
            Err(error) => return future::err(error).boxed(),
        };
        let wake = wake.clone();
        self.spawn_blocking(move |connection| {
            statement.run(connection, &wake, |connection, query| {
                // All rows at once, as diesel-async's wrapper does: the connection stays behind.
                let mut cache = Default::default();
                let cursor = LoadConnection::load(connection, query)?;
                cursor.map(|row| Ok(Ok(IntoOwnedRow::into_owned(row?, &mut cache)))).collect()
            })
        })
        .map_ok(|rows: Vec<QueryResult<_>>| stream::iter(rows).boxed())
        .boxed()
    }

    fn execute_ringing<'conn, 'query, T>(
        &'conn mut self,
        source: T,
        wake: &Wake,
    ) -> Self::ExecuteFuture<'conn, 'query>
    where
        T: QueryFragment<Sqlite> + QueryId + 'query,
    {
        let statement = match Statement::new(&source) {
            Ok(statement) => statement,
            Err(error) => return future::err(error).boxed(),
        };
        let wake = wake.clone();
        self.spawn_blocking(move |connection| {
            statement.run(connection, &wake, |connection, query| {
                connection.execute_returning_count(query)
            })
        })
    }

    async fn begin(&mut self) -> QueryResult<()> {
        self.spawn_blocking(begin).await
    }

    async fn begin_sql(&mut self, sql: &str) -> QueryResult<()> {
        let sql = sql.to_owned();
        self.spawn_blocking(move |connection| {
            AnsiTransactionManager::begin_transaction_sql(connection, &sql)
        })
        .await
    }

    async fn commit(&mut self, wake: &Wake) -> QueryResult<()> {
        let wake = wake.clone();
        self.spawn_blocking(move |connection| commit(connection, &wake)).await
    }
}

/// What a query becomes on its way to the blocking thread.
struct Statement<D> {
    query: CollectedQuery<D>,
    writes: bool,
}

type BindData =
    <<Sqlite as Backend>::BindCollector<'static> as diesel::query_builder::MoveableBindCollector<
        Sqlite,
    >>::BindData;

impl Statement<BindData> {
    fn new(source: &impl QueryFragment<Sqlite>) -> QueryResult<Self> {
        let mut binds = <Sqlite as Backend>::BindCollector::default();
        source.collect_binds(&mut binds, &mut (), &Sqlite)?;
        let mut builder = SqliteQueryBuilder::default();
        source.to_sql(&mut builder, &Sqlite)?;
        let sql = builder.finish();
        let writes = writes(&sql);
        let cached = source.is_safe_to_cache_prepared(&Sqlite)?;
        Ok(Self { query: CollectedQuery::new(sql, cached, binds.moveable()), writes })
    }

    /// Runs it: what writes, outside a transaction, in one of its own.
    fn run<R>(
        self,
        connection: &mut SqliteConnection,
        wake: &Wake,
        run: impl FnOnce(&mut SqliteConnection, &CollectedQuery<BindData>) -> QueryResult<R>,
    ) -> QueryResult<R> {
        // BEGIN fails only inside a transaction: the host opened one by raw SQL.
        if !self.writes || !alone(connection) || connection.batch_execute("BEGIN").is_err() {
            return run(connection, &self.query);
        }
        let done = run(connection, &self.query).and_then(|done| {
            mark(connection)?;
            connection.batch_execute("COMMIT")?;
            Ok(done)
        });
        match done {
            Ok(_) => wake.ring(),
            Err(_) => undo(connection),
        }
        done
    }
}

/// Whether a statement can change rows. Others are not put into a transaction: a PRAGMA has another
/// effect there, and VACUUM none.
fn writes(sql: &str) -> bool {
    let sql = sql.trim_start();
    ["insert", "update", "delete", "replace", "with"]
        .iter()
        .any(|word| sql.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word)))
}

/// Runs SQL text. The transactions in it are the host's own, and closed when it ends, as a rule: so
/// the mark comes after them.
fn batch(connection: &mut SqliteConnection, sql: &str, wake: &Wake) -> QueryResult<()> {
    connection.batch_execute(sql)?;
    if !alone(connection) {
        return Ok(());
    }
    // In an open transaction of the host's BEGIN fails, and a mark would be wrong.
    if connection.batch_execute("BEGIN").is_ok() {
        let marked = mark(connection).and_then(|()| connection.batch_execute("COMMIT"));
        if let Err(error) = marked {
            undo(connection);
            tracing::debug!(error = %error, "the end of a batch is not marked");
        }
    }
    wake.ring();
    Ok(())
}

/// Begins an outermost transaction with the write lock in hand, where the database can be written.
fn begin(connection: &mut SqliteConnection) -> QueryResult<()> {
    if !alone(connection) {
        return AnsiTransactionManager::begin_transaction(connection);
    }
    match AnsiTransactionManager::begin_transaction_sql(connection, "BEGIN IMMEDIATE") {
        Err(error) if is(&error, &["readonly database"]) => {
            AnsiTransactionManager::begin_transaction(connection)
        }
        begun => begun,
    }
}

/// Marks and commits. Whatever fails, nothing of the transaction is left, and the error of the first
/// failure is the one that is returned.
fn commit(connection: &mut SqliteConnection, wake: &Wake) -> QueryResult<()> {
    let outermost = depth(connection) == Some(1);
    if outermost && let Err(error) = mark(connection) {
        AnsiTransactionManager::rollback_transaction(connection)?;
        return Err(error);
    }
    // On an error it has rolled back by itself.
    AnsiTransactionManager::commit_transaction(connection)?;
    if outermost {
        wake.ring();
    }
    Ok(())
}

/// Ends what has been captured, when something has, with a mark.
fn mark(connection: &mut SqliteConnection) -> QueryResult<()> {
    let last = sync_change::table
        .filter(sync_change::op.ne(NOTE))
        .order(sync_change::seq.desc())
        .select(sync_change::op)
        .first::<i32>(connection)
        .optional();
    let last = match last {
        // No sync tables: an ordinary database.
        Err(error) if is(&error, &["no such table"]) => return Ok(()),
        last => last?,
    };
    if last.is_none_or(|op| op == MARK) {
        return Ok(());
    }
    match diesel::insert_into(sync_mark::table).values(sync_mark::op.eq(MARK)).execute(connection) {
        // We could not get the write lock: so this transaction has written nothing, and what was
        // found is another's. Within a transaction that reads, SQLite does not wait for it.
        Err(error) if is(&error, &["is locked", "readonly database"]) => Ok(()),
        marked => marked.map(|_| ()),
    }
}

/// Rolls a transaction of ours back, if the failure has not done so already.
fn undo(connection: &mut SqliteConnection) {
    match connection.batch_execute("ROLLBACK") {
        Err(error) if !is(&error, &["no transaction is active"]) => {
            AnsiTransactionManager::transaction_manager_status_mut(connection).set_in_error();
        }
        _ => {}
    }
}

/// Transactions and savepoints that are open; `None` when the manager does not know any more.
fn depth(connection: &mut SqliteConnection) -> Option<u32> {
    match AnsiTransactionManager::transaction_manager_status_mut(connection) {
        TransactionManagerStatus::Valid(status) => {
            Some(status.transaction_depth().map_or(0, |depth| depth.get()))
        }
        TransactionManagerStatus::InError => None,
    }
}

/// Whether no transaction is open that we know of.
fn alone(connection: &mut SqliteConnection) -> bool {
    depth(connection) == Some(0)
}

/// Whether the database's message holds one of these parts: SQLite's kinds are not told apart by
/// Diesel's.
fn is(error: &Error, parts: &[&str]) -> bool {
    match error {
        Error::DatabaseError(_, information) => {
            parts.iter().any(|part| information.message().contains(part))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::writes;

    #[test]
    fn only_what_changes_rows_gets_a_transaction() {
        for sql in ["INSERT INTO a", " update a", "DELETE FROM a", "replace into a", "WITH x AS"] {
            assert!(writes(sql), "{sql}");
        }
        for sql in ["SELECT 1", "PRAGMA foreign_keys = ON", "VACUUM", "BEGIN", "é", ""] {
            assert!(!writes(sql), "{sql}");
        }
    }
}
