//! The states of records, where each is legal, and which may follow which.

use std::fmt;
use std::str::FromStr;

/// What has become of a record, on the side that sends it or on the side that took it in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    /// Made, and not sent yet.
    New,
    /// Taken in, not applied yet: parts are missing.
    Pending,
    /// The broker confirmed it.
    Sent,
    /// The broker confirmed it once more, after an acknowledgement did not come.
    SentAgain,
    /// The broker refused it or was out of reach.
    SendFailed,
    /// The receiver holds it.
    Failed,
    /// The receiver holds it and tries it no more by itself.
    FailedAndStopped,
    /// In the receiver's tables.
    Committed,
    /// It came again.
    AlreadyCommitted,
    /// In the tables here, and the broker has our acknowledgement.
    CommittedAndConfirmationSent,
    /// The rules keep all of it back.
    NotSupposedToSync,
    /// The receiver's rules refuse all of it.
    Rejected,
}

/// Where a state stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// `sync_record.state` (for the parent) and `sync_server_record.state` (for a child).
    Outgoing,
    /// `sync_import.state`.
    Import,
}

impl State {
    /// All states, in the order in which they are shown.
    pub const ALL: [Self; 12] = [
        Self::New,
        Self::Pending,
        Self::Sent,
        Self::SentAgain,
        Self::SendFailed,
        Self::Failed,
        Self::FailedAndStopped,
        Self::Committed,
        Self::AlreadyCommitted,
        Self::CommittedAndConfirmationSent,
        Self::NotSupposedToSync,
        Self::Rejected,
    ];

    /// The name that stands in the tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::Pending => "PENDING",
            Self::Sent => "SENT",
            Self::SentAgain => "SENT_AGAIN",
            Self::SendFailed => "SEND_FAILED",
            Self::Failed => "FAILED",
            Self::FailedAndStopped => "FAILED_AND_STOPPED",
            Self::Committed => "COMMITTED",
            Self::AlreadyCommitted => "ALREADY_COMMITTED",
            Self::CommittedAndConfirmationSent => "COMMITTED_AND_CONFIRMATION_SENT",
            Self::NotSupposedToSync => "NOT_SUPPOSED_TO_SYNC",
            Self::Rejected => "REJECTED",
        }
    }

    /// Whether the state may stand in `place`.
    #[must_use]
    pub fn is_legal(self, place: Place) -> bool {
        use State as S;
        match place {
            Place::Outgoing => {
                !matches!(self, S::Pending | S::AlreadyCommitted | S::CommittedAndConfirmationSent)
            }
            Place::Import => matches!(
                self,
                S::Pending
                    | S::Committed
                    | S::AlreadyCommitted
                    | S::CommittedAndConfirmationSent
                    | S::Failed
                    | S::FailedAndStopped
                    | S::Rejected
            ),
        }
    }

    /// The one table: whether `self` may follow `from` in `place`.
    ///
    /// A late or repeated acknowledgement cannot undo COMMITTED, and COMMITTED may follow anything
    /// that the receiver said before.
    #[must_use]
    pub fn may_follow(self, from: Self, place: Place) -> bool {
        use State as S;
        if !self.is_legal(place) || !from.is_legal(place) {
            return false;
        }
        let waiting = matches!(from, S::New | S::SendFailed | S::Sent | S::SentAgain);
        let undecided = waiting || matches!(from, S::Failed | S::FailedAndStopped);
        match place {
            Place::Outgoing => match self {
                // An operator's reset, or another parent.
                S::New => undecided || from == S::Rejected,
                S::Sent => matches!(from, S::New | S::SendFailed | S::Sent),
                S::SentAgain => matches!(from, S::Sent | S::SentAgain | S::SendFailed | S::New),
                S::SendFailed => matches!(from, S::New | S::SendFailed),
                S::Failed | S::FailedAndStopped | S::Rejected => undecided,
                S::Committed => undecided || from == S::Rejected,
                _ => false,
            },
            Place::Import => match self {
                S::Committed => {
                    matches!(from, S::Pending | S::Failed | S::FailedAndStopped)
                }
                S::CommittedAndConfirmationSent => from == S::Committed,
                S::AlreadyCommitted => matches!(
                    from,
                    S::Committed | S::CommittedAndConfirmationSent | S::AlreadyCommitted
                ),
                S::Failed | S::FailedAndStopped => {
                    matches!(from, S::Pending | S::Failed | S::FailedAndStopped)
                }
                S::Rejected => from == S::Pending,
                _ => false,
            },
        }
    }

    /// The states that `self` may follow, as an SQL list: `'NEW', 'SENT'`.
    #[must_use]
    pub fn predecessors(self, place: Place) -> String {
        let list = Self::ALL.iter().filter(|from| self.may_follow(**from, place));
        list.map(|from| format!("'{}'", from.as_str())).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it names no state of a record")]
pub struct UnknownState;

impl FromStr for State {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(UnknownState)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_comes_back_from_its_name() {
        for state in State::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        assert_eq!("DONE".parse::<State>(), Err(UnknownState));
    }

    #[test]
    fn nothing_undoes_committed_at_the_sender() {
        for state in State::ALL {
            assert!(!state.may_follow(State::Committed, Place::Outgoing), "{state}");
        }
    }

    #[test]
    fn committed_may_follow_whatever_the_receiver_said_before() {
        for from in ["FAILED", "FAILED_AND_STOPPED", "REJECTED", "SENT", "SENT_AGAIN", "NEW"] {
            let from = from.parse().unwrap();
            assert!(State::Committed.may_follow(from, Place::Outgoing), "{from}");
        }
        assert!(!State::Committed.may_follow(State::NotSupposedToSync, Place::Outgoing));
    }

    #[test]
    fn an_import_is_confirmed_only_after_it_is_committed() {
        let before = State::CommittedAndConfirmationSent.predecessors(Place::Import);
        assert_eq!(before, "'COMMITTED'");
        assert_eq!(State::SendFailed.predecessors(Place::Outgoing), "'NEW', 'SEND_FAILED'");
    }

    #[test]
    fn a_state_follows_only_where_both_are_legal() {
        for place in [Place::Outgoing, Place::Import] {
            for state in State::ALL {
                for from in State::ALL {
                    if state.may_follow(from, place) {
                        assert!(state.is_legal(place) && from.is_legal(place));
                    }
                }
            }
        }
    }
}
