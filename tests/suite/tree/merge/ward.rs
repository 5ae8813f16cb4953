//! A ward: patients with encounters, integer keys that differ on every server, beds that are unique.

use crate::support::cli::TestServer;
use crate::support::services::TestDatabase;
use crate::support::sql::Sql;
use crate::support::tree::Engine;

pub(super) const PATIENTS: &str = "SELECT uuid, name, bed FROM patient ORDER BY uuid";

pub(super) const ENCOUNTERS: &str = "SELECT e.uuid, p.uuid, p.name FROM encounter e \
     JOIN patient p ON p.id = e.patient_id ORDER BY 1";

/// The ward's empty tables; integer ids begin elsewhere on each server.
pub(super) fn database(nickname: &str, engine: Engine) -> TestDatabase {
    let bytes = match engine {
        Engine::Postgres => "bytea",
        Engine::Sqlite => "BLOB",
    };
    made(nickname, engine, |id| {
        format!(
            "CREATE TABLE patient (id {id}, uuid varchar(38) NOT NULL UNIQUE, name text NOT NULL, \
                 bed varchar(4) UNIQUE); \
             CREATE TABLE encounter (id {id}, uuid varchar(38) NOT NULL UNIQUE, \
                 patient_id integer NOT NULL REFERENCES patient (id), value integer, unit text, \
                 note text); \
             CREATE TABLE scan (id {id}, uuid varchar(38) NOT NULL UNIQUE, \
                 patient_id integer REFERENCES patient (id), data {bytes}); \
             CREATE TABLE node (id {id}, uuid varchar(38) NOT NULL UNIQUE, \
                 owner_id integer NOT NULL REFERENCES node (id)); \
             CREATE TABLE slot (id {id}, uuid varchar(38) NOT NULL UNIQUE, \
                 code varchar(3) NOT NULL UNIQUE CHECK (length(code) = 3), \
                 place integer NOT NULL, ward integer NOT NULL, next_id integer REFERENCES slot (id), \
                 UNIQUE (ward, place));"
        )
    })
}

/// A database with tables made by SQL, given what an integer primary key is.
pub(super) fn made(
    nickname: &str,
    engine: Engine,
    tables: impl Fn(&str) -> String,
) -> TestDatabase {
    let database = engine.database(nickname);
    let id = match engine {
        Engine::Postgres => "serial PRIMARY KEY",
        Engine::Sqlite => "INTEGER PRIMARY KEY AUTOINCREMENT",
    };
    let sql = Sql::to(&database);
    sql.run(&tables(id)).unwrap();
    let start = match nickname {
        "parent" => 1_000,
        "child2" => 2_000,
        _ => 0,
    };
    match engine {
        Engine::Postgres => sql
            .run(&format!(
                "SELECT setval(c.oid::regclass, {}) FROM pg_class c \
                 JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind = 'S' AND n.nspname = 'public'",
                start + 1
            ))
            .unwrap(),
        Engine::Sqlite => sql
            .run(&format!(
                "INSERT INTO sqlite_sequence SELECT name, {start} FROM sqlite_master \
                 WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND sql LIKE '%AUTOINCREMENT%'"
            ))
            .unwrap(),
    }
    sql.close();
    database
}

pub(super) fn admit(server: &TestServer, uuid: &str, name: &str) {
    server.sql(&format!("INSERT INTO patient (uuid, name) VALUES ('{uuid}', '{name}')"));
}

pub(super) fn encounter(server: &TestServer, uuid: &str, patient: &str) {
    server.sql(&format!(
        "INSERT INTO encounter (uuid, patient_id) \
         SELECT '{uuid}', id FROM patient WHERE uuid = '{patient}'"
    ));
}
