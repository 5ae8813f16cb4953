//! Rows whose whole state is on its way to a neighbour (`sync_row_due`), or was asked for
//! (`sync_row_asked`).

use std::collections::BTreeSet;
use std::sync::Arc;

use super::books::Neighbour;
use super::bulk;
use super::keysql;
use super::links::stored;
use super::rows::{self, Found};
use super::session::{Datum, Session};
use super::states::States;
use super::time;
use crate::catalog::{Catalog, Tracked};
use crate::error::Result;
use crate::record::RowId;
use crate::record::messages::LoadRow;
use crate::rules::Rules;
use crate::store::actors::Actors;

/// Rows asked for in one message.
const ASKED_MAX: i64 = 1_000;

/// Doublings of the pause between two questions for one row.
const DOUBLINGS_MAX: u32 = 6;

/// Has whole states of rows sent to a neighbour, as far as they are tracked here.
pub async fn add(
    session: &mut Session,
    catalog: &Catalog,
    neighbour: i64,
    rows: impl IntoIterator<Item = (&str, &str)>,
) -> Result<u64> {
    let known = |(class, key)| Some((catalog.class(class)?.id, key));
    let once: BTreeSet<(i32, &str)> = rows.into_iter().filter_map(known).collect();
    let rows = once
        .into_iter()
        .map(|(class, key)| vec![neighbour.into(), class.into(), key.into()])
        .collect();
    bulk::insert(
        session,
        "@sync_row_due",
        &[("server_id", "int"), ("class_id", "int"), ("key", "text")],
        rows,
        "ON CONFLICT (server_id, class_id, key) DO UPDATE SET link_number = NULL",
    )
    .await
}

/// Has all rows of a class sent to a neighbour: those in the table, and those that only have a
/// state. The database does it, in one statement.
pub async fn add_class(
    session: &mut Session,
    catalog: &Catalog,
    neighbour: i64,
    tracked: &Tracked,
) -> Result<()> {
    let key = keysql::key(session.dialect(), catalog, &tracked.class, "t")?;
    let table = keysql::table(&tracked.class);
    let again = "ON CONFLICT (server_id, class_id, key) DO UPDATE SET link_number = NULL";
    for from in [
        format!("SELECT DISTINCT $1 + 0, $2 + 0, {key} FROM {table} AS t WHERE {key} IS NOT NULL"),
        "SELECT $1 + 0, class_id, key FROM @sync_row WHERE class_id = $2".to_owned(),
    ] {
        let sql = format!("INSERT INTO @sync_row_due (server_id, class_id, key) {from} {again}");
        session.execute(&sql, vec![neighbour.into(), tracked.id.into()]).await?;
    }
    Ok(())
}

/// The class of which rows are to be sent next: those that are referred to come first.
pub async fn class(
    session: &mut Session,
    catalog: &Catalog,
    neighbour: i64,
) -> Result<Option<i32>> {
    let found = session
        .query(
            "SELECT DISTINCT class_id FROM @sync_row_due WHERE server_id = $1 \
             AND link_number IS NULL",
            vec![neighbour.into()],
        )
        .await?;
    let mut classes = Vec::with_capacity(found.len());
    for row in found {
        classes.push(i32::try_from(row.int(0)?).unwrap_or(0));
    }
    Ok(classes.into_iter().min_by_key(|class| (catalog.rank(*class), *class)))
}

/// The keys that are to be sent next of a class.
pub async fn keys(
    session: &mut Session,
    neighbour: i64,
    class: i32,
    limit: i64,
) -> Result<Vec<Arc<str>>> {
    let rows = session
        .query(
            "SELECT key FROM @sync_row_due WHERE server_id = $1 AND class_id = $2 \
             AND link_number IS NULL ORDER BY key LIMIT $3",
            vec![neighbour.into(), class.into(), limit.into()],
        )
        .await?;
    rows.iter().map(|row| Ok(row.text(0)?.into())).collect()
}

/// How many messages of states are under way.
pub async fn under_way(session: &mut Session, neighbour: i64) -> Result<i64> {
    let sql = "SELECT count(DISTINCT link_number) FROM @sync_row_due WHERE server_id = $1";
    session.query_one(sql, vec![neighbour.into()]).await?.int(0)
}

/// Notes in which message rows went.
pub async fn sent(
    session: &mut Session,
    neighbour: i64,
    class: i32,
    keys: &[Arc<str>],
    number: u64,
) -> Result<()> {
    let sql = format!(
        "UPDATE @sync_row_due SET link_number = $3 WHERE server_id = $1 AND class_id = $2 AND {}",
        session.dialect().any("key", 4)
    );
    let list = keys.iter().map(|key| Some(key.to_string())).collect();
    let binds = vec![neighbour.into(), class.into(), stored(number).into(), Datum::Texts(list)];
    session.execute(&sql, binds).await?;
    Ok(())
}

