//! Servers edit the same rows at once, while their workers apply what the others did: whatever
//! comes between what, all end equal.

use super::clinic::{self, PATIENTS, admit};
use crate::support::cli::{TestServer, wait_until};
use crate::support::sql::Sql;
use crate::support::tree::{ARRIVES_WITHIN, Broker, Engine, Mix, Tree};

const POSTGRES_SPOOL: Mix =
    Mix { parent: Engine::Postgres, children: Engine::Postgres, broker: Broker::Spool };
const SQLITE_SPOOL: Mix =
    Mix { parent: Engine::Sqlite, children: Engine::Sqlite, broker: Broker::Spool };

fn tree(mix: Mix) -> Tree {
    let mut tree = Tree::unconnected(mix, "hello_every = \"1s\"\n", clinic::database);
    tree.connect(&["--all"]);
    tree
}

/// A transaction of the host is under way when an edit of the same row comes in, and commits while
/// the applier waits for the row.
#[test]
fn a_local_commit_is_never_overwritten_unseen() {
    let tree = tree(POSTGRES_SPOOL);
    admit(&tree.parent, "p0", "Ada");
    let _workers = tree.workers();
    tree.wait_until_equal(&tree.parent, PATIENTS);
    for round in 0..5 {
        let host = Sql::to(tree.child.database());
        host.run("BEGIN").unwrap();
        host.run(&format!("UPDATE patient SET name = 'child {round}'")).unwrap();
        tree.parent.sql(&format!("UPDATE patient SET name = 'parent {round}'"));
        wait_until("the applier waits for the row", ARRIVES_WITHIN, || {
            tree.child.count(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND wait_event_type = 'Lock' AND wait_event IN ('tuple', 'transactionid')",
            ) > 0
        });
        host.run("COMMIT").unwrap();
        host.close();
        tree.wait_until_settled();
        tree.wait_until_settled();
        assert_eq!(tree.wait_until_equal(&tree.parent, PATIENTS).len(), 1);
    }
}

const ROWS: usize = 100;

/// Edits all rows, each in a transaction of its own, beginning somewhere else on each server.
fn sweep(server: &TestServer, first: usize) {
    let name = server.nickname();
    for n in 0..3 * ROWS {
        let row = (first + n) % ROWS;
        server.sql(&format!("UPDATE patient SET name = '{name} {n}' WHERE uuid = 'p{row}'"));
    }
}

fn edits_of_the_same_rows_at_once_end_equal(mix: Mix) {
    let tree = tree(mix);
    let rows: Vec<_> = (0..ROWS)
        .map(|row| format!("INSERT INTO patient (uuid, name) VALUES ('p{row}', 'Ada')"))
        .collect();
    tree.parent.transaction(&rows);
    let _workers = tree.workers();
    tree.wait_until_equal(&tree.parent, PATIENTS);
    std::thread::scope(|scope| {
        for (server, first) in tree.servers().into_iter().zip([0, 3, 50]) {
            scope.spawn(move || sweep(server, first));
        }
    });
    tree.wait_until_settled();
    tree.wait_until_settled();
    assert_eq!(tree.wait_until_equal(&tree.parent, PATIENTS).len(), ROWS);
    for server in tree.servers() {
        assert_eq!(server.count("SELECT count(*) FROM @sync_held"), 0, "{}", server.nickname());
    }
}

#[test]
fn edits_at_once_end_equal_on_postgres() {
    edits_of_the_same_rows_at_once_end_equal(POSTGRES_SPOOL);
}

#[test]
fn edits_at_once_end_equal_on_sqlite() {
    edits_of_the_same_rows_at_once_end_equal(SQLITE_SPOOL);
}
