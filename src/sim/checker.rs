//! What must be so once everything has been delivered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::clinic::{self, CLASSES, RowKey, Tables};
use super::history::{Did, Tx};
use super::net::lock;
use super::world::World;
use crate::error::Result;
use crate::record::payload;

/// A line of the ledger: its column, and both values.
type Entry = (Option<String>, [Option<String>; 2]);

/// What one server has in the end.
struct End {
    tables: Tables,
    /// Conflicts by row: the column (`None`: an edit met a delete) and both values.
    conflicts: BTreeMap<RowKey, Vec<Entry>>,
    /// Originals that came in, by state.
    imports: BTreeMap<uuid::Uuid, String>,
    held: Vec<Held>,
}

/// A record that is held in the end.
struct Held {
    kind: String,
    reason: String,
    rows: BTreeSet<RowKey>,
    original: Option<uuid::Uuid>,
}

impl Held {
    /// Whether two different rows want one unique value: that is for a person to decide.
    fn is_clash(&self) -> bool {
        self.reason.contains("UNIQUE") || self.kind.contains("CLASH")
    }
}

/// Looks at every server, and complains.
pub(super) async fn check(world: &mut World) -> Result<()> {
    let mut ends = Vec::new();
    for n in 0..world.nodes.len() {
        let end = look(world, n).await?;
        ends.push(end);
    }
    let open = excused(&ends);
    holds(world, &ends, &open);
    equal(world, &ends, &open);
    imports(world, &ends);
    if world.complaints.is_empty() {
        nothing_vanished(world, &ends, &open);
    }
    Ok(())
}

/// The number of a class, and the key.
fn row_key(class: &str, key: &str) -> Option<RowKey> {
    let n = CLASSES.iter().position(|known| known.name == class)?;
    Some((n, key.to_owned()))
}

async fn look(world: &mut World, n: usize) -> Result<End> {
    let engine = Arc::clone(&world.nodes[n].engine);
    let mut session = engine.store.read().await?;
    let tables = clinic::read(&mut session).await?;
    let mut conflicts: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let sql = "SELECT class, key, column_name, winner_value, loser_value FROM @sync_conflict";
    for row in session.query(sql, vec![]).await? {
        let Some(key) = row_key(row.text(0)?, row.text(1)?) else { continue };
        let text = |n| Ok::<_, crate::Error>(row.opt_text(n)?.map(str::to_owned));
        conflicts.entry(key).or_default().push((text(2)?, [text(3)?, text(4)?]));
    }
    let mut imports = BTreeMap::new();
    for row in session.query("SELECT original_uuid, state FROM @sync_import", vec![]).await? {
        imports.insert(row.uuid(0)?, row.text(1)?.to_owned());
    }
    let mut held = Vec::new();
    let sql = "SELECT kind, reason, payload, original_uuid FROM @sync_held";
    for row in session.query(sql, vec![]).await? {
        held.push(Held {
            kind: row.text(0)?.to_owned(),
            reason: row.text(1)?.to_owned(),
            rows: rows_of(row.bytes(2)?),
            original: row.opt_uuid(3)?,
        });
    }
    let violations = session.query("SELECT text FROM sim_violation", vec![]).await?;
    let seen = session.query("SELECT what, n FROM sim_seen", vec![]).await?;
    let dangling = session.query("PRAGMA foreign_key_check", vec![]).await?;
    let states = session
        .query(
            "SELECT 'record', state, count(*) FROM @sync_record WHERE state NOT IN ('COMMITTED', \
             'NOT_SUPPOSED_TO_SYNC', 'REJECTED', 'FAILED', 'FAILED_AND_STOPPED') GROUP BY 1, 2 \
             UNION ALL SELECT 'server record', state, count(*) FROM @sync_server_record \
             WHERE state NOT IN ('COMMITTED', 'NOT_SUPPOSED_TO_SYNC', 'REJECTED', 'FAILED', \
             'FAILED_AND_STOPPED') GROUP BY 1, 2 UNION ALL \
             SELECT 'import', state, count(*) FROM @sync_import WHERE state IN ('PENDING', 'COMMITTED') \
             GROUP BY 1, 2",
            vec![],
        )
        .await?;
    let unsealed = session.query_one("SELECT count(*) FROM @sync_change", vec![]).await?.int(0)?;
    session.rollback().await?;
    for row in &violations {
        world.complain(format!("at s{n} {}", row.text(0)?));
    }
    for row in &seen {
        let count = u64::try_from(row.int(1)?).unwrap_or(0);
        lock(&world.net).counters.add(row.text(0)?, count);
    }
    for row in &dangling {
        world.complain(format!("at s{n} a row of {} refers to nothing", row.text(0)?));
    }
    let root = world.plan.parents[n].is_none();
    for row in &states {
        if !(root && row.text(0)? == "record") {
            world.complain(format!(
                "at s{n} {} of {} stay in state {}",
                row.int(2)?,
                row.text(0)?,
                row.text(1)?
            ));
        }
    }
    if unsealed > 0 {
        world.complain(format!("at s{n} {unsealed} changes are not sealed"));
    }
    Ok(End { tables, conflicts, imports, held })
}

/// The rows of a held record.
fn rows_of(kept: &[u8]) -> BTreeSet<RowKey> {
    let Ok(parts) = rmp_serde::from_slice::<Vec<serde_bytes::ByteBuf>>(kept) else {
        return BTreeSet::new();
    };
    let body = payload::decode_parts(parts.iter().map(|part| part.as_slice()));
    let items = body.map(|body| body.items).unwrap_or_default();
    items.iter().filter_map(|item| row_key(&item.row.class, &item.row.key)).collect()
}

