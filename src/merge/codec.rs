//! The state of a row as it is stored: a version byte, then a MessagePack array in which actors are
//! small local numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{RowState, Seen, Stamp, Time};
use crate::error::{Error, Result};
use crate::id::Actor;
use crate::record::{RowId, Value};

/// The version that is written. Others are refused.
const VERSION: u8 = 1;

type StoredStamp = (u64, u32);

#[derive(Serialize, Deserialize)]
struct Stored(
    Option<StoredStamp>,
    Vec<(String, u64, u32)>,
    Vec<StoredStamp>,
    Vec<StoredStamp>,
    Option<Vec<(String, Flat)>>,
);

#[derive(Serialize, Deserialize)]
enum Flat {
    N,
    B(bool),
    I(i64),
    F(f64),
    T(String),
    Y(ByteBuf),
    R(String, String),
}

impl RowState {
    /// The state as it is stored.
    ///
    /// # Errors
    /// [`Failed`](crate::Kind::Failed) when an actor has no number.
    pub fn encode(&self, number: impl Fn(Actor) -> Option<u32>) -> Result<Vec<u8>> {
        let number = |actor| number(actor).ok_or_else(|| Error::failed("an actor has no number"));
        let stamp = |stamp: &Stamp| Ok::<_, Error>((stamp.time.0, number(stamp.actor)?));
        let seen = |seen: &Seen| -> Result<Vec<StoredStamp>> {
            seen.0.iter().map(|(actor, time)| Ok((time.0, number(*actor)?))).collect()
        };
        let columns = self
            .columns
            .iter()
            .map(|(name, at)| {
                let (time, actor) = stamp(at)?;
                Ok((name.to_string(), time, actor))
            })
            .collect::<Result<_>>()?;
        let shadow = self.shadow.as_ref().map(|shadow| {
            shadow.iter().map(|(name, value)| (name.to_string(), flat(value))).collect()
        });
        let base = self.base.as_ref().map(stamp).transpose()?;
        let stored = Stored(base, columns, seen(&self.seen)?, seen(&self.erased)?, shadow);
        let mut bytes = vec![VERSION];
        rmp_serde::encode::write(&mut bytes, &stored)
            .map_err(|error| Error::failed("a row state cannot be stored").with_source(error))?;
        Ok(bytes)
    }

    /// The state from its stored form.
    ///
    /// # Errors
    /// [`Decode`](crate::Kind::Decode) for another version, damage, or an unknown actor.
    pub fn decode(bytes: &[u8], actor: impl Fn(u32) -> Option<Actor>) -> Result<Self> {
        let Some((&VERSION, body)) = bytes.split_first() else {
            return Err(Error::decode("a row state is of an unknown version"));
        };
        let Stored(base, columns, seen, erased, shadow) = rmp_serde::from_slice(body)
            .map_err(|error| Error::decode("a row state is damaged").with_source(error))?;
        let stamp = |(time, number): StoredStamp| {
            let actor = actor(number).ok_or_else(|| {
                Error::decode(format!("a row state names the unknown actor {number}"))
            })?;
            Ok::<_, Error>(Stamp { time: Time(time), actor })
        };
        let set = |list: Vec<StoredStamp>| -> Result<Seen> {
            let mut seen = Seen::new();
            for one in list {
                seen.touch(stamp(one)?);
            }
            Ok(seen)
        };
        let mut named = BTreeMap::new();
        for (name, time, number) in columns {
            named.insert(Arc::from(name), stamp((time, number))?);
        }
        let shadow = shadow.map(|list| {
            list.into_iter().map(|(name, value)| (Arc::from(name), value_of(value))).collect()
        });
        Ok(Self {
            base: base.map(stamp).transpose()?,
            columns: named,
            seen: set(seen)?,
            erased: set(erased)?,
            shadow,
        })
    }
}

fn flat(value: &Value) -> Flat {
    match value {
        Value::Null => Flat::N,
        Value::Bool(value) => Flat::B(*value),
        Value::Int(value) => Flat::I(*value),
        Value::Float(value) => Flat::F(*value),
        Value::Text(text) => Flat::T(text.clone()),
        Value::Bytes(bytes) => Flat::Y(ByteBuf::from(bytes.clone())),
        Value::Ref(row) => Flat::R(row.class.to_string(), row.key.to_string()),
    }
}

fn value_of(flat: Flat) -> Value {
    match flat {
        Flat::N => Value::Null,
        Flat::B(value) => Value::Bool(value),
        Flat::I(value) => Value::Int(value),
        Flat::F(value) => Value::Float(value),
        Flat::T(text) => Value::Text(text),
        Flat::Y(bytes) => Value::Bytes(bytes.into_vec()),
        Flat::R(class, key) => Value::Ref(RowId { class: class.into(), key: key.into() }),
    }
}
