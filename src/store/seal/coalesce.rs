//! From the changes of a transaction to one net change a row.
//!
//! Without this, an item that builds on another of the same record would bear the same stamp, and
//! servers would differ for ever (the model's variant B diverged in one run of eight).

use std::collections::HashMap;
use std::sync::Arc;

use super::keyless::Keyless;
use super::keys::{self, reference};
use super::read::Image;
use super::ways::{Place, Way, Ways};
use crate::catalog::Tracked;
use crate::merge::{ClassMerge, TreeMerge};
use crate::record::{Op, RowId, Value};

/// What a transaction did to one row, in the end.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) tracked: Arc<Tracked>,
    pub(super) row: RowId,
    pub(super) op: Op,
    /// The columns that changed (insert: all of them; delete: none).
    pub(super) values: Vec<(Arc<str>, Value)>,
    /// For a delete: the row as it was, for its shadow.
    pub(super) shadow: Vec<(Arc<str>, Value)>,
}

/// What is left of a transaction.
#[derive(Debug, Default)]
pub(super) struct Coalesced {
    /// In the order in which their rows were last touched.
    pub(super) nets: Vec<Net>,
    /// Rows that have no key: they are held until they have one.
    pub(super) keyless: Keyless,
}

/// What a transaction did to whatever row has a key: one that lost it and another that took it may
/// both have a part in that.
struct Change {
    tracked: Arc<Tracked>,
    first: Option<Image>,
    last: Option<Image>,
    again: bool,
    touched: usize,
}

/// One net change a row.
pub(super) fn coalesce(ways: Ways, merge: &TreeMerge) -> Coalesced {
    let mut ways: Vec<(Place, Way)> = ways.rows.into_iter().collect();
    ways.sort_by(|(a, x), (b, y)| x.touched.cmp(&y.touched).then_with(|| a.cmp(b)));
    let mut keyless = Keyless::default();
    let mut changes: HashMap<RowId, Change> = HashMap::new();
    for (place, way) in ways {
        keyless.note(place, &way);
        let Way { tracked, first, last, again, touched, .. } = way;
        let (from, to) = (key(&tracked, first.as_ref()), key(&tracked, last.as_ref()));
        if from == to {
            let Some(row) = from else { continue };
            let part = Change { tracked, first, last, again, touched };
            add(&mut changes, row, part);
            continue;
        }
        if let Some(row) = from {
            let tracked = Arc::clone(&tracked);
            add(&mut changes, row, Change { tracked, first, last: None, again: false, touched });
        }
        if let Some(row) = to {
            add(&mut changes, row, Change { tracked, first: None, last, again: false, touched });
        }
    }
    let mut ordered: Vec<(RowId, Change)> = changes.into_iter().collect();
    ordered.sort_by(|(a, x), (b, y)| x.touched.cmp(&y.touched).then_with(|| a.cmp(b)));
    let nets = ordered.into_iter().filter_map(|(row, change)| net(row, change, merge)).collect();
    #[cfg(test)]
    let nets = apart(nets);
    Coalesced { nets, keyless }
}

/// With coalescing taken out, an update of several columns is several items of one row.
#[cfg(test)]
fn apart(nets: Vec<Net>) -> Vec<Net> {
    if !crate::sim::sabotage::is_out(crate::sim::sabotage::Sabotage::Coalescing) {
        return nets;
    }
    let mut all = Vec::new();
    for net in nets {
        if net.op != Op::Update {
            all.push(net);
            continue;
        }
        let Net { tracked, row, op, values, .. } = net;
        all.extend(values.into_iter().map(|value| Net {
            tracked: Arc::clone(&tracked),
            row: row.clone(),
            op,
            values: vec![value],
            shadow: Vec::new(),
        }));
    }
    all
}

fn key(tracked: &Tracked, image: Option<&Image>) -> Option<RowId> {
    let key = image?.key.as_ref()?;
    Some(RowId { class: Arc::clone(&tracked.class.name), key: Arc::clone(key) })
}

