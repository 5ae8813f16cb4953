//! Reads what the triggers wrote.

use std::collections::HashMap;

use super::triggers::{DELETE, INSERT, MORE, NOTE, PIECE, UPDATE};
use super::{image, legacy, settle};
use crate::catalog::{Catalog, Class, Tracked};
use crate::error::{Error, Result};
use crate::store::session::{Cell, Datum, Row, Session};

/// What every query for [`assemble`] selects, before the values.
const HEAD: &str = "c.seq, c.class_id, c.op, c.shape, c.life, c.changed_at, \
                               json_array_length(s.columns)";
/// How many columns those are.
const HEADS: usize = 7;

/// A change as it was captured: a row of `sync_change`, with those that hold further columns.
#[derive(Debug)]
pub(super) struct Change {
    /// Its number, and that of the last row it takes.
    pub(super) seq: i64,
    pub(super) last: i64,
    pub(super) class: i64,
    pub(super) op: i64,
    pub(super) shape: Cell,
    at: Cell,
    /// By an earlier version's triggers: the images lie elsewhere.
    pub(super) legacy: bool,
    columns: usize,
    new: Vec<Cell>,
    old: Vec<Cell>,
}

/// The row before a change and after it, `None` where it was not there.
pub(super) type Images = (Option<Vec<Cell>>, Option<Vec<Cell>>);

/// What [`read`] found.
#[derive(Debug)]
pub struct Read {
    /// A row each.
    pub rows: Vec<Row>,
    /// Whether there may be more.
    pub full: bool,
}

/// The first changes in order, up to about `limit` rows of `sync_change`: `seq`, `class_id`, `op`,
/// `shape`, NULL, old image, new image, NULL, NULL, `changed_at`, and the last `seq` that it takes.
/// A row that changed its local id left and came. Notes are settled first, so there are none.
///
/// # Errors
/// Those of the database.
pub async fn read(session: &mut Session, catalog: &Catalog, limit: i64) -> Result<Read> {
    let (mut found, mut full) = window(session, limit).await?;
    if found.iter().any(|change| change.op == NOTE) {
        let notes = found.into_iter().filter(|change| change.op == NOTE).collect();
        settle::settle(session, catalog, notes).await?;
        (found, full) = window(session, limit).await?;
    }
    legacy::fill(session, &mut found).await?;
    let mut rows = Vec::with_capacity(found.len());
    for change in found {
        let class = catalog.tracked.get(&i32::try_from(change.class).unwrap_or_default());
        let (at, shape) = (milliseconds(&change.at)?, change.shape.clone());
        let (seq, last, op, class_id) = (change.seq, change.last, change.op, change.class);
        let mut push = |op: i64, old: Option<&[Cell]>, new: Option<&[Cell]>| {
            let text = |image: Option<&[Cell]>| {
                image.map_or(Cell::Null, |cells| Cell::Text(image::encode(cells)))
            };
            let mut cells = vec![Cell::Int(seq), Cell::Int(class_id), Cell::Int(op), shape.clone()];
            cells.extend([Cell::Null, text(old), text(new), Cell::Null, Cell::Null, at.clone()]);
            cells.push(Cell::Int(last));
            rows.push(Row(cells));
        };
        match change.images() {
            (Some(old), Some(new))
                if class.is_some_and(|tracked| moves(&tracked.class, &old, &new)) =>
            {
                push(DELETE, Some(&old), None);
                push(INSERT, None, Some(&new));
            }
            (old, new) => push(op, old.as_deref(), new.as_deref()),
        }
    }
    Ok(Read { rows, full })
}

/// An update that is a delete and an insert: of the local primary key, and any of a set.
fn moves(class: &Class, old: &[Cell], new: &[Cell]) -> bool {
    class.set || class.local.iter().any(|n| old.get(*n) != new.get(*n))
}

async fn window(session: &mut Session, limit: i64) -> Result<(Vec<Change>, bool)> {
    let sql = format!(
        "SELECT {HEAD}, {} FROM @sync_change c LEFT JOIN @sync_shape s ON s.id = c.shape \
         ORDER BY c.seq LIMIT $1",
        values_sql()
    );
    let rows = session.query(&sql, vec![limit.into()]).await?;
    let full = i64::try_from(rows.len()).is_ok_and(|count| count >= limit);
    let mut changes = assemble(rows)?;
    if full && changes.last().is_some_and(|last| !last.legacy && last.new.len() < last.columns) {
        changes.pop();
    }
    Ok((changes, full))
}

/// Whole changes of a class by their numbers, in order.
pub(super) async fn of(
    session: &mut Session,
    tracked: &Tracked,
    seqs: Vec<i64>,
) -> Result<Vec<Change>> {
    let sql = format!(
        "SELECT {HEAD}, {} FROM @sync_change c LEFT JOIN @sync_shape s ON s.id = c.shape \
         WHERE c.seq BETWEEN $1 AND $2 AND c.class_id = $3 ORDER BY c.seq",
        values_sql()
    );
    let rows = i64::try_from(tracked.class.columns.len().div_ceil(PIECE)).unwrap_or(1).max(1);
    let binds =
        seqs.into_iter().map(|seq| vec![seq.into(), (seq + rows - 1).into(), tracked.id.into()]);
    let found = session.query_each(&sql, binds.collect()).await?;
    let mut changes = Vec::with_capacity(found.len());
    for rows in found {
        // What lies behind a narrower one is another.
        changes.extend(assemble(rows)?.into_iter().take(1));
    }
    legacy::fill(session, &mut changes).await?;
    Ok(changes)
}

