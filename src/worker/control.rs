//! Takes in what is no record: hellos, welcomes, whole rows.

use std::time::Duration;

use super::engine::{Context, Engine};
use super::{deliver, hello, joins, reply, restore};
use crate::error::{Kind, Result};
use crate::link::{Inbound, Reaction, Verdict, Word};
use crate::record::RowId;
use crate::record::header::Header;
use crate::record::messages::{Hello, Load, Welcome};
use crate::store::books::Neighbour;
use crate::store::session::Session;
use crate::store::{links, recover, time};

/// What a message is, if it is no record.
pub(super) enum Control {
    Hello(Box<Hello>),
    Welcome(Welcome),
    Load(Load),
}

/// What came of one.
struct Taken {
    inbound: Inbound,
    /// What follows from what the neighbour said of our numbers.
    reaction: Reaction,
    /// Who it is that speaks.
    verdict: Verdict,
    /// Whether it is told up to where its messages came in.
    answer: bool,
    /// Rows that were written.
    rows: Vec<RowId>,
}

/// Takes a message in, and does what follows. Says whether messages before it are missing.
///
/// # Errors
/// One that [holds a record](crate::Error::holds_record): the message is bad, and nothing of it was
/// taken in.
pub(super) async fn take(
    engine: &Engine,
    neighbour: &Neighbour,
    header: &Header,
    control: &Control,
) -> Result<bool> {
    let mut tries = 0;
    let taken = loop {
        match attempt(engine, neighbour, header, control).await {
            Err(error) if error.kind() == Kind::Busy && tries < deliver::BUSY_TRIES_MAX => {
                // As with records: it is never the host that gives way.
                tries += 1;
                tokio::time::sleep(Duration::from_millis(u64::from(tries) * 5)).await;
            }
            other => break other?,
        }
    };
    if taken.reaction.behind || !taken.reaction.skipped.is_empty() {
        engine.ask_hello(neighbour.id, taken.reaction.skipped);
    }
    if taken.reaction.advanced || !taken.rows.is_empty() {
        engine.outbox.notify_waiters();
    }
    if taken.verdict == Verdict::Fallen {
        // What it sealed and we have is not to be sealed anew.
        reply::acknowledge_known(engine, neighbour).await?;
    }
    if !matches!(taken.verdict, Verdict::Goes) {
        engine.ask_hello(neighbour.id, Vec::new());
    }
    if taken.answer && neighbour.is_joined() {
        reply::position(engine, neighbour, &taken.inbound).await?;
    }
    if !taken.rows.is_empty() {
        deliver::retry_held(engine).await?;
    }
    Ok(taken.inbound.has_gaps())
}

async fn attempt(
    engine: &Engine,
    neighbour: &Neighbour,
    header: &Header,
    control: &Control,
) -> Result<Taken> {
    let mut session = engine.store.begin().await?;
    match take_in(engine, &mut session, neighbour, header, control).await {
        Ok(taken) => {
            session.commit().await?;
            Ok(taken)
        }
        Err(error) => {
            // The first error is the one that matters.
            let _ = session.rollback().await;
            Err(error)
        }
    }
}

async fn take_in(
    engine: &Engine,
    session: &mut Session,
    neighbour: &Neighbour,
    header: &Header,
    control: &Control,
) -> Result<Taken> {
    crate::store::seal::lock(session).await?;
    let mut context = engine.context(session).await?;
    let now = time::now();
    let once = std::iter::once(header);
    let (inbound, seen) = deliver::count(session, neighbour, once, now).await?;
    let mut taken = Taken {
        inbound,
        reaction: Reaction::default(),
        verdict: Verdict::Goes,
        answer: true,
        rows: Vec::new(),
    };
    match control {
        Control::Hello(hello) => {
            hello::heard(engine, session, &mut context, neighbour, hello).await?;
            taken.verdict =
                hello::judge(engine, session, &mut context, neighbour, (header, seen), hello)
                    .await?;
            taken.answer = matches!(taken.verdict, Verdict::Goes | Verdict::Renewed);
            taken.inbound.skip(hello.out_epoch, &hello.skipped);
            links::save_inbound(session, neighbour.id, &taken.inbound, now).await?;
            let gaps = hello.gaps.clone();
            let word = Word { epoch: hello.in_epoch, number: hello.in_number, gaps };
            taken.reaction = links::hear(session, neighbour, &word, now).await?;
            if taken.answer {
                taken.mend(engine, session, &context, neighbour, hello).await?;
            }
        }
        Control::Welcome(welcome) => {
            hello::welcomed(session, &mut context, neighbour, welcome).await?;
            engine.activity.moved(1);
            taken.answer = false;
        }
        Control::Load(load) => {
            taken.rows = joins::load(engine, session, &mut context, neighbour, load).await?;
            engine.activity.moved(load.rows.len());
        }
    }
    Ok(taken)
}

impl Taken {
    /// After a restore, ours or the neighbour's: what either lacks is sent again.
    async fn mend(
        &mut self,
        engine: &Engine,
        session: &mut Session,
        context: &Context,
        neighbour: &Neighbour,
        hello: &Hello,
    ) -> Result<()> {
        let why = restore::betrayed_by(&context.identity, hello).or_else(|| {
            self.reaction.beyond.then(|| "it has messages that were never sent".into())
        });
        if let Some(why) = why {
            return restore::note(engine, session, neighbour, &why).await;
        }
        if engine.fallen().is_some() {
            return Ok(());
        }
        self.reaction.behind |=
            recover::compare(session, &context.identity, neighbour.id, &hello.applied).await?;
        let actors = &context.actors;
        if !hello.wanted.is_empty() {
            let count = recover::reopen(session, actors, neighbour, &hello.wanted).await?;
            tracing::info!(
                link.peer = %neighbour.nickname, record.count = count,
                "it lost records that it had acknowledged: they are sent again"
            );
            self.reaction.advanced = true;
        }
        Ok(())
    }
}
