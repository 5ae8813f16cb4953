//! The neighbours: the parent and the children, invited ones included.

use ed25519_dalek::VerifyingKey;
use uuid::Uuid;

use super::audit;
use super::identity::narrow;
use crate::error::{Error, Result};
use crate::id::{Incarnation, ServerId};
use crate::store::links;
use crate::store::session::Row;
use crate::store::{Datum, Session};

/// Which end of the link a neighbour is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// It is our parent.
    Parent,
    /// It is a child of ours.
    Child,
}

/// How far a link has come (`sync_server.state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// A child that has a token and has not used it. Its uuid is the invitation's.
    Invited,
    /// The parent that we asked to take us, and that has not answered.
    Joining,
    /// The link is made.
    Joined,
    /// The parent that we asked said no; why stands in `error_message`.
    Refused,
}

macro_rules! by_name {
    ($type:ident, $what:literal, $($variant:ident => $name:literal),*) => {
        impl $type {
            /// The name in the table.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            fn parse(text: &str) -> Result<Self> {
                match text {
                    $($name => Ok(Self::$variant),)*
                    other => Err(Error::failed(format!(concat!($what, " `{}` is unknown"), other))),
                }
            }
        }
    };
}
by_name!(Role, "the role", Parent => "PARENT", Child => "CHILD");
by_name!(LinkState, "the link state",
    Invited => "INVITED", Joining => "JOINING", Joined => "JOINED", Refused => "REFUSED");

/// A neighbour, with this side's bookkeeping of the link to it.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// `sync_server.id`.
    pub id: i64,
    /// Its uuid; of an invited child the invitation's.
    pub server: ServerId,
    /// What it calls itself; of an invited child what the invitation calls it.
    pub nickname: String,
    /// Parent or child.
    pub role: Role,
    /// How far the link has come.
    pub state: LinkState,
    /// The broker of the link, login included, where it is not our own (the parent's).
    pub address: String,
    /// Neither sent to nor read from.
    pub disabled: bool,
    /// Verifies what it signs; `None` until it has joined.
    pub public_key: Option<VerifyingKey>,
    /// When it was last heard of, milliseconds since 1970.
    pub last_contact: Option<i64>,
    /// How that went: `ok`, or `failed`.
    pub last_contact_state: Option<String>,
    /// What went wrong last, if it still stands.
    pub error_message: Option<String>,
    /// Its incarnation, as its last hello said.
    pub incarnation: Option<Incarnation>,
    /// Its session, as its last hello said.
    pub session: Option<Uuid>,
    /// The highest message format that it reads.
    pub format: Option<u16>,
    /// By how much its clock is ahead of ours.
    pub clock_skew_ms: Option<i64>,
    /// Epoch of what we send.
    pub out_epoch: u64,
    /// The last number that we sent in it.
    pub out_number: u64,
    /// Epoch of what it sends.
    pub in_epoch: u64,
    /// Up to which number of it everything has come in.
    pub in_number: u64,
    /// When the link was made, milliseconds since 1970.
    pub joined_at: Option<i64>,
}

impl Neighbour {
    /// A server that asked to become a child, as far as answering it needs.
    #[must_use]
    pub fn stranger(server: ServerId, nickname: &str, public_key: VerifyingKey) -> Self {
        Self {
            id: 0,
            server,
            nickname: nickname.to_owned(),
            role: Role::Child,
            state: LinkState::Invited,
            address: String::new(),
            disabled: false,
            public_key: Some(public_key),
            last_contact: None,
            last_contact_state: None,
            error_message: None,
            incarnation: None,
            session: None,
            format: None,
            clock_skew_ms: None,
            out_epoch: 0,
            out_number: 0,
            in_epoch: 0,
            in_number: 0,
            joined_at: None,
        }
    }

    /// Whether the link is made.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        self.state == LinkState::Joined
    }

    /// Whether it is our parent.
    #[must_use]
    pub fn is_parent(&self) -> bool {
        self.role == Role::Parent
    }

    /// Whether it is a child of ours.
    #[must_use]
    pub fn is_child(&self) -> bool {
        self.role == Role::Child
    }
}

const COLUMNS: &str = "id, uuid, nickname, role, state, address, disabled, public_key, \
    last_contact, last_contact_state, error_message, incarnation, session, format, clock_skew_ms, \
    out_epoch, out_number, in_epoch, in_number, joined_at";

fn neighbour(row: &Row) -> Result<Neighbour> {
    let owned = |index| Ok::<_, Error>(row.opt_text(index)?.map(str::to_owned));
    let public_key = row.opt_bytes(7)?.map(verifying_key).transpose()?;
    Ok(Neighbour {
        id: row.int(0)?,
        server: ServerId(row.uuid(1)?),
        nickname: row.text(2)?.to_owned(),
        role: Role::parse(row.text(3)?)?,
        state: LinkState::parse(row.text(4)?)?,
        address: row.text(5)?.to_owned(),
        disabled: row.flag(6)?,
        public_key,
        last_contact: row.opt_time(8)?,
        last_contact_state: owned(9)?,
        error_message: owned(10)?,
        incarnation: row.opt_int(11)?.map(|value| narrow(value, "incarnation")).transpose()?,
        session: row.opt_uuid(12)?,
        format: row.opt_int(13)?.map(|value| narrow(value, "format")).transpose()?,
        clock_skew_ms: row.opt_int(14)?,
        out_epoch: row.int(15)? as u64,
        out_number: row.int(16)? as u64,
        in_epoch: row.int(17)? as u64,
        in_number: row.int(18)? as u64,
        joined_at: row.opt_time(19)?,
    })
}

