//! Host triggers and cascades run again where changes are applied: their effect must not count
//! twice, and nothing of it is sent back.

use super::{MIXED, POSTGRES, SQLITE, assert_equal, on_every_mix, settle, ward};
use crate::support::services::TestDatabase;
use crate::support::sql::Sql;
use crate::support::tree::{Engine, Mix, Tree};

/// A shop: a sale takes from the stock, each sale is noted, and rows say when they were changed.
fn shop(nickname: &str, engine: Engine) -> TestDatabase {
    let database = ward::made(nickname, engine, |id| {
        format!(
            "CREATE TABLE stock (id {id}, uuid varchar(38) NOT NULL UNIQUE, amount integer NOT NULL); \
             CREATE TABLE sale (id {id}, uuid varchar(38) NOT NULL UNIQUE, \
                 stock_id integer NOT NULL REFERENCES stock (id), amount integer NOT NULL); \
             CREATE TABLE note (id {id}, uuid varchar(38) NOT NULL UNIQUE, text text NOT NULL); \
             CREATE TABLE article (id {id}, uuid varchar(38) NOT NULL UNIQUE, name text, \
                 changes integer NOT NULL DEFAULT 0, stamp text);"
        )
    });
    let sql = Sql::to(&database);
    sql.run(match engine {
        Engine::Postgres => {
            "CREATE FUNCTION take() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 UPDATE stock SET amount = amount - NEW.amount WHERE id = NEW.stock_id; \
                 INSERT INTO note (uuid, text) VALUES (gen_random_uuid(), 'sold ' || NEW.uuid); \
                 RETURN NULL; END $$; \
             CREATE TRIGGER take AFTER INSERT ON sale FOR EACH ROW EXECUTE FUNCTION take(); \
             CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                 NEW.changes := OLD.changes + 1; NEW.stamp := clock_timestamp()::text; \
                 RETURN NEW; END $$; \
             CREATE TRIGGER touch BEFORE UPDATE ON article FOR EACH ROW EXECUTE FUNCTION touch();"
        }
        Engine::Sqlite => {
            "CREATE TRIGGER take AFTER INSERT ON sale BEGIN \
                 UPDATE stock SET amount = amount - NEW.amount WHERE id = NEW.stock_id; \
                 INSERT INTO note (uuid, text) VALUES (lower(hex(randomblob(16))), 'sold ' || NEW.uuid); \
             END; \
             CREATE TRIGGER touch AFTER UPDATE ON article BEGIN \
                 UPDATE article SET changes = OLD.changes + 1, stamp = hex(randomblob(8)) \
                 WHERE id = NEW.id; END;"
        }
    })
    .unwrap();
    sql.close();
    database
}

fn what_host_triggers_do_counts_once(mix: Mix) {
    let mut tree = Tree::unconnected(mix, "", shop);
    tree.connect(&["--all"]);
    tree.parent.transaction(&[
        "INSERT INTO stock (uuid, amount) VALUES ('s1', 100)",
        "INSERT INTO article (uuid, name) VALUES ('a1', 'soap')",
    ]);
    settle(&tree);
    let sell = |server: &crate::support::cli::TestServer, uuid: &str, amount: i64| {
        server.sql(&format!(
            "INSERT INTO sale (uuid, stock_id, amount) SELECT '{uuid}', id, {amount} FROM stock"
        ));
    };
    sell(&tree.child, "x1", 7);
    settle(&tree);
    sell(&tree.parent, "x2", 3);
    settle(&tree);
    assert_eq!(assert_equal(&tree, "SELECT amount FROM stock"), [[90]]);
    let notes = assert_equal(&tree, "SELECT uuid, text FROM note ORDER BY text");
    assert_eq!(notes.len(), 2, "{notes:?}");

    tree.child.sql("UPDATE article SET name = 'soap, green'");
    settle(&tree);
    tree.parent.sql("UPDATE article SET name = 'soap, red'");
    settle(&tree);
    let articles = assert_equal(&tree, "SELECT name, changes, stamp FROM article");
    assert_eq!(articles[0][1], 2, "{articles:?}");

    // Nothing was sent back: each server has sealed what its own programs did, and no more.
    for (server, own) in tree.servers().into_iter().zip([3, 2, 0]) {
        let name = server.nickname();
        assert_eq!(server.count("SELECT count(*) FROM @sync_change"), 0, "{name}");
        let sealed = "SELECT count(*) FROM @sync_record WHERE source_server_id IS NULL";
        assert_eq!(server.count(sealed), own, "{name}");
        assert_eq!(server.count("SELECT count(*) FROM @sync_held"), 0, "{name}");
        // The triggers are as the host made them.
        server.sql("INSERT INTO sale (uuid, stock_id, amount) SELECT 'own', id, 1 FROM stock");
        assert_eq!(server.count("SELECT amount FROM stock"), 89, "{name}");
    }
}

