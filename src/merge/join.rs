//! Joining what came in with the state of its row: what wins, what lost, what must wait.
//!
//! Promised: after the same items in any order that respects the gap rule, with any repetition,
//! states are equal; and a write that loses without the winner having known of it is reported as
//! a [`Conflict`] where the two meet.

use std::sync::Arc;

use super::config::{ClassMerge, Policy};
use super::{RowState, Seen, Stamp, Time};
use crate::record::{Item, Op};

/// What became of an item.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It builds on a change that is not here: its record is held. The state is untouched.
    Gap,
    /// All of it was here already. The state is untouched.
    Duplicate,
    /// Its origin knew all that is known here: nearly every item.
    Successor,
    /// Its origin and this server each had something that the other lacked.
    Concurrent,
    /// Concurrent, and the class's policy is `hold`: it waits for an operator, who lets it in by
    /// joining it again under [`Policy::Columns`]. The state is untouched.
    Undecided,
}

impl Fate {
    /// Whether the item's record is to be held.
    #[must_use]
    pub fn holds(self) -> bool {
        matches!(self, Self::Gap | Self::Undecided)
    }
}

/// Which of an item's columns win: are to be written to the row, or into its shadow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Won {
    /// All of them. (Also of an item that has none.)
    All,
    /// None.
    None,
    /// All but these.
    Except(Vec<Arc<str>>),
}

impl Won {
    /// Whether a column of the item is to be written.
    #[must_use]
    pub fn has(&self, column: &str) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Except(lost) => !lost.iter().any(|name| &**name == column),
        }
    }
}

/// Two edits of one column that did not know of each other, or an edit and a delete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// The column; `None` where an edit met a delete. Columns of a group are reported each.
    pub column: Option<Arc<str>>,
    /// The stamp of what is here (of the edit or the delete, where these met).
    pub ours: Stamp,
    /// The stamp of what came in.
    pub theirs: Stamp,
    /// Whether what came in is what counts now.
    pub theirs_won: bool,
}

/// What joining an item came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Joined {
    /// What became of it.
    pub fate: Fate,
    /// Which of its columns are to be written.
    pub won: Won,
    /// Where it met something that it did not know of. Two sides may hold equal values: only the
    /// caller sees values, and need not report those.
    pub conflicts: Vec<Conflict>,
}

impl Joined {
    fn untouched(fate: Fate) -> Self {
        Self { fate, won: Won::None, conflicts: Vec::new() }
    }
}

/// The latest time anywhere in an item of a record with `stamp`: what a check for clocks that are
/// far ahead has to look at before the item is joined.
#[must_use]
pub fn newest(item: &Item, stamp: Stamp) -> Time {
    let stamps = item.stamps.iter().map(|(_, stamp)| stamp.time);
    stamps
        .chain(item.base.map(|base| base.time))
        .chain([stamp.time, item.seen.latest(), item.erased.latest()])
        .max()
        .unwrap_or_default()
}

impl RowState {
    /// The gap rule: whether the item builds on a change of the row that is not here. Whole states
    /// ([`Op::State`]) bring along what they build on.
    #[must_use]
    pub fn gap(&self, item: &Item) -> bool {
        #[cfg(test)]
        if crate::sim::sabotage::is_out(crate::sim::sabotage::Sabotage::GapRule) {
            return false;
        }
        let known = |stamps| self.seen.covers(stamps);
        item.op != Op::State && !(known(&item.seen) && known(&item.erased))
    }

