//! An application that embeds the publisher, alone and beside others.

use std::time::Duration;

use branchline::Publisher;
use branchline::config::Config;
use branchline::interceptor::{SyncPgConnection, SyncSqliteConnection};
use branchline::store::time;
use diesel::sql_query;
use diesel_async::RunQueryDsl as _;
use tokio_util::sync::CancellationToken;

use super::clinic::PATIENTS;
use super::{Mix, deliveries, records, tree};
use crate::support::cli::TestServer;

/// An application's publisher. It polls once an hour, so that only rings wake it.
async fn open(server: &TestServer) -> Publisher {
    let settings = [("poll_every".to_owned(), "1h".to_owned())];
    let config = Config::load(&server.dir().join("branchline.toml"), true, &settings).unwrap();
    Publisher::open(config).await.unwrap()
}

/// Commits some SQL through a connection of the publisher.
async fn commit(server: &TestServer, publisher: &Publisher, sql: &str) {
    if server.is_sqlite() {
        let mut connection: SyncSqliteConnection = publisher.connect().await.unwrap();
        sql_query(sql).execute(&mut connection).await.unwrap();
    } else {
        let mut connection: SyncPgConnection = publisher.connect().await.unwrap();
        sql_query(sql).execute(&mut connection).await.unwrap();
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

/// Waits for a number of records with the broker.
async fn sent(server: &TestServer, count: usize) {
    let all_sent = || {
        let states = tokio::task::block_in_place(|| records(server));
        states.len() == count && states.iter().all(|state| state == "SENT")
    };
    let deadline = tokio::time::Instant::now() + super::ARRIVES_WITHIN;
    while !all_sent() {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", records(server));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(super) fn what_an_application_commits_is_published_without_a_worker(mix: Mix) {
    let tree = tree(mix);
    run(async {
        let publisher = open(&tree.child).await;
        let stop = CancellationToken::new();
        let relay = tokio::spawn(publisher.run(stop.clone()));
        commit(&tree.child, &publisher, "INSERT INTO patient (uuid, name) VALUES ('p1', 'Ada')")
            .await;
        sent(&tree.child, 1).await;
        // What is committed right before the end goes out as well.
        commit(&tree.child, &publisher, "INSERT INTO patient (uuid, name) VALUES ('p2', 'Joan')")
            .await;
        stop.cancel();
        relay.await.unwrap().unwrap();
    });
    assert_eq!(records(&tree.child), ["SENT", "SENT"]);
    tree.parent.sync();
    assert_eq!(tree.parent.query(PATIENTS), tree.child.query(PATIENTS));
    assert_eq!(tree.parent.query(PATIENTS).len(), 2);
}

pub(super) fn processes_that_publish_side_by_side_send_nothing_twice(mix: Mix) {
    let tree = tree(mix);
    let _workers = tree.workers();
    run(async {
        let publishers = [open(&tree.child).await, open(&tree.child).await];
        let stop = CancellationToken::new();
        let relays: Vec<_> = publishers.iter().map(|p| tokio::spawn(p.run(stop.clone()))).collect();
        for n in 0..40 {
            let sql = format!("INSERT INTO patient (uuid, name) VALUES ('p{n:02}', 'Ada')");
            commit(&tree.child, &publishers[n % 2], &sql).await;
        }
        stop.cancel();
        for relay in relays {
            relay.await.unwrap().unwrap();
        }
    });
    assert_eq!(tree.wait_until_equal(&tree.child, PATIENTS).len(), 40);
    tree.wait_until_settled();
    let again = "SELECT count(*) FROM @sync_import WHERE state = 'ALREADY_COMMITTED'";
    assert_eq!(tree.parent.count(again), 0);
    assert_eq!(deliveries(&tree.parent, &tree.child2).len(), 40);
}

pub(super) fn a_process_that_died_while_it_published_keeps_a_link_only_for_a_while(mix: Mix) {
    let tree = tree(mix);
    let claim = |until: i64| {
        let until = humantime::format_rfc3339_millis(
            std::time::UNIX_EPOCH + Duration::from_millis(u64::try_from(until).unwrap()),
        );
        tree.child.sql(&format!(
            "UPDATE @sync_server SET relay_session = '6b1a3c56-0000-4000-8000-000000000000', \
             relay_until = '{until}'"
        ));
    };
    tree.child.sql("INSERT INTO patient (uuid, name) VALUES ('p1', 'Ada')");
    // Not longer than a claim can last, or it would be one of a clock that was ahead.
    claim(time::now() + 19_000);
    tree.child.sync();
    assert_eq!(records(&tree.child), ["NEW"], "another process is at it");
    claim(time::now() - 1);
    tree.child.sync();
    assert_eq!(records(&tree.child), ["SENT"]);
}
