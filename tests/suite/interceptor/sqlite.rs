//! What only SQLite has: marks, and one writer at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use branchline::interceptor::SyncSqliteConnection;
use diesel::SqliteConnection;
use diesel::connection::SimpleConnection as _;
use diesel::prelude::*;
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};

use super::*;

diesel::table! {
    sync_change (seq) {
        seq -> BigInt,
        op -> Integer,
    }
}

diesel::define_sql_function! { fn last_insert_rowid() -> BigInt; }

/// Captures `patient` as the real triggers do, as far as marks are concerned.
const CAPTURE: &str = "
    CREATE TRIGGER sync_1_i AFTER INSERT ON patient BEGIN
        INSERT INTO sync_change (class_id, op) VALUES (1, 1); END;
    CREATE TRIGGER sync_1_u AFTER UPDATE ON patient BEGIN
        INSERT INTO sync_change (class_id, op) VALUES (1, 2); END;
    CREATE TRIGGER sync_1_d AFTER DELETE ON patient BEGIN
        INSERT INTO sync_change (class_id, op) VALUES (1, 3); END;";

struct Bench {
    url: String,
    wake: Wake,
    conn: SyncSqliteConnection,
    _databases: Databases,
}

impl Bench {
    async fn new() -> Self {
        let mut databases = Databases::sqlite();
        let url = databases.make("host").await;
        migrate(&url).await;
        let wake = Wake::new();
        let mut conn = SyncSqliteConnection::establish_with(&url, wake.clone()).await.unwrap();
        conn.batch_execute(SCHEMA).await.unwrap();
        conn.batch_execute(CAPTURE).await.unwrap();
        assert!(rang(&wake).await);
        let bench = Self { url, wake, conn, _databases: databases };
        assert!(bench.ops().is_empty());
        bench
    }

    /// A connection that is not ours.
    fn stranger(&self) -> SqliteConnection {
        let mut conn = SqliteConnection::establish(&self.url["sqlite:".len()..]).unwrap();
        conn.batch_execute("PRAGMA busy_timeout = 5000").unwrap();
        conn
    }

    /// What `sync_change` holds.
    fn ops(&self) -> Vec<i32> {
        let query = sync_change::table.select(sync_change::op).order(sync_change::seq);
        diesel::RunQueryDsl::load(query, &mut self.stranger()).unwrap()
    }

    async fn patients(&mut self) -> Vec<i32> {
        patient::table.select(patient::id).order(patient::id).load(&mut self.conn).await.unwrap()
    }
}

