//! Rows of the host: found by their keys, read as they travel.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::image;
use super::keysql;
use super::session::{Cell, Datum, Dialect, Row, Session, quote};
use super::{bulk, sqlite};
use crate::catalog::{
    Catalog, Class, Column, Link, Tracked, TypeKind, join_key, key_part, split_key,
};
use crate::error::{Error, Result};
use crate::record::{RowId, Value};

/// Values of a row's local primary key, in the order of [`Class::local`].
pub type Local = Vec<Value>;

/// What is known of rows in one transaction: their local keys, or that they are not there.
#[derive(Default)]
pub struct Found {
    rows: HashMap<RowId, Option<Local>>,
}

impl Found {
    /// The local key of a row that was looked for: `None` not looked for, `Some(None)` not there.
    #[must_use]
    pub fn get(&self, row: &RowId) -> Option<Option<&Local>> {
        self.rows.get(row).map(Option::as_ref)
    }

    /// Whether a row that was looked for is there.
    #[must_use]
    pub fn has(&self, row: &RowId) -> bool {
        matches!(self.rows.get(row), Some(Some(_)))
    }

    /// Forgets a row: it was inserted or deleted since.
    pub fn forget(&mut self, row: &RowId) {
        self.rows.remove(row);
    }

    /// The value of `column` in a row that was found: one of its local key.
    #[must_use]
    pub fn local_value(&self, class: &Class, row: &RowId, column: &str) -> Option<Value> {
        let local = self.rows.get(row)?.as_ref()?;
        let at = class.local.iter().position(|n| &*class.columns[*n].name == column)?;
        local.get(at).cloned()
    }

    /// Looks rows of one class up by their keys, and what their keys refer to. Rows that are known
    /// already are not asked for again.
    ///
    /// # Errors
    /// [`Constraint`](crate::Kind::Constraint) for a key that cannot be one of this class.
    pub fn locate<'a>(
        &'a mut self,
        session: &'a mut Session,
        catalog: &'a Catalog,
        tracked: &'a Arc<Tracked>,
        keys: Vec<Arc<str>>,
        lock: bool,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>> {
        Box::pin(async move {
            let class = &tracked.class;
            let row_id =
                |key: &Arc<str>| RowId { class: Arc::clone(&class.name), key: Arc::clone(key) };
            let mut wanted: Vec<(RowId, Vec<String>)> = Vec::new();
            for key in keys {
                let row = row_id(&key);
                if self.rows.contains_key(&row) || wanted.iter().any(|(other, _)| *other == row) {
                    continue;
                }
                let parts = split_key(&key, class.key.len()).ok_or_else(|| {
                    Error::constraint(format!(
                        "a key of `{}` has another number of parts",
                        class.name
                    ))
                })?;
                wanted.push((row, parts));
            }
            wanted.sort_by(|(a, _), (b, _)| a.cmp(b));
            if wanted.is_empty() {
                return Ok(());
            }
            self.locate_references(session, catalog, tracked, &wanted).await?;
            let mut asked = Vec::with_capacity(wanted.len());
            for (row, parts) in wanted {
                match self.part_values(catalog, class, &parts)? {
                    Some(values) => asked.push((row, parts, values)),
                    None => drop(self.rows.insert(row, None)),
                }
            }
            self.ask(session, class, asked, lock).await
        })
    }

    /// Looks up the rows that reference parts of keys name.
    async fn locate_references(
        &mut self,
        session: &mut Session,
        catalog: &Catalog,
        tracked: &Tracked,
        wanted: &[(RowId, Vec<String>)],
    ) -> Result<()> {
        for (n, column) in tracked.class.key.iter().enumerate() {
            let Some(reference) = tracked.class.columns[*column].references.first() else {
                continue;
            };
            let target = tracked_class(catalog, &reference.target)?;
            let keys = wanted.iter().map(|(_, parts)| Arc::from(parts[n].as_str())).collect();
            self.locate(session, catalog, target, keys, false).await?;
        }
        Ok(())
    }

