//! Host triggers and cascades ran at the origin already, and what they did is in the record. Where
//! they run again here, their effect is put back before the commit.
//!
//! Writing to a class with host triggers (or deleting, where a declared foreign key has an action)
//! is watched by our own capture: it sees whatever changes in any tracked row, by whatever trigger.
//! Each of these rows then gets what it is to have: what was written of it, else what it held
//! before; one that nobody wrote and that was not there goes. Putting back may itself run host
//! triggers, so it is watched as well, and done again with those triggers switched off where it did
//! not hold (a BEFORE trigger that sets `updated_at` has the last word otherwise). What was watched
//! is removed: nothing of it is sent.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::hold::Refusal;
use super::write::{RowWrite, Writer, by_local, delete_sql, run, source};
use crate::catalog::{Class, Column, Tracked, TypeKind};
use crate::error::Result;
use crate::record::{RowId, Value};
use crate::store::image;
use crate::store::keysql;
use crate::store::rows;
use crate::store::seal::observed::{self, Observed};
use crate::store::session::{Datum, Dialect, placeholders, quote};

/// Rounds of putting back, before the host's triggers are left their will, with an error in the log.
const ROUNDS_MAX: usize = 4;

/// A row of this database: its class, and its local key as text.
type Place = (i32, Vec<String>);

/// What a row held before, and holds now, by column.
type Values = Vec<Option<Value>>;

/// What was written, and what was seen of it.
#[derive(Default)]
pub(super) struct Effects {
    /// Whether capture sees what is written now.
    watching: bool,
    /// Whether anything was watched.
    any: bool,
    /// What rows get from us: some columns, or `None` where they go.
    written: BTreeMap<Place, Written>,
    seen: HashMap<Place, Seen>,
}

struct Written {
    tracked: Arc<Tracked>,
    values: Option<BTreeMap<usize, Value>>,
}

struct Seen {
    tracked: Arc<Tracked>,
    first: Option<Values>,
    last: Option<Values>,
    inserted: Option<Values>,
}

/// What has to be done to a row.
enum Fix {
    Delete,
    Insert(BTreeMap<usize, Value>),
    Update(BTreeMap<usize, Value>),
}

/// Whether local keys of a class can be told from images: not where their text differs by how they
/// are read.
fn is_watched(class: &Class) -> bool {
    let plain = |kind| matches!(kind, TypeKind::Int | TypeKind::Uuid | TypeKind::Text);
    class.local.iter().all(|n| plain(class.columns[*n].kind))
}

fn place(tracked: &Tracked, local: &[Value]) -> Place {
    let text = |value: &Value| match value {
        Value::Text(text) => text.clone(),
        Value::Int(value) => value.to_string(),
        other => format!("{other:?}"),
    };
    (tracked.id, local.iter().map(text).collect())
}

