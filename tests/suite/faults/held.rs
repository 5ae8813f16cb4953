//! Held records: seen, tried again, given up, told.

use crate::suite::tree::clinic::{self, PATIENTS, VISITS, admit, visit};
use crate::support::cli::{TestServer, wait_until};
use crate::support::tree::{ARRIVES_WITHIN, MIXED_AMQP, Mix, POSTGRES_AMQP, SQLITE_SPOOL, Tree};

const HELD: i32 = 3;

fn tree(mix: Mix, settings: &str) -> Tree {
    let mut tree = Tree::unconnected(mix, settings, clinic::database);
    tree.connect(&["--all"]);
    tree
}

/// Has a server refuse patients by this name, in words of its own, as a host's trigger does.
pub(super) fn refuse(server: &TestServer, name: &str) {
    server.sql(&if server.is_sqlite() {
        format!(
            "CREATE TRIGGER refuses BEFORE INSERT ON patient WHEN NEW.name = '{name}' \
             BEGIN SELECT RAISE(ABORT, 'no such patient is wanted'); END"
        )
    } else {
        format!(
            "CREATE FUNCTION refuses() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF NEW.name = '{name}' THEN RAISE EXCEPTION 'no such patient is wanted'; END IF; \
             RETURN NEW; END $$; \
             CREATE TRIGGER refuses BEFORE INSERT ON patient FOR EACH ROW \
             EXECUTE FUNCTION refuses()"
        )
    });
}

pub(super) fn refuse_no_more(server: &TestServer) {
    server.sql(if server.is_sqlite() {
        "DROP TRIGGER refuses"
    } else {
        "DROP TRIGGER refuses ON patient"
    });
}

/// Says that a transaction ends here, as the interceptor does: else neighbours share a record.
pub(super) fn mark(server: &TestServer) {
    if server.is_sqlite() {
        server.sql("INSERT INTO sync_mark VALUES (4)");
    }
}

/// Has a server of the chain refuse the new accounts of others; what refers to them waits.
pub(super) fn refuse_accounts(server: &TestServer, n: usize) {
    let others = format!("NEW.uuid LIKE 'x%' AND NEW.uuid NOT LIKE '%-{n}'");
    server.sql(&if server.is_sqlite() {
        format!(
            "CREATE TRIGGER refuses BEFORE INSERT ON account WHEN {others} \
             BEGIN SELECT RAISE(ABORT, 'no such account is wanted'); END"
        )
    } else {
        format!(
            "CREATE FUNCTION refuses() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF {others} THEN RAISE EXCEPTION 'no such account is wanted'; END IF; \
             RETURN NEW; END $$; CREATE TRIGGER refuses BEFORE INSERT ON account FOR EACH ROW \
             EXECUTE FUNCTION refuses()"
        )
    });
}

pub(super) fn refuse_accounts_no_more(server: &TestServer) {
    server.sql(if server.is_sqlite() {
        "DROP TRIGGER refuses"
    } else {
        "DROP TRIGGER refuses ON account; DROP FUNCTION refuses()"
    });
}

fn states(server: &TestServer) -> Vec<String> {
    server.texts("SELECT state FROM @sync_record ORDER BY id")
}

fn sync_held(server: &TestServer) {
    server.run(&["sync", "--idle", "300ms"]).fails_with(HELD, &["held"]);
}

/// A child's patient that the parent refuses, held there and told.
fn held_at_the_parent(mix: Mix, settings: &str) -> Tree {
    let tree = tree(mix, settings);
    refuse(&tree.parent, "poison");
    admit(&tree.child, "p1", "poison");
    tree.child.sync();
    sync_held(&tree.parent);
    tree.child.sync();
    tree
}