    /// The values that the key columns have here; `None` when a referenced row is not there.
    fn part_values(
        &self,
        catalog: &Catalog,
        class: &Class,
        parts: &[String],
    ) -> Result<Option<Vec<Value>>> {
        let mut values = Vec::with_capacity(parts.len());
        for (column, part) in class.key.iter().zip(parts) {
            let column = &class.columns[*column];
            let Some(reference) = column.references.first() else {
                values.push(scalar(column, part));
                continue;
            };
            let target = tracked_class(catalog, &reference.target)?;
            let row = RowId { class: Arc::clone(&reference.target), key: part.as_str().into() };
            match self.local_value(&target.class, &row, &reference.target_column) {
                Some(value) => values.push(value),
                None => return Ok(None),
            }
        }
        Ok(Some(values))
    }

    async fn ask(
        &mut self,
        session: &mut Session,
        class: &Class,
        asked: Vec<(RowId, Vec<String>, Vec<Value>)>,
        lock: bool,
    ) -> Result<()> {
        if asked.is_empty() {
            return Ok(());
        }
        let dialect = session.dialect();
        let columns: Vec<&Column> = class.key.iter().map(|n| &class.columns[*n]).collect();
        let scalars: Vec<usize> =
            (0..columns.len()).filter(|n| columns[*n].references.is_empty()).collect();
        let mut select: Vec<String> = scalars
            .iter()
            .map(|n| {
                keysql::canonical(dialect, columns[*n], &format!("t.{}", quote(&columns[*n].name)))
            })
            .collect();
        select.extend(class.local.iter().map(|n| local_sql(dialect, &class.columns[*n])));
        let table = keysql::table(class);
        let binds = |values: &[Value]| -> Vec<Datum> {
            values
                .iter()
                .zip(&columns)
                .map(|(value, column)| image::datum(dialect, value, column))
                .collect()
        };
        let answers: Vec<(usize, Row)> = match dialect {
            Dialect::Postgres => {
                let kinds: Vec<String> =
                    columns.iter().map(|column| format!("text[]::{}", column.sql_type)).collect();
                let names =
                    (0..columns.len()).map(|n| format!("c{n}")).collect::<Vec<_>>().join(", ");
                let matches = columns
                    .iter()
                    .enumerate()
                    .map(|(n, column)| format!("t.{} = u.c{n}", quote(&column.name)));
                let sql = format!(
                    "SELECT u.n, {} FROM {} WITH ORDINALITY AS u({names}, n) JOIN {table} AS t ON {} {}",
                    select.join(", "),
                    bulk::unnest(kinds.iter().map(String::as_str), 1),
                    matches.collect::<Vec<_>>().join(" AND "),
                    if lock { "ORDER BY u.n FOR UPDATE OF t" } else { "" },
                );
                let rows = asked.iter().map(|(_, _, values)| binds(values)).collect();
                let found = session.query(&sql, bulk::arrays(columns.len(), rows)).await?;
                let mut answers = Vec::with_capacity(found.len());
                for mut row in found {
                    let n = usize::try_from(row.int(0)? - 1).unwrap_or(usize::MAX);
                    row.0.remove(0);
                    answers.push((n, row));
                }
                answers
            }
            Dialect::Sqlite => {
                let matches =
                    columns.iter().enumerate().map(|(n, column)| sqlite_match(column, n + 1));
                let sql = format!(
                    "SELECT {} FROM {table} AS t WHERE {}",
                    select.join(", "),
                    matches.collect::<Vec<_>>().join(" AND ")
                );
                let rows = asked.iter().map(|(_, _, values)| binds(values)).collect();
                let found = session.query_each(&sql, rows).await?;
                found
                    .into_iter()
                    .enumerate()
                    .flat_map(|(n, rows)| rows.into_iter().map(move |row| (n, row)))
                    .collect()
            }
        };
        let mut locals: Vec<Option<Local>> = vec![None; asked.len()];
        for (n, row) in answers {
            let Some((_, parts, _)) = asked.get(n) else { continue };
            // The database may take more for equal (collations, padding): keys compare byte by byte.
            let mut same = true;
            for (place, part) in scalars.iter().enumerate() {
                same &= row.opt_text(place)? == Some(&parts[*part]);
            }
            if same {
                locals[n] = Some(row.0.into_iter().skip(scalars.len()).map(value_of).collect());
            }
        }
        for ((row, _, _), local) in asked.into_iter().zip(locals) {
            self.rows.insert(row, local);
        }
        Ok(())
    }
}

/// A tracked class, or an error that names it.
pub fn tracked_class<'a>(catalog: &'a Catalog, name: &str) -> Result<&'a Arc<Tracked>> {
    catalog
        .class(name)
        .ok_or_else(|| Error::constraint(format!("the class `{name}` is not tracked here")))
}

