//! The hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014) and the sets of
//! stamps that a row has seen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::Actor;

/// Hybrid logical time: 48 bits of milliseconds since 1970, 16 bits of counter. Zero is "before
/// tracking" and older than every real time.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Time(pub u64);

impl Time {
    /// The first time of a millisecond.
    #[must_use]
    pub fn from_millis(millis: u64) -> Self {
        Self(millis << 16)
    }

    /// The physical part, in milliseconds since 1970.
    #[must_use]
    pub fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// The next time: the counter, and where it is full the next millisecond.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// When and by whom a change was made. Totally ordered over the whole tree: by time, then by
/// server, then by incarnation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Stamp {
    /// Hybrid logical time.
    pub time: Time,
    /// Who.
    pub actor: Actor,
}

/// Gives a server's stamps: strictly rising, never behind what a changed row has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    last: Time,
}

impl Clock {
    /// A clock that goes on after `last`, the server's newest stamp.
    #[must_use]
    pub fn after(last: Time) -> Self {
        Self { last }
    }

    /// The stamp time for a transaction whose last change was at `millis` by the wall clock and
    /// whose rows have seen stamps up to `seen`.
    pub fn tick(&mut self, millis: u64, seen: Time) -> Time {
        let floor = self.last.max(seen).next();
        self.last = floor.max(Time::from_millis(millis));
        self.last
    }

    /// The newest stamp time given.
    #[must_use]
    pub fn last(&self) -> Time {
        self.last
    }
}

/// For each actor the latest time that touched a row: a version vector.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seen(pub BTreeMap<Actor, Time>);

impl Seen {
    /// Nothing seen.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds one stamp.
    pub fn touch(&mut self, stamp: Stamp) {
        let time = self.0.entry(stamp.actor).or_default();
        *time = (*time).max(stamp.time);
    }

    /// Whether `stamp` is in here.
    #[must_use]
    pub fn has(&self, stamp: Stamp) -> bool {
        self.0.get(&stamp.actor).is_some_and(|time| *time >= stamp.time)
    }

    /// Whether everything in `other` is in here too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(actor, time)| self.has(Stamp { time: *time, actor: *actor }))
    }

    /// Grows by `other`: the least upper bound.
    pub fn join(&mut self, other: &Self) {
        for (actor, time) in &other.0 {
            self.touch(Stamp { time: *time, actor: *actor });
        }
    }

    /// The latest time in here, zero when empty.
    #[must_use]
    pub fn latest(&self) -> Time {
        self.0.values().copied().max().unwrap_or_default()
    }
}
