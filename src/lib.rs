//! Branchline keeps a tree of databases in step over RabbitMQ, or over a spool directory.
pub mod catalog;
pub mod error;
pub mod id;
pub mod merge;
pub mod record;
pub mod rules;
pub mod state;
pub mod store;
pub mod transport;

pub use error::{Error, Kind, Result};
