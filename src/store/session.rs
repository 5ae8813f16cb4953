//! An open transaction: the one interface between the rules of this crate and a database.
//!
//! SQL text is the same for both databases where it can be: binds are `$1`, `$2` …, each as often
//! as it is needed; a name written `@sync_…` is one of ours and is qualified here. Host identifiers
//! are quoted by [`quote`]; nothing that came from another server is ever part of SQL text.
//!
//! Statements are prepared once for each text (diesel's cache), so a text must not hold values.

use std::fmt::Write as _;

use uuid::Uuid;

use super::{postgres, sqlite};
use crate::error::{Error, Result};

/// Which SQL the other side speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Dialect {
    /// PostgreSQL 13 or later.
    Postgres,
    /// SQLite 3.35 or later.
    Sqlite,
}

/// A bind. The type is always known, also of a NULL, so that a statement is prepared once.
#[derive(Clone, PartialEq, Debug)]
pub enum Datum {
    /// `bigint` / INTEGER.
    Int(Option<i64>),
    /// `boolean` / INTEGER 0 or 1.
    Bool(bool),
    /// `double precision` / REAL.
    Float(Option<f64>),
    /// `text` / TEXT.
    Text(Option<String>),
    /// `bytea` / BLOB.
    Bytes(Option<Vec<u8>>),
    /// `uuid` / TEXT in lower case.
    Uuid(Option<BindUuid>),
    /// `timestamptz` / TEXT in RFC 3339 with milliseconds; milliseconds since 1970.
    Time(Option<BindTime>),
    /// `bigint[]` / a JSON array for `json_each`.
    Ints(Vec<i64>),
    /// `text[]` / a JSON array for `json_each`.
    Texts(Vec<Option<String>>),
    /// `uuid[]` / a JSON array for `json_each`.
    Uuids(Vec<BindUuid>),
    /// `bytea[]`; PostgreSQL only (SQLite writes in loops).
    Blobs(Vec<Option<Vec<u8>>>),
}

/// A uuid as a bind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BindUuid(pub Uuid);

/// Milliseconds since 1970 as a bind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BindTime(pub i64);

impl Datum {
    /// A time in milliseconds since 1970.
    #[must_use]
    pub fn time(millis: i64) -> Self {
        Self::Time(Some(BindTime(millis)))
    }
}

/// A value that came back.
#[derive(Clone, PartialEq, Debug)]
pub enum Cell {
    /// NULL.
    Null,
    /// An integer or boolean.
    Int(i64),
    /// A float.
    Float(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A uuid (PostgreSQL; SQLite gives it as text).
    Uuid(Uuid),
    /// A `timestamptz` in milliseconds since 1970 (PostgreSQL; SQLite gives it as text).
    Time(i64),
}

/// A row that came back, by position.
#[derive(Clone, PartialEq, Debug)]
pub struct Row(pub Vec<Cell>);

/// One open transaction. Dropped without [`commit`](Session::commit) it is rolled back (on
/// PostgreSQL by closing the connection).
pub struct Session {
    inner: Inner,
}

enum Inner {
    Postgres(Box<postgres::Transaction>),
    Sqlite(sqlite::Transaction),
}

/// SQL text cut at its binds: `texts[0] bind[0] texts[1] …`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sql {
    pub(super) texts: Vec<String>,
    pub(super) binds: Vec<usize>,
}

impl Session {
    pub(super) fn postgres(transaction: postgres::Transaction) -> Self {
        Self { inner: Inner::Postgres(Box::new(transaction)) }
    }

    pub(super) fn sqlite(transaction: sqlite::Transaction) -> Self {
        Self { inner: Inner::Sqlite(transaction) }
    }

