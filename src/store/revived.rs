//! `sync_revived`: rows that are dead by their state and stand in their table all the same, because
//! a row refers to them.

use std::collections::HashSet;

use super::bulk;
use super::session::{Datum, Session};
use crate::catalog::Catalog;
use crate::error::Result;
use crate::record::RowId;

/// How many are looked at at a time; more than that keep until some of these have gone.
const ROWS_MAX: i64 = 10_000;

/// The rows.
pub async fn list(session: &mut Session) -> Result<HashSet<RowId>> {
    let sql = "SELECT t.class, r.key FROM @sync_revived r JOIN @sync_tracked t ON t.id = r.class_id \
               ORDER BY r.class_id, r.key LIMIT $1";
    let rows = session.query(sql, vec![ROWS_MAX.into()]).await?;
    let row = |row: &super::Row| Ok(RowId { class: row.text(0)?.into(), key: row.text(1)?.into() });
    rows.iter().map(row).collect()
}

/// Adds rows that stand from now on.
pub async fn add<'a>(
    session: &mut Session,
    catalog: &Catalog,
    rows: impl Iterator<Item = &'a RowId>,
) -> Result<()> {
    let lines: Vec<Vec<Datum>> = rows.filter_map(|row| line(catalog, row)).collect();
    if lines.is_empty() {
        return Ok(());
    }
    let columns = [("class_id", "int"), ("key", "text")];
    bulk::insert(session, "@sync_revived", &columns, lines, "ON CONFLICT DO NOTHING").await?;
    Ok(())
}

/// Removes rows that went, or live again.
pub async fn remove<'a>(
    session: &mut Session,
    catalog: &Catalog,
    rows: impl Iterator<Item = &'a RowId>,
) -> Result<()> {
    let lines: Vec<Vec<Datum>> = rows.filter_map(|row| line(catalog, row)).collect();
    if lines.is_empty() {
        return Ok(());
    }
    let sql = "DELETE FROM @sync_revived WHERE class_id = $1 AND key = $2";
    session.execute_each(sql, lines).await?;
    Ok(())
}

fn line(catalog: &Catalog, row: &RowId) -> Option<Vec<Datum>> {
    Some(vec![(*catalog.ids.get(&row.class)?).into(), row.key.to_string().into()])
}