fn verifying_key(bytes: &[u8]) -> Result<VerifyingKey> {
    VerifyingKey::try_from(bytes)
        .map_err(|_| Error::failed("`sync_server.public_key` is no Ed25519 key"))
}

/// All neighbours, the parent first.
pub async fn neighbours(session: &mut Session) -> Result<Vec<Neighbour>> {
    let sql = format!("SELECT {COLUMNS} FROM @sync_server ORDER BY role DESC, id");
    session.query(&sql, Vec::new()).await?.iter().map(neighbour).collect()
}

/// The parent, joined or not.
pub async fn parent(session: &mut Session) -> Result<Option<Neighbour>> {
    Ok(neighbours(session).await?.into_iter().find(|neighbour| neighbour.role == Role::Parent))
}

/// The neighbour that a person means by a nickname or a uuid.
///
/// # Errors
/// [`Config`](crate::Kind::Config) when there is none, or several go by the nickname.
pub async fn find(session: &mut Session, name: &str) -> Result<Neighbour> {
    let all = neighbours(session).await?;
    if let Ok(uuid) = Uuid::parse_str(name)
        && let Some(found) = all.iter().find(|neighbour| neighbour.server.0 == uuid)
    {
        return Ok(found.clone());
    }
    let mut matching = all.iter().filter(|neighbour| neighbour.nickname == name);
    match (matching.next(), matching.next()) {
        (Some(found), None) => Ok(found.clone()),
        (Some(_), Some(_)) => Err(Error::config(format!(
            "several neighbours are called `{name}`: name the one by its uuid (`servers list` shows it)"
        ))),
        (None, _) => {
            let names: Vec<_> = all.iter().map(|other| format!("`{}`", other.nickname)).collect();
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            Err(Error::config(format!("there is no neighbour `{name}`; there are: {known}")))
        }
    }
}

/// Stops or resumes the exchange with a neighbour. Records wait meanwhile.
pub async fn set_disabled(
    session: &mut Session,
    server: &Neighbour,
    disabled: bool,
    actor: &str,
) -> Result<()> {
    session
        .execute(
            "UPDATE @sync_server SET disabled = $1 WHERE id = $2",
            vec![disabled.into(), server.id.into()],
        )
        .await?;
    if !disabled {
        // Whoever enables a server that there were two of says that one is gone.
        let mut peer = links::peer(session, server.id).await?;
        peer.forgive();
        links::save_peer(session, server.id, &peer).await?;
    }
    let action = if disabled { "servers disable" } else { "servers enable" };
    audit::note(session, actor, action, &named(server)).await
}

/// Forgets a neighbour with its rows of `sync_server_record`, rules and invitation. What it sent
/// stays. After a parent, what it had not committed waits for the next one.
pub async fn evict(session: &mut Session, server: &Neighbour, actor: &str) -> Result<()> {
    super::lock(session).await?;
    session.execute("DELETE FROM @sync_server WHERE id = $1", vec![server.id.into()]).await?;
    if server.role == Role::Parent {
        reopen_records(session).await?;
    }
    audit::note(session, actor, "servers evict", &named(server)).await
}

/// After a parent is gone: what it had not committed is NEW again.
pub(super) async fn reopen_records(session: &mut Session) -> Result<()> {
    session
        .execute(
            "UPDATE @sync_record SET state = 'NEW', retry_count = 0, error_message = NULL, \
             sent_at = NULL, link_number = NULL WHERE state IN ('PENDING', 'SENT', 'SENT_AGAIN', \
             'SEND_FAILED', 'FAILED', 'FAILED_AND_STOPPED')",
            Vec::new(),
        )
        .await?;
    Ok(())
}

pub(super) fn named(server: &Neighbour) -> String {
    format!("`{}` {}", server.nickname, server.server)
}

/// A neighbour to be added.
pub(super) struct New<'a> {
    pub(super) server: Uuid,
    pub(super) nickname: &'a str,
    pub(super) role: Role,
    pub(super) state: LinkState,
    pub(super) address: &'a str,
    pub(super) public_key: Option<VerifyingKey>,
}

/// Adds a neighbour with its own copy of the default rules; from then on only those count for it.
pub(super) async fn add(session: &mut Session, new: New<'_>) -> Result<i64> {
    let key = new.public_key.map(|key| key.to_bytes().to_vec());
    let row = session
        .query_one(
            "INSERT INTO @sync_server (uuid, nickname, role, state, address, public_key) \
             VALUES ($1, $2, $3, $4, $5, $6) RETURNING id",
            vec![
                new.server.into(),
                new.nickname.into(),
                new.role.as_str().into(),
                new.state.as_str().into(),
                new.address.into(),
                Datum::Bytes(key),
            ],
        )
        .await?;
    let id = row.int(0)?;
    session
        .execute(
            "INSERT INTO @sync_server_class (server_id, name, send_to, receive_from) \
             SELECT $1, name, send_to, receive_from FROM @sync_class",
            vec![id.into()],
        )
        .await?;
    Ok(id)
}
