//! A model of servers that edit one row: any order, loss until resend, duplicates, skewed clocks,
//! whole-row states sent at any time. It is the test of everything in this room together.
//!
//! After `../shared/sim/convergence_sim.py`, but it sends items of changed columns, as we do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use super::{ClassMerge, Clock, Conflict, Fate, Policy, RowState, Stamp, Time};
use crate::id::{Actor, ServerId};
use crate::record::{Item, Op, RowId, Value};

const COLUMNS: [&str; 4] = ["a", "b", "c", "d"];
const SERVERS: usize = 4;

pub(super) fn actor(number: u32) -> Actor {
    Actor { server: ServerId(Uuid::from_u128(number.into())), incarnation: 1 }
}

#[allow(clippy::unnecessary_wraps)]
pub(super) fn actor_number(actor: Actor) -> Option<u32> {
    Some(actor.server.0.as_u128() as u32)
}

pub(super) fn stamp(server: u32, time: u64) -> Stamp {
    Stamp { time: Time(time), actor: actor(server) }
}

pub(super) fn name(name: &str) -> Arc<str> {
    Arc::from(name)
}

pub(super) fn item(
    op: Op,
    columns: &[&str],
    value: i64,
    state: (super::Seen, super::Seen),
) -> Item {
    Item {
        row: RowId { class: "t".into(), key: "k".into() },
        op,
        values: columns.iter().map(|column| (name(column), Value::Int(value))).collect(),
        seen: state.0,
        erased: state.1,
        stamps: Vec::new(),
        base: None,
    }
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// A server updates columns (bits), deletes, inserts, or deletes and inserts the row.
    Edit { server: usize, kind: u8, columns: u8, wait: u64 },
    /// A record reaches a server, whether or not for the first time.
    Deliver { record: usize, server: usize },
    /// A server sends the whole state of the row to another.
    State { from: usize, to: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let edit = (0..SERVERS, 0..8_u8, 1..16_u8, 0..30_u64)
        .prop_map(|(server, kind, columns, wait)| Step::Edit { server, kind, columns, wait });
    let deliver = (any::<prop::sample::Index>(), 0..SERVERS)
        .prop_map(|(record, server)| Step::Deliver { record: record.index(1 << 16), server });
    let state = (0..SERVERS, 0..SERVERS).prop_map(|(from, to)| Step::State { from, to });
    proptest::collection::vec(prop_oneof![4 => edit, 6 => deliver, 1 => state], 1..60)
}

struct Server {
    state: RowState,
    /// The row's image, in the table or in the shadow.
    values: BTreeMap<Arc<str>, Value>,
    clock: Clock,
    skew: u64,
    held: BTreeSet<usize>,
    conflicts: Vec<Conflict>,
}

struct World {
    class: ClassMerge,
    /// The row was in all tables before tracking.
    before: bool,
    gap_rule: bool,
    now: u64,
    servers: Vec<Server>,
    records: Vec<(Item, Stamp)>,
    /// What the run came by: fates, conflicts of columns, edits that met deletes.
    reached: BTreeSet<String>,
}

impl World {
    fn new(class: ClassMerge, before: bool, gap_rule: bool) -> Self {
        let server = |n: usize| Server {
            state: RowState::default(),
            values: COLUMNS.iter().map(|column| (name(column), Value::Int(0))).collect(),
            clock: Clock::default(),
            skew: [0, 7_000, 30, 2_000][n],
            held: BTreeSet::new(),
            conflicts: Vec::new(),
        };
        let servers = (0..SERVERS).map(server).collect();
        Self {
            class,
            before,
            gap_rule,
            now: 10_000,
            servers,
            records: Vec::new(),
            reached: BTreeSet::new(),
        }
    }

    fn run(&mut self, steps: &[Step]) {
        for step in steps {
            match *step {
                Step::Edit { server, kind, columns, wait } => {
                    self.now += wait;
                    self.edit(server, kind, columns);
                }
                Step::Deliver { record, server } if !self.records.is_empty() => {
                    self.deliver(record % self.records.len(), server);
                }
                Step::Deliver { .. } => {}
                Step::State { from, to } => self.send_state(from, to),
            }
        }
        // What was lost is sent again: everything arrives in the end, the last first, until
        // nothing waits.
        for _ in 0..=self.records.len() {
            for record in (0..self.records.len()).rev() {
                for server in 0..SERVERS {
                    self.deliver(record, server);
                }
            }
            if self.servers.iter().all(|server| server.held.is_empty()) {
                break;
            }
        }
    }

    fn present(&self, server: usize) -> bool {
        let state = &self.servers[server].state;
        (self.before || !state.seen.is_empty()) && state.alive_under(self.class.policy)
    }

    fn edit(&mut self, server: usize, kind: u8, columns: u8) {
        let (op, columns) = match (self.present(server), kind) {
            (false, _) => (Op::Insert, 15),
            (true, 0 | 1) => (Op::Delete, 0),
            (true, 2) => (Op::Update, 15), // deleted and inserted again
            (true, _) => (Op::Update, columns),
        };
        let chosen = |column: &str| {
            let at = COLUMNS.iter().position(|name| *name == column);
            at.is_some_and(|n| columns & (1 << n) != 0)
        };
        let columns: Vec<&str> = COLUMNS
            .into_iter()
            .filter(|c| chosen(c) || op == Op::Update && self.class.goes_along(c, chosen))
            .collect();
        let number = u32::try_from(server).unwrap();
        let this = &mut self.servers[server];
        let time = this.clock.tick(self.now + this.skew, this.state.seen.latest());
        let stamp = Stamp { time, actor: actor(number) };
        let value = i64::try_from(self.records.len() + 1).unwrap();
        let carried = this.state.touch_local(op, columns.iter().map(|c| name(c)), stamp);
        let item = item(op, &columns, value, carried);
        this.values.extend(item.values.iter().cloned());
        self.records.push((item, stamp));
    }

    fn deliver(&mut self, record: usize, server: usize) {
        let (item, stamp) = self.records[record].clone();
        let held = !self.join(server, &item, stamp);
        let this = &mut self.servers[server];
        if held {
            this.held.insert(record);
            return;
        }
        this.held.remove(&record);
        for waiting in this.held.clone() {
            if self.servers[server].held.contains(&waiting) {
                self.deliver(waiting, server);
            }
        }
    }

    /// Whether it went in.
    fn join(&mut self, server: usize, item: &Item, stamp: Stamp) -> bool {
        let this = &mut self.servers[server];
        let mut expected = this.state.clone();
        expected.join(&RowState::of(item, stamp));
        let before = this.state.clone();
        let mut joined = this.state.join_item(item, stamp, &self.class);
        self.reached.insert(format!("{:?} {:?}", item.op, joined.fate));
        let met = |conflict: &Conflict| {
            format!("column {}, theirs won {}", conflict.column.is_some(), conflict.theirs_won)
        };
        self.reached.extend(joined.conflicts.iter().map(met));
        if joined.fate == Fate::Gap && !self.gap_rule {
            // As one would do without the rule: take the item for the row's newest state.
            joined.won = super::Won::All;
            this.state = expected.clone();
        } else if joined.fate == Fate::Gap {
            assert_eq!(this.state, before);
            return false;
        }
        if self.gap_rule {
            assert_eq!(this.state, expected, "joining an item is joining what it says");
        }
        let won = item.values.iter().filter(|(column, _)| joined.won.has(column)).cloned();
        this.values.extend(won);
        this.conflicts.extend(joined.conflicts);
        true
    }

    fn send_state(&mut self, from: usize, to: usize) {
        let sender = &self.servers[from];
        let mut whole =
            item(Op::State, &[], 0, (sender.state.seen.clone(), sender.state.erased.clone()));
        whole.base = sender.state.base;
        whole.stamps =
            sender.state.columns.iter().map(|(c, stamp)| (Arc::clone(c), *stamp)).collect();
        whole.values =
            sender.values.iter().map(|(c, value)| (Arc::clone(c), value.clone())).collect();
        self.join(to, &whole, stamp(99, 1));
    }

    /// Why the world is not as promised.
    fn complaint(&self) -> Option<String> {
        let first = &self.servers[0];
        for (n, server) in self.servers.iter().enumerate() {
            if !server.held.is_empty() {
                return Some(format!("server {n} still holds {:?}", server.held));
            }
            if server.state != first.state || server.values != first.values {
                return Some(format!("server {n} differs: {:?} {:?}", server.state, server.values));
            }
        }
        let grouped: BTreeSet<_> = ["b", "c"].map(|column| first.state.stamp_of(column)).into();
        if self.class != ClassMerge::PLAIN
            && self.class.policy != Policy::DeleteWins
            && grouped.len() > 1
        {
            return Some("a group was torn".into());
        }
        self.records.iter().find_map(|(item, stamp)| self.vanished(item, *stamp))
    }

    /// Whether a write or a delete is gone without a trace: it does not count, nobody knew of it
    /// who wrote over it, and no ledger names it.
    fn vanished(&self, item: &Item, stamp: Stamp) -> Option<String> {
        let ledgers = || self.servers.iter().flat_map(|server| &server.conflicts);
        let state = &self.servers[0].state;
        for (column, value) in &item.values {
            let knowing = self.records.iter().any(|(later, _)| {
                later.seen.has(stamp) && later.values.iter().any(|(name, _)| name == column)
            });
            let named = ledgers().any(|conflict| {
                conflict.column.as_ref() == Some(column)
                    && (conflict.ours == stamp || conflict.theirs == stamp)
            });
            let counts = state.stamp_of(column) == Some(stamp);
            if counts && self.servers[0].values.get(column) != Some(value) {
                return Some(format!("{column} has another value than {stamp:?} gave it"));
            }
            if !counts && !knowing && !named {
                return Some(format!("the write of {column} at {stamp:?} vanished"));
            }
        }
        let alive = state.alive_under(self.class.policy);
        let overruled = (item.op == Op::Delete) == alive;
        let knowing = self.records.iter().any(|(later, _)| {
            later.seen.has(stamp) && later.op == if alive { Op::Insert } else { Op::Delete }
        });
        let named = ledgers().any(|conflict| conflict.column.is_none());
        (overruled && !knowing && !named).then(|| format!("{:?} at {stamp:?} vanished", item.op))
    }
}

fn grouped() -> ClassMerge {
    ClassMerge { groups: vec![vec!["b".into(), "c".into()]], ..ClassMerge::PLAIN }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn servers_end_equal_and_nothing_vanishes(steps in steps(), before: bool, group: bool) {
        let class = if group { grouped() } else { ClassMerge::PLAIN };
        let mut world = World::new(class, before, true);
        world.run(&steps);
        prop_assert_eq!(world.complaint(), None);
    }

    #[test]
    fn the_other_policies_converge_too(steps in steps(), before: bool, row: bool) {
        let policy = if row { Policy::Row } else { Policy::DeleteWins };
        let mut world = World::new(ClassMerge { policy, ..ClassMerge::PLAIN }, before, true);
        world.run(&steps);
        prop_assert_eq!(world.complaint(), None);
    }
}

/// The same scripts in each run of the tests.
fn scripts() -> impl Iterator<Item = Vec<Step>> {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    (0..200).map(move |_| steps().new_tree(&mut runner).unwrap().current())
}

/// The checker itself is put to the test: without the gap rule it must find something.
#[test]
fn without_the_gap_rule_writes_vanish() {
    let bad = scripts().filter(|steps| {
        let mut world = World::new(ClassMerge::PLAIN, true, false);
        world.run(steps);
        world.complaint().is_some()
    });
    assert!(bad.count() > 10);
}

#[test]
fn the_model_comes_by_everything_that_can_happen() {
    let mut reached = BTreeSet::new();
    for (n, steps) in scripts().enumerate() {
        let policy = if n % 2 == 0 { Policy::Columns } else { Policy::DeleteWins };
        let mut world = World::new(ClassMerge { policy, ..ClassMerge::PLAIN }, false, true);
        world.run(&steps);
        reached.append(&mut world.reached);
    }
    let fates = ["Duplicate", "Successor", "Concurrent"];
    let mut all: BTreeSet<String> = ["Insert", "Update", "Delete", "State"]
        .iter()
        .flat_map(|op| fates.map(|fate| format!("{op} {fate}")))
        .collect();
    all.extend(["Insert", "Update", "Delete"].map(|op| format!("{op} Gap")));
    for (column, won) in [(true, true), (true, false), (false, true), (false, false)] {
        all.insert(format!("column {column}, theirs won {won}"));
    }
    assert_eq!(reached, all);
}
