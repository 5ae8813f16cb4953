//! From tables, keys and references to classes. Pure: a store reads the catalog of its database
//! into [`Table`]s, [`decide`] makes [`Class`]es of them or says why not, and a store writes the
//! triggers.
//!
//! This file holds the model; the rules stand in [`mod@decide`].

use std::sync::Arc;

use serde::{Deserialize, Serialize};

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
