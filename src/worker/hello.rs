//! Hello: who speaks, in which incarnation and session, and what it knows of the tree. Said on each
//! start, every minute, and when a server of the tree became known.

use std::time::Duration;

use serde_bytes::ByteBuf;
use tokio::time::Instant;

use super::engine::{Context, Engine, Errand};
use super::reply;
use crate::alarm::{Alarm, Condition};
use crate::error::{Error, Result};
use crate::id::Actor;
use crate::link::{Heard, Range, Seen, Verdict};
use crate::publisher::relay::millis;
use crate::record::header::{FORMAT, Header, MessageKind};
use crate::record::messages::{Hello, KnownOrigin, Welcome};
use crate::store::books::{Identity, Neighbour, Role, joining, merging};
use crate::store::session::{Datum, Session};
use crate::store::{links, recover, settle, time};
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

/// How soon after one hello another is said, whoever asks for it.
const PAUSE: Duration = Duration::from_millis(1_000);

/// How long records may go unanswered before a hello follows them: it shows the neighbour what it
/// lacks, and us what it has. Doubles up to the time between two hellos.
const PROBE_AFTER: Duration = Duration::from_millis(3_000);

/// A neighbour that was not heard of for so long is greeted less often: its queue fills meanwhile.
const SILENT_MS: i64 = 3_600_000;
const SILENT_FACTOR: u32 = 10;

/// Says hello to one neighbour when it is time to.
pub(super) struct Greeter {
    said: Option<Instant>,
    /// How many servers of the tree we knew then: when it grows, the neighbour is told.
    origins: i64,
    /// The oldest unanswered record at the last look, and the pause until the next probe.
    unanswered: Option<i64>,
    pause: Duration,
    errand: Errand,
    /// Why the neighbour is refused: there are two of it.
    refused: Option<String>,
}

impl Greeter {
    pub(super) fn new() -> Self {
        Self {
            said: None,
            origins: 0,
            unanswered: None,
            pause: PROBE_AFTER,
            errand: Errand::default(),
            refused: None,
        }
    }

    /// Whether there are two of the neighbour, as of the last look.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// Says hello if it is time to: at first, every minute, when somebody asks for it, when a server
    /// of the tree became known, and when records go unanswered.
    pub(super) async fn greet(&mut self, engine: &Engine, neighbour: &Neighbour) -> Result<()> {
        let errand = engine.errand(neighbour.id);
        self.errand.hello |= errand.hello;
        self.errand.skipped.extend(errand.skipped);
        let now = time::now();
        let mut session = engine.store.read().await?;
        let row = session
            .query_one(
                "SELECT (SELECT count(*) FROM @sync_origin WHERE public_key IS NOT NULL), \
                 (SELECT last_contact FROM @sync_server WHERE id = $1), \
                 (SELECT error_message FROM @sync_server WHERE id = $1)",
                vec![neighbour.id.into()],
            )
            .await?;
        let (origins, contact) = (row.int(0)?, row.opt_time(1)?);
        let unanswered = settle::oldest_unanswered(&mut session, neighbour).await?;
        let aside = links::peer(&mut session, neighbour.id).await?.is_aside();
        session.rollback().await?;
        self.refused = aside.then(|| row.opt_text(2).ok().flatten().unwrap_or_default().to_owned());
        if unanswered != self.unanswered {
            (self.unanswered, self.pause) = (unanswered, PROBE_AFTER);
        }
        let mut every = engine.config.hello_every;
        if contact.is_some_and(|at| now - at > SILENT_MS) {
            every *= SILENT_FACTOR;
        }
        let since = self.said.map(|said| said.elapsed());
        let probe = unanswered.is_some_and(|at| now - at >= millis(PROBE_AFTER));
        let due = since.is_none_or(|since| {
            since >= every
                || origins != self.origins
                || (self.errand.hello && since >= PAUSE)
                || (probe && since >= self.pause)
        });
        if due {
            if probe {
                self.pause = (self.pause * 2).min(every);
            }
            say(engine, neighbour, self.errand.skipped.clone()).await?;
            if let Some(reason) = self.refused.clone() {
                let refusal = Welcome { reason, ..Welcome::default() }.encode()?;
                reply::send(engine, neighbour, MessageKind::Welcome, Lane::Records, &refusal)
                    .await?;
            }
            (self.said, self.origins) = (Some(Instant::now()), origins);
            self.errand = Errand::default();
        }
        Ok(())
    }
}

/// Says hello to a neighbour.
pub(super) async fn say(engine: &Engine, neighbour: &Neighbour, skipped: Vec<Range>) -> Result<()> {
    // The clock first: what a hello says is at least as new as its time.
    let clock = time::now();
    let mut session = engine.store.read().await?;
    let context = engine.context(&mut session).await?;
    let inbound = links::inbound(&mut session, neighbour.id).await?;
    let applied = recover::applied(&mut session, &context.identity).await?;
    let wanted = recover::to_ask(&mut session, neighbour.id).await?;
    let merge = match neighbour.role {
        Role::Child => merge(&mut session, &context).await?,
        Role::Parent => ByteBuf::new(),
    };
    session.rollback().await?;
    let Some((now_known, _)) = context.neighbour(neighbour.id) else { return Ok(()) };
    let hello = Hello {
        clock: u64::try_from(clock).unwrap_or(0),
        in_epoch: inbound.epoch(),
        in_number: inbound.floor(),
        gaps: inbound.lasting(clock),
        skipped,
        applied,
        wanted,
        merge,
        ..hello(engine, &context, now_known)
    };
    let body = hello.encode()?;
    let number = reply::send(engine, neighbour, MessageKind::Hello, Lane::Records, &body).await?;
    if !hello.wanted.is_empty() {
        let mut session = engine.store.begin().await?;
        recover::asked(&mut session, neighbour.id, number).await?;
        session.commit().await?;
    }
    Ok(())
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
