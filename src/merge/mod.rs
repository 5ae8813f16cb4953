//! How concurrent edits become one row, everywhere the same.
//!
//! Pure: no io, no tokio, no clock of its own. A row's state is a join-semilattice and applying
//! is a join, so order, repetition and the way a record took do not matter; the table is a
//! function of the state (`docs/ARCHITECTURE.md` has the whole argument).

mod codec;
pub mod row;
pub mod stamp;

pub use row::{Conflict, Joined, RowState, Won};
pub use stamp::{Clock, Seen, Stamp, Time};
