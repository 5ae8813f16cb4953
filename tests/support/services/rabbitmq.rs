//! RabbitMQ: who lets us in, and one of our own, with an epmd of its own.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lapin::{Connection, ConnectionProperties};

use super::private::Stop;
use super::programs::folder_of;
use super::{Failure, Service};
use crate::support::{block_on, free_port};

const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const START_WITHIN: Duration = Duration::from_secs(120);

pub(super) const SERVICE: Service = Service {
    name: "RabbitMQ",
    variable: "BRANCHLINE_TEST_AMQP_URL",
    standard: || vec!["amqp://guest:guest@127.0.0.1:5672/%2f".to_owned()],
    answers: |url| block_on(answers(url)),
    start,
    package: "rabbitmq-server",
    compose: "rabbitmq",
};

async fn answers(url: &str) -> Result<(), Failure> {
    let talk = async {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        // Held: dropped it would be closing while the connection closes, an error.
        let channel = connection.create_channel().await?;
        channel.close(200, "".into()).await?;
        connection.close(200, "".into()).await
    };
    match tokio::time::timeout(ANSWER_WITHIN, talk).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(super::postgres::chain(&error)),
        Err(_) => Err(format!("no answer within {ANSWER_WITHIN:?}")),
    }
}

fn start(folder: &Path, stop: &mut Stop) -> Result<String, Failure> {
    // Not Debian's wrapper, which serves one folder and one user only.
    let installed = ["/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin", "/opt/rabbitmq/sbin"];
    let sbin = folder_of("rabbitmq-server", &installed)?;
    let (port, distribution, epmd) = (free_port(), free_port(), free_port());
    let failed = |error: std::io::Error| format!("`{}`: {error}", folder.display());
    let configuration = "disk_free_limit.absolute = 50MB\nraft.wal_max_size_bytes = 67108864\n";
    std::fs::write(folder.join("rabbitmq.conf"), configuration).map_err(failed)?;
    std::fs::write(folder.join("enabled_plugins"), "[].\n").map_err(failed)?;
    std::fs::write(folder.join("env.conf"), "").map_err(failed)?;

    let mapper = folder_of("epmd", &["/usr/lib/erlang/erts-*/bin"])?.join("epmd");
    let port_of_mapper = epmd.to_string();
    let arguments = ["-address", "127.0.0.1", "-port", &port_of_mapper];
    let mapper = spawn(Command::new(mapper).args(arguments))?;
    stop.also(&format!("kill -TERM {}", mapper.id()))?;

    let mut server = Command::new(sbin.join("rabbitmq-server"));
    server
        .current_dir(folder) // where Erlang leaves its dumps
        .env("HOME", folder)
        .env("ERL_EPMD_PORT", epmd.to_string())
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODENAME", format!("branchline-test-{port}@localhost"))
        .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
        .env("RABBITMQ_NODE_PORT", port.to_string())
        .env("RABBITMQ_DIST_PORT", distribution.to_string())
        .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
        .env("RABBITMQ_CONF_ENV_FILE", folder.join("env.conf"))
        .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("enabled_plugins"))
        .env("RABBITMQ_MNESIA_BASE", folder.join("mnesia"))
        .env("RABBITMQ_LOG_BASE", folder.join("log"))
        .env("RABBITMQ_SCHEMA_DIR", folder.join("schema"))
        .env("RABBITMQ_GENERATED_CONFIG_DIR", folder.join("schema"))
        .env("RABBITMQ_PID_FILE", folder.join("rabbitmq.pid"))
        .env("RABBITMQ_FEATURE_FLAGS_FILE", folder.join("feature_flags"));
    for name in ["mnesia", "log", "schema"] {
        std::fs::create_dir(folder.join(name)).map_err(failed)?;
    }
    let mut server = spawn(&mut server)?;
    let url = format!("amqp://guest:guest@127.0.0.1:{port}/%2f");
    // The group: the server is a shell script with Erlang below it. Its data need no care.
    stop.also(&format!("kill -KILL -{}", server.id()))?;
    wait(&url, &mut server, folder)?;
    Ok(url)
}

fn spawn(command: &mut Command) -> Result<Child, Failure> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let name = command.get_program().to_string_lossy().into_owned();
    command.process_group(0).spawn().map_err(|error| format!("`{name}` does not start: {error}"))
}

fn wait(url: &str, server: &mut Child, folder: &Path) -> Result<(), Failure> {
    let deadline = Instant::now() + START_WITHIN;
    loop {
        let failure = match block_on(answers(url)) {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        let ended = server.try_wait().ok().flatten();
        if ended.is_some() || Instant::now() > deadline {
            let log = last_lines(&folder.join("log"));
            return Err(format!("it did not start ({ended:?}, {failure}): {log}"));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The end of what stands in the files of a folder, which will be gone.
fn last_lines(folder: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        text += &std::fs::read_to_string(entry.path()).unwrap_or_default();
    }
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join(" | ")
}
