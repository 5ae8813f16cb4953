//! Trees of servers on a mix of databases and brokers.

use std::collections::BTreeMap;
use std::time::Duration;

use lapin::options::QueueDeleteOptions;
use lapin::{Connection, ConnectionProperties};

use super::cli::{TestServer, TestWorker, wait_until};
use super::services::{self, TestDatabase};
use super::{block_on, sql::Row};

/// How long anything may take to travel through the tree. The machine may be busy.
pub(crate) const ARRIVES_WITHIN: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Engine {
    Postgres,
    Sqlite,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Broker {
    Amqp,
    Spool,
}

/// What a tree is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mix {
    pub(crate) parent: Engine,
    pub(crate) children: Engine,
    pub(crate) broker: Broker,
}

pub(crate) const POSTGRES_AMQP: Mix =
    Mix { parent: Engine::Postgres, children: Engine::Postgres, broker: Broker::Amqp };
pub(crate) const SQLITE_SPOOL: Mix =
    Mix { parent: Engine::Sqlite, children: Engine::Sqlite, broker: Broker::Spool };
pub(crate) const MIXED_AMQP: Mix =
    Mix { parent: Engine::Postgres, children: Engine::Sqlite, broker: Broker::Amqp };

impl Engine {
    /// An empty database.
    pub(crate) fn database(self, prefix: &str) -> TestDatabase {
        match self {
            Self::Postgres => services::new_database(prefix),
            Self::Sqlite => services::new_sqlite(prefix),
        }
    }
}

/// A parent with two children. Fields are public so that a test can take hold of two at once.
pub(crate) struct Tree {
    pub(crate) parent: TestServer,
    pub(crate) child: TestServer,
    pub(crate) child2: TestServer,
    pub(crate) mix: Mix,
    /// Shared by all, as one mounted folder would be; gone with the tree.
    spool: tempfile::TempDir,
    /// All servers that may have queues at the broker.
    uuids: Vec<String>,
}

impl Tree {
    /// Three servers with a database each from `database` (by nickname), not initialised yet.
    pub(crate) fn unconnected(
        mix: Mix,
        settings: &str,
        database: impl Fn(&str, Engine) -> TestDatabase,
    ) -> Self {
        let spool = tempfile::Builder::new().prefix("branchline-test-").tempdir().unwrap();
        let broker = match mix.broker {
            Broker::Amqp => services::amqp_url().to_owned(),
            Broker::Spool => format!("spool:{}", spool.path().display()),
        };
        let server = |nickname: &str, engine: Engine| {
            TestServer::new(nickname, database(nickname, engine), &broker, settings)
        };
        Self {
            parent: server("parent", mix.parent),
            child: server("child", mix.children),
            child2: server("child2", mix.children),
            mix,
            spool,
            uuids: Vec::new(),
        }
    }

    /// Gives one of the servers settings of its own.
    pub(crate) fn configure(&self, server: &TestServer, settings: &str) {
        let broker = match self.mix.broker {
            Broker::Amqp => services::amqp_url().to_owned(),
            Broker::Spool => format!("spool:{}", self.spool.path().display()),
        };
        server.configure(&broker, settings);
    }

    /// Initialises all three, and tracks their tables.
    #[track_caller]
    pub(crate) fn prepare(&mut self, track: &[&str]) {
        for server in self.servers() {
            server.init();
            server.track(track);
        }
        self.uuids = self.servers().iter().map(|server| uuid(server)).collect();
    }

    /// Prepares all three and makes them one tree.
    #[track_caller]
    pub(crate) fn connect(&mut self, track: &[&str]) {
        self.prepare(track);
        for child in [&self.child, &self.child2] {
            child.join(&self.parent.invite(child.nickname()));
            self.parent.sync();
            child.sync();
            let status = child.status_json();
            assert_eq!(status["parent"]["state"], "joined", "{status}");
        }
        self.parent.sync();
    }

    pub(crate) fn servers(&self) -> [&TestServer; 3] {
        [&self.parent, &self.child, &self.child2]
    }

    /// Rounds of `sync` until a whole one moves nothing.
    #[track_caller]
    pub(crate) fn exchange(&self) {
        for _ in 0..12 {
            let order = [&self.child, &self.parent, &self.child2, &self.parent];
            let moved: u64 = order.iter().map(|server| server.sync()).sum();
            if moved == 0 {
                return;
            }
        }
        panic!("the servers are still exchanging after 12 rounds");
    }

    /// A worker for each server.
    pub(crate) fn workers(&self) -> BTreeMap<String, TestWorker> {
        self.servers().map(|server| (server.nickname().to_owned(), server.spawn_worker())).into()
    }

    /// Waits until a query has the same rows at all servers as at `from`, and gives them.
    #[track_caller]
    pub(crate) fn wait_until_equal(&self, from: &TestServer, sql: &str) -> Vec<Row> {
        let rows = from.query(sql);
        for server in self.servers() {
            let what = format!("{} has what {} has of: {sql}", server.nickname(), from.nickname());
            wait_until(&what, ARRIVES_WITHIN, || server.query(sql) == rows);
        }
        rows
    }

    /// Whether a server has sealed all changes and has no record that waits for an answer.
    pub(crate) fn is_settled(&self, server: &TestServer) -> bool {
        let waits = "state IN ('NEW', 'PENDING', 'SENT', 'SENT_AGAIN', 'SEND_FAILED', 'FAILED')";
        // Without a parent a record stays NEW for ever.
        let root = server.nickname() == self.parent.nickname();
        let upwards = if root { "1 = 0" } else { waits };
        server.count(&format!(
            "SELECT (SELECT count(*) FROM @sync_change) \
             + (SELECT count(*) FROM @sync_record WHERE {upwards}) \
             + (SELECT count(*) FROM @sync_server_record WHERE {waits})"
        )) == 0
    }

    /// Waits until all servers are settled.
    #[track_caller]
    pub(crate) fn wait_until_settled(&self) {
        for server in self.servers() {
            let what = format!("all records of {} are answered for", server.nickname());
            wait_until(&what, ARRIVES_WITHIN, || self.is_settled(server));
        }
    }

    /// The name of the queue by which `from` sends records to `to`.
    pub(crate) fn queue(&self, from: &TestServer, to: &TestServer) -> String {
        format!("branchline.{}.from.{}", uuid(to), uuid(from))
    }

    /// The folder of that queue, in a tree over the spool.
    pub(crate) fn spool_folder(&self, from: &TestServer, to: &TestServer) -> std::path::PathBuf {
        self.spool.path().join(self.queue(from, to))
    }
}

/// A server's uuid.
pub(crate) fn uuid(server: &TestServer) -> String {
    server.texts("SELECT uuid FROM @sync_self").remove(0)
}

impl Drop for Tree {
    /// The queues are durable: they would stay with the broker.
    fn drop(&mut self) {
        if self.mix.broker != Broker::Amqp {
            return;
        }
        let mut queues = Vec::new();
        for to in &self.uuids {
            queues.push(format!("branchline.{to}.joins"));
            for from in self.uuids.iter().filter(|from| *from != to) {
                queues.push(format!("branchline.{to}.from.{from}"));
                queues.push(format!("branchline.{to}.acks.{from}"));
            }
        }
        let removed = block_on(async {
            let url = services::amqp_url();
            let connection = Connection::connect(url, ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            for queue in queues {
                channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
            }
            connection.close(200, "".into()).await
        });
        if let Err(error) = removed {
            eprintln!("the queues of a test stay with the broker: {error}");
        }
    }
}
