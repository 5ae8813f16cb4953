//! PostgreSQL through diesel-async: connections, transactions and statements made at run time.

pub mod catalog;
pub mod databases;
pub mod image;
pub mod triggers;

use diesel::QueryableByName;
use diesel::deserialize;
use diesel::pg::{Pg, PgValue};
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::{DatabaseErrorKind, Error as DieselError, QueryResult};
use diesel::row::{Field as _, NamedRow};
use diesel::serialize::{IsNull, Output, ToSql};
use diesel::sql_types;
use diesel_async::pooled_connection::deadpool::{Object, Pool, PoolError};
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig};
use diesel_async::{
    AnsiTransactionManager, AsyncConnection, AsyncMigrationHarness, AsyncPgConnection, RunQueryDsl,
    SimpleAsyncConnection, TransactionManager,
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};
use futures_util::future::{FutureExt, try_join_all};
use std::io::Write as _;
use uuid::Uuid;

use super::Limits;
use super::session::{BindTime, BindUuid, Cell, Datum, Row, Sql};
use crate::error::{Error, Kind, Result};

const MIGRATIONS: EmbeddedMigrations = embed_migrations!("migrations/postgres");

/// Milliseconds between 1970 and PostgreSQL's epoch, 2000-01-01.
const EPOCH_OFFSET_MS: i64 = 946_684_800_000;

/// Statements in flight on one connection at a time.
const PIPELINE_MAX: usize = 256;

/// A database with its connections.
#[derive(Clone)]
pub struct Database {
    pool: Pool<AsyncPgConnection>,
    url: String,
    limits: Limits,
}

/// An open transaction.
pub struct Transaction {
    connection: Object<AsyncPgConnection>,
}

impl Database {
    pub(super) async fn connect(url: &str, limits: Limits) -> Result<Self> {
        let mut config = ManagerConfig::<AsyncPgConnection>::default();
        let settings = session_settings(limits);
        config.custom_setup = Box::new(move |url| {
            let settings = settings.clone();
            async move {
                let mut connection = AsyncPgConnection::establish(url).await?;
                connection
                    .batch_execute(&settings)
                    .await
                    .map_err(diesel::ConnectionError::CouldntSetupConfiguration)?;
                Ok(connection)
            }
            .boxed()
        });
        let manager = AsyncDieselConnectionManager::new_with_config(url, config);
        let pool = Pool::builder(manager)
            .max_size(limits.connections_max)
            .wait_timeout(Some(limits.connect_within))
            .create_timeout(Some(limits.connect_within))
            .recycle_timeout(Some(limits.connect_within))
            .runtime(deadpool::Runtime::Tokio1)
            .build()
            .map_err(|error| {
                Error::config("the connection pool is set up wrongly").with_source(error)
            })?;
        let database = Self { pool, url: url.to_owned(), limits };
        drop(database.connection().await?);
        Ok(database)
    }

    async fn connection(&self) -> Result<Object<AsyncPgConnection>> {
        self.pool.get().await.map_err(|error| {
            let address = super::without_password(&self.url);
            match error {
                PoolError::Timeout(_) => Error::unreachable(format!(
                    "no connection to the database `{address}` within {}; is it up, and does it have connections left?",
                    humantime::format_duration(self.limits.connect_within)
                )),
                error => Error::unreachable(format!("cannot connect to the database `{address}`"))
                    .with_source(error),
            }
        })
    }

    pub(super) async fn begin(&self) -> Result<Transaction> {
        self.open("BEGIN ISOLATION LEVEL READ COMMITTED").await
    }

