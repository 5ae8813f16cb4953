//! What `track` prepares and mends, and what `untrack` leaves.

use branchline::catalog::decide::Request;
use branchline::merge::tree::Settings;
use branchline::store::seal::Bounds;
use branchline::store::track;

use super::bench::{Bench, THING};

#[tokio::test(flavor = "multi_thread")]
async fn missing_keys_are_made_and_duplicates_named() {
    let mut bench = Bench::empty(
        "CREATE TABLE shop (id serial PRIMARY KEY, label text); \
         INSERT INTO shop (label) VALUES ('a'), ('b'); \
         CREATE TABLE holes (id serial PRIMARY KEY, uuid varchar(38)); \
         INSERT INTO holes (uuid) VALUES ('1000'), (NULL), (NULL); \
         CREATE TABLE twins (id serial PRIMARY KEY, uuid text); \
         INSERT INTO twins (uuid) VALUES ('x'), ('x');",
    )
    .await;
    let of = |list: &[&str]| Request {
        names: list.iter().map(|name| (*name).to_owned()).collect(),
        ..Request::default()
    };
    let error = bench.try_track(of(&["twins"])).await.unwrap_err();
    assert_eq!(error.kind(), branchline::Kind::Config);
    assert!(error.to_string().contains("x stand more than once"), "{error}");
    let report = bench.track(of(&["shop"])).await;
    assert!(report.refusals[0].text.contains("--add-uuid"));
    let report = bench.track(Request { add_uuid: true, ..of(&["shop", "holes"]) }).await;
    assert_eq!(report.refusals, []);
    bench.run("INSERT INTO shop (label) VALUES ('c')").await;
    assert_eq!(bench.caught().await.len(), 1, "filling is not captured");
    for table in ["shop", "holes"] {
        let sql = format!("SELECT count(DISTINCT uuid) FROM {table}");
        let row = bench.host.query_one(&sql, &[]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), 3, "{table}");
    }
    bench.fails("INSERT INTO holes (uuid) VALUES ('1000')").await;
    // Again, without the option: nothing to do.
    let report = bench.track(Request::default()).await;
    assert_eq!(report.refusals, []);
    assert!(report.classes.iter().all(|class| class.state == "unchanged"), "{:?}", report.classes);
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_that_are_gone_or_off_are_put_back() {
    let mut bench = Bench::new(THING).await;
    for harm in [
        "DROP TRIGGER branchline_update ON thing",
        "ALTER TABLE thing DISABLE TRIGGER ALL",
        "ALTER TABLE thing DISABLE TRIGGER ALL; ALTER TABLE thing ENABLE TRIGGER ALL",
        "DROP FUNCTION branchline.capture_1_delete() CASCADE",
    ] {
        bench.run(harm).await;
        let mut session = bench.read().await;
        let drifted = track::drifted(&mut session, &bench.catalog).await.unwrap();
        session.rollback().await.unwrap();
        assert_eq!(drifted, ["thing"], "{harm}");
        let report = bench.track(Request::default()).await;
        assert_eq!(report.classes[0].state, "mended", "{harm}");
        bench
            .run(
                "SET session_replication_role = replica; INSERT INTO thing VALUES (1, 'a', 1); \
                 UPDATE thing SET n = 2; DELETE FROM thing; RESET ALL",
            )
            .await;
        assert_eq!(bench.caught().await.len(), 3, "{harm}");
        assert_eq!(bench.track(Request::default()).await.classes[0].state, "unchanged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn untrack_leaves_no_trace_and_loses_nothing() {
    let mut bench = Bench::new(&format!(
        "{THING} CREATE TABLE other \
         (id serial PRIMARY KEY, uuid text, thing_id int REFERENCES thing);"
    ))
    .await;
    bench.run("INSERT INTO thing VALUES (1, 'a', 1)").await;
    let untrack = async |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut session = bench.store.begin().await.unwrap();
        let answer =
            track::untrack(&mut session, &names, &Settings::new(), Bounds::default()).await;
        match &answer {
            Ok(_) => session.commit().await.unwrap(),
            Err(_) => session.rollback().await.unwrap(),
        }
        answer
    };
    let error = untrack(&["thing"]).await.unwrap_err().to_string();
    assert!(error.contains("`other` refers to `thing`"), "{error}");
    assert_eq!(untrack(&["other"]).await.unwrap(), ["other"]);
    let records = "SELECT count(*) FROM branchline.sync_record";
    let sealed = bench.host.query_one(records, &[]).await.unwrap();
    assert_eq!(sealed.get::<_, i64>(0), 1, "what was captured is sealed");
    bench.run("INSERT INTO thing VALUES (2, 'b', 1)").await;
    assert_eq!(untrack(&[]).await.unwrap(), ["thing"]);
    let sealed = bench.host.query_one(records, &[]).await.unwrap();
    assert_eq!(sealed.get::<_, i64>(0), 2);
    bench.run("INSERT INTO thing VALUES (3, 'c', 1)").await;
    let left = bench
        .host
        .query_one(
            "SELECT (SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal) + \
             (SELECT count(*) FROM pg_proc WHERE proname LIKE 'capture%') + \
             (SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'branchline%') + \
             (SELECT count(*) FROM branchline.sync_change)",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(left.get::<_, i64>(0), 0);
    let report = bench.track(Request { all: true, ..Request::default() }).await;
    assert_eq!(report.classes.len(), 2);
}
