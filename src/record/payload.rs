//! A record as it is stored and passed on: `[head, [item, …]]`.
//!
//! An item is encoded once, by its origin, and its bytes never change; one that rules leave out
//! stands as its digest, so that the origin's signature still holds. A part of a record that travels
//! in parts has the same form.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_bytes::{ByteBuf, Bytes};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Body, Item, Op, RowId, Value, decode, limits};
use crate::error::{Error, Result};
use crate::id::{Actor, ServerId};
use crate::merge::{Seen, Stamp, Time};

/// A payload and its leaf in the batch that is signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealed {
    /// The bytes that are stored and sent.
    pub payload: Vec<u8>,
    /// The digest that the origin signs.
    pub leaf: [u8; 32],
}

/// A payload that was read.
#[derive(Clone, PartialEq, Debug)]
pub struct Decoded {
    /// What its origin committed, without items that were left out on the way.
    pub body: Body,
    /// The digest that the origin signed.
    pub leaf: [u8; 32],
    /// Items that were left out.
    pub absent: usize,
}

/// A payload of which items were left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filtered {
    /// The bytes with digests in place of what was left out.
    pub payload: Vec<u8>,
    /// Items that are still there.
    pub kept: usize,
    /// Items that were left out now.
    pub dropped: usize,
}

/// `[present, bytes]`: an item's bytes, or the digest of one that was left out.
#[derive(Serialize, Deserialize)]
struct Slot<'a>(bool, #[serde(borrow)] &'a Bytes);

#[derive(Serialize, Deserialize)]
struct Envelope<'a>(
    #[serde(borrow)] &'a Bytes,
    #[serde(borrow, deserialize_with = "decode::bounded::<_, _, { limits::ITEMS_MAX }>")]
    Vec<Slot<'a>>,
);

#[derive(Serialize, Deserialize)]
struct Head {
    original: ByteBuf,
    number: u64,
    time: u64,
    committed_at: i64,
    part: u32,
    parts: u32,
    #[serde(deserialize_with = "decode::bounded::<_, _, { limits::ACTORS_MAX }>")]
    actors: Vec<(ByteBuf, u32)>,
    #[serde(deserialize_with = "decode::bounded::<_, _, { limits::CLASSES_MAX }>")]
    classes: Vec<ClassHead>,
}

#[derive(Serialize, Deserialize)]
struct ClassHead(
    String,
    #[serde(deserialize_with = "decode::bounded::<_, _, { limits::COLUMNS_MAX }>")] Vec<String>,
);

/// Only the first field of an item: which class it is of.
#[derive(Serialize, Deserialize)]
struct WireItem<'a>(
    u32,
    #[serde(borrow)] &'a str,
    u8,
    #[serde(borrow, deserialize_with = "decode::bounded::<_, _, { limits::COLUMNS_MAX }>")]
    Vec<(u32, WireValue<'a>)>,
    #[serde(deserialize_with = "decode::bounded::<_, _, { limits::ACTORS_MAX }>")] Vec<(u32, u64)>,
    #[serde(deserialize_with = "decode::bounded::<_, _, { limits::ACTORS_MAX }>")] Vec<(u32, u64)>,
    #[serde(deserialize_with = "decode::bounded::<_, _, { limits::COLUMNS_MAX }>")]
    Vec<(u32, u32, u64)>,
    Option<(u32, u64)>,
);

