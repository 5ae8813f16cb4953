//! Takes the messages of a queue in: whose they are, what they are, how many at a time.

use bytes::Bytes;

use super::control::{self, Control};
use super::deliver::{self, Message};
use super::engine::{Context, Engine};
use crate::error::{Error, Result};
use crate::link::{Peer, Standing};
use crate::record::header::{Header, MessageKind, Opened};
use crate::record::limits;
use crate::record::messages::{Hello, Load, Records, Welcome};
use crate::store::books::Neighbour;
use crate::store::{held, links, time};
use crate::transport::Delivery;

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
