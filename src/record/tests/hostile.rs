//! Bytes from strangers: cut, changed, too many, too deep, too large. An error each time, never a
//! panic, and never much memory for few bytes.

use proptest::prelude::*;
use serde::Serialize;
use serde_bytes::{ByteBuf, Bytes};

use super::*;
use crate::record::batch::Tree;
use crate::record::messages::{Acks, Hello, Join, Load, LoadRow, Records, Welcome};
use crate::record::{limits, payload};

/// Gives the bytes to everything that reads bytes.
fn read_all(bytes: &[u8]) {
    let _ = payload::decode(bytes);
    let _ = payload::decode_parts([bytes, bytes].into_iter());
    let _ = payload::classes(bytes);
    let _ = payload::filter(bytes, |class| class.len() % 2 == 0);
    let _ = Records::decode(bytes);
    let _ = Acks::decode(bytes);
    let _ = Hello::decode(bytes);
    let _ = Join::decode(bytes);
    let _ = Welcome::decode(bytes);
    let _ = Load::decode(bytes);
    if let Ok(tree) = Tree::from_bytes(bytes) {
        let _ = tree.root();
        let _ = tree.absent(&[0, 1, u32::MAX]);
    }
}

proptest! {
    #[test]
    fn noise_is_refused_quietly(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read_all(&bytes);
    }

    #[test]
    fn a_changed_record_never_has_the_same_leaf(
        body in body(),
        at in any::<prop::sample::Index>(),
        flip in 1_u8..=255,
    ) {
        let sealed = payload::encode(&body).unwrap();
        let mut bytes = sealed.payload.clone();
        bytes[at.index(sealed.payload.len())] ^= flip;
        read_all(&bytes);
        if let Ok(decoded) = payload::decode(&bytes) {
            // Only the framing may be written in another way; what was signed may not change.
            prop_assert!(decoded.leaf != sealed.leaf || decoded.body == body);
        }
    }

    #[test]
    fn changed_messages_are_read_or_refused(
        rows in prop::collection::vec((row_id(), row_state(), columns(value())), 0..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let rows = rows.into_iter().map(|(row, state, values)| {
            LoadRow { class: row.class, key: row.key, state, values }
        });
        let load = Load { rows: rows.collect(), ..Load::default() };
        let hello = Hello { applied: vec![(Uuid::nil(), 1, 2); 3], ..Hello::default() };
        let acks = Acks { rows: vec![("c".into(), "k".into())], ..Acks::default() };
        for bytes in [load.encode(), hello.encode(), acks.encode(), Welcome::default().encode()] {
            let mut bytes = bytes.unwrap();
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            read_all(&bytes);
            read_all(&bytes[..changes[0].0.index(bytes.len())]);
        }
    }

    #[test]
    fn a_cut_or_longer_record_is_refused(body in body(), at in any::<prop::sample::Index>()) {
        let sealed = payload::encode(&body).unwrap();
        prop_assert!(payload::decode(&sealed.payload[..at.index(sealed.payload.len())]).is_err());
        for more in [0xc0, 0, 0x90, 0x91, 0x81, 0xa1, 0xdd, 0xdb, 0xc1, 0xc4, 0xc7, 0xd4, 0xff] {
            let mut bytes = sealed.payload.clone();
            bytes.push(more);
            prop_assert!(payload::decode(&bytes).is_err());
            prop_assert!(payload::filter(&bytes, |_| true).is_err());
        }
    }
}

fn pack(value: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec(value).unwrap()
}

type Column<T> = (u32, T);

/// An item of class 0, key `k`, an insert.
fn item<T: Serialize>(values: &[Column<T>]) -> Vec<u8> {
    let none: [(u32, u64); 0] = [];
    let stamps: [(u32, u32, u64); 0] = [];
    pack(&(0, "k", 1, values, none, none, stamps, None::<(u32, u64)>))
}

/// A payload of these slots, with one class of two columns.
fn payload_of(slots: &[(u8, &[u8])]) -> Vec<u8> {
    let head = pack(&(
        Bytes::new(&[7; 16]),
        1,
        1,
        1,
        0,
        1,
        [(Bytes::new(&[1; 16]), 1)],
        [("c", ["a", "b"])],
    ));
    let slots: Vec<_> = slots.iter().map(|(kind, bytes)| (*kind, Bytes::new(bytes))).collect();
    pack(&(Bytes::new(&head), slots))
}

fn taken(item: &[u8]) -> bool {
    payload::decode(&payload_of(&[(1, item)])).is_ok()
}

#[test]
fn an_item_is_taken_only_in_its_form() {
    let none: [u8; 0] = [];
    assert!(taken(&item(&[(0, 1), (1, 2)])));
    assert!(!taken(&item(&[(0, 1), (0, 2)])), "a column twice");
    assert!(!taken(&item(&[(2, 1)])), "an unknown column");
    assert!(!taken(&item(&[(0, (1, "k"))])), "a reference to an unknown class");
    assert!(taken(&item(&[(0, (0, "k"))])));
    assert!(!taken(&item(&[(0, (0, "k", 1))])), "a reference with more fields");
    assert!(!taken(&item(&[(0, [0; 0])])), "a reference without fields");
    assert!(!taken(&item(&[(0, u64::MAX)])), "no 64-bit signed integer");
    assert!(!taken(&item(&[(0, std::collections::BTreeMap::from([(1, 1)]))])), "a map");
    assert!(!taken(&pack(&(1, "k", 1, none, none, none, none, ()))), "an unknown class");
    assert!(!taken(&pack(&(0, "k", 9, none, none, none, none, ()))), "an unknown operation");
    assert!(!taken(&pack(&(0, "k", 1, none, [(5, 1)], none, none, ()))), "an unknown actor");
    assert!(!taken(&pack(&(0, "k", 1, none, none, none, none))), "a field missing");
    assert!(!taken(&pack(&(0, "k", 1, none, none, none, none, (), ()))), "a field more");
    let extension = [&[0x98, 0, 0xa1, b'k', 1, 0x91, 0x92, 0, 0xd4, 1, 1][..], &[0x90; 3], &[0xc0]];
    assert!(!taken(&extension.concat()), "an extension");
}

#[test]
fn a_slot_is_taken_only_in_its_form() {
    let good = item(&[(0, 1)]);
    let piece = pack(&(0, 0, 1, Bytes::new(&good)));
    assert!(payload::decode(&payload_of(&[(1, &good), (0, &[1; 32])])).is_ok());
    for (kind, bytes) in [(0, &[1; 31][..]), (2, &good), (1, &piece), (2, &piece), (3, &good)] {
        assert!(payload::decode(&payload_of(&[(kind, bytes)])).is_err(), "kind {kind}");
    }
    assert!(payload::filter(&payload_of(&[(1, &pack(&(9, 1)))]), |_| true).is_err());
}

#[test]
fn nesting_is_cut_off() {
    for byte in [0x91, 0x81, 0xdd] {
        for depth in [20, 1_000, 200_000] {
            let mut bytes = vec![byte; depth];
            bytes.push(0xc0);
            read_all(&bytes);
            let item = [&[0x98, 0, 0xa1, b'k', 1, 0x91, 0x92, 0][..], &bytes].concat();
            assert!(!taken(&item));
            assert!(payload::filter(&payload_of(&[(1, &item)]), |_| true).is_err());
            // Behind a good message as well.
            let more = [&payload_of(&[]), &bytes[..]].concat();
            assert!(payload::decode(&more).is_err());
        }
    }
}

#[test]
fn counts_are_not_believed() {
    // An array, a text, and bytes that say that they are 4 GiB long.
    for claim in
        [[0xdd, 255, 255, 255, 255], [0xdb, 255, 255, 255, 255], [0xc6, 255, 255, 255, 255]]
    {
        read_all(&claim);
        read_all(&[&[0x91][..], &claim].concat());
        read_all(&[&[0x92, 0xc4, 0][..], &claim].concat());
        assert!(!taken(&[&[0x98, 0, 0xa1, b'k', 1][..], &claim].concat()));
    }
}

#[test]
fn few_bytes_do_not_unfold_to_much() {
    let slot = ByteBuf::from(item(&[(0, 1)]));
    let many = vec![(1_u8, &slot); limits::ITEMS_MAX + 1];
    let head = payload_of(&[]);
    assert!(payload::decode(&head).is_ok());
    let with = |slots: &[(u8, &[u8])]| payload::decode(&payload_of(slots)).is_err();
    let slots: Vec<(u8, &[u8])> = many.iter().map(|(kind, bytes)| (*kind, &bytes[..])).collect();
    assert!(!with(&slots[1..]));
    assert!(with(&slots), "too many items");
    assert!(!taken(&item(&vec![(0, ()); limits::COLUMNS_MAX + 1])), "too many values");
    // Stamps of one actor, again and again.
    let none: [u8; 0] = [];
    let seen = vec![(0, 1); 60_000];
    let item = pack(&(0, "k", 1, none, &seen, none, none, ()));
    assert!(!with(&[(1, &item[..]); 4]));
    assert!(with(&[(1, &item[..]); 5]), "too many stamps");
    // Classes and columns.
    let classes: Vec<(&str, Vec<&str>)> = vec![("c", vec!["a"; 2_000]); 40];
    let head = pack(&(Bytes::new(&[7; 16]), 1, 1, 1, 0, 1, [(Bytes::new(&[1; 16]), 1)], &classes));
    assert!(payload::decode(&pack(&(Bytes::new(&head), none))).is_err(), "too many names");
    let large = vec![0; limits::PAYLOAD_BYTES_MAX];
    let large = pack(&(Bytes::new(&large), none));
    assert!(payload::decode(&large).is_err());
    // 8 MiB of nothing, as a list of whatever.
    let mut bytes = vec![0xdd, 0, 0x7f, 0xff, 0xf0];
    bytes.resize(limits::DECODED_BYTES_MAX, 0xc0);
    read_all(&bytes);
}

#[test]
fn what_breaks_a_limit_is_not_written() {
    let mut body = one(vec![]);
    body.items = vec![body.items[0].clone(); limits::ITEMS_MAX + 1];
    assert!(payload::encode(&body).is_err());
    let mut body = one(vec![("a", Value::Null)]);
    body.items[0].values = vec![("a".into(), Value::Null); limits::COLUMNS_MAX + 1];
    assert!(payload::encode(&body).is_err());
    let mut body = one(vec![("", Value::Null)]);
    assert!(payload::encode(&body).is_err());
    body.items[0].values[0].0 = "x".repeat(limits::NAME_BYTES_MAX + 1).into();
    assert!(payload::encode(&body).is_err());
    let body = one(vec![("a", Value::Bytes(vec![0; limits::ITEM_BYTES_MAX]))]);
    assert!(payload::encode_parts(&[body]).is_err());
}

#[test]
fn a_body_with_more_or_fewer_fields_is_of_another_format() {
    let acks = pack(&(1, 2, [0; 0], [0; 0], [0; 0], [0; 0], [0; 0]));
    assert!(Acks::decode(&acks).is_ok());
    assert!(Acks::decode(&pack(&(1, 2, [0; 0], [0; 0], [0; 0], [0; 0], [0; 0], 1))).is_err());
    assert!(Acks::decode(&pack(&(1, 2, [0; 0], [0; 0], [0; 0], [0; 0]))).is_err());
    let unknown = [(9, [0; 0])];
    assert!(Acks::decode(&pack(&(1, 2, unknown, [0; 0], [0; 0], [0; 0], [0; 0]))).is_err());
}

#[test]
fn a_stored_tree_that_is_damaged_is_refused() {
    let digest = ByteBuf::from(vec![1; 32]);
    let stored = |count: u32, ranges: &[(u32, u32)]| {
        let nodes: Vec<_> = ranges.iter().map(|(from, to)| (*from, *to, &digest)).collect();
        Tree::from_bytes(&pack(&(count, nodes))).and_then(|tree| tree.root()).is_ok()
    };
    assert!(stored(3, &[(0, 2), (2, 3)]));
    assert!(!stored(3, &[(0, 1), (1, 3)]), "no subtree");
    for (count, ranges) in [
        (0, &[][..]),
        (2, &[(0, 1)]),
        (2, &[(0, 1), (0, 2)]),
        (2, &[(1, 2), (0, 1)]),
        (2, &[(0, 0), (0, 2)]),
        (u32::MAX, &[(0, u32::MAX)]),
    ] {
        assert!(!stored(count, ranges), "{count} {ranges:?}");
    }
}
