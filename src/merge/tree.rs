//! How classes merge in the tree, seen from one server: what its root says, and where this server
//! has it otherwise.

use std::collections::BTreeMap;

use super::config::{ClassMerge, MergeConfig, Policy};
use crate::catalog::Catalog;

/// What a server's own configuration says of a class; a class that it says nothing of merges as the
/// root says.
pub type Settings = BTreeMap<String, (Policy, Vec<Vec<String>>)>;

/// How classes merge here.
#[derive(Clone, Debug, Default)]
pub struct TreeMerge {
    config: MergeConfig,
    differing: BTreeMap<String, String>,
}

impl TreeMerge {
    /// Of a root, or of a server that nobody has told yet: its own word holds.
    #[must_use]
    pub fn own(catalog: &Catalog, settings: &Settings) -> Self {
        let classes = catalog.tracked.values().map(|tracked| {
            let class = &tracked.class;
            let name = class.name.to_string();
            let (policy, groups) = settings.get(&name).cloned().unwrap_or_default();
            let column = |n: &usize| class.columns[*n].name.to_string();
            let mut references: Vec<(String, String)> = class
                .slots()
                .map(|slot| (column(&slot.column), slot.reference.target.to_string()))
                .collect();
            references.sort_unstable();
            references.dedup();
            let key = class.key.iter().map(column).collect();
            (name, ClassMerge { policy, groups, key, references })
        });
        Self { config: MergeConfig { classes: classes.collect() }, differing: BTreeMap::new() }
    }

    /// Of a server whose root says `tree`: that holds, and classes which are otherwise here are
    /// named with what differs.
    #[must_use]
    pub fn below(catalog: &Catalog, settings: &Settings, tree: MergeConfig) -> Self {
        let Self { config: mut mine, .. } = Self::own(catalog, settings);
        for (name, class) in &mut mine.classes {
            if settings.contains_key(name) {
                continue;
            }
            if let Some(theirs) = tree.classes.get(name) {
                class.policy = theirs.policy;
                class.groups.clone_from(&theirs.groups);
            }
        }
        let differing = tree
            .differing(&mine)
            .filter(|name| mine.classes.contains_key(*name) && tree.classes.contains_key(*name))
            .map(|name| (name.to_owned(), difference(tree.class(name), mine.class(name))))
            .collect();
        let mut config = tree;
        for (name, class) in mine.classes {
            // The root does not track it: nobody but us says how it merges.
            config.classes.entry(name).or_insert(class);
        }
        Self { config, differing }
    }

    /// How a class merges.
    #[must_use]
    pub fn class(&self, name: &str) -> &ClassMerge {
        self.config.class(name)
    }

    /// Why this server may not merge a class: it has it otherwise than the root of its tree.
    #[must_use]
    pub fn difference(&self, class: &str) -> Option<&str> {
        self.differing.get(class).map(String::as_str)
    }

    /// All classes that are otherwise here, each with what differs.
    pub fn differing(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.differing.iter().map(|(name, why)| (name.as_str(), why.as_str()))
    }

    /// What a root says to those below it.
    #[must_use]
    pub fn config(&self) -> &MergeConfig {
        &self.config
    }
}

/// Names what differs, for people.
fn difference(tree: &ClassMerge, mine: &ClassMerge) -> String {
    let mut parts = Vec::new();
    if tree.policy != mine.policy {
        parts.push(format!(
            "its policy is `{}` there and `{}` here",
            tree.policy.as_str(),
            mine.policy.as_str()
        ));
    }
    if tree.groups != mine.groups {
        parts.push("its groups of columns are others".to_owned());
    }
    if tree.key != mine.key {
        parts.push(format!(
            "its key is ({}) there and ({}) here",
            tree.key.join(", "),
            mine.key.join(", ")
        ));
    }
    if tree.references != mine.references {
        let only = |a: &ClassMerge, b: &ClassMerge| -> Vec<String> {
            let more = a.references.iter().filter(|one| !b.references.contains(one));
            more.map(|(column, target)| format!("{column} to {target}")).collect()
        };
        let (there, here) = (only(tree, mine), only(mine, tree));
        if !there.is_empty() {
            parts.push(format!("references only there: {}", there.join(", ")));
        }
        if !here.is_empty() {
            parts.push(format!("references only here: {}", here.join(", ")));
        }
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use super::*;
    use crate::catalog::{Class, Column, Tracked, TypeKind};

    fn catalog() -> Catalog {
        let column = |name: &str| Column {
            name: name.into(),
            sql_type: "text".into(),
            kind: TypeKind::Text,
            not_null: false,
            generated: false,
            references: Vec::new(),
        };
        let class = Class {
            name: "obs".into(),
            schema: String::new(),
            table: "obs".into(),
            columns: vec![column("uuid"), column("value"), column("unit")],
            key: vec![0],
            surrogate: None,
            local: vec![0],
            set: false,
            host_triggers: Vec::new(),
            unique: Vec::new(),
            id_source: None,
            partitions: Vec::new(),
            clashes: Vec::new(),
            plain: false,
            cascades: false,
            links: Vec::new(),
        };
        let tracked = Arc::new(Tracked { id: 1, shape: 1, class });
        Catalog::new(HashMap::from([(1, tracked)]), HashMap::from([("obs".into(), 1)]))
    }

    fn group() -> Vec<Vec<String>> {
        vec![vec!["unit".into(), "value".into()]]
    }

    #[test]
    fn a_server_that_says_nothing_takes_what_the_root_says() {
        let root = Settings::from([("obs".into(), (Policy::Row, group()))]);
        let tree = TreeMerge::own(&catalog(), &root).config().clone();
        let below = TreeMerge::below(&catalog(), &Settings::new(), tree);
        assert_eq!(below.differing().len(), 0);
        assert_eq!(below.class("obs").policy, Policy::Row);
        assert_eq!(below.class("obs").groups, group());
    }

    #[test]
    fn a_server_that_says_otherwise_is_told_what_differs() {
        let root = Settings::from([("obs".into(), (Policy::DeleteWins, Vec::new()))]);
        let own = Settings::from([("obs".into(), (Policy::Columns, group()))]);
        let tree = TreeMerge::own(&catalog(), &root).config().clone();
        let below = TreeMerge::below(&catalog(), &own, tree.clone());
        let why = below.difference("obs").unwrap();
        assert!(why.contains("`delete-wins` there and `columns` here"), "{why}");
        assert!(why.contains("groups"), "{why}");
        assert_eq!(below.class("obs").policy, Policy::DeleteWins, "the root's word holds");

        let mut tree = tree;
        let class = tree.classes.get_mut("obs").unwrap();
        class.key = vec!["value".into()];
        class.references = vec![("unit".into(), "concept".into())];
        let below = TreeMerge::below(&catalog(), &root, tree);
        let why = below.difference("obs").unwrap();
        assert!(why.contains("its key is (value) there and (uuid) here"), "{why}");
        assert!(why.contains("references only there: unit to concept"), "{why}");
    }
}
