//! A record, or a part of one, as it is stored and passed on: `[head, [slot, …]]`.
//!
//! An item is encoded once, by its origin, and its bytes never change; one that rules leave out
//! stands as its digest, so that the origin's signature still holds. An item that is too large for
//! one message stands in pieces, each in a part of its own, and is whole again in [`decode_parts`].

use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::item::{ClassIndex, Counts, Names, WireActor, WireClass, Writer, uuid_of};
use super::{Body, Item, Value, decode, limits};
use crate::error::{Error, Result};
use crate::merge::Time;

/// Bytes of an item from which on it travels in pieces, and of a piece.
const PIECE_BYTES: usize = 512 << 10;

/// A slot that holds the digest of what was left out.
const ABSENT: u8 = 0;
/// A slot that holds an item.
const ITEM: u8 = 1;
/// A slot that holds a piece of an item.
const PIECE: u8 = 2;

type Digest = [u8; 32];

/// The kind of a slot that is written, and its bytes.
type Encoded = (u8, Vec<u8>);

/// A payload and its leaf in the batch that is signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealed {
    /// The bytes that are stored and sent.
    pub payload: Vec<u8>,
    /// The digest that the origin signs.
    pub leaf: Digest,
}

/// A payload that was read.
#[derive(Clone, PartialEq, Debug)]
pub struct Decoded {
    /// What its origin committed, without items that were left out on the way, and without those
    /// that are whole only together with other parts.
    pub body: Body,
    /// The digest that the origin signed.
    pub leaf: Digest,
    /// Items, or pieces of items, that were left out.
    pub absent: usize,
}

/// A payload of which items were left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filtered {
    /// The bytes with digests in place of what was left out.
    pub payload: Vec<u8>,
    /// Items, or pieces of items, that are still there.
    pub kept: usize,
    /// Items, or pieces of items, that were left out now.
    pub dropped: usize,
}

/// What a slot is, and its bytes.
#[derive(Serialize, Deserialize)]
struct Slot<'a>(u8, #[serde(borrow)] &'a Bytes);

#[derive(Serialize, Deserialize)]
struct Envelope<'a>(
    #[serde(borrow)] &'a Bytes,
    #[serde(borrow, deserialize_with = "decode::bounded::<_, _, { limits::ITEMS_MAX }>")]
    Vec<Slot<'a>>,
);

#[derive(Serialize, Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    original: &'a Bytes,
    number: u64,
    time: u64,
    committed_at: i64,
    part: u32,
    parts: u32,
    #[serde(borrow, deserialize_with = "decode::bounded::<_, _, { limits::ACTORS_MAX }>")]
    actors: Vec<WireActor<'a>>,
    #[serde(borrow, deserialize_with = "decode::bounded::<_, _, { limits::CLASSES_MAX }>")]
    classes: Vec<WireClass<'a>>,
}

/// Class, which piece it is, of how many, bytes. The class comes first, as in an item.
#[derive(Serialize, Deserialize)]
struct WirePiece<'a>(u32, u32, u32, #[serde(borrow)] &'a Bytes);

/// Encodes one part. The same body gives the same bytes.
///
/// # Errors
/// [`Failed`](crate::Kind::Failed) when a limit of [`limits`] is broken, or an item is too large
/// for one message: [`encode_parts`] cuts it.
pub fn encode(body: &Body) -> Result<Sealed> {
    let (names, slots) = encode_slots(body)?;
    if slots.iter().any(|(kind, _)| *kind == PIECE) {
        return Err(Error::failed("a row is too large for one message: encode it in parts"));
    }
    seal(body, body.part, &names, &slots)
}