    pub(super) async fn read(&self) -> Result<Transaction> {
        self.open("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await
    }

    async fn open(&self, sql: &str) -> Result<Transaction> {
        let mut connection = self.connection().await?;
        AnsiTransactionManager::begin_transaction_sql(&mut *connection, sql)
            .await
            .map_err(from_diesel)?;
        Ok(Transaction { connection })
    }

    pub(super) async fn migrate(&self) -> Result<()> {
        let mut connection = AsyncPgConnection::establish(&self.url).await.map_err(|error| {
            Error::unreachable("cannot connect to the database").with_source(error)
        })?;
        // Ours has a ledger of its own, in our schema: the host's stays the host's.
        connection
            .batch_execute(
                "SELECT pg_advisory_lock(7310579650834327652); \
                 CREATE SCHEMA IF NOT EXISTS branchline; SET search_path = branchline;",
            )
            .await
            .map_err(from_diesel)?;
        let mut harness = AsyncMigrationHarness::new(connection);
        harness
            .run_pending_migrations(MIGRATIONS)
            .map_err(|error| Error::failed("the sync tables cannot be made").with_source(error))?;
        Ok(())
    }
}

/// Settings of our connections, so that every value is read and written in one form.
fn session_settings(limits: Limits) -> String {
    format!(
        "SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET timezone = 'UTC'; \
         SET bytea_output = 'hex'; SET extra_float_digits = 1; SET lc_monetary = 'C'; SET client_min_messages = warning; \
         SET statement_timeout = {}; SET lock_timeout = {}; SET row_security = off; \
         SET idle_in_transaction_session_timeout = {}",
        limits.statement_within.as_millis(),
        limits.lock_within.as_millis(),
        limits.statement_within.as_millis(),
    )
}

impl Transaction {
    pub(super) async fn query(&mut self, sql: &Sql, binds: Vec<Datum>) -> Result<Vec<Row>> {
        Statement { sql, binds: &binds }
            .load::<Row>(&mut *self.connection)
            .await
            .map_err(from_diesel)
    }

    pub(super) async fn execute(&mut self, sql: &Sql, binds: Vec<Datum>) -> Result<u64> {
        let count = Statement { sql, binds: &binds }
            .execute(&mut *self.connection)
            .await
            .map_err(from_diesel)?;
        Ok(count as u64)
    }

    pub(super) async fn execute_each(&mut self, sql: &Sql, binds: Vec<Vec<Datum>>) -> Result<u64> {
        let mut count = 0;
        for window in binds.chunks(PIPELINE_MAX) {
            let connection: &AsyncPgConnection = &self.connection;
            let counts = try_join_all(window.iter().map(|binds| {
                let mut connection = connection;
                diesel_async::AsyncConnectionCore::execute_returning_count(
                    &mut connection,
                    Statement { sql, binds },
                )
            }))
            .await
            .map_err(from_diesel)?;
            count += counts.into_iter().map(|count| count as u64).sum::<u64>();
        }
        Ok(count)
    }

    pub(super) async fn query_each(
        &mut self,
        sql: &Sql,
        binds: Vec<Vec<Datum>>,
    ) -> Result<Vec<Vec<Row>>> {
        let mut answers = Vec::with_capacity(binds.len());
        for binds in binds {
            answers.push(self.query(sql, binds).await?);
        }
        Ok(answers)
    }

    pub(super) async fn batch(&mut self, sql: &str) -> Result<()> {
        self.connection.batch_execute(sql).await.map_err(from_diesel)
    }

    pub(super) async fn commit(mut self) -> Result<()> {
        AnsiTransactionManager::commit_transaction(&mut *self.connection).await.map_err(from_diesel)
    }

    pub(super) async fn rollback(mut self) -> Result<()> {
        AnsiTransactionManager::rollback_transaction(&mut *self.connection)
            .await
            .map_err(from_diesel)
    }
}

/// A statement whose text is made at run time: cached by its text, unlike `sql_query`.
struct Statement<'a> {
    sql: &'a Sql,
    binds: &'a [Datum],
}

impl QueryId for Statement<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Statement<'_> {
    type SqlType = sql_types::Untyped;
}

