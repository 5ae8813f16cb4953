//! Capture on PostgreSQL: what an independent connection writes, the triggers catch, whatever its
//! role and settings are, and no write fails because of them.

use std::sync::Arc;

use branchline::catalog::decide::{NewReference, Request};
use branchline::catalog::{Catalog, Column};
use branchline::record::Value;
use branchline::store::books::identity;
use branchline::store::image::bind_sql;
use branchline::store::postgres::image;
use branchline::store::seal::Bounds;
use branchline::store::track::{self, Report};
use branchline::store::{Datum, Dialect, Limits, Session, Store};
use tokio_postgres::{Client, NoTls};

use crate::support::databases::Databases;

/// A database with captured tables, and the host's own connection to it.
struct Bench {
    store: Store,
    host: Client,
    url: String,
    catalog: Catalog,
    _databases: Databases,
}

/// A connection of the host's own.
async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

impl Bench {
    async fn empty(schema: &str) -> Self {
        let mut databases = Databases::postgres();
        let url = databases.make("capture").await;
        let host = connect(&url).await;
        host.batch_execute(schema).await.unwrap();
        let store = Store::connect(&url, Limits::default()).await.unwrap();
        identity::init(&store, "x", false, "test").await.unwrap();
        Self { store, host, url, catalog: Catalog::default(), _databases: databases }
    }

    /// Makes the tables of `schema`, and captures all of them.
    async fn new(schema: &str) -> Self {
        let mut bench = Self::empty(schema).await;
        let report = bench.track(Request { all: true, ..Request::default() }).await;
        assert_eq!(report.refusals, []);
        bench
    }

    async fn track(&mut self, request: Request) -> Report {
        self.try_track(request).await.unwrap()
    }

    async fn try_track(&mut self, request: Request) -> branchline::Result<Report> {
        let mut session = self.store.begin().await.unwrap();
        let report = track::track(&mut session, request).await?;
        self.catalog = track::load(&mut session).await.unwrap();
        session.commit().await.unwrap();
        Ok(report)
    }

    async fn read(&self) -> Session {
        self.store.begin().await.unwrap()
    }

