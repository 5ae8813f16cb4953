//! The suites.

mod books;
mod capture_sqlite;
mod transport;