    /// Joins an item of a record with `stamp`. A [`Fate`] other than `Successor` and `Concurrent`
    /// leaves the state untouched.
    ///
    /// For [`Op::State`] the stamps in the item count, not the record's, and a column wins whose
    /// stamp is higher than the one here: a row that the table lacks is made from all the values,
    /// whatever [`Won`] says.
    pub fn join_item(&mut self, item: &Item, stamp: Stamp, class: &ClassMerge) -> Joined {
        if item.op == Op::State {
            return self.join_state(item, stamp, class);
        }
        if self.seen.has(stamp) {
            return Joined::untouched(Fate::Duplicate);
        }
        if self.gap(item) {
            return Joined::untouched(Fate::Gap);
        }
        let plain = item.seen.covers(&self.seen);
        if plain && stamp.time > item.seen.latest() {
            self.succeed(item, stamp);
            return Joined { fate: Fate::Successor, won: Won::All, conflicts: Vec::new() };
        }
        let fate = if plain { Fate::Successor } else { Fate::Concurrent };
        if fate == Fate::Concurrent && class.policy == Policy::Hold {
            return Joined::untouched(Fate::Undecided);
        }
        self.absorb(&Self::of(item, stamp), item, fate, class.policy)
    }

    /// The plain way: the item's stamp is later than every stamp of the row, and nothing is
    /// concurrent.
    fn succeed(&mut self, item: &Item, stamp: Stamp) {
        match item.op {
            Op::Insert => self.raise_all(stamp),
            Op::Update => {
                for (column, _) in &item.values {
                    self.raise(column, stamp);
                }
            }
            Op::Delete => {
                self.erased.join(&item.seen);
                self.erased.touch(stamp);
            }
            Op::State => {}
        }
        self.erased.join(&item.erased);
        self.seen.touch(stamp);
    }

    fn join_state(&mut self, item: &Item, stamp: Stamp, class: &ClassMerge) -> Joined {
        let theirs = Self::of(item, stamp);
        if self.seen.covers(&theirs.seen) && self.erased.covers(&theirs.erased) {
            return Joined::untouched(Fate::Duplicate);
        }
        let concurrent = !theirs.seen.covers(&self.seen) && !self.seen.covers(&theirs.seen);
        if concurrent && class.policy == Policy::Hold {
            return Joined::untouched(Fate::Undecided);
        }
        let fate = if concurrent { Fate::Concurrent } else { Fate::Successor };
        self.absorb(&theirs, item, fate, class.policy)
    }

    /// What an item says, as a state of its own: joining the item is joining this.
    #[must_use]
    pub fn of(item: &Item, stamp: Stamp) -> Self {
        let mut state =
            Self { seen: item.seen.clone(), erased: item.erased.clone(), ..Self::default() };
        match item.op {
            Op::Insert => state.base = Some(stamp),
            Op::Update => {
                let names = item.values.iter().map(|(name, _)| (Arc::clone(name), stamp));
                state.columns = names.collect();
            }
            Op::Delete => {
                state.erased.join(&item.seen);
                state.erased.touch(stamp);
            }
            Op::State => {
                state.base = item.base;
                let other = |(_, stamp): &&(Arc<str>, Stamp)| item.base != Some(*stamp);
                state.columns = item.stamps.iter().filter(other).cloned().collect();
                // An honest state has these in `seen` already.
                let stamps = item.base.into_iter().chain(item.stamps.iter().map(|(_, s)| *s));
                state.seen.join(&stamps.collect());
                state.seen.join(&item.erased);
                return state;
            }
        }
        state.seen.touch(stamp);
        state
    }

    fn absorb(&mut self, theirs: &Self, item: &Item, fate: Fate, policy: Policy) -> Joined {
        let (won, mut conflicts) = self.compare(theirs, item);
        let theirs_alive = match item.op {
            Op::Insert | Op::Update => true,
            Op::Delete => false,
            Op::State => theirs.alive_under(policy),
        };
        let met = self.edit_and_delete(theirs, theirs_alive, policy);
        self.join(theirs);
        if let Some((ours, theirs)) = met {
            let theirs_won = self.alive_under(policy) == theirs_alive;
            conflicts.push(Conflict { column: None, ours, theirs, theirs_won });
        }
        Joined { fate, won, conflicts }
    }

