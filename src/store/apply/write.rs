//! Writes rows into the host's tables: one statement for rows of one class and one set of columns,
//! parents first, what leaves children first.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::effects::Effects;
use super::hold::Refusal;
use crate::catalog::{Catalog, Class, Column, Link, Tracked, join_key, key_part};
use crate::error::{Error, Result};
use crate::record::{RowId, Value};
use crate::store::bulk;
use crate::store::image;
use crate::store::keysql;
use crate::store::postgres;
use crate::store::rows::{self, Edge, Found};
use crate::store::session::{Datum, Dialect, Session, placeholders, quote};

/// A row to be inserted or updated, with its values as they travel.
#[derive(Clone, Debug)]
pub(super) struct RowWrite {
    pub(super) tracked: Arc<Tracked>,
    pub(super) row: RowId,
    pub(super) values: BTreeMap<Arc<str>, Value>,
}

/// Why a value cannot be written yet.
pub(super) enum Unready {
    /// It refers to a row that is not there.
    Missing(RowId),
    /// It never can be.
    Refused(Error),
}

impl RowWrite {
    /// Whether it writes a column that refers to a row.
    pub(super) fn refers(&self) -> bool {
        let refers = |name: &Arc<str>| {
            let class = &self.tracked.class;
            class.position(name).is_some_and(|n| class.refers(n))
        };
        self.values.keys().any(refers)
    }
}

