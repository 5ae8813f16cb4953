mod capture_sqlite;
mod transport;
