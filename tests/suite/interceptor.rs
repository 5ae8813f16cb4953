//! The interceptor over real databases: what rings, what does not, and what is left after a failure.

mod both;
mod pg;
mod sqlite;

use std::time::Duration;

use branchline::interceptor::Wake;
use branchline::store::{Limits, Store};
use diesel::result::Error;
use tokio::time::timeout;

use crate::support::databases::Databases;

diesel::table! {
    patient (id) {
        id -> Integer,
        name -> Text,
        ward -> Nullable<Integer>,
    }
}

diesel::table! {
    /// Not captured.
    note (id) {
        id -> Integer,
    }
}

/// `id` is a row's number, `ward` a reference that is checked at COMMIT.
const SCHEMA: &str = "CREATE TABLE ward (id INTEGER PRIMARY KEY);
    CREATE TABLE patient (id INTEGER PRIMARY KEY, name TEXT NOT NULL,
        ward INTEGER REFERENCES ward (id) DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE note (id INTEGER PRIMARY KEY);";

/// Long enough for a ring that is on its way, when we hope that there is none.
const SOON: Duration = Duration::from_millis(50);
/// No ring and no lock takes that long.
const LATE: Duration = Duration::from_secs(20);

/// Held by a test that listens to the bell of the process: a ring is for one.
static PROCESS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Whether it was rung since the last time.
async fn rang(wake: &Wake) -> bool {
    timeout(SOON, wake.notified()).await.is_ok()
}

/// Makes the sync tables.
async fn migrate(url: &str) {
    Store::connect(url, Limits::default()).await.unwrap().migrate().await.unwrap();
}

/// A failure of the application.
fn failure<T>() -> Result<T, Error> {
    Err(Error::RollbackTransaction)
}
