//! Who this server is: one row in `sync_self`, and its line in `sync_origin`.

use ed25519_dalek::SigningKey;
use rand::rngs::OsRng;
use uuid::Uuid;

use super::{Attempts, audit};
use crate::error::{Error, Result};
use crate::id::{Actor, Incarnation, ServerId};
use crate::store::{Dialect, Session, Store};

/// The longest nickname, in characters.
pub const NICKNAME_CHARS_MAX: usize = 64;

/// This server.
#[derive(Clone)]
pub struct Identity {
    /// Its uuid.
    pub server: ServerId,
    /// What it calls itself.
    pub nickname: String,
    /// Its life between two restores.
    pub incarnation: Incarnation,
    /// Signs what it seals and sends.
    pub signing_key: SigningKey,
    /// The tree it belongs to; its own uuid until it joins one.
    pub tree_id: Uuid,
    /// The newest stamp's time that it gave.
    pub clock: u64,
    /// The next running number of a sealed record.
    pub next_number: u64,
    /// What [`database_identity`] said when the identity was made.
    pub database_identity: Option<String>,
    /// When it last cleaned up, milliseconds since 1970.
    pub last_cleanup: Option<i64>,
}

impl Identity {
    /// The server in its present incarnation.
    #[must_use]
    pub fn actor(&self) -> Actor {
        Actor { server: self.server, incarnation: self.incarnation }
    }
}

/// What `init` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// The server is new.
    New,
    /// It was there already, and is as it was.
    Kept,
    /// It was there already, and calls itself otherwise now.
    Renamed,
    /// It was there, and is another server now, without neighbours.
    Renewed,
}

/// This server's identity.
///
/// # Errors
/// [`Config`](crate::Kind::Config) when `init` has not been run here.
pub async fn identity(session: &mut Session) -> Result<Identity> {
    read(session).await?.ok_or_else(no_identity)
}

/// Keeps the newest stamp's time and the next running number. Under the seal lock only.
pub async fn save_counters(session: &mut Session, clock: u64, next_number: u64) -> Result<()> {
    let stored = |value| i64::try_from(value).unwrap_or(i64::MAX);
    session
        .execute(
            "UPDATE @sync_self SET clock = $1, next_number = $2 WHERE id = 1",
            vec![stored(clock).into(), stored(next_number).into()],
        )
        .await?;
    Ok(())
}

/// The error for a database that `init` has not seen.
fn no_identity() -> Error {
    Error::config(
        "this database is no Branchline server yet: run `branchline init --nickname NAME` first",
    )
}

/// The identity, or `None` where the tables are there and empty.
async fn read(session: &mut Session) -> Result<Option<Identity>> {
    if !has_tables(session).await? {
        return Err(no_identity());
    }
    let row = session
        .query_opt(
            "SELECT uuid, nickname, incarnation, signing_key, tree_id, clock, next_number, \
             database_identity, last_cleanup FROM @sync_self WHERE id = 1",
            Vec::new(),
        )
        .await?;
    let Some(row) = row else { return Ok(None) };
    let key: [u8; 32] = row
        .bytes(3)?
        .try_into()
        .map_err(|_| Error::failed("`sync_self.signing_key` is not 32 bytes long"))?;
    Ok(Some(Identity {
        server: ServerId(row.uuid(0)?),
        nickname: row.text(1)?.to_owned(),
        incarnation: narrow(row.int(2)?, "incarnation")?,
        signing_key: SigningKey::from_bytes(&key),
        tree_id: row.uuid(4)?,
        clock: row.int(5)? as u64,
        next_number: row.int(6)? as u64,
        database_identity: row.opt_text(7)?.map(str::to_owned),
        last_cleanup: row.opt_time(8)?,
    }))
}

pub(super) fn narrow<T: TryFrom<i64>>(value: i64, name: &str) -> Result<T> {
    T::try_from(value).map_err(|_| Error::failed(format!("`{name}` holds {value}, out of range")))
}

