//! Servers of one tree on different versions of the host's schema.

use super::{clinic, tree_with};
use crate::support::cli::{TestServer, wait_until};
use crate::support::tree::{ARRIVES_WITHIN, Mix, Tree};

const SETTINGS: &str = "hello_every = \"3s\"\nresend_after = \"1h\"";
const PHONES: &str = "SELECT uuid, name, phone FROM patient ORDER BY uuid";
const WARDS: &str = "SELECT code, label FROM ward ORDER BY code";

fn migrate(server: &TestServer) {
    server.sql("ALTER TABLE patient ADD COLUMN phone text");
    server.sql("CREATE TABLE ward (code varchar(9) PRIMARY KEY, label text)");
    server.track(&["--all"]);
}

#[track_caller]
fn wait_for(server: &TestServer, from: &TestServer, sql: &str) {
    let rows = from.query(sql);
    let what = format!("{} has what {} has of {sql}", server.nickname(), from.nickname());
    wait_until(&what, ARRIVES_WITHIN, || server.query(sql) == rows);
}

/// What happens at the servers that are up to date while another is not.
fn edit(one: &TestServer, other: &TestServer) {
    clinic::admit(one, "old", "Ada");
    one.sql("UPDATE patient SET phone = '1' WHERE uuid = 'old'");
    one.sql("INSERT INTO patient (uuid, name, phone) VALUES ('new', 'Grace', '2')");
    one.sql("INSERT INTO ward VALUES ('a', 'first')");
    clinic::visit(one, "v1", "new", "refers to a row that is held");
    wait_for(other, one, PHONES);
    wait_for(other, one, WARDS);
    // Changed again meanwhile, by the other, and one is gone.
    other.sql("UPDATE patient SET phone = '3' WHERE uuid = 'new'");
    other.sql("UPDATE ward SET label = 'changed meanwhile'");
    other.sql("INSERT INTO ward VALUES ('b', 'for a while')");
    other.sql("DELETE FROM ward WHERE code = 'b'");
    wait_until("the edits are back", ARRIVES_WITHIN, || {
        one.count("SELECT count(*) FROM patient WHERE phone = '3'") == 1
            && one.count("SELECT count(*) FROM ward WHERE label = 'changed meanwhile'") == 1
    });
}

fn goes_in_after_the_migration(tree: &Tree, behind: &TestServer) {
    assert!(behind.count("SELECT count(*) FROM @sync_held") > 0);
    migrate(behind);
    for server in tree.servers() {
        wait_for(server, &tree.child, PHONES);
        wait_for(server, &tree.child, WARDS);
        wait_for(server, &tree.child, clinic::VISITS);
        wait_until("nothing is held", ARRIVES_WITHIN, || {
            server.count("SELECT count(*) FROM @sync_held") == 0
        });
    }
    tree.wait_until_settled();
    // And its own edits of what is new go out.
    behind.sql("UPDATE patient SET phone = '4' WHERE uuid = 'old'");
    for server in tree.servers() {
        wait_for(server, behind, PHONES);
    }
}

fn a_middle_server_that_is_behind_passes_on_what_it_does_not_know(mix: Mix) {
    let tree = tree_with(mix, SETTINGS);
    migrate(&tree.child);
    migrate(&tree.child2);
    let _workers = tree.workers();
    edit(&tree.child, &tree.child2);
    goes_in_after_the_migration(&tree, &tree.parent);
}

fn a_child_that_is_behind_loses_nothing(mix: Mix) {
    let tree = tree_with(mix, SETTINGS);
    migrate(&tree.child);
    migrate(&tree.parent);
    let _workers = tree.workers();
    edit(&tree.child, &tree.parent);
    // What it knows goes on meanwhile.
    clinic::admit(&tree.child2, "p9", "Rosa");
    wait_until("its own rows go out", ARRIVES_WITHIN, || {
        tree.child.count("SELECT count(*) FROM patient WHERE uuid = 'p9'") == 1
    });
    wait_until("and it holds what it does not know", ARRIVES_WITHIN, || {
        tree.child2.count("SELECT count(*) FROM @sync_held") > 0
    });
    goes_in_after_the_migration(&tree, &tree.child2);
}

super::on_mixes! {
    a_middle_server_that_is_behind_passes_on_what_it_does_not_know
    a_child_that_is_behind_loses_nothing
}
