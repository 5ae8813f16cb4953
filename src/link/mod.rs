//! What two neighbours know of each other's messages: running numbers, epochs, gaps,
//! acknowledgements, hellos; and what follows from it.
//!
//! Pure: events in, decisions out. A caller keeps the states ([`Inbound`], [`Outbound`], [`Peer`]) in its
//! database, in the transaction of what they decide, and does the sending.
//!
//! What the numbers promise: an [`Inbound`] never says that everything up to a number has come in
//! unless it has, or the sender said that it never will; a number that did not come is asked for
//! until one of the two holds. What they do not promise: that a message is new. A record is known by
//! its uuid; numbers only show what is missing, so losing or doubling one costs a message, no more.

mod inbound;
mod outbound;
mod peer;
pub mod ranges;

pub use inbound::{Inbound, Seen};
pub use outbound::{Mark, Outbound, Reaction, Word};
pub use peer::{Heard, Peer, Standing, Verdict};
pub use ranges::Range;

/// How long a number may be missing before it is asked for: the broker may hand a message over
/// again behind later ones, and two tasks of a sender may overtake each other.
pub const GAP_GRACE_MS: i64 = 2_000;

/// How long the answer to a question may take before it is asked again; doubles each time.
pub const ASK_AGAIN_MS: i64 = 4_000;

/// The longest pause between two questions for one gap.
pub const ASK_AGAIN_MAX_MS: i64 = 60_000;

/// How long an acknowledgement may take after the receiver has said that the message came in.
pub const ANSWER_GRACE_MS: i64 = 3_000;

/// Gaps that are told apart; more are taken as one, and some of it comes twice.
pub const GAPS_MAX: usize = 128;
