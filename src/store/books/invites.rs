//! Invitations: the parent's half of joining. The row of the child to be stands in `sync_server`
//! from the invitation on, so that everything sealed after it waits for the child.

use ed25519_dalek::{SigningKey, VerifyingKey};
use rand::rngs::OsRng;
use uuid::Uuid;

use super::audit;
use super::identity::{checked_nickname, identity};
use super::servers::{self, LinkState, New, Role};
use crate::error::{Error, Result};
use crate::store::{Datum, Session};
use crate::token::Token;

/// What the parent keeps of an invitation.
#[derive(Clone, Debug)]
pub struct Invite {
    /// Names it, in the token and in the join request.
    pub uuid: Uuid,
    /// The child's row in `sync_server`.
    pub server_id: i64,
    /// Verifies the join request.
    pub verify_key: VerifyingKey,
    /// Whether the child is to get a first load.
    pub load: bool,
    /// Milliseconds since 1970.
    pub expires_at: i64,
    /// Who used it.
    pub used_by: Option<Uuid>,
}

/// What an invitation is to say.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What the child is called here until it says itself.
    pub nickname: &'a str,
    /// Whether it gets a first load.
    pub load: bool,
    /// When the token expires, milliseconds since 1970.
    pub expires_at: i64,
    /// Where the child reaches the broker.
    pub broker_url: &'a str,
}

/// Invites a child and makes its token. Invitations that expired unused are evicted on the way.
///
/// # Errors
/// [`Config`](crate::Kind::Config) for a bad nickname, or one that a neighbour has already.
pub async fn create(session: &mut Session, wanted: Wanted<'_>, actor: &str) -> Result<Token> {
    super::lock(session).await?;
    let own = identity(session).await?;
    evict_expired(session, actor).await?;
    let nickname = checked_nickname(wanted.nickname)?;
    refuse_taken(session, &own.nickname, nickname).await?;
    let token = Token {
        tree_id: own.tree_id,
        parent: own.server,
        parent_nickname: own.nickname.clone(),
        parent_key: own.signing_key.verifying_key(),
        broker_url: wanted.broker_url.to_owned(),
        invite: Uuid::new_v4(),
        secret: SigningKey::generate(&mut OsRng),
        nickname: nickname.to_owned(),
        expires_at: wanted.expires_at,
        load: wanted.load,
    };
    let server_id = servers::add(
        session,
        New {
            server: token.invite,
            nickname,
            role: Role::Child,
            state: LinkState::Invited,
            address: "",
            public_key: None,
        },
    )
    .await?;
    session
        .execute(
            "INSERT INTO @sync_invite (uuid, server_id, verify_key, load, expires_at) \
             VALUES ($1, $2, $3, $4, $5)",
            vec![
                token.invite.into(),
                server_id.into(),
                token.verify_key().to_bytes().to_vec().into(),
                token.load.into(),
                Datum::time(token.expires_at),
            ],
        )
        .await?;
    audit::note(session, actor, "invite", &format!("`{nickname}` {}", token.invite)).await?;
    Ok(token)
}

async fn refuse_taken(session: &mut Session, own: &str, nickname: &str) -> Result<()> {
    if own == nickname {
        return Err(Error::config(format!("`{nickname}` is what this server itself is called")));
    }
    let all = servers::neighbours(session).await?;
    match all.iter().find(|neighbour| neighbour.nickname == nickname) {
        None => Ok(()),
        Some(other) if other.state == LinkState::Invited => Err(Error::config(format!(
            "`{nickname}` is invited already; if that token is lost, `branchline servers evict \
             {nickname}` makes it void, then invite again"
        ))),
        Some(_) => Err(Error::config(format!(
            "a neighbour is called `{nickname}` already; choose another name, or evict it first"
        ))),
    }
}