    /// Which SQL to write.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        match &self.inner {
            Inner::Postgres(_) => Dialect::Postgres,
            Inner::Sqlite(_) => Dialect::Sqlite,
        }
    }

    /// Runs a statement that yields rows.
    pub async fn query(&mut self, sql: &str, binds: Vec<Datum>) -> Result<Vec<Row>> {
        #[cfg(test)]
        crate::sim::seams::statement().await?;
        let sql = Sql::parse(sql, self.dialect());
        match &mut self.inner {
            Inner::Postgres(transaction) => transaction.query(&sql, binds).await,
            Inner::Sqlite(transaction) => transaction.query(sql, binds).await,
        }
    }

    /// Runs a statement that yields at most one row that matters.
    pub async fn query_opt(&mut self, sql: &str, binds: Vec<Datum>) -> Result<Option<Row>> {
        Ok(self.query(sql, binds).await?.into_iter().next())
    }

    /// Runs a statement that always yields a row (an aggregate, a RETURNING).
    pub async fn query_one(&mut self, sql: &str, binds: Vec<Datum>) -> Result<Row> {
        self.query_opt(sql, binds).await?.ok_or_else(|| Error::failed("a query yielded no row"))
    }

    /// Runs a statement and counts the rows it changed.
    pub async fn execute(&mut self, sql: &str, binds: Vec<Datum>) -> Result<u64> {
        #[cfg(test)]
        crate::sim::seams::statement().await?;
        let sql = Sql::parse(sql, self.dialect());
        match &mut self.inner {
            Inner::Postgres(transaction) => transaction.execute(&sql, binds).await,
            Inner::Sqlite(transaction) => transaction.execute(sql, binds).await,
        }
    }

    /// Runs one statement for each list of binds: pipelined on PostgreSQL, in one hop on SQLite.
    /// Stops at the first error. Counts the rows that were changed by all of them.
    pub async fn execute_each(&mut self, sql: &str, binds: Vec<Vec<Datum>>) -> Result<u64> {
        #[cfg(test)]
        crate::sim::seams::statement().await?;
        let sql = Sql::parse(sql, self.dialect());
        match &mut self.inner {
            Inner::Postgres(transaction) => transaction.execute_each(&sql, binds).await,
            Inner::Sqlite(transaction) => transaction.execute_each(sql, binds).await,
        }
    }

    /// Like [`execute_each`](Self::execute_each), for statements that yield rows: one list of rows
    /// for each list of binds.
    pub async fn query_each(&mut self, sql: &str, binds: Vec<Vec<Datum>>) -> Result<Vec<Vec<Row>>> {
        #[cfg(test)]
        crate::sim::seams::statement().await?;
        let sql = Sql::parse(sql, self.dialect());
        match &mut self.inner {
            Inner::Postgres(transaction) => transaction.query_each(&sql, binds).await,
            Inner::Sqlite(transaction) => transaction.query_each(sql, binds).await,
        }
    }

    /// Runs several statements without binds, for savepoints, settings and DDL.
    pub async fn batch(&mut self, sql: &str) -> Result<()> {
        #[cfg(test)]
        crate::sim::seams::statement().await?;
        let text = qualify(sql, self.dialect());
        match &mut self.inner {
            Inner::Postgres(transaction) => transaction.batch(&text).await,
            Inner::Sqlite(transaction) => transaction.batch(text).await,
        }
    }

    /// Commits what was done; after an error takes it all back, and returns that error.
    ///
    /// # Errors
    /// The one in `done`, else that of the COMMIT.
    pub async fn end<T>(self, done: Result<T>) -> Result<T> {
        match done {
            Ok(value) => {
                self.commit().await?;
                Ok(value)
            }
            Err(error) => {
                // The first error is the one that matters.
                let _ = self.rollback().await;
                Err(error)
            }
        }
    }

    /// Commits. An error of kind [`Unreachable`](crate::Kind::Unreachable) leaves open whether it
    /// did: everything done in a transaction is safe to do again.
    pub async fn commit(self) -> Result<()> {
        #[cfg(test)]
        crate::sim::seams::statement().await?;
        match self.inner {
            Inner::Postgres(transaction) => transaction.commit().await,
            Inner::Sqlite(transaction) => transaction.commit().await,
        }
    }

    /// Rolls back and keeps the connection for the next transaction.
    pub async fn rollback(self) -> Result<()> {
        match self.inner {
            Inner::Postgres(transaction) => transaction.rollback().await,
            Inner::Sqlite(transaction) => transaction.rollback().await,
        }
    }
}

/// Replaces `@sync_…` by what the database calls it.
fn qualify(sql: &str, dialect: Dialect) -> String {
    let mut text = String::with_capacity(sql.len());
    for (part, quoted) in Parts(sql) {
        match dialect {
            _ if quoted => text.push_str(part),
            Dialect::Postgres => text.push_str(&part.replace("@sync_", "branchline.sync_")),
            Dialect::Sqlite => text.push_str(&part.replace("@sync_", "sync_")),
        }
    }
    text
}

/// SQL text by its parts: what stands in quotes (a literal, a name of the host's, which may hold
/// anything), and what stands between.
struct Parts<'a>(&'a str);

