//! Messages that a broker loses.

use super::broker::Way;
use super::{clinic, tree, wait_for_answers, wait_for_patients};
use crate::support::cli::wait_until;
use crate::support::tree::{ARRIVES_WITHIN, Mix};

fn a_message_lost_from_the_middle_is_asked_for_and_sent_again(mix: Mix) {
    let tree = tree(mix);
    let way = Way::records(&tree, &tree.child, &tree.parent);
    for n in 0..4 {
        clinic::admit(&tree.child, &format!("p{n}"), "Ada");
        tree.child.sync();
    }
    way.lose(1);
    tree.parent.sync();
    assert_eq!(tree.parent.count("SELECT count(*) FROM patient"), 3, "nothing else waits");
    let epoch = "SELECT in_number FROM @sync_server WHERE nickname = 'child'";
    let floor = tree.parent.count(epoch);
    let _workers = [tree.parent.spawn_worker(), tree.child.spawn_worker()];
    wait_for_patients(&tree.parent, 4);
    wait_for_answers(&tree.child);
    wait_until("nothing is missed any more", ARRIVES_WITHIN, || tree.parent.count(epoch) > floor);
    assert_eq!(tree.parent.count("SELECT count(*) FROM @sync_import"), 4);
    // Only what was lost went twice.
    let again = "SELECT count(*) FROM @sync_record WHERE retry_count > 0";
    assert_eq!(tree.child.count(again), 1);
}

fn a_purged_queue_costs_nothing(mix: Mix) {
    let tree = tree(mix);
    for n in 0..3 {
        clinic::admit(&tree.child, &format!("p{n}"), "Ada");
    }
    tree.child.sync();
    assert!(Way::records(&tree, &tree.child, &tree.parent).purge() > 0);
    assert_eq!(tree.child.texts("SELECT DISTINCT state FROM @sync_record"), ["SENT"]);
    let _workers = [tree.parent.spawn_worker(), tree.child.spawn_worker()];
    wait_for_patients(&tree.parent, 3);
    wait_for_answers(&tree.child);
}

fn a_queue_purged_under_running_workers_costs_nothing(mix: Mix) {
    let tree = tree(mix);
    let child = tree.child.spawn_worker();
    clinic::admit(&tree.child, "p1", "Ada");
    wait_until("it is sent", ARRIVES_WITHIN, || {
        tree.child.texts("SELECT state FROM @sync_record") == ["SENT"]
    });
    assert!(Way::records(&tree, &tree.child, &tree.parent).purge() > 0);
    // Nobody tells the child; it does not start anew.
    let _parent = tree.parent.spawn_worker();
    wait_for_patients(&tree.parent, 1);
    wait_for_answers(&tree.child);
    drop(child);
}

fn queues_that_were_deleted_are_made_again_and_nothing_is_lost(mix: Mix) {
    let tree = tree(mix);
    let _workers = [tree.parent.spawn_worker(), tree.child.spawn_worker()];
    clinic::admit(&tree.child, "p0", "Ada");
    wait_for_patients(&tree.parent, 1);
    for (n, way) in [
        Way::records(&tree, &tree.child, &tree.parent),
        Way::acks(&tree, &tree.parent, &tree.child),
        Way::records(&tree, &tree.parent, &tree.child),
    ]
    .into_iter()
    .enumerate()
    {
        way.delete();
        clinic::admit(&tree.child, &format!("p{}", n + 1), "Ada");
        clinic::admit(&tree.parent, &format!("q{}", n + 1), "Grace");
        let count = 1 + 2 * (i64::try_from(n).unwrap() + 1);
        wait_for_patients(&tree.parent, count);
        wait_for_patients(&tree.child, count);
        wait_for_answers(&tree.child);
    }
}

fn acknowledgements_that_were_lost_are_made_good(mix: Mix) {
    let tree = tree(mix);
    clinic::admit(&tree.child, "p1", "Ada");
    tree.child.sync();
    tree.parent.sync();
    assert!(Way::acks(&tree, &tree.parent, &tree.child).purge() > 0);
    let confirmed = tree.parent.texts("SELECT state FROM @sync_import");
    assert_eq!(confirmed, ["COMMITTED_AND_CONFIRMATION_SENT"]);
    let _workers = [tree.parent.spawn_worker(), tree.child.spawn_worker()];
    wait_for_answers(&tree.child);
    assert_eq!(tree.parent.count("SELECT count(*) FROM patient"), 1);
}

fn a_link_that_moves_to_another_broker_takes_everything_along(mix: Mix) {
    let tree = tree(mix);
    clinic::admit(&tree.child, "p1", "Ada");
    clinic::admit(&tree.parent, "p2", "Grace");
    tree.child.sync();
    tree.parent.sync();
    clinic::admit(&tree.child, "p3", "left behind in the old queue");
    tree.child.sync();
    let folder = tempfile::tempdir().unwrap();
    let broker = format!("spool:{}", folder.path().join("moved").display());
    tree.parent.configure(&broker, super::NO_CLOCK);
    let settings = format!("parent_broker_url = \"{broker}\"\n{}", super::NO_CLOCK);
    tree.child.configure(&broker, &settings);
    let workers = [tree.parent.spawn_worker(), tree.child.spawn_worker()];
    wait_for_patients(&tree.parent, 3);
    wait_for_patients(&tree.child, 3);
    wait_for_answers(&tree.child);
    drop(workers);
}

super::on_mixes! {
    a_message_lost_from_the_middle_is_asked_for_and_sent_again
    a_purged_queue_costs_nothing
    a_queue_purged_under_running_workers_costs_nothing
    queues_that_were_deleted_are_made_again_and_nothing_is_lost
    acknowledgements_that_were_lost_are_made_good
    a_link_that_moves_to_another_broker_takes_everything_along
}
