//! Many random writes: what was captured, replayed on a copy, gives the table.

use super::bench::Bench;

const SCHEMA: &str = "
    CREATE TABLE t (id INTEGER PRIMARY KEY, u TEXT UNIQUE COLLATE NOCASE, a INTEGER, b INTEGER,
        up INTEGER REFERENCES t ON DELETE CASCADE ON UPDATE CASCADE, UNIQUE (a, b));
    CREATE UNIQUE INDEX t_part ON t (b) WHERE a > 2;
    CREATE UNIQUE INDEX t_sum ON t (a + b * 10) WHERE b IS NOT NULL;
    CREATE TABLE w (p TEXT, q INTEGER, r INTEGER UNIQUE, PRIMARY KEY (p, q)) WITHOUT ROWID;";

const HOST_TRIGGERS: &str = "
    CREATE TRIGGER room BEFORE INSERT ON t WHEN NEW.id % 5 = 0 BEGIN
        UPDATE t SET b = b + 7 WHERE a = NEW.a AND b = NEW.b;
        INSERT OR REPLACE INTO w VALUES (NEW.u, NEW.a, NEW.b);
    END;
    CREATE TRIGGER echo AFTER INSERT ON w WHEN NEW.q = 3 BEGIN
        INSERT OR REPLACE INTO t (u, a, b) VALUES (NEW.p, NEW.q, NEW.r);
    END;
    CREATE TRIGGER gone AFTER DELETE ON t WHEN OLD.a = 1 BEGIN
        DELETE FROM w WHERE r = OLD.b;
    END;";

/// A small generator: the same storm every time.
struct Dice(u64);

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
        let or =
            self.pick(&["", "OR REPLACE", "OR REPLACE", "OR IGNORE", "OR FAIL", "OR ROLLBACK"]);
        match self.roll(10) {
            0..3 => {
                let rows: Vec<String> = (0..=self.roll(3)).map(|_| self.row_of_t()).collect();
                format!("INSERT {or} INTO t VALUES {}", rows.join(", "))
            }
            3 => {
                let then = self.pick(&["NOTHING", "UPDATE SET a = excluded.b, u = excluded.u"]);
                format!("INSERT {or} INTO t VALUES {} ON CONFLICT DO {then}", self.row_of_t())
            }
            4..6 => {
                let set = match self.roll(5) {
                    0 => format!("id = {}", self.roll(9)),
                    1 => format!("u = {}", self.text()),
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

/// Replays captured changes; each must fit what is there.
fn replay(copy: &mut Vec<String>, changes: &[String]) {
    for change in changes {
        let (old, new) = match (change.strip_prefix('+'), change.strip_prefix('-')) {
            (Some(new), _) => (None, Some(new.to_owned())),
            (_, Some(old)) => (Some(old.to_owned()), None),
            _ => {
                let (old, new) = change.split_once(")>(").unwrap();
                let class = old.split('(').next().unwrap();
                (Some(format!("{old})")), Some(format!("{class}({new}")))
            }
        };
        if let Some(old) = old {
            let place = copy.iter().position(|row| *row == old);
            copy.remove(place.unwrap_or_else(|| panic!("{change} does not fit {copy:?}")));
        }
        copy.extend(new);
    }
    copy.sort();
}

async fn weather(recursive: &str, host_triggers: bool, seed: u64) {
    let mut bench = Bench::new(SCHEMA).await;
    bench.run(&format!("PRAGMA foreign_keys = ON; PRAGMA recursive_triggers = {recursive}"));
    if host_triggers {
        bench.run(HOST_TRIGGERS);
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
        written += changes.len();
        replay(&mut copy, &changes);
        assert_eq!(copy, bench.rows(&["t", "w"]).await, "{seed} {round}: {script:#?} {changes:#?}");
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
