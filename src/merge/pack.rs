//! The little MessagePack that row states need: unsigned integers, text, values, arrays.
//!
//! Reading never panics, never recurses, and allocates nothing ahead of the bytes that it has: an
//! array's length is checked against what is left.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::record::{RowId, Value};

pub(super) fn uint(out: &mut Vec<u8>, value: u64) {
    match value {
        0..=0x7f => out.push(value as u8),
        0x80..=0xff => out.extend([0xcc, value as u8]),
        0x100..=0xffff => {
            out.push(0xcd);
            out.extend((value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(0xce);
            out.extend((value as u32).to_be_bytes());
        }
        _ => {
            out.push(0xcf);
            out.extend(value.to_be_bytes());
        }
    }
}

pub(super) fn nil(out: &mut Vec<u8>) {
    out.push(0xc0);
}

/// Lengths below 2^32 only; a state with more is not in this world.
fn length(out: &mut Vec<u8>, len: usize, fix: Option<(u8, usize)>, marks: [u8; 3]) {
    match (fix, len) {
        (Some((mark, below)), len) if len < below => out.push(mark | len as u8),
        (_, 0..=0xff) if marks[0] != 0 => out.extend([marks[0], len as u8]),
        (_, 0..=0xffff) => {
            out.push(marks[1]);
            out.extend((len as u16).to_be_bytes());
        }
        _ => {
            out.push(marks[2]);
            out.extend((len as u32).to_be_bytes());
        }
    }
}

pub(super) fn array(out: &mut Vec<u8>, len: usize) {
    length(out, len, Some((0x90, 16)), [0, 0xdc, 0xdd]);
}

pub(super) fn text(out: &mut Vec<u8>, text: &str) {
    length(out, text.len(), Some((0xa0, 32)), [0xd9, 0xda, 0xdb]);
    out.extend(text.as_bytes());
}

pub(super) fn value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => nil(out),
        Value::Bool(value) => out.push(if *value { 0xc3 } else { 0xc2 }),
        Value::Int(value) if *value >= 0 => uint(out, value.unsigned_abs()),
        Value::Int(value) if *value >= -32 => out.push(*value as u8),
        Value::Int(value) => {
            out.push(0xd3);
            out.extend(value.to_be_bytes());
        }
        Value::Float(value) => {
            out.push(0xcb);
            out.extend(value.to_bits().to_be_bytes());
        }
        Value::Text(value) => text(out, value),
        Value::Bytes(value) => {
            length(out, value.len(), None, [0xc4, 0xc5, 0xc6]);
            out.extend(value);
        }
        Value::Ref(row) => {
            array(out, 2);
            text(out, &row.class);
            text(out, &row.key);
        }
    }
}

/// A value in full, as row states and the conflict ledger keep it.
#[must_use]
pub fn value_bytes(of: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    value(&mut bytes, of);
    bytes
}

/// Reads what [`value_bytes`] wrote.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) for anything else.
pub fn value_from_bytes(bytes: &[u8]) -> Result<Value> {
    let mut reader = Reader::new(bytes);
    let value = reader.value()?;
    reader.end()?;
    Ok(value)
}

/// Reads what the functions above wrote.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

