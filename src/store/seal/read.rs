//! Reads captured changes and cuts them into transactions, in the order in which they are sealed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::order;
use crate::catalog::{Catalog, Column, Tracked};
use crate::error::{Context as _, Error, Result};
use crate::record::Value;
use crate::store::image;
use crate::store::session::{Datum, Dialect, Row, Session};
use crate::store::sqlite::changes;
use crate::store::sqlite::refs::{self, Captured};

/// A captured change of one row.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) seq: i64,
    pub(super) tracked: Arc<Tracked>,
    pub(super) old: Option<Image>,
    pub(super) new: Option<Image>,
    /// Milliseconds since 1970.
    pub(super) changed_at: i64,
}

/// A row as it was captured.
#[derive(Clone, Debug)]
pub(super) struct Image {
    /// By the columns of the class; `None` where the image does not have the column.
    pub(super) values: Vec<Option<Value>>,
    /// Columns that the class does not know (yet).
    pub(super) strange: Vec<(Arc<str>, Value)>,
    /// Keys of referenced rows, by [`crate::catalog::Class::slots`]; `None` is "none, or not found".
    pub(super) refs: Vec<Option<Arc<str>>>,
    /// Slots that refer to a row which has no key then.
    pub(super) unnamed: Vec<usize>,
    /// The row's key, once it is worked out.
    pub(super) key: Option<Arc<str>>,
}

/// One transaction's changes, in the order in which they were made.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    pub(super) changes: Vec<Change>,
}

/// What one look at `sync_change` found.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Whole transactions, ordered by their highest `seq`.
    pub(super) transactions: Vec<Transaction>,
    /// Every `seq` that is dealt with by sealing them; on SQLite all before the last are as well.
    pub(super) seqs: Vec<i64>,
    /// Whether there may be more.
    pub(super) more: bool,
}

/// Column lists of images, by `sync_shape.id`.
pub type Shapes = HashMap<i32, Arc<[Arc<str>]>>;

/// Reads up to about `limit` changes; a transaction that is larger is read whole.
///
/// Transactions come ordered by their highest `seq`, all seen in one snapshot: one that depends on
/// another (same row, or a foreign key) always has a higher one, and is never visible without it.
/// `gap_ms` separates SQLite's transactions that nobody marked.
pub(super) async fn window(
    session: &mut Session,
    catalog: &Catalog,
    shapes: &mut Shapes,
    limit: usize,
    gap_ms: i64,
) -> Result<Window> {
    let mut limit = limit.max(1);
    loop {
        let raw = match session.dialect() {
            Dialect::Postgres => postgres(session, limit).await?,
            Dialect::Sqlite => sqlite(session, catalog, limit, gap_ms).await?,
        };
        if raw.groups.is_empty() && raw.more {
            limit = limit.saturating_mul(4);
            continue;
        }
        return decode(session, catalog, shapes, raw).await;
    }
}

/// Rows of whole transactions.
#[derive(Default)]
struct Raw {
    groups: Vec<Vec<Row>>,
    seqs: Vec<i64>,
    more: bool,
}

/// PostgreSQL: by transaction id. A transaction in the window that has changes behind it as well is
/// left for later, with everything that has a higher `seq` than its last.
async fn postgres(session: &mut Session, limit: usize) -> Result<Raw> {
    let rows = session
        .query(
            "WITH w AS MATERIALIZED (SELECT * FROM @sync_change ORDER BY seq LIMIT $1), \
             e AS MATERIALIZED (SELECT max(seq) AS last, count(*) AS n FROM w), \
             late AS MATERIALIZED (SELECT DISTINCT c.xid FROM @sync_change c, e WHERE e.n >= $1 \
              AND c.seq > e.last AND c.xid IN (SELECT xid FROM w)) \
             SELECT w.seq, w.class_id, w.op, w.shape, w.columns, w.old_image, w.new_image, w.old_refs, \
              w.new_refs, w.changed_at, w.xid::text, late.xid IS NOT NULL \
             FROM w LEFT JOIN late ON late.xid = w.xid ORDER BY w.seq",
            vec![size(limit).into()],
        )
        .await?;
    let more = rows.len() >= limit;
    let mut order: Vec<(i64, Vec<Row>)> = Vec::new();
    let mut place: HashMap<String, usize> = HashMap::new();
    for row in rows {
        if row.flag(11)? {
            continue;
        }
        let seq = row.int(0)?;
        let at = *place.entry(row.text(10)?.to_owned()).or_insert_with(|| {
            order.push((seq, Vec::new()));
            order.len() - 1
        });
        order[at].0 = seq;
        order[at].1.push(row);
    }
    order.sort_by_key(|(last, _)| *last);
    let groups: Vec<Vec<Row>> = order.into_iter().map(|(_, rows)| rows).collect();
    let seqs = groups.iter().flatten().map(|row| row.int(0)).collect::<Result<_>>()?;
    Ok(Raw { groups, seqs, more })
}

