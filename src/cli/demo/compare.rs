//! Compares every row of every database by key, with references seen as the key they lead to: the
//! local integers differ, and are meant to.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::store::session::Cell;
use crate::store::{Session, Store};

/// For each table: the SQL that yields the key and then every other column that travels.
const QUERIES: [(&str, &str); 11] = [
    ("role", "SELECT role, description FROM role"),
    ("concept", "SELECT CAST(uuid AS text), name FROM concept"),
    (
        "drug",
        "SELECT CAST(d.uuid AS text), d.name, CAST(c.uuid AS text) FROM drug d \
         JOIN concept c ON c.concept_id = d.concept_id",
    ),
    (
        "person",
        "SELECT CAST(uuid AS text), given_name, family_name, CAST(birth_year AS text), phone \
         FROM person",
    ),
    (
        "patient",
        "SELECT CAST(p.uuid AS text), t.identifier, CAST(t.deceased AS text) FROM patient t \
         JOIN person p ON p.person_id = t.person_id",
    ),
    (
        "users",
        "SELECT CAST(u.uuid AS text), u.username, CAST(p.uuid AS text) FROM users u \
         JOIN person p ON p.person_id = u.person_id",
    ),
    (
        "user_role",
        "SELECT CAST(u.uuid AS text) || ' ' || r.role FROM user_role r \
         JOIN users u ON u.user_id = r.user_id",
    ),
    (
        "encounter",
        "SELECT CAST(e.uuid AS text), CAST(p.uuid AS text), CAST(u.uuid AS text), e.kind, \
         CAST(e.held_at AS text) FROM encounter e JOIN person p ON p.person_id = e.patient_id \
         JOIN users u ON u.user_id = e.user_id",
    ),
    (
        "obs",
        "SELECT CAST(o.uuid AS text), CAST(e.uuid AS text), CAST(c.uuid AS text), \
         CAST(g.uuid AS text), CAST(o.value AS text), o.comment, CAST(o.voided AS text) FROM obs o \
         JOIN encounter e ON e.encounter_id = o.encounter_id \
         JOIN concept c ON c.concept_id = o.concept_id LEFT JOIN obs g ON g.obs_id = o.obs_group_id",
    ),
    (
        "drug_order",
        "SELECT CAST(o.uuid AS text), CAST(e.uuid AS text), CAST(d.uuid AS text), \
         CAST(o.dose AS text), o.unit, CAST(o.stopped AS text) FROM drug_order o \
         JOIN encounter e ON e.encounter_id = o.encounter_id JOIN drug d ON d.drug_id = o.drug_id",
    ),
    (
        "allergy",
        "SELECT CAST(p.uuid AS text) || ' ' || CAST(c.uuid AS text), a.severity FROM allergy a \
         JOIN person p ON p.person_id = a.patient_id JOIN concept c ON c.concept_id = a.concept_id",
    ),
];

