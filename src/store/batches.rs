//! Signatures of what origins sealed together (`sync_batch`).

use std::collections::HashMap;

use super::actors::Actors;
use super::session::{Datum, Session};
use crate::error::{Error, Result};
use crate::id::Actor;
use crate::record::batch::Tree;

/// A signed batch as it is known here.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Who sealed and signed it.
    pub origin: Actor,
    /// How many parts of records it has.
    pub count: u32,
    /// The origin's signature.
    pub signature: [u8; 64],
    /// What is known of its tree.
    pub tree: Tree,
}

/// Reads batches by their numbers.
pub async fn read(
    session: &mut Session,
    actors: &Actors,
    ids: Datum,
) -> Result<HashMap<i64, Batch>> {
    let sql = format!(
        "SELECT id, origin_id, count, signature, tree FROM @sync_batch WHERE {}",
        session.dialect().any("id", 1)
    );
    let mut batches = HashMap::new();
    for row in session.query(&sql, vec![ids]).await? {
        let damaged = || Error::decode("a line of `sync_batch` is damaged");
        let number = u32::try_from(row.int(1)?).map_err(|_| damaged())?;
        let batch = Batch {
            origin: actors.actor(number).ok_or_else(damaged)?,
            count: u32::try_from(row.int(2)?).map_err(|_| damaged())?,
            signature: row.bytes(3)?.try_into().map_err(|_| damaged())?,
            tree: Tree::from_bytes(row.bytes(4)?)?,
        };
        batches.insert(row.int(0)?, batch);
    }
    Ok(batches)
}
