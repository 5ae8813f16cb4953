//! Whole-row states: those that a neighbour lacks, a child's first load, what a restore lost.
//!
//! They travel in `load` messages, in parts of bounded size. Which rows went in which message is kept
//! until the neighbour says that the message came in, so none is lost with one.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::deliver;
use super::engine::{Context, Engine};
use super::reply;
use crate::error::{Kind, Result};
use crate::id::Actor;
use crate::publisher::relay;
use crate::record::header::MessageKind;
use crate::record::messages::{Load, LoadRow};
use crate::record::{RowId, payload};
use crate::store::apply::Incoming;
use crate::store::books::{Neighbour, invites};
use crate::store::session::Session;
use crate::store::states::States;
use crate::store::{due, held, time};
use crate::transport::Lane;

/// Rows read at a time.
const ROWS_MAX: i64 = 500;

/// Messages of states under way to one neighbour at the most.
const UNDER_WAY_MAX: i64 = 32;

/// Prepares a child's first load with values, if it has still to get one.
pub(super) async fn prepare_load(engine: &Engine, child: &Neighbour) -> Result<()> {
    let mut session = engine.store.read().await?;
    let load = invites::load_due(&mut session, child.id).await?;
    session.rollback().await?;
    if !load.is_some_and(|load| load.values) {
        return Ok(());
    }
    let _busy = engine.activity.busy();
    let mut session = engine.store.begin().await?;
    crate::store::seal::lock(&mut session).await?;
    let context = engine.context(&mut session).await?;
    if let Some((_, rules)) = context.neighbour(child.id) {
        due::add_all(&mut session, &context.catalog, child.id, rules).await?;
    }
    session.commit().await
}

/// Sends states of rows that are due, as long as there is room.
pub(super) async fn send_due(engine: &Engine, neighbour: &Neighbour) -> Result<()> {
    loop {
        let mut session = engine.store.read().await?;
        let context = engine.context(&mut session).await?;
        let Some(class) = due::class(&mut session, &context.catalog, neighbour.id).await? else {
            session.rollback().await?;
            return Ok(());
        };
        let _busy = engine.activity.busy();
        if due::under_way(&mut session, neighbour.id).await? >= UNDER_WAY_MAX {
            session.rollback().await?;
            return Ok(());
        }
        let keys = due::keys(&mut session, neighbour.id, class, ROWS_MAX).await?;
        let sends = context.neighbour(neighbour.id).map(|(_, rules)| rules);
        let rows = match context.catalog.tracked.get(&class) {
            Some(tracked) if sends.is_some_and(|rules| rules.sends(&tracked.class.name)) => {
                due::images(&mut session, &context.catalog, &context.actors, tracked, &keys).await?
            }
            _ => Vec::new(),
        };
        session.rollback().await?;
        let known: Vec<&str> = rows.iter().map(|row| &*row.key).collect();
        let nothing: Vec<Arc<str>> =
            keys.iter().filter(|key| !known.contains(&&***key)).cloned().collect();
        if !nothing.is_empty() {
            let mut session = engine.store.begin().await?;
            due::remove(&mut session, neighbour.id, class, &nothing).await?;
            session.commit().await?;
        }
        for part in cut(rows, engine.config.batch_bytes_max) {
            send(engine, neighbour, class, part).await?;
        }
    }
}

/// Cuts rows into messages by bytes.
fn cut(rows: Vec<LoadRow>, bytes_max: usize) -> Vec<Vec<LoadRow>> {
    let mut parts: Vec<Vec<LoadRow>> = Vec::new();
    let mut bytes = 0;
    for row in rows {
        let size = payload::size_hint(&row.item());
        match parts.last_mut() {
            Some(part) if bytes + size <= bytes_max => {
                bytes += size;
                part.push(row);
            }
            _ => {
                bytes = size;
                parts.push(vec![row]);
            }
        }
    }
    parts
}

