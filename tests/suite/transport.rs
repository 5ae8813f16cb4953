//! The transports: one contract run over both, then what is peculiar to each.

mod amqp;
mod contract;
mod spool;

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use branchline::id::ServerId;
use branchline::transport::{self, Consumer, Lane, Outcome, Outgoing, Queue, Settings, Transport};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use uuid::Uuid;

use crate::support::services;

/// How long a test waits for what must come.
const SOON: Duration = Duration::from_secs(20);
/// How long what happens at once may take on a busy machine. What hangs takes longer.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a test waits for what must not come.
const A_WHILE: Duration = Duration::from_millis(300);
/// How long a test may take, a minute of which is a slow machine's.
const TEST_MAX: Duration = Duration::from_secs(120);

/// A place to exchange messages in, and the queues that a test made there.
pub(crate) struct Bench {
    pub(crate) url: String,
    pub(crate) settings: Settings,
    /// The spool's directory, removed in the end.
    pub(crate) directory: Option<TempDir>,
    queues: Mutex<Vec<Queue>>,
}

impl Bench {
    fn amqp() -> Self {
        Self::at(services::amqp_url().to_owned(), None)
    }

    fn spool() -> Self {
        let directory = TempDir::new().unwrap();
        let url = format!("spool:{}", directory.path().join("spool").display());
        Self::at(url, Some(directory))
    }

    fn at(url: String, directory: Option<TempDir>) -> Self {
        let settings = Settings {
            backoff_min: Duration::from_millis(100),
            spool_poll: Duration::from_millis(5),
            ..Settings::default()
        };
        Self { url, settings, directory, queues: Mutex::default() }
    }

    /// Runs the test within its time, and removes its queues whatever became of it.
    async fn run(self, test: impl FnOnce(&Bench) -> BoxFuture<'_, ()>) {
        let body = tokio::time::timeout(TEST_MAX, test(&self));
        let result = AssertUnwindSafe(body).catch_unwind().await;
        let queues = std::mem::take(&mut *self.queues.lock().unwrap());
        let sweeper = transport::connect(&self.url, &self.settings).unwrap();
        for queue in queues {
            sweeper.remove(queue).await.unwrap();
        }
        sweeper.close().await;
        match result {
            Ok(done) => done.expect("the test did not end in its time"),
            Err(panic) => resume_unwind(panic),
        }
    }

    fn open(&self) -> Arc<dyn Transport> {
        transport::connect(&self.url, &self.settings).unwrap()
    }

    /// A queue that nobody else uses, not declared yet.
    fn queue(&self) -> Queue {
        let queue = Queue { to: ServerId::random(), from: ServerId::random(), lane: Lane::Records };
        self.queues.lock().unwrap().push(queue);
        queue
    }

    /// The same, declared.
    async fn declared(&self, transport: &dyn Transport) -> Queue {
        let queue = self.queue();
        transport.declare(queue).await.unwrap();
        queue
    }
}

/// A message of this body.
fn message(queue: Queue, body: impl Into<Bytes>) -> Outgoing {
    Outgoing {
        queue,
        message_id: Uuid::new_v4(),
        kind: "records",
        compressed: false,
        sender: queue.from,
        body: body.into(),
    }
}

/// So many messages, whose bodies are their numbers from `from`.
fn numbered(queue: Queue, from: u32, count: u32) -> Vec<Outgoing> {
    (from..from + count).map(|number| message(queue, number.to_be_bytes().to_vec())).collect()
}

fn number(body: &[u8]) -> u32 {
    u32::from_be_bytes(body.try_into().unwrap())
}

/// Publishes, and expects every message to be confirmed.
async fn publish(transport: &dyn Transport, messages: Vec<Outgoing>) {
    let count = messages.len();
    assert_eq!(transport.publish(messages).await.unwrap(), vec![Outcome::Confirmed; count]);
}

/// Takes exactly so many messages: their numbers, and the last one's tag.
async fn take(consumer: &mut dyn Consumer, count: usize) -> (Vec<u32>, u64) {
    let (mut numbers, mut tag) = (Vec::new(), 0);
    for at in 0..count {
        let next = consumer.next(SOON).await.unwrap();
        let delivery = next.unwrap_or_else(|| panic!("message {at} of {count} did not come"));
        assert!(delivery.tag > tag, "tags rise");
        (tag, _) = (delivery.tag, numbers.push(number(&delivery.body)));
    }
    (numbers, tag)
}

/// Expects that nothing comes.
async fn nothing(consumer: &mut dyn Consumer) {
    assert!(consumer.next(A_WHILE).await.unwrap().is_none(), "nothing should have come");
}

/// Tries until it succeeds, for what a transport mends at the next call.
async fn eventually<T, F: Future<Output = branchline::Result<T>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> T {
    let until = tokio::time::Instant::now() + SOON;
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) if tokio::time::Instant::now() > until => panic!("{what}: {error:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
