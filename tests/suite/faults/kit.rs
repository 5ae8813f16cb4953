//! The fault kit: a chain of servers at work while one thing after another goes wrong, in an order
//! that a seed gives; after each it has healed, and in the end all is well.
//!
//! `BRANCHLINE_FAULT_SECONDS` says how long (a quarter of a minute in `cargo test`),
//! `BRANCHLINE_FAULT_SEED` repeats a run. Shared services are never stopped: what goes wrong lies on
//! this test's own lines, processes, queues and databases.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::broker;
use super::chain::{Chain, HEALS_WITHIN, LEAF, MIDDLE, ROOT};
use crate::support::cli::wait_until;
use crate::support::proxy::Proxy;
use crate::support::sql::Sql;
use crate::support::tree::{Broker, Engine};
use crate::support::{block_on, services};

/// How long `cargo test` goes on with each kind of chain.
const SECONDS: u64 = 15;

/// After a fault has healed, a record flows within this, whatever back-off is under way. The aim is
/// 15 s; the machine that runs this may be busy with other tests.
const FLOWS_WITHIN: Duration = Duration::from_secs(30);

/// Faults between two checks that everything is equal and answered for.
const CHECK_EVERY: u64 = 12;

/// What goes wrong, at one server or with all queues.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Fault {
    BrokerLineCut,
    BrokerLineStalled,
    BrokerLineHalfOpen,
    BrokerLineResetMidFrame,
    BrokerLineSlow,
    BrokerRefusesConnections,
    BrokerClosesConnection,
    QueuesPurged,
    QueuesDeleted,
    GarbageInQueue,
    DatabaseLineCut,
    DatabaseLineStalled,
    DatabaseLineResetMidFrame,
    DatabaseLineSlow,
    DatabaseRefusesConnections,
    DatabaseTakesNoMoreConnections,
    DatabaseSessionsTerminated,
    DatabaseReadOnly,
    DatabaseLocked,
    HostTransactionLeftOpen,
    ProcessKilled,
    AllProcessesKilled,
    ProcessTerminated,
    ProcessPaused,
    TwoProcessesAtOnce,
    ClockAhead,
    ClockBehind,
    DiskFull,
}

use Fault::{
    AllProcessesKilled, BrokerClosesConnection, BrokerLineCut, BrokerLineHalfOpen,
    BrokerLineResetMidFrame, BrokerLineSlow, BrokerLineStalled, BrokerRefusesConnections,
    ClockAhead, ClockBehind, DatabaseLineCut, DatabaseLineResetMidFrame, DatabaseLineSlow,
    DatabaseLineStalled, DatabaseLocked, DatabaseReadOnly, DatabaseRefusesConnections,
    DatabaseSessionsTerminated, DatabaseTakesNoMoreConnections, DiskFull, GarbageInQueue,
    HostTransactionLeftOpen, ProcessKilled, ProcessPaused, ProcessTerminated, QueuesDeleted,
    QueuesPurged, TwoProcessesAtOnce,
};

/// What can go wrong with any chain.
const EVERYWHERE: &[Fault] = &[
    QueuesPurged,
    GarbageInQueue,
    DatabaseLocked,
    HostTransactionLeftOpen,
    ProcessKilled,
    AllProcessesKilled,
    ProcessTerminated,
    ProcessPaused,
    TwoProcessesAtOnce,
    ClockAhead,
    ClockBehind,
];

/// What needs a line to a broker.
const AMQP: &[Fault] = &[
    BrokerLineCut,
    BrokerLineStalled,
    BrokerLineHalfOpen,
    BrokerLineResetMidFrame,
    BrokerLineSlow,
    BrokerRefusesConnections,
    BrokerClosesConnection,
    QueuesDeleted,
];

/// What needs a line to a database.
const POSTGRES: &[Fault] = &[
    DatabaseLineCut,
    DatabaseLineStalled,
    DatabaseLineResetMidFrame,
    DatabaseLineSlow,
    DatabaseRefusesConnections,
    DatabaseTakesNoMoreConnections,
    DatabaseSessionsTerminated,
    DatabaseReadOnly,
];

/// What needs a file.
const SQLITE: &[Fault] = &[DiskFull];

struct Kit {
    runtime: tokio::runtime::Runtime,
    rng: StdRng,
    engines: [Engine; 3],
    chain: Chain,
    /// By server.
    broker_lines: Vec<Proxy>,
    database_lines: BTreeMap<usize, Proxy>,
    counts: BTreeMap<Fault, u64>,
    /// The longest time after a fault until a record came through the whole chain.
    slowest: Duration,
}

