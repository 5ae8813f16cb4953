//! What refers to what: declared, configured, and what looks like a reference and is neither.

use std::collections::BTreeSet;

use super::keys::Key;
use super::{Decider, position, quoted};
use crate::catalog::{Reference, Table, TableColumn, TypeKind};

/// Foreign keys to columns that are foreign keys themselves … deeper chains are not followed.
pub(super) const DEPTH_MAX: usize = 8;

impl Decider<'_> {
    /// Names in the configuration that nothing has, and references that cannot be.
    pub(super) fn check_configuration(&mut self, selected: &BTreeSet<String>) {
        let request = self.request;
        let references =
            request.references.iter().map(|one| ("[[reference]]", &one.table, &one.column));
        let plain = request.plain.iter().map(|(table, column)| ("[[plain]]", table, column));
        for (place, table, column) in references.chain(plain) {
            match self.tables.get(table.as_str()) {
                None => self.warn(table, format!("`{place}` names it, and there is no such table")),
                Some(found) if position(found, column).is_none() => self.refuse(
                    table,
                    format!("`{place}` names the column `{column}`, which it does not have"),
                ),
                Some(_) => {}
            }
        }
        for one in request.references.iter().filter(|one| selected.contains(&one.table)) {
            let (column, target) = (&one.column, &one.target);
            match self.tables.get(target.as_str()) {
                None => self.refuse(
                    &one.table,
                    format!("`[[reference]]` of `{column}` names `{target}`, which is no table here"),
                ),
                Some(found) if found.primary_key.len() != 1 => self.refuse(
                    &one.table,
                    format!("`[[reference]]` of `{column}` names `{target}`, which has no lone primary key to refer to"),
                ),
                Some(_) => {}
            }
            let mixed = request.references.iter().any(|other| {
                other.table == one.table && other.column == one.column && other.when.is_none()
            });
            if one.when.is_some() && mixed {
                self.refuse(
                    &one.table,
                    format!("of several `[[reference]]` of `{column}` each needs its `when`"),
                );
            }
        }
    }

    /// The references of each column of a table.
    pub(super) fn references(&self, table: &Table) -> Vec<Vec<Reference>> {
        let mut list: Vec<Vec<Reference>> = table
            .columns
            .iter()
            .map(|column| self.declared(table, &column.name).into_iter().collect())
            .collect();
        for (n, column) in table.columns.iter().enumerate() {
            let configured = self
                .request
                .references
                .iter()
                .filter(|one| one.table == table.name && one.column == column.name);
            let mut new = Vec::new();
            let mut any = false;
            for one in configured {
                any = true;
                // A natural key travels as it is.
                if let Some(id) = self.local_id_of(&one.target) {
                    let mut reference = reference(&one.target, id, false);
                    reference.when.clone_from(&one.when);
                    new.push(reference);
                }
            }
            if any {
                list[n] = new;
            }
        }
        list
    }

    /// The surrogate key of a table, or the reference that is its primary key.
    fn local_id_of(&self, target: &str) -> Option<&str> {
        let table = self.tables.get(target)?;
        let [id] = table.primary_key.as_slice() else { return None };
        self.is_local_id(table, id).then_some(id)
    }

    /// What a column refers to by declared foreign keys. One that refers to several tables at once
    /// has the same id in all of them (a joined subclass and its base): the subclass speaks for it.
    fn declared(&self, table: &Table, column: &str) -> Option<Reference> {
        let mut found: Vec<(bool, usize, String, String)> = Vec::new();
        for key in &table.foreign_keys {
            for (own, other) in key.columns.iter().zip(&key.target_columns) {
                if own != column {
                    continue;
                }
                let Some(target) = self.tables.get(key.target.as_str()) else { continue };
                if let Some((class, id)) = self.meaning(target, other, DEPTH_MAX) {
                    let depth = self.bases(&class, DEPTH_MAX);
                    found.push((key.columns.len() == 1, depth, class, id));
                }
            }
        }
        found.sort_by(|a, b| (b.0, b.1, &a.2).cmp(&(a.0, a.1, &b.2)));
        let (alone, _, class, id) = found.into_iter().next()?;
        Some(reference(&class, &id, alone))
    }

    /// Whose local id a column holds: its own row's, or that of what it refers to.
    pub(super) fn meaning(
        &self,
        table: &Table,
        column: &str,
        depth: usize,
    ) -> Option<(String, String)> {
        if self.is_local_within(table, column, depth) {
            return Some((table.name.clone(), column.to_owned()));
        }
        if depth == 0 {
            return None;
        }
        let mut pairs = table.foreign_keys.iter().flat_map(|key| {
            key.columns
                .iter()
                .zip(&key.target_columns)
                .map(|(own, other)| (own, other, &key.target))
        });
        pairs.find_map(|(own, other, target)| {
            let target = self.tables.get(target.as_str()).filter(|_| own == column)?;
            self.meaning(target, other, depth - 1)
        })
    }

    /// How many tables stand above a joined subclass.
    fn bases(&self, name: &str, depth: usize) -> usize {
        let Some(table) = self.tables.get(name).filter(|_| depth > 0) else { return 0 };
        let base = table.foreign_keys.iter().find(|key| key.columns == table.primary_key);
        base.map_or(0, |key| 1 + self.bases(&key.target, depth - 1))
    }

    /// Integer columns that look like references and are not known as such.
    pub(super) fn suspects(&mut self, table: &Table, references: &[Vec<Reference>], key: &Key) {
        let mut lines = Vec::new();
        for (n, column) in table.columns.iter().enumerate() {
            let local = table.primary_key == [column.name.clone()]
                && !matches!(key, Key::Natural(columns) if columns.contains(&n));
            if column.kind != TypeKind::Int
                || column.generated
                || local
                || !references[n].is_empty()
                || self.is_explained(table, &column.name)
            {
                continue;
            }
            match self.looks_like_reference(table, column) {
                Some(_) if self.request.assume_plain || self.was_plain(table, column) => self.warn(
                    &table.name,
                    format!("column `{}` is taken as a plain number", column.name),
                ),
                Some(guess) => lines.push((column.name.as_str(), guess)),
                None => self.warn_namesake(table, column),
            }
        }
        if !lines.is_empty() {
            self.refuse(&table.name, suspicion(&table.name, &lines));
        }
    }

    /// Declared plain, or a foreign key to something natural.
    fn is_explained(&self, table: &Table, column: &str) -> bool {
        let named = |place: &str, name: &str| place == table.name && name == column;
        self.request.plain.iter().any(|(place, name)| named(place, name))
            || self.request.references.iter().any(|one| named(&one.table, &one.column))
            || table.foreign_keys.iter().any(|key| key.columns.iter().any(|name| name == column))
    }

    /// Whether the class was tracked with this column as a plain one.
    fn was_plain(&self, table: &Table, column: &TableColumn) -> bool {
        self.known.get(table.name.as_str()).is_some_and(|class| {
            class.position(&column.name).is_some_and(|n| class.columns[n].references.is_empty())
        })
    }

    /// Some(the table it may refer to) for a column whose name says that it refers.
    fn looks_like_reference(&self, table: &Table, column: &TableColumn) -> Option<Option<String>> {
        let name = column.name.to_ascii_lowercase();
        let owner = self.tables.values().find(|other| {
            let [key] = other.primary_key.as_slice() else { return false };
            other.name != table.name
                && key.eq_ignore_ascii_case(&name)
                && name != "id"
                && self.is_local_id(other, key)
        });
        if let Some(owner) = owner {
            return Some(Some(owner.name.clone()));
        }
        let stem = name.strip_suffix("_id")?;
        let guess = self.tables.values().find(|other| {
            let other = other.table.to_ascii_lowercase();
            other == stem || other == format!("{stem}s")
        });
        let guess = guess.map(|other| other.name.clone());
        Some(guess.or_else(|| self.namesake(table, column)))
    }

    /// What columns of the same name refer to in other tables, when all of them agree.
    fn namesake(&self, table: &Table, column: &TableColumn) -> Option<String> {
        let targets: BTreeSet<String> = self
            .tables
            .values()
            .filter(|other| other.name != table.name)
            .filter(|other| position(other, &column.name).is_some())
            .filter_map(|other| self.declared(other, &column.name))
            .map(|reference| reference.target.to_string())
            .collect();
        (targets.len() == 1).then(|| targets.into_iter().next()).flatten()
    }

    fn warn_namesake(&mut self, table: &Table, column: &TableColumn) {
        if let Some(target) = self.namesake(table, column) {
            self.warn(
                &table.name,
                format!(
                    "column `{0}` is taken as a plain number, though `{0}` refers to `{target}` in \
                     other tables: if it does here, say so with [[reference]], else with [[plain]]",
                    column.name
                ),
            );
        }
    }
}

fn suspicion(table: &str, lines: &[(&str, Option<String>)]) -> String {
    let names: Vec<&str> = lines.iter().map(|(column, _)| *column).collect();
    let looks = match names.len() {
        1 => "looks like a reference to a local id",
        _ => "look like references to local ids",
    };
    let mut text = format!(
        "{} {looks} and would point at other rows elsewhere; say which in branchline.toml (or \
         --assume-plain):",
        quoted(&names)
    );
    for (column, target) in lines {
        let place = format!("\n  table = \"{table}\"\n  column = \"{column}\"");
        match target {
            Some(target) => {
                text.push_str(&format!("\n  [[reference]]{place}\n  target = \"{target}\""));
            }
            None => {
                text.push_str(&format!(
                    "\n  [[plain]]      # or [[reference]] with a target{place}"
                ));
            }
        }
    }
    text
}

fn reference(target: &str, column: &str, declared: bool) -> Reference {
    Reference { target: target.into(), target_column: column.into(), when: None, declared }
}
