//! What only PostgreSQL has.

use branchline::interceptor::SyncPgConnection;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};

use super::*;

#[derive(QueryableByName)]
struct Setting {
    #[diesel(sql_type = Text)]
    value: String,
}

async fn setting(conn: &mut SyncPgConnection, name: &str) -> QueryResult<String> {
    let sql = format!("SELECT current_setting('{name}') AS value FROM (VALUES (1)) one");
    Ok(diesel::sql_query(sql).get_result::<Setting>(conn).await?.value)
}

async fn bench() -> (Databases, Wake, SyncPgConnection) {
    let mut databases = Databases::postgres();
    let url = databases.make("host").await;
    let wake = Wake::new();
    let mut conn = SyncPgConnection::establish_with(&url, wake.clone()).await.unwrap();
    conn.batch_execute(SCHEMA).await.unwrap();
    assert!(rang(&wake).await);
    (databases, wake, conn)
}

#[tokio::test]
async fn a_built_transaction_is_what_was_asked_for_and_rings() {
    let (_databases, wake, mut conn) = bench().await;
    let levels = [("serializable", "off"), ("repeatable read", "on"), ("read committed", "off")];
    for (level, read_only) in levels {
        let builder = match level {
            "serializable" => conn.build_transaction().serializable().deferrable().read_write(),
            "repeatable read" => conn.build_transaction().repeatable_read().read_only(),
            _ => conn.build_transaction().read_committed().not_deferrable(),
        };
        let found = builder
            .run(async |conn| {
                let level = setting(conn, "transaction_isolation").await?;
                Ok::<_, Error>((level, setting(conn, "transaction_read_only").await?))
            })
            .await
            .unwrap();
        assert_eq!(found, (level.to_owned(), read_only.to_owned()));
        assert!(rang(&wake).await);
    }
}

#[tokio::test]
async fn a_built_transaction_rolls_back_and_does_not_nest() {
    let (_databases, wake, mut conn) = bench().await;
    let nested = conn
        .transaction::<(), Error, _>(async |conn| {
            conn.build_transaction().serializable().run(async |_| Ok::<_, Error>(())).await
        })
        .await;
    assert!(matches!(nested, Err(Error::AlreadyInTransaction)));
    let undone = conn
        .build_transaction()
        .serializable()
        .run(async |conn| {
            diesel::insert_into(note::table).values(note::id.eq(1)).execute(conn).await?;
            failure::<()>()
        })
        .await;
    assert!(undone.is_err() && !rang(&wake).await);
    let notes: i64 = note::table.count().get_result(&mut conn).await.unwrap();
    assert_eq!(notes, 0);
}

#[tokio::test]
async fn a_built_transaction_can_be_spawned() {
    let (_databases, wake, mut conn) = bench().await;
    let task = tokio::spawn(async move {
        conn.build_transaction()
            .serializable()
            .run(async |conn| {
                diesel::insert_into(note::table).values(note::id.eq(1)).execute(conn).await
            })
            .await
    });
    assert_eq!(task.await.unwrap(), Ok(1));
    assert!(rang(&wake).await);
}

/// The first rows of a large result come before the statement has committed.
#[tokio::test]
async fn a_large_returning_rings_after_its_commit() {
    let (_databases, wake, mut conn) = bench().await;
    conn.batch_execute("INSERT INTO note SELECT generate_series(1, 20000)").await.unwrap();
    conn.batch_execute(
        "CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END';
         CREATE CONSTRAINT TRIGGER linger AFTER INSERT ON ward DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION linger()",
    )
    .await
    .unwrap();
    assert!(rang(&wake).await);
    let sql = "WITH w AS (INSERT INTO ward VALUES (1)) UPDATE note SET id = -id \
               RETURNING lpad(id::text, 100) AS value";
    let started = std::time::Instant::now();
    let first: Setting = diesel::sql_query(sql).get_result(&mut conn).await.unwrap();
    // COMMIT alone takes that long.
    assert!(started.elapsed() >= Duration::from_millis(300));
    assert!(first.value.trim().starts_with('-') && rang(&wake).await);
}

#[tokio::test]
async fn a_function_that_writes_rings() {
    let (_databases, wake, mut conn) = bench().await;
    conn.batch_execute(
        "CREATE FUNCTION admit() RETURNS text LANGUAGE sql AS
             'INSERT INTO note VALUES (1) RETURNING id::text'",
    )
    .await
    .unwrap();
    assert!(rang(&wake).await);
    let sql = "SELECT admit() AS value";
    let admitted: Setting = diesel::sql_query(sql).get_result(&mut conn).await.unwrap();
    assert_eq!(admitted.value, "1");
    assert!(rang(&wake).await);
}

/// What PostgreSQL says of a transaction in which a statement has failed is no error: nothing is
/// committed, and the connection can be used on.
#[tokio::test]
async fn a_failed_statement_that_was_swallowed_leaves_a_usable_connection() {
    let (_databases, _wake, mut conn) = bench().await;
    let _ = conn
        .transaction::<(), Error, _>(async |conn| {
            let _ = conn.batch_execute("SELECT 1/0").await;
            Ok(())
        })
        .await;
    assert_eq!(setting(&mut conn, "transaction_read_only").await.unwrap(), "off");
}
