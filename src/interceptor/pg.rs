//! PostgreSQL: nothing is written at a commit, as each change carries its transaction's id. All
//! there is to do is to ring at the right time.

use diesel::connection::TransactionManagerStatus;
use diesel::pg::{Pg, PgQueryBuilder};
use diesel::query_builder::{AsQuery, QueryBuilder as _, QueryFragment, QueryId};
use diesel::{ConnectionResult, QueryResult};
use diesel_async::{
    AnsiTransactionManager, AsyncConnection, AsyncConnectionCore, AsyncPgConnection,
    SimpleAsyncConnection, TransactionManager,
};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};

use super::{Intercepted, Wake, sealed};

impl sealed::Sealed for AsyncPgConnection {}

impl Intercepted for AsyncPgConnection {
    async fn open(url: &str) -> ConnectionResult<Self> {
        Self::establish(url).await
    }

    async fn batch(&mut self, sql: &str, wake: &Wake) -> QueryResult<()> {
        let alone = alone(self);
        self.batch_execute(sql).await?;
        if alone {
            wake.ring();
        }
        Ok(())
    }

    fn load_ringing<'conn, 'query, T>(
        &'conn mut self,
        source: T,
        wake: &Wake,
    ) -> Self::LoadFuture<'conn, 'query>
    where
        T: AsQuery + 'query,
        T::Query: QueryFragment<Pg> + QueryId + 'query,
    {
        let query = source.as_query();
        if !alone(self) || only_reads(&query) {
            return AsyncConnectionCore::load(self, query);
        }
        let rows = AsyncConnectionCore::load(self, query);
        let wake = wake.clone();
        async move {
            // The statement has committed once its last row is here, and a deferred constraint may
            // still fail after the first. PostgreSQL holds the rows of a RETURNING in full as well.
            let rows: Vec<_> = rows.await?.try_collect().await?;
            wake.ring();
            Ok(stream::iter(rows.into_iter().map(Ok)).boxed())
        }
        .boxed()
    }

    fn execute_ringing<'conn, 'query, T>(
        &'conn mut self,
        source: T,
        wake: &Wake,
    ) -> Self::ExecuteFuture<'conn, 'query>
    where
        T: QueryFragment<Pg> + QueryId + 'query,
    {
        let alone = alone(self);
        let count = AsyncConnectionCore::execute_returning_count(self, source);
        if !alone {
            return count;
        }
        let wake = wake.clone();
        count.inspect(move |count| count.iter().for_each(|_| wake.ring())).boxed()
    }

    async fn begin(&mut self) -> QueryResult<()> {
        AnsiTransactionManager::begin_transaction(self).await
    }

    async fn begin_sql(&mut self, sql: &str) -> QueryResult<()> {
        AnsiTransactionManager::begin_transaction_sql(self, sql).await
    }

    async fn commit(&mut self, wake: &Wake) -> QueryResult<()> {
        AnsiTransactionManager::commit_transaction(self).await?;
        if alone(self) {
            wake.ring();
        }
        Ok(())
    }
}

/// Whether no transaction is open that we know of.
fn alone(connection: &mut AsyncPgConnection) -> bool {
    match AnsiTransactionManager::transaction_manager_status_mut(connection) {
        TransactionManagerStatus::Valid(status) => status.transaction_depth().is_none(),
        TransactionManagerStatus::InError => false,
    }
}

/// Whether a query is a SELECT that, as far as its text tells, calls no function for its effect:
/// such a one has a FROM clause, or calls none at all (as the pools' `SELECT 1`). The relay is not
/// to look for changes after every read.
fn only_reads(query: &impl QueryFragment<Pg>) -> bool {
    let mut builder = PgQueryBuilder::default();
    query.to_sql(&mut builder, &Pg).is_ok() && reads(&builder.finish())
}

fn reads(sql: &str) -> bool {
    let sql = sql.trim_start();
    let selects = sql.get(..6).is_some_and(|word| word.eq_ignore_ascii_case("select"));
    let has_from = || sql.split_ascii_whitespace().any(|word| word.eq_ignore_ascii_case("from"));
    selects && (!sql.contains('(') || has_from())
}

#[cfg(test)]
mod tests {
    use super::reads;

    #[test]
    fn a_select_from_a_table_only_reads() {
        assert!(reads("SELECT \"a\".\"b\" FROM \"a\" WHERE (\"a\".\"b\" = $1)"));
        assert!(reads("  select $1"));
        assert!(reads("SELECT count(*)\nFROM a"));
    }

    #[test]
    fn whatever_may_write_rings() {
        assert!(!reads("SELECT admit($1)"));
        assert!(!reads("INSERT INTO a VALUES (1) RETURNING b"));
        assert!(!reads("WITH x AS (DELETE FROM a RETURNING *) SELECT * FROM x"));
        assert!(!reads("/* a */ SELECT 1"));
        assert!(!reads(""));
    }
}
