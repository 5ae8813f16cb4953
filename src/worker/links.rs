//! The tasks of one link: publish, take records in, take acknowledgements in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::activity::Busy;
use super::deliver::{self, Message};
use super::engine::Engine;
use super::tasks::{Duty, supervise};
use super::{hello, joins, reply};
use crate::error::{Error, Result};
use crate::failpoint::crash_point;
use crate::publisher::relay;
use crate::record::header::MessageKind;
use crate::record::messages::{Hello, Load, Records, Welcome};
use crate::store::books::{self, LinkState, Neighbour, Role};
use crate::store::{held, settle, time};
use crate::transport::{Consumer, Delivery, Lane, Queue};

/// How long one look into a queue lasts.
const LOOK: Duration = Duration::from_millis(250);

/// How long the publisher waits for news before it looks for itself.
const PUBLISH_POLL: Duration = Duration::from_secs(1);

/// Messages that are applied together at the most.
const MESSAGES_MAX: usize = 32;

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
    let mut known = usize::MAX;
    let mut said = Instant::now();
    if duty == Duty::All {
        if neighbour.role == Role::Child {
            joins::send_states_due(&engine, &neighbour, neighbour.id).await?;
        }
        reply::acknowledge_left(&engine, &neighbour).await?;
    }
    let mut first = Some(first);
    loop {
        if duty == Duty::All {
            let origins = origins(&engine).await?;
            if origins != known || said.elapsed() >= engine.config.hello_every {
                hello::say(&engine, &neighbour).await?;
                (known, said) = (origins, Instant::now());
            }
        }
        let news = engine.outbox.notified();
        let mut news = std::pin::pin!(news);
        news.as_mut().enable();
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

/// How many servers of the tree we know: when it grows, the neighbours are told.
async fn origins(engine: &Engine) -> Result<usize> {
    let mut session = engine.store.read().await?;
    let row = session
        .query_one("SELECT count(*) FROM @sync_origin WHERE public_key IS NOT NULL", vec![])
        .await?;
    session.rollback().await?;
    Ok(usize::try_from(row.int(0)?).unwrap_or(0))
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
    while !stop.is_cancelled() {
        let list = batch(&mut *consumer, &mut first).await?;
        let Some(last) = list.last() else {
            engine.activity.succeeded(&who);
            continue;
        };
        let tag = last.tag;
        take(&engine, &neighbour, list).await?;
        crash_point!("deliver.answered");
        consumer.acknowledge(tag).await?;
        engine.activity.succeeded(&who);
    }
    Ok(())
}

/// Takes messages of one link in, in their order; neighbouring `records` are applied together.
pub(super) async fn take(
    engine: &Engine,
    neighbour: &Neighbour,
    list: Vec<Delivery>,
) -> Result<()> {
    let _busy = engine.activity.busy();
    let mut together: Vec<Message> = Vec::new();
    for delivery in list {
        let mut session = engine.store.read().await?;
        let context = engine.context(&mut session).await?;
        session.rollback().await?;
        let Some((now, _)) = context.neighbour(neighbour.id) else { return Ok(()) };
        let opened = deliver::open(&context, now, &delivery.body);
        let opened = opened.and_then(|(opened, body)| Ok((read(&opened, &body)?, opened)));
        match opened {
            Ok((Content::Records(records), opened)) => together.push(Message { opened, records }),
            Ok((content, _)) => {
                flush(engine, now, &mut together).await?;
                other(engine, now, content).await?;
            }
            Err(error) => {
                flush(engine, now, &mut together).await?;
                hold(engine, now, &delivery, &error).await?;
            }
        }
    }
    flush(engine, neighbour, &mut together).await
}

/// Takes one message that was held as though it had just come.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) when it still cannot be read; it is not held once more.
pub(super) async fn take_one(engine: &Engine, neighbour: &Neighbour, body: &Bytes) -> Result<()> {
    let mut session = engine.store.read().await?;
    let context = engine.context(&mut session).await?;
    session.rollback().await?;
    let (opened, content) = deliver::open(&context, neighbour, body)?;
    match read(&opened, &content)? {
        Content::Records(records) => {
            deliver::deliver(engine, neighbour, &[Message { opened, records }]).await
        }
        // What it said of that moment has been said again since.
        Content::Hello(_) => Ok(()),
        content => other(engine, neighbour, content).await,
    }
}

/// Applies what has gathered. Where one message is bad, they are taken one by one, and it is held.
async fn flush(engine: &Engine, neighbour: &Neighbour, together: &mut Vec<Message>) -> Result<()> {
    let messages = std::mem::take(together);
    if messages.is_empty() {
        return Ok(());
    }
    match deliver::deliver(engine, neighbour, &messages).await {
        Err(error) if error.holds_record() => {
            for message in messages {
                let one = std::slice::from_ref(&message);
                match deliver::deliver(engine, neighbour, one).await {
                    Err(error) if error.holds_record() => {
                        hold_body(engine, neighbour, message.opened.bytes(), &error).await?;
                    }
                    other => other?,
                }
            }
            Ok(())
        }
        other => other,
    }
}

/// A message's content.
enum Content {
    Records(Records),
    Hello(Box<Hello>),
    Welcome(Welcome),
    Load(Load),
}

fn read(opened: &crate::record::header::Opened, body: &[u8]) -> Result<Content> {
    Ok(match opened.header.kind {
        MessageKind::Records => Content::Records(Records::decode(body)?),
        MessageKind::Hello => Content::Hello(Box::new(Hello::decode(body)?)),
        MessageKind::Welcome => Content::Welcome(Welcome::decode(body)?),
        MessageKind::Load => Content::Load(Load::decode(body)?),
        other => {
            return Err(Error::decode(format!("a `{}` in the queue of records", other.as_str())));
        }
    })
}

async fn other(engine: &Engine, neighbour: &Neighbour, content: Content) -> Result<()> {
    let mut session = engine.store.begin().await?;
    crate::store::seal::lock(&mut session).await?;
    let mut context = engine.context(&mut session).await?;
    match content {
        Content::Records(_) => {}
        Content::Hello(hello) => {
            hello::heard(engine, &mut session, &mut context, neighbour, &hello).await?;
        }
        Content::Welcome(welcome) => {
            hello::welcomed(&mut session, &mut context, neighbour, &welcome).await?;
            engine.activity.moved(1);
        }
        Content::Load(load) => {
            joins::load(&mut session, &mut context, &load).await?;
            engine.activity.moved(load.rows.len());
        }
    }
    settle::contact(&mut session, neighbour, time::now()).await?;
    session.commit().await
}

async fn hold(
    engine: &Engine,
    neighbour: &Neighbour,
    delivery: &Delivery,
    error: &Error,
) -> Result<()> {
    hold_body(engine, neighbour, &delivery.body, error).await
}

/// Keeps a message that cannot be read, as it came.
async fn hold_body(
    engine: &Engine,
    neighbour: &Neighbour,
    body: &[u8],
    error: &Error,
) -> Result<()> {
    tracing::error!(
        link.peer = %neighbour.nickname, error = %error.chain(),
        "a message that cannot be read is held"
    );
    let mut session = engine.store.begin().await?;
    let (reason, now, patience) = (error.chain(), time::now(), engine.patience());
    held::messages::write(&mut session, neighbour.id, false, body, &reason, patience, now).await?;
    session.commit().await
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
