//! The capture triggers of PostgreSQL: statement-level with transition tables, one set on a table
//! and on each of its partitions.
//!
//! They promise: every row that a statement inserts, updates, deletes or truncates is a row of
//! `sync_change` in the writer's own transaction, whole and in full fidelity; and no write of the
//! host fails because of them. So
//! - the functions are SECURITY DEFINER with every name qualified: they work for a role without
//!   rights and with an empty `search_path`; the triggers are ENABLE ALWAYS, so that
//!   `session_replication_role` does not switch them off;
//! - values are printed under settings of the function, whatever the writer's are (2 µs a call);
//! - a row is taken whole, as composite text. Whether the table still has the columns that the
//!   trigger was made for is folded into a plan, which the database makes anew when the table is
//!   altered ([`support`]); else the names go along, read off the row itself;
//! - names that a statement does need (keys and references) are tried first: where one is gone, the
//!   row is captured without references, and the sealer finds them. Conditions from the
//!   configuration are run by a function of their own that answers "no" when they fail.
//!
//! References are looked up by subselects, not joins: a join that was planned for a bulk load in
//! the same session reads the whole target for every single row after it (20 µs become 1,000). Of an
//! update only those are looked up that it changed. Old and new rows are paired by a FULL JOIN, which
//! cannot become a nested loop; an inner join that was planned for one row takes 50 times as long for
//! a thousand.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::catalog::{Catalog, Class, Column, Slot, Tracked, TypeKind};
use crate::error::{Context as _, Result};
use crate::store::keysql;
use crate::store::session::{Dialect, Session, literal, quote};

/// Settings under which values are printed. Each of them changes some value's text.
const SETTINGS: &str = "SET search_path = pg_catalog, pg_temp SET datestyle = 'ISO, YMD' \
    SET intervalstyle = 'postgres' SET timezone = 'UTC' SET bytea_output = 'hex' \
    SET extra_float_digits = 1 SET lc_monetary = 'C'";

/// The condition under which a write is captured: it is not the applier's.
const WHEN: &str =
    "WHEN (pg_catalog.current_setting('branchline.applying', true) IS DISTINCT FROM 'on')";

const OLD: &str = "branchline_old";
const NEW: &str = "branchline_new";

/// The kinds of triggers: suffix, event, transition tables.
const KINDS: [(&str, &str, &str); 4] = [
    ("insert", "AFTER INSERT", "REFERENCING NEW TABLE AS branchline_new"),
    (
        "update",
        "AFTER UPDATE",
        "REFERENCING OLD TABLE AS branchline_old NEW TABLE AS branchline_new",
    ),
    ("delete", "AFTER DELETE", "REFERENCING OLD TABLE AS branchline_old"),
    ("truncate", "BEFORE TRUNCATE", ""),
];

/// Stands for the table in the statement that TRUNCATE runs.
const TABLE: &str = "@branchline@";

/// The function that all triggers share.
///
/// `table_with(name, columns)` is the table of that name if it has just these columns. It is said to
/// be immutable, so that a plan works it out once; a plan that reads a transition table is thrown
/// away when that table is altered. In a transaction that reads an old snapshot it says "none",
/// because there `pg_attribute` is old and the row is not.
#[must_use]
pub fn support() -> Vec<String> {
    let body = "DECLARE found oid := pg_catalog.to_regclass(name); BEGIN \
        IF pg_catalog.current_setting('transaction_isolation') IN ('read committed', 'read uncommitted') \
        AND ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = found \
        AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) = columns \
        THEN RETURN found; END IF; RETURN 0; END";
    vec![format!(
        "CREATE OR REPLACE FUNCTION branchline.table_with(name text, columns text[]) RETURNS oid \
         LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS {}",
        escaped(body)
    )]
}

/// Statements that make the functions and triggers of a class, [`support`] included.
///
/// # Errors
/// When a class that it refers to is not tracked.
pub fn create(tracked: &Tracked, catalog: &Catalog) -> Result<Vec<String>> {
    let mut statements = support();
    statements.extend(functions(tracked, catalog)?.into_iter().map(|function| function.sql));
    for table in targets(tracked) {
        for kind in KINDS {
            statements.extend(trigger(tracked, &table, kind));
        }
    }
    Ok(statements)
}

