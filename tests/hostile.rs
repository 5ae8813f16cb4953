//! The decoder against bytes from strangers: real messages of every kind, changed at random, by the
//! ten thousand. No panic, and never more memory than a limit.
//!
//! `BRANCHLINE_FUZZ_INPUTS=1000000` runs as many; `BRANCHLINE_FUZZ_SEED` repeats a run. Alone in its
//! binary, so that what the process allocates is what the decoder does.
// clippy.toml allows it in test functions; what they share are no test functions.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;

use branchline::id::{Actor, RecordId, ServerId};
use branchline::merge::{RowState, Seen, Stamp, Time};
use branchline::record::batch::{self, Tree};
use branchline::record::header::{self, Header, MessageKind, Opened};
use branchline::record::messages::{
    AckGroup, AckReason, AckState, Acks, Group, GroupRecord, Hello, Join, KnownOrigin, Load,
    LoadRow, Records, Welcome,
};
use branchline::record::{Body, Item, Op, RowId, Value, payload};
use ed25519_dalek::SigningKey;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;

#[global_allocator]
static ALLOCATED: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

/// What `cargo test` runs.
const INPUTS: u64 = 20_000;

/// Bytes that one input may have allocated at a time. A whole body at its limit takes more
/// (`docs/PROTOCOL.md`, Limits); these inputs are small, and must not unfold to much.
const ALLOCATED_MAX: usize = 16 << 20;

/// Bytes of an input at the most.
const INPUT_BYTES_MAX: usize = 256 << 10;

fn actor(n: u8) -> Actor {
    Actor { server: ServerId(Uuid::from_u128(u128::from(n) << 77 | 5)), incarnation: n.into() }
}

fn stamp(n: u8) -> Stamp {
    Stamp { time: Time(u64::from(n) << 40), actor: actor(n % 5) }
}

fn seen(count: u8) -> Seen {
    let mut seen = Seen::new();
    (0..count).for_each(|n| seen.touch(stamp(n)));
    seen
}

fn values(count: usize, bytes: usize) -> Vec<(Arc<str>, Value)> {
    let reference = RowId { class: "person".into(), key: "[\"a\",\"b\"]".into() };
    let some = [
        Value::Null,
        Value::Bool(true),
        Value::Int(i64::MIN),
        Value::Float(f64::NAN),
        Value::Text("naïve \u{1F9EA}".repeat(bytes / 12 + 1)),
        Value::Bytes(vec![7; bytes]),
        Value::Ref(reference),
    ];
    (0..count).map(|n| (format!("column_{n}").into(), some[n % some.len()].clone())).collect()
}

fn body(items: usize, columns: usize, bytes: usize) -> Body {
    let ops = [Op::Insert, Op::Update, Op::Delete, Op::State];
    let item = |n: usize| {
        let op = ops[n % ops.len()];
        let state = op == Op::State;
        Item {
            row: RowId { class: format!("class_{}", n % 3).into(), key: format!("key {n}").into() },
            op,
            values: if op == Op::Delete { Vec::new() } else { values(columns, bytes) },
            seen: seen((n % 5) as u8),
            erased: seen((n % 2) as u8),
            stamps: if state { vec![("column_0".into(), stamp(3))] } else { Vec::new() },
            base: state.then(|| stamp(1)),
        }
    };
    Body {
        original_uuid: Uuid::from_u128(9),
        origin: actor(1),
        number: 77,
        time: Time::from_millis(1_700_000_000_000),
        committed_at: 1_700_000_000_000,
        part: (0, 1),
        items: (0..items).map(item).collect(),
    }
}

/// A record message, with some records left out.
fn records(bodies: &[Body]) -> Records {
    let key = SigningKey::from_bytes(&[3; 32]);
    let sealed: Vec<_> = bodies.iter().map(|body| payload::encode(body).unwrap()).collect();
    let leaves: Vec<_> = sealed.iter().map(|sealed| sealed.leaf).collect();
    let tree = Tree::from_leaves(&leaves).unwrap();
    let present: Vec<u32> = (0..tree.count()).filter(|n| n % 3 != 1).collect();
    let record = |index: &u32| GroupRecord {
        uuid: RecordId(Uuid::from_u128(u128::from(*index))),
        index: *index,
        payload: sealed[*index as usize].payload.clone().into(),
    };
    Records {
        groups: vec![Group {
            origin: actor(1),
            count: tree.count(),
            signature: batch::sign(&key, actor(1), tree.count(), &tree.root().unwrap()),
            absent: tree.absent(&present).unwrap(),
            records: present.iter().map(record).collect(),
        }],
    }
}

