//! Items and values on the wire, and the tables that give names and actors small numbers.
//!
//! An item is a MessagePack array: class, key, operation, values, seen, erased, stamps, base. Names
//! and actors stand once in the tables of the record (or load) around it. Nothing nests, so nothing
//! recurses; what is counted in [`Counts`] bounds what a few bytes can unfold to.

use std::collections::HashMap;
use std::sync::Arc;

use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::Bytes;
use uuid::Uuid;

use super::{Item, Op, RowId, Value, decode, limits};
use crate::error::{Error, Result};
use crate::id::{Actor, ServerId};
use crate::merge::{Seen, Stamp, Time};

/// `[uuid, incarnation]`.
#[derive(Serialize, Deserialize)]
pub(super) struct WireActor<'a>(#[serde(borrow)] &'a Bytes, u32);

/// `[name, [column, …]]`.
#[derive(Serialize, Deserialize)]
pub(super) struct WireClass<'a>(
    #[serde(borrow)] &'a str,
    #[serde(borrow, deserialize_with = "decode::bounded::<_, _, { limits::COLUMNS_MAX }>")]
    Vec<&'a str>,
);

impl<'a> WireClass<'a> {
    pub(super) fn name(&self) -> &'a str {
        self.0
    }
}

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
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
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
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values;
        impl<'de> Visitor<'de> for Values {
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
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let missing = || A::Error::custom("a reference has two fields");
                let class = seq.next_element()?.ok_or_else(missing)?;
                let key = seq.next_element()?.ok_or_else(missing)?;
                match seq.next_element::<IgnoredAny>()? {
                    None => Ok(WireValue::Ref(class, key)),
                    Some(_) => Err(missing()),
                }
            }
        }
        deserializer.deserialize_any(Values)
    }
}

/// The first field of an item, or of a piece of one: the index of its class.
pub(super) struct ClassIndex(pub(super) u32);

impl<'de> Deserialize<'de> for ClassIndex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct First;
        impl<'de> Visitor<'de> for First {
            type Value = ClassIndex;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an item")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let class = seq.next_element()?;
                let class = class.ok_or_else(|| A::Error::custom("an item has no class"))?;
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(ClassIndex(class))
            }
        }
        deserializer.deserialize_seq(First)
    }
}

/// What may still be unfolded from one payload or load.
pub(super) struct Counts {
    values: usize,
    stamps: usize,
}

impl Counts {
    pub(super) fn new() -> Self {
        Self { values: limits::VALUES_MAX, stamps: limits::STAMPS_MAX }
    }

    /// Takes that much off; `None` when there is not enough left.
    fn take(&mut self, values: usize, stamps: usize) -> Option<()> {
        self.values = self.values.checked_sub(values)?;
        self.stamps = self.stamps.checked_sub(stamps)?;
        Some(())
    }
}

/// Actors, classes and their columns by their numbers.
#[derive(Clone, Default)]
pub(super) struct Names {
    pub(super) actors: Vec<Actor>,
    pub(super) classes: Vec<(Arc<str>, Vec<Arc<str>>)>,
}

impl Names {
    /// The tables of a message; names are made once here and shared by all items.
    pub(super) fn read(actors: &[WireActor<'_>], classes: &[WireClass<'_>]) -> Result<Self> {
        let count: usize = classes.iter().map(|WireClass(_, columns)| columns.len()).sum();
        if count > limits::NAMES_MAX {
            return Err(Error::decode("a record names too many columns"));
        }
        let name = |text: &str| -> Result<Arc<str>> {
            if text.is_empty() || text.len() > limits::NAME_BYTES_MAX {
                return Err(Error::decode(format!(
                    "a name of {} bytes is not accepted",
                    text.len()
                )));
            }
            Ok(text.into())
        };
        let actors = actors.iter().map(|WireActor(server, incarnation)| {
            let server = ServerId(uuid_of(server)?);
            Ok(Actor { server, incarnation: *incarnation })
        });
        let classes = classes.iter().map(|WireClass(class, columns)| {
            Ok((name(class)?, columns.iter().map(|column| name(column)).collect::<Result<_>>()?))
        });
        Ok(Self {
            actors: actors.collect::<Result<_>>()?,
            classes: classes.collect::<Result<_>>()?,
        })
    }

