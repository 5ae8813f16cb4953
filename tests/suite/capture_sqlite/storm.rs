//! Many random writes: what was captured, replayed on a copy, gives the table.

use std::collections::BTreeMap;

use branchline::store::seal::order::{Step, chain, vanished};

use super::bench::Bench;

const SCHEMA: &str = "
    CREATE TABLE t (id INTEGER PRIMARY KEY, uuid TEXT UNIQUE COLLATE NOCASE, a INTEGER, b INTEGER,
        up INTEGER REFERENCES t ON DELETE CASCADE ON UPDATE CASCADE, UNIQUE (a, b));
    CREATE UNIQUE INDEX t_part ON t (b) WHERE a > 2;
    CREATE UNIQUE INDEX t_sum ON t (a + b * 10) WHERE b IS NOT NULL;
    CREATE TABLE w (p TEXT, q INTEGER, r INTEGER UNIQUE, PRIMARY KEY (p, q)) WITHOUT ROWID;";

const HOST_TRIGGERS: &str = "
    CREATE TRIGGER room BEFORE INSERT ON t WHEN NEW.id % 5 = 0 BEGIN
        UPDATE t SET b = b + 7 WHERE a = NEW.a AND b = NEW.b;
        INSERT OR REPLACE INTO w VALUES (NEW.uuid, NEW.a, NEW.b);
    END;
    CREATE TRIGGER echo AFTER INSERT ON w WHEN NEW.q = 3 BEGIN
        INSERT OR REPLACE INTO t (uuid, a, b) VALUES (NEW.p, NEW.q, NEW.r);
    END;
    CREATE TRIGGER gone AFTER DELETE ON t WHEN OLD.a = 1 BEGIN
        DELETE FROM w WHERE r = OLD.b;
    END;";

/// A small generator: the same storm every time.
struct Dice(u64);

/// What a statement may do about a clash.
const ANY: [&str; 6] = ["", "OR REPLACE", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ROLLBACK"];

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.roll(list.len() as u64) as usize]
    }

    fn number(&mut self) -> String {
        if self.roll(8) == 0 { "NULL".to_owned() } else { self.roll(6).to_string() }
    }

    fn text(&mut self) -> &'static str {
        self.pick(&["'a'", "'A'", "'b'", "'c'", "'D'", "NULL"])
    }

    fn row_of_t(&mut self) -> String {
        let id = if self.roll(3) == 0 { "NULL".to_owned() } else { self.roll(9).to_string() };
        let up = if self.roll(3) == 0 { self.roll(9).to_string() } else { "NULL".to_owned() };
        format!("({id}, {}, {}, {}, {up})", self.text(), self.number(), self.number())
    }

    fn statement(&mut self) -> String {
        let or = self.pick(&ANY);
        match self.roll(10) {
            0..3 => {
                let rows: Vec<String> = (0..=self.roll(3)).map(|_| self.row_of_t()).collect();
                format!("INSERT {or} INTO t VALUES {}", rows.join(", "))
            }
            3 => {
                let then =
                    self.pick(&["NOTHING", "UPDATE SET a = excluded.b, uuid = excluded.uuid"]);
                format!("INSERT {or} INTO t VALUES {} ON CONFLICT DO {then}", self.row_of_t())
            }
            4..6 => {
                let set = match self.roll(5) {
                    0 => format!("id = {}", self.roll(9)),
                    1 => format!("uuid = {}", self.text()),
                    2 => format!("a = {}, b = {}", self.number(), self.number()),
                    3 => format!("rowid = {}, b = {}", self.roll(9), self.number()),
                    _ => "up = id".to_owned(),
                };
                format!("UPDATE {or} t SET {set} WHERE id % 4 = {}", self.roll(4))
            }
            6 => format!("DELETE FROM t WHERE id % 7 = {}", self.roll(7)),
            7 | 8 => {
                let row = format!("({}, {}, {})", self.text(), self.number(), self.number());
                format!("INSERT {or} INTO w VALUES {row}")
            }
            _ => format!("UPDATE {or} w SET q = {}, r = {}", self.number(), self.number()),
        }
    }
}

