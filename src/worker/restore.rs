//! A server that was put back to an older state: noticed by what neighbours say, or by the database's
//! own identity; it stops sending, hears what acknowledgements lie there, begins a new incarnation,
//! and asks for what it lacks.

use std::time::Duration;

use super::engine::{Context, Engine};
use crate::error::Result;
use crate::id::{Actor, Incarnation};
use crate::publisher::relay;
use crate::record::messages::Hello;
use crate::store::books::{Identity, Neighbour};
use crate::store::session::Session;
use crate::store::{due, recover, restore, seal};

/// How long a neighbour's acknowledgements are waited for that cannot be reached.
const HEAR_WITHIN: Duration = Duration::from_secs(20);

/// Incarnations that a neighbour may be ahead.
const AHEAD_MAX: Incarnation = 1_000;

/// Why a hello shows that this database is older than what this server has said.
pub(super) fn betrayed_by(identity: &Identity, hello: &Hello) -> Option<String> {
    let own = identity.server;
    let ahead = hello.origins.iter().find(|origin| {
        origin.actor.server == own
            && origin.actor.incarnation > identity.incarnation
            && origin.actor.incarnation - identity.incarnation <= AHEAD_MAX
    });
    if let Some(origin) = ahead {
        return Some(format!(
            "it knows incarnation {} of this server, which is {} here",
            origin.actor.incarnation, identity.incarnation
        ));
    }
    let (_, _, number) = hello.applied.iter().find(|(server, incarnation, number)| {
        (*server, *incarnation) == (own.0, identity.incarnation) && *number >= identity.next_number
    })?;
    Some(format!(
        "it has record {number} of this server, which has sealed {} here",
        identity.next_number - 1
    ))
}

/// Notes that this server has fallen back. Nothing is sent until it has begun a new incarnation.
pub(super) async fn note(
    engine: &Engine,
    session: &mut Session,
    neighbour: &Neighbour,
    why: &str,
) -> Result<()> {
    let text = format!("as `{}` shows: {why}", neighbour.nickname);
    if restore::note(session, &text).await? {
        tracing::warn!(
            link.peer = %neighbour.nickname, reason = why,
            "this database is older than what this server has said: a new incarnation follows"
        );
    }
    engine.fall();
    Ok(())
}

/// Begins a new incarnation once what neighbours had to say of the former one has been heard.
pub(super) async fn renew_if_due(engine: &Engine) -> Result<()> {
    let Some(since) = engine.fallen() else { return Ok(()) };
    let mut session = engine.store.read().await?;
    let context = engine.context(&mut session).await?;
    session.rollback().await?;
    let linked: Vec<&Neighbour> = context
        .neighbours
        .iter()
        .map(|(neighbour, _)| neighbour)
        .filter(|neighbour| neighbour.is_joined() && !neighbour.disabled)
        .collect();
    let heard = linked.iter().all(|neighbour| engine.was_quiet(neighbour.id, since));
    if !heard && since.elapsed() < HEAR_WITHIN {
        return Ok(());
    }
    let linked: Vec<i64> = linked.iter().map(|neighbour| neighbour.id).collect();
    let mut session = engine.store.begin().await?;
    seal::lock(&mut session).await?;
    if !restore::has_fallen(&mut session).await? {
        // Another process has done it.
        session.rollback().await?;
        engine.stand();
        return Ok(());
    }
    let mut context = engine.context(&mut session).await?;
    relay::seal_all_in(engine, &mut session, &mut context).await?;
    let Context { identity, neighbours, actors, catalog, .. } = &mut context;
    let renewed = restore::renew(&mut session, actors, catalog, neighbours, identity).await?;
    session.commit().await?;
    engine.stand();
    tracing::warn!(
        incarnation = renewed.incarnation,
        record.count = renewed.records,
        "began a new incarnation, and sealed anew what no neighbour had acknowledged"
    );
    engine.activity.moved(1);
    for neighbour in linked {
        engine.ask_hello(neighbour, Vec::new());
    }
    Ok(())
}

/// In a process that only publishes: whether the worker has begun a new incarnation meanwhile.
pub(super) async fn look_again(engine: &Engine) -> Result<()> {
    let mut session = engine.store.read().await?;
    let fallen = restore::has_fallen(&mut session).await?;
    session.rollback().await?;
    if !fallen {
        engine.stand();
    }
    Ok(())
}

/// Puts the rows of origins that a restored neighbour lost on the list of what is due.
pub(super) async fn list_rows(engine: &Engine, neighbour: &Neighbour) -> Result<()> {
    let mut session = engine.store.read().await?;
    let origins: Vec<Actor> = recover::rows_of(&mut session, neighbour.id).await?;
    session.rollback().await?;
    if origins.is_empty() {
        return Ok(());
    }
    let _busy = engine.activity.busy();
    let mut after = (0, String::new());
    loop {
        let mut session = engine.store.begin().await?;
        let context = engine.context(&mut session).await?;
        let (rows, next) = recover::touched(&mut session, &context.actors, &origins, after).await?;
        if let Some((_, rules)) = context.neighbour(neighbour.id) {
            let sent = rows.iter().filter(|(class, _)| rules.sends(class));
            let sent = sent.map(|(class, key)| (class.as_str(), key.as_str()));
            due::add(&mut session, &context.catalog, neighbour.id, sent).await?;
        }
        let Some(next) = next else {
            recover::rows_listed(&mut session, neighbour.id).await?;
            session.commit().await?;
            return Ok(());
        };
        session.commit().await?;
        after = next;
    }
}
