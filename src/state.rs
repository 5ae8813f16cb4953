//! The states of records and imports, where each is legal, and which may follow which.
//!
//! Pure, and the only place that knows: SQL that moves states is made from the same table (see
//! [`case_sql`]). Two promises hold for every sequence of events: an acknowledgement that comes late
//! or again never undoes COMMITTED, and a broker's word never makes COMMITTED.
//!
//! | place | moves |
//! |---|---|
//! | record, server record | NEW → PENDING → SENT → SENT_AGAIN … → COMMITTED; SEND_FAILED when the broker refuses; FAILED, FAILED_AND_STOPPED while the receiver holds it; REJECTED, NOT_SUPPOSED_TO_SYNC by rules |
//! | import | PENDING → COMMITTED → COMMITTED_AND_CONFIRMATION_SENT → ALREADY_COMMITTED; FAILED, FAILED_AND_STOPPED while it is held; REJECTED by rules |

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// What is known of a record on its way to or from one neighbour.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    /// Nothing was done with it yet.
    New,
    /// It is being handed to the broker; of an import: taken in, not applied yet.
    Pending,
    /// The broker has it. That says nothing of the receiver.
    Sent,
    /// The broker has it for the second or a later time.
    SentAgain,
    /// The broker refused it or could not be reached: it is tried again without end.
    SendFailed,
    /// The receiver holds it and tries again.
    Failed,
    /// The receiver holds it and tries again only on a cause.
    FailedAndStopped,
    /// It is in the receiver's tables.
    Committed,
    /// An import that came again after it was committed.
    AlreadyCommitted,
    /// An import whose acknowledgement the broker has.
    CommittedAndConfirmationSent,
    /// The sender's rules keep all of it back.
    NotSupposedToSync,
    /// The receiver's rules refuse all of it.
    Rejected,
}

/// Where a state stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// `sync_record.state`: the way to the parent. Without a parent it stays NEW.
    Record,
    /// `sync_server_record.state`: the way to one child.
    ServerRecord,
    /// `sync_import.state`: what came in.
    Import,
}

/// What happens to a record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// Sender: it is being handed to the broker.
    Sending,
    /// Sender: the broker confirmed it. From SENT on this is a resend.
    Confirmed,
    /// Sender: the broker confirmed it, and it had been confirmed before.
    ConfirmedAgain,
    /// Sender: the broker refused it, returned it, or could not be reached.
    Refused,
    /// Sender: the receiver says how it stands there: COMMITTED, ALREADY_COMMITTED, FAILED,
    /// FAILED_AND_STOPPED or REJECTED. Any other state says nothing.
    Acknowledged(State),
    /// Sender: the rules keep it back.
    Withheld,
    /// An operator, or a new parent, has it start again.
    Reset,
    /// Receiver: it went into the tables.
    Applied,
    /// Receiver: it was set aside.
    Held,
    /// Receiver: it was set aside, and its tries are used up.
    Stopped,
    /// Receiver: the rules refuse it.
    Barred,
    /// Receiver: the broker has the acknowledgement.
    ConfirmationSent,
    /// Receiver: it came again.
    CameAgain,
}

use State::{
    AlreadyCommitted, Committed, CommittedAndConfirmationSent, Failed, FailedAndStopped, New,
    NotSupposedToSync, Pending, Rejected, SendFailed, Sent, SentAgain,
};

impl State {
    /// All of them. The place in here is the code on the wire.
    pub const ALL: [Self; 12] = [
        New,
        Pending,
        Sent,
        SentAgain,
        SendFailed,
        Failed,
        FailedAndStopped,
        Committed,
        AlreadyCommitted,
        CommittedAndConfirmationSent,
        NotSupposedToSync,
        Rejected,
    ];

