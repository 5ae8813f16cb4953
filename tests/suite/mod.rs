mod capture_sqlite;
mod openmrs;
mod transport;
mod tree;
