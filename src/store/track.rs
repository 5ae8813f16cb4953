//! `track` and `untrack`: reads the catalog, decides, prepares the tables, writes the triggers, and
//! keeps the definitions that every process works by. All in one transaction of the caller's.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

mod prepare;
mod untrack;

pub use untrack::untrack;

use serde::Serialize;

use super::keysql;
use super::session::{Dialect, Session};
use super::{books, postgres, seal, sqlite};
use crate::catalog::decide::{self, Remark, Request};
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
    /// `new`, `updated`, `mended` (triggers were gone or out of date) or `unchanged`.
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
/// A class that is tracked and can be no longer (its table has a column now that looks like a
/// reference, say) stays under capture as it was: the report says why under `refusals`.
///
/// # Errors
/// [`Config`](crate::Kind::Config) when the database is no server yet, a key holds duplicates, or a
/// condition of the configuration cannot be run. Tables that are refused are no error: the report
/// names them.
pub async fn track(session: &mut Session, mut request: Request) -> Result<Report> {
    seal::lock(session).await?;
    let old = load(session).await?;
    request.tracked = old.tracked.values().map(|one| one.class.clone()).collect();
    let found = tables(session).await?;
    request.skipped = skipped(session, &found).await?;
    request.fills_uuid = session.dialect() == Dialect::Postgres;
    let decision = decide::decide(&found, &request);
    let decision = prepare::prepare(session, &request, decision).await?;
    let mut report =
        Report { warnings: decision.warnings, refusals: decision.refusals, classes: Vec::new() };
    for class in old.tracked.values().map(|tracked| &tracked.class.name) {
        if !found.iter().any(|table| *table.name == **class) {
            let text = "its table is gone: take it out with `branchline untrack`".to_owned();
            report.warnings.push(Remark { class: class.to_string(), text });
        }
    }
    for class in &decision.classes {
        try_conditions(session, class).await?;
        let before = old.class(&class.name).cloned();
        let state = store(session, class, before.as_deref()).await?;
        report.classes.push(shown(class, state));
    }
    let dialect = session.dialect();
    report.warnings.extend(decision.classes.iter().filter_map(|class| guard(dialect, class)));
    let catalog = load(session).await?;
    make_triggers(session, &catalog, &found, &mut report).await?;
    report.warnings.extend(sequences(session, &decision.classes).await?);
    report.classes.sort_by(|a, b| a.class.cmp(&b.class));
    report.warnings.sort();
    report.warnings.dedup();
    report.refusals.sort();
    Ok(report)
}

/// Makes or mends the triggers that are not as they should be, those of classes that could not be
/// brought up to date included.
async fn make_triggers(
    session: &mut Session,
    catalog: &Catalog,
    found: &[Table],
    report: &mut Report,
) -> Result<()> {
    let here = |tracked: &Tracked| found.iter().any(|table| *table.name == *tracked.class.name);
    if session.dialect() == Dialect::Postgres {
        for statement in postgres::triggers::support() {
            session.batch(&statement).await?;
        }
    }
    let broken = missing(session, catalog).await?;
    let broken: Vec<&Tracked> = broken
        .iter()
        .filter_map(|id| catalog.tracked.get(id))
        .map(AsRef::as_ref)
        .filter(|tracked| here(tracked))
        .collect();
    match session.dialect() {
        Dialect::Postgres => postgres::triggers::install(session, &broken, catalog).await?,
        Dialect::Sqlite => {
            for tracked in &broken {
                let name = &tracked.class.name;
                sqlite::triggers::install(session, tracked, catalog)
                    .await
                    .context(|| format!("`{name}` cannot be captured"))?;
            }
        }
    }
    for class in &mut report.classes {
        let mended = broken.iter().any(|tracked| *tracked.class.name == *class.class);
        if mended && class.state == "unchanged" {
            class.state = "mended";
        }
    }
    Ok(())
}

/// Classes whose triggers are gone or differ.
async fn missing(session: &mut Session, catalog: &Catalog) -> Result<Vec<i32>> {
    match session.dialect() {
        Dialect::Postgres => postgres::triggers::missing(session, catalog).await,
        Dialect::Sqlite => sqlite::triggers::missing(session, catalog).await,
    }
}

