//! What hosts do that breaks a naive trigger, or escapes it.

use super::THING;
use super::bench::Bench;
use crate::support::cli::TestServer;
use crate::support::services;

const NOTHING: [&str; 0] = [];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_equal_and_not_the_same_is_a_change_and_what_is_the_same_is_none() {
    let mut bench = Bench::new(
        "CREATE TABLE v (id INTEGER PRIMARY KEY, t TEXT COLLATE NOCASE, d DECIMAL(10,2), x, s TEXT, i INTEGER);",
    )
    .await;
    bench.run("INSERT INTO v VALUES (1, 'Ada', 1.0, 1, '1.0', 5)");
    bench.caught().await;
    let old = "'Ada',1,1,'1.0',5";
    for (set, new) in [
        ("t = 'ADA'", "'ADA',1,1,'1.0',5"),
        ("s = '1.00'", "'Ada',1,1,'1.00',5"),
        ("x = 1.0", "'Ada',1,1.0,'1.0',5"),
        ("x = '1'", "'Ada',1,'1','1.0',5"),
        ("x = x'31'", "'Ada',1,X'31','1.0',5"),
        ("s = s || char(0)", "'Ada',1,1,'1.0\0',5"),
    ] {
        bench.run(&format!("BEGIN; UPDATE v SET {set}; COMMIT"));
        assert_eq!(bench.caught().await, [format!("v(1,{old})>(1,{new})")], "{set}");
        bench.run("UPDATE v SET t = 'Ada', d = 1.0, x = 1, s = '1.0', i = 5");
        bench.caught().await;
    }
    for set in ["d = '1.00'", "i = '5'", "i = 5.0", "d = 1", "t = 'Ada', s = '1.0'", "x = x"] {
        bench.run(&format!("UPDATE v SET {set}"));
        assert_eq!(bench.caught().await, NOTHING, "{set}: SQLite stores the same");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_trigger_that_fails_leaves_what_it_leaves_and_no_more_and_no_less() {
    let mut bench = Bench::new(THING).await;
    bench.run(
        "CREATE TRIGGER strict AFTER INSERT ON thing WHEN NEW.n < 0 BEGIN
             SELECT CASE NEW.n WHEN -1 THEN RAISE(ABORT, 'no') WHEN -2 THEN RAISE(FAIL, 'no')
                 WHEN -3 THEN RAISE(IGNORE) WHEN -4 THEN RAISE(ROLLBACK, 'no') END;
             UPDATE thing SET n = 0 WHERE id = NEW.id;
         END",
    );
    bench.track().await;
    bench.fails("INSERT INTO thing VALUES (1, 'a', 1), (2, 'b', -1)");
    assert_eq!(bench.caught().await, NOTHING);
    bench.fails("INSERT INTO thing VALUES (1, 'a', 1), (2, 'b', -2)");
    assert_eq!(
        bench.caught().await,
        ["+thing(1,'a',1)", "+thing(2,'b',-2)"],
        "RAISE(FAIL) keeps both"
    );
    bench.run("INSERT INTO thing VALUES (3, 'c', -3)");
    assert_eq!(bench.caught().await, ["+thing(3,'c',-3)"]);
    bench.run("BEGIN; INSERT INTO thing VALUES (4, 'd', 4)");
    bench.fails("INSERT INTO thing VALUES (5, 'e', -4)");
    assert_eq!(bench.caught().await, NOTHING);
    assert_eq!(bench.rows(&["thing"]).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_the_host_makes_later_does_not_get_before_ours() {
    let mut bench = Bench::new(THING).await;
    let missing = async |bench: &Bench| {
        let mut session = bench.store.read().await.unwrap();
        let missing = branchline::store::sqlite::triggers::missing(&mut session, &bench.catalog);
        missing.await.unwrap()
    };
    bench.run("CREATE TRIGGER late AFTER INSERT ON Thing BEGIN UPDATE thing SET n = 7 WHERE id = NEW.id; END");
    assert_eq!(missing(&bench).await, [1], "SQLite runs the newest first");
    bench.track().await;
    assert_eq!(missing(&bench).await, Vec::<i32>::new());
    bench.run("INSERT INTO thing VALUES (1, 'a', 1)");
    assert_eq!(bench.caught().await, ["+thing(1,'a',1)", "thing(1,'a',1)>(1,'a',7)"], "in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_database_is_captured_where_it_lies() {
    let bench = Bench::new(THING).await;
    bench.aside(
        "CREATE TABLE sync_change (decoy); CREATE TABLE thing (id, uuid, n);
         ATTACH DATABASE '{host}' AS other;
         INSERT INTO main.thing VALUES (9, 'z', 9);
         INSERT INTO other.thing VALUES (1, 'a', 1); UPDATE other.thing SET n = 2;
         REPLACE INTO other.thing VALUES (2, 'a', 3);",
    );
    let expected =
        ["+thing(1,'a',1)", "thing(1,'a',1)>(1,'a',2)", "-thing(1,'a',2)", "+thing(2,'a',3)"];
    assert_eq!(bench.caught().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_table_and_name_is_captured() {
    let mut bench = Bench::new(
        "CREATE TABLE strict_one (id INTEGER PRIMARY KEY AUTOINCREMENT, a ANY, t TEXT NOT NULL) STRICT;
         CREATE TABLE \"order\" (\"group\" INTEGER PRIMARY KEY, \"a b\" TEXT UNIQUE, \"q\"\"u\" TEXT,
             \"$1\" TEXT, \"@sync_x\" TEXT, current_date TEXT, \"select\" AS (\"a b\" || '!') STORED);
         CREATE TABLE [t's \"x\"] (k TEXT PRIMARY KEY, v CHECK (v > 0)) WITHOUT ROWID;",
    )
    .await;
    bench.run(
        "INSERT INTO strict_one (a, t) VALUES ('1', 'x'), (1, 'y'); UPDATE strict_one SET a = 1.0",
    );
    assert_eq!(
        bench.caught().await,
        [
            "+strict_one(1,'1','x')",
            "+strict_one(2,1,'y')",
            "strict_one(1,'1','x')>(1,1.0,'x')",
            "strict_one(2,1,'y')>(2,1.0,'y')"
        ]
    );
    bench.run("INSERT INTO \"order\" VALUES (1, 'a', 'b', 'c', 'd', 'e'); UPDATE \"order\" SET \"$1\" = 'f'");
    bench.run("REPLACE INTO \"order\" (\"group\", \"a b\") VALUES (2, 'a')");
    assert_eq!(
        bench.caught().await,
        [
            "+order(1,'a','b','c','d','e','a!')",
            "order(1,'a','b','c','d','e','a!')>(1,'a','b','f','d','e','a!')",
            "-order(1,'a','b','f','d','e','a!')",
            "+order(2,'a',NULL,NULL,NULL,NULL,'a!')"
        ]
    );
    bench.run("PRAGMA ignore_check_constraints = ON; INSERT INTO [t's \"x\"] VALUES ('k', -1)");
    assert_eq!(bench.caught().await, ["+t's \"x\"('k',-1)"]);
}

/// One server on a database with this schema, under capture.
fn server(schema: &[&str]) -> TestServer {
    let database = services::new_sqlite("traps");
    let server = TestServer::new("clinic", database, "spool:spool", "");
    for statement in schema {
        server.sql(statement);
    }
    server.init();
    server.track(&["--all"]);
    server
}

#[test]
fn a_column_goes_by_untrack_and_track_around_the_migration() {
    let server = server(&["CREATE TABLE thing (id INTEGER PRIMARY KEY, uuid TEXT UNIQUE, n, m)"]);
    server.sql("INSERT INTO thing VALUES (1, 'a', 1, 2)");
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        server.sql("ALTER TABLE thing DROP COLUMN m");
    }));
    assert!(refused.is_err(), "SQLite drops no column that a trigger names");
    server.done(&["untrack", "thing"]);
    server.sql("ALTER TABLE thing DROP COLUMN m");
    assert!(server.track(&["thing"]).contains("thing"));
    server.sql("UPDATE thing SET n = 5");
    assert_eq!(server.count("SELECT count(*) FROM sync_change"), 1);
    assert_eq!(
        server.count("SELECT count(*) FROM sync_record"),
        1,
        "sealed before it was untracked"
    );
}

#[test]
fn a_dropped_table_is_told_of_and_taken_out() {
    let server = server(&[
        "CREATE TABLE thing (id INTEGER PRIMARY KEY, uuid TEXT UNIQUE, n)",
        "CREATE TABLE other (id INTEGER PRIMARY KEY, uuid TEXT UNIQUE)",
    ]);
    server.sql("INSERT INTO thing VALUES (1, 'a', 1)");
    server.sql("DROP TABLE thing");
    server.sql("INSERT INTO other VALUES (1, 'o')");
    server.sync();
    let said = server.track(&["--all"]);
    assert!(said.contains("its table is gone: take it out with `branchline untrack`"), "{said}");
    server.done(&["untrack", "thing"]);
    assert!(!server.track(&["--all"]).contains("thing"));
}
