//! What a run came by: faults that were injected, branches of the merge that were taken.

use std::collections::BTreeMap;

/// How often each thing happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters(pub(super) BTreeMap<String, u64>);

impl Counters {
    pub(super) fn note(&mut self, what: &str) {
        self.add(what, 1);
    }

    pub(super) fn add(&mut self, what: &str, count: u64) {
        match self.0.get_mut(what) {
            Some(known) => *known += count,
            None => drop(self.0.insert(what.to_owned(), count)),
        }
    }

    pub(super) fn join(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            self.add(what, *count);
        }
    }

    /// What of `wanted` never happened.
    pub(super) fn never<'a>(&self, wanted: &[&'a str]) -> Vec<&'a str> {
        wanted.iter().filter(|what| !self.0.contains_key(**what)).copied().collect()
    }
}

impl std::fmt::Display for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (what, count) in &self.0 {
            writeln!(f, "{count:>10}  {what}")?;
        }
        Ok(())
    }
}
