//! Capture on SQLite, with real files: what an independent connection writes, the triggers catch.

use std::sync::Arc;

use branchline::catalog::{Catalog, Class, Column, Reference, Table, Tracked};
use branchline::record::Value;
use branchline::store::sqlite::refs::{self, Captured};
use branchline::store::sqlite::{catalog, image, triggers};
use branchline::store::{Limits, Session, Store};
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

    async fn track(&mut self) {
        let mut session = self.store.begin().await.unwrap();
        let tables = catalog::read(&mut session).await.unwrap();
        for tracked in self.catalog.tracked.values() {
            for sql in triggers::drop(tracked) {
                session.batch(&sql).await.unwrap();
            }
        }
        self.catalog = classes(&tables);
        session.execute("DELETE FROM sync_tracked", vec![]).await.unwrap();
        for tracked in self.catalog.tracked.values() {
            let names: Vec<&str> = tracked.class.columns.iter().map(|c| &*c.name).collect();
            let sql = "INSERT INTO sync_tracked (id, class) VALUES ($1, $2)";
            let binds = vec![tracked.id.into(), (&*tracked.class.name).into()];
            session.execute(sql, binds).await.unwrap();
            let sql = "INSERT INTO sync_shape (id, class_id, columns) VALUES ($1, $1, $2)";
            let binds = vec![tracked.id.into(), serde_json::to_string(&names).unwrap().into()];
            session.execute(sql, binds).await.unwrap();
        }
        self.arm(&mut session).await;
        session.commit().await.unwrap();
    }

    /// Makes the triggers of all classes.
    async fn arm(&self, session: &mut Session) {
        for tracked in self.catalog.tracked.values() {
            for sql in triggers::create(tracked, &self.catalog).unwrap() {
                session.batch(&sql).await.unwrap();
            }
        }
    }

    /// Runs a script through the system's own SQLite, an older one than ours; says what it printed.
    fn shell(&self, script: &str) -> String {
        let path = self.folder.path().join("host.db");
        let output = std::process::Command::new("sqlite3")
            .args(["-bail", path.to_str().unwrap(), script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The keys that the captured rows refer to, a line an image; changes stay.
    async fn references(&self) -> Vec<String> {
        let mut session = self.store.read().await.unwrap();
        let sql = "SELECT class_id, seq, old_image, new_image FROM sync_change ORDER BY seq";
        let rows = session.query(sql, vec![]).await.unwrap();
        let mut read = Vec::new();
        for row in &rows {
            let tracked = &self.catalog.tracked[&(row.int(0).unwrap() as i32)];
            for (n, before) in [(2, true), (3, false)] {
                let Some(image) = row.opt_text(n).unwrap() else { continue };
                let values = self.decoded(image, &tracked.class.name);
                let values: Vec<Option<Value>> = values.into_iter().map(Some).collect();
                read.push((tracked, row.int(1).unwrap(), before, values));
            }
        }
        let images: Vec<Captured<'_>> = read
            .iter()
            .map(|(tracked, seq, before, values)| Captured {
                tracked,
                seq: *seq,
                before: *before,
                values,
            })
            .collect();
        let keys = refs::resolve(&mut session, &self.catalog, &images).await.unwrap();
        images
            .iter()
            .zip(keys)
            .map(|(image, keys)| {
                let keys: Vec<&str> =
                    keys.iter().map(|key| key.as_deref().unwrap_or("-")).collect();
                let sign = if image.before { '-' } else { '+' };
                format!("{sign}{} {}", image.tracked.class.name, keys.join(" "))
            })
            .collect()
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

    fn decoded(&self, image: &str, name: &str) -> Vec<Value> {
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

#[tokio::test(flavor = "multi_thread")]
async fn replace_is_seen_through_every_kind_of_unique_index() {
    let mut bench = Bench::new(
        "CREATE TABLE a (id INTEGER PRIMARY KEY, x TEXT, y TEXT, z INTEGER);
         CREATE UNIQUE INDEX a_x ON a (lower(x), z);
         CREATE UNIQUE INDEX a_y ON a (y COLLATE NOCASE DESC) WHERE z > 0;
         CREATE TABLE b (p TEXT, q INTEGER, r, PRIMARY KEY (p, q)) WITHOUT ROWID;
         CREATE TABLE c (n INTEGER NOT NULL, s TEXT UNIQUE ON CONFLICT REPLACE);
         CREATE TABLE d (n INTEGER, m AS (n % 10) UNIQUE);",
    )
    .await;
    bench.run("INSERT INTO a VALUES (1, 'A', 'u', 1), (2, 'b', 'v', 0), (3, 'c', 'w', 2)");
    bench.caught().await;
    bench.run("REPLACE INTO a VALUES (4, 'a', 'V', 1)");
    assert_eq!(bench.caught().await, ["-a(1,'A','u',1)", "+a(4,'a','V',1)"], "not row 2: z is 0");
    bench.run("REPLACE INTO a VALUES (5, 'W', 'W', 3)");
    assert_eq!(bench.caught().await, ["-a(3,'c','w',2)", "+a(5,'W','W',3)"]);
    bench.run("UPDATE OR REPLACE a SET z = 1, y = 'w' WHERE id = 2");
    assert_eq!(bench.caught().await, ["-a(5,'W','W',3)", "a(2,'b','v',0)>(2,'b','w',1)"]);

    bench.run("INSERT INTO b VALUES ('k', 1, 1), ('k', 2, 2), ('l', 1, 3)");
    bench.run("REPLACE INTO b VALUES ('k', 2, 9)");
    bench.run("UPDATE OR REPLACE b SET p = 'k' WHERE p = 'l'");
    assert_eq!(
        bench.caught().await[3..],
        ["-b('k',2,2)", "+b('k',2,9)", "-b('k',1,1)", "-b('l',1,3)", "+b('k',1,3)"]
    );

    bench.run("INSERT INTO c VALUES (1, 'a'), (2, 'b')");
    bench.run("INSERT INTO c VALUES (3, 'a')");
    bench.run("REPLACE INTO c (rowid, n, s) VALUES (2, 4, 'z')");
    assert_eq!(bench.caught().await[2..], ["-c(1,'a')", "+c(3,'a')", "-c(2,'b')", "+c(4,'z')"]);

    bench.run("INSERT INTO d VALUES (1), (2)");
    bench.run("REPLACE INTO d VALUES (12)");
    assert_eq!(bench.caught().await, ["+d(1,1)", "+d(2,2)", "-d(2,2)", "+d(12,2)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_only_look_alike_are_not_taken_for_replaced() {
    let mut bench = Bench::new(
        "CREATE TABLE a (id INTEGER PRIMARY KEY, x TEXT COLLATE NOCASE);
         CREATE UNIQUE INDEX a_x ON a (x COLLATE BINARY);
         CREATE TABLE b (id INTEGER PRIMARY KEY, x TEXT UNIQUE, pos INTEGER UNIQUE);
         CREATE TRIGGER make_room BEFORE INSERT ON b BEGIN
             UPDATE b SET pos = pos + 100 WHERE pos = NEW.pos;
         END;",
    )
    .await;
    bench.run("INSERT INTO a VALUES (1, 'k'); REPLACE INTO a VALUES (2, 'K')");
    assert_eq!(bench.caught().await, ["+a(1,'k')", "+a(2,'K')"]);
    bench.run("UPDATE a SET x = 'q' WHERE id = 1; UPDATE a SET x = 'Q' WHERE id = 1");
    assert_eq!(bench.caught().await, ["a(1,'k')>(1,'q')", "a(1,'q')>(1,'Q')"], "NOCASE edits");
    bench.run("INSERT INTO b VALUES (1, 'm', 5)");
    bench.run("REPLACE INTO b VALUES (2, 'n', 5)");
    assert_eq!(bench.caught().await, ["+b(1,'m',5)", "b(1,'m',5)>(1,'m',105)", "+b(2,'n',5)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nested_writes_of_host_triggers_are_captured_once_each() {
    for recursive in ["OFF", "ON"] {
        let mut bench = Bench::new(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, u TEXT UNIQUE, n INTEGER);
             CREATE TABLE log (id INTEGER PRIMARY KEY, what TEXT UNIQUE);
             CREATE TRIGGER before_t BEFORE INSERT ON t WHEN NEW.n = 1 BEGIN
                 INSERT OR REPLACE INTO t (id, u, n) VALUES (NEW.id + 100, 'x', 0);
             END;
             CREATE TRIGGER after_t AFTER INSERT ON t WHEN NEW.n = 1 BEGIN
                 INSERT OR REPLACE INTO t (id, u, n) VALUES (NEW.id + 200, 'y', 0);
                 REPLACE INTO log (what) VALUES (NEW.u);
             END;",
        )
        .await;
        bench.run(&format!("PRAGMA recursive_triggers = {recursive}"));
        bench.run("INSERT INTO t VALUES (1, 'x', 0), (2, 'y', 0), (3, 'z', 0)");
        bench.caught().await;
        bench.run("REPLACE INTO t VALUES (9, 'z', 1)");
        let mut caught = bench.caught().await;
        caught.sort();
        assert_eq!(
            caught,
            [
                "+log(1,'z')",
                "+t(109,'x',0)",
                "+t(209,'y',0)",
                "+t(9,'z',1)",
                "-t(1,'x',0)",
                "-t(2,'y',0)",
                "-t(3,'z',0)",
            ],
            "{recursive}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_sees_its_own_counts_and_rows() {
    let bench = Bench::new(THING).await;
    let seen = bench.shell(
        "PRAGMA trusted_schema = OFF;
         INSERT INTO thing (uuid, n) VALUES ('a', 1), ('b', 2) RETURNING id, uuid;
         SELECT changes(), last_insert_rowid();
         REPLACE INTO thing (id, uuid) VALUES (7, 'a');
         SELECT changes(), last_insert_rowid();
         INSERT INTO thing (uuid, n) VALUES ('a', 3) ON CONFLICT (uuid) DO UPDATE SET n = 3 RETURNING id;
         UPDATE thing SET n = 4 RETURNING id, n;
         SELECT changes(), last_insert_rowid();
         DELETE FROM thing; SELECT changes(), last_insert_rowid();",
    );
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines, ["1|a", "2|b", "2|2", "1|7", "7", "2|4", "7|4", "2|7", "2|7"]);
    assert_eq!(bench.caught().await.len(), 9);
}

const PEOPLE: &str = "CREATE TABLE person (id INTEGER PRIMARY KEY, uuid TEXT UNIQUE,
        mother INTEGER REFERENCES person ON DELETE SET NULL);
    CREATE TABLE patient (id INTEGER PRIMARY KEY REFERENCES person ON DELETE CASCADE, n);
    CREATE TABLE visit (uuid TEXT PRIMARY KEY, patient_id INTEGER
        REFERENCES PATIENT (ID) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED);";

#[tokio::test(flavor = "multi_thread")]
async fn references_are_those_of_the_time_of_the_change() {
    let mut bench = Bench::new(PEOPLE).await;
    bench.run("PRAGMA foreign_keys = ON");
    bench.run(
        "INSERT INTO person VALUES (1, 'ann', 1), (2, 'bob', 1);
         INSERT INTO patient VALUES (2, 0); INSERT INTO visit VALUES ('v', 2)",
    );
    assert_eq!(
        bench.references().await,
        ["+person ann", "+person ann", "+patient bob", "+visit bob"]
    );
    // All of it goes, another takes the id, and is renamed: the earlier changes stay what they were.
    bench.run("DELETE FROM person WHERE id = 2");
    bench.run("INSERT INTO person VALUES (2, 'cyd', 1)");
    bench.run("INSERT INTO patient VALUES (2, 0)");
    bench.run("UPDATE person SET uuid = 'dee' WHERE id = 2");
    bench.run(
        "BEGIN; INSERT INTO visit VALUES ('w', 3); INSERT INTO person VALUES (3, 'eve', 2);
               INSERT INTO patient VALUES (3, 0); COMMIT",
    );
    bench.run("DELETE FROM person WHERE id = 1");
    let found = bench.references().await;
    assert_eq!(found[..4], ["+person ann", "+person ann", "+patient bob", "+visit bob"]);
    assert_eq!(
        found[4..],
        [
            "-visit bob",
            "-patient bob",
            "-person ann", // the cascade
            "+person ann",
            "+patient cyd",
            "-person ann",
            "+person ann", // dee
            "+visit eve",
            "+person dee",
            "+patient eve",
            "-person ann",
            "+person -", // dee lost her mother
            "-person ann",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn parents_deleted_first_are_still_known_to_their_children() {
    let mut bench = Bench::new(PEOPLE).await;
    bench.run("PRAGMA foreign_keys = OFF");
    bench.run("INSERT INTO person VALUES (2, 'bob', NULL); INSERT INTO patient VALUES (2, 0)");
    bench.caught().await;
    bench
        .run("DELETE FROM person; DELETE FROM patient; INSERT INTO person VALUES (2, 'cyd', NULL)");
    bench.run("REPLACE INTO person VALUES (2, 'dee', NULL); INSERT INTO patient VALUES (2, 1)");
    assert_eq!(
        bench.references().await,
        ["-person -", "-patient bob", "+person -", "-person -", "+person -", "+patient dee"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conditional_reference_is_one_where_its_condition_holds() {
    let mut bench = Bench::new(
        "CREATE TABLE concept (id INTEGER PRIMARY KEY, uuid TEXT);
         CREATE TABLE place (id INTEGER PRIMARY KEY, uuid TEXT);
         CREATE TABLE kind (id INTEGER PRIMARY KEY, uuid TEXT, format TEXT);
         CREATE TABLE attribute (id INTEGER PRIMARY KEY, uuid TEXT, kind_id INTEGER, value TEXT);",
    )
    .await;
    let mut classes = bench.catalog.clone();
    let id = classes.ids["attribute"];
    let mut tracked = (*classes.tracked[&id]).clone();
    for target in ["concept", "place"] {
        tracked.class.columns[3].references.push(Reference {
            target: target.into(),
            target_column: "id".into(),
            when: Some(format!(
                "(SELECT format FROM kind k WHERE k.id = {{row}}.kind_id) = '{target}'"
            )),
            declared: false,
        });
    }
    classes.tracked.insert(id, Arc::new(tracked));
    bench.catalog = classes;
    bench.run(
        "INSERT INTO kind VALUES (1, 'k1', 'concept'), (2, 'k2', 'place'), (3, 'k3', 'text');
         INSERT INTO concept VALUES (5, 'c5'); INSERT INTO place VALUES (5, 'p5')",
    );
    bench.caught().await;
    bench.run(
        "INSERT INTO attribute VALUES (1, 'a1', 1, '5'), (2, 'a2', 2, '5'), (3, 'a3', 3, '5'),
         (4, 'a4', NULL, '5'), (5, 'a5', 1, 'none')",
    );
    assert_eq!(
        bench.references().await,
        [
            "+attribute c5 -",
            "+attribute - p5",
            "+attribute - -",
            "+attribute - -",
            "+attribute - -"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_may_change_its_schema_and_the_watch_sees_it() {
    let mut bench = Bench::new(PEOPLE).await;
    let person = bench.catalog.ids["person"];
    let visit = bench.catalog.ids["visit"];
    async fn missing(bench: &Bench) -> Vec<i32> {
        let mut session = bench.store.read().await.unwrap();
        triggers::missing(&mut session, &bench.catalog).await.unwrap()
    }
    async fn version(bench: &Bench) -> i64 {
        catalog::schema_version(&mut bench.store.read().await.unwrap()).await.unwrap()
    }
    assert_eq!(missing(&bench).await, Vec::<i32>::new());
    let before = version(&bench).await;
    bench.run("INSERT INTO person VALUES (1, 'ann', NULL)");
    assert_eq!(version(&bench).await, before);
    bench.run("ALTER TABLE person ADD COLUMN born TEXT; UPDATE person SET born = '1980'");
    assert!(version(&bench).await > before);
    assert_eq!(bench.caught().await[1..], ["person(1,'ann',NULL)>(1,'ann',NULL)"]);
    bench.run("ALTER TABLE person RENAME COLUMN uuid TO guid; UPDATE person SET guid = 'bob'");
    assert_eq!(bench.caught().await, ["person(1,'ann',NULL)>(1,'bob',NULL)"]);
    assert_eq!(missing(&bench).await, [person]);
    bench.run("ALTER TABLE visit RENAME TO encounter; INSERT INTO encounter VALUES ('v', NULL)");
    assert_eq!(bench.caught().await, ["+visit('v',NULL)"]);
    assert_eq!(missing(&bench).await, [person, visit]);
    // The rebuild that SQLite's documentation tells: of a table that others refer to.
    bench.run(
        "PRAGMA foreign_keys = OFF; BEGIN;
         CREATE TABLE new_person (id INTEGER PRIMARY KEY, guid TEXT NOT NULL UNIQUE, mother INTEGER);
         INSERT INTO new_person SELECT id, guid, mother FROM person;
         DROP TABLE person; ALTER TABLE new_person RENAME TO person; COMMIT",
    );
    bench.run("INSERT INTO patient VALUES (1, 1); INSERT INTO person VALUES (2, 'cyd', 1)");
    assert_eq!(bench.caught().await, ["+patient(1,1)"]);
    assert_eq!(missing(&bench).await, [person, visit]);
    bench.track().await;
    assert_eq!(missing(&bench).await, Vec::<i32>::new());
    bench.run("DELETE FROM person WHERE id = 2");
    assert_eq!(bench.caught().await, ["-person(2,'cyd',1)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_as_wide_as_sqlite_allows_is_captured_also_by_an_old_sqlite() {
    let columns: Vec<String> = (0..1_990).map(|n| format!("c{n} INT")).collect();
    let wide = format!("CREATE TABLE wide (id INTEGER PRIMARY KEY, {})", columns.join(", "));
    let bench = Bench::new(&wide).await;
    bench.shell("INSERT INTO wide (c1989) VALUES (5); UPDATE wide SET c0 = 1; DELETE FROM wide");
    let caught = bench.caught().await;
    assert_eq!(caught.len(), 3);
    assert!(caught[0].ends_with("NULL,5)"));
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_triggers_and_self_references_are_captured() {
    let mut bench = Bench::new(
        "CREATE TABLE node (id INTEGER PRIMARY KEY, uuid TEXT, parent INTEGER
             REFERENCES node ON DELETE CASCADE ON UPDATE CASCADE);",
    )
    .await;
    bench.run("PRAGMA foreign_keys = ON");
    bench.run("INSERT INTO node VALUES (1, 'a', NULL), (2, 'b', 1), (3, 'c', 2)");
    bench.run(
        "CREATE TEMP TRIGGER mine AFTER INSERT ON node BEGIN
             UPDATE node SET uuid = NEW.uuid || '!' WHERE id = NEW.id; END",
    );
    bench.caught().await;
    bench.run("INSERT INTO node VALUES (4, 'd', 3)");
    let mut caught = bench.caught().await;
    caught.sort();
    assert_eq!(caught, ["+node(4,'d',3)", "node(4,'d',3)>(4,'d!',3)"]);
    bench.run("UPDATE node SET id = 9 WHERE id = 3");
    let mut caught = bench.caught().await;
    caught.sort();
    assert_eq!(caught, ["+node(9,'c',2)", "-node(3,'c',2)", "node(4,'d!',3)>(4,'d!',9)"]);
    bench.run("DELETE FROM node WHERE id = 1");
    assert_eq!(bench.caught().await.len(), 4);
}
