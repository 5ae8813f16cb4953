//! Three servers in a row, root, middle and leaf, on a host's schema of ours; what they do, and the
//! checker that says whether all is well in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::broker;
use crate::support::cli::{TestServer, TestWorker, wait_until};
use crate::support::services;
use crate::support::tree::{Broker, Engine, uuid};

/// How long a server may take to make good what a fault did.
pub(super) const HEALS_WITHIN: Duration = Duration::from_secs(90);

/// What the tests need soon is due soon. The rest is as an operator has it.
pub(super) const SETTINGS: &str = "resend_after = \"2s\"\nhello_every = \"2s\"\n\
    retry_after = \"300ms\"\nreconnect_max = \"1s\"\npoll_every = \"50ms\"\nconnect_within = \"5s\"\n\
    confirm_within = \"4s\"\nsqlite_gap = \"0s\"\nheartbeat_seconds = 4\n";

/// Accounts and what is booked on them, by what is the same everywhere.
const BOOKINGS: &str = "SELECT a.uuid, a.balance, b.uuid, b.amount FROM booking b \
    JOIN account a ON a.id = b.account_id ORDER BY 1, 3";
const ACCOUNTS: &str = "SELECT uuid, balance, note FROM account ORDER BY uuid";

/// A chain of servers.
pub(super) struct Chain {
    pub(super) servers: [TestServer; 3],
    pub(super) workers: BTreeMap<usize, TestWorker>,
    spool: tempfile::TempDir,
    /// Bookings that were committed, by uuid: what must be everywhere, once.
    committed: BTreeSet<String>,
    made: u64,
    broker: Broker,
    /// Records were cleaned up: they are not counted any more.
    pub(super) cleaned: bool,
}

pub(super) const ROOT: usize = 0;
pub(super) const MIDDLE: usize = 1;
pub(super) const LEAF: usize = 2;

impl Chain {
    /// Three servers that are joined. Their brokers' and databases' addresses go through `via`, which
    /// gets the server's number and the true address.
    pub(super) fn new(
        engines: [Engine; 3],
        broker: Broker,
        via: impl Fn(usize, &str) -> String,
    ) -> Self {
        let spool = tempfile::Builder::new().prefix("branchline-test-").tempdir().unwrap();
        let url = match broker {
            Broker::Amqp => services::amqp_url().to_owned(),
            Broker::Spool => format!("spool:{}", spool.path().display()),
        };
        let names = ["root", "middle", "leaf"];
        let server = |n: usize| {
            let server = TestServer::new(names[n], engines[n].database(names[n]), &url, SETTINGS);
            schema(&server, n);
            server.init();
            server.track(&["--all"]);
            server
        };
        let servers = [server(ROOT), server(MIDDLE), server(LEAF)];
        for n in [MIDDLE, LEAF] {
            // The leaf's address of the broker is what its token says.
            let (parent, child) = (&servers[n - 1], &servers[n]);
            let direct = std::fs::read_to_string(parent.dir().join("branchline.toml")).unwrap();
            let told = format!("{direct}children_broker_url = \"{}\"\n", via(n, &url));
            std::fs::write(parent.dir().join("branchline.toml"), told).unwrap();
            child.join(&parent.invite(child.nickname()));
            std::fs::write(parent.dir().join("branchline.toml"), direct).unwrap();
            parent.sync();
            child.sync();
        }
        for (n, server) in servers.iter().enumerate() {
            let path = server.dir().join("branchline.toml");
            let direct = std::fs::read_to_string(&path).unwrap();
            let database = server.database().url();
            let text = direct.replace(&url, &via(n, &url)).replace(database, &via(n, database));
            std::fs::write(path, text).unwrap();
        }
        Self {
            servers,
            workers: BTreeMap::new(),
            spool,
            committed: BTreeSet::new(),
            made: 0,
            broker,
            cleaned: false,
        }
    }

    /// Starts the worker of a server, in place of the one it may have.
    pub(super) fn start(&mut self, n: usize, environment: &[(&str, &str)]) {
        self.workers.remove(&n);
        let worker = self.servers[n].spawn_worker_with(environment);
        self.workers.insert(n, worker);
    }

