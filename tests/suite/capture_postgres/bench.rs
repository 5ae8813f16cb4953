//! A host's database under capture.

use branchline::catalog::Catalog;
use branchline::catalog::decide::Request;
use branchline::store::books::identity;
use branchline::store::track::{self, Report};
use branchline::store::{Limits, Session, Store};
use tokio_postgres::{Client, NoTls};

use crate::support::databases::Databases;

/// A database with captured tables, and the host's own connection to it.
pub(super) struct Bench {
    pub(super) store: Store,
    pub(super) host: Client,
    pub(super) url: String,
    pub(super) catalog: Catalog,
    _databases: Databases,
}

/// A connection of the host's own.
pub(super) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

impl Bench {
    pub(super) async fn empty(schema: &str) -> Self {
        let mut databases = Databases::postgres();
        let url = databases.make("capture").await;
        let host = connect(&url).await;
        host.batch_execute(schema).await.unwrap();
        let store = Store::connect(&url, Limits::default()).await.unwrap();
        identity::init(&store, "x", false, "test").await.unwrap();
        Self { store, host, url, catalog: Catalog::default(), _databases: databases }
    }

    /// Makes the tables of `schema`, and captures all of them.
    pub(super) async fn new(schema: &str) -> Self {
        let mut bench = Self::empty(schema).await;
        let report = bench.track(Request { all: true, ..Request::default() }).await;
        assert_eq!(report.refusals, []);
        bench
    }

    pub(super) async fn track(&mut self, request: Request) -> Report {
        self.try_track(request).await.unwrap()
    }

    pub(super) async fn try_track(&mut self, request: Request) -> branchline::Result<Report> {
        let mut session = self.store.begin().await.unwrap();
        let report = track::track(&mut session, request).await?;
        self.catalog = track::load(&mut session).await.unwrap();
        session.commit().await.unwrap();
        Ok(report)
    }

    pub(super) async fn read(&self) -> Session {
        self.store.begin().await.unwrap()
    }

    pub(super) async fn run(&self, sql: &str) {
        self.host.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    pub(super) async fn fails(&self, sql: &str) {
        self.host.batch_execute(sql).await.expect_err(sql);
    }

    /// What was captured since the last call, a line a change: `+t(…)`, `-t(…)`, `t(…)>(…)`, with
    /// `{columns}` where they are not those of the class.
    pub(super) async fn caught(&self) -> Vec<String> {
        self.rows().await.into_iter().map(|(line, _)| line).collect()
    }

    /// The same with the references of the new image, else of the old.
    pub(super) async fn rows(&self) -> Vec<(String, Option<String>)> {
        let mut session = self.store.begin().await.unwrap();
        let sql = "SELECT class_id, op, shape, columns, old_image, new_image, old_refs, new_refs \
                   FROM @sync_change ORDER BY seq";
        let rows = session.query(sql, vec![]).await.unwrap();
        session.execute("DELETE FROM @sync_change", vec![]).await.unwrap();
        session.commit().await.unwrap();
        rows.iter()
            .map(|row| {
                let tracked = &self.catalog.tracked[&i32::try_from(row.int(0).unwrap()).unwrap()];
                let name = &tracked.class.name;
                let text = |n| row.opt_text(n).unwrap().map(str::to_owned);
                let shape = match (row.opt_int(2).unwrap(), text(3)) {
                    (Some(shape), None) => {
                        assert_eq!(shape, i64::from(tracked.shape));
                        String::new()
                    }
                    (None, Some(columns)) => {
                        let names: Vec<String> = serde_json::from_str(&columns).unwrap();
                        format!("{{{}}}", names.join(","))
                    }
                    other => panic!("{other:?}"),
                };
                let line = match (row.int(1).unwrap(), text(4), text(5)) {
                    (1, None, Some(new)) => format!("+{name}{shape}{new}"),
                    (2, Some(old), Some(new)) => format!("{name}{shape}{old}>{new}"),
                    (3, Some(old), None) => format!("-{name}{shape}{old}"),
                    other => panic!("{other:?}"),
                };
                (line, text(7).or(text(6)))
            })
            .collect()
    }
}

pub(super) const THING: &str =
    "CREATE TABLE thing (id serial PRIMARY KEY, uuid text NOT NULL UNIQUE, n int);";
pub(super) const NOTHING: [&str; 0] = [];
