//! `track` and `untrack`: reads the catalog, decides, prepares the tables, writes the triggers, and
//! keeps the definitions that every process works by. All in one transaction of the caller's.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use super::keysql;
use super::session::{Datum, Dialect, Session, quote};
use super::{books, postgres, rows, seal, sqlite};
use crate::catalog::decide::{self, Action, Decision, Remark, Request, UUID_COLUMN};
use crate::catalog::{Catalog, Class, Table, Tracked};
use crate::error::{Context as _, Error, Result};

/// What `track` did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The classes that are tracked now, of those that were asked for.
    pub classes: Vec<ClassReport>,
    /// What an operator should know.
    pub warnings: Vec<Remark>,
    /// Tables that are not tracked, and why.
    pub refusals: Vec<Remark>,
}

/// A class as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct ClassReport {
    /// Its name.
    pub class: String,
    /// `new`, `updated` or `unchanged`.
    pub state: &'static str,
    /// The columns that identify a row.
    pub key: Vec<String>,
    /// The local primary key that never travels.
    pub surrogate: Option<String>,
    /// Columns that refer to rows of other classes: column, class.
    pub references: Vec<(String, String)>,
    /// Triggers of the host that also run where changes are applied.
    pub host_triggers: Vec<String>,
}

/// The classes as `track` left them.
///
/// # Errors
/// [`Failed`](crate::Kind::Failed) when a definition is damaged.
pub async fn load(session: &mut Session) -> Result<Catalog> {
    let rows = session
        .query("SELECT id, class, definition, coalesce(shape, 0) FROM @sync_tracked", vec![])
        .await?;
    let (mut tracked, mut ids) = (HashMap::new(), HashMap::new());
    for row in rows {
        let (id, name) = (number(row.int(0)?)?, row.text(1)?);
        ids.insert(Arc::from(name), id);
        let Some(definition) = row.opt_text(2)? else { continue };
        let class = serde_json::from_str(definition).map_err(|error| {
            Error::failed(format!("the definition of `{name}` is damaged: run `branchline track`"))
                .with_source(error)
        })?;
        let shape = number(row.int(3)?)?;
        tracked.insert(id, Arc::new(Tracked { id, shape, class }));
    }
    Ok(Catalog::new(tracked, ids))
}

fn number(id: i64) -> Result<i32> {
    i32::try_from(id).map_err(|_| Error::failed("a number of a class is out of range"))
}

/// Reads the host's tables.
///
/// # Errors
/// Those of the database.
pub async fn tables(session: &mut Session) -> Result<Vec<Table>> {
    match session.dialect() {
        Dialect::Postgres => postgres::catalog::read(session).await,
        Dialect::Sqlite => sqlite::catalog::read(session).await,
    }
}

/// Puts tables under capture, and brings those that are there already up to date.
///
/// # Errors
/// [`Config`](crate::Kind::Config) when the database is no server yet, or a uuid column holds
/// duplicates. Tables that are refused are no error: the report names them.
pub async fn track(session: &mut Session, mut request: Request) -> Result<Report> {
    seal::lock(session).await?;
    let old = load(session).await?;
    request.tracked = old.tracked.values().map(|one| one.class.name.to_string()).collect();
    let found = tables(session).await?;
    request.skipped = skipped(session, &found).await?;
    let decision = decide::decide(&found, &request);
    let decision = prepare(session, &request, decision).await?;
    let mut report =
        Report { warnings: decision.warnings, refusals: decision.refusals, classes: Vec::new() };
    let mut states = Vec::new();
    for class in decision.classes {
        let before = old.class(&class.name).cloned();
        let (id, state) = store(session, &class, before.as_deref()).await?;
        report.classes.push(shown(&class, state));
        states.push((id, state));
    }
    report.classes.sort_by(|a, b| a.class.cmp(&b.class));
    report.warnings.sort();
    report.refusals.sort();
    let catalog = load(session).await?;
    for (id, state) in states {
        let Some(tracked) = catalog.tracked.get(&id) else { continue };
        if state == "unchanged" && !missing(session, &catalog, id).await? {
            continue;
        }
        make_triggers(session, tracked, &catalog).await?;
    }
    Ok(report)
}

/// Whether triggers of a class are gone or differ.
async fn missing(session: &mut Session, catalog: &Catalog, id: i32) -> Result<bool> {
    let list = match session.dialect() {
        Dialect::Postgres => postgres::triggers::missing(session, catalog).await?,
        Dialect::Sqlite => sqlite::triggers::missing(session, catalog).await?,
    };
    Ok(list.contains(&id))
}