/// A captured change as two rows: `t(1,…)`.
fn step(change: &str) -> Step<String> {
    let (from, to) = match (change.strip_prefix('+'), change.strip_prefix('-')) {
        (Some(new), _) => (None, Some(new.to_owned())),
        (_, Some(old)) => (Some(old.to_owned()), None),
        _ => {
            let (old, new) = change.split_once(")>(").unwrap();
            let class = old.split('(').next().unwrap();
            (Some(format!("{old})")), Some(format!("{class}({new}")))
        }
    };
    Step { from, to }
}

/// The local id of a row: the first column of `t`, the first two of `w`.
fn local(row: &str) -> String {
    let columns = if row.starts_with('t') { 1 } else { 2 };
    row.split(',').take(columns).collect()
}

/// A row that REPLACE put in the place of itself: known by the same local id and key (the first two
/// columns of both tables).
fn same_row(one: Option<&String>, other: Option<&String>) -> bool {
    let identity = |row: &String| row.split(',').take(2).collect::<String>();
    one.is_some() && one.map(identity) == other.map(identity)
}

/// Replays captured changes; each must fit what is there. `now`: what is in the tables, which tells
/// apart what looks alike.
fn replay(copy: &mut Vec<String>, changes: &[String], now: &[String]) {
    let mut rows: BTreeMap<String, Vec<Step<String>>> = BTreeMap::new();
    for change in changes {
        let step = step(change);
        let row = local(step.from.as_ref().or(step.to.as_ref()).unwrap());
        rows.entry(row).or_default().push(step);
    }
    for (row, steps) in rows {
        let mut state = copy.iter().position(|other| local(other) == row).map(|n| copy.remove(n));
        let mut order = chain(&steps);
        if let Some(end) = vanished(&steps, &order)
            && !now.iter().any(|other| local(other) == row)
        {
            order.swap(end - 1, end);
        }
        for n in order {
            let again = steps[n].from.is_none() && same_row(state.as_ref(), steps[n].to.as_ref());
            assert!(again || steps[n].from == state, "{row} {state:?}: {steps:?} {changes:#?}");
            state.clone_from(&steps[n].to);
        }
        copy.extend(state);
    }
    copy.sort();
}

async fn weather(recursive: &str, host_triggers: bool, seed: u64) {
    let mut bench = Bench::new(SCHEMA).await;
    bench.run(&format!("PRAGMA foreign_keys = ON; PRAGMA recursive_triggers = {recursive}"));
    if host_triggers {
        bench.run(HOST_TRIGGERS);
        let mut session = bench.store.begin().await.unwrap();
        bench.arm(&mut session).await;
        session.commit().await.unwrap();
    }
    let mut dice = Dice(seed);
    let mut copy = Vec::new();
    let mut written = 0;
    for round in 0..80 {
        let mut script = Vec::new();
        for _ in 0..5 {
            let statement = dice.statement();
            let script_of_one = match dice.roll(6) {
                0 => format!("BEGIN; {statement}; ROLLBACK"),
                1 => format!("SAVEPOINT s; {statement}; RELEASE s"),
                _ => statement,
            };
            bench.try_run(&script_of_one);
            bench.try_run("ROLLBACK");
            script.push(script_of_one);
        }
        let changes = bench.caught().await;
        if std::env::var("STORM").is_ok() {
            eprintln!("{recursive} {host_triggers} {seed} {round} {script:#?}");
        }
        written += changes.len();
        let now = bench.rows(&["t", "w"]).await;
        replay(&mut copy, &changes, &now);
        assert_eq!(copy, now, "{seed} {round}: {script:#?} {changes:#?}");
    }
    assert!(written > 200, "a storm of {written} changes is none");
}

#[tokio::test(flavor = "multi_thread")]
async fn captured_changes_replayed_give_the_table() {
    for seed in 0..6 {
        weather("OFF", false, seed).await;
        weather("ON", false, seed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn captured_changes_replayed_give_the_table_also_with_host_triggers() {
    for seed in 0..6 {
        weather("OFF", true, seed).await;
        weather("ON", true, seed).await;
    }
}