/// The committed changes of some classes that are in no window yet (`seqs` is this one's), in order.
/// SQLite's come without the keys that they refer to.
pub(super) async fn beyond(
    session: &mut Session,
    catalog: &Catalog,
    shapes: &mut Shapes,
    classes: &BTreeSet<i32>,
    seqs: &[i64],
) -> Result<Vec<Change>> {
    let dialect = session.dialect();
    let rows = match dialect {
        Dialect::Postgres => {
            let sql = "SELECT seq, class_id, op, shape, columns, old_image, new_image, old_refs, \
                       new_refs, changed_at FROM @sync_change WHERE seq <> ALL($1) \
                       AND class_id = ANY($2) ORDER BY seq";
            let classes = classes.iter().copied().map(i64::from).collect();
            let binds = vec![Datum::Ints(seqs.to_vec()), Datum::Ints(classes)];
            session.query(sql, binds).await?
        }
        Dialect::Sqlite => {
            let seqs: HashSet<i64> = seqs.iter().copied().collect();
            let mut rows = changes::read(session, catalog, i64::MAX).await?.rows;
            rows.retain(|row| {
                let is = |n: usize| row.int(n).unwrap_or_default();
                !seqs.contains(&is(10)) && classes.contains(&i32::try_from(is(1)).unwrap_or(0))
            });
            rows
        }
    };
    learn_shapes(session, shapes, rows.iter()).await?;
    let mut changes = Vec::with_capacity(rows.len());
    for row in rows {
        changes.extend(change(dialect, catalog, shapes, &row)?);
    }
    Ok(changes)
}

/// SQLite has one writer at a time: transactions lie one behind the other, cut at marks, and where
/// nobody marked at pauses.
async fn sqlite(
    session: &mut Session,
    catalog: &Catalog,
    limit: usize,
    gap_ms: i64,
) -> Result<Raw> {
    let changes::Read { rows, full } = changes::read(session, catalog, size(limit)).await?;
    let (mut raw, mut group, mut last_at) =
        (Raw { more: full, ..Raw::default() }, Vec::new(), None);
    let mut seqs = Vec::new();
    for row in rows {
        let at = row.time(9)?;
        let mark = row.int(2)? == MARK;
        let pause = last_at.is_some_and(|last: i64| at.saturating_sub(last) > gap_ms);
        if (pause || mark) && !group.is_empty() {
            raw.groups.push(std::mem::take(&mut group));
            raw.seqs.append(&mut seqs);
        }
        seqs.push(row.int(10)?);
        last_at = Some(at);
        if mark {
            raw.seqs.append(&mut seqs);
        } else {
            group.push(row);
        }
    }
    if !full && !group.is_empty() {
        raw.groups.push(group);
        raw.seqs.append(&mut seqs);
    }
    if raw.groups.is_empty() && !raw.seqs.is_empty() {
        // Nothing but marks: they are dealt with, and there is no reason to look further at once.
        raw.more = full;
        raw.groups.push(Vec::new());
    }
    Ok(raw)
}

/// `sync_change.op` of a mark "a transaction ended here".
const MARK: i64 = 4;

