//! The simulation: a tree of servers under a seeded scheduler, with faults as data and a checker.
//!
//! It runs the **real** code on real SQLite files, not a model of it, so that nothing can be right
//! in the model and wrong in the code. What decides anything is taken in hand: the clock (ours and
//! SQLite's), fresh uuids, the order of steps, the transport. So a seed replays exactly.

mod checker;
mod clinic;
mod counters;
mod history;
pub(crate) mod inline;
mod net;
mod node;
mod plan;
pub(crate) mod sabotage;
pub(crate) mod seams;
mod seeds;
mod trace;
mod world;
mod writer;
