//! Installed programs, and running them as somebody.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Failure;

/// The folder among `patterns` (a `*` stands for one name; the last in order of version wins), then
/// those of `PATH`, that holds `program`.
pub(super) fn folder_of(program: &str, patterns: &[&str]) -> Result<PathBuf, Failure> {
    let mut folders: Vec<PathBuf> = patterns.iter().flat_map(|pattern| matching(pattern)).collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    folders.extend(std::env::split_paths(&path));
    folders
        .into_iter()
        .find(|folder| folder.join(program).is_file())
        .ok_or_else(|| format!("no `{program}` is installed"))
}

fn matching(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        found = match part.split_once('*') {
            None => found.into_iter().map(|folder| folder.join(part)).collect(),
            Some((before, after)) => {
                found.iter().flat_map(|folder| entries(folder, before, after)).collect()
            }
        };
    }
    found
}

fn entries(folder: &Path, before: &str, after: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> =
        names.filter(|name| name.starts_with(before) && name.ends_with(after)).collect();
    let version = |name: &String| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    names.sort_by_key(|name| std::cmp::Reverse(version(name)));
    names.into_iter().map(|name| folder.join(name)).collect()
}

/// Runs to the end; what it printed is the failure.
pub(super) fn run(command: &mut Command) -> Result<String, Failure> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("`{name}` does not start: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = format!("{} {}", text(&output.stdout), text(&output.stderr));
    let said: Vec<_> = said.lines().rev().take(8).collect();
    let said: Vec<_> = said.into_iter().rev().collect();
    Err(format!("`{name}` failed ({}): {}", output.status, said.join(" | ").trim()))
}

/// Whether we are root.
pub(super) fn is_root() -> bool {
    id(&["-u"]).is_ok_and(|id| id == "0")
}

/// What `id` says, of us or of somebody.
pub(super) fn id(arguments: &[&str]) -> Result<String, Failure> {
    run(Command::new("id").args(arguments))
}

/// A user without rights, for what refuses to run as root; nobody when we are not root.
pub(super) fn unprivileged() -> Result<Option<String>, Failure> {
    if !is_root() {
        return Ok(None);
    }
    ["postgres", "nobody"]
        .iter()
        .find(|user| id(&["-u", user]).is_ok())
        .map(|user| Some((*user).to_owned()))
        .ok_or_else(|| "there is no user `postgres` or `nobody` to run it as".to_owned())
}

/// The words that run `program` with `arguments` as `user`.
pub(super) fn words(user: Option<&str>, program: &Path, arguments: &[&str]) -> Vec<String> {
    let program = program.display().to_string();
    let plain = std::iter::once(program.as_str()).chain(arguments.iter().copied());
    let Some(user) = user else { return plain.map(str::to_owned).collect() };
    if folder_of("setpriv", &[]).is_ok() {
        let group = id(&["-gn", user]).unwrap_or_else(|_| user.to_owned());
        let become_user = ["setpriv", "--clear-groups", "--reuid", user, "--regid", &group, "--"];
        return become_user.into_iter().chain(plain).map(str::to_owned).collect();
    }
    let line = plain.map(quote).collect::<Vec<_>>().join(" ");
    ["su", "-s", "/bin/sh", user, "-c", &line].map(str::to_owned).to_vec()
}

/// A command from its words.
pub(super) fn command(words: &[String]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

/// A word for a shell.
pub(super) fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

mod tests {
    use super::*;

    #[test]
    fn the_latest_version_of_a_program_is_found() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["9", "16", "15"] {
            let bin = folder.path().join(version).join("bin");
            std::fs::create_dir_all(&bin).unwrap();
            std::fs::write(bin.join("tool-of-this-test"), "").unwrap();
        }
        let pattern = format!("{}/*/bin", folder.path().display());
        let found = folder_of("tool-of-this-test", &[&pattern]).unwrap();
        assert_eq!(found, folder.path().join("16/bin"));
        assert!(folder_of("no-such-tool", &[&pattern]).unwrap_err().contains("no-such-tool"));
    }
}