impl Writer<'_> {
    /// Has what is written to a class watched, or not. Says whether to note what is written: once
    /// anything was watched, all of it, since a trigger may have been at the same rows before.
    pub(super) async fn watch(&mut self, class: &Class, deleting: bool) -> Result<bool> {
        let wanted = !class.host_triggers.is_empty() || (deleting && class.cascades);
        if wanted != self.effects.watching {
            rows::watched(self.session, wanted).await?;
            self.effects.watching = wanted;
        }
        self.effects.any |= wanted;
        Ok(self.effects.any)
    }

    /// Goes on watching, where anything was watched.
    pub(super) async fn watch_on(&mut self) -> Result<()> {
        if self.effects.any && !self.effects.watching {
            rows::watched(self.session, true).await?;
            self.effects.watching = true;
        }
        Ok(())
    }

    pub(super) fn note_written(
        &mut self,
        tracked: &Arc<Tracked>,
        columns: &[&Column],
        rows: &[RowWrite],
    ) -> Result<(), Refusal> {
        for row in rows {
            let stored = self.stored(columns, row)?;
            let Some(Some(local)) = self.found.get(&row.row) else { continue };
            let written = Written { tracked: Arc::clone(tracked), values: Some(BTreeMap::new()) };
            let entry = self.effects.written.entry(place(tracked, local)).or_insert(written);
            entry.values.get_or_insert_default().extend(stored);
        }
        Ok(())
    }

    pub(super) fn note_gone(&mut self, tracked: &Arc<Tracked>, rows: &[RowId]) {
        for row in rows {
            let Some(Some(local)) = self.found.get(row) else { continue };
            let gone = Written { tracked: Arc::clone(tracked), values: None };
            self.effects.written.insert(place(tracked, local), gone);
        }
    }

    /// Puts back what host triggers and cascades did.
    pub(super) async fn put_back(&mut self) -> Result<(), Refusal> {
        if !self.effects.any {
            return Ok(());
        }
        for round in 0..ROUNDS_MAX {
            let seen = observed::take(self.session, self.catalog).await?;
            self.effects.see(seen);
            let fixes = self.effects.fixes();
            if fixes.is_empty() {
                return Ok(());
            }
            let off = if round > 0 { self.triggers_off(&fixes).await? } else { Off::default() };
            let mut changed = 0;
            for (tracked, local, fix) in fixes {
                changed += self.fix(&tracked, &local, fix, !off.is_empty()).await?;
            }
            self.triggers_on(off).await?;
            if changed == 0 {
                observed::take(self.session, self.catalog).await?;
                return Ok(());
            }
            tracing::debug!(row.count = changed, round, "put back what host triggers did");
        }
        let seen = observed::take(self.session, self.catalog).await?;
        self.effects.see(seen);
        let left: BTreeSet<String> =
            self.effects.fixes().iter().map(|(t, ..)| t.class.name.to_string()).collect();
        if !left.is_empty() {
            tracing::error!(
                classes = ?left,
                "host triggers change what is applied and cannot be kept from it: give them the guard that `track` shows"
            );
        }
        Ok(())
    }

    async fn fix(
        &mut self,
        tracked: &Arc<Tracked>,
        local: &[String],
        fix: Fix,
        quietly: bool,
    ) -> Result<u64, Refusal> {
        let class = &tracked.class;
        let dialect = self.session.dialect();
        let watching = !quietly;
        if watching != self.effects.watching {
            rows::watched(self.session, watching).await?;
            self.effects.watching = watching;
        }
        let key: Vec<Datum> = class
            .local
            .iter()
            .zip(local)
            .map(|(n, text)| {
                let column = &class.columns[*n];
                let value = match column.kind {
                    TypeKind::Int => text.parse().map_or(Value::Null, Value::Int),
                    _ => Value::Text(text.clone()),
                };
                image::datum(dialect, &value, column)
            })
            .collect();
        let (sql, width, binds) = match fix {
            Fix::Delete => (delete_sql(dialect, class), class.local.len(), key),
            Fix::Insert(values) => {
                let (sql, binds) = insert_whole(dialect, class, &values);
                return Ok(self.session.execute(&sql, binds).await?);
            }
            Fix::Update(values) => {
                let columns: Vec<&Column> = values.keys().map(|n| &class.columns[*n]).collect();
                let mut binds: Vec<Datum> = values
                    .iter()
                    .map(|(n, value)| image::datum(dialect, value, &class.columns[*n]))
                    .collect();
                binds.extend(key);
                (restore_sql(dialect, class, &columns), values.len() + class.local.len(), binds)
            }
        };
        run(self.session, &sql, width, vec![binds]).await
    }

    /// Switches the host's triggers on the tables to be mended off, where this role may.
    async fn triggers_off(&mut self, fixes: &[(Arc<Tracked>, Vec<String>, Fix)]) -> Result<Off> {
        let mut off = Off::default();
        match self.session.dialect() {
            Dialect::Postgres => {
                // Without row triggers the database checks no foreign key either: what is put back
                // was there before, or went in checked.
                let sql = "SAVEPOINT branchline_off; SET LOCAL session_replication_role = replica";
                off.role = match self.session.batch(sql).await {
                    Ok(()) => true,
                    Err(error) if error.is_transient() => return Err(error),
                    Err(_) => {
                        self.session.batch("ROLLBACK TO SAVEPOINT branchline_off").await?;
                        false
                    }
                };
                self.session.batch("RELEASE SAVEPOINT branchline_off").await?;
            }
            Dialect::Sqlite => {
                let names = fixes.iter().flat_map(|(tracked, ..)| &tracked.class.host_triggers);
                let names: BTreeSet<&String> = names.collect();
                for name in names {
                    let sql = "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = $1";
                    let found = self.session.query_opt(sql, vec![name.as_str().into()]).await?;
                    let Some(row) = found else { continue };
                    off.triggers.push(row.text(0)?.to_owned());
                    self.session.batch(&format!("DROP TRIGGER {}", quote(name))).await?;
                }
            }
        }
        Ok(off)
    }

    async fn triggers_on(&mut self, off: Off) -> Result<()> {
        if off.role {
            self.session.batch("SET LOCAL session_replication_role = DEFAULT").await?;
        }
        for trigger in off.triggers {
            self.session.batch(&trigger).await?;
        }
        Ok(())
    }
}

