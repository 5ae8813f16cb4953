//! What a person gets wrong, and the exit statuses that say so.

use super::clinic;
use crate::support::cli::TestServer;
use crate::support::services;
use crate::support::tree::{Engine, MIXED_AMQP, POSTGRES_AMQP, SQLITE_SPOOL, Tree};

const USAGE: i32 = 2;
const HELD: i32 = 3;
const OUT_OF_REACH: i32 = 4;

fn lone_server() -> TestServer {
    TestServer::new("lone", services::new_sqlite("lone"), "spool:spool", "")
}

#[test]
fn usage_and_configuration_errors_exit_with_2() {
    let server = lone_server();
    server.run(&["nonsense"]).fails_with(USAGE, &["nonsense"]);
    server.run(&[]).fails_with(USAGE, &["usage"]);
    server.run(&["invite", "x", "--expires", "soon"]).fails_with(USAGE, &["soon"]);
    server.run(&["--config", "elsewhere.toml", "status"]).fails_with(USAGE, &["elsewhere.toml"]);
    server.configure("spool:spool", "windw = 5");
    server.run(&["status"]).fails_with(USAGE, &["windw", "branchline.toml"]);
    server.configure("http://broker", "");
    server.run(&["status"]).fails_with(USAGE, &["broker_url", "amqp://"]);
    std::fs::write(server.dir().join("branchline.toml"), "").unwrap();
    server.run(&["status"]).fails_with(USAGE, &["database_url"]);
    assert_eq!(server.run(&["--help"]).code(), 0);
    assert_eq!(server.run(&["--version"]).code(), 0);
}

#[test]
fn a_database_out_of_reach_exits_with_4_and_is_named_without_its_password() {
    let server = lone_server();
    let port = crate::support::free_port();
    let url = format!("postgres://somebody:hushhush@127.0.0.1:{port}/clinic");
    for command in [&["init", "--nickname", "x"][..], &["status"], &["sync"]] {
        let arguments = [command, &["--database-url", &url]].concat();
        let said = server.run(&arguments).fails_with(OUT_OF_REACH, &[&port.to_string()]);
        assert!(!said.contains("hushhush"), "{said}");
    }
}

#[test]
fn a_broker_out_of_reach_exits_with_4_and_loses_nothing() {
    let mut tree = Tree::unconnected(POSTGRES_AMQP, "", clinic::database);
    tree.connect(&["--all"]);
    clinic::admit(&tree.parent, "p1", "Ada");
    let good = std::fs::read_to_string(tree.parent.dir().join("branchline.toml")).unwrap();
    let port = crate::support::free_port();
    tree.parent.configure(&format!("amqp://guest:hushhush@127.0.0.1:{port}/%2f"), "");
    let said = tree.parent.run(&["sync"]).fails_with(OUT_OF_REACH, &[&port.to_string()]);
    assert!(!said.contains("hushhush"), "{said}");
    std::fs::write(tree.parent.dir().join("branchline.toml"), good).unwrap();
    tree.exchange();
    assert_eq!(tree.child.texts("SELECT name FROM patient"), ["Ada"]);
}

#[test]
fn a_token_that_is_mangled_expired_or_for_oneself_is_refused_at_once() {
    let mut tree = Tree::unconnected(SQLITE_SPOOL, "", clinic::database);
    tree.prepare(&["--all"]);
    tree.child.run(&["join", "nonsense"]).fails_with(USAGE, &["token"]);
    let token = tree.parent.invite("child");
    let cut = &token[..token.len() - 5];
    tree.child.run(&["join", cut]).fails_with(USAGE, &["token"]);
    tree.parent.run(&["join", &token]).fails_with(USAGE, &["own"]);

    let expired = tree.parent.done(&["invite", "late", "--no-load", "--expires", "1ms"]);
    tree.child.run(&["join", expired.trim()]).fails_with(USAGE, &["expired", "parent"]);
    assert!(tree.child.status_json()["parent"].is_null());

    // The good one still works, and a second parent is refused.
    tree.child.join(&token);
    assert_eq!(tree.child.status_json()["parent"]["state"], "joining");
    tree.parent.sync();
    tree.child.sync();
    assert_eq!(tree.child.status_json()["parent"]["state"], "joined");
    tree.child.run(&["join", &token]).fails_with(USAGE, &["already"]);
    let other = tree.child2.invite("child");
    tree.child.run(&["join", &other]).fails_with(USAGE, &["tree"]);
}

#[test]
fn a_used_token_makes_no_second_child() {
    for mix in [POSTGRES_AMQP, SQLITE_SPOOL, MIXED_AMQP] {
        let mut tree = Tree::unconnected(mix, "", clinic::database);
        tree.prepare(&["--all"]);
        let token = tree.parent.invite("child");
        tree.child.join(&token);
        tree.parent.sync();
        tree.child.sync();
        tree.child2.join(&token);
        tree.parent.sync();
        let ended = tree.child2.run(&["sync", "--idle", "300ms"]);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        let status = tree.child2.status_json();
        assert_eq!(status["parent"]["state"], "refused", "{status}");
        assert!(status["parent"]["error_message"].to_string().contains("used"), "{status}");
        assert_eq!(tree.parent.status_json()["children"].as_array().unwrap().len(), 1);

        // Asking with a new one is all that is needed.
        tree.child2.join(&tree.parent.invite("child2"));
        tree.parent.sync();
        tree.child2.sync();
        assert_eq!(tree.child2.status_json()["parent"]["state"], "joined", "{mix:?}");
    }
}

