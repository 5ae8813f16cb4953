//! Which noted rows REPLACE removed.
//!
//! A note says that a row was there when another was about to take a value of its unique indexes.
//! What became of it no trigger saw, but it is written down: whatever else happens to a row is
//! captured. So where the next that is known of its local id does not follow from the row (it comes
//! anew, or the table has it no more), the row was removed, and the last note of it is its delete.
//! Otherwise the note came to nothing: the insert was ignored, or failed, or updated the row, or a
//! trigger made room.

use std::collections::HashMap;

use super::changes::{self, Change};
use super::triggers::{DELETE, column_of};
use crate::catalog::{Catalog, Class, Tracked};
use crate::error::{Kind, Result};
use crate::store::seal::order::{Step, chain};
use crate::store::session::{Cell, Datum, Row, Session, quote};

type Image = Vec<Cell>;

/// Makes deletes of those `notes` whose rows were removed, and removes the others. The caller holds
/// the write lock: nobody is in the middle of a statement.
///
/// # Errors
/// Those of the database.
pub(super) async fn settle(
    session: &mut Session,
    catalog: &Catalog,
    notes: Vec<Change>,
) -> Result<()> {
    let mut by_class: HashMap<i64, Vec<Change>> = HashMap::new();
    for note in notes {
        by_class.entry(note.class).or_default().push(note);
    }
    let (mut real, mut void) = (Vec::new(), Vec::new());
    for (class, notes) in by_class {
        let tracked = i32::try_from(class).ok().and_then(|id| catalog.tracked.get(&id));
        let Some(tracked) = tracked else {
            void.extend(notes);
            continue;
        };
        for (note, gone) in judge(session, tracked, notes).await? {
            if gone { real.push(note) } else { void.push(note) }
        }
    }
    let seqs = real.iter().map(|note| note.seq).collect();
    let sql = format!(
        "UPDATE @sync_change SET op = {DELETE} WHERE seq IN (SELECT value FROM json_each($1))"
    );
    session.execute(&sql, vec![Datum::Ints(seqs)]).await?;
    let rows = |notes: &[Change]| {
        notes.iter().map(|note| vec![note.seq.into(), note.last.into()]).collect::<Vec<_>>()
    };
    let sql = "UPDATE @sync_change SET note = NULL, life = 1 WHERE seq BETWEEN $1 AND $2";
    session.execute_each(sql, rows(&real)).await?;
    let sql = "DELETE FROM @sync_change WHERE seq BETWEEN $1 AND $2";
    session.execute_each(sql, rows(&void)).await?;
    Ok(())
}

/// Settles the notes of a class that are about rows with one of these local ids, as literals; all of
/// them without.
pub(super) async fn settle_class(
    session: &mut Session,
    catalog: &Catalog,
    tracked: &Tracked,
    ids: Option<Vec<String>>,
) -> Result<()> {
    let sql = "SELECT seq FROM @sync_change WHERE class_id = $1 AND note IS NOT NULL AND op = 5";
    let found = match ids {
        None => vec![session.query(sql, vec![tracked.id.into()]).await?],
        Some(ids) => {
            // `-` follows `,`, which stands behind the local id.
            let sql = format!("{sql} AND note >= $2 AND note < $2 || '-'");
            let binds = ids.into_iter().map(|id| vec![tracked.id.into(), id.into()]).collect();
            session.query_each(&sql, binds).await?
        }
    };
    let mut seqs = Vec::new();
    for row in found.into_iter().flatten() {
        seqs.push(row.int(0)?);
    }
    if seqs.is_empty() {
        return Ok(());
    }
    let notes = changes::of(session, tracked, seqs).await?;
    settle(session, catalog, notes).await
}

/// What is known of a row with one local id, in the order in which it was written down.
#[derive(Default)]
struct Life {
    events: Vec<(i64, Step<Image>)>,
    notes: Vec<(i64, Image)>,
}

/// For each note whether its row was removed.
async fn judge(
    session: &mut Session,
    tracked: &Tracked,
    notes: Vec<Change>,
) -> Result<Vec<(Change, bool)>> {
    let class = &tracked.class;
    let mut lives: Vec<(Image, Life)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for note in &notes {
        let (Some(image), _) = note.images() else { continue };
        let id = local(class, &image);
        let place = *places.entry(format!("{id:?}")).or_insert_with(|| {
            lives.push((id, Life::default()));
            lives.len() - 1
        });
        if let Some((_, life)) = lives.get_mut(place) {
            life.notes.push((note.seq, image));
        }
    }
    for change in since(session, tracked, &notes, &lives).await? {
        let (old, new) = change.images();
        let at = |image: &Option<Image>| {
            let id = local(class, image.as_ref()?);
            places.get(&format!("{id:?}")).copied()
        };
        let (left, came) = (at(&old), at(&new));
        let steps = match (left, came) {
            (Some(place), Some(other)) if place == other => {
                vec![(place, Step { from: old, to: new })]
            }
            _ => {
                let left = left.map(|place| (place, Step { from: old, to: None }));
                let came = came.map(|place| (place, Step { from: None, to: new }));
                left.into_iter().chain(came).collect()
            }
        };
        for (place, step) in steps {
            // What is written down before the first note has happened before it.
            if let Some((_, life)) = lives.get_mut(place)
                && life.notes.first().is_some_and(|(first, _)| *first < change.seq)
            {
                life.events.push((change.seq, step));
            }
        }
    }
    let now = present(session, class, lives.iter().map(|(id, _)| id)).await?;
    let mut gone: Vec<i64> = Vec::new();
    for (n, (_, life)) in lives.iter().enumerate() {
        let now = now.as_ref().and_then(|rows| rows.get(n));
        gone.extend(removed(life, now.map(Option::as_ref)));
    }
    gone.sort_unstable();
    Ok(notes
        .into_iter()
        .map(|note| {
            let real = gone.binary_search(&note.seq).is_ok();
            (note, real)
        })
        .collect())
}

