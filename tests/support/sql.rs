//! An independent connection to a server's database: what the host's own programs would use.
//!
//! A name written `@sync_…` is one of the sync tables, wherever the database keeps them.

use std::path::Path;
use std::sync::Mutex;

use diesel::connection::{Connection as _, SimpleConnection as _};
use diesel::deserialize::{FromSql, QueryableByName};
use diesel::row::{Field as _, NamedRow};
use diesel::sql_types::{BigInt, Binary, Double, Text};
use diesel::sqlite::{Sqlite, SqliteConnection, SqliteType};
use diesel::{RunQueryDsl as _, sql_query};
use serde_json::Value;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::services::TestDatabase;

/// A row, by position. Integers, floats and decimals are numbers, booleans are booleans (0 and 1 on
/// SQLite), bytes are hexadecimal, all else is text.
pub(crate) type Row = Vec<Value>;

/// A connection that is opened when it is first used.
pub(crate) struct Sql {
    url: String,
    open: Mutex<Option<Open>>,
}

enum Open {
    Postgres(Postgres),
    Sqlite(SqliteConnection),
}

impl Sql {
    /// To this database.
    pub(crate) fn to(database: &TestDatabase) -> Self {
        Self { url: database.url().to_owned(), open: Mutex::new(None) }
    }

    /// Runs statements, each in a transaction of its own unless they say otherwise.
    pub(crate) fn run(&self, sql: &str) -> Result<(), String> {
        self.with(|open| match open {
            Open::Postgres(postgres) => postgres.run(&sql.replace("@sync_", "branchline.sync_")),
            Open::Sqlite(sqlite) => sqlite
                .batch_execute(&sql.replace("@sync_", "sync_"))
                .map_err(|error| error.to_string()),
        })
    }

    /// Runs one query.
    pub(crate) fn query(&self, sql: &str) -> Result<Vec<Row>, String> {
        self.with(|open| match open {
            Open::Postgres(postgres) => postgres.query(&sql.replace("@sync_", "branchline.sync_")),
            Open::Sqlite(sqlite) => {
                let rows = sql_query(sql.replace("@sync_", "sync_")).load::<SqliteRow>(sqlite);
                rows.map(|rows| rows.into_iter().map(|row| row.0).collect())
                    .map_err(|error| error.to_string())
            }
        })
    }

    /// Closes the connection, so that the database can be copied; the next use opens it again.
    pub(crate) fn close(&self) {
        self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    }

    fn with<T>(&self, act: impl FnOnce(&mut Open) -> Result<T, String>) -> Result<T, String> {
        // A test that panicked elsewhere may still clean up.
        let mut open = self.open.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if open.is_none() {
            *open = Some(Open::to(&self.url)?);
        }
        act(open.as_mut().expect("it has just been opened"))
    }
}

impl Open {
    fn to(url: &str) -> Result<Self, String> {
        let Some(path) = url.strip_prefix("sqlite:") else {
            return Postgres::to(url).map(Self::Postgres);
        };
        let failed =
            |error: &dyn std::fmt::Display| format!("{}: {error}", Path::new(path).display());
        let mut connection = SqliteConnection::establish(path).map_err(|error| failed(&error))?;
        connection
            .batch_execute(
                "PRAGMA busy_timeout = 20000; PRAGMA journal_mode = WAL; \
                 PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;",
            )
            .map_err(|error| failed(&error))?;
        Ok(Self::Sqlite(connection))
    }
}

/// A client with the runtime that serves it.
struct Postgres {
    client: Client,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Postgres {
    fn to(url: &str) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        let client = aside(&runtime, super::services::connect(url))?;
        Ok(Self { client, runtime: Some(runtime) })
    }

    fn run(&self, sql: &str) -> Result<(), String> {
        self.wait(self.client.batch_execute(sql))
    }

