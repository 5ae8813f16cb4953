//! Branchline keeps a tree of databases in step over RabbitMQ, or over a spool directory.

pub mod alarm;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod error;
#[doc(hidden)]
pub mod failpoint;
pub mod id;
pub mod interceptor;
pub mod link;
pub mod merge;
pub mod publisher;
pub mod record;
pub mod rules;
pub mod server;
#[cfg(test)]
mod sim;
pub mod state;
pub mod store;
pub mod token;
pub mod transport;
pub mod worker;

pub use error::{Error, Kind, Result};
pub use publisher::Publisher;
pub use server::Server;
pub use worker::Worker;
