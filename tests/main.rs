//! Tests against real services.
#![allow(missing_docs, clippy::unwrap_used)]
// clippy.toml allows it in test functions; what they share are no test functions.
#![allow(clippy::unwrap_used)]

mod suite;
mod support;