/// Everything that writing needs beside the rows.
pub(super) struct Writer<'a> {
    pub(super) session: &'a mut Session,
    pub(super) catalog: &'a Catalog,
    pub(super) found: &'a mut Found,
    /// What host triggers and cascades do is watched, and put back.
    pub(super) effects: Effects,
    carefully: bool,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        session: &'a mut Session,
        catalog: &'a Catalog,
        found: &'a mut Found,
        carefully: bool,
    ) -> Self {
        Self { session, catalog, found, effects: Effects::default(), carefully }
    }

    /// From here on nothing that is written is captured.
    pub(super) async fn begin(&mut self) -> Result<()> {
        rows::uncaptured(self.session, true).await?;
        if self.carefully && self.session.dialect() == Dialect::Postgres {
            self.session.batch("SET CONSTRAINTS ALL DEFERRED").await?;
        }
        Ok(())
    }

    /// All is written. What host triggers did is put back, and what the database checks at the end
    /// of a transaction is checked here, where a record can be blamed for it.
    pub(super) async fn finish(&mut self) -> Result<(), Refusal> {
        if self.session.dialect() == Dialect::Postgres {
            // Constraint triggers of the host that waited run here.
            self.watch_on().await?;
            self.session.batch("SET CONSTRAINTS ALL IMMEDIATE").await?;
        }
        self.put_back().await?;
        rows::uncaptured(self.session, false).await?;
        Ok(())
    }

    /// Looks up where rows are; rows that are known already cost nothing.
    pub(super) async fn locate<'r>(
        &mut self,
        rows: impl IntoIterator<Item = &'r RowId>,
        lock: bool,
    ) -> Result<()> {
        let mut by_class: BTreeMap<Arc<str>, Vec<Arc<str>>> = BTreeMap::new();
        for row in rows {
            if self.found.get(row).is_none() {
                by_class.entry(Arc::clone(&row.class)).or_default().push(Arc::clone(&row.key));
            }
        }
        for (class, keys) in by_class {
            let tracked = rows::tracked_class(self.catalog, &class)?;
            self.found.locate(self.session, self.catalog, tracked, keys, lock).await?;
        }
        Ok(())
    }

    /// Inserts rows, parents first. A reference that closes a cycle goes in as NULL and is set
    /// after; the updates that do so are returned with the rows.
    pub(super) async fn insert(&mut self, rows: Vec<RowWrite>) -> Result<Vec<RowWrite>, Refusal> {
        let mut waiting = rows;
        let mut later: Vec<RowWrite> = Vec::new();
        while !waiting.is_empty() {
            let coming: HashSet<RowId> = waiting.iter().map(|row| row.row.clone()).collect();
            let (ready, blocked): (Vec<_>, Vec<_>) =
                waiting.into_iter().partition(|row| self.missing(row).is_none());
            if !ready.is_empty() {
                self.insert_ready(ready).await?;
                let wanted: Vec<RowId> =
                    blocked.iter().flat_map(|row| targets(self.catalog, row)).collect();
                self.locate(wanted.iter(), false).await?;
                waiting = blocked;
                continue;
            }
            let nullable = blocked.iter().any(|row| self.may_wait(row));
            waiting = self.break_cycles(blocked, &coming, &mut later, !nullable).await?;
        }
        Ok(later)
    }

    /// Nothing can go in as it is: take the references to rows that are themselves coming out of
    /// columns that may be NULL for a while.
    async fn break_cycles(
        &mut self,
        blocked: Vec<RowWrite>,
        coming: &HashSet<RowId>,
        later: &mut Vec<RowWrite>,
        stand_in: bool,
    ) -> Result<Vec<RowWrite>, Refusal> {
        let lost: Vec<(RowId, RowId)> = blocked
            .iter()
            .filter_map(|row| {
                let missing = targets(self.catalog, row)
                    .into_iter()
                    .find(|target| !self.found.has(target) && !coming.contains(target))?;
                Some((row.row.clone(), missing))
            })
            .collect();
        if !lost.is_empty() {
            return Err(Refusal::Missing(lost));
        }
        let mut broken = false;
        let mut rows = Vec::with_capacity(blocked.len());
        for mut row in blocked {
            let mut postponed = BTreeMap::new();
            let mut stand_ins: Vec<(Arc<str>, RowId)> = Vec::new();
            for (name, target) in references(self.catalog, &row) {
                if self.found.has(&target) {
                    continue;
                }
                let Some(value) = row.values.get_mut(&name) else { continue };
                let not_null = row
                    .tracked
                    .class
                    .position(&name)
                    .is_none_or(|n| row.tracked.class.columns[n].not_null);
                if !not_null {
                    postponed.insert(name, std::mem::replace(value, Value::Null));
                } else if stand_in && matches!(value, Value::Ref(_)) {
                    stand_ins.push((name, target));
                }
            }
            for (name, target) in stand_ins {
                broken = true;
                let itself = target == row.row;
                let id = if itself { None } else { self.some_row(&target.class).await? };
                let id = match id {
                    Some(id) => id,
                    // It stands for itself, or for a row of its class while there is none.
                    None if target.class == row.row.class => self.own_id(&mut row).await?,
                    // With deferred constraints any number does.
                    None => Value::Int(0),
                };
                if let Some(value) = row.values.get_mut(&name) {
                    let wanted = std::mem::replace(value, id);
                    if !itself {
                        postponed.insert(name, wanted);
                    }
                }
            }
            if !postponed.is_empty() {
                broken = true;
                later.push(RowWrite {
                    tracked: Arc::clone(&row.tracked),
                    row: row.row.clone(),
                    values: postponed,
                });
            }
            rows.push(row);
        }
        if broken {
            return Ok(rows);
        }
        let names: Vec<&str> = rows.iter().map(|row| &*row.row.class).collect();
        Err(Refusal::Whole(Error::constraint(format!(
            "rows of {} refer to each other in columns that cannot be NULL",
            names.join(", ")
        ))))
    }

    /// Whether a reference of a row that is to go in can be NULL for a while.
    fn may_wait(&self, row: &RowWrite) -> bool {
        references(self.catalog, row).iter().any(|(name, target)| {
            let column = row.tracked.class.position(name).map(|n| &row.tracked.class.columns[n]);
            column.is_some_and(|column| !column.not_null) && !self.found.has(target)
        })
    }

    /// The local id of some row of a class.
    async fn some_row(&mut self, class: &str) -> Result<Option<Value>> {
        let tracked = rows::tracked_class(self.catalog, class)?;
        let Some(id) = tracked.class.surrogate.map(|n| quote(&tracked.class.columns[n].name))
        else {
            return Ok(None);
        };
        let sql =
            format!("SELECT CAST(min({id}) AS bigint) FROM {}", keysql::table(&tracked.class));
        let row = self.session.query_one(&sql, Vec::new()).await?;
        Ok(row.opt_int(0)?.map(Value::Int))
    }

    /// The local id that a new row is to get, taken from where its column takes it, so that the row
    /// can refer to itself.
    async fn own_id(&mut self, row: &mut RowWrite) -> Result<Value> {
        let class = &row.tracked.class;
        let Some(column) = class.surrogate.map(|n| &class.columns[n]) else {
            return Ok(Value::Int(0));
        };
        if let Some(id) = row.values.get(&column.name) {
            return Ok(id.clone());
        }
        let (table, name) = (keysql::table(class), quote(&column.name));
        let behind = format!("SELECT CAST(coalesce(max({name}), 0) + 1 AS bigint) FROM {table}");
        let mut id = None;
        if self.session.dialect() == Dialect::Postgres && class.id_source.is_none() {
            let sql = "SELECT nextval(pg_get_serial_sequence($1, $2)::regclass)";
            let binds = vec![table.as_str().into(), (&*column.name).into()];
            id = self.session.query_one(sql, binds).await?.opt_int(0)?;
        }
        let id = match id {
            Some(id) => id,
            None => self.session.query_one(&behind, Vec::new()).await?.int(0)?,
        };
        row.values.insert(Arc::clone(&column.name), Value::Int(id));
        Ok(Value::Int(id))
    }

    /// Takes references out of rows that leave in a circle, where they may be NULL.
    pub(super) async fn loosen(&mut self, edges: &[Edge]) -> Result<(), Refusal> {
        let mut writes: HashMap<&RowId, RowWrite> = HashMap::new();
        for edge in edges {
            let column = &edge.tracked.class.columns[edge.column];
            if column.not_null {
                continue;
            }
            let write = writes.entry(&edge.referrer).or_insert_with(|| RowWrite {
                tracked: Arc::clone(&edge.tracked),
                row: edge.referrer.clone(),
                values: BTreeMap::new(),
            });
            write.values.insert(Arc::clone(&column.name), Value::Null);
        }
        self.update(writes.into_values().collect()).await
    }

    /// The first referenced row that is not there.
    fn missing(&self, row: &RowWrite) -> Option<RowId> {
        // A row may refer to itself by what is its key everywhere.
        let known = |target: &RowId| self.found.has(target) || *target == row.row;
        references(self.catalog, row)
            .into_iter()
            .find(|(name, target)| {
                !known(target)
                    || (matches!(row.values.get(name), Some(Value::Ref(_)))
                        && !self.found.has(target))
            })
            .map(|(_, target)| target)
    }

    async fn insert_ready(&mut self, rows: Vec<RowWrite>) -> Result<(), Refusal> {
        for ((_, names), group) in by_columns(rows) {
            let Some(first) = group.first() else { continue };
            let tracked = Arc::clone(&first.tracked);
            let columns = columns(&tracked.class, &names)?;
            let binds =
                group.iter().map(|row| self.binds(&columns, row)).collect::<Result<Vec<_>, _>>()?;
            let sql = insert_sql(self.session.dialect(), &tracked.class, &columns);
            let watched = self.watch(&tracked.class, false).await?;
            run(self.session, &sql, columns.len(), binds).await?;
            for row in &group {
                self.found.forget(&row.row);
            }
            let keys = group.iter().map(|row| Arc::clone(&row.row.key)).collect();
            self.found.locate(self.session, self.catalog, &tracked, keys, false).await?;
            if let Some(lost) = group.iter().find(|row| !self.found.has(&row.row)) {
                return Err(Refusal::Whole(Error::constraint(format!(
                    "a row of `{}` is not found by its key after it was inserted: a trigger or rule of the host changed it",
                    lost.row.class
                ))));
            }
            if watched {
                self.note_written(&tracked, &columns, &group)?;
            }
        }
        Ok(())
    }

    /// Updates rows that are there. All of what they refer to has to be there.
    pub(super) async fn update(&mut self, rows: Vec<RowWrite>) -> Result<(), Refusal> {
        let lost: Vec<(RowId, RowId)> =
            rows.iter().filter_map(|row| Some((row.row.clone(), self.missing(row)?))).collect();
        if !lost.is_empty() {
            return Err(Refusal::Missing(lost));
        }
        for ((_, names), group) in by_columns(rows) {
            let Some(first) = group.first().filter(|_| !names.is_empty()) else { continue };
            let tracked = Arc::clone(&first.tracked);
            let class = &tracked.class;
            let columns = columns(class, &names)?;
            let mut binds = Vec::with_capacity(group.len());
            for row in &group {
                let mut list = self.binds(&columns, row)?;
                list.extend(self.local_binds(class, &row.row)?);
                binds.push(list);
            }
            let sql = update_sql(self.session.dialect(), class, &columns);
            let watched = self.watch(class, false).await?;
            run(self.session, &sql, columns.len() + class.local.len(), binds).await?;
            if watched {
                self.note_written(&tracked, &columns, &group)?;
            }
        }
        Ok(())
    }

    /// Deletes rows that are there, all of one class.
    pub(super) async fn delete(
        &mut self,
        tracked: &Arc<Tracked>,
        rows: &[RowId],
    ) -> Result<(), Refusal> {
        let class = &tracked.class;
        let binds =
            rows.iter().map(|row| self.local_binds(class, row)).collect::<Result<Vec<_>, _>>()?;
        let sql = delete_sql(self.session.dialect(), class);
        let watched = self.watch(class, true).await?;
        run(self.session, &sql, class.local.len(), binds).await?;
        if watched {
            self.note_gone(tracked, rows);
        }
        for row in rows {
            self.found.forget(row);
        }
        Ok(())
    }

    fn local_binds(&self, class: &Class, row: &RowId) -> Result<Vec<Datum>, Refusal> {
        let local = self.found.get(row).flatten().ok_or_else(|| {
            Refusal::Whole(Error::constraint(format!("a row of `{}` is not there", row.class)))
        })?;
        let dialect = self.session.dialect();
        let columns = class.local.iter().map(|n| &class.columns[*n]);
        Ok(local.iter().zip(columns).map(|(v, column)| image::datum(dialect, v, column)).collect())
    }

    fn binds(&self, columns: &[&Column], row: &RowWrite) -> Result<Vec<Datum>, Refusal> {
        let mut binds = Vec::with_capacity(columns.len());
        for column in columns {
            let value = row.values.get(&column.name).unwrap_or(&Value::Null);
            match self.local(column, value) {
                Ok(value) => binds.push(image::datum(self.session.dialect(), &value, column)),
                Err(Unready::Missing(target)) => {
                    return Err(Refusal::Missing(vec![(row.row.clone(), target)]));
                }
                Err(Unready::Refused(error)) => {
                    return Err(Refusal::Rows(vec![(row.row.clone(), error)]));
                }
            }
        }
        Ok(binds)
    }

    /// The values that a row gets, as they are stored here, by column.
    pub(super) fn stored(
        &self,
        columns: &[&Column],
        row: &RowWrite,
    ) -> Result<BTreeMap<usize, Value>, Refusal> {
        let mut stored = BTreeMap::new();
        for column in columns {
            let Some(n) = row.tracked.class.position(&column.name) else { continue };
            let value = row.values.get(&column.name).unwrap_or(&Value::Null);
            if let Ok(value) = self.local(column, value) {
                stored.insert(n, value);
            }
        }
        Ok(stored)
    }

    /// A value as it is stored here: a reference becomes the local id of its row.
    pub(super) fn local(&self, column: &Column, value: &Value) -> Result<Value, Unready> {
        let Value::Ref(target) = value else { return Ok(value.clone()) };
        let reference = column
            .references
            .iter()
            .find(|reference| reference.target == target.class)
            .ok_or_else(|| {
                Unready::Refused(Error::constraint(format!(
                    "column `{}` does not refer to `{}` here; see `[[reference]]`",
                    column.name, target.class
                )))
            })?;
        let tracked = rows::tracked_class(self.catalog, &target.class).map_err(Unready::Refused)?;
        self.found
            .local_value(&tracked.class, target, &reference.target_column)
            .ok_or_else(|| Unready::Missing(target.clone()))
    }
}

