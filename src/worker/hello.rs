//! Hello: who speaks, in which incarnation and session, and what it knows of the tree. Said on each
//! start, every minute, and when a server of the tree became known.

use serde_bytes::ByteBuf;

use super::engine::{Context, Engine};
use super::reply;
use crate::error::{Error, Result};
use crate::id::Actor;
use crate::record::header::{FORMAT, MessageKind};
use crate::record::messages::{Hello, KnownOrigin, Welcome};
use crate::store::books::{Identity, Neighbour, Role, joining, merging};
use crate::store::session::{Datum, Session};
use crate::store::time;
use crate::transport::Lane;

/// The origins that we vouch for: ourselves, and those whose key we know.
pub(super) fn origins(context: &Context) -> Vec<KnownOrigin> {
    let own = context.identity.actor();
    let mut list: Vec<KnownOrigin> = context
        .actors
        .all()
        .filter(|known| known.actor != own)
        .filter_map(|known| {
            Some(KnownOrigin {
                actor: known.actor,
                nickname: known.nickname.clone().unwrap_or_default(),
                public_key: known.public_key?,
            })
        })
        .collect();
    list.push(KnownOrigin {
        actor: own,
        nickname: context.identity.nickname.clone(),
        public_key: context.identity.signing_key.verifying_key().to_bytes(),
    });
    list.sort_by_key(|origin| origin.actor);
    list
}

/// How classes merge in the tree, as those below are told: the root's own word, or what our parent
/// told us; nothing while it has not.
pub(super) async fn merge(session: &mut Session, context: &Context) -> Result<ByteBuf> {
    let root = !context.neighbours.iter().any(|(neighbour, _)| neighbour.role == Role::Parent);
    let bytes = match merging::stored(session).await? {
        _ if root => context.merge.config().clone().checked()?.to_bytes()?,
        told => told.unwrap_or_default(),
    };
    Ok(ByteBuf::from(bytes))
}

/// Takes in how the parent says that classes merge. A word that cannot be read is no reason not to
/// hear the rest.
async fn told(session: &mut Session, neighbour: &Neighbour, merge: &[u8]) -> Result<()> {
    match merging::told(session, merge).await {
        Ok(true) => tracing::info!(link.peer = %neighbour.nickname, "the tree merges anew"),
        Ok(false) => {}
        Err(error) if error.holds_record() => {
            tracing::error!(link.peer = %neighbour.nickname, error = %error.chain(), "how the tree merges cannot be read");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Says hello to a neighbour.
pub(super) async fn say(engine: &Engine, neighbour: &Neighbour) -> Result<()> {
    let mut session = engine.store.read().await?;
    let context = engine.context(&mut session).await?;
    let merge = match neighbour.role {
        Role::Child => merge(&mut session, &context).await?,
        Role::Parent => ByteBuf::new(),
    };
    session.rollback().await?;
    let Some((now_known, _)) = context.neighbour(neighbour.id) else { return Ok(()) };
    let body = Hello { merge, ..hello(engine, &context, now_known) }.encode()?;
    reply::send(engine, neighbour, MessageKind::Hello, Lane::Records, &body).await
}

fn hello(engine: &Engine, context: &Context, neighbour: &Neighbour) -> Hello {
    let Identity { nickname, incarnation, signing_key, .. } = &context.identity;
    Hello {
        incarnation: *incarnation,
        session: engine.session,
        nickname: nickname.clone(),
        public_key: signing_key.verifying_key().to_bytes(),
        out_epoch: neighbour.out_epoch,
        out_number: neighbour.out_number + 1,
        in_epoch: neighbour.in_epoch,
        in_number: neighbour.in_number,
        clock: u64::try_from(time::now()).unwrap_or(0),
        format: FORMAT,
        origins: origins(context),
        ..Hello::default()
    }
}

/// Takes a neighbour's hello in. Says whether it told of servers that were not known.
pub(super) async fn heard(
    engine: &Engine,
    session: &mut Session,
    context: &mut Context,
    neighbour: &Neighbour,
    hello: &Hello,
) -> Result<bool> {
    if hello.public_key != neighbour.public_key.map(|key| key.to_bytes()).unwrap_or_default() {
        return Err(Error::decode(format!(
            "`{}` says hello with another key than the one it joined with",
            neighbour.nickname
        )));
    }
    let now = time::now();
    let skew = i64::try_from(hello.clock).unwrap_or(i64::MAX).saturating_sub(now);
    if skew > super::super::publisher::relay::millis(engine.config.clock_skew_alarm) {
        tracing::warn!(
            link.peer = %neighbour.nickname, skew_ms = skew,
            "the clock of a neighbour is ahead of ours, or its hello is young and ours is slow"
        );
    }
    let new = learn(session, context, &hello.origins).await?;
    if neighbour.role == Role::Parent {
        told(session, neighbour, &hello.merge).await?;
    }
    session
        .execute(
            "UPDATE @sync_server SET nickname = $2, incarnation = $3, session = $4, format = $5, \
             clock_skew_ms = $6, last_contact = $7, last_contact_state = 'ok' WHERE id = $1",
            vec![
                neighbour.id.into(),
                hello.nickname.as_str().into(),
                hello.incarnation.into(),
                hello.session.into(),
                i64::from(hello.format).into(),
                skew.into(),
                Datum::time(now),
            ],
        )
        .await?;
    Ok(new)
}

/// Learns the servers of the tree that a neighbour vouches for.
pub(super) async fn learn(
    session: &mut Session,
    context: &mut Context,
    origins: &[KnownOrigin],
) -> Result<bool> {
    let own = context.identity.server;
    let mut new = false;
    for origin in origins {
        let Actor { server, .. } = origin.actor;
        // Nobody tells us who we are; but what we were before a restore is news.
        if server == own && origin.actor.incarnation >= context.identity.incarnation {
            continue;
        }
        let name = Some(origin.nickname.as_str()).filter(|name| !name.is_empty());
        new |= context.actors.learn(session, origin.actor, Some(origin.public_key), name).await?;
    }
    Ok(new)
}

/// Takes the parent's answer to our request in.
pub(super) async fn welcomed(
    session: &mut Session,
    context: &mut Context,
    parent: &Neighbour,
    welcome: &Welcome,
) -> Result<()> {
    if !welcome.accepted {
        tracing::error!(link.peer = %parent.nickname, reason = %welcome.reason, "the parent refuses us");
        return joining::refused(session, parent.id, &welcome.reason).await;
    }
    learn(session, context, &welcome.origins).await?;
    told(session, parent, &welcome.merge).await?;
    tracing::info!(link.peer = %parent.nickname, "joined");
    joining::accepted(session, parent.id, welcome.tree_id, time::now()).await
}
