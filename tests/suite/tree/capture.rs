//! What was captured arrives, whatever becomes of the table, the key or the row meanwhile.

use super::clinic;
use crate::support::services::TestDatabase;
use crate::support::sql::Sql;
use crate::support::tree::{Engine, MIXED_AMQP, Mix, POSTGRES_AMQP, SQLITE_SPOOL, Tree};

const MIXES: [Mix; 3] = [POSTGRES_AMQP, SQLITE_SPOOL, MIXED_AMQP];

#[test]
fn what_was_captured_before_untrack_still_travels() {
    for mix in MIXES {
        let mut tree = Tree::unconnected(mix, "", clinic::database);
        tree.connect(&["--all"]);
        clinic::admit(&tree.child, "p1", "Ada");
        clinic::visit(&tree.child, "v1", "p1", "captured");
        tree.child.done(&["untrack", "visit"]);
        assert_eq!(tree.child.count("SELECT count(*) FROM @sync_change"), 0, "{mix:?}");
        clinic::visit(&tree.child, "v2", "p1", "not captured");
        tree.exchange();
        for server in [&tree.parent, &tree.child2] {
            assert_eq!(server.texts("SELECT note FROM visit"), ["captured"], "{mix:?}");
        }
    }
}

#[test]
fn a_reference_that_stayed_goes_along_with_its_group() {
    for mix in MIXES {
        let settings = "class = [{ name = \"visit\", groups = [[\"patient_id\", \"note\"]] }]";
        let mut tree = Tree::unconnected(mix, settings, clinic::database);
        tree.connect(&["--all"]);
        clinic::admit(&tree.child, "p1", "Ada");
        clinic::visit(&tree.child, "v1", "p1", "first");
        tree.exchange();
        tree.child.sql("UPDATE visit SET note = 'second'");
        tree.exchange();
        for server in tree.servers() {
            let sql = "SELECT p.name, v.note FROM visit v JOIN patient p ON p.id = v.patient_id";
            assert_eq!(server.query(sql), tree.child.query(sql), "{mix:?}");
            assert_eq!(server.status_json()["held"], 0, "{mix:?}");
        }
    }
}

/// People whose keys are part of other rows' keys, once and twice removed.
fn hospital(nickname: &str, engine: Engine) -> TestDatabase {
    let database = engine.database(nickname);
    let start = match nickname {
        "parent" => 1_000,
        "child2" => 2_000,
        _ => 100,
    };
    let numbered = ["person", "users", "visit"];
    let (id, ids) = match engine {
        Engine::Postgres => (
            "serial PRIMARY KEY",
            numbered.map(|table| format!("SELECT setval('{table}_id_seq', {})", start + 1)),
        ),
        Engine::Sqlite => (
            "INTEGER PRIMARY KEY AUTOINCREMENT",
            numbered
                .map(|table| format!("INSERT INTO sqlite_sequence VALUES ('{table}', {start})")),
        ),
    };
    let sql = Sql::to(&database);
    sql.run(&format!(
        "CREATE TABLE person (id {id}, uuid varchar(38) NOT NULL UNIQUE, name text); \
         CREATE TABLE users (id {id}, uuid varchar(38) NOT NULL UNIQUE, \
             person_id integer REFERENCES person (id)); \
         CREATE TABLE role (role varchar(20) PRIMARY KEY, note text); \
         CREATE TABLE user_role (user_id integer REFERENCES users (id), \
             role varchar(20) REFERENCES role (role), note text, PRIMARY KEY (user_id, role)); \
         CREATE TABLE patient (patient_id INTEGER PRIMARY KEY REFERENCES person (id), note text); \
         CREATE TABLE stay (patient_id integer REFERENCES patient (patient_id), no integer, \
             note text, PRIMARY KEY (patient_id, no)); \
         CREATE TABLE carer (user_id integer REFERENCES users (id), \
             patient_id integer REFERENCES patient (patient_id), note text, \
             PRIMARY KEY (user_id, patient_id)); \
         CREATE TABLE visit (id {id}, uuid varchar(38) NOT NULL UNIQUE, \
             patient_id integer NOT NULL REFERENCES patient (patient_id), note text); \
         {}",
        ids.join("; ")
    ))
    .unwrap();
    sql.close();
    database
}

/// Every row of the hospital by what is the same everywhere.
const HOSPITAL: [&str; 7] = [
    "SELECT uuid, name FROM person ORDER BY 1",
    "SELECT u.uuid, p.uuid FROM users u LEFT JOIN person p ON p.id = u.person_id ORDER BY 1",
    "SELECT u.uuid, r.role, r.note FROM user_role r JOIN users u ON u.id = r.user_id ORDER BY 1, 2",
    "SELECT p.uuid, t.note FROM patient t JOIN person p ON p.id = t.patient_id ORDER BY 1",
    "SELECT p.uuid, s.no, s.note FROM stay s JOIN person p ON p.id = s.patient_id ORDER BY 1, 2",
    "SELECT u.uuid, p.uuid, c.note FROM carer c JOIN users u ON u.id = c.user_id \
     JOIN person p ON p.id = c.patient_id ORDER BY 1, 2",
    "SELECT v.uuid, p.uuid, v.note FROM visit v JOIN person p ON p.id = v.patient_id ORDER BY 1",
];