/// Real messages of every kind, each as a body and as it is sent, and the parts of records.
fn corpus() -> Vec<Vec<u8>> {
    let origins =
        vec![KnownOrigin { actor: actor(2), nickname: "ward".into(), public_key: [4; 32] }];
    let bodies = [body(0, 0, 0), body(3, 7, 10), body(40, 12, 30), body(1, 3, 60_000)];
    let records = records(&bodies);
    let acks = Acks {
        in_epoch: 1,
        in_number: 9,
        groups: vec![AckGroup { state: AckState::Failed, records: vec![RecordId(Uuid::nil()); 9] }],
        reasons: vec![AckReason { record: RecordId(Uuid::nil()), message: "no row".into() }],
        gaps: vec![(3, 4), (9, 10)],
        subtree: vec![(Uuid::from_u128(1), 2, 3)],
        rows: vec![("patient".into(), "k".into()); 4],
    };
    let hello = Hello {
        nickname: "Köln".into(),
        applied: vec![(Uuid::from_u128(1), 1, 7); 5],
        origins: origins.clone(),
        skipped: vec![(1, 2)],
        wanted: vec![(Uuid::from_u128(1), 1, 2, 3)],
        gaps: vec![(5, 6)],
        ..Hello::default()
    };
    let row = |n: u8| LoadRow {
        class: format!("class_{}", n % 2).into(),
        key: format!("k{n}").into(),
        state: RowState {
            base: Some(stamp(n)),
            columns: [("column_1".into(), stamp(n + 1))].into_iter().collect(),
            seen: seen(n % 4),
            erased: seen(n % 2),
            shadow: None,
        },
        values: values(4, 20),
    };
    let load = Load { last: true, rows: (0..9).map(row).collect(), ..Load::default() };
    let (invite, child, parent) = (SigningKey::from_bytes(&[8; 32]), actor(1), actor(2));
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
    .proven(&invite, child.server, parent.server);
    let welcome = Welcome { accepted: true, origins, ..Welcome::default() };
    let messages = [
        (MessageKind::Records, records.encode().unwrap()),
        (MessageKind::Acks, acks.encode().unwrap()),
        (MessageKind::Hello, hello.encode().unwrap()),
        (MessageKind::Join, join.encode().unwrap()),
        (MessageKind::Welcome, welcome.encode().unwrap()),
        (MessageKind::Load, load.encode().unwrap()),
    ];
    let mut corpus = Vec::new();
    for (kind, bytes) in messages {
        for level in [0, 3] {
            let header = Header {
                kind,
                sender: actor(1).server,
                receiver: actor(2).server,
                epoch: 3,
                number: 4,
            };
            let key = SigningKey::from_bytes(&[1; 32]);
            corpus.push(header::seal(&header, &bytes, &key, level).unwrap().bytes.to_vec());
        }
        corpus.push(bytes);
    }
    corpus.extend(bodies.iter().map(|body| payload::encode(body).unwrap().payload));
    let leaves: Vec<[u8; 32]> = (0..9).map(|n| [n; 32]).collect();
    corpus.push(Tree::from_leaves(&leaves).unwrap().to_bytes());
    corpus
}

/// Markers of MessagePack that say much, and edges of numbers.
const WORDS: &[&[u8]] = &[
    &[0xdd, 0xff, 0xff, 0xff, 0xff],
    &[0xdc, 0xff, 0xff],
    &[0xc6, 0xff, 0xff, 0xff, 0xff],
    &[0xdb, 0x7f, 0xff, 0xff, 0xff],
    &[0xdf, 0x00, 0xff, 0xff, 0xff],
    &[0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91, 0x91],
    &[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0],
    &[0x28, 0xb5, 0x2f, 0xfd],
    &[0xc0],
    &[0xc1],
    &[0x00],
    &[0xff],
];

