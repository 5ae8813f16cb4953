//! What a declared type means on SQLite: its affinity by SQLite's own rules, and what it is to us by
//! the names that people use, so that a column means the same on both databases.
//!
//! The rules are those of <https://sqlite.org/datatype3.html>, section 3.1.

use crate::catalog::TypeKind;

/// How SQLite converts what is written to a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// Numbers become text.
    Text,
    /// Text that looks like a number becomes one.
    Numeric,
    /// As `Numeric`.
    Integer,
    /// As `Numeric`, integers become floats.
    Real,
    /// Nothing is converted.
    Blob,
}

/// The affinity of a declared type.
#[must_use]
pub fn affinity(sql_type: &str) -> Affinity {
    let name = sql_type.to_ascii_uppercase();
    let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    if has(&["INT"]) {
        Affinity::Integer
    } else if has(&["CHAR", "CLOB", "TEXT"]) {
        Affinity::Text
    } else if has(&["BLOB"]) || matches!(name.trim(), "" | "ANY") {
        Affinity::Blob
    } else if has(&["REAL", "FLOA", "DOUB"]) {
        Affinity::Real
    } else {
        Affinity::Numeric
    }
}

/// What a declared type is to us. Names decide where the affinity does not: `INTERVAL` is no
/// integer, `DATETIME` no number.
#[must_use]
pub fn kind(sql_type: &str) -> TypeKind {
    let name = sql_type.to_ascii_uppercase();
    let word: String = name.trim().chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
    match word.as_str() {
        "BOOL" | "BOOLEAN" => return TypeKind::Bool,
        "DECIMAL" | "NUMERIC" | "NUMBER" | "DEC" => return TypeKind::Decimal,
        "UUID" => return TypeKind::Uuid,
        "BYTEA" | "BINARY" | "VARBINARY" => return TypeKind::Bytes,
        "TIMESTAMPTZ" => return TypeKind::TimestampTz,
        "TIMESTAMP" if name.contains("WITH TIME ZONE") => return TypeKind::TimestampTz,
        "INTERVAL" | "POINT" => return TypeKind::Text,
        "SERIAL" | "BIGSERIAL" | "SMALLSERIAL" => return TypeKind::Int,
        _ => {}
    }
    match affinity(sql_type) {
        Affinity::Integer => TypeKind::Int,
        Affinity::Real => TypeKind::Float,
        Affinity::Blob if name.contains("BLOB") => TypeKind::Bytes,
        Affinity::Text | Affinity::Numeric | Affinity::Blob => TypeKind::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_types_have_the_affinity_that_sqlite_gives_them() {
        for (sql_type, expected) in [
            ("INTEGER", Affinity::Integer),
            ("int8", Affinity::Integer),
            ("VARCHAR(255)", Affinity::Text),
            ("NATIVE CHARACTER(70)", Affinity::Text),
            ("CHARINT", Affinity::Integer),
            ("FLOATING POINT", Affinity::Integer),
            ("DOUBLE PRECISION", Affinity::Real),
            ("STRING", Affinity::Numeric),
            ("DATETIME", Affinity::Numeric),
            ("", Affinity::Blob),
            ("BLOB", Affinity::Blob),
            ("ANY", Affinity::Blob),
        ] {
            assert_eq!(affinity(sql_type), expected, "{sql_type}");
        }
    }

    #[test]
    fn declared_types_mean_what_they_mean_on_postgresql() {
        for (sql_type, expected) in [
            ("boolean", TypeKind::Bool),
            ("DECIMAL(10,2)", TypeKind::Decimal),
            ("numeric", TypeKind::Decimal),
            ("BIGINT", TypeKind::Int),
            ("CHAR(38)", TypeKind::Text),
            ("UUID", TypeKind::Uuid),
            ("DATETIME", TypeKind::Text),
            ("TIMESTAMP", TypeKind::Text),
            ("timestamp(3) with time zone", TypeKind::TimestampTz),
            ("INTERVAL", TypeKind::Text),
            ("BLOB", TypeKind::Bytes),
            ("VARBINARY(16)", TypeKind::Bytes),
            ("double precision", TypeKind::Float),
            ("", TypeKind::Text),
            ("JSON", TypeKind::Text),
        ] {
            assert_eq!(kind(sql_type), expected, "{sql_type}");
        }
    }
}