fn damaged() -> Error {
    Error::decode("a row state is damaged")
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn end(&self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(damaged()) }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or_else(damaged)?;
        self.rest = rest;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8> {
        let (head, rest) = self.rest.split_first().ok_or_else(damaged)?;
        self.rest = rest;
        Ok(*head)
    }

    fn big_endian(&mut self, len: usize) -> Result<u64> {
        Ok(self.take(len)?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn len(&mut self, bytes: usize) -> Result<usize> {
        usize::try_from(self.big_endian(bytes)?).map_err(|_| damaged())
    }

    /// Whether a nil is next; takes it.
    pub(super) fn nil(&mut self) -> bool {
        match self.rest.strip_prefix(&[0xc0]) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    pub(super) fn uint(&mut self) -> Result<u64> {
        match self.byte()? {
            byte @ 0..=0x7f => Ok(byte.into()),
            0xcc => self.big_endian(1),
            0xcd => self.big_endian(2),
            0xce => self.big_endian(4),
            0xcf => self.big_endian(8),
            _ => Err(damaged()),
        }
    }

    /// The length of an array: at most the bytes that are left, as every entry takes one.
    pub(super) fn array(&mut self) -> Result<usize> {
        let len = match self.byte()? {
            byte @ 0x90..=0x9f => usize::from(byte & 0x0f),
            0xdc => self.len(2)?,
            0xdd => self.len(4)?,
            _ => return Err(damaged()),
        };
        if len > self.rest.len() { Err(damaged()) } else { Ok(len) }
    }

    pub(super) fn text(&mut self) -> Result<&'a str> {
        let mark = self.byte()?;
        self.text_after(mark)
    }

    fn text_after(&mut self, mark: u8) -> Result<&'a str> {
        let len = match mark {
            0xa0..=0xbf => usize::from(mark & 0x1f),
            0xd9 => self.len(1)?,
            0xda => self.len(2)?,
            0xdb => self.len(4)?,
            _ => return Err(damaged()),
        };
        std::str::from_utf8(self.take(len)?).map_err(|_| damaged())
    }

    pub(super) fn value(&mut self) -> Result<Value> {
        let mark = self.byte()?;
        let signed = |value: u64| i64::try_from(value).map(Value::Int).map_err(|_| damaged());
        Ok(match mark {
            0xc0 => Value::Null,
            0xc2 | 0xc3 => Value::Bool(mark == 0xc3),
            0..=0x7f => Value::Int(mark.into()),
            0xe0..=0xff => Value::Int((mark as i8).into()),
            0xcc => signed(self.big_endian(1)?)?,
            0xcd => signed(self.big_endian(2)?)?,
            0xce => signed(self.big_endian(4)?)?,
            0xcf => signed(self.big_endian(8)?)?,
            0xd3 => Value::Int(self.big_endian(8)? as i64),
            0xcb => Value::Float(f64::from_bits(self.big_endian(8)?)),
            0xc4..=0xc6 => {
                let len = self.len(1 << (mark - 0xc4))?;
                Value::Bytes(self.take(len)?.to_vec())
            }
            0x92 => {
                let class = Arc::from(self.text()?);
                Value::Ref(RowId { class, key: Arc::from(self.text()?) })
            }
            mark => Value::Text(self.text_after(mark)?.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(written: &Value) -> Value {
        value_from_bytes(&value_bytes(written)).unwrap()
    }

    #[test]
    fn integers_of_every_width_come_back() {
        for shift in 0..63 {
            for near in [-1_i64, 0, 1] {
                for number in [(1 << shift) + near, -(1 << shift) + near] {
                    assert_eq!(round(&Value::Int(number)), Value::Int(number));
                }
            }
        }
        assert_eq!(round(&Value::Int(i64::MIN)), Value::Int(i64::MIN));
        assert_eq!(round(&Value::Int(i64::MAX)), Value::Int(i64::MAX));
    }

    #[test]
    fn floats_come_back_bit_by_bit() {
        for bits in [0, 1 << 63, 0x7ff8_0000_0000_0001, f64::NEG_INFINITY.to_bits()] {
            let Value::Float(read) = round(&Value::Float(f64::from_bits(bits))) else { panic!() };
            assert_eq!(read.to_bits(), bits);
        }
    }

    #[test]
    fn text_and_bytes_of_every_length_come_back() {
        for len in [0, 1, 31, 32, 255, 256, 65_535, 65_536] {
            let text = Value::Text("é".repeat(len / 2));
            assert_eq!(round(&text), text);
            let bytes = Value::Bytes(vec![7; len]);
            assert_eq!(round(&bytes), bytes);
            let mut out = Vec::new();
            array(&mut out, len);
            out.extend(vec![0; len]);
            assert_eq!(Reader::new(&out).array().unwrap(), len);
        }
        let row = Value::Ref(RowId { class: "person".into(), key: "a".into() });
        assert_eq!(round(&row), row);
    }

    #[test]
    fn an_array_that_claims_more_than_there_is_allocates_nothing() {
        assert!(Reader::new(&[0xdd, 0xff, 0xff, 0xff, 0xff, 0]).array().is_err());
        assert!(Reader::new(&[0xdb, 0xff, 0xff, 0xff, 0xff, 0]).text().is_err());
        assert!(Reader::new(&[0xc6, 0xff, 0xff, 0xff, 0xff, 0]).value().is_err());
    }
}