/// The notes of a row that are its deletes: with them, what is known of it fits together.
fn removed(life: &Life, now: Option<Option<&Image>>) -> Vec<i64> {
    let mut chosen: Vec<i64> = Vec::new();
    let mut least = misfit(life, &chosen, now);
    // The last note before a gap is the one.
    for (seq, _) in life.notes.iter().rev() {
        chosen.push(*seq);
        let with = misfit(life, &chosen, now);
        if with < least {
            least = with;
        } else {
            chosen.pop();
        }
    }
    chosen
}

/// How badly the steps of a row fit one to the next, and the last to what is in the table, when these
/// notes are deletes. That a row is there or not weighs more than what is in it: sealing fills in a
/// key that the host left NULL.
fn misfit(life: &Life, deletes: &[i64], now: Option<Option<&Image>>) -> usize {
    const THERE: usize = 1_000;
    let noted = life.notes.iter().filter(|(seq, _)| deletes.contains(seq));
    let noted = noted.map(|(seq, image)| (*seq, Step { from: Some(image), to: None }));
    let events = life
        .events
        .iter()
        .map(|(seq, step)| (*seq, Step { from: step.from.as_ref(), to: step.to.as_ref() }));
    let mut steps: Vec<(i64, Step<&Image>)> = events.chain(noted).collect();
    steps.sort_by_key(|(seq, _)| *seq);
    let steps: Vec<Step<&Image>> = steps.into_iter().map(|(_, step)| step).collect();
    let gap = |before: Option<&Image>, after: Option<&Image>| match (before, after) {
        (Some(before), Some(after)) if !alike(before, after) => 1,
        (Some(_), Some(_)) | (None, None) => 0,
        _ => THERE,
    };
    let noted = life.notes.first().map(|(_, image)| image);
    let (mut state, mut total) = (noted, 0);
    for (n, step) in chain(&steps).into_iter().filter_map(|n| steps.get(n)).enumerate() {
        // An update that led up to the first note may be written down behind it.
        let led_up = n == 0 && step.from.is_some() && step.to == noted;
        if !led_up {
            total += gap(state, step.from);
        }
        state = step.to;
    }
    total + now.map_or(0, |now| gap(state, now))
}

/// Two images are of one row, though one was captured before a column was added.
fn alike(one: &Image, other: &Image) -> bool {
    one.iter().zip(other).all(|(one, other)| one == other)
}

fn local(class: &Class, image: &Image) -> Image {
    class.local.iter().map(|n| image.get(*n).cloned().unwrap_or(Cell::Null)).collect()
}

/// The changes that may be about the same rows, from the first note on.
async fn since(
    session: &mut Session,
    tracked: &Tracked,
    notes: &[Change],
    lives: &[(Image, Life)],
) -> Result<Vec<Change>> {
    let Some(from) = notes.iter().map(|note| note.seq).min() else { return Ok(Vec::new()) };
    let values: Vec<&Cell> = lives.iter().filter_map(|(id, _)| id.first()).collect();
    let column = tracked.class.local.first().copied().unwrap_or_default();
    changes::about(session, tracked, &changes::About { from, column, values, all: true }).await
}

/// The rows with these local ids that are in the table. Nothing, when it is not to be had: the host
/// has renamed something, and the class is not up to date yet.
async fn present(
    session: &mut Session,
    class: &Class,
    ids: impl Iterator<Item = &Image>,
) -> Result<Option<Vec<Option<Image>>>> {
    let local = class.local.iter().filter_map(|n| class.columns.get(*n)).enumerate();
    // The first finds it in an index by the column's own collation, the second is exact.
    let is = local.map(|(n, column)| {
        let column = column_of("t", &column.name);
        format!("{column} IS ${0} AND {column} IS ${0} COLLATE BINARY", n + 1)
    });
    let is = is.collect::<Vec<_>>().join(" AND ");
    let sql = format!("SELECT t.* FROM {} AS t WHERE {is}", quote(&class.table));
    let binds = ids.map(|id| id.iter().map(datum).collect()).collect();
    match session.query_each(&sql, binds).await {
        Ok(rows) => {
            let first = |rows: Vec<Row>| rows.into_iter().next().map(|row| row.0);
            Ok(Some(rows.into_iter().map(first).collect()))
        }
        Err(error) if error.kind() == Kind::Failed => {
            tracing::warn!(class = %class.name, error = %error, "rows that were replaced cannot be looked for");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn datum(cell: &Cell) -> Datum {
    match cell {
        Cell::Null => Datum::Int(None),
        Cell::Int(number) | Cell::Time(number) => Datum::Int(Some(*number)),
        Cell::Float(number) => Datum::Float(Some(*number)),
        Cell::Text(text) => Datum::Text(Some(text.clone())),
        Cell::Bytes(bytes) => Datum::Bytes(Some(bytes.clone())),
        Cell::Uuid(id) => Datum::from(*id),
    }
}