/// What a class's host triggers cost, and how to spare it.
fn guard(dialect: Dialect, class: &Class) -> Option<Remark> {
    if class.host_triggers.is_empty() {
        return None;
    }
    let guard = match dialect {
        Dialect::Postgres => {
            "WHEN (current_setting('branchline.applying', true) IS DISTINCT FROM 'on')"
        }
        Dialect::Sqlite => "WHEN NOT EXISTS (SELECT 1 FROM sync_applying)",
    };
    let list: Vec<String> = class.host_triggers.iter().map(|name| format!("`{name}`")).collect();
    Some(Remark {
        class: class.name.to_string(),
        text: format!(
            "{} also run where changes are applied, and what they do there is put back, because it \
             came along from where they first ran; guard them with {guard} to spare that work",
            list.join(", ")
        ),
    })
}

/// Sequences that will give numbers which their tables have already.
async fn sequences(session: &mut Session, classes: &[Class]) -> Result<Vec<Remark>> {
    if session.dialect() == Dialect::Sqlite {
        return Ok(Vec::new());
    }
    let classes: Vec<&Class> = classes.iter().collect();
    let behind = postgres::catalog::behind(session, &classes).await?;
    let remark = |one: postgres::catalog::Behind| Remark {
        text: format!(
            "its sequence gives {} next, and the table has {} already: the host's inserts will \
             fail, and so will rows from other servers; SELECT setval('{}', {})",
            one.next, one.highest, one.sequence, one.highest
        ),
        class: one.class,
    };
    Ok(behind.into_iter().map(remark).collect())
}

/// Runs each condition of the configuration once, over no row.
async fn try_conditions(session: &mut Session, class: &Class) -> Result<()> {
    let table = keysql::table(class);
    for slot in class.slots() {
        let Some(when) = &slot.reference.when else { continue };
        let when = when.replace("{row}", "branchline_row");
        let try_it = format!("SELECT 1 FROM {table} AS branchline_row WHERE ({when}) LIMIT 0");
        let sql = match session.dialect() {
            Dialect::Postgres => format!(
                "SET LOCAL search_path = {}; {try_it}; SET LOCAL search_path = DEFAULT",
                postgres::triggers::search_path(class)
            ),
            Dialect::Sqlite => try_it,
        };
        session.batch(&sql).await.map_err(|error| {
            Error::config(format!(
                "`when` of [[reference]] `{}.{}` cannot be run",
                class.name, class.columns[slot.column].name
            ))
            .with_source(error)
        })?;
    }
    Ok(())
}

/// Classes whose triggers are gone, or not as this version makes them.
///
/// # Errors
/// Those of the database.
pub async fn broken(session: &mut Session, catalog: &Catalog) -> Result<Vec<String>> {
    let list = missing(session, catalog).await?;
    let names = list.iter().filter_map(|id| catalog.tracked.get(id));
    Ok(names.map(|tracked| tracked.class.name.to_string()).collect())
}

/// Classes whose triggers are broken, or whose tables have other columns than they were tracked with.
///
/// # Errors
/// Those of the database.
pub async fn drifted(session: &mut Session, catalog: &Catalog) -> Result<Vec<String>> {
    let mut list = broken(session, catalog).await?;
    let found = tables(session).await?;
    list.retain(|name| found.iter().any(|table| table.name == *name));
    for table in found {
        let Some(tracked) = catalog.class(&table.name) else { continue };
        if differs(&table, &tracked.class) {
            list.push(table.name);
        }
    }
    list.sort();
    list.dedup();
    Ok(list)
}

/// Whether a table is not what its class says of it.
fn differs(table: &Table, class: &Class) -> bool {
    let now = table
        .columns
        .iter()
        .map(|column| (&*column.name, &*column.sql_type, column.not_null, column.generated));
    let then = class
        .columns
        .iter()
        .map(|column| (&*column.name, &*column.sql_type, column.not_null, column.generated));
    let primary = table.primary_key.iter().map(String::as_str);
    let local = class.local.iter().map(|n| &*class.columns[*n].name);
    !now.eq(then)
        || (!table.primary_key.is_empty() && !primary.eq(local))
        || table.partitions != class.partitions
        || table.clashes != class.clashes
        || table.plain != class.plain
        || table.host_triggers != class.host_triggers
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

/// Writes the definition and the shape of a class.
async fn store(
    session: &mut Session,
    class: &Class,
    before: Option<&Tracked>,
) -> Result<&'static str> {
    let definition = serde_json::to_string(class)
        .map_err(|error| Error::failed("a class cannot be stored").with_source(error))?;
    if let Some(before) = before
        && before.class == *class
    {
        return Ok("unchanged");
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
    Ok(if before.is_some() { "updated" } else { "new" })
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
