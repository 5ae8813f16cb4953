//! Capture on PostgreSQL: what an independent connection writes, the triggers catch, whatever its
//! role and settings are, and no write fails because of them.

mod bench;
mod clinic;
mod partitions;
mod references;
mod roles;
mod schema;
mod track;
mod types;

use self::bench::{Bench, NOTHING, THING};

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_write_is_captured_and_a_rollback_leaves_nothing() {
    let bench = Bench::new(THING).await;
    bench.run("INSERT INTO thing VALUES (1, 'a', 1), (2, 'b', NULL)").await;
    assert_eq!(bench.caught().await, ["+thing(1,a,1)", "+thing(2,b,)"]);
    bench.run("UPDATE thing SET n = 2 WHERE id = 1; DELETE FROM thing WHERE id = 2").await;
    assert_eq!(bench.caught().await, ["thing(1,a,1)>(1,a,2)", "-thing(2,b,)"]);
    bench.run("BEGIN; INSERT INTO thing VALUES (3, 'c', 3); ROLLBACK").await;
    bench.run("BEGIN; SAVEPOINT s; DELETE FROM thing; ROLLBACK TO s; COMMIT").await;
    bench.run("UPDATE thing SET n = n; DELETE FROM thing WHERE false").await;
    bench.fails("INSERT INTO thing VALUES (4, 'x', 1), (5, 'a', 1)").await;
    assert_eq!(bench.caught().await, NOTHING);
    // A changed local key is a delete and an insert, the delete first.
    bench.run("UPDATE thing SET id = 7, n = 3").await;
    assert_eq!(bench.caught().await, ["-thing(1,a,2)", "+thing(7,a,3)"]);
    bench.run("UPDATE thing SET id = 8 - id, uuid = 'z'").await;
    assert_eq!(bench.caught().await, ["-thing(7,a,3)", "+thing(1,z,3)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_of_every_shape_are_captured() {
    let bench = Bench::new(THING).await;
    let caught = async || {
        let mut caught = bench.caught().await;
        caught.sort();
        caught
    };
    bench.run("INSERT INTO thing VALUES (1, 'z', 3)").await;
    bench
        .run(
            "INSERT INTO thing VALUES (1, 'z', 4), (2, 'y', 5) \
             ON CONFLICT (id) DO UPDATE SET n = excluded.n",
        )
        .await;
    assert_eq!(caught().await, ["+thing(1,z,3)", "+thing(2,y,5)", "thing(1,z,3)>(1,z,4)"]);
    bench.run("INSERT INTO thing VALUES (1, 'q', 0) ON CONFLICT DO NOTHING").await;
    bench
        .run("UPDATE thing SET n = v.n FROM (VALUES (1, 9), (2, 5)) v(id, n) WHERE v.id = thing.id")
        .await;
    assert_eq!(caught().await, ["thing(1,z,4)>(1,z,9)"]);
    bench
        .run(
            "WITH gone AS (DELETE FROM thing WHERE id = 2 RETURNING *) \
             INSERT INTO thing SELECT 20, uuid || '2', n FROM gone",
        )
        .await;
    assert_eq!(caught().await, ["+thing(20,y2,5)", "-thing(2,y,5)"]);
    let sink = bench.host.copy_in::<_, &[u8]>("COPY thing FROM STDIN").await.unwrap();
    let mut sink = Box::pin(sink);
    let lines = &b"30\tcopied\t\\N\n31\twith \"quote\"\t1\n"[..];
    futures_util::SinkExt::send(&mut sink, lines).await.unwrap();
    sink.as_mut().finish().await.unwrap();
    assert_eq!(caught().await, ["+thing(30,copied,)", "+thing(31,\"with \"\"quote\"\"\",1)"]);
    bench
        .run(
            "MERGE INTO thing t USING (VALUES (30, 3), (31, 0), (32, 7)) v(id, n) ON t.id = v.id \
             WHEN MATCHED AND v.n = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET n = v.n \
             WHEN NOT MATCHED THEN INSERT VALUES (v.id, 'merged', v.n)",
        )
        .await;
    assert_eq!(
        caught().await,
        [
            "+thing(32,merged,7)",
            "-thing(31,\"with \"\"quote\"\"\",1)",
            "thing(30,copied,)>(30,copied,3)"
        ]
    );
    bench.run("TRUNCATE thing").await;
    assert_eq!(
        caught().await,
        ["-thing(1,z,9)", "-thing(20,y2,5)", "-thing(30,copied,3)", "-thing(32,merged,7)"]
    );
    // What the applier writes is not captured, for its transaction only.
    bench
        .run(
            "BEGIN; SELECT set_config('branchline.applying', 'on', true); \
             INSERT INTO thing VALUES (1, 'a', 1); UPDATE thing SET n = 2; TRUNCATE thing; COMMIT",
        )
        .await;
    assert_eq!(bench.caught().await, NOTHING);
    bench.run("INSERT INTO thing VALUES (1, 'a', 1)").await;
    assert_eq!(bench.caught().await, ["+thing(1,a,1)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_is_captured_when_it_commits() {
    let bench = Bench::new(THING).await;
    let prepared = bench
        .host
        .batch_execute(
            "BEGIN; INSERT INTO thing VALUES (1, 'a', 1); PREPARE TRANSACTION 'branchline'",
        )
        .await;
    if prepared.is_err() {
        // `max_prepared_transactions` is 0 here.
        return;
    }
    assert_eq!(bench.caught().await, NOTHING);
    bench.run("COMMIT PREPARED 'branchline'").await;
    assert_eq!(bench.caught().await, ["+thing(1,a,1)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_equal_and_not_the_same_is_a_change() {
    let bench = Bench::new(
        "CREATE TABLE t (id serial PRIMARY KEY, uuid text UNIQUE, n numeric, j json, f float8);",
    )
    .await;
    bench.run("INSERT INTO t VALUES (1, 'a', 1.0, '{\"a\":1}', 0)").await;
    bench.caught().await;
    bench
        .run(
            "UPDATE t SET n = 1.00; UPDATE t SET j = '{\"a\": 1}'; UPDATE t SET f = '-0'; \
             UPDATE t SET n = 1.00",
        )
        .await;
    assert_eq!(bench.caught().await.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_without_a_key_are_sets() {
    let bench = Bench::new(&format!(
        "{THING} CREATE TABLE tag (thing_id int REFERENCES thing ON DELETE CASCADE, \
         word text NOT NULL);"
    ))
    .await;
    bench
        .run(
            "INSERT INTO thing VALUES (1, 'a', 1); INSERT INTO tag VALUES (1, 'x'), (1, 'x'); \
             UPDATE tag SET word = 'y'",
        )
        .await;
    let rows = bench.rows().await;
    assert_eq!(
        rows[1..].iter().map(|(line, _)| line.as_str()).collect::<Vec<_>>(),
        ["+tag(1,x)", "+tag(1,x)", "-tag(1,x)", "-tag(1,x)", "+tag(1,y)", "+tag(1,y)"]
    );
    assert!(rows[1..].iter().all(|(_, refs)| refs.as_deref() == Some("(a)")));
}