fn a_held_record_is_listed_shown_and_goes_in_by_hand(mix: Mix) {
    let tree = held_at_the_parent(mix, "retry_after = \"1h\"");
    let ended = tree.parent.run(&["held", "--json"]);
    assert_eq!(ended.code(), HELD, "{}", ended.stderr);
    let line: serde_json::Value = serde_json::from_str(ended.stdout.trim()).unwrap();
    assert_eq!(line["server"], "child");
    assert_eq!(line["kind"], "REFUSED");
    assert_eq!(line["classes"], "patient");
    assert_eq!(line["retry_count"], 0);
    assert!(line["reason"].as_str().unwrap().contains("wanted"), "{line}");
    assert!(line["next_attempt"].is_string() && line["held_at"].is_string(), "{line}");
    let original = tree.child.texts("SELECT uuid FROM @sync_record").remove(0);
    assert_eq!(line["original_uuid"], original.as_str());
    let id = line["id"].to_string();

    let shown = tree.parent.json(&["held", "show", &id]).remove(0);
    assert_eq!(shown["items"][0]["class"], "patient");
    assert_eq!(shown["items"][0]["key"], "p1");
    assert_eq!(shown["items"][0]["op"], "insert");
    assert!(shown["items"][0]["columns"].to_string().contains("weight"), "{shown}");
    assert!(!shown.to_string().contains("poison"), "no values unless asked for: {shown}");
    assert!(!tree.parent.done(&["held", "show", &id]).contains("poison"));
    let values = tree.parent.json(&["held", "show", &id, "--values"]).remove(0);
    assert_eq!(values["items"][0]["values"]["name"], "poison");

    // `status`, `check` and the exit status agree.
    assert_eq!(tree.parent.status_json()["held"], 1);
    tree.parent.run(&["check"]).fails_with(HELD, &["held"]);
    assert_eq!(states(&tree.child), ["FAILED"]);
    let message = tree.child.texts("SELECT error_message FROM @sync_record").remove(0);
    assert!(message.contains("wanted"), "{message}");

    // In vain, then not.
    tree.parent.run(&["held", "retry", &id]).fails_with(HELD, &["FAILED", "wanted"]);
    tree.parent.run(&["held", "retry", "999"]).fails_with(2, &["999"]);
    refuse_no_more(&tree.parent);
    assert!(tree.parent.done(&["held", "retry", "--all"]).contains("COMMITTED"));
    assert!(tree.parent.done(&["held"]).contains("Nothing"));
    tree.child.sync();
    assert_eq!(states(&tree.child), ["COMMITTED"]);
    assert_eq!(tree.parent.texts("SELECT name FROM patient"), ["poison"]);
    let audit = tree.parent.done(&["audit"]);
    assert!(audit.contains("held retry"), "{audit}");
}

fn a_held_record_that_is_dropped_is_rejected_at_its_sender(mix: Mix) {
    let tree = held_at_the_parent(mix, "");
    let id = tree.parent.texts("SELECT id FROM @sync_held").remove(0);
    tree.parent.run(&["held", "drop", &id]).fails_with(2, &["--yes"]);
    assert_eq!(tree.parent.status_json()["held"], 1);
    tree.parent.done(&["held", "drop", &id, "--yes"]);
    assert_eq!(tree.parent.status_json()["held"], 0);
    assert_eq!(tree.parent.texts("SELECT state FROM @sync_import"), ["REJECTED"]);
    tree.child.sync();
    assert_eq!(states(&tree.child), ["REJECTED"]);
    let message = tree.child.texts("SELECT error_message FROM @sync_record").remove(0);
    assert!(message.contains("dropped by an operator"), "{message}");
    assert!(tree.parent.done(&["audit"]).contains("held drop"));
    // It was passed on when it was held: it is at the other child.
    tree.exchange();
    assert_eq!(tree.child2.texts("SELECT name FROM patient"), ["poison"]);
    assert_eq!(tree.parent.count("SELECT count(*) FROM patient"), 0);
}

