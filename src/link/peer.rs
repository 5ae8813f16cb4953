//! Who speaks at the other end of a link: a server that goes on, one whose database was put back to
//! an older state, or two copies of one.
//!
//! What gives them away: running numbers are given in the database, so a number that came in before
//! is never given again, nor an incarnation that is over. Whoever says a hello that is newer by its
//! clock, with an older number, has an older database: it has **fallen back**. It is told (by
//! vouching for an incarnation that it has not), and what it sends is set aside until it has taken a
//! new one. When the one that was there before speaks again after it, both are alive: **copies**.
//! Several workers of one server are no copies: they draw their numbers from one database.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Seen;
use crate::id::Incarnation;

/// Lives of a neighbour that are remembered.
const LIVES_MAX: usize = 8;

/// By how much a neighbour's clock may be ahead of ours before it is not believed.
const CLOCK_AHEAD_MAX_MS: i64 = 86_400_000;

/// Sessions that are remembered of one life.
const SESSIONS_MAX: usize = 16;

/// What a hello says of who speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    /// The incarnation.
    pub incarnation: Incarnation,
    /// The process.
    pub session: Uuid,
    /// Its clock.
    pub clock: u64,
    /// Epoch and number of the message.
    pub epoch: u64,
    /// See `epoch`.
    pub number: u64,
    /// How the number stands to those before it.
    pub seen: Seen,
}

/// One database's time at the link: from one fall back, or new incarnation, to the next.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Life {
    incarnation: Incarnation,
    epoch: u64,
    /// The highest number that was heard of it.
    top: u64,
    /// Its sessions, the latest last, with the time they were heard last (ours).
    sessions: Vec<(Uuid, i64)>,
    /// It began by falling back, and has not taken a new incarnation yet.
    fallen: bool,
}

/// Two copies of one server, as it was found out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Aside {
    since: i64,
    /// The life that alone has spoken since, and since when.
    alone: Option<(Incarnation, u64, i64)>,
}

/// What is known of who speaks on a link.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Peer {
    clock: u64,
    /// The latest last.
    lives: Vec<Life>,
    aside: Option<Aside>,
}

/// What to make of a hello.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It goes on as before. Also an old hello that was delivered late: it says nothing new.
    Goes,
    /// It has taken a new incarnation.
    Renewed,
    /// It has fallen back, and does not know yet.
    Fallen,
    /// There are two of it: each by a session, and when it was heard last.
    Copies((Uuid, i64), (Uuid, i64)),
}

/// Whether what a neighbour sends is taken in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Yes.
    Good,
    /// No: it has fallen back. What it sends now it seals anew.
    Fallen,
    /// No: there are two of it.
    Copied,
}

impl Peer {
    /// Whether what the neighbour sends in an epoch is taken in.
    #[must_use]
    pub fn standing(&self, epoch: u64) -> Standing {
        if self.aside.is_some() {
            return Standing::Copied;
        }
        match self.lives.last() {
            Some(life) if life.fallen && epoch <= life.epoch => Standing::Fallen,
            _ => Standing::Good,
        }
    }

    /// Whether there are two of it.
    #[must_use]
    pub fn is_aside(&self) -> bool {
        self.aside.is_some()
    }

    /// An operator says that one of two copies is gone.
    pub fn forgive(&mut self) {
        if self.aside.take().is_some()
            && let Some(life) = self.lives.last_mut()
        {
            life.fallen = true;
        }
    }

    /// Takes a hello in. `probation_ms`: for so long one of two copies has to speak alone before it is
    /// the only one.
    pub fn hear(&mut self, heard: Heard, now: i64, probation_ms: i64) -> Verdict {
        // A clock that is far ahead must not make all later hellos old ones.
        let ahead = u64::try_from(now.saturating_add(CLOCK_AHEAD_MAX_MS)).unwrap_or(0);
        let clock = heard.clock.min(ahead);
        if clock <= self.clock {
            return Verdict::Goes;
        }
        self.clock = clock;
        let verdict = self.judge(heard, now);
        if self.aside.is_some() || matches!(verdict, Verdict::Copies(..)) {
            return self.set_aside(heard, verdict, now, probation_ms);
        }
        verdict
    }