    pub(super) fn wire_actors(&self) -> Vec<WireActor<'_>> {
        self.actors
            .iter()
            .map(|actor| WireActor(Bytes::new(actor.server.0.as_bytes()), actor.incarnation))
            .collect()
    }

    pub(super) fn wire_classes(&self) -> Vec<WireClass<'_>> {
        self.classes
            .iter()
            .map(|(name, columns)| WireClass(name, columns.iter().map(AsRef::as_ref).collect()))
            .collect()
    }

    pub(super) fn class(&self, index: u32) -> Result<&(Arc<str>, Vec<Arc<str>>)> {
        let class = self.classes.get(index as usize);
        class.ok_or_else(|| Error::decode("an item names an unknown class"))
    }

    fn stamp(&self, (actor, time): (u32, u64)) -> Result<Stamp> {
        let actor = self.actors.get(actor as usize).copied();
        let actor = actor.ok_or_else(|| Error::decode("an item names an unknown actor"))?;
        Ok(Stamp { time: Time(time), actor })
    }

    fn seen(&self, list: Vec<(u32, u64)>) -> Result<Seen> {
        let mut seen = Seen::new();
        for one in list {
            seen.touch(self.stamp(one)?);
        }
        Ok(seen)
    }

    fn value(&self, value: WireValue<'_>) -> Result<Value> {
        Ok(match value {
            WireValue::Null => Value::Null,
            WireValue::Bool(value) => Value::Bool(value),
            WireValue::Int(value) => Value::Int(value),
            WireValue::Float(value) => Value::Float(value),
            WireValue::Text(text) => Value::Text(text.to_owned()),
            WireValue::Bytes(bytes) => Value::Bytes(bytes.to_vec()),
            WireValue::Ref(class, key) => {
                Value::Ref(RowId { class: Arc::clone(&self.class(class)?.0), key: key.into() })
            }
        })
    }

    /// Reads an item.
    pub(super) fn item(&self, bytes: &[u8], counts: &mut Counts) -> Result<Item> {
        let WireItem(class, key, op, values, seen, erased, stamps, base) = decode::exact(bytes)?;
        counts
            .take(values.len(), seen.len() + erased.len() + stamps.len())
            .ok_or_else(|| Error::decode("a record has too many values or stamps"))?;
        once(values.iter().map(|(column, _)| *column))?;
        once(stamps.iter().map(|(column, ..)| *column))?;
        let (name, columns) = self.class(class)?;
        let column = |index: u32| {
            let column = columns.get(index as usize).cloned();
            column.ok_or_else(|| Error::decode("an item names an unknown column"))
        };
        let values = values.into_iter().map(|(at, value)| Ok((column(at)?, self.value(value)?)));
        let stamps = stamps
            .into_iter()
            .map(|(at, actor, time)| Ok((column(at)?, self.stamp((actor, time))?)));
        Ok(Item {
            row: RowId { class: Arc::clone(name), key: key.into() },
            op: op_of(op)?,
            values: values.collect::<Result<_>>()?,
            seen: self.seen(seen)?,
            erased: self.seen(erased)?,
            stamps: stamps.collect::<Result<_>>()?,
            base: base.map(|stamp| self.stamp(stamp)).transpose()?,
        })
    }
}

/// That no column stands twice. They come in rising order as a rule.
fn once(columns: impl Iterator<Item = u32> + Clone) -> Result<()> {
    if columns.clone().is_sorted_by(|a, b| a < b) {
        return Ok(());
    }
    let mut sorted: Vec<u32> = columns.collect();
    sorted.sort_unstable();
    if sorted.is_sorted_by(|a, b| a < b) {
        Ok(())
    } else {
        Err(Error::decode("an item names a column twice"))
    }
}

/// Writes items, and gives numbers to names and actors as they are first met.
#[derive(Default)]
pub(super) struct Writer {
    names: Names,
    actors: HashMap<Actor, u32>,
    classes: HashMap<Arc<str>, u32>,
    columns: HashMap<(u32, Arc<str>), u32>,
}

impl Writer {
    pub(super) fn actor(&mut self, actor: Actor) -> u32 {
        let list = &mut self.names.actors;
        *self.actors.entry(actor).or_insert_with(|| {
            list.push(actor);
            last(list.len())
        })
    }

