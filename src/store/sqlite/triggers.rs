//! The triggers that capture a class on SQLite.
//!
//! They promise: every insert, update and delete of a row is one or two rows of `sync_change` in the
//! writer's own transaction, the rows that REPLACE removes unseen included; and no write of the host
//! fails, or behaves otherwise, because of them. So they raise nothing and cast nothing, and **they
//! name no table but their own and ours**: a trigger that looked up the keys of referenced rows would
//! break the rebuild of those tables (`no such table` between its DROP and its RENAME).
//! [`refs`](super::refs) looks them up when the changes are sealed.
//!
//! The images go to `sync_image` value by value, as they are stored: SQLite compiles the triggers of
//! a table with every statement on it, and parses all of them with every connection, so they are kept
//! short (building a text of each image made the schema of 113 tables ten times as long).
//!
//! **REPLACE** removes rows without a delete trigger, unless `recursive_triggers` is on. So a BEFORE
//! trigger notes the rows that agree with the new one in a unique index (op 5), with the values on
//! which they clash. If the new row comes to stand, the noted ones are gone, and an AFTER trigger
//! makes deletes of the notes. A noted row that is deleted or updated otherwise (an upsert,
//! `recursive_triggers`, a host trigger that makes room) has its note made void in the same way.
//! Notes of inserts that were ignored come to nothing, and go when changes are sealed. These are
//! triggers of their own, so that a write which meets no notes costs a look at an empty index.

use std::fmt::Write as _;

use super::affinity::{Affinity, affinity};
use crate::catalog::{Catalog, Clash, Class, Column, Tracked};
use crate::error::Result;
use crate::store::session::{Session, quote};

/// How many changes back notes are kept, so that a long run of ignored inserts does not pile them up.
const NOTES_BACK: u32 = 10_000;

/// What is written is the host's, not the applier's.
const CAPTURING: &str = "NOT EXISTS (SELECT 1 FROM sync_applying)";

/// Values in a row of `sync_image`.
pub(super) const PIECE: usize = 32;

