//! Works out the keys of captured rows, and of the rows they refer to.
//!
//! A trigger looks a reference up at once; where the row was not there (a cascade took it first, a
//! deferred key comes later), its key is found in the same transaction's change of that row, else
//! in the table.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use uuid::Uuid;

use super::read::{Change, Image, Transaction};
use crate::catalog::decide::UUID_COLUMN;
use crate::catalog::{Catalog, Column, Tracked, TypeKind, join_key, key_part};
use crate::error::{Error, Result};
use crate::record::{RowId, Value};
use crate::store::rows;
use crate::store::session::Session;

/// Keys by class, column and the local value in it.
#[derive(Default)]
pub(super) struct Locals {
    keys: HashMap<(Arc<str>, Arc<str>, String), Arc<str>>,
    absent: HashSet<(Arc<str>, Arc<str>, String)>,
}

/// A reference that no trigger resolved: class, column of the class, local value.
type Wanted = (Arc<str>, Arc<str>, String);

/// Rounds of "a key that depends on a key that …": deeper chains than this are refused.
const DEPTH_MAX: usize = 16;

/// Fills in the key of every image and every reference that can be found.
pub(super) async fn resolve(
    session: &mut Session,
    catalog: &Catalog,
    transaction: &mut Transaction,
) -> Result<Locals> {
    let mut locals = Locals::default();
    fill_missing_uuids(session, transaction).await?;
    for _ in 0..DEPTH_MAX {
        let wanted = step(transaction, &mut locals);
        if wanted.is_empty() {
            return Ok(locals);
        }
        look_up(session, catalog, &mut locals, wanted).await?;
    }
    Err(Error::failed("the key of a row depends on itself; see `track`"))
}

/// One round over all images: what is known spreads, what is not is returned.
fn step(transaction: &mut Transaction, locals: &mut Locals) -> HashSet<Wanted> {
    // Images whose key is worked out teach the others; repeat until nothing moves.
    loop {
        let mut moved = false;
        let mut wanted = HashSet::new();
        for change in &mut transaction.changes {
            let tracked = &change.tracked;
            for image in [change.old.as_mut(), change.new.as_mut()].into_iter().flatten() {
                moved |= settle(tracked, image, locals, &mut wanted);
            }
        }
        if !moved {
            return wanted;
        }
    }
}

/// Resolves what can be resolved of one image; says whether anything was.
fn settle(
    tracked: &Tracked,
    image: &mut Image,
    locals: &mut Locals,
    wanted: &mut HashSet<Wanted>,
) -> bool {
    let class = &tracked.class;
    let mut moved = false;
    for (n, slot) in class.slots().enumerate() {
        if image.refs[n].is_some() || slot.reference.when.is_some() {
            continue;
        }
        let Some(local) = local_text(image, slot.column) else { continue };
        let place =
            (Arc::clone(&slot.reference.target), Arc::clone(&slot.reference.target_column), local);
        if let Some(key) = locals.keys.get(&place) {
            image.refs[n] = Some(Arc::clone(key));
            moved = true;
        } else if !locals.absent.contains(&place) {
            wanted.insert(place);
        }
    }
    if image.key.is_none()
        && let Some(key) = key_of(tracked, image)
    {
        image.key = Some(Arc::clone(&key));
        moved = true;
        for column in &class.local {
            if let Some(local) = local_text(image, *column) {
                let name = Arc::clone(&class.columns[*column].name);
                locals.keys.insert((Arc::clone(&class.name), name, local), Arc::clone(&key));
            }
        }
    }
    moved
}

/// The local value of a column as text; `None` for NULL, or a column that the image lacks.
fn local_text(image: &Image, column: usize) -> Option<String> {
    key_part(image.values.get(column)?.as_ref()?, TypeKind::Text)
}

/// The key of an image, when all of it is known.
fn key_of(tracked: &Tracked, image: &Image) -> Option<Arc<str>> {
    let class = &tracked.class;
    let mut parts = Vec::with_capacity(class.key.len());
    for column in &class.key {
        let definition = &class.columns[*column];
        if definition.references.is_empty() {
            parts.push(key_part(image.values.get(*column)?.as_ref()?, definition.kind)?);
        } else {
            parts.push(reference(tracked, image, *column)?.1.to_string());
        }
    }
    Some(join_key(&parts).into())
}

/// The class and key that a reference column of an image points at, when it is known.
pub(super) fn reference(
    tracked: &Tracked,
    image: &Image,
    column: usize,
) -> Option<(Arc<str>, Arc<str>)> {
    tracked.class.slots().enumerate().find_map(|(n, slot)| {
        let key = image.refs.get(n)?.as_ref().filter(|_| slot.column == column)?;
        Some((Arc::clone(&slot.reference.target), Arc::clone(key)))
    })
}

