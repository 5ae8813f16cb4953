//! How concurrent edits become one row, everywhere the same.
//!
//! Pure: no io, no tokio, no clock of its own. A row's state is a join-semilattice and applying
//! is a join, so order, repetition and the way a record took do not matter; the table is a
//! function of the state (`docs/ARCHITECTURE.md` has the whole argument).
//!
//! Sealing calls [`RowState::touch_local`] and puts what it returns into the item; applying calls
//! [`RowState::join_item`] and writes the columns that won. Both read and write `sync_row` by
//! [`RowState::decode`] and [`RowState::encode`].

pub mod config;
pub mod join;
mod pack;
pub mod row;
pub mod stamp;
mod stored;
pub mod tree;

#[cfg(test)]
mod laws;
#[cfg(test)]
mod model;

pub use config::{ClassMerge, MergeConfig, Policy};
pub use join::{Conflict, Fate, Joined, Won, newest};
pub use pack::{value_bytes, value_from_bytes};
pub use row::{Presence, RowState};
pub use stamp::{Clock, Seen, Stamp, Time};
pub use tree::TreeMerge;