/// Statements that remove them, whether they are there or not.
#[must_use]
pub fn drop(tracked: &Tracked) -> Vec<String> {
    let kinds = KINDS.iter().map(|(kind, ..)| format!("{}()", function(tracked, kind)));
    let conditions = tracked.class.slots().enumerate().filter(|(_, slot)| conditional(slot));
    let conditions = conditions.map(|(n, _)| format!("{}(anyelement)", condition(tracked, n)));
    kinds
        .chain(conditions)
        .map(|function| format!("DROP FUNCTION IF EXISTS {function} CASCADE"))
        .collect()
}

/// Brings functions and triggers of these classes up to date, each in one batch, and touches no table
/// whose triggers are well: a function can be replaced without waiting for those who write.
///
/// # Errors
/// Those of the database, with the class, and those of [`create`].
pub async fn install(session: &mut Session, classes: &[&Tracked], catalog: &Catalog) -> Result<()> {
    let standing = standing(session).await?;
    for tracked in classes {
        let mut batch = Vec::new();
        batch.extend(functions(tracked, catalog)?.into_iter().map(|function| function.sql));
        let wanted = targets(tracked);
        for kind in KINDS {
            let name = format!("capture_{}_{}", tracked.id, kind.0);
            let there = standing.get(&name).cloned().unwrap_or_default();
            for table in wanted.iter().filter(|table| !there.contains(*table)) {
                batch.extend(trigger(tracked, table, kind));
            }
            // A partition that was detached is no part of the class any more.
            for table in there.iter().filter(|table| !wanted.contains(*table)) {
                batch.push(format!("DROP TRIGGER branchline_{} ON {table}", kind.0));
            }
        }
        let name = &tracked.class.name;
        session
            .batch(&batch.join(";\n"))
            .await
            .context(|| format!("`{name}` cannot be captured"))?;
    }
    Ok(())
}

/// The classes whose triggers are gone, switched off, or not as [`create`] makes them.
///
/// # Errors
/// Those of the database.
pub async fn missing(session: &mut Session, catalog: &Catalog) -> Result<Vec<i32>> {
    let rows = session
        .query(
            "SELECT p.proname, p.prosrc FROM pg_catalog.pg_proc p \
             JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
             WHERE n.nspname = 'branchline' AND p.proname LIKE 'capture\\_%'",
            vec![],
        )
        .await?;
    let mut sources = HashMap::new();
    for row in &rows {
        sources.insert(row.text(0)?, row.text(1)?);
    }
    let standing = standing(session).await?;
    let mut missing = Vec::new();
    for tracked in catalog.tracked.values() {
        let wanted: BTreeSet<String> = targets(tracked).into_iter().collect();
        let functions = functions(tracked, catalog)?;
        let same = functions
            .iter()
            .all(|function| sources.get(function.name.as_str()) == Some(&function.body.as_str()));
        let whole = KINDS.iter().all(|(kind, ..)| {
            standing.get(&format!("capture_{}_{kind}", tracked.id)) == Some(&wanted)
        });
        if !same || !whole {
            missing.push(tracked.id);
        }
    }
    missing.sort_unstable();
    Ok(missing)
}

/// The tables on which each trigger function is called, always: function, tables.
async fn standing(session: &mut Session) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let rows = session
        .query(
            "SELECT p.proname, '\"' || replace(n.nspname, '\"', '\"\"') || '\".\"' || \
             replace(c.relname, '\"', '\"\"') || '\"' FROM pg_catalog.pg_trigger t \
             JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid \
             JOIN pg_catalog.pg_namespace f ON f.oid = p.pronamespace AND f.nspname = 'branchline' \
             JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE t.tgenabled = 'A' AND p.proname LIKE 'capture\\_%'",
            vec![],
        )
        .await?;
    let mut standing: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in &rows {
        standing.entry(row.text(0)?.to_owned()).or_default().insert(row.text(1)?.to_owned());
    }
    Ok(standing)
}

fn trigger(tracked: &Tracked, table: &str, (kind, event, rows): (&str, &str, &str)) -> [String; 3] {
    [
        format!("DROP TRIGGER IF EXISTS branchline_{kind} ON {table}"),
        format!(
            "CREATE TRIGGER branchline_{kind} {event} ON {table} {rows} FOR EACH STATEMENT {WHEN} \
             EXECUTE FUNCTION {}()",
            function(tracked, kind)
        ),
        format!("ALTER TABLE {table} ENABLE ALWAYS TRIGGER branchline_{kind}"),
    ]
}

