//! SQL that writes values as literals, for [`image`](super::image) to read.

use super::affinity::{Affinity, affinity};
use super::triggers::column_of;
use crate::catalog::{Class, Column};

/// SQL for the image of the row `row` (an alias): a list of literals, as
/// [`image::decode`](super::image::decode) reads it.
#[must_use]
pub fn image_sql(class: &Class, row: &str) -> String {
    columns_sql(&class.columns.iter().collect::<Vec<_>>(), row)
}

/// [`image_sql`] for some columns.
pub(super) fn columns_sql(columns: &[&Column], row: &str) -> String {
    // A text also where one value alone would be a number.
    format!("''||{}", list(columns.iter().map(|column| literal_sql(column, row)).collect()))
}

/// SQL for one value as a literal. What a column's affinity rules out is not asked for.
fn literal_sql(column: &Column, row: &str) -> String {
    let value = column_of(row, &column.name);
    match affinity(&column.sql_type) {
        Affinity::Text => {
            format!(
                "CASE typeof({value}) WHEN 'text' THEN {} ELSE quote({value}) END",
                text(&value)
            )
        }
        _ => any_literal_sql(&value),
    }
}

/// SQL for any value as a literal.
fn any_literal_sql(value: &str) -> String {
    format!(
        "CASE typeof({value}) WHEN 'integer' THEN {value} WHEN 'real' THEN printf('%!.19g',{value}) \
         WHEN 'text' THEN {} ELSE quote({value}) END",
        text(value)
    )
}

/// SQL for a text as a literal: `quote` would cut it at an embedded NUL.
fn text(value: &str) -> String {
    format!(
        "CASE WHEN instr({value},char(0)) THEN 'T'''||hex({value})||'''' ELSE quote({value}) END"
    )
}

/// Joins SQL texts with commas between their values.
pub(super) fn list(parts: Vec<String>) -> String {
    balanced(&parts, "||','||", "''")
}

/// Joins SQL expressions. SQLite bounds how deep an expression may nest, so a long chain is a
/// balanced tree.
pub(super) fn balanced(parts: &[String], operator: &str, none: &str) -> String {
    match parts {
        [] => none.to_owned(),
        few if few.len() <= CHAIN_MAX => few.join(operator),
        many => {
            let (left, right) = many.split_at(many.len() / 2);
            let (left, right) = (balanced(left, operator, none), balanced(right, operator, none));
            format!("({left}){operator}({right})")
        }
    }
}

/// Operators in a row, which nest one in the other.
const CHAIN_MAX: usize = 64;
