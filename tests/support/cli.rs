//! The real binary at work for one server: its folder, its configuration, its database.
//!
//! Commands run in the server's folder and find `branchline.toml` there, as an operator's would.

use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::services::TestDatabase;
use super::sql::{Row, Sql};

/// How long a command may take. The machine may be busy with other tests.
const COMMAND_WITHIN: Duration = Duration::from_secs(180);
const POLL_EVERY: Duration = Duration::from_millis(20);

/// A server: a database, and a folder with `branchline.toml`.
pub(crate) struct TestServer {
    nickname: String,
    database: TestDatabase,
    sql: Sql,
    folder: tempfile::TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The exit status; 128 and above for a signal, as a shell counts.
    pub(crate) fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Asserts the exit status, and that what it says holds `words`; gives back what it printed.
    #[track_caller]
    pub(crate) fn fails_with(self, code: i32, words: &[&str]) -> String {
        let said = format!("{}\n{}", self.stdout, self.stderr);
        assert_eq!(self.code(), code, "{said}");
        assert!(!said.contains("panicked"), "{said}");
        for word in words {
            assert!(
                said.to_lowercase().contains(&word.to_lowercase()),
                "`{word}` is not in: {said}"
            );
        }
        said
    }
}

impl TestServer {
    /// A server that is not initialised yet. `settings` is the rest of `branchline.toml`, behind
    /// the two addresses.
    pub(crate) fn new(
        nickname: &str,
        database: TestDatabase,
        broker: &str,
        settings: &str,
    ) -> Self {
        let folder = tempfile::Builder::new().prefix("branchline-test-").tempdir().unwrap();
        let sql = Sql::to(&database);
        let server = Self { nickname: nickname.to_owned(), database, sql, folder };
        server.configure(broker, settings);
        server
    }

    /// Writes `branchline.toml` anew.
    pub(crate) fn configure(&self, broker: &str, settings: &str) {
        let text = format!(
            "database_url = \"{}\"\nbroker_url = \"{broker}\"\n{settings}\n",
            self.database.url()
        );
        std::fs::write(self.dir().join("branchline.toml"), text).unwrap();
    }

    pub(crate) fn nickname(&self) -> &str {
        &self.nickname
    }

    pub(crate) fn dir(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn database(&self) -> &TestDatabase {
        &self.database
    }

    /// Whether the database is SQLite.
    pub(crate) fn is_sqlite(&self) -> bool {
        self.database.path().is_some()
    }

    // The binary.

    /// Runs a command to its end, whatever that is.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        self.run_with(arguments, &[])
    }

