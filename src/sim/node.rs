//! A server of a simulated tree: its database, its process, and what the process has in hand.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use rand::Rng as _;
use rand::rngs::StdRng;
use uuid::Uuid;

use super::clinic;
use super::net::{SharedNet, Wire};
use crate::error::Result;
use crate::id::ServerId;
use crate::interceptor::Wake;
use crate::store::books::{self, Neighbour, Role};
use crate::store::session::{Datum, Session};
use crate::store::{Limits, Store};
use crate::transport::Queue;
use crate::worker::engine::Engine;
use crate::worker::steps::Step;

/// Who a server is: made from the seed.
pub(super) struct Who {
    pub(super) id: ServerId,
    pub(super) name: String,
    pub(super) key: SigningKey,
}

impl Who {
    pub(super) fn new(n: usize, rng: &mut StdRng) -> Self {
        let id = ServerId(uuid::Builder::from_random_bytes(rng.r#gen()).into_uuid());
        Self { id, name: format!("s{n}"), key: SigningKey::from_bytes(&rng.r#gen()) }
    }
}

/// A step under way.
pub(super) struct Task {
    pub(super) step: Step,
    pub(super) peer: usize,
    pub(super) future: Pin<Box<dyn Future<Output = Result<usize>>>>,
    /// Messages that it has in hand: taken off the queue once it is done.
    pub(super) hand: Option<(Queue, usize)>,
    /// What it waits for.
    pub(super) ticket: Option<u64>,
}

/// A server.
pub(super) struct Node {
    pub(super) id: ServerId,
    pub(super) path: PathBuf,
    pub(super) engine: Arc<Engine>,
    /// The neighbours by their place in the tree.
    pub(super) neighbours: Vec<(usize, Neighbour)>,
    pub(super) tasks: Vec<Task>,
    /// By how much its clock is ahead, in ms.
    pub(super) skew: i64,
}

/// Copies the template and makes a server of it, whose neighbours are `links` (place, role).
pub(super) async fn make(
    path: &Path,
    n: usize,
    all: &[Who],
    links: &[(usize, Role)],
) -> Result<()> {
    let template = clinic::template().await;
    std::fs::copy(&template.1, path).unwrap();
    let store = Store::connect(&format!("sqlite:{}", path.display()), Limits::default()).await?;
    let mut session = store.begin().await?;
    let place = books::identity::database_identity(&mut session).await?;
    let own = &all[n];
    session
        .execute(
            "UPDATE @sync_self SET uuid = $1, nickname = $2, signing_key = $3, tree_id = $4, \
             database_identity = $5",
            vec![
                own.id.into(),
                own.name.as_str().into(),
                own.key.to_bytes().to_vec().into(),
                all[0].id.into(),
                place.into(),
            ],
        )
        .await?;
    session.execute("DELETE FROM @sync_origin", vec![]).await?;
    for server in all {
        introduce(&mut session, server).await?;
    }
    for (peer, role) in links {
        befriend(&mut session, &all[*peer], *role).await?;
    }
    session.commit().await
}

async fn introduce(session: &mut Session, server: &Who) -> Result<()> {
    session
        .execute(
            "INSERT INTO @sync_origin (uuid, incarnation, nickname, public_key) \
             VALUES ($1, 1, $2, $3)",
            vec![
                server.id.into(),
                server.name.as_str().into(),
                server.key.verifying_key().to_bytes().to_vec().into(),
            ],
        )
        .await?;
    Ok(())
}

async fn befriend(session: &mut Session, server: &Who, role: Role) -> Result<()> {
    let row = session
        .query_one(
            "INSERT INTO @sync_server (uuid, nickname, role, state, address, public_key, \
             incarnation, joined_at) VALUES ($1, $2, $3, 'JOINED', $4, $5, 1, $6) RETURNING id",
            vec![
                server.id.into(),
                server.name.as_str().into(),
                role.as_str().into(),
                (if role == Role::Parent { "spool:simulated" } else { "" }).into(),
                server.key.verifying_key().to_bytes().to_vec().into(),
                Datum::time(clinic::EPOCH),
            ],
        )
        .await?;
    session
        .execute(
            "INSERT INTO @sync_server_class (server_id, name, send_to, receive_from) \
             SELECT $1, name, send_to, receive_from FROM @sync_class",
            vec![row.int(0)?.into()],
        )
        .await?;
    Ok(())
}

/// Starts the process of a server.
pub(super) async fn start(path: &Path, net: &SharedNet, own: ServerId) -> Result<Arc<Engine>> {
    let engine = Engine::open(clinic::config(path), Wake::default()).await?;
    engine.plug("spool:simulated", Arc::new(Wire { net: Arc::clone(net), server: own }));
    Ok(Arc::new(engine))
}

impl Node {
    /// Reads the neighbours, as a process does when it starts.
    pub(super) async fn meet(&mut self, all: &[Who]) -> Result<()> {
        let mut session = self.engine.store.read().await?;
        let list = books::neighbours(&mut session).await?;
        session.rollback().await?;
        let place = |id: Uuid| all.iter().position(|who| who.id.0 == id);
        self.neighbours = list
            .into_iter()
            .filter_map(|neighbour| Some((place(neighbour.server.0)?, neighbour)))
            .collect();
        Ok(())
    }

    pub(super) fn neighbour(&self, peer: usize) -> Option<&Neighbour> {
        self.neighbours.iter().find(|(place, _)| *place == peer).map(|(_, known)| known)
    }

    /// Whether the step is under way with that neighbour.
    pub(super) fn is_at(&self, step: Step, peer: usize) -> bool {
        self.tasks.iter().any(|task| task.step == step && task.peer == peer)
    }
}
