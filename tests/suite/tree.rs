//! A parent and two children, each a process of its own beside a database of its own, on three
//! mixes of databases and brokers.

mod again;
mod capture;
pub(crate) mod clinic;
mod contention;
mod errors;
mod merge;
mod publisher;

use std::collections::BTreeSet;

use self::again::Messages;
use self::clinic::{PATIENTS, VISITS, admit, visit};
use self::publisher::{
    a_process_that_died_while_it_published_keeps_a_link_only_for_a_while,
    processes_that_publish_side_by_side_send_nothing_twice,
    what_an_application_commits_is_published_without_a_worker,
};
use crate::support::cli::{TestServer, wait_until};
use crate::support::tree::{ARRIVES_WITHIN, MIXED_AMQP, Mix, POSTGRES_AMQP, SQLITE_SPOOL, Tree};

fn tree(mix: Mix) -> Tree {
    let mut tree = Tree::unconnected(mix, "", clinic::database);
    tree.connect(&["--all"]);
    tree
}

fn records(server: &TestServer) -> Vec<String> {
    server.texts("SELECT state FROM @sync_record ORDER BY id")
}

fn imports(server: &TestServer) -> Vec<String> {
    server.texts("SELECT state FROM @sync_import ORDER BY timestamp")
}

/// What stands at the parent for a child, record by record.
fn deliveries(parent: &TestServer, child: &TestServer) -> Vec<String> {
    parent.texts(&format!(
        "SELECT r.state FROM @sync_server_record r JOIN @sync_server s ON s.id = r.server_id \
         WHERE s.nickname = '{}' ORDER BY r.record_id",
        child.nickname()
    ))
}

fn inserts_updates_and_deletes_travel_to_every_server(mix: Mix) {
    let tree = tree(mix);
    let _workers = tree.workers();
    admit(&tree.child, "p1", "Ada");
    visit(&tree.child, "v1", "p1", "first");
    visit(&tree.child, "v2", "p1", "second");
    assert_eq!(tree.wait_until_equal(&tree.child, VISITS).len(), 2);
    let ids: BTreeSet<i64> =
        tree.servers().iter().map(|server| server.count("SELECT id FROM patient")).collect();
    assert_eq!(ids.len(), 3, "every server has an id of its own: {ids:?}");

    tree.child.sql("UPDATE patient SET name = 'Ada L.', born = NULL, weight = 62.25");
    tree.child.sql("DELETE FROM visit WHERE uuid = 'v1'");
    assert_eq!(tree.wait_until_equal(&tree.child, VISITS).len(), 1);
    tree.wait_until_equal(&tree.child, PATIENTS);

    // And from the parent down, and from the second child to the first.
    admit(&tree.parent, "p2", "Grace");
    tree.wait_until_equal(&tree.parent, PATIENTS);
    visit(&tree.child2, "v3", "p2", "at the second child");
    assert_eq!(tree.wait_until_equal(&tree.child2, VISITS).len(), 2);
    tree.wait_until_settled();
}

fn a_record_has_its_state_at_each_place(mix: Mix) {
    let tree = tree(mix);
    admit(&tree.child, "p1", "Ada");
    assert_eq!(tree.child.count("SELECT count(*) FROM @sync_change"), 1);
    tree.child.sync();
    assert_eq!(tree.child.count("SELECT count(*) FROM @sync_change"), 0);
    assert_eq!(records(&tree.child), ["SENT"]);

    tree.parent.sync();
    assert_eq!(imports(&tree.parent), ["COMMITTED_AND_CONFIRMATION_SENT"]);
    assert_eq!(records(&tree.parent), ["NEW"], "without a parent, for ever");
    assert_eq!(deliveries(&tree.parent, &tree.child), ["COMMITTED"], "it came from there");
    assert_eq!(deliveries(&tree.parent, &tree.child2), ["SENT"]);

    tree.child.sync();
    assert_eq!(records(&tree.child), ["COMMITTED"]);
    tree.child2.sync();
    assert_eq!(imports(&tree.child2), ["COMMITTED_AND_CONFIRMATION_SENT"]);
    assert!(records(&tree.child2).iter().all(|state| state == "COMMITTED"));
    tree.parent.sync();
    assert_eq!(deliveries(&tree.parent, &tree.child2), ["COMMITTED"]);
    assert_eq!(records(&tree.parent), ["NEW"]);

    let original = tree.child.texts("SELECT uuid FROM @sync_record");
    assert_eq!(tree.child.texts("SELECT original_uuid FROM @sync_record"), original);
    assert_eq!(tree.parent.texts("SELECT original_uuid FROM @sync_record"), original);
    assert_ne!(tree.parent.texts("SELECT uuid FROM @sync_record"), original, "new on each hop");
    assert_eq!(tree.child2.texts("SELECT original_uuid FROM @sync_import"), original);
}

