//! An open transaction: the one interface between the rules of this crate and a database.

use std::future::Future;

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
    /// `double precision` / REAL.
    Float(Option<f64>),
    /// `text` / TEXT.
    Text(Option<String>),
    /// `bytea` / BLOB.
    Bytes(Option<Vec<u8>>),
    /// `timestamptz` / TEXT in RFC 3339 with milliseconds; milliseconds since 1970.
    Time(Option<i64>),
    /// `bigint[]` / a JSON array for `json_each`.
    Ints(Vec<i64>),
    /// `text[]` / a JSON array for `json_each`.
    Texts(Vec<Option<String>>),
    /// `bytea[]`; PostgreSQL only (SQLite writes in loops).
    Blobs(Vec<Option<Vec<u8>>>),
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
    /// A `timestamptz` in milliseconds since 1970 (PostgreSQL; SQLite gives it as text).
    Time(i64),
}

/// A row that came back, by position.
#[derive(Clone, PartialEq, Debug)]
pub struct Row(pub Vec<Cell>);

/// One open transaction.
///
/// SQL text is the same for both databases: binds are `$1`, `$2` … in the order of their first
/// appearance; a name written `@sync_…` is one of ours and is qualified here. Host identifiers are
/// quoted by [`quote`].
pub trait Session: Send {
    /// Which SQL to write.
    fn dialect(&self) -> Dialect;

    /// Runs a statement that yields rows.
    fn query(
        &mut self,
        sql: &str,
        binds: Vec<Datum>,
    ) -> impl Future<Output = Result<Vec<Row>>> + Send;

    /// Runs a statement and counts the rows it changed.
    fn execute(&mut self, sql: &str, binds: Vec<Datum>)
    -> impl Future<Output = Result<u64>> + Send;

    /// Runs one statement for each list of binds: pipelined on PostgreSQL, prepared once on SQLite.
    /// Stops at the first error.
    fn execute_each(
        &mut self,
        sql: &str,
        binds: Vec<Vec<Datum>>,
    ) -> impl Future<Output = Result<u64>> + Send;

    /// Runs several statements without binds, for savepoints, settings and DDL.
    fn batch(&mut self, sql: &str) -> impl Future<Output = Result<()>> + Send;
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

impl From<i64> for Datum {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}
impl From<Option<i64>> for Datum {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}
impl From<&str> for Datum {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}
impl From<String> for Datum {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}
impl From<Option<String>> for Datum {
    fn from(value: Option<String>) -> Self {
        Self::Text(value)
    }
}
impl From<Vec<u8>> for Datum {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(Some(value))
    }
}
impl From<crate::id::ServerId> for Datum {
    fn from(value: crate::id::ServerId) -> Self {
        Self::Text(Some(value.to_string()))
    }
}
impl From<crate::id::RecordId> for Datum {
    fn from(value: crate::id::RecordId) -> Self {
        Self::Text(Some(value.to_string()))
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

    /// A uuid in text form, as one of the crate's ids.
    pub fn id<T: std::str::FromStr>(&self, index: usize) -> Result<T> {
        self.text(index)?.parse().map_err(|_| Error::failed(format!("column {index} is no uuid")))
    }
}
