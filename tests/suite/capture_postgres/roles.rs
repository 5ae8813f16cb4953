//! Whoever writes, and under whatever settings.

use branchline::catalog::decide::Request;
use branchline::store::{Limits, Store, track};

use super::bench::{Bench, THING};

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
async fn row_level_security_of_the_writer_hides_nothing_from_capture() {
    let bench = Bench::new(&format!(
        "{THING} CREATE TABLE other \
         (id serial PRIMARY KEY, uuid text UNIQUE, thing_id int REFERENCES thing);"
    ))
    .await;
    let role = "branchline_test_ward";
    bench
        .run(&format!(
            "DO $$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN OTHERS THEN NULL; END $$; \
             GRANT ALL ON thing, other TO {role}; \
             ALTER TABLE thing ENABLE ROW LEVEL SECURITY; \
             CREATE POLICY few ON thing FOR SELECT TO {role} USING (n > 5); \
             CREATE POLICY anything ON thing FOR INSERT TO {role} WITH CHECK (true); \
             CREATE POLICY change ON thing FOR UPDATE TO {role} USING (n > 5) WITH CHECK (true); \
             CREATE POLICY go ON thing FOR DELETE TO {role} USING (true)"
        ))
        .await;
    // Rows that the writer may not read back, and a reference to one.
    bench
        .run(&format!(
            "SET ROLE {role}; INSERT INTO thing VALUES (1, 'a', 1), (2, 'b', 9); \
             INSERT INTO other VALUES (1, 'o', 1); UPDATE thing SET n = 8; \
             DELETE FROM other; RESET ROLE"
        ))
        .await;
    assert_eq!(
        bench.rows().await,
        [
            ("+thing(1,a,1)".to_owned(), None),
            ("+thing(2,b,9)".to_owned(), None),
            ("+other(1,o,1)".to_owned(), Some("(a)".to_owned())),
            ("thing(2,b,9)>(2,b,8)".to_owned(), None),
            ("-other(1,o,1)".to_owned(), None),
        ]
    );
    bench.run(&format!("DROP OWNED BY {role}")).await;
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
