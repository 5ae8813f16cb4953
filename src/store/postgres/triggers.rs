//! The capture triggers of PostgreSQL: statement-level with transition tables, one set on a table
//! and on each of its partitions.
//!
//! The functions are SECURITY DEFINER with every name qualified, so that they work for a role
//! without rights and with an empty `search_path`; the triggers are ENABLE ALWAYS, so that
//! `session_replication_role` does not switch them off. A row is taken whole, as composite text; no
//! column is named but those of keys and references, so that an added, dropped or renamed column
//! neither breaks a write nor escapes.

use std::fmt::Write as _;

use crate::catalog::{Catalog, Class, Slot, Tracked, TypeKind};
use crate::error::{Error, Result};
use crate::store::keysql;
use crate::store::session::{Dialect, Session, literal, quote};

/// Settings under which values are printed, whatever the writer's are. Each of these changes some
/// value's text.
const SETTINGS: &str = "SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET timezone = 'UTC' SET bytea_output = 'hex' \
    SET extra_float_digits = 1 SET lc_monetary = 'C' SET xmlbinary = 'base64'";

/// The condition under which a write is captured: it is not the applier's.
const WHEN: &str =
    "WHEN (pg_catalog.current_setting('branchline.applying', true) IS DISTINCT FROM 'on')";

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

/// Separates column names where they are compared.
const SEPARATOR: char = '\u{1}';

/// Statements that make the functions and triggers of a class.
///
/// # Errors
/// When a class that it refers to is not tracked.
pub fn create(tracked: &Tracked, catalog: &Catalog) -> Result<Vec<String>> {
    let mut statements = Vec::new();
    for (kind, body) in bodies(tracked, catalog)? {
        statements.push(format!(
            "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER \
             SET search_path = {} {SETTINGS} AS {}",
            function(tracked, kind),
            search_path(&tracked.class),
            literal(&body)
        ));
    }
    for table in targets(tracked) {
        for (kind, event, tables) in KINDS {
            statements.push(format!(
                "CREATE TRIGGER branchline_{kind} {event} ON {table} {tables} FOR EACH STATEMENT \
                 {WHEN} EXECUTE FUNCTION {}()",
                function(tracked, kind)
            ));
            statements.push(format!("ALTER TABLE {table} ENABLE ALWAYS TRIGGER branchline_{kind}"));
        }
    }
    Ok(statements)
}

/// Statements that remove them, whether they are there or not.
#[must_use]
pub fn drop(tracked: &Tracked) -> Vec<String> {
    let functions = KINDS
        .iter()
        .map(|(kind, ..)| format!("DROP FUNCTION IF EXISTS {}() CASCADE", function(tracked, kind)));
    functions.collect()
}

/// Nothing but the system's names; where a condition of the configuration is run, the schema of the
/// table behind them, so that the condition can name the host's tables.
fn search_path(class: &Class) -> String {
    if class.slots().any(|slot| slot.reference.when.is_some()) {
        format!("pg_catalog, {}, pg_temp", quote(&class.schema))
    } else {
        "pg_catalog, pg_temp".to_owned()
    }
}

fn function(tracked: &Tracked, kind: &str) -> String {
    format!("branchline.capture_{}_{kind}", tracked.id)
}

/// The table and its partitions, as SQL names them.
fn targets(tracked: &Tracked) -> Vec<String> {
    let mut list = vec![keysql::table(&tracked.class)];
    list.extend(tracked.class.partitions.iter().cloned());
    list
}

/// The classes whose triggers are gone, switched off, or not as [`create`] makes them.
///
/// # Errors
/// Those of the database.
pub async fn missing(session: &mut Session, catalog: &Catalog) -> Result<Vec<i32>> {
    let rows = session
        .query(
            "SELECT p.proname, p.prosrc, count(t.oid) FILTER (WHERE t.tgenabled = 'A') \
             FROM pg_proc p LEFT JOIN pg_trigger t ON t.tgfoid = p.oid AND NOT t.tgisinternal \
             AND t.tgparentid = 0 \
             WHERE p.pronamespace = 'branchline'::regnamespace AND p.proname LIKE 'capture\\_%' \
             GROUP BY p.oid, p.proname, p.prosrc",
            vec![],
        )
        .await?;
    let mut present = std::collections::HashMap::new();
    for row in &rows {
        present.insert(row.text(0)?, (row.text(1)?, row.int(2)?));
    }
    let mut missing = Vec::new();
    for tracked in catalog.tracked.values() {
        let tables = i64::try_from(targets(tracked).len()).unwrap_or(i64::MAX);
        let whole = bodies(tracked, catalog)?.into_iter().all(|(kind, body)| {
            let name = format!("capture_{}_{kind}", tracked.id);
            present
                .get(name.as_str())
                .is_some_and(|(source, count)| *source == body && *count >= tables)
        });
        if !whole {
            missing.push(tracked.id);
        }
    }
    missing.sort_unstable();
    Ok(missing)
}

