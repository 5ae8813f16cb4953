//! What has to be done to the host's tables before they are tracked.

use uuid::Uuid;

use super::tables;
use crate::catalog::Class;
use crate::catalog::decide::{self, Action, Decision, Request, UUID_COLUMN};
use crate::error::{Context as _, Error, Result};
use crate::store::keysql;
use crate::store::rows;
use crate::store::session::{Datum, Dialect, Session, quote};

/// Does to the tables what tracking needs, and decides again where that changed them.
pub(super) async fn prepare(
    session: &mut Session,
    request: &Request,
    decision: Decision,
) -> Result<Decision> {
    if decision.actions.is_empty() {
        return Ok(decision);
    }
    let find = |name: &str| {
        let class = decision.classes.iter().find(|class| &*class.name == name);
        class.ok_or_else(|| Error::failed(format!("`{name}` is prepared and not decided on")))
    };
    for action in &decision.actions {
        match action {
            Action::AddUuid { class } => {
                add_uuid(session, find(class)?).await?;
            }
            Action::FillUuid { class, column } => fill(session, find(class)?, column).await?,
            Action::MakeUnique { class, columns } => {
                make_unique(session, find(class)?, columns).await?;
            }
        }
    }
    let found = tables(session).await?;
    let mut again = decide::decide(&found, &Request { add_uuid: false, ..request.clone() });
    again.actions.clear();
    // What was said of the columns that are there now.
    again.warnings.extend(decision.warnings);
    Ok(again)
}

/// Adds the uuid column. SQLite takes no default that is not constant: there what the host inserts
/// gets its uuid when it is sealed.
async fn add_uuid(session: &mut Session, class: &Class) -> Result<()> {
    let column = match session.dialect() {
        Dialect::Postgres => "varchar(38) DEFAULT gen_random_uuid()",
        Dialect::Sqlite => "VARCHAR(38)",
    };
    let table = keysql::table(class);
    session
        .batch(&format!("ALTER TABLE {table} ADD COLUMN {} {column}", quote(UUID_COLUMN)))
        .await
        .context(|| format!("`{}` gets no uuid column", class.name))?;
    if session.dialect() == Dialect::Sqlite {
        fill(session, class, UUID_COLUMN).await?;
    }
    make_unique(session, class, &[UUID_COLUMN.to_owned()]).await
}

/// Gives every row whose uuid is NULL one. It is not captured: a first load or a copy brings it.
async fn fill(session: &mut Session, class: &Class, column: &str) -> Result<()> {
    let table = keysql::table(class);
    let name = quote(column);
    rows::uncaptured(session, true).await?;
    match session.dialect() {
        Dialect::Postgres => {
            let kind = class.position(column).map_or("text", |n| &class.columns[n].sql_type);
            let sql = format!(
                "UPDATE {table} SET {name} = gen_random_uuid()::text::{kind} WHERE {name} IS NULL"
            );
            session.execute(&sql, vec![]).await?;
        }
        Dialect::Sqlite => {
            let find = format!("SELECT rowid FROM {table} WHERE {name} IS NULL");
            let binds = session
                .query(&find, vec![])
                .await?
                .iter()
                .map(|row| {
                    let id: Datum = Uuid::new_v4().into();
                    Ok(vec![id, row.int(0)?.into()])
                })
                .collect::<Result<_>>()?;
            let sql = format!("UPDATE {table} SET {name} = $1 WHERE rowid = $2");
            session.execute_each(&sql, binds).await?;
        }
    }
    rows::uncaptured(session, false).await
}

/// Duplicates that an error names at the most.
const DUPLICATES_SHOWN: i64 = 5;

async fn make_unique(session: &mut Session, class: &Class, columns: &[String]) -> Result<()> {
    let table = keysql::table(class);
    let list: Vec<String> = columns.iter().map(|column| quote(column)).collect();
    let shown: Vec<String> =
        list.iter().map(|column| format!("coalesce(CAST({column} AS TEXT), '')")).collect();
    let present: Vec<String> = list.iter().map(|column| format!("{column} IS NOT NULL")).collect();
    let duplicates = session
        .query(
            &format!(
                "SELECT min({}) FROM {table} WHERE {} GROUP BY {} HAVING count(*) > 1 LIMIT $1",
                shown.join(" || ', ' || "),
                present.join(" AND "),
                list.join(", ")
            ),
            vec![DUPLICATES_SHOWN.into()],
        )
        .await?;
    let columns = columns.join(", ");
    if !duplicates.is_empty() {
        let list: Vec<&str> =
            duplicates.iter().filter_map(|row| row.opt_text(0).ok().flatten()).collect();
        return Err(Error::config(format!(
            "`{}.{columns}` is to identify rows and is not unique: {} stand more than once; mend them, or use --key",
            class.name,
            list.join("; ")
        )));
    }
    let index = index_name(session, class).await?;
    let sql = format!("CREATE UNIQUE INDEX {} ON {table} ({})", quote(&index), list.join(", "));
    drop_index(session, class).await?;
    session
        .batch(&sql)
        .await
        .context(|| format!("`{}.{columns}` cannot be made unique", class.name))
}

/// Removes the index that [`make_unique`] made, if it did.
pub(super) async fn drop_index(session: &mut Session, class: &Class) -> Result<()> {
    let mut name = quote(&index_name(session, class).await?);
    if !class.schema.is_empty() {
        name = format!("{}.{name}", quote(&class.schema));
    }
    session.batch(&format!("DROP INDEX IF EXISTS {name}")).await
}

/// By the table's number on PostgreSQL, where long names are cut off.
async fn index_name(session: &mut Session, class: &Class) -> Result<String> {
    if session.dialect() == Dialect::Sqlite {
        return Ok(format!("branchline_key_{}", class.table));
    }
    let oid = session
        .query_one(
            "SELECT coalesce(to_regclass($1)::oid::bigint, 0)",
            vec![keysql::table(class).into()],
        )
        .await?
        .int(0)?;
    Ok(format!("branchline_key_{oid}"))
}