/// Encodes a whole record from its items, already cut into bodies that fit a message each. A body
/// with an item that fits none becomes several parts; all are numbered anew. The same bodies give
/// the same bytes.
///
/// # Errors
/// [`Failed`](crate::Kind::Failed) when a limit of [`limits`] is broken.
pub fn encode_parts(bodies: &[Body]) -> Result<Vec<Sealed>> {
    let mut parts = Vec::with_capacity(bodies.len());
    for body in bodies {
        let (names, slots) = encode_slots(body)?;
        for slots in cut(slots) {
            parts.push((body, names.clone(), slots));
        }
    }
    let count = u32::try_from(parts.len())
        .map_err(|_| Error::failed("a transaction has too many parts"))?;
    let sealed = parts.iter().zip(0..);
    sealed.map(|((body, names, slots), part)| seal(body, (part, count), names, slots)).collect()
}

/// Gives each piece a part of its own; what is between pieces stays together.
fn cut(slots: Vec<Encoded>) -> Vec<Vec<Encoded>> {
    let mut parts: Vec<Vec<Encoded>> = Vec::new();
    for slot in slots {
        match parts.last_mut() {
            Some(part) if slot.0 == ITEM && part.last().is_some_and(|last| last.0 == ITEM) => {
                part.push(slot);
            }
            _ => parts.push(vec![slot]),
        }
    }
    if parts.is_empty() {
        parts.push(Vec::new());
    }
    parts
}

fn encode_slots(body: &Body) -> Result<(Names, Vec<Encoded>)> {
    if body.items.len() > limits::ITEMS_MAX {
        return Err(Error::failed("a record has too many items: it has to be cut into parts"));
    }
    let mut writer = Writer::default();
    let mut counts = Counts::new();
    // The origin is the first of the actors.
    writer.actor(body.origin);
    let mut slots = Vec::with_capacity(body.items.len());
    for item in &body.items {
        let (class, bytes) = writer.item(item, &mut counts)?;
        if bytes.len() <= PIECE_BYTES {
            slots.push((ITEM, bytes));
            continue;
        }
        if bytes.len() > limits::ITEM_BYTES_MAX {
            return Err(Error::failed(format!(
                "a row of `{}` is too large to travel: {} bytes",
                item.row.class,
                bytes.len()
            )));
        }
        let of = u32::try_from(bytes.len().div_ceil(PIECE_BYTES)).unwrap_or(u32::MAX);
        for (piece, n) in bytes.chunks(PIECE_BYTES).zip(0..) {
            slots.push((PIECE, pack(&WirePiece(class, n, of, Bytes::new(piece)))?));
        }
    }
    Ok((writer.into_names()?, slots))
}

fn seal(body: &Body, part: (u32, u32), names: &Names, slots: &[Encoded]) -> Result<Sealed> {
    let head = pack(&Head {
        original: Bytes::new(body.original_uuid.as_bytes()),
        number: body.number,
        time: body.time.0,
        committed_at: body.committed_at,
        part: part.0,
        parts: part.1,
        actors: names.wire_actors(),
        classes: names.wire_classes(),
    })?;
    let leaf = leaf(&head, slots.iter().map(|(kind, bytes)| digest_of(*kind, bytes)));
    let slots = slots.iter().map(|(kind, bytes)| Slot(*kind, Bytes::new(bytes))).collect();
    let payload = pack(&Envelope(Bytes::new(&head), slots))?;
    if head.len() > limits::HEAD_BYTES_MAX || payload.len() > limits::PAYLOAD_BYTES_MAX {
        return Err(Error::failed(format!("a part of {} bytes is too large", payload.len())));
    }
    Ok(Sealed { payload, leaf })
}

/// About how many bytes an item takes.
#[must_use]
pub fn size_hint(item: &Item) -> usize {
    let value = |value: &Value| match value {
        Value::Text(text) => text.len() + 6,
        Value::Bytes(bytes) => bytes.len() + 6,
        Value::Ref(row) => row.key.len() + 8,
        _ => 10,
    };
    let values: usize = item.values.iter().map(|(_, one)| value(one)).sum();
    let stamps = item.seen.0.len() + item.erased.0.len() + item.stamps.len();
    values + item.row.key.len() + 16 + 12 * stamps
}

