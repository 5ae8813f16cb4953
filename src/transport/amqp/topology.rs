//! Exchange and queues: looked for first, made by whoever may.
//!
//! A server's own user often may make nothing, and an administrator has laid the queues out. So
//! what is there is taken as it is, whatever its arguments; only what is missing is made.

use lapin::options::{
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{FieldTable, LongLongInt};
use lapin::{ExchangeKind, Queue as Declared};

use super::failure::{Failure, code};
use super::session::Session;
use crate::error::{Error, Result};
use crate::transport::{Queue, QueueType, Settings};

/// The topic exchange that everything is published to.
pub(super) const EXCHANGE: &str = "branchline";

/// How often a message may come again before the broker drops it: as good as never. Without it
/// RabbitMQ 4 drops at the twentieth; with -1 3.10 drops at the first.
const DELIVERY_LIMIT: LongLongInt = 1_000_000_000;

/// Makes sure that the exchange, the queue and the binding between them are there.
pub(super) async fn declare(session: &Session, queue: Queue) -> Result<()> {
    declare_exchange(session).await?;
    let made = declare_queue(session, &queue.name()).await?;
    match bind(session, queue).await {
        // Bound by whoever made it; if it is not, publishing to it says so.
        Err(failure) if failure.code() == Some(code::ACCESS_REFUSED) && !made => Ok(()),
        Err(failure) => {
            Err(session.error(failure, &format!("bind queue `{}` to `{EXCHANGE}`", queue.name())))
        }
        Ok(()) => Ok(()),
    }
}

/// Makes sure that the exchange is there.
pub(super) async fn declare_exchange(session: &Session) -> Result<()> {
    let made = match declare_exchange_as(session, true).await {
        Err(failure) if failure.code() == Some(code::NOT_FOUND) => {
            declare_exchange_as(session, false).await
        }
        found => found,
    };
    made.map_err(|failure| refused(session, failure, "exchange", EXCHANGE))
}

async fn declare_exchange_as(session: &Session, passive: bool) -> Result<(), Failure> {
    let channel = session.channel().await?;
    let options = ExchangeDeclareOptions { passive, durable: true, ..Default::default() };
    let call = channel.exchange_declare(
        EXCHANGE.into(),
        ExchangeKind::Topic,
        options,
        FieldTable::default(),
    );
    session.call(call).await
}

/// Makes sure that the queue is there; whether it was made now.
async fn declare_queue(session: &Session, name: &str) -> Result<bool> {
    match declare_one(session, name, true).await {
        Ok(_) => return Ok(false),
        Err(failure) if failure.code() == Some(code::NOT_FOUND) => {}
        Err(failure) => return Err(refused(session, failure, "queue", name)),
    }
    match declare_one(session, name, false).await {
        Ok(_) => Ok(true),
        // Someone else made it in between, with arguments of their own.
        Err(failure) if failure.code() == Some(code::PRECONDITION_FAILED) => Ok(false),
        Err(failure) => Err(refused(session, failure, "queue", name)),
    }
}

async fn declare_one(session: &Session, name: &str, passive: bool) -> Result<Declared, Failure> {
    let channel = session.channel().await?;
    let options = QueueDeclareOptions { passive, durable: true, ..Default::default() };
    let call = channel.queue_declare(name.into(), options, arguments(&session.broker().settings));
    session.call(call).await
}

fn arguments(settings: &Settings) -> FieldTable {
    let bytes_max = LongLongInt::try_from(settings.queue_bytes_max).unwrap_or(LongLongInt::MAX);
    let mut arguments = FieldTable::default();
    arguments.insert("x-single-active-consumer".into(), true.into());
    arguments.insert("x-overflow".into(), text("reject-publish"));
    arguments.insert("x-max-length-bytes".into(), bytes_max.into());
    match settings.queue_type {
        QueueType::Quorum => {
            arguments.insert("x-queue-type".into(), text("quorum"));
            arguments.insert("x-delivery-limit".into(), DELIVERY_LIMIT.into());
        }
        QueueType::Classic => {
            arguments.insert("x-queue-type".into(), text("classic"));
        }
    }
    arguments
}

fn text(value: &str) -> lapin::types::AMQPValue {
    lapin::types::AMQPValue::LongString(value.into())
}

async fn bind(session: &Session, queue: Queue) -> Result<(), Failure> {
    let channel = session.channel().await?;
    let call = channel.queue_bind(
        queue.name().into(),
        EXCHANGE.into(),
        queue.routing_key().into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    session.call(call).await
}

/// Deletes the queue with all that is in it; one that is not there is fine.
pub(super) async fn remove(session: &Session, queue: Queue) -> Result<()> {
    let name = queue.name();
    match delete(session, &name).await {
        Ok(()) => Ok(()),
        Err(failure) if failure.code() == Some(code::NOT_FOUND) => Ok(()),
        Err(failure) => Err(session.error(failure, &format!("delete queue `{name}`"))),
    }
}

async fn delete(session: &Session, name: &str) -> Result<(), Failure> {
    let channel = session.channel().await?;
    let call = channel.queue_delete(name.into(), QueueDeleteOptions::default());
    session.call(call).await.map(drop)
}

/// Says who can help when the broker does not let us make something.
fn refused(session: &Session, failure: Failure, what: &str, name: &str) -> Error {
    if failure.code() == Some(code::ACCESS_REFUSED) {
        let place = &session.broker().place;
        let message = format!(
            "broker `{place}` has no {what} `{name}`, and this user may not make it: let an \
             administrator make it, or allow the user to configure it"
        );
        return match failure {
            Failure::Lapin(cause) => Error::config(message).with_source(cause),
            Failure::Late(_) => Error::config(message),
        };
    }
    session.error(failure, &format!("declare {what} `{name}`"))
}