impl<'a> Iterator for Parts<'a> {
    type Item = (&'a str, bool);

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.0.chars().next()?;
        let quote = |c: char| c == '\'' || c == '"';
        let quoted = quote(first);
        // A doubled quote within ends one part and begins the next: it is quoted all the same.
        let end = match quoted {
            true => self.0.get(1..).and_then(|rest| rest.find(first)).map(|n| n + 2),
            false => self.0.find(quote),
        };
        let (part, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest;
        Some((part, quoted))
    }
}

impl Sql {
    /// Cuts `sql` at its `$n`.
    pub(super) fn parse(sql: &str, dialect: Dialect) -> Self {
        let sql = qualify(sql, dialect);
        let (mut texts, mut binds, mut text) = (Vec::new(), Vec::new(), String::new());
        for (part, quoted) in Parts(&sql) {
            if quoted {
                text.push_str(part);
                continue;
            }
            let mut chars = part.chars().peekable();
            while let Some(c) = chars.next() {
                if c != '$' || !chars.peek().is_some_and(char::is_ascii_digit) {
                    text.push(c);
                    continue;
                }
                let mut number = 0_usize;
                while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
                    number = number.saturating_mul(10).saturating_add(digit as usize);
                    chars.next();
                }
                texts.push(std::mem::take(&mut text));
                binds.push(number.saturating_sub(1));
            }
        }
        texts.push(text);
        Self { texts, binds }
    }
}

/// Quotes an identifier.
#[must_use]
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a text as an SQL literal, for DDL only: everything else is bound.
#[must_use]
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// `$first, $first+1, …`, `count` of them.
#[must_use]
pub fn placeholders(first: usize, count: usize) -> String {
    let mut text = String::new();
    for n in first..first + count {
        let _ = write!(text, "{}${n}", if n == first { "" } else { ", " });
    }
    text
}

impl Dialect {
    /// `expr` is one of the array bound as `$n`: `expr = ANY($n)`, or `IN (SELECT … json_each)`.
    #[must_use]
    pub fn any(self, expr: &str, n: usize) -> String {
        match self {
            Self::Postgres => format!("{expr} = ANY(${n})"),
            Self::Sqlite => format!("{expr} IN (SELECT value FROM json_each(${n}))"),
        }
    }
}

macro_rules! datum_from {
    ($($from:ty => $variant:ident($make:expr)),* $(,)?) => {$(
        impl From<$from> for Datum {
            fn from(value: $from) -> Self {
                #[allow(clippy::redundant_closure_call)]
                Self::$variant(($make)(value))
            }
        }
    )*};
}
datum_from! {
    i64 => Int(Some),
    Option<i64> => Int(|value| value),
    i32 => Int(|value: i32| Some(value.into())),
    u32 => Int(|value: u32| Some(value.into())),
    bool => Bool(|value| value),
    &str => Text(|value: &str| Some(value.to_owned())),
    String => Text(Some),
    Option<String> => Text(|value| value),
    Vec<u8> => Bytes(Some),
    Option<Vec<u8>> => Bytes(|value| value),
    Uuid => Uuid(|value| Some(BindUuid(value))),
    Option<Uuid> => Uuid(|value: Option<Uuid>| value.map(BindUuid)),
    crate::id::ServerId => Uuid(|value: crate::id::ServerId| Some(BindUuid(value.0))),
    crate::id::RecordId => Uuid(|value: crate::id::RecordId| Some(BindUuid(value.0))),
    Vec<i64> => Ints(|value| value),
    Vec<Uuid> => Uuids(|value: Vec<Uuid>| value.into_iter().map(BindUuid).collect()),
}

impl From<Vec<String>> for Datum {
    fn from(value: Vec<String>) -> Self {
        Self::Texts(value.into_iter().map(Some).collect())
    }
}

impl Row {
    fn cell(&self, index: usize) -> Result<&Cell> {
        self.0.get(index).ok_or_else(|| Error::failed(format!("a row has no column {index}")))
    }

    /// An integer, or an error when it is NULL or no integer.
    pub fn int(&self, index: usize) -> Result<i64> {
        self.opt_int(index)?.ok_or_else(|| Error::failed(format!("column {index} is NULL")))
    }

    /// An integer or NULL.
    pub fn opt_int(&self, index: usize) -> Result<Option<i64>> {
        match self.cell(index)? {
            Cell::Null => Ok(None),
            Cell::Int(value) => Ok(Some(*value)),
            _ => Err(Error::failed(format!("column {index} is no integer"))),
        }
    }

