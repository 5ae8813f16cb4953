//! Unique values: two rows that want one, and rows that take each other's.

use super::ward::PATIENTS;
use super::{MIXED, POSTGRES, SQLITE, assert_equal, on_every_mix, settle, tree};
use crate::support::cli::TestServer;
use crate::support::tree::{Mix, Tree};

const SLOTS: &str = "SELECT s.uuid, s.code, s.ward, s.place, n.uuid FROM slot s \
     LEFT JOIN slot n ON n.id = s.next_id ORDER BY s.uuid";

fn held(server: &TestServer) -> Vec<Vec<serde_json::Value>> {
    server.query("SELECT kind, reason FROM @sync_held")
}

fn nothing_is_held(tree: &Tree) {
    for server in tree.servers() {
        let list = held(server);
        assert!(list.is_empty(), "{}: {list:?}", server.nickname());
    }
}

/// Two servers give one bed to two patients while they are apart. Both rows are named on every
/// server where they meet, and an edit that makes room lets both in.
fn a_unique_clash_names_both_rows_until_an_edit_makes_room(mix: Mix) {
    let tree = tree(mix, "");
    for (server, uuid) in [(&tree.child, "pa"), (&tree.child2, "pb")] {
        server.sql(&format!(
            "INSERT INTO patient (uuid, name, bed) VALUES ('{uuid}', 'in bed 7', '7')"
        ));
    }
    settle(&tree);
    for server in tree.servers() {
        let list = held(server);
        assert_eq!(list.len(), 1, "{}: {list:?}", server.nickname());
        assert_eq!(list[0][0], "UNIQUE_CLASH");
        let reason = list[0][1].as_str().unwrap();
        assert!(reason.contains("`pa`") && reason.contains("`pb`"), "{reason}");
        assert!(reason.contains("`bed`") && reason.contains("`patient`"), "{reason}");
        assert!(!reason.contains("bed 7"), "no values: {reason}");
        assert_eq!(server.count("SELECT count(*) FROM patient"), 1);
    }
    // The held row is edited where it is in the table: the state goes on all the same.
    tree.child2.sql("UPDATE patient SET name = 'Grace' WHERE uuid = 'pb'");
    settle(&tree);
    assert_eq!(tree.child.count("SELECT count(*) FROM patient"), 1);
    // The one edit makes room on all three.
    tree.child.sql("UPDATE patient SET bed = '8' WHERE uuid = 'pa'");
    settle(&tree);
    nothing_is_held(&tree);
    assert_eq!(assert_equal(&tree, PATIENTS), [["pa", "in bed 7", "8"], ["pb", "Grace", "7"]]);
}

fn rows_that_take_each_others_unique_values_are_never_held(mix: Mix) {
    let tree = tree(mix, "");
    tree.child.transaction(&["INSERT INTO slot (uuid, code, ward, place) VALUES \
         ('s1', 'AA1', 1, 1), ('s2', 'BB2', 1, 2), ('s3', 'CC3', 1, 3)"]);
    settle(&tree);
    // A cycle of three in one record, in a column that is not null, checked and short.
    tree.child.transaction(&[
        "UPDATE slot SET code = 'XXX', place = -1 WHERE uuid = 's1'",
        "UPDATE slot SET code = 'AA1', place = 1 WHERE uuid = 's2'",
        "UPDATE slot SET code = 'BB2', place = 2 WHERE uuid = 's3'",
        "UPDATE slot SET code = 'CC3', place = 3 WHERE uuid = 's1'",
    ]);
    settle(&tree);
    nothing_is_held(&tree);
    let rows = assert_equal(&tree, SLOTS);
    assert_eq!((&rows[0][1], &rows[0][3]), (&"CC3".into(), &3.into()), "{rows:?}");

    // A swap in several records of one batch; a value that moves from a deleted row to a new one.
    for sql in [
        "UPDATE slot SET code = 'ZZZ' WHERE uuid = 's1'",
        "UPDATE slot SET code = 'CC3' WHERE uuid = 's2'",
        "UPDATE slot SET code = 'AA1' WHERE uuid = 's1'",
        "DELETE FROM slot WHERE uuid = 's3'",
        "INSERT INTO slot (uuid, code, ward, place) VALUES ('s4', 'BB2', 1, 2)",
    ] {
        tree.child.sql(sql);
    }
    settle(&tree);
    nothing_is_held(&tree);
    let rows = assert_equal(&tree, "SELECT uuid, code FROM slot ORDER BY uuid");
    assert_eq!(rows, [["s1", "AA1"], ["s2", "CC3"], ["s4", "BB2"]]);
}

