//! Capture on SQLite, with real files: what an independent connection writes, the triggers catch.

use std::path::PathBuf;
use std::sync::Arc;

use branchline::catalog::{Catalog, Class, Column, Reference, Table, Tracked};
use branchline::record::Value;
use branchline::store::sqlite::{catalog, image, triggers};
use branchline::store::{Limits, Store};
use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, SqliteConnection};

/// A database file with captured tables, and the host's own connection to it.
struct Bench {
    folder: tempfile::TempDir,
    store: Store,
    host: SqliteConnection,
    catalog: Catalog,
}

impl Bench {
    /// Makes the tables of `schema`, and captures all of them.
    async fn new(schema: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("host.db");
        let mut host = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        host.batch_execute("PRAGMA journal_mode = WAL; PRAGMA busy_timeout = 5000;").unwrap();
        host.batch_execute(schema).unwrap();
        let url = format!("sqlite:{}", path.display());
        let store = Store::connect(&url, Limits::default()).await.unwrap();
        store.migrate().await.unwrap();
        let mut bench = Self { folder, store, host, catalog: Catalog::default() };
        bench.track().await;
        bench
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("host.db")
    }

    async fn track(&mut self) {
        let mut session = self.store.begin().await.unwrap();
        let tables = catalog::read(&mut session).await.unwrap();
        for tracked in self.catalog.tracked.values() {
            for sql in triggers::drop(tracked) {
                session.batch(&sql).await.unwrap();
            }
        }
        self.catalog = classes(&tables);
        for tracked in self.catalog.tracked.values() {
            for sql in triggers::create(tracked, &self.catalog).unwrap() {
                session.batch(&sql).await.unwrap();
            }
        }
        session.commit().await.unwrap();
    }

