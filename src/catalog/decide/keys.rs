//! What identifies a row.

use std::collections::BTreeMap;

use super::references::DEPTH_MAX;
use super::{Action, Decider, NewReference, UUID_COLUMN, position, quoted};
use crate::catalog::{Class, Reference, Table, TypeKind};

/// How a row is identified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// By these columns, natural or references.
    Natural(Vec<usize>),
    /// By a uuid column beside a local primary key.
    Uuid(usize),
    /// By a uuid column that is still to be added.
    NewUuid,
    /// By all columns.
    Set,
}

impl Decider<'_> {
    /// The key that was given, now or when the class was first tracked.
    pub(super) fn given_key(&self, table: &Table) -> Option<Vec<String>> {
        if let Some(columns) = self.request.keys.get(&table.name) {
            return Some(columns.clone());
        }
        let class = self.known.get(table.name.as_str()).filter(|class| !class.set)?;
        let names: Vec<String> =
            class.key.iter().map(|n| class.columns[*n].name.to_string()).collect();
        names.iter().all(|name| position(table, name).is_some()).then_some(names)
    }

    /// Whether a column is a lone integer primary key that means nothing on other servers: its own
    /// number, or that of the row it refers to (a joined subclass).
    pub(super) fn is_local_id(&self, table: &Table, column: &str) -> bool {
        self.is_local_within(table, column, DEPTH_MAX)
    }

    pub(super) fn is_local_within(&self, table: &Table, column: &str, depth: usize) -> bool {
        let integer =
            table.columns.iter().any(|other| other.name == column && other.kind == TypeKind::Int);
        if !integer || table.primary_key != [column] {
            return false;
        }
        let refers = |one: &NewReference| one.table == table.name && one.column == column;
        if self.request.references.iter().any(refers) {
            return true;
        }
        match table.foreign_keys.iter().find(|key| key.columns == [column]) {
            None => self.given_key(table).is_none_or(|key| key != [column]),
            Some(key) => match (self.tables.get(key.target.as_str()), key.target_columns.first()) {
                (Some(target), Some(other)) if depth > 0 => {
                    self.meaning(target, other, depth - 1).is_some()
                }
                _ => true,
            },
        }
    }

    /// What identifies a row; `None` when nothing does, and the table is refused.
    pub(super) fn key(&mut self, table: &Table, references: &[Vec<Reference>]) -> Option<Key> {
        let uuid = uuid_column(table);
        if let Some(columns) = self.given_key(table) {
            return self.check_given(table, &columns, uuid);
        }
        let primary: Option<Vec<usize>> =
            table.primary_key.iter().map(|name| position(table, name)).collect();
        match primary.unwrap_or_default().as_slice() {
            [one]
                if references[*one].is_empty()
                    && self.is_local_id(table, &table.columns[*one].name) =>
            {
                match uuid {
                    Some(uuid) => Some(Key::Uuid(uuid)),
                    None if self.request.add_uuid => Some(Key::NewUuid),
                    None => {
                        self.no_key(
                            table,
                            "its primary key is an integer that means nothing on other servers, \
                             and it has no uuid",
                        );
                        None
                    }
                }
            }
            [] => match uuid {
                Some(uuid) => Some(Key::Uuid(uuid)),
                None if is_set(table, references) => {
                    self.warn_set(table);
                    Some(Key::Set)
                }
                None if self.request.add_uuid && self.request.fills_uuid => Some(Key::NewUuid),
                None => {
                    let why = if self.request.add_uuid {
                        "it has neither a primary key nor a uuid, and SQLite has no way to give one \
                         to rows that come later: give it an INTEGER PRIMARY KEY first"
                    } else {
                        "it has neither a primary key nor a uuid"
                    };
                    self.no_key(table, why);
                    None
                }
            },
            primary => {
                self.warn_numbered_part(table, references, primary);
                Some(Key::Natural(primary.to_vec()))
            }
        }
    }

    fn check_given(
        &mut self,
        table: &Table,
        columns: &[String],
        uuid: Option<usize>,
    ) -> Option<Key> {
        let found: Option<Vec<usize>> = columns.iter().map(|name| position(table, name)).collect();
        let Some(found) = found.filter(|found| !found.is_empty()) else {
            self.refuse(
                &table.name,
                format!("--key names {}, which are not all columns of it", quoted(columns)),
            );
            return None;
        };
        if let [one] = found.as_slice()
            && uuid == Some(*one)
            && table.primary_key != columns
        {
            return Some(Key::Uuid(*one));
        }
        let nullable = |n: &&usize| {
            let column = &table.columns[**n];
            !column.not_null && !table.primary_key.contains(&column.name)
        };
        if let Some(n) = found.iter().find(nullable) {
            let name = &table.columns[*n].name;
            self.warn(
                &table.name,
                format!("a row whose `{name}` is NULL has no key, and is held until it has one"),
            );
        }
        Some(Key::Natural(found))
    }

    fn warn_set(&mut self, table: &Table) {
        let mut text =
            "it has no key: all its columns are one, and equal rows count as one".to_owned();
        if table.columns.iter().any(|column| !column.not_null) {
            text.push_str("; a row with a NULL in it has no key, and is held");
        }
        self.warn(&table.name, text);
    }

    /// A composed key is natural; where its database numbers a part of it, two servers may give the
    /// same number to different rows.
    fn warn_numbered_part(
        &mut self,
        table: &Table,
        references: &[Vec<Reference>],
        primary: &[usize],
    ) {
        let numbered = |n: &&usize| {
            let column = &table.columns[**n];
            column.auto && column.kind == TypeKind::Int && references[**n].is_empty()
        };
        let Some(n) = primary.iter().find(numbered) else { return };
        let (name, part) = (&table.name, &table.columns[*n].name);
        let other = match uuid_column(table) {
            Some(uuid) => format!("--key {name}={}", table.columns[uuid].name),
            None => format!("--key {name}=COLUMN,…"),
        };
        let text = format!(
            "`{part}` is part of its key and numbered by each server for itself: rows that get the \
             same key are taken for one; name another with {other}, or give each server a range"
        );
        self.warn(name, text);
    }

    fn no_key(&mut self, table: &Table, why: &str) {
        let natural = table.unique.iter().find(|columns| {
            columns.iter().all(|name| {
                position(table, name).is_some_and(|n| {
                    table.columns[n].kind != TypeKind::Int && table.columns[n].not_null
                })
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

    /// What has to be done so that the key is there and unique.
    pub(super) fn prepare_key(&mut self, table: &Table, key: &Key) {
        let columns: Vec<String> = match key {
            Key::Natural(columns) => {
                columns.iter().map(|n| table.columns[*n].name.clone()).collect()
            }
            Key::Uuid(column) => vec![table.columns[*column].name.clone()],
            Key::NewUuid | Key::Set => return,
        };
        let class = table.name.clone();
        if let Key::Uuid(column) = key
            && !table.columns[*column].not_null
        {
            let column = columns[0].clone();
            self.decision.actions.push(Action::FillUuid { class: class.clone(), column });
        }
        let covered =
            |list: &Vec<String>| !list.is_empty() && list.iter().all(|name| columns.contains(name));
        if !table.unique.iter().chain([&table.primary_key]).any(covered) {
            self.decision.actions.push(Action::MakeUnique { class, columns });
        }
    }

    pub(super) fn add_uuid(&mut self, class: &str) {
        self.decision.actions.push(Action::AddUuid { class: class.to_owned() });
        self.warn(
            class,
            "it gets a uuid column: rows that stand on several servers already get another uuid on \
             each, so add it on one server before the others copy its data; an INSERT of the host \
             that names no columns fails from now on",
        );
    }

    /// A key has to be the same text on every server.
    pub(super) fn check_key(&mut self, class: &Class) {
        for column in class.key.iter().map(|n| &class.columns[*n]) {
            let text = if column.references.iter().any(|reference| reference.when.is_some()) {
                "refers to one table or another"
            } else if column.references.is_empty() && column.kind == TypeKind::Float {
                "is a binary float"
            } else {
                continue;
            };
            let name = &class.name;
            self.refuse(
                name,
                format!(
                    "`{}` {text}, so it cannot be part of a key: name its key with \
                     --key {name}=COLUMN[,…]",
                    column.name
                ),
            );
        }
    }

    /// A key that depends on itself can never be worked out.
    pub(super) fn refuse_circles(&mut self, classes: &mut BTreeMap<String, Class>) {
        let circular: Vec<String> =
            classes.keys().filter(|name| depends_on_itself(classes, name)).cloned().collect();
        for name in circular {
            classes.remove(&name);
            self.refuse(
                &name,
                format!(
                    "its key depends on itself by way of what it refers to: name another with \
                     --key {name}=COLUMN[,…]"
                ),
            );
        }
    }
}

fn depends_on_itself(classes: &BTreeMap<String, Class>, start: &str) -> bool {
    let mut seen = Vec::new();
    let mut open = vec![start];
    while let Some(name) = open.pop() {
        let Some(class) = classes.get(name) else { continue };
        for slot in class.slots().filter(|slot| slot.in_key) {
            let target = &*slot.reference.target;
            if target == start {
                return true;
            }
            if !seen.contains(&target) {
                seen.push(target);
                open.push(target);
            }
        }
    }
    false
}

/// References, or scalars that are never NULL.
fn is_set(table: &Table, references: &[Vec<Reference>]) -> bool {
    !table.columns.is_empty()
        && table.columns.iter().zip(references).all(|(column, references)| {
            !column.generated
                && (!references.is_empty() || (column.not_null && column.kind != TypeKind::Float))
        })
}

/// The uuid column: by its name, else the only column of type uuid that is unique and never NULL.
fn uuid_column(table: &Table) -> Option<usize> {
    let named = table.columns.iter().position(|column| {
        column.name.eq_ignore_ascii_case(UUID_COLUMN)
            && matches!(column.kind, TypeKind::Text | TypeKind::Uuid | TypeKind::PaddedText)
    });
    let mut typed = table
        .columns
        .iter()
        .enumerate()
        .filter(|(_, column)| column.kind == TypeKind::Uuid && column.not_null)
        .filter(|(_, column)| table.unique.iter().any(|list| *list == [column.name.clone()]));
    named.or_else(|| match (typed.next(), typed.next()) {
        (Some((n, _)), None) => Some(n),
        _ => None,
    })
}
