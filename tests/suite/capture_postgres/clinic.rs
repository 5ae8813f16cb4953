//! The database of a real clinic, when it is there.

use branchline::catalog::decide::{NewReference, Request};

use super::bench::Bench;

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
                "UPDATE person SET gender = 'X', creator = (SELECT max(user_id) FROM users); \
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
