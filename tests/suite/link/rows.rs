//! Whole rows: for a record that waits for one that never comes, and for a new child.

use super::broker::Way;
use super::{clinic, tree, tree_with, wait_for_answers, wait_for_patients};
use crate::suite::tree::clinic::{PATIENTS, VISITS};
use crate::support::cli::wait_until;
use crate::support::tree::{ARRIVES_WITHIN, Mix, Tree};

fn a_row_that_never_comes_is_asked_for_whole(mix: Mix) {
    let tree = tree_with(mix, "hello_every = \"1h\"\nresend_after = \"2s\"");
    clinic::admit(&tree.child, "p1", "Ada");
    tree.child.sync();
    // The record is lost on the way, and with its sender as well.
    Way::records(&tree, &tree.child, &tree.parent).purge();
    tree.child.sql("DELETE FROM @sync_record");
    tree.child.sql("UPDATE patient SET name = 'Ada L.'");
    clinic::visit(&tree.child, "v1", "p1", "refers to it");
    clinic::admit(&tree.child, "p2", "Grace");
    let _workers = [tree.parent.spawn_worker(), tree.child.spawn_worker()];
    wait_for_patients(&tree.parent, 2);
    let rows = tree.child.query(VISITS);
    wait_until("the parent has it whole", ARRIVES_WITHIN, || tree.parent.query(VISITS) == rows);
    assert_eq!(tree.parent.query(PATIENTS), tree.child.query(PATIENTS));
    wait_until("nothing is held", ARRIVES_WITHIN, || {
        tree.parent.count("SELECT count(*) FROM @sync_held") == 0
    });
    wait_for_answers(&tree.child);
}

fn whole_rows_lost_on_the_way_come_again(mix: Mix) {
    let tree = tree(mix);
    tree.parent.done(&["class", "exclude", "patient", "--server", "child", "--send"]);
    clinic::admit(&tree.parent, "p1", "Ada");
    tree.parent.sync();
    tree.parent.done(&["class", "include", "patient", "--server", "child", "--send"]);
    tree.parent.sql(
        "INSERT INTO @sync_row_due (server_id, class_id, key) SELECT s.id, t.id, 'p1' \
         FROM @sync_server s, @sync_tracked t WHERE s.nickname = 'child' AND t.class = 'patient'",
    );
    tree.parent.sync();
    assert!(Way::records(&tree, &tree.parent, &tree.child).purge() > 0);
    let _workers = [tree.parent.spawn_worker(), tree.child.spawn_worker()];
    wait_for_patients(&tree.child, 1);
    wait_until("the parent knows that it is there", ARRIVES_WITHIN, || {
        tree.parent.count("SELECT count(*) FROM @sync_row_due") == 0
    });
    assert_eq!(tree.child.query(PATIENTS), tree.parent.query(PATIENTS));
}

fn a_new_child_gets_all_rows(mix: Mix) {
    let mut tree = Tree::unconnected(mix, "", clinic::database);
    // Rows from before tracking, and rows with a history.
    clinic::admit(&tree.parent, "old", "Ada");
    clinic::visit(&tree.parent, "v-old", "old", "before tracking");
    tree.prepare(&["--all"]);
    for n in 0..40 {
        clinic::admit(&tree.parent, &format!("p{n:02}"), "Grace");
        clinic::visit(&tree.parent, &format!("v{n:02}"), &format!("p{n:02}"), "first");
    }
    tree.parent.sql("UPDATE patient SET name = 'Grace H.' WHERE uuid > 'p20'");
    tree.parent.sql("DELETE FROM visit WHERE uuid > 'v35'");
    tree.parent.sync();
    let token = tree.parent.done(&["invite", "child"]);
    tree.child.join(token.trim());
    let _workers = [tree.parent.spawn_worker(), tree.child.spawn_worker()];
    let rows = tree.parent.query(VISITS);
    wait_until("the child has all visits", ARRIVES_WITHIN, || tree.child.query(VISITS) == rows);
    assert_eq!(tree.child.query(PATIENTS), tree.parent.query(PATIENTS));
    wait_until("nothing is under way", ARRIVES_WITHIN, || {
        tree.parent.count("SELECT count(*) FROM @sync_row_due") == 0
    });
    assert_eq!(tree.child.count("SELECT count(*) FROM @sync_held"), 0);

    // From now on both edit what both have.
    tree.child.sql("UPDATE patient SET weight = 70.25 WHERE uuid = 'old'");
    tree.parent.sql("UPDATE patient SET name = 'Joan' WHERE uuid = 'p30'");
    tree.parent.sql("DELETE FROM visit WHERE uuid = 'v-old'");
    wait_until("both have all of it", ARRIVES_WITHIN, || {
        tree.child.query(PATIENTS) == tree.parent.query(PATIENTS)
            && tree.child.count("SELECT count(*) FROM patient WHERE name = 'Joan'") == 1
            && tree.parent.count("SELECT count(*) FROM patient WHERE weight > 70") == 1
            && tree.child.query(VISITS) == tree.parent.query(VISITS)
    });
    assert_eq!(tree.child.count("SELECT count(*) FROM @sync_conflict"), 0);
}

super::on_mixes! {
    a_row_that_never_comes_is_asked_for_whole
    whole_rows_lost_on_the_way_come_again
    a_new_child_gets_all_rows
}
