//! The ways by which a person is told: the log, a command, an address. Each has a deadline; what
//! fails is logged, and not tried for ever.
//!
//! The command is run as its words stand, without a shell: nothing of an alarm is part of a command
//! line. It gets the alarm as JSON on its standard input, and the condition's word in
//! `BRANCHLINE_ALARM`. The address is asked by a POST of HTTP/1.1, written by hand over plain TCP: an
//! HTTP client with TLS would be the largest dependency of the binary, for one request. Whoever
//! wants `https` has the command call `curl`.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use super::Alarm;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::store::time;
use crate::worker::engine::Engine;

/// How long one command or one request may take.
const WITHIN: Duration = Duration::from_secs(10);

/// Requests of one alarm before it is given up.
const REQUESTS_MAX: u32 = 3;

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: u64 = 4_096;

/// Tells people.
pub(super) struct Told {
    command: Vec<String>,
    webhook: Option<String>,
    server: Option<Value>,
}

impl Told {
    pub(super) fn new(config: &Config) -> Self {
        let command = config.alarm_command.as_deref().map(words).unwrap_or_default();
        Self { command, webhook: config.alarm_webhook.clone(), server: None }
    }

    /// Tells one alarm, each way in turn.
    pub(super) async fn tell(&mut self, engine: &Engine, alarm: &Alarm) {
        let kind = alarm.condition.as_str();
        tracing::error!(alarm = kind, about = alarm.about, text = alarm.text, "alarm");
        if self.command.is_empty() && self.webhook.is_none() {
            return;
        }
        if self.server.is_none() {
            self.server = super::server(engine).await;
        }
        let body = self.body(alarm).to_string();
        if !self.command.is_empty() {
            match timeout(WITHIN, run(&self.command, kind, &body)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(alarm = kind, error = %error.chain(), "alarm_command failed");
                }
                Err(_) => {
                    tracing::warn!(alarm = kind, "alarm_command took too long, and was killed")
                }
            }
        }
        if let Some(webhook) = &self.webhook {
            post_again(webhook, kind, &body).await;
        }
    }

    fn body(&self, alarm: &Alarm) -> Value {
        let mut object = alarm.facts.clone();
        object.insert("alarm".into(), alarm.condition.as_str().into());
        object.insert("about".into(), alarm.about.as_str().into());
        object.insert("text".into(), alarm.text.as_str().into());
        object.insert("server".into(), self.server.clone().unwrap_or_default());
        object.insert("at".into(), time::format(time::now()).into());
        Value::Object(object)
    }
}

/// A command's words, parted by blanks; `'…'` and `"…"` keep blanks.
fn words(command: &str) -> Vec<String> {
    let (mut list, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in command.chars() {
        match (quote, c) {
            (Some(open), _) if open == c => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, _) if c.is_whitespace() => list.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    list.extend(word);
    list
}

async fn run(command: &[String], kind: &str, body: &str) -> Result<()> {
    let failed = |error: std::io::Error| Error::failed("it cannot be run").with_source(error);
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    let mut child = Command::new(program)
        .args(arguments)
        .env("BRANCHLINE_ALARM", kind)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // A command that does not read is no failure.
        let _ = input.write_all(body.as_bytes()).await;
    }
    let status = child.wait().await.map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    Err(Error::failed(format!("it ended with {status}")))
}

async fn post_again(webhook: &str, kind: &str, body: &str) {
    for n in 1..=REQUESTS_MAX {
        let error = match timeout(WITHIN, post(webhook, body)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => Error::unreachable("no answer in time"),
        };
        tracing::warn!(alarm = kind, error = %error.chain(), "alarm_webhook failed");
        if n < REQUESTS_MAX {
            tokio::time::sleep(Duration::from_secs(n.into())).await;
        }
    }
}

/// Host with port, and path, of an `http://` address.
fn parts(webhook: &str) -> Option<(String, &str)> {
    let rest = webhook.strip_prefix("http://")?;
    let at = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at(at);
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    if host.is_empty() || path.contains(char::is_whitespace) {
        return None;
    }
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let host = if has_port { host.to_owned() } else { format!("{host}:80") };
    Some((host, if path.is_empty() { "/" } else { path }))
}

async fn post(webhook: &str, body: &str) -> Result<()> {
    let away = |error: std::io::Error| Error::unreachable("it is away").with_source(error);
    let (host, path) =
        parts(webhook).ok_or_else(|| Error::config("`alarm_webhook` is no http:// address"))?;
    let mut stream = TcpStream::connect(&host).await.map_err(away)?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nUser-Agent: branchline\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.map_err(away)?;
    let mut answer = Vec::new();
    let mut some = stream.take(ANSWER_BYTES_MAX);
    while !answer.contains(&b'\n') {
        if some.read_buf(&mut answer).await.map_err(away)? == 0 {
            break;
        }
    }
    let line = String::from_utf8_lossy(&answer);
    let status = line.split_ascii_whitespace().nth(1).unwrap_or("nothing");
    if line.starts_with("HTTP/1") && status.starts_with('2') {
        return Ok(());
    }
    Err(Error::failed(format!("it answered {status}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_cut_into_words_without_a_shell() {
        assert_eq!(
            words("notify --to 'the ward' \"a b\"x ''"),
            ["notify", "--to", "the ward", "a bx", ""]
        );
        assert_eq!(words("  rm  $(x); ls "), ["rm", "$(x);", "ls"]);
        assert!(words(" ").is_empty());
    }

    #[test]
    fn an_address_has_a_host_and_a_path() {
        assert_eq!(parts("http://h/a?b"), Some(("h:80".to_owned(), "/a?b")));
        assert_eq!(parts("http://u@h:81"), Some(("h:81".to_owned(), "/")));
        assert_eq!(parts("https://h"), None);
        assert_eq!(parts("http://h/a\r\nx"), None);
    }
}
