//! The demo's seven servers: made, joined, started, stopped, and taken away again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::schema;
use super::staff::Kind;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::server::Server;
use crate::store::Store;
use crate::store::books::servers::{LinkState, Role};
use crate::store::postgres::databases;
use crate::transport::{self, Lane, Queue};
use crate::worker::Worker;

/// How long one step of building may take.
const BUILD_WITHIN: Duration = Duration::from_secs(30);
/// How long a worker may take to stop.
const STOP_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(25);
const TOKEN_LIFE: Duration = Duration::from_secs(3_600);

/// A place in the tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Site {
    pub(super) name: &'static str,
    pub(super) parent: Option<usize>,
    pub(super) kind: Kind,
    /// Where its surrogate keys begin.
    first: i64,
    /// How it is drawn.
    pub(super) drawn: &'static str,
}

const fn site(
    name: &'static str,
    parent: Option<usize>,
    kind: Kind,
    first: i64,
    drawn: &'static str,
) -> Site {
    Site { name, parent, kind, first, drawn }
}

/// Parents before children.
pub(super) const SITES: [Site; 7] = [
    site("ministry", None, Kind::Ministry, 1, "ministry"),
    site("north", Some(0), Kind::District, 1_001, "├ north"),
    site("hill", Some(1), Kind::Clinic, 20_001, "│ ├ hill"),
    site("lake", Some(1), Kind::Clinic, 30_001, "│ └ lake"),
    site("south", Some(0), Kind::District, 4_001, "└ south"),
    site("port", Some(4), Kind::Clinic, 50_001, "  ├ port"),
    site("valley", Some(4), Kind::Clinic, 60_001, "  └ valley"),
];

/// The clinic that is offline for a while.
pub(super) const AWAY: usize = 2;

/// A server of the demo, at its place.
pub(super) struct Member {
    pub(super) site: Site,
    pub(super) server: Server,
    running: Option<Running>,
}

struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<()>>,
}

/// All of it.
pub(super) struct Tree {
    pub(super) servers: Vec<Member>,
    folder: TempDir,
    /// A PostgreSQL server to make databases on; none: SQLite files.
    database_url: Option<String>,
    /// A broker; none: a spool folder.
    broker_url: Option<String>,
    made: Vec<String>,
}

impl Tree {
    /// Nothing yet but a folder.
    pub(super) fn new(database_url: Option<String>, broker_url: Option<String>) -> Result<Self> {
        if let Some(url) = &database_url
            && !url.starts_with("postgres")
        {
            return Err(Error::config(
                "the demo makes its own databases: give it a `postgres://` server to make them on, \
                 or nothing for SQLite files",
            ));
        }
        if let Some(url) = &broker_url {
            crate::config::check_broker(url)?;
        }
        let folder = tempfile::Builder::new()
            .prefix("branchline-demo-")
            .tempdir()
            .map_err(|error| Error::failed("cannot make a folder").with_source(error))?;
        Ok(Self { servers: Vec::new(), folder, database_url, broker_url, made: Vec::new() })
    }

    /// Where the data lies, for people.
    pub(super) fn place(&self) -> String {
        let databases = match &self.database_url {
            Some(url) => format!("PostgreSQL databases on {}", crate::store::without_password(url)),
            None => format!("SQLite files in {}", self.folder.path().display()),
        };
        let messages = match &self.broker_url {
            Some(url) => crate::store::without_password(url),
            None => "a spool folder beside them".to_owned(),
        };
        format!("{databases}, messages through {messages}")
    }

    /// Makes the databases with their tables under capture.
    pub(super) async fn plant(&mut self) -> Result<()> {
        for site in SITES {
            let config = self.configure(site).await?;
            let server = Server::open(config, "demo").await?;
            schema::create(server.store(), site.first).await?;
            server.init(site.name, false).await?;
            server.track_all().await?;
            self.servers.push(Member { site, server, running: None });
        }
        Ok(())
    }

