//! Puts the changes of one row into the order in which they happened.
//!
//! An AFTER trigger writes down an outer change after those that were made within it: a host trigger
//! that sets `updated_at` on the row that was just updated, or a cascade that leads back to it, is
//! captured first. (So it is on both databases; which trigger comes first is nowhere promised.) What
//! was captured tells the order: each change begins where the one before has ended.

use std::collections::HashMap;

use super::read::{Change, Image};
use crate::catalog::{Column, Tracked, TypeKind, key_part};
use crate::error::Result;
use crate::record::Value;
use crate::store::session::{Session, quote};
use crate::store::{image, keysql};

/// A row by its class and the text of its local id.
type Place = (i32, Vec<String>);

/// Orders the changes of a transaction, row by row. The places in `sync_change` stay as they are:
/// what happened at them is exchanged.
///
/// # Errors
/// Those of the database, which is asked only where a row goes and comes back the same.
pub(super) async fn order(session: &mut Session, changes: &mut [Change]) -> Result<()> {
    let mut rows: HashMap<Place, Vec<usize>> = HashMap::new();
    for (n, change) in changes.iter().enumerate() {
        let place = change.old.as_ref().or(change.new.as_ref()).and_then(|image| {
            local_id(&change.tracked, image).map(|local| (change.tracked.id, local))
        });
        if let Some(place) = place {
            rows.entry(place).or_default().push(n);
        }
    }
    for places in rows.into_values().filter(|places| places.len() > 1) {
        let steps: Vec<Step<&[Option<Value>]>> = places
            .iter()
            .filter_map(|n| changes.get(*n))
            .map(|change| Step {
                from: values(change.old.as_ref()),
                to: values(change.new.as_ref()),
            })
            .collect();
        let mut order = chain(&steps);
        if let Some(end) = vanished(&steps, &order)
            && let Some(change) = places.first().and_then(|n| changes.get(*n))
            && !present(session, change).await?
        {
            order.swap(end - 1, end);
        }
        let sorted = order.iter().enumerate().all(|(n, step)| n == *step);
        if !sorted {
            rearrange(changes, &places, &order);
        }
    }
    Ok(())
}

/// A change of a row: what it was and what it became, `None` where it was not there.
#[derive(Debug, PartialEq)]
pub struct Step<S> {
    /// What the row was before it.
    pub from: Option<S>,
    /// What the row was after it.
    pub to: Option<S>,
}

/// The order in which `steps` happened, which were written down each after those within it.
pub fn chain<S: PartialEq>(steps: &[Step<S>]) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::with_capacity(steps.len());
    for (n, step) in steps.iter().enumerate() {
        let at = |place: usize| order.get(place).and_then(|n| steps.get(*n));
        let leads = |place: usize| at(place).is_some_and(|next| next.from == step.to);
        let follows = |place: usize| at(place).is_some_and(|last| last.to == step.from);
        let broken = |place: usize| match (at(place - 1), at(place)) {
            (Some(last), Some(next)) => last.to != next.from,
            _ => false,
        };
        let breaks = || (1..order.len()).filter(|place| broken(*place) && leads(*place));
        // What closes a gap; what goes on from the end; what leads up to a gap, or to the first.
        let place = breaks()
            .find(|place| follows(place - 1))
            .or_else(|| (order.is_empty() || follows(order.len() - 1)).then_some(order.len()))
            .or_else(|| breaks().next_back())
            .or_else(|| leads(0).then_some(0))
            .unwrap_or(order.len());
        order.insert(place, n);
    }
    order
}

/// Where a row goes and comes back the same at last: or it came, and a host trigger took it at once,
/// which looks alike. The place of the second of the two.
pub fn vanished<S: PartialEq>(steps: &[Step<S>], order: &[usize]) -> Option<usize> {
    let end = order.len().checked_sub(1)?;
    let (last, before) =
        (steps.get(*order.get(end)?)?, steps.get(*order.get(end.checked_sub(1)?)?)?);
    let gone = before.to.is_none() && last.from.is_none();
    (gone && before.from.is_some() && before.from == last.to).then_some(end)
}

