//! The keys of the rows that captured rows refer to.
//!
//! On SQLite triggers do not look them up (see [`triggers`](super::triggers)). They are worked out
//! when the changes are sealed, as they were **when the change was made**, although the tables have
//! moved on since: a row that was deleted, got another key, or whose local id was given to another
//! row, by a change that is not sealed yet, has left its history in `sync_change`, where the triggers
//! say of each change whether it belongs to that. Any other row is in its table with the key that it
//! had.
//!
//! `when` of a `[[reference]]` is asked of the captured row, and of other tables as they are now.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::changes::{self, About};
use super::{image, literals, settle};
use crate::catalog::{Catalog, Class, Column, Tracked, TypeKind, join_key, key_part};
use crate::error::{Context as _, Error, Result};
use crate::record::Value;
use crate::store::seal::order::{Step, chain};
use crate::store::session::{Cell, Datum, Session, literal, quote};

/// How deep keys may depend on keys.
const DEPTH_MAX: usize = 16;

/// A captured image whose references are asked for.
#[derive(Clone, Copy, Debug)]
pub struct Captured<'a> {
    /// Its class.
    pub tracked: &'a Tracked,
    /// `sync_change.seq` of the change.
    pub seq: i64,
    /// Whether it is the image from before the change.
    pub before: bool,
    /// Its values by the columns of the class; `None` for a column that it lacks.
    pub values: &'a [Option<Value>],
}

/// The keys that each image refers to, by [`Class::slots`]; `None` where it refers to nothing, the
/// condition does not hold, or the row is not there.
///
/// # Errors
/// Those of the database, also where a `when` does not run; [`Decode`](crate::Kind::Decode) for
/// changes that no trigger of ours wrote.
pub async fn resolve(
    session: &mut Session,
    catalog: &Catalog,
    images: &[Captured<'_>],
) -> Result<Vec<Vec<Option<Arc<str>>>>> {
    let conditions = Conditions::ask(session, images).await?;
    let mut wants = Vec::with_capacity(images.len());
    for (n, image) in images.iter().enumerate() {
        let slots = image.tracked.class.slots().enumerate();
        let wanted = slots.map(|(slot, found)| {
            let value = image.values.get(found.column)?.as_ref()?;
            let target = catalog.class(&found.reference.target)?;
            conditions.hold(n, slot).then_some(())?;
            Place::of(target, &found.reference.target_column, value)
        });
        wants.push(wanted.collect::<Vec<_>>());
    }
    let mut known = Known::default();
    for _ in 0..DEPTH_MAX {
        let mut needs = HashSet::new();
        let mut keys = Vec::with_capacity(images.len());
        for (image, wants) in images.iter().zip(&wants) {
            let at = Moment { seq: image.seq, before: image.before };
            let found = wants
                .iter()
                .map(|place| known.key(place.as_ref()?, at, DEPTH_MAX, &mut needs).map(Arc::from));
            keys.push(found.collect());
        }
        if needs.is_empty() {
            return Ok(keys);
        }
        known.learn(session, catalog, needs).await?;
    }
    Err(Error::failed("the key of a row depends on itself; see `track`"))
}

/// A row by a column that holds its local id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Place {
    class: i32,
    column: Arc<str>,
    local: Local,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Local {
    Int(i64),
    Text(String),
}

/// When: just after the change `seq`, or just before it.
#[derive(Clone, Copy)]
struct Moment {
    seq: i64,
    before: bool,
}

/// A part of a row's key.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(Option<String>),
    Row(Place),
}

/// One step in the life of a row whose key or local id did not stay.
struct Event {
    seq: i64,
    old: Option<Vec<Part>>,
    new: Option<Vec<Part>>,
}

impl Place {
    /// Where a reference points; `None` for a value that cannot be a local id.
    fn of(target: &Tracked, column: &Arc<str>, value: &Value) -> Option<Self> {
        let number = target
            .class
            .position(column)
            .and_then(|n| target.class.columns.get(n))
            .is_some_and(|column| column.kind == TypeKind::Int);
        let local = match value {
            Value::Int(id) => Local::Int(*id),
            Value::Bool(id) => Local::Int((*id).into()),
            Value::Text(text) => match text.parse() {
                Ok(id) if number => Local::Int(id),
                _ => Local::Text(text.clone()),
            },
            _ => return None,
        };
        Some(Self { class: target.id, column: Arc::clone(column), local })
    }

    fn datum(&self) -> Datum {
        match &self.local {
            Local::Int(id) => (*id).into(),
            Local::Text(text) => text.as_str().into(),
        }
    }