async fn has_tables(session: &mut Session) -> Result<bool> {
    let sql = match session.dialect() {
        Dialect::Postgres => "SELECT (to_regclass('branchline.sync_self') IS NOT NULL)::int",
        Dialect::Sqlite => {
            "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'sync_self'"
        }
    };
    Ok(session.query_one(sql, Vec::new()).await?.int(0)? > 0)
}

/// What tells this database from a copy of it: system, timeline and oid on PostgreSQL, the file's
/// device and inode on SQLite. `None` where it cannot be told.
pub async fn database_identity(session: &mut Session) -> Result<Option<String>> {
    match session.dialect() {
        Dialect::Postgres => {
            let allowed = session
                .query_one(
                    "SELECT (has_function_privilege('pg_catalog.pg_control_system()', 'execute') \
                     AND has_function_privilege('pg_catalog.pg_control_checkpoint()', 'execute'))::int",
                    Vec::new(),
                )
                .await?;
            if !allowed.flag(0)? {
                return Ok(None);
            }
            let row = session
                .query_one(
                    "SELECT s.system_identifier::text || '/' || c.timeline_id::text || '/' || d.oid::text \
                     FROM pg_control_system() s, pg_control_checkpoint() c, pg_database d \
                     WHERE d.datname = current_database()",
                    Vec::new(),
                )
                .await?;
            Ok(row.opt_text(0)?.map(str::to_owned))
        }
        Dialect::Sqlite => {
            let rows = session.query("PRAGMA database_list", Vec::new()).await?;
            let main = rows.iter().find(|row| row.text(1).is_ok_and(|name| name == "main"));
            let path = main.and_then(|row| row.opt_text(2).ok().flatten()).unwrap_or_default();
            Ok(file_identity(path))
        }
    }
}

