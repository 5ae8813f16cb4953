//! The state of a row and its join.
//!
//! For each column the stamp of its winning write, what the row has seen, and what a delete knew
//! of: three things that only grow, so joining them is associative, commutative and idempotent. A
//! value goes with its column's stamp; which value stands in the table is decided by the higher
//! stamp alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Seen, Stamp};
use crate::id::Actor;
use crate::record::{Item, Op, Value};

/// The state of one row under tracking.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RowState {
    /// The stamp of every column that `columns` does not name; `None` is "before tracking".
    pub base: Option<Stamp>,
    /// The stamp of a column's winning write, where it is higher than `base`.
    pub columns: BTreeMap<Arc<str>, Stamp>,
    /// For each actor the latest stamp that touched the row; a delete is a touch.
    pub seen: Seen,
    /// Empty, or what of `seen` a delete knew of, its own stamp included.
    pub erased: Seen,
    /// The row's image while it is not in the table.
    pub shadow: Option<BTreeMap<Arc<str>, Value>>,
}

/// What an item changed of a row's state.
#[derive(Clone, PartialEq, Debug)]
pub struct Joined {
    /// The columns whose value is the item's now.
    pub won: Won,
    /// Edits that neither side knew of when it made its own.
    pub conflicts: Vec<Conflict>,
}

/// The columns that an item won.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Won {
    /// All that it names.
    All,
    /// None: it was known already, it lost, or it is a delete.
    None,
    /// These.
    Some(Vec<Arc<str>>),
}

impl Won {
    /// Whether the value of `column` is the item's now.
    #[must_use]
    pub fn has(&self, column: &str) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Some(columns) => columns.iter().any(|won| &**won == column),
        }
    }
}

/// Two edits of which neither knew of the other.
#[derive(Clone, PartialEq, Debug)]
pub struct Conflict {
    /// The column in which they met; `None` where an edit met a delete.
    pub column: Option<Arc<str>>,
    /// The stamp that stood here.
    pub ours: Stamp,
    /// Whether the item won.
    pub theirs_won: bool,
}

impl RowState {
    /// The stamp of a column's winning write.
    #[must_use]
    pub fn stamp_of(&self, column: &str) -> Option<Stamp> {
        self.columns.get(column).copied().or(self.base)
    }