    async fn configure(&mut self, site: Site) -> Result<Config> {
        let database_url = match &self.database_url {
            Some(url) => {
                let name = format!("branchline_demo_{}_{}", std::process::id(), site.name);
                databases::drop(url, &name).await?;
                self.made.push(name.clone());
                databases::create(url, &name).await?;
                databases::renamed(url, &name)
            }
            None => {
                let path = self.folder.path().join(format!("{}.db", site.name));
                std::fs::File::create(&path)
                    .map_err(|error| Error::failed("cannot make a database").with_source(error))?;
                format!("sqlite:{}", path.display())
            }
        };
        let spool = || format!("spool:{}", self.folder.path().join("spool").display());
        let broker_url = self.broker_url.clone().unwrap_or_else(spool);
        let settings = [
            ("database_url", database_url.as_str()),
            ("broker_url", broker_url.as_str()),
            ("poll_every", "50ms"),
            ("hello_every", "2s"),
            ("resend_after", "5s"),
            ("retry_after", "500ms"),
            ("spool_poll_every", "20ms"),
            ("connections_max", "4"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Config::parse("", self.folder.path(), &settings)
    }

    /// Invites, joins and starts all servers, from the root downwards.
    pub(super) async fn join(&mut self) -> Result<()> {
        for index in 0..self.servers.len() {
            if let Some(parent) = self.server(index)?.site.parent {
                self.connect(index, parent).await?;
            }
            self.start(index).await?;
            self.wait_joined(index).await?;
        }
        Ok(())
    }

    fn server(&self, index: usize) -> Result<&Member> {
        self.servers.get(index).ok_or_else(|| Error::failed("the tree is not planted"))
    }

    async fn connect(&self, child: usize, parent: usize) -> Result<()> {
        let (child, parent) = (self.server(child)?, self.server(parent)?);
        let token = parent.server.invite(child.site.name, false, TOKEN_LIFE).await?;
        child.server.join(&token.encode()?, false).await?;
        Ok(())
    }

    async fn wait_joined(&mut self, index: usize) -> Result<()> {
        let deadline = Instant::now() + BUILD_WITHIN;
        loop {
            self.notice_failures().await?;
            let server = self.server(index)?;
            let all = server.server.neighbours().await?;
            match all.into_iter().find(|neighbour| neighbour.role == Role::Parent) {
                None => return Ok(()),
                Some(parent) if parent.state == LinkState::Joined => return Ok(()),
                Some(parent) if parent.state == LinkState::Refused => {
                    return Err(Error::failed(format!(
                        "`{}` was refused: {}",
                        server.site.name,
                        parent.error_message.unwrap_or_default()
                    )));
                }
                Some(_) if Instant::now() > deadline => {
                    return Err(Error::failed(format!(
                        "`{}` was not answered within {}",
                        server.site.name,
                        humantime::format_duration(BUILD_WITHIN)
                    )));
                }
                Some(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Starts a server's worker, in this process.
    pub(super) async fn start(&mut self, index: usize) -> Result<()> {
        let config = self.server(index)?.server.config().clone();
        let worker = Worker::open(config).await?;
        let stop = CancellationToken::new();
        let until = stop.clone();
        let task = tokio::spawn(async move { worker.run(until).await });
        if let Some(server) = self.servers.get_mut(index) {
            server.running = Some(Running { stop, task });
        }
        Ok(())
    }

    /// Stops a server's worker: the server is offline, its people go on working.
    pub(super) async fn stop(&mut self, index: usize) -> Result<()> {
        let Some(running) = self.servers.get_mut(index).and_then(|server| server.running.take())
        else {
            return Ok(());
        };
        running.stop.cancel();
        finished(running.task, STOP_WITHIN).await
    }

    /// The error of a worker that ended by itself.
    pub(super) async fn notice_failures(&mut self) -> Result<()> {
        for server in &mut self.servers {
            let name = server.site.name;
            if let Some(running) = server.running.take_if(|running| running.task.is_finished()) {
                let ended = finished(running.task, STOP_WITHIN).await;
                return Err(match ended {
                    Ok(()) => Error::failed(format!("the worker of `{name}` ended by itself")),
                    Err(error) => error.context(format!("the worker of `{name}` failed")),
                });
            }
        }
        Ok(())
    }

    /// Whether a server's worker runs.
    pub(super) fn is_online(&self, index: usize) -> bool {
        self.servers.get(index).is_some_and(|server| server.running.is_some())
    }

    /// Each server's name and database.
    pub(super) fn stores(&self) -> Vec<(&'static str, &Store)> {
        self.servers.iter().map(|server| (server.site.name, server.server.store())).collect()
    }

    /// Stops all workers.
    pub(super) async fn stop_all(&mut self) -> Result<()> {
        let mut result = Ok(());
        for server in &self.servers {
            if let Some(running) = &server.running {
                running.stop.cancel();
            }
        }
        for index in 0..self.servers.len() {
            result = result.and(self.stop(index).await);
        }
        result
    }

    /// Takes everything away, or says where it is. Goes on after an error, and returns the first.
    pub(super) async fn clear(mut self, keep: bool) -> Result<Option<String>> {
        let mut result = self.stop_all().await;
        if self.broker_url.is_some() && !keep {
            result = result.and(self.remove_queues().await);
        }
        self.servers.clear();
        if keep {
            let path: PathBuf = self.folder.keep();
            let mut kept = format!("Kept: {}", path.display());
            if !self.made.is_empty() {
                kept.push_str(&format!(", and the databases {}", self.made.join(", ")));
            }
            if self.broker_url.is_some() {
                kept.push_str(", and the queues at the broker");
            }
            return result.map(|()| Some(kept));
        }
        if let Some(url) = &self.database_url {
            for name in &self.made {
                result = result.and(databases::drop(url, name).await);
            }
        }
        let removed = self.folder.close().map_err(|error| {
            Error::failed("the demo's folder cannot be removed").with_source(error)
        });
        result.and(removed).map(|()| None)
    }

    async fn remove_queues(&self) -> Result<()> {
        let Some(first) = self.servers.first() else { return Ok(()) };
        let config = first.server.config();
        let url = &config.broker_url;
        let transport = transport::connect(url, &config.transport_settings(url))?;
        let mut ids = Vec::new();
        for server in &self.servers {
            ids.push(server.server.status().await?.identity.server);
        }
        for (server, own) in self.servers.iter().zip(&ids) {
            transport.remove(Queue { to: *own, from: *own, lane: Lane::Joins }).await?;
            let Some(parent) = server.site.parent.and_then(|parent| ids.get(parent)) else {
                continue;
            };
            for (to, from) in [(*own, *parent), (*parent, *own)] {
                for lane in [Lane::Records, Lane::Acks] {
                    transport.remove(Queue { to, from, lane }).await?;
                }
            }
        }
        transport.close().await;
        Ok(())
    }
}

async fn finished(task: JoinHandle<Result<()>>, within: Duration) -> Result<()> {
    let abort = task.abort_handle();
    match tokio::time::timeout(within, task).await {
        Ok(Ok(result)) => result,
        Ok(Err(error)) => Err(Error::failed("a worker panicked").with_source(error)),
        Err(_) => {
            abort.abort();
            Err(Error::failed(format!(
                "a worker did not stop within {}",
                humantime::format_duration(within)
            )))
        }
    }
}