/// Rows that a unique clash leaves open: those of clashing records, and those of records that are
/// held because they build on them.
fn excused(ends: &[End]) -> BTreeSet<RowKey> {
    let all = || ends.iter().flat_map(|end| &end.held);
    let clashing = all().filter(|held| held.is_clash());
    let mut open: BTreeSet<RowKey> = clashing.flat_map(|held| held.rows.clone()).collect();
    if open.is_empty() {
        return open;
    }
    open.extend(all().flat_map(|held| held.rows.clone()));
    open
}

fn holds(world: &mut World, ends: &[End], open: &BTreeSet<RowKey>) {
    for (n, end) in ends.iter().enumerate() {
        for held in &end.held {
            if open.is_empty() || held.rows.is_empty() {
                let original = held.original;
                let tx = original.and_then(|id| world.history.by_original.get(&id).copied());
                world.complain(format!(
                    "s{n} holds tx {tx:?} for ever ({}: {})",
                    held.kind, held.reason
                ));
            }
        }
        if !end.held.is_empty() && !open.is_empty() {
            world.count("unique clash held in the end");
        }
    }
}

fn equal(world: &mut World, ends: &[End], open: &BTreeSet<RowKey>) {
    let Some((first, others)) = ends.split_first() else { return };
    for (n, end) in (1..).zip(others) {
        let rows: BTreeSet<&RowKey> = first.tables.keys().chain(end.tables.keys()).collect();
        for row in rows {
            if open.contains(row) || first.tables.get(row) == end.tables.get(row) {
                continue;
            }
            world.complain(format!(
                "{} {} is {:?} at s0 and {:?} at s{n}",
                CLASSES[row.0].name,
                row.1,
                first.tables.get(row),
                end.tables.get(row)
            ));
        }
    }
}

/// Each record of each server has come to every other one, once.
fn imports(world: &mut World, ends: &[End]) {
    let mut wrong = Vec::new();
    for (at, tx) in world.history.list.iter().enumerate() {
        let Some(original) = tx.original else { continue };
        let nowhere = ends.iter().all(|end| !end.imports.contains_key(&original));
        if tx.restored_away && nowhere {
            continue;
        }
        for (n, end) in ends.iter().enumerate() {
            if !end.imports.contains_key(&original) && n != tx.server {
                wrong.push(format!("tx {at} of s{} never came to s{n}", tx.server));
            }
        }
    }
    for what in wrong {
        world.complain(what);
    }
}

/// Every write is visible, or was known to one that wrote over it, or stands in a ledger.
fn nothing_vanished(world: &mut World, ends: &[End], open: &BTreeSet<RowKey>) {
    let (mut wrong, mut revived) = (Vec::new(), 0);
    let lost = |tx: &Tx| {
        tx.restored_away
            && tx.original.is_none_or(|id| ends.iter().all(|end| !end.imports.contains_key(&id)))
    };
    for (at, tx) in world.history.list.iter().enumerate() {
        if lost(tx) {
            continue;
        }
        let later = || world.history.list.iter().filter(|later| later.known.contains(&at));
        for (row, did) in tx.writes.iter().filter(|(row, _)| !open.contains(*row)) {
            let now = ends[0].tables.get(row);
            let ledger = || ends.iter().filter_map(|end| end.conflicts.get(row)).flatten();
            let met = ledger().any(|(column, _)| column.is_none());
            let written: Vec<(usize, &Option<String>)> = match did {
                Did::Delete => {
                    if now.is_some()
                        && referred(&ends[0].tables, row)
                        && !later().any(|later| later.inserts(row))
                    {
                        revived += 1;
                        continue;
                    }
                    if now.is_some() && !met && !later().any(|later| later.inserts(row)) {
                        wrong.push(format!("tx {at} deleted {row:?}, which is there"));
                    }
                    continue;
                }
                Did::Insert(values) => values.iter().enumerate().collect(),
                Did::Update(values) => values.iter().map(|(n, value)| (*n, value)).collect(),
            };
            for (column, value) in written {
                let visible = now.is_some_and(|values| &values[column] == value);
                let name = CLASSES[row.0].columns[column];
                let named = ledger().any(|(of, values)| {
                    of.as_deref() == Some(name)
                        && values.iter().any(|text| agrees(text.as_deref(), value.as_deref()))
                });
                let over = later().any(|later| later.decides(row, column));
                if !(visible || named || over || now.is_none() && met) {
                    wrong.push(format!(
                        "tx {at} of s{} wrote {value:?} to {name} of {row:?}, and it vanished",
                        tx.server
                    ));
                }
            }
        }
    }
    for what in wrong {
        world.complain(what);
    }
    if revived > 0 {
        lock(&world.net).counters.add("deleted row stays for a referrer", revived);
    }
}

/// Whether some row refers to this one: then it stays, deleted or not.
fn referred(tables: &Tables, row: &RowKey) -> bool {
    let is = |value: &Option<String>| value.as_deref() == Some(row.1.as_str());
    tables.iter().any(|((class, key), values)| {
        CLASSES[*class].references.iter().any(|(column, target)| {
            *target == row.0 && (*class, key) != (row.0, &row.1) && is(&values[*column])
        }) || CLASSES[*class].name == "person_role"
            && serde_json::from_str::<[String; 2]>(key).is_ok_and(|[person, role]| {
                matches!(CLASSES[row.0].name, "person") && person == row.1
                    || matches!(CLASSES[row.0].name, "role") && role == row.1
            })
    })
}

/// A value in the ledger is text for people: a reference names its class too.
fn agrees(text: Option<&str>, value: Option<&str>) -> bool {
    match (text, value) {
        (Some(text), Some(value)) => {
            text == value || text.split_once(':').is_some_and(|(_, key)| key == value)
        }
        (None, None) => true,
        _ => false,
    }
}