fn one_transaction_is_one_record_everywhere(mix: Mix) {
    let tree = tree(mix);
    tree.child.transaction(&[
        "INSERT INTO patient (uuid, name) VALUES ('p1', 'Ada'), ('p2', 'Grace')",
        "UPDATE patient SET name = 'Ada L.' WHERE uuid = 'p1'",
        "INSERT INTO visit (uuid, patient_id) SELECT 'v' || uuid, id FROM patient",
    ]);
    tree.exchange();
    assert_eq!(tree.child.count("SELECT count(*) FROM @sync_record"), 1);
    assert_eq!(tree.child2.count("SELECT count(*) FROM @sync_import"), 1);
    assert_eq!(tree.wait_until_equal(&tree.child, VISITS).len(), 2);

    // What was rolled back never was.
    tree.child.sql("BEGIN; DELETE FROM visit; ROLLBACK");
    tree.exchange();
    assert_eq!(tree.child.count("SELECT count(*) FROM @sync_record"), 1);
    assert_eq!(tree.child2.query(VISITS).len(), 2);
}

/// Delivers a record again before and after the parent has it, to some workers at once.
fn deliver_again(mix: Mix, times: u32, workers: usize) {
    let tree = tree(mix);
    admit(&tree.child, "p1", "Ada");
    visit(&tree.child, "v1", "p1", "first");
    tree.child.sync();
    let made = tree.child.count("SELECT count(*) FROM @sync_record");
    let messages = Messages::waiting(&tree, &tree.child, &tree.parent);
    messages.deliver_again(times);
    receive(&tree, workers, || tree.parent.query(VISITS).len() == 1);
    tree.exchange();

    // What was done since must not be undone by a late copy.
    tree.parent.sql("UPDATE patient SET name = 'Ada of the parent'");
    tree.parent.sql("DELETE FROM visit");
    tree.exchange();
    messages.deliver_again(times);
    let again = "SELECT count(*) FROM @sync_import WHERE state = 'ALREADY_COMMITTED'";
    receive(&tree, workers, || tree.parent.count(again) == made);
    tree.exchange();

    for server in tree.servers() {
        assert_eq!(server.texts("SELECT name FROM patient"), ["Ada of the parent"]);
        assert_eq!(server.count("SELECT count(*) FROM visit"), 0, "{}", server.nickname());
    }
    let own = tree.parent.count(
        "SELECT count(*) FROM @sync_record WHERE original_uuid NOT IN \
         (SELECT original_uuid FROM @sync_import)",
    );
    assert_eq!(tree.parent.count("SELECT count(*) FROM @sync_import"), made);
    assert_eq!(tree.parent.count("SELECT count(*) FROM @sync_record"), made + own);
    assert_eq!(tree.child2.count("SELECT count(*) FROM @sync_import"), made + own);
    let states = tree.child.texts("SELECT DISTINCT state FROM @sync_record");
    assert_eq!(states, ["COMMITTED"], "no late acknowledgement undoes it");
}

/// Lets the parent receive, by `sync` or by so many workers at once, until it has it.
fn receive(tree: &Tree, workers: usize, has_it: impl Fn() -> bool) {
    if workers == 0 {
        tree.parent.sync();
        assert!(has_it(), "{}", tree.parent.status_json());
        return;
    }
    let workers: Vec<_> = (0..workers).map(|_| tree.parent.spawn_worker()).collect();
    wait_until("the parent has the record", ARRIVES_WITHIN, has_it);
    for worker in workers {
        assert!(worker.stop().success(), "SIGTERM ends a worker in order");
    }
}

fn a_record_delivered_twice_has_one_effect(mix: Mix) {
    deliver_again(mix, 1, 0);
}

fn a_record_delivered_ten_times_has_one_effect(mix: Mix) {
    deliver_again(mix, 9, 0);
}

fn a_record_delivered_to_two_workers_at_once_has_one_effect(mix: Mix) {
    deliver_again(mix, 4, 2);
}

fn a_rule_of_the_sender_keeps_a_class_back(mix: Mix) {
    let tree = tree(mix);
    tree.child.done(&["class", "exclude", "visit", "--server", "parent", "--send"]);
    admit(&tree.child, "p1", "Ada");
    tree.exchange();
    visit(&tree.child, "v1", "p1", "kept back");
    tree.exchange();
    assert_eq!(records(&tree.child), ["COMMITTED", "NOT_SUPPOSED_TO_SYNC"]);
    assert_eq!(tree.parent.count("SELECT count(*) FROM visit"), 0);
    assert_eq!(tree.parent.count("SELECT count(*) FROM @sync_import"), 1);
    // The other way is as open as before.
    visit(&tree.parent, "v2", "p1", "of the parent");
    tree.exchange();
    assert_eq!(tree.child.count("SELECT count(*) FROM visit WHERE uuid = 'v2'"), 1);
}

