//! Reads the catalog of a SQLite database: every host table with its columns, keys, references,
//! unique indexes and triggers, in five queries however many tables there are.
//!
//! SQLite's names are case-insensitive, and a foreign key may leave out its target columns; here
//! all names are as the tables declare them, and target columns are always named.

use std::collections::HashMap;

use super::affinity::kind;
use super::index;
use crate::catalog::{Clash, ClashTerm, ForeignKey, Table, TableColumn};
use crate::error::Result;
use crate::store::session::{Row, Session};

/// Host tables: ours, SQLite's and the migration ledger of diesel are none.
const HOST: &str = "s.type = 'table' AND s.name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
     AND s.name NOT LIKE 'sync\\_%' ESCAPE '\\' AND s.name <> '__diesel_schema_migrations'";

/// Host tables whose columns SQLite itself knows.
const PLAIN: &str = "s.sql NOT LIKE 'CREATE VIRTUAL%'";

/// All host tables by name, views and the shadow tables of virtual tables not included.
///
/// # Errors
/// Those of the database.
pub async fn read(session: &mut Session) -> Result<Vec<Table>> {
    let mut tables = Tables::default();
    let sql = format!(
        "SELECT s.name, l.type, l.wr, s.sql FROM sqlite_schema s \
         JOIN pragma_table_list l ON l.schema = 'main' AND l.name = s.name \
         WHERE {HOST} AND l.type <> 'shadow' ORDER BY s.name"
    );
    for row in session.query(&sql, vec![]).await? {
        tables.add(&row)?;
    }
    let sql = format!(
        "SELECT s.name, c.name, c.type, c.\"notnull\", c.pk, c.hidden FROM sqlite_schema s, \
         pragma_table_xinfo(s.name) c WHERE {HOST} AND {PLAIN} ORDER BY s.name, c.cid"
    );
    for row in session.query(&sql, vec![]).await? {
        tables.add_column(&row)?;
    }
    let sql = format!(
        "SELECT s.name, i.name, i.origin, \
         (SELECT d.sql FROM sqlite_schema d WHERE d.type = 'index' AND d.name = i.name), \
         x.name, x.coll FROM sqlite_schema s, pragma_index_list(s.name) i, \
         pragma_index_xinfo(i.name) x WHERE {HOST} AND {PLAIN} AND i.\"unique\" AND x.key \
         ORDER BY s.name, i.seq DESC, x.seqno"
    );
    for row in session.query(&sql, vec![]).await? {
        tables.add_index_term(&row)?;
    }
    let sql = format!(
        "SELECT s.name, f.id, f.\"table\", f.\"from\", f.\"to\", \
         f.on_delete NOT IN ('NO ACTION', 'RESTRICT') OR f.on_update NOT IN ('NO ACTION', 'RESTRICT') \
         FROM sqlite_schema s, \
         pragma_foreign_key_list(s.name) f WHERE {HOST} AND {PLAIN} \
         ORDER BY s.name, f.id DESC, f.seq"
    );
    for row in session.query(&sql, vec![]).await? {
        tables.add_reference(&row)?;
    }
    let sql = "SELECT s.tbl_name, s.name FROM sqlite_schema s WHERE s.type = 'trigger' \
               AND s.name NOT LIKE 'sync\\_%' ESCAPE '\\' AND s.sql NOT LIKE '%sync_applying%' \
               ORDER BY s.name";
    for row in session.query(sql, vec![]).await? {
        if let Some(draft) = tables.find(row.text(0)?) {
            draft.table.host_triggers.push(row.text(1)?.to_owned());
        }
    }
    Ok(tables.finish())
}

/// A number that changes whenever the schema does: the catalog need not be read while it stands.
///
/// # Errors
/// Those of the database.
pub async fn schema_version(session: &mut Session) -> Result<i64> {
    session.query_one("SELECT schema_version FROM pragma_schema_version", vec![]).await?.int(0)
}

/// Tables as their rows come in.
#[derive(Default)]
struct Tables {
    drafts: Vec<Draft>,
    /// Positions in `drafts` by lower-case name.
    by_name: HashMap<String, usize>,
}

#[derive(Default)]
struct Draft {
    table: Table,
    without_rowid: bool,
    deferred: bool,
    /// Columns of the primary key with their places in it.
    key: Vec<(i64, String)>,
    indexes: Vec<Index>,
    references: Vec<Reference>,
}

struct Index {
    name: String,
    primary: bool,
    sql: Option<String>,
    /// Column (`None` for an expression) and collation of each term.
    terms: Vec<(Option<String>, String)>,
}

/// One column of a foreign key, as it is declared.
struct Reference {
    id: i64,
    target: String,
    from: String,
    to: Option<String>,
    acts: bool,
}

impl Tables {
    fn add(&mut self, row: &Row) -> Result<()> {
        let name = row.text(0)?.to_owned();
        let sql = row.opt_text(3)?.unwrap_or_default();
        let obstacle = (row.text(1)? == "virtual")
            .then(|| "a virtual table has no triggers, so nothing of it is captured".to_owned());
        self.by_name.insert(name.to_ascii_lowercase(), self.drafts.len());
        let declares = |word: &str| sql.to_ascii_uppercase().contains(word);
        let plain = !declares("COLLATE");
        self.drafts.push(Draft {
            without_rowid: row.flag(2)?,
            deferred: declares("DEFERRED"),
            table: Table { name: name.clone(), table: name, obstacle, plain, ..Table::default() },
            ..Draft::default()
        });
        Ok(())
    }

    fn find(&mut self, name: &str) -> Option<&mut Draft> {
        let position = *self.by_name.get(&name.to_ascii_lowercase())?;
        self.drafts.get_mut(position)
    }