/// The bodies of the functions, by kind.
fn bodies(tracked: &Tracked, catalog: &Catalog) -> Result<Vec<(&'static str, String)>> {
    let writer = Writer { tracked, class: &tracked.class, catalog, conditions: true };
    let safe = Writer { conditions: false, ..writer };
    Ok(vec![
        ("insert", writer.body(&guarded(&writer, writer.insert()?, safe.insert()?))),
        ("update", writer.body(&guarded(&writer, writer.update()?, safe.update()?))),
        (
            "delete",
            writer.body(&guarded(
                &writer,
                writer.delete("branchline_old")?,
                safe.delete("branchline_old")?,
            )),
        ),
        ("truncate", writer.truncate()?),
    ])
}

/// A condition of the configuration that fails must not break the host's write: the change is
/// captured without the references that hang on conditions.
fn guarded(writer: &Writer<'_>, statements: String, safe: String) -> String {
    if writer.class.slots().any(|slot| slot.reference.when.is_some()) {
        format!("BEGIN {statements} EXCEPTION WHEN OTHERS THEN {safe} END;")
    } else {
        statements
    }
}

/// Writes the function bodies of one class.
#[derive(Clone, Copy)]
struct Writer<'a> {
    tracked: &'a Tracked,
    class: &'a Class,
    catalog: &'a Catalog,
    /// Whether references with conditions are looked up.
    conditions: bool,
}

/// The references of one image: SELECT expression and the joins that it needs.
struct Refs {
    row: String,
    joins: String,
}

const INTO: &str = "INSERT INTO branchline.sync_change \
    (class_id, op, shape, columns, old_image, new_image, old_refs, new_refs)";

