//! Messages that are delivered again: taken from a queue while they wait in it, and put back as
//! often as one likes.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use crate::support::cli::TestServer;
use crate::support::tree::{Broker, Tree};
use crate::support::{block_on, services};

/// A queue is empty when nothing comes for this long.
const QUIET: Duration = Duration::from_millis(700);

/// Copies of the messages that lay in one queue.
pub(super) enum Messages {
    Amqp { queue: String, messages: Vec<(BasicProperties, Vec<u8>)> },
    Spool { folder: PathBuf, messages: Vec<(String, Vec<u8>)> },
}

impl Messages {
    /// Copies what waits on the way from one server to another, and leaves it there.
    pub(super) fn waiting(tree: &Tree, from: &TestServer, to: &TestServer) -> Self {
        let messages = match tree.mix.broker {
            Broker::Amqp => {
                let queue = tree.queue(from, to);
                let messages = block_on(look(&queue));
                Self::Amqp { queue, messages }
            }
            Broker::Spool => {
                let folder = tree.spool_folder(from, to);
                let mut messages = Vec::new();
                for entry in std::fs::read_dir(&folder).unwrap() {
                    let path = entry.unwrap().path();
                    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                    if name.ends_with(".msg") && !name.starts_with('.') {
                        messages.push((name, std::fs::read(&path).unwrap()));
                    }
                }
                messages.sort();
                Self::Spool { folder, messages }
            }
        };
        assert!(messages.count() > 0, "nothing waits for {}", to.nickname());
        messages
    }

    fn count(&self) -> usize {
        match self {
            Self::Amqp { messages, .. } => messages.len(),
            Self::Spool { messages, .. } => messages.len(),
        }
    }

    /// Puts each of them into its queue so many times more.
    pub(super) fn deliver_again(&self, times: u32) {
        match self {
            Self::Amqp { queue, messages } => block_on(put(queue, messages, times)),
            Self::Spool { folder, messages } => {
                for (name, body) in messages {
                    for n in 0..times {
                        // The name is `<time>-<writer>.<kind>.msg`: as though by other writers.
                        let (time, rest) = name.split_once('-').unwrap();
                        let kind = rest.split_once('.').unwrap().1;
                        let name = format!("{time}-{:08x}.{kind}", rand::random::<u32>() ^ n);
                        std::fs::write(folder.join(format!(".{name}.test")), body).unwrap();
                        std::fs::rename(folder.join(format!(".{name}.test")), folder.join(name))
                            .unwrap();
                    }
                }
            }
        }
    }
}

async fn connect() -> (Connection, Channel) {
    let url = services::amqp_url();
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// Reads as a consumer that never acknowledges: with its connection all goes back into the queue.
async fn look(queue: &str) -> Vec<(BasicProperties, Vec<u8>)> {
    let (connection, channel) = connect().await;
    let options = BasicConsumeOptions::default();
    let mut consumer = channel
        .basic_consume(queue.into(), "test".into(), options, FieldTable::default())
        .await
        .unwrap();
    let mut messages = Vec::new();
    while let Ok(Some(delivery)) = tokio::time::timeout(QUIET, consumer.next()).await {
        let delivery = delivery.unwrap();
        messages.push((delivery.properties, delivery.data));
    }
    connection.close(200, "".into()).await.unwrap();
    messages
}

async fn put(queue: &str, messages: &[(BasicProperties, Vec<u8>)], times: u32) {
    let (connection, channel) = connect().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    for _ in 0..times {
        for (properties, body) in messages {
            let confirm = channel
                .basic_publish(
                    "".into(),
                    queue.into(),
                    BasicPublishOptions { mandatory: true, ..Default::default() },
                    body,
                    properties.clone(),
                )
                .await
                .unwrap()
                .await
                .unwrap();
            assert!(confirm.is_ack(), "{confirm:?}");
        }
    }
    connection.close(200, "".into()).await.unwrap();
}