    /// Which of the item's columns win, and where two writes met: the loser is one that the other
    /// side had not seen.
    fn compare(&self, theirs: &Self, item: &Item) -> (Won, Vec<Conflict>) {
        let (mut lost, mut conflicts) = (Vec::new(), Vec::new());
        for (name, _) in &item.values {
            let (ours, their) = (self.stamp_of(name), theirs.stamp_of(name));
            let theirs_won = their > ours;
            if !theirs_won {
                lost.push(Arc::clone(name));
            }
            if let (Some(ours), Some(their)) = (ours, their)
                && ours != their
                && unnoticed(theirs_won, (ours, &self.seen), (their, &theirs.seen))
            {
                let column = Some(Arc::clone(name));
                conflicts.push(Conflict { column, ours, theirs: their, theirs_won });
            }
        }
        let won = match lost.len() {
            0 => Won::All,
            n if n == item.values.len() => Won::None,
            _ => Won::Except(lost),
        };
        (won, conflicts)
    }

    /// The stamps (ours, theirs) of an edit and a delete that did not know of each other, where
    /// one side has the row dead and the other alive.
    fn edit_and_delete(
        &self,
        theirs: &Self,
        theirs_alive: bool,
        policy: Policy,
    ) -> Option<(Stamp, Stamp)> {
        let edit = |alive: &Self, dead: &Self| {
            alive.seen.latest_beyond(&[&dead.seen, &dead.erased, &alive.erased])
        };
        // The latest of what the deletes erased is a delete's own stamp.
        let delete = |alive: &Self, dead: &Self| dead.erased.latest_beyond(&[&alive.seen]);
        match (self.alive_under(policy), theirs_alive) {
            (true, false) => Some((edit(self, theirs)?, delete(self, theirs)?)),
            (false, true) => Some((delete(theirs, self)?, edit(theirs, self)?)),
            _ => None,
        }
    }
}