impl Writer<'_> {
    /// A body that works out once whether the table has the columns that it was made for.
    fn body(&self, statements: &str) -> String {
        let names: Vec<&str> = self.class.columns.iter().map(|column| &*column.name).collect();
        let known = literal(&names.join(&SEPARATOR.to_string()));
        format!(
            "DECLARE branchline_shape int := {shape}; branchline_columns text; BEGIN \
             IF (SELECT string_agg(a.attname, E'\\x01' ORDER BY a.attnum) FROM pg_catalog.pg_attribute a \
             WHERE a.attrelid = TG_RELID AND a.attnum > 0 AND NOT a.attisdropped) <> {known} THEN \
             branchline_shape := NULL; branchline_columns := (SELECT json_agg(a.attname ORDER BY a.attnum)::text \
             FROM pg_catalog.pg_attribute a WHERE a.attrelid = TG_RELID AND a.attnum > 0 AND NOT a.attisdropped); \
             END IF; {statements} RETURN NULL; END",
            shape = self.tracked.shape,
        )
    }

    fn start(&self) -> String {
        format!("{INTO} SELECT {}", self.tracked.id)
    }

    /// The keys of the rows that an image refers to. Only those of key columns, where `key_only`.
    fn refs(&self, alias: &str, prefix: char, key_only: bool) -> Result<Refs> {
        let slots: Vec<Slot<'_>> = self.class.slots().collect();
        if slots.is_empty() || (key_only && !slots.iter().any(|slot| slot.in_key)) {
            return Ok(Refs { row: "NULL".to_owned(), joins: String::new() });
        }
        let (mut fields, mut joins) = (Vec::new(), String::new());
        for (n, slot) in slots.into_iter().enumerate() {
            if (key_only && !slot.in_key) || (!self.conditions && slot.reference.when.is_some()) {
                fields.push("NULL".to_owned());
                continue;
            }
            let target = self.catalog.class(&slot.reference.target).ok_or_else(|| {
                Error::failed(format!("`{}` is referred to and not tracked", slot.reference.target))
            })?;
            let column = &self.class.columns[slot.column];
            let join = format!("{prefix}{n}");
            let local = format!("{alias}.{}", quote(&column.name));
            let id = if column.kind == TypeKind::Int {
                local
            } else {
                // An id kept as text: what is no number refers to nothing, and never raises.
                format!(
                    "CASE WHEN {local}::text ~ '^[0-9]{{1,18}}$' THEN {local}::text::bigint END"
                )
            };
            let _ = write!(
                joins,
                " LEFT JOIN {} AS {join} ON {join}.{} = {id}",
                keysql::table(&target.class),
                quote(&slot.reference.target_column)
            );
            let key = keysql::key(Dialect::Postgres, self.catalog, &target.class, &join)?;
            fields.push(match &slot.reference.when {
                Some(when) => {
                    format!("CASE WHEN ({}) THEN {key} END", self.qualified(when, alias))
                }
                None => key,
            });
        }
        Ok(Refs { row: format!("ROW({})::text", fields.join(", ")), joins })
    }

    /// A condition from the configuration, about the row `alias`.
    fn qualified(&self, when: &str, alias: &str) -> String {
        when.replace("{row}", alias)
    }

    fn insert(&self) -> Result<String> {
        let refs = self.refs("branchline_new", 'n', false)?;
        Ok(format!(
            "{} , 1, branchline_shape, branchline_columns, NULL, branchline_new::text, NULL, {} \
             FROM branchline_new{};",
            self.start(),
            refs.row,
            refs.joins
        ))
    }

    fn delete(&self, table: &str) -> Result<String> {
        let refs = self.refs("branchline_old", 'o', true)?;
        Ok(format!(
            "{} , 3, branchline_shape, branchline_columns, branchline_old::text, NULL, {}, NULL \
             FROM {table} AS branchline_old{};",
            self.start(),
            refs.row,
            refs.joins
        ))
    }

    /// Old and new images pair by the local primary key; what does not pair left or came.
    fn update(&self) -> Result<String> {
        let primary =
            !self.class.set && self.class.local.iter().all(|n| self.class.columns[*n].not_null);
        if !primary {
            return Ok(format!("{} {}", self.delete("branchline_old")?, self.insert()?));
        }
        let local: Vec<String> =
            self.class.local.iter().map(|n| quote(&self.class.columns[*n].name)).collect();
        let pairs = local.iter().map(|c| format!("branchline_old.{c} = branchline_new.{c}"));
        let pairs = pairs.collect::<Vec<_>>().join(" AND ");
        let (gone, came) = (
            format!("branchline_new.{} IS NULL", local[0]),
            format!("branchline_old.{} IS NULL", local[0]),
        );
        let (old, new) =
            (self.refs("branchline_old", 'o', true)?, self.refs("branchline_new", 'n', false)?);
        Ok(format!(
            "{start} , CASE WHEN {gone} THEN 3 WHEN {came} THEN 1 ELSE 2 END, branchline_shape, \
             branchline_columns, CASE WHEN {came} THEN NULL ELSE branchline_old::text END, \
             CASE WHEN {gone} THEN NULL ELSE branchline_new::text END, {}, {} \
             FROM branchline_old FULL JOIN branchline_new ON {pairs}{}{} \
             WHERE {gone} OR {came} OR branchline_old *<> branchline_new \
             ORDER BY ({gone}) DESC;",
            old.row,
            new.row,
            old.joins,
            new.joins,
            start = self.start(),
        ))
    }

    /// Every row of the table itself: each partition has a trigger of its own.
    fn truncate(&self) -> Result<String> {
        let delete = self.delete("ONLY %s")?.replace("branchline_shape", "$1");
        let delete = delete.replace("branchline_columns", "$2");
        let delete = delete.trim_end_matches(';').replace('%', "%%").replace("ONLY %%s", "ONLY %s");
        Ok(self.body(&format!(
            "EXECUTE pg_catalog.format({}, TG_RELID::pg_catalog.regclass) \
             USING branchline_shape, branchline_columns;",
            literal(&delete)
        )))
    }
}