    async fn run(&self, sql: &str) {
        self.host.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    async fn fails(&self, sql: &str) {
        self.host.batch_execute(sql).await.expect_err(sql);
    }

    /// What was captured since the last call, a line a change: `+t(…)`, `-t(…)`, `t(…)>(…)`, with
    /// `{columns}` where they are not those of the class.
    async fn caught(&self) -> Vec<String> {
        self.rows().await.into_iter().map(|(line, _)| line).collect()
    }

    /// The same with the references of the new image, else of the old.
    async fn rows(&self) -> Vec<(String, Option<String>)> {
        let mut session = self.store.begin().await.unwrap();
        let sql = "SELECT class_id, op, shape, columns, old_image, new_image, old_refs, new_refs \
                   FROM @sync_change ORDER BY seq";
        let rows = session.query(sql, vec![]).await.unwrap();
        session.execute("DELETE FROM @sync_change", vec![]).await.unwrap();
        session.commit().await.unwrap();
        rows.iter()
            .map(|row| {
                let tracked = &self.catalog.tracked[&i32::try_from(row.int(0).unwrap()).unwrap()];
                let name = &tracked.class.name;
                let text = |n| row.opt_text(n).unwrap().map(str::to_owned);
                let shape = match (row.opt_int(2).unwrap(), text(3)) {
                    (Some(shape), None) => {
                        assert_eq!(shape, i64::from(tracked.shape));
                        String::new()
                    }
                    (None, Some(columns)) => {
                        let names: Vec<String> = serde_json::from_str(&columns).unwrap();
                        format!("{{{}}}", names.join(","))
                    }
                    other => panic!("{other:?}"),
                };
                let line = match (row.int(1).unwrap(), text(4), text(5)) {
                    (1, None, Some(new)) => format!("+{name}{shape}{new}"),
                    (2, Some(old), Some(new)) => format!("{name}{shape}{old}>{new}"),
                    (3, Some(old), None) => format!("-{name}{shape}{old}"),
                    other => panic!("{other:?}"),
                };
                (line, text(7).or(text(6)))
            })
            .collect()
    }
}

const THING: &str = "CREATE TABLE thing (id serial PRIMARY KEY, uuid text NOT NULL UNIQUE, n int);";
const NOTHING: [&str; 0] = [];

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
async fn neither_role_nor_settings_make_a_write_escape_or_fail() {
    let bench = Bench::new(&format!(
        "{THING} CREATE TABLE other \
         (id serial PRIMARY KEY, uuid text UNIQUE, thing_id int REFERENCES thing);"
    ))
    .await;
    let role = "branchline_test_clerk";
    bench
        .run(&format!(
            "DO $$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN OTHERS THEN NULL; END $$; \
             GRANT INSERT, UPDATE, DELETE, TRUNCATE, SELECT ON thing TO {role}; \
             GRANT INSERT ON other TO {role}; \
             GRANT USAGE ON SEQUENCE thing_id_seq, other_id_seq TO {role}"
        ))
        .await;
    bench
        .run(&format!(
            "SET ROLE {role}; INSERT INTO thing VALUES (1, 'a', 1); \
             INSERT INTO other (uuid, thing_id) VALUES ('o', 1); RESET ROLE"
        ))
        .await;
    assert_eq!(
        bench.rows().await,
        [("+thing(1,a,1)".into(), None), ("+other(1,o,1)".into(), Some("(a)".into()))]
    );
    bench
        .run("SET search_path = ''; INSERT INTO public.thing VALUES (2, 'b', 1); RESET search_path")
        .await;
    assert_eq!(bench.caught().await, ["+thing(2,b,1)"]);
    bench
        .run(
            "SET session_replication_role = replica; INSERT INTO thing VALUES (3, 'c', 1); \
             TRUNCATE other; RESET session_replication_role",
        )
        .await;
    assert_eq!(bench.caught().await, ["+thing(3,c,1)", "-other(1,o,1)"]);
    // A schema that shadows what the triggers use.
    bench
        .run(
            "CREATE SCHEMA evil; CREATE FUNCTION evil.row_to_json(anyelement) RETURNS json \
             LANGUAGE plpgsql AS 'BEGIN RAISE ''evil''; END'; \
             CREATE TABLE evil.sync_change (x int); SET search_path = evil, pg_catalog, public; \
             INSERT INTO thing VALUES (4, 'd', 1); RESET search_path",
        )
        .await;
    assert_eq!(bench.caught().await, ["+thing(4,d,1)"]);
    bench
        .run(
            "SET standard_conforming_strings = off; SET quote_all_identifiers = on; \
             SET plpgsql.variable_conflict = 'error'; UPDATE thing SET n = 2 WHERE id = 4; \
             DELETE FROM thing WHERE id = 3; TRUNCATE other; RESET ALL",
        )
        .await;
    assert_eq!(bench.caught().await, ["thing(4,d,1)>(4,d,2)", "-thing(3,c,1)"]);
    bench.run(&format!("DROP OWNED BY {role}")).await;
}

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
async fn partitions_are_one_class_however_they_are_written() {
    let mut bench = Bench::new(
        "CREATE TABLE visit (id int, part int, note text, PRIMARY KEY (id, part)) \
            PARTITION BY LIST (part); \
         CREATE TABLE visit_1 PARTITION OF visit FOR VALUES IN (1); \
         CREATE TABLE visit_2 (note text, gone int, part int NOT NULL, id int NOT NULL); \
         ALTER TABLE visit_2 DROP COLUMN gone; \
         ALTER TABLE visit ATTACH PARTITION visit_2 FOR VALUES IN (2); \
         CREATE TABLE visit_n PARTITION OF visit FOR VALUES IN (3, 5) PARTITION BY LIST (part); \
         CREATE TABLE visit_3 PARTITION OF visit_n FOR VALUES IN (3);",
    )
    .await;
    let sorted = async |bench: &Bench| {
        let mut caught = bench.caught().await;
        caught.sort();
        caught
    };
    assert_eq!(bench.catalog.tracked.len(), 1);
    bench.run("INSERT INTO visit VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'c')").await;
    assert_eq!(sorted(&bench).await, ["+visit(1,1,a)", "+visit(2,2,b)", "+visit(3,3,c)"]);
    bench
        .run(
            "INSERT INTO visit_1 VALUES (4, 1, 'd'); INSERT INTO visit_2 VALUES ('e', 2, 5); \
             INSERT INTO visit_n VALUES (6, 3, 'f')",
        )
        .await;
    assert_eq!(
        bench.caught().await,
        ["+visit(4,1,d)", "+visit{note,part,id}(e,2,5)", "+visit(6,3,f)"]
    );
    bench.run("UPDATE visit SET part = 2 WHERE id = 1").await;
    assert_eq!(sorted(&bench).await, ["+visit(1,2,a)", "-visit(1,1,a)"]);
    bench
        .run("UPDATE visit SET note = 'z' WHERE id = 1; UPDATE visit_3 SET note = 'y' WHERE id = 3")
        .await;
    assert_eq!(bench.caught().await, ["visit(1,2,a)>(1,2,z)", "visit(3,3,c)>(3,3,y)"]);
    bench.run("TRUNCATE visit_1; TRUNCATE visit").await;
    assert_eq!(
        sorted(&bench).await,
        [
            "-visit(3,3,y)",
            "-visit(4,1,d)",
            "-visit(6,3,f)",
            "-visit{note,part,id}(b,2,2)",
            "-visit{note,part,id}(e,2,5)",
            "-visit{note,part,id}(z,2,1)",
        ]
    );
    // A new partition, and one that leaves.
    bench
        .run(
            "CREATE TABLE visit_4 PARTITION OF visit FOR VALUES IN (4); \
             ALTER TABLE visit DETACH PARTITION visit_1",
        )
        .await;
    let mut session = bench.read().await;
    assert_eq!(track::drifted(&mut session, &bench.catalog).await.unwrap(), ["visit"]);
    session.rollback().await.unwrap();
    bench.track(Request::default()).await;
    bench
        .run("INSERT INTO visit_4 VALUES (9, 4, 'x'); INSERT INTO visit_1 VALUES (8, 1, 'no')")
        .await;
    assert_eq!(bench.caught().await, ["+visit(9,4,x)"]);
    let mut session = bench.read().await;
    assert_eq!(track::drifted(&mut session, &bench.catalog).await.unwrap(), NOTHING);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_nobody_may_see_are_a_reason_to_refuse() {
    let mut bench = Bench::empty(
        "CREATE TABLE open (id serial PRIMARY KEY, uuid text UNIQUE); \
         CREATE TABLE base (id serial PRIMARY KEY, uuid text UNIQUE); \
         CREATE TABLE derived (more text UNIQUE) INHERITS (base);",
    )
    .await;
    let report = bench.track(Request { all: true, ..Request::default() }).await;
    let refused: Vec<&str> = report.refusals.iter().map(|remark| &*remark.class).collect();
    assert_eq!(refused, ["base", "derived"]);
    assert!(report.refusals[0].text.contains("inheritance"));
    // As a role that row-level security applies to.
    let role = "branchline_test_owner";
    bench
        .run(&format!(
            "DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN OTHERS THEN NULL; END $$; \
             GRANT ALL ON SCHEMA public TO {role}; ALTER TABLE open OWNER TO {role}; \
             ALTER TABLE open ENABLE ROW LEVEL SECURITY; ALTER TABLE open FORCE ROW LEVEL SECURITY"
        ))
        .await;
    let url = bench.url.replace("postgres@", &format!("{role}@"));
    if let Ok(store) = Store::connect(&url, Limits::default()).await {
        let mut session = store.begin().await.unwrap();
        let tables = track::tables(&mut session).await.unwrap();
        let obstacle = |name: &str| {
            let table = tables.iter().find(|table| table.name == name).unwrap();
            table.obstacle.clone().unwrap_or_default()
        };
        assert!(obstacle("open").contains("row-level security"));
        assert!(obstacle("derived").contains("may not read"));
        drop(session);
    }
    bench.run(&format!("REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}")).await;
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

/// A column of each built-in type.
const TYPES: &str = r#"
    CREATE TYPE mood AS ENUM ('so so', 'glad');
    CREATE DOMAIN small AS int CHECK (VALUE < 1000); CREATE DOMAIN smaller AS small;
    CREATE TYPE pair AS (a int, b text, c timestamptz);
    CREATE TABLE every (id serial PRIMARY KEY, uuid uuid UNIQUE NOT NULL, a smallint, b bigint,
    c numeric, d numeric(8,3), e real, f double precision, g money, h char(5), i varchar(9), j text,
    k bytea, l timestamp, m timestamptz, n date, o time, p timetz, q interval, r boolean, s mood,
    t point, u box, v path, w cidr, x inet, y macaddr, z bit(5), aa varbit, ab tsvector, ac xml,
    ad json, ae jsonb, af int[], ag text[], ah timestamptz[], ai int4range, aj tstzrange,
    ak int4multirange, al smaller, am pair, an pair[], ao uuid[], ap bytea[], aq name, ar "char",
    at oid, au pg_lsn, av jsonpath, aw tsquery, ax numrange, ay regclass, az interval[],
    ba char(3)[], bb int GENERATED ALWAYS AS (a * 2) STORED, bc int DEFAULT 7, bd money[],
    be macaddr8, bf txid_snapshot, bg circle, bh line, bi lseg, bj polygon, bk tstzmultirange);"#;

/// Values that are worth a look.
const VALUES: &str = r#"
    INSERT INTO every VALUES (1, 'ABCDEF00-0000-0000-0000-000000000001', -32768,
    9223372036854775807, 1.00, 12345.600, 0.1, 0.1, 1234.5, 'ab', 'varchar',
    E'all "of" it, \\ (and) \n\t more 😀 ''x', '\x00ff', '2024-02-29 01:02:03.456789',
    '2024-02-29 01:02:03.4+05:30', '0044-03-15 BC', '24:00', '01:02:03+05:30',
    '1 year -2 mons +3 days -04:05:06.7', true, 'so so', '(1.5,-2)', '(3,4),(1,2)',
    '[(0,0),(1,1)]', '10.0.0.0/8', '::1', '08:00:2b:01:02:03', B'10101', B'1', 'a:1 b:2A',
    '<a>&amp;</a>', '{"b": 1,  "a":[1.0 ,null]}', '{"b": 1,  "a":[1.0 ,null]}', '{1,NULL,3}',
    '{"a b",NULL,"","NULL","x\"y"}', '{"2024-01-01 00:00:00+02"}', '[1,5)',
    '["2024-01-01 00:00:00+02",)', '{[1,2),[5,9)}', 7, ROW(1, 'x, "y"', '2024-01-01 00:00:00+02'),
    ARRAY[ROW(1, NULL, NULL)::pair, NULL], '{abcdef00-0000-0000-0000-000000000001}',
    '{"\\x00","\\xff"}', 'name', 'c', 4294967295, '16/B374D848', '$.a[*]', 'a & !b', '(,1.10]',
    'pg_class', '{1 day}', '{a,bc}', DEFAULT, NULL, '{1.5}', '08:00:2b:01:02:03:04:05',
    '10:20:10,14', '<(0.1,0.2),3>', '{1,2,3}', '[(0,0),(0.1,1)]', '((0,0),(1,1),(0,1))',
    '{["2024-01-01 00:00:00+02",infinity)}');
    INSERT INTO every VALUES (2, 'abcdef00-0000-0000-0000-000000000002', NULL, NULL, 'NaN', 0,
    'NaN', '-Infinity', NULL, '', '', '', '', 'infinity', '-infinity', 'infinity', NULL, NULL,
    '-1 day', false, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '', '', NULL, 'null', 'null',
    '{}', '{}', NULL, 'empty', NULL, '{}', NULL, NULL, NULL, NULL, NULL, '', NULL, 0, NULL, NULL,
    '', 'empty', NULL, NULL, NULL, DEFAULT, 7);
    INSERT INTO every VALUES (3, 'abcdef00-0000-0000-0000-000000000003', 0, 0, 1e30, -0.001,
    3.4e38, 5e-324, -0.01, 'a b c', 'ÄÖ', E'\u0001\u007f', '\xdeadbeef', '0001-01-01',
    '9999-12-31 23:59:59.999999Z', '5874897-12-31', '00:00', '00:00-15:59', '178000000 years',
    NULL, 'glad', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '""', '"\u00e9"',
    NULL, NULL, NULL, '(,)', '[-infinity,infinity]', NULL, 999);
    INSERT INTO every (id, uuid, m, f, c, bc) VALUES (4, 'abcdef00-0000-0000-0000-000000000004',
    '0044-03-15 00:00:00+00 BC', '-0', 'Infinity', 0);"#;

#[tokio::test(flavor = "multi_thread")]
async fn every_type_comes_back_byte_for_byte_whatever_the_settings_are() {
    let bench = Bench::new(TYPES).await;
    bench
        .run(
            "SET datestyle = 'SQL, DMY'; SET intervalstyle = 'iso_8601'; \
             SET timezone = 'Asia/Kathmandu'; SET bytea_output = 'escape'; \
             SET extra_float_digits = -15; SET xmloption = document; SET xmlbinary = 'hex'",
        )
        .await;
    bench.run(VALUES).await;
    bench
        .run(
            "SET datestyle = 'German'; SET intervalstyle = 'sql_standard'; \
             UPDATE every SET bc = coalesce(bc, 0) + 1; UPDATE every SET bc = NULL WHERE id = 1; \
             RESET ALL",
        )
        .await;
    let tracked = Arc::clone(bench.catalog.class("every").unwrap());
    let class = &tracked.class;
    let columns: Vec<Option<&Column>> = class.columns.iter().map(Some).collect();
    let mut session = bench.store.begin().await.unwrap();
    let images =
        session.query("SELECT new_image FROM @sync_change ORDER BY seq", vec![]).await.unwrap();
    assert_eq!(images.len(), 9);
    let decoded: Vec<Vec<Value>> = images
        .iter()
        .map(|image| image::decode(image.text(0).unwrap(), &columns).unwrap())
        .collect();
    // Written back from what travels, each row is the same to the byte.
    session.batch("CREATE TEMP TABLE copy (LIKE every)").await.unwrap();
    let sent: Vec<&Column> = class.columns.iter().filter(|column| !column.generated).collect();
    let names: Vec<String> = sent.iter().map(|column| format!("\"{}\"", column.name)).collect();
    let binds: Vec<String> = sent
        .iter()
        .enumerate()
        .map(|(n, column)| bind_sql(Dialect::Postgres, &format!("${}", n + 1), column))
        .collect();
    let sql = format!("INSERT INTO copy ({}) SELECT {}", names.join(", "), binds.join(", "));
    for values in [&decoded[8], &decoded[5], &decoded[6], &decoded[7]] {
        let data = class.columns.iter().zip(values).filter(|(column, _)| !column.generated);
        let data = data.map(|(column, value)| Datum::Text(image::text(value, column))).collect();
        session.execute(&sql, data).await.unwrap();
    }
    session.batch("UPDATE copy SET bb = a * 2").await.unwrap();
    let differing = session
        .query(
            "SELECT old.id, a.field, a.was, b.came \
             FROM every old JOIN copy new ON old.id = new.id, \
             LATERAL json_each_text(row_to_json(old)) a(field, was) \
             JOIN LATERAL json_each_text(row_to_json(new)) b(field, came) USING (field) \
             WHERE a.was IS DISTINCT FROM b.came",
            vec![],
        )
        .await
        .unwrap();
    assert_eq!(differing, []);
    let same = session
        .query_one(
            "SELECT count(*) FROM every old JOIN copy new ON old.id = new.id WHERE old *= new",
            vec![],
        )
        .await
        .unwrap();
    assert_eq!(same.int(0).unwrap(), 4);
    let value = |row: usize, name: &str| decoded[row][class.position(name).unwrap()].clone();
    assert_eq!(value(0, "uuid"), Value::Text("abcdef00-0000-0000-0000-000000000001".into()));
    assert_eq!(value(0, "c"), Value::Text("1.00".into()));
    assert_eq!(value(0, "h"), Value::Text("ab".into()));
    assert_eq!(value(0, "m"), Value::Text("2024-02-28T19:32:03.4Z".into()));
    assert_eq!(value(3, "m"), Value::Text("0044-03-15 00:00:00+00 BC".into()));
    assert_eq!(value(0, "al"), Value::Int(7), "a domain of a domain is what it is made of");
    assert_eq!(value(0, "bc"), Value::Null, "not the default");
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
        let answer = track::untrack(&mut session, &names, Bounds::default()).await;
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

/// The clinic's schema, when it is there.
fn clinic(file: &str) -> Option<String> {
    let house = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    ["../shared", "../../shared"].iter().find_map(|shared| {
        std::fs::read_to_string(house.join(shared).join("data/openmrs").join(file)).ok()
    })
}

/// What the clinic's schema does not say of itself.
fn undeclared() -> Vec<NewReference> {
    let one = |table: &str, column: &str, target: &str, when: Option<&str>| NewReference {
        table: table.into(),
        column: column.into(),
        target: target.into(),
        when: when.map(str::to_owned),
    };
    let format = "(SELECT format FROM person_attribute_type t WHERE \
                  t.person_attribute_type_id = {row}.person_attribute_type_id) = 'org.openmrs.Concept'";
    vec![
        one("orders", "concept_id", "concept", None),
        one("concept_set", "concept_id", "concept", None),
        one("obs", "value_group_id", "obs", None),
        one("person_attribute", "value", "concept", Some(format)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_clinic_is_captured() {
    for (schema, data) in [("2.5", "base-2.5.sql"), ("2.9", "core-2.9.sql")] {
        let Some(sql) = clinic(&format!("schema-{schema}-postgres.sql")) else { return };
        let mut bench = Bench::empty(&sql).await;
        bench.run(&clinic(data).unwrap()).await;
        let started = std::time::Instant::now();
        let report = bench.track(Request { all: true, ..Request::default() }).await;
        println!("{schema}: {} classes in {:?}", report.classes.len(), started.elapsed());
        let behind = report.warnings.iter().filter(|one| one.text.contains("sequence")).count();
        assert!(behind > 10, "the sequences were not moved yet: {behind}");
        let refused: Vec<&str> = report
            .refusals
            .iter()
            .filter(|remark| !remark.text.contains("for the reason given there"))
            .map(|remark| &*remark.class)
            .collect();
        assert_eq!(refused, ["concept_set", "obs", "orders"]);
        let source = ("note".to_owned(), "nextval('s')".to_owned());
        let request = Request {
            all: true,
            references: undeclared(),
            id_sources: std::iter::once(source).collect(),
            ..Request::default()
        };
        let report = bench.track(request.clone()).await;
        assert_eq!(report.refusals, []);
        let key = |name: &str| {
            report.classes.iter().find(|class| class.class == name).unwrap().key.join(",")
        };
        assert_eq!(key("person"), "uuid");
        assert_eq!(key("patient"), "patient_id");
        assert_eq!(key("role"), "role");
        assert_eq!(key("user_role"), "user_id,role");
        assert_eq!(key("concept_name_tag_map"), "concept_name_id,concept_name_tag_id");
        let started = std::time::Instant::now();
        let again = bench.track(request).await;
        println!("{schema}: again in {:?}", started.elapsed());
        assert!(again.classes.iter().all(|class| class.state == "unchanged"));
        every_table_is_captured(&bench).await;
        bench
            .run(
                "UPDATE person SET gender = 'X', birthdate = '1980-02-03'; \
                 UPDATE users SET username = username || 'x'",
            )
            .await;
        let rows = bench.rows().await;
        let of = |line: &str| line.starts_with("person(") || line.starts_with("users(");
        assert!(rows.iter().all(|(line, _)| of(line)));
        let named = rows.iter().filter(|(_, refs)| refs.as_ref().unwrap().len() > 36).count();
        assert!(named > 0, "who refers is told by uuid: {rows:?}");
    }
}

/// Deletes everything, table by table, foreign keys being switched off, and finds it in the changes.
async fn every_table_is_captured(bench: &Bench) {
    let mut rows = 0;
    bench.run("BEGIN; SET LOCAL session_replication_role = replica").await;
    for tracked in bench.catalog.tracked.values() {
        let sql = format!("DELETE FROM \"{}\"", tracked.class.table);
        let deleted = bench.host.execute(&sql, &[]).await.unwrap();
        let sql = "SELECT count(*) FROM branchline.sync_change WHERE class_id = $1 AND op = 3";
        let caught = bench.host.query_one(sql, &[&tracked.id]).await.unwrap();
        assert_eq!(caught.get::<_, i64>(0), i64::try_from(deleted).unwrap());
        rows += deleted;
    }
    assert!(rows > 200, "{rows}");
    bench.run("ROLLBACK").await;
}