/// Classes whose triggers are gone, or not as this version makes them.
///
/// # Errors
/// Those of the database.
pub async fn broken(session: &mut Session, catalog: &Catalog) -> Result<Vec<String>> {
    let list = match session.dialect() {
        Dialect::Postgres => postgres::triggers::missing(session, catalog).await?,
        Dialect::Sqlite => sqlite::triggers::missing(session, catalog).await?,
    };
    let names = list.iter().filter_map(|id| catalog.tracked.get(id));
    Ok(names.map(|tracked| tracked.class.name.to_string()).collect())
}

/// Classes whose triggers are broken, or whose tables have other columns than they were tracked with.
///
/// # Errors
/// Those of the database.
pub async fn drifted(session: &mut Session, catalog: &Catalog) -> Result<Vec<String>> {
    let mut list = broken(session, catalog).await?;
    for table in tables(session).await? {
        let Some(tracked) = catalog.class(&table.name) else { continue };
        let now =
            table.columns.iter().map(|column| (column.name.as_str(), column.sql_type.as_str()));
        let then =
            tracked.class.columns.iter().map(|column| (&*column.name, column.sql_type.as_str()));
        if !now.eq(then) || table.partitions != tracked.class.partitions {
            list.push(table.name);
        }
    }
    list.sort();
    list.dedup();
    Ok(list)
}

/// Tables that `--all` leaves out: the default rules neither send nor receive them.
async fn skipped(session: &mut Session, found: &[Table]) -> Result<BTreeSet<String>> {
    let rules = books::rules::defaults(session).await?;
    let kept_back = |name: &str| {
        books::rules::effective(&rules, name)
            .is_some_and(|rule| !rule.send_to && !rule.receive_from)
    };
    Ok(found.iter().map(|table| table.name.clone()).filter(|name| kept_back(name)).collect())
}

/// Does to the tables what tracking needs, and decides again where that changed them.
async fn prepare(session: &mut Session, request: &Request, decision: Decision) -> Result<Decision> {
    if decision.actions.is_empty() {
        return Ok(decision);
    }
    for action in &decision.actions {
        let class = |name: &str| decision.classes.iter().find(|class| &*class.name == name);
        match action {
            Action::AddUuid { class: name } => {
                let Some(class) = class(name) else { continue };
                let kind = match session.dialect() {
                    Dialect::Postgres => "varchar(38)",
                    Dialect::Sqlite => "VARCHAR(38)",
                };
                let table = keysql::table(class);
                session
                    .batch(&format!("ALTER TABLE {table} ADD COLUMN {UUID_COLUMN} {kind}"))
                    .await
                    .context(|| format!("`{name}` gets no uuid column"))?;
                fill(session, class, UUID_COLUMN).await?;
                make_unique(session, class, UUID_COLUMN).await?;
            }
            Action::FillUuid { class: name, column } => {
                if let Some(class) = class(name) {
                    fill(session, class, column).await?;
                }
            }
            Action::MakeUnique { class: name, column } => {
                if let Some(class) = class(name) {
                    make_unique(session, class, column).await?;
                }
            }
        }
    }
    let found = tables(session).await?;
    let mut again = decide::decide(&found, &Request { add_uuid: false, ..request.clone() });
    again.actions.clear();
    Ok(again)
}

/// Gives every row whose uuid is NULL one. It is not captured: a first load or a copy brings it.
async fn fill(session: &mut Session, class: &Class, column: &str) -> Result<()> {
    let (table, column) = (keysql::table(class), quote(column));
    rows::uncaptured(session, true).await?;
    match session.dialect() {
        Dialect::Postgres => {
            let sql = format!(
                "UPDATE {table} SET {column} = gen_random_uuid()::text WHERE {column} IS NULL"
            );
            session.execute(&sql, vec![]).await?;
        }
        Dialect::Sqlite => {
            let find = format!("SELECT rowid FROM {table} WHERE {column} IS NULL");
            let binds = session
                .query(&find, vec![])
                .await?
                .iter()
                .map(|row| {
                    let id: Datum = Uuid::new_v4().into();
                    Ok(vec![id, row.int(0)?.into()])
                })
                .collect::<Result<_>>()?;
            let sql = format!("UPDATE {table} SET {column} = $1 WHERE rowid = $2");
            session.execute_each(&sql, binds).await?;
        }
    }
    rows::uncaptured(session, false).await
}

/// Duplicates that an error names at the most.
const DUPLICATES_SHOWN: i64 = 5;

