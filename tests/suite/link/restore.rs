//! Servers whose database is put back to an older state.

use super::{clinic, tree_with};
use crate::suite::tree::clinic::{PATIENTS, VISITS};
use crate::support::cli::{TestServer, wait_until};
use crate::support::tree::{ARRIVES_WITHIN, Mix, Tree};

/// A hello now and then; no record is sent again by the clock.
const SETTINGS: &str = "hello_every = \"3s\"\nresend_after = \"1h\"";

/// Waits until these servers hold the same, and nothing is held.
#[track_caller]
fn wait_until_equal(servers: &[&TestServer], patients: i64) {
    for server in servers {
        let what = format!("{} has all {patients} patients", server.nickname());
        wait_until(&what, ARRIVES_WITHIN, || {
            server.count("SELECT count(*) FROM patient") == patients
        });
    }
    for sql in [PATIENTS, VISITS] {
        wait_until(&format!("all have the same of {sql}"), ARRIVES_WITHIN, || {
            let rows = servers[0].query(sql);
            servers.iter().all(|server| server.query(sql) == rows)
        });
    }
    for server in servers {
        wait_until("nothing is held", ARRIVES_WITHIN, || {
            server.count("SELECT count(*) FROM @sync_held") == 0
        });
    }
}

fn incarnation(server: &TestServer) -> i64 {
    server.count("SELECT incarnation FROM @sync_self")
}

fn a_restored_child_gets_back_what_it_lost_and_loses_nothing_since(mix: Mix) {
    let tree = tree_with(mix, SETTINGS);
    clinic::admit(&tree.child, "p1", "Ada");
    tree.exchange();
    let backup = tree.child.backup();
    tree.child.sql("UPDATE patient SET name = 'Ada L.' WHERE uuid = 'p1'");
    clinic::admit(&tree.child, "p2", "Grace");
    clinic::visit(&tree.child, "v1", "p2", "lost with the disk");
    clinic::admit(&tree.parent, "p3", "Joan");
    tree.exchange();
    clinic::admit(&tree.child2, "p4", "Mary");
    clinic::visit(&tree.child2, "v2", "p1", "of the second child");
    tree.exchange();
    assert_eq!(tree.child.count("SELECT count(*) FROM patient"), 4);

    tree.child.restore(&backup);
    assert_eq!(tree.child.count("SELECT count(*) FROM patient"), 1);
    // Work goes on before anybody has noticed.
    tree.child.sql("UPDATE patient SET weight = 48.25 WHERE uuid = 'p1'");
    clinic::admit(&tree.child, "p5", "Rosa");
    tree.child.run(&["sync", "--idle", "300ms"]);
    clinic::visit(&tree.child, "v3", "p5", "since");
    let _workers = tree.workers();
    wait_until_equal(&tree.servers(), 5);
    assert_eq!(tree.parent.count("SELECT count(*) FROM visit"), 3);
    let ada = "SELECT count(*) FROM patient WHERE name = 'Ada L.' AND weight < 49";
    assert_eq!(tree.child2.count(ada), 1, "both edits count");
    assert!(incarnation(&tree.child) > 1);
    tree.wait_until_settled();
    // And it goes on as usual.
    clinic::admit(&tree.child, "p6", "Emmy");
    clinic::admit(&tree.parent, "p7", "Lise");
    wait_until_equal(&tree.servers(), 7);
}

fn a_restored_parent_gets_back_what_it_lost(mix: Mix) {
    let tree = tree_with(mix, SETTINGS);
    clinic::admit(&tree.child, "p1", "Ada");
    tree.exchange();
    let backup = tree.parent.backup();
    clinic::admit(&tree.parent, "p2", "Grace");
    clinic::admit(&tree.child, "p3", "Joan");
    tree.exchange();
    tree.child2.sql("UPDATE patient SET name = 'Ada L.' WHERE uuid = 'p1'");
    tree.exchange();

    tree.parent.restore(&backup);
    clinic::admit(&tree.parent, "p4", "Rosa");
    let _workers = tree.workers();
    wait_until_equal(&tree.servers(), 4);
    assert_eq!(tree.parent.count("SELECT count(*) FROM patient WHERE name = 'Ada L.'"), 1);
    assert!(incarnation(&tree.parent) > 1);
    clinic::admit(&tree.child2, "p5", "Emmy");
    wait_until_equal(&tree.servers(), 5);
    tree.wait_until_settled();
}

fn where_no_record_is_left_whole_rows_come(mix: Mix) {
    let mut tree = Tree::unconnected(mix, SETTINGS, clinic::database);
    tree.prepare(&["--all"]);
    tree.child.join(&tree.parent.invite("child"));
    let pair = [&tree.parent, &tree.child];
    let exchange = || {
        for _ in 0..4 {
            for server in pair {
                server.sync();
            }
        }
    };
    exchange();
    clinic::admit(&tree.child, "p1", "Ada");
    exchange();
    let backup = tree.child.backup();
    clinic::admit(&tree.child, "p2", "Grace");
    clinic::visit(&tree.child, "v1", "p2", "lost with the disk");
    clinic::admit(&tree.parent, "p3", "Joan");
    exchange();
    assert_eq!(tree.parent.count("SELECT count(*) FROM patient"), 3);
    // The parent passes nothing on, so it kept no record of the child's; and it has cleaned up.
    tree.parent.sql("DELETE FROM @sync_record");
    tree.child.restore(&backup);
    clinic::admit(&tree.child, "p4", "Rosa");
    let _workers = [tree.parent.spawn_worker(), tree.child.spawn_worker()];
    wait_until_equal(&pair, 4);
    assert!(incarnation(&tree.child) > 1);
}

super::on_mixes! {
    a_restored_child_gets_back_what_it_lost_and_loses_nothing_since
    a_restored_parent_gets_back_what_it_lost
    where_no_record_is_left_whole_rows_come
}
