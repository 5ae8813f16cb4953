//! What is seen of the demo: a table of servers that is drawn again in place, or plain lines where
//! there is no terminal.

use std::io::Write as _;
use std::time::{Duration, Instant};

use super::schema::TABLES;
use super::tree::{SITES, Tree};
use crate::cli::output::{Output, count, is_terminal, line, table};
use crate::error::Result;
use crate::state::State;
use crate::store::Store;
use crate::store::books::status::{Link, status};
use crate::store::time as clock;

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// How one server stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    patients: i64,
    encounters: i64,
    rows: i64,
    /// Records that a neighbour has.
    delivered: i64,
    /// Records that a neighbour does not have yet.
    waiting: i64,
    came_in: i64,
    held: i64,
    unsealed: i64,
}

impl Sample {
    /// Nothing is on its way from here.
    pub(super) fn is_settled(&self) -> bool {
        self.waiting == 0 && self.unsealed == 0 && self.held == 0
    }
}

/// Reads how every server stands.
pub(super) async fn look(tree: &Tree) -> Result<Vec<Sample>> {
    let mut samples = Vec::with_capacity(tree.servers.len());
    for server in &tree.servers {
        samples.push(sample(server.server.store()).await?);
    }
    Ok(samples)
}

async fn sample(store: &Store) -> Result<Sample> {
    let counts = TABLES.map(|table| format!("(SELECT count(*) FROM {table})")).join(" + ");
    let sql = format!(
        "SELECT (SELECT count(*) FROM patient), (SELECT count(*) FROM encounter), {counts}"
    );
    let mut session = store.read().await?;
    let row = session.query_one(&sql, Vec::new()).await?;
    let status = status(&mut session, clock::now()).await?;
    session.rollback().await?;
    let links = || status.parent.iter().chain(&status.children);
    let total = |count: fn(&Link) -> i64| links().map(count).sum();
    Ok(Sample {
        patients: row.int(0)?,
        encounters: row.int(1)?,
        rows: row.int(2)?,
        delivered: total(|link| link.in_states(&[State::Committed])),
        waiting: total(|link| link.waiting() + link.in_states(&[State::Failed])),
        came_in: total(|link| link.came_in.iter().map(|(_, number)| number).sum()),
        held: status.held,
        unsealed: status.unsealed,
    })
}

/// The screen.
pub(super) struct View {
    out: Output,
    live: bool,
    drawn: usize,
    begun: Instant,
    printed: Instant,
}

impl View {
    pub(super) fn new(out: Output) -> Self {
        let now = Instant::now();
        Self { out, live: !out.json && is_terminal(), drawn: 0, begun: now, printed: now }
    }

    /// A line that stays, above what is drawn after it.
    pub(super) fn say(&mut self, text: impl AsRef<str>) {
        self.drawn = 0;
        self.out.say(text);
    }

    /// Draws the table again, or prints a line now and then.
    pub(super) fn draw(&mut self, tree: &Tree, samples: &[Sample], committed: usize) {
        if self.live {
            return self.redraw(&picture(tree, samples, committed));
        }
        if self.printed.elapsed() >= LINE_EVERY {
            self.print(samples, committed);
        }
    }

    /// Leaves the last state standing.
    pub(super) fn finish(&mut self, tree: &Tree, samples: &[Sample], committed: usize) {
        if self.live {
            self.redraw(&picture(tree, samples, committed));
        } else {
            self.out.say(picture(tree, samples, committed));
        }
        self.say("");
    }

    fn redraw(&mut self, text: &str) {
        let mut out = std::io::stdout().lock();
        if self.drawn > 0 {
            // Up to the first line of the last picture.
            let _ = write!(out, "\x1b[{}A", self.drawn);
        }
        for line in text.lines() {
            let _ = writeln!(out, "\r{line}\x1b[K");
        }
        let _ = out.flush();
        self.drawn = text.lines().count();
    }

    fn print(&mut self, samples: &[Sample], committed: usize) {
        self.printed = Instant::now();
        if self.out.json {
            return;
        }
        let waiting: i64 = samples.iter().map(|sample| sample.waiting).sum();
        let came_in: i64 = samples.iter().map(|sample| sample.came_in).sum();
        line(&format!(
            "{:4}s  {} committed, {} arrived, {waiting} on the way",
            self.begun.elapsed().as_secs(),
            count(committed as i64, "transaction"),
            count(came_in, "record"),
        ));
    }
}

fn picture(tree: &Tree, samples: &[Sample], committed: usize) -> String {
    let header =
        ["server", "#patients", "#visits", "#rows", "#delivered", "#waiting", "#came in", ""];
    let rows = SITES
        .iter()
        .zip(samples)
        .enumerate()
        .map(|(index, (site, sample))| {
            let note = match (tree.is_online(index), sample.held) {
                (false, _) => "offline".to_owned(),
                (true, 0) => String::new(),
                (true, held) => format!("{held} held"),
            };
            let mut row = vec![site.drawn.to_owned()];
            let numbers = [
                sample.patients,
                sample.encounters,
                sample.rows,
                sample.delivered,
                sample.waiting,
                sample.came_in,
            ];
            row.extend(numbers.map(|number| number.to_string()));
            row.push(note);
            row
        })
        .collect();
    format!("{}\n{} committed", table(&header, rows), count(committed as i64, "transaction"))
}
