//! What a server is told about itself: `branchline.toml`, the `BRANCHLINE_*` variables that the
//! binary hands over, and flags, in rising order of weight.
//!
//! Every setting has a default, and its unit stands in its name or in its value (`"10m"`). An
//! unknown or misspelt setting is an error, never ignored. Paths in `sqlite:` and `spool:` URLs are
//! relative to the folder of the configuration, and absolute once it is read. The library reads no
//! environment: [`Config::parse`] gets what is to be laid over the file.

mod read;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::read::check_broker;
use crate::catalog::decide::{NewReference, Request};
use crate::error::{Error, Result};
use crate::store::{Limits, without_password};
use crate::transport::{QueueType, Settings};

/// The name of the configuration file, looked for in the current folder.
pub const FILE: &str = "branchline.toml";

/// All settings. See each field for its meaning, unit and default.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The server's database: `postgres://…` or `sqlite:PATH`. No default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database_url: Option<String>,
    /// The broker of this server's links to its **children**: `amqp://…`, `amqps://…` or
    /// `spool:DIR`. (A child learns its parent's from the token.) Default: the folder `spool`
    /// beside the configuration.
    pub broker_url: String,
    /// What a token tells children when they reach the same broker by another address (behind a
    /// gateway, with a login of their own). Default: `broker_url`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub children_broker_url: Option<String>,

    /// The broker of the link to the **parent**, where it is not the token's any more: the parent has
    /// moved to another one. No default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_broker_url: Option<String>,

    /// How often to look for changes of writers that do not wake the relay. Default 200ms.
    #[serde(with = "humantime_serde")]
    pub poll_every: Duration,
    /// Without an acknowledgement for this long, a record is sent again; the time doubles with
    /// each attempt, up to a day. Default 10m.
    #[serde(with = "humantime_serde")]
    pub resend_after: Duration,
    /// How often neighbours say hello. Default 60s.
    #[serde(with = "humantime_serde")]
    pub hello_every: Duration,
    /// Records in one message. Default 500, at most 4096.
    pub batch_records_max: usize,
    /// Bytes of records in one message, before compression. Default 262144, at most 8 MiB.
    pub batch_bytes_max: usize,
    /// Items in one part of a big transaction. Default 2000, at most 10000.
    pub part_items_max: usize,
    /// Messages published and not yet confirmed, for each broker. Default 256.
    pub window: usize,
    /// Messages that a broker hands over before they are acknowledged, for each queue. Default 32.
    pub prefetch: u16,
    /// Messages of one link that are sent and not yet acknowledged by the receiver. Default 4096.
    pub unacknowledged_max: usize,
    /// SQLite without marks: changes this far apart belong to different records. Default 10s.
    #[serde(with = "humantime_serde")]
    pub sqlite_gap: Duration,
    /// Changes sealed in one transaction. Default 5000.
    pub seal_changes_max: usize,
    /// How often a held record is tried again on the schedule, before only a cause does. Default 20.
    pub retries_max: u32,
    /// The first wait before a held record is tried again; doubles each time. Default 5s.
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,
    /// How often to clean up; `0s`: only by the command. Default 7days.
    #[serde(with = "humantime_serde")]
    pub cleanup_every: Duration,
    /// Records younger than this are kept by the cleanup. Default 28days.
    #[serde(with = "humantime_serde")]
    pub cleanup_age: Duration,
    /// Bytes that one spool queue may hold before it refuses more. Default 1 GiB.
    pub spool_bytes_max: u64,
    /// RabbitMQ: `quorum` or `classic`. Default quorum.
    pub queue_type: QueueType,
    /// RabbitMQ: bytes that a queue may hold before it refuses more. Default 1 GiB.
    pub queue_bytes_max: u64,
    /// How long the broker may take to confirm a message. Default 10s.
    #[serde(with = "humantime_serde")]
    pub confirm_within: Duration,
    /// The longest pause between two attempts to reach a broker. Default 8s.
    #[serde(with = "humantime_serde")]
    pub reconnect_max: Duration,
    /// RabbitMQ: seconds between heartbeats. Default 10.
    pub heartbeat_seconds: u16,
    /// How often to look at a spool folder while nothing is there. Default 50ms.
    #[serde(with = "humantime_serde")]
    pub spool_poll_every: Duration,
    /// `amqps`: certificates (PEM) that are trusted beside the system's. No default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca_file: Option<PathBuf>,
    /// `amqps`: our own certificate (PEM), for a broker that asks for one. No default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificate_file: Option<PathBuf>,
    /// `amqps`: the key of that certificate (PEM). No default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key_file: Option<PathBuf>,
    /// PostgreSQL connections of one process. Default 8.
    pub connections_max: usize,
    /// How long to wait for a connection to the database or the broker. Default 10s.
    #[serde(with = "humantime_serde")]
    pub connect_within: Duration,
    /// How long one database statement may take. Default 10m.
    #[serde(with = "humantime_serde")]
    pub statement_within: Duration,
    /// How long to wait for a lock; on PostgreSQL below its `deadlock_timeout`. Default 700ms.
    #[serde(with = "humantime_serde")]
    pub lock_within: Duration,
    /// SQLite: an apply transaction is cut after this long, except within a record. Default 50ms.
    #[serde(with = "humantime_serde")]
    pub sqlite_apply_within: Duration,
    /// How hard to compress, 1 to 19; 0: not at all. Default 3.
    pub zstd_level: i32,
    /// A stamp this far ahead of our clock is taken, with an alarm. Default 1m.
    #[serde(with = "humantime_serde")]
    pub clock_skew_alarm: Duration,
    /// A stamp this far ahead of our clock is held. Default 1day.
    #[serde(with = "humantime_serde")]
    pub clock_skew_hold: Duration,
    /// A command run for each alarm (a record is held, a disk is full …), once each, as its words
    /// stand and without a shell, with the facts as JSON on its standard input. No default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alarm_command: Option<String>,
    /// An `http://` address that gets the same by POST. No default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alarm_webhook: Option<String>,

    /// References that the database does not declare.
    #[serde(rename = "reference", skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<Reference>,
    /// Integer columns that look like references and are none.
    #[serde(rename = "plain", skip_serializing_if = "Vec::is_empty")]
    pub plain: Vec<Plain>,
    /// Settings of single classes.
    #[serde(rename = "class", skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassSettings>,

    /// The folder of the configuration.
    #[serde(skip)]
    pub folder: PathBuf,
}

