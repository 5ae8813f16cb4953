//! The databases. All SQL lives here.
//!
//! The two databases differ in how a connection runs a statement, in their catalogs and in their
//! triggers: that is `postgres/` and `sqlite/`. What is done **in** a transaction (sealing,
//! applying, bookkeeping) is the same on both, and is written once, over [`Session`]: an open
//! transaction that runs SQL text with typed binds.

pub mod session;

pub use session::{Cell, Datum, Dialect, Row, Session};
