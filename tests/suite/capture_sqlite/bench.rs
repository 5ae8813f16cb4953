//! A host's database under capture.

use std::sync::Arc;

use branchline::catalog::{Catalog, Class, Column, Reference, Table, Tracked};
use branchline::record::Value;
use branchline::store::sqlite::refs::{self, Captured};
use branchline::store::sqlite::{catalog, changes, image, literals, triggers};
use branchline::store::{Limits, Session, Store};
use diesel::connection::SimpleConnection as _;
use diesel::{Connection as _, SqliteConnection};

/// A database file with captured tables, and the host's own connection to it.
pub(super) struct Bench {
    folder: tempfile::TempDir,
    pub(super) store: Store,
    host: SqliteConnection,
    pub(super) catalog: Catalog,
}

impl Bench {
    /// Makes the tables of `schema`, and captures all of them.
    pub(super) async fn new(schema: &str) -> Self {
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

    pub(super) async fn track(&mut self) {
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

    /// Makes or mends the triggers of all classes.
    pub(super) async fn arm(&self, session: &mut Session) {
        for tracked in self.catalog.tracked.values() {
            triggers::install(session, tracked, &self.catalog).await.unwrap();
        }
    }

    /// Runs a script through the system's own SQLite, an older one than ours; says what it printed.
    pub(super) fn shell(&self, script: &str) -> String {
        let path = self.folder.path().join("host.db");
        let file = self.folder.path().join("script.sql");
        std::fs::write(&file, script).unwrap();
        let output = std::process::Command::new("sqlite3")
            .args(["-bail", path.to_str().unwrap()])
            .stdin(std::fs::File::open(file).unwrap())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a script on a connection to another database; `{host}` stands for the path of this one.
    pub(super) fn aside(&self, script: &str) {
        let path = self.folder.path().join("host.db");
        let script = script.replace("{host}", path.to_str().unwrap());
        let mut aside = SqliteConnection::establish(":memory:").unwrap();
        aside.batch_execute(&script).unwrap();
    }

    /// The keys that the captured rows refer to, a line an image; changes stay.
    pub(super) async fn references(&self) -> Vec<String> {
        let mut session = self.store.begin().await.unwrap();
        let rows = changes::read(&mut session, &self.catalog, 100_000).await.unwrap().rows;
        let mut read = Vec::new();
        for row in &rows {
            let tracked = &self.catalog.tracked[&(row.int(1).unwrap() as i32)];
            for (n, before) in [(5, true), (6, false)] {
                let Some(image) = row.opt_text(n).unwrap() else { continue };
                let values = self.decoded(image, &tracked.class.name);
                let values: Vec<Option<Value>> = values.into_iter().map(Some).collect();
                read.push((tracked, row.int(0).unwrap(), before, values));
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
        session.commit().await.unwrap();
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

    pub(super) fn run(&mut self, sql: &str) {
        self.host.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Runs what may fail.
    pub(super) fn try_run(&mut self, sql: &str) {
        let _ = self.host.batch_execute(sql);
    }

    /// What lies in some tables, a line a row, sorted.
    pub(super) async fn rows(&self, tables: &[&str]) -> Vec<String> {
        let mut session = self.store.read().await.unwrap();
        let mut rows = Vec::new();
        for name in tables {
            let class = &self.catalog.class(name).unwrap().class;
            let sql = format!("SELECT {} FROM {name} AS t", literals::image_sql(class, "t"));
            for row in session.query(&sql, vec![]).await.unwrap() {
                rows.push(format!("{name}({})", row.text(0).unwrap()));
            }
        }
        rows.sort();
        rows
    }

    pub(super) fn fails(&mut self, sql: &str) {
        self.host.batch_execute(sql).expect_err(sql);
    }

    /// What was captured since the last call, a line a change: `+t(…)`, `-t(…)`, `t(…)>(…)`.
    pub(super) async fn caught(&self) -> Vec<String> {
        let mut session = self.store.begin().await.unwrap();
        let rows = changes::read(&mut session, &self.catalog, 100_000).await.unwrap().rows;
        session.execute("DELETE FROM sync_change", vec![]).await.unwrap();
        session.commit().await.unwrap();
        let image = |row: &branchline::store::Row, n| row.opt_text(n).unwrap().map(str::to_owned);
        rows.iter()
            .map(|row| {
                let class = &self.catalog.tracked[&(row.int(1).unwrap() as i32)].class;
                let name = &class.name;
                match (row.int(2).unwrap(), image(row, 5), image(row, 6)) {
                    (1, None, Some(new)) => format!("+{name}({new})"),
                    (2, Some(old), Some(new)) => format!("{name}({old})>({new})"),
                    (3, Some(old), None) => format!("-{name}({old})"),
                    other => panic!("{other:?}"),
                }
            })
            .collect()
    }

    pub(super) fn decoded(&self, image: &str, name: &str) -> Vec<Value> {
        let class = &self.catalog.class(name).unwrap().class;
        let columns: Vec<Option<&Column>> = class.columns.iter().map(Some).collect();
        image::decode(image, &columns).unwrap()
    }
}

/// All tables as classes: by uuid where there is one, else by primary key, else as a set.
pub(super) fn classes(tables: &[Table]) -> Catalog {
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
            cascades: false,
            links: Vec::new(),
            plain: table.plain,
        };
        let id = n as i32 + 1;
        catalog.ids.insert(class.name.clone(), id);
        catalog.tracked.insert(id, Arc::new(Tracked { id, shape: id, class }));
    }
    catalog
}
