//! The triggers that note the rows which REPLACE may remove.
//!
//! A note is a row of `sync_change` with the image of a row that agrees, in a unique index, with the
//! one about to be written. Its `life` is the number of the last change before it. Of the notes of a
//! row between which nothing changed the last is kept: so a host that inserts or ignores the same
//! rows for ever does not fill the database.

use super::{NOTE, Writer, column_of, places, quote, values};
use crate::catalog::{Clash, ClashTerm};
use crate::store::sqlite::literals::balanced;

/// The last change there is, notes aside.
const LAST: &str = "(SELECT seq FROM sync_last)";

impl Writer<'_> {
    /// Whether REPLACE can remove a row here that the new one is not known by as well. Where the
    /// local id alone is unique, and the key, it is the same row with other values.
    pub(super) fn replaces(&self) -> bool {
        let class = self.class;
        let [only] = class.clashes.as_slice() else { return !class.clashes.is_empty() };
        let by_key = |clash: &Clash| {
            let columns: Option<Vec<usize>> =
                clash.terms.iter().map(|term| class.position(&term.sql)).collect();
            let exact = clash.terms.iter().all(|term| term.collation == "BINARY");
            exact && clash.condition.is_none() && columns.as_ref() == Some(&class.key)
        };
        class.key != class.local || !by_key(only)
    }

    /// Notes the rows that an INSERT OR REPLACE would remove.
    pub(super) fn note_insert(&self) -> String {
        let agree: Vec<String> = self.class.clashes.iter().map(|clash| self.agree(clash)).collect();
        self.note("note_insert", "BEFORE INSERT", "", &agree)
    }

    /// Notes the rows that an UPDATE OR REPLACE would remove: never the updated row itself.
    pub(super) fn note_update(&self) -> String {
        let same = self.same(&self.class.local, "o", "OLD");
        let changed: Vec<String> =
            self.class.clashes.iter().map(|clash| self.moved(clash)).collect();
        let agree = self.class.clashes.iter().map(|clash| self.agree(clash));
        let agree: Vec<String> = agree.map(|agree| format!("{agree} AND NOT ({same})")).collect();
        let when = format!("({}) AND ", changed.join(" OR "));
        self.note("note_update", &format!("BEFORE UPDATE{}", self.of_unique()), &when, &agree)
    }

    /// `agree`: for each unique index, when the row `o` stands in the way. Most often none does.
    fn note(&self, name: &str, event: &str, when: &str, agree: &[String]) -> String {
        let table = quote(&self.class.table);
        let any: Vec<String> = agree
            .iter()
            .map(|agree| format!("EXISTS (SELECT 1 FROM {table} o WHERE {agree})"))
            .collect();
        let when = format!("{when}({}) AND {}", any.join(" OR "), super::CAPTURING);
        let identity = self.identity_sql("o");
        // The pieces of an image must lie one behind the other: one row at a time, where there are any.
        let which = match self.pieces().count() {
            1 => vec![self.one_of(agree)],
            _ => agree.to_vec(),
        };
        let mut body = Vec::new();
        for which in which {
            let from = format!("FROM {table} o WHERE {which}");
            // Not OR REPLACE: what the host's statement says of conflicts goes for ours as well.
            body.push(format!(
                "DELETE FROM sync_change WHERE class_id={} AND life={LAST} \
                 AND note IN (SELECT {identity} {from})",
                self.tracked.id
            ));
            for (n, columns) in self.pieces() {
                let places = format!("note,{}", places("n", columns));
                let values = format!("SELECT {{}},{identity},{} {from}", values("o", columns));
                body.push(self.row(n, NOTE, LAST, &places, &values));
            }
        }
        self.trigger(name, event, &when, &body)
    }

    /// `o` is one of the rows that agree. Each is looked up in its index by itself: a chain of ORs
    /// would be read from the whole table where one of them has none.
    fn one_of(&self, agree: &[String]) -> String {
        if agree.len() < 2 {
            return agree.concat();
        }
        let table = quote(&self.class.table);
        let id: Vec<String> = match self.rowid() {
            Some(name) => vec![column_of("o", &name)],
            None => {
                let local = self.class.local.iter().filter_map(|n| self.class.columns.get(*n));
                local.map(|column| column_of("o", &column.name)).collect()
            }
        };
        let id = id.join(",");
        let found: Vec<String> =
            agree.iter().map(|agree| format!("SELECT {id} FROM {table} o WHERE {agree}")).collect();
        format!("({id}) IN ({})", found.join(" UNION ALL "))
    }

    /// The name by which the rowid can be had, if there is one: it is the first that clashes.
    fn rowid(&self) -> Option<String> {
        let clash = self.class.clashes.first()?;
        let [term] = clash.terms.as_slice() else { return None };
        let column = self.class.position(&term.sql);
        let hidden = column.is_none() && !term.expression;
        let alias = column.is_some() && column == self.class.surrogate;
        (hidden || alias).then(|| term.sql.clone())
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
        format!(" OF {}", columns.join(","))
    }

    /// The row `o` stands in the way of the new row.
    fn agree(&self, clash: &Clash) -> String {
        let mut parts: Vec<String> = clash
            .terms
            .iter()
            .map(|term| {
                let other = if term.expression {
                    format!("({})", term.sql)
                } else {
                    column_of("o", &term.sql)
                };
                format!("{other}={}{}", self.term(term, "NEW"), self.collate(term))
            })
            .collect();
        if let Some(condition) = &clash.condition {
            parts.push(format!("({condition})"));
            parts.push(self.of_row(condition, "NEW"));
        }
        parts.join(" AND ")
    }

    /// An update may have changed what a unique index holds.
    fn moved(&self, clash: &Clash) -> String {
        let mut parts: Vec<String> = clash
            .terms
            .iter()
            .map(|term| {
                let (new, old) = (self.term(term, "NEW"), self.term(term, "OLD"));
                format!("{new} IS NOT {old}{}", self.collate(term))
            })
            .collect();
        if let Some(condition) = &clash.condition {
            let (new, old) = (self.of_row(condition, "NEW"), self.of_row(condition, "OLD"));
            parts.push(format!("({new} AND {old} IS NOT TRUE)"));
        }
        format!("({})", balanced(&parts, " OR ", "0"))
    }

    fn term(&self, term: &ClashTerm, row: &str) -> String {
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
        format!("(SELECT {expression} FROM (SELECT {}))", columns.join(","))
    }

    /// The collation of an index, where it is not that of the column anyway.
    fn collate(&self, term: &ClashTerm) -> String {
        if self.class.plain && !term.expression && term.collation == "BINARY" {
            return String::new();
        }
        format!(" COLLATE {}", quote(&term.collation))
    }
}