/// The value that a key part stands for in its column.
fn scalar(column: &Column, part: &str) -> Value {
    match column.kind {
        TypeKind::Bool => Value::Bool(part == "true"),
        TypeKind::Int => part.parse().map_or_else(|_| Value::Text(part.to_owned()), Value::Int),
        TypeKind::Float => part.parse().map_or_else(|_| Value::Text(part.to_owned()), Value::Float),
        TypeKind::Bytes => {
            bytes_of_hex(part).map_or_else(|| Value::Text(part.to_owned()), Value::Bytes)
        }
        _ => Value::Text(part.to_owned()),
    }
}

fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// A local key column as it is read: text on PostgreSQL, itself on SQLite.
fn local_sql(dialect: Dialect, column: &Column) -> String {
    let name = quote(&column.name);
    match (dialect, column.kind) {
        (Dialect::Postgres, TypeKind::Int) => format!("t.{name}::bigint"),
        (Dialect::Postgres, _) => format!("t.{name}::text"),
        (Dialect::Sqlite, _) => format!("t.{name}"),
    }
}

fn sqlite_match(column: &Column, n: usize) -> String {
    let name = quote(&column.name);
    match column.kind {
        TypeKind::Uuid => format!("t.{name} IN (${n}, upper(${n}))"),
        _ => format!("t.{name} = ${n}"),
    }
}

fn value_of(cell: Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Int(value) | Cell::Time(value) => Value::Int(value),
        Cell::Float(value) => Value::Float(value),
        Cell::Text(value) => Value::Text(value),
        Cell::Bytes(value) => Value::Bytes(value),
        Cell::Uuid(value) => Value::Text(value.to_string()),
    }
}

/// Keys of the rows of a class whose `column` (its local id) has one of the values in `locals`.
pub async fn keys_of_locals(
    session: &mut Session,
    catalog: &Catalog,
    tracked: &Tracked,
    column: &str,
    locals: Vec<String>,
) -> Result<HashMap<String, Arc<str>>> {
    let class = &tracked.class;
    let dialect = session.dialect();
    let Some(place) = class.position(column) else { return Ok(HashMap::new()) };
    let definition = &class.columns[place];
    let key = keysql::key(dialect, catalog, class, "t")?;
    let local = format!("t.{}", quote(column));
    let table = keysql::table(class);
    let rows = match dialect {
        Dialect::Postgres => {
            let sql = format!(
                "SELECT {local}::text, {key} FROM {table} AS t WHERE {local} = ANY($1::text[]::{}[])",
                definition.sql_type
            );
            session.query(&sql, vec![locals.into()]).await?
        }
        Dialect::Sqlite => {
            let sql =
                format!("SELECT CAST({local} AS TEXT), {key} FROM {table} AS t WHERE {local} = $1");
            let binds = locals.into_iter().map(|local| vec![local.into()]).collect();
            session.query_each(&sql, binds).await?.into_iter().flatten().collect()
        }
    };
    let mut keys = HashMap::new();
    for row in rows {
        if let (Some(local), Some(key)) = (row.opt_text(0)?, row.opt_text(1)?) {
            keys.insert(local.to_owned(), Arc::from(key));
        }
    }
    Ok(keys)
}

/// Gives a row whose uuid is NULL one. What is written here is not captured.
pub async fn fill_key(
    session: &mut Session,
    tracked: &Tracked,
    local: &str,
    uuid: &str,
) -> Result<()> {
    let class = &tracked.class;
    let dialect = session.dialect();
    let (key, id) = (&class.columns[class.key[0]], &class.columns[class.local[0]]);
    let sql = format!(
        "UPDATE {} SET {} = {} WHERE {} = {} AND {} IS NULL",
        keysql::table(class),
        quote(&key.name),
        image::bind_sql(dialect, "$1", key),
        quote(&id.name),
        image::bind_sql(dialect, "$2", id),
        quote(&key.name),
    );
    let binds = match dialect {
        Dialect::Postgres => vec![uuid.into(), local.into()],
        Dialect::Sqlite => vec![uuid.into(), Datum::Int(local.parse().ok())],
    };
    uncaptured(session, true).await?;
    session.execute(&sql, binds).await?;
    uncaptured(session, false).await
}

