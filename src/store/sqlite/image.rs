//! Row images of SQLite: a list of literals joined by commas.
//!
//! Literals are what `quote()` writes (`'it''s'`, `12`, `NULL`, `X'00FF'`), with two exceptions,
//! because `quote` cuts a text at an embedded NUL and rounds a float: `T'6100'` is a text in
//! hexadecimal, and a float is written with 19 digits (`0.1000000000000000056`, `-Inf`). In lists of
//! keys a composite key stands as `K'…'`, the list of its parts.
//!
//! A value comes back as it was stored, adjusted by the declared type: 0 and 1 in a BOOLEAN column
//! are booleans, numbers in a DECIMAL column are canonical text, a UUID is lower case, and `'NaN'` in
//! a REAL column is the float that SQLite cannot store.

use std::fmt::Write as _;

use super::affinity::{Affinity, affinity};
use crate::catalog::{Column, TypeKind, join_key};
use crate::error::{Error, Result};
use crate::record::Value;
use crate::store::session::{Cell, Datum, literal};

/// How deep composite keys may refer to each other.
const DEPTH_MAX: usize = 16;

/// See [`crate::store::image::decode`].
pub fn decode(image: &str, columns: &[Option<&Column>]) -> Result<Vec<Value>> {
    let mut values = Vec::with_capacity(columns.len());
    let mut reader = Reader { rest: image };
    while let Some(literal) = reader.next()? {
        let value = literal.value()?;
        values.push(match columns.get(values.len()) {
            Some(Some(column)) => adjust(value, column.kind),
            _ => value,
        });
    }
    if values.len() != columns.len() {
        return Err(Error::decode(format!(
            "an image has {} values for {} columns",
            values.len(),
            columns.len()
        )));
    }
    Ok(values)
}

/// The texts of a quoted list: canonical key texts.
pub fn texts(text: &str) -> Result<Vec<Option<String>>> {
    keys(text, DEPTH_MAX)
}

fn keys(text: &str, depth: usize) -> Result<Vec<Option<String>>> {
    let mut reader = Reader { rest: text };
    let mut keys = Vec::new();
    while let Some(literal) = reader.next()? {
        keys.push(match literal {
            Literal::Key(parts) => {
                let depth = depth.checked_sub(1).ok_or_else(malformed)?;
                let parts: Option<Vec<String>> = keys_of(&parts, depth)?;
                parts.as_deref().map(join_key)
            }
            literal => match literal.value()? {
                Value::Null => None,
                value => crate::catalog::key_part(&value, TypeKind::Text),
            },
        });
    }
    Ok(keys)
}

/// The parts of a composite key; `None` when one of them is NULL.
fn keys_of(text: &str, depth: usize) -> Result<Option<Vec<String>>> {
    Ok(keys(text, depth)?.into_iter().collect())
}

/// Writes a list of stored values as [`decode`] reads it.
#[must_use]
pub fn encode(cells: &[Cell]) -> String {
    let mut text = String::new();
    for (n, cell) in cells.iter().enumerate() {
        if n > 0 {
            text.push(',');
        }
        // Writing to a String cannot fail.
        let _ = match cell {
            Cell::Null => write!(text, "NULL"),
            Cell::Int(number) | Cell::Time(number) => write!(text, "{number}"),
            Cell::Float(number) => write!(text, "{number:?}"),
            Cell::Text(value) => write!(text, "{}", literal(value)),
            Cell::Uuid(id) => write!(text, "'{}'", id.hyphenated()),
            Cell::Bytes(bytes) => {
                let digits: String = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
                write!(text, "X'{digits}'")
            }
        };
    }
    text
}

/// The bind that stores `value` in `column`: what [`decode`] read, whatever the column's affinity
/// would make of it.
#[must_use]
pub fn datum(value: &Value, column: &Column) -> Datum {
    match value {
        Value::Null => Datum::Int(None),
        Value::Bool(value) => Datum::Bool(*value),
        Value::Int(value) => Datum::Int(Some(*value)),
        // SQLite stores NaN as NULL.
        Value::Float(value) if value.is_nan() => Datum::Text(Some("NaN".to_owned())),
        Value::Float(value) => Datum::Float(Some(*value)),
        Value::Text(text) if column.kind == TypeKind::Decimal => decimal(text, &column.sql_type),
        Value::Text(text) => Datum::Text(Some(text.clone())),
        Value::Bytes(bytes) => Datum::Bytes(Some(bytes.clone())),
        Value::Ref(row) => Datum::Text(Some(row.key.to_string())),
    }
}

