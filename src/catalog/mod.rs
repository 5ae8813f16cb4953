//! From tables, keys and references to classes. Pure: a store reads the catalog of its database
//! into [`Table`]s, [`decide`] makes [`Class`]es of them or says why not, and a store writes the
//! triggers.
//!
//! This file holds the model; the rules stand in [`mod@decide`].

pub mod decide;

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::record::Value;

/// A table as the database's own catalog describes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// Class name: the table's name, `schema.table` outside the default schema.
    pub name: String,
    /// Schema (`public`); empty on SQLite.
    pub schema: String,
    /// Table name without schema.
    pub table: String,
    /// Columns in their order.
    pub columns: Vec<TableColumn>,
    /// Columns of the primary key, in key order; empty when there is none.
    pub primary_key: Vec<String>,
    /// Column lists of unique constraints and unique indexes that are total (no WHERE, no
    /// expressions), the primary key not included.
    pub unique: Vec<Vec<String>>,
    /// Declared foreign keys.
    pub foreign_keys: Vec<ForeignKey>,
    /// Host triggers by name, those of this crate not included.
    pub host_triggers: Vec<String>,
    /// Why the table cannot be tracked whatever is configured (row-level security that hides rows,
    /// a WITHOUT ROWID oddity, a foreign table …).
    pub obstacle: Option<String>,
    /// Whether it is partitioned (PostgreSQL): triggers go on the root and each partition.
    pub partitions: Vec<String>,
    /// What can make REPLACE remove another row (SQLite; empty on PostgreSQL).
    pub clashes: Vec<Clash>,
    /// No column declares a collation (SQLite): `=` and `IS` compare text byte for byte.
    pub plain: bool,
}

/// What a unique index of SQLite compares: a row that agrees with the new one in all terms is
/// removed by REPLACE, without a delete trigger. The primary key, partial indexes and indexes on
/// expressions included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Clash {
    /// What is compared.
    pub terms: Vec<ClashTerm>,
    /// The WHERE of a partial index.
    pub condition: Option<String>,
}

/// A column or an expression of a unique index.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClashTerm {
    /// The column's name, or the expression as the index declares it.
    pub sql: String,
    /// Whether `sql` is an expression.
    pub expression: bool,
    /// The collation that it is compared by.
    pub collation: String,
}

/// A column as the catalog describes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableColumn {
    /// Its name.
    pub name: String,
    /// Its type as SQL writes it (`character varying(38)`, `VARCHAR(38)`).
    pub sql_type: String,
    /// What the type is to us.
    pub kind: TypeKind,
    /// NOT NULL.
    pub not_null: bool,
    /// A generated column: never sent.
    pub generated: bool,
    /// The receiver can leave it out of an INSERT and gets a fresh value: serial, identity, a
    /// `nextval` default, or SQLite's rowid.
    pub auto: bool,
    /// It has a DEFAULT, though one that gives the same value each time (`DEFAULT 0`).
    pub constant: bool,
}

/// What a column's type is to us: decides how its values travel and are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TypeKind {
    /// Boolean.
    Bool,
    /// Any integer type.
    Int,
    /// Binary floats.
    Float,
    /// Decimals: canonical text.
    Decimal,
    /// Bytes.
    Bytes,
    /// The uuid type: lower case text.
    Uuid,
    /// `char(n)`: text without its padding.
    PaddedText,
    /// Timestamp with time zone: text in UTC.
    TimestampTz,
    /// Plain text, dates, times, JSON, arrays and everything else: text as the database prints it.
    #[default]
    Text,
}

/// A declared foreign key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ForeignKey {
    /// Referring columns.
    pub columns: Vec<String>,
    /// The class that is referred to.
    pub target: String,
    /// The columns that are referred to.
    pub target_columns: Vec<String>,
    /// Whether it is checked at commit only.
    pub deferrable: bool,
    /// Whether a delete or update of the row that is referred to changes rows that refer to it: ON
    /// DELETE or ON UPDATE CASCADE, SET NULL, SET DEFAULT.
    pub acts: bool,
}

/// A tracked table: what capture, sealing and applying need to know of it. Stored as JSON in the
/// sync tables, so that every process sees the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Class {
    /// Its name in the tree.
    pub name: Arc<str>,
    /// Schema, empty on SQLite.
    pub schema: String,
    /// Table name.
    pub table: String,
    /// Columns, those of the table at the time it was tracked, in their order.
    pub columns: Vec<Column>,
    /// What identifies a row: indexes into `columns`, one or several.
    pub key: Vec<usize>,
    /// The integer primary key that is local to this server and never travels.
    pub surrogate: Option<usize>,
    /// Columns of the local primary key (or the key, where there is none): how triggers pair old
    /// and new images and how a row is addressed once found. Indexes into `columns`.
    pub local: Vec<usize>,
    /// All columns are the key and equal rows count as one: a table without primary key and uuid.
    pub set: bool,
    /// Names of host triggers.
    pub host_triggers: Vec<String>,
    /// Unique column lists beside the key, for parking rows that swap unique values.
    pub unique: Vec<Vec<usize>>,
    /// An expression that yields a new surrogate where the column has no default of its own.
    pub id_source: Option<String>,
    /// Partitions that carry the triggers as well.
    pub partitions: Vec<String>,
    /// As in [`Table::clashes`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clashes: Vec<Clash>,
    /// Whether deleting a row of it makes the database change rows of other tables by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cascades: bool,
    /// Declared foreign keys to what identifies a row everywhere: their columns travel as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
    /// As in [`Table::plain`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain: bool,
}

/// A declared foreign key to columns that are no local id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// Indexes into the columns of the class that refers.
    pub columns: Vec<usize>,
    /// The class that is referred to.
    pub target: Arc<str>,
    /// Its columns.
    pub target_columns: Vec<Arc<str>>,
}