    fn cell(&self) -> Cell {
        match &self.local {
            Local::Int(id) => Cell::Int(*id),
            Local::Text(text) => Cell::Text(text.clone()),
        }
    }

    /// As notes begin with it.
    fn literal(&self) -> String {
        match &self.local {
            Local::Int(id) => id.to_string(),
            Local::Text(text) => literal(text),
        }
    }
}

/// What has been read so far.
#[derive(Default)]
struct Known {
    /// The life of each place as far as it is not sealed, in order.
    lives: HashMap<Place, Vec<Event>>,
    /// The key of the row that is in the table now.
    rows: HashMap<Place, Option<Vec<Part>>>,
    /// Classes that have any such life.
    lively: HashMap<i32, bool>,
}

impl Known {
    /// The key of the row at `place` at a moment. What must be read first is added to `needs`.
    fn key(
        &self,
        place: &Place,
        at: Moment,
        depth: usize,
        needs: &mut HashSet<Place>,
    ) -> Option<String> {
        let depth = depth.checked_sub(1)?;
        let Some(row) = self.rows.get(place) else {
            needs.insert(place.clone());
            return None;
        };
        let life = self.lives.get(place).map(Vec::as_slice).unwrap_or_default();
        let parts = state(life, row.as_ref(), at)?;
        let mut texts = Vec::with_capacity(parts.len());
        let mut whole = true;
        for part in parts {
            let text = match part {
                Part::Text(text) => text.clone(),
                Part::Row(place) => self.key(place, at, depth, needs),
            };
            whole &= text.is_some();
            texts.extend(text);
        }
        whole.then(|| join_key(&texts))
    }

    async fn learn(
        &mut self,
        session: &mut Session,
        catalog: &Catalog,
        needs: HashSet<Place>,
    ) -> Result<()> {
        let mut by_column: HashMap<(i32, Arc<str>), Vec<Place>> = HashMap::new();
        for place in needs {
            by_column.entry((place.class, Arc::clone(&place.column))).or_default().push(place);
        }
        for ((class, column), mut places) in by_column {
            places.sort();
            let Some(tracked) = catalog.tracked.get(&class) else {
                self.rows.extend(places.into_iter().map(|place| (place, None)));
                continue;
            };
            if self.is_lively(session, class).await? {
                self.read_lives(session, catalog, tracked, &column, &places).await?;
            }
            self.read_rows(session, catalog, tracked, &column, places).await?;
        }
        Ok(())
    }

    async fn is_lively(&mut self, session: &mut Session, class: i32) -> Result<bool> {
        if let Some(lively) = self.lively.get(&class) {
            return Ok(*lively);
        }
        let sql = "SELECT EXISTS (SELECT 1 FROM @sync_change \
                   WHERE class_id = $1 AND op IN (2, 3, 5) AND life IS NOT 0)";
        let lively = session.query_one(sql, vec![class.into()]).await?.flag(0)?;
        self.lively.insert(class, lively);
        Ok(lively)
    }

    async fn read_lives(
        &mut self,
        session: &mut Session,
        catalog: &Catalog,
        tracked: &Tracked,
        column: &Arc<str>,
        places: &[Place],
    ) -> Result<()> {
        let class = &tracked.class;
        let Some(position) = class.position(column) else { return Ok(()) };
        let ids = (class.local == [position]).then(|| places.iter().map(Place::literal).collect());
        settle::settle_class(session, catalog, tracked, ids).await?;
        let shapes = shapes(session, tracked).await?;
        let values: Vec<Cell> = places.iter().map(Place::cell).collect();
        let about =
            About { from: 0, column: position, values: values.iter().collect(), all: false };
        let mut lives: HashMap<Place, Vec<Event>> = HashMap::new();
        for change in changes::about(session, tracked, &about).await? {
            let (old, new) = change.images();
            let names = match &change.shape {
                Cell::Int(shape) => shapes.get(shape),
                _ => None,
            };
            let names = names.ok_or_else(|| Error::decode("the shape of a change is unknown"))?;
            let known = |image: Option<Vec<Cell>>| {
                image.map(|image| known(catalog, tracked, names, &image, column)).transpose()
            };
            let ((left, old), (came, new)) = (
                known(old)?.map_or((None, None), |(place, parts)| (place, Some(parts))),
                known(new)?.map_or((None, None), |(place, parts)| (place, Some(parts))),
            );
            let seq = change.seq;
            let steps = match (left, came) {
                (Some(left), Some(came)) if left == came => vec![(left, Event { seq, old, new })],
                (left, came) => {
                    let left = left.map(|place| (place, Event { seq, old, new: None }));
                    let came = came.map(|place| (place, Event { seq, old: None, new }));
                    left.into_iter().chain(came).collect()
                }
            };
            for (place, event) in steps {
                lives.entry(place).or_default().push(event);
            }
        }
        for place in places {
            let life = lives.remove(place).unwrap_or_default();
            self.lives.insert(place.clone(), in_order(life));
        }
        Ok(())
    }