    fn judge(&mut self, heard: Heard, now: i64) -> Verdict {
        let Some(current) = self.lives.last() else {
            self.begin(heard, now, false);
            return Verdict::Goes;
        };
        let speaks =
            |life: &Life| life.sessions.iter().any(|(session, _)| *session == heard.session);
        let is_current = speaks(current);
        let former = self.lives.iter().rev().skip(1).any(speaks);
        if former && !is_current {
            return self.copied(heard, now);
        }
        let Some(current) = self.lives.last_mut() else { return Verdict::Goes };
        if heard.incarnation > current.incarnation {
            self.begin(heard, now, false);
            return Verdict::Renewed;
        }
        let same = (heard.incarnation, heard.epoch) == (current.incarnation, current.epoch);
        if same && current.fallen {
            if heard.seen != Seen::Repeat && heard.number > current.top + 1 {
                // It would go on number by number: the one that leaps is the one that never fell.
                return self.copied(heard, now);
            }
            current.top = current.top.max(heard.number);
            current.note(heard.session, now);
            return Verdict::Fallen;
        }
        if same && heard.seen != Seen::Repeat {
            current.top = current.top.max(heard.number);
            current.note(heard.session, now);
            return Verdict::Goes;
        }
        if !same {
            let epoch = (heard.incarnation, heard.epoch);
            let known = self.lives.iter().rev().find(|l| (l.incarnation, l.epoch) == epoch);
            if known.is_some_and(|life| heard.number > life.top) {
                // A life that was over goes on: no older database could give that number.
                return self.copied(heard, now);
            }
        }
        self.begin(heard, now, true);
        Verdict::Fallen
    }

    /// There are two: the one that speaks, and the one that spoke last.
    fn copied(&mut self, heard: Heard, now: i64) -> Verdict {
        let copies = self.both(heard, now);
        self.begin(heard, now, false);
        copies
    }

    fn both(&self, heard: Heard, now: i64) -> Verdict {
        let sessions = self.lives.iter().rev().flat_map(|life| life.sessions.iter().rev());
        let other = sessions.copied().find(|(session, _)| *session != heard.session);
        Verdict::Copies(other.unwrap_or_default(), (heard.session, now))
    }

    /// A message of a neighbour that has fallen back is not taken in; its number is noted.
    pub fn pass(&mut self, epoch: u64, number: u64) {
        if let Some(life) = self.lives.last_mut().filter(|life| life.epoch == epoch) {
            life.top = life.top.max(number);
        }
    }

    fn begin(&mut self, heard: Heard, now: i64, fallen: bool) {
        self.lives.push(Life {
            incarnation: heard.incarnation,
            epoch: heard.epoch,
            top: heard.number,
            sessions: vec![(heard.session, now)],
            fallen,
        });
        if self.lives.len() > LIVES_MAX {
            self.lives.remove(0);
        }
    }

    fn set_aside(
        &mut self,
        heard: Heard,
        verdict: Verdict,
        now: i64,
        probation_ms: i64,
    ) -> Verdict {
        let speaks = (heard.incarnation, heard.epoch);
        let aside = self.aside.get_or_insert(Aside { since: now, alone: None });
        match aside.alone {
            Some((incarnation, epoch, since)) if (incarnation, epoch) == speaks => {
                if now - since >= probation_ms {
                    // It alone has spoken for long enough. It begins a new incarnation, so that
                    // nothing of the two is mixed.
                    self.aside = None;
                    self.lives.clear();
                    self.begin(heard, now, true);
                    return Verdict::Fallen;
                }
            }
            _ => aside.alone = Some((speaks.0, speaks.1, now)),
        }
        match verdict {
            Verdict::Copies(..) => verdict,
            _ => self.both(heard, now),
        }
    }
}