/// A column of a class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: Arc<str>,
    /// Its type as SQL writes it.
    pub sql_type: String,
    /// What the type is to us.
    pub kind: TypeKind,
    /// NOT NULL.
    pub not_null: bool,
    /// Never sent: generated.
    pub generated: bool,
    /// The classes it may refer to. One entry without `when` for a foreign key; several, each with
    /// its `when`, where the target depends on the row.
    pub references: Vec<Reference>,
}

/// That a column holds the local id of a row of another class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// The class that is referred to.
    pub target: Arc<str>,
    /// The column of the target that holds the same local id (its surrogate key).
    pub target_column: Arc<str>,
    /// For which rows: an SQL condition in which `{row}` stands for the captured row.
    pub when: Option<String>,
    /// Whether the database itself checks it (a declared foreign key).
    pub declared: bool,
}

impl Class {
    /// The references of a row, in the order in which triggers write them: column by column, each
    /// of a column's alternatives in its turn.
    pub fn slots(&self) -> impl Iterator<Item = Slot<'_>> {
        self.columns.iter().enumerate().flat_map(move |(column, def)| {
            let key = &self.key;
            def.references.iter().map(move |reference| Slot {
                column,
                reference,
                in_key: key.contains(&column),
            })
        })
    }

    /// Whether a column refers to rows, by local id or otherwise.
    #[must_use]
    pub fn refers(&self, column: usize) -> bool {
        !self.columns[column].references.is_empty()
            || self.links.iter().any(|link| link.columns.contains(&column))
    }

    /// Where a column stands in `columns`.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| &*column.name == name)
    }
}

/// One reference that a row of a class may hold.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    /// Index into [`Class::columns`].
    pub column: usize,
    /// What it refers to.
    pub reference: &'a Reference,
    /// Whether the column is part of the row's key.
    pub in_key: bool,
}

/// The classes of one database, as `track` left them.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// Tracked classes by their local number.
    pub tracked: HashMap<i32, Arc<Tracked>>,
    /// Local numbers by name, those of classes known by name only included.
    pub ids: HashMap<Arc<str>, i32>,
    /// The order in which rows go in: a class stands behind those that it refers to, where there
    /// is no cycle.
    ranks: HashMap<i32, usize>,
}

/// A class with what the sync tables call it.
#[derive(Clone, Debug)]
pub struct Tracked {
    /// `sync_tracked.id`.
    pub id: i32,
    /// `sync_tracked.shape`: the list of columns that the triggers were made for.
    pub shape: i32,
    /// The class.
    pub class: Class,
}

impl Catalog {
    /// These classes, by their numbers.
    #[must_use]
    pub fn new(tracked: HashMap<i32, Arc<Tracked>>, ids: HashMap<Arc<str>, i32>) -> Self {
        let mut catalog = Self { tracked, ids, ranks: HashMap::new() };
        let mut classes: Vec<i32> = catalog.tracked.keys().copied().collect();
        classes.sort_by_key(|id| Arc::clone(&catalog.tracked[id].class.name));
        for id in classes {
            catalog.rank_from(id, &mut Vec::new());
        }
        catalog
    }

    fn rank_from(&mut self, id: i32, above: &mut Vec<i32>) {
        if self.ranks.contains_key(&id) || above.contains(&id) {
            return;
        }
        above.push(id);
        let targets: Vec<i32> = self
            .tracked
            .get(&id)
            .into_iter()
            .flat_map(|tracked| tracked.class.slots())
            .filter_map(|slot| self.ids.get(&slot.reference.target).copied())
            .collect();
        for target in targets {
            self.rank_from(target, above);
        }
        above.pop();
        let next = self.ranks.len();
        self.ranks.insert(id, next);
    }

    /// Where a class stands in the order in which rows go in.
    #[must_use]
    pub fn rank(&self, id: i32) -> usize {
        self.ranks.get(&id).copied().unwrap_or(usize::MAX)
    }

    /// A tracked class by its name.
    #[must_use]
    pub fn class(&self, name: &str) -> Option<&Arc<Tracked>> {
        self.tracked.get(self.ids.get(name)?)
    }
}

/// Joins the canonical texts of a key's parts: the text itself, or a JSON array without spaces.
#[must_use]
pub fn join_key(parts: &[String]) -> String {
    match parts {
        [one] => one.clone(),
        many => serde_json::to_string(many).unwrap_or_default(),
    }
}

/// Cuts a key into `count` parts; `None` when it has another number of them.
#[must_use]
pub fn split_key(key: &str, count: usize) -> Option<Vec<String>> {
    if count == 1 {
        return Some(vec![key.to_owned()]);
    }
    let parts: Vec<String> = serde_json::from_str(key).ok()?;
    (parts.len() == count).then_some(parts)
}

/// The canonical text of one key part that is no reference; `None` for NULL.
#[must_use]
pub fn key_part(value: &Value, kind: TypeKind) -> Option<String> {
    Some(match (value, kind) {
        (Value::Null, _) => return None,
        (Value::Ref(row), _) => row.key.to_string(),
        (Value::Bool(value), _) => value.to_string(),
        (Value::Int(value), TypeKind::Bool) => (*value != 0).to_string(),
        (Value::Int(value), _) => value.to_string(),
        (Value::Float(value), _) => value.to_string(),
        (Value::Bytes(bytes), _) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        (Value::Text(text), TypeKind::Uuid) => text.to_ascii_lowercase(),
        (Value::Text(text), TypeKind::PaddedText) => text.trim_end_matches(' ').to_owned(),
        (Value::Text(text), TypeKind::Decimal) if text.contains('.') => {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        (Value::Text(text), _) => text.clone(),
    })
}
