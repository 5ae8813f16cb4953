//! The triggers that capture a class on SQLite.
//!
//! They promise: every insert, update and delete of a row is one or two rows of `sync_change` in the
//! writer's own transaction, the rows that REPLACE removes unseen included; and no write of the host
//! fails, or behaves otherwise, because of them. So they raise nothing and cast nothing, they use
//! functions that SQLite has had since 3.7, and **they name no table but their own and ours**: a
//! trigger that looked up the keys of referenced rows would break the rebuild of those tables
//! (`no such table` between its DROP and its RENAME). [`refs`](super::refs) fills those keys in
//! before the changes are sealed.
//!
//! **REPLACE** removes rows without a delete trigger, unless `recursive_triggers` is on. So a BEFORE
//! trigger notes the rows that agree with the new one in a unique index, in `sync_replaced`, by the
//! values on which they clash. If the new row comes to stand, the noted ones are gone, and the AFTER
//! trigger captures them as deletes. A noted row that is deleted or updated otherwise (an upsert,
//! `recursive_triggers`, a host trigger that makes room) loses its note by its own trigger. Notes of
//! inserts that were ignored stay without effect; a few are kept at most.

use std::fmt::Write as _;

use super::affinity::{Affinity, affinity};
use crate::catalog::{Catalog, Clash, Class, Column, Tracked};
use crate::error::Result;
use crate::store::session::{Session, quote};

/// Notes that are kept: more than one row can clash with, in as many nested triggers as make sense.
const NOTES_MAX: u32 = 32;