    /// Sender: something is still to come; what the index of open records holds.
    pub const OPEN: [Self; 6] = [New, Pending, Sent, SentAgain, SendFailed, Failed];
    /// Sender: to be handed to the broker now.
    pub const TO_SEND: [Self; 3] = [New, Pending, SendFailed];
    /// Sender: the broker has it and the receiver has not answered: sent again after the resend
    /// time.
    pub const UNANSWERED: [Self; 2] = [Sent, SentAgain];
    /// The receiver holds it.
    pub const HELD: [Self; 2] = [Failed, FailedAndStopped];
    /// Nothing more will happen by itself.
    pub const TERMINAL: [Self; 5] =
        [Committed, AlreadyCommitted, CommittedAndConfirmationSent, NotSupposedToSync, Rejected];
    /// Sender: what cleanup may delete.
    pub const PRUNABLE: [Self; 3] = [Committed, NotSupposedToSync, Rejected];
    /// Receiver: what cleanup may delete once the sender can no longer resend it.
    pub const IMPORT_PRUNABLE: [Self; 4] =
        [Committed, AlreadyCommitted, CommittedAndConfirmationSent, Rejected];

    /// The name as it stands in the tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            New => "NEW",
            Pending => "PENDING",
            Sent => "SENT",
            SentAgain => "SENT_AGAIN",
            SendFailed => "SEND_FAILED",
            Failed => "FAILED",
            FailedAndStopped => "FAILED_AND_STOPPED",
            Committed => "COMMITTED",
            AlreadyCommitted => "ALREADY_COMMITTED",
            CommittedAndConfirmationSent => "COMMITTED_AND_CONFIRMATION_SENT",
            NotSupposedToSync => "NOT_SUPPOSED_TO_SYNC",
            Rejected => "REJECTED",
        }
    }

    /// The code on the wire, from 0.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The state with a code on the wire.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// Whether the state may stand there.
    #[must_use]
    pub fn is_legal_in(self, place: Place) -> bool {
        match place {
            Place::Record | Place::ServerRecord => {
                !matches!(self, AlreadyCommitted | CommittedAndConfirmationSent)
            }
            Place::Import => {
                !matches!(self, New | Sent | SentAgain | SendFailed | NotSupposedToSync)
            }
        }
    }

    /// The state after an event: the same one where the event changes nothing.
    #[must_use]
    pub fn next(self, place: Place, event: Event) -> Self {
        if !self.is_legal_in(place) {
            return self;
        }
        match place {
            Place::Record | Place::ServerRecord => self.next_outgoing(event),
            Place::Import => self.next_incoming(event),
        }
    }

    fn next_outgoing(self, event: Event) -> Self {
        match (event, self) {
            (Event::Sending, New | SendFailed) => Pending,
            (Event::Confirmed, New | Pending | SendFailed) => Sent,
            (Event::Confirmed, Sent | SentAgain) => SentAgain,
            (Event::ConfirmedAgain, New | Pending | SendFailed | Sent | SentAgain) => SentAgain,
            (Event::Refused, New | Pending | Sent | SentAgain) => SendFailed,
            (Event::Withheld, New | Pending | SendFailed) => NotSupposedToSync,
            (Event::Reset, Committed | NotSupposedToSync) => self,
            (Event::Reset, _) => New,
            (Event::Acknowledged(answer), _) => self.answered(answer),
            _ => self,
        }
    }

    /// An acknowledgement: what it says wins over all that is weaker, in the order FAILED,
    /// FAILED_AND_STOPPED, REJECTED, COMMITTED.
    fn answered(self, answer: Self) -> Self {
        match (answer, self) {
            // Kept back by our rules: whatever is said of it is not said of what we sent.
            (_, NotSupposedToSync) => self,
            (Committed | AlreadyCommitted, _) => Committed,
            (Rejected, state) if state != Committed => Rejected,
            (FailedAndStopped, state) if !matches!(state, Committed | Rejected) => answer,
            (Failed, New | Pending | Sent | SentAgain | SendFailed) => Failed,
            _ => self,
        }
    }

    fn next_incoming(self, event: Event) -> Self {
        match (event, self) {
            (Event::Applied, Pending | Failed | FailedAndStopped) => Committed,
            (Event::Held, Pending) => Failed,
            (Event::Stopped, Pending | Failed) => FailedAndStopped,
            (Event::Barred, Pending | Failed | FailedAndStopped) => Rejected,
            (Event::ConfirmationSent, Committed) => CommittedAndConfirmationSent,
            (Event::CameAgain, Committed | CommittedAndConfirmationSent) => AlreadyCommitted,
            (Event::Reset, FailedAndStopped) => Failed,
            _ => self,
        }
    }

    /// Whether some event leads from `before` to this state there.
    #[must_use]
    pub fn may_follow(self, before: Self, place: Place) -> bool {
        Event::all().any(|event| before != self && before.next(place, event) == self)
    }

    /// Whether the record is done with for good, unless it is reset.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        Self::TERMINAL.contains(&self)
    }
}

