//! Messages that cannot be read: kept as they came, told, and gone by themselves when they can be
//! read, or when what they carried came another way.

use crate::suite::tree::clinic::{self, PATIENTS, admit};
use crate::support::cli::{TestServer, wait_until};
use crate::support::tree::{
    ARRIVES_WITHIN, MIXED_AMQP, Mix, POSTGRES_AMQP, SQLITE_SPOOL, Tree, uuid,
};

const HELD: i32 = 3;

fn kinds(server: &TestServer) -> Vec<String> {
    server.texts("SELECT kind FROM @sync_held ORDER BY id")
}

fn a_message_whose_origins_key_is_learnt_later_goes_in_by_itself(mix: Mix) {
    let mut tree = Tree::unconnected(mix, "retry_after = \"100ms\"", clinic::database);
    tree.connect(&["--all"]);
    tree.exchange();
    // The second child has another key for the first, as after a tree was put together wrongly.
    let child = uuid(&tree.child);
    let of_child = format!("FROM @sync_origin WHERE uuid = '{child}'");
    let key = format!("SELECT public_key {of_child}");
    let key = tree.child2.texts(&key).remove(0);
    assert!(!key.is_empty() && key != "null", "the key is known: {key}");
    tree.child2.sql(&format!(
        "UPDATE @sync_origin SET public_key = \
         (SELECT public_key FROM @sync_origin WHERE uuid <> '{child}' LIMIT 1) WHERE uuid = '{child}'"
    ));
    admit(&tree.child, "p1", "Ada");
    tree.child.sync();
    tree.parent.sync();
    tree.child2.run(&["sync", "--idle", "300ms"]).fails_with(HELD, &["held"]);
    assert_eq!(kinds(&tree.child2), ["UNDECODABLE"]);
    let shown = tree.child2.json(&["held", "show", "1"]).remove(0);
    assert!(shown["header"].as_str().unwrap().starts_with("records"), "{shown}");

    let (start, end) = if tree.child2.is_sqlite() { ("x'", "'") } else { ("'\\x", "'") };
    let key = key.trim_start_matches("\\x");
    tree.child2.sql(&format!(
        "UPDATE @sync_origin SET public_key = {start}{key}{end} WHERE uuid = '{child}'"
    ));
    let _workers = tree.workers();
    tree.wait_until_equal(&tree.child, PATIENTS);
    wait_until("the line is gone", ARRIVES_WITHIN, || kinds(&tree.child2).is_empty());
    tree.wait_until_settled();
}

/// Over the spool, whose messages a test can damage.
#[test]
fn a_damaged_message_goes_once_its_records_came_by_another() {
    let settings = "retry_after = \"100ms\"\nresend_after = \"1s\"";
    let mut tree = Tree::unconnected(SQLITE_SPOOL, settings, clinic::database);
    tree.connect(&["--all"]);
    admit(&tree.child, "p1", "Ada");
    tree.child.sync();
    // A bit of the signature of each message that waits.
    for entry in std::fs::read_dir(tree.spool_folder(&tree.child, &tree.parent)).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(byte) = bytes.get_mut(70) {
            *byte ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
    tree.parent.run(&["sync", "--idle", "300ms"]).fails_with(HELD, &["held"]);
    assert!(kinds(&tree.parent).iter().all(|kind| kind == "UNDECODABLE"));
    let _workers = tree.workers();
    tree.wait_until_equal(&tree.child, PATIENTS);
    wait_until("what was damaged is gone", ARRIVES_WITHIN, || kinds(&tree.parent).is_empty());
    wait_until("the record is COMMITTED", ARRIVES_WITHIN, || {
        tree.child.texts("SELECT state FROM @sync_record") == ["COMMITTED"]
    });
}

#[test]
fn a_message_whose_origins_key_is_learnt_later_goes_in_on_every_mix() {
    for mix in [POSTGRES_AMQP, SQLITE_SPOOL, MIXED_AMQP] {
        a_message_whose_origins_key_is_learnt_later_goes_in_by_itself(mix);
    }
}