/// Whether the row is in its table.
async fn present(session: &mut Session, change: &Change) -> Result<bool> {
    let class = &change.tracked.class;
    let dialect = session.dialect();
    let Some(image) = change.old.as_ref().or(change.new.as_ref()) else { return Ok(true) };
    let mut conditions = Vec::with_capacity(class.local.len());
    let mut binds = Vec::with_capacity(class.local.len());
    for n in &class.local {
        let (Some(column), Some(Some(value))) = (class.columns.get(*n), image.values.get(*n))
        else {
            return Ok(true);
        };
        let bind = image::bind_sql(dialect, &format!("${}", binds.len() + 1), column);
        conditions.push(format!("t.{} = {bind}", quote(&column.name)));
        binds.push(image::datum(dialect, value, column));
    }
    let sql =
        format!("SELECT 1 FROM {} AS t WHERE {}", keysql::table(class), conditions.join(" AND "));
    Ok(session.query_opt(&sql, binds).await?.is_some())
}

fn rearrange(changes: &mut [Change], places: &[usize], order: &[usize]) {
    let mut taken = Vec::with_capacity(places.len());
    for place in places {
        let change = changes.get_mut(*place);
        taken.push(change.map(|change| (change.old.take(), change.new.take())).unwrap_or_default());
    }
    for (place, step) in places.iter().zip(order) {
        if let (Some(change), Some(images)) = (changes.get_mut(*place), taken.get_mut(*step)) {
            (change.old, change.new) = std::mem::take(images);
        }
    }
}

fn values(image: Option<&Image>) -> Option<&[Option<Value>]> {
    image.map(|image| image.values.as_slice())
}

/// `None` for a row that only all its values tell apart: of such there are no updates.
fn local_id(tracked: &Tracked, image: &Image) -> Option<Vec<String>> {
    let class = &tracked.class;
    if class.set || class.local.is_empty() {
        return None;
    }
    let columns: Option<Vec<(&Column, &Value)>> = class
        .local
        .iter()
        .map(|n| Some((class.columns.get(*n)?, image.values.get(*n)?.as_ref()?)))
        .collect();
    columns?.into_iter().map(|(_, value)| key_part(value, TypeKind::Text)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step(from: u32, to: u32) -> Step<u32> {
        let some = |state| (state > 0).then_some(state);
        Step { from: some(from), to: some(to) }
    }

    fn ordered(steps: &[Step<u32>]) -> Vec<(u32, u32)> {
        let one = |n: &usize| (steps[*n].from.unwrap_or(0), steps[*n].to.unwrap_or(0));
        chain(steps).iter().map(one).collect()
    }

    #[test]
    fn inner_changes_come_after_the_outer() {
        assert_eq!(ordered(&[step(2, 3), step(1, 2)]), [(1, 2), (2, 3)], "an update");
        assert_eq!(ordered(&[step(2, 3), step(0, 2)]), [(0, 2), (2, 3)], "an insert");
        assert_eq!(ordered(&[step(0, 3), step(2, 0)]), [(2, 0), (0, 3)], "a delete");
        let nested = [step(9, 1), step(3, 4), step(2, 3), step(1, 2), step(4, 5)];
        assert_eq!(ordered(&nested), [(9, 1), (1, 2), (2, 3), (3, 4), (4, 5)]);
        let revert = [step(9, 2), step(1, 2), step(2, 1)];
        assert_eq!(ordered(&revert), [(9, 2), (2, 1), (1, 2)], "a trigger that takes it back");
    }

    #[test]
    fn what_happened_in_order_stays() {
        let plain = [step(0, 1), step(1, 2), step(2, 1), step(1, 0), step(0, 1), step(1, 0)];
        assert_eq!(chain(&plain), [0, 1, 2, 3, 4, 5]);
        let gaps = [step(1, 2), step(5, 6), step(8, 9)];
        assert_eq!(chain(&gaps), [0, 1, 2], "what we cannot tell stays");
    }

    proptest! {
        #[test]
        fn any_nesting_is_put_right(shape in proptest::collection::vec(0_usize..4, 1..12)) {
            // A stack machine: open a change (it happens), or close the innermost (it is written).
            let (mut open, mut written, mut state) = (Vec::new(), Vec::new(), 1);
            for opens in shape {
                for _ in 0..opens {
                    open.push(step(state, state + 1));
                    state += 1;
                }
                written.extend(open.pop());
            }
            while let Some(last) = open.pop() {
                written.push(last);
            }
            let happened: Vec<(u32, u32)> = (1..state).map(|n| (n, n + 1)).collect();
            prop_assert_eq!(ordered(&written), happened);
        }
    }
}
