//! The triggers that capture a class on SQLite.
//!
//! They promise: every insert, update and delete of a row is a row of `sync_change` in the writer's
//! own transaction (a table of more than [`PIECE`] columns takes more), the rows that REPLACE removes
//! unseen included; and no write of the host fails, or behaves otherwise, because of them. So they
//! raise nothing, cast nothing, meet no unique index, and **name no table but their own and ours**: a
//! trigger that looked up the keys of referenced rows would break the rebuild of those tables (`no
//! such table` between its DROP and its RENAME). [`refs`](super::refs) looks them up when the changes
//! are sealed.
//!
//! Values are written as they are stored. An update writes both rows; one that changes nothing (by
//! type as well, and byte for byte) writes nothing. SQLite compiles the triggers of a table with
//! every statement on it, and parses all of them with every connection, so they are kept short:
//! picking out of the old row what differs would cost as much time, and twice the text.
//!
//! **REPLACE** removes rows without a delete trigger, unless `recursive_triggers` is on. So a BEFORE
//! trigger notes the rows that agree with the new one in a unique index, where there are any
//! ([`notes`]). Whether they went is found when the changes are sealed
//! ([`settle`](super::settle)).

mod notes;

use std::collections::HashMap;
use std::fmt::Write as _;

use super::affinity::{Affinity, affinity};
use super::literals::{balanced, list};
use crate::catalog::{Catalog, Class, Column, Tracked};
use crate::error::Result;
use crate::store::session::{Session, quote};

/// What is written is the host's, not the applier's.
const CAPTURING: &str = "NOT EXISTS (SELECT 1 FROM sync_applying)";

/// Values of an image in a row of `sync_change`.
pub(super) const PIECE: usize = 16;

/// `sync_change.op` of an insert.
pub(super) const INSERT: i64 = 1;
/// `sync_change.op` of an update.
pub(super) const UPDATE: i64 = 2;
/// `sync_change.op` of a delete.
pub(super) const DELETE: i64 = 3;
/// `sync_change.op` of a note.
pub(super) const NOTE: i64 = 5;
/// `sync_change.op` of a row with further columns of the change before it.
pub(super) const MORE: i64 = 6;

/// Names of our triggers on a class, without what they all begin with; those that settle are of an
/// earlier version.
const NAMES: [&str; 9] = [
    "note_insert",
    "note_update",
    "insert",
    "update",
    "delete",
    "settle_insert",
    "settle_update",
    "settle_leave",
    "settle_delete",
];

/// The statements that create the triggers of a class, one a trigger. `sqlite_schema` keeps their
/// text as it is.
///
/// # Errors
/// None yet: a twin of the other store's function.
pub fn create(tracked: &Tracked, catalog: &Catalog) -> Result<Vec<String>> {
    let referred = referred(&tracked.class, catalog);
    let writer = Writer { tracked, class: &tracked.class, referred };
    let mut triggers = Vec::with_capacity(NAMES.len());
    if writer.replaces() {
        triggers.push(writer.note_insert());
        triggers.push(writer.note_update());
    }
    triggers.push(writer.insert());
    triggers.push(writer.update());
    triggers.push(writer.delete());
    Ok(triggers)
}

/// The statements that remove them, whether they are there or not.
#[must_use]
pub fn drop(tracked: &Tracked) -> Vec<String> {
    NAMES
        .iter()
        .map(|name| format!("DROP TRIGGER IF EXISTS {}", trigger_name(tracked, name)))
        .collect()
}

/// The classes whose triggers are not as [`create`] makes them: dropped with a table that was
/// rebuilt, carried along by a rename, made by another version, or not where they must stand among
/// the host's. In order.
///
/// # Errors
/// Those of the database.
pub async fn missing(session: &mut Session, catalog: &Catalog) -> Result<Vec<i32>> {
    let standing = Standing::read(session).await?;
    let mut missing = Vec::new();
    for tracked in catalog.tracked.values() {
        if !create(tracked, catalog)?.iter().all(|sql| standing.has(tracked, sql)) {
            missing.push(tracked.id);
        }
    }
    missing.sort_unstable();
    Ok(missing)
}

