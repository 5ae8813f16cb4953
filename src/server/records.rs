//! What was sent and came in, and what is kept of it.

use std::time::Duration;

use uuid::Uuid;

use super::{Server, transaction};
use crate::error::Result;
use crate::store::books::audit::{self, Entry, Transmission};
use crate::store::books::cleanup::{self, Cleaned};
use crate::store::books::records::{self, Filter, Import, Record};
use crate::store::books::{self, Attempts, servers};
use crate::store::time;

impl Server {
    /// The newest records that are to go out or went out, oldest first; of one state, for one
    /// neighbour.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) for an unknown neighbour.
    pub async fn records(
        &self,
        state: Option<&str>,
        server: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Record>> {
        let mut session = self.read().await?;
        let server = match server {
            Some(name) => Some(servers::find(&mut session, name).await?),
            None => None,
        };
        let filter = Filter { state, server: server.as_ref(), limit };
        let list = records::list(&mut session, filter).await?;
        session.rollback().await?;
        Ok(list)
    }

    /// One record, by its name on the hop or its original's.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) where there is none.
    pub async fn record(&self, uuid: Uuid) -> Result<Record> {
        let mut session = self.read().await?;
        let record = records::find(&mut session, uuid).await?;
        session.rollback().await?;
        Ok(record)
    }

    /// Has a record sent again, or all that stopped; to all neighbours that do not have it, or one.
    /// Says how many deliveries that makes.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) for an unknown record or neighbour.
    pub async fn reset(&self, uuid: Option<Uuid>, server: Option<&str>) -> Result<u64> {
        transaction!(self, session => {
            books::identity(session).await?;
            let server = match server {
                Some(name) => Some(servers::find(session, name).await?),
                None => None,
            };
            records::reset(session, uuid, server.as_ref(), &self.actor).await
        })
    }

    /// The newest records that came in, oldest first; of one state, from one neighbour.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) for an unknown neighbour.
    pub async fn imports(
        &self,
        state: Option<&str>,
        server: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Import>> {
        let mut session = self.read().await?;
        let server = match server {
            Some(name) => Some(servers::find(&mut session, name).await?),
            None => None,
        };
        let filter = Filter { state, server: server.as_ref(), limit };
        let list = records::imports(&mut session, filter).await?;
        session.rollback().await?;
        Ok(list)
    }

    /// Deletes what is older than `age` and done with, in small transactions.
    ///
    /// # Errors
    /// Those of the database; what was deleted before stays deleted.
    pub async fn cleanup(&self, age: Duration) -> Result<Cleaned> {
        let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        cleanup::cleanup(&self.store, time::now().saturating_sub(age), &self.actor).await
    }

    /// The newest actions of operators, newest first.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when `init` has not been run.
    pub async fn audit(&self, limit: u32) -> Result<Vec<Entry>> {
        let mut session = self.read().await?;
        let entries = audit::list(&mut session, limit).await?;
        session.rollback().await?;
        Ok(entries)
    }

    /// The newest exchanges that failed, newest first.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when `init` has not been run.
    pub async fn transmissions(&self, limit: u32) -> Result<Vec<Transmission>> {
        let mut session = self.read().await?;
        let list = audit::transmissions(&mut session, limit).await?;
        session.rollback().await?;
        Ok(list)
    }
}
