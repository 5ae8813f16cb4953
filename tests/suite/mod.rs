//! The suites, one for each room.

mod books;
mod capture_postgres;
mod capture_sqlite;
mod cli;
mod interceptor;
mod openmrs;
mod shops;
mod transport;
mod tree;
