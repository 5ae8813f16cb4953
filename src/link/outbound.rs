//! The sending end: what the neighbour says of our messages, and what is to be done about it.

use serde::{Deserialize, Serialize};

use super::ranges::{self, Range};
use super::{ANSWER_GRACE_MS, GAPS_MAX};

/// What a neighbour says, in an acknowledgement or a hello, of what we send.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Word {
    /// The epoch that it speaks of; 0 says nothing.
    pub epoch: u64,
    /// Up to which number everything has come in.
    pub number: u64,
    /// What it misses and wants again.
    pub gaps: Vec<Range>,
}

/// A number, and when we knew that all up to it had come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Mark {
    /// The number.
    pub number: u64,
    /// When it was said first, by our clock.
    pub at: i64,
}

/// What is known of how our messages arrived, in our present epoch.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Outbound {
    epoch: u64,
    /// The highest number that the neighbour said.
    heard: u64,
    /// A mark that becomes `settled` once it is old enough.
    young: Mark,
    /// What was sent before and is not above it should have been acknowledged by now.
    settled: Mark,
}

/// What a word leads to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reaction {
    /// Numbers whose records are to be sent again at once. They get new numbers.
    pub again: Vec<Range>,
    /// Numbers that will not come any more: announced in the next hello.
    pub skipped: Vec<Range>,
    /// The neighbour has not seen all yet: a message with a number shows it what it lacks.
    pub behind: bool,
    /// More has come in than was known.
    pub advanced: bool,
    /// It speaks of numbers that were never given here: we have fallen back behind our own words.
    pub beyond: bool,
}

impl Outbound {
    /// The highest number that the neighbour said of `epoch`.
    #[must_use]
    pub fn heard(&self, epoch: u64) -> u64 {
        if epoch == self.epoch { self.heard } else { 0 }
    }

    /// Takes a word in. `epoch` and `last` are those of what we send: the last number given.
    pub fn hear(&mut self, (epoch, last): (u64, u64), word: &Word, now: i64) -> Reaction {
        let highest = word.gaps.iter().map(|gap| gap.1).max().unwrap_or(0).max(word.number);
        if word.epoch == 0 || word.epoch != epoch {
            // Of an epoch to come nobody can speak but those who knew us before we fell back.
            return Reaction { beyond: word.epoch > epoch, ..Reaction::default() };
        }
        if self.epoch != epoch {
            *self = Self { epoch, ..Self::default() };
        }
        if highest > last {
            return Reaction { beyond: true, ..Reaction::default() };
        }
        let advanced = word.number > self.heard;
        self.heard = self.heard.max(word.number);
        self.age(now);
        if self.young.number <= self.settled.number {
            // The last one has come of age: what is heard since begins to.
            self.young = Mark { number: self.heard, at: now };
        }
        let gaps = word.gaps.iter().filter_map(|gap| ranges::clip(*gap, (1, last))).collect();
        let again = ranges::tidy(gaps, GAPS_MAX);
        let behind = word.number < last;
        Reaction { skipped: again.clone(), again, behind, advanced, beyond: false }
    }

    fn age(&mut self, now: i64) {
        if self.young.number > self.settled.number && now - self.young.at >= ANSWER_GRACE_MS {
            self.settled = self.young;
        }
        // A mark of the future (the clock was set back) would never age.
        self.young.at = self.young.at.min(now);
    }

    /// Records with a number up to this one that were sent before its time and are not answered:
    /// their acknowledgement is lost, and they are sent again.
    #[must_use]
    pub fn unanswered(&self, epoch: u64, now: i64) -> Option<Mark> {
        let mut aged = self.clone();
        aged.age(now);
        (epoch == self.epoch && aged.settled.number > 0).then_some(aged.settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(number: u64, gaps: &[Range]) -> Word {
        Word { epoch: 5, number, gaps: gaps.to_vec() }
    }

    #[test]
    fn a_gap_is_sent_again_and_its_numbers_are_skipped() {
        let mut link = Outbound::default();
        let reaction = link.hear((5, 20), &word(7, &[(12, 13), (8, 9), (10, 10)]), 0);
        assert_eq!(reaction.again, [(8, 10), (12, 13)]);
        assert_eq!(reaction.skipped, reaction.again);
        assert!(reaction.behind && !reaction.beyond);
        assert!(!link.hear((5, 20), &word(20, &[]), 0).behind);
    }

    #[test]
    fn a_word_of_another_epoch_says_nothing() {
        let mut link = Outbound::default();
        let old = Word { epoch: 4, number: 9, gaps: vec![(1, 2)] };
        assert_eq!(link.hear((5, 20), &old, 0), Reaction::default());
        assert_eq!(link.hear((5, 20), &Word::default(), 0), Reaction::default());
        assert_eq!(link.heard(5), 0);
    }

    #[test]
    fn who_speaks_of_numbers_never_given_knew_us_before() {
        let mut link = Outbound::default();
        assert!(link.hear((5, 20), &word(21, &[]), 0).beyond);
        assert!(link.hear((5, 20), &word(3, &[(30, 30)]), 0).beyond);
        assert!(link.hear((5, 20), &Word { epoch: 6, number: 1, gaps: vec![] }, 0).beyond);
        assert_eq!(link.heard(5), 0, "and nothing of it is believed");
        assert!(!link.hear((5, 20), &word(20, &[]), 0).beyond);
    }

    #[test]
    fn a_lost_answer_is_noticed_after_a_while_also_under_traffic() {
        let mut link = Outbound::default();
        link.hear((5, 100), &word(10, &[]), 1_000);
        assert_eq!(link.unanswered(5, 1_000 + ANSWER_GRACE_MS - 1), None);
        let mark = Mark { number: 10, at: 1_000 };
        assert_eq!(link.unanswered(5, 1_000 + ANSWER_GRACE_MS), Some(mark));
        assert_eq!(link.unanswered(6, 1_000 + ANSWER_GRACE_MS), None);
        // Later words do not push it away for ever.
        for n in 1..=100 {
            link.hear((5, 1_000), &word(10 + n, &[]), 1_000 + i64::try_from(n).unwrap() * 100);
        }
        let settled = link.unanswered(5, 11_000).unwrap();
        assert!(settled.number >= 10 + 30, "{settled:?}");
        assert!(settled.at <= 11_000 - ANSWER_GRACE_MS);
    }
}