/// A value on the wire. A reference is `[class index, key]`, everything else itself.
#[derive(Debug)]
enum WireValue<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
    Bytes(&'a [u8]),
    Ref(u32, &'a str),
}

impl Serialize for WireValue<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Bytes(bytes) => serializer.serialize_bytes(bytes),
            Self::Ref(class, key) => (class, key).serialize(serializer),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for WireValue<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = WireValue<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a flat value")
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(WireValue::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
                Ok(WireValue::Bool(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
                Ok(WireValue::Int(value))
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Self::Value, E> {
                i64::try_from(value).map(WireValue::Int).map_err(E::custom)
            }
            fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
                Ok(WireValue::Float(value))
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(WireValue::Text(text))
            }
            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
                Ok(WireValue::Bytes(bytes))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> Result<Self::Value, A::Error> {
                let missing = || serde::de::Error::custom("a reference has two fields");
                let class = seq.next_element()?.ok_or_else(missing)?;
                let key = seq.next_element()?.ok_or_else(missing)?;
                match seq.next_element::<u8>()? {
                    None => Ok(WireValue::Ref(class, key)),
                    Some(_) => Err(missing()),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Gives indexes to names and actors as they are first met.
#[derive(Default)]
struct Indexes {
    actors: Vec<Actor>,
    actor_index: HashMap<Actor, u32>,
    classes: Vec<(Arc<str>, Vec<Arc<str>>)>,
    class_index: HashMap<Arc<str>, u32>,
    column_index: HashMap<(u32, Arc<str>), u32>,
}

impl Indexes {
    fn actor(&mut self, actor: Actor) -> u32 {
        let next = index(self.actors.len());
        *self.actor_index.entry(actor).or_insert_with(|| {
            self.actors.push(actor);
            next
        })
    }

    fn class(&mut self, name: &Arc<str>) -> u32 {
        let next = index(self.classes.len());
        *self.class_index.entry(Arc::clone(name)).or_insert_with(|| {
            self.classes.push((Arc::clone(name), Vec::new()));
            next
        })
    }

    fn column(&mut self, class: u32, name: &Arc<str>) -> u32 {
        let columns = &mut self.classes[class as usize].1;
        let next = index(columns.len());
        *self.column_index.entry((class, Arc::clone(name))).or_insert_with(|| {
            columns.push(Arc::clone(name));
            next
        })
    }
}

fn index(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Encodes what was committed. The same body gives the same bytes.
///
/// # Errors
/// [`Failed`](crate::Kind::Failed) when a limit of [`limits`] is broken: cut it into parts before.
pub fn encode(body: &Body) -> Result<Sealed> {
    if body.items.len() > limits::ITEMS_MAX {
        return Err(Error::failed("a record has too many items: it has to be cut into parts"));
    }
    let mut indexes = Indexes::default();
    indexes.actor(body.origin);
    let mut items = Vec::with_capacity(body.items.len());
    for item in &body.items {
        items.push(encode_item(&mut indexes, item)?);
    }
    let head = pack(&Head {
        original: ByteBuf::from(body.original_uuid.as_bytes().to_vec()),
        number: body.number,
        time: body.time.0,
        committed_at: body.committed_at,
        part: body.part.0,
        parts: body.part.1,
        actors: indexes
            .actors
            .iter()
            .map(|actor| (ByteBuf::from(actor.server.0.as_bytes().to_vec()), actor.incarnation))
            .collect(),
        classes: indexes
            .classes
            .iter()
            .map(|(name, columns)| {
                ClassHead(name.to_string(), columns.iter().map(ToString::to_string).collect())
            })
            .collect(),
    })?;
    let digests: Vec<[u8; 32]> = items.iter().map(|item| item_digest(item)).collect();
    let leaf = leaf(&head, &digests);
    let slots = items.iter().map(|item| Slot(true, Bytes::new(item))).collect();
    let payload = pack(&Envelope(Bytes::new(&head), slots))?;
    if payload.len() > limits::DECODED_BYTES_MAX {
        return Err(Error::failed("a row is too large to travel"));
    }
    Ok(Sealed { payload, leaf })
}

fn encode_item(indexes: &mut Indexes, item: &Item) -> Result<Vec<u8>> {
    let class = indexes.class(&item.row.class);
    let mut values = Vec::with_capacity(item.values.len());
    for (name, value) in &item.values {
        let column = indexes.column(class, name);
        values.push((column, wire_value(indexes, value)));
    }
    let mut seen = |seen: &Seen| -> Vec<(u32, u64)> {
        seen.0.iter().map(|(actor, time)| (indexes.actor(*actor), time.0)).collect()
    };
    let (before, erased) = (seen(&item.seen), seen(&item.erased));
    let stamps = item
        .stamps
        .iter()
        .map(|(name, stamp)| {
            (indexes.column(class, name), indexes.actor(stamp.actor), stamp.time.0)
        })
        .collect();
    let base = item.base.map(|stamp| (indexes.actor(stamp.actor), stamp.time.0));
    pack(&WireItem(class, &item.row.key, op_code(item.op), values, before, erased, stamps, base))
}

fn wire_value<'a>(indexes: &mut Indexes, value: &'a Value) -> WireValue<'a> {
    match value {
        Value::Null => WireValue::Null,
        Value::Bool(value) => WireValue::Bool(*value),
        Value::Int(value) => WireValue::Int(*value),
        Value::Float(value) => WireValue::Float(*value),
        Value::Text(text) => WireValue::Text(text),
        Value::Bytes(bytes) => WireValue::Bytes(bytes),
        Value::Ref(row) => WireValue::Ref(indexes.class(&row.class), &row.key),
    }
}

fn op_code(op: Op) -> u8 {
    match op {
        Op::Insert => 1,
        Op::Update => 2,
        Op::Delete => 3,
        Op::State => 4,
    }
}

fn op_of(code: u8) -> Result<Op> {
    match code {
        1 => Ok(Op::Insert),
        2 => Ok(Op::Update),
        3 => Ok(Op::Delete),
        4 => Ok(Op::State),
        other => Err(Error::decode(format!("an item has the unknown operation {other}"))),
    }
}

/// About how many bytes an item takes.
#[must_use]
pub fn size_hint(item: &Item) -> usize {
    let values: usize = item
        .values
        .iter()
        .map(|(_, value)| match value {
            Value::Text(text) => text.len() + 6,
            Value::Bytes(bytes) => bytes.len() + 6,
            Value::Ref(row) => row.key.len() + 8,
            _ => 10,
        })
        .sum();
    values + item.row.key.len() + 16 + 12 * (item.seen.0.len() + item.erased.0.len())
}

/// Reads a payload.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) for bytes that are none, or break a limit.
pub fn decode(payload: &[u8]) -> Result<Decoded> {
    let Envelope(head_bytes, slots) = unpack(payload)?;
    let head: Head = unpack(head_bytes)?;
    let actors = actors(&head)?;
    let origin = *actors.first().ok_or_else(|| Error::decode("a record has no origin"))?;
    let classes: Vec<(Arc<str>, Vec<Arc<str>>)> = head
        .classes
        .iter()
        .map(|ClassHead(name, columns)| {
            (name.as_str().into(), columns.iter().map(|c| c.as_str().into()).collect())
        })
        .collect();
    let mut items = Vec::with_capacity(slots.len());
    let mut digests = Vec::with_capacity(slots.len());
    let mut absent = 0;
    for Slot(present, bytes) in slots {
        if present {
            digests.push(item_digest(bytes));
            items.push(decode_item(bytes, &actors, &classes)?);
        } else {
            let digest: [u8; 32] =
                bytes.as_ref().try_into().map_err(|_| Error::decode("a digest has 32 bytes"))?;
            digests.push(digest);
            absent += 1;
        }
    }
    let body = Body {
        original_uuid: uuid_of(&head.original)?,
        origin,
        number: head.number,
        time: Time(head.time),
        committed_at: head.committed_at,
        part: (head.part, head.parts),
        items,
    };
    if body.part.1 == 0 || body.part.0 >= body.part.1 {
        return Err(Error::decode("a record is part of nothing"));
    }
    Ok(Decoded { body, leaf: leaf(head_bytes, &digests), absent })
}

/// Reads all parts of a record as one. They must be of one record, and complete.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) as for [`decode`], or when they do not belong together.
pub fn decode_parts<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Result<Body> {
    let mut whole: Option<Body> = None;
    let mut count = 0;
    for payload in parts {
        let body = decode(payload)?.body;
        if body.part.0 != count {
            return Err(Error::decode("a part of a record is missing"));
        }
        count += 1;
        match &mut whole {
            None => whole = Some(body),
            Some(whole) => {
                if (whole.original_uuid, whole.origin, whole.number, whole.time)
                    != (body.original_uuid, body.origin, body.number, body.time)
                {
                    return Err(Error::decode("parts of different records stand together"));
                }
                whole.items.extend(body.items);
            }
        }
    }
    let mut whole = whole.ok_or_else(|| Error::decode("a record has no parts"))?;
    if whole.part.1 != count {
        return Err(Error::decode("a part of a record is missing"));
    }
    whole.part = (0, 1);
    Ok(whole)
}

fn decode_item(
    bytes: &[u8],
    actors: &[Actor],
    classes: &[(Arc<str>, Vec<Arc<str>>)],
) -> Result<Item> {
    let WireItem(class, key, op, values, seen, erased, stamps, base) = unpack(bytes)?;
    if key.len() > limits::NAME_BYTES_MAX {
        return Err(Error::decode("a key is too long"));
    }
    let class_at = |n: u32| {
        classes.get(n as usize).ok_or_else(|| Error::decode("an item names an unknown class"))
    };
    let (name, columns) = class_at(class)?;
    let column = |n: u32| {
        columns
            .get(n as usize)
            .cloned()
            .ok_or_else(|| Error::decode("an item names an unknown column"))
    };
    let actor = |n: u32| {
        actors
            .get(n as usize)
            .copied()
            .ok_or_else(|| Error::decode("an item names an unknown actor"))
    };
    let set = |list: Vec<(u32, u64)>| -> Result<Seen> {
        let mut seen = Seen::new();
        for (n, time) in list {
            seen.touch(Stamp { time: Time(time), actor: actor(n)? });
        }
        Ok(seen)
    };
    let mut read = Vec::with_capacity(values.len());
    for (n, value) in values {
        let value = match value {
            WireValue::Null => Value::Null,
            WireValue::Bool(value) => Value::Bool(value),
            WireValue::Int(value) => Value::Int(value),
            WireValue::Float(value) => Value::Float(value),
            WireValue::Text(text) => Value::Text(text.to_owned()),
            WireValue::Bytes(bytes) => Value::Bytes(bytes.to_vec()),
            WireValue::Ref(class, key) => {
                Value::Ref(RowId { class: Arc::clone(&class_at(class)?.0), key: key.into() })
            }
        };
        read.push((column(n)?, value));
    }
    let stamps = stamps
        .into_iter()
        .map(|(n, who, time)| Ok((column(n)?, Stamp { time: Time(time), actor: actor(who)? })))
        .collect::<Result<_>>()?;
    let base = base
        .map(|(who, time)| Ok::<_, Error>(Stamp { time: Time(time), actor: actor(who)? }))
        .transpose()?;
    Ok(Item {
        row: RowId { class: Arc::clone(name), key: key.into() },
        op: op_of(op)?,
        values: read,
        seen: set(seen)?,
        erased: set(erased)?,
        stamps,
        base,
    })
}

fn actors(head: &Head) -> Result<Vec<Actor>> {
    head.actors
        .iter()
        .map(|(server, incarnation)| {
            Ok(Actor { server: ServerId(uuid_of(server)?), incarnation: *incarnation })
        })
        .collect()
}

/// The names of a payload's classes, cheaply. A class of which every item was left out, or that is
/// only referred to, counts as well.
pub fn classes(payload: &[u8]) -> Result<Vec<String>> {
    let Envelope(head, _) = unpack(payload)?;
    let head: Head = unpack(head)?;
    Ok(head.classes.into_iter().map(|ClassHead(name, _)| name).collect())
}

/// Leaves out the items of classes that are not to be kept; the others stay byte for byte.
pub fn filter(payload: &[u8], keep: impl Fn(&str) -> bool) -> Result<Filtered> {
    let Envelope(head_bytes, slots) = unpack(payload)?;
    let head: Head = unpack(head_bytes)?;
    let (mut kept, mut dropped) = (0, 0);
    let mut digests: Vec<Option<[u8; 32]>> = Vec::with_capacity(slots.len());
    for Slot(present, bytes) in &slots {
        if !present {
            digests.push(None);
            continue;
        }
        let WireItem(class, ..) = unpack(bytes)?;
        let ClassHead(name, _) = head
            .classes
            .get(class as usize)
            .ok_or_else(|| Error::decode("an item names an unknown class"))?;
        if keep(name) {
            kept += 1;
            digests.push(None);
        } else {
            dropped += 1;
            digests.push(Some(item_digest(bytes)));
        }
    }
    let slots = slots
        .iter()
        .zip(&digests)
        .map(|(Slot(present, bytes), digest)| match digest {
            Some(digest) => Slot(false, Bytes::new(digest)),
            None => Slot(*present, bytes),
        })
        .collect();
    Ok(Filtered { payload: pack(&Envelope(head_bytes, slots))?, kept, dropped })
}

fn item_digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update([0]).chain_update(bytes).finalize().into()
}

fn leaf(head: &[u8], items: &[[u8; 32]]) -> [u8; 32] {
    let mut digest = Sha256::new().chain_update([1]).chain_update(Sha256::digest(head));
    for item in items {
        digest.update(item);
    }
    digest.finalize().into()
}

fn uuid_of(bytes: &[u8]) -> Result<Uuid> {
    Uuid::from_slice(bytes).map_err(|_| Error::decode("a uuid has 16 bytes"))
}

fn pack<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    rmp_serde::to_vec(value)
        .map_err(|error| Error::failed("a record cannot be encoded").with_source(error))
}

fn unpack<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T> {
    decode::exact(bytes)
}