/// Names of our triggers on a class, without what they all begin with.
const NAMES: [&str; 8] = [
    "note_insert",
    "note_update",
    "settle_insert",
    "settle_update",
    "settle_delete",
    "insert",
    "update",
    "delete",
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
    if !tracked.class.clashes.is_empty() {
        triggers.push(writer.note_insert());
        triggers.push(writer.note_update());
        triggers.extend(writer.settle());
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
        .map(|name| format!("DROP TRIGGER IF EXISTS {}", quote(&trigger_name(tracked, name))))
        .collect()
}

/// The classes whose triggers are not as [`create`] makes them: dropped with a table that was
/// rebuilt, carried along by a rename, or made by another version. In order.
///
/// # Errors
/// Those of the database.
pub async fn missing(session: &mut Session, catalog: &Catalog) -> Result<Vec<i32>> {
    let sql = "SELECT sql FROM sqlite_schema WHERE type = 'trigger' \
               AND name LIKE 'sync\\_%' ESCAPE '\\'";
    let mut found = std::collections::HashSet::new();
    for row in session.query(sql, vec![]).await? {
        found.insert(row.text(0)?.to_owned());
    }
    let mut missing = Vec::new();
    for tracked in catalog.tracked.values() {
        if !create(tracked, catalog)?.iter().all(|sql| found.contains(sql)) {
            missing.push(tracked.id);
        }
    }
    missing.sort_unstable();
    Ok(missing)
}

/// SQL for the image of the row `row` (`NEW`, `OLD` or an alias): a list of literals, as
/// [`image::decode`](super::image::decode) reads it.
#[must_use]
pub fn image_sql(class: &Class, row: &str) -> String {
    columns_sql(&class.columns.iter().collect::<Vec<_>>(), row)
}

/// [`image_sql`] for some columns.
pub(super) fn columns_sql(columns: &[&Column], row: &str) -> String {
    // A text also where one value alone would be a number.
    format!("''||{}", list(columns.iter().map(|column| literal_sql(column, row)).collect()))
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
            quote(&trigger_name(self.tracked, name)),
            quote(&self.class.table),
        );
        for statement in body {
            let _ = writeln!(sql, "  {statement};");
        }
        sql.push_str("END");
        sql
    }

    /// Notes the rows that an INSERT OR REPLACE would remove.
    fn note_insert(&self) -> String {
        let agree: Vec<String> =
            self.class.clashes.iter().map(|clash| self.agree(clash, "NEW")).collect();
        self.note("note_insert", "BEFORE INSERT", &agree)
    }

    /// Notes the rows that an UPDATE OR REPLACE would remove: never the updated row itself.
    fn note_update(&self) -> String {
        let same = self.same(&self.class.local, "o", "OLD");
        let agree: Vec<String> = self
            .class
            .clashes
            .iter()
            .map(|clash| {
                format!("{} AND {} AND NOT ({same})", self.changed(clash), self.agree(clash, "NEW"))
            })
            .collect();
        self.note("note_update", &format!("BEFORE UPDATE{}", self.of_unique()), &agree)
    }

    /// `OF` the columns in unique indexes, so that other updates are spared the trigger; nothing
    /// where an index looks at more than columns. The rowid is also set by its other names.
    fn of_unique(&self) -> String {
        let stored = |name: &str| {
            let column = self.class.position(name).and_then(|n| self.class.columns.get(n));
            column.is_none_or(|column| !column.generated)
        };
        let mut columns = vec!["rowid".to_owned(), "oid".to_owned(), "_rowid_".to_owned()];
        for clash in &self.class.clashes {
            if clash.condition.is_some() {
                return String::new();
            }
            for term in &clash.terms {
                if term.expression || !stored(&term.sql) {
                    return String::new();
                }
                columns.push(quote(&term.sql));
            }
        }
        format!(" OF {}", columns.join(", "))
    }

    /// `agree`: for each unique index, when the row `o` stands in the way. Most often none does.
    fn note(&self, name: &str, event: &str, agree: &[String]) -> String {
        let table = format!("{} AS o", quote(&self.class.table));
        let any: Vec<String> = agree
            .iter()
            .map(|agree| format!("EXISTS (SELECT 1 FROM {table} WHERE {agree})"))
            .collect();
        let mut body = vec![
            format!(
                "DELETE FROM sync_change WHERE op = 5 AND seq < \
                 (SELECT max(seq) FROM sync_change) - {NOTES_BACK}"
            ),
            self.forget(&format!("clash IN ({})", self.clash_values())),
        ];
        for (n, (clash, agree)) in self.class.clashes.iter().zip(agree).enumerate() {
            let local = self.local_sql("o");
            // A row that clashes in several ways is noted once.
            let again = match n {
                0 => String::new(),
                _ => format!(
                    " AND NOT EXISTS (SELECT 1 FROM sync_change WHERE op = 5 AND class_id = {} \
                     AND local_id = {local} AND clash IN ({}))",
                    self.tracked.id,
                    self.clash_values()
                ),
            };
            body.push(format!(
                "INSERT INTO sync_change (class_id, op, shape, local_id, clash) \
                 SELECT {}, 5, {}, {local}, {} FROM {table} WHERE {agree}{again}",
                self.tracked.id,
                self.tracked.shape,
                self.values_of(n, clash),
            ));
            // `changes()` says whether the statement before wrote.
            body.extend(self.image("o", 0, &format!(" FROM {table} WHERE changes() AND {agree}")));
        }
        self.trigger(name, event, &format!("{CAPTURING} AND ({})", any.join(" OR ")), &body)
    }

    fn insert(&self) -> String {
        let mut body = vec![self.change("1", &self.id_again("NEW"), "")];
        body.extend(self.image("NEW", 1, ""));
        self.trigger("insert", "AFTER INSERT", CAPTURING, &body)
    }

    /// An update of the local primary key is a delete and an insert, for a set any update is.
    fn update(&self) -> String {
        let same = match self.class.set {
            true => "0".to_owned(),
            false => self.same(&self.class.local, "OLD", "NEW"),
        };
        let left = if self.referred {
            let key = self.same(&self.class.key, "OLD", "NEW");
            format!("CASE WHEN NOT ({same} AND {key}) THEN {} END", self.local_sql("OLD"))
        } else {
            "NULL".to_owned()
        };
        let op = format!("CASE WHEN {same} THEN 2 ELSE 3 END");
        let mut body = vec![self.change(&op, &left, "")];
        body.extend(self.image("OLD", 0, ""));
        body.push(self.change("1", &self.id_again("NEW"), &format!(" WHERE NOT ({same})")));
        body.extend(self.image("NEW", 1, ""));
        self.trigger("update", "AFTER UPDATE", CAPTURING, &body)
    }

    fn delete(&self) -> String {
        let local = if self.referred { self.local_sql("OLD") } else { "NULL".to_owned() };
        let mut body = vec![self.change("3", &local, "")];
        body.extend(self.image("OLD", 0, ""));
        self.trigger("delete", "AFTER DELETE", CAPTURING, &body)
    }

    fn change(&self, op: &str, local_id: &str, condition: &str) -> String {
        format!(
            "INSERT INTO sync_change (class_id, op, shape, local_id) \
             SELECT {}, {op}, {}, {local_id}{condition}",
            self.tracked.id, self.tracked.shape,
        )
    }

    /// The image of `row` for the change that was inserted last, in pieces. (`sync_image` is WITHOUT
    /// ROWID: writing it does not move `last_insert_rowid()`. OR REPLACE: a leftover of an old change,
    /// whosoever left it there, must not fail the host's write.)
    fn image(&self, row: &str, after: usize, from: &str) -> Vec<String> {
        let pieces = self.class.columns.chunks(PIECE).enumerate();
        pieces
            .map(|(piece, columns)| {
                let places: Vec<String> = (0..columns.len()).map(|n| format!("c{n}")).collect();
                let values: Vec<String> =
                    columns.iter().map(|column| column_of(row, &column.name)).collect();
                format!(
                    "INSERT OR REPLACE INTO sync_image (seq,part,{}) SELECT last_insert_rowid(),{},{}{from}",
                    places.join(","),
                    2 * piece + after,
                    values.join(",")
                )
            })
            .collect()
    }

    /// The local id of a new row, where a change that is not sealed yet is about a row that had the
    /// same one.
    fn id_again(&self, row: &str) -> String {
        if !self.referred {
            return "NULL".to_owned();
        }
        format!(
            "(SELECT local_id FROM sync_change WHERE class_id = {} AND local_id = {} LIMIT 1)",
            self.tracked.id,
            self.local_sql(row)
        )
    }

    /// What becomes of notes, where there are any.
    fn settle(&self) -> [String; 3] {
        // Makes deletes of the rows that the new row has replaced.
        let confirm = format!(
            "UPDATE sync_change SET op = 3, clash = NULL \
             WHERE op = 5 AND class_id = {} AND clash IN ({})",
            self.tracked.id,
            self.clash_values()
        );
        let forget = self.forget(&format!("local_id = {}", self.local_sql("OLD")));
        // An upsert has noted the very row that it updates: forget that first.
        let update = [forget.clone(), confirm.clone()];
        let when = format!(
            "EXISTS (SELECT 1 FROM sync_change WHERE op = 5 AND class_id = {})",
            self.tracked.id
        );
        [
            self.trigger("settle_insert", "AFTER INSERT", &when, &[confirm]),
            self.trigger("settle_update", "AFTER UPDATE", &when, &update),
            self.trigger("settle_delete", "AFTER DELETE", &when, &[forget]),
        ]
    }

    fn forget(&self, notes: &str) -> String {
        format!(
            "UPDATE sync_change SET clash = NULL WHERE op = 5 AND class_id = {} AND {notes}",
            self.tracked.id
        )
    }

    /// The new row's values in each unique index.
    fn clash_values(&self) -> String {
        let clashes = self.class.clashes.iter().enumerate();
        clashes.map(|(n, clash)| self.values_of(n, clash)).collect::<Vec<_>>().join(", ")
    }

    /// The new row's values in a unique index, as one text.
    fn values_of(&self, n: usize, clash: &Clash) -> String {
        let values = clash.terms.iter().map(|term| format!("quote({})", self.term(term, "NEW")));
        format!("'{n}:'||{}", list(values.collect()))
    }

    /// The row `o` stands in the way of the row `row`.
    fn agree(&self, clash: &Clash, row: &str) -> String {
        let mut parts: Vec<String> = clash
            .terms
            .iter()
            .map(|term| {
                let other =
                    if term.expression { term.sql.clone() } else { column_of("o", &term.sql) };
                let this = self.term(term, row);
                format!("({other}) = {this} COLLATE {}", quote(&term.collation))
            })
            .collect();
        if let Some(condition) = &clash.condition {
            parts.push(format!("({condition})"));
            parts.push(self.of_row(condition, row));
        }
        parts.join(" AND ")
    }

    /// An update may have changed what a unique index holds.
    fn changed(&self, clash: &Clash) -> String {
        if clash.condition.is_some() || clash.terms.iter().any(|term| term.expression) {
            return "1".to_owned();
        }
        let parts: Vec<String> = clash
            .terms
            .iter()
            .map(|term| {
                let (new, old) = (column_of("NEW", &term.sql), column_of("OLD", &term.sql));
                format!("{new} IS NOT {old} COLLATE {}", quote(&term.collation))
            })
            .collect();
        format!("({})", parts.join(" OR "))
    }

    fn term(&self, term: &crate::catalog::ClashTerm, row: &str) -> String {
        if term.expression { self.of_row(&term.sql, row) } else { column_of(row, &term.sql) }
    }

    /// An expression over bare column names, for one row.
    fn of_row(&self, expression: &str, row: &str) -> String {
        let columns: Vec<String> = self
            .class
            .columns
            .iter()
            .map(|column| format!("{} AS {}", column_of(row, &column.name), quote(&column.name)))
            .collect();
        format!("(SELECT {expression} FROM (SELECT {}))", columns.join(", "))
    }

    /// Two rows have the same values in `columns`, byte for byte.
    fn same(&self, columns: &[usize], one: &str, other: &str) -> String {
        let parts: Vec<String> = columns
            .iter()
            .filter_map(|n| self.class.columns.get(*n))
            .map(|column| {
                let (one, other) = (column_of(one, &column.name), column_of(other, &column.name));
                format!("{one} IS {other} COLLATE BINARY")
            })
            .collect();
        if parts.is_empty() { "1".to_owned() } else { parts.join(" AND ") }
    }

    /// The local id as [`refs`](super::refs) asks for it.
    fn local_sql(&self, row: &str) -> String {
        let quoted = |column: &Column| format!("quote({})", column_of(row, &column.name));
        list(self.local().map(quoted).collect())
    }

    fn local(&self) -> impl Iterator<Item = &Column> {
        self.class.local.iter().filter_map(|n| self.class.columns.get(*n))
    }
}

