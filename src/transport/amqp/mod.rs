//! RabbitMQ, by AMQP 0-9-1. The only room that names lapin.
//!
//! Two connections: one publishes and may be blocked by the broker, one consumes and declares and
//! goes on meanwhile. Nothing recovers by itself: lapin's recovery can hang for ever, so whatever
//! had an error is dropped whole and opened anew at the next call (see [`supervisor`]). Every
//! await has a deadline. A confirm is believed only once it cannot be another message's (see
//! [`publisher`]).
//!
//! lapin logs returned messages with their bodies, and each queue that is not there yet as an
//! error: a subscriber must leave the target `lapin` out.

mod broker;
mod consumer;
mod failure;
mod publisher;
mod session;
mod supervisor;
mod topology;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use self::broker::Broker;
use self::consumer::AmqpConsumer;
use self::publisher::{CALLS_MAX, Job, Publisher};
use self::supervisor::Supervisor;
use super::{Consumer, Outcome, Outgoing, Queue, Settings, Transport};
use crate::error::{Error, Result};

/// The transport over one vhost of one broker.
pub(super) struct Amqp {
    broker: Arc<Broker>,
    publishing: Arc<Supervisor>,
    consuming: Supervisor,
    jobs: mpsc::Sender<Job>,
}

impl Amqp {
    /// Prepares the transport; the first call connects.
    pub(super) fn new(url: &str, settings: &Settings) -> Result<Self> {
        let runtime = Handle::try_current()
            .map_err(|error| Error::failed("no tokio runtime to connect in").with_source(error))?;
        let broker = Arc::new(Broker::new(url, settings)?);
        let publishing = Arc::new(Supervisor::new(broker.clone(), "publish"));
        let consuming = Supervisor::new(broker.clone(), "consume");
        let (jobs, taken) = mpsc::channel(CALLS_MAX);
        runtime.spawn(Publisher::new(publishing.clone(), settings.publish_window).run(taken));
        Ok(Self { broker, publishing, consuming, jobs })
    }

    async fn publish_all(&self, messages: Vec<Outgoing>) -> Result<Vec<Outcome>> {
        let gone = || Error::failed("the publishing task has ended");
        let (job, answered) = Job::new(messages);
        self.jobs.send(job).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

impl Transport for Amqp {
    fn declare<'a>(&'a self, queue: Queue) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { topology::declare(&*self.consuming.session().await?, queue).await })
    }

    fn publish<'a>(&'a self, messages: Vec<Outgoing>) -> BoxFuture<'a, Result<Vec<Outcome>>> {
        Box::pin(self.publish_all(messages))
    }

    fn consume<'a>(
        &'a self,
        queue: Queue,
        prefetch: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Consumer>>> {
        Box::pin(async move {
            let session = self.consuming.session().await?;
            let consumer = AmqpConsumer::open(session, queue, prefetch).await?;
            Ok(Box::new(consumer) as Box<dyn Consumer>)
        })
    }

    fn remove<'a>(&'a self, queue: Queue) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { topology::remove(&*self.consuming.session().await?, queue).await })
    }

    fn address(&self) -> &str {
        &self.broker.place
    }

    fn close<'a>(&'a self) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            tokio::join!(self.publishing.close(), self.consuming.close());
        })
    }
}