async fn add(conn: &mut SyncSqliteConnection, id: i32) -> QueryResult<usize> {
    diesel::insert_into(patient::table)
        .values((patient::id.eq(id), patient::name.eq("a")))
        .execute(conn)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_transaction_one_mark() {
    let mut b = Bench::new().await;
    b.conn
        .transaction::<_, Error, _>(async |conn| {
            add(conn, 1).await?;
            conn.transaction::<_, Error, _>(async |conn| add(conn, 2).await).await?;
            diesel::update(patient::table.find(1)).set(patient::name.eq("b")).execute(conn).await
        })
        .await
        .unwrap();
    assert_eq!(b.ops(), [1, 1, 2, 4]);
    b.conn.immediate_transaction(async |conn| add(conn, 3).await).await.unwrap();
    b.conn.exclusive_transaction(async |conn| add(conn, 4).await).await.unwrap();
    b.conn.deferred_transaction(async |conn| add(conn, 5).await).await.unwrap();
    assert_eq!(b.ops(), [1, 1, 2, 4, 1, 4, 1, 4, 1, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_alone_is_marked() {
    let mut b = Bench::new().await;
    add(&mut b.conn, 1).await.unwrap();
    let names: Vec<String> = diesel::update(patient::table)
        .set(patient::name.eq("b"))
        .returning(patient::name)
        .get_results(&mut b.conn)
        .await
        .unwrap();
    assert_eq!((names, b.ops()), (vec!["b".to_owned()], vec![1, 4, 2, 4]));
    diesel::delete(patient::table).execute(&mut b.conn).await.unwrap();
    assert_eq!(b.ops(), [1, 4, 2, 4, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_captures_nothing_leaves_no_mark() {
    let mut b = Bench::new().await;
    for _ in 0..2 {
        b.conn.transaction::<_, Error, _>(async |_| Ok(())).await.unwrap();
        let undone = b
            .conn
            .transaction::<(), Error, _>(async |conn| {
                add(conn, 1).await?;
                failure()
            })
            .await;
        assert!(undone.is_err());
        diesel::insert_into(note::table)
            .values(note::id.eq(i32::try_from(b.ops().len()).unwrap()))
            .execute(&mut b.conn)
            .await
            .unwrap();
        diesel::delete(patient::table.find(77)).execute(&mut b.conn).await.unwrap();
        let before = b.ops();
        assert!(before.is_empty() || before == [1, 4]);
        if before.is_empty() {
            add(&mut b.conn, 1).await.unwrap();
        }
    }
    assert_eq!(b.ops(), [1, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_note_of_the_triggers_is_not_marked() {
    let mut b = Bench::new().await;
    b.conn
        .batch_execute(
            "CREATE TRIGGER noting AFTER INSERT ON note BEGIN
                 INSERT INTO sync_change (class_id, op) VALUES (1, 5); END",
        )
        .await
        .unwrap();
    add(&mut b.conn, 1).await.unwrap();
    diesel::insert_into(note::table).values(note::id.eq(1)).execute(&mut b.conn).await.unwrap();
    assert_eq!(b.ops(), [1, 4, 5]);
    add(&mut b.conn, 2).await.unwrap();
    assert_eq!(b.ops(), [1, 4, 5, 1, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_and_mark_commit_together_or_not_at_all() {
    let mut b = Bench::new().await;
    b.conn.batch_execute("DROP TRIGGER sync_mark_insert").await.unwrap();
    let _ = rang(&b.wake).await;
    assert!(add(&mut b.conn, 1).await.is_err());
    let failed = b.conn.transaction::<_, Error, _>(async |conn| add(conn, 2).await).await;
    assert!(failed.is_err() && !rang(&b.wake).await);
    assert_eq!((b.patients().await, b.ops()), (vec![], vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_rowid_stays() {
    let mut b = Bench::new().await;
    // Numbers in `sync_change` are far from this one.
    add(&mut b.conn, 1000).await.unwrap();
    let id: i64 = diesel::select(last_insert_rowid()).get_result(&mut b.conn).await.unwrap();
    assert_eq!((id, b.ops()), (1000, vec![1, 4]));
    b.conn.transaction::<_, Error, _>(async |conn| add(conn, 2000).await).await.unwrap();
    let id: i64 = diesel::select(last_insert_rowid()).get_result(&mut b.conn).await.unwrap();
    assert_eq!(id, 2000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_nobody_waits_for_is_marked_and_rings() {
    let mut b = Bench::new().await;
    drop(add(&mut b.conn, 1));
    assert!(b.ops().is_empty(), "an async fn that was never polled");
    drop(
        diesel::insert_into(patient::table)
            .values((patient::id.eq(1), patient::name.eq("a")))
            .execute(&mut b.conn),
    );
    // diesel-async starts the statement at once, and a drop waits for its end.
    assert!(rang(&b.wake).await);
    assert_eq!(b.ops(), [1, 4]);
    assert_eq!(b.patients().await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_statements_at_once_stand_in_line() {
    let mut b = Bench::new().await;
    let insert = |id| {
        diesel::insert_into(patient::table).values((patient::id.eq(id), patient::name.eq("a")))
    };
    // The futures do not borrow the connection: diesel-async allows it, and so do we.
    let one = insert(1).execute(&mut b.conn);
    let two = insert(2).execute(&mut b.conn);
    assert_eq!(futures_util::try_join!(one, two).unwrap(), (1, 1));
    assert_eq!(b.ops(), [1, 4, 1, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_marked_when_it_is_over() {
    let mut b = Bench::new().await;
    b.conn
        .batch_execute("BEGIN; INSERT INTO patient VALUES (1, 'a', NULL), (2, 'b', NULL); COMMIT")
        .await
        .unwrap();
    assert_eq!(b.ops(), [1, 1, 4]);
    b.conn.batch_execute("BEGIN").await.unwrap();
    add(&mut b.conn, 3).await.unwrap();
    add(&mut b.conn, 4).await.unwrap();
    b.conn.batch_execute("COMMIT").await.unwrap();
    assert_eq!(b.ops(), [1, 1, 4, 1, 1, 4], "a raw transaction is one as well");
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_that_bear_no_transaction_run_as_they_are() {
    let mut b = Bench::new().await;
    for sql in ["PRAGMA foreign_keys = ON", "VACUUM", "ATTACH ':memory:' AS other"] {
        diesel::sql_query(sql).execute(&mut b.conn).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    }
    let lost = diesel::insert_into(patient::table)
        .values((patient::id.eq(1), patient::name.eq("a"), patient::ward.eq(5)))
        .execute(&mut b.conn)
        .await;
    assert!(lost.is_err(), "the PRAGMA took effect");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_rolls_back_by_itself_leaves_a_usable_connection() {
    let mut b = Bench::new().await;
    b.conn
        .batch_execute(
            "CREATE TRIGGER never BEFORE INSERT ON note BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
        )
        .await
        .unwrap();
    let insert = || diesel::insert_into(note::table).values(note::id.eq(1));
    let error = insert().execute(&mut b.conn).await.unwrap_err();
    assert_eq!(error.to_string(), "no");
    let undone = b
        .conn
        .transaction::<_, Error, _>(async |conn| {
            add(conn, 1).await?;
            insert().execute(conn).await
        })
        .await;
    assert!(undone.is_err());
    add(&mut b.conn, 2).await.unwrap();
    assert_eq!((b.patients().await, b.ops()), (vec![2], vec![1, 4]));
}

/// The relay writes after every commit. A deferred transaction that read before it would fail.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_reads_then_writes_is_never_in_the_relays_way() {
    let mut b = Bench::new().await;
    // Both writers wait as long as it takes: the machine may be busy.
    let waiting = "PRAGMA synchronous = OFF; PRAGMA busy_timeout = 60000";
    b.conn.batch_execute(waiting).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (mut relay, done) = (b.stranger(), stop.clone());
    relay.batch_execute(waiting).unwrap();
    let relay = std::thread::spawn(move || {
        let mut sealed = 0;
        while !AtomicBool::load(&done, SeqCst) {
            relay
                .batch_execute("BEGIN IMMEDIATE; DELETE FROM sync_change; COMMIT")
                .expect("the relay waits its turn");
            sealed += 1;
        }
        sealed
    });
    for id in 0..300 {
        b.conn
            .transaction::<_, Error, _>(async |conn| {
                let many: i64 = patient::table.count().get_result(conn).await?;
                assert_eq!(many, id);
                add(conn, i32::try_from(id).unwrap()).await
            })
            .await
            .unwrap();
    }
    stop.store(true, SeqCst);
    assert!(relay.join().unwrap() > 0);
    assert_eq!(b.patients().await.len(), 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_only_reads_is_not_hurt_by_another_writer() {
    let mut b = Bench::new().await;
    let mut stranger = b.stranger();
    stranger.batch_execute("INSERT INTO patient VALUES (1, 'a', NULL)").unwrap();
    // An unmarked change of another is there, and a second one comes: the snapshot is old.
    let seen = b
        .conn
        .deferred_transaction(async |conn| {
            let seen: i64 = patient::table.count().get_result(conn).await?;
            stranger.batch_execute("INSERT INTO patient VALUES (2, 'b', NULL)").unwrap();
            Ok::<_, Error>(seen)
        })
        .await
        .unwrap();
    assert_eq!((seen, b.ops()), (1, vec![1, 1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_read_only_can_be_read_in_transactions() {
    let mut b = Bench::new().await;
    add(&mut b.conn, 1).await.unwrap();
    let url = format!("file:{}?mode=ro", &b.url["sqlite:".len()..]);
    let mut conn = SyncSqliteConnection::establish_with(&url, Wake::new()).await.unwrap();
    let ids = conn
        .transaction::<Vec<i32>, Error, _>(async |conn| {
            patient::table.select(patient::id).load(conn).await
        })
        .await
        .unwrap();
    assert_eq!(ids, [1]);
    assert!(add(&mut conn, 2).await.is_err());
}
