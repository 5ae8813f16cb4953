//! The tasks of one link: publish, take records in, take acknowledgements in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::activity::Busy;
use super::control::{self, Control};
use super::deliver::{self, Message};
use super::engine::{Context, Engine};
use super::hello::Greeter;
use super::tasks::{Duty, supervise};
use super::{joins, reply, restore, rows};
use crate::error::{Error, Result};
use crate::failpoint::crash_point;
use crate::link::{Peer, Standing};
use crate::publisher::relay;
use crate::record::header::{Header, MessageKind, Opened};
use crate::record::limits;
use crate::record::messages::{Hello, Load, Records, Welcome};
use crate::store::books::{self, LinkState, Neighbour, Role};
use crate::store::{held, links, time};
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
        missing = take(&engine, &neighbour, list).await?;
        crash_point!("deliver.answered");
        consumer.acknowledge(tag).await?;
        engine.activity.succeeded(&who);
    }
    Ok(())
}

/// Takes messages of one link in, in their order; neighbouring `records` are applied together, within
/// bounds. Says whether messages are missing.
pub(super) async fn take(
    engine: &Engine,
    neighbour: &Neighbour,
    list: Vec<Delivery>,
) -> Result<bool> {
    let _busy = engine.activity.busy();
    let mut batch = Batch::default();
    let mut known: Option<(Context, Peer)> = None;
    for delivery in list {
        // Read again only when something may have changed it.
        let (context, peer) = match known.take() {
            Some(known) => known,
            None => read_context(engine, neighbour).await?,
        };
        let Some((now, _)) = context.neighbour(neighbour.id) else { return Ok(false) };
        let opened = match deliver::open(&context, now, &delivery.body) {
            Ok(opened) => opened,
            Err(error) => {
                // Whose it is is not known: its number counts for nothing.
                batch.flush(engine, now).await?;
                hold(engine, now, &delivery.body, None, &error).await?;
                known = Some((context, peer));
                continue;
            }
        };
        if !matches!(opened.header.kind, MessageKind::Hello | MessageKind::Welcome)
            && peer.standing(opened.header.epoch) != Standing::Good
        {
            // Not lost: it stays unacknowledged, and is sealed anew or sent again.
            pass(engine, neighbour, &opened.header).await?;
            continue;
        }
        if !batch.has_room(&opened) {
            batch.flush(engine, now).await?;
        }
        match opened.body().and_then(|body| read(&opened, &body)) {
            Ok(Content::Records(records)) => {
                batch.push(Message { opened, records });
                known = Some((context, peer));
            }
            Ok(Content::Control(control)) => {
                batch.flush(engine, now).await?;
                match control::take(engine, now, &opened.header, &control).await {
                    Err(error) if error.holds_record() => {
                        hold(engine, now, &delivery.body, Some(&opened.header), &error).await?;
                    }
                    other => batch.missing = other?,
                }
            }
            Err(error) => {
                batch.flush(engine, now).await?;
                hold(engine, now, &delivery.body, Some(&opened.header), &error).await?;
                known = Some((context, peer));
            }
        }
    }
    batch.flush(engine, neighbour).await?;
    Ok(batch.missing)
}

/// Takes one message that was held as though it had just come.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) when it still cannot be read; it is not held once more.
pub(super) async fn take_one(engine: &Engine, neighbour: &Neighbour, body: &Bytes) -> Result<()> {
    let (context, peer) = read_context(engine, neighbour).await?;
    let opened = deliver::open(&context, neighbour, body)?;
    if peer.standing(opened.header.epoch) != Standing::Good {
        return Ok(());
    }
    match read(&opened, &opened.body()?)? {
        Content::Records(records) => {
            deliver::deliver(engine, neighbour, &[Message { opened, records }]).await?;
        }
        // What it said of that moment has been said again since.
        Content::Control(Control::Hello(_)) => {}
        Content::Control(control) => {
            control::take(engine, neighbour, &opened.header, &control).await?;
        }
    }
    Ok(())
}

async fn read_context(engine: &Engine, neighbour: &Neighbour) -> Result<(Context, Peer)> {
    let mut session = engine.store.read().await?;
    let context = engine.context(&mut session).await?;
    let peer = links::peer(&mut session, neighbour.id).await?;
    session.rollback().await?;
    Ok((context, peer))
}

/// Passes over a message of a neighbour that is not who it was.
async fn pass(engine: &Engine, neighbour: &Neighbour, header: &Header) -> Result<()> {
    tracing::debug!(
        link.peer = %neighbour.nickname, number = header.number,
        "a message is not taken in: its sender has fallen back, or there are two of it"
    );
    let mut session = engine.store.begin().await?;
    links::passed(&mut session, neighbour.id, (header.epoch, header.number)).await?;
    session.commit().await
}

/// Messages that are applied together.
#[derive(Default)]
struct Batch {
    together: Vec<Message>,
    decoded_bytes: usize,
    /// Whether messages before these were missing, when that was last looked at.
    missing: bool,
}

impl Batch {
    fn has_room(&self, opened: &Opened) -> bool {
        self.together.is_empty()
            || self.decoded_bytes + opened.decoded_bytes() <= limits::DECODED_BYTES_MAX
    }

    fn push(&mut self, message: Message) {
        self.decoded_bytes += message.opened.decoded_bytes();
        self.together.push(message);
    }

    /// Applies what has gathered. Where one message is bad, they are taken one by one, and it is
    /// held.
    async fn flush(&mut self, engine: &Engine, neighbour: &Neighbour) -> Result<()> {
        self.decoded_bytes = 0;
        let messages = std::mem::take(&mut self.together);
        if messages.is_empty() {
            return Ok(());
        }
        match deliver::deliver(engine, neighbour, &messages).await {
            Err(error) if error.holds_record() => {}
            other => {
                self.missing = other?.has_gaps();
                return Ok(());
            }
        }
        for message in messages {
            let one = std::slice::from_ref(&message);
            match deliver::deliver(engine, neighbour, one).await {
                Err(error) if error.holds_record() => {
                    let Opened { header, .. } = &message.opened;
                    hold(engine, neighbour, message.opened.bytes(), Some(header), &error).await?;
                }
                other => self.missing = other?.has_gaps(),
            }
        }
        Ok(())
    }
}

/// A message's content.
enum Content {
    Records(Records),
    Control(Control),
}

fn read(opened: &Opened, body: &[u8]) -> Result<Content> {
    Ok(match opened.header.kind {
        MessageKind::Records => Content::Records(Records::decode(body)?),
        MessageKind::Hello => Content::Control(Control::Hello(Box::new(Hello::decode(body)?))),
        MessageKind::Welcome => Content::Control(Control::Welcome(Welcome::decode(body)?)),
        MessageKind::Load => Content::Control(Control::Load(Load::decode(body)?)),
        other => {
            return Err(Error::decode(format!("a `{}` in the queue of records", other.as_str())));
        }
    })
}

/// Keeps a message that cannot be read, as it came. Where its header is good, its number is taken in
/// with it.
async fn hold(
    engine: &Engine,
    neighbour: &Neighbour,
    body: &[u8],
    header: Option<&Header>,
    error: &Error,
) -> Result<()> {
    tracing::error!(
        link.peer = %neighbour.nickname, error = %error.chain(),
        "a message that cannot be read is held"
    );
    let mut session = engine.store.begin().await?;
    let (reason, now, patience) = (error.chain(), time::now(), engine.patience());
    held::messages::write(&mut session, neighbour.id, false, body, &reason, patience, now).await?;
    if let Some(header) = header {
        deliver::count(&mut session, neighbour, std::iter::once(header), now).await?;
    }
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