/// All rows of a database: table and key, then the other columns. A key that stands there twice
/// (it may not) has a line for each.
type Image = BTreeMap<(&'static str, String), Vec<Vec<Option<String>>>>;

/// What comparing found.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// Rows of each table at the first server.
    pub(super) rows: Vec<(&'static str, usize)>,
    /// What differs, a sentence each.
    pub(super) differences: Vec<String>,
    /// Rows that were looked at on all servers together.
    pub(super) compared: usize,
}

/// Compares all databases with the first.
pub(super) async fn compare(servers: &[(&str, &Store)]) -> Result<Comparison> {
    let mut images = Vec::new();
    for (name, store) in servers {
        images.push((*name, image(store).await?));
    }
    let mut comparison = Comparison::default();
    let Some(((first_name, first), others)) = images.split_first() else { return Ok(comparison) };
    for (table, _) in QUERIES {
        let rows = first.iter().filter(|((of, _), _)| *of == table).map(|(_, rows)| rows.len());
        comparison.rows.push((table, rows.sum()));
    }
    comparison.compared = images.iter().flat_map(|(_, image)| image.values()).map(Vec::len).sum();
    for (name, image) in others {
        differences((first_name, first), (name, image), &mut comparison.differences);
    }
    Ok(comparison)
}

fn differences(first: (&str, &Image), other: (&str, &Image), found: &mut Vec<String>) {
    for ((table, key), rows) in first.1 {
        match other.1.get(&(*table, key.clone())) {
            None => found.push(format!("`{table}` {key} is missing on `{}`", other.0)),
            Some(others) if others != rows => found.push(format!(
                "`{table}` {key} is {} on `{}` and {} on `{}`",
                shown(rows),
                first.0,
                shown(others),
                other.0
            )),
            Some(_) => {}
        }
    }
    for (table, key) in other.1.keys() {
        if !first.1.contains_key(&(*table, key.clone())) {
            found.push(format!("`{table}` {key} is on `{}` and not on `{}`", other.0, first.0));
        }
    }
}

/// The columns of a row; the demo's rows are nobody's secret.
fn shown(rows: &[Vec<Option<String>>]) -> String {
    let row = |row: &Vec<Option<String>>| {
        let columns = row.iter().map(|column| column.as_deref().unwrap_or("NULL"));
        format!("({})", columns.collect::<Vec<_>>().join(", "))
    };
    rows.iter().map(row).collect::<Vec<_>>().join(" twice: ")
}

async fn image(store: &Store) -> Result<Image> {
    let mut session = store.read().await?;
    let mut image = Image::new();
    for (table, sql) in QUERIES {
        add(&mut session, table, sql, &mut image).await?;
    }
    session.rollback().await?;
    Ok(image)
}

async fn add(
    session: &mut Session,
    table: &'static str,
    sql: &str,
    image: &mut Image,
) -> Result<()> {
    for row in session.query(sql, Vec::new()).await? {
        let mut columns: Vec<Option<String>> = row.0.iter().map(text).collect();
        let key = if columns.is_empty() { None } else { columns.remove(0) };
        let rows = image.entry((table, key.unwrap_or_default())).or_default();
        rows.push(columns);
        rows.sort();
    }
    Ok(())
}

fn text(cell: &Cell) -> Option<String> {
    match cell {
        Cell::Null => None,
        Cell::Text(text) => Some(text.clone()),
        other => Some(format!("{other:?}")),
    }
}

/// The local id that one person has on each server: for show.
pub(super) async fn ids_of_a_person(servers: &[(&str, &Store)]) -> Result<Vec<(String, i64)>> {
    let mut ids = Vec::new();
    let mut wanted = None;
    for (name, store) in servers.iter().rev() {
        let mut session = store.read().await?;
        let row = match &wanted {
            None => {
                session
                    .query_opt("SELECT person_id, CAST(uuid AS text) FROM person ORDER BY person_id DESC LIMIT 1", Vec::new())
                    .await?
            }
            Some(uuid) => {
                session
                    .query_opt(
                        "SELECT person_id, CAST(uuid AS text) FROM person WHERE CAST(uuid AS text) = $1",
                        vec![String::clone(uuid).into()],
                    )
                    .await?
            }
        };
        session.rollback().await?;
        let Some(row) = row else { continue };
        wanted = Some(row.text(1)?.to_owned());
        ids.push(((*name).to_owned(), row.int(0)?));
    }
    ids.reverse();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(rows: &[(&'static str, &str, &str)]) -> Image {
        let mut image = Image::new();
        for (table, key, value) in rows {
            image
                .entry((*table, (*key).to_owned()))
                .or_default()
                .push(vec![Some((*value).to_owned())]);
        }
        image
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        let first = image(&[("obs", "1", "a"), ("obs", "2", "b"), ("obs", "3", "c")]);
        let other = image(&[("obs", "1", "a"), ("obs", "2", "x"), ("obs", "4", "d")]);
        let mut found = Vec::new();
        differences(("root", &first), ("leaf", &other), &mut found);
        assert_eq!(
            found,
            [
                "`obs` 2 is (b) on `root` and (x) on `leaf`",
                "`obs` 3 is missing on `leaf`",
                "`obs` 4 is on `leaf` and not on `root`",
            ]
        );
        found.clear();
        differences(("root", &first), ("leaf", &first), &mut found);
        assert!(found.is_empty());
        let twice =
            image(&[("obs", "1", "a"), ("obs", "1", "a"), ("obs", "2", "b"), ("obs", "3", "c")]);
        differences(("root", &first), ("leaf", &twice), &mut found);
        assert_eq!(found.len(), 1);
    }
}
