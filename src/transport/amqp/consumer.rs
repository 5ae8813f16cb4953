//! A queue opened for reading, on a channel of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::time::timeout;

use super::failure::{Failure, code};
use super::session::Session;
use crate::error::{Error, Kind, Result};
use crate::transport::{BODY_BYTES_MAX, Consumer, Delivery, Queue};

/// Reads one queue.
pub(super) struct AmqpConsumer {
    session: Arc<Session>,
    channel: Channel,
    stream: lapin::Consumer,
    queue: Queue,
    /// Why it is done for.
    broken: Option<(Kind, String)>,
    delivered: u64,
    acknowledged: u64,
}

impl AmqpConsumer {
    pub(super) async fn open(session: Arc<Session>, queue: Queue, prefetch: u16) -> Result<Self> {
        let name = queue.name();
        match subscribe(&session, &name, prefetch.max(1)).await {
            Ok((channel, stream)) => Ok(Self {
                session,
                channel,
                stream,
                queue,
                broken: None,
                delivered: 0,
                acknowledged: 0,
            }),
            Err(failure) if failure.code() == Some(code::NOT_FOUND) => {
                let place = &session.broker().place;
                Err(Error::failed(format!("broker `{place}` has no queue `{name}`: declare it")))
            }
            Err(failure) => Err(session.error(failure, &format!("let us read queue `{name}`"))),
        }
    }

    fn check(&self) -> Result<()> {
        match &self.broken {
            Some((kind, reason)) => Err(Error::new(*kind, reason.clone())),
            None => Ok(()),
        }
    }

    fn fail(&mut self, error: Error) -> Error {
        self.broken = Some((error.kind(), error.chain()));
        error
    }

    fn ended(&mut self) -> Error {
        let error = match self.session.health().lost {
            Some(reason) => self.gone(Kind::Unreachable, &reason),
            None => self.gone(Kind::Failed, "the queue was deleted, or the channel closed"),
        };
        self.fail(error)
    }

    fn gone(&self, kind: Kind, reason: &str) -> Error {
        let (place, name) = (&self.session.broker().place, self.queue.name());
        Error::new(kind, format!("broker `{place}` no longer lets us read `{name}`: {reason}"))
    }

    fn received(&mut self, message: lapin::message::Delivery) -> Delivery {
        self.delivered = message.delivery_tag;
        let mut body = Bytes::from(message.data);
        if body.len() > BODY_BYTES_MAX {
            // Nobody of ours sends one; what is left does not decode, and is held as it is.
            tracing::warn!(
                broker = self.session.broker().place,
                queue = self.queue.name(),
                bytes = body.len(),
                "message is larger than any may be, and is cut"
            );
            body.truncate(BODY_BYTES_MAX);
        }
        Delivery { body, tag: message.delivery_tag, redelivered: message.redelivered }
    }

    async fn next_within(&mut self, wait: Duration) -> Result<Option<Delivery>> {
        self.check()?;
        match timeout(wait, self.stream.next()).await {
            Ok(Some(Ok(message))) => Ok(Some(self.received(message))),
            Ok(Some(Err(error))) => {
                let what = format!("let us read queue `{}`", self.queue.name());
                let failure = Failure::Lapin(error);
                if !failure.is_of_channel() {
                    self.session.give_up(failure.to_string());
                }
                let error = self.session.error(failure, &what);
                Err(self.fail(error))
            }
            Ok(None) => Err(self.ended()),
            // Should lapin ever forget to tell the stream.
            Err(_) if !self.channel.status().connected() => Err(self.ended()),
            Err(_) => Ok(None),
        }
    }

    async fn acknowledge_up_to(&mut self, tag: u64) -> Result<()> {
        self.check()?;
        // To the broker 0 means all, and an unknown tag costs the channel.
        if tag == 0 || tag > self.delivered {
            let name = self.queue.name();
            return Err(Error::failed(format!("`{name}` has delivered no message of tag {tag}")));
        }
        if tag <= self.acknowledged {
            return Ok(());
        }
        let options = BasicAckOptions { multiple: true };
        match self.session.call(self.channel.basic_ack(tag, options)).await {
            Ok(()) => {
                self.acknowledged = tag;
                Ok(())
            }
            Err(failure) => {
                let what = format!("take our acknowledgement on `{}`", self.queue.name());
                let error = self.session.error(failure, &what);
                Err(self.fail(error))
            }
        }
    }
}

async fn subscribe(
    session: &Session,
    name: &str,
    prefetch: u16,
) -> Result<(Channel, lapin::Consumer), Failure> {
    let channel = session.channel().await?;
    // Always: lapin's buffers have no bound of their own.
    session.call(channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    let consuming = channel.basic_consume(
        name.into(),
        "".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let stream = session.call(consuming).await?;
    Ok((channel, stream))
}

impl Consumer for AmqpConsumer {
    fn next<'a>(&'a mut self, wait: Duration) -> BoxFuture<'a, Result<Option<Delivery>>> {
        Box::pin(self.next_within(wait))
    }

    fn acknowledge<'a>(&'a mut self, tag: u64) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.acknowledge_up_to(tag))
    }
}

impl Drop for AmqpConsumer {
    /// Closes the channel, which gives back what is not acknowledged. Left to lapin, a cancel
    /// that races with the broker's own would cost the whole connection.
    fn drop(&mut self) {
        if !self.channel.status().connected() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (session, channel, stream) =
            (self.session.clone(), self.channel.clone(), self.stream.clone());
        runtime.spawn(async move {
            let limit = session.broker().settings.close_timeout;
            let _ = timeout(limit, channel.close(200, "OK".into())).await;
            drop(stream);
        });
    }
}
