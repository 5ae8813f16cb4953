//! The tasks of a server and their supervision.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::engine::Engine;
use super::{deliver, links, restore, unreadable};
use crate::alarm::{self, Alarm, Condition};
use crate::error::{Error, Kind, Result};
use crate::publisher::relay;
use crate::store::books::{self, LinkState, Neighbour, Role, cleanup};
use crate::store::held::{self, HoldKind};
use crate::store::{time, track};

/// First and longest pause after a failure: when the cause is gone, records flow within 15 s.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// How often the list of neighbours is looked at.
const NEIGHBOURS_EVERY: Duration = Duration::from_millis(500);

/// How often held records that are due are tried, and left acknowledgements looked for.
const CHORES_EVERY: Duration = Duration::from_secs(5);

/// How often the host's catalog is compared with what is tracked.
const CATALOG_EVERY: Duration = Duration::from_secs(30);

/// What a process does for its server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Duty {
    /// Everything.
    All,
    /// Seal and publish; a worker beside it does the rest.
    Publish,
}

/// Runs the tasks of a duty until `stop` is cancelled.
pub(crate) async fn run(engine: Arc<Engine>, duty: Duty, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    tasks.spawn(seal(Arc::clone(&engine), duty, stop.clone()));
    if duty == Duty::All {
        tasks.spawn(chores(Arc::clone(&engine), stop.clone()));
        tasks.spawn(alarm::run(Arc::clone(&engine), stop.clone()));
    }
    tasks.spawn(neighbours(Arc::clone(&engine), duty, stop.clone()));
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(error = %error, "a task of the worker broke");
        }
    }
}

/// Backs off with jitter; a success starts over.
pub(super) struct Pause {
    next: Duration,
}

impl Pause {
    pub(super) fn new() -> Self {
        Self { next: PAUSE_MIN }
    }

    pub(super) fn reset(&mut self) {
        self.next = PAUSE_MIN;
    }

    pub(super) async fn wait(&mut self) {
        let pause = self.next.mul_f64(rand::thread_rng().gen_range(0.5..1.5));
        self.next = (self.next * 2).min(PAUSE_MAX);
        tokio::time::sleep(pause).await;
    }
}

/// Says what failed, once where it is handled, and waits. `false`: it is time to stop.
pub(super) async fn trouble(
    engine: &Engine,
    who: &str,
    error: &Error,
    pause: &mut Pause,
    stop: &CancellationToken,
) -> bool {
    if error.kind() == Kind::Busy {
        tracing::debug!(task = who, error = %error.chain(), "a lock is in the way");
    } else {
        engine.activity.failed(who, error);
        alarm::notice(engine, who, error);
        tracing::warn!(task = who, error = %error.chain(), "failed, and is tried again");
    }
    tokio::select! {
        () = stop.cancelled() => false,
        () = pause.wait() => true,
    }
}

/// Seals what is committed: at once when a writer in this process rings, else by polling.
async fn seal(engine: Arc<Engine>, duty: Duty, stop: CancellationToken) {
    let mut pause = Pause::new();
    let mut first = Some(engine.activity.busy());
    let mut restoring = None;
    loop {
        let mut done = relay::seal(&engine).await;
        if duty == Duty::Publish
            && engine.fallen().is_some()
            && let Ok(records) = done
        {
            done = restore::look_again(&engine).await.map(|()| records);
        }
        if duty == Duty::All
            && let Ok(records) = done
        {
            if engine.fallen().is_some() && restoring.is_none() {
                restoring = Some(engine.activity.busy());
            }
            done = restore::renew_if_due(&engine).await.map(|()| records);
            if engine.fallen().is_none() {
                drop(restoring.take());
            }
        }
        match done {
            Ok(records) => {
                pause.reset();
                engine.activity.succeeded("relay");
                if records > 0
                    && let Err(error) = deliver::follow_local(&engine).await
                {
                    // The chores come to it again.
                    tracing::debug!(error = %error.chain(), "what local edits make possible waits");
                }
            }
            Err(error) => {
                if !trouble(&engine, "relay", &error, &mut pause, &stop).await {
                    return;
                }
                continue;
            }
        }
        drop(first.take());
        tokio::select! {
            () = stop.cancelled() => return,
            () = engine.wake.notified() => {}
            () = tokio::time::sleep(engine.poll_every()) => {}
        }
    }
}

/// Held records that are due, and cleanup.
async fn chores(engine: Arc<Engine>, stop: CancellationToken) {
    let mut pause = Pause::new();
    let mut looked: Option<Instant> = None;
    let mut seen = i64::MAX; // what a process before us saw is not known
    loop {
        let now = time::now();
        if now < seen && mend_times(&engine, now).await.is_err() {
            seen = i64::MAX;
        } else {
            seen = now;
        }
        let look = looked.is_none_or(|at| at.elapsed() >= CATALOG_EVERY);
        if look {
            looked = Some(Instant::now());
        }
        if let Err(error) = round(&engine, look).await
            && !trouble(&engine, "chores", &error, &mut pause, &stop).await
        {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(CHORES_EVERY) => {}
        }
    }
}