/// Switches capture off (`true`) or on again for what this transaction writes.
pub async fn uncaptured(session: &mut Session, on: bool) -> Result<()> {
    match (session.dialect(), on) {
        (Dialect::Postgres, true) => {
            session.batch("SELECT set_config('branchline.applying', 'on', true)").await
        }
        (Dialect::Postgres, false) => {
            session.batch("SELECT set_config('branchline.applying', 'off', true)").await
        }
        (Dialect::Sqlite, true) => {
            session.batch("INSERT OR IGNORE INTO @sync_applying (id) VALUES (1)").await
        }
        (Dialect::Sqlite, false) => session.batch("DELETE FROM @sync_applying").await,
    }
}

/// The condition by which a trigger of the host leaves the applier alone. Triggers that have it are
/// not listed with a class.
#[must_use]
pub fn guard(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Postgres => {
            "WHEN (coalesce(current_setting('branchline.applying', true), '') IN ('', 'off'))"
        }
        Dialect::Sqlite => "WHEN NOT EXISTS (SELECT 1 FROM sync_applying)",
    }
}

/// Inside [`uncaptured`]: has what is written captured all the same (`true`), for the applier that
/// watches what host triggers do, or not. The host's own guards see an applier either way on
/// PostgreSQL.
pub async fn watched(session: &mut Session, on: bool) -> Result<()> {
    match (session.dialect(), on) {
        (Dialect::Postgres, true) => {
            session.batch("SELECT set_config('branchline.applying', 'watched', true)").await
        }
        (Dialect::Sqlite, true) => session.batch("DELETE FROM @sync_applying").await,
        (_, false) => uncaptured(session, true).await,
    }
}

/// The values of rows as they travel, references as keys; the surrogate and generated columns are
/// left out. Rows that are not there are left out.
pub async fn read(
    session: &mut Session,
    catalog: &Catalog,
    tracked: &Tracked,
    locals: &[(RowId, Local)],
) -> Result<HashMap<RowId, Vec<(Arc<str>, Value)>>> {
    if locals.is_empty() {
        return Ok(HashMap::new());
    }
    let class = &tracked.class;
    let dialect = session.dialect();
    let mut select = vec![match dialect {
        Dialect::Postgres => "t::text".to_owned(),
        Dialect::Sqlite => sqlite::literals::image_sql(class, "t"),
    }];
    let present: Vec<Option<&Column>> = class.columns.iter().map(Some).collect();
    for slot in class.slots() {
        let column = &class.columns[slot.column];
        select.push(keysql::reference(dialect, catalog, column, slot.reference, "t")?);
    }
    let columns: Vec<&Column> = class.local.iter().map(|n| &class.columns[*n]).collect();
    let matches = columns.iter().enumerate().map(|(n, column)| {
        let bind = image::bind_sql(dialect, &format!("${}", n + 1), column);
        format!("t.{} = {bind}", quote(&column.name))
    });
    let sql = format!(
        "SELECT {} FROM {} AS t WHERE {}",
        select.join(", "),
        keysql::table(class),
        matches.collect::<Vec<_>>().join(" AND ")
    );
    let binds = locals
        .iter()
        .map(|(_, local)| {
            local.iter().zip(&columns).map(|(v, c)| image::datum(dialect, v, c)).collect()
        })
        .collect();
    let mut found = HashMap::new();
    for ((row, _), answers) in locals.iter().zip(session.query_each(&sql, binds).await?) {
        let Some(answer) = answers.into_iter().next() else { continue };
        let values = image::decode(dialect, answer.text(0)?, &present)?;
        found.insert(row.clone(), travelling(class, values, &answer)?);
    }
    Ok(found)
}

/// The values of an image with its references looked up, as they travel.
fn travelling(class: &Class, values: Vec<Value>, answer: &Row) -> Result<Vec<(Arc<str>, Value)>> {
    let mut values: Vec<Option<Value>> = values.into_iter().map(Some).collect();
    for (n, slot) in class.slots().enumerate() {
        if let Some(key) = answer.opt_text(n + 1)? {
            let row = RowId { class: Arc::clone(&slot.reference.target), key: key.into() };
            values[slot.column] = Some(Value::Ref(row));
        }
    }
    let list = class
        .columns
        .iter()
        .enumerate()
        .filter(|(n, column)| class.surrogate != Some(*n) && !column.generated);
    Ok(list
        .filter_map(|(n, column)| Some((Arc::clone(&column.name), values.get_mut(n)?.take()?)))
        .collect())
}

