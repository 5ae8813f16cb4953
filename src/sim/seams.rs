//! Where the simulation takes hold of the code: the clock, fresh uuids, and every statement.
//!
//! All of it is this thread's: a test that simulates nothing is left alone.

use std::cell::{Cell, RefCell};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;

use crate::error::{Error, Kind, Result};

thread_local! {
    static CLOCK: Cell<Option<i64>> = const { Cell::new(None) };
    static IDS: RefCell<Option<StdRng>> = const { RefCell::new(None) };
    static FUSE: Cell<Option<(u32, Blow)>> = const { Cell::new(None) };
    static CRASHED: Cell<bool> = const { Cell::new(false) };
}

/// What a statement comes to when the fuse has burnt down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Blow {
    /// The process is killed there: nothing after it runs, no error is handled.
    Crash,
    /// The database says that it is locked.
    Busy,
    /// The database cannot be reached.
    Away,
}

/// The clock of the server at work, in milliseconds since 1970; `None` outside the simulation.
pub(crate) fn now() -> Option<i64> {
    CLOCK.get()
}

/// Sets the clock for whatever runs next on this thread.
pub(crate) fn set_clock(now: Option<i64>) {
    CLOCK.set(now);
}

/// A fresh uuid of the seed; `None` outside the simulation.
pub(crate) fn uuid() -> Option<Uuid> {
    IDS.with_borrow_mut(|ids| {
        let bytes = ids.as_mut()?.r#gen();
        Some(uuid::Builder::from_random_bytes(bytes).into_uuid())
    })
}

/// Makes all fresh uuids follow from `seed`.
pub(crate) fn seed_uuids(seed: u64) {
    IDS.set(Some(StdRng::seed_from_u64(seed)));
}

/// Lights a fuse: the statement after the next `statements` comes to `blow`.
pub(crate) fn light(statements: u32, blow: Blow) {
    FUSE.set(Some((statements, blow)));
}

/// Puts the fuse out. Says whether it had still to burn.
pub(crate) fn put_out() -> bool {
    FUSE.take().is_some()
}

/// Whether the process at work was killed; it is alive again after this.
pub(crate) fn take_crash() -> bool {
    CRASHED.take()
}

/// Leaves the thread as if nothing had been simulated on it.
pub(crate) fn reset() {
    CLOCK.set(None);
    IDS.set(None);
    FUSE.set(None);
    CRASHED.set(false);
}

/// To be awaited before each statement and before each commit.
///
/// # Errors
/// Those that the fuse stands for. A crash is none: it never returns, and the scheduler drops what
/// waits for it.
pub(crate) async fn statement() -> Result<()> {
    let blow = match FUSE.get() {
        _ if CRASHED.get() => Blow::Crash,
        None => return Ok(()),
        Some((0, blow)) => {
            FUSE.set(None);
            blow
        }
        Some((left, blow)) => {
            FUSE.set(Some((left - 1, blow)));
            return Ok(());
        }
    };
    match blow {
        Blow::Crash => {
            CRASHED.set(true);
            std::future::pending().await
        }
        Blow::Busy => Err(Error::new(Kind::Busy, "simulated: the database is locked")),
        Blow::Away => Err(Error::unreachable("simulated: the database is away")),
    }
}
