//! Who is busy, and since when nothing moved: what `sync` needs to know when it is done.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Kind};

/// Counts what moves, and who is at work.
#[derive(Default)]
pub struct Activity {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    busy: usize,
    moved: u64,
    last: Option<Instant>,
    trouble: Vec<Trouble>,
}

/// What keeps somebody from his work, until it passes.
struct Trouble {
    who: String,
    kind: Kind,
    text: String,
    since: Instant,
}

/// Somebody is at work until this is dropped.
pub struct Busy<'a>(&'a Activity);

impl Activity {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that somebody is at work.
    pub fn busy(&self) -> Busy<'_> {
        let mut inner = self.lock();
        inner.busy += 1;
        inner.last = Some(Instant::now());
        Busy(self)
    }

    /// Says that `count` things moved.
    pub fn moved(&self, count: usize) {
        if count > 0 {
            let mut inner = self.lock();
            inner.moved += count as u64;
            inner.last = Some(Instant::now());
        }
    }

    /// How many things moved so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.lock().moved
    }

    /// Whether nobody is at work and nothing has moved for `idle`.
    #[must_use]
    pub fn is_idle(&self, idle: Duration) -> bool {
        let inner = self.lock();
        inner.busy == 0 && inner.last.is_none_or(|last| last.elapsed() >= idle)
    }

    /// Notes that `who` failed, until it succeeds.
    pub fn failed(&self, who: &str, error: &Error) {
        let mut inner = self.lock();
        let known = inner.trouble.iter().position(|trouble| trouble.who == who);
        let since = match known {
            Some(at) => inner.trouble.remove(at).since,
            None => Instant::now(),
        };
        let (who, text) = (who.to_owned(), error.chain());
        inner.trouble.push(Trouble { who, kind: error.kind(), text, since });
    }

    /// Notes that `who` succeeded.
    pub fn succeeded(&self, who: &str) {
        self.lock().trouble.retain(|trouble| trouble.who != who);
    }

    /// What stands in the way of `sync`: the first trouble that has not passed.
    #[must_use]
    pub fn trouble(&self) -> Option<Error> {
        let inner = self.lock();
        let worst = inner
            .trouble
            .iter()
            .find(|trouble| trouble.kind == Kind::Unreachable)
            .or_else(|| inner.trouble.first())?;
        Some(Error::new(worst.kind, format!("{}: {}", worst.who, worst.text)))
    }

    /// Who has been in trouble for longer than `than`, and what it is.
    #[must_use]
    pub fn lasting(&self, than: Duration) -> Vec<(String, String)> {
        let inner = self.lock();
        let lasting = inner.trouble.iter().filter(|trouble| trouble.since.elapsed() >= than);
        lasting.map(|trouble| (trouble.who.clone(), trouble.text.clone())).collect()
    }

    /// Whether somebody's trouble is of this sort.
    #[must_use]
    pub fn has(&self, sort: impl Fn(&str) -> bool) -> bool {
        self.lock().trouble.iter().any(|trouble| sort(&trouble.text))
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.busy -= 1;
        inner.last = Some(Instant::now());
    }
}
