//! The tasks of one link: publish, take records in, take acknowledgements in.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::activity::Busy;
use super::engine::Engine;
use super::greeter::Greeter;
use super::tasks::{Duty, supervise};
use super::{intake, joins, reply, restore, rows};
use crate::error::Result;
use crate::failpoint::crash_point;
use crate::publisher::relay;
use crate::store::books::{self, LinkState, Neighbour, Role};
use crate::transport::{Consumer, Delivery, Lane, Queue};

/// How long one look into a queue lasts.
const LOOK: Duration = Duration::from_millis(250);

/// How long the publisher waits for news before it looks for itself.
const PUBLISH_POLL: Duration = Duration::from_secs(1);

/// Messages that are applied together at the most.
const MESSAGES_MAX: usize = 32;

/// How often rows that are waited for too long are looked for.
const ROWS_EVERY: Duration = Duration::from_secs(3);

/// Starts the tasks of a link.
pub(super) fn spawn(
    tasks: &mut JoinSet<()>,
    engine: &Arc<Engine>,
    duty: Duty,
    neighbour: &Neighbour,
    stop: &CancellationToken,
) {
    let name = |what: &str| format!("{what} `{}`", neighbour.nickname);
    if neighbour.state == LinkState::Joined {
        let (e, n, s) = (Arc::clone(engine), neighbour.clone(), stop.clone());
        tasks.spawn(supervise(
            Arc::clone(engine),
            name("publishing to"),
            stop.clone(),
            move || publish(Arc::clone(&e), duty, n.clone(), s.clone()),
        ));
    }
    if duty == Duty::Publish {
        return;
    }
    if neighbour.state == LinkState::Joined {
        let (e, n, s) = (Arc::clone(engine), neighbour.clone(), stop.clone());
        tasks.spawn(supervise(
            Arc::clone(engine),
            name("acknowledgements of"),
            stop.clone(),
            move || acks(Arc::clone(&e), n.clone(), s.clone()),
        ));
    }
    let (e, n, s) = (Arc::clone(engine), neighbour.clone(), stop.clone());
    tasks.spawn(supervise(Arc::clone(engine), name("records of"), stop.clone(), move || {
        records(Arc::clone(&e), n.clone(), s.clone())
    }));
}

/// Says hello, then publishes what waits, until stopped. A process that only publishes leaves the
/// hello, and all else that is said on a start, to the worker.
async fn publish(
    engine: Arc<Engine>,
    duty: Duty,
    neighbour: Neighbour,
    stop: CancellationToken,
) -> Result<()> {
    let who = format!("publishing to `{}`", neighbour.nickname);
    let first = engine.activity.busy();
    let own = own(&engine).await?;
    let transport = engine.transport_of(&neighbour)?;
    for lane in [Lane::Records, Lane::Acks] {
        transport.declare(Queue { to: neighbour.server, from: own, lane }).await?;
    }
    let mut greeter = Greeter::new();
    if duty == Duty::All {
        // First of all: it shows the neighbour what it lacks, and whether we are who it knows.
        greeter.greet(&engine, &neighbour).await?;
        reply::acknowledge_left(&engine, &neighbour).await?;
    }
    let mut first = Some(first);
    loop {
        let news = engine.outbox.notified();
        let mut news = std::pin::pin!(news);
        news.as_mut().enable();
        if duty == Duty::All {
            greeter.greet(&engine, &neighbour).await?;
        }
        if greeter.is_refused() || engine.fallen().is_some() {
            // It is not who it was, or we are not: only hellos go, until that is settled.
            drop(first.take());
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = news => {}
                () = tokio::time::sleep(PUBLISH_POLL) => {}
            }
            continue;
        }
        if duty == Duty::All {
            if neighbour.role == Role::Child {
                joins::send_states_due(&engine, &neighbour, neighbour.id).await?;
                rows::prepare_load(&engine, &neighbour).await?;
            }
            restore::list_rows(&engine, &neighbour).await?;
            rows::send_due(&engine, &neighbour).await?;
        }
        while relay::publish(&engine, &neighbour).await? > 0 {
            if stop.is_cancelled() {
                return Ok(());
            }
        }
        engine.activity.succeeded(&who);
        drop(first.take());
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = news => {}
            () = tokio::time::sleep(PUBLISH_POLL) => {}
        }
    }
}

async fn own(engine: &Engine) -> Result<crate::id::ServerId> {
    let mut session = engine.store.read().await?;
    let own = books::identity(&mut session).await?.server;
    session.rollback().await?;
    Ok(own)
}

