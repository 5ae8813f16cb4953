//! What a statement does about a clash: OR REPLACE, OR IGNORE, OR FAIL and the others, in the middle
//! of it, in cascades, in savepoints.

use branchline::store::sqlite::changes;

use super::THING;
use super::bench::Bench;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_statement_leaves_behind_when_it_stops_half_way_is_captured() {
    let mut bench = Bench::new(THING).await;
    bench.run("INSERT INTO thing VALUES (1, 'a', 1)");
    bench.caught().await;
    let rows = "INTO thing VALUES (2, 'b', 2), (3, 'a', 3), (4, 'd', 4)";
    bench.run(&format!("INSERT OR IGNORE {rows}"));
    assert_eq!(bench.caught().await, ["+thing(2,'b',2)", "+thing(4,'d',4)"]);
    bench.run("DELETE FROM thing WHERE id > 1");
    bench.caught().await;
    bench.fails(&format!("INSERT OR FAIL {rows}"));
    assert_eq!(bench.caught().await, ["+thing(2,'b',2)"], "what came before the clash stays");
    bench.run("DELETE FROM thing WHERE id > 1");
    bench.caught().await;
    bench.fails(&format!("INSERT OR ABORT {rows}"));
    assert_eq!(bench.caught().await, Vec::<String>::new());
    bench.run("BEGIN; INSERT INTO thing VALUES (9, 'z', 9)");
    bench.fails(&format!("INSERT OR ROLLBACK {rows}"));
    assert_eq!(bench.caught().await, Vec::<String>::new(), "the transaction is gone");
    bench.run("BEGIN; INSERT INTO thing VALUES (9, 'z', 9)");
    bench.fails(&format!("INSERT OR FAIL {rows}"));
    bench.run("COMMIT");
    assert_eq!(bench.caught().await, ["+thing(9,'z',9)", "+thing(2,'b',2)"]);
    bench.run("UPDATE OR IGNORE thing SET uuid = 'a', n = n + 1");
    assert_eq!(bench.caught().await, ["thing(1,'a',1)>(1,'a',2)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_replaced_by_itself_is_an_update_in_effect() {
    for recursive in ["OFF", "ON"] {
        let mut bench = Bench::new(THING).await;
        bench.run(&format!("PRAGMA recursive_triggers = {recursive}"));
        bench.run("INSERT INTO thing VALUES (1, 'a', 1)");
        bench.caught().await;
        let expected = ["-thing(1,'a',1)", "+thing(1,'a',1)"];
        bench.run("REPLACE INTO thing VALUES (1, 'a', 1)");
        assert_eq!(bench.caught().await, expected, "the same values, {recursive}");
        bench.run("REPLACE INTO thing VALUES (1, 'a', 2); REPLACE INTO thing VALUES (1, 'a', 3)");
        let expected = ["-thing(1,'a',1)", "+thing(1,'a',2)", "-thing(1,'a',2)", "+thing(1,'a',3)"];
        assert_eq!(bench.caught().await, expected, "{recursive}");
        bench.run("UPDATE OR REPLACE thing SET uuid = 'a', id = 1, n = 4");
        assert_eq!(bench.caught().await, ["thing(1,'a',3)>(1,'a',4)"], "{recursive}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_replaced_in_a_savepoint_that_is_rolled_back_was_never_replaced() {
    let mut bench = Bench::new(THING).await;
    bench.run("INSERT INTO thing VALUES (1, 'a', 1), (2, 'b', 2)");
    bench.caught().await;
    bench.run(
        "BEGIN; REPLACE INTO thing VALUES (3, 'a', 3);
         SAVEPOINT s; REPLACE INTO thing VALUES (4, 'b', 4); ROLLBACK TO s; RELEASE s; COMMIT",
    );
    assert_eq!(bench.caught().await, ["-thing(1,'a',1)", "+thing(3,'a',3)"]);
    bench.run("BEGIN; REPLACE INTO thing VALUES (5, 'b', 5); ROLLBACK");
    assert_eq!(bench.caught().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_row_takes_its_cascade_along() {
    for recursive in ["OFF", "ON"] {
        let mut bench = Bench::new(
            "CREATE TABLE ward (id INTEGER PRIMARY KEY, uuid TEXT UNIQUE);
             CREATE TABLE bed (id INTEGER PRIMARY KEY, uuid TEXT UNIQUE,
                 ward INTEGER REFERENCES ward ON DELETE CASCADE);
             CREATE TABLE nurse (id INTEGER PRIMARY KEY, uuid TEXT UNIQUE,
                 ward INTEGER REFERENCES ward ON DELETE SET NULL);",
        )
        .await;
        bench.run(&format!("PRAGMA foreign_keys = ON; PRAGMA recursive_triggers = {recursive}"));
        bench.run(
            "INSERT INTO ward VALUES (1, 'w'); INSERT INTO bed VALUES (1, 'b', 1);
             INSERT INTO nurse VALUES (1, 'n', 1)",
        );
        bench.caught().await;
        bench.run("REPLACE INTO ward VALUES (2, 'w')");
        let references = bench.references().await;
        let mut caught = bench.caught().await;
        caught.sort();
        assert_eq!(
            caught,
            ["+ward(2,'w')", "-bed(1,'b',1)", "-ward(1,'w')", "nurse(1,'n',1)>(1,'n',NULL)"],
            "{recursive}"
        );
        assert!(references.contains(&"-bed w".to_owned()), "{references:?}");
        // The cascade takes the very row that was to be updated.
        bench.run("INSERT INTO ward VALUES (7, 'x'); INSERT INTO bed VALUES (7, 'y', 7)");
        bench.caught().await;
        bench.run("UPDATE OR REPLACE ward SET uuid = 'x' WHERE id = 2");
        let mut caught = bench.caught().await;
        caught.sort();
        assert_eq!(caught, ["-bed(7,'y',7)", "-ward(7,'x')", "ward(2,'w')>(2,'x')"], "{recursive}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upserts_on_any_unique_index_are_updates() {
    let mut bench = Bench::new(
        "CREATE TABLE a (id INTEGER PRIMARY KEY, uuid TEXT UNIQUE, code TEXT, n INTEGER);
         CREATE UNIQUE INDEX a_code ON a (code COLLATE NOCASE) WHERE n > 0;
         CREATE TABLE b (p TEXT, q INTEGER, r, PRIMARY KEY (p, q)) WITHOUT ROWID;",
    )
    .await;
    bench.run("INSERT INTO a VALUES (1, 'u', 'x', 1); INSERT INTO b VALUES ('p', 1, 'r')");
    bench.caught().await;
    bench.run(
        "INSERT INTO a VALUES (2, 'v', 'X', 5)
             ON CONFLICT (code COLLATE NOCASE) WHERE n > 0 DO UPDATE SET n = excluded.n
             ON CONFLICT (uuid) DO NOTHING;
         INSERT INTO a VALUES (1, 'w', 'z', 6) ON CONFLICT DO UPDATE SET uuid = excluded.uuid;
         INSERT INTO b VALUES ('p', 1, 's') ON CONFLICT DO UPDATE SET r = excluded.r;
         INSERT INTO b VALUES ('p', 1, 's') ON CONFLICT DO UPDATE SET r = excluded.r;
         INSERT INTO a VALUES (3, 'w', 'q', 0) ON CONFLICT DO NOTHING",
    );
    assert_eq!(
        bench.caught().await,
        [
            "a(1,'u','x',1)>(1,'u','x',5)",
            "a(1,'u','x',5)>(1,'w','x',5)",
            "b('p',1,'r')>('p',1,'s')"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_inserted_and_ignored_for_ever_does_not_fill_the_database() {
    let mut bench = Bench::new(THING).await;
    let rows: Vec<String> = (1..=10).map(|n| format!("({n}, 'u{n}', {n})")).collect();
    let sql = format!("INSERT OR IGNORE INTO thing VALUES {}", rows.join(", "));
    bench.run(&sql);
    bench.caught().await;
    for _ in 0..20 {
        bench.run(&sql);
    }
    let mut session = bench.store.read().await.unwrap();
    let left = session.query_one("SELECT count(*) FROM sync_change", vec![]).await.unwrap();
    assert_eq!(left.int(0).unwrap(), 10);
    drop(session);
    bench.run("REPLACE INTO thing VALUES (99, 'u7', 0)");
    assert_eq!(bench.caught().await, ["-thing(7,'u7',7)", "+thing(99,'u7',0)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_that_is_read_in_windows_knows_what_was_replaced_behind_them() {
    let mut bench = Bench::new(super::PEOPLE).await;
    bench.run(
        "PRAGMA foreign_keys = OFF;
         INSERT INTO person VALUES (1, 'ann', NULL); INSERT INTO patient VALUES (1, 0);
         INSERT INTO visit VALUES ('v', 1)",
    );
    bench.run("INSERT OR IGNORE INTO person VALUES (1, 'zed', NULL)");
    bench.run(
        "REPLACE INTO person VALUES (2, 'ann', NULL); REPLACE INTO person VALUES (1, 'bob', NULL)",
    );
    let mut session = bench.store.begin().await.unwrap();
    // The note of what was ignored lies within, the one that counts does not.
    let first = changes::read(&mut session, &bench.catalog, 4).await.unwrap();
    assert!(first.full);
    session.rollback().await.unwrap();
    let references = bench.references().await;
    assert_eq!(references[..4], ["+person -", "+patient ann", "+visit ann", "-person -"]);
    assert_eq!(
        bench.caught().await[3..],
        ["-person(1,'ann',NULL)", "+person(2,'ann',NULL)", "+person(1,'bob',NULL)"]
    );
}