    /// Whether the row is there by its own right: no delete knew of all that touched it.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.erased.is_empty() || !self.erased.covers(&self.seen)
    }

    /// Whether `item` builds on something that is not here: it is to be held until that comes.
    #[must_use]
    pub fn gap(&self, item: &Item) -> bool {
        item.op != Op::State && !self.seen.covers(&item.seen)
    }

    /// Every actor that the state names.
    pub fn actors(&self) -> impl Iterator<Item = Actor> + '_ {
        let stamps = self.base.iter().chain(self.columns.values()).map(|stamp| stamp.actor);
        stamps.chain(self.seen.0.keys().copied()).chain(self.erased.0.keys().copied())
    }

    /// Moves the state on by a change that was made here. Yields what the item has to carry: what
    /// the row had seen before, its own stamp excluded.
    pub fn touch_local(
        &mut self,
        op: Op,
        columns: impl Iterator<Item = Arc<str>>,
        stamp: Stamp,
    ) -> Seen {
        let before = self.seen.clone();
        self.touch(op, columns, stamp);
        before
    }

    fn touch(&mut self, op: Op, columns: impl Iterator<Item = Arc<str>>, stamp: Stamp) {
        self.seen.touch(stamp);
        match op {
            Op::Insert => self.raise(stamp),
            Op::Update | Op::State => {
                for column in columns {
                    self.raise_column(column, stamp);
                }
            }
            Op::Delete => {
                let known = self.seen.clone();
                self.erased.join(&known);
            }
        }
    }

    /// All columns bear at least `stamp`.
    fn raise(&mut self, stamp: Stamp) {
        let base = self.base.map_or(stamp, |base| base.max(stamp));
        self.base = Some(base);
        self.columns.retain(|_, other| *other > base);
    }

    fn raise_column(&mut self, column: Arc<str>, stamp: Stamp) {
        if self.stamp_of(&column).is_none_or(|other| other < stamp) {
            self.columns.insert(column, stamp);
        }
    }

    /// Joins a change that was made elsewhere, with `stamp`. The caller has looked for a
    /// [`gap`](Self::gap) before.
    pub fn join_item(&mut self, item: &Item, stamp: Stamp) -> Joined {
        if item.op == Op::State {
            return self.join_state(item);
        }
        if self.seen.has(stamp) {
            return Joined { won: Won::None, conflicts: Vec::new() };
        }
        let concurrent = !item.seen.covers(&self.seen);
        let mut conflicts = Vec::new();
        let was_alive = self.alive();
        let won = match item.op {
            Op::Delete => {
                if concurrent && was_alive {
                    conflicts.extend(self.met(item, None, false));
                }
                self.seen.touch(stamp);
                let mut known = item.seen.clone();
                known.touch(stamp);
                self.erased.join(&known);
                Won::None
            }
            _ => {
                if concurrent && !was_alive {
                    conflicts.extend(self.met(item, None, true));
                }
                let won = self.won(item, stamp, concurrent && was_alive, &mut conflicts);
                self.touch(item.op, item.values.iter().map(|(name, _)| Arc::clone(name)), stamp);
                won
            }
        };
        Joined { won, conflicts }
    }

    /// The columns in which `stamp` is higher than what stands here, and the conflicts in them.
    fn won(
        &self,
        item: &Item,
        stamp: Stamp,
        concurrent: bool,
        conflicts: &mut Vec<Conflict>,
    ) -> Won {
        let mut won = Vec::with_capacity(item.values.len());
        for (name, _) in &item.values {
            let ours = self.stamp_of(name);
            let wins = ours.is_none_or(|ours| ours < stamp);
            if wins {
                won.push(Arc::clone(name));
            }
            if let Some(ours) = ours.filter(|ours| concurrent && !item.seen.has(*ours)) {
                conflicts.push(Conflict { column: Some(Arc::clone(name)), ours, theirs_won: wins });
            }
        }
        if won.len() == item.values.len() { Won::All } else { Won::Some(won) }
    }

    /// An edit that met a delete: the latest touch here that the item did not know of.
    fn met(&self, item: &Item, column: Option<Arc<str>>, theirs_won: bool) -> Option<Conflict> {
        let unseen = self.seen.0.iter().map(|(actor, time)| Stamp { time: *time, actor: *actor });
        let ours = unseen.filter(|stamp| !item.seen.has(*stamp)).max()?;
        Some(Conflict { column, ours, theirs_won })
    }

    /// Joins the whole state of a row, as a load or a repair sends it.
    fn join_state(&mut self, item: &Item) -> Joined {
        let other = Self {
            base: item.base,
            columns: item.stamps.iter().cloned().collect(),
            seen: item.seen.clone(),
            erased: item.erased.clone(),
            shadow: None,
        };
        let won: Vec<Arc<str>> = item
            .values
            .iter()
            .filter(|(name, _)| other.stamp_of(name) > self.stamp_of(name))
            .map(|(name, _)| Arc::clone(name))
            .collect();
        self.join(&other);
        let won = if won.len() == item.values.len() { Won::All } else { Won::Some(won) };
        Joined { won, conflicts: Vec::new() }
    }

    /// The least state that is above both: what either side wrote last in a column, saw, or erased.
    pub fn join(&mut self, other: &Self) {
        let shadow = match (self.shadow.take(), &other.shadow) {
            (None, None) => None,
            (Some(ours), None) => Some(ours),
            (None, Some(theirs)) => Some(theirs.clone()),
            (Some(mut ours), Some(theirs)) => {
                for (name, value) in theirs {
                    let higher = other.stamp_of(name) > self.stamp_of(name);
                    if higher || !ours.contains_key(name) {
                        ours.insert(Arc::clone(name), value.clone());
                    }
                }
                Some(ours)
            }
        };
        self.shadow = shadow;
        let mut columns = BTreeMap::new();
        for name in self.columns.keys().chain(other.columns.keys()) {
            if let Some(stamp) = self.stamp_of(name).max(other.stamp_of(name)) {
                columns.insert(Arc::clone(name), stamp);
            }
        }
        self.base = self.base.max(other.base);
        columns.retain(|_, stamp| Some(*stamp) > self.base);
        self.columns = columns;
        self.seen.join(&other.seen);
        self.erased.join(&other.erased);
    }
}
