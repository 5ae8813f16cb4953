//! The connection itself: diesel-async's traits, passed on to the connection within.

use std::fmt;

use diesel::associations::{HasTable, Identifiable};
use diesel::connection::{CacheSize, Instrumentation};
use diesel::dsl::{Find, Update};
use diesel::query_builder::{AsQuery, IntoUpdateTarget, QueryFragment, QueryId, UpdateStatement};
use diesel::query_dsl::methods::FindDsl;
use diesel::{AsChangeset, ConnectionResult, QueryResult, Table};
use diesel_async::methods::LoadQuery;
use diesel_async::pooled_connection::PoolableConnection;
use diesel_async::{
    AsyncConnection, AsyncConnectionCore, RunQueryDsl, SimpleAsyncConnection, TransactionManager,
    UpdateAndFetchResults,
};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::{Intercepted, SyncTransactionManager, Wake};

/// An ordinary connection `C` that tells the relay of every commit. See the [module](super) for
/// what it promises.
pub struct SyncConnection<C> {
    pub(super) inner: C,
    pub(super) wake: Wake,
}

impl<C: Intercepted> SyncConnection<C> {
    /// Stands before a connection that is open already, with no transaction on it. Its settings
    /// stay as they are.
    #[must_use]
    pub fn new(inner: C, wake: Wake) -> Self {
        Self { inner, wake }
    }

    /// Connects, and rings `wake`. `AsyncConnection::establish` does the same with
    /// [`Wake::process`]. For `url` the form `sqlite:PATH` will do as well.
    ///
    /// # Errors
    /// Those of the connection within.
    pub fn establish_with(
        url: &str,
        wake: Wake,
    ) -> impl Future<Output = ConnectionResult<Self>> + Send {
        let opening = C::open(url);
        async move { Ok(Self { inner: opening.await?, wake }) }
    }

    /// What this connection rings.
    #[must_use]
    pub fn wake(&self) -> &Wake {
        &self.wake
    }

    /// The connection within, for what only it can do (a cancel token, a custom SQL function). What
    /// is written through it is captured, but neither rings nor is marked; transactions must not be
    /// opened or closed there.
    pub fn inner_mut(&mut self) -> &mut C {
        &mut self.inner
    }

    /// Gives the connection within back.
    #[must_use]
    pub fn into_inner(self) -> C {
        self.inner
    }
}

impl<C> fmt::Debug for SyncConnection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncConnection").finish_non_exhaustive()
    }
}

impl<C: Intercepted> SimpleAsyncConnection for SyncConnection<C> {
    async fn batch_execute(&mut self, query: &str) -> QueryResult<()> {
        self.inner.batch(query, &self.wake).await
    }
}

impl<C: Intercepted> AsyncConnectionCore for SyncConnection<C> {
    // The futures are those of the connection within, which are boxed already: nothing is boxed
    // twice, and nothing is polled through.
    type ExecuteFuture<'conn, 'query> = C::ExecuteFuture<'conn, 'query>;
    type LoadFuture<'conn, 'query> = C::LoadFuture<'conn, 'query>;
    type Stream<'conn, 'query> = C::Stream<'conn, 'query>;
    type Row<'conn, 'query> = C::Row<'conn, 'query>;
    type Backend = C::Backend;

    fn load<'conn, 'query, T>(&'conn mut self, source: T) -> Self::LoadFuture<'conn, 'query>
    where
        T: AsQuery + 'query,
        T::Query: QueryFragment<Self::Backend> + QueryId + 'query,
    {
        self.inner.load_ringing(source, &self.wake)
    }

    fn execute_returning_count<'conn, 'query, T>(
        &'conn mut self,
        source: T,
    ) -> Self::ExecuteFuture<'conn, 'query>
    where
        T: QueryFragment<Self::Backend> + QueryId + 'query,
    {
        self.inner.execute_ringing(source, &self.wake)
    }
}

impl<C: Intercepted> AsyncConnection for SyncConnection<C> {
    type TransactionManager = SyncTransactionManager;

    async fn establish(url: &str) -> ConnectionResult<Self> {
        Self::establish_with(url, Wake::process()).await
    }

    fn transaction_state(
        &mut self,
    ) -> &mut <Self::TransactionManager as TransactionManager<Self>>::TransactionStateData {
        self.inner.transaction_state()
    }

    fn instrumentation(&mut self) -> &mut dyn Instrumentation {
        self.inner.instrumentation()
    }

    fn set_instrumentation(&mut self, instrumentation: impl Instrumentation) {
        self.inner.set_instrumentation(instrumentation);
    }

    fn set_prepared_statement_cache_size(&mut self, size: CacheSize) {
        self.inner.set_prepared_statement_cache_size(size);
    }
}

impl<C: Intercepted> PoolableConnection for SyncConnection<C> {
    fn is_broken(&mut self) -> bool {
        self.inner.is_broken()
    }
}

/// `save_changes`, as diesel-async has it for both connections.
impl<'b, Changes, Output, Tab, V, C> UpdateAndFetchResults<Changes, Output> for SyncConnection<C>
where
    C: Intercepted,
    Output: Send + 'static,
    Changes: Copy + AsChangeset<Target = Tab> + Send + Identifiable<Table = Tab>,
    Tab: Table + FindDsl<Changes::Id> + 'b,
    Find<Tab, Changes::Id>: IntoUpdateTarget<Table = Tab, WhereClause = V>,
    UpdateStatement<Tab, V, Changes::Changeset>: AsQuery,
    Update<Changes, Changes>: LoadQuery<'b, Self, Output>,
    V: Send + 'b,
    Changes::Changeset: Send + 'b,
    Tab::FromClause: Send,
    Self: AsyncConnectionCore,
    Changes: HasTable,
{
    fn update_and_fetch<'conn, 'changes>(
        &'conn mut self,
        changeset: Changes,
    ) -> BoxFuture<'changes, QueryResult<Output>>
    where
        Changes: 'changes,
        'conn: 'changes,
        Self: 'changes,
    {
        async move { diesel::update(changeset).set(changeset).get_result(self).await }.boxed()
    }
}
