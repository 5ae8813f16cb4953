//! Alarms: what a person should know of, said once and not at each try.
//!
//! [`Alarms`] is where tasks say so, without waiting: [`raise`](Alarms::raise) a condition that lasts
//! until it is [cleared](Alarms::clear), [`event`](Alarms::event) what happened and is over. One task
//! in the background tells: the log at error level, then `alarm_command` and `alarm_webhook`, each
//! with a deadline. What was told is kept in `sync_alarm`, so a restart does not repeat it; where the
//! database is the trouble, in memory. Held records are not raised: the task finds them in
//! `sync_held`, so that none is missed by a crash.

mod told;

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::told::Told;
use crate::error::{Error, Kind, Result};
use crate::store::books::alarms::{self, Quiet};
use crate::store::held::HoldKind;
use crate::store::{books, time};
use crate::worker::engine::Engine;

/// Alarms that wait to be told; more are only logged.
const WAITING_MAX: usize = 256;

/// How often the task looks for held records and for what has been away.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A broker or database that is away is an alarm after this long.
const AWAY_AFTER: Duration = Duration::from_secs(60);

/// Held records told one by one; what is found above that at once is one alarm.
const HELD_MAX: usize = 50;

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Condition {
    /// A record cannot go into the tables.
    Held,
    /// A held record was given up.
    Stopped,
    /// A message cannot be read.
    Unreadable,
    /// A clock is far off.
    Clock,
    /// Capture was gone or out of date.
    Capture,
    /// The broker has been away, or has refused, for long.
    Broker,
    /// The database has been away for long.
    Database,
    /// A disk is full.
    Disk,
    /// Two servers speak by one identity.
    Clone,
    /// A server was restored from a backup.
    Restored,
}

impl Condition {
    /// The word for it: `alarm` in the JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Stopped => "stopped",
            Self::Unreadable => "unreadable",
            Self::Clock => "clock",
            Self::Capture => "capture",
            Self::Broker => "broker",
            Self::Database => "database",
            Self::Disk => "disk",
            Self::Clone => "clone",
            Self::Restored => "restored",
        }
    }
}

/// Something to be told.
#[derive(Clone, Debug)]
pub struct Alarm {
    /// What is wrong.
    pub condition: Condition,
    /// What it is about, beside the condition: a server, a class. The two are told once while they
    /// last.
    pub about: String,
    /// What happened and what to do, for people. Never a row's values.
    pub text: String,
    /// More, for programs.
    pub facts: Map<String, Value>,
}

impl Alarm {
    /// An alarm without further facts.
    #[must_use]
    pub fn new(condition: Condition, about: impl Into<String>, text: impl Into<String>) -> Self {
        Self { condition, about: about.into(), text: text.into(), facts: Map::new() }
    }

    fn key(&self) -> String {
        key(self.condition, &self.about)
    }
}

fn key(condition: Condition, about: &str) -> String {
    format!("{}:{about}", condition.as_str())
}

enum Word {
    Raise(Alarm),
    Event(Alarm),
    Clear(String),
}

/// Where tasks say what a person should know. Says nothing itself, and never waits.
#[derive(Default)]
pub struct Alarms {
    words: Mutex<Words>,
    news: Notify,
}

#[derive(Default)]
struct Words {
    waiting: VecDeque<Word>,
    /// What lasts, as far as this process knows.
    lasting: HashSet<String>,
    /// What this process has cleared already.
    cleared: HashSet<String>,
}

impl Alarms {
    fn lock(&self) -> MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A condition has begun, or still lasts.
    pub fn raise(&self, alarm: Alarm) {
        let key = alarm.key();
        let mut words = self.lock();
        words.cleared.remove(&key);
        if words.lasting.insert(key) {
            push(&mut words, Word::Raise(alarm));
            self.news.notify_one();
        }
    }

    /// Something happened that is over.
    pub fn event(&self, alarm: Alarm) {
        push(&mut self.lock(), Word::Event(alarm));
        self.news.notify_one();
    }

