//! Turning a conflict round: an ordinary new edit, captured like any other and sent to all.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::hold::{Hold, Refusal};
use super::leave::leaving;
use super::write::{RowWrite, Writer, targets};
use crate::catalog::{Catalog, Tracked};
use crate::error::{Error, Result};
use crate::merge::TreeMerge;
use crate::record::Value;
use crate::store::actors::Actors;
use crate::store::books::audit;
use crate::store::books::conflicts::{self, ConflictKind, Line};
use crate::store::rows::Found;
use crate::store::session::{Datum, Session};
use crate::store::states::States;

/// Which side of a conflict is to count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// The side that counts already.
    Winner,
    /// The side that lost.
    Loser,
}

impl Keep {
    /// The name in `sync_conflict.resolution`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Winner => "winner",
            Self::Loser => "loser",
        }
    }
}

/// Resolves a conflict. The caller commits; what is written is sealed and sent as any local edit.
/// Lines of the same edit in other columns of its group are resolved with it. Yields the numbers of
/// all lines that are resolved.
///
/// # Errors
/// [`Config`](crate::Kind::Config) when it cannot be kept so, saying what to do instead;
/// [`Constraint`](crate::Kind::Constraint) when the database refuses it.
pub async fn resolve(
    session: &mut Session,
    catalog: &Catalog,
    merge: &TreeMerge,
    id: i64,
    keep: Keep,
    (actor, now): (&str, i64),
) -> Result<Vec<i64>> {
    let line = conflicts::show(session, id).await?;
    if line.resolved_at.is_some() {
        return Err(Error::config(format!("conflict {id} is resolved already")));
    }
    let mut lines = vec![line];
    match (lines[0].kind, keep) {
        (ConflictKind::Undecided, Keep::Winner) => let_in(session, &lines[0], now).await?,
        (ConflictKind::Undecided, Keep::Loser) => {
            return Err(Error::config(
                "let the edits in first (`--keep winner`): what loses then is a conflict of its own, which can be turned round",
            ));
        }
        (_, Keep::Winner) => {}
        (ConflictKind::Column, Keep::Loser) => {
            lines = with_group(session, merge, lines.remove(0)).await?;
            write_losers(session, catalog, &lines).await?;
        }
        (ConflictKind::EditAndDelete, Keep::Loser) => turn(session, catalog, &lines[0]).await?,
        (ConflictKind::Revived, Keep::Loser) => {
            return Err(Error::config(
                "the row stays while rows refer to it: delete those, and it goes by itself",
            ));
        }
    }
    let ids: Vec<i64> = lines.iter().map(|line| line.id).collect();
    for line in &lines {
        conflicts::resolved(session, line.id, keep.as_str(), now).await?;
        let detail = format!("{} of `{}` keep {}", line.id, line.row.class, keep.as_str());
        audit::note(session, actor, "conflicts resolve", &detail).await?;
    }
    Ok(ids)
}

/// Lets a record in whose concurrent edits wait for an operator.
async fn let_in(session: &mut Session, line: &Line, now: i64) -> Result<()> {
    let sql = "UPDATE @sync_held SET decided = $2, next_attempt = $3 WHERE original_uuid = $1";
    let binds = vec![line.original_uuid.into(), true.into(), Datum::time(now)];
    session.execute(sql, binds).await?;
    Ok(())
}

/// The line with those of the same edit in other columns of its group.
async fn with_group(session: &mut Session, merge: &TreeMerge, line: Line) -> Result<Vec<Line>> {
    let merging = merge.class(&line.row.class);
    let column = line.column_name.clone().unwrap_or_default();
    let all = conflicts::list(session, false, Some(&line.row.class), i64::MAX).await?;
    let same = |other: &Line| {
        let along = other.column_name.as_deref().unwrap_or_default();
        other.id != line.id
            && other.kind == ConflictKind::Column
            && other.row == line.row
            && (&other.loser.server, other.loser.time) == (&line.loser.server, line.loser.time)
            && merging.goes_along(along, |name| name == column)
    };
    let others: Vec<Line> = all.into_iter().filter(same).collect();
    Ok(std::iter::once(line).chain(others).collect())
}

fn class_of<'a>(catalog: &'a Catalog, line: &Line) -> Result<&'a Arc<Tracked>> {
    let gone = || Error::config(format!("`{}` is not tracked here any more", line.row.class));
    catalog.class(&line.row.class).ok_or_else(gone)
}

/// Writes what lost.
async fn write_losers(session: &mut Session, catalog: &Catalog, lines: &[Line]) -> Result<()> {
    let Some(first) = lines.first() else { return Ok(()) };
    let tracked = class_of(catalog, first)?;
    let mut values: BTreeMap<Arc<str>, Value> = BTreeMap::new();
    for line in lines {
        let (Some(name), Some(value)) = (&line.column_name, &line.loser.value) else {
            return Err(Error::config(
                "the value that lost is not known here: resolve it on the server that wrote it",
            ));
        };
        values.insert(name.as_str().into(), value.clone());
    }
    let write = RowWrite { tracked: Arc::clone(tracked), row: first.row.clone(), values };
    let mut found = Found::default();
    let mut writer = Writer::new(session, catalog, &mut found, false);
    writer.locate([&write.row], true).await?;
    if !writer.found.has(&write.row) {
        return Err(Error::config("the row is not in its table: it was deleted since"));
    }
    writer.locate(targets(catalog, &write).iter(), false).await?;
    writer.update(vec![write]).await.map_err(refused)
}

/// Deletes a row that an edit kept, or brings back one that a delete took.
async fn turn(session: &mut Session, catalog: &Catalog, line: &Line) -> Result<()> {
    let tracked = class_of(catalog, line)?;
    let actors = Actors::load(session).await?;
    let mut found = Found::default();
    let mut writer = Writer::new(session, catalog, &mut found, false);
    writer.locate([&line.row], true).await?;
    if writer.found.has(&line.row) {
        let leaving = leaving(&mut writer, vec![(Arc::clone(tracked), line.row.clone())]).await?;
        if let Some((_, _, referrer)) = leaving.kept.first() {
            return Err(Error::config(format!(
                "row `{}` of `{}` refers to it: delete that first",
                referrer.key, referrer.class
            )));
        }
        return writer.delete(tracked, std::slice::from_ref(&line.row)).await.map_err(refused);
    }
    let mut states = States::default();
    let place = (tracked.id, Arc::clone(&line.row.key));
    states.load(writer.session, &actors, [place.clone()]).await?;
    let shadow = states.peek(&place).and_then(|state| state.shadow.clone());
    let class = &tracked.class;
    let values: BTreeMap<Arc<str>, Value> = shadow
        .into_iter()
        .flatten()
        .filter(|(name, _)| {
            class
                .position(name)
                .is_some_and(|n| class.surrogate != Some(n) && !class.columns[n].generated)
        })
        .collect();
    if !class.key.iter().all(|n| values.contains_key(&class.columns[*n].name)) {
        return Err(Error::config("what the row held is forgotten here"));
    }
    let write = RowWrite { tracked: Arc::clone(tracked), row: line.row.clone(), values };
    writer.locate(targets(catalog, &write).iter(), false).await?;
    let later = writer.insert(vec![write]).await.map_err(refused)?;
    writer.update(later).await.map_err(refused)
}

fn refused(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Whole(error) => error,
        other => Error::constraint(Hold::of(&other).text),
    }
}
