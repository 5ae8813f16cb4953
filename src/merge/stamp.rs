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
    /// The latest time that 48 bits of milliseconds can say: the year 10889.
    const MILLIS_MAX: u64 = (1 << 48) - 1;

    /// The first time of a millisecond; what lies beyond the 48 bits counts as the last of them.
    #[must_use]
    pub fn from_millis(millis: u64) -> Self {
        Self(millis.min(Self::MILLIS_MAX) << 16)
    }

    /// The physical part, in milliseconds since 1970.
    #[must_use]
    pub fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// The next time: the counter, and where it is full the next millisecond. The last time of all
    /// has none and stays; a stamp so far ahead is held long before it gets into a state.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
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

    /// The entries, by actor.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Stamp> + '_ {
        self.0.iter().map(|(actor, time)| Stamp { time: *time, actor: *actor })
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
        other.iter().all(|stamp| self.has(stamp))
    }

    /// Grows by `other`: the least upper bound.
    pub fn join(&mut self, other: &Self) {
        for stamp in other.iter() {
            self.touch(stamp);
        }
    }

    /// The latest time in here, zero when empty.
    #[must_use]
    pub fn latest(&self) -> Time {
        self.0.values().copied().max().unwrap_or_default()
    }

    /// The latest stamp in here that is in none of `others`.
    #[must_use]
    pub fn latest_beyond(&self, others: &[&Self]) -> Option<Stamp> {
        self.iter().filter(|stamp| !others.iter().any(|other| other.has(*stamp))).max()
    }
}

impl FromIterator<Stamp> for Seen {
    fn from_iter<I: IntoIterator<Item = Stamp>>(stamps: I) -> Self {
        let mut seen = Self::new();
        for stamp in stamps {
            seen.touch(stamp);
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ServerId;

    fn stamp(server: u128, time: u64) -> Stamp {
        let server = ServerId(uuid::Uuid::from_u128(server));
        Stamp { time: Time(time), actor: Actor { server, incarnation: 1 } }
    }

    #[test]
    fn a_clock_rises_strictly_whatever_the_wall_clock_does() {
        let mut clock = Clock::after(Time::from_millis(5_000));
        let mut last = clock.last();
        for millis in [5_000, 5_000, 4_000, 0, 6_000, 5_999, 7_000, 7] {
            let time = clock.tick(millis, Time::default());
            assert!(time > last, "{time:?} after {last:?}");
            last = time;
        }
        let seen = Time(last.0 + 70_000);
        assert_eq!(clock.tick(0, seen), Time(seen.0 + 1));
    }

    #[test]
    fn a_clock_follows_the_wall_clock_when_it_is_ahead() {
        let mut clock = Clock::default();
        assert_eq!(clock.tick(9, Time::from_millis(3)).millis(), 9);
        assert_eq!(clock.tick(9, Time::from_millis(9)), Time(Time::from_millis(9).0 + 1));
    }

    #[test]
    fn the_end_of_time_does_not_overflow() {
        assert_eq!(Time(u64::MAX).next(), Time(u64::MAX));
        assert_eq!(Time::from_millis(u64::MAX).millis(), (1 << 48) - 1);
        assert_eq!(Clock::after(Time(u64::MAX)).tick(u64::MAX, Time(u64::MAX)), Time(u64::MAX));
    }

    #[test]
    fn a_set_of_stamps_has_all_earlier_ones_of_an_actor() {
        let seen: Seen = [stamp(1, 5), stamp(2, 9), stamp(1, 3)].into_iter().collect();
        assert!(seen.has(stamp(1, 4)) && seen.has(stamp(1, 5)) && !seen.has(stamp(1, 6)));
        assert!(!seen.has(stamp(3, 1)));
        assert!(seen.covers(&[stamp(2, 9)].into_iter().collect()));
        assert!(!seen.covers(&[stamp(2, 10)].into_iter().collect()));
        assert_eq!(seen.latest(), Time(9));
        let known: Seen = [stamp(2, 9)].into_iter().collect();
        assert_eq!(seen.latest_beyond(&[&known]), Some(stamp(1, 5)));
        assert_eq!(seen.latest_beyond(&[&known, &seen]), None);
    }
}
