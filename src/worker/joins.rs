//! The parent's half of joining: requests are checked against the invitation, and answered.

use bytes::Bytes;
use serde_bytes::ByteBuf;

use super::engine::{Context, Engine};
use super::{hello, reply};
use crate::error::{Error, Result};
use crate::id::Actor;
use crate::record::RowId;
use crate::record::header::{MessageKind, Opened};
use crate::record::messages::{Join, Load, LoadRow, Welcome};
use crate::store::books::{Neighbour, audit, invites};
use crate::store::session::{Datum, Session};
use crate::store::{bulk, time};
use crate::transport::{Lane, Queue};

/// Row states in one load message.
const ROWS_MAX: i64 = 2_000;

/// What a request comes to.
enum Answer {
    /// It is a child now, or was one already by the same invitation: `sync_server.id`.
    Accepted(i64),
    /// It is not, for this reason.
    Refused(String),
}

/// Takes a join request in and answers it.
pub(super) async fn request(engine: &Engine, body: &Bytes) -> Result<()> {
    let _busy = engine.activity.busy();
    let mut session = engine.store.begin().await?;
    crate::store::seal::lock(&mut session).await?;
    let mut context = engine.context(&mut session).await?;
    let (opened, join) = open(&context, body)?;
    let sender = opened.header.sender;
    let answer = admit(&mut session, &mut context, &opened, &join).await?;
    let (accepted, reason) = match &answer {
        Answer::Accepted(_) => (true, String::new()),
        Answer::Refused(reason) => (false, reason.clone()),
    };
    let welcome = Welcome {
        accepted,
        reason: reason.clone(),
        tree_id: context.identity.tree_id,
        nickname: context.identity.nickname.clone(),
        merge: if accepted { hello::merge(&mut session, &context).await? } else { ByteBuf::new() },
        origins: if accepted { hello::origins(&context) } else { Vec::new() },
        ..Welcome::default()
    };
    session.commit().await?;
    if let Answer::Refused(reason) = &answer {
        tracing::warn!(server.id = %sender, reason, "a server that wants to join is refused");
    }
    // The answer goes to whoever asked, child or not.
    let mut asker = stranger(&join, sender)?;
    if let Answer::Accepted(id) = answer {
        asker.id = id;
    }
    let transport = engine.transport_of(&asker)?;
    for lane in [Lane::Records, Lane::Acks] {
        transport.declare(Queue { to: sender, from: context.identity.server, lane }).await?;
        transport.declare(Queue { to: context.identity.server, from: sender, lane }).await?;
    }
    reply::send(engine, &asker, MessageKind::Welcome, Lane::Records, &welcome.encode()?).await?;
    if let Answer::Accepted(_) = answer {
        engine.activity.moved(1);
        engine.outbox.notify_waiters();
    }
    Ok(())
}

/// Opens a request: signed by the key that it brings itself, which the invitation's key vouches for.
fn open(context: &Context, body: &Bytes) -> Result<(Opened, Join)> {
    let opened = Opened::parse(body.clone())?;
    if opened.header.kind != MessageKind::Join || opened.header.receiver != context.identity.server
    {
        return Err(Error::decode("it is no request to join this server"));
    }
    let join = Join::decode(&opened.body()?)?;
    opened.verify(&join.key()?)?;
    Ok((opened, join))
}

async fn admit(
    session: &mut Session,
    context: &mut Context,
    opened: &Opened,
    join: &Join,
) -> Result<Answer> {
    let server = opened.header.sender;
    let Some(invite) = invites::find(session, join.invite).await? else {
        return Ok(Answer::Refused("the token is not known here, or was withdrawn".to_owned()));
    };
    if join.verify(&invite.verify_key, server, context.identity.server).is_err() {
        return Ok(Answer::Refused("the request is not signed with the token's secret".to_owned()));
    }
    match invite.used_by {
        // The answer got lost: it is given again.
        Some(by) if by == server.0 => return Ok(Answer::Accepted(invite.server_id)),
        Some(_) => {
            return Ok(Answer::Refused("the token was used already by another server".to_owned()));
        }
        None => {}
    }
    if invite.expires_at <= time::now() {
        return Ok(Answer::Refused("the token has expired".to_owned()));
    }
    if server == context.identity.server
        || context.neighbours.iter().any(|(n, _)| n.server == server && n.id != invite.server_id)
    {
        return Ok(Answer::Refused(
            "a server with the same identity is a neighbour already: run `branchline init --new-identity`".to_owned(),
        ));
    }
    session
        .execute(
            "UPDATE @sync_server SET uuid = $2, nickname = $3, public_key = $4, state = 'JOINED', \
             incarnation = $5, session = $6, format = $7, joined_at = $8, last_contact = $8, \
             last_contact_state = 'ok', error_message = NULL WHERE id = $1",
            vec![
                invite.server_id.into(),
                server.into(),
                join.nickname.as_str().into(),
                join.public_key.to_vec().into(),
                join.incarnation.into(),
                join.session.into(),
                i64::from(join.format).into(),
                Datum::time(time::now()),
            ],
        )
        .await?;
    invites::use_up(session, invite.uuid, server.0).await?;
    let actor = Actor { server, incarnation: join.incarnation };
    context.actors.learn(session, actor, Some(join.public_key), Some(&join.nickname)).await?;
    let detail = format!("`{}` {server}", join.nickname);
    audit::note(session, "branchline", "child joined", &detail).await?;
    tracing::info!(link.peer = %join.nickname, server.id = %server, "a child joined");
    Ok(Answer::Accepted(invite.server_id))
}

