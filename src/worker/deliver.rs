//! Takes records in: decode, join, write, book, pass on, commit once; then acknowledge to the
//! sender, and only after that to the broker. A crash at any point repeats work and doubles no
//! effect.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::engine::{Context, Engine};
use super::reply;
use crate::catalog::Catalog;
use crate::error::{Error, Kind, Result};
use crate::failpoint::crash_point;
use crate::id::{RecordId, ServerId};
use crate::link::{Inbound, Seen};
use crate::publisher::relay::{self, millis};
use crate::record::batch::{self, Tree};
use crate::record::header::{Header, Opened};
use crate::record::messages::{Group, Records};
use crate::record::payload;
use crate::rules::Rules;
use crate::store::actors::Actors;
use crate::store::apply::{Applied, Applier, Incoming};
use crate::store::books::Neighbour;
use crate::store::rows::Found;
use crate::store::session::{Dialect, Session};
use crate::store::{apply, held, imports, links, outbox, recover, revived, seal, settle, time};

/// Tries at a batch that meets others' locks, before the link is left alone for a while.
pub(super) const BUSY_TRIES_MAX: u32 = 50;

/// How long the applier waits for a row that somebody else has, and after which wait it looks for a
/// deadlock (superusers only may say).
const ROW_WAIT: &str = "150ms";
const LOOK_AFTER: &str = "20ms";

/// Held records tried again at a time.
const HELD_MAX: usize = 200;

/// A `records` message whose header and signature are good.
pub(super) struct Message {
    /// The message.
    pub opened: Opened,
    /// Its body, decoded.
    pub records: Records,
}

/// Opens a message from a neighbour: header, addressees, signature.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode), saying what is wrong with it.
pub(super) fn open(context: &Context, neighbour: &Neighbour, body: &Bytes) -> Result<Opened> {
    let opened = Opened::parse(body.clone())?;
    if opened.header.receiver != context.identity.server {
        return Err(Error::decode("a message is for another server"));
    }
    if opened.header.sender != neighbour.server {
        return Err(Error::decode(format!(
            "a message says that it is from {} instead of `{}`",
            opened.header.sender, neighbour.nickname
        )));
    }
    let key = neighbour
        .public_key
        .as_ref()
        .ok_or_else(|| Error::decode("the key of the sender is not known"))?;
    opened.verify(key)?;
    Ok(opened)
}

/// Applies messages of one link in their order, and answers. Returns once all of it is safe to
/// take off the queue.
pub(super) async fn deliver(
    engine: &Engine,
    neighbour: &Neighbour,
    messages: &[Message],
) -> Result<Inbound> {
    let _busy = engine.activity.busy();
    crash_point!("deliver.begun");
    let mut tries = 0;
    let (applied, inbound) = loop {
        match take_in(engine, neighbour, messages).await {
            Ok(done) => break done,
            Err(error) if error.kind() == Kind::Busy && tries < BUSY_TRIES_MAX => {
                // The applier gives way; the host never does.
                tries += 1;
                time::pause(std::time::Duration::from_millis(u64::from(tries) * 5)).await;
            }
            Err(error) => return Err(error),
        }
    };
    crash_point!("apply.committed");
    engine.activity.moved(applied.outcomes.len());
    if applied.committed > 0 || applied.held > 0 {
        engine.outbox.notify_waiters();
    }
    let last = (inbound.epoch(), inbound.floor());
    reply::acknowledge(engine, neighbour, &applied.outcomes, last).await?;
    crash_point!("forward.waiting");
    if applied.committed > 0 {
        retry_held(engine).await?;
    }
    Ok(inbound)
}

/// One transaction: everything in `messages`, or nothing.
async fn take_in(
    engine: &Engine,
    neighbour: &Neighbour,
    messages: &[Message],
) -> Result<(Applied, Inbound)> {
    let mut session = engine.store.begin().await?;
    match take_in_session(engine, &mut session, neighbour, messages).await {
        Ok(done) => {
            crash_point!("apply.applied");
            session.commit().await?;
            Ok(done)
        }
        Err(error) => {
            // The first error is the one that matters.
            let _ = session.rollback().await;
            Err(error)
        }
    }
}

