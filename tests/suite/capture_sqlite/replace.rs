//! Rows that REPLACE removes, and all that only looks like it.

use super::THING;
use super::bench::Bench;

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_replace_removes_are_captured_as_deletes_once() {
    for recursive in ["OFF", "ON"] {
        let mut bench = Bench::new(THING).await;
        bench.run(&format!("PRAGMA recursive_triggers = {recursive}"));
        bench.run("INSERT INTO thing VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)");
        bench.caught().await;
        // By the unique column, by the primary key, by both.
        bench.run("INSERT OR REPLACE INTO thing (uuid, n) VALUES ('a', 9)");
        assert_eq!(bench.caught().await, ["-thing(1,'a',1)", "+thing(4,'a',9)"], "{recursive}");
        bench.run("REPLACE INTO thing VALUES (2, 'd', 9)");
        assert_eq!(bench.caught().await, ["-thing(2,'b',2)", "+thing(2,'d',9)"]);
        bench.run("REPLACE INTO thing VALUES (2, 'c', 0)");
        let mut caught = bench.caught().await;
        caught[..2].sort();
        assert_eq!(caught, ["-thing(2,'d',9)", "-thing(3,'c',3)", "+thing(2,'c',0)"]);
        bench.run("REPLACE INTO thing VALUES (2, 'c', 1)");
        assert_eq!(bench.caught().await, ["-thing(2,'c',0)", "+thing(2,'c',1)"]);
        // An update that replaces others.
        bench.run("UPDATE OR REPLACE thing SET uuid = 'a' WHERE id = 2");
        assert_eq!(bench.caught().await, ["-thing(4,'a',9)", "thing(2,'c',1)>(2,'a',1)"]);
        bench.run("INSERT INTO thing VALUES (5, 'e', 5)");
        bench.run("UPDATE OR REPLACE thing SET id = 5 WHERE id = 2");
        assert_eq!(
            bench.caught().await,
            ["+thing(5,'e',5)", "-thing(5,'e',5)", "-thing(2,'a',1)", "+thing(5,'a',1)"]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upserts_and_ignored_inserts_leave_nothing_wrong_behind() {
    let mut bench = Bench::new(THING).await;
    bench.run("INSERT INTO thing VALUES (1, 'a', 1), (2, 'b', 2)");
    bench.caught().await;
    bench.run("INSERT OR IGNORE INTO thing VALUES (1, 'z', 0), (9, 'b', 0)");
    bench.run("INSERT INTO thing VALUES (1, 'z', 0) ON CONFLICT DO NOTHING");
    assert_eq!(bench.caught().await, Vec::<String>::new());
    bench.run("INSERT INTO thing (uuid, n) VALUES ('a', 5) ON CONFLICT (uuid) DO UPDATE SET n = excluded.n");
    assert_eq!(bench.caught().await, ["thing(1,'a',1)>(1,'a',5)"]);
    // The notes of the ignored rows are still about; these inserts replace nothing.
    bench.run("DELETE FROM thing WHERE id = 1; INSERT INTO thing VALUES (1, 'z', 0)");
    bench.run("UPDATE thing SET uuid = 'y' WHERE id = 2; INSERT INTO thing VALUES (9, 'b', 0)");
    assert_eq!(
        bench.caught().await,
        ["-thing(1,'a',5)", "+thing(1,'z',0)", "thing(2,'b',2)>(2,'y',2)", "+thing(9,'b',0)"]
    );
    // What the applier removes is no local delete: it seals before.
    bench.run("INSERT OR IGNORE INTO thing VALUES (3, 'b', 0)");
    assert_eq!(bench.caught().await, Vec::<String>::new());
    bench.run("INSERT INTO sync_applying VALUES (1); DELETE FROM thing; DELETE FROM sync_applying");
    bench.run("INSERT INTO thing VALUES (3, 'b', 0)");
    assert_eq!(bench.caught().await, ["+thing(3,'b',0)"]);
    bench.run("INSERT OR IGNORE INTO thing VALUES (3, 'x', 0)");
    let mut session = bench.store.read().await.unwrap();
    let left = session.query_one("SELECT count(*) FROM sync_change", vec![]).await.unwrap();
    assert_eq!(left.int(0).unwrap(), 1);
    drop(session);
    assert_eq!(bench.caught().await, Vec::<String>::new());
    let left = "SELECT (SELECT count(*) FROM sync_change) + (SELECT count(*) FROM sync_image)";
    let mut session = bench.store.read().await.unwrap();
    assert_eq!(session.query_one(left, vec![]).await.unwrap().int(0).unwrap(), 0, "notes go");
}

#[tokio::test(flavor = "multi_thread")]
async fn replace_is_seen_through_every_kind_of_unique_index() {
    let mut bench = Bench::new(
        "CREATE TABLE a (id INTEGER PRIMARY KEY, x TEXT, y TEXT, z INTEGER);
         CREATE UNIQUE INDEX a_x ON a (lower(x), z);
         CREATE UNIQUE INDEX a_y ON a (y COLLATE NOCASE DESC) WHERE z > 0;
         CREATE TABLE b (p TEXT, q INTEGER, r, PRIMARY KEY (p, q)) WITHOUT ROWID;
         CREATE TABLE c (n INTEGER NOT NULL, s TEXT UNIQUE ON CONFLICT REPLACE);
         CREATE TABLE d (n INTEGER, m AS (n % 10) UNIQUE);",
    )
    .await;
    bench.run("INSERT INTO a VALUES (1, 'A', 'u', 1), (2, 'b', 'v', 0), (3, 'c', 'w', 2)");
    bench.caught().await;
    bench.run("REPLACE INTO a VALUES (4, 'a', 'V', 1)");
    assert_eq!(bench.caught().await, ["-a(1,'A','u',1)", "+a(4,'a','V',1)"], "not row 2: z is 0");
    bench.run("REPLACE INTO a VALUES (5, 'W', 'W', 3)");
    assert_eq!(bench.caught().await, ["-a(3,'c','w',2)", "+a(5,'W','W',3)"]);
    bench.run("UPDATE OR REPLACE a SET z = 1, y = 'w' WHERE id = 2");
    assert_eq!(bench.caught().await, ["-a(5,'W','W',3)", "a(2,'b','v',0)>(2,'b','w',1)"]);

    bench.run("INSERT INTO b VALUES ('k', 1, 1), ('k', 2, 2), ('l', 1, 3)");
    bench.run("REPLACE INTO b VALUES ('k', 2, 9)");
    bench.run("UPDATE OR REPLACE b SET p = 'k' WHERE p = 'l'");
    assert_eq!(
        bench.caught().await[3..],
        ["+b('k',2,9)", "-b('l',1,3)", "+b('k',1,3)"],
        "a row with the same key is the same row with other values"
    );

    bench.run("INSERT INTO c VALUES (1, 'a'), (2, 'b')");
    bench.run("INSERT INTO c VALUES (3, 'a')");
    bench.run("REPLACE INTO c (rowid, n, s) VALUES (2, 4, 'z')");
    assert_eq!(bench.caught().await[2..], ["-c(1,'a')", "+c(3,'a')", "-c(2,'b')", "+c(4,'z')"]);

    bench.run("INSERT INTO d VALUES (1), (2)");
    bench.run("REPLACE INTO d VALUES (12)");
    assert_eq!(bench.caught().await, ["+d(1,1)", "+d(2,2)", "-d(2,2)", "+d(12,2)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_only_look_alike_are_not_taken_for_replaced() {
    let mut bench = Bench::new(
        "CREATE TABLE a (id INTEGER PRIMARY KEY, x TEXT COLLATE NOCASE);
         CREATE UNIQUE INDEX a_x ON a (x COLLATE BINARY);
         CREATE TABLE b (id INTEGER PRIMARY KEY, x TEXT UNIQUE, pos INTEGER UNIQUE);
         CREATE TRIGGER make_room BEFORE INSERT ON b BEGIN
             UPDATE b SET pos = pos + 100 WHERE pos = NEW.pos;
         END;",
    )
    .await;
    bench.run("INSERT INTO a VALUES (1, 'k'); REPLACE INTO a VALUES (2, 'K')");
    assert_eq!(bench.caught().await, ["+a(1,'k')", "+a(2,'K')"]);
    bench.run("UPDATE a SET x = 'q' WHERE id = 1; UPDATE a SET x = 'Q' WHERE id = 1");
    assert_eq!(bench.caught().await, ["a(1,'k')>(1,'q')", "a(1,'q')>(1,'Q')"], "NOCASE edits");
    bench.run("INSERT INTO b VALUES (1, 'm', 5)");
    bench.run("REPLACE INTO b VALUES (2, 'n', 5)");
    assert_eq!(bench.caught().await, ["+b(1,'m',5)", "b(1,'m',5)>(1,'m',105)", "+b(2,'n',5)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nested_writes_of_host_triggers_are_captured_once_each() {
    for recursive in ["OFF", "ON"] {
        let mut bench = Bench::new(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, u TEXT UNIQUE, n INTEGER);
             CREATE TABLE log (id INTEGER PRIMARY KEY, what TEXT UNIQUE);
             CREATE TRIGGER before_t BEFORE INSERT ON t WHEN NEW.n = 1 BEGIN
                 INSERT OR REPLACE INTO t (id, u, n) VALUES (NEW.id + 100, 'x', 0);
             END;
             CREATE TRIGGER after_t AFTER INSERT ON t WHEN NEW.n = 1 BEGIN
                 INSERT OR REPLACE INTO t (id, u, n) VALUES (NEW.id + 200, 'y', 0);
                 REPLACE INTO log (what) VALUES (NEW.u);
             END;",
        )
        .await;
        bench.run(&format!("PRAGMA recursive_triggers = {recursive}"));
        bench.run("INSERT INTO t VALUES (1, 'x', 0), (2, 'y', 0), (3, 'z', 0)");
        bench.caught().await;
        bench.run("REPLACE INTO t VALUES (9, 'z', 1)");
        let mut caught = bench.caught().await;
        caught.sort();
        assert_eq!(
            caught,
            [
                "+log(1,'z')",
                "+t(109,'x',0)",
                "+t(209,'y',0)",
                "+t(9,'z',1)",
                "-t(1,'x',0)",
                "-t(2,'y',0)",
                "-t(3,'z',0)",
            ],
            "{recursive}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wide_rows_that_clash_in_several_ways_are_noted_whole_and_once() {
    let columns: Vec<String> = (0..70).map(|n| format!("c{n} INTEGER")).collect();
    let mut bench = Bench::new(&format!(
        "CREATE TABLE wide ({}, PRIMARY KEY (c0), UNIQUE (c33), UNIQUE (c69))",
        columns.join(", ")
    ))
    .await;
    let row = |id: i64, x: i64, y: i64| {
        let mut values: Vec<String> = (0..70).map(|n| (id * 100 + n).to_string()).collect();
        (values[0], values[33], values[69]) = (id.to_string(), x.to_string(), y.to_string());
        values.join(",")
    };
    let (first, second, third) = (row(1, 11, 21), row(2, 12, 22), row(3, 13, 23));
    bench.run(&format!("INSERT INTO wide VALUES ({first}), ({second}), ({third})"));
    bench.caught().await;
    // With one row by two indexes, and with another by the third.
    let new = row(1, 12, 21);
    bench.run(&format!("REPLACE INTO wide VALUES ({new})"));
    let mut caught = bench.caught().await;
    caught[..2].sort();
    let expected = [format!("-wide({first})"), format!("-wide({second})"), format!("+wide({new})")];
    assert_eq!(caught, expected);
    bench.run("UPDATE OR REPLACE wide SET c0 = 3, c69 = 23 WHERE c0 = 1");
    let caught = bench.caught().await;
    let expected = [
        format!("-wide({third})"),
        format!("-wide({new})"),
        format!("+wide({})", {
            let mut values: Vec<&str> = new.split(',').collect();
            (values[0], values[69]) = ("3", "23");
            values.join(",")
        }),
    ];
    assert_eq!(caught, expected);
}
