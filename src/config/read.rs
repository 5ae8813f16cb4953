//! Reads a configuration: the file, what is laid over it, paths, bounds. Every mistake is named.

use std::path::Path;
use std::time::Duration;

use super::Config;
use crate::error::{Error, Result};

/// Settings that have no default, and so no value by which to tell their type: all text.
const OPTIONAL: &[&str] = &[
    "database_url",
    "children_broker_url",
    "parent_broker_url",
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

    fn make_absolute(&mut self) {
        let folder = self.folder.clone();
        let urls = [
            self.database_url.as_mut(),
            Some(&mut self.broker_url),
            self.children_broker_url.as_mut(),
            self.parent_broker_url.as_mut(),
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
        let others = [&self.children_broker_url, &self.parent_broker_url];
        for url in others.into_iter().flatten().chain([&self.broker_url]) {
            check_broker(url)?;
        }
        if let Some(url) = &self.alarm_webhook {
            check_scheme(url, &["http://"], "alarm_webhook")?;
        }
        if let Some(url) = &self.database_url {
            check_scheme(url, &["postgres://", "postgresql://", "sqlite:"], "database_url")?;
        }
        Ok(())
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
    use crate::config::{Policy, QueueType};

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
        assert_eq!(config.classes[0].policy, Some(Policy::DeleteWins));
        let merge = config.merge_settings().unwrap();
        assert_eq!(merge["obs"].0, Policy::DeleteWins);
        assert_eq!(merge["obs"].1, [["unit", "value"]], "sorted, as the root's are");
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