#[cfg(unix)]
fn file_identity(path: &str) -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).ok()?;
    Some(format!("{}/{}", metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn file_identity(_path: &str) -> Option<String> {
    None
}

/// Makes the sync tables and the identity, or brings both up to date. Safe to repeat.
///
/// # Errors
/// [`Config`](crate::Kind::Config) for a bad nickname, and for another nickname than a server with
/// neighbours has.
pub async fn init(
    store: &Store,
    nickname: &str,
    new_identity: bool,
    actor: &str,
) -> Result<(Identity, Made)> {
    let nickname = checked_nickname(nickname)?;
    store.migrate().await?;
    let mut attempts = Attempts::default();
    loop {
        let mut session = store.begin().await?;
        let made = make(&mut session, nickname, new_identity, actor).await;
        match session.end(made).await {
            Err(error) if attempts.again(&error).await => {}
            other => return other,
        }
    }
}

async fn make(
    session: &mut Session,
    nickname: &str,
    new_identity: bool,
    actor: &str,
) -> Result<(Identity, Made)> {
    super::lock(session).await?;
    let Some(old) = read(session).await? else {
        let identity = create(session, nickname).await?;
        audit::note(session, actor, "init", &format!("made `{nickname}` {}", identity.server))
            .await?;
        return Ok((identity, Made::New));
    };
    if new_identity {
        let detail = format!("`{}` {} becomes `{nickname}`", old.nickname, old.server);
        let identity = renew(session, nickname).await?;
        audit::note(session, actor, "init --new-identity", &detail).await?;
        return Ok((identity, Made::Renewed));
    }
    if old.nickname == nickname {
        return Ok((old, Made::Kept));
    }
    rename(session, &old, nickname, actor).await?;
    Ok((Identity { nickname: nickname.to_owned(), ..old }, Made::Renamed))
}

/// A nickname without white space around it, that is neither empty, nor long, nor unprintable.
pub fn checked_nickname(nickname: &str) -> Result<&str> {
    let nickname = nickname.trim();
    if nickname.is_empty() || nickname.chars().count() > NICKNAME_CHARS_MAX {
        return Err(Error::config(format!("a nickname has 1 to {NICKNAME_CHARS_MAX} characters")));
    }
    if nickname.chars().any(char::is_control) {
        return Err(Error::config("a nickname has no control characters"));
    }
    Ok(nickname)
}

async fn create(session: &mut Session, nickname: &str) -> Result<Identity> {
    let server = ServerId::random();
    let signing_key = SigningKey::generate(&mut OsRng);
    let place = database_identity(session).await?;
    session
        .execute(
            "INSERT INTO @sync_self (id, uuid, nickname, incarnation, signing_key, tree_id, \
             database_identity) VALUES (1, $1, $2, 1, $3, $1, $4)",
            vec![
                server.into(),
                nickname.into(),
                signing_key.to_bytes().to_vec().into(),
                place.clone().into(),
            ],
        )
        .await?;
    let identity = Identity {
        server,
        nickname: nickname.to_owned(),
        incarnation: 1,
        signing_key,
        tree_id: server.0,
        clock: 0,
        next_number: 1,
        database_identity: place,
        last_cleanup: None,
    };
    add_origin(session, &identity).await?;
    Ok(identity)
}

async fn add_origin(session: &mut Session, identity: &Identity) -> Result<()> {
    session
        .execute(
            "INSERT INTO @sync_origin (uuid, incarnation, nickname, public_key) \
             VALUES ($1, $2, $3, $4)",
            vec![
                identity.server.into(),
                identity.incarnation.into(),
                identity.nickname.as_str().into(),
                identity.signing_key.verifying_key().to_bytes().to_vec().into(),
            ],
        )
        .await?;
    Ok(())
}

/// Makes this server another one: new uuid, key and incarnation 1, and no neighbours. What it holds
/// stays: rows, row states, classes, the servers it knows of, what it holds back, and changes that
/// are not sealed yet (they may be the copy's own).
pub(super) async fn renew(session: &mut Session, nickname: &str) -> Result<Identity> {
    for table in [
        "server_record",
        "record",
        "part",
        "batch",
        "invite_state",
        "invite",
        "server_class",
        "server",
        "transmission",
    ] {
        session.execute(&format!("DELETE FROM @sync_{table}"), Vec::new()).await?;
    }
    // Of what came in, only what is still held must be known.
    session
        .execute(
            "DELETE FROM @sync_import WHERE original_uuid NOT IN \
             (SELECT original_uuid FROM @sync_held WHERE original_uuid IS NOT NULL)",
            Vec::new(),
        )
        .await?;
    let clock = session.query_one("SELECT clock FROM @sync_self WHERE id = 1", Vec::new()).await?;
    session.execute("DELETE FROM @sync_self", Vec::new()).await?;
    let mut identity = create(session, nickname).await?;
    let clock = clock.int(0)?;
    session.execute("UPDATE @sync_self SET clock = $1 WHERE id = 1", vec![clock.into()]).await?;
    identity.clock = clock as u64;
    Ok(identity)
}

async fn rename(session: &mut Session, old: &Identity, nickname: &str, actor: &str) -> Result<()> {
    let linked = session
        .query_one("SELECT count(*) FROM @sync_server WHERE state <> 'INVITED'", Vec::new())
        .await?;
    if linked.int(0)? > 0 {
        return Err(Error::config(format!(
            "this server is `{}` to its neighbours and keeps that name; run `init --nickname {}`, \
             or add --new-identity if it is a copy and to become another server",
            old.nickname, old.nickname
        )));
    }
    session
        .execute("UPDATE @sync_self SET nickname = $1 WHERE id = 1", vec![nickname.into()])
        .await?;
    session
        .execute(
            "UPDATE @sync_origin SET nickname = $1 WHERE uuid = $2",
            vec![nickname.into(), old.server.into()],
        )
        .await?;
    audit::note(session, actor, "init", &format!("`{}` is now `{nickname}`", old.nickname)).await
}
