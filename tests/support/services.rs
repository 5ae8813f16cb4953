//! Where the real services are, and databases on them for one test each.
//!
//! `cargo test` does its own set-up. For PostgreSQL and RabbitMQ each, the first of these that
//! works is taken, once for each test process, when a test first asks:
//!
//! 1. the address in `BRANCHLINE_TEST_DATABASE_URL` or `BRANCHLINE_TEST_AMQP_URL`; when it is set
//!    and does not answer, the tests fail,
//! 2. what answers on the standard local port, unless `BRANCHLINE_TEST_PRIVATE` is set,
//! 3. one of our own, made from installed programs in a temporary folder (see [`private`]),
//! 4. the same after installing them: `apt-get` as root; or a container by `docker compose`.
//!
//! Otherwise the test fails and says what would help. A missing service never passes a test.

mod install;
mod postgres;
mod private;
mod programs;
mod rabbitmq;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

pub(crate) use self::postgres::{chain, connect};
use super::block_on;

/// Why a service is not to be had this way.
type Failure = String;

/// A database on the PostgreSQL server from which databases can be created.
pub(crate) fn postgres_url() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| postgres::SERVICE.find())
}

/// The RabbitMQ broker.
pub(crate) fn amqp_url() -> &'static str {
    static URL: OnceLock<String> = OnceLock::new();
    URL.get_or_init(|| rabbitmq::SERVICE.find())
}

/// One kind of service, and the ways to it.
struct Service {
    name: &'static str,
    /// The variable that names one.
    variable: &'static str,
    /// Addresses where it may stand on this machine.
    standard: fn() -> Vec<String>,
    /// Whether it answers there and lets us in.
    answers: fn(&str) -> Result<(), Failure>,
    /// Starts one in an empty folder, and says how it is ended before anything runs for long.
    start: fn(&std::path::Path, &mut private::Stop) -> Result<String, Failure>,
    /// Its Debian package, and its name in `docker-compose.yml`.
    package: &'static str,
    compose: &'static str,
}

impl Service {
    fn find(&self) -> String {
        let mut failures = Vec::new();
        if let Ok(url) = std::env::var(self.variable) {
            match (self.answers)(&url) {
                Ok(()) => return url,
                Err(failure) => panic!("{} in {} does not do: {failure}", self.name, self.variable),
            }
        }
        if std::env::var_os("BRANCHLINE_TEST_PRIVATE").is_none() {
            match self.standard() {
                Ok(url) => return url,
                Err(failure) => failures.push(failure),
            }
        }
        type Way = fn(&Service) -> Result<String, Failure>;
        let ways: [(&str, Way); 3] = [
            ("one of our own", |service| private::url(service)),
            ("after installing it", |service| {
                install::apt(service.package)?;
                private::url(service)
            }),
            ("in a container", |service| {
                install::compose(service.compose)?;
                service.standard()
            }),
        ];
        for (what, way) in ways {
            match way(self) {
                Ok(url) => return url,
                Err(failure) => failures.push(format!("{what}: {failure}")),
            }
        }
        panic!(
            "these tests need {}, and there is none:\n  {}\nInstall it (`sudo apt-get install {}`), \
             or start one (`docker compose up --detach --wait {}`), or name one in {}.",
            self.name,
            failures.join("\n  "),
            self.package,
            self.compose,
            self.variable
        );
    }

    fn standard(&self) -> Result<String, Failure> {
        let mut failures = Vec::new();
        for url in (self.standard)() {
            match (self.answers)(&url) {
                Ok(()) => return Ok(url),
                Err(failure) => failures.push(failure),
            }
        }
        Err(format!("on the standard port: {}", failures.join("; ")))
    }
}

/// A database that one test has to itself; gone when this is dropped.
pub(crate) struct TestDatabase {
    url: String,
    place: Place,
    /// What it was copied from, which is kept as long as there are copies.
    _template: Option<Arc<TestDatabase>>,
}

enum Place {
    Postgres { name: String },
    Sqlite { path: PathBuf, _folder: tempfile::TempDir },
}

/// An empty PostgreSQL database.
pub(crate) fn new_database(prefix: &str) -> TestDatabase {
    postgres_database(prefix, "template0")
}

