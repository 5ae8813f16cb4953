//! The record: all changes of one committed transaction, as it travels and as it is stored.
//!
//! Pure. What an origin seals, it encodes once; the bytes of an item never change on their way
//! through the tree. `docs/PROTOCOL.md` describes the format field by field.

pub mod batch;
mod decode;
pub mod header;
mod item;
mod load;
pub mod messages;
pub mod payload;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use uuid::Uuid;

use crate::id::Actor;
use crate::merge::{Seen, Stamp, Time};

/// A value of a column as it travels: flat, so that nothing nests and nothing recurses.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// A boolean.
    Bool(bool),
    /// Any integer.
    Int(i64),
    /// Any float, NaN and the infinities included.
    Float(f64),
    /// Text, and everything that travels as canonical text (decimals, times, JSON, arrays …).
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A row of another (or the same) class, by its key.
    Ref(RowId),
}

/// What identifies a row on every server.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RowId {
    /// The class: a tracked table by its name.
    pub class: Arc<str>,
    /// Canonical text of the key (see [`crate::catalog`]).
    pub key: Arc<str>,
}

/// What an item does to its row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// The row is new: `values` are all its columns.
    Insert,
    /// `values` are the columns that changed.
    Update,
    /// The row is gone; no values.
    Delete,
    /// The whole state of a row, with a stamp of its own for each column: a load, a repair.
    State,
}

/// One row's change in a record: the row's final image, however often the transaction touched it.
#[derive(Clone, PartialEq, Debug)]
pub struct Item {
    /// The row.
    pub row: RowId,
    /// What happened to it.
    pub op: Op,
    /// Column name and value.
    pub values: Vec<(Arc<str>, Value)>,
    /// What the origin had seen of the row **before** this change: the record's own stamp is not
    /// in here (for [`Op::State`] this is the whole `seen`).
    pub seen: Seen,
    /// What a delete knew of: empty for a row never deleted. A delete's own item leaves its own
    /// stamp out here as well; the receiver adds it.
    pub erased: Seen,
    /// For [`Op::State`] only: the stamp of each column's winning write, columns without one
    /// having `base`. Empty otherwise: all columns bear the record's stamp.
    pub stamps: Vec<(Arc<str>, Stamp)>,
    /// For [`Op::State`] only: the stamp of the columns that `stamps` does not name.
    pub base: Option<Stamp>,
}

/// What one origin committed in one transaction, or one part of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Body {
    /// Names the record anywhere in the tree.
    pub original_uuid: Uuid,
    /// The server that committed it, in its incarnation at that time.
    pub origin: Actor,
    /// The origin's own running number of the record, from 1, dense within an incarnation.
    pub number: u64,
    /// The stamp's time; with `origin` it is the stamp of every item.
    pub time: Time,
    /// Wall clock of the transaction's last change, milliseconds since 1970.
    pub committed_at: i64,
    /// Which part this is, from 0, and how many the transaction has.
    pub part: (u32, u32),
    /// The items, in the order in which their rows were last touched.
    pub items: Vec<Item>,
}

impl Body {
    /// The stamp that all items of the record bear.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        Stamp { time: self.time, actor: self.origin }
    }
}

/// Bounds of what is decoded. What is larger travels in parts.
pub mod limits {
    /// Bytes of a message as it lies with the broker.
    pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
    /// Bytes of a message once decompressed.
    pub const DECODED_BYTES_MAX: usize = 8 << 20;
    /// Records in a message.
    pub const RECORDS_MAX: usize = 4_096;
    /// Bytes of a record (or a part of one): what fits a message together with its signature.
    pub const PAYLOAD_BYTES_MAX: usize = DECODED_BYTES_MAX - (64 << 10);
    /// Bytes of a record's head: what names it, its actors, classes and columns.
    pub const HEAD_BYTES_MAX: usize = 2 << 20;
    /// Items in a record (or a part of one).
    pub const ITEMS_MAX: usize = 10_000;
    /// Bytes of an item; one that is larger than a message travels in pieces.
    pub const ITEM_BYTES_MAX: usize = 64 << 20;
    /// Values in a record (or a part of one): a value of a byte takes 60 in memory.
    pub const VALUES_MAX: usize = 262_144;
    /// Stamps in a record (or a part of one), those of `seen` and `erased` included.
    pub const STAMPS_MAX: usize = 262_144;
    /// Columns of a class (PostgreSQL allows 1,600, SQLite 2,000 by default).
    pub const COLUMNS_MAX: usize = 2_000;
    /// Classes in a record.
    pub const CLASSES_MAX: usize = 4_096;
    /// Actors in a record: origins that touched its rows.
    pub const ACTORS_MAX: usize = 65_536;
    /// Columns of all classes in a record.
    pub const NAMES_MAX: usize = 65_536;
    /// Bytes of the name of a class, a column or a server. A key is bounded by its item.
    pub const NAME_BYTES_MAX: usize = 1_024;
    /// Nesting of MessagePack arrays.
    pub const DEPTH_MAX: usize = 16;
}
