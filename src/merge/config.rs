//! How each class merges. It is the tree's, not a server's: the root's travels with the hello as
//! bytes and is stored, and a server whose own differs holds that class's records.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What happens to concurrent edits of one row.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Each column (or group) keeps its latest write; an edit that did not know of a delete keeps
    /// the row.
    #[default]
    Columns,
    /// The whole row is one group.
    Row,
    /// As `columns`, but no edit revives a deleted row: the later of its latest delete and its
    /// latest insert decides.
    DeleteWins,
    /// Nothing concurrent goes in until an operator decides.
    Hold,
}

impl Policy {
    /// Its name in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Columns => "columns",
            Self::Row => "row",
            Self::DeleteWins => "delete-wins",
            Self::Hold => "hold",
        }
    }
}

/// How one class merges, and what of its shape must be the same on every server.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassMerge {
    /// What happens to concurrent edits.
    pub policy: Policy,
    /// Columns that belong together (value and unit) and win or lose as one.
    pub groups: Vec<Vec<String>>,
    /// The key's columns, in order; empty where it is not said.
    pub key: Vec<String>,
    /// Referring columns and the classes that they refer to, sorted; empty where it is not said.
    pub references: Vec<(String, String)>,
}

impl ClassMerge {
    /// A class of which nothing is said.
    pub const PLAIN: Self = Self {
        policy: Policy::Columns,
        groups: Vec::new(),
        key: Vec::new(),
        references: Vec::new(),
    };

    /// [`Self::PLAIN`], to be borrowed.
    #[must_use]
    pub fn plain() -> &'static Self {
        static PLAIN: ClassMerge = ClassMerge::PLAIN;
        &PLAIN
    }

    /// Whether an update takes `column` along although it did not change: a column of its group
    /// did (under policy `row` every column is in the one group). The sealer asks this of each
    /// unchanged column of an update that changes at least one, and names those it takes along to
    /// [`RowState::touch_local`](super::RowState::touch_local) and in the item. So all columns of
    /// a group always have one stamp, and joining column by column keeps the group whole.
    #[must_use]
    pub fn goes_along(&self, column: &str, changed: impl Fn(&str) -> bool) -> bool {
        let in_group = |group: &&Vec<String>| group.iter().any(|name| name == column);
        self.policy == Policy::Row
            || self.groups.iter().filter(in_group).any(|group| group.iter().any(|c| changed(c)))
    }

    /// Whether a column that did not change may have to go along with one that did.
    #[must_use]
    pub fn is_grouped(&self) -> bool {
        self.policy == Policy::Row || !self.groups.is_empty()
    }

    /// The columns that are decided together with `column`, itself included.
    #[must_use]
    pub fn together<'a>(&'a self, column: &str, all: &[&'a str]) -> Vec<&'a str> {
        all.iter()
            .filter(|name| **name == column || self.goes_along(name, |c| c == column))
            .copied()
            .collect()
    }
}

/// How the classes of the tree merge.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MergeConfig {
    /// By class name. A class that is not here merges by [`ClassMerge::PLAIN`].
    pub classes: BTreeMap<String, ClassMerge>,
}

impl MergeConfig {
    /// Bytes of an encoded configuration: about 1,000 classes with 20 references each.
    pub const BYTES_MAX: usize = 1 << 20;
    const VERSION: u8 = 1;

    /// How a class merges.
    #[must_use]
    pub fn class(&self, name: &str) -> &ClassMerge {
        self.classes.get(name).unwrap_or(ClassMerge::plain())
    }

