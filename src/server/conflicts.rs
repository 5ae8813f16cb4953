//! Where edits met that did not know of each other, and how classes merge.

use super::{Server, transaction};
use crate::error::Result;
use crate::store::apply::{Keep, resolve};
use crate::store::books::conflicts::{self, Line};
use crate::store::books::{self, Attempts, merging};
use crate::store::{time, track};

impl Server {
    /// Conflicts, the newest first: those that nobody dealt with, or all.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn conflicts(&self, all: bool, class: Option<&str>, limit: i64) -> Result<Vec<Line>> {
        let mut session = self.read().await?;
        let list = conflicts::list(&mut session, all, class, limit).await?;
        session.rollback().await?;
        Ok(list)
    }

    /// How many conflicts nobody dealt with.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn open_conflicts(&self) -> Result<i64> {
        let mut session = self.read().await?;
        let open = conflicts::open(&mut session).await?;
        session.rollback().await?;
        Ok(open)
    }

    /// One conflict.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when there is none with this number.
    pub async fn conflict(&self, id: i64) -> Result<Line> {
        let mut session = self.read().await?;
        let line = conflicts::show(&mut session, id).await?;
        session.rollback().await?;
        Ok(line)
    }

    /// Resolves a conflict: the winner stays, or the loser is written, an ordinary edit that travels
    /// to all servers. Yields the numbers of the conflicts that are resolved with it.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when it cannot be kept so, saying what to do instead.
    pub async fn resolve_conflict(&self, id: i64, keep: Keep) -> Result<Vec<i64>> {
        let settings = self.config.merge_settings()?;
        transaction!(self, session => {
            books::identity(session).await?;
            let catalog = track::load(session).await?;
            let merge = merging::tree_merge(session, &catalog, &settings).await?;
            let by = (self.actor.as_str(), time::now());
            resolve(session, &catalog, &merge, id, keep, by).await
        })
    }

    /// The classes that merge otherwise here than the root of the tree says, each with what differs:
    /// their records are held.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) for settings of classes that contradict themselves.
    pub async fn merge_differing(&self) -> Result<Vec<(String, String)>> {
        let mut session = self.read().await?;
        let catalog = track::load(&mut session).await?;
        let settings = self.config.merge_settings()?;
        let merge = merging::tree_merge(&mut session, &catalog, &settings).await?;
        session.rollback().await?;
        Ok(merge.differing().map(|(class, why)| (class.to_owned(), why.to_owned())).collect())
    }
}
