//! The host's catalog, and what happens when the host changes it.

use branchline::catalog::{ForeignKey, TypeKind};
use branchline::store::sqlite::{catalog, triggers};

use super::PEOPLE;
use super::bench::Bench;

#[tokio::test(flavor = "multi_thread")]
async fn the_host_may_change_its_schema_and_the_watch_sees_it() {
    let mut bench = Bench::new(PEOPLE).await;
    let person = bench.catalog.ids["person"];
    let visit = bench.catalog.ids["visit"];
    async fn missing(bench: &Bench) -> Vec<i32> {
        let mut session = bench.store.read().await.unwrap();
        triggers::missing(&mut session, &bench.catalog).await.unwrap()
    }
    async fn version(bench: &Bench) -> i64 {
        catalog::schema_version(&mut bench.store.read().await.unwrap()).await.unwrap()
    }
    assert_eq!(missing(&bench).await, Vec::<i32>::new());
    let before = version(&bench).await;
    bench.run("INSERT INTO person VALUES (1, 'ann', NULL)");
    assert_eq!(version(&bench).await, before);
    bench.run("ALTER TABLE person ADD COLUMN born TEXT; UPDATE person SET born = '1980'");
    assert!(version(&bench).await > before);
    assert_eq!(
        bench.caught().await[1..],
        Vec::<String>::new(),
        "what the triggers know is the same"
    );
    bench.run("ALTER TABLE person RENAME COLUMN uuid TO guid; UPDATE person SET guid = 'bob'");
    assert_eq!(bench.caught().await, ["person(1,'ann',NULL)>(1,'bob',NULL)"]);
    assert_eq!(missing(&bench).await, [person]);
    bench.run("ALTER TABLE visit RENAME TO encounter; INSERT INTO encounter VALUES ('v', NULL)");
    assert_eq!(bench.caught().await, ["+visit('v',NULL)"]);
    assert_eq!(missing(&bench).await, [person, visit]);
    // The rebuild that SQLite's documentation tells: of a table that others refer to.
    bench.run(
        "PRAGMA foreign_keys = OFF; BEGIN;
         CREATE TABLE new_person (id INTEGER PRIMARY KEY, guid TEXT NOT NULL UNIQUE, mother INTEGER);
         INSERT INTO new_person SELECT id, guid, mother FROM person;
         DROP TABLE person; ALTER TABLE new_person RENAME TO person; COMMIT",
    );
    bench.run("INSERT INTO patient VALUES (1, 1); INSERT INTO person VALUES (2, 'cyd', 1)");
    assert_eq!(bench.caught().await, ["+patient(1,1)"]);
    assert_eq!(missing(&bench).await, [person, visit]);
    // A column that our triggers name cannot go; nothing else happens.
    bench.fails("ALTER TABLE patient DROP COLUMN n");
    bench.run("DELETE FROM patient");
    assert_eq!(bench.caught().await, ["-patient(1,1)"]);
    bench.track().await;
    assert_eq!(missing(&bench).await, Vec::<i32>::new());
    bench.run("DELETE FROM person WHERE id = 2");
    assert_eq!(bench.caught().await, ["-person(2,'cyd',1)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_is_read_as_it_is_declared() {
    let mut bench = Bench::new(
        "CREATE TABLE Role (name VARCHAR(50) PRIMARY KEY, uuid CHAR(38) UNIQUE);
         CREATE TABLE \"odd \"\"name\" (
             Id INTEGER PRIMARY KEY AUTOINCREMENT, a BOOLEAN NOT NULL DEFAULT 0, b DECIMAL(10,2),
             c TEXT GENERATED ALWAYS AS (a || b) STORED, d AS (a + 1), role_name REFERENCES ROLE,
             other INT REFERENCES \"Odd \"\"Name\" (ID), x INT, y INT, z REFERENCES nowhere (k),
             FOREIGN KEY (X, y) REFERENCES pair DEFERRABLE INITIALLY DEFERRED, UNIQUE (y, x));
         CREATE TABLE pair (q INT, p INT, PRIMARY KEY (p, q)) WITHOUT ROWID;
         CREATE TABLE plain (n INT PRIMARY KEY, m);
         CREATE UNIQUE INDEX part ON plain (m) WHERE n > 0;
         CREATE VIEW seen AS SELECT * FROM pair;
         CREATE TRIGGER mine AFTER INSERT ON PAIR BEGIN SELECT 1; END;
         CREATE TABLE __diesel_schema_migrations (version TEXT);
         CREATE VIRTUAL TABLE found USING fts5 (words);",
    )
    .await;
    bench.run("PRAGMA foreign_keys = OFF");
    let names = "(a, b, other, x) VALUES (1, 2.5, 1, 7)";
    bench.run(&format!("INSERT INTO \"odd \"\"name\" {names}"));
    assert_eq!(bench.caught().await, ["+odd \"name(1,1,2.5,'12.5',2,NULL,1,7,NULL,NULL)"]);
    let mut session = bench.store.read().await.unwrap();
    let tables = catalog::read(&mut session).await.unwrap();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["Role", "found", "odd \"name", "pair", "plain"]);
    let [role, found, odd, pair, plain] = tables.as_slice() else { panic!() };
    assert!(found.obstacle.is_some());

    assert_eq!(role.primary_key, ["name"]);
    assert_eq!(role.unique, [["uuid"]]);
    assert!(!role.columns[0].auto && !role.columns[0].not_null);

    let kinds: Vec<TypeKind> = odd.columns.iter().map(|column| column.kind).collect();
    assert_eq!(kinds[..4], [TypeKind::Int, TypeKind::Bool, TypeKind::Decimal, TypeKind::Text]);
    let generated: Vec<&str> =
        odd.columns.iter().filter(|c| c.generated).map(|c| c.name.as_str()).collect();
    assert_eq!(generated, ["c", "d"]);
    assert!(odd.columns[0].auto && odd.columns[0].not_null && odd.columns[1].not_null);
    assert_eq!(odd.unique, [["y", "x"]]);
    let foreign = |columns: &[&str], target: &str, target_columns: &[&str]| ForeignKey {
        columns: columns.iter().map(ToString::to_string).collect(),
        target: target.into(),
        target_columns: target_columns.iter().map(ToString::to_string).collect(),
        deferrable: true,
        acts: false,
    };
    assert_eq!(
        odd.foreign_keys,
        [
            foreign(&["role_name"], "Role", &["name"]),
            foreign(&["other"], "odd \"name", &["Id"]),
            foreign(&["z"], "nowhere", &["k"]),
            foreign(&["x", "y"], "pair", &["p", "q"]),
        ]
    );

    assert_eq!(pair.primary_key, ["p", "q"]);
    assert!(pair.columns.iter().all(|column| column.not_null && !column.auto));
    assert_eq!(pair.host_triggers, ["mine"]);
    assert!(!plain.columns[0].auto, "INT is not INTEGER");
    assert_eq!(plain.unique, Vec::<Vec<String>>::new());
    assert_eq!(plain.clashes.len(), 3, "the hidden rowid, the primary key, the partial index");
}
