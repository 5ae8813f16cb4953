//! From tables to classes: what identifies a row, what refers to what, and why a table is refused.
//!
//! The rules are those of DESIGN, chapter 2. An integer primary key is a local name of the row: it
//! never travels, and every column that holds one has to be known, or rows would point at others on
//! the other side without anybody noticing.
//!
//! What was decided before stands: a class that is tracked keeps its key and its plain columns when
//! it is brought up to date, whether the same options are given again or not.

mod keys;
mod references;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use self::keys::Key;
use super::{Class, Column, ForeignKey, Link, Reference, Table, TypeKind};
use crate::store::session::quote;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Class names; with `all` nothing beside them is needed.
    pub names: Vec<String>,
    /// Every table but those that the default rules neither send nor receive.
    pub all: bool,
    /// Classes that are tracked already: they are brought up to date.
    pub tracked: Vec<Class>,
    /// Keys that are given: class, columns.
    pub keys: HashMap<String, Vec<String>>,
    /// Add a uuid column where a class has no key.
    pub add_uuid: bool,
    /// Whether a uuid column can give rows that come later a uuid by itself: PostgreSQL's default
    /// does. On SQLite sealing fills it, by the row's primary key.
    pub fills_uuid: bool,
    /// Integer columns that look like references and are not known as such are plain.
    pub assume_plain: bool,
    /// References that the catalog does not declare.
    pub references: Vec<NewReference>,
    /// Columns that are no references: table, column.
    pub plain: Vec<(String, String)>,
    /// Sources of surrogate ids: class, SQL expression.
    pub id_sources: HashMap<String, String>,
    /// Classes that are never tracked by `all`.
    pub skipped: BTreeSet<String>,
}

/// A reference from the configuration.
#[derive(Clone, Debug, Default)]
pub struct NewReference {
    /// The table that refers.
    pub table: String,
    /// Its column.
    pub column: String,
    /// The class that is referred to.
    pub target: String,
    /// For which rows.
    pub when: Option<String>,
}

/// What comes of it.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// Classes to be tracked, by name.
    pub classes: Vec<Class>,
    /// What has to be done to the tables before.
    pub actions: Vec<Action>,
    /// What an operator should know: class, text.
    pub warnings: Vec<Remark>,
    /// Why a table is not tracked, with the ways out.
    pub refusals: Vec<Remark>,
}

/// A sentence about a class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Remark {
    /// The class.
    pub class: String,
    /// The sentence.
    pub text: String,
}

/// A change to a host table that tracking needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Add a uuid column (the class is then keyed by it).
    AddUuid {
        /// The class.
        class: String,
    },
    /// Give every row whose uuid is NULL one.
    FillUuid {
        /// The class.
        class: String,
        /// Its uuid column.
        column: String,
    },
    /// Make the columns of the key unique.
    MakeUnique {
        /// The class.
        class: String,
        /// Its key columns.
        columns: Vec<String>,
    },
}

/// The column that `--add-uuid` adds.
pub const UUID_COLUMN: &str = "uuid";

struct Decider<'a> {
    tables: BTreeMap<&'a str, &'a Table>,
    known: BTreeMap<&'a str, &'a Class>,
    request: &'a Request,
    decision: Decision,
    refused: BTreeSet<String>,
}

/// Decides what is tracked and how.
#[must_use]
pub fn decide(tables: &[Table], request: &Request) -> Decision {
    let mut decider = Decider {
        tables: tables.iter().map(|table| (table.name.as_str(), table)).collect(),
        known: request.tracked.iter().map(|class| (&*class.name, class)).collect(),
        request,
        decision: Decision::default(),
        refused: BTreeSet::new(),
    };
    let selected = decider.select();
    decider.check_configuration(&selected);
    let mut classes = BTreeMap::new();
    for name in &selected {
        if let Some(class) = decider.candidate(name, &selected) {
            classes.insert(name.clone(), class);
        }
    }
    decider.refuse_circles(&mut classes);
    decider.drop_dangling(&mut classes);
    decider.decision.classes = classes.into_values().collect();
    let refused = decider.refused;
    let mut decision = decider.decision;
    decision.actions.retain(|action| !refused.contains(action.class()));
    decision
}

impl Action {
    fn class(&self) -> &str {
        match self {
            Self::AddUuid { class }
            | Self::FillUuid { class, .. }
            | Self::MakeUnique { class, .. } => class,
        }
    }
}