    /// A condition has ended, or does not hold.
    pub fn clear(&self, condition: Condition, about: &str) {
        let key = key(condition, about);
        let mut words = self.lock();
        words.lasting.remove(&key);
        // It may have been raised by a process before us: said to the database once.
        if words.cleared.insert(key.clone()) {
            push(&mut words, Word::Clear(key));
            self.news.notify_one();
        }
    }

    fn take(&self) -> VecDeque<Word> {
        std::mem::take(&mut self.lock().waiting)
    }
}

fn push(words: &mut Words, word: Word) {
    if words.waiting.len() < WAITING_MAX {
        words.waiting.push_back(word);
    } else if let Word::Raise(alarm) | Word::Event(alarm) = word {
        tracing::error!(alarm = alarm.condition.as_str(), text = alarm.text, "one alarm of many");
    }
}

/// Tells what there is to tell until `stop` is cancelled, and once more then.
pub(crate) async fn run(engine: Arc<Engine>, stop: CancellationToken) {
    let mut told = Told::new(&engine.config);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            () = engine.alarms.news.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        round(&engine, &mut told).await;
    }
    round(&engine, &mut told).await;
}

/// One round. A database that is away is no reason to be silent.
async fn round(engine: &Engine, told: &mut Told) {
    look(engine);
    for word in engine.alarms.take() {
        match word {
            Word::Event(alarm) => told.tell(engine, &alarm).await,
            Word::Raise(alarm) => match raise(engine, &alarm).await {
                Ok(false) => {}
                Ok(true) => {
                    told.tell(engine, &alarm).await;
                    settle(noted(engine, &alarm.key()).await);
                }
                Err(error) => {
                    tracing::debug!(error = %error.chain(), "an alarm is not noted");
                    told.tell(engine, &alarm).await;
                }
            },
            Word::Clear(key) => settle(clear(engine, &key).await),
        }
    }
    match quiet(engine).await {
        Ok((list, more)) => {
            for alarm in list.iter().map(held) {
                told.tell(engine, &alarm).await;
            }
            if more > 0 {
                let text = format!("{more} more are held: `branchline held` lists them");
                told.tell(engine, &Alarm::new(Condition::Held, "more", text)).await;
            }
        }
        Err(error) => settle(Err(error)),
    }
}

fn settle(result: Result<()>) {
    if let Err(error) = result {
        tracing::debug!(error = %error.chain(), "the alarms' book cannot be kept now");
    }
}

async fn raise(engine: &Engine, alarm: &Alarm) -> Result<bool> {
    let (key, kind) = (alarm.key(), alarm.condition.as_str());
    let mut session = engine.store.begin().await?;
    let news = alarms::raise(&mut session, &key, kind, &alarm.text, time::now()).await?;
    session.commit().await?;
    Ok(news)
}

async fn noted(engine: &Engine, key: &str) -> Result<()> {
    let mut session = engine.store.begin().await?;
    alarms::told(&mut session, key, time::now()).await?;
    session.commit().await
}

async fn clear(engine: &Engine, key: &str) -> Result<()> {
    let mut session = engine.store.begin().await?;
    if alarms::clear(&mut session, key, time::now()).await? {
        tracing::info!(alarm = key, "is over");
    }
    session.commit().await
}

async fn quiet(engine: &Engine) -> Result<(Vec<Quiet>, usize)> {
    let mut session = engine.store.read().await?;
    let some = alarms::any_quiet(&mut session).await?;
    session.rollback().await?;
    if !some {
        return Ok((Vec::new(), 0));
    }
    let mut session = engine.store.begin().await?;
    let found = alarms::take_quiet(&mut session, HELD_MAX, time::now()).await?;
    session.commit().await?;
    Ok(found)
}

fn held(quiet: &Quiet) -> Alarm {
    let unreadable = quiet.kind == HoldKind::Undecodable.as_str();
    let condition = match (unreadable, quiet.stopped) {
        (true, _) => Condition::Unreadable,
        (_, true) => Condition::Stopped,
        _ => Condition::Held,
    };
    let facts = json!({
        "id": quiet.id, "original_uuid": quiet.original_uuid, "from": quiet.server,
        "kind": quiet.kind, "reason": quiet.reason, "classes": quiet.classes,
    });
    let facts = facts.as_object().cloned().unwrap_or_default();
    Alarm { condition, about: quiet.id.to_string(), text: quiet.reason.clone(), facts }
}

