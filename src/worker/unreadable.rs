//! Messages that could not be read are read again: a key may be known by now, this program may be
//! newer, and what they say may have come another way.

use bytes::Bytes;

use super::engine::Engine;
use super::{intake, reply};
use crate::error::Result;
use crate::id::RecordId;
use crate::record::header::{MessageKind, Opened};
use crate::record::messages::Records;
use crate::store::books::Neighbour;
use crate::store::held::messages::{self, Message};
use crate::store::time;

/// Messages read again at a time.
const MESSAGES_MAX: i64 = 50;

/// Reads again what is due, by the clock or because more keys are known.
pub(super) async fn retry(engine: &Engine) -> Result<()> {
    loop {
        let mut session = engine.store.read().await?;
        let due = messages::due(&mut session, time::now(), MESSAGES_MAX).await?;
        if due.is_empty() {
            return session.rollback().await;
        }
        let context = engine.context(&mut session).await?;
        session.rollback().await?;
        for message in due {
            let body = Bytes::copy_from_slice(&message.body);
            let outcome = match context.neighbour(message.server) {
                Some((neighbour, _)) => again(engine, neighbour, &message, &body).await,
                None => Ok(Some("its sender is no neighbour any more".to_owned())),
            };
            let mut session = engine.store.begin().await?;
            match outcome? {
                None => {
                    tracing::info!(held.id = message.id, "a message that was held is read");
                    messages::done(&mut session, message.id).await?;
                    engine.activity.moved(1);
                }
                Some(_) if came_otherwise(engine, &message, &body).await? => {
                    tracing::info!(held.id = message.id, "what a held message said came otherwise");
                    messages::done(&mut session, message.id).await?;
                }
                Some(reason) => {
                    let (now, patience) = (time::now(), engine.patience());
                    messages::again(&mut session, message.id, &reason, patience, now).await?;
                }
            }
            session.commit().await?;
        }
    }
}

/// Takes a message as though it had just come. Says why not, where it still cannot be read.
async fn again(
    engine: &Engine,
    neighbour: &Neighbour,
    message: &Message,
    body: &Bytes,
) -> Result<Option<String>> {
    let taken = if message.acks {
        reply::settle_one(engine, neighbour, body).await
    } else {
        intake::take_one(engine, neighbour, body).await
    };
    match taken {
        Ok(()) => Ok(None),
        Err(error) if error.holds_record() => Ok(Some(error.chain())),
        Err(error) => Err(error),
    }
}

/// Whether everything that a message could have said is known without it. Its header and body are
/// not believed: at worst a message goes that nobody could have read.
async fn came_otherwise(engine: &Engine, message: &Message, body: &Bytes) -> Result<bool> {
    let mut session = engine.store.read().await?;
    let kind = Opened::parse(body.clone()).ok().map(|opened| opened.header.kind);
    let known = if message.acks {
        messages::all_answered(&mut session, message.server, message.held_at).await?
    } else if kind == Some(MessageKind::Hello) {
        // Whoever was heard of since has said hello since.
        messages::heard_since(&mut session, message.server, message.held_at).await?
    } else {
        let records = records(body);
        !records.is_empty() && messages::all_came(&mut session, message.server, &records).await?
    };
    session.rollback().await?;
    Ok(known)
}

/// The records that a message seems to carry.
fn records(body: &Bytes) -> Vec<RecordId> {
    let read = || {
        let opened = Opened::parse(body.clone()).ok()?;
        let content = opened.body().ok()?;
        (opened.header.kind == MessageKind::Records).then(|| Records::decode(&content).ok())?
    };
    let groups = read().map(|records| records.groups).unwrap_or_default();
    groups.iter().flat_map(|group| &group.records).map(|record| record.uuid).collect()
}