/// Names of our triggers on a class, without what they all begin with.
const NAMES: [&str; 5] = ["note_insert", "note_update", "insert", "update", "delete"];

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
    list(class.columns.iter().map(|column| literal_sql(column, row)).collect())
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
            "CREATE TRIGGER {} {event} ON {} WHEN NOT EXISTS (SELECT 1 FROM sync_applying){when} \
             BEGIN\n",
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
        let mut body = vec![self.forget_old_notes(), self.forget_clashes()];
        body.extend(
            self.class
                .clashes
                .iter()
                .enumerate()
                .map(|(n, clash)| self.note(n, clash, &self.agree(clash, "NEW"))),
        );
        self.trigger("note_insert", "BEFORE INSERT", "", &body)
    }

    /// Notes the rows that an UPDATE OR REPLACE would remove: never the updated row itself.
    fn note_update(&self) -> String {
        let mut body = vec![self.forget_old_notes(), self.forget_clashes()];
        let changed: Vec<String> =
            self.class.clashes.iter().map(|clash| self.changed(clash)).collect();
        let same = self.same(&self.class.local, "o", "OLD");
        for (n, (clash, changed)) in self.class.clashes.iter().zip(&changed).enumerate() {
            let condition = format!("{changed} AND {} AND NOT ({same})", self.agree(clash, "NEW"));
            body.push(self.note(n, clash, &condition));
        }
        let when = format!(" AND ({})", changed.join(" OR "));
        self.trigger("note_update", "BEFORE UPDATE", &when, &body)
    }

    fn insert(&self) -> String {
        let mut body = self.capture_replaced();
        body.push(format!(
            "INSERT INTO sync_change (class_id, op, shape, new_image, local_id) \
             VALUES ({}, 1, {}, {}, {})",
            self.tracked.id,
            self.tracked.shape,
            image_sql(self.class, "NEW"),
            self.id_again("NEW"),
        ));
        self.trigger("insert", "AFTER INSERT", "", &body)
    }

    /// An update of the local primary key is a delete and an insert, for a set any update is.
    fn update(&self) -> String {
        // An upsert has noted the very row that it updates.
        let mut body: Vec<String> = self.forget_row("OLD").into_iter().collect();
        body.extend(self.capture_replaced());
        let ops = if self.class.set {
            "(SELECT 3 AS op UNION ALL SELECT 1)".to_owned()
        } else {
            let same = self.same(&self.class.local, "OLD", "NEW");
            format!(
                "(SELECT 2 AS op WHERE {same} UNION ALL SELECT 3 WHERE NOT ({same}) \
                 UNION ALL SELECT 1 WHERE NOT ({same}))"
            )
        };
        let local_id = if self.referred {
            format!(
                "CASE op WHEN 1 THEN {} WHEN 3 THEN {old} ELSE \
                 CASE WHEN NOT ({}) THEN {old} END END",
                self.id_again("NEW"),
                self.same(&self.class.key, "OLD", "NEW"),
                old = self.local_sql("OLD"),
            )
        } else {
            "NULL".to_owned()
        };
        body.push(format!(
            "INSERT INTO sync_change (class_id, op, shape, old_image, new_image, local_id) \
             SELECT {}, op, {}, CASE WHEN op <> 1 THEN {} END, CASE WHEN op <> 3 THEN {} END, \
             {local_id} FROM {ops}",
            self.tracked.id,
            self.tracked.shape,
            image_sql(self.class, "OLD"),
            image_sql(self.class, "NEW"),
        ));
        self.trigger("update", "AFTER UPDATE", "", &body)
    }

    fn delete(&self) -> String {
        let mut body: Vec<String> = self.forget_row("OLD").into_iter().collect();
        body.push(format!(
            "INSERT INTO sync_change (class_id, op, shape, old_image, local_id) \
             VALUES ({}, 3, {}, {}, {})",
            self.tracked.id,
            self.tracked.shape,
            image_sql(self.class, "OLD"),
            if self.referred { self.local_sql("OLD") } else { "NULL".to_owned() },
        ));
        self.trigger("delete", "AFTER DELETE", "", &body)
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

    fn note(&self, n: usize, clash: &Clash, condition: &str) -> String {
        format!(
            "INSERT INTO sync_replaced (class_id, clash, local_id, image) \
             SELECT {}, {}, {}, {} FROM {} AS o WHERE {condition}",
            self.tracked.id,
            self.clash_values(n, clash),
            self.local_sql("o"),
            image_sql(self.class, "o"),
            quote(&self.class.table),
        )
    }

    /// Captures the noted rows that the new row has replaced, once each.
    fn capture_replaced(&self) -> Vec<String> {
        if self.class.clashes.is_empty() {
            return Vec::new();
        }
        let noted = self.noted();
        vec![
            format!(
                "INSERT INTO sync_change (class_id, op, shape, old_image, local_id) \
                 SELECT class_id, 3, {}, image, {} FROM sync_replaced WHERE {noted} GROUP BY local_id",
                self.tracked.shape,
                if self.referred { "local_id" } else { "NULL" },
            ),
            self.forget_clashes(),
        ]
    }

    fn forget_old_notes(&self) -> String {
        format!(
            "DELETE FROM sync_replaced WHERE rowid <= \
             (SELECT max(rowid) FROM sync_replaced) - {NOTES_MAX}"
        )
    }

    fn forget_clashes(&self) -> String {
        format!("DELETE FROM sync_replaced WHERE {}", self.noted())
    }

    fn forget_row(&self, row: &str) -> Option<String> {
        (!self.class.clashes.is_empty()).then(|| {
            format!(
                "DELETE FROM sync_replaced WHERE class_id = {} AND local_id = {}",
                self.tracked.id,
                self.local_sql(row)
            )
        })
    }

    /// Notes for the values that the new row has.
    fn noted(&self) -> String {
        let clashes = self.class.clashes.iter().enumerate();
        let any: Vec<String> =
            clashes.map(|(n, clash)| format!("clash = {}", self.clash_values(n, clash))).collect();
        format!("class_id = {} AND ({})", self.tracked.id, any.join(" OR "))
    }

    /// The new row's values in a unique index, as one text.
    fn clash_values(&self, n: usize, clash: &Clash) -> String {
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

    fn local_sql(&self, row: &str) -> String {
        list(self.local().map(|column| literal_sql(column, row)).collect())
    }

    fn local(&self) -> impl Iterator<Item = &Column> {
        self.class.local.iter().filter_map(|n| self.class.columns.get(*n))
    }
}

fn column_of(row: &str, name: &str) -> String {
    format!("{row}.{}", quote(name))
}

/// SQL for one value as a literal. What a column's affinity rules out is not asked for.
pub(super) fn literal_sql(column: &Column, row: &str) -> String {
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
pub(super) fn any_literal_sql(value: &str) -> String {
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
pub(super) fn list(parts: Vec<String>) -> String {
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
    match parts.as_slice() {
        // A text also where the value alone would be a number.
        [one] => format!("{one}||''"),
        many => join(many),
    }
}
