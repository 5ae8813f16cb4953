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

/// Programs of the host lock rows in another order than the applier, and hold them for a while:
/// whoever meets whom, it is the applier that gives way, and nothing of either is lost.
#[test]
fn the_applier_gives_way_and_overwrites_nothing_unseen() {
    let mut tree = Tree::unconnected(POSTGRES_SPOOL, "hello_every = \"1s\"\n", clinic::database);
    for server in tree.servers() {
        server.sql("ALTER TABLE patient ADD COLUMN count integer NOT NULL DEFAULT 0");
    }
    tree.connect(&["--all"]);
    let rows: Vec<_> = (0..ROWS)
        .map(|row| format!("INSERT INTO patient (uuid, name) VALUES ('p{row:02}', 'Ada')"))
        .collect();
    tree.parent.transaction(&rows);
    let _workers = tree.workers();
    tree.wait_until_equal(&tree.parent, PATIENTS);
    let rounds = 200;
    std::thread::scope(|scope| {
        // Two programs beside the child's worker. They agree on an order: the wrong one.
        for program in 0..2 {
            let tree = &tree;
            scope.spawn(move || {
                let host = Sql::to(tree.child.database());
                for round in 0..rounds {
                    let high = 40 + (round * 7 + program * 3) % 60;
                    let low = high - 37;
                    let edit = |row: usize| {
                        format!("UPDATE patient SET count = count + 1, weight = {round} WHERE uuid = 'p{row:02}'")
                    };
                    host.run(&format!(
                        "BEGIN; {}; SELECT pg_sleep(0.01); {}; COMMIT",
                        edit(high),
                        edit(low)
                    ))
                    .expect("no program of the host is ended for a deadlock");
                }
                host.close();
            });
        }
        // Remote edits of the same rows: other columns, and one that both write.
        scope.spawn(|| {
            for round in 0..20 {
                tree.parent.sql(&format!(
                    "DO $$ BEGIN FOR n IN 0..99 LOOP UPDATE patient SET name = 'parent {round}', \
                     weight = {round} WHERE uuid = 'p' || lpad(n::text, 2, '0'); END LOOP; END $$"
                ));
                let single: Vec<String> = (0..100)
                    .map(|n| format!("UPDATE patient SET born = date '2000-01-01' + {round} WHERE uuid = 'p{n:02}'"))
                    .collect();
                single.iter().for_each(|sql| tree.parent.sql(sql));
            }
        });
    });
    tree.wait_until_settled();
    tree.wait_until_settled();
    let all = "SELECT uuid, name, born, weight, count FROM patient ORDER BY uuid";
    let rows = tree.wait_until_equal(&tree.parent, all);
    assert!(rows.iter().all(|row| row[1] == "parent 19"), "the remote edits are all in");
    assert_eq!(tree.child.count("SELECT sum(count) FROM patient"), 2 * 2 * rounds as i64);
    assert_eq!(tree.child.count("SELECT count(*) FROM @sync_held"), 0);
    // Where both wrote one column without knowing of it, the ledger says so.
    let met = "SELECT count(*) FROM @sync_conflict WHERE column_name = 'weight'";
    assert!(tree.child.count(met) > 0);
    let applied = "SELECT count(*) FROM @sync_import";
    assert!(tree.child.count(applied) >= 2_000, "{}", tree.child.count(applied));
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
