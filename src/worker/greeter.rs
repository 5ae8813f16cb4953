//! When to say hello, and what: on each start, every minute, and whenever it helps.

use std::time::Duration;

use serde_bytes::ByteBuf;
use tokio::time::Instant;

use super::engine::{Context, Engine, Errand};
use super::hello::{merge, origins};
use super::reply;
use crate::error::Result;
use crate::link::Range;
use crate::publisher::relay::millis;
use crate::record::header::{FORMAT, MessageKind};
use crate::record::messages::{Hello, Welcome};
use crate::store::books::{Identity, Neighbour, Role};
use crate::store::{links, recover, settle, time};
use crate::transport::Lane;

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
