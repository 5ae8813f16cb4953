//! Row images of PostgreSQL: composite text, as `record_out` writes it.

use crate::catalog::Column;
use crate::error::{Error, Result};
use crate::record::Value;

/// See [`crate::store::image::decode`].
pub fn decode(_image: &str, _columns: &[Option<&Column>]) -> Result<Vec<Value>> {
    Err(Error::decode("unfinished"))
}

/// The fields of a composite text.
pub fn fields(_text: &str) -> Result<Vec<Option<String>>> {
    Err(Error::decode("unfinished"))
}

/// The text that `value` has when it is cast to the column's type; `None` for NULL.
#[must_use]
pub fn text(_value: &Value, _column: &Column) -> Option<String> {
    None
}