/// Changes a message in one to eight places.
fn changed(rng: &mut StdRng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[rng.gen_range(0..corpus.len())].clone();
    for _ in 0..rng.gen_range(1..=8) {
        let at = rng.gen_range(0..=bytes.len());
        match rng.gen_range(0..9) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << rng.gen_range(0..8),
            2 if at < bytes.len() => bytes[at] = rng.r#gen(),
            3 => bytes.truncate(at),
            4 => {
                let word = WORDS[rng.gen_range(0..WORDS.len())];
                bytes.splice(at..at, word.iter().copied());
            }
            5 => {
                let word = WORDS[rng.gen_range(0..WORDS.len())];
                let end = (at + word.len()).min(bytes.len());
                bytes.splice(at..end, word.iter().copied());
            }
            6 => {
                let other = &corpus[rng.gen_range(0..corpus.len())];
                let from = rng.gen_range(0..=other.len());
                let to = rng.gen_range(from..=other.len().min(from + 4_096));
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            7 => {
                let end = rng.gen_range(at..=bytes.len().min(at + 64));
                bytes.drain(at..end);
            }
            _ => {
                let end = rng.gen_range(at..=bytes.len().min(at + 512));
                let again: Vec<u8> = bytes[at..end].repeat(rng.gen_range(1..5));
                bytes.splice(at..at, again);
            }
        }
        bytes.truncate(INPUT_BYTES_MAX);
    }
    bytes
}

/// Gives bytes to everything that reads bytes; how many of the readers take them.
fn read_all(bytes: &[u8]) -> u64 {
    let mut taken = 0;
    let mut took = |yes: bool| taken += u64::from(yes);
    if let Ok(opened) = Opened::parse(bytes.to_vec().into()) {
        let key = SigningKey::from_bytes(&[1; 32]).verifying_key();
        let _ = opened.verify(&key);
        // Behind the signature nobody but a neighbour gets; he is not believed either.
        if let Ok(body) = opened.body() {
            took(read_body(&body));
        }
    }
    took(read_body(bytes));
    taken
}

fn read_body(bytes: &[u8]) -> bool {
    let mut taken = false;
    if let Ok(records) = Records::decode(bytes) {
        taken = true;
        for group in records.groups {
            let mut leaves = Vec::new();
            for record in &group.records {
                if let Ok(decoded) = payload::decode(&record.payload) {
                    leaves.push((record.index, decoded.leaf));
                }
            }
            let tree = Tree::from_parts(group.count, &leaves, &group.absent);
            let _ = tree.and_then(|tree| tree.root());
        }
    }
    taken |= payload::decode(bytes).is_ok();
    taken |= payload::decode_parts([bytes, bytes].into_iter()).is_ok();
    taken |= payload::classes(bytes).is_ok();
    taken |= payload::filter(bytes, |class| class.len() % 2 == 0).is_ok();
    taken |= Acks::decode(bytes).is_ok();
    taken |= Hello::decode(bytes).is_ok();
    taken |= Join::decode(bytes).is_ok();
    taken |= Welcome::decode(bytes).is_ok();
    taken |= Load::decode(bytes).is_ok();
    if let Ok(tree) = Tree::from_bytes(bytes) {
        taken = true;
        let _ = tree.root();
        let _ = tree.absent(&[0, 1, u32::MAX]);
    }
    taken
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn changed_messages_are_read_or_refused_without_a_panic_or_much_memory() {
    let corpus = corpus();
    assert!(corpus.iter().all(|bytes| read_all(bytes) > 0 && !bytes.is_empty()), "all are real");
    let (inputs, seed) =
        (number("BRANCHLINE_FUZZ_INPUTS", INPUTS), number("BRANCHLINE_FUZZ_SEED", 1));
    let before = ALLOCATED.allocated();
    let mut taken = 0;
    for n in 0..inputs {
        // Each input has a seed of its own, which repeats it alone.
        let bytes = changed(&mut StdRng::seed_from_u64(seed << 32 | n), &corpus);
        let read = std::panic::catch_unwind(|| read_all(&bytes));
        let Ok(read) = read else { panic!("input {n} of seed {seed} panics: {bytes:02x?}") };
        taken += u64::from(read > 0);
        let most = ALLOCATED.max_allocated() - before;
        assert!(most < ALLOCATED_MAX, "input {n} of seed {seed} takes {most} bytes");
    }
    let most = (ALLOCATED.max_allocated() - before) >> 10;
    eprintln!("{inputs} inputs from seed {seed}: {taken} taken, {most} KiB at the most");
    // A run in which nothing gets past the first byte proves nothing; neither does one of no changes.
    assert!(taken > inputs / 100 && taken < inputs * 99 / 100, "{taken} of {inputs} are taken");
}