fn column_of(row: &str, name: &str) -> String {
    format!("{row}.{}", quote(name))
}

/// SQL for one value as a literal. What a column's affinity rules out is not asked for.
fn literal_sql(column: &Column, row: &str) -> String {
    let value = column_of(row, &column.name);
    match affinity(&column.sql_type) {
        Affinity::Text => {
            format!(
                "CASE typeof({value}) WHEN 'text' THEN {} ELSE quote({value}) END",
                text(&value)
            )
        }
        _ => any_literal_sql(&value),
    }
}

/// SQL for any value as a literal.
fn any_literal_sql(value: &str) -> String {
    format!(
        "CASE typeof({value}) WHEN 'integer' THEN {value} WHEN 'real' THEN printf('%!.19g',{value}) \
         WHEN 'text' THEN {} ELSE quote({value}) END",
        text(value)
    )
}

/// SQL for a text as a literal: `quote` would cut it at an embedded NUL.
fn text(value: &str) -> String {
    format!(
        "CASE WHEN instr({value},char(0)) THEN 'T'''||hex({value})||'''' ELSE quote({value}) END"
    )
}

/// Joins SQL texts with commas between their values. SQLite bounds how deep an expression may nest,
/// so the chain is a balanced tree.
fn list(parts: Vec<String>) -> String {
    fn join(parts: &[String]) -> String {
        match parts {
            [] => "''".to_owned(),
            [one] => one.clone(),
            [one, two] => format!("{one}||','||{two}"),
            many => {
                let (left, right) = many.split_at(many.len() / 2);
                format!("({})||','||({})", join(left), join(right))
            }
        }
    }
    join(&parts)
}