impl QueryFragment<Pg> for Statement<'_> {
    fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        for (n, text) in self.sql.texts.iter().enumerate() {
            pass.push_sql(text);
            let Some(bind) = self.sql.binds.get(n) else { continue };
            let datum = self.binds.get(*bind).ok_or_else(|| {
                DieselError::QueryBuilderError(format!("bind ${} is missing", bind + 1).into())
            })?;
            push(datum, &mut pass)?;
        }
        Ok(())
    }
}

fn push<'b>(datum: &'b Datum, pass: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
    use sql_types::{Array, BigInt, Binary, Bool, Double, Nullable, Text, Timestamptz};
    match datum {
        Datum::Int(value) => pass.push_bind_param::<Nullable<BigInt>, _>(value),
        Datum::Bool(value) => pass.push_bind_param::<Bool, _>(value),
        Datum::Float(value) => pass.push_bind_param::<Nullable<Double>, _>(value),
        Datum::Text(value) => pass.push_bind_param::<Nullable<Text>, _>(value),
        Datum::Bytes(value) => pass.push_bind_param::<Nullable<Binary>, _>(value),
        Datum::Uuid(value) => pass.push_bind_param::<Nullable<sql_types::Uuid>, _>(value),
        Datum::Time(value) => pass.push_bind_param::<Nullable<Timestamptz>, _>(value),
        Datum::Ints(values) => pass.push_bind_param::<Array<BigInt>, _>(values),
        Datum::Texts(values) => pass.push_bind_param::<Array<Nullable<Text>>, _>(values),
        Datum::Uuids(values) => pass.push_bind_param::<Array<sql_types::Uuid>, _>(values),
        Datum::Blobs(values) => pass.push_bind_param::<Array<Nullable<Binary>>, _>(values),
    }
}

impl ToSql<sql_types::Uuid, Pg> for BindUuid {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> diesel::serialize::Result {
        out.write_all(self.0.as_bytes())?;
        Ok(IsNull::No)
    }
}

impl ToSql<sql_types::Timestamptz, Pg> for BindTime {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> diesel::serialize::Result {
        let micros = self.0.saturating_sub(EPOCH_OFFSET_MS).saturating_mul(1_000);
        out.write_all(&micros.to_be_bytes())?;
        Ok(IsNull::No)
    }
}

impl QueryableByName<Pg> for Row {
    fn build<'a>(row: &impl NamedRow<'a, Pg>) -> deserialize::Result<Self> {
        let mut cells = Vec::with_capacity(row.field_count());
        for n in 0..row.field_count() {
            let field = diesel::row::Row::get(row, n).ok_or("a field is missing")?;
            cells.push(match field.value() {
                None => Cell::Null,
                Some(value) => cell(&value)?,
            });
        }
        Ok(Self(cells))
    }
}

/// Reads the few types that our own statements yield; they cast everything else to text.
fn cell(value: &PgValue<'_>) -> deserialize::Result<Cell> {
    let bytes = value.as_bytes();
    Ok(match value.get_oid().get() {
        oid::BOOL => Cell::Int(i64::from(array::<1>(bytes)?[0])),
        oid::INT8 => Cell::Int(i64::from_be_bytes(array(bytes)?)),
        oid::INT4 => Cell::Int(i32::from_be_bytes(array(bytes)?).into()),
        oid::INT2 => Cell::Int(i16::from_be_bytes(array(bytes)?).into()),
        oid::OID => Cell::Int(u32::from_be_bytes(array(bytes)?).into()),
        oid::FLOAT8 => Cell::Float(f64::from_be_bytes(array(bytes)?)),
        oid::FLOAT4 => Cell::Float(f32::from_be_bytes(array(bytes)?).into()),
        oid::BYTEA => Cell::Bytes(bytes.to_vec()),
        oid::UUID => Cell::Uuid(Uuid::from_bytes(array(bytes)?)),
        oid::TIMESTAMPTZ => {
            let micros = i64::from_be_bytes(array(bytes)?);
            Cell::Time(micros.div_euclid(1_000) + EPOCH_OFFSET_MS)
        }
        oid::CHAR
        | oid::NAME
        | oid::TEXT
        | oid::VARCHAR
        | oid::BPCHAR
        | oid::JSON
        | oid::UNKNOWN => Cell::Text(String::from_utf8(bytes.to_vec())?),
        other => return Err(format!("a statement yields type {other}; cast it to text").into()),
    })
}

