//! Which class goes to which server, and which may come from it.
//!
//! Pure: a store reads the rules of a server (`sync_server_class`; for a new one a copy of
//! `sync_class`), [`Rules`] decides. Of all rules that match a class exactly one counts: the one
//! that names it in full, else the longest prefix. A class that no rule matches goes both ways.

use std::collections::HashMap;

/// One rule, as it stands in `sync_class` or `sync_server_class`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// A class by its name, or a prefix that ends in `*`. Compared byte by byte.
    pub name: String,
    /// Whether the class is sent to the server.
    pub send_to: bool,
    /// Whether the class is received from the server.
    pub receive_from: bool,
}

impl Rule {
    /// Whether the rule speaks of `class`.
    #[must_use]
    pub fn matches(&self, class: &str) -> bool {
        match self.name.strip_suffix('*') {
            Some(prefix) => class.starts_with(prefix),
            None => self.name == class,
        }
    }
}

/// The rule that counts for `class`, of a list in any order: for one look-up; [`Rules`] is for many.
#[must_use]
pub fn effective<'a>(rules: &'a [Rule], class: &str) -> Option<&'a Rule> {
    let matching = rules.iter().filter(|rule| rule.matches(class));
    matching.max_by_key(|rule| (!rule.name.ends_with('*'), rule.name.len()))
}

/// What is neither sent nor received unless someone says otherwise: the sync tables themselves,
/// what belongs to one installation, and migration ledgers. The migrations write these into
/// `sync_class`; `track --all` skips them.
pub const SHIPPED: [&str; 9] = [
    "sync_*",
    "branchline.*",
    "global_property",
    "scheduler_*",
    "hl7_*",
    "notification_alert*",
    "__diesel_schema_migrations",
    "liquibase*",
    "flyway_*",
];

/// The rules of one server. Without any, everything goes both ways.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    exact: HashMap<String, Rule>,
    /// The longest first.
    prefixes: Vec<Rule>,
}

impl Rules {
    /// The rules of one server, in any order; of two with one name the last counts.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        let mut by_name: HashMap<String, Rule> =
            rules.into_iter().map(|rule| (rule.name.clone(), rule)).collect();
        let mut prefixes: Vec<Rule> =
            by_name.extract_if(|name, _| name.ends_with('*')).map(|(_, rule)| rule).collect();
        prefixes.sort_by(|a, b| (b.name.len(), &a.name).cmp(&(a.name.len(), &b.name)));
        Self { exact: by_name, prefixes }
    }

    /// The defaults that ship: [`SHIPPED`], neither sent nor received.
    #[must_use]
    pub fn shipped() -> Self {
        let rule = |name: &str| Rule { name: name.to_owned(), send_to: false, receive_from: false };
        Self::new(SHIPPED.into_iter().map(rule).collect())
    }

    /// The rule that counts for `class`.
    #[must_use]
    pub fn rule_for(&self, class: &str) -> Option<&Rule> {
        self.exact.get(class).or_else(|| self.prefixes.iter().find(|rule| rule.matches(class)))
    }

    /// Whether items of `class` are sent to the server.
    #[must_use]
    pub fn sends(&self, class: &str) -> bool {
        self.rule_for(class).is_none_or(|rule| rule.send_to)
    }

    /// Whether items of `class` are received from the server.
    #[must_use]
    pub fn receives(&self, class: &str) -> bool {
        self.rule_for(class).is_none_or(|rule| rule.receive_from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(rules: &[(&str, bool, bool)]) -> Rules {
        let rule = |(name, send_to, receive_from): &(&str, bool, bool)| Rule {
            name: (*name).to_owned(),
            send_to: *send_to,
            receive_from: *receive_from,
        };
        Rules::new(rules.iter().map(rule).collect())
    }

    #[test]
    fn without_a_match_a_class_goes_both_ways() {
        let rules = rules(&[("patient", false, false)]);
        assert!(rules.sends("person") && rules.receives("person"));
        assert!(!rules.sends("patient") && !rules.receives("patient"));
        assert!(rules.sends("patient_identifier") && rules.sends("Patient"));
    }

    #[test]
    fn sending_and_receiving_are_apart() {
        let rules = rules(&[("concept", true, false)]);
        assert!(rules.sends("concept") && !rules.receives("concept"));
    }

    #[test]
    fn the_longest_match_wins_in_any_order() {
        let mut list = vec![
            ("*", false, false),
            ("obs*", true, true),
            ("obs_g*", false, true),
            ("b*", true, true),
        ];
        for _ in 0..list.len() {
            list.rotate_left(1);
            let rules = rules(&list);
            assert!(!rules.sends("person"));
            assert!(rules.sends("obs") && rules.sends("obs_history"));
            assert!(!rules.sends("obs_group") && rules.receives("obs_group"));
        }
    }

    /// The text of `patient*` is longer than that of `patient`.
    #[test]
    fn an_exact_name_beats_every_prefix() {
        let rules = rules(&[("patient*", false, false), ("patient", true, true)]);
        assert!(rules.sends("patient") && !rules.sends("patient_state"));
        let list: Vec<Rule> = rules.exact.values().chain(&rules.prefixes).cloned().collect();
        for class in ["patient", "patient_state", "person"] {
            assert_eq!(effective(&list, class), rules.rule_for(class));
        }
    }

    #[test]
    fn a_star_inside_a_name_is_a_plain_character() {
        let rules = rules(&[("a*b", false, false)]);
        assert!(rules.sends("axb") && !rules.sends("a*b"));
    }

    #[test]
    fn the_shipped_rules_keep_back_what_is_local() {
        let rules = Rules::shipped();
        for class in ["sync_change", "global_property", "hl7_in_queue", "liquibasechangelog"] {
            assert!(!rules.sends(class) && !rules.receives(class), "{class}");
        }
        assert!(rules.sends("patient") && rules.sends("global_property_type"));
    }

    #[test]
    fn the_migrations_write_the_shipped_rules() {
        for migration in [
            include_str!("../migrations/postgres/branchline0001_sync/up.sql"),
            include_str!("../migrations/sqlite/branchline0001_sync/up.sql"),
        ] {
            let (_, list) = migration.split_once("INSERT INTO sync_class").unwrap();
            let list = &list[..list.find(';').unwrap()];
            for name in SHIPPED {
                assert!(list.contains(&format!("('{name}',")), "{name}");
            }
            assert_eq!(list.matches("('").count(), SHIPPED.len());
        }
    }
}