impl Decider<'_> {
    fn refuse(&mut self, class: &str, text: impl Into<String>) {
        self.refused.insert(class.to_owned());
        let remark = Remark { class: class.to_owned(), text: text.into() };
        if !self.decision.refusals.contains(&remark) {
            self.decision.refusals.push(remark);
        }
    }

    fn warn(&mut self, class: &str, text: impl Into<String>) {
        self.decision.warnings.push(Remark { class: class.to_owned(), text: text.into() });
    }

    /// The tables that are meant, with those they refer to where all are asked for.
    fn select(&mut self) -> BTreeSet<String> {
        let here = |name: &&str| self.tables.contains_key(*name);
        let mut selected: BTreeSet<String> =
            self.known.keys().copied().filter(here).map(str::to_owned).collect();
        for name in &self.request.names {
            if self.tables.contains_key(name.as_str()) {
                selected.insert(name.clone());
            } else {
                self.refuse(name, "there is no such table in this database");
            }
        }
        if !self.request.all {
            return selected;
        }
        let all = self.tables.keys().filter(|name| !self.request.skipped.contains(**name));
        selected.extend(all.map(|name| (*name).to_owned()));
        loop {
            let more: BTreeSet<String> = selected
                .iter()
                .filter_map(|name| self.tables.get(name.as_str()))
                .flat_map(|table| self.references(table))
                .flatten()
                .map(|reference| reference.target.to_string())
                .filter(|target| !selected.contains(target))
                .collect();
            if more.is_empty() {
                return selected;
            }
            for name in &more {
                self.warn(
                    name,
                    "it is kept back by the default rules, and tracked because others refer to it",
                );
            }
            selected.extend(more);
        }
    }

    /// A class from a table, or `None` when it is refused.
    fn candidate(&mut self, name: &str, selected: &BTreeSet<String>) -> Option<Class> {
        let table = *self.tables.get(name)?;
        if let Some(obstacle) = &table.obstacle {
            self.refuse(name, obstacle.clone());
            return None;
        }
        let references = self.references(table);
        for (column, list) in table.columns.iter().zip(&references) {
            for one in list.iter().filter(|one| !selected.contains(&*one.target)) {
                let text = format!(
                    "column `{}` refers to `{}`, which is not tracked: track it too, or use --all",
                    column.name, one.target
                );
                self.refuse(name, text);
            }
        }
        let key = self.key(table, &references)?;
        self.suspects(table, &references, &key);
        let class = self.class(table, references, &key)?;
        self.check_key(&class);
        (!self.refused.contains(name)).then_some(class)
    }

    /// The class itself, with what has to be done to its table.
    fn class(
        &mut self,
        table: &Table,
        references: Vec<Vec<Reference>>,
        key: &Key,
    ) -> Option<Class> {
        let mut columns: Vec<Column> = table
            .columns
            .iter()
            .zip(references)
            .map(|(column, references)| Column {
                name: column.name.as_str().into(),
                sql_type: column.sql_type.clone(),
                kind: column.kind,
                not_null: column.not_null,
                generated: column.generated,
                references,
            })
            .collect();
        let name = table.name.clone();
        if *key == Key::NewUuid {
            self.add_uuid(&name);
            columns.push(new_uuid_column());
        }
        let key_columns = match key {
            Key::Natural(columns) => columns.clone(),
            Key::Uuid(column) => vec![*column],
            Key::NewUuid => vec![columns.len() - 1],
            Key::Set => (0..columns.len()).filter(|n| !columns[*n].generated).collect(),
        };
        self.prepare_key(table, key);
        let primary: Vec<usize> =
            table.primary_key.iter().filter_map(|name| position(table, name)).collect();
        let surrogate = match primary.as_slice() {
            [one] if !key_columns.contains(one) && columns[*one].references.is_empty() => {
                Some(*one)
            }
            _ => None,
        };
        let given = self.request.id_sources.get(&name).cloned();
        let id_source = given.or_else(|| self.next_id(table, surrogate?));
        self.check_source(table, surrogate, id_source.is_some());
        let unique = table.unique.iter().filter_map(|list| {
            list.iter().map(|name| position(table, name)).collect::<Option<Vec<_>>>()
        });
        let links = links(table, &columns);
        Some(Class {
            name: name.as_str().into(),
            schema: table.schema.clone(),
            table: table.table.clone(),
            unique: unique.filter(|list| *list != key_columns).collect(),
            columns,
            local: if primary.is_empty() { key_columns.clone() } else { primary },
            key: key_columns,
            surrogate,
            set: *key == Key::Set,
            host_triggers: table.host_triggers.clone(),
            id_source,
            partitions: table.partitions.clone(),
            clashes: table.clashes.clone(),
            cascades: self.cascades(&name),
            links,
            plain: table.plain,
        })
    }

    /// Whether the database itself changes rows that refer to a table when one of it goes.
    fn cascades(&self, name: &str) -> bool {
        let keys = self.tables.values().flat_map(|table| &table.foreign_keys);
        keys.into_iter().any(|key| key.acts && key.target == name)
    }

    /// A primary key with a constant default (`DEFAULT 0`, as schemas from MySQL have it) is numbered
    /// by whoever inserts; so is what is applied: behind the highest id that is there.
    fn next_id(&mut self, table: &Table, surrogate: usize) -> Option<String> {
        let column = &table.columns[surrogate];
        if column.auto || !column.constant {
            return None;
        }
        let (name, id) = (&table.name, quote(&column.name));
        self.warn(
            name,
            format!(
                "`{}` has a constant default: rows that come in are numbered behind the highest; \
                 if the host has a source of its own, name it by `[[class]] id`",
                column.name
            ),
        );
        let schema = if table.schema.is_empty() {
            String::new()
        } else {
            format!("{}.", quote(&table.schema))
        };
        Some(format!(
            "(SELECT coalesce(max({id}), 0) FROM {schema}{}) + row_number() OVER ()",
            quote(&table.table)
        ))
    }

    /// The receiver has to be able to number new rows.
    fn check_source(&mut self, table: &Table, surrogate: Option<usize>, given: bool) {
        let Some(surrogate) = surrogate else { return };
        let column = &table.columns[surrogate];
        if column.auto || given {
            return;
        }
        let name = &table.name;
        self.refuse(
            name,
            format!(
                "`{}` has no default that gives new ids: name the host's source in \
                 branchline.toml:\n  [[class]]\n  name = \"{name}\"\n  id = \"nextval('…')\"",
                column.name
            ),
        );
    }

    /// A class that refers to one that is refused is refused too, until nothing changes.
    fn drop_dangling(&mut self, classes: &mut BTreeMap<String, Class>) {
        loop {
            let mut lost = Vec::new();
            for (name, class) in classes.iter() {
                let dangling =
                    class.slots().find(|slot| !classes.contains_key(&*slot.reference.target));
                if let Some(slot) = dangling {
                    let text = format!(
                        "column `{}` refers to `{}`, which is not tracked for the reason given there",
                        class.columns[slot.column].name, slot.reference.target
                    );
                    lost.push((name.clone(), text));
                }
            }
            if lost.is_empty() {
                return;
            }
            for (name, text) in lost {
                classes.remove(&name);
                self.refuse(&name, text);
            }
        }
    }
}

fn new_uuid_column() -> Column {
    Column {
        name: UUID_COLUMN.into(),
        sql_type: String::new(),
        kind: TypeKind::Text,
        not_null: false,
        generated: false,
        references: Vec::new(),
    }
}

/// Declared foreign keys that are more than one column, or whose column is no local id.
fn links(table: &Table, columns: &[Column]) -> Vec<Link> {
    let link = |key: &ForeignKey| {
        let own: Option<Vec<usize>> =
            key.columns.iter().map(|name| position(table, name)).collect();
        let own = own?;
        let local = own.len() == 1 && !columns[own[0]].references.is_empty();
        (!local).then(|| Link {
            columns: own,
            target: key.target.as_str().into(),
            target_columns: key.target_columns.iter().map(|name| name.as_str().into()).collect(),
        })
    };
    table.foreign_keys.iter().filter_map(link).collect()
}

fn position(table: &Table, name: &str) -> Option<usize> {
    table.columns.iter().position(|column| column.name == name)
}

fn quoted<T: AsRef<str>>(names: &[T]) -> String {
    names.iter().map(|name| format!("`{}`", name.as_ref())).collect::<Vec<_>>().join(", ")
}
