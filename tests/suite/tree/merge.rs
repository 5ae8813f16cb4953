//! Servers that edit the same rows while they are apart end equal, and no edit vanishes without a
//! trace.

mod clashes;
mod triggers;
mod ward;

use serde_json::Value;

use self::ward::{ENCOUNTERS, PATIENTS};
use crate::support::cli::TestServer;
use crate::support::tree::{Broker, Engine, Mix, Tree};

const POSTGRES: Mix =
    Mix { parent: Engine::Postgres, children: Engine::Postgres, broker: Broker::Spool };
const SQLITE: Mix = Mix { parent: Engine::Sqlite, children: Engine::Sqlite, broker: Broker::Spool };
const MIXED: Mix =
    Mix { parent: Engine::Postgres, children: Engine::Sqlite, broker: Broker::Spool };

/// A tree whose root says how classes merge.
fn tree(mix: Mix, root: &str) -> Tree {
    let mut tree = Tree::unconnected(mix, "", ward::database);
    tree.configure(&tree.parent, root);
    tree.connect(&["--all"]);
    tree
}

fn conflicts(server: &TestServer) -> Vec<Value> {
    server.json(&["conflicts"])
}

/// Rounds of `sync`, held records or not, until nothing moves.
fn settle(tree: &Tree) {
    for _ in 0..12 {
        let order = [&tree.child, &tree.parent, &tree.child2, &tree.parent];
        let moved: u64 = order
            .iter()
            .map(|server| {
                let ended = server.run(&["sync", "--idle", "300ms", "--json"]);
                assert!([0, 3].contains(&ended.code()), "{}", ended.stderr);
                let said: Value = serde_json::from_str(ended.stdout.trim()).unwrap();
                said["moved"].as_u64().unwrap()
            })
            .sum();
        if moved == 0 {
            return;
        }
    }
    panic!("the servers are still exchanging after 12 rounds");
}

#[track_caller]
fn assert_equal(tree: &Tree, sql: &str) -> Vec<Vec<Value>> {
    let rows = tree.parent.query(sql);
    for server in tree.servers() {
        assert_eq!(server.query(sql), rows, "{}: {sql}", server.nickname());
    }
    rows
}

fn edits_of_two_columns_both_survive_and_of_one_column_one_wins(mix: Mix) {
    let tree = tree(mix, "");
    ward::admit(&tree.parent, "p1", "Ada");
    settle(&tree);
    tree.child.sql("UPDATE patient SET name = 'Ada L.'");
    tree.child2.sql("UPDATE patient SET bed = '7'");
    settle(&tree);
    assert_eq!(assert_equal(&tree, PATIENTS), [["p1", "Ada L.", "7"]]);
    for server in tree.servers() {
        assert!(conflicts(server).is_empty(), "two columns are no conflict");
    }

    tree.child.sql("UPDATE patient SET name = 'Augusta'");
    tree.child2.sql("UPDATE patient SET name = 'Ada Lovelace'");
    settle(&tree);
    let rows = assert_equal(&tree, PATIENTS);
    let winner = rows[0][1].as_str().unwrap().to_owned();
    let loser = if winner == "Augusta" { "Ada Lovelace" } else { "Augusta" };
    let lines = conflicts(&tree.parent);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["kind"], "COLUMN");
    assert_eq!(lines[0]["column_name"], "name");
    assert_eq!(lines[0]["winner_value"], winner.as_str());
    assert_eq!(lines[0]["loser_value"], loser);
    assert_ne!(lines[0]["winner_server"], lines[0]["loser_server"]);

    // Turned round on the parent, it is turned round everywhere.
    let id = lines[0]["id"].to_string();
    tree.parent.done(&["conflicts", "resolve", &id, "--keep", "loser"]);
    settle(&tree);
    assert_eq!(assert_equal(&tree, PATIENTS)[0][1], loser);
    assert!(conflicts(&tree.parent).is_empty());
    let shown = tree.parent.json(&["conflicts", "show", &id]);
    assert_eq!(shown[0]["resolution"], "loser");
    let audit =
        tree.parent.count("SELECT count(*) FROM @sync_audit WHERE action = 'conflicts resolve'");
    assert_eq!(audit, 1);
    tree.parent
        .run(&["conflicts", "resolve", &id, "--keep", "loser"])
        .fails_with(2, &["resolved already"]);
}

