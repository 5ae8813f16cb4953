//! A database that an earlier version has put under capture.

use branchline::store::sqlite::changes;
use branchline::store::{Limits, Store};
use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, SqliteConnection};

use super::THING;
use super::bench::classes;

/// The first tables, and triggers as the version of then wrote them.
const BEFORE: &str = concat!(
    include_str!("../../../migrations/sqlite/branchline0001_sync/up.sql"),
    "CREATE TABLE __diesel_schema_migrations (version VARCHAR(50) PRIMARY KEY NOT NULL, run_on TEXT);
     INSERT INTO __diesel_schema_migrations (version) VALUES ('branchline0001');
     INSERT INTO sync_tracked (id, class) VALUES (1, 'thing');
     INSERT INTO sync_shape (id, class_id, columns) VALUES (1, 1, '[\"id\",\"uuid\",\"n\"]');
     CREATE TRIGGER sync_1_insert AFTER INSERT ON thing BEGIN
         INSERT INTO sync_change (class_id, op, shape, local_id) SELECT 1, 1, 1, NULL;
         INSERT OR REPLACE INTO sync_image (seq,part,c0,c1,c2)
             SELECT last_insert_rowid(),1,NEW.id,NEW.uuid,NEW.n;
     END;
     CREATE TRIGGER sync_1_update AFTER UPDATE ON thing BEGIN
         INSERT INTO sync_change (class_id, op, shape, local_id) SELECT 1, 2, 1, NULL;
         INSERT OR REPLACE INTO sync_image (seq,part,c0,c1,c2)
             SELECT last_insert_rowid(),0,OLD.id,OLD.uuid,OLD.n;
         INSERT OR REPLACE INTO sync_image (seq,part,c0,c1,c2)
             SELECT last_insert_rowid(),1,NEW.id,NEW.uuid,NEW.n;
     END;
     CREATE TRIGGER sync_1_delete AFTER DELETE ON thing BEGIN
         INSERT INTO sync_change (class_id, op, shape, local_id) SELECT 1, 3, 1, OLD.id;
         INSERT OR REPLACE INTO sync_image (seq,part,c0,c1,c2)
             SELECT last_insert_rowid(),0,OLD.id,OLD.uuid,OLD.n;
     END;"
);

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_version_captures_is_read_until_its_triggers_are_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("host.db");
    let mut host = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
    host.batch_execute(THING).unwrap();
    host.batch_execute(BEFORE).unwrap();
    host.batch_execute("INSERT INTO thing VALUES (1, 'a', NULL), (2, 'b', 2)").unwrap();
    let url = format!("sqlite:{}", path.display());
    let store = Store::connect(&url, Limits::default()).await.unwrap();
    store.migrate().await.unwrap();
    // The host goes on while the old triggers are still there.
    host.batch_execute("UPDATE thing SET n = 3 WHERE id = 1; DELETE FROM thing WHERE id = 2")
        .unwrap();

    let mut session = store.begin().await.unwrap();
    let tables = branchline::store::sqlite::catalog::read(&mut session).await.unwrap();
    let catalog = classes(&tables);
    let read = changes::read(&mut session, &catalog, 100).await.unwrap();
    let image =
        |row: &branchline::store::Row, n| row.opt_text(n).unwrap().unwrap_or_default().to_owned();
    let found: Vec<(i64, String, String)> =
        read.rows.iter().map(|row| (row.int(2).unwrap(), image(row, 5), image(row, 6))).collect();
    let expected = [
        (1, "", "1,'a',NULL"),
        (1, "", "2,'b',2"),
        (2, "1,'a',NULL", "1,'a',3"),
        (3, "2,'b',2", ""),
    ];
    assert_eq!(found, expected.map(|(op, old, new)| (op, old.to_owned(), new.to_owned())));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    for row in &read.rows {
        let age = now.as_millis() as i64 - row.time(9).unwrap();
        assert!((-1_000..600_000).contains(&age), "{age} ms old");
    }
    changes::take_up_to(&mut session, read.rows.last().unwrap().int(10).unwrap()).await.unwrap();
    let left = "SELECT (SELECT count(*) FROM sync_change) + (SELECT count(*) FROM sync_image)";
    assert_eq!(session.query_one(left, vec![]).await.unwrap().int(0).unwrap(), 0);
}