/// The rows that a row refers to, each with the column that does.
pub(super) fn references(catalog: &Catalog, row: &RowWrite) -> Vec<(Arc<str>, RowId)> {
    let mut list: Vec<(Arc<str>, RowId)> = row
        .values
        .iter()
        .filter_map(|(name, value)| match value {
            Value::Ref(target) => Some((Arc::clone(name), target.clone())),
            _ => None,
        })
        .collect();
    let class = &row.tracked.class;
    list.extend(class.links.iter().filter_map(|link| linked(catalog, class, link, row)));
    list
}

/// The row that a foreign key to a natural key refers to, where it is all written.
fn linked(
    catalog: &Catalog,
    class: &Class,
    link: &Link,
    row: &RowWrite,
) -> Option<(Arc<str>, RowId)> {
    let target = &catalog.class(&link.target)?.class;
    let mut parts = Vec::with_capacity(target.key.len());
    for n in &target.key {
        let column = &target.columns[*n];
        let at = link.target_columns.iter().position(|name| *name == column.name)?;
        let value = row.values.get(&class.columns[*link.columns.get(at)?].name)?;
        parts.push(key_part(value, column.kind)?);
    }
    let mut columns = link.columns.iter().map(|n| &class.columns[*n]);
    let column = columns.clone().find(|column| !column.not_null).or_else(|| columns.next())?;
    let id = RowId { class: Arc::clone(&target.name), key: join_key(&parts).into() };
    Some((Arc::clone(&column.name), id))
}

