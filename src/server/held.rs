//! What is held here. Trying it again is a [`Worker`](crate::Worker)'s.

use super::{Server, transaction};
use crate::error::Result;
use crate::store::books::held::{self, Held, Shown};
use crate::store::books::{self, Attempts};

impl Server {
    /// What is held, the oldest first, `limit` lines at the most.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when `init` has not been run.
    pub async fn held(&self, limit: u32) -> Result<Vec<Held>> {
        let mut session = self.read().await?;
        let list = held::list(&mut session, limit).await?;
        session.rollback().await?;
        Ok(list)
    }

    /// What is in a held record, and what it waits for.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when nothing is held by that number.
    pub async fn held_record(&self, id: i64) -> Result<Shown> {
        let mut session = self.read().await?;
        let shown = held::show(&mut session, id).await?;
        session.rollback().await?;
        Ok(shown)
    }

    /// Gives a held record up: it does not go in here. Its sender is told REJECTED by the next
    /// [`Worker`](crate::Worker), or its [`tell`](crate::Worker::tell).
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when nothing is held by that number.
    pub async fn drop_held(&self, id: i64) -> Result<Held> {
        transaction!(self, session => {
            books::identity(session).await?;
            held::drop(session, id, &self.actor).await
        })
    }
}
