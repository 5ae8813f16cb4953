//! Which class goes to which server, and may come from it.
//!
//! A rule names a class, or a prefix that ends in `*`; the longest matching name wins, a full name
//! before a prefix; no match means both ways.

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// A class, or a prefix that ends in `*`.
    pub name: String,
    /// Whether we send it.
    pub send_to: bool,
    /// Whether we take it.
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

/// The rule that counts for `class`.
#[must_use]
pub fn effective<'a>(rules: &'a [Rule], class: &str) -> Option<&'a Rule> {
    let matching = rules.iter().filter(|rule| rule.matches(class));
    matching.max_by_key(|rule| (rule.name.trim_end_matches('*').len(), !rule.name.ends_with('*')))
}

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
        effective(&self.0, class)
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
