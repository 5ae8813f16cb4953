//! What capture saw of a transaction of ours: for the applier, which has host triggers watched.

use std::sync::Arc;

use super::read::{self, Shapes};
use crate::catalog::{Catalog, Tracked};
use crate::error::Result;
use crate::record::Value;
use crate::store::session::Session;

/// A change of one row, values as they are stored (references are local ids), by column.
pub struct Observed {
    /// Its class.
    pub tracked: Arc<Tracked>,
    /// Before; `None` for an insert.
    pub old: Option<Vec<Option<Value>>>,
    /// After; `None` for a delete.
    pub new: Option<Vec<Option<Value>>>,
}

/// Takes what this transaction has captured, in its order, out of `sync_change`. Everything that was
/// committed before must be sealed already.
///
/// # Errors
/// Those of sealing.
pub async fn take(session: &mut Session, catalog: &Catalog) -> Result<Vec<Observed>> {
    let mut shapes = Shapes::new();
    let (changes, seqs) = read::own(session, catalog, &mut shapes).await?;
    super::take(session, seqs).await?;
    let observed = changes.into_iter().map(|change| Observed {
        tracked: change.tracked,
        old: change.old.map(|image| image.values),
        new: change.new.map(|image| image.values),
    });
    Ok(observed.collect())
}