impl Kit {
    fn new(seed: u64, engines: [Engine; 3], kind: Broker) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let to = |url: &str| {
            let url = url::Url::parse(url).unwrap();
            let port = url.port().unwrap_or(if url.scheme() == "amqp" { 5672 } else { 5432 });
            format!("{}:{port}", url.host_str().unwrap())
        };
        let line = |url: &str| runtime.block_on(Proxy::to(&to(url)));
        let mut broker_lines = Vec::new();
        if kind == Broker::Amqp {
            broker_lines.extend((0..3).map(|_| line(services::amqp_url())));
        }
        let mut database_lines = BTreeMap::new();
        for n in (0..3).filter(|n| engines[*n] == Engine::Postgres) {
            database_lines.insert(n, line(services::postgres_url()));
        }
        let chain = Chain::new(engines, kind, |n, url| {
            let proxy = match url.split_once(':').unwrap().0 {
                "amqp" => &broker_lines[n],
                "postgres" | "postgresql" => &database_lines[&n],
                _ => return url.to_owned(),
            };
            let mut through = url::Url::parse(url).unwrap();
            through.set_host(Some("127.0.0.1")).unwrap();
            through.set_port(Some(proxy.address().port())).unwrap();
            through.into()
        });
        Self {
            runtime,
            rng: StdRng::seed_from_u64(seed),
            engines,
            chain,
            broker_lines,
            database_lines,
            counts: BTreeMap::new(),
            slowest: Duration::ZERO,
        }
    }

    fn run(&mut self, seconds: u64) {
        self.chain.start_all();
        self.chain.check("before any fault");
        let end = Instant::now() + Duration::from_secs(seconds);
        let (mut bag, mut done) = (Vec::new(), 0_u64);
        while Instant::now() < end {
            if bag.is_empty() {
                // Every kind comes before one comes again.
                bag = self.kinds();
                bag.shuffle(&mut self.rng);
            }
            let fault = bag.pop().unwrap();
            let victim = self.victim(fault);
            let began = Instant::now();
            self.happen(fault, victim);
            *self.counts.entry(fault).or_default() += 1;
            done += 1;
            self.flows(fault);
            eprintln!("{fault:?} at {victim}: {:?}", began.elapsed());
            if done.is_multiple_of(CHECK_EVERY) {
                self.well(&format!("after {fault:?}, the {done}th fault"));
            }
        }
        self.well(&format!("after {done} faults"));
    }

    fn kinds(&self) -> Vec<Fault> {
        let mut kinds = EVERYWHERE.to_vec();
        if !self.broker_lines.is_empty() {
            kinds.extend(AMQP);
        }
        for (engine, faults) in [(Engine::Postgres, POSTGRES), (Engine::Sqlite, SQLITE)] {
            if self.engines.contains(&engine) {
                kinds.extend(faults);
            }
        }
        kinds
    }

    fn victim(&mut self, fault: Fault) -> usize {
        let wanted = [(POSTGRES, Engine::Postgres), (SQLITE, Engine::Sqlite)];
        let wanted = wanted.iter().find(|(faults, _)| faults.contains(&fault));
        let fits = |n: &usize| wanted.is_none_or(|(_, engine)| self.engines[*n] == *engine);
        let victims: Vec<usize> = (0..3).filter(fits).collect();
        *victims.choose(&mut self.rng).unwrap()
    }

    /// Work goes on for a while: some 100 transactions a second.
    fn work(&mut self, during: Duration) {
        let end = Instant::now() + during;
        while Instant::now() < end {
            self.chain.book_everywhere();
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn a_while(&mut self) -> Duration {
        Duration::from_millis(self.rng.gen_range(200..2_500))
    }

    /// A fault begins, work goes on, it ends.
    fn happen(&mut self, fault: Fault, victim: usize) {
        let during = self.a_while();
        match fault {
            BrokerLineCut
            | BrokerLineStalled
            | BrokerLineHalfOpen
            | BrokerLineResetMidFrame
            | BrokerLineSlow
            | BrokerRefusesConnections
            | BrokerClosesConnection => {
                self.broker_line(fault, victim, during);
            }
            DatabaseLineCut
            | DatabaseLineStalled
            | DatabaseLineResetMidFrame
            | DatabaseLineSlow
            | DatabaseRefusesConnections => {
                self.database_line(fault, victim, during);
            }
            DatabaseTakesNoMoreConnections
            | DatabaseSessionsTerminated
            | DatabaseReadOnly
            | DatabaseLocked
            | HostTransactionLeftOpen => {
                self.database(fault, victim, during);
            }
            QueuesPurged => self.chain.purge(),
            QueuesDeleted => broker::delete(&self.chain.queue_names()),
            GarbageInQueue => self.chain.garbage(victim),
            ProcessKilled | AllProcessesKilled | ProcessTerminated | ProcessPaused
            | TwoProcessesAtOnce | ClockAhead | ClockBehind | DiskFull => {
                self.process(fault, victim, during);
            }
        }
        self.work(Duration::from_millis(100));
    }

    fn broker_line(&mut self, fault: Fault, victim: usize, during: Duration) {
        let bytes = self.rng.gen_range(1..4_000);
        match fault {
            BrokerLineCut => self.broker_lines[victim].cut(),
            BrokerLineStalled => self.broker_lines[victim].stall(),
            BrokerLineHalfOpen => self.broker_lines[victim].half_open(true),
            BrokerLineResetMidFrame => self.broker_lines[victim].reset_after(bytes),
            BrokerLineSlow => self.broker_lines[victim].slow(Duration::from_millis(40)),
            BrokerRefusesConnections => {
                self.runtime.block_on(self.broker_lines[victim].go_away());
            }
            _ => self.broker_lines[victim].inject(&connection_close()),
        }
        self.work(during);
        match fault {
            BrokerLineStalled => self.broker_lines[victim].resume(),
            BrokerLineHalfOpen => self.broker_lines[victim].half_open(false),
            BrokerLineSlow => self.broker_lines[victim].slow(Duration::ZERO),
            BrokerRefusesConnections => {
                self.runtime.block_on(self.broker_lines[victim].come_back());
            }
            _ => {}
        }
    }

    fn database_line(&mut self, fault: Fault, victim: usize, during: Duration) {
        let bytes = self.rng.gen_range(1..4_000);
        let line = self.database_lines.get_mut(&victim).unwrap();
        match fault {
            DatabaseLineCut => line.cut(),
            DatabaseLineStalled => line.stall(),
            DatabaseLineResetMidFrame => line.reset_after(bytes),
            DatabaseLineSlow => line.slow(Duration::from_millis(20)),
            _ => self.runtime.block_on(line.go_away()),
        }
        self.work(during);
        let line = self.database_lines.get_mut(&victim).unwrap();
        match fault {
            DatabaseLineStalled => line.resume(),
            DatabaseLineSlow => line.slow(Duration::ZERO),
            DatabaseRefusesConnections => self.runtime.block_on(line.come_back()),
            _ => {}
        }
    }

    fn database(&mut self, fault: Fault, victim: usize, during: Duration) {
        let server = &self.chain.servers[victim];
        let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
            WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let own = |sql: &str| {
            let name = server.texts("SELECT current_database()").remove(0);
            server.sql(&sql.replace("{}", &name));
        };
        match fault {
            DatabaseSessionsTerminated => {
                server.query(terminate);
                self.work(during);
            }
            DatabaseTakesNoMoreConnections => {
                // As when all are taken; a superuser has some to himself.
                let name = server.texts("SELECT current_database()").remove(0);
                let allow =
                    |yes| administer(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {yes}"));
                allow(false);
                server.query(terminate);
                self.work(during);
                allow(true);
            }
            DatabaseReadOnly => {
                own("ALTER DATABASE {} SET default_transaction_read_only = on");
                server.query(terminate);
                self.work(during);
                let server = &self.chain.servers[victim];
                let name = server.texts("SELECT current_database()").remove(0);
                server.sql(&format!("ALTER DATABASE {name} RESET default_transaction_read_only"));
                server.query(terminate);
            }
            _ => {
                let sqlite = server.is_sqlite();
                let host = Sql::to(server.database());
                let begin = match (fault, sqlite) {
                    (DatabaseLocked, true) => "BEGIN IMMEDIATE",
                    (DatabaseLocked, false) => "BEGIN; SELECT 1 FROM @sync_self FOR UPDATE",
                    (_, true) => "BEGIN IMMEDIATE; UPDATE account SET note = 'late'",
                    (_, false) => "BEGIN; UPDATE account SET note = 'late' WHERE uuid = 'a3'",
                };
                host.run(begin).unwrap();
                // Others wait for it: it ends by itself, while this thread may be among them.
                let late = std::thread::spawn(move || {
                    std::thread::sleep(during);
                    host.run("COMMIT").unwrap();
                });
                self.work(during);
                late.join().unwrap();
            }
        }
    }

    fn process(&mut self, fault: Fault, victim: usize, during: Duration) {
        match fault {
            ProcessKilled => {
                self.chain.workers.remove(&victim);
                self.work(during);
                self.chain.start(victim, &[]);
            }
            AllProcessesKilled => {
                self.chain.workers.clear();
                self.work(during);
                self.chain.start_all();
            }
            ProcessTerminated => {
                let worker = self.chain.workers.remove(&victim).unwrap();
                assert!(worker.stop().success(), "SIGTERM ends a worker in order");
                self.work(during);
                self.chain.start(victim, &[]);
            }
            ProcessPaused => {
                self.chain.workers[&victim].signal("STOP");
                self.work(during);
                self.chain.workers[&victim].signal("CONT");
            }
            TwoProcessesAtOnce => {
                let second = self.chain.servers[victim].spawn_worker();
                self.work(during);
                // The elder dies; the younger goes on.
                self.chain.workers.insert(victim, second);
            }
            ClockAhead | ClockBehind => {
                let far: i64 = self.rng.gen_range(1_000..3_600_000);
                let skew = if fault == ClockAhead { far } else { -far }.to_string();
                self.chain.start(victim, &[("BRANCHLINE_CLOCK_SKEW_MS", &skew)]);
                self.work(during);
                self.chain.start(victim, &[]);
            }
            _ => {
                // Files may not grow past where the database's log stands now. The signal that
                // comes with it is ignored, so that a write fails as on a full disk.
                let path = self.chain.servers[victim].database().path().unwrap();
                let length = |path: &std::path::Path| path.metadata().map_or(0, |file| file.len());
                let blocks = length(path).max(length(&path.with_extension("db-wal"))) / 512 + 64;
                let limit = format!("trap '' XFSZ; ulimit -f {blocks}");
                self.chain.start_in(victim, &limit);
                self.work(during);
                self.chain.start(victim, &[]);
            }
        }
    }

    /// The first record after a fault comes through from the leaf to the root, and back.
    fn flows(&mut self, fault: Fault) {
        let began = Instant::now();
        for (from, to) in [(LEAF, ROOT), (ROOT, LEAF)] {
            let mut name = self.chain.book(from);
            while name.is_none() {
                name = self.chain.book(from);
            }
            let sql = format!("SELECT count(*) FROM booking WHERE uuid = '{}'", name.unwrap());
            let server = &self.chain.servers[to];
            let what = format!("a record comes through after {fault:?}");
            wait_until(&what, FLOWS_WITHIN, || server.count(&sql) == 1);
        }
        self.slowest = self.slowest.max(began.elapsed());
    }

    fn well(&mut self, what: &str) {
        // What was garbage never becomes anything else: a person throws it away.
        for n in [ROOT, MIDDLE, LEAF] {
            let lines =
                "SELECT id FROM @sync_held WHERE kind = 'UNDECODABLE' AND length(payload) = 77";
            wait_until("garbage is thrown away", HEALS_WITHIN, || {
                for id in self.chain.servers[n].texts(lines) {
                    self.chain.servers[n].run(&["held", "drop", &id, "--yes"]);
                }
                self.chain.servers[n].texts(lines).is_empty()
            });
        }
        self.chain.check(what);
    }
}

/// Says something to the PostgreSQL server that is about one of its databases.
fn administer(sql: &str) {
    block_on(async {
        let client = services::connect(services::postgres_url()).await.unwrap();
        client.batch_execute(sql).await.unwrap();
    });
}

/// A `connection.close` as the broker's management sends it: CONNECTION_FORCED.
fn connection_close() -> Vec<u8> {
    let text = b"CONNECTION_FORCED - closed by an administrator";
    let mut arguments = vec![0, 10, 0, 50, 1, 64, u8::try_from(text.len()).unwrap()];
    arguments.extend(text);
    arguments.extend([0; 4]);
    let mut frame = vec![1, 0, 0];
    frame.extend(u32::try_from(arguments.len()).unwrap().to_be_bytes());
    frame.extend(arguments);
    frame.push(0xce);
    frame
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

fn faults(engines: [Engine; 3], kind: Broker) {
    let seconds = number("BRANCHLINE_FAULT_SECONDS", SECONDS);
    let seed = number("BRANCHLINE_FAULT_SEED", rand::random::<u32>().into());
    eprintln!("{engines:?} over {kind:?}: seed {seed} for {seconds} s");
    let mut kit = Kit::new(seed, engines, kind);
    kit.run(seconds);
    let total: u64 = kit.counts.values().sum();
    eprintln!(
        "{engines:?} over {kind:?}, seed {seed}: {total} faults of {} kinds, {} transactions, the \
         slowest first record after one {:?}: {:?}",
        kit.counts.len(),
        kit.chain.committed(),
        kit.slowest,
        kit.counts
    );
    assert!(total > 0 && kit.chain.committed() > 0);
    if seconds >= 300 {
        let missed: Vec<_> =
            kit.kinds().into_iter().filter(|kind| !kit.counts.contains_key(kind)).collect();
        assert!(missed.is_empty(), "never happened: {missed:?}");
    }
}

#[test]
fn faults_on_lines_processes_queues_and_databases_lose_double_and_block_nothing() {
    faults([Engine::Postgres, Engine::Postgres, Engine::Sqlite], Broker::Amqp);
}

#[test]
fn faults_of_a_tree_on_sqlite_over_a_spool_lose_double_and_block_nothing() {
    faults([Engine::Sqlite, Engine::Postgres, Engine::Sqlite], Broker::Spool);
}
