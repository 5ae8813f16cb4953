//! Pools of [`SyncConnection`]s: diesel-async's managers for deadpool and bb8, with a bell.

use diesel_async::pooled_connection::{AsyncDieselConnectionManager, ManagerConfig};
use futures_util::FutureExt as _;

use super::{Intercepted, SyncConnection, Wake};

/// A configuration for [`AsyncDieselConnectionManager::new_with_config`] whose connections ring
/// `wake`. Without it a pool's connections ring [`Wake::process`].
#[must_use]
pub fn pool_config<C: Intercepted>(wake: Wake) -> ManagerConfig<SyncConnection<C>> {
    let mut config = ManagerConfig::default();
    config.custom_setup =
        Box::new(move |url| SyncConnection::establish_with(url, wake.clone()).boxed());
    config
}

/// A manager, for deadpool and bb8, of connections to `url` that ring `wake`.
#[must_use]
pub fn pool_manager<C: Intercepted>(
    url: impl Into<String>,
    wake: Wake,
) -> AsyncDieselConnectionManager<SyncConnection<C>> {
    AsyncDieselConnectionManager::new_with_config(url, pool_config(wake))
}
