//! Two servers that are one: a database was copied, and both go on.

use super::{clinic, tree_with, wait_for_patients};
use crate::support::cli::{TestServer, wait_until};
use crate::support::tree::{ARRIVES_WITHIN, Mix};

const SETTINGS: &str = "hello_every = \"1s\"\nresend_after = \"1h\"";

/// Another server in the same place, with a copy of the database.
fn copy_of(server: &TestServer) -> TestServer {
    let database = server.backup();
    let text = std::fs::read_to_string(server.dir().join("branchline.toml")).unwrap();
    let line = text.lines().find(|line| line.starts_with("broker_url")).unwrap();
    let broker = line.split('"').nth(1).unwrap().to_owned();
    TestServer::new(server.nickname(), database, &broker, SETTINGS)
}

fn error_at(parent: &TestServer) -> String {
    let status = parent.status_json();
    let children = status["children"].as_array().unwrap();
    let child = children.iter().find(|child| child["nickname"] == "child").unwrap();
    child["error_message"].as_str().unwrap_or_default().to_owned()
}

fn copies_are_both_refused_until_one_is_another_server(mix: Mix) {
    let tree = tree_with(mix, SETTINGS);
    clinic::admit(&tree.child, "p1", "Ada");
    tree.exchange();
    let copy = copy_of(&tree.child);
    let _workers = [tree.parent.spawn_worker(), tree.child.spawn_worker()];
    let worker = copy.spawn_worker();
    wait_until("the parent sees that there are two", ARRIVES_WITHIN, || {
        error_at(&tree.parent).contains("two servers speak as `child`")
    });
    let error = error_at(&tree.parent);
    assert_eq!(error.matches("session ").count(), 2, "both are named: {error}");
    assert!(error.contains("--new-identity"), "{error}");
    clinic::admit(&tree.child, "p2", "Grace");
    clinic::admit(&copy, "p3", "of the copy");
    wait_until("whoever listens is told", ARRIVES_WITHIN, || {
        [&tree.child, &copy].iter().any(|server| {
            let status = server.status_json();
            status["parent"]["error_message"].to_string().contains("two servers speak")
        })
    });
    assert_eq!(tree.parent.count("SELECT count(*) FROM patient"), 1, "of both nothing is taken");

    worker.stop();
    copy.done(&["init", "--nickname", "another", "--new-identity"]);
    wait_for_patients(&tree.parent, 2);
    wait_until("it is in order again", ARRIVES_WITHIN, || error_at(&tree.parent).is_empty());
    clinic::admit(&tree.child, "p4", "Joan");
    clinic::admit(&tree.parent, "p5", "Mary");
    wait_for_patients(&tree.parent, 4);
    wait_for_patients(&tree.child, 4);
}

fn two_workers_of_one_server_are_no_copies(mix: Mix) {
    let tree = tree_with(mix, SETTINGS);
    let _workers =
        [tree.parent.spawn_worker(), tree.child.spawn_worker(), tree.child.spawn_worker()];
    let hellos =
        || tree.parent.count("SELECT in_number FROM @sync_server WHERE nickname = 'child'");
    let before = hellos();
    for n in 0..5 {
        clinic::admit(&tree.child, &format!("p{n}"), "Ada");
    }
    wait_for_patients(&tree.parent, 5);
    wait_until("both have said hello some times", ARRIVES_WITHIN, || hellos() > before + 12);
    assert_eq!(error_at(&tree.parent), "");
    assert_eq!(tree.child.count("SELECT incarnation FROM @sync_self"), 1);
}

super::on_mixes! {
    copies_are_both_refused_until_one_is_another_server
    two_workers_of_one_server_are_no_copies
}