/// Makes the triggers of a class that are not as they should be, and removes what is of no use any
/// more.
///
/// # Errors
/// Those of the database.
pub async fn install(session: &mut Session, tracked: &Tracked, catalog: &Catalog) -> Result<()> {
    let standing = Standing::read(session).await?;
    let wanted = create(tracked, catalog)?;
    let keep: Vec<&String> = wanted.iter().filter(|sql| standing.has(tracked, sql)).collect();
    for (name, statement) in NAMES.iter().zip(drop(tracked)) {
        let start = format!("CREATE TRIGGER {} ", trigger_name(tracked, name));
        if !keep.iter().any(|sql| sql.starts_with(&start)) {
            session.batch(&statement).await?;
        }
    }
    for sql in &wanted {
        if !keep.contains(&sql) {
            session.batch(sql).await?;
        }
    }
    Ok(())
}

/// The triggers that there are. SQLite runs the newest first. So ours that capture must be newer than
/// the host's: one of those that fails with RAISE(FAIL) leaves its row behind, but not what would have
/// run after it. Those that note should be older: what the host's BEFORE triggers write is there then.
/// Triggers that the host had first we leave as they are.
struct Standing {
    /// Ours by their text, with their place.
    ours: HashMap<String, i64>,
    /// The newest of the host's, by table in lower case.
    newest: HashMap<String, i64>,
}

impl Standing {
    async fn read(session: &mut Session) -> Result<Self> {
        let sql = "SELECT rowid, sql, tbl_name, name LIKE 'sync\\_%' ESCAPE '\\' \
                   FROM sqlite_schema WHERE type = 'trigger' ORDER BY rowid";
        let (mut ours, mut newest) = (HashMap::new(), HashMap::new());
        for row in session.query(sql, vec![]).await? {
            if row.flag(3)? {
                ours.insert(row.text(1)?.to_owned(), row.int(0)?);
            } else {
                newest.insert(row.text(2)?.to_ascii_lowercase(), row.int(0)?);
            }
        }
        Ok(Self { ours, newest })
    }

    /// Whether this trigger of a class is there, and where it must be.
    fn has(&self, tracked: &Tracked, sql: &String) -> bool {
        let host = self.newest.get(&tracked.class.table.to_ascii_lowercase()).copied();
        let notes = sql.starts_with(&format!("CREATE TRIGGER {}", trigger_name(tracked, "note_")));
        self.ours.get(sql).is_some_and(|ours| notes || Some(*ours) > host)
    }
}

fn trigger_name(tracked: &Tracked, name: &str) -> String {
    format!("sync_{}_{name}", tracked.id)
}

/// Whether rows of any class refer to rows of this one by its local id.
fn referred(class: &Class, catalog: &Catalog) -> bool {
    class.local.len() == 1
        && catalog
            .tracked
            .values()
            .any(|other| other.class.slots().any(|slot| slot.reference.target == class.name))
}

/// The columns that tell the rows of a class apart, here and elsewhere: the local id first.
pub(super) fn identity(class: &Class) -> Vec<usize> {
    let mut columns = class.local.clone();
    columns.extend(class.key.iter().filter(|n| !class.local.contains(n)));
    columns
}

struct Writer<'a> {
    tracked: &'a Tracked,
    class: &'a Class,
    /// Its rows are referred to, so [`refs`](super::refs) needs the history of their keys.
    referred: bool,
}