/// Opens a queue of the link for reading.
async fn consume(engine: &Engine, neighbour: &Neighbour, lane: Lane) -> Result<Box<dyn Consumer>> {
    let queue = Queue { to: own(engine).await?, from: neighbour.server, lane };
    let transport = engine.transport_of(neighbour)?;
    transport.declare(queue).await?;
    transport.consume(queue, engine.config.prefetch).await
}

/// What lies in the queue: waits for the first message, takes what is there behind it.
async fn batch(consumer: &mut dyn Consumer, first: &mut Option<Busy<'_>>) -> Result<Vec<Delivery>> {
    let mut list = Vec::new();
    let mut wait = LOOK;
    while list.len() < MESSAGES_MAX {
        match consumer.next(wait).await? {
            Some(delivery) => list.push(delivery),
            None => break,
        }
        wait = Duration::from_millis(1);
    }
    drop(first.take());
    Ok(list)
}

/// Takes acknowledgements in until stopped.
async fn acks(engine: Arc<Engine>, neighbour: Neighbour, stop: CancellationToken) -> Result<()> {
    let who = format!("acknowledgements of `{}`", neighbour.nickname);
    let mut first = Some(engine.activity.busy());
    let mut consumer = consume(&engine, &neighbour, Lane::Acks).await?;
    while !stop.is_cancelled() {
        let list = batch(&mut *consumer, &mut first).await?;
        let Some(last) = list.last() else {
            engine.activity.succeeded(&who);
            engine.quiet(neighbour.id);
            continue;
        };
        let bodies: Vec<_> = list.iter().map(|delivery| delivery.body.clone()).collect();
        reply::settle(&engine, &neighbour, &bodies).await?;
        crash_point!("settle.settled");
        consumer.acknowledge(last.tag).await?;
        engine.activity.succeeded(&who);
    }
    Ok(())
}

/// Takes records, hellos, welcomes and loads in until stopped.
async fn records(engine: Arc<Engine>, neighbour: Neighbour, stop: CancellationToken) -> Result<()> {
    let who = format!("records of `{}`", neighbour.nickname);
    let mut first = Some(engine.activity.busy());
    let mut consumer = consume(&engine, &neighbour, Lane::Records).await?;
    // The queue may be a new one: what lay in the old one is lost, and only a hello shows it.
    engine.ask_hello(neighbour.id, Vec::new());
    let (mut missing, mut looked) = (true, None::<Instant>);
    while !stop.is_cancelled() {
        let list = batch(&mut *consumer, &mut first).await?;
        let Some(last) = list.last() else {
            engine.activity.succeeded(&who);
            if missing && neighbour.state == LinkState::Joined {
                missing = reply::ask(&engine, &neighbour).await?;
            }
            if neighbour.is_joined() && looked.is_none_or(|at| at.elapsed() >= ROWS_EVERY) {
                looked = Some(Instant::now());
                rows::ask(&engine, &neighbour).await?;
            }
            continue;
        };
        let tag = last.tag;
        missing = intake::take(&engine, &neighbour, list).await?;
        crash_point!("deliver.answered");
        consumer.acknowledge(tag).await?;
        engine.activity.succeeded(&who);
    }
    Ok(())
}

/// Takes requests to join in, until stopped.
pub(super) async fn joins(engine: Arc<Engine>, stop: CancellationToken) {
    let (e, s) = (Arc::clone(&engine), stop.clone());
    supervise(engine, "requests to join".to_owned(), stop, move || {
        requests(Arc::clone(&e), s.clone())
    })
    .await;
}

async fn requests(engine: Arc<Engine>, stop: CancellationToken) -> Result<()> {
    let mut first = Some(engine.activity.busy());
    let own = own(&engine).await?;
    let queue = Queue { to: own, from: own, lane: Lane::Joins };
    let transport = engine.transport(&engine.config.broker_url)?;
    transport.declare(queue).await?;
    let mut consumer = transport.consume(queue, 1).await?;
    while !stop.is_cancelled() {
        let list = batch(&mut *consumer, &mut first).await?;
        for delivery in list {
            if let Err(error) = joins::request(&engine, &delivery.body).await {
                if !error.holds_record() {
                    return Err(error);
                }
                tracing::warn!(error = %error.chain(), "a request to join cannot be read");
            }
            consumer.acknowledge(delivery.tag).await?;
        }
        engine.activity.succeeded("requests to join");
    }
    Ok(())
}
