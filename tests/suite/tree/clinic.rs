//! A small clinic: integer keys that differ on every server, and a reference between two tables.

use crate::support::cli::TestServer;
use crate::support::services::TestDatabase;
use crate::support::sql::Sql;
use crate::support::tree::Engine;

/// All visits, by what is the same everywhere.
pub(crate) const VISITS: &str = "SELECT p.uuid, p.name, v.uuid, v.note FROM visit v \
     JOIN patient p ON p.id = v.patient_id ORDER BY 1, 3";

/// All patients, by what is the same everywhere.
pub(crate) const PATIENTS: &str = "SELECT uuid, name, born, weight FROM patient ORDER BY uuid";

/// A clinic's empty tables; integer ids begin elsewhere on each server.
pub(crate) fn database(nickname: &str, engine: Engine) -> TestDatabase {
    let database = engine.database(nickname);
    let start = match nickname {
        "parent" => 1_000,
        "child2" => 2_000,
        _ => 0,
    };
    let (id, ids) = match engine {
        Engine::Postgres => (
            "serial PRIMARY KEY",
            format!("SELECT setval('patient_id_seq', {0}), setval('visit_id_seq', {0})", start + 1),
        ),
        Engine::Sqlite => (
            "INTEGER PRIMARY KEY AUTOINCREMENT",
            format!("INSERT INTO sqlite_sequence VALUES ('patient', {start}), ('visit', {start})"),
        ),
    };
    let sql = Sql::to(&database);
    sql.run(&format!(
        "CREATE TABLE patient (id {id}, uuid varchar(38) NOT NULL UNIQUE, name text NOT NULL, \
             born date, weight numeric(6, 2)); \
         CREATE TABLE visit (id {id}, uuid varchar(38) NOT NULL UNIQUE, \
             patient_id integer NOT NULL REFERENCES patient (id), note text); \
         {ids}"
    ))
    .unwrap();
    sql.close();
    database
}

pub(crate) fn admit(server: &TestServer, uuid: &str, name: &str) {
    server.sql(&format!(
        "INSERT INTO patient (uuid, name, born, weight) VALUES ('{uuid}', '{name}', '1980-02-03', 61.5)"
    ));
}

pub(crate) fn visit(server: &TestServer, uuid: &str, patient: &str, note: &str) {
    server.sql(&format!(
        "INSERT INTO visit (uuid, patient_id, note) \
         SELECT '{uuid}', id, '{note}' FROM patient WHERE uuid = '{patient}'"
    ));
}
