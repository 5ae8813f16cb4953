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
    trouble: Vec<(String, Kind, String)>,
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
        inner.trouble.retain(|(other, _, _)| other != who);
        inner.trouble.push((who.to_owned(), error.kind(), error.chain()));
    }

    /// Notes that `who` succeeded.
    pub fn succeeded(&self, who: &str) {
        self.lock().trouble.retain(|(other, _, _)| other != who);
    }

    /// What stands in the way of `sync`: the first trouble that has not passed.
    #[must_use]
    pub fn trouble(&self) -> Option<Error> {
        let inner = self.lock();
        let worst = inner
            .trouble
            .iter()
            .find(|(_, kind, _)| *kind == Kind::Unreachable)
            .or_else(|| inner.trouble.first())?;
        Some(Error::new(worst.1, format!("{}: {}", worst.0, worst.2)))
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.busy -= 1;
        inner.last = Some(Instant::now());
    }
}
