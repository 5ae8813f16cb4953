//! A service of our own, in a folder under the temporary one, shared by all test processes of this
//! user that run at the time (nextest, two checkouts).
//!
//! Every process that uses it holds `users.lock` shared until it ends, however it ends. Whoever
//! starts it also starts a keeper, a shell that waits until nobody holds the lock for
//! [`LINGER_SECONDS`], and then stops the service and removes its data. `start.lock` lets one
//! process at a time look and start. So: what is started is always stopped, and nobody loses a
//! service that he was promised.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use super::programs::{folder_of, id, run};
use super::{Failure, Service};

/// How long a service outlives its last user: the next process may be about to start.
const LINGER_SECONDS: u32 = 20;

/// A service that has been started.
pub(super) struct Started {
    pub(super) url: String,
    /// Shell lines that end it.
    pub(super) stop: String,
}

/// Held until the process ends.
static IN_USE: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// The address of the shared service, which is started when nobody has done it yet.
pub(super) fn url(service: &Service) -> Result<String, Failure> {
    let folder = folder(service.compose)?;
    let failed = |error: std::io::Error| format!("`{}`: {error}", folder.display());
    let starting = open(&folder.join("start.lock")).map_err(failed)?;
    starting.lock().map_err(failed)?;
    let users = open(&folder.join("users.lock")).map_err(failed)?;
    users.lock_shared().map_err(failed)?; // waits for a keeper that is just ending it

    if let Ok(url) = std::fs::read_to_string(folder.join("url"))
        && (service.answers)(&url).is_ok()
    {
        keep(&folder)?;
        IN_USE.lock().unwrap().push(users);
        return Ok(url);
    }
    clear(&folder)?;
    let data = folder.join("data");
    std::fs::create_dir(&data).map_err(failed)?;
    let started = (service.start)(&data)?;
    std::fs::write(folder.join("stop"), &started.stop).map_err(failed)?;
    std::fs::write(folder.join("url"), &started.url).map_err(failed)?;
    keep(&folder)?;
    IN_USE.lock().unwrap().push(users);
    Ok(started.url)
}

fn folder(name: &str) -> Result<PathBuf, Failure> {
    let user = id(&["-u"])?;
    let folder = std::env::temp_dir().join(format!("branchline-test-services-{user}")).join(name);
    std::fs::create_dir_all(&folder)
        .map_err(|error| format!("cannot make `{}`: {error}", folder.display()))?;
    Ok(folder)
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path)
}

/// Ends and removes what an earlier one left that does not answer any more.
fn clear(folder: &Path) -> Result<(), Failure> {
    if folder.join("stop").exists() {
        let _ = run(Command::new("sh").arg(folder.join("stop")));
    }
    for name in ["stop", "url"] {
        let _ = std::fs::remove_file(folder.join(name));
    }
    match std::fs::remove_dir_all(folder.join("data")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot clear `{}`: {error}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Sees to it that the service ends when nobody needs it.
fn keep(folder: &Path) -> Result<(), Failure> {
    let pid_file = folder.join("keeper.pid");
    if let Ok(pid) = std::fs::read_to_string(&pid_file)
        && run(Command::new("kill").args(["-0", pid.trim()])).is_ok()
    {
        return Ok(());
    }
    let keeper = Command::new("sh")
        .args(["-c", &script(folder_of("flock", &[]).is_ok()), "branchline-test-keeper"])
        .arg(folder)
        .arg(std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0) // a Ctrl-C at the tests is none at the keeper
        .spawn()
        .map_err(|error| format!("no keeper: {error}"))?;
    std::fs::write(&pid_file, keeper.id().to_string())
        .map_err(|error| format!("`{}`: {error}", pid_file.display()))
}

/// The keeper. Where there is no flock(1) it waits only for the process that started it.
fn script(flock: bool) -> String {
    let end = "sh \"$1/stop\"; rm -rf \"$1/data\" \"$1/url\" \"$1/stop\" \"$1/keeper.pid\"";
    if !flock {
        return format!("while kill -0 \"$2\" 2>/dev/null; do sleep 1; done; {end}");
    }
    format!(
        "exec 9>>\"$1/users.lock\"\n\
         while :; do\n\
           flock -x 9; flock -u 9; sleep {LINGER_SECONDS}\n\
           flock -xn 9 || continue\n\
           {end}; exit\n\
         done"
    )
}