async fn take_in_session(
    engine: &Engine,
    session: &mut Session,
    neighbour: &Neighbour,
    messages: &[Message],
) -> Result<(Applied, Inbound)> {
    seal::lock(session).await?;
    let mut context = engine.context(session).await?;
    let now = time::now();
    let mut incoming = Vec::new();
    for message in messages {
        for group in &message.records.groups {
            take_group(session, &mut context, neighbour, group, now, &mut incoming).await?;
        }
    }
    lock_rows(session, &context.catalog, &incoming).await?;
    relay::seal_all_in(engine, session, &mut context).await?;
    let applied = apply(engine, session, &mut context, neighbour, now, &incoming).await?;
    // In this transaction: a crash must not leave a held record waiting for what is there.
    held::stir(session, &context.catalog, &applied.rows).await?;
    let taken = incoming.iter().map(|record| (record.body.origin, record.body.number));
    recover::took(session, taken).await?;
    let numbers = messages.iter().map(|message| &message.opened.header);
    let (inbound, _) = count(session, neighbour, numbers, now).await?;
    Ok((applied, inbound))
}

/// Counts messages of a link that are taken in in this transaction. Says how the last one stands to
/// those before it.
pub(super) async fn count<'h>(
    session: &mut Session,
    neighbour: &Neighbour,
    headers: impl Iterator<Item = &'h Header>,
    now: i64,
) -> Result<(Inbound, Seen)> {
    links::lock(session, neighbour.id).await?;
    let mut inbound = links::inbound(session, neighbour.id).await?;
    let mut seen = Seen::Uncounted;
    for Header { epoch, number, .. } in headers {
        seen = inbound.take(*epoch, *number, now);
        match seen {
            Seen::Ahead => tracing::debug!(
                link.peer = %neighbour.nickname, number, floor = inbound.floor(), "messages are missing"
            ),
            Seen::NewEpoch => tracing::info!(
                link.peer = %neighbour.nickname, epoch, "a new epoch of the link begins"
            ),
            _ => {}
        }
    }
    links::save_inbound(session, neighbour.id, &inbound, now).await?;
    Ok((inbound, seen))
}

/// From here on this transaction holds locks that the host's programs may want, so it does not wait
/// long for theirs: in a circle it is the one that gives way. A server looks for circles when
/// somebody has waited for `deadlock_timeout`, and ends whoever looked; so a wait of ours has to end
/// before that of a host's program that began earlier. Where this role may, it looks at once itself.
async fn give_way(session: &mut Session) -> Result<()> {
    if session.dialect() == Dialect::Postgres {
        let sql = "SELECT set_config('lock_timeout', $1, true), \
                   CASE WHEN current_setting('is_superuser') = 'on' \
                   THEN set_config('deadlock_timeout', $2, true) END";
        session.query(sql, vec![ROW_WAIT.into(), LOOK_AFTER.into()]).await?;
    }
    Ok(())
}

