//! What a transaction did to each row, by the row's local id: what it was before and what it is
//! after. What lay between nobody else ever saw, and neither did its key.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::read::{Image, Transaction};
use crate::catalog::{Class, Tracked, TypeKind, key_part};

/// A row by its class and the text of its local id.
pub(super) type Place = (i32, String);

/// A row's way through a transaction.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) tracked: Arc<Tracked>,
    /// The row before the transaction; `None` where it was not there.
    pub(super) first: Option<Image>,
    /// The row after it.
    pub(super) last: Option<Image>,
    /// Whether it was deleted and came again.
    pub(super) again: bool,
    /// Whether its key was another one for a while: rows that refer to it may have been captured then.
    pub(super) wandered: bool,
    /// When it was last touched, as a number in the transaction.
    pub(super) touched: usize,
    /// The transaction did not touch it: it is here for what it refers to.
    pub(super) follows: bool,
}

/// What of a row's references travels.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Travels {
    /// All: it comes, goes, or gets another key.
    Whole,
    /// Those in these slots, which it changed.
    Slots(Vec<usize>),
}

impl Way {
    /// What of its references travels, as far as its keys are known. Columns that did not change may
    /// go along where those of its class are `grouped`; a row without a key is held whole.
    pub(super) fn travels(&self, grouped: bool) -> Travels {
        let (Some(first), Some(last)) = (&self.first, &self.last) else { return Travels::Whole };
        if grouped || self.again || first.key != last.key || last.key.is_none() {
            return Travels::Whole;
        }
        let slots = self.tracked.class.slots().enumerate();
        let changed = slots
            .filter(|(_, slot)| first.values.get(slot.column) != last.values.get(slot.column))
            .map(|(n, _)| n);
        Travels::Slots(changed.collect())
    }
}

/// The ways of all rows that a transaction concerns.
#[derive(Debug, Default)]
pub(super) struct Ways {
    pub(super) rows: HashMap<Place, Way>,
    /// Rows whose key changed and whose referrers are here already.
    pub(super) followed: HashSet<Place>,
    changes: usize,
}

impl Ways {
    /// The ways of the rows that were changed.
    pub(super) fn of(transaction: Transaction) -> Self {
        let mut ways = Self::default();
        for change in transaction.changes {
            let place = |image: &Image| (change.tracked.id, local_id(&change.tracked.class, image));
            let before = change.old.as_ref().map(place);
            let after = change.new.as_ref().map(place);
            match (before, after) {
                // Another local id: for all that refer to it the one row went and another came.
                (Some(before), Some(after)) if before != after => {
                    ways.touch(&change.tracked, before, change.old, None);
                    ways.touch(&change.tracked, after, None, change.new);
                }
                (Some(place), _) | (None, Some(place)) => {
                    ways.touch(&change.tracked, place, change.old, change.new);
                }
                (None, None) => {}
            }
            ways.changes += 1;
        }
        ways
    }

    fn touch(
        &mut self,
        tracked: &Arc<Tracked>,
        place: Place,
        old: Option<Image>,
        mut new: Option<Image>,
    ) {
        let touched = self.changes;
        match self.rows.get_mut(&place) {
            Some(way) => {
                if let (Some(last), Some(new)) = (&way.last, &mut new) {
                    carry(&tracked.class, last, new);
                }
                way.wandered |= wanders(&tracked.class, way.first.as_ref(), new.as_ref());
                way.again |= way.last.is_none() && way.first.is_some() && new.is_some();
                way.last = new;
                way.touched = touched;
            }
            None => {
                let tracked = Arc::clone(tracked);
                let wandered = wanders(&tracked.class, old.as_ref(), new.as_ref());
                let (first, last, again, follows) = (old, new, false, false);
                let way = Way { tracked, first, last, again, wandered, touched, follows };
                self.rows.insert(place, way);
            }
        }
    }

    /// Adds a row that the transaction did not touch, if it is not here.
    pub(super) fn add_untouched(&mut self, tracked: &Arc<Tracked>, place: Place, image: Image) {
        let touched = self.changes;
        self.rows.entry(place).or_insert_with(|| Way {
            tracked: Arc::clone(tracked),
            first: Some(image.clone()),
            last: Some(image),
            again: false,
            wandered: false,
            touched,
            follows: true,
        });
    }
}

/// A reference that stayed was not looked up again: what it was is still so.
fn carry(class: &Class, last: &Image, new: &mut Image) {
    for (n, slot) in class.slots().enumerate() {
        if new.refs[n].is_none() && last.values[slot.column] == new.values[slot.column] {
            new.refs[n].clone_from(&last.refs[n]);
        }
    }
}

fn wanders(class: &Class, before: Option<&Image>, after: Option<&Image>) -> bool {
    let (Some(before), Some(after)) = (before, after) else { return false };
    class.key.iter().any(|n| before.values.get(*n) != after.values.get(*n))
}

/// What tells a row from the others of its class here: its local key, or all of it where that may
/// be NULL (such a row is as good as deleted and inserted when it changes).
pub(super) fn local_id(class: &Class, image: &Image) -> String {
    let text = |n: usize| key_part(image.values.get(n)?.as_ref()?, TypeKind::Text);
    let whole = class.set || class.local.iter().any(|n| !class.columns[*n].not_null);
    match class.local.as_slice() {
        [one] if !whole => text(*one).unwrap_or_default(),
        _ => {
            let all: Vec<usize> = (0..class.columns.len()).collect();
            let columns = if whole { &all } else { &class.local };
            let parts: Vec<Option<String>> = columns.iter().map(|n| text(*n)).collect();
            serde_json::to_string(&parts).unwrap_or_default()
        }
    }
}

/// The columns of a class by which others refer to its rows: its local id, where that is one column.
pub(super) fn referred(class: &Class) -> Option<usize> {
    match class.local.as_slice() {
        [one] if !class.set => Some(*one),
        _ => None,
    }
}