    /// The types from a prepared statement, the values as text.
    fn query(&self, sql: &str) -> Result<Vec<Row>, String> {
        let statement = self.wait(self.client.prepare(sql))?;
        let messages = self.wait(self.client.simple_query(sql))?;
        let mut rows = Vec::new();
        for message in messages {
            let SimpleQueryMessage::Row(row) = message else { continue };
            let columns = statement.columns().iter().enumerate();
            rows.push(
                columns.map(|(n, column)| value(column.type_().name(), row.get(n))).collect(),
            );
        }
        Ok(rows)
    }

    fn wait<T: Send>(
        &self,
        future: impl Future<Output = Result<T, tokio_postgres::Error>> + Send,
    ) -> Result<T, String> {
        let runtime = self.runtime.as_ref().expect("it is there until the end");
        aside(runtime, future).map_err(|error| super::services::chain(&error))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Dropped plainly it would wait, which is forbidden within another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Waits on a thread of its own, so that it works within another runtime too.
fn aside<T: Send>(runtime: &tokio::runtime::Runtime, future: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| scope.spawn(|| runtime.block_on(future)).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn value(sql_type: &str, text: Option<&str>) -> Value {
    let Some(text) = text else { return Value::Null };
    let number = match sql_type {
        "bool" => return Value::Bool(text == "t"),
        "int2" | "int4" | "int8" | "oid" => text.parse::<i64>().ok().map(Value::from),
        "float4" | "float8" | "numeric" => text.parse::<f64>().ok().map(Value::from),
        "bytea" => return text.trim_start_matches("\\x").into(),
        _ => None,
    };
    number.unwrap_or_else(|| text.into())
}

struct SqliteRow(Row);

impl QueryableByName<Sqlite> for SqliteRow {
    fn build<'a>(row: &impl NamedRow<'a, Sqlite>) -> diesel::deserialize::Result<Self> {
        let mut values = Vec::new();
        for n in 0..row.field_count() {
            let field = diesel::row::Row::get(row, n).ok_or("a column is missing")?;
            let Some(raw) = field.value() else {
                values.push(Value::Null);
                continue;
            };
            values.push(match raw.value_type() {
                None => Value::Null,
                Some(SqliteType::Integer | SqliteType::SmallInt | SqliteType::Long) => {
                    <i64 as FromSql<BigInt, Sqlite>>::from_sql(raw)?.into()
                }
                Some(SqliteType::Float | SqliteType::Double) => {
                    <f64 as FromSql<Double, Sqlite>>::from_sql(raw)?.into()
                }
                Some(SqliteType::Binary) => {
                    let bytes = <Vec<u8> as FromSql<Binary, Sqlite>>::from_sql(raw)?;
                    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
                }
                Some(SqliteType::Text) => <String as FromSql<Text, Sqlite>>::from_sql(raw)?.into(),
            });
        }
        Ok(Self(values))
    }
}

mod tests {
    use serde_json::json;

    use super::*;
    use crate::support::services;

    #[test]
    fn both_databases_answer_in_the_same_form() {
        for database in [services::new_database("sql"), services::new_sqlite("sql")] {
            let sql = Sql::to(&database);
            sql.run(
                "CREATE TABLE t (a int, b text, c double precision, d varchar(9)); \
                 INSERT INTO t VALUES (1, 'it''s', 0.0, NULL), (2, '', 2.5, 'x')",
            )
            .unwrap();
            let rows =
                sql.query("SELECT a, b, c, d, count(*) FROM t GROUP BY 1, 2, 3, 4 ORDER BY a");
            let expected = [json!([1, "it's", 0.0, null, 1]), json!([2, "", 2.5, "x", 1])];
            assert_eq!(json!(rows.unwrap()), json!(expected), "{}", database.url());
            sql.close();
            assert_eq!(sql.query("SELECT 7 WHERE 1 = 0").unwrap(), Vec::<Row>::new());
            assert!(sql.run("nonsense").is_err());
        }
    }
}
