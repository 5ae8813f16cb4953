//! Which class goes to which server, and may come from it.
//!
//! A rule names a class, or a prefix that ends in `*`; the longest matching name wins, a full name
//! before a prefix; no match means both ways.

use crate::store::books::Rule;

/// The rules of one neighbour.
#[derive(Clone, Debug, Default)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// These rules, in any order.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        Self(rules)
    }

    fn rule(&self, class: &str) -> Option<&Rule> {
        let matching = self.0.iter().filter(|rule| rule.matches(class));
        matching
            .max_by_key(|rule| (rule.name.trim_end_matches('*').len(), !rule.name.ends_with('*')))
    }

    /// Whether rows of `class` are sent to the neighbour.
    #[must_use]
    pub fn sends(&self, class: &str) -> bool {
        self.rule(class).is_none_or(|rule| rule.send_to)
    }

    /// Whether rows of `class` are taken from the neighbour.
    #[must_use]
    pub fn receives(&self, class: &str) -> bool {
        self.rule(class).is_none_or(|rule| rule.receive_from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_matching_name_wins() {
        let rule = |name: &str, send_to, receive_from| Rule {
            name: name.to_owned(),
            send_to,
            receive_from,
        };
        let rules = Rules::new(vec![
            rule("hl7_*", false, false),
            rule("hl7_in_archive", true, false),
            rule("person*", true, false),
            rule("person", false, true),
        ]);
        assert!(!rules.sends("hl7_out"));
        assert!(rules.sends("hl7_in_archive") && !rules.receives("hl7_in_archive"));
        assert!(!rules.sends("person") && rules.receives("person"));
        assert!(rules.sends("person_name") && !rules.receives("person_name"));
        assert!(rules.sends("encounter") && rules.receives("encounter"));
    }
}