/// Locks the rows that records touch, before what is committed is sealed: from the sealing on
/// nobody changes them, so that no local commit is overwritten unseen. (On SQLite nobody writes
/// beside us.)
pub(super) async fn lock_rows<'a>(
    session: &mut Session,
    catalog: &Catalog,
    records: impl IntoIterator<Item = &'a Incoming>,
) -> Result<()> {
    if session.dialect() == Dialect::Sqlite {
        return Ok(());
    }
    give_way(session).await?;
    let mut by_class: BTreeMap<Arc<str>, BTreeSet<Arc<str>>> = BTreeMap::new();
    // Rows that stand for the sake of others may go with what comes in.
    for row in revived::list(session).await? {
        by_class.entry(row.class).or_default().insert(row.key);
    }
    for item in records.into_iter().flat_map(|record| &record.body.items) {
        let keys = by_class.entry(Arc::clone(&item.row.class)).or_default();
        keys.insert(Arc::clone(&item.row.key));
    }
    let mut found = Found::default();
    for (class, keys) in by_class {
        let Some(tracked) = catalog.class(&class) else { continue };
        session.batch("SAVEPOINT branchline_lock").await?;
        let keys = keys.into_iter().collect();
        match found.locate(session, catalog, tracked, keys, true).await {
            Ok(()) => session.batch("RELEASE SAVEPOINT branchline_lock").await?,
            // A key that cannot be one is said so when its record is applied.
            Err(error) if error.holds_record() => {
                session
                    .batch(
                        "ROLLBACK TO SAVEPOINT branchline_lock; \
                         RELEASE SAVEPOINT branchline_lock",
                    )
                    .await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn apply(
    engine: &Engine,
    session: &mut Session,
    context: &mut Context,
    neighbour: &Neighbour,
    now: i64,
    incoming: &[Incoming],
) -> Result<Applied> {
    let (applier, actors) = applier(engine, context, neighbour, now)?;
    applier.apply(session, actors, incoming).await
}

/// Joins whole states of rows.
pub(super) async fn apply_states(
    engine: &Engine,
    session: &mut Session,
    context: &mut Context,
    neighbour: &Neighbour,
    now: i64,
    rows: &[Incoming],
) -> Result<Applied> {
    let (applier, actors) = applier(engine, context, neighbour, now)?;
    applier.states(session, actors, rows).await
}

fn applier<'c>(
    engine: &Engine,
    context: &'c mut Context,
    neighbour: &Neighbour,
    now: i64,
) -> Result<(Applier<'c>, &'c mut Actors)> {
    let known = context.neighbours.iter().find(|(other, _)| other.id == neighbour.id);
    let Some((source, rules)) = known else {
        return Err(Error::failed(format!("`{}` is no neighbour any more", neighbour.nickname)));
    };
    let applier = Applier {
        catalog: &context.catalog,
        merge: &context.merge,
        neighbours: &context.neighbours,
        source,
        rules,
        now,
        skew_hold_ms: millis(engine.config.clock_skew_hold),
        patience: engine.patience(),
    };
    Ok((applier, &mut context.actors))
}

/// Verifies the records of a group and puts those that are complete together.
async fn take_group(
    session: &mut Session,
    context: &mut Context,
    neighbour: &Neighbour,
    group: &Group,
    now: i64,
    incoming: &mut Vec<Incoming>,
) -> Result<()> {
    let decoded = verify(context, group)?;
    let tree = decoded.tree;
    let wanted = decoded.parts.iter().any(|(_, _, part)| part.body.part.1 > 1)
        || context.neighbours.len() > 1;
    let batch = if wanted {
        context.actors.admit(session, [group.origin]).await?;
        outbox::write_batch(
            session,
            &context.actors,
            group.origin,
            group.count,
            &group.signature,
            &tree,
        )
        .await?
    } else {
        0
    };
    for (record, payload, part) in decoded.parts {
        let place = (batch, record.1);
        let original = RecordId(part.body.original_uuid);
        if part.body.part.1 == 1 {
            incoming.push(Incoming {
                uuid: record.0,
                body: part.body,
                parts: vec![(payload, part.leaf)],
                places: vec![place],
            });
            continue;
        }
        imports::pending(session, neighbour.id, original, record.0, now).await?;
        let kept = (original, part.body.part.0, payload.to_vec(), batch, record.1);
        settle::keep_parts(session, vec![kept]).await?;
        incoming.extend(complete(session, record.0, original, part.body.part.1).await?);
    }
    Ok(())
}

/// A record that travels in parts, once the last of them is here.
async fn complete(
    session: &mut Session,
    uuid: RecordId,
    original: RecordId,
    count: u32,
) -> Result<Option<Incoming>> {
    let parts = settle::parts(session, vec![original]).await?;
    if parts.len() < usize::try_from(count).unwrap_or(usize::MAX) {
        return Ok(None);
    }
    let body = payload::decode_parts(parts.iter().map(|(_, _, payload, _, _)| payload.as_slice()))?;
    let places = parts.iter().map(|(_, _, _, batch, index)| (*batch, *index)).collect();
    let mut list = Vec::with_capacity(parts.len());
    for (_, _, payload, _, _) in parts {
        let leaf = payload::decode(&payload)?.leaf;
        list.push((Bytes::from(payload), leaf));
    }
    Ok(Some(Incoming { uuid, body, parts: list, places }))
}

/// The records of a group, decoded, and its tree, verified.
struct Verified {
    tree: Tree,
    parts: Vec<((RecordId, u32), Bytes, payload::Decoded)>,
}

/// Checks that the origin signed what the group holds.
fn verify(context: &Context, group: &Group) -> Result<Verified> {
    let known = context.actors.known(group.origin).and_then(|known| known.public_key);
    let key = known.ok_or_else(|| {
        Error::decode(format!("the key of origin {} is not known here", group.origin.server))
    })?;
    let key = ed25519_dalek::VerifyingKey::from_bytes(&key)
        .map_err(|error| Error::decode("the key of an origin is damaged").with_source(error))?;
    let mut parts = Vec::with_capacity(group.records.len());
    let mut leaves = Vec::with_capacity(group.records.len());
    for record in &group.records {
        let decoded = payload::decode(&record.payload)?;
        if decoded.body.origin != group.origin {
            return Err(Error::decode("a record is not of the origin that signed it"));
        }
        leaves.push((record.index, decoded.leaf));
        parts.push(((record.uuid, record.index), record.payload.clone(), decoded));
    }
    let tree = Tree::from_parts(group.count, &leaves, &group.absent)?;
    batch::verify(&key, group.origin, group.count, &tree.root()?, &group.signature)?;
    Ok(Verified { tree, parts })
}

/// What local edits make possible, where anything waits for them at all.
pub(super) async fn follow_local(engine: &Engine) -> Result<()> {
    let mut session = engine.store.read().await?;
    let sql = "SELECT EXISTS (SELECT 1 FROM @sync_held) OR EXISTS (SELECT 1 FROM @sync_revived)";
    let waits = session.query_one(sql, vec![]).await?.flag(0)?;
    session.rollback().await?;
    if waits { follow(engine).await } else { Ok(()) }
}

/// Rows that stood for the sake of others go, and held records that are due are tried.
pub(super) async fn follow(engine: &Engine) -> Result<()> {
    sweep(engine).await?;
    retry_held(engine).await
}

/// Lets dead rows go that nothing refers to any more, and makes records due that were held because
/// their classes merged otherwise here, where they do no more.
async fn sweep(engine: &Engine) -> Result<()> {
    let mut session = engine.store.read().await?;
    let some = !revived::list(&mut session).await?.is_empty();
    let differed = held::differed(&mut session).await?;
    session.rollback().await?;
    if !some && !differed {
        return Ok(());
    }
    let mut session = engine.store.begin().await?;
    seal::lock(&mut session).await?;
    let mut context = engine.context(&mut session).await?;
    lock_rows(&mut session, &context.catalog, &[]).await?;
    relay::seal_all_in(engine, &mut session, &mut context).await?;
    let Context { actors, catalog, merge, .. } = &mut context;
    let gone = apply::sweep(&mut session, actors, catalog, merge).await?;
    held::stir(&mut session, catalog, &gone).await?;
    held::agreed(&mut session, merge).await?;
    session.commit().await
}

/// Tries held records again that are due, by the clock or by a cause; and again, as long as one that
/// goes in lets others in. Then tells their senders.
pub(super) async fn retry_held(engine: &Engine) -> Result<()> {
    try_all_held(engine).await?;
    reply::answer_left(engine).await
}

/// Tries held records that are due, and what those let in.
pub(super) async fn try_all_held(engine: &Engine) -> Result<()> {
    let mut tries = 0;
    loop {
        match try_held(engine).await {
            Ok(0) => return Ok(()),
            Ok(_) => tries = 0,
            Err(error) if error.kind() == Kind::Busy && tries < BUSY_TRIES_MAX => {
                tries += 1;
                time::pause(std::time::Duration::from_millis(u64::from(tries) * 5)).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// One transaction: tries what is due. Says how many that were.
async fn try_held(engine: &Engine) -> Result<usize> {
    let mut session = engine.store.begin().await?;
    seal::lock(&mut session).await?;
    let due = held::due(&mut session, time::now(), HELD_MAX).await?;
    if due.is_empty() {
        session.rollback().await?;
        return Ok(0);
    }
    let _busy = engine.activity.busy();
    let count = due.len();
    match try_due(engine, &mut session, due).await {
        Ok(committed) => {
            crash_point!("held.tried");
            session.commit().await?;
            engine.activity.moved(committed);
            if committed > 0 {
                engine.outbox.notify_waiters();
            }
            Ok(count)
        }
        Err(error) => {
            let _ = session.rollback().await;
            Err(error)
        }
    }
}

async fn try_due(engine: &Engine, session: &mut Session, due: Vec<held::Due>) -> Result<usize> {
    let mut context = engine.context(session).await?;
    lock_rows(session, &context.catalog, due.iter().map(|due| &due.incoming)).await?;
    relay::seal_all_in(engine, session, &mut context).await?;
    let mut by_source: BTreeMap<i64, Vec<held::Due>> = BTreeMap::new();
    for one in due {
        by_source.entry(one.server).or_default().push(one);
    }
    let mut committed = 0;
    for (server, due) in by_source {
        // Of a neighbour that is gone: what it sent is as good as before.
        let gone;
        let (source, rules) = match context.neighbours.iter().find(|(n, _)| n.id == server) {
            Some((source, rules)) => (source, rules),
            None => {
                let key = context.identity.signing_key.verifying_key();
                let nobody = Neighbour::stranger(ServerId(uuid::Uuid::nil()), "evicted", key);
                gone = (Neighbour { id: server, ..nobody }, Rules::default());
                (&gone.0, &gone.1)
            }
        };
        let applier = Applier {
            catalog: &context.catalog,
            merge: &context.merge,
            neighbours: &context.neighbours,
            source,
            rules,
            now: time::now(),
            skew_hold_ms: millis(engine.config.clock_skew_hold),
            patience: engine.patience(),
        };
        let applied = applier.retry(session, &mut context.actors, &due).await?;
        held::stir(session, &context.catalog, &applied.rows).await?;
        committed += applied.committed;
    }
    Ok(committed)
}
