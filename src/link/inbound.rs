//! The receiving end of a link's numbers: up to where everything has come in, and what is missing
//! above that.

use serde::{Deserialize, Serialize};

use super::ranges::{self, Range};
use super::{ASK_AGAIN_MAX_MS, ASK_AGAIN_MS, GAP_GRACE_MS, GAPS_MAX};

/// Numbers that did not come while later ones did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Gap {
    from: u64,
    to: u64,
    /// When that was seen.
    since: i64,
    /// When they were asked for last, and how often.
    asked: Option<i64>,
    times: u32,
}

/// What came in of one direction of a link.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Inbound {
    epoch: u64,
    /// The highest number that came in, or that was said to be skipped.
    top: u64,
    /// What is missing below it, in order, disjoint.
    gaps: Vec<Gap>,
}

/// How a message stands to those before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// It carries no number.
    Uncounted,
    /// It is the next one.
    Next,
    /// It is ahead of what came so far: the numbers between are missing.
    Ahead,
    /// It was missing, and is here now.
    Filled,
    /// Its number came in already.
    Repeat,
    /// It is the first of an epoch that is newer than what was known.
    NewEpoch,
    /// It is of an epoch that is over.
    OldEpoch,
}

impl Inbound {
    /// The state of a link that has only a floor: everything up to `number` of `epoch` came in.
    #[must_use]
    pub fn at(epoch: u64, number: u64) -> Self {
        Self { epoch, top: number, gaps: Vec::new() }
    }

    /// The epoch of what comes in.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Up to which number of the epoch everything has come in.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.gaps.first().map_or(self.top, |gap| gap.from - 1)
    }

    /// The highest number that has come in.
    #[must_use]
    pub fn top(&self) -> u64 {
        self.top
    }

    /// Whether something is missing.
    #[must_use]
    pub fn has_gaps(&self) -> bool {
        !self.gaps.is_empty()
    }

    /// A message came in. Call it for each, in the transaction that takes the message in.
    pub fn take(&mut self, epoch: u64, number: u64, now: i64) -> Seen {
        if number == 0 {
            return Seen::Uncounted;
        }
        if epoch < self.epoch {
            return Seen::OldEpoch;
        }
        let fresh = epoch > self.epoch;
        if fresh {
            *self = Self::at(epoch, 0);
        }
        let seen = if number > self.top {
            let ahead = number > self.top + 1;
            if ahead {
                self.miss((self.top + 1, number - 1), now);
            }
            self.top = number;
            if ahead { Seen::Ahead } else { Seen::Next }
        } else if self.remove((number, number)) {
            Seen::Filled
        } else {
            Seen::Repeat
        };
        if fresh { Seen::NewEpoch } else { seen }
    }

    /// The sender says that these numbers of an epoch will never come.
    pub fn skip(&mut self, epoch: u64, skipped: &[Range]) {
        if epoch != self.epoch {
            return;
        }
        for range in skipped {
            if range.0 <= range.1 {
                self.remove(*range);
            }
        }
    }

    fn miss(&mut self, (from, to): Range, now: i64) {
        self.gaps.push(Gap { from, to, since: now, asked: None, times: 0 });
        // Too many to tell apart: what lies between the last two is missing as well, for all we
        // know, and comes twice.
        while self.gaps.len() > GAPS_MAX {
            let Some(last) = self.gaps.pop() else { break };
            if let Some(before) = self.gaps.last_mut() {
                before.to = last.to;
            }
        }
    }

    fn remove(&mut self, range: Range) -> bool {
        let touched = |gap: &Gap| ranges::clip((gap.from, gap.to), range).is_some();
        if !self.gaps.iter().any(touched) {
            return false;
        }
        let gaps = std::mem::take(&mut self.gaps);
        for gap in gaps {
            let left = ranges::without((gap.from, gap.to), range);
            self.gaps.extend(left.into_iter().map(|(from, to)| Gap { from, to, ..gap }));
        }
        true
    }

    /// The gaps that are to be asked for now: they have lasted, and were not asked for a while.
    #[must_use]
    pub fn due(&self, now: i64) -> Vec<Range> {
        self.gaps.iter().filter(|gap| gap.is_due(now)).map(|gap| (gap.from, gap.to)).collect()
    }

    /// Notes that all that is due was asked for.
    pub fn asked(&mut self, now: i64) {
        for gap in &mut self.gaps {
            if gap.is_due(now) {
                gap.asked = Some(now);
                gap.times = gap.times.saturating_add(1);
            }
        }
    }

    /// The gaps that have lasted, asked for or not: what a hello says.
    #[must_use]
    pub fn lasting(&self, now: i64) -> Vec<Range> {
        let lasting = self.gaps.iter().filter(|gap| now - gap.since >= GAP_GRACE_MS);
        lasting.map(|gap| (gap.from, gap.to)).collect()
    }
}

