//! The child's half of joining: what a token means for this server, and the parent's row.

use uuid::Uuid;

use super::audit;
use super::identity::{self, Identity};
use super::servers::{self, LinkState, Neighbour, New, Role};
use crate::error::{Error, Result};
use crate::store::Session;
use crate::token::Token;

/// What [`join`] left: the request that this describes is to be published, again if need be.
#[derive(Clone)]
pub struct Joining {
    /// Who asks.
    pub identity: Identity,
    /// Whom.
    pub parent: Neighbour,
    /// The database was a copy of the parent's and has an identity of its own now.
    pub renewed: bool,
    /// The parent that it had before.
    pub moved_from: Option<String>,
}

/// Takes a token: writes the parent's row, JOINING. Safe to repeat until the parent has answered.
///
/// # Errors
/// [`Config`](crate::Kind::Config) for an expired token, one of this server's own, of a server below
/// it, or of another tree, and where there is a parent already (unless `moving`).
pub async fn join(
    session: &mut Session,
    token: &Token,
    moving: bool,
    now: i64,
    actor: &str,
) -> Result<Joining> {
    super::lock(session).await?;
    let mut own = identity::identity(session).await?;
    if token.expires_at <= now {
        return Err(Error::config(format!(
            "the token expired at {}: ask `{}` for a new one",
            crate::store::time::format(token.expires_at),
            token.parent_nickname
        )));
    }
    let renewed = token.parent == own.server;
    if renewed {
        own = renew_copy(session, token, &own).await?;
    }
    let old = servers::parent(session).await?;
    if let Some(old) = &old {
        refuse_second(old, token, moving)?;
    }
    refuse_foreign(session, token, &own).await?;
    let moved_from = match &old {
        Some(old) => leave(session, old, token, actor).await?,
        None => None,
    };
    let id = servers::add(
        session,
        New {
            server: token.parent.0,
            nickname: &token.parent_nickname,
            role: Role::Parent,
            state: LinkState::Joining,
            address: &token.broker_url,
            public_key: Some(token.parent_key),
        },
    )
    .await?;
    session
        .execute(
            // 0 is this server itself.
            "UPDATE @sync_held SET server_id = $1 WHERE server_id <> 0 \
             AND server_id NOT IN (SELECT id FROM @sync_server)",
            vec![id.into()],
        )
        .await?;
    session
        .execute("UPDATE @sync_import SET server_id = $1 WHERE state IN ('FAILED', 'FAILED_AND_STOPPED') AND server_id NOT IN (SELECT id FROM @sync_server)", vec![id.into()])
        .await?;
    let parent =
        servers::parent(session).await?.ok_or_else(|| Error::failed("the parent's row is gone"))?;
    audit::note(session, actor, "join", &servers::named(&parent)).await?;
    Ok(Joining { identity: own, parent, renewed, moved_from })
}

/// A database that has the parent's uuid is the parent itself, or a copy of it that is to become a
/// child. Only what tells one database from its copy can say which.
async fn renew_copy(session: &mut Session, token: &Token, own: &Identity) -> Result<Identity> {
    let here = identity::database_identity(session).await?;
    if here.is_none() || here == own.database_identity {
        return Err(Error::config(format!(
            "the token is this server's own: `{}` cannot join itself (if this database is a copy \
             of `{}`, run `branchline init --nickname {} --new-identity` first)",
            own.nickname, own.nickname, token.nickname
        )));
    }
    identity::renew(session, &token.nickname).await
}

/// Refuses a token of a server below this one, and one of another tree than this server's.
async fn refuse_foreign(session: &mut Session, token: &Token, own: &Identity) -> Result<()> {
    let all = servers::neighbours(session).await?;
    let children = all.iter().filter(|neighbour| neighbour.role == Role::Child).count();
    if all.iter().any(|other| other.role == Role::Child && other.server == token.parent) {
        return Err(Error::config(format!(
            "`{}` is a child of this server and cannot be its parent too",
            token.parent_nickname
        )));
    }
    let root = own.tree_id == own.server.0;
    if root && token.tree_id == own.tree_id {
        return Err(Error::config(format!(
            "`{}` belongs to the tree below this server and cannot be its parent",
            token.parent_nickname
        )));
    }
    if token.tree_id != own.tree_id && (!root || children > 0) {
        let why = if root {
            format!(
                "this server is the root of a tree of its own, with {children} children (connect a tree from its root downwards)"
            )
        } else {
            "this server belongs to a tree already".to_owned()
        };
        return Err(Error::config(format!(
            "the token of `{}` is for another tree ({}): {why}; `branchline init --nickname {} \
             --new-identity` would make it a server without a tree",
            token.parent_nickname, token.tree_id, own.nickname
        )));
    }
    Ok(())
}

/// Refuses a second parent.
fn refuse_second(old: &Neighbour, token: &Token, moving: bool) -> Result<()> {
    let (name, same) = (&old.nickname, old.server == token.parent);
    match old.state {
        // Asked and not taken: asking again, or somebody else, is free.
        LinkState::Refused => Ok(()),
        LinkState::Joining if same => Ok(()),
        _ if same => Err(Error::config(format!("this server is a child of `{name}` already"))),
        _ if moving => Ok(()),
        LinkState::Joining => Err(Error::config(format!(
            "this server waits for the answer of `{name}`; `join --move` asks `{}` instead",
            token.parent_nickname
        ))),
        _ => Err(Error::config(format!(
            "this server has a parent, `{name}`, in its tree; `join --move` makes it a child of `{}` instead",
            token.parent_nickname
        ))),
    }
}

/// Takes the former parent's row away; its name, if it is not the same again.
async fn leave(
    session: &mut Session,
    old: &Neighbour,
    token: &Token,
    actor: &str,
) -> Result<Option<String>> {
    session.execute("DELETE FROM @sync_server WHERE id = $1", vec![old.id.into()]).await?;
    servers::reopen_records(session).await?;
    if old.server == token.parent {
        return Ok(None);
    }
    audit::note(session, actor, "join --move", &servers::named(old)).await?;
    Ok(Some(old.nickname.clone()))
}

/// The parent said yes.
pub async fn accepted(
    session: &mut Session,
    server_id: i64,
    tree_id: Uuid,
    now: i64,
) -> Result<()> {
    session
        .execute(
            "UPDATE @sync_server SET state = 'JOINED', joined_at = $1, error_message = NULL \
             WHERE id = $2",
            vec![crate::store::Datum::time(now), server_id.into()],
        )
        .await?;
    session
        .execute("UPDATE @sync_self SET tree_id = $1 WHERE id = 1", vec![tree_id.into()])
        .await?;
    Ok(())
}

/// The parent said no.
pub async fn refused(session: &mut Session, server_id: i64, reason: &str) -> Result<()> {
    session
        .execute(
            "UPDATE @sync_server SET state = 'REFUSED', error_message = $1 WHERE id = $2",
            vec![reason.into(), server_id.into()],
        )
        .await?;
    Ok(())
}

/// A neighbour of ours refuses what we send, for now: we may be a copy of who it knows.
pub async fn warned(session: &mut Session, server_id: i64, reason: &str) -> Result<()> {
    session
        .execute(
            "UPDATE @sync_server SET last_contact_state = 'refused', error_message = $1 \
             WHERE id = $2",
            vec![reason.into(), server_id.into()],
        )
        .await?;
    Ok(())
}
