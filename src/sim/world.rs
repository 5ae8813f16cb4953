//! The scheduler: one thread, one virtual clock, and a die that is thrown by the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::task::Poll;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::clinic::{self, EPOCH};
use super::history::{History, Tx, Unsealed, difference};
use super::net::{self, Net, SharedNet, lock};
use super::node::{self, Node, Task, Who};
use super::plan::{Plan, skew};
use super::seams::{self, Blow};
use super::trace::Trace;
use super::writer::{Names, Writer};
use crate::error::{Error, Kind, Result};
use crate::store::books::Role;
use crate::transport::{Lane, Queue};
use crate::worker::steps::{self, Step};

/// Messages that a consumer takes at a time, at the most.
const HAND_MAX: usize = 6;

const HOUR: i64 = 3_600_000;

/// Once all is healed, time passes in rounds until nothing moves. What is held for a clock days ahead
/// waits longest: rounds in which nothing moved before we take it that nothing will.
const STILL_ROUNDS: usize = 13;
const ROUNDS_MAX: usize = 90;

/// A tree under simulation.
pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) rng: StdRng,
    pub(super) now: i64,
    pub(super) net: SharedNet,
    pub(super) who: Vec<Who>,
    pub(super) nodes: Vec<Node>,
    pub(super) history: History,
    pub(super) unsealed: Vec<Unsealed>,
    pub(super) names: Names,
    pub(super) trace: Trace,
    /// What must not be, found on the way.
    pub(super) complaints: Vec<String>,
    /// Records sealed and published.
    moved: usize,
    /// Until when links are cut (by the child) and brokers away (by the parent).
    cut_until: BTreeMap<usize, i64>,
    away_until: BTreeMap<usize, i64>,
    folder: tempfile::TempDir,
}

