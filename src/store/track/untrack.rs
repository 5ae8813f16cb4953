//! `untrack`: what tracking made goes again. A uuid column that it added stays: it is data.

use std::sync::Arc;

use super::{load, prepare};
use crate::catalog::Tracked;
use crate::error::{Error, Result};
use crate::store::session::{Dialect, Session};
use crate::store::{postgres, seal, sqlite};

/// Takes tables out of capture; `names` empty means all. What was captured has to be sealed before.
///
/// # Errors
/// [`Config`](crate::Kind::Config) for a class that is not tracked, that others refer to, or whose
/// changes are not sealed yet.
pub async fn untrack(session: &mut Session, names: &[String]) -> Result<Vec<String>> {
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
    for tracked in &chosen {
        take_out(session, tracked).await?;
    }
    let mut names: Vec<String> = chosen.iter().map(|one| one.class.name.to_string()).collect();
    names.sort();
    Ok(names)
}

/// Removes the triggers, which waits for those who write, and only then looks whether all is sealed.
async fn take_out(session: &mut Session, tracked: &Tracked) -> Result<()> {
    let statements = match session.dialect() {
        Dialect::Postgres => postgres::triggers::drop(tracked),
        Dialect::Sqlite => sqlite::triggers::drop(tracked),
    };
    for statement in statements {
        session.batch(&statement).await?;
    }
    let waiting = session
        .query_one(
            "SELECT count(*) FROM @sync_change WHERE class_id = $1 AND op < 4",
            vec![tracked.id.into()],
        )
        .await?
        .int(0)?;
    if waiting > 0 {
        return Err(Error::config(format!(
            "{waiting} changes of `{}` are not sealed yet: run `branchline sync` first",
            tracked.class.name
        )));
    }
    session
        .execute(
            "UPDATE @sync_tracked SET definition = NULL, shape = NULL WHERE id = $1",
            vec![tracked.id.into()],
        )
        .await?;
    prepare::drop_index(session, &tracked.class).await?;
    session.execute("DELETE FROM @sync_shape WHERE class_id = $1", vec![tracked.id.into()]).await?;
    Ok(())
}