/// What was switched off.
#[derive(Default)]
struct Off {
    role: bool,
    /// The statements that make them again.
    triggers: Vec<String>,
}

impl Off {
    fn is_empty(&self) -> bool {
        !self.role && self.triggers.is_empty()
    }
}

impl Effects {
    /// Takes in what capture saw, in its order.
    fn see(&mut self, changes: Vec<Observed>) {
        for Observed { tracked, old, new } in changes {
            if !is_watched(&tracked.class) {
                continue;
            }
            let local = |values: &Values| {
                let local: Option<Vec<Value>> =
                    tracked.class.local.iter().map(|n| values.get(*n)?.clone()).collect();
                local.map(|local| place(&tracked, &local))
            };
            let (from, to) = (old.as_ref().and_then(local), new.as_ref().and_then(local));
            if from.is_some() && from == to {
                self.see_one(&tracked, from, old, new);
            } else {
                self.see_one(&tracked, from, old, None);
                self.see_one(&tracked, to, None, new);
            }
        }
    }

    fn see_one(
        &mut self,
        tracked: &Arc<Tracked>,
        place: Option<Place>,
        old: Option<Values>,
        new: Option<Values>,
    ) {
        let Some(place) = place else { return };
        match self.seen.get_mut(&place) {
            Some(seen) => {
                if seen.inserted.is_none() && seen.first.is_none() {
                    seen.inserted.clone_from(&new);
                }
                seen.last = new;
            }
            None => {
                let inserted = if old.is_none() { new.clone() } else { None };
                let tracked = Arc::clone(tracked);
                self.seen.insert(place, Seen { tracked, first: old, last: new, inserted });
            }
        }
    }

    /// What is not as it is to be, as far as the images tell.
    fn fixes(&self) -> Vec<(Arc<Tracked>, Vec<String>, Fix)> {
        let mut fixes = Vec::new();
        for (place, seen) in &self.seen {
            let written = self.written.get(place).map(|written| &written.values);
            if let Some(fix) = seen.fix(written) {
                fixes.push((Arc::clone(&seen.tracked), place.1.clone(), fix));
            }
        }
        // What was written and nobody saw: a trigger made nothing of it.
        for (place, written) in self.written.iter().filter(|(at, _)| !self.seen.contains_key(*at)) {
            let class = &written.tracked.class;
            if class.host_triggers.is_empty() || !is_watched(class) {
                continue;
            }
            if let Some(values) = written.values.clone() {
                fixes.push((Arc::clone(&written.tracked), place.1.clone(), Fix::Update(values)));
            }
        }
        // Rows that go before rows that come, so that one can have what the other had.
        let order = |fix: &Fix| match fix {
            Fix::Delete => 0,
            Fix::Insert(_) => 1,
            Fix::Update(_) => 2,
        };
        fixes.sort_by(|a, b| (order(&a.2), a.0.id, &a.1).cmp(&(order(&b.2), b.0.id, &b.1)));
        fixes
    }
}