#[test]
fn what_cannot_go_in_is_held_told_and_goes_in_once_it_can() {
    for mix in [POSTGRES_AMQP, SQLITE_SPOOL, MIXED_AMQP] {
        let mut tree = Tree::unconnected(mix, "retry_after = \"100ms\"", clinic::database);
        let extra = "CREATE TABLE extra (code varchar(9) PRIMARY KEY, label text)";
        tree.child.sql(extra);
        tree.connect(&["--all"]);
        tree.child.sql("INSERT INTO extra VALUES ('a', 'unknown elsewhere')");
        tree.child.sync();
        tree.parent.run(&["sync", "--idle", "300ms"]).fails_with(HELD, &["held"]);
        assert_eq!(tree.parent.status_json()["held"], 1);
        // Nothing else waits.
        clinic::admit(&tree.child, "p1", "Ada");
        tree.child.sync();
        tree.parent.run(&["sync", "--idle", "300ms"]).fails_with(HELD, &[]);
        assert_eq!(tree.parent.texts("SELECT name FROM patient"), ["Ada"]);
        tree.child.sync();
        let states = tree.child.texts("SELECT state FROM @sync_record ORDER BY id");
        assert_eq!(states, ["FAILED", "COMMITTED"], "{mix:?}");
        let error =
            tree.child.texts("SELECT error_message FROM @sync_record ORDER BY id").remove(0);
        assert!(error.contains("extra"), "{error}");

        for server in [&tree.parent, &tree.child2] {
            server.sql(extra);
            server.track(&["extra"]);
        }
        tree.exchange();
        for server in tree.servers() {
            assert_eq!(server.texts("SELECT label FROM extra"), ["unknown elsewhere"], "{mix:?}");
            assert_eq!(server.status_json()["held"], 0, "{mix:?}");
        }
        let states = tree.child.texts("SELECT DISTINCT state FROM @sync_record");
        assert_eq!(states, ["COMMITTED"], "{mix:?}");
    }
}

#[test]
fn a_row_without_a_key_is_held_and_travels_once_it_has_one() {
    const BADGES: &str = "SELECT code, label FROM badge WHERE code IS NOT NULL ORDER BY code";
    for mix in [POSTGRES_AMQP, SQLITE_SPOOL] {
        let mut tree = Tree::unconnected(mix, "", clinic::database);
        let id = match mix.parent {
            Engine::Postgres => "serial PRIMARY KEY",
            Engine::Sqlite => "INTEGER PRIMARY KEY",
        };
        for server in tree.servers() {
            server
                .sql(&format!("CREATE TABLE badge (id {id}, code varchar(9) UNIQUE, label text)"));
        }
        tree.connect(&["--all", "--key", "badge=code"]);
        let child = &tree.child;
        child.transaction(&[
            "INSERT INTO badge (id, code, label) VALUES (101, NULL, 'first')",
            "INSERT INTO badge (id, code, label) VALUES (102, 'b', 'second')",
            "INSERT INTO badge (id, code, label) VALUES (103, NULL, 'third')",
            "UPDATE badge SET label = 'the first' WHERE id = 101",
            "INSERT INTO badge (id, code, label) VALUES (104, NULL, 'never')",
            "DELETE FROM badge WHERE id = 104",
        ]);
        clinic::admit(child, "p1", "Ada");
        child.run(&["sync", "--idle", "300ms"]).fails_with(HELD, &["held"]);
        child.run(&["check"]).fails_with(HELD, &["`code` is NULL"]);
        assert_eq!(child.status_json()["held"], 2, "{mix:?}");
        let kinds = child.texts("SELECT kind FROM @sync_held ORDER BY id");
        assert_eq!(kinds, ["NO_KEY", "NO_KEY"], "{mix:?}");
        assert_eq!(child.count("SELECT count(*) FROM @sync_change"), 0);
        // A row elsewhere whose key looks like a local id of a row that is held.
        tree.parent.sql("INSERT INTO badge (id, code, label) VALUES (70, '101', 'of the parent')");
        for _ in 0..2 {
            tree.parent.sync();
            child.run(&["sync", "--idle", "300ms"]).fails_with(HELD, &[]);
        }
        tree.child2.sync();
        assert_eq!(tree.child2.query(BADGES), child.query(BADGES), "{mix:?}");
        assert_eq!(tree.child2.query(BADGES).len(), 2);
        assert_eq!(tree.child2.texts("SELECT name FROM patient"), ["Ada"]);

        // A key, none any more, and again another: always the same to the others.
        child.sql("UPDATE badge SET code = 'a' WHERE id = 101");
        child.sql("DELETE FROM badge WHERE id = 103");
        tree.exchange();
        assert_eq!(child.status_json()["held"], 0, "{mix:?}");
        assert_eq!(
            tree.child2.texts("SELECT label FROM badge WHERE code = 'a'"),
            ["the first"],
            "{mix:?}"
        );
        child.sql("UPDATE badge SET code = NULL WHERE id = 101");
        child.run(&["sync", "--idle", "300ms"]).fails_with(HELD, &["held"]);
        tree.parent.sync();
        tree.child2.sync();
        assert_eq!(tree.child2.query(BADGES), child.query(BADGES), "{mix:?}");
        child.transaction(&[
            "UPDATE badge SET label = 'again' WHERE id = 101",
            "UPDATE badge SET code = 'c' WHERE id = 101",
        ]);
        tree.exchange();
        for server in tree.servers() {
            assert_eq!(server.query(BADGES), child.query(BADGES), "{mix:?}");
            assert_eq!(server.status_json()["held"], 0, "{mix:?}");
        }
    }
}
