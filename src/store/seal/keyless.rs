//! Rows that have no key: a column of it is NULL, or refers to nothing. No other server could tell
//! which row is meant, so such a row is held, whole, in its latest state. Once it has a key it
//! travels as an insert, and the held line goes; so it does when the row goes without ever having
//! had one. A delete of a row that nobody can name any more is held for a person to see.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::coalesce::all_values;
use super::read::Image;
use super::ways::{Place, Way};
use crate::catalog::{Class, Tracked};
use crate::error::Result;
use crate::id::{Actor, RecordId};
use crate::merge::{Seen, Time};
use crate::record::{Body, Item, Op, RowId, Value, payload};
use crate::store::held::{self, HoldKind};
use crate::store::session::{Datum, Session};

/// `sync_held.server_id` of what is this server's own.
const OWN: i64 = 0;

/// Bytes of a local id that are noted as they are; a longer one is noted by its digest.
const LOCAL_BYTES_MAX: usize = 200;

/// The rows that a transaction left without a key, gave one, or deleted without it.
#[derive(Debug, Default)]
pub(super) struct Keyless {
    rows: Vec<(Place, Arc<Tracked>, End)>,
}

/// How the transaction left the row.
#[derive(Debug)]
enum End {
    /// Without a key.
    Keyless(Vec<(Arc<str>, Value)>),
    /// With one, as an insert of its own.
    Keyed,
    /// Deleted; what it was.
    Gone(Vec<(Arc<str>, Value)>),
}

impl Keyless {
    /// Takes note of a row that has no key before or after the transaction.
    pub(super) fn note(&mut self, place: Place, way: &Way) {
        let keyless =
            |image: &Option<Image>| image.as_ref().is_some_and(|image| image.key.is_none());
        if way.follows && keyless(&way.first) && keyless(&way.last) {
            return;
        }
        let end = match (&way.first, &way.last) {
            (_, Some(last)) if last.key.is_none() => End::Keyless(all_values(&way.tracked, last)),
            (first, Some(_)) if keyless(first) => End::Keyed,
            (Some(first), None) if keyless(&way.first) => {
                End::Gone(all_values(&way.tracked, first))
            }
            _ => return,
        };
        self.rows.push((place, Arc::clone(&way.tracked), end));
    }

    /// Writes what is held now, and removes what is held no more.
    pub(super) async fn keep(self, session: &mut Session, own: Actor, now: i64) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let kind = HoldKind::Keyless.as_str();
        let binds = self
            .rows
            .iter()
            .map(|((class, local), ..)| vec![(*class).into(), noted(local).into(), kind.into()])
            .collect();
        let lines = session
            .query_each(
                "SELECT h.id FROM @sync_held_need n JOIN @sync_held h ON h.id = n.held_id \
                 WHERE n.class_id = $1 AND n.key = $2 AND h.kind = $3 ORDER BY h.id",
                binds,
            )
            .await?;
        let mut done = Vec::new();
        for (((_, local), tracked, end), lines) in self.rows.into_iter().zip(lines) {
            let ids: Vec<i64> = lines.iter().map(|line| line.int(0)).collect::<Result<_>>()?;
            let (op, values) = match end {
                End::Keyless(values) => (Op::Insert, values),
                End::Gone(values) if ids.is_empty() => (Op::Delete, values),
                End::Keyed | End::Gone(_) => {
                    done.extend(ids);
                    continue;
                }
            };
            let line = Line { tracked: &tracked, local: &local, op };
            line.write(session, own, values, ids.first().copied(), now).await?;
        }
        held::done(session, &done).await
    }
}

/// A line of `sync_held`.
struct Line<'a> {
    tracked: &'a Tracked,
    local: &'a str,
    op: Op,
}

impl Line<'_> {
    /// Writes the line, or brings it up to date where there is one.
    async fn write(
        &self,
        session: &mut Session,
        own: Actor,
        values: Vec<(Arc<str>, Value)>,
        known: Option<i64>,
        now: i64,
    ) -> Result<()> {
        let payload = self.payload(own, values, now)?;
        let reason = reason(&self.tracked.class, self.op);
        if let Some(id) = known {
            let sql = "UPDATE @sync_held SET payload = $2, reason = $3 WHERE id = $1";
            session.execute(sql, vec![id.into(), payload.into(), reason.into()]).await?;
            return Ok(());
        }
        tracing::warn!(class = %self.tracked.class.name, "a row without a key is held");
        let id = session
            .query_one(
                "INSERT INTO @sync_held (server_id, kind, reason, classes, payload, held_at) \
                 VALUES ($1, $2, $3, $4, $5, $6) RETURNING id",
                vec![
                    OWN.into(),
                    HoldKind::Keyless.as_str().into(),
                    reason.into(),
                    (&*self.tracked.class.name).into(),
                    payload.into(),
                    Datum::time(now),
                ],
            )
            .await?
            .int(0)?;
        session
            .execute(
                "INSERT INTO @sync_held_need (held_id, class_id, key) VALUES ($1, $2, $3)",
                vec![id.into(), self.tracked.id.into(), noted(self.local).into()],
            )
            .await?;
        Ok(())
    }

    fn payload(&self, own: Actor, values: Vec<(Arc<str>, Value)>, now: i64) -> Result<Vec<u8>> {
        let body = Body {
            original_uuid: RecordId::fresh().0,
            origin: own,
            number: 0,
            time: Time(0),
            committed_at: now,
            part: (0, 1),
            items: vec![Item {
                row: RowId { class: Arc::clone(&self.tracked.class.name), key: "".into() },
                op: self.op,
                values,
                seen: Seen::default(),
                erased: Seen::default(),
                stamps: Vec::new(),
                base: None,
            }],
        };
        let parts = payload::encode_parts(&[body])?;
        held::pack(parts.iter().map(|part| part.payload.as_slice()))
    }
}

fn reason(class: &Class, op: Op) -> String {
    let key: Vec<String> =
        class.key.iter().map(|n| format!("`{}`", class.columns[*n].name)).collect();
    let what = if op == Op::Delete { "was deleted, and had" } else { "has" };
    format!(
        "a row of `{}` {what} no key: {} is NULL or refers to nothing",
        class.name,
        key.join(" or ")
    )
}

/// A local id as it is noted.
fn noted(local: &str) -> String {
    if local.len() <= LOCAL_BYTES_MAX {
        return local.to_owned();
    }
    Sha256::digest(local.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
