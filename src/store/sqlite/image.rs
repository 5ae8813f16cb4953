//! Row images of SQLite: `quote()` of each column, joined by commas.

use crate::catalog::Column;
use crate::error::{Error, Result};
use crate::record::Value;
use crate::store::session::Datum;

/// See [`crate::store::image::decode`].
pub fn decode(_image: &str, _columns: &[Option<&Column>]) -> Result<Vec<Value>> {
    Err(Error::decode("unfinished"))
}

/// The texts of a quoted list.
pub fn texts(_text: &str) -> Result<Vec<Option<String>>> {
    Err(Error::decode("unfinished"))
}

/// The bind that stores `value` in `column`.
#[must_use]
pub fn datum(_value: &Value, _column: &Column) -> Datum {
    Datum::Int(None)
}

/// The SQL of a row's image.
pub fn list_sql<'a>(columns: impl Iterator<Item = &'a str>, alias: &str) -> String {
    columns.map(|name| format!("quote({alias}.{})", crate::store::session::quote(name))).collect::<Vec<_>>().join(" || ',' || ")
}