    async fn read_rows(
        &mut self,
        session: &mut Session,
        catalog: &Catalog,
        tracked: &Tracked,
        column: &str,
        places: Vec<Place>,
    ) -> Result<()> {
        let class = &tracked.class;
        let key: Vec<&Column> = class.key.iter().filter_map(|n| class.columns.get(*n)).collect();
        let sql = format!(
            "SELECT {} FROM {} AS t WHERE t.{} = $1",
            literals::columns_sql(&key, "t"),
            quote(&class.table),
            quote(column)
        );
        let binds = places.iter().map(|place| vec![place.datum()]).collect();
        let columns: Vec<Option<&Column>> = key.iter().copied().map(Some).collect();
        for (place, rows) in places.into_iter().zip(session.query_each(&sql, binds).await?) {
            let parts = match rows.first() {
                None => None,
                Some(row) => {
                    let values = image::decode(row.text(0)?, &columns)?;
                    let parts = key.iter().zip(&values);
                    Some(parts.map(|(column, value)| part(catalog, column, value)).collect())
                }
            };
            self.rows.insert(place, parts);
        }
        Ok(())
    }
}

/// Puts events into the order in which they happened (see [`order`]): the times stay in place.
fn in_order(life: Vec<Event>) -> Vec<Event> {
    let steps: Vec<Step<&Vec<Part>>> = life
        .iter()
        .map(|event| Step { from: event.old.as_ref(), to: event.new.as_ref() })
        .collect();
    let order = chain(&steps);
    let event = |(time, n): (&Event, usize)| {
        let happened = life.get(n)?;
        Some(Event { seq: time.seq, old: happened.old.clone(), new: happened.new.clone() })
    };
    life.iter().zip(order).filter_map(event).collect()
}

/// What the key of a row was at a moment: `life` tells what it was before and after each of its
/// changes, `row` what it is now.
fn state<'a>(life: &'a [Event], row: Option<&'a Vec<Part>>, at: Moment) -> Option<&'a [Part]> {
    let passed = |event: &&Event| event.seq < at.seq || (event.seq == at.seq && !at.before);
    let later = life.iter().find(|event| !passed(event));
    let found = match (life.iter().rfind(passed), later) {
        (None, None) => row,
        // The first that happens to it is still to come. An insert: a reference ahead of its row.
        (None, Some(next)) => next.old.as_ref().or(next.new.as_ref()),
        (Some(last), next) => match (&last.new, next) {
            (Some(new), _) => Some(new),
            // It is gone: what is deleted with it referred to it, what is written refers ahead.
            (None, _) if at.before => last.old.as_ref(),
            (None, next) => next.and_then(|next| next.new.as_ref()),
        },
    };
    found.map(Vec::as_slice)
}

/// The lists of columns that images of a class have.
async fn shapes(session: &mut Session, tracked: &Tracked) -> Result<HashMap<i64, Vec<String>>> {
    let sql = "SELECT id, columns FROM @sync_shape WHERE class_id = $1";
    let mut shapes = HashMap::new();
    for row in session.query(sql, vec![tracked.id.into()]).await? {
        let names = serde_json::from_str(row.text(1)?).map_err(|error| {
            Error::decode("a list of columns is no JSON array").with_source(error)
        })?;
        shapes.insert(row.int(0)?, names);
    }
    Ok(shapes)
}

/// Where the row of an image is found by `column`, and its key.
fn known(
    catalog: &Catalog,
    tracked: &Tracked,
    names: &[String],
    image: &[Cell],
    column: &Arc<str>,
) -> Result<(Option<Place>, Vec<Part>)> {
    let class = &tracked.class;
    let columns: Vec<Option<&Column>> =
        names.iter().map(|name| class.position(name).and_then(|n| class.columns.get(n))).collect();
    let values = image::decode(&image::encode(image), &columns)?;
    let value = |name: &str| {
        let place = names.iter().position(|other| other == name);
        place.and_then(|n| values.get(n)).unwrap_or(&Value::Null)
    };
    let key = class.key.iter().filter_map(|n| class.columns.get(*n));
    let parts = key.map(|column| part(catalog, column, value(&column.name))).collect();
    Ok((Place::of(tracked, column, value(column)), parts))
}