fn postgres_database(prefix: &str, template: &str) -> TestDatabase {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    if number == 0 {
        block_on(postgres::sweep(postgres_url()));
    }
    // PostgreSQL cuts names at 63 bytes.
    let prefix: String = prefix.chars().filter(|c| c.is_ascii_alphanumeric()).take(24).collect();
    let name = format!("branchline_test_{prefix}_{}_{number}", std::process::id()).to_lowercase();
    let sql = format!("CREATE DATABASE {name} TEMPLATE {template}");
    block_on(postgres::execute(postgres_url(), &sql))
        .unwrap_or_else(|failure| panic!("{sql}: {failure}"));
    let mut url = url::Url::parse(postgres_url()).unwrap();
    url.set_path(&name);
    TestDatabase { url: url.into(), place: Place::Postgres { name }, _template: None }
}

/// An empty SQLite database in a folder of its own.
pub(crate) fn new_sqlite(prefix: &str) -> TestDatabase {
    let folder = tempfile::Builder::new().prefix("branchline-test-").tempdir().unwrap();
    let path = folder.path().join(format!("{prefix}.db"));
    let url = format!("sqlite:{}", path.display());
    TestDatabase { url, place: Place::Sqlite { path, _folder: folder }, _template: None }
}

/// A database that begins as a copy of `template`, which nobody may be connected to.
pub(crate) fn copy_database(prefix: &str, template: &Arc<TestDatabase>) -> TestDatabase {
    let mut copy = match &template.place {
        Place::Postgres { name } => postgres_database(prefix, name),
        Place::Sqlite { path, .. } => {
            let copy = new_sqlite(prefix);
            std::fs::copy(path, copy.path().unwrap()).unwrap();
            copy
        }
    };
    copy._template = Some(template.clone());
    copy
}

impl TestDatabase {
    /// As `database_url` in `branchline.toml`.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The file, of a SQLite database.
    pub(crate) fn path(&self) -> Option<&std::path::Path> {
        match &self.place {
            Place::Postgres { .. } => None,
            Place::Sqlite { path, .. } => Some(path),
        }
    }
}

impl TestDatabase {
    /// A copy of it as it is now. Nobody may be connected.
    pub(crate) fn copied(&self, prefix: &str) -> Self {
        match &self.place {
            Place::Postgres { name } => postgres_database(prefix, name),
            Place::Sqlite { path, .. } => {
                let copy = new_sqlite(prefix);
                copy_sqlite(path, copy.path().unwrap());
                copy
            }
        }
    }

    /// Puts it back to what `backup` is. Nobody may be connected.
    pub(crate) fn put_back(&self, backup: &Self) {
        match (&self.place, &backup.place) {
            (Place::Postgres { name }, Place::Postgres { name: from }) => {
                for sql in [
                    format!("DROP DATABASE {name} WITH (FORCE)"),
                    format!("CREATE DATABASE {name} TEMPLATE {from}"),
                ] {
                    block_on(postgres::execute(postgres_url(), &sql))
                        .unwrap_or_else(|failure| panic!("{sql}: {failure}"));
                }
            }
            (Place::Sqlite { path, .. }, Place::Sqlite { path: from, .. }) => {
                copy_sqlite(from, path);
            }
            _ => panic!("a backup is of the same kind"),
        }
    }
}

/// Copies a SQLite database with what its write-ahead log holds.
fn copy_sqlite(from: &std::path::Path, to: &std::path::Path) {
    for end in ["", "-wal", "-shm"] {
        let with = |path: &std::path::Path| PathBuf::from(format!("{}{end}", path.display()));
        let (from, to) = (with(from), with(to));
        if from.exists() {
            std::fs::copy(from, to).unwrap();
        } else {
            let _ = std::fs::remove_file(to);
        }
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let Place::Postgres { name } = &self.place else { return };
        let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        if let Err(failure) = block_on(postgres::execute(postgres_url(), &sql)) {
            eprintln!("{sql}: {failure}");
        }
    }
}

mod tests {
    use super::*;

    #[test]
    fn a_copied_database_has_what_its_template_had_and_goes_away_with_it() {
        let template = Arc::new(new_database("own"));
        block_on(postgres::execute(template.url(), "CREATE TABLE a (b int)")).unwrap();
        let copy = copy_database("copy", &template);
        let (gone, url) = (template.url().to_owned(), copy.url().to_owned());
        drop(template);
        block_on(postgres::execute(&url, "INSERT INTO a VALUES (1)")).unwrap();
        drop(copy);
        for url in [gone, url] {
            let failure = block_on(postgres::execute(&url, "SELECT 1")).unwrap_err();
            assert!(failure.contains("does not exist"), "{failure}");
        }
    }

    #[test]
    fn the_broker_answers() {
        (rabbitmq::SERVICE.answers)(amqp_url()).unwrap();
    }
}
