//! The suites, one for each room.

mod books;
mod capture_sqlite;
mod interceptor;
mod openmrs;
mod transport;
mod tree;