fn function(tracked: &Tracked, kind: &str) -> String {
    format!("branchline.capture_{}_{kind}", tracked.id)
}

fn condition(tracked: &Tracked, slot: usize) -> String {
    function(tracked, &format!("when_{slot}"))
}

fn conditional(slot: &Slot<'_>) -> bool {
    slot.reference.when.is_some()
}

/// The table and its partitions, as SQL names them.
fn targets(tracked: &Tracked) -> Vec<String> {
    let mut list = vec![keysql::table(&tracked.class)];
    list.extend(tracked.class.partitions.iter().cloned());
    list
}

/// A literal that means the same whatever `standard_conforming_strings` is.
fn escaped(text: &str) -> String {
    if text.contains('\\') {
        format!("E{}", literal(&text.replace('\\', "\\\\")))
    } else {
        literal(text)
    }
}

/// A function of a class.
struct Function {
    /// Without its schema.
    name: String,
    body: String,
    sql: String,
}

fn functions(tracked: &Tracked, catalog: &Catalog) -> Result<Vec<Function>> {
    let writer = Writer { tracked, class: &tracked.class, catalog };
    let bodies = [writer.insert()?, writer.update()?, writer.delete()?, writer.truncate()?];
    let mut list = writer.conditions();
    for ((kind, ..), body) in KINDS.iter().zip(bodies) {
        let sql = format!(
            "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER \
             {SETTINGS} AS {}",
            function(tracked, kind),
            escaped(&body)
        );
        list.push(Function { name: format!("capture_{}_{kind}", tracked.id), body, sql });
    }
    Ok(list)
}

/// Writes the function bodies of one class.
struct Writer<'a> {
    tracked: &'a Tracked,
    class: &'a Class,
    catalog: &'a Catalog,
}

/// The columns of `sync_change` that a statement fills in beside class and shape.
struct Images<'a> {
    op: &'a str,
    old: &'a str,
    new: &'a str,
    old_refs: &'a str,
    new_refs: &'a str,
}

/// A statement that captures, where the columns of the table are as they were when it was written,
/// and where they are not or that cannot be told.
struct Statement {
    known: String,
    other: String,
}

impl Statement {
    fn then(self, next: &Self) -> Self {
        Self {
            known: format!("{}; {}", self.known, next.known),
            other: format!("{}; {}", self.other, next.other),
        }
    }
}

