//! SQLite through diesel-async's wrapper: one connection that writes, one that reads. A statement
//! made at run time is cached by its text; many of one kind run in one hop to the blocking thread.

pub mod affinity;
pub mod catalog;
pub mod changes;
pub mod image;
mod index;
mod legacy;
pub mod literals;
pub mod refs;
mod settle;
pub mod triggers;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use diesel::connection::SimpleConnection as _;
use diesel::deserialize;
use diesel::deserialize::FromSql;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::{DatabaseErrorKind, Error as DieselError, QueryResult};
use diesel::row::{Field as _, NamedRow};
use diesel::sql_types;
use diesel::sqlite::{Sqlite, SqliteType};
use diesel::{QueryableByName, RunQueryDsl, SqliteConnection};
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncConnection, SimpleAsyncConnection};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::Limits;
use super::session::{Cell, Datum, Row, Sql};
use crate::error::{Error, Kind, Result};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

#[cfg(not(test))]
type Connection = SyncConnectionWrapper<SqliteConnection>;
#[cfg(test)]
type Connection = SyncConnectionWrapper<SqliteConnection, crate::sim::inline::Inline>;

/// A database file with its connections.
#[derive(Clone)]
pub struct Database {
    writer: Arc<Slot>,
    reader: Arc<Slot>,
}

/// A connection, and whether a transaction was left open on it.
struct Slot {
    connection: Arc<Mutex<Connection>>,
    open: AtomicBool,
}

/// An open transaction.
pub struct Transaction {
    connection: OwnedMutexGuard<Connection>,
    slot: Arc<Slot>,
}

impl Database {
    pub(super) async fn open(path: &str, limits: Limits) -> Result<Self> {
        if !Path::new(path).exists() {
            return Err(Error::config(format!(
                "there is no SQLite database at `{path}`; make it first, or mend `database_url`"
            )));
        }
        let writer = Slot::open(path, limits).await?;
        let reader = Slot::open(path, limits).await?;
        Ok(Self { writer: Arc::new(writer), reader: Arc::new(reader) })
    }

    pub(super) async fn begin(&self) -> Result<Transaction> {
        Transaction::open(&self.writer, "BEGIN IMMEDIATE").await
    }

    pub(super) async fn read(&self) -> Result<Transaction> {
        Transaction::open(&self.reader, "BEGIN").await
    }

    pub(super) async fn migrate(&self) -> Result<()> {
        let mut connection = Arc::clone(&self.writer.connection).lock_owned().await;
        connection
            .spawn_blocking(|connection| {
                connection
                    .run_pending_migrations(MIGRATIONS)
                    .map(|_| ())
                    .map_err(DieselError::QueryBuilderError)
            })
            .await
            .map_err(|error| from_diesel(error).context("the sync tables cannot be made"))
    }
}

impl Slot {
    async fn open(path: &str, limits: Limits) -> Result<Self> {
        let mut connection = Connection::establish(path).await.map_err(|error| {
            Error::unreachable(format!("cannot open the database `{path}`")).with_source(error)
        })?;
        #[cfg(test)]
        connection.spawn_blocking(crate::sim::inline::rule_the_clock).await.map_err(from_diesel)?;
        // WAL lets readers and the host's writers go on; FULL, because an acknowledged record must
        // survive a power cut.
        connection
            .batch_execute(&format!(
                "PRAGMA busy_timeout = {}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                 PRAGMA foreign_keys = ON; PRAGMA recursive_triggers = OFF;",
                limits.connect_within.as_millis()
            ))
            .await
            .map_err(|error| from_diesel(error).context(format!("cannot open `{path}`")))?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), open: AtomicBool::new(false) })
    }
}

impl Drop for Transaction {
    /// One that is dropped half way would keep the host's writers out until we begin another.
    fn drop(&mut self) {
        if !self.slot.open.load(Ordering::Acquire) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let slot = Arc::clone(&self.slot);
        runtime.spawn(async move {
            let mut connection = Arc::clone(&slot.connection).lock_owned().await;
            if slot.open.swap(false, Ordering::AcqRel) {
                // Nobody is left to be told. The next to begin begins anew.
                let _ = connection.batch_execute("ROLLBACK").await;
            }
        });
    }
}