impl Writer<'_> {
    fn trigger(&self, name: &str, event: &str, when: &str, body: &[String]) -> String {
        let mut sql = format!(
            "CREATE TRIGGER {} {event} ON {} WHEN {when} BEGIN\n",
            trigger_name(self.tracked, name),
            quote(&self.class.table),
        );
        for statement in body {
            let _ = writeln!(sql, "{statement};");
        }
        sql.push_str("END");
        sql
    }

    fn insert(&self) -> String {
        self.trigger("insert", "AFTER INSERT", CAPTURING, &self.whole(INSERT, "NEW"))
    }

    fn delete(&self) -> String {
        self.trigger("delete", "AFTER DELETE", CAPTURING, &self.whole(DELETE, "OLD"))
    }

    /// One change, whatever it is: an update of the local primary key, or of a row that only all its
    /// columns tell apart, is taken for a delete and an insert when it is read.
    fn update(&self) -> String {
        let when = format!("{CAPTURING} AND ({})", self.changed());
        let life = match self.referred {
            true => format!("NOT ({})", self.same(&identity(self.class), "OLD", "NEW")),
            false => "0".to_owned(),
        };
        let body: Vec<String> = self
            .pieces()
            .map(|(n, columns)| {
                let places = format!("{},{}", places("n", columns), places("o", columns));
                let values = format!("{},{}", values("NEW", columns), values("OLD", columns));
                self.row(n, UPDATE, &life, &places, &format!("VALUES({{}},{values})"))
            })
            .collect();
        self.trigger("update", "AFTER UPDATE", &when, &body)
    }

    /// The updated row is another than before. `IS NOT` takes 1 for 1.0, which only a column that
    /// converts nothing can hold both.
    fn changed(&self) -> String {
        let stored = self.class.columns.iter().filter(|column| !column.generated);
        let of = |row: &str, after: &str| {
            let values = stored.clone().map(|column| column_of(row, &column.name) + after);
            values.collect::<Vec<_>>().join(",")
        };
        let mut parts = vec![format!("({}) IS NOT ({})", of("OLD", self.binary()), of("NEW", ""))];
        let loose = stored.clone().filter(|column| affinity(&column.sql_type) == Affinity::Blob);
        parts.extend(loose.map(|column| {
            let (old, new) = (column_of("OLD", &column.name), column_of("NEW", &column.name));
            format!("typeof({old})<>typeof({new})")
        }));
        balanced(&parts, " OR ", "0")
    }

    /// Makes a comparison one byte for byte, where it is not so anyway.
    fn binary(&self) -> &'static str {
        if self.class.plain { "" } else { " COLLATE BINARY" }
    }

    /// A row that comes or goes.
    fn whole(&self, op: i64, row: &str) -> Vec<String> {
        self.pieces()
            .map(|(n, columns)| {
                let values = values(row, columns);
                self.row(n, op, "1", &places("n", columns), &format!("VALUES({{}},{values})"))
            })
            .collect()
    }

    /// A row of `sync_change` for the piece `n` of an image; `{}` in `values` stands for what all of
    /// them have.
    fn row(&self, n: usize, op: i64, life: &str, places: &str, values: &str) -> String {
        let (class, shape) = (self.tracked.id, self.tracked.shape);
        let values = match n {
            0 => values.replacen("{}", &format!("{class},{op},{shape},{life}"), 1),
            _ => values.replacen("{}", &format!("{class},{MORE},{shape},{life}"), 1),
        };
        format!("INSERT INTO sync_change(class_id,op,shape,life,{places}) {values}")
    }

    /// The columns, as many at a time as a row of `sync_change` takes.
    fn pieces(&self) -> impl Iterator<Item = (usize, &[Column])> {
        self.class.columns.chunks(PIECE).enumerate()
    }

    /// Two rows have the same values in `columns`, byte for byte.
    fn same(&self, columns: &[usize], one: &str, other: &str) -> String {
        let parts: Vec<String> = columns
            .iter()
            .filter_map(|n| self.class.columns.get(*n))
            .map(|column| {
                let (one, other) = (column_of(one, &column.name), column_of(other, &column.name));
                format!("{one} IS {other}{}", self.binary())
            })
            .collect();
        balanced(&parts, " AND ", "1")
    }

    /// What tells a row apart, as one text.
    fn identity_sql(&self, row: &str) -> String {
        let columns = identity(self.class);
        let columns = columns.iter().filter_map(|n| self.class.columns.get(*n));
        format!(
            "''||{}",
            list(columns.map(|c| format!("quote({})", column_of(row, &c.name))).collect())
        )
    }
}

fn places(letter: &str, columns: &[Column]) -> String {
    let places: Vec<String> = (0..columns.len()).map(|n| format!("{letter}{n}")).collect();
    places.join(",")
}

fn values(row: &str, columns: &[Column]) -> String {
    let values: Vec<String> = columns.iter().map(|column| column_of(row, &column.name)).collect();
    values.join(",")
}

/// A column of a row, quoted where need be: no keyword of SQL has digits in it, or an underscore but
/// in `CURRENT_…`.
pub(super) fn column_of(row: &str, name: &str) -> String {
    let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    let keyword = !name.bytes().any(|b| b.is_ascii_digit() || b == b'_');
    if letters && first && !keyword && !name.starts_with("current_") {
        format!("{row}.{name}")
    } else {
        format!("{row}.{}", quote(name))
    }
}