fn bytes_and_references_are_turned_round_in_full(mix: Mix) {
    let tree = tree(mix, "");
    ward::admit(&tree.parent, "p1", "Ada");
    ward::admit(&tree.parent, "p2", "Grace");
    tree.parent.sql("INSERT INTO scan (uuid) VALUES ('s1')");
    settle(&tree);
    let write = |server: &TestServer, patient: &str, hex: &str| {
        let data = if server.is_sqlite() { format!("x'{hex}'") } else { format!("'\\x{hex}'") };
        server.sql(&format!(
            "UPDATE scan SET data = {data}, \
             patient_id = (SELECT id FROM patient WHERE uuid = '{patient}')"
        ));
    };
    write(&tree.child, "p1", "00ff01");
    write(&tree.child2, "p2", "00fe02");
    settle(&tree);
    let scans = "SELECT p.uuid, s.data FROM scan s LEFT JOIN patient p ON p.id = s.patient_id";
    let before = assert_equal(&tree, scans);
    let (won, lost) = if before[0][0] == "p1" { ("p1", "p2") } else { ("p2", "p1") };
    let lines = conflicts(&tree.parent);
    assert_eq!(lines.len(), 2, "{lines:?}");
    for line in &lines {
        assert_ne!(line["winner_value"], line["loser_value"]);
        tree.parent.done(&["conflicts", "resolve", &line["id"].to_string(), "--keep", "loser"]);
    }
    settle(&tree);
    let after = assert_equal(&tree, scans);
    assert_eq!((before[0][0].as_str(), after[0][0].as_str()), (Some(won), Some(lost)));
    let hex = |patient: &str| if patient == "p1" { "00ff01" } else { "00fe02" };
    assert!(after[0][1].as_str().unwrap().to_lowercase().ends_with(hex(lost)), "{after:?}");
}

fn a_patient_that_one_deletes_stays_for_the_encounter_that_another_adds(mix: Mix) {
    let tree = tree(mix, "");
    ward::admit(&tree.parent, "p1", "Ada");
    settle(&tree);
    tree.child.sql("DELETE FROM patient");
    ward::encounter(&tree.child2, "e1", "p1");
    settle(&tree);
    assert_eq!(assert_equal(&tree, ENCOUNTERS), [["e1", "p1", "Ada"]]);
    for server in tree.servers() {
        assert_eq!(server.count("SELECT count(*) FROM @sync_revived"), 1, "{}", server.nickname());
        let lines = conflicts(server);
        let revived: Vec<_> = lines.iter().filter(|line| line["kind"] == "REVIVED").collect();
        assert_eq!(revived.len(), 1, "{}: {lines:?}", server.nickname());
        assert!(revived[0]["note"].as_str().unwrap().contains("`e1` of `encounter`"));
    }

    // It goes with its last referrer, on the server that deletes that, and on all others.
    tree.child2.sql("DELETE FROM encounter");
    settle(&tree);
    for server in tree.servers() {
        let name = server.nickname();
        assert_eq!(server.count("SELECT count(*) FROM encounter"), 0, "{name}");
        assert_eq!(server.count("SELECT count(*) FROM patient"), 0, "{name}");
        assert_eq!(server.count("SELECT count(*) FROM @sync_revived"), 0, "{name}");
    }
}

fn an_edit_brings_a_deleted_row_back_and_the_delete_can_be_kept(mix: Mix) {
    let tree = tree(mix, "");
    ward::admit(&tree.parent, "p1", "Ada");
    settle(&tree);
    tree.child.sql("DELETE FROM patient");
    tree.child2.sql("UPDATE patient SET bed = '9'");
    settle(&tree);
    assert_eq!(assert_equal(&tree, PATIENTS), [["p1", "Ada", "9"]]);
    let server = tree.servers().into_iter().find(|server| !conflicts(server).is_empty()).unwrap();
    let line = conflicts(server).remove(0);
    assert_eq!(line["kind"], "EDIT_AND_DELETE");
    assert_eq!(line["winner_server"], "child2");
    assert_eq!(line["loser_server"], "child");
    server.done(&["conflicts", "resolve", &line["id"].to_string(), "--keep", "loser"]);
    settle(&tree);
    assert!(assert_equal(&tree, PATIENTS).is_empty());
}

fn a_group_wins_as_one_and_a_row_may_be_one_group(mix: Mix) {
    let root = "[[class]]\nname = \"patient\"\npolicy = \"row\"\n\
                [[class]]\nname = \"encounter\"\ngroups = [[\"value\", \"unit\"]]\n";
    let tree = tree(mix, root);
    ward::admit(&tree.parent, "p1", "Ada");
    ward::encounter(&tree.parent, "e1", "p1");
    tree.parent.sql("UPDATE encounter SET value = 70, unit = 'kg', note = 'first'");
    settle(&tree);
    tree.child.sql("UPDATE encounter SET value = 154");
    tree.child.sql("UPDATE encounter SET note = 'by the child'");
    tree.child2.sql("UPDATE encounter SET unit = 'lb'");
    tree.child.sql("UPDATE patient SET name = 'Ada L.'");
    tree.child2.sql("UPDATE patient SET bed = '7'");
    settle(&tree);
    let rows = assert_equal(&tree, "SELECT value, unit, note FROM encounter");
    let (value, unit) = (rows[0][0].as_i64().unwrap(), rows[0][1].as_str().unwrap().to_owned());
    assert!([(154, "kg"), (70, "lb")].contains(&(value, unit.as_str())), "{rows:?}");
    assert_eq!(rows[0][2], "by the child", "no part of the group");
    let patient = assert_equal(&tree, "SELECT name, coalesce(bed, '') FROM patient").remove(0);
    let patient: Vec<&str> = patient.iter().map(|value| value.as_str().unwrap()).collect();
    assert!([["Ada L.", ""], ["Ada", "7"]].contains(&[patient[0], patient[1]]), "{patient:?}");

    // A group is turned round as one.
    let lines = conflicts(&tree.parent);
    let of_group: Vec<_> = lines.iter().filter(|line| line["class"] == "encounter").collect();
    let line = of_group.iter().find(|line| line["column_name"] == "value").unwrap();
    tree.parent.done(&["conflicts", "resolve", &line["id"].to_string(), "--keep", "loser"]);
    settle(&tree);
    let rows = assert_equal(&tree, "SELECT value, unit FROM encounter");
    let turned = (rows[0][0].as_i64().unwrap(), rows[0][1].as_str().unwrap().to_owned());
    assert!([(154, "kg"), (70, "lb")].contains(&(turned.0, turned.1.as_str())), "{turned:?}");
    assert_ne!(turned, (value, unit));
    assert!(conflicts(&tree.parent).iter().all(|line| line["class"] != "encounter"));
}