fn array<const N: usize>(bytes: &[u8]) -> deserialize::Result<[u8; N]> {
    Ok(bytes.try_into()?)
}

/// Type numbers of `pg_type`, fixed for ever.
mod oid {
    pub(super) const BOOL: u32 = 16;
    pub(super) const BYTEA: u32 = 17;
    pub(super) const CHAR: u32 = 18;
    pub(super) const NAME: u32 = 19;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT4: u32 = 23;
    pub(super) const TEXT: u32 = 25;
    pub(super) const OID: u32 = 26;
    pub(super) const JSON: u32 = 114;
    pub(super) const FLOAT4: u32 = 700;
    pub(super) const FLOAT8: u32 = 701;
    pub(super) const UNKNOWN: u32 = 705;
    pub(super) const BPCHAR: u32 = 1042;
    pub(super) const VARCHAR: u32 = 1043;
    pub(super) const TIMESTAMPTZ: u32 = 1184;
    pub(super) const UUID: u32 = 2950;
}

/// What an error of the database leads to. diesel-async does not hand on SQLSTATE, so the classes
/// that it does not name are told by their text; what is told wrongly is a plain failure.
fn from_diesel(error: DieselError) -> Error {
    use DatabaseErrorKind as K;
    let kind = match &error {
        DieselError::DatabaseError(kind, information) => match kind {
            K::UniqueViolation
            | K::ForeignKeyViolation
            | K::NotNullViolation
            | K::CheckViolation
            | K::RestrictViolation
            | K::ExclusionViolation => Kind::Constraint,
            K::SerializationFailure => Kind::Busy,
            K::ClosedConnection | K::UnableToSendCommand => Kind::Unreachable,
            _ => kind_by_text(information.message()),
        },
        DieselError::BrokenTransactionManager => Kind::Unreachable,
        _ => Kind::Failed,
    };
    let message = match &error {
        DieselError::DatabaseError(_, information) => {
            // Details and hints may hold a row's values: they stay out.
            let place = [
                information.table_name(),
                information.column_name(),
                information.constraint_name(),
            ]
            .into_iter()
            .flatten()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", ");
            let text = without_values(information.message());
            if place.is_empty() { text } else { format!("{text} ({place})") }
        }
        other => other.to_string(),
    };
    Error::new(kind, message)
}

fn kind_by_text(text: &str) -> Kind {
    const BUSY: &[&str] = &["deadlock detected", "lock timeout", "could not serialize"];
    const REFUSED: &[&str] = &[
        "invalid input",
        "out of range",
        "value too long",
        "malformed",
        "violates",
        "cannot cast",
        "does not exist",
        "numeric field overflow",
        "invalid byte sequence",
        "date/time field value",
        "generated column",
        "can only be updated to DEFAULT",
        "cannot insert a non-DEFAULT",
    ];
    const AWAY: &[&str] = &[
        "terminating connection",
        "the database system is",
        "too many clients",
        "remaining connection slots",
        "read-only transaction",
        "No space left",
        "could not extend",
        "connection to server",
        "connection closed",
    ];
    let has = |list: &[&str]| list.iter().any(|part| text.contains(part));
    if has(BUSY) {
        Kind::Busy
    } else if has(AWAY) {
        Kind::Unreachable
    } else if has(REFUSED) {
        Kind::Constraint
    } else {
        Kind::Failed
    }
}

/// PostgreSQL quotes the offending value in some messages: `invalid input syntax for type integer:
/// "…"`. The value goes.
fn without_values(message: &str) -> String {
    match message.split_once(": \"") {
        Some((what, _)) => what.to_owned(),
        None => message.to_owned(),
    }
}