impl Event {
    /// Every event, each acknowledgement included.
    pub fn all() -> impl Iterator<Item = Self> {
        let plain = [
            Self::Sending,
            Self::Confirmed,
            Self::ConfirmedAgain,
            Self::Refused,
            Self::Withheld,
            Self::Reset,
            Self::Applied,
            Self::Held,
            Self::Stopped,
            Self::Barred,
            Self::ConfirmationSent,
            Self::CameAgain,
        ];
        plain.into_iter().chain(State::ALL.map(Self::Acknowledged))
    }
}

/// States as a list for SQL: `'NEW', 'PENDING'`, to stand in `state IN (…)`.
#[must_use]
pub fn sql_list(states: &[State]) -> String {
    let names: Vec<String> = states.iter().map(|state| format!("'{state}'")).collect();
    names.join(", ")
}

/// The states that an event changes there: for `WHERE state IN (…)`.
#[must_use]
pub fn moved_by(place: Place, event: Event) -> Vec<State> {
    State::ALL.into_iter().filter(|state| state.next(place, event) != *state).collect()
}

/// What an event makes of the states there, as an SQL expression of `column`:
/// `CASE state WHEN 'NEW' THEN 'SENT' … ELSE state END`. For one event of many rows at once.
#[must_use]
pub fn case_sql(place: Place, event: Event, column: &str) -> String {
    let moved = moved_by(place, event);
    if moved.is_empty() {
        return column.to_owned();
    }
    let arms: Vec<String> = moved
        .iter()
        .map(|state| format!("WHEN '{state}' THEN '{}'", state.next(place, event)))
        .collect();
    format!("CASE {column} {} ELSE {column} END", arms.join(" "))
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for State {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == name)
            .ok_or_else(|| Error::decode(format!("no state is called `{name}`")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: [Place; 3] = [Place::Record, Place::ServerRecord, Place::Import];

    /// For each event, what it makes of each state. Written by hand, a second time, so that the
    /// code above and this must agree; what is not listed stays as it is.
    const OUTGOING: &[(Event, &[(&str, &str)])] = &[
        (Event::Sending, &[("NEW", "PENDING"), ("SEND_FAILED", "PENDING")]),
        (
            Event::Confirmed,
            &[
                ("NEW", "SENT"),
                ("PENDING", "SENT"),
                ("SEND_FAILED", "SENT"),
                ("SENT", "SENT_AGAIN"),
            ],
        ),
        (
            Event::ConfirmedAgain,
            &[
                ("NEW", "SENT_AGAIN"),
                ("PENDING", "SENT_AGAIN"),
                ("SEND_FAILED", "SENT_AGAIN"),
                ("SENT", "SENT_AGAIN"),
            ],
        ),
        (
            Event::Refused,
            &[
                ("NEW", "SEND_FAILED"),
                ("PENDING", "SEND_FAILED"),
                ("SENT", "SEND_FAILED"),
                ("SENT_AGAIN", "SEND_FAILED"),
            ],
        ),
        (
            Event::Withheld,
            &[
                ("NEW", "NOT_SUPPOSED_TO_SYNC"),
                ("PENDING", "NOT_SUPPOSED_TO_SYNC"),
                ("SEND_FAILED", "NOT_SUPPOSED_TO_SYNC"),
            ],
        ),
        (
            Event::Reset,
            &[
                ("PENDING", "NEW"),
                ("SENT", "NEW"),
                ("SENT_AGAIN", "NEW"),
                ("SEND_FAILED", "NEW"),
                ("FAILED", "NEW"),
                ("FAILED_AND_STOPPED", "NEW"),
                ("REJECTED", "NEW"),
            ],
        ),
        (Event::Acknowledged(Committed), COMMITTED),
        (Event::Acknowledged(AlreadyCommitted), COMMITTED),
        (
            Event::Acknowledged(Failed),
            &[
                ("NEW", "FAILED"),
                ("PENDING", "FAILED"),
                ("SENT", "FAILED"),
                ("SENT_AGAIN", "FAILED"),
                ("SEND_FAILED", "FAILED"),
            ],
        ),
        (
            Event::Acknowledged(FailedAndStopped),
            &[
                ("NEW", "FAILED_AND_STOPPED"),
                ("PENDING", "FAILED_AND_STOPPED"),
                ("SENT", "FAILED_AND_STOPPED"),
                ("SENT_AGAIN", "FAILED_AND_STOPPED"),
                ("SEND_FAILED", "FAILED_AND_STOPPED"),
                ("FAILED", "FAILED_AND_STOPPED"),
            ],
        ),
        (
            Event::Acknowledged(Rejected),
            &[
                ("NEW", "REJECTED"),
                ("PENDING", "REJECTED"),
                ("SENT", "REJECTED"),
                ("SENT_AGAIN", "REJECTED"),
                ("SEND_FAILED", "REJECTED"),
                ("FAILED", "REJECTED"),
                ("FAILED_AND_STOPPED", "REJECTED"),
            ],
        ),
    ];

    const COMMITTED: &[(&str, &str)] = &[
        ("NEW", "COMMITTED"),
        ("PENDING", "COMMITTED"),
        ("SENT", "COMMITTED"),
        ("SENT_AGAIN", "COMMITTED"),
        ("SEND_FAILED", "COMMITTED"),
        ("FAILED", "COMMITTED"),
        ("FAILED_AND_STOPPED", "COMMITTED"),
        ("REJECTED", "COMMITTED"),
    ];

    const INCOMING: &[(Event, &[(&str, &str)])] = &[
        (
            Event::Applied,
            &[
                ("PENDING", "COMMITTED"),
                ("FAILED", "COMMITTED"),
                ("FAILED_AND_STOPPED", "COMMITTED"),
            ],
        ),
        (Event::Held, &[("PENDING", "FAILED")]),
        (Event::Stopped, &[("PENDING", "FAILED_AND_STOPPED"), ("FAILED", "FAILED_AND_STOPPED")]),
        (
            Event::Barred,
            &[("PENDING", "REJECTED"), ("FAILED", "REJECTED"), ("FAILED_AND_STOPPED", "REJECTED")],
        ),
        (Event::ConfirmationSent, &[("COMMITTED", "COMMITTED_AND_CONFIRMATION_SENT")]),
        (
            Event::CameAgain,
            &[
                ("COMMITTED", "ALREADY_COMMITTED"),
                ("COMMITTED_AND_CONFIRMATION_SENT", "ALREADY_COMMITTED"),
            ],
        ),
        (Event::Reset, &[("FAILED_AND_STOPPED", "FAILED")]),
    ];

    fn expected(place: Place, event: Event, state: State) -> State {
        let table = if place == Place::Import { INCOMING } else { OUTGOING };
        let moves = table.iter().find(|(of, _)| *of == event).map_or(&[][..], |(_, moves)| moves);
        let to = moves.iter().find(|(from, _)| *from == state.as_str()).map(|(_, to)| *to);
        to.map_or(state, |name| name.parse().unwrap())
    }

    fn legal(place: Place) -> impl Iterator<Item = State> {
        State::ALL.into_iter().filter(move |state| state.is_legal_in(place))
    }

    #[test]
    fn every_event_does_to_every_state_what_the_table_says() {
        for place in PLACES {
            for event in Event::all() {
                for state in State::ALL {
                    let next = state.next(place, event);
                    assert_eq!(next, expected(place, event, state), "{state} {event:?} {place:?}");
                    assert!(!state.is_legal_in(place) || next.is_legal_in(place));
                }
            }
        }
    }

    #[test]
    fn names_and_codes_come_back() {
        for (code, state) in (0..).zip(State::ALL) {
            assert_eq!(state.to_string().parse::<State>().unwrap(), state);
            assert_eq!((state.code(), State::from_code(code)), (code, Some(state)));
        }
        assert_eq!(State::from_code(12), None);
        assert!("committed".parse::<State>().is_err() && "".parse::<State>().is_err());
    }

    #[test]
    fn the_places_have_their_states() {
        assert_eq!(legal(Place::Record).count(), 10);
        assert!(legal(Place::Record).eq(legal(Place::ServerRecord)));
        let import: Vec<&str> = legal(Place::Import).map(State::as_str).collect();
        let names = [
            "PENDING",
            "FAILED",
            "FAILED_AND_STOPPED",
            "COMMITTED",
            "ALREADY_COMMITTED",
            "COMMITTED_AND_CONFIRMATION_SENT",
            "REJECTED",
        ];
        assert_eq!(import, names);
    }

    #[test]
    fn nothing_undoes_committed() {
        for place in PLACES {
            for event in Event::all() {
                let mut state = Committed;
                for again in Event::all() {
                    state = state.next(place, event).next(place, again);
                }
                let done = [Committed, AlreadyCommitted, CommittedAndConfirmationSent];
                assert!(done.contains(&state), "{event:?} in {place:?} made it {state}");
            }
        }
    }

    /// Acknowledgements may overtake each other: the last state is the same in any order.
    #[test]
    fn acknowledgements_may_come_in_any_order_and_again() {
        let place = Place::ServerRecord;
        let answers = [Failed, FailedAndStopped, Rejected, Committed, AlreadyCommitted];
        for a in answers {
            for b in answers {
                let (a, b) = (Event::Acknowledged(a), Event::Acknowledged(b));
                let one = Sent.next(place, a).next(place, b);
                assert_eq!(one, Sent.next(place, b).next(place, a));
                assert_eq!(one, one.next(place, a).next(place, b));
            }
        }
    }

    #[test]
    fn the_broker_alone_never_makes_a_record_committed() {
        let broker = [
            Event::Sending,
            Event::Confirmed,
            Event::ConfirmedAgain,
            Event::Refused,
            Event::Withheld,
        ];
        for event in broker {
            for state in legal(Place::Record).filter(|state| *state != Committed) {
                assert_ne!(state.next(Place::Record, event), Committed);
            }
        }
    }

    #[test]
    fn what_may_follow_is_what_some_event_does() {
        let place = Place::Record;
        assert!(Failed.may_follow(Sent, place));
        assert!(
            Committed.may_follow(Failed, place) && Committed.may_follow(FailedAndStopped, place)
        );
        assert!(!Failed.may_follow(FailedAndStopped, place));
        assert!(Failed.may_follow(FailedAndStopped, Place::Import));
        for state in State::ALL {
            assert!(!state.may_follow(Committed, place));
            assert!(!state.may_follow(state, place));
        }
        for place in PLACES {
            let mut pairs = 0;
            for before in State::ALL {
                for after in State::ALL.into_iter().filter(|after| *after != before) {
                    let moves = |event| expected(place, event, before) == after;
                    assert_eq!(after.may_follow(before, place), Event::all().any(moves));
                    pairs += usize::from(after.may_follow(before, place));
                }
            }
            assert_eq!(pairs, if place == Place::Import { 13 } else { 49 });
        }
    }

    #[test]
    fn every_state_is_open_stopped_or_terminal() {
        for state in State::ALL {
            let kinds = [
                State::OPEN.contains(&state),
                state == FailedAndStopped,
                State::TERMINAL.contains(&state),
            ];
            assert_eq!(kinds.iter().filter(|kind| **kind).count(), 1, "{state}");
        }
        assert!(State::PRUNABLE.iter().all(|state| state.is_terminal()));
        assert!(State::IMPORT_PRUNABLE.iter().all(|state| state.is_legal_in(Place::Import)));
    }

    #[test]
    fn sql_says_the_same_as_the_table() {
        let event = Event::Acknowledged(FailedAndStopped);
        assert_eq!(
            case_sql(Place::Import, Event::CameAgain, "i.state"),
            "CASE i.state WHEN 'COMMITTED' THEN 'ALREADY_COMMITTED' \
             WHEN 'COMMITTED_AND_CONFIRMATION_SENT' THEN 'ALREADY_COMMITTED' ELSE i.state END"
        );
        assert_eq!(case_sql(Place::Import, event, "state"), "state");
        assert_eq!(sql_list(&moved_by(Place::Record, Event::Sending)), "'NEW', 'SEND_FAILED'");
        for migration in [
            include_str!("../migrations/postgres/branchline0001_sync/up.sql"),
            include_str!("../migrations/sqlite/branchline0001_sync/up.sql"),
        ] {
            let list = format!("WHERE state IN ({})", sql_list(&State::OPEN));
            assert_eq!(migration.matches(&list).count(), 2);
        }
    }
}
