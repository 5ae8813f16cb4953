//! What the hosts committed, by the checker's own books: which transaction wrote what, and which
//! others its server had when it did.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use uuid::Uuid;

use super::clinic::{RowKey, Tables};

/// What a transaction did to a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Did {
    /// The row is new, with these values.
    Insert(Vec<Option<String>>),
    /// These columns have new values.
    Update(BTreeMap<usize, Option<String>>),
    /// The row is gone.
    Delete,
}

/// A committed transaction, or several that nobody marked the ends of.
#[derive(Clone, Debug)]
pub(super) struct Tx {
    pub(super) server: usize,
    pub(super) writes: BTreeMap<RowKey, Did>,
    /// The transactions that its server had.
    pub(super) known: BTreeSet<usize>,
    /// The record that it became.
    pub(super) original: Option<Uuid>,
    /// Its server was restored to a time before it.
    pub(super) restored_away: bool,
}

/// All of them, in the order of the run.
#[derive(Default)]
pub(super) struct History {
    pub(super) list: Vec<Tx>,
    pub(super) by_original: BTreeMap<Uuid, usize>,
}

/// What one server has done and not sealed yet.
#[derive(Clone, Default)]
pub(super) struct Unsealed {
    /// In order.
    pub(super) pending: VecDeque<usize>,
    /// The last of them goes on, as long as nobody marks its end: its tables before it, and when it
    /// last wrote.
    pub(super) open: Option<(usize, Tables, i64)>,
    /// The newest line of `sync_record` that was looked at.
    pub(super) last_record: i64,
}

/// What changed between two looks at the tables.
pub(super) fn difference(before: &Tables, after: &Tables) -> BTreeMap<RowKey, Did> {
    let mut writes = BTreeMap::new();
    for (row, values) in after {
        match before.get(row) {
            None => drop(writes.insert(row.clone(), Did::Insert(values.clone()))),
            Some(old) if old != values => {
                let changed = values
                    .iter()
                    .enumerate()
                    .filter(|(n, value)| old.get(*n) != Some(value))
                    .map(|(n, value)| (n, value.clone()));
                writes.insert(row.clone(), Did::Update(changed.collect()));
            }
            Some(_) => {}
        }
    }
    for row in before.keys().filter(|row| !after.contains_key(*row)) {
        writes.insert(row.clone(), Did::Delete);
    }
    writes
}

impl Tx {
    /// Whether it gave a value to a column of a row, or took the row away.
    pub(super) fn decides(&self, row: &RowKey, column: usize) -> bool {
        match self.writes.get(row) {
            Some(Did::Insert(_) | Did::Delete) => true,
            Some(Did::Update(values)) => values.contains_key(&column),
            None => false,
        }
    }

    pub(super) fn inserts(&self, row: &RowKey) -> bool {
        matches!(self.writes.get(row), Some(Did::Insert(_)))
    }
}
