//! The state of a row and its join. (Stub: see the merge room's task.)

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Seen, Stamp};
use crate::record::Value;

/// The state of one row under tracking.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RowState {
    /// The stamp of every column that `columns` does not name; `None` is "before tracking".
    pub base: Option<Stamp>,
    /// The stamp of a column's winning write, where it differs from `base`.
    pub columns: BTreeMap<Arc<str>, Stamp>,
    /// For each actor the latest stamp that touched the row; a delete is a touch.
    pub seen: Seen,
    /// Empty, or what of `seen` a delete knew of, its own stamp included.
    pub erased: Seen,
    /// The row's image while it is not in the table.
    pub shadow: Option<BTreeMap<Arc<str>, Value>>,
}
