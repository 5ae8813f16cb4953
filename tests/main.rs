//! Everything that is tested from outside, in one binary.
#![allow(missing_docs, clippy::unwrap_used)]

mod suite;
mod support;