/// A payload of which the head was read.
struct Part<'a> {
    /// Without items.
    body: Body,
    names: Names,
    slots: Vec<Slot<'a>>,
    leaf: Digest,
    absent: usize,
}

impl<'a> Part<'a> {
    fn read(payload: &'a [u8]) -> Result<Self> {
        let Envelope(head_bytes, slots) = open(payload)?;
        let head: Head<'_> = decode::exact(head_bytes)?;
        let names = Names::read(&head.actors, &head.classes)?;
        let origin = names.actors.first();
        let origin = *origin.ok_or_else(|| Error::decode("a record has no origin"))?;
        let body = Body {
            original_uuid: uuid_of(head.original)?,
            origin,
            number: head.number,
            time: Time(head.time),
            committed_at: head.committed_at,
            part: (head.part, head.parts),
            items: Vec::new(),
        };
        if body.part.0 >= body.part.1 {
            return Err(Error::decode("a record is part of nothing"));
        }
        let mut digests = Vec::with_capacity(slots.len());
        for Slot(kind, bytes) in &slots {
            digests.push(match *kind {
                ABSENT => {
                    bytes.as_ref().try_into().map_err(|_| Error::decode("a digest has 32 bytes"))?
                }
                ITEM | PIECE => digest_of(*kind, bytes),
                other => {
                    return Err(Error::decode(format!("a slot is of the unknown kind {other}")));
                }
            });
        }
        let leaf = leaf(head_bytes, digests.into_iter());
        let absent = slots.iter().filter(|Slot(kind, _)| *kind == ABSENT).count();
        Ok(Self { body, names, slots, leaf, absent })
    }
}

/// Reads a payload.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) for bytes that are none, or break a limit.
pub fn decode(payload: &[u8]) -> Result<Decoded> {
    let Part { mut body, names, slots, leaf, absent } = Part::read(payload)?;
    let mut counts = Counts::new();
    for Slot(kind, bytes) in &slots {
        match *kind {
            ITEM => body.items.push(names.item(bytes, &mut counts)?),
            PIECE if body.part.1 == 1 => return Err(Error::decode("an item is not whole")),
            _ => {}
        }
    }
    Ok(Decoded { body, leaf, absent })
}

/// Reads all parts of a record, in their order, as one.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) as for [`decode`], or when they do not belong together, or are
/// not all there.
pub fn decode_parts<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Result<Body> {
    let mut whole: Option<Body> = None;
    let mut count = 0;
    let mut pieces = Pieces::default();
    for payload in parts {
        let Part { body, names, slots, .. } = Part::read(payload)?;
        if body.part.0 != count {
            return Err(Error::decode("a part of a record is missing"));
        }
        count += 1;
        let whole = whole.get_or_insert_with(|| body.clone());
        if (whole.original_uuid, whole.origin, whole.number, whole.time, whole.part.1)
            != (body.original_uuid, body.origin, body.number, body.time, body.part.1)
        {
            return Err(Error::decode("parts of different records stand together"));
        }
        let mut counts = Counts::new();
        for Slot(kind, bytes) in &slots {
            match *kind {
                PIECE => whole.items.extend(pieces.add(&names, bytes, &mut counts)?),
                other => {
                    pieces.expect_none()?;
                    if other == ITEM {
                        whole.items.push(names.item(bytes, &mut counts)?);
                    }
                }
            }
        }
    }
    pieces.expect_none()?;
    let mut whole = whole.ok_or_else(|| Error::decode("a record has no parts"))?;
    if whole.part.1 != count {
        return Err(Error::decode("a part of a record is missing"));
    }
    whole.part = (0, 1);
    Ok(whole)
}

/// The pieces of an item so far.
#[derive(Default)]
struct Pieces {
    next: u32,
    bytes: Vec<u8>,
}