impl Transaction {
    async fn open(slot: &Arc<Slot>, sql: &'static str) -> Result<Self> {
        let mut connection = Arc::clone(&slot.connection).lock_owned().await;
        if slot.open.swap(true, Ordering::AcqRel) {
            // One before us was dropped half way. That there is nothing to roll back is fine.
            let _ = connection.batch_execute("ROLLBACK").await;
        }
        if let Err(error) = connection.batch_execute(sql).await {
            slot.open.store(false, Ordering::Release);
            return Err(from_diesel(error));
        }
        Ok(Self { connection, slot: Arc::clone(slot) })
    }

    async fn run<R: Send + 'static>(
        &mut self,
        task: impl FnOnce(&mut SqliteConnection) -> QueryResult<R> + Send + 'static,
    ) -> Result<R> {
        self.connection.spawn_blocking(task).await.map_err(from_diesel)
    }

    pub(super) async fn query(&mut self, sql: Sql, binds: Vec<Datum>) -> Result<Vec<Row>> {
        self.run(move |connection| Statement::new(&sql, &binds).load::<Row>(connection)).await
    }

    pub(super) async fn execute(&mut self, sql: Sql, binds: Vec<Datum>) -> Result<u64> {
        self.run(move |connection| {
            Statement::new(&sql, &binds).execute(connection).map(|count| count as u64)
        })
        .await
    }

    pub(super) async fn execute_each(&mut self, sql: Sql, binds: Vec<Vec<Datum>>) -> Result<u64> {
        self.run(move |connection| {
            let mut count = 0;
            for binds in &binds {
                count += Statement::new(&sql, binds).execute(connection)? as u64;
            }
            Ok(count)
        })
        .await
    }

    pub(super) async fn query_each(
        &mut self,
        sql: Sql,
        binds: Vec<Vec<Datum>>,
    ) -> Result<Vec<Vec<Row>>> {
        self.run(move |connection| {
            binds.iter().map(|binds| Statement::new(&sql, binds).load::<Row>(connection)).collect()
        })
        .await
    }

    pub(super) async fn batch(&mut self, sql: String) -> Result<()> {
        self.run(move |connection| connection.batch_execute(&sql)).await
    }

    pub(super) async fn commit(mut self) -> Result<()> {
        // A COMMIT that fails (busy, full, a deferred key) leaves the transaction open.
        if let Err(error) = self.batch("COMMIT".to_owned()).await {
            return match self.batch("ROLLBACK".to_owned()).await {
                Ok(()) => {
                    self.slot.open.store(false, Ordering::Release);
                    Err(error)
                }
                Err(_) => Err(error),
            };
        }
        self.slot.open.store(false, Ordering::Release);
        Ok(())
    }

    pub(super) async fn rollback(mut self) -> Result<()> {
        self.batch("ROLLBACK".to_owned()).await?;
        self.slot.open.store(false, Ordering::Release);
        Ok(())
    }
}

/// A statement whose text is made at run time. Arrays are bound as JSON, for `json_each`.
struct Statement<'a> {
    sql: &'a Sql,
    binds: Vec<Bound<'a>>,
}

#[derive(Debug)]
enum Bound<'a> {
    Int(Option<i64>),
    Float(Option<f64>),
    Text(Option<std::borrow::Cow<'a, str>>),
    Bytes(Option<&'a [u8]>),
}

impl<'a> Statement<'a> {
    fn new(sql: &'a Sql, binds: &'a [Datum]) -> Self {
        Self { sql, binds: binds.iter().map(bound).collect() }
    }
}

fn bound(datum: &Datum) -> Bound<'_> {
    fn json<T: serde::Serialize>(values: impl Iterator<Item = T>) -> Bound<'static> {
        let list: Vec<T> = values.collect();
        Bound::Text(Some(serde_json::to_string(&list).unwrap_or_default().into()))
    }
    match datum {
        Datum::Int(value) => Bound::Int(*value),
        Datum::Bool(value) => Bound::Int(Some((*value).into())),
        Datum::Float(value) => Bound::Float(*value),
        Datum::Text(value) => Bound::Text(value.as_deref().map(Into::into)),
        Datum::Bytes(value) => Bound::Bytes(value.as_deref()),
        Datum::Uuid(value) => Bound::Text(value.map(|id| id.0.hyphenated().to_string().into())),
        Datum::Time(value) => Bound::Text(value.map(|time| super::time::format(time.0).into())),
        Datum::Ints(values) => json(values.iter()),
        Datum::Texts(values) => json(values.iter()),
        Datum::Uuids(values) => json(values.iter().map(|id| id.0.hyphenated().to_string())),
        Datum::Blobs(_) => Bound::Bytes(None),
    }
}

