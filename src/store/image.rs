//! Row images: what the triggers wrote, and what is bound when a row is written.
//!
//! An image is text in the form of its database (the contract stands with the triggers of each); the
//! values in it are what travels. [`value`](decode) and [`datum`] are inverse to each other on one
//! database, and by declared type between the two.

use super::session::{Datum, Dialect};
use super::{postgres, sqlite};
use crate::catalog::Column;
use crate::error::Result;
use crate::record::Value;

/// The values of an image, by position. `columns` are the definitions by the same positions, `None`
/// for a column that the class does not have (any more): its value is read as its storage says.
/// References come as plain values: the local id.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) for a text that no trigger of ours wrote.
pub fn decode(dialect: Dialect, image: &str, columns: &[Option<&Column>]) -> Result<Vec<Value>> {
    match dialect {
        Dialect::Postgres => postgres::image::decode(image, columns),
        Dialect::Sqlite => sqlite::image::decode(image, columns),
    }
}

/// The keys in `old_refs` or `new_refs`, by slot.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) for a text that no trigger of ours wrote.
pub fn decode_refs(dialect: Dialect, refs: &str) -> Result<Vec<Option<String>>> {
    match dialect {
        Dialect::Postgres => postgres::image::fields(refs),
        Dialect::Sqlite => sqlite::image::texts(refs),
    }
}

/// The bind that writes `value` into `column`: text on PostgreSQL (see [`bind_sql`]), the value
/// itself on SQLite. [`Value::Ref`] is resolved to a local id before.
#[must_use]
pub fn datum(dialect: Dialect, value: &Value, column: &Column) -> Datum {
    match dialect {
        Dialect::Postgres => Datum::Text(postgres::image::text(value, column)),
        Dialect::Sqlite => sqlite::image::datum(value, column),
    }
}

/// The type that a text is cast to before it is compared with, or assigned to, the column.
#[must_use]
pub fn cast(dialect: Dialect, column: &Column) -> String {
    match dialect {
        Dialect::Postgres => postgres::image::cast(&column.sql_type),
        Dialect::Sqlite => column.sql_type.clone(),
    }
}

/// The SQL that turns the bind `expr` (`$3`, or a column of an unnested array) into the column's
/// type: `$3::integer` on PostgreSQL, itself on SQLite.
#[must_use]
pub fn bind_sql(dialect: Dialect, expr: &str, column: &Column) -> String {
    match dialect {
        Dialect::Postgres => {
            format!("{expr}::text::{}", cast(dialect, column))
        }
        Dialect::Sqlite => expr.to_owned(),
    }
}
