//! Conflicts that joining found, and the values that they are about.

use std::collections::HashMap;
use std::sync::Arc;

use super::Incoming;
use crate::catalog::Catalog;
use crate::error::Result;
use crate::merge::{self, Stamp};
use crate::record::{Item, RowId, Value};
use crate::store::books::conflicts::{ConflictKind, Entry, Side};
use crate::store::rows::{self, Found};
use crate::store::session::Session;

/// A conflict that joining found.
#[derive(Debug)]
pub(super) struct Conflict {
    row: RowId,
    /// The column; `None` where an edit met a delete.
    column: Option<Arc<str>>,
    theirs: (Stamp, Option<Value>),
    /// The value is what was not in the table yet; `None`: what the table has.
    ours: (Stamp, Option<Value>),
    theirs_won: bool,
    original: uuid::Uuid,
}

impl Conflict {
    /// `waiting` is what has won the column before and is not in the table yet.
    pub(super) fn new(
        item: &Item,
        conflict: merge::Conflict,
        incoming: &Incoming,
        waiting: Option<Value>,
    ) -> Self {
        let value = conflict.column.as_ref().and_then(|column| {
            item.values.iter().find(|(name, _)| name == column).map(|(_, value)| value.clone())
        });
        Self {
            row: item.row.clone(),
            column: conflict.column,
            theirs: (conflict.theirs, value),
            ours: (conflict.ours, waiting),
            theirs_won: conflict.theirs_won,
            original: incoming.body.original_uuid,
        }
    }

    /// A line of the ledger; `None` where both sides wrote the same, and nothing was lost.
    fn entry(self, before: &Before, kind: Option<ConflictKind>) -> Option<Entry> {
        let in_table = |column: &Arc<str>| {
            let values = before.get(&self.row)?;
            values.iter().find(|(name, _)| name == column).map(|(_, value)| value.clone())
        };
        let ours = self.ours.1.or_else(|| self.column.as_ref().and_then(in_table));
        if self.column.is_some() && ours.is_some() && ours == self.theirs.1 {
            return None;
        }
        let met =
            if self.column.is_some() { ConflictKind::Column } else { ConflictKind::EditAndDelete };
        let ours = Side { stamp: Some(self.ours.0), value: ours };
        let theirs = Side { stamp: Some(self.theirs.0), value: self.theirs.1 };
        let (winner, loser) = if self.theirs_won { (theirs, ours) } else { (ours, theirs) };
        Some(Entry {
            row: self.row,
            column: self.column,
            kind: kind.unwrap_or(met),
            winner,
            loser,
            note: None,
            original: Some(self.original),
        })
    }
}

/// Values of rows before they are written over.
type Before = HashMap<RowId, Vec<(Arc<str>, Value)>>;

/// The lines that conflicts make. Reads what the tables hold, so it comes before anything is written.
pub(super) async fn entries(
    session: &mut Session,
    catalog: &Catalog,
    conflicts: Vec<Conflict>,
    kind: Option<ConflictKind>,
) -> Result<Vec<Entry>> {
    let before = before(session, catalog, &conflicts).await?;
    Ok(conflicts.into_iter().filter_map(|conflict| conflict.entry(&before, kind)).collect())
}

async fn before(
    session: &mut Session,
    catalog: &Catalog,
    conflicts: &[Conflict],
) -> Result<Before> {
    let mut before = Before::new();
    let mut by_class: HashMap<Arc<str>, Vec<Arc<str>>> = HashMap::new();
    for conflict in conflicts.iter().filter(|conflict| conflict.ours.1.is_none()) {
        let keys = by_class.entry(Arc::clone(&conflict.row.class)).or_default();
        keys.push(Arc::clone(&conflict.row.key));
    }
    for (class, keys) in by_class {
        let tracked = rows::tracked_class(catalog, &class)?;
        let mut found = Found::default();
        found.locate(session, catalog, tracked, keys.clone(), false).await?;
        let mut locals = Vec::new();
        for key in keys {
            let row = RowId { class: Arc::clone(&class), key };
            if let Some(Some(local)) = found.get(&row) {
                locals.push((row.clone(), local.clone()));
            }
        }
        before.extend(rows::read(session, catalog, tracked, &locals).await?);
    }
    Ok(before)
}