async fn send(
    engine: &Engine,
    neighbour: &Neighbour,
    class: i32,
    rows: Vec<LoadRow>,
) -> Result<()> {
    let keys: Vec<Arc<str>> = rows.iter().map(|row| Arc::clone(&row.key)).collect();
    let count = rows.len();
    let load = Load { rows, ..Load::new() };
    let sent = match load.encode() {
        Ok(body) => reply::send(engine, neighbour, MessageKind::Load, Lane::Records, &body).await,
        Err(error) => Err(error),
    };
    let mut session = engine.store.begin().await?;
    match sent {
        Ok(number) => due::sent(&mut session, neighbour.id, class, &keys, number).await?,
        // Larger than a message may be: what was said of it in records has to do.
        Err(error) if error.kind() == Kind::Failed => {
            tracing::error!(
                link.peer = %neighbour.nickname, error = %error.chain(), row.count = count,
                "whole rows are too large to be sent"
            );
            due::remove(&mut session, neighbour.id, class, &keys).await?;
        }
        Err(error) => return Err(error),
    }
    session.commit().await?;
    engine.activity.moved(count);
    Ok(())
}

/// Takes whole states in, in a transaction that holds the seal lock. Yields the rows that were
/// written: held records may wait for them.
pub(super) async fn take(
    engine: &Engine,
    session: &mut Session,
    context: &mut Context,
    neighbour: &Neighbour,
    rows: &[&LoadRow],
) -> Result<Vec<RowId>> {
    let now = time::now();
    let incarnation = neighbour.incarnation.unwrap_or(1);
    let source = Actor { server: neighbour.server, incarnation };
    let list: Vec<Incoming> = rows.iter().map(|row| Incoming::state(row, source, now)).collect();
    deliver::lock_rows(session, &context.catalog, &list).await?;
    relay::seal_all_in(engine, session, context).await?;
    let before = stamps(session, context, rows).await?;
    let applied = deliver::apply_states(engine, session, context, neighbour, now, &list).await?;
    held::stir(session, &context.catalog, &applied.rows).await?;
    let after = stamps(session, context, rows).await?;
    // What was new to us may be new to those behind us.
    let changed: Vec<(&str, &str)> = after
        .iter()
        .filter(|(place, state)| before.get(*place) != Some(*state))
        .map(|((class, key), _)| (&**class, &**key))
        .collect();
    for (other, rules) in &context.neighbours {
        if other.id != neighbour.id && other.is_joined() {
            let sent = changed.iter().copied().filter(|(class, _)| rules.sends(class));
            due::add(session, &context.catalog, other.id, sent).await?;
        }
    }
    Ok(applied.rows)
}

type Stamps = BTreeMap<(Arc<str>, Arc<str>), crate::merge::RowState>;

/// The states of rows, without what is in their shadows.
async fn stamps(session: &mut Session, context: &Context, rows: &[&LoadRow]) -> Result<Stamps> {
    let mut states = States::default();
    let place = |row: &LoadRow| {
        let class = *context.catalog.ids.get(&row.class)?;
        Some((class, Arc::clone(&row.key)))
    };
    states.load(session, &context.actors, rows.iter().filter_map(|row| place(row))).await?;
    let mut stamps = Stamps::new();
    for row in rows {
        let Some(place) = place(row) else { continue };
        let state = crate::merge::RowState { shadow: None, ..states.get(&place) };
        stamps.insert((Arc::clone(&row.class), Arc::clone(&row.key)), state);
    }
    Ok(stamps)
}

/// Has the rows that a neighbour asks for sent to it.
pub(super) async fn wanted(
    session: &mut Session,
    context: &Context,
    neighbour: &Neighbour,
    rows: &[(String, String)],
) -> Result<u64> {
    let Some((_, rules)) = context.neighbour(neighbour.id) else { return Ok(0) };
    let allowed = rows.iter().filter(|(class, _)| rules.sends(class));
    let list = allowed.map(|(class, key)| (class.as_str(), key.as_str()));
    due::add(session, &context.catalog, neighbour.id, list).await
}

/// Asks a neighbour for the whole rows that its held records have waited for too long.
pub(super) async fn ask(engine: &Engine, neighbour: &Neighbour) -> Result<()> {
    let after = relay::millis(engine.config.resend_after);
    let now = time::now();
    let mut session = engine.store.begin().await?;
    let rows = due::ask(&mut session, neighbour, after, now).await?;
    if rows.is_empty() {
        return session.rollback().await;
    }
    due::forget_asked(&mut session, now - after).await?;
    session.commit().await?;
    tracing::info!(link.peer = %neighbour.nickname, row.count = rows.len(), "whole rows are asked for");
    reply::ask_rows(engine, neighbour, rows).await
}
