//! Works out the keys of the rows that a transaction concerns, and of the rows they refer to, as
//! they were before the transaction and as they are after it.
//!
//! A row that the transaction touched teaches its own key to those that refer to it. For any other
//! row the trigger looked the key up at once; where it was not there, it is in the table.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::read::{Change, Image, Transaction};
use super::ways::{Travels, Way, Ways, referred};
use crate::catalog::decide::UUID_COLUMN;
use crate::catalog::{Catalog, Column, Tracked, TypeKind, join_key, key_part};
use crate::error::{Error, Result};
use crate::merge::TreeMerge;
use crate::record::{RowId, Value};
use crate::store::rows;
use crate::store::session::Session;

/// A row as a reference names it: its class, a column of that, the local value in it.
type Place = (Arc<str>, Arc<str>, String);

/// The keys of a row that the transaction touched.
#[derive(Clone, Debug, Default)]
struct Keys {
    before: Side,
    after: Side,
}

/// A row before or after the transaction.
#[derive(Clone, Debug, Default)]
struct Side {
    here: bool,
    key: Option<Arc<str>>,
}

impl Keys {
    /// The key by which a reference of that moment goes: a row that is not there then is known by
    /// the key of the other side.
    fn at(&self, moment: Moment) -> Option<&Arc<str>> {
        let (own, other) = match moment {
            Moment::Before => (&self.before, &self.after),
            Moment::After => (&self.after, &self.before),
        };
        if own.here { own.key.as_ref() } else { other.key.as_ref() }
    }

    fn side(&mut self, moment: Moment) -> &mut Side {
        match moment {
            Moment::Before => &mut self.before,
            Moment::After => &mut self.after,
        }
    }
}

/// What is known of keys.
pub(super) struct Locals<'a> {
    merge: &'a TreeMerge,
    touched: HashMap<Place, Keys>,
    /// The classes of these.
    classes: HashSet<Arc<str>>,
    /// Rows that the transaction did not touch; `None` is not there.
    others: HashMap<Place, Option<Arc<str>>>,
}

/// Before the transaction, or after it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    Before,
    After,
}

/// Rounds of "a key that depends on a key that …": deeper chains than this are refused.
const DEPTH_MAX: usize = 16;

/// Rounds of spreading such a chain, whatever the order of the rows.
const ROUNDS_MAX: usize = 2 * DEPTH_MAX;

impl<'a> Locals<'a> {
    /// Nothing is known yet.
    pub(super) fn new(merge: &'a TreeMerge) -> Self {
        Self { merge, touched: HashMap::new(), classes: HashSet::new(), others: HashMap::new() }
    }

    /// Fills in the key of every image and every reference that can be found. Done again when rows
    /// have been added.
    pub(super) async fn resolve(
        &mut self,
        session: &mut Session,
        catalog: &Catalog,
        ways: &mut Ways,
    ) -> Result<()> {
        for way in ways.rows.values() {
            for (image, moment) in [(&way.first, Moment::Before), (&way.last, Moment::After)] {
                let Some(image) = image else { continue };
                if let Some(place) = own_place(&way.tracked, image) {
                    self.classes.insert(Arc::clone(&way.tracked.class.name));
                    self.touched.entry(place).or_default().side(moment).here = true;
                }
            }
        }
        for _ in 0..DEPTH_MAX {
            let wanted = self.step(ways)?;
            if wanted.is_empty() {
                return Ok(());
            }
            self.look_up(session, catalog, wanted).await?;
        }
        Err(too_deep())
    }

    /// What is known spreads until nothing moves; what is not known is returned.
    fn step(&mut self, ways: &mut Ways) -> Result<HashSet<Place>> {
        let mut wanted = HashSet::new();
        // Only rows that refer to others of the transaction can have more to learn.
        let mut open: Vec<&mut Way> = Vec::new();
        for way in ways.rows.values_mut() {
            if self.settle_way(way, &mut wanted).1 {
                open.push(way);
            }
        }
        for _ in 0..ROUNDS_MAX {
            let mut moved = false;
            for way in &mut open {
                moved |= self.settle_way(way, &mut wanted).0;
            }
            if !moved {
                return Ok(wanted);
            }
        }
        Err(too_deep())
    }

    /// Says whether anything changed, and whether the row refers to others of the transaction.
    fn settle_way(&mut self, way: &mut Way, wanted: &mut HashSet<Place>) -> (bool, bool) {
        // What travels depends on its keys: these first.
        let (mut moved, mut open) = self.settle_both(way, &Travels::Slots(Vec::new()), wanted);
        let travels = way.travels(self.merge.class(&way.tracked.class.name).is_grouped());
        if travels != Travels::Slots(Vec::new()) {
            let (more, refers) = self.settle_both(way, &travels, wanted);
            moved |= more;
            open |= refers;
        }
        (moved, open)
    }

