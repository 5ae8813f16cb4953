//! The crash matrix: a process dies at each named point, is started again, and all ends well.
//!
//! Cases share a chain of servers, one after the other; a case says what it does to bring the victim
//! to the point. `cargo test` runs a slice; `BRANCHLINE_CRASH_MATRIX=all` runs every point as root,
//! middle and leaf at its first and seventh hit, on PostgreSQL over RabbitMQ and SQLite over a spool.

use std::time::Instant;

use super::chain::{Chain, LEAF, MIDDLE, ROOT, until_dead};
use super::held::{refuse_accounts, refuse_accounts_no_more};
use crate::support::tree::{Broker, Engine};

/// What brings a process to a point.
#[derive(Clone, Copy, PartialEq, Debug)]
enum By {
    /// Its worker, as records come and go.
    Worker,
    /// Its worker, as records come that it refuses.
    Poison,
    /// A command.
    Command(&'static [&'static str]),
}

/// Points by what leads there, and the servers that come there: a root has nobody above it, a leaf
/// passes nothing on.
const CASES: &[(&str, By, &[usize])] = &[
    ("seal.begun", By::Worker, &[ROOT, MIDDLE, LEAF]),
    ("seal.sealed", By::Worker, &[ROOT, MIDDLE, LEAF]),
    ("publish.numbered", By::Worker, &[ROOT, MIDDLE, LEAF]),
    ("publish.written", By::Worker, &[ROOT, MIDDLE, LEAF]),
    ("publish.confirmed", By::Worker, &[ROOT, MIDDLE, LEAF]),
    ("publish.sent", By::Worker, &[ROOT, MIDDLE, LEAF]),
    ("deliver.begun", By::Worker, &[ROOT, MIDDLE, LEAF]),
    ("apply.applied", By::Worker, &[ROOT, MIDDLE, LEAF]),
    ("apply.committed", By::Worker, &[ROOT, MIDDLE, LEAF]),
    ("answer.published", By::Worker, &[ROOT, MIDDLE, LEAF]),
    ("deliver.answered", By::Worker, &[ROOT, MIDDLE, LEAF]),
    ("settle.begun", By::Worker, &[ROOT, MIDDLE, LEAF]),
    ("settle.settled", By::Worker, &[ROOT, MIDDLE, LEAF]),
    ("forward.waiting", By::Worker, &[ROOT, MIDDLE, LEAF]),
    ("held.written", By::Poison, &[ROOT, MIDDLE, LEAF]),
    ("held.tried", By::Poison, &[ROOT, MIDDLE, LEAF]),
    ("cleanup.half", By::Command(&["cleanup", "--age", "0s"]), &[ROOT, MIDDLE, LEAF]),
];

/// Where at the later hit the broker loses what it has as well: sent records, and answers.
const LOSES: &[&str] = &["publish.sent", "answer.published", "settle.begun"];

/// The slice of `cargo test`: the places where most is in hand.
const SLICE: &[(&str, usize, u32)] = &[
    ("publish.confirmed", LEAF, 7),
    ("apply.applied", MIDDLE, 1),
    ("answer.published", MIDDLE, 1),
    ("settle.begun", LEAF, 1),
    ("held.written", ROOT, 1),
];

fn matrix(engine: Engine, broker: Broker) {
    let mut chain = Chain::new([engine; 3], broker, |_, url| url.to_owned());
    let all = std::env::var("BRANCHLINE_CRASH_MATRIX").is_ok_and(|value| value == "all");
    let mut count = 0;
    chain.start_all();
    chain.book_everywhere();
    chain.check("before any crash");
    for (point, by, roles) in CASES {
        for victim in *roles {
            for hit in [1, 7] {
                if hit > 1 && matches!(by, By::Command(_)) {
                    continue; // a command comes there once
                }
                if all || SLICE.contains(&(point, *victim, hit)) {
                    let began = Instant::now();
                    run(&mut chain, point, *by, *victim, hit);
                    eprintln!("{engine:?} {point}:{hit} at {victim}: {:?}", began.elapsed());
                    count += 1;
                }
            }
        }
    }
    assert!(count >= SLICE.len(), "{count} cases");
    eprintln!("{engine:?} over {broker:?}: {count} cases, {} transactions", chain.committed());
}

/// One case.
fn run(chain: &mut Chain, point: &str, by: By, victim: usize, hit: u32) {
    let what = format!("{point}:{hit} at {}", chain.servers[victim].nickname());
    let plan = format!("{point}:{hit}");
    match by {
        By::Command(words) => {
            let server = &chain.servers[victim];
            let ended = server.run_with(words, &[("BRANCHLINE_CRASH", &format!("{point}:1"))]);
            assert_eq!(ended.code(), 128 + 6, "{what}: it aborts\n{}", ended.stderr);
            server.done(words);
            chain.cleaned = true;
            return chain.check(&what);
        }
        By::Poison => refuse_accounts(&chain.servers[victim], victim),
        By::Worker => {}
    }
    chain.start(victim, &[("BRANCHLINE_CRASH", &plan)]);
    let mut worker = chain.workers.remove(&victim).unwrap();
    // The records of others come to the victim only while it lives; its own as well.
    until_dead(&mut worker, &what, || {
        chain.book_everywhere();
        // So that one round does not take all in.
        std::thread::sleep(std::time::Duration::from_millis(60));
    });
    drop(worker);
    if hit > 1 && LOSES.contains(&point) {
        chain.purge();
    }
    chain.start(victim, &[]);
    chain.book(victim);
    if by == By::Poison {
        refuse_accounts_no_more(&chain.servers[victim]);
    }
    chain.check(&what);
}

#[test]
fn a_process_that_dies_at_a_named_point_on_postgresql_loses_doubles_and_blocks_nothing() {
    matrix(Engine::Postgres, Broker::Amqp);
}

#[test]
fn a_process_that_dies_at_a_named_point_on_sqlite_loses_doubles_and_blocks_nothing() {
    matrix(Engine::Sqlite, Broker::Spool);
}
