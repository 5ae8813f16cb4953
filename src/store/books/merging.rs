//! How classes merge in the tree: what the parent told of it, and what that means here.

use super::servers::{self, Role};
use crate::catalog::Catalog;
use crate::error::Result;
use crate::merge::tree::Settings;
use crate::merge::{MergeConfig, TreeMerge};
use crate::store::Session;

/// What the parent told last; `None` on a root, and until it has told.
pub async fn stored(session: &mut Session) -> Result<Option<Vec<u8>>> {
    let row = session.query_opt("SELECT merge FROM @sync_self WHERE id = 1", Vec::new()).await?;
    let bytes = row.as_ref().map(|row| row.opt_bytes(0)).transpose()?.flatten();
    Ok(bytes.map(<[u8]>::to_vec))
}

/// Takes in what the parent tells. Records that were held because this server merged otherwise are
/// due at once. Says whether it is news.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) for what is no such configuration.
pub async fn told(session: &mut Session, bytes: &[u8]) -> Result<bool> {
    if bytes.is_empty() || stored(session).await?.as_deref() == Some(bytes) {
        return Ok(false);
    }
    MergeConfig::from_bytes(bytes)?;
    session
        .execute("UPDATE @sync_self SET merge = $1 WHERE id = 1", vec![bytes.to_vec().into()])
        .await?;
    Ok(true)
}

/// How classes merge here, by what stands in this snapshot and the server's own configuration.
pub async fn tree_merge(
    session: &mut Session,
    catalog: &Catalog,
    settings: &Settings,
) -> Result<TreeMerge> {
    let stored = stored(session).await?;
    let neighbours = servers::neighbours(session).await?;
    let root = !neighbours.iter().any(|neighbour| neighbour.role == Role::Parent);
    Ok(of(catalog, settings, stored.filter(|_| !root).as_deref()))
}

/// The same from what was read already: `told` is the parent's word, if there is a parent.
#[must_use]
pub fn of(catalog: &Catalog, settings: &Settings, told: Option<&[u8]>) -> TreeMerge {
    // What is stored was read once before it was stored.
    match told.and_then(|bytes| MergeConfig::from_bytes(bytes).ok()) {
        Some(tree) => TreeMerge::below(catalog, settings, tree),
        None => TreeMerge::own(catalog, settings),
    }
}
