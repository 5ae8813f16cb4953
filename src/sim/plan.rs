//! What a seed stands for: the tree, the length of the run, the faults and how often they strike.
//! All of it is data, made before anything runs.

use rand::Rng as _;
use rand::rngs::StdRng;

/// How often things go wrong, in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    /// A message vanishes though the broker confirmed it.
    pub(super) drop: u32,
    /// A message comes twice.
    pub(super) duplicate: u32,
    /// A message comes at another place of its queue.
    pub(super) reorder: u32,
    /// A message arrives and its confirm does not.
    pub(super) lost_confirm: u32,
    /// The broker says no.
    pub(super) refuse: u32,
    /// Publishing takes a while, and other tasks go on meanwhile.
    pub(super) suspend: u32,
    /// The process is killed at some statement of a step.
    pub(super) crash: u32,
    /// The database is locked, or away, at some statement of a step.
    pub(super) busy: u32,
    /// Of the scheduler's choices: a link is cut, a broker goes away or is wiped, a clock jumps,
    /// much time passes.
    pub(super) cut: u32,
    pub(super) wipe: u32,
    pub(super) jump: u32,
    pub(super) weeks: u32,
}

/// A run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    /// The parent of each server; the first is the root.
    pub(super) parents: Vec<Option<usize>>,
    /// Steps before everything is healed.
    pub(super) steps: u32,
    pub(super) rates: Rates,
    /// By how much each clock is ahead at the start, in ms.
    pub(super) skews: Vec<i64>,
    /// How busy the writers of each server are.
    pub(super) writers: Vec<u32>,
    /// Of a thousand transactions, how many their writer marks the end of.
    pub(super) marked: u32,
    /// Two servers may give one unique value to different rows.
    pub(super) clashes: bool,
}

impl Plan {
    pub(super) fn of(seed: u64, rng: &mut StdRng) -> Self {
        let servers = match rng.gen_range(0..10) {
            0..=4 => rng.gen_range(2..=4),
            5..=8 => rng.gen_range(3..=7),
            _ => rng.gen_range(6..=15),
        };
        let shape = rng.gen_range(0..3);
        let parents = (0..servers)
            .map(|n: usize| match (n, shape) {
                (0, _) => None,
                (n, 0) => Some(n - 1),
                (_, 1) => Some(0),
                (n, _) => Some(rng.gen_range(0..n)),
            })
            .collect();
        let rough = rng.gen_bool(0.8);
        let rate = |rng: &mut StdRng, max: u32| {
            if rough && rng.gen_bool(0.7) { rng.gen_range(0..=max) } else { 0 }
        };
        let rates = Rates {
            drop: rate(rng, 200),
            duplicate: rate(rng, 200),
            reorder: rate(rng, 300),
            lost_confirm: rate(rng, 150),
            refuse: rate(rng, 150),
            suspend: rng.gen_range(0..=400),
            crash: rate(rng, 120),
            busy: rate(rng, 80),
            cut: rate(rng, 30),
            wipe: rate(rng, 8),
            jump: rate(rng, 15),
            weeks: rate(rng, 8),
        };
        let skews = (0..servers).map(|_| skew(rng)).collect();
        let writers = (0..servers).map(|_| [0, 1, 1, 2, 5][rng.gen_range(0..5)]).collect();
        let steps = rng.gen_range(40..=120) + 15 * u32::try_from(servers).unwrap_or(0);
        Self {
            seed,
            parents,
            steps,
            rates,
            skews,
            writers,
            marked: [0, 700, 1_000][rng.gen_range(0..3)],
            clashes: rng.gen_bool(0.3),
        }
    }
}

/// By how much a clock is ahead, in ms.
pub(super) fn skew(rng: &mut StdRng) -> i64 {
    match rng.gen_range(0..8) {
        0..=3 => rng.gen_range(-50..=50),
        4 => rng.gen_range(-7_000..=7_000),
        5 => rng.gen_range(-600_000..=600_000),
        6 => rng.gen_range(-7_200_000..=7_200_000),
        _ => 0,
    }
}
