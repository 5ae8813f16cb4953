//! Rows that a changed key takes along. Whoever refers to the row by its local id says another key
//! now; and where the reference is part of its own key, that changes as well: it goes and comes in
//! the same record, and takes along those that refer to it in turn.
//!
//! The rows are looked for in their tables, which may have moved on: what later transactions did,
//! that are not sealed yet, is taken back where keys depend on it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::read::{self, Change, Image, Shapes, Transaction};
use super::ways::{Place, Ways, local_id, referred};
use crate::catalog::{Catalog, Column, Slot, Tracked};
use crate::error::Result;
use crate::record::Value;
use crate::store::session::{Datum, Dialect, Row, Session, quote};
use crate::store::{image, keysql, sqlite};

/// What was committed behind the transaction at hand.
#[derive(Clone, Copy)]
pub(super) struct Later<'a> {
    /// Of the same window.
    pub(super) window: &'a VecDeque<Transaction>,
    /// Every change of the window.
    pub(super) seqs: &'a [i64],
    /// Whether there may be changes behind the window.
    pub(super) more: bool,
}

/// Rows as they were before later transactions touched them; `None` where there was none.
type History = HashMap<Place, Option<(Arc<Tracked>, Image)>>;

/// Adds the rows that refer to a row whose key changed, once each. Says whether there were any:
/// then keys are to be worked out again.
pub(super) async fn follow(
    session: &mut Session,
    catalog: &Catalog,
    shapes: &mut Shapes,
    ways: &mut Ways,
    later: Later<'_>,
) -> Result<bool> {
    let moved = moved(ways);
    let mut found = Vec::new();
    for (class, locals) in &moved {
        for (tracked, slot) in referring(catalog, *class) {
            for image in rows(session, catalog, tracked, slot, locals).await? {
                found.push((Arc::clone(tracked), image));
            }
        }
    }
    let classes = dependent(catalog, moved.keys().copied());
    if !classes.is_empty() {
        let history = history(session, catalog, shapes, &classes, later).await?;
        found.retain(|(tracked, image)| {
            !history.contains_key(&(tracked.id, local_id(&tracked.class, image)))
        });
        found.extend(history.into_values().flatten());
    }
    let before = ways.rows.len();
    for (tracked, image) in found {
        let place = (tracked.id, local_id(&tracked.class, &image));
        ways.add_untouched(&tracked, place, image);
    }
    Ok(ways.rows.len() > before)
}

/// The rows whose key changed, if only for a while, and that were not followed yet: their local ids, by class.
fn moved(ways: &mut Ways) -> BTreeMap<i32, Vec<Value>> {
    let mut moved: BTreeMap<i32, Vec<Value>> = BTreeMap::new();
    for (place, way) in &ways.rows {
        let (Some(first), Some(last)) = (&way.first, &way.last) else { continue };
        let Some(column) = referred(&way.tracked.class) else { continue };
        if (first.key == last.key && !way.wandered) || !ways.followed.insert(place.clone()) {
            continue;
        }
        if let Some(Some(local)) = last.values.get(column) {
            moved.entry(place.0).or_default().push(local.clone());
        }
    }
    moved
}

/// Who refers to a class: the class, and by which slot.
fn referring(catalog: &Catalog, target: i32) -> Vec<(&Arc<Tracked>, Slot<'_>)> {
    let name = catalog.tracked.get(&target).map(|tracked| &tracked.class.name);
    let mut list: Vec<_> = catalog
        .tracked
        .values()
        .flat_map(|tracked| tracked.class.slots().map(move |slot| (tracked, slot)))
        .filter(|(_, slot)| Some(&slot.reference.target) == name)
        .collect();
    list.sort_by_key(|(tracked, slot)| (tracked.id, slot.column));
    list
}