    fn run(&mut self, sql: &str) {
        self.host.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    fn fails(&mut self, sql: &str) {
        self.host.batch_execute(sql).expect_err(sql);
    }

    /// What was captured since the last call, a line a change: `+t(…)`, `-t(…)`, `t(…)>(…)`.
    async fn caught(&self) -> Vec<String> {
        let mut session = self.store.begin().await.unwrap();
        let sql = "SELECT class_id, op, old_image, new_image FROM sync_change ORDER BY seq";
        let rows = session.query(sql, vec![]).await.unwrap();
        session.execute("DELETE FROM sync_change", vec![]).await.unwrap();
        session.commit().await.unwrap();
        let image = |row: &branchline::store::Row, n| row.opt_text(n).unwrap().map(str::to_owned);
        rows.iter()
            .map(|row| {
                let class = &self.catalog.tracked[&(row.int(0).unwrap() as i32)].class;
                let name = &class.name;
                match (row.int(1).unwrap(), image(row, 2), image(row, 3)) {
                    (1, None, Some(new)) => format!("+{name}({new})"),
                    (2, Some(old), Some(new)) => format!("{name}({old})>({new})"),
                    (3, Some(old), None) => format!("-{name}({old})"),
                    other => panic!("{other:?}"),
                }
            })
            .collect()
    }

    async fn decoded(&self, image: &str, name: &str) -> Vec<Value> {
        let class = &self.catalog.class(name).unwrap().class;
        let columns: Vec<Option<&Column>> = class.columns.iter().map(Some).collect();
        image::decode(image, &columns).unwrap()
    }
}

/// All tables as classes: by uuid where there is one, else by primary key, else as a set.
fn classes(tables: &[Table]) -> Catalog {
    let mut catalog = Catalog::default();
    for (n, table) in tables.iter().filter(|table| table.obstacle.is_none()).enumerate() {
        let position = |name: &String| table.columns.iter().position(|c| c.name == *name).unwrap();
        let primary: Vec<usize> = table.primary_key.iter().map(position).collect();
        let uuid = table.columns.iter().position(|column| column.name == "uuid");
        let all: Vec<usize> = (0..table.columns.len()).collect();
        let set = primary.is_empty() && uuid.is_none();
        let surrogate = table.columns.iter().position(|column| column.auto);
        let key = match (uuid, set) {
            (Some(uuid), _) => vec![uuid],
            (None, true) => all,
            (None, false) => primary.clone(),
        };
        let columns = table.columns.iter().map(|column| Column {
            name: column.name.as_str().into(),
            sql_type: column.sql_type.clone(),
            kind: column.kind,
            not_null: column.not_null,
            generated: column.generated,
            references: table
                .foreign_keys
                .iter()
                .filter(|foreign| foreign.columns == [column.name.clone()])
                .map(|foreign| Reference {
                    target: foreign.target.as_str().into(),
                    target_column: foreign.target_columns[0].as_str().into(),
                    when: None,
                    declared: true,
                })
                .collect(),
        });
        let class = Class {
            name: table.name.as_str().into(),
            schema: String::new(),
            table: table.table.clone(),
            columns: columns.collect(),
            local: if primary.is_empty() { key.clone() } else { primary },
            key,
            surrogate,
            set,
            host_triggers: table.host_triggers.clone(),
            unique: Vec::new(),
            id_source: None,
            partitions: Vec::new(),
            clashes: table.clashes.clone(),
        };
        let id = n as i32 + 1;
        catalog.ids.insert(class.name.clone(), id);
        catalog.tracked.insert(id, Arc::new(Tracked { id, shape: id, class }));
    }
    catalog
}

const THING: &str = "CREATE TABLE thing (id INTEGER PRIMARY KEY, uuid TEXT UNIQUE, n);";

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_write_is_captured_and_a_rollback_leaves_nothing() {
    let mut bench = Bench::new(THING).await;
    bench.run("INSERT INTO thing VALUES (1, 'a', 1), (2, 'b', NULL)");
    assert_eq!(bench.caught().await, ["+thing(1,'a',1)", "+thing(2,'b',NULL)"]);
    bench.run("UPDATE thing SET n = 2 WHERE id = 1; DELETE FROM thing WHERE id = 2");
    assert_eq!(bench.caught().await, ["thing(1,'a',1)>(1,'a',2)", "-thing(2,'b',NULL)"]);
    bench.run("BEGIN; INSERT INTO thing VALUES (3, 'c', 3); ROLLBACK");
    bench.run("BEGIN; SAVEPOINT s; DELETE FROM thing; ROLLBACK TO s; COMMIT");
    bench.fails("INSERT INTO thing VALUES (4, 'x', 1), (5, 'a', 1)");
    assert_eq!(bench.caught().await, Vec::<String>::new());
    bench.run("UPDATE thing SET id = 7, n = 3 WHERE id = 1; UPDATE thing SET rowid = 8");
    assert_eq!(
        bench.caught().await,
        ["-thing(1,'a',2)", "+thing(7,'a',3)", "-thing(7,'a',3)", "+thing(8,'a',3)"]
    );
    bench.run("INSERT INTO sync_applying VALUES (1); DELETE FROM thing; DELETE FROM sync_applying");
    assert_eq!(bench.caught().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_replace_removes_are_captured_as_deletes_once() {
    for recursive in ["OFF", "ON"] {
        let mut bench = Bench::new(THING).await;
        bench.run(&format!("PRAGMA recursive_triggers = {recursive}"));
        bench.run("INSERT INTO thing VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)");
        bench.caught().await;
        // By the unique column, by the primary key, by both.
        bench.run("INSERT OR REPLACE INTO thing (uuid, n) VALUES ('a', 9)");
        assert_eq!(bench.caught().await, ["-thing(1,'a',1)", "+thing(4,'a',9)"], "{recursive}");
        bench.run("REPLACE INTO thing VALUES (2, 'd', 9)");
        assert_eq!(bench.caught().await, ["-thing(2,'b',2)", "+thing(2,'d',9)"]);
        bench.run("REPLACE INTO thing VALUES (2, 'c', 0)");
        let mut caught = bench.caught().await;
        caught[..2].sort();
        assert_eq!(caught, ["-thing(2,'d',9)", "-thing(3,'c',3)", "+thing(2,'c',0)"]);
        bench.run("REPLACE INTO thing VALUES (2, 'c', 1)");
        assert_eq!(bench.caught().await, ["-thing(2,'c',0)", "+thing(2,'c',1)"]);
        // An update that replaces others.
        bench.run("UPDATE OR REPLACE thing SET uuid = 'a' WHERE id = 2");
        assert_eq!(bench.caught().await, ["-thing(4,'a',9)", "thing(2,'c',1)>(2,'a',1)"]);
        bench.run("INSERT INTO thing VALUES (5, 'e', 5)");
        bench.run("UPDATE OR REPLACE thing SET id = 5 WHERE id = 2");
        assert_eq!(
            bench.caught().await,
            ["+thing(5,'e',5)", "-thing(5,'e',5)", "-thing(2,'a',1)", "+thing(5,'a',1)"]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upserts_and_ignored_inserts_leave_nothing_wrong_behind() {
    let mut bench = Bench::new(THING).await;
    bench.run("INSERT INTO thing VALUES (1, 'a', 1), (2, 'b', 2)");
    bench.caught().await;
    bench.run("INSERT OR IGNORE INTO thing VALUES (1, 'z', 0), (9, 'b', 0)");
    bench.run("INSERT INTO thing VALUES (1, 'z', 0) ON CONFLICT DO NOTHING");
    assert_eq!(bench.caught().await, Vec::<String>::new());
    bench.run("INSERT INTO thing (uuid, n) VALUES ('a', 5) ON CONFLICT (uuid) DO UPDATE SET n = excluded.n");
    assert_eq!(bench.caught().await, ["thing(1,'a',1)>(1,'a',5)"]);
    // The notes of the ignored rows are still about; these inserts replace nothing.
    bench.run("DELETE FROM thing WHERE id = 1; INSERT INTO thing VALUES (1, 'z', 0)");
    bench.run("UPDATE thing SET uuid = 'y' WHERE id = 2; INSERT INTO thing VALUES (9, 'b', 0)");
    assert_eq!(
        bench.caught().await,
        ["-thing(1,'a',5)", "+thing(1,'z',0)", "thing(2,'b',2)>(2,'y',2)", "+thing(9,'b',0)"]
    );
    // What the applier removes meanwhile is no local delete.
    bench.run("INSERT OR IGNORE INTO thing VALUES (3, 'b', 0)");
    bench.run("INSERT INTO sync_applying VALUES (1); DELETE FROM thing; DELETE FROM sync_applying");
    bench.run("INSERT INTO thing VALUES (3, 'b', 0)");
    assert_eq!(bench.caught().await, ["+thing(3,'b',0)"]);
    for n in 0..100 {
        bench.run(&format!("INSERT OR IGNORE INTO thing VALUES (3, 'x{n}', 0)"));
    }
    let mut session = bench.store.read().await.unwrap();
    let left = session.query_one("SELECT count(*) FROM sync_replaced", vec![]).await.unwrap();
    assert!(left.int(0).unwrap() < 64, "notes are bounded");
}
