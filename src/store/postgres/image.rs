//! Row images of PostgreSQL: composite text, as `record_out` writes it, and the values in it.

use std::fmt::Write as _;

use crate::catalog::{Column, TypeKind};
use crate::error::{Error, Result};
use crate::record::Value;

/// See [`crate::store::image::decode`].
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) for a text that is no composite.
pub fn decode(image: &str, columns: &[Option<&Column>]) -> Result<Vec<Value>> {
    let fields = fields(image)?;
    let kinds = columns.iter().map(|column| column.map_or(TypeKind::Text, |column| column.kind));
    let kinds = kinds.chain(std::iter::repeat(TypeKind::Text));
    fields
        .into_iter()
        .zip(kinds)
        .map(|(field, kind)| field.map_or(Ok(Value::Null), |text| value(text, kind)))
        .collect()
}

/// The fields of a composite text, `None` for NULL.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) for a text that is no composite.
pub fn fields(text: &str) -> Result<Vec<Option<String>>> {
    let malformed = || Error::decode("a row image is no composite text");
    let inner = text.strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    let mut chars = inner.ok_or_else(malformed)?.chars().peekable();
    let mut fields = Vec::new();
    loop {
        // Nothing at all is NULL; an empty text stands in quotes.
        let mut field = String::new();
        let mut null = true;
        let mut quoted = false;
        let ended = loop {
            let Some(c) = chars.next() else { break true };
            match c {
                ',' if !quoted => break false,
                '"' if quoted && chars.peek() == Some(&'"') => {
                    chars.next();
                    field.push('"');
                }
                '"' => {
                    quoted = !quoted;
                    null = false;
                }
                '\\' => {
                    field.push(chars.next().ok_or_else(malformed)?);
                    null = false;
                }
                c => {
                    field.push(c);
                    null = false;
                }
            }
        };
        if quoted {
            return Err(malformed());
        }
        fields.push((!null).then_some(field));
        if ended {
            return Ok(fields);
        }
    }
}

/// The value that a column of `kind` prints as `text`.
fn value(text: String, kind: TypeKind) -> Result<Value> {
    let wrong = |what: &str| Error::decode(format!("a row image has no {what} where one belongs"));
    Ok(match kind {
        TypeKind::Bool => match text.as_str() {
            "t" => Value::Bool(true),
            "f" => Value::Bool(false),
            _ => return Err(wrong("boolean")),
        },
        TypeKind::Int => Value::Int(text.parse().map_err(|_| wrong("integer"))?),
        TypeKind::Float => Value::Float(text.parse().map_err(|_| wrong("float"))?),
        TypeKind::Bytes => Value::Bytes(bytes(&text).ok_or_else(|| wrong("bytes"))?),
        TypeKind::Uuid => Value::Text(text.to_ascii_lowercase()),
        TypeKind::PaddedText => Value::Text(text.trim_end_matches(' ').to_owned()),
        TypeKind::TimestampTz => Value::Text(rfc3339(text)),
        TypeKind::Decimal | TypeKind::Text => Value::Text(text),
    })
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    if digits.len() % 2 != 0 {
        return None;
    }
    let nibble = |digit: u8| (digit as char).to_digit(16).and_then(|n| u8::try_from(n).ok());
    digits.chunks(2).map(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?)).collect()
}

/// `2024-01-02 03:04:05.6+00` becomes `2024-01-02T03:04:05.6Z`; what is not of that shape (infinity,
/// years before 1 or after 9999) stays as it is.
fn rfc3339(text: String) -> String {
    let plain = text.strip_suffix("+00").filter(|rest| {
        let bytes = rest.as_bytes();
        bytes.len() >= 19
            && bytes.iter().enumerate().all(|(n, byte)| match n {
                4 | 7 => *byte == b'-',
                10 => *byte == b' ',
                13 | 16 => *byte == b':',
                19 => *byte == b'.',
                _ => byte.is_ascii_digit(),
            })
    });
    match plain {
        Some(rest) => format!("{}T{}Z", &rest[..10], &rest[11..]),
        None => text,
    }
}

/// The text that `value` has when it is cast to the column's type; `None` for NULL.
#[must_use]
pub fn text(value: &Value, column: &Column) -> Option<String> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) if column.kind == TypeKind::Bool => value.to_string(),
        Value::Bool(value) => i32::from(*value).to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => float(*value),
        Value::Text(text) => text.clone(),
        Value::Bytes(bytes) => bytes.iter().fold("\\x".to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }),
        Value::Ref(row) => row.key.to_string(),
    })
}

/// The type that a text is cast to before it is assigned to a column of type `sql_type`: without its
/// length, so that the column refuses what is too long; a cast would cut it off in silence.
#[must_use]
pub fn cast(sql_type: &str) -> String {
    let (element, array) = match sql_type.find('[') {
        Some(at) => sql_type.split_at(at),
        None => (sql_type, ""),
    };
    let free = match element.split_once('(').map(|(name, _)| name) {
        Some("character varying") => "character varying",
        Some("character") => "bpchar",
        Some("bit" | "bit varying") => "bit varying",
        _ => element,
    };
    format!("{free}{array}")
}

fn float(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What `record_out` does.
    fn record_out(fields: &[Option<String>]) -> String {
        let list: Vec<String> = fields
            .iter()
            .map(|field| match field {
                None => String::new(),
                Some(text) => {
                    let special =
                        |c: char| matches!(c, '"' | '\\' | '(' | ')' | ',') || c.is_whitespace();
                    if text.is_empty() || text.chars().any(special) {
                        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\"\""))
                    } else {
                        text.clone()
                    }
                }
            })
            .collect();
        format!("({})", list.join(","))
    }

    proptest! {
        #[test]
        fn composite_text_is_read_as_postgresql_writes_it(
            fields in prop::collection::vec(prop::option::of("[a-z\"\\\\(), \n😀]{0,8}"), 1..6),
        ) {
            prop_assert_eq!(super::fields(&record_out(&fields)).unwrap(), fields);
        }
    }

    #[test]
    fn malformed_images_are_refused() {
        for text in ["", "(", "a,b", "(\"a)", "(a\\)"] {
            assert!(fields(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_become_rfc_3339_where_they_can() {
        for (from, to) in [
            ("2024-01-02 03:04:05+00", "2024-01-02T03:04:05Z"),
            ("2024-01-02 03:04:05.678901+00", "2024-01-02T03:04:05.678901Z"),
            ("infinity", "infinity"),
            ("0044-03-15 00:00:00+00 BC", "0044-03-15 00:00:00+00 BC"),
            ("12024-01-02 03:04:05+00", "12024-01-02 03:04:05+00"),
        ] {
            assert_eq!(rfc3339(from.to_owned()), to);
        }
    }

    #[test]
    fn a_cast_does_not_cut_a_text_off() {
        for (from, to) in [
            ("character varying(38)", "character varying"),
            ("character(3)[]", "bpchar[]"),
            ("bit(3)", "bit varying"),
            ("numeric(10,2)", "numeric(10,2)"),
            ("timestamp(0) without time zone", "timestamp(0) without time zone"),
            ("\"my type(x)\"", "\"my type(x)\""),
        ] {
            assert_eq!(cast(from), to);
        }
    }

    #[test]
    fn floats_come_back_to_the_bit() {
        for value in [0.0, -0.0, 1.5, 0.1, 1e300, 5e-324, f64::INFINITY, f64::NEG_INFINITY] {
            let back: f64 = float(value).parse().unwrap();
            assert_eq!(back.to_bits(), value.to_bits());
        }
        assert!(float(f64::NAN).parse::<f64>().unwrap().is_nan());
    }
}
