//! The state of a row: what it remembers, how a local change moves it on, and what the table is
//! to show.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::config::Policy;
use super::{Seen, Stamp};
use crate::id::Actor;
use crate::record::{Op, Value};

/// The state of one row under tracking.
///
/// `base` and `columns` are together one function from **every** column name to a stamp, also
/// from names that this server's table does not have; [`RowState::join`] takes the higher stamp
/// at each name. No entry of `columns` equals `base`, so equal functions are equal values.
///
/// Every stamp of `base` and `columns` is in `seen`, and `erased` is a part of `seen`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RowState {
    /// The stamp of every column that `columns` does not name: that of the latest insert; `None`
    /// is "before tracking".
    pub base: Option<Stamp>,
    /// The stamp of a column's winning write, where it differs from `base`.
    pub columns: BTreeMap<Arc<str>, Stamp>,
    /// For each actor the latest stamp that touched the row; a delete is a touch.
    pub seen: Seen,
    /// Empty, or what of `seen` the deletes knew of, their own stamps included.
    pub erased: Seen,
    /// The row's image while it is not in the table. It is where values are kept, not part of
    /// what is joined: the caller puts the columns that won into the table or in here.
    pub shadow: Option<BTreeMap<Arc<str>, Value>>,
}

/// Whether the table has the row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// It does.
    Present,
    /// It was deleted, but a row that is there refers to it: it is there from its shadow, and goes
    /// again with its last referrer.
    Revived,
    /// It does not.
    Absent,
}

impl RowState {
    /// The stamp of a column's winning write; `None` is "before tracking", older than all.
    #[must_use]
    pub fn stamp_of(&self, column: &str) -> Option<Stamp> {
        self.columns.get(column).copied().or(self.base)
    }

    /// Moves the state on by a local change, and yields `(seen, erased)` as its item carries them:
    /// both without the change's own stamp, `seen` as it was before.
    ///
    /// An insert makes `stamp` the stamp of all columns, whatever `columns` says; an update of the
    /// named ones. A row deleted and inserted again in one transaction is an [`Op::Update`] that
    /// names all its columns: no base of its own, so that every server's state comes out the same.
    /// [`Op::State`] is no local change and changes nothing.
    ///
    /// `stamp` must be later than all that the row has seen, as [`Clock::tick`](super::Clock::tick)
    /// makes it.
    pub fn touch_local(
        &mut self,
        op: Op,
        columns: impl IntoIterator<Item = Arc<str>>,
        stamp: Stamp,
    ) -> (Seen, Seen) {
        let seen = self.seen.clone();
        let erased = if op == Op::Delete { seen.clone() } else { self.erased.clone() };
        match op {
            Op::Insert => self.raise_all(stamp),
            Op::Update => {
                for column in columns {
                    self.raise(&column, stamp);
                }
            }
            Op::Delete => {
                self.erased.join(&seen);
                self.erased.touch(stamp);
            }
            Op::State => return (seen, erased),
        }
        self.seen.touch(stamp);
        (seen, erased)
    }

    /// The least state that knows what both know: commutative, associative, idempotent. The
    /// shadow stays as it is.
    pub fn join(&mut self, other: &Self) {
        let base = self.base.max(other.base);
        if self.columns.is_empty() && other.columns.is_empty() {
            self.base = base;
        } else {
            let mut columns = BTreeMap::new();
            for name in self.columns.keys().chain(other.columns.keys()) {
                match self.stamp_of(name).max(other.stamp_of(name)) {
                    Some(stamp) if base != Some(stamp) => columns.insert(Arc::clone(name), stamp),
                    _ => None,
                };
            }
            self.base = base;
            self.columns = columns;
        }
        self.seen.join(&other.seen);
        self.erased.join(&other.erased);
    }

    /// Raises one column to `stamp` at least.
    pub(super) fn raise(&mut self, column: &Arc<str>, stamp: Stamp) {
        if self.stamp_of(column) >= Some(stamp) {
            return;
        }
        if self.base == Some(stamp) {
            self.columns.remove(column);
        } else {
            self.columns.insert(Arc::clone(column), stamp);
        }
    }

    /// Raises every column to `stamp` at least.
    pub(super) fn raise_all(&mut self, stamp: Stamp) {
        let base = self.base.max(Some(stamp));
        self.base = base;
        self.columns.retain(|_, own| {
            *own = (*own).max(stamp);
            base != Some(*own)
        });
    }

    /// Whether the row lives by itself: it was never deleted, or something touched it that no
    /// delete knew of. (Policy [`Columns`](Policy::Columns) and all others but `delete-wins`.)
    #[must_use]
    pub fn alive(&self) -> bool {
        self.erased.is_empty() || !self.erased.covers(&self.seen)
    }

    /// Whether the row lives by itself under `policy`.
    ///
    /// Under [`DeleteWins`](Policy::DeleteWins) the later of the latest delete and the latest
    /// insert decides, and no edit revives. Both are in the state: each delete's own stamp is later
    /// than all that it erased, so the latest delete is the latest of `erased`; the latest insert
    /// is `base`.
    #[must_use]
    pub fn alive_under(&self, policy: Policy) -> bool {
        match policy {
            Policy::DeleteWins => self.erased.is_empty() || self.base > self.erased.iter().max(),
            Policy::Columns | Policy::Row | Policy::Hold => self.alive(),
        }
    }

