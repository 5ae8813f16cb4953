//! What happened, in order: as a digest always, as text when a seed is replayed.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// Two runs of a seed must have the same.
#[derive(Default)]
pub(super) struct Trace {
    digest: DefaultHasher,
    lines: usize,
    aloud: bool,
}

impl Trace {
    pub(super) fn new(aloud: bool) -> Self {
        Self { aloud, ..Self::default() }
    }

    pub(super) fn note(&mut self, now: i64, line: impl FnOnce() -> String) {
        let line = line();
        (now, &line).hash(&mut self.digest);
        self.lines += 1;
        if self.aloud {
            println!("{:>6} {} {line}", self.lines, crate::store::time::format(now));
        }
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest.finish()
    }
}