fn family(nickname: &str, engine: Engine) -> TestDatabase {
    ward::made(nickname, engine, |id| {
        format!(
            "CREATE TABLE doctor (id {id}, uuid varchar(38) NOT NULL UNIQUE); \
             CREATE TABLE patient (id {id}, uuid varchar(38) NOT NULL UNIQUE, \
                 doctor_id integer REFERENCES doctor (id) ON DELETE SET NULL); \
             CREATE TABLE visit (id {id}, uuid varchar(38) NOT NULL UNIQUE, \
                 patient_id integer NOT NULL REFERENCES patient (id) ON DELETE CASCADE); \
             CREATE TABLE country (code varchar(2) PRIMARY KEY); \
             CREATE TABLE city (id {id}, uuid varchar(38) NOT NULL UNIQUE, \
                 country varchar(2) NOT NULL REFERENCES country (code) ON DELETE CASCADE);"
        )
    })
}

const VISITS: &str = "SELECT p.uuid, d.uuid, v.uuid FROM patient p \
     LEFT JOIN doctor d ON d.id = p.doctor_id LEFT JOIN visit v ON v.patient_id = p.id ORDER BY 1, 3";

fn cascades_count_once_and_take_nothing_that_others_added(mix: Mix) {
    let mut tree = Tree::unconnected(mix, "", family);
    tree.connect(&["--all"]);
    // SQLite's own programs have to ask for foreign keys.
    for server in tree.servers().into_iter().filter(|server| server.is_sqlite()) {
        server.sql("PRAGMA foreign_keys = ON");
    }
    tree.parent.transaction(&[
        "INSERT INTO doctor (uuid) VALUES ('d1')",
        "INSERT INTO patient (uuid, doctor_id) SELECT 'p1', id FROM doctor",
        "INSERT INTO patient (uuid, doctor_id) SELECT 'p2', id FROM doctor",
        "INSERT INTO visit (uuid, patient_id) SELECT 'v1', id FROM patient WHERE uuid = 'p1'",
        "INSERT INTO country (code) VALUES ('UG'), ('KE')",
        "INSERT INTO city (uuid, country) VALUES ('c1', 'UG'), ('c2', 'KE')",
    ]);
    settle(&tree);
    // Both cascade on the child; the second child adds to what goes.
    tree.child.sql("DELETE FROM doctor");
    tree.child.sync(); // a record of its own, on SQLite too
    tree.child.sql("DELETE FROM patient WHERE uuid = 'p1'");
    tree.child.sql("DELETE FROM country WHERE code = 'UG'");
    tree.child.sql("DELETE FROM country WHERE code = 'KE'");
    tree.child2
        .sql("INSERT INTO visit (uuid, patient_id) SELECT 'v2', id FROM patient WHERE uuid = 'p1'");
    tree.child2.sql("INSERT INTO city (uuid, country) VALUES ('c3', 'KE')");
    settle(&tree);
    let rows = assert_equal(&tree, VISITS);
    let rows: Vec<String> =
        rows.iter().map(|row| format!("{} {} {}", row[0], row[1], row[2])).collect();
    assert_eq!(rows, ["\"p1\" null \"v2\"", "\"p2\" null null"]);
    assert!(assert_equal(&tree, "SELECT uuid FROM doctor").is_empty());
    assert_eq!(assert_equal(&tree, "SELECT code FROM country"), [["KE"]]);
    assert_eq!(assert_equal(&tree, "SELECT uuid, country FROM city"), [["c3", "KE"]]);
    // On SQLite, statements that nobody marks share a record.
    let own = if tree.child.is_sqlite() { [1, 2, 1] } else { [1, 4, 2] };
    for (server, own) in tree.servers().into_iter().zip(own) {
        let name = server.nickname();
        let sealed = "SELECT count(*) FROM @sync_record WHERE source_server_id IS NULL";
        assert_eq!(server.count(sealed), own, "{name}");
        assert_eq!(server.count("SELECT count(*) FROM @sync_held"), 0, "{name}");
    }
}

on_every_mix! {
    what_host_triggers_do_counts_once
    cascades_count_once_and_take_nothing_that_others_added
}