/// The rows that a row refers to.
pub(super) fn targets(catalog: &Catalog, row: &RowWrite) -> Vec<RowId> {
    references(catalog, row).into_iter().map(|(_, target)| target).collect()
}

/// Rows of one class that write the same columns, in a fixed order.
type Group = ((i32, Vec<Arc<str>>), Vec<RowWrite>);

fn by_columns(rows: Vec<RowWrite>) -> Vec<Group> {
    let mut places: HashMap<(i32, Vec<Arc<str>>), usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for row in rows {
        let id = (row.tracked.id, row.values.keys().cloned().collect::<Vec<_>>());
        let at = *places.entry(id.clone()).or_insert_with(|| {
            groups.push((id, Vec::new()));
            groups.len() - 1
        });
        groups[at].1.push(row);
    }
    groups
}

fn columns<'a>(class: &'a Class, names: &[Arc<str>]) -> Result<Vec<&'a Column>, Refusal> {
    names
        .iter()
        .map(|name| {
            class.position(name).map(|n| &class.columns[n]).ok_or_else(|| {
                Refusal::Whole(Error::constraint(format!(
                    "`{}` has no column `{name}` here",
                    class.name
                )))
            })
        })
        .collect()
}

/// Runs a statement over many rows: as arrays on PostgreSQL, one by one on SQLite.
pub(super) async fn run(
    session: &mut Session,
    sql: &str,
    width: usize,
    binds: Vec<Vec<Datum>>,
) -> Result<u64, Refusal> {
    Ok(match session.dialect() {
        Dialect::Postgres if width > 0 => session.execute(sql, bulk::arrays(width, binds)).await?,
        _ => session.execute_each(sql, binds).await?,
    })
}

