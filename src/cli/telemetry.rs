//! The log: to standard error, as much as asked for.

use tracing_subscriber::EnvFilter;

use super::grammar::{Cli, Command, LogFormat};

/// Starts the log. `filter` (`BRANCHLINE_LOG`) wins over `-v`.
pub(crate) fn start(cli: &Cli, filter: Option<&str>) {
    // lapin reports as errors what is asked for and expected: a queue that is not there yet. What
    // matters of its errors comes back to us.
    let usual = match (cli.global.verbose, &cli.command) {
        (0, Command::Worker(_)) => "warn,lapin=off,branchline=info",
        // It draws its own picture of what goes on.
        (0, Command::Demo(_)) => "off",
        (0, _) => "error,lapin=off,branchline=warn",
        (1, _) => "warn,lapin=off,branchline=debug",
        _ => "info,branchline=trace",
    };
    let parsed = filter.map(EnvFilter::try_new);
    let filter = match parsed {
        Some(Ok(filter)) => filter,
        _ => EnvFilter::new(usual),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Set already where a test runs two commands in one process.
    let _ = match cli.global.log_format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => {
            use std::io::IsTerminal as _;
            builder.with_ansi(std::io::stderr().is_terminal()).try_init()
        }
    };
}
