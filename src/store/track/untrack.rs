//! `untrack`: what tracking made goes again, once everything that was captured is sealed. A uuid
//! column that it added stays: it is data.

use std::sync::Arc;

use super::{load, prepare};
use crate::catalog::{Catalog, Tracked};
use crate::error::{Error, Result};
use crate::rules::Rules;
use crate::store::actors::Actors;
use crate::store::held::HoldKind;
use crate::store::seal::{Bounds, Sealer, Shapes};
use crate::store::session::{Dialect, Session};
use crate::store::{books, postgres, seal, sqlite};

/// Takes tables out of capture; `names` empty means all. What was captured is sealed first.
///
/// # Errors
/// [`Config`](crate::Kind::Config) for a class that is not tracked, or that others refer to, and
/// those of sealing.
pub async fn untrack(
    session: &mut Session,
    names: &[String],
    bounds: Bounds,
) -> Result<Vec<String>> {
    seal::lock(session).await?;
    let catalog = load(session).await?;
    let mut chosen: Vec<Arc<Tracked>> = Vec::new();
    for name in names {
        let tracked =
            catalog.class(name).ok_or_else(|| Error::config(format!("`{name}` is not tracked")))?;
        chosen.push(Arc::clone(tracked));
    }
    if names.is_empty() {
        chosen = catalog.tracked.values().cloned().collect();
    }
    for other in catalog.tracked.values() {
        let leaving = |id: i32| chosen.iter().any(|one| one.id == id);
        let referred = other
            .class
            .slots()
            .find(|slot| catalog.ids.get(&slot.reference.target).is_some_and(|id| leaving(*id)));
        if let Some(slot) = referred.filter(|_| !leaving(other.id)) {
            return Err(Error::config(format!(
                "`{}` refers to `{}`: untrack it first, or both together",
                other.class.name, slot.reference.target
            )));
        }
    }
    // Dropping the triggers waits for those who write: what they captured is there afterwards.
    for tracked in &chosen {
        let statements = match session.dialect() {
            Dialect::Postgres => postgres::triggers::drop(tracked),
            Dialect::Sqlite => sqlite::triggers::drop(tracked),
        };
        session.batch(&statements.join("; ")).await?;
    }
    seal_all(session, &catalog, bounds).await?;
    for tracked in &chosen {
        take_out(session, tracked).await?;
    }
    let mut names: Vec<String> = chosen.iter().map(|one| one.class.name.to_string()).collect();
    names.sort();
    Ok(names)
}

/// Seals everything that is committed.
async fn seal_all(session: &mut Session, catalog: &Catalog, bounds: Bounds) -> Result<()> {
    let identity = books::identity(session).await?;
    let mut neighbours = Vec::new();
    for neighbour in books::neighbours(session).await? {
        let rules = Rules::new(books::rules_of(session, neighbour.id).await?);
        neighbours.push((neighbour, rules));
    }
    let mut actors = Actors::load(session).await?;
    let mut shapes = Shapes::default();
    let mut sealer = Sealer { catalog, identity, neighbours: &neighbours, bounds };
    while sealer.seal(session, &mut actors, &mut shapes).await?.more {}
    Ok(())
}

async fn take_out(session: &mut Session, tracked: &Tracked) -> Result<()> {
    let waiting = session
        .query_one(
            "SELECT count(*) FROM @sync_change WHERE class_id = $1 AND op < 4",
            vec![tracked.id.into()],
        )
        .await?
        .int(0)?;
    if waiting > 0 {
        return Err(Error::failed(format!(
            "{waiting} changes of `{}` came while it was taken out of capture: try again",
            tracked.class.name
        )));
    }
    session
        .execute(
            "UPDATE @sync_tracked SET definition = NULL, shape = NULL WHERE id = $1",
            vec![tracked.id.into()],
        )
        .await?;
    session
        .execute(
            "DELETE FROM @sync_held WHERE kind = $1 AND classes = $2",
            vec![HoldKind::Keyless.as_str().into(), (&*tracked.class.name).into()],
        )
        .await?;
    prepare::drop_index(session, &tracked.class).await?;
    session.execute("DELETE FROM @sync_shape WHERE class_id = $1", vec![tracked.id.into()]).await?;
    Ok(())
}
