//! stub
use super::Session;
use crate::catalog::{Catalog, Tracked};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;
/// The tracked classes.
pub async fn load(session: &mut Session) -> Result<Catalog> {
    let rows = session
        .query("SELECT id, class, definition, coalesce(shape, 0) FROM @sync_tracked", vec![])
        .await?;
    let (mut tracked, mut ids) = (HashMap::new(), HashMap::new());
    for row in rows {
        let id = i32::try_from(row.int(0)?).map_err(|_| Error::failed("out of range"))?;
        ids.insert(Arc::from(row.text(1)?), id);
        let Some(definition) = row.opt_text(2)? else { continue };
        let class = serde_json::from_str(definition)
            .map_err(|error| Error::failed("damaged").with_source(error))?;
        let shape = i32::try_from(row.int(3)?).unwrap_or_default();
        tracked.insert(id, Arc::new(Tracked { id, shape, class }));
    }
    Ok(Catalog::new(tracked, ids))
}
