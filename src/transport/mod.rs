//! How messages get from one server to another: one trait, two real transports.
//!
//! A transport promises little, and the link above it needs no more: a message that is
//! [`Outcome::Confirmed`] lies in the queue durably, but may be delivered twice, out of order after
//! a fault, or vanish with the broker's disk. Only the receiver's acknowledgement, a message of its
//! own, says that it was applied.

mod amqp;
mod backoff;
mod settings;
mod spool;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use uuid::Uuid;

pub use self::settings::{BODY_BYTES_MAX, QueueType, Settings};
use crate::error::{Error, Result};
use crate::id::ServerId;

/// The transport that a `broker_url` names: `amqp://…`, `amqps://…` or `spool:DIR`. Nothing is
/// opened yet; the first call does that.
///
/// # Errors
/// [`Kind::Config`](crate::error::Kind::Config) when the address is not one of these, or a
/// certificate file cannot be read. To be called within a tokio runtime.
pub fn connect(url: &str, settings: &Settings) -> Result<Arc<dyn Transport>> {
    match url.split_once(':') {
        Some(("amqp" | "amqps", _)) => Ok(Arc::new(amqp::Amqp::new(url, settings)?)),
        Some(("spool", directory)) => Ok(Arc::new(spool::Spool::new(directory, settings)?)),
        _ => Err(Error::config("a broker's address begins with `amqp://`, `amqps://` or `spool:`")),
    }
}

/// What a queue carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Lane {
    /// Records, hello, welcome and load messages of one link, in order.
    Records,
    /// Acknowledgements of one link.
    Acks,
    /// Requests of servers that want to become a child; one queue for each parent.
    Joins,
}

/// One queue: who reads it, who writes it, what it carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Queue {
    /// The server that consumes it.
    pub to: ServerId,
    /// The server that publishes to it; for [`Lane::Joins`] the same as `to`.
    pub from: ServerId,
    /// What it carries.
    pub lane: Lane,
}

impl Queue {
    /// The queue's name at a broker: `branchline.<to>.from.<from>`, `branchline.<to>.acks.<from>`
    /// or `branchline.<to>.joins`.
    #[must_use]
    pub fn name(&self) -> String {
        match self.lane {
            Lane::Records => format!("branchline.{}.from.{}", self.to, self.from),
            Lane::Acks => format!("branchline.{}.acks.{}", self.to, self.from),
            Lane::Joins => format!("branchline.{}.joins", self.to),
        }
    }

    /// The key by which the exchange routes to it: `<from>.<to>.<records|acks>`, or
    /// `join.<to>.joins`. A broker permission can bind a server to its own name by it.
    #[must_use]
    pub fn routing_key(&self) -> String {
        match self.lane {
            Lane::Records => format!("{}.{}.records", self.from, self.to),
            Lane::Acks => format!("{}.{}.acks", self.from, self.to),
            Lane::Joins => format!("join.{}.joins", self.to),
        }
    }
}

/// A message to be published. The body is complete (fixed header included); everything else is
/// there so that a person can read a queue without decoding.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Where it goes.
    pub queue: Queue,
    /// Names this message among those in flight; a return is matched by it.
    pub message_id: Uuid,
    /// `records`, `acks`, `hello`, `join`, `welcome`, `load` …
    pub kind: &'static str,
    /// Whether the body behind the fixed header is compressed with zstd.
    pub compressed: bool,
    /// The sender's id, for the `app-id` property.
    pub sender: ServerId,
    /// Fixed header and body.
    pub body: bytes::Bytes,
}

/// What became of a published message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Durably in the queue.
    Confirmed,
    /// Not in the queue: the broker or the disk said no (full, unroutable, nack, blocked, closed,
    /// too late), for this reason. Publish it again later; it may be there after all.
    Refused(String),
}

/// A message as it came out of a queue.
#[derive(Debug)]
pub struct Delivery {
    /// Fixed header and body, as published. Never larger than the transport's limit.
    pub body: bytes::Bytes,
    /// The position for [`Consumer::acknowledge`], rising within one consumer.
    pub tag: u64,
    /// Whether the transport knows it to be delivered before.
    pub redelivered: bool,
}

/// Publishes and consumes. One object serves all of a server's links that live on one broker.
///
/// Every call has a deadline of its own and returns an error of kind
/// [`Unreachable`](crate::error::Kind::Unreachable) when the broker does not answer; reconnecting
/// is the transport's business, at the next call.
pub trait Transport: Send + Sync + 'static {
    /// Makes sure that the queue is there (passively first, then made by whoever may).
    fn declare<'a>(&'a self, queue: Queue) -> BoxFuture<'a, Result<()>>;

    /// Publishes in order and waits for every outcome, one for each message in the same order.
    /// Not cancel safe: what was handed over may be published all the same.
    fn publish<'a>(&'a self, messages: Vec<Outgoing>) -> BoxFuture<'a, Result<Vec<Outcome>>>;

    /// Opens the queue for reading. A single active consumer reads a queue: a second one waits
    /// (its [`Consumer::next`] yields nothing) until the first is gone.
    fn consume<'a>(
        &'a self,
        queue: Queue,
        prefetch: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Consumer>>>;

    /// Removes a queue with all that is in it: a server was evicted.
    fn remove<'a>(&'a self, queue: Queue) -> BoxFuture<'a, Result<()>>;

    /// Where this transport leads, without a password, for logs and status.
    fn address(&self) -> &str;

    /// Closes connections, within a deadline. Messages in flight may be delivered again.
    fn close<'a>(&'a self) -> BoxFuture<'a, ()>;
}

/// A queue opened for reading.
pub trait Consumer: Send {
    /// The next message, or `None` when none came within `wait`. An error means that this consumer
    /// is done for (the queue was deleted, the channel closed, the broker gone): open a new one.
    /// What was delivered and not acknowledged comes again. Cancel safe.
    fn next<'a>(&'a mut self, wait: Duration) -> BoxFuture<'a, Result<Option<Delivery>>>;

    /// Takes every message up to and including `tag` off the queue, for good.
    fn acknowledge<'a>(&'a mut self, tag: u64) -> BoxFuture<'a, Result<()>>;
}
