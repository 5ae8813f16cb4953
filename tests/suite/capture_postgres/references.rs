//! What a row refers to, and what the database itself writes.

use branchline::catalog::decide::{NewReference, Request};
use branchline::store::track::Report;

use super::bench::{Bench, NOTHING, THING};

#[tokio::test(flavor = "multi_thread")]
async fn cascades_and_host_triggers_are_captured() {
    let bench = Bench::new(
        "CREATE TABLE parent (id serial PRIMARY KEY, uuid text UNIQUE); \
         CREATE TABLE child (id serial PRIMARY KEY, uuid text UNIQUE, \
            parent_id int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE); \
         CREATE TABLE log (id serial PRIMARY KEY, uuid text UNIQUE, what text); \
         CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN INSERT INTO log (uuid, what) VALUES (NEW.uuid, ''made''); \
            IF NEW.uuid = ''bad'' THEN RAISE ''no''; END IF; RETURN NEW; END'; \
         CREATE TRIGGER note AFTER INSERT ON parent FOR EACH ROW EXECUTE FUNCTION noted();",
    )
    .await;
    assert_eq!(bench.catalog.class("parent").unwrap().class.host_triggers, ["note"]);
    bench.run("INSERT INTO parent VALUES (1, 'p'); INSERT INTO child VALUES (1, 'c', 1)").await;
    let mut rows = bench.rows().await;
    rows.sort();
    assert_eq!(
        rows,
        [
            ("+child(1,c,1)".into(), Some("(p)".into())),
            ("+log(1,p,made)".into(), None),
            ("+parent(1,p)".to_owned(), None),
        ]
    );
    bench.fails("INSERT INTO parent VALUES (2, 'bad')").await;
    assert_eq!(bench.caught().await, NOTHING);
    bench.run("UPDATE parent SET id = 5").await;
    let mut caught = bench.caught().await;
    caught.sort();
    assert_eq!(caught, ["+parent(5,p)", "-parent(1,p)", "child(1,c,1)>(1,c,5)"]);
    bench.run("DELETE FROM parent").await;
    let mut caught = bench.caught().await;
    caught.sort();
    assert_eq!(caught, ["-child(1,c,5)", "-parent(5,p)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn references_are_looked_up_through_keys_made_of_references() {
    let bench = Bench::new(
        "CREATE TABLE person (person_id serial PRIMARY KEY, uuid uuid UNIQUE NOT NULL); \
         CREATE TABLE patient (patient_id int PRIMARY KEY REFERENCES person); \
         CREATE TABLE kind (name char(5) PRIMARY KEY); \
         CREATE TABLE stay (patient_id int REFERENCES patient, no numeric(6,2), \
            kind char(5) REFERENCES kind, PRIMARY KEY (patient_id, no)); \
         CREATE TABLE bill (id serial PRIMARY KEY, uuid text UNIQUE, patient_id int, \
            stay_no numeric(6,2), next int REFERENCES bill DEFERRABLE INITIALLY DEFERRED, \
            FOREIGN KEY (patient_id, stay_no) REFERENCES stay);",
    )
    .await;
    bench
        .run(
            "INSERT INTO person VALUES (1, 'ABCDEF00-0000-0000-0000-000000000001'); \
             INSERT INTO patient VALUES (1); INSERT INTO kind VALUES ('a'); \
             INSERT INTO stay VALUES (1, 1.50, 'a'); \
             INSERT INTO bill VALUES (1, 'b', 1, 1.50, NULL); \
             INSERT INTO bill VALUES (2, 'c', NULL, NULL, 3), (3, 'd', NULL, NULL, 1)",
        )
        .await;
    let person = "abcdef00-0000-0000-0000-000000000001";
    let refs: Vec<Option<String>> = bench.rows().await.into_iter().map(|(_, refs)| refs).collect();
    assert_eq!(
        refs,
        [
            None,
            Some(format!("({person})")),
            None,
            Some(format!("({person})")),
            Some(format!("({person},)")),
            // Both rows of one statement are there when its trigger runs.
            Some("(,d)".to_owned()),
            Some("(,b)".to_owned()),
        ]
    );
    bench.run("DELETE FROM bill; DELETE FROM stay").await;
    let rows = bench.rows().await;
    assert_eq!(rows.last().unwrap().1, Some(format!("({person})")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_for_many_rows_does_not_slow_down_single_rows() {
    let bench = Bench::new(&format!(
        "{THING} CREATE TABLE other (id serial PRIMARY KEY, uuid text UNIQUE, thing_id int);
         ALTER TABLE other ADD FOREIGN KEY (thing_id) REFERENCES thing;"
    ))
    .await;
    bench.run("INSERT INTO thing SELECT i, 'u' || i, i FROM generate_series(1, 20000) i").await;
    bench.run("ANALYZE thing").await;
    bench.run("INSERT INTO other SELECT i, 'u' || i, i FROM generate_series(1, 20000) i").await;
    let reads = "SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'thing'";
    let messages = bench
        .host
        .simple_query(&format!("BEGIN; INSERT INTO other VALUES (30000, 'x', 7); {reads}; COMMIT"))
        .await
        .unwrap();
    let read = messages.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    assert_eq!(read.as_deref(), Some("0"), "rows of the referred table that were scanned");
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_choose_the_target_and_never_break_a_write() {
    let mut bench = Bench::empty(
        "CREATE TABLE kind (id serial PRIMARY KEY, uuid text UNIQUE, format text); \
         CREATE TABLE concept (id serial PRIMARY KEY, uuid text UNIQUE); \
         CREATE TABLE place (id serial PRIMARY KEY, uuid text UNIQUE); \
         CREATE TABLE attribute (id serial PRIMARY KEY, uuid text UNIQUE, \
            kind_id int REFERENCES kind, value text); \
         INSERT INTO kind VALUES \
            (1, 'k1', 'Concept'), (2, 'k2', 'Place'), (3, 'k3', 'text'), (4, 'k4', 'boom'); \
         INSERT INTO concept VALUES (7, 'c7'); INSERT INTO place VALUES (7, 'p7');",
    )
    .await;
    let one = |target: &str, when: &str| NewReference {
        table: "attribute".into(),
        column: "value".into(),
        target: target.into(),
        when: Some(when.into()),
    };
    let request = |when: &str| Request {
        all: true,
        references: vec![
            one("concept", "(SELECT format FROM kind t WHERE t.id = {row}.kind_id) = 'Concept'"),
            one("place", when),
        ],
        ..Request::default()
    };
    let error = bench.try_track(request("{row}.nothing = 1")).await.unwrap_err();
    assert_eq!(error.kind(), branchline::Kind::Config);
    assert!(error.to_string().contains("`when` of [[reference]] `attribute.value`"), "{error}");
    let when = "(SELECT CASE format WHEN 'boom' THEN (1 / (t.id - 4))::text ELSE format END \
                FROM kind t WHERE t.id = {row}.kind_id) = 'Place'";
    let report = bench.track(request(when)).await;
    assert_eq!(report.refusals, []);
    bench
        .run(
            "INSERT INTO attribute VALUES (1, 'a', 1, '7'), (2, 'b', 2, '7'), (3, 'c', 3, '7'), \
             (4, 'd', 1, 'seven'), (5, 'e', 1, '8'), (6, 'f', 2, '99999999999999999999999'), \
             (7, 'g', 4, '7'), (8, 'h', 1, NULL)",
        )
        .await;
    let refs: Vec<String> = bench.rows().await.into_iter().map(|(_, refs)| refs.unwrap()).collect();
    assert_eq!(
        refs,
        ["(k1,c7,)", "(k2,,p7)", "(k3,,)", "(k1,,)", "(k1,,)", "(k2,,)", "(k4,,)", "(k1,,)"]
    );
    // The table that the condition reads goes.
    bench
        .run("ALTER TABLE kind RENAME TO sort; UPDATE attribute SET value = '8' WHERE id = 1")
        .await;
    assert_eq!(bench.caught().await, ["-attribute(1,a,1,7)", "+attribute(1,a,1,8)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_looks_up_the_references_that_it_changed() {
    let bench = Bench::new(&format!(
        "{THING} CREATE TABLE other (id serial PRIMARY KEY, uuid text UNIQUE, \
         one int REFERENCES thing, two int REFERENCES thing, n int);"
    ))
    .await;
    bench
        .run(
            "INSERT INTO thing VALUES (1, 'a', 1), (2, 'b', 2); \
             INSERT INTO other VALUES (1, 'o', 1, 2, 0)",
        )
        .await;
    bench.caught().await;
    bench
        .run(
            "UPDATE other SET n = 1; UPDATE other SET one = 2, two = NULL; \
             UPDATE other SET one = NULL, two = 1",
        )
        .await;
    let refs: Vec<Option<String>> = bench.rows().await.into_iter().map(|(_, refs)| refs).collect();
    assert_eq!(refs, [Some("(,)".to_owned()), Some("(b,)".to_owned()), Some("(,a)".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn track_says_how_to_guard_a_host_trigger() {
    let mut bench = Bench::empty(&format!(
        "{THING} CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS \
         'BEGIN NEW.n := 7; RETURN NEW; END'; \
         CREATE TRIGGER note BEFORE INSERT ON thing FOR EACH ROW EXECUTE FUNCTION noted();"
    ))
    .await;
    let report = bench.track(Request { all: true, ..Request::default() }).await;
    let said = |report: &Report| {
        report.warnings.iter().find(|one| one.text.contains("`note`")).map(|one| one.text.clone())
    };
    let text = said(&report).unwrap();
    let (_, rest) = text.split_once("guard them with ").unwrap();
    let (guard, _) = rest.split_once(" to spare").unwrap();
    bench
        .run(&format!(
            "DROP TRIGGER note ON thing; CREATE TRIGGER note BEFORE INSERT ON thing \
             FOR EACH ROW {guard} EXECUTE FUNCTION noted()"
        ))
        .await;
    let report = bench.track(Request::default()).await;
    assert_eq!(said(&report), None);
    assert_eq!(report.classes[0].host_triggers, Vec::<String>::new());
    bench
        .run(
            "INSERT INTO thing VALUES (1, 'a', 1); BEGIN; \
             SELECT set_config('branchline.applying', 'on', true); \
             INSERT INTO thing VALUES (2, 'b', 1); COMMIT",
        )
        .await;
    assert_eq!(bench.caught().await, ["+thing(1,a,7)"]);
    let applied = bench.host.query_one("SELECT n FROM thing WHERE id = 2", &[]).await.unwrap();
    assert_eq!(applied.get::<_, i32>(0), 1, "it did not run");
}
