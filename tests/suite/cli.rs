//! The command line, as processes: what it prints, what it exits with, and that commands alone
//! connect two servers.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use branchline::store::{Limits, Store};
use serde_json::Value;

const SCHEMA: &str = "CREATE TABLE person (person_id integer PRIMARY KEY, uuid text NOT NULL UNIQUE, name text); \
     CREATE TABLE visit (visit_id integer PRIMARY KEY, uuid text NOT NULL UNIQUE, \
     person_id integer NOT NULL REFERENCES person (person_id));";

/// Servers in one folder, over a spool.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A server with the schema, under capture.
    async fn server(&self, name: &str) {
        std::fs::create_dir(self.path(name)).unwrap();
        std::fs::write(
            self.path(name).join("branchline.toml"),
            "database_url = \"sqlite:host.db\"\nbroker_url = \"spool:../spool\"\n",
        )
        .unwrap();
        std::fs::File::create(self.path(name).join("host.db")).unwrap();
        self.sql(name, SCHEMA).await;
        self.ok(name, &["init", "--nickname", name]);
        self.ok(name, &["track", "--all"]);
    }

    async fn store(&self, name: &str) -> Store {
        let url = format!("sqlite:{}", self.path(name).join("host.db").display());
        Store::connect(&url, Limits::default()).await.unwrap()
    }

    async fn sql(&self, name: &str, sql: &str) {
        let mut session = self.store(name).await.begin().await.unwrap();
        session.batch(sql).await.unwrap();
        session.commit().await.unwrap();
    }

    async fn number(&self, name: &str, sql: &str) -> i64 {
        let mut session = self.store(name).await.read().await.unwrap();
        session.query_one(sql, Vec::new()).await.unwrap().int(0).unwrap()
    }

    fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = branchline();
        command.arg("--config").arg(self.path(name).join("branchline.toml")).args(arguments);
        command
    }

    fn run(&self, name: &str, arguments: &[&str]) -> Output {
        self.command(name, arguments).output().unwrap()
    }

    /// Standard output of a command that exits with 0.
    fn ok(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.run(name, arguments);
        assert_eq!(code(&output), 0, "{arguments:?}: {}", error(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The objects that a command prints with `--json`.
    fn json(&self, name: &str, arguments: &[&str]) -> Vec<Value> {
        let output = self.run(name, &[&["--json"], arguments].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|_| panic!("{arguments:?}: {line}"))
            })
            .collect()
    }

    /// Connects `child` under `parent`.
    fn connect(&self, parent: &str, child: &str) -> String {
        let token = self.ok(parent, &["invite", child, "--no-load"]);
        assert_eq!(token.lines().count(), 1, "the token stands alone on standard output");
        self.ok(child, &["join", token.trim()]);
        token.trim().to_owned()
    }

    fn sync(&self, name: &str) {
        self.ok(name, &["sync", "--idle", "300ms"]);
    }
}

