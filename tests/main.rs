//! Tests against real services.
#![allow(missing_docs, clippy::unwrap_used)]

mod suite;
mod support;
