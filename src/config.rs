//! What a server is told about itself: `branchline.toml`, the `BRANCHLINE_*` variables that the
//! binary hands over, and flags, in rising order of weight.
//!
//! Every setting has a default, and its unit stands in its name or in its value (`"10m"`). An
//! unknown or misspelt setting is an error, never ignored. Paths in `sqlite:` and `spool:` URLs are
//! relative to the folder of the configuration, and absolute once it is read. The library reads no
//! environment: [`Config::parse`] gets what is to be laid over the file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

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
    /// The longest pause between two attempts to reach a broker. Default 30s.
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
    /// A command run once for each record that becomes held, with the facts as JSON on its standard
    /// input. No default.
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
    /// How concurrent edits merge. Default `columns`. The root's setting holds for the whole tree.
    #[serde(default)]
    pub policy: Policy,
    /// Columns that win or lose together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Vec<String>>,
}

pub use crate::merge::Policy;

impl Default for Config {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            database_url: None,
            broker_url: "spool:spool".to_owned(),
            children_broker_url: None,
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
            reconnect_max: seconds(30),
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

/// Settings that have no default, and so no value by which to tell their type: all text.
const OPTIONAL: &[&str] = &[
    "database_url",
    "children_broker_url",
    "tls_ca_file",
    "tls_certificate_file",
    "tls_key_file",
    "alarm_command",
    "alarm_webhook",
];

impl Config {
    /// Reads the file at `path`, which may be missing when `required` is not set, and lays
    /// `overrides` (setting, text) over it, later ones over earlier ones.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config), naming the file and the setting.
    pub fn load(path: &Path, required: bool, overrides: &[(String, String)]) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => {
                String::new()
            }
            Err(error) => {
                return Err(Error::config(format!(
                    "cannot read the configuration `{}`",
                    path.display()
                ))
                .with_source(error));
            }
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = std::path::absolute(folder.unwrap_or(Path::new("."))).map_err(|error| {
            Error::config("the current folder cannot be told").with_source(error)
        })?;
        Self::parse(&text, &folder, overrides).map_err(|error| {
            if text.is_empty() {
                return error;
            }
            error.context(format!("`{}` is no good configuration", path.display()))
        })
    }

    /// Reads a configuration from `text`; `folder` is what its paths are relative to.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config), naming the setting.
    pub fn parse(text: &str, folder: &Path, overrides: &[(String, String)]) -> Result<Self> {
        let mut table: toml::Table =
            text.parse().map_err(|error: toml::de::Error| Error::config(readable(&error)))?;
        for (name, value) in overrides {
            let value = typed(name, value)?;
            table.insert(name.clone(), value);
        }
        // With nothing laid over, the text itself is read, so that an error has a line number.
        let read: std::result::Result<Self, toml::de::Error> =
            if overrides.is_empty() { toml::from_str(text) } else { table.try_into() };
        let mut config = read.map_err(|error| Error::config(readable(&error)))?;
        config.folder = folder.to_owned();
        config.make_absolute();
        config.check()?;
        Ok(config)
    }

    /// Whether `name` is a setting that one text can say: what the environment may override.
    #[must_use]
    pub fn is_setting(name: &str) -> bool {
        OPTIONAL.contains(&name) || defaults().contains_key(name)
    }

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

    fn make_absolute(&mut self) {
        let folder = self.folder.clone();
        let urls = [
            self.database_url.as_mut(),
            Some(&mut self.broker_url),
            self.children_broker_url.as_mut(),
        ];
        for url in urls.into_iter().flatten() {
            *url = absolute(url, &folder);
        }
        let files = [&mut self.tls_ca_file, &mut self.tls_certificate_file, &mut self.tls_key_file];
        for file in files.into_iter().flatten() {
            *file = folder.join(&*file);
        }
    }

