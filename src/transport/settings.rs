//! The bounds and waits of a transport, each with its default.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::record::limits;

/// Bytes of a published body: a message of the wire with its fixed header. A larger one is
/// refused before it reaches the broker, which would close the channel over it.
pub const BODY_BYTES_MAX: usize = limits::MESSAGE_BYTES_MAX + HEADER_BYTES_MAX;

/// Room for the fixed header in front of a message.
const HEADER_BYTES_MAX: usize = 256;

/// Of which kind a queue is made at the broker. One that is there already is taken as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueType {
    /// Replicated over the nodes of a cluster.
    #[default]
    Quorum,
    /// On one node; as safe as quorum where the broker has one node only.
    Classic,
}

/// What can be tuned about a transport.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Of which kind queues are made (default `quorum`).
    pub queue_type: QueueType,
    /// How many bytes a queue may hold before it refuses more, so that one dead server cannot
    /// fill the disk (default 1 GiB). At a broker it counts for queues made from now on.
    pub queue_bytes_max: u64,
    /// Messages that may wait for their confirm at once (default 256).
    pub publish_window: usize,
    /// How long connecting may take, TLS and login included (default 10 s).
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long handing messages to the socket may take, beyond what a slow line needs for their
    /// bytes (default 5 s).
    #[serde(with = "humantime_serde")]
    pub publish_timeout: Duration,
    /// How long the broker may take to confirm, beyond what a slow line needs (default 10 s).
    #[serde(with = "humantime_serde")]
    pub confirm_timeout: Duration,
    /// How long an acknowledgement or a declaration may take (default 5 s).
    #[serde(with = "humantime_serde")]
    pub acknowledge_timeout: Duration,
    /// How long closing may take before the connection is cut (default 2 s).
    #[serde(with = "humantime_serde")]
    pub close_timeout: Duration,
    /// Seconds between heartbeats; a broker silent for twice as long is taken for dead (default
    /// 10).
    pub heartbeat_seconds: u16,
    /// The first pause after a lost connection, before jitter (default 500 ms).
    #[serde(with = "humantime_serde")]
    pub backoff_min: Duration,
    /// The longest pause between two attempts to connect (default 30 s).
    #[serde(with = "humantime_serde")]
    pub backoff_max: Duration,
    /// Certificates, as PEM, that are trusted beside the system's (`amqps`).
    pub tls_ca_file: Option<PathBuf>,
    /// Our own certificate, as PEM, for a broker that asks for one (`amqps`).
    pub tls_certificate_file: Option<PathBuf>,
    /// The key of that certificate, as PEM.
    pub tls_key_file: Option<PathBuf>,
    /// How often a spool directory is looked at while nothing is there (default 50 ms).
    #[serde(with = "humantime_serde")]
    pub spool_poll: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            queue_type: QueueType::Quorum,
            queue_bytes_max: 1 << 30,
            publish_window: 256,
            connect_timeout: Duration::from_secs(10),
            publish_timeout: Duration::from_secs(5),
            confirm_timeout: Duration::from_secs(10),
            acknowledge_timeout: Duration::from_secs(5),
            close_timeout: Duration::from_secs(2),
            heartbeat_seconds: 10,
            backoff_min: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            tls_ca_file: None,
            tls_certificate_file: None,
            tls_key_file: None,
            spool_poll: Duration::from_millis(50),
        }
    }
}
