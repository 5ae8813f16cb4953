//! The rows that captured rows refer to.

use std::sync::Arc;

use branchline::catalog::Reference;

use super::PEOPLE;
use super::bench::Bench;

#[tokio::test(flavor = "multi_thread")]
async fn references_are_those_of_the_time_of_the_change() {
    let mut bench = Bench::new(PEOPLE).await;
    bench.run("PRAGMA foreign_keys = ON");
    bench.run(
        "INSERT INTO person VALUES (1, 'ann', 1), (2, 'bob', 1);
         INSERT INTO patient VALUES (2, 0); INSERT INTO visit VALUES ('v', 2)",
    );
    assert_eq!(
        bench.references().await,
        ["+person ann", "+person ann", "+patient bob", "+visit bob"]
    );
    // All of it goes, another takes the id, and is renamed: the earlier changes stay what they were.
    bench.run("DELETE FROM person WHERE id = 2");
    bench.run("INSERT INTO person VALUES (2, 'cyd', 1)");
    bench.run("INSERT INTO patient VALUES (2, 0)");
    bench.run("UPDATE person SET uuid = 'dee' WHERE id = 2");
    bench.run(
        "BEGIN; INSERT INTO visit VALUES ('w', 3); INSERT INTO person VALUES (3, 'eve', 2);
               INSERT INTO patient VALUES (3, 0); COMMIT",
    );
    bench.run("DELETE FROM person WHERE id = 1");
    let found = bench.references().await;
    assert_eq!(found[..4], ["+person ann", "+person ann", "+patient bob", "+visit bob"]);
    assert_eq!(
        found[4..],
        [
            "-visit bob",
            "-patient bob",
            "-person ann", // the cascade
            "+person ann",
            "+patient cyd",
            "-person ann",
            "+person ann", // dee
            "+visit eve",
            "+person dee",
            "+patient eve",
            "-person ann",
            "+person -", // dee lost her mother
            "-person ann",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn parents_deleted_first_are_still_known_to_their_children() {
    let mut bench = Bench::new(PEOPLE).await;
    bench.run("PRAGMA foreign_keys = OFF");
    bench.run("INSERT INTO person VALUES (2, 'bob', NULL); INSERT INTO patient VALUES (2, 0)");
    bench.caught().await;
    bench
        .run("DELETE FROM person; DELETE FROM patient; INSERT INTO person VALUES (2, 'cyd', NULL)");
    bench.run("REPLACE INTO person VALUES (2, 'dee', NULL); INSERT INTO patient VALUES (2, 1)");
    assert_eq!(
        bench.references().await,
        ["-person -", "-patient bob", "+person -", "-person -", "+person -", "+patient dee"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conditional_reference_is_one_where_its_condition_holds() {
    let mut bench = Bench::new(
        "CREATE TABLE concept (id INTEGER PRIMARY KEY, uuid TEXT);
         CREATE TABLE place (id INTEGER PRIMARY KEY, uuid TEXT);
         CREATE TABLE kind (id INTEGER PRIMARY KEY, uuid TEXT, format TEXT);
         CREATE TABLE attribute (id INTEGER PRIMARY KEY, uuid TEXT, kind_id INTEGER, value TEXT);",
    )
    .await;
    let mut classes = bench.catalog.clone();
    let id = classes.ids["attribute"];
    let mut tracked = (*classes.tracked[&id]).clone();
    for target in ["concept", "place"] {
        tracked.class.columns[3].references.push(Reference {
            target: target.into(),
            target_column: "id".into(),
            when: Some(format!(
                "(SELECT format FROM kind k WHERE k.id = {{row}}.kind_id) = '{target}'"
            )),
            declared: false,
        });
    }
    classes.tracked.insert(id, Arc::new(tracked));
    bench.catalog = classes;
    bench.run(
        "INSERT INTO kind VALUES (1, 'k1', 'concept'), (2, 'k2', 'place'), (3, 'k3', 'text');
         INSERT INTO concept VALUES (5, 'c5'); INSERT INTO place VALUES (5, 'p5')",
    );
    bench.caught().await;
    bench.run(
        "INSERT INTO attribute VALUES (1, 'a1', 1, '5'), (2, 'a2', 2, '5'), (3, 'a3', 3, '5'),
         (4, 'a4', NULL, '5'), (5, 'a5', 1, 'none')",
    );
    assert_eq!(
        bench.references().await,
        [
            "+attribute c5 -",
            "+attribute - p5",
            "+attribute - -",
            "+attribute - -",
            "+attribute - -"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_triggers_and_self_references_are_captured() {
    let mut bench = Bench::new(
        "CREATE TABLE node (id INTEGER PRIMARY KEY, uuid TEXT, parent INTEGER
             REFERENCES node ON DELETE CASCADE ON UPDATE CASCADE);",
    )
    .await;
    bench.run("PRAGMA foreign_keys = ON");
    bench.run("INSERT INTO node VALUES (1, 'a', NULL), (2, 'b', 1), (3, 'c', 2)");
    bench.run(
        "CREATE TEMP TRIGGER mine AFTER INSERT ON node BEGIN
             UPDATE node SET uuid = NEW.uuid || '!' WHERE id = NEW.id; END",
    );
    bench.caught().await;
    bench.run("INSERT INTO node VALUES (4, 'd', 3)");
    let mut caught = bench.caught().await;
    caught.sort();
    assert_eq!(caught, ["+node(4,'d',3)", "node(4,'d',3)>(4,'d!',3)"]);
    bench.run("UPDATE node SET id = 9 WHERE id = 3");
    let mut caught = bench.caught().await;
    caught.sort();
    assert_eq!(caught, ["+node(9,'c',2)", "-node(3,'c',2)", "node(4,'d!',3)>(4,'d!',9)"]);
    bench.run("DELETE FROM node WHERE id = 1");
    assert_eq!(bench.caught().await.len(), 4);
}
