//! Rows that stand only because others referred to them go when nothing does any more.

use std::collections::HashSet;

use super::hold::Refusal;
use super::leave::leaving;
use super::view::View;
use super::write::Writer;
use crate::catalog::Catalog;
use crate::error::Result;
use crate::merge::TreeMerge;
use crate::record::RowId;
use crate::store::actors::Actors;
use crate::store::revived;
use crate::store::rows::Found;
use crate::store::session::Session;
use crate::store::states::States;

/// Lets dead rows go that nothing refers to any more, after local edits. Yields them. The caller
/// holds the seal lock, has sealed everything, and commits.
///
/// # Errors
/// Those of the database, but for rows that it refuses to delete: those stay.
pub async fn sweep(
    session: &mut Session,
    actors: &mut Actors,
    catalog: &Catalog,
    merge: &TreeMerge,
) -> Result<Vec<RowId>> {
    let standing = revived::list(session).await?;
    if standing.is_empty() {
        return Ok(Vec::new());
    }
    session.batch("SAVEPOINT branchline_sweep").await?;
    let view = View { catalog, merge };
    match view.sweep(session, actors, standing).await {
        Ok(gone) => {
            session.batch("RELEASE SAVEPOINT branchline_sweep").await?;
            Ok(gone)
        }
        Err(Refusal::Whole(error)) if !error.holds_record() => Err(error),
        Err(refusal) => {
            tracing::warn!(?refusal, "rows that nothing refers to cannot go");
            let back = "ROLLBACK TO SAVEPOINT branchline_sweep; RELEASE SAVEPOINT branchline_sweep";
            session.batch(back).await?;
            Ok(Vec::new())
        }
    }
}

impl View<'_> {
    async fn sweep(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        standing: HashSet<RowId>,
    ) -> Result<Vec<RowId>, Refusal> {
        let mut states = States::default();
        let mut found = Found::default();
        let mut writer = Writer::new(session, self.catalog, &mut found, false);
        let mut rest = Vec::new();
        self.add_standing(&mut writer, actors, &mut states, &standing, &mut rest).await?;
        let stay: HashSet<RowId> = rest.iter().map(|(_, row)| row.clone()).collect();
        let leaving = leaving(&mut writer, rest).await?;
        let gone: Vec<RowId> = leaving.free.iter().map(|(_, row)| row.clone()).collect();
        if !gone.is_empty() {
            writer.begin().await?;
            self.delete(&mut writer, &mut states, &leaving).await?;
            writer.finish().await?;
        }
        states.save(session, actors).await?;
        let ended = standing.iter().filter(|row| !stay.contains(*row)).chain(&gone);
        revived::remove(session, self.catalog, ended).await?;
        Ok(gone)
    }
}
