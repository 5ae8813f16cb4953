//! How a server stands: what is to go out, what came in, what is held, for each neighbour.

use std::collections::HashMap;

use super::identity::{Identity, identity};
use super::servers::{self, Neighbour, Role};
use crate::error::Result;
use crate::state::State;
use crate::store::Session;
use crate::store::session::Dialect;

/// How many records are in which state, in the order of [`State::ALL`], states without any left out.
pub type Counts = Vec<(String, i64)>;

/// A server and its links.
#[derive(Clone)]
pub struct Status {
    /// Who.
    pub identity: Identity,
    /// The link to the parent.
    pub parent: Option<Link>,
    /// The links to the children, invited ones included.
    pub children: Vec<Link>,
    /// Records that are held here, whoever sent them.
    pub held: i64,
    /// Changes that are not sealed yet.
    pub unsealed: i64,
    /// How old the oldest of them is, in milliseconds.
    pub oldest_unsealed_ms: Option<i64>,
    /// Classes under capture.
    pub classes: i64,
}

/// One link.
#[derive(Clone, Debug)]
pub struct Link {
    /// The neighbour.
    pub neighbour: Neighbour,
    /// What goes there.
    pub out: Counts,
    /// What came from there.
    pub came_in: Counts,
    /// What is held of that.
    pub held: i64,
}

impl Link {
    /// Records that are not there yet and may still get there.
    #[must_use]
    pub fn waiting(&self) -> i64 {
        let open = [State::New, State::Sent, State::SentAgain, State::SendFailed];
        self.in_states(&open)
    }

    /// Records on their way out that are in one of these states.
    #[must_use]
    pub fn in_states(&self, states: &[State]) -> i64 {
        let counted = |name: &str| states.iter().any(|state| state.as_str() == name);
        self.out.iter().filter(|(name, _)| counted(name)).map(|(_, number)| number).sum()
    }
}

/// Reads the status; in one snapshot when the session is of [`Store::read`](crate::store::Store::read).
///
/// # Errors
/// [`Config`](crate::Kind::Config) when `init` has not been run here.
pub async fn status(session: &mut Session, now: i64) -> Result<Status> {
    let identity = identity(session).await?;
    let own =
        grouped(session, "SELECT 0, state, count(*) FROM @sync_record GROUP BY state").await?;
    let mut out = grouped(
        session,
        "SELECT server_id, state, count(*) FROM @sync_server_record GROUP BY server_id, state",
    )
    .await?;
    let mut came_in = grouped(
        session,
        "SELECT server_id, state, count(*) FROM @sync_import GROUP BY server_id, state",
    )
    .await?;
    let mut held = HashMap::new();
    for row in session
        .query("SELECT server_id, count(*) FROM @sync_held GROUP BY server_id", Vec::new())
        .await?
    {
        held.insert(row.int(0)?, row.int(1)?);
    }
    let held_total = held.values().sum();
    let mut parent = None;
    let mut children = Vec::new();
    for neighbour in servers::neighbours(session).await? {
        let id = neighbour.id;
        let is_parent = neighbour.role == Role::Parent;
        let sent = if is_parent { own.get(&0).cloned() } else { out.remove(&id) };
        let link = Link {
            neighbour,
            out: sent.unwrap_or_default(),
            came_in: came_in.remove(&id).unwrap_or_default(),
            held: held.get(&id).copied().unwrap_or_default(),
        };
        if is_parent { parent = Some(link) } else { children.push(link) }
    }
    let (unsealed, oldest) = unsealed(session).await?;
    let classes = session
        .query_one("SELECT count(*) FROM @sync_tracked WHERE definition IS NOT NULL", Vec::new())
        .await?
        .int(0)?;
    Ok(Status {
        identity,
        parent,
        children,
        held: held_total,
        unsealed,
        oldest_unsealed_ms: oldest.map(|time| now.saturating_sub(time).max(0)),
        classes,
    })
}

/// How many changes are not sealed, and when the oldest was made. Marks and notes are none.
pub async fn unsealed(session: &mut Session) -> Result<(i64, Option<i64>)> {
    let oldest = match session.dialect() {
        Dialect::Postgres => "min(changed_at)",
        // Julian days.
        Dialect::Sqlite => "strftime('%Y-%m-%dT%H:%M:%fZ', min(changed_at))",
    };
    let sql = format!("SELECT count(*), {oldest} FROM @sync_change WHERE op < 4");
    let row = session.query_one(&sql, Vec::new()).await?;
    Ok((row.int(0)?, row.opt_time(1)?))
}

async fn grouped(session: &mut Session, sql: &str) -> Result<HashMap<i64, Counts>> {
    let mut counts: HashMap<i64, Counts> = HashMap::new();
    for row in session.query(sql, Vec::new()).await? {
        counts.entry(row.int(0)?).or_default().push((row.text(1)?.to_owned(), row.int(2)?));
    }
    let place = |name: &str| State::ALL.iter().position(|known| known.as_str() == name);
    for list in counts.values_mut() {
        list.sort_by_key(|(name, _)| place(name).unwrap_or(usize::MAX));
    }
    Ok(counts)
}
