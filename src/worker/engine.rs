//! What all tasks of a server share: its configuration, its store, its transports, and what they
//! know of one another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::activity::Activity;
use crate::alarm::Alarms;
use crate::catalog::Catalog;
use crate::config::Config;
use crate::error::Result;
use crate::interceptor::Wake;
use crate::link::GAPS_MAX;
use crate::link::ranges::{Range, tidy};
use crate::merge::TreeMerge;
use crate::merge::tree::Settings;
use crate::publisher::relay;
use crate::rules::Rules;
use crate::store::actors::Actors;
use crate::store::books::{self, Identity, Neighbour, Role, merging};
use crate::store::held::Patience;
use crate::store::seal::Shapes;
use crate::store::{Session, Store, restore, track};
use crate::transport::{self, Transport};

/// What all tasks of one server's process share.
pub struct Engine {
    /// The configuration.
    pub config: Config,
    /// The database.
    pub store: Store,
    /// Rings when something was committed here.
    pub wake: Wake,
    /// Rings when there may be something to publish.
    pub outbox: Notify,
    /// Who is busy, and since when nothing moved.
    pub activity: Activity,
    /// What a person should know.
    pub alarms: Alarms,
    /// This process, in the hellos it says.
    pub session: Uuid,
    transports: Mutex<HashMap<String, Arc<dyn Transport>>>,
    catalog: Mutex<Option<(String, Arc<Catalog>)>>,
    shapes: Mutex<Shapes>,
    errands: Mutex<HashMap<i64, Errand>>,
    /// Since when this process knows that its database is older than what it has said.
    fallen: Mutex<Option<Instant>>,
    /// When nothing lay in the queue of a neighbour's acknowledgements last.
    quiet: Mutex<HashMap<i64, Instant>>,
    merge_settings: Settings,
    merge: Mutex<Option<Merge>>,
}

/// What the publisher of a link is to say for those who take in on it.
#[derive(Clone, Debug, Default)]
pub struct Errand {
    /// A hello is wanted soon.
    pub hello: bool,
    /// Numbers that will never come, to be said in it.
    pub skipped: Vec<Range>,
}

/// How classes merge, and what it was worked out from: the catalog, and the parent's word.
type Merge = (Arc<Catalog>, Option<Vec<u8>>, Arc<TreeMerge>);

/// What a transaction needs to know, as it is in that transaction.
pub struct Context {
    /// This server.
    pub identity: Identity,
    /// The neighbours with their rules.
    pub neighbours: Vec<(Neighbour, Rules)>,
    /// Every server of the tree.
    pub actors: Actors,
    /// The tracked classes.
    pub catalog: Arc<Catalog>,
    /// How they merge.
    pub merge: Arc<TreeMerge>,
}

impl Context {
    /// A neighbour as it is now; `None` when it is gone.
    #[must_use]
    pub fn neighbour(&self, id: i64) -> Option<&(Neighbour, Rules)> {
        self.neighbours.iter().find(|(neighbour, _)| neighbour.id == id)
    }
}

impl Engine {
    /// Opens the database and checks that it is a server.
    pub async fn open(config: Config, wake: Wake) -> Result<Self> {
        let merge_settings = config.merge_settings()?;
        let store = Store::connect(config.database_url()?, config.limits()).await?;
        let mut session = store.read().await?;
        books::identity(&mut session).await?;
        session.rollback().await?;
        store.migrate().await?;
        let fallen = restore::look(&store).await?;
        Ok(Self {
            config,
            store,
            wake,
            outbox: Notify::new(),
            activity: Activity::default(),
            alarms: Alarms::default(),
            session: crate::id::random(),
            transports: Mutex::default(),
            catalog: Mutex::default(),
            shapes: Mutex::default(),
            errands: Mutex::default(),
            fallen: Mutex::new(fallen.then(Instant::now)),
            quiet: Mutex::default(),
            merge_settings,
            merge: Mutex::default(),
        })
    }

    /// Reads what a transaction needs to know.
    pub async fn context(&self, session: &mut Session) -> Result<Context> {
        let identity = books::identity(session).await?;
        let mut neighbours = Vec::new();
        for neighbour in books::neighbours(session).await? {
            let rules = Rules::new(books::rules_of(session, neighbour.id).await?);
            neighbours.push((neighbour, rules));
        }
        let actors = Actors::load(session).await?;
        let catalog = self.catalog(session).await?;
        let root = !neighbours.iter().any(|(neighbour, _)| neighbour.role == Role::Parent);
        let merge = self.merge(session, &catalog, root).await?;
        Ok(Context { identity, neighbours, actors, catalog, merge })
    }