impl Writer<'_> {
    /// Inserts what `from` yields into `sync_change`. `rows` is where the names of the columns can
    /// be read off a row.
    fn capture(&self, images: &Images<'_>, rows: &str, from: &str) -> Statement {
        let Images { op, old, new, old_refs, new_refs } = images;
        let insert = |shape: &str, columns: &str| {
            format!(
                "INSERT INTO branchline.sync_change \
                 (class_id, op, shape, columns, old_image, new_image, old_refs, new_refs) \
                 SELECT {}, {op}, {shape}, {columns}, {old}, {new}, {old_refs}, {new_refs} FROM {from}",
                self.tracked.id,
            )
        };
        let shape = self.tracked.shape.to_string();
        let names = self.names();
        let read = |what: &str| {
            format!(
                "(SELECT {what} FROM (SELECT ARRAY(SELECT pg_catalog.json_object_keys(\
                 pg_catalog.row_to_json(branchline_row))) AS names \
                 FROM (SELECT * FROM {rows} LIMIT 1) AS branchline_row) AS branchline_names)"
            )
        };
        Statement {
            known: insert(&shape, "NULL"),
            other: insert(
                &read(&format!("CASE WHEN names = {names} THEN {shape} END")),
                &read(&format!(
                    "CASE WHEN names <> {names} THEN pg_catalog.to_json(names)::text END"
                )),
            ),
        }
    }

    /// The columns that the triggers are made for.
    fn names(&self) -> String {
        let names = self.class.columns.iter().map(|column| escaped(&column.name));
        format!("ARRAY[{}]::text[]", names.collect::<Vec<_>>().join(", "))
    }

    /// Whether the table that is written to has just these columns.
    fn unaltered(&self) -> String {
        let table = escaped(&keysql::table(self.class));
        format!("TG_RELID = branchline.table_with({table}, {})", self.names())
    }

    /// A body that runs `whole`, or `plain` where a name in `names` is gone. The names are tried by a
    /// statement that reads and writes nothing (so that no subtransaction writes), and that says in
    /// passing whether the table is as it was: it names the transition tables, so its plan goes when
    /// the table is altered.
    fn guarded(&self, from: &str, names: &[&str], whole: &Statement, plain: &Statement) -> String {
        let look = |names: &str| {
            format!(
                "SELECT {} INTO branchline_known WHERE true OR EXISTS (SELECT 1 FROM {from} {names})",
                self.unaltered()
            )
        };
        let used: Vec<&str> = names.iter().copied().filter(|names| *names != "NULL").collect();
        if used.is_empty() {
            return format!(
                "DECLARE branchline_known boolean; BEGIN {}; \
                 IF branchline_known THEN {}; ELSE {}; END IF; RETURN NULL; END",
                look(""),
                whole.known,
                whole.other
            );
        }
        format!(
            "DECLARE branchline_known boolean; BEGIN BEGIN {}; \
             EXCEPTION WHEN OTHERS THEN branchline_known := NULL; END; \
             IF branchline_known THEN {}; ELSIF branchline_known IS NULL THEN {}; ELSE {}; END IF; \
             RETURN NULL; END",
            look(&format!("WHERE ROW({}) IS NULL", used.join(", "))),
            whole.known,
            plain.other,
            whole.other
        )
    }

    /// The keys of the rows that an image refers to.
    fn refs(&self, alias: &str, which: Which) -> Result<String> {
        let slots: Vec<Slot<'_>> = self.class.slots().collect();
        if slots.is_empty() || (which == Which::OfKey && !slots.iter().any(|slot| slot.in_key)) {
            return Ok("NULL".to_owned());
        }
        let mut fields = Vec::with_capacity(slots.len());
        for (n, slot) in slots.iter().enumerate() {
            if which == Which::OfKey && !slot.in_key {
                fields.push("NULL".to_owned());
                continue;
            }
            let column = &self.class.columns[slot.column];
            let mut plain = slot.reference.clone();
            let when = plain.when.take();
            let key = keysql::reference(Dialect::Postgres, self.catalog, column, &plain, alias)?;
            fields.push(match when {
                Some(_) => format!(
                    "CASE WHEN {}({alias}::{}) THEN {key} END",
                    condition(self.tracked, n),
                    keysql::table(self.class)
                ),
                None if which == Which::Moved && !slot.in_key => {
                    format!("CASE WHEN {} THEN {key} END", differs(column))
                }
                None => key,
            });
        }
        Ok(format!("ROW({})::text", fields.join(", ")))
    }

    /// One function for each condition of the configuration, which may name the host's tables and
    /// may fail.
    fn conditions(&self) -> Vec<Function> {
        let slots = self.class.slots().enumerate();
        slots
            .filter_map(|(n, slot)| {
                let when = slot.reference.when.as_ref()?.replace("{row}", "branchline_row");
                let body =
                    format!("BEGIN RETURN ({when}); EXCEPTION WHEN OTHERS THEN RETURN false; END");
                let sql = format!(
                    "CREATE OR REPLACE FUNCTION {}(branchline_row anyelement) RETURNS boolean \
                     LANGUAGE plpgsql SET search_path = {} AS {}",
                    condition(self.tracked, n),
                    search_path(self.class),
                    escaped(&body)
                );
                Some(Function { name: format!("capture_{}_when_{n}", self.tracked.id), body, sql })
            })
            .collect()
    }

    fn insert(&self) -> Result<String> {
        let refs = self.refs(NEW, Which::All)?;
        let whole = self.insert_with(&refs);
        Ok(self.guarded(NEW, &[&refs], &whole, &self.insert_with("NULL")))
    }

    fn insert_with(&self, refs: &str) -> Statement {
        let new = "branchline_new::text";
        let images = Images { op: "1", old: "NULL", new, old_refs: "NULL", new_refs: refs };
        self.capture(&images, NEW, NEW)
    }

    fn delete(&self) -> Result<String> {
        let refs = self.refs(OLD, Which::OfKey)?;
        let whole = self.delete_with(&refs, OLD, OLD);
        Ok(self.guarded(OLD, &[&refs], &whole, &self.delete_with("NULL", OLD, OLD)))
    }

    fn delete_with(&self, refs: &str, rows: &str, from: &str) -> Statement {
        let old = "branchline_old::text";
        let images = Images { op: "3", old, new: "NULL", old_refs: refs, new_refs: "NULL" };
        self.capture(&images, rows, from)
    }

    /// Old and new images pair by the local primary key; what does not pair left or came.
    fn update(&self) -> Result<String> {
        let old_refs = self.refs(OLD, Which::OfKey)?;
        let apart =
            |old: &str, new: &str| self.delete_with(old, OLD, OLD).then(&self.insert_with(new));
        let plain = apart("NULL", "NULL");
        let local: Vec<&Column> =
            self.class.local.iter().map(|n| &self.class.columns[*n]).collect();
        let both = format!("{OLD}, {NEW}");
        if self.class.set || local.iter().any(|column| !column.not_null) {
            let new_refs = self.refs(NEW, Which::All)?;
            let whole = apart(&old_refs, &new_refs);
            return Ok(self.guarded(&both, &[&old_refs, &new_refs], &whole, &plain));
        }
        let new_refs = self.refs(NEW, Which::Moved)?;
        let pairs = local.iter().map(|column| same(column)).collect::<Vec<_>>().join(" AND ");
        let first = quote(&local[0].name);
        let (gone, came) = (format!("{NEW}.{first} IS NULL"), format!("{OLD}.{first} IS NULL"));
        let images = Images {
            op: &format!("CASE WHEN {gone} THEN 3 WHEN {came} THEN 1 ELSE 2 END"),
            old: &format!("CASE WHEN NOT ({came}) THEN {OLD}::text END"),
            new: &format!("CASE WHEN NOT ({gone}) THEN {NEW}::text END"),
            old_refs: &old_refs,
            new_refs: &new_refs,
        };
        let whole = self.capture(
            &images,
            NEW,
            &format!("{OLD} FULL JOIN {NEW} ON {pairs} WHERE {gone} OR {came} OR {OLD} *<> {NEW}"),
        );
        let names = [old_refs.as_str(), &new_refs, &format!("({pairs})")];
        Ok(self.guarded(&both, &names, &whole, &plain))
    }

    /// Every row of the table itself: each partition has a trigger of its own.
    fn truncate(&self) -> Result<String> {
        let table = format!("ONLY {TABLE}");
        let from = format!("{table} AS {OLD}");
        let statement = |refs: &str| {
            let sql = self.delete_with(refs, &table, &from).other;
            format!(
                "EXECUTE pg_catalog.replace({}, '{TABLE}', TG_RELID::pg_catalog.regclass::text);",
                escaped(&sql)
            )
        };
        let refs = self.refs(OLD, Which::OfKey)?;
        let (whole, plain) = (statement(&refs), statement("NULL"));
        Ok(if refs == "NULL" {
            format!("BEGIN {plain} RETURN NULL; END")
        } else {
            format!("BEGIN BEGIN {whole} EXCEPTION WHEN OTHERS THEN {plain} END; RETURN NULL; END")
        })
    }
}

