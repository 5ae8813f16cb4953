//! Which rows that are to leave can: those to which nothing refers that stays.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::write::Writer;
use crate::catalog::{Catalog, Tracked};
use crate::error::Result;
use crate::record::RowId;
use crate::store::rows::{self, Edge, Located};

/// Rows that are to leave, cut in two.
#[derive(Default)]
pub(super) struct Leaving {
    /// Those that can.
    pub(super) free: Vec<(Arc<Tracked>, RowId)>,
    /// Those that stay for now, each with a row that refers to it.
    pub(super) kept: Vec<(Arc<Tracked>, RowId, RowId)>,
    /// What refers to what among those that can.
    edges: Vec<Edge>,
}

/// Rows that can be deleted together.
pub(super) struct Round {
    /// References in a circle among the rows that are left: taken out first where they may be NULL.
    pub(super) loose: Vec<Edge>,
    /// The rows, by class.
    pub(super) classes: Vec<(Arc<Tracked>, Vec<RowId>)>,
}

/// Asks once for each class who refers to any of `rows`. A row that stays keeps what it refers to,
/// so those that would leave only with it stay as well; rows that refer to each other in a circle
/// leave together.
pub(super) async fn leaving(
    writer: &mut Writer<'_>,
    rows: Vec<(Arc<Tracked>, RowId)>,
) -> Result<Leaving> {
    if rows.is_empty() {
        return Ok(Leaving::default());
    }
    let all: HashSet<RowId> = rows.iter().map(|(_, row)| row.clone()).collect();
    let mut by_class: BTreeMap<i32, Located> = BTreeMap::new();
    for (tracked, row) in &rows {
        let Some(Some(local)) = writer.found.get(row) else { continue };
        let (_, list) =
            by_class.entry(tracked.id).or_insert_with(|| (Arc::clone(tracked), Vec::new()));
        list.push((row.clone(), local.clone()));
    }
    let mut edges: Vec<Edge> = Vec::new();
    for (tracked, list) in by_class.values() {
        // One more than can leave is enough to see that one stays.
        let limit = i64::try_from(all.len() + 1).unwrap_or(i64::MAX);
        edges.extend(
            rows::referring_to(writer.session, writer.catalog, tracked, list, limit).await?,
        );
    }
    let mut held_by: HashMap<RowId, RowId> = HashMap::new();
    for edge in edges.iter().filter(|edge| !all.contains(&edge.referrer)) {
        held_by.insert(edge.target.clone(), edge.referrer.clone());
    }
    let mut moved = true;
    while moved {
        moved = false;
        for edge in &edges {
            if held_by.contains_key(&edge.referrer) && !held_by.contains_key(&edge.target) {
                held_by.insert(edge.target.clone(), edge.referrer.clone());
                moved = true;
            }
        }
    }
    let mut leaving = Leaving::default();
    for (tracked, row) in rows {
        match held_by.get(&row) {
            Some(referrer) => leaving.kept.push((tracked, row, referrer.clone())),
            None => leaving.free.push((tracked, row)),
        }
    }
    leaving.edges = edges.into_iter().filter(|edge| !held_by.contains_key(&edge.target)).collect();
    Ok(leaving)
}

impl Leaving {
    /// The rows that can leave, by class.
    pub(super) fn by_class(&self) -> impl Iterator<Item = (&Arc<Tracked>, Vec<&RowId>)> {
        let mut classes: BTreeMap<i32, (&Arc<Tracked>, Vec<&RowId>)> = BTreeMap::new();
        for (tracked, row) in &self.free {
            classes.entry(tracked.id).or_insert_with(|| (tracked, Vec::new())).1.push(row);
        }
        classes.into_values()
    }

    /// The order in which they leave: a row goes when nothing that is left refers to it. Where only
    /// circles are left, these are opened.
    pub(super) fn rounds(&self, catalog: &Catalog) -> Vec<Round> {
        let mut left: HashMap<&RowId, &Arc<Tracked>> =
            self.free.iter().map(|(tracked, row)| (row, tracked)).collect();
        let mut rounds = Vec::new();
        while !left.is_empty() {
            let referred: HashSet<&RowId> = self
                .edges
                .iter()
                .filter(|edge| edge.referrer != edge.target && left.contains_key(&edge.referrer))
                .map(|edge| &edge.target)
                .collect();
            let mut go: Vec<&RowId> =
                left.keys().copied().filter(|row| !referred.contains(row)).collect();
            let mut loose = Vec::new();
            if go.is_empty() {
                let within = |edge: &&Edge| {
                    left.contains_key(&edge.referrer) && left.contains_key(&edge.target)
                };
                loose = self.edges.iter().filter(within).cloned().collect();
                go = left.keys().copied().collect();
            }
            go.sort_unstable();
            let mut classes: BTreeMap<(usize, i32), (Arc<Tracked>, Vec<RowId>)> = BTreeMap::new();
            for row in go {
                let Some(tracked) = left.remove(row) else { continue };
                // References that the catalog does not know: children first, as far as it knows.
                let rank = usize::MAX - catalog.rank(tracked.id);
                let class = classes
                    .entry((rank, tracked.id))
                    .or_insert_with(|| (Arc::clone(tracked), Vec::new()));
                class.1.push(row.clone());
            }
            rounds.push(Round { loose, classes: classes.into_values().collect() });
        }
        rounds
    }
}