impl Pieces {
    /// Adds a piece; yields the item with its last one. All parts that hold pieces of an item have
    /// the same tables, so those of the last part serve.
    fn add(&mut self, names: &Names, piece: &[u8], counts: &mut Counts) -> Result<Option<Item>> {
        let WirePiece(class, n, of, bytes) = decode::exact(piece)?;
        let size = self.bytes.len() + bytes.len();
        if n != self.next || n >= of || size > limits::ITEM_BYTES_MAX {
            return Err(Error::decode("an item is not whole"));
        }
        self.bytes.extend_from_slice(bytes);
        self.next += 1;
        if self.next < of {
            return Ok(None);
        }
        let whole = std::mem::take(self).bytes;
        let item = names.item(&whole, counts)?;
        // Rules go by the class that the pieces say.
        if names.class(class)?.0 != item.row.class {
            return Err(Error::decode("an item is not of the class that its pieces say"));
        }
        Ok(Some(item))
    }

    fn expect_none(&self) -> Result<()> {
        if self.next == 0 { Ok(()) } else { Err(Error::decode("an item is not whole")) }
    }
}

/// The names of a payload's classes, cheaply. A class of which every item was left out, or that is
/// only referred to, counts as well.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) for bytes that are none, or break a limit.
pub fn classes(payload: &[u8]) -> Result<Vec<&str>> {
    let Envelope(head, _) = open(payload)?;
    let head: Head<'_> = decode::exact(head)?;
    Ok(head.classes.iter().map(WireClass::name).collect())
}

/// Leaves out the items of classes that are not to be kept; the others stay byte for byte.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) for bytes that are none, or break a limit.
pub fn filter(payload: &[u8], mut keep: impl FnMut(&str) -> bool) -> Result<Filtered> {
    let Envelope(head_bytes, slots) = open(payload)?;
    let head: Head<'_> = decode::exact(head_bytes)?;
    let kept: Vec<bool> = head.classes.iter().map(|class| keep(class.name())).collect();
    // A digest in place of each slot that is left out now.
    let mut digests: Vec<Option<Digest>> = Vec::with_capacity(slots.len());
    for Slot(kind, bytes) in &slots {
        if *kind == ABSENT {
            digests.push(None);
            continue;
        }
        let ClassIndex(class) = decode::exact(bytes)?;
        let stays = kept.get(class as usize);
        let stays = stays.ok_or_else(|| Error::decode("an item names an unknown class"))?;
        digests.push((!stays).then(|| digest_of(*kind, bytes)));
    }
    let (mut kept, mut dropped) = (0, 0);
    let slots = slots
        .iter()
        .zip(&digests)
        .map(|(Slot(kind, bytes), digest)| match digest {
            Some(digest) => {
                dropped += 1;
                Slot(ABSENT, Bytes::new(digest))
            }
            None => {
                kept += usize::from(*kind != ABSENT);
                Slot(*kind, bytes)
            }
        })
        .collect();
    Ok(Filtered { payload: pack(&Envelope(head_bytes, slots))?, kept, dropped })
}

/// The head's bytes and the slots of a payload, within their limits.
fn open(payload: &[u8]) -> Result<Envelope<'_>> {
    if payload.len() > limits::PAYLOAD_BYTES_MAX {
        return Err(Error::decode(format!("a record of {} bytes is too large", payload.len())));
    }
    let envelope: Envelope<'_> = decode::exact(payload)?;
    if envelope.0.len() > limits::HEAD_BYTES_MAX {
        return Err(Error::decode("the head of a record is too large"));
    }
    Ok(envelope)
}

/// The digest of an item or a piece, each with a prefix of its own.
fn digest_of(kind: u8, bytes: &[u8]) -> Digest {
    let prefix = if kind == PIECE { 3 } else { 0 };
    Sha256::new().chain_update([prefix]).chain_update(bytes).finalize().into()
}

fn leaf(head: &[u8], items: impl Iterator<Item = Digest>) -> Digest {
    let mut digest = Sha256::new().chain_update([1]).chain_update(Sha256::digest(head));
    for item in items {
        digest.update(item);
    }
    digest.finalize().into()
}

fn pack<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    rmp_serde::to_vec(value)
        .map_err(|error| Error::failed("a record cannot be encoded").with_source(error))
}