/// Which changes of a class, notes aside, are asked for.
pub(super) struct About<'a> {
    /// From this number on.
    pub(super) from: i64,
    /// Where this column holds,
    pub(super) column: usize,
    /// before or after, one of these values.
    pub(super) values: Vec<&'a Cell>,
    /// All of them, or only those in which a row comes, goes or gets another key.
    pub(super) all: bool,
}

/// The changes that are asked for, and perhaps some more.
pub(super) async fn about(
    session: &mut Session,
    tracked: &Tracked,
    about: &About<'_>,
) -> Result<Vec<Change>> {
    let mut sql =
        "SELECT seq FROM @sync_change WHERE seq >= $1 AND class_id = $2 AND op < 4".to_owned();
    if !about.all {
        sql.push_str(" AND life IS NOT 0");
    }
    let literals: Option<Vec<serde_json::Value>> = about
        .values
        .iter()
        .map(|value| match value {
            Cell::Int(id) => Some((*id).into()),
            Cell::Text(id) => Some(id.as_str().into()),
            _ => None,
        })
        .collect();
    let mut binds: Vec<Datum> = vec![about.from.into(), tracked.id.into()];
    // Columns of further rows are left to the reader, and so is what JSON has no literals for.
    if let Some(literals) = literals.filter(|_| about.column < PIECE) {
        let (n, list) = (about.column, "(SELECT value FROM json_each($3))");
        sql.push_str(&format!(" AND (n{n} IN {list} OR o{n} IN {list} OR life IS NULL)"));
        binds.push(serde_json::Value::Array(literals).to_string().into());
    }
    let mut seqs = Vec::new();
    for row in session.query(&sql, binds).await? {
        seqs.push(row.int(0)?);
    }
    of(session, tracked, seqs).await
}

/// The values of a row of `sync_change`.
fn values_sql() -> String {
    let places = ["n", "o"].iter().flat_map(|letter| (0..PIECE).map(move |n| (letter, n)));
    places.map(|(letter, n)| format!("c.{letter}{n}")).collect::<Vec<_>>().join(",")
}

/// Changes from their rows, which lie one behind the other. A change that is cut off at the end
/// keeps what there is of it.
fn assemble(rows: Vec<Row>) -> Result<Vec<Change>> {
    let mut changes: Vec<Change> = Vec::new();
    for row in rows {
        let (seq, op) = (row.int(0)?, row.int(2)?);
        if op == MORE
            && let Some(change) = changes.last_mut()
        {
            change.last = seq;
            change.extend(row.0);
            continue;
        }
        let columns = row.opt_int(6)?.and_then(|count| usize::try_from(count).ok());
        let mut change = Change {
            seq,
            last: seq,
            class: row.int(1)?,
            op,
            shape: row.0.get(3).cloned().unwrap_or(Cell::Null),
            at: row.0.get(5).cloned().unwrap_or(Cell::Null),
            legacy: row.opt_int(4)?.is_none() && op < NOTE && row.opt_int(3)?.is_some(),
            columns: columns.unwrap_or_default(),
            new: Vec::new(),
            old: Vec::new(),
        };
        change.extend(row.0);
        changes.push(change);
    }
    Ok(changes)
}

impl Change {
    fn extend(&mut self, mut cells: Vec<Cell>) {
        let count = self.columns.saturating_sub(self.new.len()).min(PIECE);
        let old = HEADS + PIECE;
        if let Some(values) = cells.get_mut(old..) {
            self.old.extend(values.iter_mut().take(count).map(take));
        }
        if let Some(values) = cells.get_mut(HEADS..old) {
            self.new.extend(values.iter_mut().take(count).map(take));
        }
    }

    /// Gives it the images that lie elsewhere.
    pub(super) fn fill(&mut self, images: &mut HashMap<(i64, bool), Vec<Cell>>) {
        let mut image = |after| {
            let mut cells = images.remove(&(self.seq, after)).unwrap_or_default();
            cells.resize(self.columns, Cell::Null);
            cells
        };
        (self.old, self.new) = match self.op {
            UPDATE => (image(false), image(true)),
            DELETE => (Vec::new(), image(false)),
            _ => (Vec::new(), image(true)),
        };
    }

    /// The row before it and after it.
    pub(super) fn images(&self) -> Images {
        match self.op {
            INSERT => (None, Some(self.new.clone())),
            UPDATE => (Some(self.old.clone()), Some(self.new.clone())),
            DELETE | NOTE => (Some(self.new.clone()), None),
            _ => (None, None),
        }
    }
}

fn take(cell: &mut Cell) -> Cell {
    std::mem::replace(cell, Cell::Null)
}

/// A Julian day as a time; a text (an earlier version's) as it is.
fn milliseconds(at: &Cell) -> Result<Cell> {
    const EPOCH: f64 = 2_440_587.5;
    match at {
        #[expect(clippy::cast_possible_truncation, reason = "milliseconds are whole numbers")]
        Cell::Float(day) => Ok(Cell::Time(((day - EPOCH) * 86_400_000.0).round() as i64)),
        Cell::Text(_) => Ok(at.clone()),
        _ => Err(Error::failed("a change says nothing of its time")),
    }
}

/// Removes what was sealed: everything up to the number `last`.
///
/// # Errors
/// Those of the database.
pub async fn take_up_to(session: &mut Session, last: i64) -> Result<()> {
    for table in ["change", "image"] {
        let sql = format!("DELETE FROM @sync_{table} WHERE seq <= $1");
        session.execute(&sql, vec![Datum::from(last)]).await?;
    }
    Ok(())
}
