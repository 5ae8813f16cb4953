//! The host changes its schema, and has names and types of its own.

use branchline::catalog::decide::Request;
use branchline::store::track;

use super::bench::{Bench, THING, connect};

#[tokio::test(flavor = "multi_thread")]
async fn added_dropped_and_renamed_columns_neither_break_a_write_nor_escape() {
    let bench = Bench::new(THING).await;
    // A connection that has its plans already.
    let second = connect(&bench.url).await;
    let write = "INSERT INTO thing (id, uuid, n) VALUES (1, 'a', 1); UPDATE thing SET n = 2; \
                 DELETE FROM thing";
    second.batch_execute(write).await.unwrap();
    bench.caught().await;
    bench.run("ALTER TABLE thing ADD COLUMN m text DEFAULT 'x'").await;
    second.batch_execute(write).await.unwrap();
    assert_eq!(
        bench.caught().await,
        [
            "+thing{id,uuid,n,m}(1,a,1,x)",
            "thing{id,uuid,n,m}(1,a,1,x)>(1,a,2,x)",
            "-thing{id,uuid,n,m}(1,a,2,x)"
        ]
    );
    bench.run("ALTER TABLE thing RENAME COLUMN n TO k; ALTER TABLE thing DROP COLUMN m").await;
    second.batch_execute("INSERT INTO thing VALUES (1, 'a', 1); TRUNCATE thing").await.unwrap();
    assert_eq!(bench.caught().await, ["+thing{id,uuid,k}(1,a,1)", "-thing{id,uuid,k}(1,a,1)"]);
    // In the same transaction, and undone.
    second
        .batch_execute(
            "BEGIN; ALTER TABLE thing RENAME COLUMN k TO n; INSERT INTO thing VALUES (1, 'a', 1); \
             COMMIT; BEGIN; ALTER TABLE thing RENAME COLUMN n TO j; \
             INSERT INTO thing VALUES (2, 'b', 1); ROLLBACK; INSERT INTO thing VALUES (3, 'c', 1)",
        )
        .await
        .unwrap();
    assert_eq!(bench.caught().await, ["+thing(1,a,1)", "+thing(3,c,1)"]);
    // Under an old snapshot the catalog looks as it was, and the row does not.
    second
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM thing WHERE false")
        .await
        .unwrap();
    second.batch_execute("COMMIT; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await.unwrap();
    bench.run("ALTER TABLE thing RENAME COLUMN n TO k").await;
    second.batch_execute("INSERT INTO thing VALUES (4, 'd', 1); COMMIT").await.unwrap();
    second.batch_execute("INSERT INTO thing VALUES (5, 'e', 1)").await.unwrap();
    assert_eq!(bench.caught().await, ["+thing{id,uuid,k}(4,d,1)", "+thing{id,uuid,k}(5,e,1)"]);
    // A session whose first write is under such a snapshot.
    bench.run("ALTER TABLE thing RENAME COLUMN k TO n").await;
    let third = connect(&bench.url).await;
    third
        .batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE; UPDATE thing SET n = 7; COMMIT")
        .await
        .unwrap();
    assert_eq!(bench.caught().await.len(), 4);
    bench.run("ALTER TABLE thing RENAME COLUMN n TO k").await;
    third.batch_execute("DELETE FROM thing WHERE id = 5").await.unwrap();
    assert_eq!(bench.caught().await, ["-thing{id,uuid,k}(5,e,7)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_the_triggers_need_may_go() {
    let mut bench = Bench::new(&format!(
        "{THING} CREATE TABLE other \
         (id serial PRIMARY KEY, uuid text UNIQUE, thing_id int REFERENCES thing, n int);"
    ))
    .await;
    let second = connect(&bench.url).await;
    second
        .batch_execute(
            "INSERT INTO thing VALUES (3, 'c', 1); INSERT INTO other VALUES (1, 'o', 3, 0)",
        )
        .await
        .unwrap();
    bench.caught().await;
    // The key of what is referred to, the reference, the local key.
    bench.run("ALTER TABLE thing RENAME COLUMN uuid TO guid").await;
    second.batch_execute("INSERT INTO other VALUES (2, 'p', 3, 1)").await.unwrap();
    assert_eq!(bench.rows().await, [("+other(2,p,3,1)".to_owned(), None)]);
    bench.run("ALTER TABLE other RENAME thing_id TO it; ALTER TABLE other RENAME id TO no").await;
    second
        .batch_execute("DELETE FROM other WHERE n = 0; UPDATE other SET n = 2; TRUNCATE other")
        .await
        .unwrap();
    assert_eq!(
        bench.caught().await,
        [
            "-other{no,uuid,it,n}(1,o,3,0)",
            "-other{no,uuid,it,n}(2,p,3,1)",
            "+other{no,uuid,it,n}(2,p,3,2)",
            "-other{no,uuid,it,n}(2,p,3,2)"
        ]
    );
    // Brought up to date.
    let mut session = bench.read().await;
    let drifted = track::drifted(&mut session, &bench.catalog).await.unwrap();
    session.rollback().await.unwrap();
    assert_eq!(drifted, ["other", "thing"]);
    bench.run("ALTER TABLE thing RENAME COLUMN guid TO uuid").await;
    let report = bench.track(Request::default()).await;
    assert_eq!(report.refusals, []);
    second.batch_execute("INSERT INTO other VALUES (1, 'o', 3, 1)").await.unwrap();
    assert_eq!(bench.rows().await, [("+other(1,o,3,1)".to_owned(), Some("(c)".to_owned()))]);
    // The referred table goes altogether.
    bench.run("DROP TABLE thing CASCADE").await;
    second.batch_execute("INSERT INTO other VALUES (2, 'p', 3, 1)").await.unwrap();
    assert_eq!(bench.rows().await, [("+other(2,p,3,1)".to_owned(), None)]);
    let report = bench.track(Request::default()).await;
    assert!(report.warnings.iter().any(|remark| remark.text.contains("its table is gone")));
}

#[tokio::test(flavor = "multi_thread")]
async fn types_of_extensions_and_odd_names_do_not_break_a_write() {
    let mut bench = Bench::empty(
        "CREATE SCHEMA \"My \"\"Schema\"; \
         CREATE TYPE \"My \"\"Schema\".colour AS ENUM ('red', 'blue');",
    )
    .await;
    let extension = "CREATE EXTENSION citext; CREATE TABLE c (k citext PRIMARY KEY, n int)";
    let _ = bench.host.batch_execute(extension).await;
    let table = "\"My \"\"Schema\".\"a \"\"table\"\" \\ it's\"";
    bench
        .run(&format!(
            "CREATE TABLE {table} (\"the \\ key\" \"My \"\"Schema\".colour PRIMARY KEY, \
             \"$1 it's\" int, \"ünï\" text); CREATE TABLE address (a inet PRIMARY KEY)",
        ))
        .await;
    let report = bench.track(Request { all: true, ..Request::default() }).await;
    assert_eq!(report.refusals, []);
    let name = "My \"Schema.a \"table\" \\ it's";
    assert!(bench.catalog.class(name).is_some(), "{:?}", bench.catalog.ids);
    bench
        .run(&format!(
            "INSERT INTO {table} VALUES ('red', 1, 'x'); UPDATE {table} SET \"$1 it's\" = 2; \
             TRUNCATE {table}; INSERT INTO address VALUES ('10.0.0.1'); \
             UPDATE address SET a = '10.0.0.2'"
        ))
        .await;
    assert_eq!(
        bench.caught().await,
        [
            format!("+{name}(red,1,x)"),
            format!("{name}(red,1,x)>(red,2,x)"),
            format!("-{name}(red,2,x)"),
            "+address(10.0.0.1)".to_owned(),
            "-address(10.0.0.1)".to_owned(),
            "+address(10.0.0.2)".to_owned(),
        ]
    );
    if bench.catalog.class("c").is_some() {
        bench.run("INSERT INTO c VALUES ('A', 1); UPDATE c SET n = 2; UPDATE c SET k = 'a'").await;
        assert_eq!(bench.caught().await, ["+c(A,1)", "c(A,1)>(A,2)", "-c(A,2)", "+c(a,2)"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_that_can_no_longer_be_brought_up_to_date_stays_under_capture() {
    let mut bench = Bench::new(THING).await;
    bench
        .run("ALTER TABLE thing ADD COLUMN other_id int; DROP TRIGGER branchline_insert ON thing")
        .await;
    let report = bench.track(Request::default()).await;
    assert!(report.refusals[0].text.contains("`other_id` looks"), "{:?}", report.refusals);
    bench.run("INSERT INTO thing VALUES (1, 'a', 1, 2)").await;
    assert_eq!(bench.caught().await, ["+thing{id,uuid,n,other_id}(1,a,1,2)"]);
    let report = bench.track(Request { assume_plain: true, ..Request::default() }).await;
    assert_eq!(report.refusals, []);
    bench.run("INSERT INTO thing VALUES (2, 'b', 1, 2)").await;
    assert_eq!(bench.caught().await, ["+thing(2,b,1,2)"]);
}
