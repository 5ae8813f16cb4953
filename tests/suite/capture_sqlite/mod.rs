//! Capture on SQLite, with real files: what an independent connection writes, the triggers catch.

mod bench;
mod conflicts;
mod fidelity;
mod openmrs;
mod refs;
mod replace;
mod schema;
mod storm;
mod traps;
mod upgrade;

use self::bench::Bench;

const THING: &str = "CREATE TABLE thing (id INTEGER PRIMARY KEY, uuid TEXT UNIQUE, n);";

const PEOPLE: &str = "CREATE TABLE person (id INTEGER PRIMARY KEY, uuid TEXT UNIQUE,
        mother INTEGER REFERENCES person ON DELETE SET NULL);
    CREATE TABLE patient (id INTEGER PRIMARY KEY REFERENCES person ON DELETE CASCADE, n);
    CREATE TABLE visit (uuid TEXT PRIMARY KEY, patient_id INTEGER
        REFERENCES PATIENT (ID) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED);";

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_write_is_captured_and_a_rollback_leaves_nothing() {
    let mut bench = Bench::new(THING).await;
    bench.run("INSERT INTO thing VALUES (1, 'a', 1), (2, 'b', NULL)");
    assert_eq!(bench.caught().await, ["+thing(1,'a',1)", "+thing(2,'b',NULL)"]);
    bench.run("UPDATE thing SET n = 2 WHERE id = 1; DELETE FROM thing WHERE id = 2");
    assert_eq!(bench.caught().await, ["thing(1,'a',1)>(1,'a',2)", "-thing(2,'b',NULL)"]);
    bench.run("BEGIN; INSERT INTO thing VALUES (3, 'c', 3); ROLLBACK");
    bench.run("BEGIN; SAVEPOINT s; DELETE FROM thing; ROLLBACK TO s; COMMIT");
    bench.fails("INSERT INTO thing VALUES (4, 'x', 1), (5, 'a', 1)");
    assert_eq!(bench.caught().await, Vec::<String>::new());
    bench.run("UPDATE thing SET id = 7, n = 3 WHERE id = 1; UPDATE thing SET rowid = 8");
    assert_eq!(
        bench.caught().await,
        ["-thing(1,'a',2)", "+thing(7,'a',3)", "-thing(7,'a',3)", "+thing(8,'a',3)"]
    );
    bench.run("INSERT INTO sync_applying VALUES (1); DELETE FROM thing; DELETE FROM sync_applying");
    assert_eq!(bench.caught().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_sees_its_own_counts_and_rows() {
    let bench = Bench::new(THING).await;
    let seen = bench.shell(
        "PRAGMA trusted_schema = OFF;
         INSERT INTO thing (uuid, n) VALUES ('a', 1), ('b', 2) RETURNING id, uuid;
         SELECT changes(), last_insert_rowid();
         REPLACE INTO thing (id, uuid) VALUES (7, 'a');
         SELECT changes(), last_insert_rowid();
         INSERT INTO thing (uuid, n) VALUES ('a', 3) ON CONFLICT (uuid) DO UPDATE SET n = 3 RETURNING id;
         UPDATE thing SET n = 4 RETURNING id, n;
         SELECT changes(), last_insert_rowid();
         DELETE FROM thing; SELECT changes(), last_insert_rowid();",
    );
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines, ["1|a", "2|b", "2|2", "1|7", "7", "2|4", "7|4", "2|7", "2|7"]);
    assert_eq!(bench.caught().await.len(), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_as_wide_as_sqlite_allows_is_captured_also_by_an_old_sqlite() {
    let columns: Vec<String> = (0..1_990).map(|n| format!("c{n} INT")).collect();
    let wide = format!("CREATE TABLE wide (id INTEGER PRIMARY KEY, {})", columns.join(", "));
    let bench = Bench::new(&wide).await;
    bench.shell("INSERT INTO wide (c1989) VALUES (5); UPDATE wide SET c0 = 1; DELETE FROM wide");
    let caught = bench.caught().await;
    assert_eq!(caught.len(), 3);
    assert!(caught[0].ends_with("NULL,5)"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_ours_that_is_dropped_lets_the_host_write() {
    let mut bench = Bench::new(THING).await;
    let mut session = bench.store.begin().await.unwrap();
    session.execute("DELETE FROM sync_change", vec![]).await.unwrap();
    drop(session);
    bench.run("INSERT INTO thing VALUES (1, 'a', 1)");
    assert_eq!(bench.caught().await, ["+thing(1,'a',1)"]);
}