/// Whoever asked, as far as answering needs it.
fn stranger(join: &Join, server: crate::id::ServerId) -> Result<Neighbour> {
    Ok(Neighbour::stranger(server, &join.nickname, join.key()?))
}

/// Sends a child the row states that it has still to get, if any. When a message of them is lost, all
/// go again from the start, which does no harm.
pub(super) async fn send_states_due(engine: &Engine, child: &Neighbour, server: i64) -> Result<()> {
    let mut session = engine.store.read().await?;
    let due = invites::load_due(&mut session, server).await?;
    session.rollback().await?;
    match due {
        Some(due) if !due.values => send_states(engine, child, server).await,
        _ => Ok(()),
    }
}

/// Sends a child without a load the states of rows as they were when it was invited.
async fn send_states(engine: &Engine, child: &Neighbour, server: i64) -> Result<()> {
    let _busy = engine.activity.busy();
    let mut last: (i64, String) = (0, String::new());
    let mut numbers = None;
    loop {
        let mut session = engine.store.read().await?;
        let context = engine.context(&mut session).await?;
        // What changed since the invitation was kept as it was then; the rest is as it is.
        let rows = session
            .query(
                "SELECT t.class, r.key, CASE WHEN i.key IS NULL THEN r.state ELSE i.state END, r.class_id \
                 FROM @sync_row r JOIN @sync_tracked t ON t.id = r.class_id \
                 LEFT JOIN @sync_invite_state i ON i.server_id = $1 AND i.class_id = r.class_id \
                 AND i.key = r.key WHERE (r.class_id, r.key) > ($2, $3) \
                 ORDER BY r.class_id, r.key LIMIT $4",
                vec![server.into(), last.0.into(), last.1.as_str().into(), ROWS_MAX.into()],
            )
            .await?;
        session.rollback().await?;
        let mut load = Load::new();
        for row in &rows {
            last = (row.int(3)?, row.text(1)?.to_owned());
            let Some(bytes) = row.opt_bytes(2)? else { continue };
            let state =
                crate::merge::RowState::decode(bytes, |number| context.actors.actor(number))?;
            load.push(row.text(0)?.into(), row.text(1)?.into(), &state);
        }
        let done = rows.len() < usize::try_from(ROWS_MAX).unwrap_or(usize::MAX);
        load.last = done;
        let number =
            reply::send(engine, child, MessageKind::Load, Lane::Records, &load.encode()?).await?;
        let (from, _) = *numbers.get_or_insert((number, number));
        numbers = Some((from, number));
        if done {
            break;
        }
    }
    let mut session = engine.store.begin().await?;
    if let Some(numbers) = numbers {
        invites::load_sent(&mut session, server, numbers).await?;
    }
    session.commit().await
}

/// Takes row states in: with values they are joined and written; where the child has the data
/// already, the stamps alone come, and are joined. Yields the rows that were written.
pub(super) async fn load(
    engine: &Engine,
    session: &mut Session,
    context: &mut Context,
    neighbour: &Neighbour,
    load: &Load,
) -> Result<Vec<RowId>> {
    context.actors.admit(session, load.actors()).await?;
    let bare = |row: &LoadRow| {
        let dead_here = !row.state.alive() && context.catalog.class(&row.class).is_some();
        row.values.is_empty() && !dead_here
    };
    let (stamps, whole): (Vec<&LoadRow>, Vec<&LoadRow>) =
        load.rows.iter().partition(|row| bare(row));
    let mut rows = Vec::new();
    for row in stamps {
        let class = class_id(session, &row.class).await?;
        rows.push((class, row));
    }
    let mut states = crate::store::states::States::default();
    let places = rows.iter().map(|(class, row)| (*class, std::sync::Arc::clone(&row.key)));
    states.load(session, &context.actors, places).await?;
    for (class, row) in rows {
        states.change((class, std::sync::Arc::clone(&row.key))).join(&row.state);
    }
    states.save(session, &mut context.actors).await?;
    if whole.is_empty() {
        return Ok(Vec::new());
    }
    super::rows::take(engine, session, context, neighbour, &whole).await
}

/// The local number of a class, given to it now if it has none.
async fn class_id(session: &mut Session, class: &str) -> Result<i32> {
    bulk::insert(
        session,
        "@sync_tracked",
        &[("class", "text")],
        vec![vec![class.into()]],
        "ON CONFLICT (class) DO NOTHING",
    )
    .await?;
    let row = session
        .query_one("SELECT id FROM @sync_tracked WHERE class = $1", vec![class.into()])
        .await?;
    i32::try_from(row.int(0)?).map_err(|_| Error::failed("`sync_tracked.id` is out of range"))
}
