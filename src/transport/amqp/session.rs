//! One connection to the broker, from its opening to its end; it is never mended.
//!
//! lapin runs its input and output on a thread of its own that can outlive what we hold of it: it
//! waits for ever for a broker that accepts and then says nothing, and it cannot close a connection
//! that the broker blocks. So a session keeps a second handle on the socket, its [`Line`], and
//! cuts it when it lets go.

use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, Event};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::broker::Broker;
use super::failure::Failure;
use crate::error::{Error, Result};

/// An open connection.
pub(super) struct Session {
    connection: Connection,
    line: Arc<Line>,
    health: Arc<Mutex<Health>>,
    listener: AbortHandle,
    opened: Instant,
    broker: Arc<Broker>,
}

/// How a session is doing.
#[derive(Clone, Default, Debug)]
pub(super) struct Health {
    /// Why it is not to be used again.
    pub(super) lost: Option<String>,
    /// Why the broker takes nothing from it at present.
    pub(super) blocked: Option<String>,
}

impl Session {
    /// Connects and logs in, within the deadline. `purpose` names the connection at the broker.
    pub(super) async fn open(broker: Arc<Broker>, purpose: &str) -> Result<Self> {
        let line = Arc::new(Line::default());
        let cut = CutOnDrop(Some(line.clone()));
        let limit = broker.settings.connect_timeout;
        let connection = match timeout(limit, connect(&broker, line.clone(), purpose)).await {
            Ok(connected) => connected.map_err(Failure::Lapin),
            Err(_) => Err(Failure::Late(limit)),
        }
        .map_err(|failure| failure.into_error(&broker.place, "let us in"))?;
        cut.disarm();

        let health = Arc::new(Mutex::new(Health::default()));
        let listener = tokio::spawn(listen(connection.events_listener(), health.clone()));
        Ok(Self {
            connection,
            line,
            health,
            listener: listener.abort_handle(),
            opened: Instant::now(),
            broker,
        })
    }

    /// How it is doing, as far as is known.
    pub(super) fn health(&self) -> Health {
        let mut health = locked(&self.health).clone();
        if health.lost.is_none() && !self.connection.status().connected() {
            health.lost = Some("the connection has ended".to_owned());
        }
        health
    }

    /// Marks it as not to be used again. It stays open while the broker blocks it, because what
    /// is on its way in it would be taken once more from another.
    pub(super) fn give_up(&self, reason: impl Into<String>) {
        locked(&self.health).lost.get_or_insert(reason.into());
    }

    /// How long it has been open.
    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// Waits for one call to the broker within the usual deadline. A failure that is not just a
    /// channel's own ends the session.
    pub(super) async fn call<T>(
        &self,
        call: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Failure> {
        let limit = self.broker.settings.acknowledge_timeout;
        let failure = match timeout(limit, call).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => Failure::Lapin(error),
            Err(_) => Failure::Late(limit),
        };
        if !failure.is_of_channel() {
            self.give_up(failure.to_string());
        }
        Err(failure)
    }

    /// Opens a channel. One is never used again after an error.
    pub(super) async fn channel(&self) -> Result<Channel, Failure> {
        self.call(self.connection.create_channel()).await
    }

    /// The error for the caller about something that was wanted of this broker.
    pub(super) fn error(&self, failure: Failure, what: &str) -> Error {
        failure.into_error(&self.broker.place, what)
    }

    pub(super) fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Says goodbye, within the deadline, and hangs up.
    pub(super) async fn close(&self) {
        let goodbye = self.connection.close(200, "OK".into());
        let _ = timeout(self.broker.settings.close_timeout, goodbye).await;
        self.give_up("closed");
        self.line.cut();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.listener.abort();
        self.line.cut();
    }
}

async fn connect(broker: &Broker, line: Arc<Line>, purpose: &str) -> lapin::Result<Connection> {
    let limit = broker.settings.connect_timeout;
    let tls = broker.tls.clone();
    let name = format!("branchline {purpose}");
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    Connection::connector(
        broker.uri.clone(),
        lapin::runtime::default_runtime()?,
        // Runs on lapin's thread: its own deadline ends the thread when nobody waits any more.
        async move |uri, runtime| {
            let dial = async {
                let host = (uri.authority.host.as_str(), uri.authority.port);
                let addresses: Vec<_> = tokio::net::lookup_host(host).await?.collect();
                let stream = AsyncTcpStream::connect(&runtime, addresses).await?;
                if let AsyncTcpStream::Plain(socket) = &stream {
                    socket.get_ref().set_nodelay(true)?;
                    line.hold(socket.get_ref())?;
                }
                match uri.scheme {
                    lapin::uri::AMQPScheme::AMQP => Ok(stream),
                    lapin::uri::AMQPScheme::AMQPS => {
                        stream.into_tls(&uri.authority.host, tls.as_ref()).await
                    }
                }
            };
            match timeout(limit, dial).await {
                Ok(stream) => Ok(stream?),
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            }
        },
        properties,
    )
    .await
}

async fn listen(events: impl futures_util::Stream<Item = Event>, health: Arc<Mutex<Health>>) {
    tokio::pin!(events);
    while let Some(event) = events.next().await {
        let mut health = locked(&health);
        match event {
            Event::ConnectionBlocked(reason) => health.blocked = Some(reason),
            Event::ConnectionUnblocked => health.blocked = None,
            Event::Error(error) if error.is_amqp_soft_error() => {} // a channel's, told to its user
            Event::Error(error) => {
                health.lost.get_or_insert(error.to_string());
                health.blocked = None;
            }
            _ => {}
        }
    }
}

fn locked(health: &Mutex<Health>) -> MutexGuard<'_, Health> {
    health.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A second handle on a connection's socket, to hang up whatever lapin is doing.
#[derive(Default)]
struct Line(Mutex<Option<std::net::TcpStream>>);

impl Line {
    #[cfg(unix)]
    fn hold(&self, socket: &tokio::net::TcpStream) -> io::Result<()> {
        use std::os::fd::AsFd;
        self.keep(socket.as_fd().try_clone_to_owned()?.into());
        Ok(())
    }

    #[cfg(windows)]
    fn hold(&self, socket: &tokio::net::TcpStream) -> io::Result<()> {
        use std::os::windows::io::AsSocket;
        self.keep(socket.as_socket().try_clone_to_owned()?.into());
        Ok(())
    }

    fn keep(&self, socket: std::net::TcpStream) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
    }

    fn cut(&self) {
        if let Some(socket) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = socket.shutdown(Shutdown::Both); // an error means that it is cut already
        }
    }
}

/// Cuts the line of a connection attempt that failed or that nobody waits for any more.
struct CutOnDrop(Option<Arc<Line>>);

impl CutOnDrop {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        if let Some(line) = &self.0 {
            line.cut();
        }
    }
}