/// Takes rows off the list: there is nothing to send of them.
pub async fn remove(
    session: &mut Session,
    neighbour: i64,
    class: i32,
    keys: &[Arc<str>],
) -> Result<()> {
    let sql = format!(
        "DELETE FROM @sync_row_due WHERE server_id = $1 AND class_id = $2 AND {}",
        session.dialect().any("key", 3)
    );
    let list = keys.iter().map(|key| Some(key.to_string())).collect();
    session.execute(&sql, vec![neighbour.into(), class.into(), Datum::Texts(list)]).await?;
    Ok(())
}

/// The whole states of rows of one class: stamps, and values from the table, else from the shadow.
/// Rows of which nothing is known here are left out.
pub async fn images(
    session: &mut Session,
    catalog: &Catalog,
    actors: &Actors,
    tracked: &Arc<Tracked>,
    keys: &[Arc<str>],
) -> Result<Vec<LoadRow>> {
    let mut states = States::default();
    let places = keys.iter().map(|key| (tracked.id, Arc::clone(key)));
    states.load(session, actors, places).await?;
    let mut found = Found::default();
    found.locate(session, catalog, tracked, keys.to_vec(), false).await?;
    let id =
        |key: &Arc<str>| RowId { class: Arc::clone(&tracked.class.name), key: Arc::clone(key) };
    let locals: Vec<_> =
        keys.iter().filter_map(|key| Some((id(key), found.get(&id(key))??.clone()))).collect();
    let mut images = rows::read(session, catalog, tracked, &locals).await?;
    let mut list = Vec::with_capacity(keys.len());
    for key in keys {
        let row = id(key);
        let mut state = states.get(&(tracked.id, Arc::clone(key)));
        let shadow = state.shadow.take();
        let values = match images.remove(&row) {
            Some(values) => values,
            None => shadow.unwrap_or_default().into_iter().collect(),
        };
        if !values.is_empty() || !state.seen.0.is_empty() {
            list.push(LoadRow { class: row.class, key: row.key, state, values });
        }
    }
    Ok(list)
}

/// Rows that records of a neighbour have been held for longer than `after_ms`, and that are to be
/// asked for now; noted as asked for.
pub async fn ask(
    session: &mut Session,
    neighbour: &Neighbour,
    after_ms: i64,
    now: i64,
) -> Result<Vec<(String, String)>> {
    let found = session
        .query(
            "SELECT t.class, n.key, n.class_id, a.times, a.asked_at FROM @sync_held h \
             JOIN @sync_held_need n ON n.held_id = h.id \
             JOIN @sync_tracked t ON t.id = n.class_id \
             LEFT JOIN @sync_row_asked a ON a.server_id = h.server_id \
             AND a.class_id = n.class_id AND a.key = n.key \
             WHERE h.server_id = $1 AND h.held_at < $2 \
             AND (a.asked_at IS NULL OR a.asked_at < $2) ORDER BY h.id LIMIT $3",
            vec![neighbour.id.into(), Datum::time(now - after_ms), ASKED_MAX.into()],
        )
        .await?;
    let (mut rows, mut asked) = (BTreeSet::new(), Vec::new());
    for row in found {
        let times = u32::try_from(row.opt_int(3)?.unwrap_or(0)).unwrap_or(0).min(DOUBLINGS_MAX);
        if row.opt_time(4)?.is_some_and(|at| at > now - (after_ms << times)) {
            continue;
        }
        // Many records may wait for one row.
        if !rows.insert((row.text(0)?.to_owned(), row.text(1)?.to_owned())) {
            continue;
        }
        asked.push(vec![
            neighbour.id.into(),
            row.int(2)?.into(),
            row.text(1)?.into(),
            Datum::time(now),
        ]);
    }
    bulk::insert(
        session,
        "@sync_row_asked",
        &[("server_id", "int"), ("class_id", "int"), ("key", "text"), ("asked_at", "timestamptz")],
        asked,
        "ON CONFLICT (server_id, class_id, key) DO UPDATE SET asked_at = excluded.asked_at, \
         times = sync_row_asked.times + 1",
    )
    .await?;
    Ok(rows.into_iter().collect())
}

/// Forgets questions that nothing waits for any more.
pub async fn forget_asked(session: &mut Session, before: i64) -> Result<()> {
    session
        .execute(
            "DELETE FROM @sync_row_asked WHERE asked_at < $1 AND NOT EXISTS (SELECT 1 FROM \
             @sync_held_need n WHERE n.class_id = sync_row_asked.class_id \
             AND n.key = sync_row_asked.key)",
            vec![Datum::time(before)],
        )
        .await?;
    Ok(())
}

/// Prepares a first load with values: all rows of all classes that the rules send.
pub async fn add_all(
    session: &mut Session,
    catalog: &Catalog,
    neighbour: i64,
    rules: &Rules,
) -> Result<()> {
    for tracked in catalog.tracked.values() {
        if rules.sends(&tracked.class.name) {
            add_class(session, catalog, neighbour, tracked).await?;
        }
    }
    session
        .execute(
            "UPDATE @sync_invite SET loaded_at = $2 WHERE server_id = $1 AND load \
             AND used_at IS NOT NULL AND loaded_at IS NULL",
            vec![neighbour.into(), Datum::time(time::now())],
        )
        .await?;
    Ok(())
}