/// A row that refers to another: its class, itself, the column, and the reference in it.
pub type Referrer = (Arc<Tracked>, RowId, Arc<str>, Value);

/// The rows that refer to `row` by its local id.
pub async fn referrers(
    session: &mut Session,
    catalog: &Catalog,
    tracked: &Arc<Tracked>,
    row: &RowId,
) -> Result<Vec<Referrer>> {
    let mut found = Found::default();
    found.locate(session, catalog, tracked, vec![Arc::clone(&row.key)], false).await?;
    let mut list = Vec::new();
    for (referring, column, reference) in referring(catalog, &tracked.class.name) {
        let Some(value) = found.local_value(&tracked.class, row, &reference) else { continue };
        let definition = &referring.class.columns[column];
        let dialect = session.dialect();
        let sql = format!(
            "SELECT {} FROM {} AS t WHERE t.{} = {}",
            keysql::key(dialect, catalog, &referring.class, "t")?,
            keysql::table(&referring.class),
            quote(&definition.name),
            image::bind_sql(dialect, "$1", definition),
        );
        for answer in session.query(&sql, vec![image::datum(dialect, &value, definition)]).await? {
            let Some(key) = answer.opt_text(0)? else { continue };
            let other = RowId { class: Arc::clone(&referring.class.name), key: key.into() };
            let name = Arc::clone(&definition.name);
            list.push((Arc::clone(&referring), other, name, Value::Ref(row.clone())));
        }
    }
    Ok(list)
}

/// Rows of one class with their local keys.
pub type Located = (Arc<Tracked>, Vec<(RowId, Local)>);

/// That a row refers to another.
#[derive(Clone, Debug)]
pub struct Edge {
    /// The row that is referred to.
    pub target: RowId,
    /// The row that refers to it.
    pub referrer: RowId,
    /// Its class.
    pub tracked: Arc<Tracked>,
    /// The column that refers, an index into the columns of its class.
    pub column: usize,
}

/// Who refers to any of `rows`, all of one class: one question for each column that can, however
/// many rows. For each row at the most `limit` of each column.
pub async fn referring_to(
    session: &mut Session,
    catalog: &Catalog,
    tracked: &Tracked,
    rows: &[(RowId, Local)],
    limit: i64,
) -> Result<Vec<Edge>> {
    let mut edges = Vec::new();
    let dialect = session.dialect();
    for referring in catalog.tracked.values() {
        for slot in referring.class.slots() {
            if slot.reference.target != tracked.class.name {
                continue;
            }
            let Some(at) = tracked
                .class
                .local
                .iter()
                .position(|n| tracked.class.columns[*n].name == slot.reference.target_column)
            else {
                continue;
            };
            let column = &referring.class.columns[slot.column];
            let key = keysql::key(dialect, catalog, &referring.class, "t")?;
            let table = keysql::table(&referring.class);
            let name = quote(&column.name);
            let when = match &slot.reference.when {
                Some(when) => format!(" AND ({})", when.replace("{row}", "t")),
                None => String::new(),
            };
            let locals = rows.iter().filter_map(|(row, local)| Some((row, local.get(at)?)));
            let (targets, binds): (Vec<&RowId>, Vec<Datum>) =
                locals.map(|(row, value)| (row, image::datum(dialect, value, column))).unzip();
            let found: Vec<(usize, Row)> = match dialect {
                Dialect::Postgres => {
                    let sql = format!(
                        "SELECT u.n, x.key FROM unnest($1::text[]) WITH ORDINALITY AS u(v, n) \
                         CROSS JOIN LATERAL (SELECT {key} AS key FROM {table} AS t \
                         WHERE t.{name} = {}{when} LIMIT $2) AS x",
                        image::bind_sql(dialect, "u.v", column)
                    );
                    let binds = bulk::arrays(1, binds.into_iter().map(|bind| vec![bind]).collect());
                    let binds = binds.into_iter().chain([limit.into()]).collect();
                    let answers = session.query(&sql, binds).await?;
                    let numbered = answers.into_iter().map(|mut row| {
                        let n = usize::try_from(row.int(0)? - 1).unwrap_or(usize::MAX);
                        row.0.remove(0);
                        Ok((n, row))
                    });
                    numbered.collect::<Result<_>>()?
                }
                Dialect::Sqlite => {
                    let sql = format!(
                        "SELECT {key} FROM {table} AS t WHERE t.{name} = $1{when} LIMIT $2"
                    );
                    let binds = binds.into_iter().map(|bind| vec![bind, limit.into()]).collect();
                    let answers = session.query_each(&sql, binds).await?.into_iter().enumerate();
                    answers
                        .flat_map(|(n, rows)| rows.into_iter().map(move |row| (n, row)))
                        .collect()
                }
            };
            for (n, row) in found {
                let (Some(target), Some(key)) = (targets.get(n), row.opt_text(0)?) else {
                    continue;
                };
                edges.push(Edge {
                    target: (*target).clone(),
                    referrer: RowId { class: Arc::clone(&referring.class.name), key: key.into() },
                    tracked: Arc::clone(referring),
                    column: slot.column,
                });
            }
        }
        for link in referring.class.links.iter().filter(|link| link.target == tracked.class.name) {
            edges.extend(linked_to(session, catalog, tracked, referring, link, rows, limit).await?);
        }
    }
    Ok(edges)
}