/// A reference that the database does not declare (`[[reference]]`). Several may name one column,
/// each with its own `when`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// The class that refers.
    pub table: String,
    /// Its column, which holds the local id of a row of `target`.
    pub column: String,
    /// The class that is referred to.
    pub target: String,
    /// For which rows: an SQL condition in which `{row}` stands for the captured row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
}

/// A column that looks like a reference and is none (`[[plain]]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plain {
    /// The class.
    pub table: String,
    /// Its column.
    pub column: String,
}

/// Settings of one class (`[[class]]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassSettings {
    /// The class.
    pub name: String,
    /// An SQL expression that yields a new surrogate key, where the column has no default of its
    /// own: `nextval('…')`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// How concurrent edits merge. The root's setting holds for the whole tree (default there:
    /// `columns`): any other server says the same or nothing, else it holds the class's records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Columns that win or lose together. As `policy`, the root's word holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Vec<String>>,
}

pub use crate::merge::Policy;
use crate::merge::tree::Settings as MergeSettings;
use crate::merge::{ClassMerge, MergeConfig};

impl Default for Config {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            database_url: None,
            broker_url: "spool:spool".to_owned(),
            children_broker_url: None,
            parent_broker_url: None,
            poll_every: Duration::from_millis(200),
            resend_after: seconds(600),
            hello_every: seconds(60),
            batch_records_max: 500,
            batch_bytes_max: 256 << 10,
            part_items_max: 2_000,
            window: 256,
            prefetch: 32,
            unacknowledged_max: 4_096,
            sqlite_gap: seconds(10),
            seal_changes_max: 5_000,
            retries_max: 20,
            retry_after: seconds(5),
            cleanup_every: seconds(7 * 86_400),
            cleanup_age: seconds(28 * 86_400),
            spool_bytes_max: 1 << 30,
            queue_type: QueueType::Quorum,
            queue_bytes_max: 1 << 30,
            confirm_within: seconds(10),
            reconnect_max: seconds(8),
            heartbeat_seconds: 10,
            spool_poll_every: Duration::from_millis(50),
            tls_ca_file: None,
            tls_certificate_file: None,
            tls_key_file: None,
            connections_max: 8,
            connect_within: seconds(10),
            statement_within: seconds(600),
            lock_within: Duration::from_millis(700),
            sqlite_apply_within: Duration::from_millis(50),
            zstd_level: 3,
            clock_skew_alarm: seconds(60),
            clock_skew_hold: seconds(86_400),
            alarm_command: None,
            alarm_webhook: None,
            references: Vec::new(),
            plain: Vec::new(),
            classes: Vec::new(),
            folder: PathBuf::from("."),
        }
    }
}