/// Which references of an image are looked up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    /// All of them.
    All,
    /// Those of key columns.
    OfKey,
    /// Those of key columns, those that an update changed, and those that depend on a condition. A
    /// reference that stayed does not travel.
    Moved,
}

/// Whether a column differs between the old and the new row, by an operator of the system's own.
fn differs(column: &Column) -> String {
    let name = quote(&column.name);
    match column.kind {
        TypeKind::Int => format!("{OLD}.{name} IS DISTINCT FROM {NEW}.{name}"),
        _ => format!("ROW({OLD}.{name}) *<> ROW({NEW}.{name})"),
    }
}

/// Whether a column of the old and the new row is the same, by an operator of the system's own:
/// those of extensions may be out of sight.
fn same(column: &Column) -> String {
    let name = quote(&column.name);
    match column.kind {
        TypeKind::Text | TypeKind::PaddedText => {
            format!("{OLD}.{name}::text COLLATE \"C\" = {NEW}.{name}::text COLLATE \"C\"")
        }
        _ => format!("{OLD}.{name} = {NEW}.{name}"),
    }
}

/// Where conditions of the configuration find the host's tables.
#[must_use]
pub fn search_path(class: &Class) -> String {
    let schema = quote(&class.schema);
    let public = if class.schema == "public" { "" } else { ", public" };
    format!("pg_catalog, {schema}{public}, pg_temp")
}