    /// What the table is to show, given whether a row that is there refers to this one.
    #[must_use]
    pub fn presence(&self, policy: Policy, referred: bool) -> Presence {
        match (self.alive_under(policy), referred) {
            (true, _) => Presence::Present,
            (false, true) => Presence::Revived,
            (false, false) => Presence::Absent,
        }
    }

    /// Every actor that the state names, each once.
    #[must_use]
    pub fn actors(&self) -> Vec<Actor> {
        let stamps = self.base.iter().chain(self.columns.values()).copied();
        let mut actors: Vec<Actor> = stamps
            .chain(self.seen.iter())
            .chain(self.erased.iter())
            .map(|stamp| stamp.actor)
            .collect();
        actors.sort_unstable();
        actors.dedup();
        actors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::model::{name, stamp};

    #[test]
    fn an_insert_stamps_all_columns_at_once() {
        let mut state = RowState::default();
        let (seen, erased) = state.touch_local(Op::Insert, [name("a"), name("b")], stamp(1, 1));
        assert!(seen.is_empty() && erased.is_empty());
        assert_eq!((state.base, state.columns.len()), (Some(stamp(1, 1)), 0));
        assert_eq!(state.stamp_of("unheard of"), Some(stamp(1, 1)));
        assert!(state.alive());
    }

    #[test]
    fn an_update_stamps_its_columns_and_carries_what_was_seen_before() {
        let mut state = RowState::default();
        state.touch_local(Op::Insert, [], stamp(1, 1));
        let (seen, _) = state.touch_local(Op::Update, [name("a")], stamp(2, 2));
        assert!(seen.has(stamp(1, 1)) && !seen.has(stamp(2, 2)));
        assert_eq!(state.stamp_of("a"), Some(stamp(2, 2)));
        assert_eq!(state.stamp_of("b"), Some(stamp(1, 1)));
        assert!(state.seen.has(stamp(2, 2)));
    }

    #[test]
    fn raising_all_columns_lowers_none() {
        let mut state = RowState::default();
        state.touch_local(Op::Insert, [], stamp(1, 1));
        state.touch_local(Op::Update, [name("late")], stamp(2, 9));
        state.touch_local(Op::Update, [name("early")], stamp(2, 3));
        state.raise_all(stamp(1, 5));
        assert_eq!(state.stamp_of("late"), Some(stamp(2, 9)));
        assert_eq!(state.stamp_of("early"), Some(stamp(1, 5)));
        assert_eq!((state.base, state.columns.len()), (Some(stamp(1, 5)), 1));
        state.raise_all(stamp(1, 4));
        assert_eq!(state.base, Some(stamp(1, 5)));
    }

    #[test]
    fn a_delete_erases_all_that_was_seen_and_itself() {
        let mut state = RowState::default();
        state.touch_local(Op::Insert, [], stamp(1, 1));
        let (seen, erased) = state.touch_local(Op::Delete, [], stamp(1, 2));
        assert_eq!(seen, erased);
        assert!(!erased.has(stamp(1, 2)));
        assert_eq!(state.erased, state.seen);
        assert!(!state.alive());
    }

    #[test]
    fn an_untracked_row_can_be_deleted() {
        let mut state = RowState::default();
        state.touch_local(Op::Delete, [], stamp(1, 2));
        assert!(!state.alive() && !state.alive_under(Policy::DeleteWins));
    }

    #[test]
    fn an_insert_after_a_delete_makes_a_row_live_and_remembers_the_delete() {
        let mut state = RowState::default();
        state.touch_local(Op::Insert, [], stamp(1, 1));
        state.touch_local(Op::Delete, [], stamp(1, 2));
        let (seen, erased) = state.touch_local(Op::Insert, [], stamp(1, 3));
        assert!(state.alive() && state.alive_under(Policy::DeleteWins));
        assert!(seen.has(stamp(1, 2)) && erased.has(stamp(1, 2)));
        assert!(state.erased.has(stamp(1, 2)) && !state.erased.has(stamp(1, 3)));
    }

    #[test]
    fn a_row_replaced_in_one_transaction_keeps_its_past() {
        let mut state = RowState::default();
        state.touch_local(Op::Insert, [], stamp(1, 1));
        state.touch_local(Op::Update, [name("a"), name("b")], stamp(2, 2));
        assert_eq!(state.base, Some(stamp(1, 1)));
        assert!(state.seen.has(stamp(1, 1)) && state.erased.is_empty());
    }

    #[test]
    fn a_dead_row_is_there_while_a_row_refers_to_it() {
        let mut state = RowState::default();
        assert_eq!(state.presence(Policy::Columns, false), Presence::Present);
        state.touch_local(Op::Delete, [], stamp(1, 2));
        assert_eq!(state.presence(Policy::Columns, false), Presence::Absent);
        assert_eq!(state.presence(Policy::Columns, true), Presence::Revived);
    }

    #[test]
    fn a_state_names_each_actor_once() {
        let mut state = RowState::default();
        state.touch_local(Op::Insert, [], stamp(2, 1));
        state.touch_local(Op::Update, [name("a")], stamp(1, 2));
        state.touch_local(Op::Delete, [], stamp(2, 3));
        assert_eq!(state.actors(), vec![stamp(1, 0).actor, stamp(2, 0).actor]);
    }
}
