//! The suites, one for each room.

mod capture_sqlite;
mod transport;
