//! What is held. Trying it again is a worker's: [`Worker::retry`](crate::Worker::retry).

use super::{Server, transaction};
use crate::error::Result;
use crate::store::books::Attempts;
use crate::store::books::held::{self, Held, Shown};

impl Server {
    /// What is held, oldest first.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when `init` has not been run.
    pub async fn held(&self, limit: u32) -> Result<Vec<Held>> {
        let mut session = self.read().await?;
        let list = held::list(&mut session, limit).await?;
        session.rollback().await?;
        Ok(list)
    }

    /// One of them, with what is in it and what it waits for.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) where nothing is held by that number.
    pub async fn show_held(&self, id: i64) -> Result<Shown> {
        let mut session = self.read().await?;
        let shown = held::show(&mut session, id).await?;
        session.rollback().await?;
        Ok(shown)
    }

    /// Drops what is held: it does not go in here. Its sender is told by the next exchange, or at
    /// once by [`Worker::tell`](crate::Worker::tell).
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) where nothing is held by that number.
    pub async fn drop_held(&self, id: i64) -> Result<Held> {
        transaction!(self, session => held::drop(session, id, &self.actor).await)
    }
}
