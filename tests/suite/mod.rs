mod capture_sqlite;