/// A decimal as SQLite stores one: a NUMERIC column holds an integer of 64 bits or a float, and
/// would turn the text into one of them itself, less exactly. A TEXT column keeps the digits.
fn decimal(text: &str, sql_type: &str) -> Datum {
    let text_of = || Datum::Text(Some(text.to_owned()));
    if matches!(affinity(sql_type), Affinity::Text | Affinity::Blob) {
        return text_of();
    }
    match text {
        "Infinity" => return Datum::Float(Some(f64::INFINITY)),
        "-Infinity" => return Datum::Float(Some(f64::NEG_INFINITY)),
        _ => {}
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) {
        return text_of();
    }
    if let Ok(number) = text.parse() {
        return Datum::Int(Some(number));
    }
    match text.parse() {
        Ok(number) => Datum::Float(Some(number)),
        Err(_) => text_of(),
    }
}

/// What a stored value is by the declared type.
fn adjust(value: Value, kind: TypeKind) -> Value {
    match (kind, value) {
        (TypeKind::Bool, Value::Int(number @ (0 | 1))) => Value::Bool(number == 1),
        (TypeKind::Decimal, Value::Int(number)) => Value::Text(number.to_string()),
        (TypeKind::Decimal, Value::Float(number)) => Value::Text(plain(number)),
        (TypeKind::Float, Value::Text(text)) if text == "NaN" => Value::Float(f64::NAN),
        (TypeKind::Uuid, Value::Text(text)) => Value::Text(text.to_ascii_lowercase()),
        (_, value) => value,
    }
}

/// A float as a decimal without exponent, the shortest that reads back as the same.
fn plain(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    number.to_string()
}

/// One literal of a list.
enum Literal<'a> {
    Bare(&'a str),
    Text(String),
    Bytes(&'a str),
    HexText(&'a str),
    Key(String),
}

impl Literal<'_> {
    fn value(self) -> Result<Value> {
        match self {
            Literal::Bare(word) => number(word),
            Literal::Text(text) => Ok(Value::Text(text)),
            Literal::Bytes(digits) => Ok(Value::Bytes(unhex(digits)?)),
            Literal::HexText(digits) => {
                let bytes = unhex(digits)?;
                Ok(Value::Text(String::from_utf8_lossy(&bytes).into_owned()))
            }
            Literal::Key(_) => Err(malformed()),
        }
    }
}

fn number(word: &str) -> Result<Value> {
    if word == "NULL" {
        return Ok(Value::Null);
    }
    if let Ok(number) = word.parse() {
        return Ok(Value::Int(number));
    }
    match word.parse::<f64>() {
        Ok(number) if !number.is_nan() => Ok(Value::Float(number)),
        _ => Err(malformed()),
    }
}

fn unhex(digits: &str) -> Result<Vec<u8>> {
    let nibble = |digit: u8| char::from(digit).to_digit(16);
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => {
                let byte = nibble(*high)? * 16 + nibble(*low)?;
                u8::try_from(byte).ok()
            }
            _ => None,
        })
        .collect::<Option<_>>()
        .ok_or_else(malformed)
}

fn malformed() -> Error {
    Error::decode("an image is no list of SQLite literals")
}

