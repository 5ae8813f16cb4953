//! PostgreSQL: who lets us in, and one of our own.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::private::Stop;
use super::programs::{command, folder_of, id, quote, run, unprivileged, words};
use super::{Failure, Service};
use crate::support::{block_on, free_port};

const ANSWER_WITHIN: Duration = Duration::from_secs(5);

pub(super) const SERVICE: Service = Service {
    name: "PostgreSQL",
    variable: "BRANCHLINE_TEST_DATABASE_URL",
    standard,
    answers: |url| block_on(answers(url)),
    start,
    package: "postgresql",
    compose: "postgres",
};

fn standard() -> Vec<String> {
    let own = id(&["-un"]).unwrap_or_default();
    let users = ["postgres", "postgres:postgres", own.as_str()];
    users.iter().map(|user| format!("postgres://{user}@127.0.0.1:5432/postgres")).collect()
}

async fn answers(url: &str) -> Result<(), Failure> {
    let client = connect(url).await?;
    let may = "SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user";
    let row = client.query_one(may, &[]).await.map_err(|error| chain(&error))?;
    if row.get(0) { Ok(()) } else { Err("the role may not create databases".to_owned()) }
}

/// A connection that lives as long as its client.
pub(crate) async fn connect(url: &str) -> Result<tokio_postgres::Client, Failure> {
    let connecting = tokio_postgres::connect(url, tokio_postgres::NoTls);
    let (client, connection) = tokio::time::timeout(ANSWER_WITHIN, connecting)
        .await
        .map_err(|_| format!("no answer within {ANSWER_WITHIN:?}"))?
        .map_err(|error| chain(&error))?;
    tokio::spawn(connection);
    Ok(client)
}

/// Runs statements on a connection of their own.
pub(super) async fn execute(url: &str, sql: &str) -> Result<(), Failure> {
    connect(url).await?.batch_execute(sql).await.map_err(|error| chain(&error))
}

/// Drops what test processes of this machine left that were killed.
pub(super) async fn sweep(url: &str) {
    let here = url::Url::parse(url)
        .is_ok_and(|url| matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]")));
    let Ok(client) = connect(url).await else { return };
    if !here {
        return;
    }
    let left = "SELECT datname::text FROM pg_database WHERE datname ~ '^branchline_test_[a-z0-9]*_[0-9]+_[0-9]+$'";
    for row in client.query(left, &[]).await.unwrap_or_default() {
        let name: String = row.get(0);
        let pid = name.rsplit('_').nth(1).unwrap_or_default();
        if run(Command::new("kill").args(["-0", pid])).is_err() {
            let _ = client.batch_execute(&format!("DROP DATABASE IF EXISTS {name}")).await;
        }
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Runs initdb and pg_ctl, as somebody without rights when we are root.
fn start(folder: &Path, stop: &mut Stop) -> Result<String, Failure> {
    let bin = folder_of("initdb", &["/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"])?;
    let user = unprivileged()?;
    let user = user.as_deref();
    let data = folder.join("cluster");
    std::fs::create_dir(&data).map_err(|error| format!("`{}`: {error}", data.display()))?;
    if let Some(user) = user {
        run(Command::new("chown").arg(user).arg(folder).arg(&data))?;
    }
    let data = data.display().to_string();
    let init = ["-D", &data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"];
    // The working folder may be closed to that user.
    run(command(&words(user, &bin.join("initdb"), &init)).current_dir(folder))?;

    let port = free_port();
    let log = folder.join("log").display().to_string();
    let settings = format!(
        "-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off \
         -c max_connections=300 -c shared_buffers=64MB -c max_prepared_transactions=20"
    );
    let control = bin.join("pg_ctl");
    let end = words(user, &control, &["-D", &data, "-m", "immediate", "stop"]);
    let end: Vec<_> = end.iter().map(|word| quote(word)).collect();
    stop.also(&format!("cd {} && {}", quote(&folder.display().to_string()), end.join(" ")))?;
    let arguments = ["-D", &data, "-l", &log, "-w", "-t", "60", "-o", &settings, "start"];
    let status = command(&words(user, &control, &arguments))
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null()) // a pipe would stay open with the server
        .stderr(Stdio::null())
        .status();
    if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        return Err(format!("`pg_ctl start` failed ({status:?}): {}", log.trim()));
    }
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    block_on(answers(&url))?;
    Ok(url)
}