impl Seen {
    fn fix(&self, written: Option<&Option<BTreeMap<usize, Value>>>) -> Option<Fix> {
        let class = &self.tracked.class;
        let image = |values: &Values| -> BTreeMap<usize, Value> {
            let known = values.iter().enumerate().filter(|(n, _)| !class.columns[*n].generated);
            known.filter_map(|(n, value)| Some((n, value.clone()?))).collect()
        };
        let expected = match written {
            Some(None) => None,
            Some(Some(values)) => {
                let base = self.first.as_ref().or(self.inserted.as_ref());
                let mut row = base.map(image).unwrap_or_default();
                row.extend(values.clone());
                Some(row)
            }
            None => self.first.as_ref().map(image),
        };
        match (expected, &self.last) {
            (None, None) => None,
            (None, Some(_)) => Some(Fix::Delete),
            (Some(row), None) => Some(Fix::Insert(row)),
            (Some(mut row), Some(last)) => {
                let last = image(last);
                row.retain(|n, value| !class.local.contains(n) && last.get(n) != Some(value));
                (!row.is_empty()).then_some(Fix::Update(row))
            }
        }
    }
}

/// Sets columns where they differ, so that it counts what was not as it is to be.
fn restore_sql(dialect: Dialect, class: &Class, columns: &[&Column]) -> String {
    let table = keysql::table(class);
    let matches = by_local(dialect, class, columns.len());
    let list = |each: &dyn Fn(usize, &Column) -> String, by: &str| {
        let parts = columns.iter().enumerate().map(|(n, column)| each(n, column));
        parts.collect::<Vec<_>>().join(by)
    };
    match dialect {
        Dialect::Postgres => {
            let cast =
                |n: usize, column: &Column| image::bind_sql(dialect, &format!("u.c{n}"), column);
            let set = list(&|n, c| format!("{} = {}", quote(&c.name), cast(n, c)), ", ");
            let differs = list(
                &|n, c| {
                    format!("t.{}::text IS DISTINCT FROM ({})::text", quote(&c.name), cast(n, c))
                },
                " OR ",
            );
            format!(
                "UPDATE {table} AS t SET {set} FROM {} WHERE {matches} AND ({differs})",
                source(columns.len() + class.local.len())
            )
        }
        Dialect::Sqlite => {
            let set = list(&|n, c| format!("{} = ${}", quote(&c.name), n + 1), ", ");
            let differs = list(
                &|n, c| format!("t.{} COLLATE BINARY IS NOT ${}", quote(&c.name), n + 1),
                " OR ",
            );
            format!("UPDATE OR ABORT {table} AS t SET {set} WHERE {matches} AND ({differs})")
        }
    }
}

/// Inserts a row as it was, its local id included.
fn insert_whole(
    dialect: Dialect,
    class: &Class,
    values: &BTreeMap<usize, Value>,
) -> (String, Vec<Datum>) {
    let columns: Vec<&Column> = values.keys().map(|n| &class.columns[*n]).collect();
    let names = columns.iter().map(|column| quote(&column.name)).collect::<Vec<_>>().join(", ");
    let table = keysql::table(class);
    let binds =
        values.iter().map(|(n, value)| image::datum(dialect, value, &class.columns[*n])).collect();
    let sql = match dialect {
        Dialect::Postgres => {
            let list = columns.iter().enumerate();
            let list = list.map(|(n, c)| image::bind_sql(dialect, &format!("${}", n + 1), c));
            format!(
                "INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE VALUES ({})",
                list.collect::<Vec<_>>().join(", ")
            )
        }
        Dialect::Sqlite => format!(
            "INSERT OR ABORT INTO {table} ({names}) VALUES ({})",
            placeholders(1, columns.len())
        ),
    };
    (sql, binds)
}