    fn check(&self) -> Result<()> {
        use crate::record::limits;
        let bounds: [(&str, u64, u64, u64); 10] = [
            ("batch_records_max", self.batch_records_max as u64, 1, limits::RECORDS_MAX as u64),
            (
                "batch_bytes_max",
                self.batch_bytes_max as u64,
                1024,
                limits::DECODED_BYTES_MAX as u64,
            ),
            ("part_items_max", self.part_items_max as u64, 1, limits::ITEMS_MAX as u64),
            ("window", self.window as u64, 1, 65_535),
            ("prefetch", self.prefetch.into(), 1, 65_535),
            ("unacknowledged_max", self.unacknowledged_max as u64, 1, 1 << 32),
            ("seal_changes_max", self.seal_changes_max as u64, 1, 1 << 32),
            ("connections_max", self.connections_max as u64, 2, 1_000),
            ("spool_bytes_max", self.spool_bytes_max, 1 << 20, 1 << 50),
            ("queue_bytes_max", self.queue_bytes_max, 1 << 20, 1 << 50),
        ];
        for (name, value, least, most) in bounds {
            if value < least || value > most {
                return Err(Error::config(format!(
                    "`{name}` is {value}; it must be from {least} to {most}"
                )));
            }
        }
        if !(0..=19).contains(&self.zstd_level) {
            return Err(Error::config("`zstd_level` must be from 0 to 19"));
        }
        let waits = [
            ("poll_every", self.poll_every),
            ("hello_every", self.hello_every),
            ("resend_after", self.resend_after),
        ];
        for (name, wait) in waits {
            if wait < Duration::from_millis(1) {
                return Err(Error::config(format!("`{name}` must be at least 1ms")));
            }
        }
        for url in [Some(self.broker_url.as_str()), self.children_broker_url.as_deref()] {
            check_broker(url.unwrap_or("spool:."))?;
        }
        if let Some(url) = &self.database_url {
            check_scheme(url, &["postgres://", "postgresql://", "sqlite:"], "database_url")?;
        }
        Ok(())
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

/// Whether a broker address is one that we can use.
///
/// # Errors
/// [`Config`](crate::Kind::Config), saying what it must begin with.
pub fn check_broker(url: &str) -> Result<()> {
    check_scheme(url, &["amqp://", "amqps://", "spool:"], "broker_url")
}

fn check_scheme(url: &str, schemes: &[&str], name: &str) -> Result<()> {
    if schemes.iter().any(|scheme| url.starts_with(scheme)) {
        return Ok(());
    }
    let list = schemes.iter().map(|scheme| format!("`{scheme}`")).collect::<Vec<_>>().join(", ");
    Err(Error::config(format!("`{name}` must begin with one of {list}")))
}

/// `sqlite:` and `spool:` paths, seen from `folder`.
fn absolute(url: &str, folder: &Path) -> String {
    for scheme in ["sqlite:", "spool:"] {
        let Some(path) = url.strip_prefix(scheme) else { continue };
        let path = path.strip_prefix("//").unwrap_or(path);
        return format!("{scheme}{}", folder.join(path).display());
    }
    url.to_owned()
}

fn defaults() -> toml::Table {
    toml::Table::try_from(Config::default()).unwrap_or_default()
}

/// The text of an override as the type that its setting has.
fn typed(name: &str, text: &str) -> Result<toml::Value> {
    let wrong = |what: &str| Error::config(format!("`{name}` must be {what}"));
    if OPTIONAL.contains(&name) {
        return Ok(toml::Value::String(text.to_owned()));
    }
    match defaults().get(name) {
        Some(toml::Value::Integer(_)) => {
            text.trim().parse().map(toml::Value::Integer).map_err(|_| wrong("a whole number"))
        }
        Some(toml::Value::Boolean(_)) => {
            text.trim().parse().map(toml::Value::Boolean).map_err(|_| wrong("true or false"))
        }
        Some(_) => Ok(toml::Value::String(text.to_owned())),
        None => Err(Error::config(format!("there is no setting `{name}`"))),
    }
}

/// The error on one line. The line of the file that it quotes may hold a password: it stays out.
fn readable(error: &toml::de::Error) -> String {
    error.message().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, overrides: &[(&str, &str)]) -> Result<Config> {
        let overrides: Vec<_> =
            overrides.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Config::parse(text, Path::new("/srv/clinic"), &overrides)
    }

    #[test]
    fn an_empty_file_has_all_defaults() {
        let config = parse("", &[]).unwrap();
        assert_eq!(config.poll_every, Duration::from_millis(200));
        assert_eq!(config.broker_url, "spool:/srv/clinic/spool");
        assert_eq!(config.address_for_children(), config.broker_url);
        assert!(config.database_url().unwrap_err().to_string().contains("--database-url"));
    }

    #[test]
    fn a_whole_file_is_read() {
        let config = parse(
            r#"
            database_url = "sqlite:data/clinic.db"
            broker_url = "amqp://u:p@h/v"
            resend_after = "90s"
            queue_type = "classic"
            [[reference]]
            table = "orders"
            column = "concept_id"
            target = "concept"
            [[reference]]
            table = "attribute"
            column = "value"
            target = "concept"
            when = "{row}.kind = 'concept'"
            [[plain]]
            table = "visit"
            column = "external_id"
            [[class]]
            name = "obs"
            policy = "delete-wins"
            groups = [["value", "unit"]]
            "#,
            &[],
        )
        .unwrap();
        assert_eq!(config.database_url().unwrap(), "sqlite:/srv/clinic/data/clinic.db");
        assert_eq!(config.resend_after, Duration::from_secs(90));
        assert_eq!(config.queue_type, QueueType::Classic);
        assert_eq!(config.references.len(), 2);
        assert_eq!(config.classes[0].policy, Policy::DeleteWins);
        assert!(!format!("{config:?}").contains(":p@"));
    }

    #[test]
    fn overrides_win_over_the_file_and_keep_their_type() {
        let text = "window = 5\ndatabase_url = \"sqlite:a.db\"";
        let config = parse(
            text,
            &[("window", "7"), ("hello_every", "1s"), ("database_url", "sqlite:/b.db")],
        )
        .unwrap();
        assert_eq!(config.window, 7);
        assert_eq!(config.hello_every, Duration::from_secs(1));
        assert_eq!(config.database_url().unwrap(), "sqlite:/b.db");
    }

    #[test]
    fn mistakes_are_named() {
        type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);
        let cases: &[Case<'_>] = &[
            ("windw = 5", &[], "windw"),
            ("window = \"many\"", &[], "expected usize"),
            ("window = 0", &[], "`window` is 0"),
            ("poll_every = \"soon\"", &[], "duration"),
            ("zstd_level = 40", &[], "`zstd_level`"),
            ("broker_url = \"http://x\"", &[], "`amqp://`"),
            ("database_url = \"mysql://x\"", &[], "`postgres://`"),
            ("[[reference]]\ntable = \"a\"", &[], "missing field"),
            ("", &[("window", "x")], "`window` must be a whole number"),
            ("", &[("nothing", "x")], "no setting `nothing`"),
            ("x = [", &[], ""),
        ];
        for (text, overrides, expected) in cases {
            let error = parse(text, overrides).expect_err(text);
            assert_eq!(error.kind(), crate::Kind::Config, "{text}");
            assert!(error.chain().contains(expected), "{text}: {}", error.chain());
        }
    }

    #[test]
    fn a_missing_file_counts_only_when_it_was_asked_for() {
        let path = Path::new("/nonexistent/branchline.toml");
        assert!(Config::load(path, false, &[]).is_ok());
        assert!(Config::load(path, true, &[]).is_err());
    }

    #[test]
    fn every_setting_can_be_overridden_by_its_name() {
        for name in ["window", "poll_every", "alarm_command", "broker_url", "queue_type"] {
            assert!(Config::is_setting(name), "{name}");
        }
        assert!(!Config::is_setting("reference"));
        assert!(!Config::is_setting("crash"));
    }
}