fn a_record_that_is_given_up_is_stopped_at_its_sender_and_starts_over_from_either_side(mix: Mix) {
    let tree = held_at_the_parent(mix, "retry_after = \"1ms\"\nretries_max = 3");
    let tries = "SELECT retry_count FROM @sync_held WHERE next_attempt IS NULL";
    let mut rounds = 0;
    while tree.parent.texts(tries).is_empty() {
        sync_held(&tree.parent);
        rounds += 1;
        assert!(rounds < 20, "it is never given up");
    }
    assert_eq!(tree.parent.texts(tries), ["3"]);
    assert_eq!(tree.parent.texts("SELECT state FROM @sync_import"), ["FAILED_AND_STOPPED"]);
    let why = tree.parent.texts("SELECT error_message FROM @sync_import").remove(0);
    assert!(why.contains("wanted"), "it survives the rollback: {why}");
    tree.child.sync();
    assert_eq!(states(&tree.child), ["FAILED_AND_STOPPED"]);

    // The sender delivers it again: it begins anew, and is told.
    tree.child.done(&["records", "reset"]);
    tree.child.sync();
    sync_held(&tree.parent);
    tree.child.sync();
    assert!(states(&tree.child)[0].starts_with("FAILED"), "{:?}", states(&tree.child));
    refuse_no_more(&tree.parent);
    tree.child.done(&["records", "reset", &tree.child.texts("SELECT uuid FROM @sync_record")[0]]);
    tree.child.sync();
    tree.exchange();
    assert_eq!(tree.parent.texts("SELECT name FROM patient"), ["poison"]);
    assert_eq!(states(&tree.child), ["COMMITTED"]);
    assert_eq!(tree.parent.status_json()["held"], 0);
}

fn only_what_needs_the_rows_of_a_poisoned_record_waits_and_all_goes_in_once_it_is_mended(mix: Mix) {
    // All of it in one go, however much it is.
    let tree = tree(mix, "retry_after = \"200ms\"\nunacknowledged_max = 1000000");
    refuse(&tree.parent, "poison");
    let many: usize =
        std::env::var("BRANCHLINE_POISON_RECORDS").map_or(400, |n| n.parse().unwrap());
    for n in 0..many {
        let name = if n == many / 2 { "poison" } else { "Ada" };
        admit(&tree.child, &format!("p{n:05}"), name);
        mark(&tree.child);
        if n % 2 == 0 {
            visit(&tree.child, &format!("v{n:05}"), &format!("p{n:05}"), "first");
            mark(&tree.child);
        }
    }
    let poisoned = format!("{:05}", many / 2);
    tree.child.sql(&format!("UPDATE visit SET note = 'second' WHERE uuid = 'v{poisoned}'"));
    tree.child.sync();
    let began = std::time::Instant::now();
    sync_held(&tree.parent);
    eprintln!("{mix:?}: {many} patients, one of them poisoned, took {:?}", began.elapsed());
    let patients = tree.parent.count("SELECT count(*) FROM patient");
    let visits = tree.parent.count("SELECT count(*) FROM visit");
    assert_eq!((patients, visits), (many as i64 - 1, many as i64 / 2 - 1), "{mix:?}");
    let kinds = tree.parent.texts("SELECT kind FROM @sync_held ORDER BY id");
    assert_eq!(kinds[..2], ["REFUSED", "MISSING_ROW"], "its visit");
    assert!(["GAP", "MISSING_ROW"].contains(&&*kinds[2]), "the edit of that: {kinds:?}");
    assert_eq!(kinds.len(), 3);
    let waits = tree.parent.json(&["held", "show", "2"]).remove(0);
    assert_eq!(waits["waits_for"][0]["key"], format!("p{poisoned}").as_str(), "{waits}");

    refuse_no_more(&tree.parent);
    let _workers = tree.workers();
    wait_until("the rest goes in", ARRIVES_WITHIN, || {
        tree.parent.query(VISITS) == tree.child.query(VISITS)
    });
    tree.wait_until_equal(&tree.child, PATIENTS);
    tree.wait_until_settled();
    assert_eq!(tree.parent.count("SELECT count(*) FROM @sync_held"), 0);
}

macro_rules! on_every_mix {
    (@mix $module:ident $mix:ident $($test:ident)*) => {
        mod $module {
            $(#[test]
            fn $test() {
                super::$test(super::$mix);
            })*
        }
    };
    ($($test:ident)*) => {
        on_every_mix!(@mix postgres_amqp POSTGRES_AMQP $($test)*);
        on_every_mix!(@mix sqlite_spool SQLITE_SPOOL $($test)*);
        on_every_mix!(@mix mixed_amqp MIXED_AMQP $($test)*);
    };
}

on_every_mix! {
    a_held_record_is_listed_shown_and_goes_in_by_hand
    a_held_record_that_is_dropped_is_rejected_at_its_sender
    a_record_that_is_given_up_is_stopped_at_its_sender_and_starts_over_from_either_side
    only_what_needs_the_rows_of_a_poisoned_record_waits_and_all_goes_in_once_it_is_mended
}