/// Reads a list, literal by literal.
struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<Literal<'a>>> {
        let Some(first) = self.rest.bytes().next() else { return Ok(None) };
        let literal = match first {
            b'\'' => Literal::Text(self.quoted(0)?),
            b'K' => Literal::Key(self.quoted(1)?),
            b'X' => Literal::Bytes(self.hex()?),
            b'T' => Literal::HexText(self.hex()?),
            _ => {
                let end = self.rest.find(',').unwrap_or(self.rest.len());
                Literal::Bare(self.take(end))
            }
        };
        match self.rest.as_bytes() {
            [] => {}
            // A comma promises another literal.
            [b',', _, ..] => self.rest = self.rest.get(1..).unwrap_or_default(),
            _ => return Err(malformed()),
        }
        Ok(Some(literal))
    }

    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }

    /// A text whose opening quote stands after `skip` bytes; quotes within are doubled.
    fn quoted(&mut self, skip: usize) -> Result<String> {
        let mut text = String::new();
        let mut rest = self.rest.get(skip..).and_then(|rest| rest.strip_prefix('\''));
        while let Some(inner) = rest {
            let end = inner.find('\'').ok_or_else(malformed)?;
            let (part, after) = inner.split_at(end);
            text.push_str(part);
            let after = after.get(1..).unwrap_or_default();
            rest = after.strip_prefix('\'');
            match rest {
                Some(_) => text.push('\''),
                None => {
                    self.rest = after;
                    return Ok(text);
                }
            }
        }
        Err(malformed())
    }

    /// Hexadecimal digits between quotes, after one letter.
    fn hex(&mut self) -> Result<&'a str> {
        let inner = self.rest.get(1..).and_then(|rest| rest.strip_prefix('\''));
        let inner = inner.ok_or_else(malformed)?;
        let end = inner.find('\'').ok_or_else(malformed)?;
        let digits = inner.get(..end).unwrap_or_default();
        self.rest = inner.get(end + 1..).unwrap_or_default();
        Ok(digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(image: &str, kinds: &[TypeKind]) -> Result<Vec<Value>> {
        let columns: Vec<Column> = kinds.iter().map(|kind| column("", *kind)).collect();
        let columns: Vec<Option<&Column>> = columns.iter().map(Some).collect();
        decode(image, &columns)
    }

    fn column(sql_type: &str, kind: TypeKind) -> Column {
        Column {
            name: "c".into(),
            sql_type: sql_type.to_owned(),
            kind,
            not_null: false,
            generated: false,
            references: Vec::new(),
        }
    }

    #[test]
    fn an_image_is_read_by_storage_class_and_declared_type() {
        use TypeKind as K;
        let image = "'it''s, \u{1f600}',12,NULL,X'00FF',1.5,'',X'',T'610062',1,7,2.50,Inf,9.0e+999";
        let kinds = [
            K::Text,
            K::Int,
            K::Int,
            K::Bytes,
            K::Float,
            K::Text,
            K::Bytes,
            K::Text,
            K::Bool,
            K::Bool,
            K::Decimal,
            K::Decimal,
            K::Float,
        ];
        let text = |text: &str| Value::Text(text.to_owned());
        assert_eq!(
            read(image, &kinds).unwrap(),
            [
                text("it's, \u{1f600}"),
                Value::Int(12),
                Value::Null,
                Value::Bytes(vec![0, 255]),
                Value::Float(1.5),
                text(""),
                Value::Bytes(vec![]),
                text("a\0b"),
                Value::Bool(true),
                Value::Int(7),
                text("2.5"),
                text("Infinity"),
                Value::Float(f64::INFINITY),
            ]
        );
    }

    #[test]
    fn a_malformed_image_is_an_error() {
        for image in [
            "",
            "'",
            "'a",
            "a",
            "1,",
            ",1",
            "'a'b",
            "X'0'",
            "X'0g'",
            "X'",
            "T",
            "K'1'",
            "nan",
            "'a''",
            "1 2",
            "X'\u{e9}'",
            "\u{e9}",
        ] {
            assert!(read(image, &[TypeKind::Text]).is_err(), "{image}");
        }
        assert!(read("1,2", &[TypeKind::Int]).is_err(), "two values for one column");
    }

    #[test]
    fn keys_are_read_as_canonical_text() {
        let quoted = |list: &str| format!("K{}", literal(list));
        let inner = quoted("'y\"',1");
        let outer = quoted(&format!("'x',{inner}"));
        let list = format!("'a',NULL,5,X'00FF',{outer},T'6100',{}", quoted("1,NULL"));
        let read = texts(&list);
        let read = read.unwrap();
        assert_eq!(read[0].as_deref(), Some("a"));
        assert_eq!(read[1], None);
        assert_eq!(read[2].as_deref(), Some("5"));
        assert_eq!(read[3].as_deref(), Some("00ff"));
        assert_eq!(read[4].as_deref(), Some(r#"["x","[\"y\\\"\",\"1\"]"]"#));
        assert_eq!(read[5].as_deref(), Some("a\0"));
        assert_eq!(read[6], None, "a key with a NULL part is none");
        assert_eq!(texts("").unwrap(), Vec::<Option<String>>::new());
    }

    #[test]
    fn a_decimal_is_stored_as_the_number_that_it_is() {
        let bind = |text: &str, sql_type: &str| {
            datum(&Value::Text(text.to_owned()), &column(sql_type, TypeKind::Decimal))
        };
        assert_eq!(bind("12", "DECIMAL(10,2)"), Datum::Int(Some(12)));
        assert_eq!(bind("1.50", "DECIMAL(10,2)"), Datum::Float(Some(1.5)));
        assert_eq!(bind("-Infinity", "NUMERIC"), Datum::Float(Some(f64::NEG_INFINITY)));
        assert_eq!(bind("NaN", "NUMERIC"), Datum::Text(Some("NaN".into())));
        assert_eq!(bind("1.50", "NUMERIC TEXT"), Datum::Text(Some("1.50".into())));
    }
}