impl Gap {
    fn is_due(&self, now: i64) -> bool {
        match self.asked {
            None => now - self.since >= GAP_GRACE_MS,
            Some(asked) => {
                let wait = ASK_AGAIN_MS << self.times.saturating_sub(1).min(10);
                // A clock that was set back does not keep us from asking.
                !(0..wait.min(ASK_AGAIN_MAX_MS)).contains(&(now - asked))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_gap_is_seen_asked_for_after_a_while_and_filled() {
        let mut link = Inbound::default();
        assert_eq!(link.take(7, 1, 0), Seen::NewEpoch);
        assert_eq!(link.take(7, 2, 0), Seen::Next);
        assert_eq!(link.take(7, 5, 100), Seen::Ahead);
        assert_eq!((link.floor(), link.top()), (2, 5));
        assert!(link.due(100 + GAP_GRACE_MS - 1).is_empty());
        let now = 100 + GAP_GRACE_MS;
        assert_eq!(link.due(now), [(3, 4)]);
        link.asked(now);
        assert!(link.due(now).is_empty());
        assert_eq!(link.due(now + ASK_AGAIN_MS), [(3, 4)]);
        assert_eq!(link.take(7, 4, now), Seen::Filled);
        assert_eq!(link.take(7, 4, now), Seen::Repeat);
        assert_eq!(link.floor(), 2);
        link.skip(7, &[(1, 3)]);
        assert_eq!((link.floor(), link.has_gaps()), (5, false));
    }

    #[test]
    fn what_comes_late_by_a_moment_is_never_asked_for() {
        let mut link = Inbound::at(1, 0);
        for number in [3, 1, 2, 6, 4, 5] {
            link.take(1, number, 10);
            assert!(link.due(10 + GAP_GRACE_MS - 1).is_empty());
        }
        assert_eq!((link.floor(), link.due(i64::MAX)), (6, vec![]));
    }

    #[test]
    fn a_new_epoch_starts_over_and_an_old_one_is_over() {
        let mut link = Inbound::at(3, 40);
        assert_eq!(link.take(4, 2, 0), Seen::NewEpoch);
        assert_eq!((link.epoch(), link.floor(), link.top()), (4, 0, 2));
        assert_eq!(link.take(3, 41, 0), Seen::OldEpoch);
        assert_eq!(link.take(4, 0, 0), Seen::Uncounted);
        link.skip(3, &[(1, 1)]);
        assert_eq!(link.floor(), 0);
        link.skip(4, &[(5, 1), (0, u64::MAX)]);
        assert_eq!(link.floor(), 2);
    }

    #[test]
    fn questions_become_rarer_but_never_end() {
        let mut link = Inbound::at(1, 0);
        link.take(1, 2, 0);
        let (mut now, mut asked) = (0, Vec::new());
        while asked.len() < 9 {
            now += 500;
            if !link.due(now).is_empty() {
                link.asked(now);
                asked.push(now);
            }
        }
        let pauses: Vec<i64> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses, [4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000, 60_000]);
    }

    #[test]
    fn gaps_are_bounded_and_none_is_forgotten() {
        let mut link = Inbound::at(1, 0);
        for number in 1..2_000_u64 {
            link.take(1, number * 2, 0);
        }
        assert!(link.gaps.len() <= GAPS_MAX);
        let due = link.due(GAP_GRACE_MS);
        let missing = |n| due.iter().any(|(from, to)| (*from..=*to).contains(&n));
        assert!((1..2_000_u64).map(|n| n * 2 - 1).all(missing));
    }

    proptest! {
        #[test]
        fn the_floor_tells_the_truth(events in prop::collection::vec((1_u64..30, any::<bool>()), 0..60)) {
            let mut link = Inbound::at(1, 0);
            let mut here = std::collections::BTreeSet::new();
            for (number, skip) in events {
                if skip {
                    link.skip(1, &[(number, number + 1)]);
                    here.extend([number, number + 1].into_iter().filter(|n| *n <= link.top()));
                } else {
                    let before = here.contains(&number);
                    let seen = link.take(1, number, 0);
                    prop_assert_eq!(seen == Seen::Repeat, before);
                    here.insert(number);
                }
                let floor = (1..).take_while(|n| here.contains(n)).count() as u64;
                prop_assert_eq!(link.floor(), floor);
                let due = link.due(i64::MAX);
                for number in 1..=link.top() {
                    let asked = due.iter().any(|(from, to)| (*from..=*to).contains(&number));
                    prop_assert_eq!(asked, !here.contains(&number));
                }
            }
        }
    }
}