    fn add_column(&mut self, row: &Row) -> Result<()> {
        let Some(draft) = self.find(row.text(0)?) else { return Ok(()) };
        let name = row.text(1)?.to_owned();
        let sql_type = row.opt_text(2)?.unwrap_or_default().to_owned();
        let place = row.int(4)?;
        if place > 0 {
            draft.key.push((place, name.clone()));
        }
        draft.table.columns.push(TableColumn {
            name,
            kind: kind(&sql_type),
            sql_type,
            not_null: row.flag(3)?,
            // 2: virtual, 3: stored.
            generated: row.int(5)? > 1,
            auto: false,
            constant: false,
        });
        Ok(())
    }

    fn add_index_term(&mut self, row: &Row) -> Result<()> {
        let Some(draft) = self.find(row.text(0)?) else { return Ok(()) };
        let name = row.text(1)?;
        let column = row.opt_text(4)?.map(str::to_owned);
        let term = (column, row.opt_text(5)?.unwrap_or("BINARY").to_owned());
        match draft.indexes.last_mut() {
            Some(index) if index.name == name => index.terms.push(term),
            _ => draft.indexes.push(Index {
                name: name.to_owned(),
                primary: row.text(2)? == "pk",
                sql: row.opt_text(3)?.map(str::to_owned),
                terms: vec![term],
            }),
        }
        Ok(())
    }

    fn add_reference(&mut self, row: &Row) -> Result<()> {
        let Some(draft) = self.find(row.text(0)?) else { return Ok(()) };
        draft.references.push(Reference {
            id: row.int(1)?,
            target: row.text(2)?.to_owned(),
            from: row.text(3)?.to_owned(),
            to: row.opt_text(4)?.map(str::to_owned),
            acts: row.flag(5)?,
        });
        Ok(())
    }

    fn finish(mut self) -> Vec<Table> {
        for draft in &mut self.drafts {
            draft.finish_keys();
        }
        let targets: HashMap<String, Table> = self
            .by_name
            .iter()
            .filter_map(|(name, n)| Some((name.clone(), self.drafts.get(*n)?.table.clone())))
            .collect();
        self.drafts.into_iter().map(|draft| draft.finish_references(&targets)).collect()
    }
}

impl Draft {
    fn finish_keys(&mut self) {
        self.key.sort();
        let key = std::mem::take(&mut self.key);
        self.table.primary_key = key.into_iter().map(|(_, name)| name).collect();
        let indexed = self.indexes.iter().any(|index| index.primary);
        // SQLite makes no index for the one primary key that is the rowid itself.
        let rowid = match self.table.primary_key.as_slice() {
            [one] if !self.without_rowid && !indexed => Some(one.clone()),
            _ => None,
        };
        let mut clashes = Vec::new();
        for column in &mut self.table.columns {
            column.auto = rowid.as_ref() == Some(&column.name);
            let in_key = self.table.primary_key.contains(&column.name);
            column.not_null |= column.auto || (self.without_rowid && in_key);
        }
        // Without such a column a row can still be replaced by its hidden rowid.
        let hidden = || {
            let free = |name: &&str| {
                !self.table.columns.iter().any(|column| column.name.eq_ignore_ascii_case(name))
            };
            ["rowid", "oid", "_rowid_"].into_iter().find(free).map(str::to_owned)
        };
        let rowid = if self.without_rowid { None } else { rowid.or_else(hidden) };
        clashes.extend(rowid.map(|sql| Clash {
            terms: vec![ClashTerm { sql, expression: false, collation: "BINARY".to_owned() }],
            condition: None,
        }));
        for index in self.indexes.drain(..) {
            let clash = clash(&index);
            let total =
                clash.condition.is_none() && clash.terms.iter().all(|term| !term.expression);
            if total && !index.primary {
                self.table.unique.push(clash.terms.iter().map(|term| term.sql.clone()).collect());
            }
            clashes.push(clash);
        }
        self.table.clashes = clashes;
    }

    fn finish_references(mut self, targets: &HashMap<String, Table>) -> Table {
        let mut last = None;
        for reference in std::mem::take(&mut self.references) {
            let target = targets.get(&reference.target.to_ascii_lowercase());
            if last != Some(reference.id) {
                last = Some(reference.id);
                self.table.foreign_keys.push(ForeignKey {
                    target: target.map_or(reference.target, |target| target.name.clone()),
                    deferrable: self.deferred,
                    acts: reference.acts,
                    ..ForeignKey::default()
                });
            }
            let from = declared(&self.table, &reference.from);
            let Some(key) = self.table.foreign_keys.last_mut() else { continue };
            let to = match (reference.to, target) {
                (Some(to), Some(target)) => declared(target, &to),
                (Some(to), None) => to,
                // Left out: the primary key.
                (None, target) => target
                    .and_then(|target| target.primary_key.get(key.columns.len()).cloned())
                    .unwrap_or_default(),
            };
            key.columns.push(from);
            key.target_columns.push(to);
        }
        self.table
    }
}

/// A column's name as its table declares it.
fn declared(table: &Table, name: &str) -> String {
    let same = |column: &&TableColumn| column.name.eq_ignore_ascii_case(name);
    table.columns.iter().find(same).map_or_else(|| name.to_owned(), |column| column.name.clone())
}

fn clash(index: &Index) -> Clash {
    let declared = index.sql.as_deref().map(index::parse).unwrap_or_default();
    let terms = index.terms.iter().enumerate().map(|(n, (column, collation))| {
        let expression = column.is_none();
        let sql = column.clone().or_else(|| declared.terms.get(n).cloned()).unwrap_or_default();
        ClashTerm { sql, expression, collation: collation.clone() }
    });
    Clash { terms: terms.collect(), condition: declared.condition }
}