/// `unnest` of text arrays, cast row by row: an array column would be flattened otherwise.
pub(super) fn source(width: usize) -> String {
    let names = (0..width).map(|n| format!("c{n}")).collect::<Vec<_>>().join(", ");
    format!("{} AS u({names})", bulk::unnest((0..width).map(|_| "text"), 1))
}

pub(super) fn cast(n: usize, column: &Column) -> String {
    format!("u.c{n}::{}", postgres::image::cast(&column.sql_type))
}

fn insert_sql(dialect: Dialect, class: &Class, columns: &[&Column]) -> String {
    let table = keysql::table(class);
    let mut names: Vec<String> = columns.iter().map(|column| quote(&column.name)).collect();
    let given = columns
        .iter()
        .any(|column| class.surrogate.is_some_and(|n| class.columns[n].name == column.name));
    let id = class
        .id_source
        .as_ref()
        .filter(|_| !given)
        .and_then(|source| Some((quote(&class.columns[class.surrogate?].name), source)));
    if let Some((name, _)) = &id {
        names.push(name.clone());
    }
    let names = names.join(", ");
    let extra = id.map(|(_, source)| format!(", {source}")).unwrap_or_default();
    match dialect {
        _ if columns.is_empty() => format!("INSERT INTO {table} DEFAULT VALUES"),
        Dialect::Postgres => {
            let values = columns.iter().enumerate().map(|(n, column)| cast(n, column));
            format!(
                "INSERT INTO {table} ({names}) {}SELECT {}{extra} FROM {}",
                if given { "OVERRIDING SYSTEM VALUE " } else { "" },
                values.collect::<Vec<_>>().join(", "),
                source(columns.len())
            )
        }
        Dialect::Sqlite => {
            format!(
                // Whatever the table says of conflicts: nobody's row gives way in silence.
                "INSERT OR ABORT INTO {table} ({names}) VALUES ({}{extra})",
                placeholders(1, columns.len())
            )
        }
    }
}

