//! Everything that is tested from outside, in one binary.
// clippy.toml allows it in test functions; what they share are no test functions.
#![allow(missing_docs, clippy::unwrap_used)]

mod suite;
mod support;
