//! `sync` and `worker`.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::output::count;
use super::{Context, End, metrics};
use crate::error::{Error, Result};
use crate::worker::Worker;

pub(crate) async fn sync(context: &Context, idle: Duration) -> Result<End> {
    let worker = Worker::open(context.config.clone()).await?;
    let stop = stop_on_signals();
    let outcome = tokio::select! {
        outcome = worker.sync(idle) => outcome?,
        () = stop.cancelled() => {
            // What was in hand is repeated by the next run.
            return Err(Error::failed("stopped by a signal"));
        }
    };
    let held = match outcome.held {
        0 => String::new(),
        held => format!("; {} held (`branchline check`)", count(held as i64, "record")),
    };
    context.out.both(
        format!("Moved {}{held}.", count(outcome.moved as i64, "record")),
        &json!({ "moved": outcome.moved, "held": outcome.held }),
    );
    Ok(if outcome.held > 0 { End::Differs } else { End::Done })
}

pub(crate) async fn worker(context: &Context, address: Option<SocketAddr>) -> Result<End> {
    let stop = stop_on_signals();
    let worker = Worker::open(context.config.clone()).await?;
    let Some(address) = address else {
        worker.run(stop).await?;
        return Ok(End::Done);
    };
    let server = metrics::serve(address, worker.store().clone(), stop.clone());
    let (worked, served) = tokio::join!(
        async {
            let result = worker.run(stop.clone()).await;
            stop.cancel();
            result
        },
        async {
            let result = server.await;
            stop.cancel();
            result
        }
    );
    worked.and(served)?;
    Ok(End::Done)
}

/// Cancelled by the first SIGTERM or SIGINT; a second one ends the process at once, which loses
/// nothing either.
pub(crate) fn stop_on_signals() -> CancellationToken {
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    tokio::spawn(async move {
        signal().await;
        tracing::info!("stopping; a second signal stops at once");
        cancelled.cancel();
        signal().await;
        std::process::exit(130);
    });
    stop
}

#[cfg(unix)]
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

#[cfg(not(unix))]
async fn signal() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}