impl World {
    /// The tree of a plan, with nothing done yet.
    pub(super) async fn new(seed: u64, aloud: bool) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        let plan = Plan::of(seed, &mut rng);
        seams::seed_uuids(rng.r#gen());
        let count = plan.parents.len();
        let who: Vec<Who> = (0..count).map(|n| Who::new(n, &mut rng)).collect();
        let links = plan
            .parents
            .iter()
            .enumerate()
            .filter_map(|(child, parent)| Some((who[child].id, who[(*parent)?].id)));
        let net = Net::new(plan.rates, links.collect(), StdRng::seed_from_u64(rng.r#gen()));
        let folder = clinic::folder();
        let mut nodes = Vec::new();
        for n in 0..count {
            seams::set_clock(Some(EPOCH + plan.skews[n]));
            let path = folder.path().join(format!("s{n}.db"));
            let parent = plan.parents[n].map(|parent| (parent, Role::Parent));
            let children = (0..count).filter(|other| plan.parents[*other] == Some(n));
            let links: Vec<_> =
                parent.into_iter().chain(children.map(|child| (child, Role::Child))).collect();
            node::make(&path, n, &who, &links).await?;
            let engine = node::start(&path, &net, who[n].id).await?;
            let mut node = Node {
                id: who[n].id,
                path,
                engine,
                neighbours: Vec::new(),
                tasks: Vec::new(),
                skew: plan.skews[n],
            };
            node.meet(&who).await?;
            nodes.push(node);
        }
        let mut trace = Trace::new(aloud);
        trace.note(EPOCH, || format!("{plan:?}"));
        Ok(Self {
            unsealed: vec![Unsealed::default(); count],
            plan,
            rng,
            now: EPOCH,
            net,
            who,
            nodes,
            history: History::default(),
            names: Names::default(),
            trace,
            complaints: Vec::new(),
            moved: 0,
            cut_until: BTreeMap::new(),
            away_until: BTreeMap::new(),
            folder,
        })
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.rng.gen_range(0..1_000) < per_mille
    }

    pub(super) fn count(&self, what: &str) {
        lock(&self.net).counters.note(what);
    }

    pub(super) fn complain(&mut self, what: String) {
        self.trace.note(self.now, || format!("WRONG: {what}"));
        self.complaints.push(what);
    }

    pub(super) fn wind(&self, n: usize) {
        seams::set_clock(Some(self.now + self.nodes[n].skew));
    }

    /// One choice of the scheduler.
    pub(super) async fn turn(&mut self) -> Result<()> {
        self.now += self.rng.gen_range(1..400);
        self.strike();
        self.follow_links();
        if self.chance(300) {
            self.resume_some().await?;
        }
        let n = self.rng.gen_range(0..self.nodes.len());
        match self.rng.gen_range(0..100) {
            0..=21 => {
                let busy = self.plan.writers.clone();
                let places: Vec<usize> = (0..self.nodes.len()).collect();
                if let Ok(n) = places.choose_weighted(&mut self.rng, |n| busy[*n]) {
                    self.write(*n).await?;
                }
            }
            22..=33 => self.begin(n, Step::Seal, n).await?,
            34..=52 => self.with_some_neighbour(n, Step::Publish).await?,
            53..=74 => self.consume(Lane::Records).await?,
            75..=86 => self.consume(Lane::Acks).await?,
            87..=89 => self.with_some_neighbour(n, Step::Hello).await?,
            90..=91 => self.with_some_neighbour(n, Step::AcknowledgeLeft).await?,
            92..=94 => self.begin(n, Step::RetryHeld, n).await?,
            _ => self.now += self.rng.gen_range(1_000..900_000),
        }
        Ok(())
    }

    /// What goes wrong around the servers.
    fn strike(&mut self) {
        let rates = self.plan.rates;
        let n = self.rng.gen_range(0..self.nodes.len());
        if self.chance(rates.cut) {
            let long = match self.rng.gen_range(0..3) {
                0 => self.rng.gen_range(1..60_000),
                1 => self.rng.gen_range(1..6 * HOUR),
                _ => self.rng.gen_range(24 * HOUR..21 * 24 * HOUR),
            };
            if self.plan.parents[n].is_some() && self.rng.gen_bool(0.7) {
                self.count(if long > 7 * 24 * HOUR {
                    "fault: away for weeks"
                } else {
                    "fault: link cut"
                });
                self.trace.note(self.now, || format!("s{n} is cut off for {long} ms"));
                self.cut_until.insert(n, self.now + long);
            } else {
                self.count("fault: broker away");
                self.trace.note(self.now, || format!("the broker of s{n} is away for {long} ms"));
                self.away_until.insert(n, self.now + long);
            }
        }
        if self.chance(rates.wipe) {
            self.count("fault: broker wiped");
            self.trace.note(self.now, || format!("the broker of s{n} is wiped"));
            lock(&self.net).wipe(self.who[n].id);
        }
        if self.chance(rates.jump) {
            let far = self.rng.gen_range(0..6) == 0;
            let skew =
                if far { self.rng.gen_range(-72 * HOUR..72 * HOUR) } else { skew(&mut self.rng) };
            self.count(if far { "fault: clock days off" } else { "fault: clock jumped" });
            self.trace.note(self.now, || format!("the clock of s{n} is {skew} ms ahead"));
            self.nodes[n].skew = skew;
        }
        if self.chance(rates.weeks) {
            self.now += self.rng.gen_range(HOUR..14 * 24 * HOUR);
            self.count("time: much passed");
        }
    }

    fn follow_links(&mut self) {
        let now = self.now;
        self.cut_until.retain(|_, until| *until > now);
        self.away_until.retain(|_, until| *until > now);
        let mut net = lock(&self.net);
        net.cut = self
            .cut_until
            .keys()
            .filter_map(|n| Some((self.who[*n].id, self.who[self.plan.parents[*n]?].id)))
            .collect();
        net.away = self.away_until.keys().map(|n| self.who[*n].id).collect();
    }

    async fn with_some_neighbour(&mut self, n: usize, step: Step) -> Result<()> {
        let peers: Vec<usize> = self.nodes[n].neighbours.iter().map(|(peer, _)| *peer).collect();
        match peers.choose(&mut self.rng) {
            Some(peer) => self.begin(n, step, *peer).await,
            None => Ok(()),
        }
    }

    /// A consumer takes what lies in some queue.
    async fn consume(&mut self, lane: Lane) -> Result<()> {
        let queues: Vec<Queue> = {
            let net = lock(&self.net);
            let some = net.queues.iter().filter(|(queue, list)| {
                queue.lane == lane && !list.is_empty() && net.reaches(queue.to, queue.from)
            });
            some.map(|(queue, _)| *queue).collect()
        };
        let Some(queue) = queues.choose(&mut self.rng) else { return Ok(()) };
        let place = |id| self.who.iter().position(|who| who.id == id);
        let (Some(to), Some(from)) = (place(queue.to), place(queue.from)) else { return Ok(()) };
        self.begin(to, if lane == Lane::Acks { Step::Settle } else { Step::Take }, from).await
    }

    /// Begins a step of a server, and goes on until it is done or waits for the broker.
    pub(super) async fn begin(&mut self, n: usize, step: Step, peer: usize) -> Result<()> {
        if self.nodes[n].is_at(step, peer) {
            return Ok(());
        }
        let node = &self.nodes[n];
        let neighbour = node.neighbour(peer).or(node.neighbours.first().map(|(_, known)| known));
        let Some(neighbour) = neighbour.cloned() else { return Ok(()) };
        let (mut bodies, mut hand) = (Vec::new(), None);
        if let Some(lane) = match step {
            Step::Take => Some(Lane::Records),
            Step::Settle => Some(Lane::Acks),
            _ => None,
        } {
            let queue = Queue { to: node.id, from: self.who[peer].id, lane };
            let net = lock(&self.net);
            let Some(list) = net.queues.get(&queue) else { return Ok(()) };
            let count = list.len().min(self.rng.gen_range(1..=HAND_MAX));
            if count == 0 || !net.reaches(queue.to, queue.from) {
                return Ok(());
            }
            bodies = list.iter().take(count).cloned().collect();
            hand = Some((queue, count));
        }
        let engine = Arc::clone(&self.nodes[n].engine);
        let count = bodies.len();
        self.trace.note(self.now, || match hand {
            Some(_) => format!("s{n} {step:?} {count} of s{peer}"),
            None if peer == n => format!("s{n} {step:?}"),
            None => format!("s{n} {step:?} s{peer}"),
        });
        let future = Box::pin(async move { steps::run(&engine, step, &neighbour, bodies).await });
        let task = Task { step, peer, future, hand, ticket: None };
        self.drive(n, task).await
    }

    async fn resume_some(&mut self) -> Result<()> {
        let waiting: Vec<(usize, usize)> = self
            .nodes
            .iter()
            .enumerate()
            .flat_map(|(n, node)| (0..node.tasks.len()).map(move |at| (n, at)))
            .collect();
        match waiting.choose(&mut self.rng) {
            Some((n, at)) => self.resume(*n, *at).await,
            None => Ok(()),
        }
    }

    /// The broker answers a task.
    pub(super) async fn resume(&mut self, n: usize, at: usize) -> Result<()> {
        let mut task = self.nodes[n].tasks.remove(at);
        if let Some(ticket) = task.ticket.take() {
            lock(&self.net).decide(ticket);
        }
        let (step, peer) = (task.step, task.peer);
        self.trace.note(self.now, || format!("s{n} goes on with {step:?} s{peer}"));
        self.drive(n, task).await
    }

    async fn drive(&mut self, n: usize, mut task: Task) -> Result<()> {
        self.wind(n);
        let rates = self.plan.rates;
        let injected = if self.chance(rates.crash) {
            seams::light(self.rng.gen_range(0..80), Blow::Crash);
            true
        } else if self.chance(rates.busy) {
            let blow = if self.rng.gen_bool(0.7) { Blow::Busy } else { Blow::Away };
            seams::light(self.rng.gen_range(0..60), blow);
            true
        } else {
            false
        };
        let known: Vec<u64> = self.nodes[n].tasks.iter().filter_map(|task| task.ticket).collect();
        let done = loop {
            let polled = futures_util::poll!(task.future.as_mut());
            if seams::take_crash() {
                self.count("fault: crash");
                drop(task);
                self.crash(n).await?;
                return self.sealed(n).await;
            }
            match polled {
                Poll::Ready(done) => break done,
                Poll::Pending => {
                    task.ticket = lock(&self.net).undecided_of(self.who[n].id, &known);
                    if task.ticket.is_some() {
                        seams::put_out();
                        self.count("publishing waits");
                        self.nodes[n].tasks.push(task);
                        return self.sealed(n).await;
                    }
                    tokio::task::yield_now().await;
                }
            }
        };
        let struck = injected && !seams::put_out();
        if struck {
            self.count("fault: statement fails");
        }
        drop(task.future);
        tokio::task::yield_now().await;
        match done {
            Ok(count) => {
                if let Some((queue, count)) = task.hand
                    && let Some(list) = lock(&self.net).queues.get_mut(&queue)
                {
                    list.drain(..count.min(list.len()));
                }
                if matches!(task.step, Step::Seal | Step::Publish) {
                    self.moved += count;
                }
                self.trace.note(self.now, || format!("  done {count}"));
            }
            Err(error) => self.failed(n, task.step, &error, struck),
        }
        self.sealed(n).await
    }

    /// A task that fails starts over; what it failed of must be a fault of ours.
    fn failed(&mut self, n: usize, step: Step, error: &Error, struck: bool) {
        self.trace.note(self.now, || format!("  failed: {}", error.chain()));
        if !matches!(error.kind(), Kind::Busy | Kind::Unreachable) {
            self.complain(format!("s{n} fails to {step:?}: {}", error.chain()));
        } else if error.kind() == Kind::Busy && !struck {
            self.complain(format!("s{n} finds its database locked: {}", error.chain()));
        }
    }

    /// The process of a server is killed, and starts again.
    async fn crash(&mut self, n: usize) -> Result<()> {
        self.trace.note(self.now, || format!("s{n} is killed"));
        self.nodes[n].tasks.clear();
        lock(&self.net).forget(self.who[n].id);
        // What was open is rolled back by tasks of their own.
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        self.start(n).await
    }

    pub(super) async fn start(&mut self, n: usize) -> Result<()> {
        self.wind(n);
        let id = self.who[n].id;
        let path = self.nodes[n].path.clone();
        self.nodes[n].engine = node::start(&path, &self.net, id).await?;
        self.nodes[n].meet(&self.who).await
    }

    /// A program of the host commits something, or is refused.
    async fn write(&mut self, n: usize) -> Result<()> {
        self.wind(n);
        let engine = Arc::clone(&self.nodes[n].engine);
        let mut session = engine.store.begin().await?;
        let before = clinic::read(&mut session).await?;
        let mut writer = Writer {
            server: n,
            rng: &mut self.rng,
            names: &mut self.names,
            tables: &before,
            clashes: self.plan.clashes,
        };
        let statements = writer.transaction();
        for (sql, binds) in &statements {
            if let Err(error) = session.execute(sql, binds.clone()).await {
                session.rollback().await?;
                self.trace.note(self.now, || format!("s{n} would write: {}", error.chain()));
                return Ok(());
            }
        }
        let after = clinic::read(&mut session).await?;
        let mark = self.chance(self.plan.marked);
        if mark {
            session.execute("INSERT INTO @sync_mark (op) VALUES (4)", vec![]).await?;
        }
        let known = self.known(n, &mut session).await?;
        session.commit().await?;
        self.names.keys.extend(after.keys().cloned());
        self.trace.note(self.now, || format!("s{n} writes {:?}", difference(&before, &after)));
        self.book(n, known, (before, after), mark);
        Ok(())
    }

    /// Enters a transaction into the checker's books.
    fn book(
        &mut self,
        n: usize,
        known: BTreeSet<usize>,
        (before, after): (clinic::Tables, clinic::Tables),
        mark: bool,
    ) {
        let at = self.now + self.nodes[n].skew;
        let unsealed = &mut self.unsealed[n];
        let gap = i64::try_from(self.nodes[n].engine.config.sqlite_gap.as_millis()).unwrap_or(0);
        match unsealed.open.take() {
            Some((tx, first, last)) if at.saturating_sub(last) <= gap => {
                self.history.list[tx].writes = difference(&first, &after);
                if !mark {
                    unsealed.open = Some((tx, first, at));
                }
            }
            _ => {
                let tx = self.history.list.len();
                self.history.list.push(Tx {
                    server: n,
                    writes: difference(&before, &after),
                    known,
                    original: None,
                    restored_away: false,
                });
                unsealed.pending.push_back(tx);
                unsealed.open = if mark { None } else { Some((tx, before, at)) };
            }
        }
    }

    /// The transactions that a server has: its own, and those that came in.
    async fn known(
        &self,
        n: usize,
        session: &mut crate::store::Session,
    ) -> Result<BTreeSet<usize>> {
        let mut known: BTreeSet<usize> = self.unsealed[n].pending.iter().copied().collect();
        let rows = session
            .query(
                "SELECT original_uuid FROM @sync_import WHERE state LIKE '%COMMITTED%' UNION ALL \
                 SELECT original_uuid FROM @sync_record WHERE source_server_id IS NULL",
                vec![],
            )
            .await?;
        for row in rows {
            known.extend(self.history.by_original.get(&row.uuid(0)?));
        }
        Ok(known)
    }

    /// Looks up which records a server's transactions have become.
    pub(super) async fn sealed(&mut self, n: usize) -> Result<()> {
        if self.unsealed[n].pending.is_empty() {
            return Ok(());
        }
        let engine = Arc::clone(&self.nodes[n].engine);
        let mut session = engine.store.read().await?;
        let records = session
            .query(
                "SELECT id, original_uuid FROM @sync_record WHERE source_server_id IS NULL \
                 AND id > $1 ORDER BY id",
                vec![self.unsealed[n].last_record.into()],
            )
            .await?;
        let left = session
            .query_one("SELECT EXISTS (SELECT 1 FROM @sync_change)", vec![])
            .await?
            .flag(0)?;
        session.rollback().await?;
        for record in records {
            self.unsealed[n].last_record = record.int(0)?;
            let tx = loop {
                match self.unsealed[n].pending.pop_front() {
                    Some(tx) if self.history.list[tx].writes.is_empty() => {}
                    other => break other,
                }
            };
            let Some(tx) = tx else {
                self.complain(format!("s{n} seals a record that nobody wrote"));
                break;
            };
            let original = record.uuid(1)?;
            self.history.list[tx].original = Some(original);
            self.history.by_original.insert(original, tx);
            self.trace.note(self.now, || format!("  tx {tx} is record {original}"));
            if self.unsealed[n].open.as_ref().is_some_and(|(open, ..)| *open == tx) {
                self.unsealed[n].open = None;
            }
        }
        if !left {
            self.unsealed[n].open = None;
            while let Some(tx) = self.unsealed[n].pending.pop_front() {
                if !self.history.list[tx].writes.is_empty() {
                    self.complain(format!("tx {tx} of s{n} was committed and never sealed"));
                }
            }
        }
        Ok(())
    }

    /// Everything is healed, and time passes until nothing moves any more.
    pub(super) async fn settle(&mut self) -> Result<()> {
        self.trace.note(self.now, || "everything is healed".to_owned());
        let drop_nothing = super::plan::Rates::default();
        self.plan.rates = drop_nothing;
        self.cut_until.clear();
        self.away_until.clear();
        self.follow_links();
        {
            let mut net = lock(&self.net);
            net.rates = drop_nothing;
            net.may_suspend = false;
        }
        for node in &mut self.nodes {
            node.skew = node.skew.clamp(-600_000, 600_000);
        }
        let (mut still, mut last) = (0, 0);
        for round in 0..ROUNDS_MAX {
            self.pass(round < 4, last > 0).await?;
            let before = self.moved;
            self.round().await?;
            let open = self.open().await?;
            still = if self.moved == before && open == last { still + 1 } else { 0 };
            last = open;
            if still >= if open == 0 { 2 } else { STILL_ROUNDS } {
                return Ok(());
            }
        }
        self.complain(format!("after {ROUNDS_MAX} rounds something still moves"));
        Ok(())
    }

    /// Time passes; what is held is tried as often as a worker would.
    async fn pass(&mut self, little: bool, held: bool) -> Result<()> {
        if little {
            self.now += 700_000;
            return Ok(());
        }
        for _ in 0..7 {
            self.now += HOUR + 1;
            for n in 0..if held { self.nodes.len() } else { 0 } {
                self.begin(n, Step::RetryHeld, n).await?;
            }
        }
        Ok(())
    }

    /// Every task of every server once.
    async fn round(&mut self) -> Result<()> {
        for n in 0..self.nodes.len() {
            while !self.nodes[n].tasks.is_empty() {
                self.resume(n, 0).await?;
            }
        }
        for n in 0..self.nodes.len() {
            self.begin(n, Step::Seal, n).await?;
            self.begin(n, Step::RetryHeld, n).await?;
            let peers: Vec<usize> = self.nodes[n].neighbours.iter().map(|(p, _)| *p).collect();
            for peer in peers {
                self.begin(n, Step::AcknowledgeLeft, peer).await?;
                self.begin(n, Step::Hello, peer).await?;
                self.begin(n, Step::Publish, peer).await?;
            }
        }
        loop {
            let queues: Vec<Queue> = {
                let net = lock(&self.net);
                let some = net.queues.iter().filter(|(_, list)| !list.is_empty());
                some.map(|(queue, _)| *queue).collect()
            };
            if queues.is_empty() {
                return Ok(());
            }
            for queue in queues {
                let place = |id| self.who.iter().position(|who| who.id == id);
                if let (Some(to), Some(from)) = (place(queue.to), place(queue.from)) {
                    let step = if queue.lane == Lane::Acks { Step::Settle } else { Step::Take };
                    self.begin(to, step, from).await?;
                }
            }
        }
    }

    /// How many records wait for something, anywhere.
    async fn open(&mut self) -> Result<i64> {
        let mut open = 0;
        for n in 0..self.nodes.len() {
            let engine = Arc::clone(&self.nodes[n].engine);
            let mut session = engine.store.read().await?;
            let root = self.plan.parents[n].is_none();
            let row = session
                .query_one(
                    "SELECT (SELECT count(*) FROM @sync_change) + (SELECT count(*) FROM @sync_held) \
                     + (SELECT count(*) FROM @sync_record WHERE NOT $1 AND state IN \
                     ('NEW', 'PENDING', 'SENT', 'SENT_AGAIN', 'SEND_FAILED')) \
                     + (SELECT count(*) FROM @sync_server_record WHERE state IN \
                     ('NEW', 'PENDING', 'SENT', 'SENT_AGAIN', 'SEND_FAILED'))",
                    vec![root.into()],
                )
                .await?;
            session.rollback().await?;
            open += row.int(0)?;
        }
        Ok(open)
    }
}

/// What a run came to.
pub(super) struct Outcome {
    pub(super) plan: Plan,
    /// What is not as promised; empty when all is well.
    pub(super) complaints: Vec<String>,
    pub(super) counters: super::counters::Counters,
    /// Of everything that happened.
    pub(super) digest: u64,
    /// Committed transactions.
    pub(super) transactions: usize,
}

/// Runs a seed from beginning to end.
pub(super) fn run(seed: u64, aloud: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let outcome = runtime.block_on(tokio::task::unconstrained(async {
        // Made once for all seeds: it must take nothing of this one's.
        clinic::template().await;
        let mut world = World::new(seed, aloud).await.unwrap();
        let failed = drive(&mut world).await.err();
        if let Some(error) = failed {
            world.complain(format!("the run breaks off: {}", error.chain()));
        }
        if aloud && !world.complaints.is_empty() {
            world.folder.disable_cleanup(true);
            println!("the databases stay in {}", world.folder.path().display());
        }
        let counters = net::lock(&world.net).counters.clone();
        Outcome {
            digest: world.trace.digest(),
            plan: world.plan,
            complaints: world.complaints,
            counters,
            transactions: world.history.list.len(),
        }
    }));
    seams::reset();
    outcome
}

async fn drive(world: &mut World) -> Result<()> {
    for _ in 0..world.plan.steps {
        world.turn().await?;
        if !world.complaints.is_empty() {
            return Ok(());
        }
    }
    world.settle().await?;
    if world.complaints.is_empty() {
        super::checker::check(world).await?;
    }
    Ok(())
}