/// Who refers to any of `rows` by a foreign key that is no local id, where its columns are of the
/// local key of the class that it refers to.
async fn linked_to(
    session: &mut Session,
    catalog: &Catalog,
    tracked: &Tracked,
    referring: &Arc<Tracked>,
    link: &Link,
    rows: &[(RowId, Local)],
    limit: i64,
) -> Result<Vec<Edge>> {
    let class = &tracked.class;
    let place = |name: &Arc<str>| class.local.iter().position(|n| class.columns[*n].name == *name);
    let Some(places) = link.target_columns.iter().map(place).collect::<Option<Vec<_>>>() else {
        return Ok(Vec::new());
    };
    let dialect = session.dialect();
    let columns: Vec<&Column> = link.columns.iter().map(|n| &referring.class.columns[*n]).collect();
    let matches = columns.iter().enumerate().map(|(n, column)| {
        let bind = image::bind_sql(dialect, &format!("${}", n + 1), column);
        format!("t.{} = {bind}", quote(&column.name))
    });
    let sql = format!(
        "SELECT {} FROM {} AS t WHERE {} LIMIT ${}",
        keysql::key(dialect, catalog, &referring.class, "t")?,
        keysql::table(&referring.class),
        matches.collect::<Vec<_>>().join(" AND "),
        columns.len() + 1
    );
    let binds = rows.iter().map(|(_, local)| {
        let values = places.iter().zip(&columns).map(|(place, column)| {
            image::datum(dialect, local.get(*place).unwrap_or(&Value::Null), column)
        });
        values.chain([limit.into()]).collect()
    });
    let answers = session.query_each(&sql, binds.collect()).await?;
    // The column that can be NULL, for circles.
    let column = link.columns.iter().find(|n| !referring.class.columns[**n].not_null);
    let column = *column.unwrap_or(&link.columns[0]);
    let mut edges = Vec::new();
    for ((target, _), found) in rows.iter().zip(answers) {
        for row in found {
            let Some(key) = row.opt_text(0)? else { continue };
            edges.push(Edge {
                target: target.clone(),
                referrer: RowId { class: Arc::clone(&referring.class.name), key: key.into() },
                tracked: Arc::clone(referring),
                column,
            });
        }
    }
    Ok(edges)
}

/// Who refers to a class: the class, the column, and the column of the target that it holds.
pub fn referring(catalog: &Catalog, target: &str) -> Vec<(Arc<Tracked>, usize, Arc<str>)> {
    let mut list = Vec::new();
    for tracked in catalog.tracked.values() {
        for slot in tracked.class.slots() {
            if &*slot.reference.target == target && slot.reference.when.is_none() {
                let column = Arc::clone(&slot.reference.target_column);
                list.push((Arc::clone(tracked), slot.column, column));
            }
        }
    }
    list
}

/// The key of a row from its values as they travel; `None` when a part is missing.
#[must_use]
pub fn key_of(class: &Class, values: &[(Arc<str>, Value)]) -> Option<Arc<str>> {
    let mut parts = Vec::with_capacity(class.key.len());
    for column in &class.key {
        let column = &class.columns[*column];
        let (_, value) = values.iter().find(|(name, _)| *name == column.name)?;
        parts.push(key_part(value, column.kind)?);
    }
    Some(join_key(&parts).into())
}
