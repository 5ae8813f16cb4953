//! Hello: who speaks, in which incarnation and session, and what it knows of the tree. [`greeter`]
//! says it; here it is heard.
//!
//! [`greeter`]: super::greeter

use serde_bytes::ByteBuf;

use super::engine::{Context, Engine};
use crate::alarm::{Alarm, Condition};
use crate::error::{Error, Result};
use crate::id::Actor;
use crate::link::{Heard, Seen, Verdict};
use crate::publisher::relay::millis;
use crate::record::header::Header;
use crate::record::messages::{Hello, KnownOrigin, Welcome};
use crate::store::books::{Neighbour, Role, joining, merging};
use crate::store::session::{Datum, Session};
use crate::store::{links, recover, time};

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
    let about = neighbour.server.to_string();
    if skew > millis(engine.config.clock_skew_alarm) {
        let text = format!(
            "the clock of `{}` is {} s ahead of ours, or ours is slow: mend the wrong one",
            neighbour.nickname,
            skew / 1_000
        );
        engine.alarms.raise(Alarm::new(Condition::Clock, about, text));
    } else {
        engine.alarms.clear(Condition::Clock, &about);
    }
    let new = learn(session, context, &hello.origins).await?;
    if neighbour.role == Role::Parent {
        told(session, neighbour, &hello.merge).await?;
    }
    session
        .execute(
            "UPDATE @sync_server SET nickname = $2, incarnation = $3, session = $4, format = $5, \
             clock_skew_ms = $6, last_contact = $7, last_contact_state = 'ok', \
             error_message = NULL WHERE id = $1",
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

/// Judges who it is that says hello: the server that was there before, an older state of it, or one of
/// two copies. Whoever has fallen back is told so by an incarnation that it has not.
pub(super) async fn judge(
    engine: &Engine,
    session: &mut Session,
    context: &mut Context,
    neighbour: &Neighbour,
    (header, seen): (&Header, Seen),
    hello: &Hello,
) -> Result<Verdict> {
    let mut peer = links::peer(session, neighbour.id).await?;
    let was_aside = peer.is_aside();
    let heard = Heard {
        incarnation: hello.incarnation,
        session: hello.session,
        clock: hello.clock,
        epoch: header.epoch,
        number: header.number,
        seen,
    };
    let probation = 2 * millis(engine.config.hello_every);
    let verdict = peer.hear(heard, time::now(), probation);
    links::save_peer(session, neighbour.id, &peer).await?;
    match &verdict {
        Verdict::Goes => {}
        Verdict::Renewed => tracing::warn!(
            link.peer = %neighbour.nickname, incarnation = hello.incarnation,
            "it has begun a new incarnation"
        ),
        Verdict::Fallen => tracing::warn!(
            link.peer = %neighbour.nickname, incarnation = hello.incarnation,
            "its database was put back to an older state: it is told so"
        ),
        Verdict::Copies(one, other) => {
            let text = copies(neighbour, *one, *other);
            if !was_aside {
                tracing::error!(link.peer = %neighbour.nickname, "{text}");
            }
            session
                .execute(
                    "UPDATE @sync_server SET last_contact_state = 'refused', error_message = $2 \
                     WHERE id = $1",
                    vec![neighbour.id.into(), text.into()],
                )
                .await?;
        }
    }
    let tell = verdict == Verdict::Fallen || (peer.is_aside() && !was_aside);
    if tell && let Some(key) = neighbour.public_key {
        let known = context.actors.all().filter(|known| known.actor.server == neighbour.server);
        let highest = known.map(|known| known.actor.incarnation).max().unwrap_or(0);
        if highest <= hello.incarnation {
            let actor = Actor { server: neighbour.server, incarnation: hello.incarnation + 1 };
            let name = Some(neighbour.nickname.as_str());
            context.actors.learn(session, actor, Some(key.to_bytes()), name).await?;
        }
    }
    Ok(verdict)
}

fn copies(neighbour: &Neighbour, one: (uuid::Uuid, i64), other: (uuid::Uuid, i64)) -> String {
    let name = |(session, at): (uuid::Uuid, i64)| format!("{session} at {}", time::format(at));
    format!(
        "two servers speak as `{}` ({}): session {} and session {}; one database is a copy of the \
         other: run `branchline init --nickname NAME --new-identity` on the copy",
        neighbour.nickname,
        neighbour.server,
        name(one),
        name(other)
    )
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
        let ours = context.identity.signing_key.verifying_key().to_bytes() == origin.public_key;
        if server == own && (origin.actor == context.identity.actor() || !ours) {
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
        tracing::error!(link.peer = %parent.nickname, reason = %welcome.reason, "it refuses us");
        if parent.is_joined() {
            return joining::warned(session, parent.id, &welcome.reason).await;
        }
        return joining::refused(session, parent.id, &welcome.reason).await;
    }
    learn(session, context, &welcome.origins).await?;
    recover::joined(session, parent.id).await?;
    told(session, parent, &welcome.merge).await?;
    tracing::info!(link.peer = %parent.nickname, "joined");
    joining::accepted(session, parent.id, welcome.tree_id, time::now()).await
}
