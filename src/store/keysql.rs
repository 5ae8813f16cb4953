//! SQL that yields the canonical key text of a row, of any class, on both databases.

use std::fmt::Write as _;

use super::session::{Dialect, quote};
use crate::catalog::{Catalog, Class, Column, Reference, TypeKind};
use crate::error::{Error, Result};

/// Keys that depend on keys that … deeper than this are refused.
const DEPTH_MAX: usize = 8;

/// The table of a class as SQL names it.
#[must_use]
pub fn table(class: &Class) -> String {
    if class.schema.is_empty() {
        quote(&class.table)
    } else {
        format!("{}.{}", quote(&class.schema), quote(&class.table))
    }
}

/// An expression for the key text of the row `alias` of `class`, NULL where a part is.
///
/// # Errors
/// When a part refers to a class that is not tracked, or in a circle.
pub fn key(dialect: Dialect, catalog: &Catalog, class: &Class, alias: &str) -> Result<String> {
    nested(dialect, catalog, class, alias, 0)
}

fn nested(
    dialect: Dialect,
    catalog: &Catalog,
    class: &Class,
    alias: &str,
    depth: usize,
) -> Result<String> {
    if depth > DEPTH_MAX {
        return Err(Error::failed(format!("the key of `{}` refers to itself", class.name)));
    }
    let mut parts = Vec::with_capacity(class.key.len());
    for column in &class.key {
        let column = &class.columns[*column];
        parts.push(match column.references.first() {
            Some(reference) => looked_up(dialect, catalog, column, reference, alias, depth)?,
            None => canonical(dialect, column, &format!("{alias}.{}", quote(&column.name))),
        });
    }
    Ok(match (parts.as_slice(), dialect) {
        ([one], _) => one.clone(),
        (many, Dialect::Sqlite) => format!("json_array({})", many.join(", ")),
        (many, Dialect::Postgres) => {
            let mut text = "'['".to_owned();
            for (n, part) in many.iter().enumerate() {
                let comma = if n == 0 { "" } else { " || ','" };
                let _ = write!(text, "{comma} || to_json({part})::text");
            }
            text.push_str(" || ']'");
            text
        }
    })
}

/// The key of the row that `alias.column` refers to: a scalar subselect.
pub fn reference(
    dialect: Dialect,
    catalog: &Catalog,
    column: &Column,
    reference: &Reference,
    alias: &str,
) -> Result<String> {
    looked_up(dialect, catalog, column, reference, alias, 0)
}

fn looked_up(
    dialect: Dialect,
    catalog: &Catalog,
    column: &Column,
    reference: &Reference,
    alias: &str,
    depth: usize,
) -> Result<String> {
    let target = catalog.class(&reference.target).ok_or_else(|| {
        Error::failed(format!("`{}` is referred to and not tracked", reference.target))
    })?;
    let inner = format!("k{depth}");
    let key = nested(dialect, catalog, &target.class, &inner, depth + 1)?;
    let local = format!("{alias}.{}", quote(&column.name));
    let id = match (dialect, column.kind) {
        // An id kept as text: what is no number refers to nothing.
        (Dialect::Postgres, kind) if kind != TypeKind::Int => {
            format!(
                "CASE WHEN {local}::text ~ '^(0|[1-9][0-9]{{0,17}})$' THEN {local}::text::bigint END"
            )
        }
        _ => local,
    };
    let lookup = format!(
        "(SELECT {key} FROM {} AS {inner} WHERE {inner}.{} = {id} LIMIT 1)",
        table(&target.class),
        quote(&reference.target_column)
    );
    Ok(match &reference.when {
        Some(when) => format!("CASE WHEN ({}) THEN {lookup} END", when.replace("{row}", alias)),
        None => lookup,
    })
}

/// The canonical text of a scalar column (see [`crate::catalog::key_part`]).
#[must_use]
pub fn canonical(dialect: Dialect, column: &Column, expr: &str) -> String {
    match (dialect, column.kind) {
        (Dialect::Postgres, TypeKind::Decimal) => format!(
            "CASE WHEN strpos({expr}::text, '.') > 0 \
             THEN rtrim(rtrim({expr}::text, '0'), '.') ELSE {expr}::text END"
        ),
        (Dialect::Postgres, TypeKind::TimestampTz) => {
            // Only the plain shape, as on the wire.
            format!(
                "regexp_replace({expr}::text, '^([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}) ([0-9:.]+)[+]00$', \
                 E'\\\\1T\\\\2Z')"
            )
        }
        (Dialect::Postgres, TypeKind::Bytes) => format!("encode({expr}, 'hex')"),
        (Dialect::Postgres, TypeKind::PaddedText) => format!("rtrim({expr}::text, ' ')"),
        (Dialect::Postgres, _) => format!("{expr}::text"),
        (Dialect::Sqlite, TypeKind::Bool) => format!(
            "CASE {expr} WHEN 0 THEN 'false' WHEN 1 THEN 'true' ELSE CAST({expr} AS TEXT) END"
        ),
        (Dialect::Sqlite, TypeKind::Decimal) => format!(
            "CASE WHEN instr(CAST({expr} AS TEXT), '.') > 0 \
             THEN rtrim(rtrim(CAST({expr} AS TEXT), '0'), '.') ELSE CAST({expr} AS TEXT) END"
        ),
        (Dialect::Sqlite, TypeKind::Uuid) => format!("lower({expr})"),
        (Dialect::Sqlite, TypeKind::PaddedText) => format!("rtrim({expr}, ' ')"),
        (Dialect::Sqlite, TypeKind::Bytes) => format!("lower(hex({expr}))"),
        (Dialect::Sqlite, _) => format!("CAST({expr} AS TEXT)"),
    }
}