    /// The classes that merge otherwise in `other`; what one of the two does not say (key,
    /// references) is no difference.
    pub fn differing<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        let only_there = other.classes.keys().filter(|name| !self.classes.contains_key(*name));
        self.classes.keys().chain(only_there).map(String::as_str).filter(|name| {
            let (a, b) = (self.class(name), other.class(name));
            let said = |a: bool, b: bool, same: bool| !(a || b || same);
            a.policy != b.policy
                || a.groups != b.groups
                || said(a.key.is_empty(), b.key.is_empty(), a.key == b.key)
                || said(
                    a.references.is_empty(),
                    b.references.is_empty(),
                    a.references == b.references,
                )
        })
    }

    /// Sorts what has no order of its own, so that equal configurations are equal bytes.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when a column stands in two groups of its class.
    pub fn checked(mut self) -> Result<Self> {
        for (name, class) in &mut self.classes {
            for group in &mut class.groups {
                group.sort_unstable();
                group.dedup();
            }
            class.groups.sort_unstable();
            class.references.sort_unstable();
            let mut columns: Vec<&String> = class.groups.iter().flatten().collect();
            columns.sort_unstable();
            if let Some(twice) = columns.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(Error::config(format!(
                    "column `{}` of `{name}` stands in two groups: join them to one",
                    twice[0]
                )));
            }
        }
        Ok(self)
    }

    /// The configuration as it travels and is stored: a version, then MessagePack.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when it is larger than [`Self::BYTES_MAX`].
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![Self::VERSION];
        rmp_serde::encode::write(&mut bytes, self)
            .map_err(|error| Error::failed("the merge configuration").with_source(error))?;
        if bytes.len() > Self::BYTES_MAX {
            return Err(Error::config("the merge configuration is larger than 1 MiB"));
        }
        Ok(bytes)
    }

    /// Reads what [`Self::to_bytes`] wrote, and nothing else: not a byte more, no other spelling.
    ///
    /// # Errors
    /// [`Decode`](crate::Kind::Decode).
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let Some((version, body)) = bytes.split_first() else {
            return Err(Error::decode("an empty merge configuration"));
        };
        if *version != Self::VERSION {
            return Err(Error::decode(format!("merge configuration of unknown version {version}")));
        }
        if bytes.len() > Self::BYTES_MAX {
            return Err(Error::decode("the merge configuration is larger than 1 MiB"));
        }
        let config: Self = rmp_serde::from_slice(body)
            .map_err(|error| Error::decode("the merge configuration").with_source(error))?;
        let config = config.checked()?;
        if config.to_bytes()? != bytes {
            return Err(Error::decode("the merge configuration is not in its canonical form"));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> MergeConfig {
        let obs = ClassMerge {
            groups: vec![vec!["value".into(), "unit".into()], vec!["drug".into(), "dose".into()]],
            key: vec!["uuid".into()],
            references: vec![("person_id".into(), "person".into())],
            ..ClassMerge::default()
        };
        let row = ClassMerge { policy: Policy::Row, ..ClassMerge::default() };
        let classes = [("obs".to_owned(), obs), ("order".to_owned(), row)].into();
        MergeConfig { classes }.checked().unwrap()
    }

    #[test]
    fn a_configuration_comes_back_equal() {
        let bytes = sample().to_bytes().unwrap();
        assert_eq!(MergeConfig::from_bytes(&bytes).unwrap(), sample());
    }

    #[test]
    fn a_damaged_configuration_is_refused() {
        let bytes = sample().to_bytes().unwrap();
        for n in 0..bytes.len() {
            assert!(MergeConfig::from_bytes(&bytes[..n]).is_err());
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[n] ^= 1 << bit;
                if let Ok(read) = MergeConfig::from_bytes(&damaged) {
                    assert_ne!(read, sample());
                }
            }
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(MergeConfig::from_bytes(&longer).is_err());
    }

    #[test]
    fn columns_of_a_group_go_along() {
        let config = sample();
        let changed = |column: &str| column == "unit";
        assert!(config.class("obs").goes_along("value", changed));
        assert!(!config.class("obs").goes_along("dose", changed));
        assert!(!config.class("obs").goes_along("note", changed));
        assert!(config.class("order").goes_along("anything", changed));
        assert!(!config.class("unknown").goes_along("value", changed));
        assert_eq!(
            config.class("obs").together("unit", &["note", "unit", "value"]),
            ["unit", "value"]
        );
    }

    #[test]
    fn a_column_in_two_groups_is_refused() {
        let twice = ClassMerge {
            groups: vec![vec!["a".into(), "b".into()], vec!["b".into(), "c".into()]],
            ..ClassMerge::default()
        };
        let error =
            MergeConfig { classes: [("t".to_owned(), twice)].into() }.checked().unwrap_err();
        assert!(error.to_string().contains("`b`"), "{error}");
    }

    #[test]
    fn a_class_that_merges_otherwise_is_named() {
        let (ours, mut theirs) = (sample(), sample());
        assert_eq!(ours.differing(&theirs).count(), 0);
        theirs.classes.get_mut("obs").unwrap().key.clear();
        assert_eq!(ours.differing(&theirs).count(), 0);
        theirs.classes.get_mut("obs").unwrap().groups.pop();
        theirs
            .classes
            .insert("new".into(), ClassMerge { policy: Policy::Hold, ..ClassMerge::PLAIN });
        assert_eq!(ours.differing(&theirs).collect::<Vec<_>>(), ["obs", "new"]);
    }

    #[test]
    fn policies_have_the_names_of_the_design() {
        for (policy, name) in [
            (Policy::Columns, "\"columns\""),
            (Policy::Row, "\"row\""),
            (Policy::DeleteWins, "\"delete-wins\""),
            (Policy::Hold, "\"hold\""),
        ] {
            assert_eq!(serde_json::to_string(&policy).unwrap(), name);
            assert_eq!(format!("\"{}\"", policy.as_str()), name);
        }
    }
}
