//! Many rows in one statement: `unnest` of arrays on PostgreSQL, a prepared statement run for each
//! row in one hop on SQLite.

use std::fmt::Write as _;

use super::session::{Datum, Dialect, Session, placeholders};
use crate::error::Result;

/// A column of a bulk statement and its PostgreSQL type.
pub type Column<'a> = (&'a str, &'a str);

/// Rows of a bulk insert at a time: bounds the arrays that are built at once.
const ROWS_MAX: usize = 5_000;

/// Runs `INSERT INTO table (columns) … suffix` for all rows; a row has one datum for each column.
/// `suffix` is an ON CONFLICT clause or empty.
pub async fn insert(
    session: &mut Session,
    table: &str,
    columns: &[Column<'_>],
    rows: Vec<Vec<Datum>>,
    suffix: &str,
) -> Result<u64> {
    let names = columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    match session.dialect() {
        Dialect::Sqlite => {
            let sql = format!(
                "INSERT INTO {table} ({names}) VALUES ({}) {suffix}",
                placeholders(1, columns.len())
            );
            session.execute_each(&sql, rows).await
        }
        Dialect::Postgres => {
            let sql = format!(
                "INSERT INTO {table} ({names}) SELECT * FROM {} {suffix}",
                unnest(columns.iter().map(|(_, kind)| *kind), 1)
            );
            let mut count = 0;
            let mut rows = rows.into_iter();
            loop {
                let some: Vec<_> = rows.by_ref().take(ROWS_MAX).collect();
                if some.is_empty() {
                    return Ok(count);
                }
                count += session.execute(&sql, arrays(columns.len(), some)).await?;
            }
        }
    }
}

/// Runs `UPDATE table SET … WHERE keys` for all rows. `set` and `keys` are columns; a row has the
/// datums of `set`, then those of `keys`. `also` is added to the WHERE.
pub async fn update(
    session: &mut Session,
    table: &str,
    set: &[Column<'_>],
    keys: &[Column<'_>],
    rows: Vec<Vec<Datum>>,
    also: &str,
) -> Result<u64> {
    if rows.is_empty() {
        return Ok(0);
    }
    match session.dialect() {
        Dialect::Sqlite => {
            let assign = assignments(set, |n| format!("${}", n + 1));
            let matches = conditions(keys, |n| format!("${}", set.len() + n + 1));
            let sql = format!("UPDATE {table} AS t SET {assign} WHERE {matches} {also}");
            session.execute_each(&sql, rows).await
        }
        Dialect::Postgres => {
            let assign = assignments(set, |n| format!("u.c{n}"));
            let matches = conditions(keys, |n| format!("u.c{}", set.len() + n));
            let all = set.iter().chain(keys);
            let sql = format!(
                "UPDATE {table} AS t SET {assign} FROM {} AS u({}) WHERE {matches} {also}",
                unnest(all.clone().map(|(_, kind)| *kind), 1),
                (0..all.count()).map(|n| format!("c{n}")).collect::<Vec<_>>().join(", "),
            );
            session.execute(&sql, arrays(set.len() + keys.len(), rows)).await
        }
    }
}

fn assignments(columns: &[Column<'_>], value: impl Fn(usize) -> String) -> String {
    let list = columns.iter().enumerate().map(|(n, (name, _))| format!("{name} = {}", value(n)));
    list.collect::<Vec<_>>().join(", ")
}

fn conditions(columns: &[Column<'_>], value: impl Fn(usize) -> String) -> String {
    let list = columns.iter().enumerate().map(|(n, (name, _))| format!("t.{name} = {}", value(n)));
    list.collect::<Vec<_>>().join(" AND ")
}

/// `unnest($1::text[]::uuid[], …)` with binds from `first` on.
pub fn unnest<'a>(kinds: impl Iterator<Item = &'a str>, first: usize) -> String {
    let mut text = "unnest(".to_owned();
    for (n, kind) in kinds.enumerate() {
        let comma = if n == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}${}::{kind}[]", first + n);
    }
    text.push(')');
    text
}

/// Turns rows of datums into one array for each column. Integers without NULLs, bytes and uuids
/// stay what they are; everything else goes as text and is cast by the statement.
pub fn arrays(width: usize, rows: Vec<Vec<Datum>>) -> Vec<Datum> {
    let mut columns: Vec<Vec<Datum>> = (0..width).map(|_| Vec::with_capacity(rows.len())).collect();
    for row in rows {
        for (column, datum) in columns.iter_mut().zip(row) {
            column.push(datum);
        }
    }
    columns.into_iter().map(array).collect()
}

fn array(column: Vec<Datum>) -> Datum {
    let all = |is: fn(&Datum) -> bool| column.iter().all(is);
    if all(|datum| matches!(datum, Datum::Bytes(_))) {
        let bytes = column.into_iter().map(|datum| match datum {
            Datum::Bytes(bytes) => bytes,
            _ => None,
        });
        return Datum::Blobs(bytes.collect());
    }
    if all(|datum| matches!(datum, Datum::Int(Some(_)))) {
        let ints = column.iter().filter_map(|datum| match datum {
            Datum::Int(value) => *value,
            _ => None,
        });
        return Datum::Ints(ints.collect());
    }
    if all(|datum| matches!(datum, Datum::Uuid(Some(_)))) {
        let uuids = column.iter().filter_map(|datum| match datum {
            Datum::Uuid(value) => *value,
            _ => None,
        });
        return Datum::Uuids(uuids.collect());
    }
    Datum::Texts(column.into_iter().map(text).collect())
}

fn text(datum: Datum) -> Option<String> {
    match datum {
        Datum::Int(value) => value.map(|value| value.to_string()),
        Datum::Bool(value) => Some(value.to_string()),
        Datum::Float(value) => value.map(|value| value.to_string()),
        Datum::Text(value) => value,
        Datum::Uuid(value) => value.map(|id| id.0.to_string()),
        Datum::Time(value) => value.map(|time| super::time::format(time.0)),
        Datum::Bytes(value) => value.map(|bytes| {
            bytes.iter().fold("\\x".to_owned(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
        }),
        Datum::Ints(_) | Datum::Texts(_) | Datum::Uuids(_) | Datum::Blobs(_) => None,
    }
}
