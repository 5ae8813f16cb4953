//! The command line: a thin layer that reads the configuration, calls the library and prints.
//!
//! Exit status: 0 done; 1 failed; 2 usage or configuration; 3 something is held or differs; 4
//! database or broker out of reach. Passwords and row values are never shown.

mod check;
mod classes;
mod conflicts;
mod demo;
mod exchange;
mod grammar;
mod held;
mod links;
mod metrics;
mod output;
mod records;
mod setup;
mod status;
mod telemetry;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use serde_json::json;

use crate::config::{self, Config};
use crate::error::{Error, Kind, Result};
use crate::server::Server;
use grammar::{Cli, Command, Global};
use output::Output;

/// How a command that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Done.
    Done,
    /// Something is held or differs.
    Differs,
}

/// What every command has.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) out: Output,
    /// Who runs the command, for the audit.
    pub(crate) actor: String,
}

impl Context {
    /// Opens the server.
    pub(crate) async fn server(&self) -> Result<Server> {
        Server::open(self.config.clone(), self.actor.as_str()).await
    }
}

/// Runs one command line. `environment` are the process's variables; nothing else reads them.
#[must_use]
pub fn main(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let out = Output { json: cli.global.json };
    let environment: BTreeMap<String, String> = environment
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    telemetry::start(&cli, environment.get("BRANCHLINE_LOG").map(String::as_str));
    #[cfg(any(feature = "failpoints", debug_assertions))]
    if let Err(error) = faults(&environment) {
        report(&error, out);
        return ExitCode::from(status(error.kind()));
    }
    match run(cli, out, &environment) {
        Ok(End::Done) => ExitCode::SUCCESS,
        Ok(End::Differs) => ExitCode::from(3),
        Err(error) => {
            report(&error, out);
            ExitCode::from(status(error.kind()))
        }
    }
}

/// What a test wants to go wrong in this process.
#[cfg(any(feature = "failpoints", debug_assertions))]
fn faults(environment: &BTreeMap<String, String>) -> Result<()> {
    if let Some(plan) = environment.get("BRANCHLINE_CRASH") {
        crate::failpoint::arm(plan)?;
    }
    match environment.get("BRANCHLINE_CLOCK_SKEW_MS") {
        Some(skew) => crate::failpoint::skew(skew),
        None => Ok(()),
    }
}

/// What each kind of error makes of the exit status.
fn status(kind: Kind) -> u8 {
    match kind {
        Kind::Config => 2,
        Kind::Unreachable => 4,
        Kind::Busy | Kind::Decode | Kind::Constraint | Kind::Failed => 1,
    }
}

fn report(error: &Error, out: Output) {
    if out.json {
        let kind = match error.kind() {
            Kind::Config => "config",
            Kind::Unreachable => "unreachable",
            Kind::Busy => "busy",
            Kind::Decode => "decode",
            Kind::Constraint => "constraint",
            Kind::Failed => "failed",
        };
        out.note(json!({ "error": error.chain(), "kind": kind }).to_string());
    } else {
        out.note(format!("error: {}", error.chain()));
    }
}

fn run(cli: Cli, out: Output, environment: &BTreeMap<String, String>) -> Result<End> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::failed("the runtime does not start").with_source(error))?;
    let context = Context {
        config: configuration(&cli.global, environment)?,
        out,
        actor: actor(environment),
    };
    runtime.block_on(dispatch(cli.command, &cli.global, &context))
}

async fn dispatch(command: Command, global: &Global, context: &Context) -> Result<End> {
    match command {
        Command::Init(arguments) => setup::init(context, &arguments).await,
        Command::Track(arguments) => setup::track(context, arguments).await,
        Command::Untrack(arguments) => setup::untrack(context, arguments).await,
        Command::Invite(arguments) => links::invite(context, &arguments).await,
        Command::Join(arguments) => links::join(context, arguments).await,
        Command::Sync(arguments) => exchange::sync(context, arguments.idle).await,
        Command::Worker(arguments) => exchange::worker(context, arguments.metrics).await,
        Command::Status => status::status(context).await,
        Command::Servers { command } => links::servers(context, command).await,
        Command::Records { command, list } => records::records(context, command, list).await,
        Command::Imports { command, list } => records::imports(context, command, list).await,
        Command::Held { command } => held::held(context, command).await,
        Command::Class { command } => classes::class(context, command).await,
        Command::Cleanup(arguments) => records::cleanup(context, arguments.age).await,
        Command::Check => check::check(context).await,
        Command::Audit { limit } => records::audit(context, limit).await,
        Command::Transmissions { limit } => records::transmissions(context, limit).await,
        Command::Demo(arguments) => demo::demo(context, global, &arguments).await,
        Command::Conflicts { command, list } => conflicts::conflicts(context, command, list).await,
        Command::Verify(_) => later("verify"),
        Command::Export(_) => later("export"),
        Command::Import(_) => later("import"),
        Command::Bench(_) => later("bench"),
    }
}

fn later(command: &str) -> Result<End> {
    Err(Error::config(format!(
        "`{command}` comes with a later release than {}",
        env!("CARGO_PKG_VERSION")
    )))
}

/// The configuration: the file, over it the environment, over that the flags.
fn configuration(global: &Global, environment: &BTreeMap<String, String>) -> Result<Config> {
    let mut overrides = Vec::new();
    for (name, value) in environment {
        let Some(setting) = name.strip_prefix("BRANCHLINE_") else { continue };
        let setting = setting.to_ascii_lowercase();
        if Config::is_setting(&setting) {
            overrides.push((setting, value.clone()));
        }
    }
    let flags = [("database_url", &global.database_url), ("broker_url", &global.broker_url)];
    for (setting, value) in flags {
        if let Some(value) = value {
            overrides.push((setting.to_owned(), value.clone()));
        }
    }
    let named =
        global.config.clone().or_else(|| environment.get("BRANCHLINE_CONFIG").map(Into::into));
    let path = named.as_deref().unwrap_or(Path::new(config::FILE));
    Config::load(path, named.is_some(), &overrides)
}

fn actor(environment: &BTreeMap<String, String>) -> String {
    let name = ["SUDO_USER", "USER", "LOGNAME", "USERNAME"]
        .iter()
        .find_map(|name| environment.get(*name).filter(|value| !value.is_empty()));
    name.cloned().unwrap_or_else(|| "operator".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_overrides_the_file_and_flags_override_both() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.toml");
        std::fs::write(&path, "window = 1\nprefetch = 1\ndatabase_url = \"sqlite:a.db\"").unwrap();
        let line = [
            "branchline",
            "--config",
            path.to_str().unwrap(),
            "--database-url",
            "sqlite:/f.db",
            "status",
        ];
        let cli = Cli::try_parse_from(line).unwrap();
        let environment = [
            ("BRANCHLINE_WINDOW", "2"),
            ("BRANCHLINE_DATABASE_URL", "sqlite:/e.db"),
            ("BRANCHLINE_CRASH", "seal:1"),
        ];
        let environment =
            environment.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let config = configuration(&cli.global, &environment).unwrap();
        assert_eq!((config.window, config.prefetch), (2, 1));
        assert_eq!(config.database_url().unwrap(), "sqlite:/f.db");
    }

    #[test]
    fn each_kind_of_error_has_its_exit_status() {
        assert_eq!(status(Kind::Config), 2);
        assert_eq!(status(Kind::Unreachable), 4);
        assert_eq!(status(Kind::Busy), 1);
        assert_eq!(status(Kind::Failed), 1);
    }
}