fn all_are_equal(tree: &Tree, what: &str) {
    for server in [&tree.child, &tree.parent, &tree.child, &tree.child2] {
        server.sync();
    }
    for sql in HOSPITAL {
        let rows = tree.child.query(sql);
        for server in [&tree.parent, &tree.child2] {
            assert_eq!(
                server.query(sql),
                rows,
                "{what}: {} {:?}: {sql}",
                server.nickname(),
                tree.mix
            );
        }
    }
    for table in ["user_role", "patient", "stay", "carer", "visit"] {
        let sql = format!("SELECT count(*) FROM {table}");
        assert_eq!(tree.parent.count(&sql), tree.child.count(&sql), "{what}: {table}");
    }
    for server in tree.servers() {
        assert_eq!(server.status_json()["held"], 0, "{what}: {}", server.nickname());
    }
}

fn a_changed_key_takes_along(mix: Mix) {
    let mut tree = Tree::unconnected(mix, "", hospital);
    tree.connect(&["--all"]);
    let child = &tree.child;
    child.transaction(&[
        "INSERT INTO person VALUES (1, 'p1', 'Ada'), (2, 'p2', 'Grace'), (3, 'p3', 'Mary')",
        "INSERT INTO users VALUES (1, 'u1', 1), (2, 'u2', 2)",
        "INSERT INTO role VALUES ('nurse', ''), ('doctor', '')",
        "INSERT INTO user_role VALUES (1, 'nurse', 'a'), (1, 'doctor', 'b'), (2, 'nurse', 'c')",
        "INSERT INTO patient VALUES (2, 'x'), (3, 'y')",
        "INSERT INTO stay VALUES (2, 1, 'first'), (2, 2, 'second'), (3, 1, 'third')",
        "INSERT INTO carer VALUES (1, 2, 'i'), (1, 3, 'j'), (2, 3, 'k')",
        "INSERT INTO visit VALUES (1, 'v1', 2, 'one'), (2, 'v2', 2, 'two'), (3, 'v3', 3, 'three')",
    ]);
    all_are_equal(&tree, "the start");

    child.sql("UPDATE person SET uuid = 'q2' WHERE id = 2");
    all_are_equal(&tree, "a key in keys in keys");
    child.sql("UPDATE users SET uuid = 'w' || id");
    all_are_equal(&tree, "keys of many rows at once");
    child.transaction(&[
        "INSERT INTO visit VALUES (4, 'v4', 2, 'before')",
        "UPDATE stay SET note = 'before' WHERE no = 1",
        "INSERT INTO stay VALUES (2, 3, 'gone'), (2, 4, 'new')",
        "UPDATE person SET uuid = 'r2', name = 'G.' WHERE id = 2",
        "UPDATE patient SET note = 'after' WHERE patient_id = 2",
        "INSERT INTO visit VALUES (5, 'v5', 2, 'after')",
        "DELETE FROM stay WHERE no = 3",
        "DELETE FROM stay WHERE patient_id = 2 AND no = 2",
    ]);
    all_are_equal(&tree, "with changes before and after");
    child.transaction(&[
        "UPDATE person SET uuid = 'swap' WHERE id = 2",
        "UPDATE person SET uuid = 'r2' WHERE id = 3",
        "UPDATE person SET uuid = 'p3' WHERE id = 2",
    ]);
    all_are_equal(&tree, "two keys swapped");
    child.transaction(&[
        "UPDATE person SET uuid = 'z' WHERE id = 3",
        "UPDATE stay SET note = 'while away' WHERE patient_id = 3",
        "UPDATE person SET uuid = 'r2' WHERE id = 3",
    ]);
    all_are_equal(&tree, "a key that came back");

    // Nothing is sealed in between: the tables have moved on when the first of these is.
    child.sql("UPDATE person SET uuid = 's2' WHERE id = 2");
    child.sql("INSERT INTO stay VALUES (2, 9, 'later')");
    child.sql("UPDATE users SET uuid = 'x1' WHERE id = 1");
    child.sql("DELETE FROM carer WHERE user_id = 1 AND patient_id = 2");
    child.sql("DELETE FROM stay WHERE patient_id = 2 AND no = 1");
    child.sql("UPDATE user_role SET user_id = 2 WHERE user_id = 1 AND role = 'doctor'");
    all_are_equal(&tree, "a backlog");
    child.sql("UPDATE person SET uuid = 'a3' WHERE id = 3");
    child.transaction(&[
        "DELETE FROM stay WHERE patient_id = 3",
        "DELETE FROM carer WHERE patient_id = 3",
        "DELETE FROM visit WHERE patient_id = 3",
        "DELETE FROM patient WHERE patient_id = 3",
        "DELETE FROM person WHERE id = 3",
    ]);
    all_are_equal(&tree, "a row that went right after");
    assert_eq!(child.count("SELECT count(*) FROM patient"), 1);
    // Elsewhere, where the local ids are others.
    tree.parent.sql("UPDATE person SET uuid = 'from above' WHERE name = 'G.'");
    all_are_equal(&tree, "from another server");
}

#[test]
fn a_changed_key_takes_along_the_rows_that_have_it_in_theirs_on_postgresql() {
    a_changed_key_takes_along(POSTGRES_AMQP);
}

#[test]
fn a_changed_key_takes_along_the_rows_that_have_it_in_theirs_on_sqlite() {
    a_changed_key_takes_along(SQLITE_SPOOL);
}