fn keys_change_rows_come_again_and_references_go_in_circles(mix: Mix) {
    let tree = tree(mix, "");
    // A circle of references in one record.
    tree.child.transaction(&[
        "INSERT INTO slot (uuid, code, ward, place) VALUES ('s1', 'AA1', 1, 1), ('s2', 'BB2', 1, 2)",
        "UPDATE slot SET next_id = (SELECT id FROM slot WHERE uuid = 's2') WHERE uuid = 's1'",
        "UPDATE slot SET next_id = (SELECT id FROM slot WHERE uuid = 's1') WHERE uuid = 's2'",
    ]);
    settle(&tree);
    nothing_is_held(&tree);
    let rows = assert_equal(&tree, SLOTS);
    assert_eq!((&rows[0][4], &rows[1][4]), (&"s2".into(), &"s1".into()));

    // Rows that refer to themselves, and to each other, in a column that is not null, in a table
    // that is empty elsewhere.
    tree.child.sql("INSERT INTO node (id, uuid, owner_id) VALUES (70, 'n1', 70)");
    tree.child.transaction(&[
        "INSERT INTO node (id, uuid, owner_id) VALUES (80, 'n2', 80), (81, 'n3', 80)",
        "UPDATE node SET owner_id = 81 WHERE uuid = 'n2'",
    ]);
    settle(&tree);
    nothing_is_held(&tree);
    let nodes = "SELECT n.uuid, o.uuid FROM node n JOIN node o ON o.id = n.owner_id ORDER BY 1";
    assert_eq!(assert_equal(&tree, nodes), [["n1", "n1"], ["n2", "n3"], ["n3", "n2"]]);

    // A key changes under the rows that refer to it, and keeps its unique values.
    tree.child.sql("UPDATE slot SET uuid = 's9' WHERE uuid = 's1'");
    settle(&tree);
    nothing_is_held(&tree);
    let rows = assert_equal(&tree, SLOTS);
    assert_eq!(rows[0][4], "s9", "{rows:?}");

    // Deleted and inserted again, in one record and in two.
    tree.child.transaction(&[
        "UPDATE slot SET next_id = NULL",
        "DELETE FROM slot WHERE uuid = 's2'",
        "INSERT INTO slot (uuid, code, ward, place) VALUES ('s2', 'BB2', 2, 2)",
    ]);
    tree.child.sql("DELETE FROM slot WHERE uuid = 's9'");
    tree.child.sql("INSERT INTO slot (uuid, code, ward, place) VALUES ('s9', 'AA1', 2, 1)");
    settle(&tree);
    nothing_is_held(&tree);
    let rows = assert_equal(&tree, SLOTS);
    assert_eq!((rows.len(), &rows[0][2], &rows[1][2]), (2, &2.into(), &2.into()));

    // The circle leaves as one.
    tree.child.transaction(&["UPDATE slot SET next_id = (SELECT max(id) FROM slot)"]);
    settle(&tree);
    tree.child.transaction(&["UPDATE slot SET next_id = NULL", "DELETE FROM slot"]);
    settle(&tree);
    nothing_is_held(&tree);
    assert!(assert_equal(&tree, SLOTS).is_empty());
}

on_every_mix! {
    a_unique_clash_names_both_rows_until_an_edit_makes_room
    rows_that_take_each_others_unique_values_are_never_held
    keys_change_rows_come_again_and_references_go_in_circles
}
