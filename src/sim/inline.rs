//! SQLite under test: statements run on the caller's thread, and the database's own clock is ours.

use std::error::Error;

use diesel::sqlite::SqliteConnection;
use diesel_async::sync_connection_wrapper::SpawnBlocking;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::seams;
use crate::store::time;

/// Runs what would block at once: one thread, one order, and no hop.
pub(crate) struct Inline;

impl SpawnBlocking for Inline {
    fn spawn_blocking<'a, R>(
        &mut self,
        task: impl FnOnce() -> R + Send + 'static,
    ) -> BoxFuture<'a, Result<R, Box<dyn Error + Send + Sync + 'static>>>
    where
        R: Send + 'static,
    {
        async move { Ok(task()) }.boxed()
    }

    fn get_runtime() -> Self {
        Self
    }
}

#[diesel::declare_sql_function]
extern "SQL" {
    /// SQLite's own, in the one form in which our tables and triggers use it.
    fn strftime(
        format: diesel::sql_types::Text,
        when: diesel::sql_types::Text,
    ) -> diesel::sql_types::Text;

    /// The same.
    fn julianday(when: diesel::sql_types::Text) -> diesel::sql_types::Double;
}

/// The Julian day of 1970.
const EPOCH: f64 = 2_440_587.5;

/// In a simulation, defaults and triggers take the time from the server's clock.
pub(crate) fn rule_the_clock(connection: &mut SqliteConnection) -> diesel::QueryResult<()> {
    if seams::now().is_none() {
        return Ok(());
    }
    strftime_utils::register_impl(connection, |_: String, _: String| {
        time::format(seams::now().unwrap_or_default())
    })?;
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of this age fit")]
    julianday_utils::register_impl(connection, |_: String| {
        EPOCH + seams::now().unwrap_or_default() as f64 / 86_400_000.0
    })
}
