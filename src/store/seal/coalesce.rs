//! From the changes of a transaction to one net change a row.
//!
//! Without this, an item that builds on another of the same record would bear the same stamp, and
//! servers would differ for ever (the model's variant B diverged in one run of eight).

use std::collections::HashMap;
use std::sync::Arc;

use super::keyless::Keyless;
use super::keys::{Locals, reference};
use super::read::{Image, Transaction};
use crate::catalog::Tracked;
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

/// A row's way through the transaction.
struct Way {
    tracked: Arc<Tracked>,
    first: Option<Image>,
    last: Option<Image>,
    again: bool,
    touched: usize,
}

/// A row whose key changed: other rows that refer to it by local id change with it.
#[derive(Debug)]
pub(super) struct Rekeyed {
    pub(super) tracked: Arc<Tracked>,
    pub(super) new: RowId,
}

/// What is left of a transaction.
#[derive(Debug, Default)]
pub(super) struct Coalesced {
    /// In the order in which their rows were last touched.
    pub(super) nets: Vec<Net>,
    /// Rows whose key changed.
    pub(super) rekeyed: Vec<Rekeyed>,
    /// Rows that have no key: they are held until they have one.
    pub(super) keyless: Keyless,
}

/// One net change a row.
pub(super) fn coalesce(transaction: Transaction, locals: &Locals) -> Coalesced {
    let mut ways: HashMap<RowId, Way> = HashMap::new();
    let mut rekeyed = Vec::new();
    let mut keyless = Keyless::default();
    for (n, change) in transaction.changes.into_iter().enumerate() {
        keyless.note(&change, locals);
        let tracked = change.tracked;
        let keyed = |image: Option<Image>| {
            image.and_then(|image| row_id(&tracked, &image).map(|id| (id, image)))
        };
        let (from, old) = keyed(change.old).unzip();
        let (to, new) = keyed(change.new).unzip();
        match (from, to) {
            (Some(from), Some(to)) if from != to => {
                touch(&mut ways, &tracked, from, old, None, n);
                touch(&mut ways, &tracked, to.clone(), None, new, n);
                rekeyed.push(Rekeyed { tracked: Arc::clone(&tracked), new: to });
            }
            (Some(row), _) | (None, Some(row)) => touch(&mut ways, &tracked, row, old, new, n),
            (None, None) => {}
        }
    }
    let mut ordered: Vec<(RowId, Way)> = ways.into_iter().collect();
    ordered.sort_by(|(a, x), (b, y)| x.touched.cmp(&y.touched).then_with(|| a.cmp(b)));
    let nets = ordered.into_iter().filter_map(|(row, way)| net(row, way, locals)).collect();
    Coalesced { nets, rekeyed, keyless }
}

fn row_id(tracked: &Tracked, image: &Image) -> Option<RowId> {
    let key = image.key.as_ref()?;
    Some(RowId { class: Arc::clone(&tracked.class.name), key: Arc::clone(key) })
}

fn touch(
    ways: &mut HashMap<RowId, Way>,
    tracked: &Arc<Tracked>,
    row: RowId,
    old: Option<Image>,
    new: Option<Image>,
    touched: usize,
) {
    match ways.get_mut(&row) {
        None => {
            let way =
                Way { tracked: Arc::clone(tracked), first: old, last: new, again: false, touched };
            ways.insert(row, way);
        }
        Some(way) => {
            way.again |= way.last.is_none() && way.first.is_some() && new.is_some();
            way.last = new;
            way.touched = touched;
        }
    }
}

/// What is left of a row's way; `None` when nothing is.
fn net(row: RowId, way: Way, locals: &Locals) -> Option<Net> {
    let Way { tracked, first, last, again, .. } = way;
    let (op, values, shadow) = match (&first, &last) {
        (None, None) => return None,
        (None, Some(new)) => (Op::Insert, all_values(&tracked, new, locals), Vec::new()),
        (Some(old), None) => (Op::Delete, Vec::new(), all_values(&tracked, old, locals)),
        (Some(_), Some(new)) if again => {
            (Op::Update, all_values(&tracked, new, locals), Vec::new())
        }
        (Some(old), Some(new)) => {
            let values = changed_values(&tracked, old, new, locals);
            if values.is_empty() {
                return None;
            }
            (Op::Update, values, Vec::new())
        }
    };
    Some(Net { tracked, row, op, values, shadow })
}

/// Whether a column travels: not the surrogate, not generated.
fn travels(tracked: &Tracked, column: usize) -> bool {
    let class = &tracked.class;
    class.surrogate != Some(column) && !class.columns[column].generated
}

/// The row of an image as it travels.
pub(super) fn all_values(
    tracked: &Tracked,
    image: &Image,
    locals: &Locals,
) -> Vec<(Arc<str>, Value)> {
    let known = (0..tracked.class.columns.len())
        .filter(|column| travels(tracked, *column))
        .filter_map(|column| {
            let name = Arc::clone(&tracked.class.columns[column].name);
            Some((name, locals.value(tracked, image, column)?))
        });
    known.chain(image.strange.iter().cloned()).collect()
}

fn changed_values(
    tracked: &Tracked,
    old: &Image,
    new: &Image,
    locals: &Locals,
) -> Vec<(Arc<str>, Value)> {
    let known = (0..tracked.class.columns.len())
        .filter(|column| travels(tracked, *column))
        .filter(|column| differ(tracked, old, new, *column))
        .filter_map(|column| {
            let name = Arc::clone(&tracked.class.columns[column].name);
            Some((name, locals.value(tracked, new, column)?))
        });
    let strange = new.strange.iter().filter(|(name, value)| {
        !old.strange.iter().any(|(other, before)| other == name && same(before, value))
    });
    known.chain(strange.cloned()).collect()
}

/// Whether a column changed: in its stored value, or in the row that the same local id stands for.
fn differ(tracked: &Tracked, old: &Image, new: &Image, column: usize) -> bool {
    match (&old.values[column], &new.values[column]) {
        (Some(before), Some(after)) if same(before, after) => {
            let keys = (reference(tracked, old, column), reference(tracked, new, column));
            matches!(keys, (Some(before), Some(after)) if before != after)
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
