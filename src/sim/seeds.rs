//! The runs: some fixed seeds, some new ones, and what a run of the normal length must come by.
//!
//! `BRANCHLINE_SIM_SEED` replays one seed with its trace; `BRANCHLINE_SIM_SECONDS` goes on for so
//! long, from `BRANCHLINE_SIM_FROM` on.

use std::time::{Duration, Instant};

use super::counters::Counters;
use super::sabotage::{Sabotage, take_out};
use super::world::{Outcome, run};

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
    for seed in [1, 7, 23] {
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
    let seconds = setting("BRANCHLINE_SIM_SECONDS");
    let from = setting("BRANCHLINE_SIM_FROM").unwrap_or(0);
    let (begun, until) = (Instant::now(), Duration::from_secs(seconds.unwrap_or(15)));
    let (mut seeds, mut transactions, mut bad) = (0, 0, Vec::new());
    let mut counters = Counters::default();
    for seed in from.. {
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
        if begun.elapsed() > until {
            break;
        }
    }
    let _ = counters.never(&[]);
    let speed = f64::from(seeds) / begun.elapsed().as_secs_f64();
    println!("{seeds} seeds, {transactions} transactions, {speed:.1} seeds/s\n{counters}");
    assert!(bad.is_empty(), "seeds {bad:?}");
}

/// Runs seeds with a mechanism taken out until the checker finds something.
fn finds(what: Sabotage, seeds: u64) {
    for seed in 0..seeds {
        take_out(Some(what));
        let outcome = run(seed, false);
        take_out(None);
        if let Some(first) = outcome.complaints.first() {
            println!("without {what:?}, seed {seed}: {first}");
            return;
        }
    }
    panic!("without {what:?}, {seeds} seeds end well");
}

#[test]
fn without_dedupe_a_run_fails() {
    finds(Sabotage::Dedupe, 50);
}

#[test]
fn without_resend_a_run_fails() {
    finds(Sabotage::Resend, 50);
}

#[test]
fn without_erased_a_run_fails() {
    finds(Sabotage::Erased, 50);
}

#[test]
fn without_coalescing_a_run_fails() {
    finds(Sabotage::Coalescing, 50);
}

#[test]
fn without_the_gap_rule_a_run_fails() {
    finds(Sabotage::GapRule, 100);
}