fn add(changes: &mut HashMap<RowId, Change>, row: RowId, part: Change) {
    match changes.get_mut(&row) {
        None => drop(changes.insert(row, part)),
        Some(change) => {
            let (was, is) = (change.first.is_some(), change.last.is_some());
            change.again |= (was && part.last.is_some()) || (is && part.first.is_some());
            change.first = change.first.take().or(part.first);
            change.last = part.last.or(change.last.take());
            change.touched = part.touched;
        }
    }
}

/// What is left of it; `None` when nothing is.
fn net(row: RowId, change: Change, merge: &TreeMerge) -> Option<Net> {
    let Change { tracked, first, last, again, .. } = change;
    let (op, values, shadow) = match (&first, &last) {
        (None, None) => return None,
        (None, Some(new)) => (Op::Insert, all_values(&tracked, new), Vec::new()),
        (Some(old), None) => (Op::Delete, Vec::new(), all_values(&tracked, old)),
        (Some(_), Some(new)) if again => (Op::Update, all_values(&tracked, new), Vec::new()),
        (Some(old), Some(new)) => {
            let mut values = changed_values(&tracked, old, new);
            go_along(&mut values, merge.class(&tracked.class.name), || all_values(&tracked, new));
            if values.is_empty() {
                return None;
            }
            (Op::Update, values, Vec::new())
        }
    };
    Some(Net { tracked, row, op, values, shadow })
}

/// Columns of a group that did not change travel with those that did, so that a group wins or loses
/// as one.
fn go_along(
    changed: &mut Vec<(Arc<str>, Value)>,
    merge: &ClassMerge,
    all: impl FnOnce() -> Vec<(Arc<str>, Value)>,
) {
    if changed.is_empty() || !merge.is_grouped() {
        return;
    }
    let is_changed = |column: &str| changed.iter().any(|(name, _)| &**name == column);
    let along: Vec<_> = all()
        .into_iter()
        .filter(|(name, _)| !is_changed(name) && merge.goes_along(name, is_changed))
        .collect();
    changed.extend(along);
}

/// Whether a column travels: not the surrogate, not generated.
fn travels(tracked: &Tracked, column: usize) -> bool {
    let class = &tracked.class;
    class.surrogate != Some(column) && !class.columns[column].generated
}

/// The row of an image as it travels.
pub(super) fn all_values(tracked: &Tracked, image: &Image) -> Vec<(Arc<str>, Value)> {
    let known = (0..tracked.class.columns.len())
        .filter(|column| travels(tracked, *column))
        .filter_map(|column| {
            let name = Arc::clone(&tracked.class.columns[column].name);
            Some((name, keys::value(tracked, image, column)?))
        });
    known.chain(image.strange.iter().cloned()).collect()
}

fn changed_values(tracked: &Tracked, old: &Image, new: &Image) -> Vec<(Arc<str>, Value)> {
    let known = (0..tracked.class.columns.len())
        .filter(|column| travels(tracked, *column))
        .filter(|column| differ(tracked, old, new, *column))
        .filter_map(|column| {
            let name = Arc::clone(&tracked.class.columns[column].name);
            Some((name, keys::value(tracked, new, column)?))
        });
    let strange = new.strange.iter().filter(|(name, value)| {
        !old.strange.iter().any(|(other, before)| other == name && same(before, value))
    });
    known.chain(strange.cloned()).collect()
}

/// Whether a column changed: in its stored value, or in the key of the row that it refers to. (One
/// that lost its key goes on by that elsewhere, until it has another.)
fn differ(tracked: &Tracked, old: &Image, new: &Image, column: usize) -> bool {
    match (&old.values[column], &new.values[column]) {
        (Some(before), Some(after)) if same(before, after) => {
            match (reference(tracked, old, column), reference(tracked, new, column)) {
                (Some(before), Some(after)) => before != after,
                (None, Some(_)) => {
                    let slots = tracked.class.slots().enumerate();
                    slots
                        .filter(|(_, slot)| slot.column == column)
                        .any(|(n, _)| old.unnamed.contains(&n))
                }
                (_, None) => false,
            }
        }
        (None, None) => false,
        _ => true,
    }
}

/// Equality by what is stored: floats by their bits.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => a.to_bits() == b.to_bits(),
        (a, b) => a == b,
    }
}