    /// The same behind the words of a shell.
    pub(super) fn start_in(&mut self, n: usize, shell: &str) {
        self.workers.remove(&n);
        let worker = self.servers[n].spawn_worker_in(shell, &[]);
        self.workers.insert(n, worker);
    }

    /// A message that nobody can read lies in a queue that a server reads, both of records and of
    /// answers.
    pub(super) fn garbage(&self, n: usize) {
        let own = uuid(&self.servers[n]);
        let queues = self.queue_names();
        let queues: Vec<_> =
            queues.iter().filter(|name| name.starts_with(&format!("branchline.{own}."))).collect();
        for (number, queue) in queues.into_iter().enumerate() {
            let garbage = [u8::try_from(number).unwrap() ^ b'B'; 77];
            if self.broker == Broker::Amqp {
                broker::publish(queue, &garbage);
                continue;
            }
            let folder = self.spool.path().join(queue);
            let time = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
            let kind = if queue.contains(".acks.") { "acks" } else { "records" };
            let name = format!("{time:020}-0badc0de.{kind}.msg");
            std::fs::write(folder.join(format!(".{name}")), garbage).unwrap();
            std::fs::rename(folder.join(format!(".{name}")), folder.join(name)).unwrap();
        }
    }

    pub(super) fn start_all(&mut self) {
        for n in 0..self.servers.len() {
            self.start(n, &[]);
        }
    }

    /// Commits one transaction at a server: a booking, and now and then more. The booking's name;
    /// `None` when the database did not take it.
    pub(super) fn book(&mut self, n: usize) -> Option<String> {
        self.made += 1;
        let (name, account) = (format!("b{:06}-{n}", self.made), format!("a{}", self.made % 7));
        let server = &self.servers[n];
        let mut statements = vec![format!(
            "INSERT INTO booking (uuid, account_id, amount) SELECT '{name}', id, {} FROM account \
             WHERE uuid = '{account}'",
            self.made % 100
        )];
        if self.made.is_multiple_of(3) {
            statements
                .push(format!("UPDATE account SET note = 'by {name}' WHERE uuid = '{account}'"));
        }
        if self.made.is_multiple_of(5) {
            let fresh = format!("x{:06}-{n}", self.made);
            statements.push(format!("INSERT INTO account (uuid, balance) VALUES ('{fresh}', 1)"));
            statements.push(format!(
                "INSERT INTO booking (uuid, account_id, amount) SELECT '{name}x', id, 1 \
                 FROM account WHERE uuid = '{fresh}'"
            ));
        }
        if self.made.is_multiple_of(11) {
            let old = format!("b{:06}-{n}x", self.made / 11 * 5);
            statements.push(format!("DELETE FROM booking WHERE uuid = '{old}'"));
        }
        transaction(server, &statements).then(|| {
            self.committed.insert(name.clone());
            name
        })
    }

    /// What was committed so far.
    pub(super) fn committed(&self) -> usize {
        self.committed.len()
    }

    /// Books in turn at all servers.
    pub(super) fn book_everywhere(&mut self) {
        for n in 0..self.servers.len() {
            self.book(n);
        }
    }

