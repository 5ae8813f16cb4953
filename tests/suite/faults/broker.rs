//! What an administrator does to the broker's queues.

use lapin::options::{
    BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
    QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use crate::support::{block_on, services};

async fn connect() -> (Connection, Channel) {
    let url = services::amqp_url();
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// A queue in which messages wait, and how many.
pub(super) fn waiting(queues: &[String]) -> Option<(String, u32)> {
    block_on(async {
        let mut found = None;
        let (connection, mut channel) = connect().await;
        for queue in queues {
            let passive = QueueDeclareOptions { passive: true, ..Default::default() };
            match channel.queue_declare(queue.as_str().into(), passive, FieldTable::default()).await
            {
                Ok(queue) if queue.message_count() > 0 => {
                    found = Some((queue.name().to_string(), queue.message_count()));
                    break;
                }
                Ok(_) => {}
                // A queue that is not there has no messages; the channel is gone with the question.
                Err(_) => channel = connection.create_channel().await.unwrap(),
            }
        }
        let _ = connection.close(200, "".into()).await;
        found
    })
}

/// Puts a message into a queue, past the exchange.
pub(super) fn publish(queue: &str, body: &[u8]) {
    block_on(async {
        let (connection, channel) = connect().await;
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default();
        let confirm =
            channel.basic_publish("".into(), queue.into(), options, body, properties).await;
        confirm.unwrap().await.unwrap();
        let _ = connection.close(200, "".into()).await;
    });
}

/// Throws away what waits in queues.
pub(super) fn purge(queues: &[String]) {
    block_on(async {
        let (connection, mut channel) = connect().await;
        for queue in queues {
            let purged = channel.queue_purge(queue.as_str().into(), QueuePurgeOptions::default());
            if purged.await.is_err() {
                channel = connection.create_channel().await.unwrap();
            }
        }
        let _ = connection.close(200, "".into()).await;
    });
}

/// Deletes queues, under whoever consumes them.
pub(super) fn delete(queues: &[String]) {
    block_on(async {
        let (connection, mut channel) = connect().await;
        for queue in queues {
            let deleted =
                channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default());
            if deleted.await.is_err() {
                channel = connection.create_channel().await.unwrap();
            }
        }
        let _ = connection.close(200, "".into()).await;
    });
}