async fn make_unique(session: &mut Session, class: &Class, column: &str) -> Result<()> {
    let (table, name) = (keysql::table(class), quote(column));
    let duplicates = session
        .query(
            &format!(
                "SELECT CAST({name} AS TEXT) FROM {table} WHERE {name} IS NOT NULL \
                 GROUP BY {name} HAVING count(*) > 1 LIMIT $1"
            ),
            vec![DUPLICATES_SHOWN.into()],
        )
        .await?;
    if !duplicates.is_empty() {
        let list: Vec<&str> =
            duplicates.iter().filter_map(|row| row.opt_text(0).ok().flatten()).collect();
        return Err(Error::config(format!(
            "`{}.{column}` is to identify rows and is not unique: {} stand more than once; mend them, or use --key",
            class.name,
            list.join(", ")
        )));
    }
    let index = quote(&format!("branchline_{}_{column}", class.table));
    session
        .batch(&format!("CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {table} ({name})"))
        .await
        .context(|| format!("`{}.{column}` cannot be made unique", class.name))
}

/// Writes the definition and the shape of a class.
async fn store(
    session: &mut Session,
    class: &Class,
    before: Option<&Tracked>,
) -> Result<(i32, &'static str)> {
    let definition = serde_json::to_string(class)
        .map_err(|error| Error::failed("a class cannot be stored").with_source(error))?;
    if let Some(before) = before
        && before.class == *class
    {
        return Ok((before.id, "unchanged"));
    }
    let row = session
        .query_one(
            "INSERT INTO @sync_tracked (class, definition) VALUES ($1, $2) ON CONFLICT (class) \
             DO UPDATE SET definition = excluded.definition, tracked_at = excluded.tracked_at \
             RETURNING id",
            vec![(&*class.name).into(), definition.into()],
        )
        .await?;
    let id = row.int(0)?;
    let names: Vec<&str> = class.columns.iter().map(|column| &*column.name).collect();
    let columns = serde_json::to_string(&names)
        .map_err(|error| Error::failed("a list of columns cannot be stored").with_source(error))?;
    let shape = session
        .query_one(
            "INSERT INTO @sync_shape (class_id, columns) VALUES ($1, $2) \
             ON CONFLICT (class_id, columns) DO UPDATE SET columns = excluded.columns RETURNING id",
            vec![id.into(), columns.into()],
        )
        .await?
        .int(0)?;
    session
        .execute("UPDATE @sync_tracked SET shape = $2 WHERE id = $1", vec![id.into(), shape.into()])
        .await?;
    Ok((number(id)?, if before.is_some() { "updated" } else { "new" }))
}

async fn make_triggers(session: &mut Session, tracked: &Tracked, catalog: &Catalog) -> Result<()> {
    let (drop, create) = match session.dialect() {
        Dialect::Postgres => {
            (postgres::triggers::drop(tracked), postgres::triggers::create(tracked, catalog)?)
        }
        Dialect::Sqlite => {
            (sqlite::triggers::drop(tracked), sqlite::triggers::create(tracked, catalog)?)
        }
    };
    for statement in drop.into_iter().chain(create) {
        session
            .batch(&statement)
            .await
            .context(|| format!("`{}` cannot be captured", tracked.class.name))?;
    }
    Ok(())
}

fn shown(class: &Class, state: &'static str) -> ClassReport {
    let name = |n: usize| class.columns[n].name.to_string();
    ClassReport {
        class: class.name.to_string(),
        state,
        key: class.key.iter().map(|n| name(*n)).collect(),
        surrogate: class.surrogate.map(name),
        references: class
            .slots()
            .map(|slot| (name(slot.column), slot.reference.target.to_string()))
            .collect(),
        host_triggers: class.host_triggers.clone(),
    }
}

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
    for tracked in &chosen {
        let name = &tracked.class.name;
        let leaving = |other: &Tracked| chosen.iter().any(|one| one.id == other.id);
        let referring = rows::referring(&catalog, name);
        if let Some((other, _, _)) = referring.iter().find(|(other, ..)| !leaving(other)) {
            return Err(Error::config(format!(
                "`{}` refers to `{name}`: untrack it first, or both together",
                other.class.name
            )));
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
                "{waiting} changes of `{name}` are not sealed yet: run `branchline sync` first"
            )));
        }
    }
    for tracked in &chosen {
        let statements = match session.dialect() {
            Dialect::Postgres => postgres::triggers::drop(tracked),
            Dialect::Sqlite => sqlite::triggers::drop(tracked),
        };
        for statement in statements {
            session.batch(&statement).await?;
        }
        session
            .execute(
                "UPDATE @sync_tracked SET definition = NULL, shape = NULL WHERE id = $1",
                vec![tracked.id.into()],
            )
            .await?;
        session
            .execute(
                "DELETE FROM @sync_shape WHERE class_id = $1 AND op < 4",
                vec![tracked.id.into()],
            )
            .await?;
    }
    let mut names: Vec<String> = chosen.iter().map(|one| one.class.name.to_string()).collect();
    names.sort();
    Ok(names)
}