/// The condition that finds a row by its local key, whose binds come after `before` others.
pub(super) fn by_local(dialect: Dialect, class: &Class, before: usize) -> String {
    let matches = class.local.iter().enumerate().map(|(n, column)| {
        let column = &class.columns[*column];
        match dialect {
            Dialect::Postgres => {
                format!("t.{} = {}", quote(&column.name), cast(before + n, column))
            }
            Dialect::Sqlite => format!("t.{} = ${}", quote(&column.name), before + n + 1),
        }
    });
    matches.collect::<Vec<_>>().join(" AND ")
}

pub(super) fn update_sql(dialect: Dialect, class: &Class, columns: &[&Column]) -> String {
    let set = columns.iter().enumerate().map(|(n, column)| match dialect {
        Dialect::Postgres => format!("{} = {}", quote(&column.name), cast(n, column)),
        Dialect::Sqlite => format!("{} = ${}", quote(&column.name), n + 1),
    });
    let set = set.collect::<Vec<_>>().join(", ");
    let matches = by_local(dialect, class, columns.len());
    let table = keysql::table(class);
    match dialect {
        Dialect::Postgres => format!(
            "UPDATE {table} AS t SET {set} FROM {} WHERE {matches}",
            source(columns.len() + class.local.len())
        ),
        Dialect::Sqlite => format!("UPDATE OR ABORT {table} AS t SET {set} WHERE {matches}"),
    }
}

pub(super) fn delete_sql(dialect: Dialect, class: &Class) -> String {
    let matches = by_local(dialect, class, 0);
    let table = keysql::table(class);
    match dialect {
        Dialect::Postgres => {
            format!("DELETE FROM {table} AS t USING {} WHERE {matches}", source(class.local.len()))
        }
        Dialect::Sqlite => format!("DELETE FROM {table} AS t WHERE {matches}"),
    }
}