/// An invitation by its uuid, for the parent that gets a join request.
pub async fn find(session: &mut Session, uuid: Uuid) -> Result<Option<Invite>> {
    let row = session
        .query_opt(
            "SELECT uuid, server_id, verify_key, load, expires_at, used_by FROM @sync_invite \
             WHERE uuid = $1",
            vec![uuid.into()],
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Invite {
        uuid: row.uuid(0)?,
        server_id: row.int(1)?,
        verify_key: VerifyingKey::try_from(row.bytes(2)?)
            .map_err(|_| Error::failed("`sync_invite.verify_key` is no Ed25519 key"))?,
        load: row.flag(3)?,
        expires_at: row.time(4)?,
        used_by: row.opt_uuid(5)?,
    }))
}

/// Marks an invitation as used by `server`.
pub async fn use_up(session: &mut Session, invite: Uuid, server: Uuid) -> Result<()> {
    session
        .execute(
            "UPDATE @sync_invite SET used_by = $1, used_at = $2 WHERE uuid = $3",
            vec![server.into(), Datum::time(crate::store::time::now()), invite.into()],
        )
        .await?;
    Ok(())
}

/// Evicts children whose invitation expired unused, with the records that wait for them.
pub async fn evict_expired(session: &mut Session, actor: &str) -> Result<u64> {
    let rows = session
        .query(
            "SELECT s.id, s.nickname FROM @sync_server s JOIN @sync_invite i ON i.server_id = s.id \
             WHERE s.state = 'INVITED' AND i.used_by IS NULL AND i.expires_at < $1",
            vec![Datum::time(crate::store::time::now())],
        )
        .await?;
    for row in &rows {
        session.execute("DELETE FROM @sync_server WHERE id = $1", vec![row.int(0)?.into()]).await?;
        let detail = format!("`{}`: its invitation expired", row.text(1)?);
        audit::note(session, actor, "servers evict", &detail).await?;
    }
    Ok(rows.len() as u64)
}

/// Loads that went in messages up to `number`, all of which the child has now, are done with.
pub async fn load_arrived(session: &mut Session, server_id: i64, number: i64) -> Result<()> {
    let done = session
        .execute(
            "UPDATE @sync_invite SET loaded_at = $3 WHERE server_id = $1 AND loaded_at IS NULL \
             AND load_to <= $2",
            vec![server_id.into(), number.into(), Datum::time(crate::store::time::now())],
        )
        .await?;
    if done > 0 {
        session
            .execute("DELETE FROM @sync_invite_state WHERE server_id = $1", vec![server_id.into()])
            .await?;
    }
    Ok(())
}

/// Messages with these numbers are lost: a load that was among them starts over.
pub async fn load_lost(
    session: &mut Session,
    server_id: i64,
    (from, to): (i64, i64),
) -> Result<()> {
    session
        .execute(
            "UPDATE @sync_invite SET load_from = NULL, load_to = NULL WHERE server_id = $1 \
             AND loaded_at IS NULL AND load_from <= $3 AND load_to >= $2",
            vec![server_id.into(), from.into(), to.into()],
        )
        .await?;
    Ok(())
}

/// Notes in which messages a load went.
pub async fn load_sent(
    session: &mut Session,
    server_id: i64,
    (from, to): (u64, u64),
) -> Result<()> {
    let stored = |number| i64::try_from(number).unwrap_or(i64::MAX);
    session
        .execute(
            "UPDATE @sync_invite SET load_from = $2, load_to = $3 WHERE server_id = $1 \
             AND used_at IS NOT NULL AND loaded_at IS NULL",
            vec![server_id.into(), stored(from).into(), stored(to).into()],
        )
        .await?;
    Ok(())
}

/// A load that a child has still to get.
#[derive(Clone, Copy, Debug)]
pub struct LoadDue {
    /// The invitation.
    pub uuid: Uuid,
    /// Whether values go along.
    pub values: bool,
}

/// The load that is to be sent to a child now, if any: of a used invitation, and not under way.
pub async fn load_due(session: &mut Session, server_id: i64) -> Result<Option<LoadDue>> {
    let row = session
        .query_opt(
            "SELECT uuid, load FROM @sync_invite WHERE server_id = $1 AND used_at IS NOT NULL \
             AND loaded_at IS NULL AND load_to IS NULL",
            vec![server_id.into()],
        )
        .await?;
    row.map(|row| Ok(LoadDue { uuid: row.uuid(0)?, values: row.flag(1)? })).transpose()
}