impl Life {
    fn note(&mut self, session: Uuid, now: i64) {
        self.sessions.retain(|(known, _)| *known != session);
        self.sessions.push((session, now));
        if self.sessions.len() > SESSIONS_MAX {
            self.sessions.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Inbound;

    const PROBATION: i64 = 120_000;

    /// A neighbour, as it is heard: time goes on with each hello.
    #[derive(Default)]
    struct Ear {
        peer: Peer,
        inbound: Inbound,
        now: i64,
    }

    impl Ear {
        fn hear(&mut self, session: u128, incarnation: u32, epoch: u64, number: u64) -> Verdict {
            self.now += 1_000;
            let seen = self.inbound.take(epoch, number, self.now);
            let session = Uuid::from_u128(session);
            let clock = u64::try_from(self.now).unwrap();
            let heard = Heard { incarnation, session, clock, epoch, number, seen };
            self.peer.hear(heard, self.now, PROBATION)
        }
    }

    #[test]
    fn workers_of_one_database_may_speak_in_turn() {
        let mut ear = Ear::default();
        for number in 1..50 {
            assert_eq!(ear.hear(u128::from(number % 3), 1, 5, number), Verdict::Goes);
        }
        assert_eq!(ear.peer.standing(5), Standing::Good);
    }

    #[test]
    fn a_hello_that_is_delivered_again_says_nothing() {
        let mut ear = Ear::default();
        ear.hear(1, 1, 5, 1);
        ear.hear(1, 1, 5, 2);
        let again = Heard {
            incarnation: 1,
            session: Uuid::from_u128(1),
            clock: 1_000,
            epoch: 5,
            number: 1,
            seen: Seen::Repeat,
        };
        assert_eq!(ear.peer.hear(again, 9_000, PROBATION), Verdict::Goes);
        assert_eq!(ear.peer.standing(5), Standing::Good);
    }

    #[test]
    fn an_older_database_is_known_and_is_good_again_with_a_new_incarnation() {
        let mut ear = Ear::default();
        for number in 1..=30 {
            ear.hear(1, 1, 5, number);
        }
        assert_eq!(ear.hear(2, 1, 5, 11), Verdict::Fallen);
        assert_eq!(ear.peer.standing(5), Standing::Fallen);
        assert_eq!(ear.hear(2, 1, 5, 12), Verdict::Fallen);
        assert_eq!(ear.peer.standing(6), Standing::Good, "what is of a later epoch is not");
        assert_eq!(ear.hear(2, 3, 6, 1), Verdict::Renewed);
        assert_eq!(ear.peer.standing(6), Standing::Good);
        // And once more, to before that.
        assert_eq!(
            ear.hear(4, 1, 5, 13),
            Verdict::Copies((Uuid::from_u128(2), 33_000), (Uuid::from_u128(4), 34_000)),
            "number 13 was never given in the life that was over"
        );
    }

    #[test]
    fn restored_to_before_its_last_restore_it_falls_back_again() {
        let mut ear = Ear::default();
        for number in 1..=30 {
            ear.hear(1, 1, 5, number);
        }
        ear.hear(2, 1, 5, 11);
        ear.hear(2, 3, 6, 1);
        assert_eq!(ear.hear(7, 1, 5, 8), Verdict::Fallen);
        assert_eq!(ear.hear(7, 4, 9, 1), Verdict::Renewed);
        assert_eq!(ear.peer.standing(9), Standing::Good);
    }

    #[test]
    fn two_copies_are_told_apart_by_who_speaks_again() {
        let mut ear = Ear::default();
        for number in 1..=10 {
            ear.hear(1, 1, 5, number);
        }
        assert_eq!(ear.hear(2, 1, 5, 10), Verdict::Fallen);
        let verdict = ear.hear(1, 1, 5, 11);
        let (one, other) = (Uuid::from_u128(2), Uuid::from_u128(1));
        assert_eq!(verdict, Verdict::Copies((one, 11_000), (other, 12_000)));
        assert_eq!(ear.peer.standing(5), Standing::Copied);
        // Both go on, and both take new incarnations: they stay refused.
        for n in 0..300_u64 {
            let verdict = ear.hear(u128::from(1 + n % 2), 3, 50 + n % 2, n + 1);
            assert!(matches!(verdict, Verdict::Copies(..)), "{n}: {verdict:?}");
        }
        // One is somebody else now: the other is taken back, in a new incarnation.
        let mut last = Verdict::Goes;
        for n in 0..130 {
            last = ear.hear(2, 3, 51, 400 + n);
            if last == Verdict::Fallen {
                break;
            }
        }
        assert_eq!(last, Verdict::Fallen);
        assert_eq!(ear.hear(2, 9, 60, 1), Verdict::Renewed);
        assert_eq!(ear.peer.standing(60), Standing::Good);
    }

    #[test]
    fn copies_that_only_sync_now_and_then_are_known_by_their_numbers() {
        let mut ear = Ear::default();
        for number in 1..=10 {
            ear.hear(u128::from(number), 1, 5, number);
        }
        // The copy was made after number 7, and syncs; then the other goes on where it was.
        assert_eq!(ear.hear(100, 1, 5, 8), Verdict::Fallen);
        assert!(matches!(ear.hear(101, 1, 5, 12), Verdict::Copies(..)));
    }

    #[test]
    fn an_operator_may_say_that_one_is_gone() {
        let mut ear = Ear::default();
        for number in 1..=10 {
            ear.hear(1, 1, 5, number);
        }
        ear.hear(2, 1, 5, 10);
        ear.hear(1, 1, 5, 11);
        ear.peer.forgive();
        assert_eq!(ear.peer.standing(5), Standing::Fallen);
        assert_eq!(ear.hear(1, 4, 9, 1), Verdict::Renewed);
        assert_eq!(ear.peer.standing(9), Standing::Good);
    }
}