fn size(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

async fn decode(
    session: &mut Session,
    catalog: &Catalog,
    shapes: &mut Shapes,
    raw: Raw,
) -> Result<Window> {
    learn_shapes(session, shapes, raw.groups.iter().flatten()).await?;
    let dialect = session.dialect();
    let mut window = Window { seqs: raw.seqs, more: raw.more, ..Window::default() };
    for group in raw.groups {
        let mut changes = Vec::with_capacity(group.len());
        for row in group {
            let seq = row.int(0)?;
            let change = change(dialect, catalog, shapes, &row)
                .context(|| format!("`sync_change` row {seq} cannot be read"))?;
            changes.extend(change);
        }
        order::order(session, &mut changes).await?;
        if !changes.is_empty() {
            window.transactions.push(Transaction { changes });
        }
    }
    if dialect == Dialect::Sqlite {
        refer(session, catalog, &mut window.transactions).await?;
    }
    Ok(window)
}

/// What the transaction at hand has captured itself, in its order, and every `seq` of it. On SQLite
/// that is all there is: nobody writes beside us, and what was committed is sealed.
pub(super) async fn own(
    session: &mut Session,
    catalog: &Catalog,
    shapes: &mut Shapes,
) -> Result<(Vec<Change>, Vec<i64>)> {
    let dialect = session.dialect();
    let rows = match dialect {
        Dialect::Postgres => {
            let sql = "SELECT seq, class_id, op, shape, columns, old_image, new_image, old_refs, \
                       new_refs, changed_at FROM @sync_change WHERE xid = pg_current_xact_id() \
                       ORDER BY seq";
            session.query(sql, vec![]).await?
        }
        Dialect::Sqlite => changes::read(session, catalog, i64::MAX).await?.rows,
    };
    learn_shapes(session, shapes, rows.iter()).await?;
    let (mut changes, mut seqs) = (Vec::new(), Vec::new());
    for row in rows {
        seqs.push(row.int(if dialect == Dialect::Sqlite { 10 } else { 0 })?);
        if row.int(2)? != MARK {
            changes.extend(change(dialect, catalog, shapes, &row)?);
        }
    }
    order::order(session, &mut changes).await?;
    Ok((changes, seqs))
}

/// Looks up the rows that images refer to: SQLite's triggers leave that to us.
async fn refer(
    session: &mut Session,
    catalog: &Catalog,
    transactions: &mut [Transaction],
) -> Result<()> {
    let mut images = Vec::new();
    for change in transactions.iter().flat_map(|transaction| &transaction.changes) {
        for (image, before) in [(&change.old, true), (&change.new, false)] {
            let Some(image) = image else { continue };
            images.push(Captured {
                tracked: &change.tracked,
                seq: change.seq,
                before,
                values: &image.values,
            });
        }
    }
    let mut found = refs::resolve(session, catalog, &images).await?.into_iter();
    for change in transactions.iter_mut().flat_map(|transaction| &mut transaction.changes) {
        for image in [&mut change.old, &mut change.new].into_iter().flatten() {
            image.refs = found.next().unwrap_or_default();
        }
    }
    Ok(())
}

/// Reads the column lists that are not known yet.
async fn learn_shapes<'a>(
    session: &mut Session,
    shapes: &mut Shapes,
    rows: impl Iterator<Item = &'a Row>,
) -> Result<()> {
    let mut missing = Vec::new();
    for row in rows {
        if let Some(shape) = row.opt_int(3)?
            && !i32::try_from(shape).is_ok_and(|shape| shapes.contains_key(&shape))
            && !missing.contains(&shape)
        {
            missing.push(shape);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let sql =
        format!("SELECT id, columns FROM @sync_shape WHERE {}", session.dialect().any("id", 1));
    for row in session.query(&sql, vec![Datum::Ints(missing)]).await? {
        let id =
            i32::try_from(row.int(0)?).map_err(|_| Error::failed("a shape is out of range"))?;
        shapes.insert(id, names(row.text(1)?)?);
    }
    Ok(())
}

fn names(json: &str) -> Result<Arc<[Arc<str>]>> {
    let names: Vec<Arc<str>> = serde_json::from_str(json)
        .map_err(|error| Error::decode("a list of columns is no JSON array").with_source(error))?;
    Ok(names.into())
}

/// One change; `None` for a class that is tracked no more.
fn change(
    dialect: Dialect,
    catalog: &Catalog,
    shapes: &Shapes,
    row: &Row,
) -> Result<Option<Change>> {
    let class_id = i32::try_from(row.int(1)?).unwrap_or_default();
    let Some(tracked) = catalog.tracked.get(&class_id) else {
        tracing::warn!(class.id = class_id, "a change of a class that is not tracked is left out");
        return Ok(None);
    };
    let columns = match (row.opt_int(3)?, row.opt_text(4)?) {
        (_, Some(json)) => names(json)?,
        (Some(shape), None) => i32::try_from(shape)
            .ok()
            .and_then(|shape| shapes.get(&shape).cloned())
            .ok_or_else(|| Error::decode(format!("shape {shape} is unknown")))?,
        (None, None) => return Err(Error::decode("a change says nothing of its columns")),
    };
    let read = |image: usize, refs: usize| -> Result<Option<Image>> {
        let Some(text) = row.opt_text(image)? else { return Ok(None) };
        Ok(Some(self::image(dialect, tracked, &columns, text, row.opt_text(refs)?)?))
    };
    Ok(Some(Change {
        seq: row.int(0)?,
        tracked: Arc::clone(tracked),
        old: read(5, 7)?,
        new: read(6, 8)?,
        changed_at: row.time(9)?,
    }))
}

/// An image by the columns of its class.
fn image(
    dialect: Dialect,
    tracked: &Tracked,
    columns: &[Arc<str>],
    text: &str,
    refs: Option<&str>,
) -> Result<Image> {
    let class = &tracked.class;
    let places: Vec<Option<usize>> = columns.iter().map(|name| class.position(name)).collect();
    let definitions: Vec<Option<&Column>> =
        places.iter().map(|place| place.and_then(|n| class.columns.get(n))).collect();
    let decoded = image::decode(dialect, text, &definitions)?;
    if decoded.len() != columns.len() {
        return Err(Error::decode(format!(
            "an image of `{}` has {} columns instead of {}",
            class.name,
            decoded.len(),
            columns.len()
        )));
    }
    let mut values = vec![None; class.columns.len()];
    let mut strange = Vec::new();
    for ((value, place), name) in decoded.into_iter().zip(&places).zip(columns) {
        match place {
            Some(place) => values[*place] = Some(value),
            None => strange.push((Arc::clone(name), value)),
        }
    }
    let slots = class.slots().count();
    let mut keys = match refs {
        Some(text) => image::decode_refs(dialect, text)?,
        None => Vec::new(),
    };
    keys.resize(slots, None);
    let refs = keys.into_iter().map(|key| key.map(Arc::from)).collect();
    Ok(Image { values, strange, refs, unnamed: Vec::new(), key: None })
}
