//! The runs: some seeds that never change, new ones as long as there is time, and what all of them
//! together must come by.
//!
//! `BRANCHLINE_SIM_SEED` replays one seed with its trace and keeps its databases if it fails;
//! `BRANCHLINE_SIM_SECONDS` goes on for so long, from seed `BRANCHLINE_SIM_FROM` on.

use std::time::{Duration, Instant};

use super::counters::Counters;
use super::sabotage::{Sabotage, take_out};
use super::world::{Outcome, run};

/// Runs whose trees are small, and that come by everything together.
const ALWAYS: [u64; 12] = [0, 1, 3, 6, 8, 10, 12, 14, 18, 19, 20, 21];

/// So many seeds have to come by everything: the fixed ones, and further ones where another schedule
/// made those tamer.
const SEEDS_MAX: usize = 40;

/// How long new seeds are tried besides: not at all, as long as they find what is open.
const SECONDS: u64 = 0;

/// A run of the normal length that misses one of these has become too tame.
const WANTED: &[&str] = &[
    "conflict: COLUMN",
    "conflict: EDIT_AND_DELETE",
    "conflict: REVIVED",
    "deleted row stays for a referrer",
    "duplicate dropped",
    "fault: broker away",
    "fault: broker wiped",
    "fault: clock days off",
    "fault: clock jumped",
    "fault: crash",
    "fault: dropped",
    "fault: duplicated",
    "fault: link cut",
    "fault: lost confirm",
    "fault: refused",
    "fault: reordered",
    "fault: statement fails",
    "held went in: CLOCK",
    "held went in: GAP",
    "held went in: MISSING_ROW",
    "held went in: UNIQUE_CLASH",
    "partition: publish refused",
    "passed on",
    "publishing waits",
    "resent",
    "time: much passed",
    "unique clash held in the end",
];

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn assert_well(outcome: &Outcome) {
    assert!(
        outcome.complaints.is_empty(),
        "seed {}:\n  {}\n{:?}",
        outcome.plan.seed,
        outcome.complaints.join("\n  "),
        outcome.plan
    );
}

#[test]
fn a_seed_replays_exactly() {
    for seed in [1, 7] {
        let (first, second) = (run(seed, false), run(seed, false));
        assert_eq!(first.digest, second.digest, "seed {seed}");
        assert_eq!(first.complaints, second.complaints);
    }
}

#[test]
fn every_tree_ends_equal_and_nothing_vanishes() {
    if let Some(seed) = setting("BRANCHLINE_SIM_SEED") {
        assert_well(&run(seed, true));
        return;
    }
    let from = setting("BRANCHLINE_SIM_FROM");
    let until = Duration::from_secs(setting("BRANCHLINE_SIM_SECONDS").unwrap_or(SECONDS));
    let always = if from.is_some() { Vec::new() } else { ALWAYS.to_vec() };
    let count = always.len();
    let (begun, mut seeds, mut transactions) = (Instant::now(), 0, 0);
    let (mut bad, mut counters) = (Vec::new(), Counters::default());
    for seed in always.into_iter().chain(from.unwrap_or(1_000)..) {
        let tame = from.is_none() && !counters.never(WANTED).is_empty() && seeds < SEEDS_MAX;
        if seeds >= count && begun.elapsed() > until && !tame {
            break;
        }
        let outcome = run(seed, false);
        seeds += 1;
        transactions += outcome.transactions;
        counters.join(&outcome.counters);
        if !outcome.complaints.is_empty() {
            let some: Vec<&str> = outcome.complaints.iter().take(4).map(String::as_str).collect();
            println!(
                "seed {seed} ({} servers): {}",
                outcome.plan.parents.len(),
                some.join("\n    ")
            );
            bad.push(seed);
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds, {transactions} transactions, {:.2} seeds/s\n{counters}",
        f64::from(u32::try_from(seeds).unwrap_or(u32::MAX)) / seconds
    );
    assert!(bad.is_empty(), "seeds {bad:?}");
    if from.is_none() {
        assert_eq!(counters.never(WANTED), Vec::<&str>::new(), "never came by");
    }
}

/// Runs seeds with a mechanism taken out until the checker finds something that it does not find in
/// the same seed with the mechanism in its place.
fn finds(what: Sabotage, seeds: std::ops::Range<u64>) {
    for seed in seeds.clone() {
        take_out(Some(what));
        let outcome = run(seed, false);
        take_out(None);
        if let Some(first) = outcome.complaints.first() {
            println!("without {what:?}, seed {seed}: {first}");
            assert_well(&run(seed, false));
            return;
        }
    }
    panic!("without {what:?}, seeds {seeds:?} end well");
}

#[test]
fn without_dedupe_a_run_fails() {
    finds(Sabotage::Dedupe, 0..30);
}

#[test]
fn without_resend_a_run_fails() {
    finds(Sabotage::Resend, 0..30);
}

#[test]
fn without_erased_a_run_fails() {
    finds(Sabotage::Erased, 0..30);
}

#[test]
fn without_coalescing_a_run_fails() {
    finds(Sabotage::Coalescing, 0..30);
}

#[test]
fn without_the_gap_rule_a_run_fails() {
    finds(Sabotage::GapRule, 18..78);
}
