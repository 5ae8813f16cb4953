//! Keeps one connection, and opens another when it is lost: at the next call, after a pause.
//!
//! No task waits here. A call during the pause is told so at once, because whoever calls has the
//! database to fall back on and tries again anyway.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::broker::Broker;
use super::session::Session;
use crate::error::{Error, Kind, Result};
use crate::transport::backoff::Backoff;

/// The connection for one purpose.
pub(super) struct Supervisor {
    broker: Arc<Broker>,
    purpose: &'static str,
    state: Mutex<State>,
}

struct State {
    live: Option<Arc<Session>>,
    rest: Option<Rest>,
    backoff: Backoff,
    closed: bool,
}

/// A pause between two connections.
struct Rest {
    until: Instant,
    kind: Kind,
    reason: String,
}

impl Supervisor {
    pub(super) fn new(broker: Arc<Broker>, purpose: &'static str) -> Self {
        let backoff = Backoff::new(broker.settings.backoff_min, broker.settings.backoff_max);
        let state = State { live: None, rest: None, backoff, closed: false };
        Self { broker, purpose, state: Mutex::new(state) }
    }

    /// The connection, opened if need be.
    ///
    /// # Errors
    /// `Unreachable` (or `Config`, when the broker knows us and says no) when there is none, and
    /// when the broker blocks it.
    pub(super) async fn session(&self) -> Result<Arc<Session>> {
        let mut state = self.state.lock().await;
        let place = &self.broker.place;
        if state.closed {
            return Err(Error::failed(format!("the transport to `{place}` is closed")));
        }
        if let Some(session) = &state.live {
            let health = session.health();
            match (health.blocked, health.lost) {
                (Some(reason), _) => {
                    return Err(Error::unreachable(format!(
                        "broker `{place}` takes no messages at present: {reason}"
                    )));
                }
                (None, None) => return Ok(session.clone()),
                (None, Some(reason)) => self.drop_lost(&mut state, reason),
            }
        }
        if let Some(rest) = state.rest.as_ref().filter(|rest| rest.until > Instant::now()) {
            return Err(Error::new(rest.kind, rest.reason.clone()));
        }
        match Session::open(self.broker.clone(), self.purpose).await {
            Ok(session) => {
                tracing::debug!(broker = place, purpose = self.purpose, "connected");
                let session = Arc::new(session);
                state.live = Some(session.clone());
                state.rest = None;
                Ok(session)
            }
            Err(error) => {
                self.pause(&mut state, error.kind(), error.chain());
                Err(error)
            }
        }
    }

    fn drop_lost(&self, state: &mut State, reason: String) {
        let Some(session) = state.live.take() else { return };
        tracing::warn!(
            broker = self.broker.place,
            purpose = self.purpose,
            reason,
            "connection lost"
        );
        if session.age() >= self.broker.settings.backoff_max {
            state.backoff.succeeded();
        }
        let reason = format!("lost the connection to broker `{}`: {reason}", self.broker.place);
        self.pause(state, Kind::Unreachable, reason);
        // The last consumer may hold it still; it is of no use to it.
        tokio::spawn(async move { session.close().await });
    }

    fn pause(&self, state: &mut State, kind: Kind, reason: String) {
        let pause: Duration = state.backoff.failed(rand::random());
        state.rest = Some(Rest { until: Instant::now() + pause, kind, reason });
    }

    /// Closes the connection, within its deadline, and opens no other.
    pub(super) async fn close(&self) {
        let session = {
            let mut state = self.state.lock().await;
            state.closed = true;
            state.live.take()
        };
        if let Some(session) = session {
            session.close().await;
        }
    }
}