/// The classes whose keys depend on those of `targets`, with all that their keys are made of;
/// nothing where there are none.
fn dependent(catalog: &Catalog, targets: impl Iterator<Item = i32>) -> BTreeSet<i32> {
    let mut above: BTreeSet<i32> = BTreeSet::new();
    let mut open: Vec<i32> = targets.collect();
    while let Some(target) = open.pop() {
        for (tracked, slot) in referring(catalog, target) {
            if slot.in_key && above.insert(tracked.id) {
                open.push(tracked.id);
            }
        }
    }
    let mut all = above.clone();
    let mut open: Vec<i32> = above.into_iter().collect();
    while let Some(tracked) = open.pop().and_then(|id| catalog.tracked.get(&id)) {
        for slot in tracked.class.slots().filter(|slot| slot.in_key) {
            if let Some(id) = catalog.ids.get(&slot.reference.target)
                && all.insert(*id)
            {
                open.push(*id);
            }
        }
    }
    all
}

/// What later transactions found of these classes.
async fn history(
    session: &mut Session,
    catalog: &Catalog,
    shapes: &mut Shapes,
    classes: &BTreeSet<i32>,
    later: Later<'_>,
) -> Result<History> {
    let mut history = History::new();
    for change in later.window.iter().flat_map(|transaction| &transaction.changes) {
        if classes.contains(&change.tracked.id) {
            remember(&mut history, change);
        }
    }
    if later.more {
        for change in read::beyond(session, catalog, shapes, classes, later.seqs).await? {
            remember(&mut history, &change);
        }
    }
    Ok(history)
}

fn remember(history: &mut History, change: &Change) {
    let tracked = &change.tracked;
    let place = |image: &Image| (tracked.id, local_id(&tracked.class, image));
    if let Some(old) = &change.old {
        let was = || Some((Arc::clone(tracked), old.clone()));
        history.entry(place(old)).or_insert_with(was);
    }
    if let Some(new) = &change.new {
        history.entry(place(new)).or_insert(None);
    }
}

/// The rows of a class that refer, by one slot, to rows with these local ids: as they are now.
async fn rows(
    session: &mut Session,
    catalog: &Catalog,
    tracked: &Tracked,
    slot: Slot<'_>,
    locals: &[Value],
) -> Result<Vec<Image>> {
    let class = &tracked.class;
    let dialect = session.dialect();
    let definition = &class.columns[slot.column];
    let mut select = vec![match dialect {
        Dialect::Postgres => "t::text".to_owned(),
        Dialect::Sqlite => sqlite::literals::image_sql(class, "t"),
    }];
    for each in class.slots() {
        let column = &class.columns[each.column];
        select.push(keysql::reference(dialect, catalog, column, each.reference, "t")?);
    }
    let when = match &slot.reference.when {
        Some(when) => format!("AND ({})", when.replace("{row}", "t")),
        None => String::new(),
    };
    let column = format!("t.{}", quote(&definition.name));
    let matches = match dialect {
        Dialect::Postgres => {
            format!("{column} = ANY($1::text[]::{}[])", image::cast(dialect, definition))
        }
        Dialect::Sqlite => format!("{column} = $1"),
    };
    let sql = format!(
        "SELECT {} FROM {} AS t WHERE {matches} {when}",
        select.join(", "),
        keysql::table(class)
    );
    let data = locals.iter().map(|local| image::datum(dialect, local, definition));
    let answers = match dialect {
        Dialect::Postgres => {
            let texts = data.map(|datum| match datum {
                Datum::Text(text) => text,
                _ => None,
            });
            session.query(&sql, vec![Datum::Texts(texts.collect())]).await?
        }
        Dialect::Sqlite => {
            let binds = data.map(|datum| vec![datum]).collect();
            session.query_each(&sql, binds).await?.into_iter().flatten().collect()
        }
    };
    let present: Vec<Option<&Column>> = class.columns.iter().map(Some).collect();
    answers.iter().map(|answer| as_image(dialect, answer, &present)).collect()
}

fn as_image(dialect: Dialect, answer: &Row, columns: &[Option<&Column>]) -> Result<Image> {
    let values = image::decode(dialect, answer.text(0)?, columns)?;
    let mut refs = Vec::with_capacity(answer.0.len().saturating_sub(1));
    for n in 1..answer.0.len() {
        refs.push(answer.opt_text(n)?.map(Arc::from));
    }
    let values = values.into_iter().map(Some).collect();
    Ok(Image { values, strange: Vec::new(), refs, unnamed: Vec::new(), key: None })
}
