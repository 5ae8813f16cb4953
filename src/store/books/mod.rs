//! The books of a server: who it is, who its neighbours are, what was sent and came in, which
//! class goes where, and what operators did. Written once, over [`Session`].
//!
//! Each function works inside the caller's transaction and leaves committing to it, so that an
//! action and its line in `sync_audit` are one. [`write`] is that transaction, repeated when
//! another process holds a lock.

pub mod alarms;
pub mod audit;
pub mod check;
pub mod cleanup;
pub mod clock;
pub mod conflicts;
pub mod held;
pub mod identity;
pub mod invites;
pub mod joining;
pub mod merging;
pub mod records;
pub mod rules;
pub mod servers;
pub mod status;

use std::time::Duration;

pub use identity::{Identity, identity};
pub use rules::{Rule, rules_of};
pub use servers::{LinkState, Neighbour, Role, neighbours};

use super::{Session, Store};
use crate::error::{Error, Kind, Result};

/// How often a transaction is tried before a lock is given up.
const ATTEMPTS_MAX: u32 = 20;

/// Counts the attempts at a transaction that a lock was in the way of.
#[derive(Debug, Default)]
pub struct Attempts(u32);

impl Attempts {
    /// Whether to try again after `error`; waits a little before it says yes.
    pub async fn again(&mut self, error: &Error) -> bool {
        self.0 += 1;
        if error.kind() != Kind::Busy || self.0 >= ATTEMPTS_MAX {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(25 * u64::from(self.0))).await;
        true
    }
}

/// Runs `work` in a transaction and commits it; again, a little later, when a lock was in the way.
/// Its future cannot be spawned (a closure that borrows is not `Send` for every lifetime): code that
/// is spawned loops over [`Attempts`] itself.
///
/// # Errors
/// What `work` says, and [`Busy`](Kind::Busy) when the lock does not come free.
pub async fn write<T>(
    store: &Store,
    mut work: impl AsyncFnMut(&mut Session) -> Result<T>,
) -> Result<T> {
    let mut attempts = Attempts::default();
    loop {
        match attempt_write(store, &mut work).await {
            Err(error) if attempts.again(&error).await => {}
            other => return other,
        }
    }
}

async fn attempt_write<T>(
    store: &Store,
    work: &mut impl AsyncFnMut(&mut Session) -> Result<T>,
) -> Result<T> {
    let mut session = store.begin().await?;
    let done = work(&mut session).await;
    session.end(done).await
}

/// Takes the lock under which everything is sealed, applied and numbered. On SQLite a writing
/// transaction has it already.
///
/// # Errors
/// [`Busy`](Kind::Busy) when another has it for longer than the lock's wait.
pub async fn lock(session: &mut Session) -> Result<()> {
    if session.dialect() == super::Dialect::Postgres {
        session.query("SELECT 1 FROM @sync_self WHERE id = 1 FOR UPDATE", Vec::new()).await?;
    }
    Ok(())
}