    /// Waits until all servers are equal, hold what was committed, exactly once, and nothing waits
    /// any more; with all workers running.
    #[track_caller]
    pub(super) fn check(&self, what: &str) {
        let deadline = Instant::now() + HEALS_WITHIN;
        let mut last = String::new();
        while Instant::now() < deadline {
            match self.verdict() {
                Ok(()) => return,
                Err(verdict) => last = verdict,
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let tails: Vec<_> =
            self.workers.iter().map(|(n, worker)| format!("--- {n}:\n{}", worker.tail())).collect();
        panic!("{what}: not well within {HEALS_WITHIN:?}: {last}\n{}", tails.join("\n"));
    }

    /// What is not well yet.
    fn verdict(&self) -> Result<(), String> {
        for server in &self.servers {
            self.settled(server)?;
        }
        let [root, others @ ..] = &self.servers;
        let (bookings, accounts) = (root.query(BOOKINGS), root.query(ACCOUNTS));
        for server in others {
            for (sql, rows) in [(BOOKINGS, &bookings), (ACCOUNTS, &accounts)] {
                let own = server.query(sql);
                if own != *rows {
                    let differ = own.iter().zip(rows).find(|(a, b)| a != b);
                    return Err(format!(
                        "{} has {} rows, root {}; first difference {differ:?}: {sql}",
                        server.nickname(),
                        own.len(),
                        rows.len()
                    ));
                }
            }
        }
        let there: BTreeSet<String> = root
            .texts("SELECT uuid FROM booking")
            .into_iter()
            .filter(|b| !b.ends_with('x'))
            .collect();
        if let Some(lost) = self.committed.iter().find(|booking| !there.contains(*booking)) {
            return Err(format!("lost: {lost}"));
        }
        if let Some(more) = there.iter().find(|booking| !self.committed.contains(*booking)) {
            return Err(format!("never committed: {more}"));
        }
        if !self.cleaned {
            self.records()?;
        }
        self.queues()
    }

    /// Every record is known everywhere, once, and where a sender says COMMITTED it is.
    fn records(&self) -> Result<(), String> {
        let known = |server: &TestServer| -> BTreeSet<String> {
            server
                .texts(
                    "SELECT CAST(original_uuid AS text) FROM @sync_record \
                     UNION SELECT CAST(original_uuid AS text) FROM @sync_import",
                )
                .into_iter()
                .collect()
        };
        let root = known(&self.servers[ROOT]);
        for server in &self.servers[1..] {
            let own = known(server);
            if own != root {
                return Err(format!(
                    "{} knows {} records, root {}",
                    server.nickname(),
                    own.len(),
                    root.len()
                ));
            }
        }
        Ok(())
    }

    /// Nothing is unsealed, held, or in a state that something is to follow.
    fn settled(&self, server: &TestServer) -> Result<(), String> {
        let done = "('COMMITTED', 'NOT_SUPPOSED_TO_SYNC')";
        let root = server.nickname() == "root";
        let own = if root { "1 = 0".to_owned() } else { format!("state NOT IN {done}") };
        let counts = [
            ("unsealed changes", "SELECT count(*) FROM @sync_change".to_owned()),
            ("open records", format!("SELECT count(*) FROM @sync_record WHERE {own}")),
            (
                "open server records",
                format!("SELECT count(*) FROM @sync_server_record WHERE state NOT IN {done}"),
            ),
            (
                "open imports",
                "SELECT count(*) FROM @sync_import WHERE state NOT IN \
                 ('ALREADY_COMMITTED', 'COMMITTED_AND_CONFIRMATION_SENT')"
                    .to_owned(),
            ),
            ("held", "SELECT count(*) FROM @sync_held".to_owned()),
            ("answers", "SELECT count(*) FROM @sync_answer".to_owned()),
        ];
        for (what, sql) in counts {
            let count = server.count(&sql);
            if count > 0 {
                let states = server.query(
                    "SELECT state, count(*) FROM @sync_record GROUP BY 1 UNION ALL \
                     SELECT 'child ' || state, count(*) FROM @sync_server_record GROUP BY 1 \
                     UNION ALL SELECT 'import ' || state, count(*) FROM @sync_import GROUP BY 1 \
                     UNION ALL SELECT kind || ': ' || reason, 1 FROM @sync_held",
                );
                return Err(format!("{} has {count} {what}: {states:?}", server.nickname()));
            }
        }
        Ok(())
    }

    /// The links' queues: (to, from).
    pub(super) fn links(&self) -> [(usize, usize); 4] {
        [(ROOT, MIDDLE), (MIDDLE, ROOT), (MIDDLE, LEAF), (LEAF, MIDDLE)]
    }

    /// The names of the queues of all links.
    pub(super) fn queue_names(&self) -> Vec<String> {
        let uuids: Vec<_> = self.servers.iter().map(uuid).collect();
        let both = |(to, from): (usize, usize)| {
            ["from", "acks"].map(|lane| format!("branchline.{}.{lane}.{}", uuids[to], uuids[from]))
        };
        self.links().into_iter().flat_map(both).collect()
    }

    fn queues(&self) -> Result<(), String> {
        if self.broker == Broker::Amqp {
            return match broker::waiting(&self.queue_names()) {
                None => Ok(()),
                Some((name, count)) => Err(format!("{count} messages wait in {name}")),
            };
        }
        for name in self.queue_names() {
            let folder = self.spool.path().join(&name);
            let waiting = match folder.exists() {
                true => std::fs::read_dir(folder)
                    .unwrap()
                    .filter(|entry| {
                        let name = entry.as_ref().unwrap().file_name();
                        let name = name.to_string_lossy();
                        name.ends_with(".msg") && !name.starts_with('.')
                    })
                    .count(),
                false => 0,
            };
            if waiting > 0 {
                return Err(format!("{waiting} messages wait in {name}"));
            }
        }
        Ok(())
    }

    /// Throws away all messages that wait.
    pub(super) fn purge(&self) {
        if self.broker == Broker::Amqp {
            return broker::purge(&self.queue_names());
        }
        for name in self.queue_names() {
            let Ok(folder) = std::fs::read_dir(self.spool.path().join(name)) else { continue };
            for entry in folder {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|extension| extension == "msg") {
                    let _ = std::fs::remove_file(path);
                }
            }
        }
    }
}

impl Drop for Chain {
    /// The queues are durable: they would stay with the broker.
    fn drop(&mut self) {
        self.workers.clear();
        if self.broker == Broker::Amqp {
            let mut queues = self.queue_names();
            let joins = |server| format!("branchline.{}.joins", uuid(server));
            queues.extend(self.servers.iter().map(joins));
            broker::delete(&queues);
        }
    }
}

/// Runs statements in one transaction; whether it is committed.
fn transaction(server: &TestServer, statements: &[String]) -> bool {
    let mut text = format!("BEGIN; {};", statements.join("; "));
    if server.is_sqlite() {
        text = text.replace("BEGIN;", "BEGIN IMMEDIATE;") + " INSERT INTO sync_mark VALUES (4);";
    }
    let done = server.try_sql(&format!("{text} COMMIT")).is_ok();
    if !done {
        let _ = server.try_sql("ROLLBACK");
    }
    done
}

/// The host's tables; integer ids begin elsewhere on each server.
fn schema(server: &TestServer, n: usize) {
    let start = 1_000 * (n + 1);
    let (id, ids) = if server.is_sqlite() {
        (
            "INTEGER PRIMARY KEY AUTOINCREMENT",
            format!(
                "INSERT INTO sqlite_sequence VALUES ('account', {start}), ('booking', {start})"
            ),
        )
    } else {
        (
            "serial PRIMARY KEY",
            format!("SELECT setval('account_id_seq', {start}), setval('booking_id_seq', {start})"),
        )
    };
    server.sql(&format!(
        "CREATE TABLE account (id {id}, uuid varchar(38) NOT NULL UNIQUE, \
             balance integer NOT NULL, note text); \
         CREATE TABLE booking (id {id}, uuid varchar(38) NOT NULL UNIQUE, \
             account_id integer NOT NULL REFERENCES account (id), amount integer NOT NULL); {ids}"
    ));
    // The same rows everywhere from before the tree: a row without a state.
    for account in 0..7 {
        server.sql(&format!("INSERT INTO account (uuid, balance) VALUES ('a{account}', 0)"));
    }
    if server.is_sqlite() {
        server.sql("PRAGMA journal_mode = WAL");
    }
}

/// Waits until a worker has died, while `meanwhile` goes on.
#[track_caller]
pub(super) fn until_dead(worker: &mut TestWorker, what: &str, mut meanwhile: impl FnMut()) {
    wait_until(&format!("the process dies at {what}"), Duration::from_secs(60), || {
        if worker.has_ended() {
            return true;
        }
        meanwhile();
        worker.has_ended()
    });
}