impl QueryId for Statement<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Statement<'_> {
    type SqlType = sql_types::Untyped;
}

impl<C> RunQueryDsl<C> for Statement<'_> {}

impl QueryFragment<Sqlite> for Statement<'_> {
    fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        use sql_types::{BigInt, Binary, Double, Nullable, Text};
        for (n, text) in self.sql.texts.iter().enumerate() {
            pass.push_sql(text);
            let Some(bind) = self.sql.binds.get(n) else { continue };
            let bound = self.binds.get(*bind).ok_or_else(|| {
                DieselError::QueryBuilderError(format!("bind ${} is missing", bind + 1).into())
            })?;
            match bound {
                Bound::Int(value) => pass.push_bind_param::<Nullable<BigInt>, _>(value)?,
                Bound::Float(value) => pass.push_bind_param::<Nullable<Double>, _>(value)?,
                Bound::Text(value) => pass.push_bind_param::<Nullable<Text>, _>(value)?,
                Bound::Bytes(value) => pass.push_bind_param::<Nullable<Binary>, _>(value)?,
            }
        }
        Ok(())
    }
}

impl QueryableByName<Sqlite> for Row {
    fn build<'a>(row: &impl NamedRow<'a, Sqlite>) -> deserialize::Result<Self> {
        let mut cells = Vec::with_capacity(row.field_count());
        for n in 0..row.field_count() {
            let field = diesel::row::Row::get(row, n).ok_or("a field is missing")?;
            let Some(value) = field.value() else {
                cells.push(Cell::Null);
                continue;
            };
            cells.push(match value.value_type() {
                None => Cell::Null,
                Some(SqliteType::Long | SqliteType::Integer | SqliteType::SmallInt) => {
                    Cell::Int(<i64 as FromSql<sql_types::BigInt, Sqlite>>::from_sql(value)?)
                }
                Some(SqliteType::Double | SqliteType::Float) => {
                    Cell::Float(<f64 as FromSql<sql_types::Double, Sqlite>>::from_sql(value)?)
                }
                Some(SqliteType::Text) => {
                    Cell::Text(<String as FromSql<sql_types::Text, Sqlite>>::from_sql(value)?)
                }
                Some(SqliteType::Binary) => {
                    Cell::Bytes(<Vec<u8> as FromSql<sql_types::Binary, Sqlite>>::from_sql(value)?)
                }
            });
        }
        Ok(Self(cells))
    }
}

/// What an error of the database leads to.
fn from_diesel(error: DieselError) -> Error {
    use DatabaseErrorKind as K;
    let DieselError::DatabaseError(kind, information) = &error else {
        return Error::failed(error.to_string());
    };
    let text = information.message();
    let has = |list: &[&str]| list.iter().any(|part| text.contains(part));
    let kind = match kind {
        K::UniqueViolation
        | K::ForeignKeyViolation
        | K::NotNullViolation
        | K::CheckViolation
        | K::RestrictViolation
        | K::ExclusionViolation => Kind::Constraint,
        K::SerializationFailure => Kind::Busy,
        _ if has(&["database is locked", "table is locked", "busy"]) => Kind::Busy,
        _ if has(&["disk is full", "disk I/O", "unable to open", "readonly database"]) => {
            Kind::Unreachable
        }
        _ if has(&["constraint failed", "datatype mismatch", "no such column", "too big"]) => {
            Kind::Constraint
        }
        _ => Kind::Failed,
    };
    Error::new(kind, text)
}