    /// A boolean, 0 and 1 on SQLite.
    pub fn flag(&self, index: usize) -> Result<bool> {
        Ok(self.int(index)? != 0)
    }

    /// Text, or an error when it is NULL or no text.
    pub fn text(&self, index: usize) -> Result<&str> {
        self.opt_text(index)?.ok_or_else(|| Error::failed(format!("column {index} is NULL")))
    }

    /// Text or NULL.
    pub fn opt_text(&self, index: usize) -> Result<Option<&str>> {
        match self.cell(index)? {
            Cell::Null => Ok(None),
            Cell::Text(value) => Ok(Some(value)),
            _ => Err(Error::failed(format!("column {index} is no text"))),
        }
    }

    /// Bytes, or an error when they are NULL.
    pub fn bytes(&self, index: usize) -> Result<&[u8]> {
        self.opt_bytes(index)?.ok_or_else(|| Error::failed(format!("column {index} is NULL")))
    }

    /// Bytes or NULL.
    pub fn opt_bytes(&self, index: usize) -> Result<Option<&[u8]>> {
        match self.cell(index)? {
            Cell::Null => Ok(None),
            Cell::Bytes(value) => Ok(Some(value)),
            Cell::Text(value) => Ok(Some(value.as_bytes())),
            _ => Err(Error::failed(format!("column {index} is no bytes"))),
        }
    }

    /// A uuid, or an error when it is NULL or none.
    pub fn uuid(&self, index: usize) -> Result<Uuid> {
        self.opt_uuid(index)?.ok_or_else(|| Error::failed(format!("column {index} is NULL")))
    }

    /// A uuid or NULL.
    pub fn opt_uuid(&self, index: usize) -> Result<Option<Uuid>> {
        match self.cell(index)? {
            Cell::Null => Ok(None),
            Cell::Uuid(value) => Ok(Some(*value)),
            Cell::Text(text) => Uuid::parse_str(text)
                .map(Some)
                .map_err(|_| Error::failed(format!("column {index} is no uuid"))),
            _ => Err(Error::failed(format!("column {index} is no uuid"))),
        }
    }

    /// A time in milliseconds since 1970, or NULL.
    pub fn opt_time(&self, index: usize) -> Result<Option<i64>> {
        match self.cell(index)? {
            Cell::Null => Ok(None),
            Cell::Time(value) => Ok(Some(*value)),
            Cell::Text(text) => super::time::parse(text)
                .map(Some)
                .ok_or_else(|| Error::failed(format!("column {index} is no time"))),
            _ => Err(Error::failed(format!("column {index} is no time"))),
        }
    }

    /// A time in milliseconds since 1970, or an error when it is NULL.
    pub fn time(&self, index: usize) -> Result<i64> {
        self.opt_time(index)?.ok_or_else(|| Error::failed(format!("column {index} is NULL")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sql_is_cut_at_its_binds_and_our_names_are_qualified() {
        let sql = Sql::parse("SELECT $2, $1 FROM @sync_record WHERE a = $10", Dialect::Postgres);
        assert_eq!(sql.texts, ["SELECT ", ", ", " FROM branchline.sync_record WHERE a = ", ""]);
        assert_eq!(sql.binds, [1, 0, 9]);
        let sql = Sql::parse("SELECT 1 FROM @sync_record", Dialect::Sqlite);
        assert_eq!(sql.texts, ["SELECT 1 FROM sync_record"]);
    }

    #[test]
    fn what_stands_in_quotes_is_left_alone() {
        let sql =
            r#"SELECT "a$1""$2@sync_x", '$3 "' || $1 FROM @sync_row AS "it's" WHERE "b'" = $2"#;
        let sql = Sql::parse(sql, Dialect::Postgres);
        let between = r#" FROM branchline.sync_row AS "it's" WHERE "b'" = "#;
        assert_eq!(sql.texts, [r#"SELECT "a$1""$2@sync_x", '$3 "' || "#, between, ""]);
        assert_eq!(sql.binds, [0, 1]);
        let cut = Sql::parse("SELECT 'é$1", Dialect::Sqlite);
        assert_eq!(cut.texts, ["SELECT 'é$1"]);
    }

    #[test]
    fn identifiers_and_literals_are_quoted() {
        assert_eq!(quote("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(placeholders(3, 2), "$3, $4");
    }
}