fn branchline() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_branchline"));
    command.env_clear().current_dir(std::env::temp_dir()).stdin(Stdio::null());
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_alone_carry_a_transaction_from_child_to_parent() {
    let bench = Bench::new();
    bench.server("root").await;
    bench.server("clinic").await;
    bench.connect("root", "clinic");
    assert_eq!(bench.json("clinic", &["status"])[0]["parent"]["state"], "joining");
    bench.sync("root");
    bench.sync("clinic");
    assert_eq!(bench.json("clinic", &["status"])[0]["parent"]["state"], "joined");

    // Other local ids at the root.
    bench.sql("root", "INSERT INTO person VALUES (7, 'p-root', 'Rosa')").await;
    bench
        .sql(
            "clinic",
            "INSERT INTO person VALUES (1, 'p-1', 'Ann'); INSERT INTO visit VALUES (1, 'v-1', 1)",
        )
        .await;
    for name in ["clinic", "root", "clinic"] {
        bench.sync(name);
    }
    let visits = "SELECT count(*) FROM visit v JOIN person p ON p.person_id = v.person_id \
                  WHERE v.uuid = 'v-1' AND p.uuid = 'p-1' AND p.name = 'Ann'";
    assert_eq!(bench.number("root", visits).await, 1);
    let local = "SELECT person_id FROM person WHERE uuid = 'p-1'";
    assert_ne!(bench.number("root", local).await, bench.number("clinic", local).await);
    assert_eq!(bench.number("clinic", "SELECT count(*) FROM person").await, 2);

    let status = &bench.json("clinic", &["status"])[0];
    assert_eq!(status["server"]["nickname"], "clinic");
    assert_eq!(status["held"], 0);
    assert_eq!(status["oldest_unsealed_change_ms"], Value::Null);
    assert_eq!(status["parent"]["nickname"], "root");
    assert_eq!(status["parent"]["in"].as_object().unwrap().values().next().unwrap(), 1);
    assert!(status["parent"]["last_contact"].is_string());
    assert_eq!(status["children"].as_array().unwrap().len(), 0);
    let status = &bench.json("root", &["status"])[0];
    assert_eq!(status["parent"], Value::Null);
    assert_eq!(status["children"][0]["nickname"], "clinic");
    assert!(status["children"][0]["out"].is_object());

    let records = bench.json("clinic", &["records"]);
    assert!(records.iter().any(|record| {
        record["contained_classes"].as_str().is_some_and(|classes| classes.contains("visit"))
            && record["state"] == "COMMITTED"
    }));
    let uuid = records[0]["uuid"].as_str().unwrap();
    assert_eq!(bench.json("clinic", &["records", "show", uuid])[0]["uuid"], uuid);
    let imports = bench.json("root", &["imports", "--server", "clinic"]);
    assert_eq!(imports.len(), 1);
    assert_eq!(imports[0]["server"], "clinic");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_token_is_refused_with_a_reason() {
    let bench = Bench::new();
    for name in ["root", "one", "two"] {
        bench.server(name).await;
    }
    let token = bench.connect("root", "one");
    bench.ok("two", &["join", &token]);
    for name in ["root", "one", "two"] {
        bench.sync(name);
    }
    let states: Vec<_> = ["one", "two"]
        .map(|name| bench.json(name, &["status"])[0]["parent"].clone())
        .into_iter()
        .map(|parent| (parent["state"].clone(), parent["error_message"].clone()))
        .collect();
    let refused = states.iter().find(|(state, _)| state == "refused").unwrap();
    assert!(refused.1.as_str().unwrap().contains("used already"), "{states:?}");
    assert!(states.iter().any(|(state, _)| state == "joined"), "{states:?}");
    let name = if states[0].0 == "refused" { "one" } else { "two" };
    let check = bench.run(name, &["check"]);
    assert_eq!(code(&check), 3);
    // A token of its own mends it.
    let token = bench.ok("root", &["invite", &format!("{name}-again"), "--no-load"]);
    bench.ok(name, &["join", token.trim()]);
    bench.sync("root");
    bench.sync(name);
    assert_eq!(bench.json(name, &["status"])[0]["parent"]["state"], "joined");
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_statuses_are_those_of_the_contract() {
    let bench = Bench::new();
    bench.server("root").await;
    let cases: &[(&[&str], i32, &str)] = &[
        (&["frobnicate"], 2, "unrecognized"),
        (&["status", "--config", "/nonexistent.toml"], 2, "/nonexistent.toml"),
        (&["status"], 2, "database_url"),
        (&["status", "--database-url", "mysql://h/x"], 2, "postgres://"),
        (&["status", "--database-url", "sqlite:/nonexistent.db"], 2, "/nonexistent.db"),
        (&["status", "--database-url", "postgres://u:secret@127.0.0.1:1/x"], 4, "127.0.0.1:1"),
        (&["verify"], 2, "later release"),
        (&["--version"], 0, ""),
    ];
    for (arguments, expected, text) in cases {
        let output = branchline().args(*arguments).output().unwrap();
        assert_eq!(code(&output), *expected, "{arguments:?}: {}", error(&output));
        assert!(error(&output).contains(text), "{arguments:?}: {}", error(&output));
        assert!(!error(&output).contains("secret"), "{arguments:?}: {}", error(&output));
    }
    for token in ["nonsense", "brln1_AAAA", "brln9_AAAA"] {
        let output = bench.run("root", &["join", token]);
        assert_eq!(code(&output), 2, "{token}: {}", error(&output));
    }
    let output = bench.run("root", &["--json", "servers", "evict", "nobody"]);
    assert_eq!(code(&output), 2);
    let told: Value = serde_json::from_str(&error(&output)).unwrap();
    assert!(told["error"].as_str().unwrap().contains("`nobody`"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_out_of_reach_is_status_4_and_the_request_can_be_made_again() {
    let bench = Bench::new();
    bench.server("root").await;
    bench.server("clinic").await;
    let output = bench
        .command("root", &["invite", "clinic", "--no-load"])
        .env("BRANCHLINE_CHILDREN_BROKER_URL", "amqp://u:secret@127.0.0.1:1/%2f")
        .output()
        .unwrap();
    let token = String::from_utf8(output.stdout).unwrap();
    for _ in 0..2 {
        let output = bench.run("clinic", &["join", token.trim()]);
        assert_eq!(code(&output), 4, "{}", error(&output));
        assert!(!error(&output).contains("secret"));
    }
    assert_eq!(bench.json("clinic", &["status"])[0]["parent"]["state"], "joining");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_prints_json() {
    let bench = Bench::new();
    bench.server("root").await;
    let invited = &bench.json("root", &["invite", "clinic", "--no-load", "--expires", "1h"])[0];
    assert!(invited["token"].as_str().unwrap().starts_with("brln1_"));
    assert_eq!(bench.json("root", &["init", "--nickname", "root"])[0]["identity"], "kept");
    let servers = bench.json("root", &["servers"]);
    assert_eq!((servers.len(), &servers[0]["role"]), (1, &Value::from("CHILD")));
    let rule = &bench.json("root", &["class", "exclude", "person", "--server", "clinic"])[0];
    assert_eq!(rule["send_to"], false);
    assert_eq!(rule["referring"], serde_json::json!(["visit"]));
    assert!(bench.json("root", &["class", "list"]).len() > 10);
    assert_eq!(bench.json("root", &["cleanup"])[0]["records"], 0);
    assert_eq!(bench.json("root", &["check"])[0]["ok"], true);
    assert!(bench.json("root", &["audit"]).len() >= 3);
    assert_eq!(bench.json("root", &["servers", "disable", "clinic"])[0]["disabled"], true);
    assert_eq!(bench.json("root", &["servers", "enable", "clinic"])[0]["disabled"], false);
    assert_eq!(bench.json("root", &["servers", "evict", "clinic"])[0]["evicted"], "clinic");
    assert!(bench.json("root", &["servers"]).is_empty());
    assert_eq!(bench.json("root", &["sync", "--idle", "100ms"])[0]["held"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_serves_its_metrics_and_stops_when_told() {
    let bench = Bench::new();
    bench.server("root").await;
    bench.ok("root", &["invite", "clinic", "--no-load"]);
    let log = bench.path("log");
    let mut worker = bench
        .command("root", &["worker", "--metrics", "127.0.0.1:0", "--log-format", "json"])
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let address = within("the worker serves metrics", || {
        let text = std::fs::read_to_string(&log).unwrap();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter_map(|line| line["address"].as_str().map(str::to_owned)).next()
    });
    let metrics = get(&address, "/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
    assert!(metrics.contains("branchline_unsealed_changes 0"), "{metrics}");
    assert!(metrics.contains("branchline_records_held{neighbour=\"clinic\""), "{metrics}");
    assert!(get(&address, "/health").contains("\"nickname\":\"root\""));
    assert!(get(&address, "/nothing").starts_with("HTTP/1.1 404"));

    let told = Command::new("kill").args(["-TERM", &worker.id().to_string()]).status().unwrap();
    assert!(told.success());
    let status = within("the worker stops", || worker.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

fn get(address: &str, path: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Looks until there is an answer.
fn within<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(answer) = look() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_demo_ends_equal() {
    let folder = tempfile::tempdir().unwrap();
    // A configuration that lies about is another server's, and is left alone.
    std::fs::write(folder.path().join("branchline.toml"), "database_url = \"sqlite:x.db\"")
        .unwrap();
    let output = branchline()
        .current_dir(folder.path())
        .args(["demo", "--seed", "5", "--json"])
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{}", error(&output));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["equal"], true);
    assert_eq!(told["servers"], 7);
    assert!(told["rows"].as_u64().unwrap() > 300, "{told}");
}