/// Whether the winning side had not seen the losing write.
fn unnoticed(theirs_won: bool, ours: (Stamp, &Seen), theirs: (Stamp, &Seen)) -> bool {
    if theirs_won { !theirs.1.has(ours.0) } else { !ours.1.has(theirs.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::model::{item, name, stamp};

    const PLAIN: ClassMerge = ClassMerge::PLAIN;

    fn under(policy: Policy) -> ClassMerge {
        ClassMerge { policy, ..ClassMerge::PLAIN }
    }

    /// A local change and the item that carries it.
    fn change(state: &mut RowState, op: Op, columns: &[&str], stamp: Stamp) -> (Item, Stamp) {
        let carried = state.touch_local(op, columns.iter().map(|c| name(c)), stamp);
        (item(op, columns, 0, carried), stamp)
    }

    fn take(state: &mut RowState, change: &(Item, Stamp), class: &ClassMerge) -> Joined {
        state.join_item(&change.0, change.1, class)
    }

    /// Two servers that both have the row, inserted at time 1 by the first.
    fn two() -> (RowState, RowState) {
        let (mut a, mut b) = (RowState::default(), RowState::default());
        let insert = change(&mut a, Op::Insert, &["x", "y"], stamp(1, 1));
        assert_eq!(take(&mut b, &insert, &PLAIN).fate, Fate::Successor);
        assert_eq!(a, b);
        (a, b)
    }

    #[test]
    fn an_item_that_follows_is_taken_whole() {
        let (mut a, mut b) = two();
        let update = change(&mut a, Op::Update, &["x"], stamp(1, 2));
        let joined = take(&mut b, &update, &PLAIN);
        assert_eq!(joined, Joined { fate: Fate::Successor, won: Won::All, conflicts: vec![] });
        assert_eq!(a, b);
    }

    #[test]
    fn a_second_delivery_changes_nothing() {
        let (mut a, mut b) = two();
        let update = change(&mut a, Op::Update, &["x"], stamp(1, 2));
        take(&mut b, &update, &PLAIN);
        let before = b.clone();
        let joined = take(&mut b, &update, &PLAIN);
        assert_eq!(joined, Joined::untouched(Fate::Duplicate));
        assert_eq!(b, before);
    }

    #[test]
    fn an_item_that_builds_on_what_is_not_here_must_wait() {
        let (mut a, mut b) = two();
        let first = change(&mut a, Op::Update, &["x"], stamp(1, 2));
        let second = change(&mut a, Op::Update, &["y"], stamp(1, 3));
        let before = b.clone();
        assert!(b.gap(&second.0));
        assert_eq!(take(&mut b, &second, &PLAIN), Joined::untouched(Fate::Gap));
        assert_eq!(b, before);
        assert_eq!(take(&mut b, &first, &PLAIN).fate, Fate::Successor);
        assert_eq!(take(&mut b, &second, &PLAIN).fate, Fate::Successor);
        assert_eq!(a, b);
    }

    #[test]
    fn edits_of_different_columns_both_count() {
        let (mut a, mut b) = two();
        let x = change(&mut a, Op::Update, &["x"], stamp(1, 2));
        let y = change(&mut b, Op::Update, &["y"], stamp(2, 2));
        for (state, other) in [(&mut a, &y), (&mut b, &x)] {
            let joined = take(state, other, &PLAIN);
            assert_eq!(joined.fate, Fate::Concurrent);
            assert_eq!((joined.won, joined.conflicts), (Won::All, vec![]));
        }
        assert_eq!(a, b);
    }

    #[test]
    fn edits_of_one_column_meet_and_both_servers_say_so() {
        let (mut a, mut b) = two();
        let ours = change(&mut a, Op::Update, &["x", "y"], stamp(1, 2));
        let theirs = change(&mut b, Op::Update, &["x"], stamp(2, 3));
        let at_a = take(&mut a, &theirs, &PLAIN);
        let at_b = take(&mut b, &ours, &PLAIN);
        assert_eq!(at_a.won, Won::All);
        assert_eq!(at_b.won, Won::Except(vec![name("x")]));
        assert!(at_b.won.has("y") && !at_b.won.has("x"));
        let conflict = |ours, theirs, theirs_won| {
            vec![Conflict { column: Some(name("x")), ours, theirs, theirs_won }]
        };
        assert_eq!(at_a.conflicts, conflict(stamp(1, 2), stamp(2, 3), true));
        assert_eq!(at_b.conflicts, conflict(stamp(2, 3), stamp(1, 2), false));
        assert_eq!(a, b);
    }

    #[test]
    fn an_edit_in_ignorance_of_a_delete_keeps_the_row() {
        let (mut a, mut b) = two();
        let delete = change(&mut a, Op::Delete, &[], stamp(1, 9));
        let edit = change(&mut b, Op::Update, &["x"], stamp(2, 2));
        let at_a = take(&mut a, &edit, &PLAIN);
        let at_b = take(&mut b, &delete, &PLAIN);
        assert!(a.alive() && a == b);
        let met =
            |ours, theirs, theirs_won| vec![Conflict { column: None, ours, theirs, theirs_won }];
        assert_eq!(at_a.conflicts, met(stamp(1, 9), stamp(2, 2), true));
        assert_eq!(at_b.conflicts, met(stamp(2, 2), stamp(1, 9), false));
    }

    #[test]
    fn under_delete_wins_no_edit_revives_a_row() {
        let (mut a, mut b) = two();
        let delete = change(&mut a, Op::Delete, &[], stamp(1, 2));
        let edit = change(&mut b, Op::Update, &["x"], stamp(2, 9));
        let at_a = take(&mut a, &edit, &under(Policy::DeleteWins));
        let at_b = take(&mut b, &delete, &under(Policy::DeleteWins));
        assert!(!a.alive_under(Policy::DeleteWins) && a == b);
        assert!(!at_a.conflicts[0].theirs_won && at_b.conflicts[0].theirs_won);
    }

    #[test]
    fn under_delete_wins_an_insert_that_knew_of_the_delete_brings_the_row_back() {
        let (mut a, mut b) = two();
        let delete = change(&mut a, Op::Delete, &[], stamp(1, 2));
        take(&mut b, &delete, &under(Policy::DeleteWins));
        let insert = change(&mut b, Op::Insert, &["x", "y"], stamp(2, 3));
        let joined = take(&mut a, &insert, &under(Policy::DeleteWins));
        assert_eq!((joined.fate, joined.conflicts), (Fate::Successor, vec![]));
        assert!(a.alive_under(Policy::DeleteWins) && a == b);
    }

    /// What a delete erased is known from `seen`, should an origin leave `erased` out.
    #[test]
    fn a_delete_erases_what_its_origin_had_seen() {
        let (mut a, mut b) = two();
        let (mut delete, stamp) = change(&mut a, Op::Delete, &[], stamp(1, 2));
        delete.erased = Seen::new();
        assert_eq!(take(&mut b, &(delete, stamp), &PLAIN).fate, Fate::Successor);
        assert!(!b.alive() && a == b);
    }

    #[test]
    fn a_delete_that_two_servers_made_is_no_conflict() {
        let (mut a, mut b) = two();
        let first = change(&mut a, Op::Delete, &[], stamp(1, 2));
        let second = change(&mut b, Op::Delete, &[], stamp(2, 2));
        assert_eq!(take(&mut a, &second, &PLAIN).conflicts, vec![]);
        assert_eq!(take(&mut b, &first, &PLAIN).conflicts, vec![]);
        assert!(!a.alive() && a == b);
    }

    #[test]
    fn one_row_inserted_by_two_servers_becomes_the_later_one() {
        let (mut a, mut b) = (RowState::default(), RowState::default());
        let early = change(&mut a, Op::Insert, &["x", "y"], stamp(1, 1));
        let late = change(&mut b, Op::Insert, &["x", "y"], stamp(2, 2));
        assert_eq!(take(&mut a, &late, &PLAIN).won, Won::All);
        let at_b = take(&mut b, &early, &PLAIN);
        assert_eq!((at_b.won, at_b.conflicts.len()), (Won::None, 2));
        assert_eq!(a, b);
        assert_eq!((a.base, a.columns.len()), (Some(stamp(2, 2)), 0));
    }

    #[test]
    fn under_hold_what_is_concurrent_waits_for_an_operator() {
        let (mut a, mut b) = two();
        let x = change(&mut a, Op::Update, &["x"], stamp(1, 2));
        change(&mut b, Op::Update, &["y"], stamp(2, 2));
        let before = b.clone();
        let joined = take(&mut b, &x, &under(Policy::Hold));
        assert!(joined.fate == Fate::Undecided && joined.fate.holds());
        assert_eq!(b, before);
        assert_eq!(take(&mut b, &x, &PLAIN).fate, Fate::Concurrent);
    }

    #[test]
    fn a_whole_state_fills_a_gap() {
        let (mut a, mut b) = two();
        change(&mut a, Op::Update, &["x"], stamp(1, 2));
        let last = change(&mut a, Op::Update, &["y"], stamp(1, 3));
        assert_eq!(take(&mut b, &last, &PLAIN).fate, Fate::Gap);
        let mut whole = item(Op::State, &["x", "y"], 0, (a.seen.clone(), a.erased.clone()));
        whole.base = a.base;
        whole.stamps = a.columns.clone().into_iter().collect();
        let joined = b.join_item(&whole, stamp(3, 7), &PLAIN);
        assert_eq!((joined.fate, joined.won), (Fate::Successor, Won::All));
        assert_eq!(a, b);
        assert_eq!(take(&mut b, &last, &PLAIN).fate, Fate::Duplicate);
        assert_eq!(newest(&whole, stamp(3, 1)), Time(3));
    }

    /// A clock that went wrong must not let two servers differ, nor hide a lost edit.
    #[test]
    fn a_stamp_earlier_than_what_it_builds_on_loses_and_is_reported() {
        let (mut a, _) = two();
        let known = (a.seen.clone(), a.erased.clone());
        let early = (item(Op::Update, &["x"], 0, known), stamp(2, 0));
        let joined = take(&mut a, &early, &PLAIN);
        assert_eq!((joined.won, joined.conflicts.len()), (Won::None, 1));
        assert_eq!(a.stamp_of("x"), Some(stamp(1, 1)));
    }
}