fn under_delete_wins_no_edit_brings_a_row_back(mix: Mix) {
    let tree = tree(mix, "[[class]]\nname = \"patient\"\npolicy = \"delete-wins\"\n");
    ward::admit(&tree.parent, "p1", "Ada");
    settle(&tree);
    tree.child.sql("DELETE FROM patient");
    tree.child2.sql("UPDATE patient SET bed = '9'");
    settle(&tree);
    assert!(assert_equal(&tree, PATIENTS).is_empty());
    let lines: Vec<Value> = tree.servers().into_iter().flat_map(conflicts).collect();
    assert!(lines.iter().any(|line| line["kind"] == "EDIT_AND_DELETE"), "{lines:?}");
}

fn under_hold_an_operator_decides(mix: Mix) {
    let tree = tree(mix, "[[class]]\nname = \"patient\"\npolicy = \"hold\"\n");
    ward::admit(&tree.parent, "p1", "Ada");
    settle(&tree);
    tree.child.sql("UPDATE patient SET name = 'by the child'");
    tree.child2.sql("UPDATE patient SET name = 'by the second'");
    settle(&tree);
    for server in tree.servers() {
        let held = server.texts("SELECT kind FROM @sync_held");
        assert_eq!(held, ["UNDECIDED"], "{}", server.nickname());
        let lines = conflicts(server);
        assert_eq!(lines[0]["kind"], "UNDECIDED", "{lines:?}");
        server.done(&["conflicts", "resolve", &lines[0]["id"].to_string(), "--keep", "winner"]);
    }
    settle(&tree);
    assert_equal(&tree, PATIENTS);
    for server in tree.servers() {
        assert_eq!(server.count("SELECT count(*) FROM @sync_held"), 0, "{}", server.nickname());
    }
}

fn a_server_that_merges_otherwise_holds_until_it_agrees(mix: Mix) {
    let tree = tree(mix, "[[class]]\nname = \"patient\"\npolicy = \"row\"\n");
    tree.configure(&tree.child, "[[class]]\nname = \"patient\"\npolicy = \"columns\"\n");
    ward::admit(&tree.parent, "p1", "Ada");
    settle(&tree);
    assert_eq!(tree.child.texts("SELECT kind FROM @sync_held"), ["MERGE_DIFFERS"]);
    assert_eq!(tree.child2.count("SELECT count(*) FROM patient"), 1);
    let said = tree.child.run(&["check"]).fails_with(3, &["`row` there and `columns` here"]);
    assert!(said.contains("`patient`"), "{said}");
    let status = tree.child.status_json();
    assert_eq!(status["merge_differs"][0]["class"], "patient");

    tree.configure(&tree.child, "");
    settle(&tree);
    assert_eq!(assert_equal(&tree, PATIENTS).len(), 1);
    assert_eq!(tree.child.count("SELECT count(*) FROM @sync_held"), 0);
}

macro_rules! on_every_mix {
    ($($test:ident)*) => {
        on_every_mix!(@mix postgres POSTGRES $($test)*);
        on_every_mix!(@mix sqlite SQLITE $($test)*);
        on_every_mix!(@mix mixed MIXED $($test)*);
    };
    (@mix $module:ident $mix:ident $($test:ident)*) => {
        mod $module {
            $(#[test]
            fn $test() {
                super::$test(super::$mix);
            })*
        }
    };
}
use on_every_mix;

on_every_mix! {
    edits_of_two_columns_both_survive_and_of_one_column_one_wins
    bytes_and_references_are_turned_round_in_full
    a_patient_that_one_deletes_stays_for_the_encounter_that_another_adds
    an_edit_brings_a_deleted_row_back_and_the_delete_can_be_kept
    a_group_wins_as_one_and_a_row_may_be_one_group
    under_delete_wins_no_edit_brings_a_row_back
    under_hold_an_operator_decides
    a_server_that_merges_otherwise_holds_until_it_agrees
}
