//! What holds on both databases: one text, compiled for each.

use super::*;

macro_rules! suite {
    ($name:ident, $inner:ty, $databases:expr) => {
        mod $name {
            use branchline::interceptor::{SyncConnection, pool_config, pool_manager};
            use diesel::prelude::*;
            use diesel::result::DatabaseErrorKind;
            use diesel_async::pooled_connection::{
                AsyncDieselConnectionManager, PoolableConnection, bb8, deadpool,
            };
            use diesel_async::{
                AsyncConnection, RunQueryDsl, SaveChangesDsl, SimpleAsyncConnection,
            };
            use futures_util::TryStreamExt;

            use super::*;

            type Connection = SyncConnection<$inner>;

            #[derive(Queryable, Identifiable, AsChangeset, Clone, Copy, PartialEq, Debug)]
            #[diesel(table_name = patient)]
            struct Moved {
                id: i32,
                ward: Option<i32>,
            }

            /// A database with the host's tables and ours, a connection and its bell.
            struct Bench {
                url: String,
                wake: Wake,
                conn: Connection,
                _databases: Databases,
            }

            impl Bench {
                async fn new() -> Self {
                    let mut bench = Self::without_sync_tables().await;
                    migrate(&bench.url).await;
                    bench.conn = bench.connect().await;
                    bench
                }

                async fn without_sync_tables() -> Self {
                    let mut databases = $databases;
                    let url = databases.make("host").await;
                    let wake = Wake::new();
                    let mut conn = open(&url, &wake).await;
                    conn.batch_execute(SCHEMA).await.unwrap();
                    assert!(rang(&wake).await, "a batch outside a transaction rings");
                    Self { url, wake, conn, _databases: databases }
                }

                async fn connect(&self) -> Connection {
                    let conn = open(&self.url, &self.wake).await;
                    let _ = rang(&self.wake).await;
                    conn
                }

                /// The names, as another connection sees them.
                async fn names(&self) -> Vec<String> {
                    let mut conn = open(&self.url, &Wake::new()).await;
                    patient::table
                        .select(patient::name)
                        .order(patient::id)
                        .load(&mut conn)
                        .await
                        .unwrap()
                }
            }

            async fn open(url: &str, wake: &Wake) -> Connection {
                let mut conn = Connection::establish_with(url, wake.clone()).await.unwrap();
                if url.starts_with("sqlite:") {
                    conn.batch_execute("PRAGMA foreign_keys = ON").await.unwrap();
                }
                conn
            }

            async fn add(conn: &mut Connection, id: i32, name: &str) -> QueryResult<usize> {
                diesel::insert_into(patient::table)
                    .values((patient::id.eq(id), patient::name.eq(name)))
                    .execute(conn)
                    .await
            }

            /// Fails at COMMIT.
            async fn add_to_no_ward(conn: &mut Connection) -> QueryResult<i32> {
                diesel::insert_into(patient::table)
                    .values((patient::id.eq(9), patient::name.eq("x"), patient::ward.eq(99)))
                    .returning(patient::id)
                    .get_result(conn)
                    .await
            }

            fn refers_to_nothing<T>(result: QueryResult<T>) -> bool {
                let kind = DatabaseErrorKind::ForeignKeyViolation;
                matches!(result, Err(Error::DatabaseError(found, _)) if
                    std::mem::discriminant(&found) == std::mem::discriminant(&kind))
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn a_statement_alone_rings_when_it_has_committed() {
                let mut b = Bench::new().await;
                assert_eq!(add(&mut b.conn, 1, "a").await.unwrap(), 1);
                assert!(rang(&b.wake).await);
                let id: i32 = diesel::insert_into(patient::table)
                    .values((patient::id.eq(2), patient::name.eq("b")))
                    .returning(patient::id)
                    .get_result(&mut b.conn)
                    .await
                    .unwrap();
                assert!(rang(&b.wake).await && id == 2);
                assert_eq!(b.names().await, ["a", "b"]);
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn what_reads_or_fails_does_not_ring() {
                let mut b = Bench::new().await;
                let wards = patient::table.select(patient::ward);
                assert_eq!(wards.load::<Option<i32>>(&mut b.conn).await.unwrap(), []);
                let one = diesel::select(1_i32.into_sql::<diesel::sql_types::Integer>());
                assert_eq!(one.get_result::<i32>(&mut b.conn).await.unwrap(), 1);
                add(&mut b.conn, 1, "a").await.unwrap();
                assert!(rang(&b.wake).await);
                let twice = add(&mut b.conn, 1, "a").await;
                assert!(matches!(
                    twice,
                    Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _))
                ));
                assert!(!rang(&b.wake).await);
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn a_transaction_rings_once_it_is_over_and_not_before() {
                let mut b = Bench::new().await;
                let wake = b.wake.clone();
                let count: i64 = b
                    .conn
                    .transaction::<_, Error, _>(async |conn| {
                        add(conn, 1, "a").await?;
                        conn.transaction::<_, Error, _>(async |conn| add(conn, 2, "b").await)
                            .await?;
                        let undone = conn
                            .transaction::<(), Error, _>(async |conn| {
                                add(conn, 3, "c").await?;
                                failure()
                            })
                            .await;
                        assert!(undone.is_err() && !rang(&wake).await);
                        patient::table.count().get_result(conn).await
                    })
                    .await
                    .unwrap();
                assert!(rang(&b.wake).await && !rang(&b.wake).await);
                assert_eq!((count, b.names().await), (2, vec!["a".to_owned(), "b".to_owned()]));
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn a_rollback_does_not_ring() {
                let mut b = Bench::new().await;
                let undone = b
                    .conn
                    .transaction::<(), Error, _>(async |conn| {
                        add(conn, 1, "a").await?;
                        failure()
                    })
                    .await;
                assert!(matches!(undone, Err(Error::RollbackTransaction)));
                b.conn
                    .test_transaction::<_, Error, _>(async |conn| add(conn, 1, "a").await)
                    .await;
                assert!(!rang(&b.wake).await && b.names().await.is_empty());
                assert!(!b.conn.is_broken());
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn a_commit_that_fails_leaves_nothing_and_a_usable_connection() {
                let mut b = Bench::new().await;
                let failed = b
                    .conn
                    .transaction::<_, Error, _>(async |conn| {
                        add(conn, 1, "a").await?;
                        add_to_no_ward(conn).await
                    })
                    .await;
                assert!(refers_to_nothing(failed));
                assert!(refers_to_nothing(add_to_no_ward(&mut b.conn).await));
                assert!(!rang(&b.wake).await && !b.conn.is_broken());

                b.conn
                    .transaction::<_, Error, _>(async |conn| add(conn, 2, "b").await)
                    .await
                    .unwrap();
                add(&mut b.conn, 3, "c").await.unwrap();
                assert_eq!(b.names().await, ["b", "c"]);
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn a_ring_says_that_the_rows_can_be_seen() {
                let mut b = Bench::new().await;
                let (url, wake) = (b.url.clone(), b.wake.clone());
                let relay = tokio::spawn(async move {
                    let mut conn = open(&url, &Wake::new()).await;
                    let mut seen = 0;
                    while seen < 20 {
                        timeout(LATE, wake.notified()).await.expect("no ring is lost");
                        seen = patient::table.count().get_result::<i64>(&mut conn).await.unwrap();
                    }
                });
                for id in 0..20 {
                    match id % 2 {
                        0 => add(&mut b.conn, id, "a").await.map(|_| ()),
                        _ => {
                            b.conn
                                .transaction::<_, Error, _>(async |conn| {
                                    add(conn, id, "b").await.map(|_| ())
                                })
                                .await
                        }
                    }
                    .unwrap();
                }
                relay.await.unwrap();
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn raw_transactions_work_and_their_end_rings() {
                let mut b = Bench::new().await;
                b.conn.batch_execute("BEGIN").await.unwrap();
                add(&mut b.conn, 1, "a").await.unwrap();
                assert_eq!(b.names().await, [""; 0]);
                let _ = rang(&b.wake).await;
                b.conn.batch_execute("COMMIT").await.unwrap();
                assert!(rang(&b.wake).await && b.names().await == ["a"]);
                b.conn.batch_execute("BEGIN").await.unwrap();
                add(&mut b.conn, 2, "b").await.unwrap();
                b.conn.batch_execute("ROLLBACK").await.unwrap();
                assert_eq!(b.names().await, ["a"]);
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn diesels_other_ways_to_run_a_query_work() {
                let mut b = Bench::new().await;
                add(&mut b.conn, 1, "a").await.unwrap();
                b.conn.batch_execute("INSERT INTO ward VALUES (7)").await.unwrap();
                assert!(rang(&b.wake).await);
                let moved = Moved { id: 1, ward: Some(7) };
                let rows = patient::table.select((patient::id, patient::ward));
                let there: (i32, String, Option<i32>) =
                    moved.save_changes(&mut b.conn).await.unwrap();
                assert_eq!(there, (1, "a".to_owned(), Some(7)));
                assert!(rang(&b.wake).await);
                let stream = rows.load_stream::<Moved>(&mut b.conn).await.unwrap();
                assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap(), [moved]);
                assert_eq!(rows.first::<Moved>(&mut b.conn).await.unwrap(), moved);
                let sql = "UPDATE patient SET name = 'z'";
                assert_eq!(diesel::sql_query(sql).execute(&mut b.conn).await.unwrap(), 1);
                assert!(rang(&b.wake).await);
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn without_sync_tables_it_is_an_ordinary_connection() {
                let mut b = Bench::without_sync_tables().await;
                add(&mut b.conn, 1, "a").await.unwrap();
                b.conn
                    .transaction::<_, Error, _>(async |conn| add(conn, 2, "b").await)
                    .await
                    .unwrap();
                assert_eq!(b.names().await, ["a", "b"]);
                // As soon as they are there, it is the interceptor.
                migrate(&b.url).await;
                add(&mut b.conn, 3, "c").await.unwrap();
                assert!(rang(&b.wake).await);
            }

            /// Opens a transaction, writes, and is given up there.
            async fn cancelled(conn: &mut Connection) {
                let (written, wait) = tokio::sync::oneshot::channel();
                let stuck = conn.transaction::<(), Error, _>(async |conn| {
                    add(conn, 1, "lost").await?;
                    let _ = written.send(());
                    std::future::pending().await
                });
                tokio::select! {
                    _ = stuck => unreachable!("it waits for ever"),
                    got = wait => got.unwrap(),
                }
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn deadpool_discards_a_cancelled_transaction() {
                let b = Bench::new().await;
                let manager = pool_manager::<$inner>(&b.url, b.wake.clone());
                let pool = deadpool::Pool::builder(manager).max_size(1).build().unwrap();
                cancelled(&mut *pool.get().await.unwrap()).await;
                let mut conn = timeout(LATE, pool.get()).await.unwrap().unwrap();
                assert!(!rang(&b.wake).await);
                add(&mut conn, 2, "kept").await.unwrap();
                assert!(rang(&b.wake).await && b.names().await == ["kept"]);
                // A transaction through the pool's own wrapper comes to our manager too.
                conn.transaction::<_, Error, _>(async |conn| add(conn, 3, "too").await)
                    .await
                    .unwrap();
                assert!(rang(&b.wake).await);
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn bb8_discards_a_cancelled_transaction() {
                let b = Bench::new().await;
                let config = pool_config::<$inner>(b.wake.clone());
                let manager = AsyncDieselConnectionManager::new_with_config(&b.url, config);
                let pool = ::bb8::Pool::builder().max_size(1).build(manager).await.unwrap();
                let pool: bb8::Pool<Connection> = pool;
                cancelled(&mut *pool.get().await.unwrap()).await;
                let mut conn = timeout(LATE, pool.get()).await.unwrap().unwrap();
                assert!(!rang(&b.wake).await);
                add(&mut conn, 2, "kept").await.unwrap();
                assert!(rang(&b.wake).await && b.names().await == ["kept"]);
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn a_cancelled_transaction_breaks_the_connection_and_is_undone_with_it() {
                let mut b = Bench::new().await;
                cancelled(&mut b.conn).await;
                assert!(b.conn.is_broken());
                b.conn = b.connect().await;
                assert!(!b.conn.is_broken() && b.names().await.is_empty());
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn it_can_be_spawned() {
                let mut b = Bench::new().await;
                let mut conn = b.connect().await;
                let task = tokio::spawn(async move {
                    add(&mut conn, 1, "a").await?;
                    let names = conn
                        .transaction::<Vec<String>, Error, _>(async |conn| {
                            add(conn, 2, "b").await?;
                            patient::table.select(patient::name).load(conn).await
                        })
                        .await?;
                    conn.batch_execute("DELETE FROM note").await?;
                    Ok::<_, Error>((conn, names))
                });
                let (conn, names) = task.await.unwrap().unwrap();
                b.conn = conn;
                assert_eq!(names, ["a", "b"]);
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn plain_establish_rings_for_the_process() {
                let b = Bench::new().await;
                let _alone = PROCESS.lock().await;
                let mut conn = <Connection as AsyncConnection>::establish(&b.url).await.unwrap();
                add(&mut conn, 1, "a").await.unwrap();
                timeout(LATE, Wake::process().notified()).await.expect("it rang");
            }
        }
    };
}

suite!(postgres, diesel_async::AsyncPgConnection, Databases::postgres());
suite!(
    sqlite,
    diesel_async::sync_connection_wrapper::SyncConnectionWrapper<diesel::SqliteConnection>,
    Databases::sqlite()
);
