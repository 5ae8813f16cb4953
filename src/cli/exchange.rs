//! `sync` and `worker`, and what joining and evicting say to a broker.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::output::count;
use super::{Context, End, metrics};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::id::ServerId;
use crate::publisher::relay;
use crate::record::header::{self, Header, MessageKind};
use crate::record::messages::Join;
use crate::store::books::joining::Joining;
use crate::store::books::servers::{Neighbour, Role};
use crate::store::time;
use crate::token::Token;
use crate::transport::{self, Lane, Outcome, Outgoing, Queue};
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
    let store = context.store().await?;
    let server = metrics::serve(address, store, stop.clone());
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

/// Publishes the join request, and returns once the broker has it.
pub(crate) async fn request(config: &Config, token: &Token, joining: &Joining) -> Result<()> {
    let own = &joining.identity;
    let join = Join {
        invite: token.invite,
        nickname: own.nickname.clone(),
        public_key: own.signing_key.verifying_key().to_bytes(),
        incarnation: own.incarnation,
        session: Uuid::new_v4(),
        format: header::FORMAT,
        clock: u64::try_from(time::now()).unwrap_or(0),
        proof: [0; 64],
    }
    .proven(&token.secret, own.server, token.parent);
    let header = Header {
        kind: MessageKind::Join,
        sender: own.server,
        receiver: token.parent,
        epoch: 0,
        number: 0,
    };
    let sealed = header::seal(&header, &join.encode()?, &own.signing_key, config.zstd_level)?;
    let url = &joining.parent.address;
    let transport = transport::connect(url, &config.transport_settings(url))?;
    let queue = Queue { to: token.parent, from: token.parent, lane: Lane::Joins };
    let outgoing =
        Outgoing { queue, ..relay::outgoing(&header, &joining.parent, Lane::Joins, sealed) };
    let published = async {
        // Where the answer will lie: made by whoever may.
        transport.declare(queue).await?;
        transport
            .declare(Queue { to: own.server, from: token.parent, lane: Lane::Records })
            .await?;
        transport.publish(vec![outgoing]).await
    }
    .await;
    transport.close().await;
    match published?.into_iter().next() {
        Some(Outcome::Confirmed) => Ok(()),
        Some(Outcome::Refused(reason)) => {
            Err(Error::unreachable(format!("the broker does not take the request: {reason}")))
        }
        None => Err(Error::failed("the transport said nothing of the request")),
    }
}

/// Removes the queues of a link that is no more. A broker that cannot be reached keeps them; that
/// harms nobody but takes room, so the operator is told.
pub(crate) async fn forget(context: &Context, own: ServerId, server: &Neighbour) {
    // A child's queues lie with our broker, a parent's with its own.
    let url = match server.role {
        Role::Child => context.config.broker_url.as_str(),
        Role::Parent => server.address.as_str(),
    };
    if let Err(error) = remove_queues(context, url, own, server.server).await {
        context.out.note(format!(
            "note: the queues of the link stay with the broker, which could not be asked to remove \
             them: {}",
            error.chain()
        ));
    }
}

async fn remove_queues(context: &Context, url: &str, own: ServerId, other: ServerId) -> Result<()> {
    let transport = transport::connect(url, &context.config.transport_settings(url))?;
    let mut result = Ok(());
    'all: for (to, from) in [(own, other), (other, own)] {
        for lane in [Lane::Records, Lane::Acks] {
            result = transport.remove(Queue { to, from, lane }).await;
            if result.is_err() {
                break 'all;
            }
        }
    }
    transport.close().await;
    result
}
