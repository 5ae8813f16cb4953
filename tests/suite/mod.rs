//! The suites, one for each room.

mod books;
mod capture_postgres;
mod capture_sqlite;
mod cli;
mod faults;
mod interceptor;
mod link;
mod openmrs;
mod shops;
mod transport;
mod tree;
