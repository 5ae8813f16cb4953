//! What is encoded comes back, the same bytes each time, and its signature outlives what rules do.

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use proptest::prelude::*;
use serde_bytes::ByteBuf;
use uuid::Uuid;

use super::*;
use crate::id::RecordId;
use crate::record::batch::{self, Tree};
use crate::record::header::{self, Header, MessageKind, Opened};
use crate::record::messages::{
    AckGroup, AckReason, AckState, Acks, Group, GroupRecord, Hello, Join, KnownOrigin, Load,
    LoadRow, Records, Welcome,
};
use crate::record::payload;

proptest! {
    #[test]
    fn a_record_comes_back(body in body()) {
        let sealed = payload::encode(&body).unwrap();
        let decoded = payload::decode(&sealed.payload).unwrap();
        prop_assert_eq!(&decoded.body, &body);
        prop_assert_eq!(decoded.leaf, sealed.leaf);
        prop_assert_eq!(decoded.absent, 0);
        prop_assert_eq!(&payload::encode(&decoded.body).unwrap(), &sealed);
        prop_assert_eq!(payload::decode_parts([&sealed.payload[..]].into_iter()).unwrap(), body);
    }

    #[test]
    fn floats_come_back_bit_for_bit(bits in any::<u64>()) {
        for bits in [bits, f64::NAN.to_bits(), (-0.0_f64).to_bits(), 0xfff8_0000_0000_0001] {
            let body = one(vec![("a", Value::Float(f64::from_bits(bits)))]);
            let decoded = payload::decode(&payload::encode(&body).unwrap().payload).unwrap();
            match decoded.body.items[0].values[0].1 {
                Value::Float(back) => prop_assert_eq!(back.to_bits(), bits),
                ref other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn leaving_items_out_keeps_the_leaf_and_the_other_items(body in body(), mask in 0_u8..8) {
        let keep = |class: &str| {
            CLASSES.iter().position(|known| *known == class).is_some_and(|n| mask & (1 << n) != 0)
        };
        let sealed = payload::encode(&body).unwrap();
        let filtered = payload::filter(&sealed.payload, keep).unwrap();
        let decoded = payload::decode(&filtered.payload).unwrap();
        prop_assert_eq!(decoded.leaf, sealed.leaf);
        prop_assert_eq!(decoded.absent, filtered.dropped);
        prop_assert_eq!(decoded.body.items.len(), filtered.kept);
        let left: Vec<_> =
            body.items.iter().filter(|item| keep(&item.row.class)).cloned().collect();
        prop_assert_eq!(decoded.body.items, left);
        // Further on the way another server leaves out the rest.
        let nothing = payload::filter(&filtered.payload, |_| false).unwrap();
        prop_assert_eq!(nothing.dropped, filtered.kept);
        prop_assert_eq!(payload::decode(&nothing.payload).unwrap().leaf, sealed.leaf);
        // Nothing to leave out: the bytes stay.
        prop_assert_eq!(&payload::filter(&sealed.payload, |_| true).unwrap().payload, &sealed.payload);
    }

    #[test]
    fn the_classes_are_named(body in body()) {
        let sealed = payload::encode(&body).unwrap();
        let classes = payload::classes(&sealed.payload).unwrap();
        for item in &body.items {
            prop_assert!(classes.contains(&&*item.row.class));
        }
    }

    #[test]
    fn any_part_of_a_batch_is_verified_wherever_it_comes(
        bodies in prop::collection::vec(body(), 1..9),
        mask in any::<u16>(),
    ) {
        let key = SigningKey::from_bytes(&[3; 32]);
        let origin = actor(1);
        let sealed: Vec<_> = bodies.iter().map(|body| payload::encode(body).unwrap()).collect();
        let leaves: Vec<_> = sealed.iter().map(|sealed| sealed.leaf).collect();
        let tree = Tree::from_leaves(&leaves).unwrap();
        let signature = batch::sign(&key, origin, tree.count(), &tree.root().unwrap());
        let present: Vec<u32> = (0..tree.count()).filter(|n| mask & (1 << n) != 0).collect();
        let message = Records {
            groups: vec![Group {
                origin,
                count: tree.count(),
                signature,
                absent: tree.absent(&present).unwrap(),
                records: present
                    .iter()
                    .map(|n| GroupRecord {
                        uuid: RecordId(Uuid::from_u128(u128::from(*n))),
                        index: *n,
                        payload: payload::filter(&sealed[*n as usize].payload, |class| class.len() > 7)
                            .unwrap()
                            .payload
                            .into(),
                    })
                    .collect(),
            }],
        };
        let back = Records::decode(&message.encode().unwrap()).unwrap();
        prop_assert_eq!(&back, &message);
        let group = &back.groups[0];
        let leaves: Vec<_> = group
            .records
            .iter()
            .map(|record| (record.index, payload::decode(&record.payload).unwrap().leaf))
            .collect();
        let check = |count, leaves: &[_], absent: &[_]| {
            let root = Tree::from_parts(count, leaves, absent)?.root()?;
            batch::verify(&key.verifying_key(), origin, count, &root, &group.signature)
        };
        check(group.count, &leaves, &group.absent).unwrap();
        prop_assert!(check(group.count + 1, &leaves, &group.absent).is_err());
        if let [first, ..] = &leaves[..] {
            let mut other = leaves.clone();
            other[0] = (first.0, [9; 32]);
            prop_assert!(check(group.count, &other, &group.absent).is_err());
            prop_assert!(check(group.count, &leaves[1..], &group.absent).is_err());
        }
        if !group.absent.is_empty() {
            let mut other = group.absent.clone();
            other[0][5] ^= 1;
            prop_assert!(check(group.count, &leaves, &other).is_err());
        }
    }

    #[test]
    fn a_load_comes_back(rows in prop::collection::vec((row_id(), row_state(), columns(value())), 0..6)) {
        let mut load = Load { last: true, id: Uuid::from_u128(5), sequence: 9, rows: Vec::new() };
        for (row, state, values) in rows {
            load.rows.push(LoadRow { class: row.class, key: row.key, state, values });
        }
        let bytes = load.encode().unwrap();
        prop_assert_eq!(&Load::decode(&bytes).unwrap(), &load);
        prop_assert_eq!(load.encode().unwrap(), bytes);
    }

    #[test]
    fn any_body_is_sealed_and_opened(body in prop::collection::vec(0_u8..4, 0..4_000), level in 0..6) {
        let key = SigningKey::from_bytes(&[1; 32]);
        let header = Header {
            kind: MessageKind::Records,
            sender: actor(1).server,
            receiver: actor(2).server,
            epoch: u64::MAX,
            number: 1,
        };
        let sealed = header::seal(&header, &body, &key, level).unwrap();
        let opened = Opened::parse(sealed.bytes).unwrap();
        opened.verify(&key.verifying_key()).unwrap();
        prop_assert_eq!(opened.header, header);
        prop_assert_eq!(opened.body().unwrap(), body);
    }
}

#[test]
fn a_row_that_fits_no_message_travels_in_pieces() {
    let big = Value::Bytes((0..1_700_000_u32).map(|n| (n % 251) as u8).collect());
    let mut first = one(vec![("a", Value::Int(1)), ("b", big)]);
    first.items.insert(0, one(vec![("a", Value::Null)]).items[0].clone());
    first.items.push(one(vec![("b", Value::Null)]).items[0].clone());
    let second = one(vec![("a", Value::Int(2))]);
    let parts = payload::encode_parts(&[first.clone(), second.clone()]).unwrap();
    assert_eq!(parts.len(), 1 + 4 + 1 + 1);
    for (n, part) in parts.iter().enumerate() {
        assert!(part.payload.len() < 600 << 10);
        let decoded = payload::decode(&part.payload).unwrap();
        assert_eq!(decoded.leaf, part.leaf);
        assert_eq!(decoded.body.part, (u32::try_from(n).unwrap(), 7));
    }
    let whole = payload::decode_parts(parts.iter().map(|part| &part.payload[..])).unwrap();
    assert_eq!(whole.items, [first.items.clone(), second.items.clone()].concat());
    assert_eq!(whole.part, (0, 1));
    // A class that is left out takes its pieces along, and the leaves stay.
    let left: Vec<Vec<u8>> = parts
        .iter()
        .map(|part| {
            let filtered = payload::filter(&part.payload, |_| false).unwrap();
            assert_eq!(payload::decode(&filtered.payload).unwrap().leaf, part.leaf);
            filtered.payload
        })
        .collect();
    let whole = payload::decode_parts(left.iter().map(|part| &part[..])).unwrap();
    assert_eq!(whole.items, []);
    // A piece that is missing, twice there, or taken for a whole.
    let with = |order: &[usize]| {
        let parts = order.iter().map(|n| &parts[*n].payload[..]);
        payload::decode_parts(parts).map(|body| body.items.len())
    };
    assert_eq!(with(&[0, 1, 2, 3, 4, 5, 6]).unwrap(), 4);
    for order in [&[0, 1, 2, 3, 5, 6][..], &[0, 1, 3, 2, 4, 5, 6], &[0, 1, 2, 3], &[1], &[]] {
        assert!(with(order).is_err(), "{order:?}");
    }
    assert!(payload::encode(&first).is_err());
}

#[test]
fn a_record_without_items_is_a_record() {
    let body = Body { items: Vec::new(), ..one(vec![]) };
    let parts = payload::encode_parts(std::slice::from_ref(&body)).unwrap();
    assert_eq!(payload::decode(&parts[0].payload).unwrap().body, body);
}

#[test]
fn the_other_messages_come_back() {
    let acks = Acks {
        in_epoch: 1,
        in_number: u64::MAX,
        groups: vec![AckGroup { state: AckState::Failed, records: vec![RecordId(Uuid::nil())] }],
        reasons: vec![AckReason { record: RecordId(Uuid::nil()), message: "no row".into() }],
        gaps: vec![(3, 4)],
        subtree: vec![(Uuid::from_u128(1), 2, 3)],
        rows: vec![("patient".into(), "k".into())],
    };
    assert_eq!(Acks::decode(&acks.encode().unwrap()).unwrap(), acks);
    let origins = vec![KnownOrigin { actor: actor(2), nickname: "b".into(), public_key: [4; 32] }];
    let hello = Hello {
        incarnation: 1,
        session: Uuid::from_u128(2),
        nickname: "Köln".into(),
        public_key: [3; 32],
        clock: 4,
        format: 1,
        merge: ByteBuf::from(vec![1, 2]),
        applied: vec![(Uuid::from_u128(1), 1, 7)],
        origins: origins.clone(),
        skipped: vec![(1, 2)],
        wanted: vec![(Uuid::from_u128(1), 1, 2, 3)],
        ..Hello::default()
    };
    assert_eq!(Hello::decode(&hello.encode().unwrap()).unwrap(), hello);
    let welcome = Welcome { accepted: true, origins, ..Welcome::default() };
    assert_eq!(Welcome::decode(&welcome.encode().unwrap()).unwrap(), welcome);
    let secret = SigningKey::from_bytes(&[8; 32]);
    let (child, parent) = (actor(1).server, actor(2).server);
    let join = Join {
        invite: Uuid::from_u128(6),
        nickname: "c".into(),
        public_key: SigningKey::from_bytes(&[9; 32]).verifying_key().to_bytes(),
        incarnation: 1,
        session: Uuid::from_u128(7),
        format: 1,
        clock: 5,
        proof: [0; 64],
    }
    .proven(&secret, child, parent);
    let back = Join::decode(&join.encode().unwrap()).unwrap();
    assert_eq!(back, join);
    back.verify(&secret.verifying_key(), child, parent).unwrap();
    back.key().unwrap();
    assert!(back.verify(&secret.verifying_key(), parent, child).is_err());
    let stolen = Join { public_key: [1; 32], ..back };
    assert!(stolen.verify(&secret.verifying_key(), child, parent).is_err());
}

/// The bytes of format 1: a change here is a change of the format.
#[test]
fn the_bytes_of_a_record_are_those_of_the_protocol() {
    let mut body = one(vec![("a", Value::Int(-1)), ("b", Value::Text("é".into()))]);
    body.origin = Actor { server: ServerId(Uuid::from_u128(1)), incarnation: 1 };
    body.items[0].seen.touch(Stamp { time: Time(5), actor: body.origin });
    let sealed = payload::encode(&body).unwrap();
    let mut head = vec![0x98, 0xc4, 16];
    head.extend(7_u128.to_be_bytes());
    head.push(1);
    head.push(0xcf);
    head.extend((1_700_000_000_000_u64 << 16).to_be_bytes());
    head.push(0xcf);
    head.extend(1_700_000_000_000_u64.to_be_bytes());
    head.extend([0, 1, 0x91, 0x92, 0xc4, 16]);
    head.extend(1_u128.to_be_bytes());
    head.extend([1, 0x91, 0x92, 0xa7]);
    head.extend(b"patient");
    head.extend([0x92, 0xa1, b'a', 0xa1, b'b']);
    let item = [
        &[0x98, 0, 0xa1, b'k', 1][..],
        &[0x92, 0x92, 0, 0xff, 0x92, 1, 0xa2, 0xc3, 0xa9],
        &[0x91, 0x92, 0, 5, 0x90, 0x90, 0xc0],
    ]
    .concat();
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).unwrap();
    let mut payload = vec![0x92, 0xc4, length(&head)];
    payload.extend(&head);
    payload.extend([0x91, 0x92, 1, 0xc4, length(&item)]);
    payload.extend(&item);
    assert_eq!(sealed.payload, payload);
    let message = Records {
        groups: vec![Group {
            origin: body.origin,
            count: 2,
            signature: [1; 64],
            absent: vec![[2; 32]],
            records: vec![GroupRecord {
                uuid: RecordId(Uuid::from_u128(3)),
                index: 0,
                payload: Bytes::from_static(b"p"),
            }],
        }],
    };
    let mut bytes = vec![0x91, 0x91, 0x96, 0xc4, 16];
    bytes.extend(1_u128.to_be_bytes());
    bytes.extend([1, 2, 0xc4, 64]);
    bytes.extend([1; 64]);
    bytes.extend([0x91, 0xc4, 32]);
    bytes.extend([2; 32]);
    bytes.extend([0x91, 0x93, 0xc4, 16]);
    bytes.extend(3_u128.to_be_bytes());
    bytes.extend([0, 0xc4, 1, b'p']);
    assert_eq!(message.encode().unwrap(), bytes);
}
