//! What an administrator, or a disk, may do to a queue.

use std::path::PathBuf;

use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, QueueDeleteOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};

use crate::support::cli::TestServer;
use crate::support::tree::{Broker, Tree, uuid};
use crate::support::{block_on, services};

/// One direction of a link.
pub(super) struct Way {
    queue: String,
    folder: Option<PathBuf>,
}

impl Way {
    /// Of records.
    pub(super) fn records(tree: &Tree, from: &TestServer, to: &TestServer) -> Self {
        Self::named(tree, tree.queue(from, to), tree.spool_folder(from, to))
    }

    /// Of acknowledgements.
    pub(super) fn acks(tree: &Tree, from: &TestServer, to: &TestServer) -> Self {
        let queue = format!("branchline.{}.acks.{}", uuid(to), uuid(from));
        let folder = tree.spool_folder(from, to).with_file_name(&queue);
        Self::named(tree, queue, folder)
    }

    fn named(tree: &Tree, queue: String, folder: PathBuf) -> Self {
        let folder = (tree.mix.broker == Broker::Spool).then_some(folder);
        Self { queue, folder }
    }

    fn files(folder: &PathBuf) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|kind| kind == "msg"));
        files.sort();
        files
    }

    /// Loses all messages that lie in it; how many.
    pub(super) fn purge(&self) -> usize {
        if let Some(folder) = &self.folder {
            let files = Self::files(folder);
            files.iter().for_each(|path| std::fs::remove_file(path).unwrap());
            return files.len();
        }
        block_on(async {
            let (connection, channel) = connect().await;
            let options = QueuePurgeOptions::default();
            let count = channel.queue_purge(self.queue.as_str().into(), options).await.unwrap();
            connection.close(200, "".into()).await.unwrap();
            count as usize
        })
    }

    /// Takes the queue away with all that lies in it.
    pub(super) fn delete(&self) {
        if let Some(folder) = &self.folder {
            return std::fs::remove_dir_all(folder).unwrap();
        }
        block_on(async {
            let (connection, channel) = connect().await;
            let options = QueueDeleteOptions::default();
            channel.queue_delete(self.queue.as_str().into(), options).await.unwrap();
            connection.close(200, "".into()).await.unwrap();
        });
    }

    /// Loses one of the messages that hold records.
    pub(super) fn lose(&self, place: usize) {
        if let Some(folder) = &self.folder {
            let mut files = Self::files(folder);
            files.retain(|path| path.to_string_lossy().ends_with(".records.msg"));
            return std::fs::remove_file(&files[place]).unwrap();
        }
        block_on(async {
            let (connection, channel) = connect().await;
            let mut consumer = channel
                .basic_consume(
                    self.queue.as_str().into(),
                    "test".into(),
                    BasicConsumeOptions::default(),
                    FieldTable::default(),
                )
                .await
                .unwrap();
            let mut seen = 0;
            loop {
                let message = consumer.next().await.expect("a message lies there").unwrap();
                let kind = message.properties.kind().as_ref().map(ToString::to_string);
                seen += usize::from(kind.as_deref() == Some("records"));
                if seen > place {
                    message.ack(BasicAckOptions::default()).await.unwrap();
                    break;
                }
            }
            // With the connection the others go back into the queue.
            connection.close(200, "".into()).await.unwrap();
        });
    }
}

async fn connect() -> (Connection, lapin::Channel) {
    let url = services::amqp_url();
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}