/// Asks the tables for what neither a trigger nor the transaction knew.
async fn look_up(
    session: &mut Session,
    catalog: &Catalog,
    locals: &mut Locals,
    wanted: HashSet<Wanted>,
) -> Result<()> {
    let mut by_place: HashMap<(Arc<str>, Arc<str>), Vec<String>> = HashMap::new();
    for (class, column, local) in wanted {
        by_place.entry((class, column)).or_default().push(local);
    }
    for ((class, column), list) in by_place {
        let found = match catalog.class(&class) {
            Some(tracked) => {
                rows::keys_of_locals(session, catalog, tracked, &column, list.clone()).await?
            }
            None => HashMap::new(),
        };
        for local in list {
            let place = (Arc::clone(&class), Arc::clone(&column), local);
            match found.get(&place.2) {
                Some(key) => drop(locals.keys.insert(place, Arc::clone(key))),
                None => drop(locals.absent.insert(place)),
            }
        }
    }
    Ok(())
}

/// A row whose uuid the host left NULL gets one: in the table (uncaptured) and in all images of the
/// transaction, by its local id. Where the table takes none, the row stays without a key.
async fn fill_missing_uuids(session: &mut Session, transaction: &mut Transaction) -> Result<()> {
    let mut given: BTreeMap<(i32, String), (Arc<Tracked>, Option<String>)> = BTreeMap::new();
    for change in &mut transaction.changes {
        let tracked = Arc::clone(&change.tracked);
        for (place, _) in without_uuid(change) {
            let uuid = Some(Uuid::new_v4().hyphenated().to_string());
            given.entry(place).or_insert_with(|| (Arc::clone(&tracked), uuid));
        }
    }
    for ((_, id), (tracked, uuid)) in &mut given {
        let Some(text) = uuid.as_deref() else { continue };
        session.batch("SAVEPOINT branchline_fill").await?;
        match rows::fill_key(session, tracked, id, text).await {
            Ok(()) => session.batch("RELEASE SAVEPOINT branchline_fill").await?,
            Err(error) if error.holds_record() => {
                let back =
                    "ROLLBACK TO SAVEPOINT branchline_fill; RELEASE SAVEPOINT branchline_fill";
                session.batch(back).await?;
                let class = &*tracked.class.name;
                tracing::warn!(class, error = %error.chain(), "a row gets no uuid");
                *uuid = None;
            }
            Err(error) => return Err(error),
        }
    }
    if given.is_empty() {
        return Ok(());
    }
    for change in &mut transaction.changes {
        for (place, value) in without_uuid(change) {
            if let Some((_, Some(uuid))) = given.get(&place) {
                *value = Some(Value::Text(uuid.clone()));
            }
        }
    }
    Ok(())
}

/// The images of a change whose uuid is NULL: where the row is, and the value.
fn without_uuid(change: &mut Change) -> impl Iterator<Item = ((i32, String), &mut Option<Value>)> {
    let class = &change.tracked.class;
    let columns = match (class.key.as_slice(), class.local.as_slice()) {
        ([key], [local]) if class.surrogate.is_some() && is_uuid(&class.columns[*key]) => {
            Some((*key, *local))
        }
        _ => None,
    };
    let id = change.tracked.id;
    let images = [change.old.as_mut(), change.new.as_mut()];
    images.into_iter().flatten().filter_map(move |image| {
        let (key, local) = columns?;
        let place = (id, local_text(image, local)?);
        let value = &mut image.values[key];
        matches!(value, Some(Value::Null)).then_some((place, value))
    })
}

/// A column that may be filled with a uuid: any other is the host's to fill.
fn is_uuid(column: &Column) -> bool {
    column.references.is_empty()
        && (column.kind == TypeKind::Uuid || column.name.eq_ignore_ascii_case(UUID_COLUMN))
}

impl Locals {
    /// The value of a column as it travels.
    ///
    /// An id that refers to nothing, here or in the transaction: zero and below are marks of the
    /// host's own and travel as they are; anything else means nothing elsewhere and goes as NULL.
    pub(super) fn value(&self, tracked: &Tracked, image: &Image, column: usize) -> Option<Value> {
        let value = image.values.get(column)?.as_ref()?;
        let definition = &tracked.class.columns[column];
        if definition.references.is_empty() || *value == Value::Null {
            return Some(value.clone());
        }
        if let Some((class, key)) = reference(tracked, image, column) {
            return Some(Value::Ref(RowId { class, key }));
        }
        let conditional = definition.references.iter().all(|reference| reference.when.is_some());
        match value {
            Value::Int(id) if *id > 0 && !conditional => {
                tracing::warn!(
                    class = %tracked.class.name, column = %definition.name,
                    "a reference to a row that is not there travels as NULL"
                );
                Some(Value::Null)
            }
            value => Some(value.clone()),
        }
    }
}