    fn class(&mut self, name: &Arc<str>) -> u32 {
        let list = &mut self.names.classes;
        *self.classes.entry(Arc::clone(name)).or_insert_with(|| {
            list.push((Arc::clone(name), Vec::new()));
            last(list.len())
        })
    }

    /// The number of a column; where items of a class name the same columns, it is the `guess`.
    fn column(&mut self, class: u32, name: &Arc<str>, guess: usize) -> u32 {
        let Some((_, list)) = self.names.classes.get_mut(class as usize) else { return u32::MAX };
        if list.get(guess).is_some_and(|known| known == name) {
            return last(guess + 1);
        }
        *self.columns.entry((class, Arc::clone(name))).or_insert_with(|| {
            list.push(Arc::clone(name));
            last(list.len())
        })
    }

    fn value<'a>(&mut self, value: &'a Value) -> WireValue<'a> {
        match value {
            Value::Null => WireValue::Null,
            Value::Bool(value) => WireValue::Bool(*value),
            Value::Int(value) => WireValue::Int(*value),
            Value::Float(value) => WireValue::Float(*value),
            Value::Text(text) => WireValue::Text(text),
            Value::Bytes(bytes) => WireValue::Bytes(bytes),
            Value::Ref(row) => WireValue::Ref(self.class(&row.class), &row.key),
        }
    }

    fn seen(&mut self, seen: &Seen) -> Vec<(u32, u64)> {
        seen.0.iter().map(|(actor, time)| (self.actor(*actor), time.0)).collect()
    }

    /// Writes an item: the number of its class, and its bytes.
    pub(super) fn item(&mut self, item: &Item, counts: &mut Counts) -> Result<(u32, Vec<u8>)> {
        counts
            .take(item.values.len(), item.seen.0.len() + item.erased.0.len() + item.stamps.len())
            .filter(|()| item.values.len() <= limits::COLUMNS_MAX)
            .ok_or_else(|| Error::failed("a record has too many values or stamps"))?;
        let class = self.class(&item.row.class);
        let mut values = Vec::with_capacity(item.values.len());
        for (at, (name, value)) in item.values.iter().enumerate() {
            values.push((self.column(class, name, at), self.value(value)));
        }
        let (seen, erased) = (self.seen(&item.seen), self.seen(&item.erased));
        let mut stamps = Vec::with_capacity(item.stamps.len());
        for (at, (name, stamp)) in item.stamps.iter().enumerate() {
            let column = self.column(class, name, at);
            stamps.push((column, self.actor(stamp.actor), stamp.time.0));
        }
        let base = item.base.map(|stamp| (self.actor(stamp.actor), stamp.time.0));
        let code = op_code(item.op);
        let item = WireItem(class, &item.row.key, code, values, seen, erased, stamps, base);
        let bytes = rmp_serde::to_vec(&item)
            .map_err(|error| Error::failed("an item cannot be encoded").with_source(error))?;
        Ok((class, bytes))
    }

    /// The tables, when they keep the limits.
    pub(super) fn into_names(self) -> Result<Names> {
        let Names { actors, classes } = &self.names;
        let columns = || classes.iter().map(|(_, columns)| columns.len());
        let long = |name: &Arc<str>| name.is_empty() || name.len() > limits::NAME_BYTES_MAX;
        if actors.len() > limits::ACTORS_MAX
            || classes.len() > limits::CLASSES_MAX
            || columns().any(|count| count > limits::COLUMNS_MAX)
            || columns().sum::<usize>() > limits::NAMES_MAX
        {
            return Err(Error::failed("a record names too many actors, classes or columns"));
        }
        if classes.iter().any(|(name, columns)| long(name) || columns.iter().any(long)) {
            return Err(Error::failed("the name of a class or column cannot travel"));
        }
        Ok(self.names)
    }
}

/// The index of the last of so many.
fn last(length: usize) -> u32 {
    u32::try_from(length - 1).unwrap_or(u32::MAX)
}

pub(super) fn uuid_of(bytes: &[u8]) -> Result<Uuid> {
    Uuid::from_slice(bytes).map_err(|_| Error::decode("a uuid has 16 bytes"))
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