fn a_rule_of_the_receiver_rejects_a_class(mix: Mix) {
    let tree = tree(mix);
    tree.parent.done(&["class", "exclude", "visit", "--server", "child", "--receive"]);
    admit(&tree.child, "p1", "Ada");
    tree.exchange();
    visit(&tree.child, "v1", "p1", "refused");
    tree.exchange();
    assert_eq!(records(&tree.child), ["COMMITTED", "REJECTED"]);
    for server in [&tree.parent, &tree.child2] {
        assert_eq!(server.count("SELECT count(*) FROM visit"), 0, "{}", server.nickname());
    }
    // Of one transaction the allowed part goes through.
    tree.child.transaction(&[
        "INSERT INTO visit (uuid, patient_id) SELECT 'v2', id FROM patient",
        "UPDATE patient SET name = 'Ada L.'",
    ]);
    tree.exchange();
    assert_eq!(records(&tree.child), ["COMMITTED", "REJECTED", "COMMITTED"]);
    assert_eq!(tree.child2.texts("SELECT name FROM patient"), ["Ada L."]);
    assert_eq!(tree.child2.count("SELECT count(*) FROM visit"), 0);
}

fn a_child_that_was_offline_catches_up(mix: Mix) {
    let tree = tree(mix);
    let _online = [tree.parent.spawn_worker(), tree.child.spawn_worker()];
    for n in 0..30 {
        admit(&tree.child, &format!("p{n:02}"), "Ada");
        visit(&tree.child, &format!("v{n:02}"), &format!("p{n:02}"), "first");
    }
    tree.child.sql("UPDATE patient SET name = 'Grace' WHERE uuid > 'p19'");
    // Edits of its own meanwhile, too.
    admit(&tree.child2, "offline", "Joan");
    let expected = tree.child.query(VISITS);
    wait_until("the parent has all of it", ARRIVES_WITHIN, || {
        tree.parent.query(VISITS) == expected
    });
    assert_eq!(tree.child2.count("SELECT count(*) FROM visit"), 0);

    let _back = tree.child2.spawn_worker();
    tree.wait_until_equal(&tree.child, VISITS);
    wait_until("its own edit is everywhere", ARRIVES_WITHIN, || {
        tree.servers().iter().all(|server| server.query(PATIENTS).len() == 31)
    });
    tree.wait_until_settled();
}

fn workers_that_are_killed_lose_and_double_nothing(mix: Mix) {
    let tree = tree(mix);
    let mut workers = tree.workers();
    for n in 0..12 {
        admit(&tree.child, &format!("p{n:02}"), "Ada");
        visit(&tree.child, &format!("v{n:02}"), &format!("p{n:02}"), "first");
        let victim = tree.servers()[n % 3];
        workers.insert(victim.nickname().to_owned(), victim.spawn_worker()); // the former one dies
    }
    assert_eq!(tree.wait_until_equal(&tree.child, VISITS).len(), 12);
    tree.wait_until_settled();
    let made = tree.child.count("SELECT count(*) FROM @sync_record");
    assert_eq!(tree.child2.count("SELECT count(*) FROM @sync_import"), made);
    assert_eq!(tree.child2.count("SELECT count(*) FROM @sync_held"), 0);
}

macro_rules! on_every_mix {
    ($($test:ident)*) => {
        on_every_mix!(@mix postgres_amqp POSTGRES_AMQP $($test)*);
        on_every_mix!(@mix sqlite_spool SQLITE_SPOOL $($test)*);
        on_every_mix!(@mix mixed_amqp MIXED_AMQP $($test)*);
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

on_every_mix! {
    inserts_updates_and_deletes_travel_to_every_server
    a_record_has_its_state_at_each_place
    one_transaction_is_one_record_everywhere
    a_record_delivered_twice_has_one_effect
    a_record_delivered_ten_times_has_one_effect
    a_record_delivered_to_two_workers_at_once_has_one_effect
    a_rule_of_the_sender_keeps_a_class_back
    a_rule_of_the_receiver_rejects_a_class
    a_child_that_was_offline_catches_up
    workers_that_are_killed_lose_and_double_nothing
    what_an_application_commits_is_published_without_a_worker
    processes_that_publish_side_by_side_send_nothing_twice
    a_process_that_died_while_it_published_keeps_a_link_only_for_a_while
}