    fn settle_both(
        &mut self,
        way: &mut Way,
        travels: &Travels,
        wanted: &mut HashSet<Place>,
    ) -> (bool, bool) {
        let Way { tracked, first, last, .. } = way;
        let (mut moved, mut open) = (false, false);
        for (image, moment) in [(first, Moment::Before), (last, Moment::After)] {
            let Some(image) = image else { continue };
            let needed = |n: usize| match (travels, moment) {
                (Travels::Whole, _) => true,
                (Travels::Slots(_), Moment::Before) => false,
                (Travels::Slots(changed), Moment::After) => changed.contains(&n),
            };
            let (changed, refers) = self.refer(tracked, image, moment, needed, wanted);
            moved |= changed | self.teach(tracked, image, moment);
            open |= refers;
        }
        (moved, open)
    }

    /// Resolves the references of an image: where no row of the transaction is concerned only those
    /// of its key and those that are `needed`.
    fn refer(
        &self,
        tracked: &Tracked,
        image: &mut Image,
        moment: Moment,
        needed: impl Fn(usize) -> bool,
        wanted: &mut HashSet<Place>,
    ) -> (bool, bool) {
        let (mut moved, mut open) = (false, false);
        image.unnamed.clear();
        for (n, slot) in tracked.class.slots().enumerate() {
            let known = image.refs[n].is_some();
            let reference = slot.reference;
            let touched = self.classes.contains(&reference.target);
            // Where a condition was to hold, only the trigger knew whether it did.
            let conditional = reference.when.is_some();
            let needed = slot.in_key || needed(n);
            if (!touched && (known || !needed)) || (!known && conditional) {
                continue;
            }
            let Some(local) = local_text(image, slot.column) else { continue };
            let place =
                (Arc::clone(&reference.target), Arc::clone(&reference.target_column), local);
            let key = match (self.touched.get(&place), self.others.get(&place)) {
                (Some(keys), _) => {
                    open = true;
                    let key = keys.at(moment);
                    if key.is_none() && conditional {
                        continue;
                    }
                    if key.is_none() {
                        image.unnamed.push(n);
                    }
                    key
                }
                (None, _) if known => continue,
                (None, Some(key)) => key.as_ref(),
                (None, None) => {
                    if needed {
                        wanted.insert(place);
                    }
                    continue;
                }
            };
            if image.refs[n].as_ref() != key {
                image.refs[n] = key.cloned();
                moved = true;
            }
        }
        (moved, open)
    }

    /// Works out the key of an image, for those that refer to it.
    fn teach(&mut self, tracked: &Tracked, image: &mut Image, moment: Moment) -> bool {
        let key = key_of(tracked, image);
        let changed = image.key != key;
        image.key = key;
        if let Some(place) = own_place(tracked, image)
            && let Some(keys) = self.touched.get_mut(&place)
        {
            keys.side(moment).key.clone_from(&image.key);
        }
        changed
    }

    /// Asks the tables for what neither a trigger nor the transaction knew.
    async fn look_up(
        &mut self,
        session: &mut Session,
        catalog: &Catalog,
        wanted: HashSet<Place>,
    ) -> Result<()> {
        let mut by_column: HashMap<(Arc<str>, Arc<str>), Vec<String>> = HashMap::new();
        for (class, column, local) in wanted {
            by_column.entry((class, column)).or_default().push(local);
        }
        for ((class, column), list) in by_column {
            let found = match catalog.class(&class) {
                Some(tracked) => {
                    rows::keys_of_locals(session, catalog, tracked, &column, list.clone()).await?
                }
                None => HashMap::new(),
            };
            for local in list {
                let key = found.get(&local).map(Arc::clone);
                self.others.insert((Arc::clone(&class), Arc::clone(&column), local), key);
            }
        }
        Ok(())
    }
}

/// The value of a column as it travels.
///
/// An id that refers to nothing, here or in the transaction: zero and below are marks of the
/// host's own and travel as they are; anything else means nothing elsewhere and goes as NULL.
pub(super) fn value(tracked: &Tracked, image: &Image, column: usize) -> Option<Value> {
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

fn too_deep() -> Error {
    Error::failed("the key of a row depends on itself; see `track`")
}

/// How others refer to the row of an image.
fn own_place(tracked: &Tracked, image: &Image) -> Option<Place> {
    let class = &tracked.class;
    let column = referred(class)?;
    let local = local_text(image, column)?;
    Some((Arc::clone(&class.name), Arc::clone(&class.columns[column].name), local))
}

/// The local value of a column as text; `None` for NULL, or a column that the image lacks.
pub(super) fn local_text(image: &Image, column: usize) -> Option<String> {
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

/// A row whose uuid the host left NULL gets one: in the table (uncaptured) and in all images of the
/// transaction, by its local id. Where the table takes none, the row stays without a key.
pub(super) async fn fill_missing_uuids(
    session: &mut Session,
    transaction: &mut Transaction,
) -> Result<()> {
    let mut given: BTreeMap<(i32, String), (Arc<Tracked>, Option<String>)> = BTreeMap::new();
    for change in &mut transaction.changes {
        let tracked = Arc::clone(&change.tracked);
        for (place, _) in without_uuid(change) {
            let uuid = Some(crate::id::random().hyphenated().to_string());
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
