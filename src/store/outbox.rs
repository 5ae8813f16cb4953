//! The outbox: records that are to be sent, ours and those that are passed on, with one server
//! record for each child, written in the transaction that makes them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use ed25519_dalek::SigningKey;

use super::actors::Actors;
use super::books::Neighbour;
use super::bulk;
use super::session::{Datum, Session};
use crate::error::{Error, Result};
use crate::id::{Actor, RecordId};
use crate::record::batch::{self, Tree};
use crate::record::payload::Sealed;
use crate::rules::Rules;
use crate::state::State;

/// A record to be written.
pub struct NewRecord {
    /// Its name on the hops from here.
    pub uuid: RecordId,
    /// The record that first caused it, anywhere in the tree.
    pub original: RecordId,
    /// When it was committed, in milliseconds since 1970.
    pub timestamp: i64,
    /// The classes of its items.
    pub classes: BTreeSet<Arc<str>>,
    /// Who committed it.
    pub origin: Actor,
    /// The origin's running number.
    pub number: u64,
    /// Its payload, in parts.
    pub parts: Vec<Sealed>,
    /// The neighbour it came from; `None` for our own.
    pub source: Option<i64>,
}

/// Where the parts of a record stand in the batches that their origin signed.
pub type Places = Vec<(i64, u32)>;

/// Writes records that were sealed here, under one signature.
pub async fn write_sealed(
    session: &mut Session,
    actors: &Actors,
    key: &SigningKey,
    neighbours: &[(Neighbour, Rules)],
    records: Vec<NewRecord>,
) -> Result<()> {
    let Some(origin) = records.first().map(|record| record.origin) else { return Ok(()) };
    let leaves: Vec<[u8; 32]> =
        records.iter().flat_map(|record| &record.parts).map(|part| part.leaf).collect();
    let count = u32::try_from(leaves.len())
        .map_err(|_| Error::failed("too many records were sealed at once"))?;
    let tree = Tree::from_leaves(&leaves)?;
    let signature = batch::sign(key, origin, count, &tree.root()?);
    let batch = write_batch(session, actors, origin, count, &signature, &tree).await?;
    let mut index = 0;
    let placed = records
        .into_iter()
        .map(|record| {
            let places = record.parts.iter().map(|_| {
                index += 1;
                (batch, index - 1)
            });
            let places: Places = places.collect();
            (record, places)
        })
        .collect();
    write(session, actors, neighbours, placed).await
}

/// Writes a batch's signature and what is known of its tree; yields its number.
pub async fn write_batch(
    session: &mut Session,
    actors: &Actors,
    origin: Actor,
    count: u32,
    signature: &[u8; 64],
    tree: &Tree,
) -> Result<i64> {
    let row = session
        .query_one(
            "INSERT INTO @sync_batch (origin_id, count, signature, tree) VALUES ($1, $2, $3, $4) \
             RETURNING id",
            vec![
                origin_number(actors, origin)?.into(),
                count.into(),
                signature.to_vec().into(),
                tree.to_bytes().into(),
            ],
        )
        .await?;
    row.int(0)
}

fn origin_number(actors: &Actors, origin: Actor) -> Result<u32> {
    actors
        .number(origin)
        .ok_or_else(|| Error::failed(format!("origin {} has no number", origin.server)))
}

/// Writes records, their further parts, and a server record for each child.
pub async fn write(
    session: &mut Session,
    actors: &Actors,
    neighbours: &[(Neighbour, Rules)],
    records: Vec<(NewRecord, Places)>,
) -> Result<()> {
    let (mut rows, mut further, mut plans) = (Vec::new(), Vec::new(), Vec::new());
    for (record, places) in records {
        let NewRecord { uuid, original, timestamp, classes, origin, number, parts, source } =
            record;
        let parent = neighbours.iter().find(|(neighbour, _)| neighbour.is_parent());
        let state = parent
            .map_or(State::New, |(parent, rules)| first_state(parent, rules, &classes, source));
        let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let mut parts = parts.into_iter().zip(places);
        let Some((first, (batch, index))) = parts.next() else { continue };
        for (n, (part, (batch, index))) in (1_i64..).zip(parts) {
            further.push(vec![
                original.into(),
                n.into(),
                part.payload.into(),
                batch.into(),
                index.into(),
            ]);
        }
        rows.push(vec![
            Datum::from(uuid),
            original.into(),
            Datum::time(timestamp),
            state.as_str().into(),
            classes.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join(",").into(),
            first.payload.into(),
            origin_number(actors, origin)?.into(),
            i64::try_from(number).unwrap_or(i64::MAX).into(),
            batch.into(),
            index.into(),
            count.into(),
            Datum::Int(source),
        ]);
        plans.push((uuid, classes, source));
    }
    bulk::insert(session, "@sync_record", RECORD, rows, "").await?;
    bulk::insert(session, "@sync_part", PART, further, "ON CONFLICT DO NOTHING").await?;
    write_server_records(session, neighbours, plans).await
}

const RECORD: &[bulk::Column<'static>] = &[
    ("uuid", "uuid"),
    ("original_uuid", "uuid"),
    ("timestamp", "timestamptz"),
    ("state", "text"),
    ("contained_classes", "text"),
    ("payload", "bytea"),
    ("origin_id", "int"),
    ("number", "bigint"),
    ("batch_id", "bigint"),
    ("batch_index", "int"),
    ("parts", "int"),
    ("source_server_id", "int"),
];

const PART: &[bulk::Column<'static>] = &[
    ("original_uuid", "uuid"),
    ("part", "int"),
    ("payload", "bytea"),
    ("batch_id", "bigint"),
    ("batch_index", "int"),
];

/// A record's first state for one neighbour: decided by the rules once, here.
fn first_state(
    neighbour: &Neighbour,
    rules: &Rules,
    classes: &BTreeSet<Arc<str>>,
    source: Option<i64>,
) -> State {
    if source == Some(neighbour.id) {
        State::Committed
    } else if classes.iter().any(|class| rules.sends(class)) {
        State::New
    } else {
        State::NotSupposedToSync
    }
}

async fn write_server_records(
    session: &mut Session,
    neighbours: &[(Neighbour, Rules)],
    plans: Vec<(RecordId, BTreeSet<Arc<str>>, Option<i64>)>,
) -> Result<()> {
    let children: Vec<_> =
        neighbours.iter().filter(|(neighbour, _)| neighbour.is_child()).collect();
    if children.is_empty() || plans.is_empty() {
        return Ok(());
    }
    let uuids: Vec<uuid::Uuid> = plans.iter().map(|(uuid, _, _)| uuid.0).collect();
    let sql =
        format!("SELECT uuid, id FROM @sync_record WHERE {}", session.dialect().any("uuid", 1));
    let mut ids = HashMap::new();
    for row in session.query(&sql, vec![uuids.into()]).await? {
        ids.insert(RecordId(row.uuid(0)?), row.int(1)?);
    }
    let mut rows = Vec::with_capacity(plans.len() * children.len());
    for (uuid, classes, source) in &plans {
        let Some(id) = ids.get(uuid) else { continue };
        for (child, rules) in &children {
            let state = first_state(child, rules, classes, *source);
            rows.push(vec![Datum::from(*id), Datum::from(child.id), state.as_str().into()]);
        }
    }
    bulk::insert(
        session,
        "@sync_server_record",
        &[("record_id", "bigint"), ("server_id", "int"), ("state", "text")],
        rows,
        "",
    )
    .await?;
    Ok(())
}