async fn round(engine: &Engine, look: bool) -> Result<()> {
    if look {
        mend_capture(engine).await?;
    }
    deliver::follow(engine).await?;
    unreadable::retry(engine).await?;
    let mut session = engine.store.read().await?;
    let identity = books::identity(&mut session).await?;
    session.rollback().await?;
    let every = relay::millis(engine.config.cleanup_every);
    if time::now() - identity.last_cleanup.unwrap_or(0) >= every {
        let age = relay::millis(engine.config.cleanup_age);
        let (store, before) = (engine.store.clone(), time::now() - age);
        let runtime = tokio::runtime::Handle::current();
        // Long, and made of async closures, whose futures the compiler cannot prove to be `Send`.
        let done = tokio::task::spawn_blocking(move || {
            runtime.block_on(cleanup::cleanup(&store, before, "branchline"))
        })
        .await
        .map_err(|error| Error::failed("the cleanup broke").with_source(error))??;
        tracing::info!(?done, "cleaned up");
    }
    engine.activity.succeeded("chores");
    Ok(())
}

/// What a process before us left: where the clock went back, and once for each process.
async fn mend_times(engine: &Engine, now: i64) -> Result<()> {
    let mut session = engine.store.begin().await?;
    let count = books::clock::went_back(&mut session, now).await?;
    // Our own word on how classes merge stands in the configuration, which is read once.
    held::stir_kind(&mut session, HoldKind::MergeDiffers).await?;
    session.commit().await?;
    if count > 0 {
        tracing::warn!(count, "the clock went back: what waited for a later time is due now");
    }
    Ok(())
}

/// Triggers that are gone (a table was rebuilt, a partition added) or whose class has other columns
/// now are brought up to date, with an alarm: what was written meanwhile may be missing.
async fn mend_capture(engine: &Engine) -> Result<()> {
    let mut session = engine.store.read().await?;
    let catalog = track::load(&mut session).await?;
    let broken = track::drifted(&mut session, &catalog).await?;
    session.rollback().await?;
    if broken.is_empty() {
        return Ok(());
    }
    let classes = broken.join(", ");
    let text = format!(
        "capture of `{classes}` was gone or out of date: it is brought up to date now, and what \
         was written meanwhile may be missing elsewhere"
    );
    engine.alarms.event(Alarm::new(Condition::Capture, classes, text));
    let mut session = engine.store.begin().await?;
    let report = track::track(&mut session, engine.config.track_request()).await?;
    books::audit::note(&mut session, "branchline", "capture mended", &broken.join(", ")).await?;
    session.commit().await?;
    for refusal in report.refusals {
        let text = format!("`{}` cannot be captured any more: {}", refusal.class, refusal.text);
        engine.alarms.raise(Alarm::new(Condition::Capture, refusal.class, text));
    }
    Ok(())
}

/// Keeps the tasks of each link running, as neighbours come and go.
async fn neighbours(engine: Arc<Engine>, duty: Duty, stop: CancellationToken) {
    let mut running: HashMap<i64, (String, CancellationToken)> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut pause = Pause::new();
    let mut first = Some(engine.activity.busy());
    let mut joins: Option<CancellationToken> = None;
    while !stop.is_cancelled() {
        let list = match list(&engine).await {
            Ok(list) => list,
            Err(error) => {
                if !trouble(&engine, "neighbours", &error, &mut pause, &stop).await {
                    break;
                }
                continue;
            }
        };
        engine.activity.succeeded("neighbours");
        pause.reset();
        let wanted: HashMap<i64, Neighbour> = list
            .iter()
            .filter(|n| !n.disabled && matches!(n.state, LinkState::Joined | LinkState::Joining))
            .map(|n| (n.id, n.clone()))
            .collect();
        running.retain(|id, (sign, token)| {
            let keep = wanted.get(id).is_some_and(|neighbour| self::sign(neighbour) == *sign);
            if !keep {
                token.cancel();
            }
            keep
        });
        for (id, neighbour) in wanted {
            running.entry(id).or_insert_with(|| {
                let token = stop.child_token();
                links::spawn(&mut tasks, &engine, duty, &neighbour, &token);
                (sign(&neighbour), token)
            });
        }
        let child = list.iter().any(|neighbour| neighbour.role == Role::Child);
        if duty == Duty::All && child && joins.is_none() {
            let token = stop.child_token();
            tasks.spawn(links::joins(Arc::clone(&engine), token.clone()));
            joins = Some(token);
        }
        drop(first.take());
        while tasks.try_join_next().is_some() {}
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(NEIGHBOURS_EVERY) => {}
        }
    }
    drop(first.take());
    while tasks.join_next().await.is_some() {}
}

/// What a link's tasks depend on: when it changes they start over.
fn sign(neighbour: &Neighbour) -> String {
    format!("{} {:?} {}", neighbour.server, neighbour.state, neighbour.address)
}

async fn list(engine: &Engine) -> Result<Vec<Neighbour>> {
    let mut session = engine.store.read().await?;
    let list = books::neighbours(&mut session).await?;
    session.rollback().await?;
    Ok(list)
}

/// Runs `work` until `stop` is cancelled, again after each failure.
pub(super) async fn supervise<F>(
    engine: Arc<Engine>,
    who: String,
    stop: CancellationToken,
    mut work: impl FnMut() -> F,
) where
    F: Future<Output = Result<()>>,
{
    let mut pause = Pause::new();
    while !stop.is_cancelled() {
        let begun = Instant::now();
        match work().await {
            Ok(()) => return,
            Err(error) => {
                if begun.elapsed() > PAUSE_MAX {
                    pause.reset();
                }
                if !trouble(&engine, &who, &error, &mut pause, &stop).await {
                    return;
                }
            }
        }
    }
}
