//! The suites, one for each room.

mod books;
mod capture_sqlite;
mod cli;
mod interceptor;
mod openmrs;
mod transport;
mod tree;
