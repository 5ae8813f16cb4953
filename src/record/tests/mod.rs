//! The formats as a whole: what goes in comes out, and nothing else gets in.

mod hostile;
mod round_trips;

use std::sync::Arc;

use proptest::prelude::*;
use uuid::Uuid;

use super::{Body, Item, Op, RowId, Value};
use crate::id::{Actor, ServerId};
use crate::merge::{RowState, Seen, Stamp, Time};

const CLASSES: [&str; 3] = ["patient", "billing.invoice", "Größe \u{1F9EA}"];
const COLUMNS: [&str; 6] = ["a", "b", "patient_id", "naïve \u{1F600}", "e", "f"];

fn actor(n: u8) -> Actor {
    Actor { server: ServerId(Uuid::from_u128(u128::from(n % 4) << 77)), incarnation: u32::from(n) }
}

fn row_id() -> impl Strategy<Value = RowId> {
    let key = prop_oneof![Just(String::new()), "\\PC{0,12}", Just("[\"a\",\"b\"]".to_owned())];
    (0..CLASSES.len(), key)
        .prop_map(|(class, key)| RowId { class: CLASSES[class].into(), key: key.into() })
}

fn value() -> impl Strategy<Value = Value> {
    let floats = [f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.0, f64::MIN_POSITIVE, f64::MAX];
    let integers = [i64::MIN, i64::MAX, 0, -1, -33, 127, 128, 1 << 32];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        prop::sample::select(integers.to_vec()).prop_map(Value::Int),
        any::<f64>().prop_map(Value::Float),
        prop::sample::select(floats.to_vec()).prop_map(Value::Float),
        any::<String>().prop_map(Value::Text),
        Just(Value::Text("\u{1F9EA}\0\u{10FFFF}".to_owned())),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::Bytes),
        row_id().prop_map(Value::Ref),
    ]
}

fn stamp() -> impl Strategy<Value = Stamp> {
    (any::<u8>(), any::<u64>()).prop_map(|(n, time)| Stamp { time: Time(time), actor: actor(n) })
}

fn seen() -> impl Strategy<Value = Seen> {
    prop::collection::vec(stamp(), 0..4).prop_map(|stamps| {
        let mut seen = Seen::new();
        stamps.into_iter().for_each(|stamp| seen.touch(stamp));
        seen
    })
}

/// Some columns, each once, in any order.
fn columns<T: std::fmt::Debug>(
    of: impl Strategy<Value = T>,
) -> impl Strategy<Value = Vec<(Arc<str>, T)>> {
    let names = prop::sample::subsequence(&COLUMNS[..], 0..=COLUMNS.len()).prop_shuffle();
    (names, prop::collection::vec(of, COLUMNS.len()))
        .prop_map(|(names, of)| names.into_iter().map(Arc::from).zip(of).collect())
}

fn item() -> impl Strategy<Value = Item> {
    let ops = prop::sample::select(&[Op::Insert, Op::Update, Op::Delete, Op::State][..]);
    let stamps = (columns(stamp()), prop::option::of(stamp()));
    (row_id(), ops, columns(value()), seen(), seen(), stamps).prop_map(
        |(row, op, values, seen, erased, (stamps, base))| Item {
            row,
            op,
            values,
            seen,
            erased,
            stamps,
            base,
        },
    )
}

fn body() -> impl Strategy<Value = Body> {
    let numbers = (any::<u64>(), any::<u64>(), any::<i64>());
    (any::<u128>(), any::<u8>(), numbers, prop::collection::vec(item(), 0..8)).prop_map(
        |(original, origin, (number, time, committed_at), items)| Body {
            original_uuid: Uuid::from_u128(original),
            origin: actor(origin),
            number,
            time: Time(time),
            committed_at,
            part: (0, 1),
            items,
        },
    )
}

fn row_state() -> impl Strategy<Value = RowState> {
    (prop::option::of(stamp()), columns(stamp()), seen(), seen()).prop_map(
        |(base, columns, seen, erased)| RowState {
            base,
            columns: columns.into_iter().collect(),
            seen,
            erased,
            shadow: None,
        },
    )
}

/// A body with one item, an insert of these values.
fn one(values: Vec<(&str, Value)>) -> Body {
    Body {
        original_uuid: Uuid::from_u128(7),
        origin: actor(1),
        number: 1,
        time: Time::from_millis(1_700_000_000_000),
        committed_at: 1_700_000_000_000,
        part: (0, 1),
        items: vec![Item {
            row: RowId { class: "patient".into(), key: "k".into() },
            op: Op::Insert,
            values: values.into_iter().map(|(name, value)| (Arc::from(name), value)).collect(),
            seen: Seen::new(),
            erased: Seen::new(),
            stamps: Vec::new(),
            base: None,
        }],
    }
}
