//! From tables to classes: what identifies a row, what refers to what, and why a table is refused.
//!
//! The rules are those of DESIGN, chapter 2. An integer primary key is a local name of the row: it
//! never travels, and every column that holds one has to be known, or rows would point at others on
//! the other side without anybody noticing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::{Class, Column, Reference, Table, TableColumn, TypeKind};

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Class names; with `all` nothing beside them is needed.
    pub names: Vec<String>,
    /// Every table but those that the default rules neither send nor receive.
    pub all: bool,
    /// Classes that are tracked already: they are brought up to date.
    pub tracked: Vec<String>,
    /// Keys that are given: class, columns.
    pub keys: HashMap<String, Vec<String>>,
    /// Add a uuid column where a class has no key.
    pub add_uuid: bool,
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
#[derive(Clone, Debug)]
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
    /// Make the uuid column unique.
    MakeUnique {
        /// The class.
        class: String,
        /// Its uuid column.
        column: String,
    },
}

/// The column that `--add-uuid` adds.
pub const UUID_COLUMN: &str = "uuid";

/// How a row is identified.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    /// By these columns, natural or references.
    Natural(Vec<usize>),
    /// By a uuid column beside a local primary key.
    Uuid(usize),
    /// By a uuid column that is still to be added.
    NewUuid,
    /// By all columns.
    Set,
}

struct Decider<'a> {
    tables: BTreeMap<&'a str, &'a Table>,
    request: &'a Request,
    decision: Decision,
    refused: BTreeSet<String>,
}