fn part(catalog: &Catalog, column: &Column, value: &Value) -> Part {
    match column.references.as_slice() {
        [] => Part::Text(key_part(value, column.kind)),
        [one] if one.when.is_none() => catalog
            .class(&one.target)
            .and_then(|target| Place::of(target, &one.target_column, value))
            .map_or(Part::Text(None), Part::Row),
        // A key whose class depends on the row is no key that another row can refer to.
        _ => Part::Text(None),
    }
}

/// For which images the conditions of their conditional references hold.
struct Conditions {
    /// By image; images without conditional slots have none.
    held: HashMap<usize, Vec<bool>>,
}

impl Conditions {
    async fn ask(session: &mut Session, images: &[Captured<'_>]) -> Result<Self> {
        let mut by_class: HashMap<i32, Vec<usize>> = HashMap::new();
        for (n, image) in images.iter().enumerate() {
            if image.tracked.class.slots().any(|slot| slot.reference.when.is_some()) {
                by_class.entry(image.tracked.id).or_default().push(n);
            }
        }
        let mut held = HashMap::new();
        for numbers in by_class.into_values() {
            let Some(first) = numbers.first().and_then(|n| images.get(*n)) else { continue };
            let class = &first.tracked.class;
            let binds = numbers.iter().filter_map(|n| images.get(*n)).map(row_binds).collect();
            let answers = session
                .query_each(&conditions_sql(class), binds)
                .await
                .context(|| format!("a `when` of a reference of `{}` does not run", class.name))?;
            for (n, rows) in numbers.into_iter().zip(answers) {
                let Some(row) = rows.first() else { continue };
                let flags = (0..row.0.len()).map(|slot| row.flag(slot));
                held.insert(n, flags.collect::<Result<_>>()?);
            }
        }
        Ok(Self { held })
    }

    fn hold(&self, image: usize, slot: usize) -> bool {
        self.held.get(&image).is_none_or(|slots| slots.get(slot).copied().unwrap_or(false))
    }
}

/// A query that asks the conditions of all slots of one row, whose values are its binds.
fn conditions_sql(class: &Class) -> String {
    let asked: Vec<String> = class
        .slots()
        .map(|slot| match &slot.reference.when {
            Some(when) => {
                format!("coalesce(({}) <> 0, 0)", when.replace("{row}", "sync_captured"))
            }
            None => "1".to_owned(),
        })
        .collect();
    let row: Vec<String> = class
        .columns
        .iter()
        .enumerate()
        .map(|(n, column)| format!("${} AS {}", n + 1, quote(&column.name)))
        .collect();
    format!("SELECT {} FROM (SELECT {}) AS sync_captured", asked.join(", "), row.join(", "))
}

fn row_binds(image: &Captured<'_>) -> Vec<Datum> {
    let columns = image.tracked.class.columns.iter().enumerate();
    columns
        .map(|(n, column)| match image.values.get(n) {
            Some(Some(value)) => image::datum(value, column),
            _ => Datum::Int(None),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Option<Vec<Part>> {
        Some(vec![Part::Text(Some(text.to_owned()))])
    }

    fn at(life: &[Event], row: Option<&str>, seq: i64, before: bool) -> Option<String> {
        let row = row.and_then(key);
        let parts = state(life, row.as_ref(), Moment { seq, before })?;
        match parts {
            [Part::Text(text)] => text.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_row_is_known_by_the_key_that_it_had_at_the_time() {
        // Deleted at 10, its id given to another at 20, whose key changes at 30.
        let life = [
            Event { seq: 10, old: key("a"), new: None },
            Event { seq: 20, old: None, new: key("b") },
            Event { seq: 30, old: key("b"), new: key("c") },
        ];
        let now = Some("c");
        assert_eq!(at(&life, now, 5, false).as_deref(), Some("a"));
        assert_eq!(at(&life, now, 10, true).as_deref(), Some("a"), "its own delete");
        assert_eq!(at(&life, now, 15, true).as_deref(), Some("a"), "what goes after it");
        assert_eq!(at(&life, now, 15, false).as_deref(), Some("b"), "what comes before it");
        assert_eq!(at(&life, now, 20, false).as_deref(), Some("b"));
        assert_eq!(at(&life, now, 30, true).as_deref(), Some("b"));
        assert_eq!(at(&life, now, 30, false).as_deref(), Some("c"));
        assert_eq!(at(&life, now, 99, true).as_deref(), Some("c"));
        assert_eq!(at(&life[..1], None, 15, false), None, "it dangles");
        assert_eq!(at(&[], Some("z"), 1, false).as_deref(), Some("z"));
    }
}