impl Config {
    /// The database's URL.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when none is set.
    pub fn database_url(&self) -> Result<&str> {
        self.database_url.as_deref().ok_or_else(|| {
            Error::config(format!(
                "no database is named: set `database_url` in `{FILE}`, or give --database-url"
            ))
        })
    }

    /// What a token tells a child about the broker.
    #[must_use]
    pub fn address_for_children(&self) -> &str {
        self.children_broker_url.as_deref().unwrap_or(&self.broker_url)
    }

    /// Where the link to a neighbour runs: to the parent by the token's address, unless the
    /// configuration names another; to a child by our own broker.
    #[must_use]
    pub fn broker_of<'a>(&'a self, neighbour: &'a crate::store::books::Neighbour) -> &'a str {
        if neighbour.is_child() {
            return &self.broker_url;
        }
        self.parent_broker_url.as_deref().unwrap_or(&neighbour.address)
    }

    /// The bounds for the database.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            connections_max: self.connections_max,
            connect_within: self.connect_within,
            statement_within: self.statement_within,
            lock_within: self.lock_within,
        }
    }

    /// The bounds for the broker at `url`.
    #[must_use]
    pub fn transport_settings(&self, url: &str) -> Settings {
        let spool = url.starts_with("spool:");
        Settings {
            queue_type: self.queue_type,
            queue_bytes_max: if spool { self.spool_bytes_max } else { self.queue_bytes_max },
            publish_window: self.window,
            connect_timeout: self.connect_within,
            confirm_timeout: self.confirm_within,
            heartbeat_seconds: self.heartbeat_seconds,
            backoff_max: self.reconnect_max,
            tls_ca_file: self.tls_ca_file.clone(),
            tls_certificate_file: self.tls_certificate_file.clone(),
            tls_key_file: self.tls_key_file.clone(),
            spool_poll: self.spool_poll_every,
            ..Settings::default()
        }
    }

    /// What the configuration says of how classes merge.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when a column stands in two groups of its class.
    pub fn merge_settings(&self) -> Result<MergeSettings> {
        let said = self.classes.iter().filter(|c| c.policy.is_some() || !c.groups.is_empty());
        let classes = said.map(|class| {
            let policy = class.policy.unwrap_or_default();
            let groups = class.groups.clone();
            (class.name.clone(), ClassMerge { policy, groups, ..ClassMerge::PLAIN })
        });
        let checked = MergeConfig { classes: classes.collect() }.checked()?;
        let settings = checked.classes.into_iter();
        Ok(settings.map(|(name, class)| (name, (class.policy, class.groups))).collect())
    }

    /// What the configuration says of classes, for `track`.
    #[must_use]
    pub fn track_request(&self) -> Request {
        let references = self.references.iter().map(|one| NewReference {
            table: one.table.clone(),
            column: one.column.clone(),
            target: one.target.clone(),
            when: one.when.clone(),
        });
        let sources =
            self.classes.iter().filter_map(|class| Some((class.name.clone(), class.id.clone()?)));
        Request {
            references: references.collect(),
            plain: self.plain.iter().map(|one| (one.table.clone(), one.column.clone())).collect(),
            id_sources: sources.collect(),
            ..Request::default()
        }
    }
}

/// Passwords stay out of logs and panics.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("database_url", &self.database_url.as_deref().map(without_password))
            .field("broker_url", &without_password(&self.broker_url))
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}