/// Decides what is tracked and how.
#[must_use]
pub fn decide(tables: &[Table], request: &Request) -> Decision {
    let by_name = tables.iter().map(|table| (table.name.as_str(), table)).collect();
    let mut decider = Decider {
        tables: by_name,
        request,
        decision: Decision::default(),
        refused: BTreeSet::new(),
    };
    let selected = decider.select();
    decider.check_configuration();
    let mut candidates = BTreeMap::new();
    for name in &selected {
        if let Some(class) = decider.candidate(name, &selected) {
            candidates.insert(name.clone(), class);
        }
    }
    decider.drop_dangling(&mut candidates);
    decider.decision.classes = candidates.into_values().map(|candidate| candidate.class).collect();
    let refused = std::mem::take(&mut decider.refused);
    decider.decision.actions.retain(|action| !refused.contains(action.class()));
    decider.decision
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

struct Candidate {
    class: Class,
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
        let mut selected: BTreeSet<String> = self
            .request
            .tracked
            .iter()
            .filter(|name| self.tables.contains_key(name.as_str()))
            .cloned()
            .collect();
        if self.request.all {
            let all = self.tables.keys().filter(|name| !self.request.skipped.contains(**name));
            selected.extend(all.map(|name| (*name).to_owned()));
        }
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
        loop {
            let more: BTreeSet<String> = selected
                .iter()
                .flat_map(|name| self.targets(name))
                .filter(|target| {
                    !selected.contains(target) && self.tables.contains_key(target.as_str())
                })
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

    fn targets(&self, name: &str) -> Vec<String> {
        let Some(table) = self.tables.get(name) else { return Vec::new() };
        let declared = table.foreign_keys.iter().filter(|key| {
            key.columns.len() == 1 && self.is_local(&key.target, &key.target_columns)
        });
        let configured = self.request.references.iter().filter(|one| one.table == name);
        declared
            .map(|key| key.target.clone())
            .chain(configured.map(|one| one.target.clone()))
            .collect()
    }

    /// Names in the configuration that nothing has.
    fn check_configuration(&mut self) {
        let mut missing = Vec::new();
        let columns = self
            .request
            .references
            .iter()
            .map(|one| ("[[reference]]", &one.table, &one.column))
            .chain(self.request.plain.iter().map(|(table, column)| ("[[plain]]", table, column)));
        for (place, table, column) in columns {
            match self.tables.get(table.as_str()) {
                Some(found) if found.columns.iter().any(|other| other.name == *column) => {}
                Some(_) => missing.push((
                    table.clone(),
                    format!("`{place}` names the column `{column}`, which the table does not have"),
                )),
                None => {}
            }
        }
        for (table, text) in missing {
            self.refuse(&table, text);
        }
    }

    /// Whether a column list of a table is a local id: a lone integer primary key, its own or (a
    /// joined subclass) that of another row.
    fn is_local(&self, target: &str, columns: &[String]) -> bool {
        let Some(table) = self.tables.get(target) else { return false };
        let ([column], [key]) = (columns, table.primary_key.as_slice()) else { return false };
        column == key && self.is_surrogate_like(table, column)
    }

    /// A lone integer primary key that no `--key` makes natural.
    fn is_surrogate_like(&self, table: &Table, column: &str) -> bool {
        let natural =
            self.request.keys.get(&table.name).is_some_and(|key| key == &[column.to_owned()]);
        let integer =
            table.columns.iter().any(|other| other.name == column && other.kind == TypeKind::Int);
        integer && !natural
    }

    /// The references of each column of a table.
    fn references(&self, table: &Table) -> Vec<Vec<Reference>> {
        let mut list: Vec<Vec<Reference>> = vec![Vec::new(); table.columns.len()];
        for key in &table.foreign_keys {
            for (column, target_column) in key.columns.iter().zip(&key.target_columns) {
                let Some(at) = position(table, column) else { continue };
                let reference = if key.columns.len() == 1 {
                    self.is_local(&key.target, &key.target_columns)
                        .then(|| reference(&key.target, target_column, true))
                } else {
                    self.through(&key.target, target_column)
                };
                match reference {
                    Some(new) if !list[at].iter().any(|old| old.target == new.target) => {
                        list[at].push(new);
                    }
                    _ => {}
                }
            }
        }
        // A column that refers to several tables at once has the same id in all of them (a joined
        // subclass and its base); the first declared speaks for it.
        for column in &mut list {
            column.truncate(1);
        }
        for one in self.request.references.iter().filter(|one| one.table == table.name) {
            let Some(at) = position(table, &one.column) else { continue };
            let Some(target) = self.tables.get(one.target.as_str()) else { continue };
            let Some(key) = target.primary_key.first() else { continue };
            if one.when.is_none() || list[at].iter().any(|old| old.when.is_none()) {
                list[at].clear();
            }
            let mut new = reference(&one.target, key, false);
            new.when.clone_from(&one.when);
            list[at].push(new);
        }
        list
    }

    /// A part of a composite foreign key refers to what the same part of its target refers to.
    fn through(&self, target: &str, column: &str) -> Option<Reference> {
        let table = self.tables.get(target)?;
        let key = table.foreign_keys.iter().find(|key| {
            key.columns == [column.to_owned()] && self.is_local(&key.target, &key.target_columns)
        })?;
        Some(reference(&key.target, key.target_columns.first()?, false))
    }

    /// A class from a table, or `None` when it is refused.
    fn candidate(&mut self, name: &str, selected: &BTreeSet<String>) -> Option<Candidate> {
        let table = *self.tables.get(name)?;
        if let Some(obstacle) = &table.obstacle {
            self.refuse(name, obstacle.clone());
            return None;
        }
        let references = self.references(table);
        for (column, list) in table.columns.iter().zip(&references) {
            for one in list {
                if !self.tables.contains_key(&*one.target) {
                    let text = format!(
                        "column `{}` refers to `{}`, which is no table here",
                        column.name, one.target
                    );
                    self.refuse(name, text);
                } else if !selected.contains(&*one.target) {
                    let text = format!(
                        "column `{}` refers to `{}`, which is not tracked: track it too, or use --all",
                        column.name, one.target
                    );
                    self.refuse(name, text);
                }
            }
        }
        let key = self.key(table, &references)?;
        self.suspects(table, &references, &key);
        let class = self.class(table, references, &key)?;
        (!self.refused.contains(name)).then_some(Candidate { class })
    }

    /// What identifies a row.
    fn key(&mut self, table: &Table, references: &[Vec<Reference>]) -> Option<Key> {
        if let Some(columns) = self.request.keys.get(&table.name) {
            let found: Option<Vec<usize>> =
                columns.iter().map(|name| position(table, name)).collect();
            let Some(found) = found.filter(|found| !found.is_empty()) else {
                self.refuse(
                    &table.name,
                    format!("--key names {}, which are not all columns of it", quoted(columns)),
                );
                return None;
            };
            if found.iter().any(|n| !table.columns[*n].not_null && !in_primary_key(table, *n)) {
                self.warn(
                    &table.name,
                    "a column of the given key may be NULL: such a row cannot be sealed",
                );
            }
            return Some(Key::Natural(found));
        }
        let primary: Option<Vec<usize>> =
            table.primary_key.iter().map(|name| position(table, name)).collect();
        let primary = primary.unwrap_or_default();
        let uuid = table.columns.iter().position(|column| {
            column.name.eq_ignore_ascii_case(UUID_COLUMN)
                && matches!(column.kind, TypeKind::Text | TypeKind::Uuid | TypeKind::PaddedText)
        });
        let uuid = uuid.or_else(|| lone_uuid(table));
        match primary.as_slice() {
            [one] if table.columns[*one].kind == TypeKind::Int && references[*one].is_empty() => {
                match uuid {
                    Some(uuid) => Some(Key::Uuid(uuid)),
                    None if self.request.add_uuid => Some(Key::NewUuid),
                    None => {
                        self.no_key(table, "its primary key is an integer that means nothing on other servers, and it has no uuid");
                        None
                    }
                }
            }
            [] => match uuid {
                Some(uuid) => Some(Key::Uuid(uuid)),
                None if self.is_set(table, references) => {
                    self.warn(
                        &table.name,
                        "it has no key: all its columns are one, and equal rows count as one",
                    );
                    Some(Key::Set)
                }
                None if self.request.add_uuid => Some(Key::NewUuid),
                None => {
                    self.no_key(table, "it has neither a primary key nor a uuid");
                    None
                }
            },
            _ => Some(Key::Natural(primary)),
        }
    }

    fn is_set(&self, table: &Table, references: &[Vec<Reference>]) -> bool {
        !table.columns.is_empty()
            && table.columns.iter().zip(references).all(|(column, references)| {
                !column.generated
                    && column.not_null
                    && (!references.is_empty() || column.kind != TypeKind::Float)
            })
    }

    fn no_key(&mut self, table: &Table, why: &str) {
        let natural = table.unique.iter().find(|columns| {
            columns.iter().all(|name| {
                position(table, name).is_some_and(|n| table.columns[n].kind != TypeKind::Int)
            })
        });
        let name = &table.name;
        let hint = natural.map_or_else(
            || format!("--key {name}=COLUMN[,…] if some columns identify a row on every server"),
            |columns| format!("--key {name}={}", columns.join(",")),
        );
        self.refuse(
            name,
            format!("{why}: name its key with {hint}, or add a uuid column with --add-uuid"),
        );
    }

    /// Integer columns that look like references and are not known as such.
    fn suspects(&mut self, table: &Table, references: &[Vec<Reference>], key: &Key) {
        let mut lines = Vec::new();
        for (n, column) in table.columns.iter().enumerate() {
            if column.kind != TypeKind::Int || column.generated || !references[n].is_empty() {
                continue;
            }
            let local = table.primary_key == [column.name.clone()]
                && !matches!(key, Key::Natural(columns) if columns.contains(&n));
            let plain = self
                .request
                .plain
                .iter()
                .any(|(other, name)| *other == table.name && *name == column.name);
            if local || plain || self.is_natural_reference(table, &column.name) {
                continue;
            }
            let Some(guess) = self.looks_like_reference(table, column) else { continue };
            if self.request.assume_plain {
                self.warn(
                    &table.name,
                    format!("column `{}` is taken as a plain number", column.name),
                );
            } else {
                lines.push((column.name.clone(), guess));
            }
        }
        if lines.is_empty() {
            return;
        }
        let names: Vec<String> = lines.iter().map(|(column, _)| column.clone()).collect();
        let mut text = format!(
            "{} look{} like references to local ids and would point at other rows elsewhere; say which in branchline.toml (or --assume-plain):",
            quoted(&names),
            if names.len() == 1 { "s" } else { "" }
        );
        for (column, target) in lines {
            let table = &table.name;
            match target {
                Some(target) => text.push_str(&format!(
                    "\n  [[reference]]\n  table = \"{table}\"\n  column = \"{column}\"\n  target = \"{target}\""
                )),
                None => text.push_str(&format!(
                    "\n  [[plain]]      # or [[reference]] with a target\n  table = \"{table}\"\n  column = \"{column}\""
                )),
            }
        }
        self.refuse(&table.name, text);
    }

    /// Whether a declared foreign key makes the column a natural one.
    fn is_natural_reference(&self, table: &Table, column: &str) -> bool {
        table.foreign_keys.iter().any(|key| key.columns.iter().any(|name| name == column))
    }

    /// Some(the table it may refer to) for a column whose name says that it refers.
    fn looks_like_reference(&self, table: &Table, column: &TableColumn) -> Option<Option<String>> {
        let name = column.name.to_ascii_lowercase();
        let owner = self.tables.values().find(|other| {
            let ([key], false) = (other.primary_key.as_slice(), other.name == table.name) else {
                return false;
            };
            key.eq_ignore_ascii_case(&name) && name != "id" && self.is_surrogate_like(other, key)
        });
        if let Some(owner) = owner {
            return Some(Some(owner.name.clone()));
        }
        if let Some(stem) = name.strip_suffix("_id") {
            let guess = self.tables.values().find(|other| {
                let other = other.table.to_ascii_lowercase();
                other == stem || other == format!("{stem}s")
            });
            return Some(guess.map(|other| other.name.clone()));
        }
        None
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
        let primary: Vec<usize> =
            table.primary_key.iter().filter_map(|name| position(table, name)).collect();
        let key_columns = match key {
            Key::Natural(columns) => columns.clone(),
            Key::Uuid(column) => {
                self.prepare_uuid(table, *column);
                vec![*column]
            }
            Key::NewUuid => {
                self.decision.actions.push(Action::AddUuid { class: name.clone() });
                columns.push(Column {
                    name: UUID_COLUMN.into(),
                    sql_type: String::new(),
                    kind: TypeKind::Text,
                    not_null: false,
                    generated: false,
                    references: Vec::new(),
                });
                vec![columns.len() - 1]
            }
            Key::Set => (0..columns.len()).filter(|n| !columns[*n].generated).collect(),
        };
        let surrogate = match primary.as_slice() {
            [one] if !key_columns.contains(one) && columns[*one].references.is_empty() => {
                Some(*one)
            }
            _ => None,
        };
        let id_source = self.request.id_sources.get(&name).cloned();
        if let Some(surrogate) = surrogate
            && !table.columns[surrogate].auto
            && id_source.is_none()
        {
            self.refuse(
                &name,
                format!(
                    "`{}` has no default that gives new ids: name the host's source in branchline.toml:\n  [[class]]\n  name = \"{name}\"\n  id = \"nextval('…')\"",
                    table.columns[surrogate].name
                ),
            );
        }
        let local = if primary.is_empty() { key_columns.clone() } else { primary };
        let unique = table
            .unique
            .iter()
            .filter_map(|list| {
                list.iter().map(|name| position(table, name)).collect::<Option<Vec<_>>>()
            })
            .filter(|list| *list != key_columns)
            .collect();
        Some(Class {
            name: name.as_str().into(),
            schema: table.schema.clone(),
            table: table.table.clone(),
            columns,
            key: key_columns,
            surrogate,
            local,
            set: *key == Key::Set,
            host_triggers: table.host_triggers.clone(),
            unique,
            id_source,
            partitions: table.partitions.clone(),
            clashes: table.clashes.clone(),
        })
    }

    fn prepare_uuid(&mut self, table: &Table, column: usize) {
        let definition = &table.columns[column];
        let (class, name) = (table.name.clone(), definition.name.clone());
        if !definition.not_null {
            self.decision
                .actions
                .push(Action::FillUuid { class: class.clone(), column: name.clone() });
        }
        let unique = table.unique.iter().any(|list| *list == [name.clone()])
            || table.primary_key == [name.clone()];
        if !unique {
            self.decision.actions.push(Action::MakeUnique { class, column: name });
        }
    }

    /// A class that refers to one that is refused is refused too, until nothing changes.
    fn drop_dangling(&mut self, candidates: &mut BTreeMap<String, Candidate>) {
        loop {
            let mut lost = Vec::new();
            for (name, candidate) in candidates.iter() {
                for slot in candidate.class.slots() {
                    let target = &*slot.reference.target;
                    if !candidates.contains_key(target) {
                        let column = &candidate.class.columns[slot.column].name;
                        lost.push((
                            name.clone(),
                            format!("column `{column}` refers to `{target}`, which is not tracked for the reason given there"),
                        ));
                    }
                }
            }
            if lost.is_empty() {
                return;
            }
            for (name, text) in lost {
                candidates.remove(&name);
                self.refuse(&name, text);
            }
        }
    }
}

fn reference(target: &str, column: &str, declared: bool) -> Reference {
    Reference { target: target.into(), target_column: column.into(), when: None, declared }
}

fn position(table: &Table, name: &str) -> Option<usize> {
    table.columns.iter().position(|column| column.name == name)
}

fn in_primary_key(table: &Table, column: usize) -> bool {
    table.primary_key.contains(&table.columns[column].name)
}

/// The only column of type uuid, when it is unique by itself.
fn lone_uuid(table: &Table) -> Option<usize> {
    let mut found = table
        .columns
        .iter()
        .enumerate()
        .filter(|(_, column)| column.kind == TypeKind::Uuid)
        .filter(|(_, column)| table.unique.iter().any(|list| *list == [column.name.clone()]));
    match (found.next(), found.next()) {
        (Some((n, _)), None) => Some(n),
        _ => None,
    }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