    /// How the tracked classes merge, worked out again when they or the parent's word changed.
    async fn merge(
        &self,
        session: &mut Session,
        catalog: &Arc<Catalog>,
        root: bool,
    ) -> Result<Arc<TreeMerge>> {
        let told = if root { None } else { merging::stored(session).await? };
        if let Some((of, by, merge)) = &*lock(&self.merge)
            && Arc::ptr_eq(of, catalog)
            && *by == told
        {
            return Ok(Arc::clone(merge));
        }
        let merge = Arc::new(merging::of(catalog, &self.merge_settings, told.as_deref()));
        for (class, why) in merge.differing() {
            tracing::error!(
                class,
                why,
                "a class merges otherwise here than its tree's root says: its records are held"
            );
        }
        *lock(&self.merge) = Some((Arc::clone(catalog), told, Arc::clone(&merge)));
        Ok(merge)
    }

    /// The tracked classes, read again when `track` has changed them.
    async fn catalog(&self, session: &mut Session) -> Result<Arc<Catalog>> {
        let row = session
            .query_one(
                "SELECT count(*), coalesce(max(id), 0), coalesce(sum(shape), 0), \
                 coalesce(sum(length(definition)), 0), max(tracked_at) FROM @sync_tracked",
                vec![],
            )
            .await?;
        let version = format!("{row:?}");
        if let Some((known, catalog)) = &*lock(&self.catalog)
            && *known == version
        {
            return Ok(Arc::clone(catalog));
        }
        let catalog = Arc::new(track::load(session).await?);
        *lock(&self.catalog) = Some((version, Arc::clone(&catalog)));
        Ok(catalog)
    }

    /// Leaves word for the publisher of a link, and wakes it.
    pub fn ask_hello(&self, neighbour: i64, skipped: Vec<Range>) {
        let mut errands = lock(&self.errands);
        let errand = errands.entry(neighbour).or_default();
        errand.hello = true;
        errand.skipped.extend(skipped);
        errand.skipped = tidy(std::mem::take(&mut errand.skipped), GAPS_MAX);
        drop(errands);
        self.outbox.notify_waiters();
    }

    /// What was left for the publisher of a link since the last time.
    pub fn errand(&self, neighbour: i64) -> Errand {
        lock(&self.errands).remove(&neighbour).unwrap_or_default()
    }

    /// Since when this process knows that its database is older than what this server has said.
    pub fn fallen(&self) -> Option<Instant> {
        *lock(&self.fallen)
    }

    /// Notes that the database is older than what this server has said.
    pub fn fall(&self) {
        lock(&self.fallen).get_or_insert_with(Instant::now);
    }

    /// Notes that it is that no more.
    pub fn stand(&self) {
        *lock(&self.fallen) = None;
    }

    /// Notes that no acknowledgement of a neighbour lies in its queue.
    pub fn quiet(&self, neighbour: i64) {
        lock(&self.quiet).insert(neighbour, Instant::now());
    }

    /// Whether that was so after `since`.
    pub fn was_quiet(&self, neighbour: i64, since: Instant) -> bool {
        lock(&self.quiet).get(&neighbour).is_some_and(|at| *at > since)
    }

    /// The column lists known so far. They never change once they have a number.
    pub fn shapes(&self) -> Shapes {
        lock(&self.shapes).clone()
    }

    /// Keeps what sealing learnt.
    pub fn learn_shapes(&self, shapes: Shapes) {
        *lock(&self.shapes) = shapes;
    }

    /// The transport that leads to an address; one for each, shared by all links.
    pub fn transport(&self, address: &str) -> Result<Arc<dyn Transport>> {
        let mut transports = lock(&self.transports);
        if let Some(transport) = transports.get(address) {
            return Ok(Arc::clone(transport));
        }
        let transport = transport::connect(address, &self.config.transport_settings(address))?;
        transports.insert(address.to_owned(), Arc::clone(&transport));
        Ok(transport)
    }

    /// Puts a transport in the place of the one that an address names.
    #[cfg(test)]
    pub(crate) fn plug(&self, address: &str, transport: Arc<dyn Transport>) {
        lock(&self.transports).insert(address.to_owned(), transport);
    }

    /// The transport of a link: the parent's broker for the parent, our own for a child.
    pub fn transport_of(&self, neighbour: &Neighbour) -> Result<Arc<dyn Transport>> {
        self.transport(self.config.broker_of(neighbour))
    }

    /// Closes all transports.
    pub async fn close(&self) {
        let transports: Vec<_> = lock(&self.transports).drain().map(|(_, each)| each).collect();
        for transport in transports {
            transport.close().await;
        }
    }

    /// How often held records are tried again.
    #[must_use]
    pub fn patience(&self) -> Patience {
        Patience {
            retry_after_ms: relay::millis(self.config.retry_after),
            retries_max: i64::from(self.config.retries_max),
        }
    }

    /// How long the relay waits for a writer that nobody heard.
    #[must_use]
    pub fn poll_every(&self) -> Duration {
        self.config.poll_every
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