/// Turns troubles that last into alarms, and ends those that are over.
fn look(engine: &Engine) {
    let lasting = engine.activity.lasting(AWAY_AFTER);
    let database = |who: &str| matches!(who, "relay" | "chores" | "neighbours");
    for (condition, ours) in [(Condition::Database, true), (Condition::Broker, false)] {
        // While the database is away, so is all else.
        let found = lasting.iter().find(|trouble| database(&trouble.0) == ours);
        let database_away = lasting.iter().any(|trouble| database(&trouble.0));
        match found {
            Some((who, text)) if ours || !database_away => {
                let text = format!(
                    "{who} has failed for {}: {text}; nothing is lost, and it is tried again",
                    humantime::format_duration(AWAY_AFTER)
                );
                engine.alarms.raise(Alarm::new(condition, "", text));
            }
            _ => engine.alarms.clear(condition, ""),
        }
    }
    if !engine.activity.has(disk_is_full) {
        engine.alarms.clear(Condition::Disk, "");
    }
}

/// Says so at once where an error is a full disk's.
pub(crate) fn notice(engine: &Engine, who: &str, error: &Error) {
    let text = error.chain();
    if error.kind() != Kind::Busy && disk_is_full(&text) {
        let text = format!("a disk is full ({who}: {text}): make room, it goes on by itself");
        engine.alarms.raise(Alarm::new(Condition::Disk, "", text));
    }
}

/// Whether a database, a spool or a broker says that there is no room left.
fn disk_is_full(text: &str) -> bool {
    ["disk is full", "No space left", "could not extend", "disk full", "quota exceeded"]
        .iter()
        .any(|words| text.contains(words))
}

/// Who we are, for whoever reads the alarm; empty while the database is away.
async fn server(engine: &Engine) -> Option<Value> {
    let mut session = engine.store.read().await.ok()?;
    let identity = books::identity(&mut session).await.ok();
    let _ = session.rollback().await;
    identity.map(|own| json!({ "uuid": own.server, "nickname": own.nickname }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(alarms: &Alarms) -> Vec<String> {
        let word = |word| match word {
            Word::Raise(alarm) => format!("+{}", alarm.key()),
            Word::Event(alarm) => format!("!{}", alarm.key()),
            Word::Clear(key) => format!("-{key}"),
        };
        alarms.take().into_iter().map(word).collect()
    }

    #[test]
    fn a_condition_is_said_once_while_it_lasts() {
        let alarms = Alarms::default();
        let clock = || Alarm::new(Condition::Clock, "a", "an hour ahead");
        alarms.raise(clock());
        alarms.raise(clock());
        alarms.raise(Alarm::new(Condition::Clock, "b", "two hours ahead"));
        assert_eq!(waiting(&alarms), ["+clock:a", "+clock:b"]);
        alarms.raise(clock());
        alarms.clear(Condition::Clock, "a");
        alarms.clear(Condition::Clock, "a");
        assert_eq!(waiting(&alarms), ["-clock:a"]);
        alarms.raise(clock());
        alarms.event(Alarm::new(Condition::Capture, "t", "was gone"));
        assert_eq!(waiting(&alarms), ["+clock:a", "!capture:t"]);
    }

    #[test]
    fn what_waits_has_a_bound() {
        let alarms = Alarms::default();
        for n in 0..2 * WAITING_MAX {
            alarms.event(Alarm::new(Condition::Clone, n.to_string(), ""));
        }
        assert_eq!(alarms.take().len(), WAITING_MAX);
    }

    #[test]
    fn a_full_disk_is_known_by_its_words() {
        assert!(disk_is_full("database or disk is full"));
        assert!(disk_is_full("could not extend file \"base/1/2\""));
        assert!(!disk_is_full("connection refused"));
    }
}