    /// Runs a command to its end with more variables in its environment.
    #[track_caller]
    pub(crate) fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
        let output = tempfile::tempdir_in(self.dir()).unwrap();
        let (out, err) = (output.path().join("out"), output.path().join("err"));
        let child = self.spawn("", arguments, environment, &out, &err);
        let status = within(child, COMMAND_WITHIN);
        let read = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
        let (stdout, stderr) = (read(&out), read(&err));
        let Some(status) = status else {
            panic!(
                "`branchline {}` of {} did not end within {COMMAND_WITHIN:?}\n{stdout}\n{stderr}",
                arguments.join(" "),
                self.nickname
            );
        };
        Ended { status, stdout, stderr }
    }

    /// Runs a command that must succeed; what it printed.
    #[track_caller]
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(
            ended.code(),
            0,
            "`branchline {}` of {}\n{}\n{}",
            arguments.join(" "),
            self.nickname,
            ended.stdout,
            ended.stderr
        );
        ended.stdout
    }

    /// Runs a command with `--json`; the objects it printed.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let text = self.done(&[arguments, &["--json"]].concat());
        text.lines()
            .map(|line| {
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {text}"))
            })
            .collect()
    }

    fn spawn(
        &self,
        shell: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
        out: &Path,
        err: &Path,
    ) -> Child {
        let program = env!("CARGO_BIN_EXE_branchline");
        let mut command = Command::new(if shell.is_empty() { program } else { "sh" });
        if !shell.is_empty() {
            command.args(["-c", &format!("{shell}; exec \"$0\" \"$@\""), program]);
        }
        // What the developer has set for himself is not for the tests.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BRANCHLINE_") {
                command.env_remove(name);
            }
        }
        command
            .args(arguments)
            .current_dir(self.dir())
            .env("RUST_BACKTRACE", "1")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(out).unwrap())
            .stderr(std::fs::File::create(err).unwrap())
            .spawn()
            .unwrap()
    }

    #[track_caller]
    pub(crate) fn init(&self) {
        self.done(&["init", "--nickname", &self.nickname]);
    }

    #[track_caller]
    pub(crate) fn track(&self, arguments: &[&str]) -> String {
        self.done(&[&["track"], arguments].concat())
    }

    /// A token for `nickname`, without a first load.
    #[track_caller]
    pub(crate) fn invite(&self, nickname: &str) -> String {
        let printed = self.done(&["invite", nickname, "--no-load"]);
        let token = printed.strip_suffix('\n').unwrap_or(&printed);
        assert!(!token.contains(char::is_whitespace), "one token, alone on stdout: {printed:?}");
        token.to_owned()
    }

    #[track_caller]
    pub(crate) fn join(&self, token: &str) {
        self.done(&["join", token]);
    }

    /// Exchanges until nothing moves; how many records moved. Nothing may be held.
    #[track_caller]
    pub(crate) fn sync(&self) -> u64 {
        let ended = self.json(&["sync", "--idle", "300ms"]);
        ended[0]["moved"].as_u64().unwrap_or_else(|| panic!("no `moved`: {ended:?}"))
    }

    /// `status --json`.
    #[track_caller]
    pub(crate) fn status_json(&self) -> Value {
        self.json(&["status"]).remove(0)
    }

    /// Starts `branchline worker`, which is killed when this is dropped.
    #[track_caller]
    pub(crate) fn spawn_worker(&self) -> TestWorker {
        self.spawn_worker_with(&[])
    }

    /// The same with more variables in its environment.
    #[track_caller]
    pub(crate) fn spawn_worker_with(&self, environment: &[(&str, &str)]) -> TestWorker {
        self.spawn_worker_in("", environment)
    }

    /// The same behind the words of a shell, which sets limits.
    #[track_caller]
    pub(crate) fn spawn_worker_in(&self, shell: &str, environment: &[(&str, &str)]) -> TestWorker {
        let number = std::fs::read_dir(self.dir()).unwrap().count();
        let log = self.dir().join(format!("worker-{number}.log"));
        let out = self.dir().join("worker.out");
        let child = self.spawn(shell, &["worker", "-v"], environment, &out, &log);
        TestWorker { child, log, nickname: self.nickname.clone() }
    }

    // The database as a whole. Neither a worker nor a command may be running.

    /// A copy of the database as it is now.
    #[track_caller]
    pub(crate) fn backup(&self) -> TestDatabase {
        self.sql.close();
        self.database.copied(&self.nickname)
    }

    /// Puts the database back to what it was.
    #[track_caller]
    pub(crate) fn restore(&self, backup: &TestDatabase) {
        self.sql.close();
        self.database.put_back(backup);
    }

    // The database, by a connection of its own.

    /// Runs statements, as one of the host's programs would.
    #[track_caller]
    pub(crate) fn sql(&self, sql: &str) {
        self.sql
            .run(sql)
            .unwrap_or_else(|failure| panic!("{} on {}: {failure}", sql, self.nickname));
    }

    /// Runs statements that may fail.
    pub(crate) fn try_sql(&self, sql: &str) -> Result<(), String> {
        self.sql.run(sql)
    }

    /// Runs statements in one transaction.
    #[track_caller]
    pub(crate) fn transaction<T: AsRef<str>>(&self, statements: &[T]) {
        self.sql("BEGIN");
        for statement in statements {
            self.sql(statement.as_ref());
        }
        self.sql("COMMIT");
    }

    /// The rows of a query.
    #[track_caller]
    pub(crate) fn query(&self, sql: &str) -> Vec<Row> {
        self.sql
            .query(sql)
            .unwrap_or_else(|failure| panic!("{} on {}: {failure}", sql, self.nickname))
    }

    /// The number that a query yields.
    #[track_caller]
    pub(crate) fn count(&self, sql: &str) -> i64 {
        let rows = self.query(sql);
        rows[0][0].as_i64().unwrap_or_else(|| panic!("no number: {sql}: {rows:?}"))
    }

    /// The texts in the first column of a query.
    #[track_caller]
    pub(crate) fn texts(&self, sql: &str) -> Vec<String> {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        self.query(sql).iter().map(|row| text(&row[0])).collect()
    }
}

/// A worker process. SIGKILLed when it is dropped, as a power cut would.
pub(crate) struct TestWorker {
    child: Child,
    log: std::path::PathBuf,
    nickname: String,
}

impl TestWorker {
    /// Ends it with SIGTERM, and waits for it.
    #[track_caller]
    pub(crate) fn stop(mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the worker of {} did not end\n{}",
                self.nickname,
                self.tail()
            );
            std::thread::sleep(POLL_EVERY);
        }
    }

    /// Whether the process has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends its process a signal, by name.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args([&format!("-{signal}"), &pid]).status();
    }

    /// The end of what it said.
    pub(crate) fn tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for TestWorker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the worker of {} said:\n{}", self.nickname, self.tail());
        }
    }
}

/// The exit status; `None`, and the process killed, when it did not end in time.
fn within(mut child: Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(POLL_EVERY);
    }
}

/// Waits until `condition` holds; panics when it does not within `deadline`, saying what was waited
/// for.
#[track_caller]
pub(crate) fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + deadline;
    while !condition() {
        assert!(Instant::now() < until, "waited {deadline:?} in vain: {what}");
        std::thread::sleep(POLL_EVERY);
    }
}
