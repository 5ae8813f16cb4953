//! All servers edit the same rows at once, while their workers apply what the others did: whatever
//! comes between what, all end equal.

use std::time::{Duration, Instant};

use super::clinic::{self, PATIENTS, admit};
use crate::support::cli::TestServer;
use crate::support::tree::{Broker, Engine, Mix, Tree};

/// How long the hosts write.
const WRITE_FOR: Duration = Duration::from_secs(4);
const ROWS: usize = 3;

/// Edits the same few rows in two columns, each in a transaction of its own.
fn hammer(server: &TestServer) -> usize {
    let until = Instant::now() + WRITE_FOR;
    let mut count = 0;
    while Instant::now() < until {
        let (name, row) = (server.nickname(), count % ROWS);
        server.sql(&format!("UPDATE patient SET name = '{name} {count}' WHERE uuid = 'p{row}'"));
        if count % 4 == 0 {
            server
                .sql(&format!("UPDATE patient SET weight = {} WHERE uuid = 'p{row}'", count % 500));
        }
        count += 1;
    }
    count
}

fn edits_of_the_same_rows_at_once_end_equal(mix: Mix) {
    let mut tree = Tree::unconnected(mix, "hello_every = \"1s\"\n", clinic::database);
    tree.connect(&["--all"]);
    for row in 0..ROWS {
        admit(&tree.parent, &format!("p{row}"), "Ada");
    }
    let _workers = tree.workers();
    tree.wait_until_equal(&tree.parent, PATIENTS);
    let counts = std::thread::scope(|scope| {
        let hosts = tree.servers().map(|server| scope.spawn(|| hammer(server)));
        hosts.map(|host| host.join().unwrap())
    });
    // Otherwise they did not meet.
    assert!(counts.iter().all(|count| *count > 20), "{counts:?}");
    tree.wait_until_settled();
    tree.wait_until_settled();
    assert_eq!(tree.wait_until_equal(&tree.parent, PATIENTS).len(), ROWS);
    for server in tree.servers() {
        assert_eq!(server.count("SELECT count(*) FROM @sync_held"), 0, "{}", server.nickname());
    }
}

#[test]
fn on_postgres() {
    edits_of_the_same_rows_at_once_end_equal(Mix {
        parent: Engine::Postgres,
        children: Engine::Postgres,
        broker: Broker::Spool,
    });
}

#[test]
fn on_sqlite() {
    edits_of_the_same_rows_at_once_end_equal(Mix {
        parent: Engine::Sqlite,
        children: Engine::Sqlite,
        broker: Broker::Spool,
    });
}
