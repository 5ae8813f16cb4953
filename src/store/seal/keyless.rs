//! Rows that have no key: a column of it is NULL, or refers to nothing. No other server could tell
//! which row is meant, so such a row is held, whole, in its latest state. Once it has a key it
//! travels as an insert, and the held line goes; so it does when the row goes without ever having
//! had one. A delete of a row that nobody can name any more is held for a person to see.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::coalesce::all_values;
use super::keys::Locals;
use super::read::{Change, Image};
use crate::catalog::{Class, Tracked, TypeKind, key_part};
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

/// The keyless rows that a transaction touched, by class and local id.
#[derive(Debug, Default)]
pub(super) struct Keyless {
    rows: HashMap<(i32, String), Kept>,
}

#[derive(Debug)]
struct Kept {
    tracked: Arc<Tracked>,
    /// It came in this transaction: nobody knows of it.
    born: bool,
    end: End,
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
    /// Takes note of a change before or after which its row has no key.
    pub(super) fn note(&mut self, change: &Change, locals: &Locals) {
        let keyless =
            |image: &Option<Image>| image.as_ref().is_some_and(|image| image.key.is_none());
        if !keyless(&change.old) && !keyless(&change.new) {
            return;
        }
        let tracked = &change.tracked;
        let place = |image: &Image| (tracked.id, local_id(&tracked.class, image));
        let end = match (&change.old, &change.new) {
            (_, Some(new)) if new.key.is_none() => End::Keyless(all_values(tracked, new, locals)),
            (_, Some(_)) => End::Keyed,
            (Some(old), None) => End::Gone(all_values(tracked, old, locals)),
            (None, None) => return,
        };
        let born = change.old.is_none();
        let (before, after) = (change.old.as_ref().map(place), change.new.as_ref().map(place));
        if let (Some(before), Some(after)) = (&before, &after)
            && before != after
        {
            self.set(tracked, before.clone(), born, End::Keyed);
        }
        if let Some(place) = after.or(before) {
            self.set(tracked, place, born, end);
        }
    }

    fn set(&mut self, tracked: &Arc<Tracked>, place: (i32, String), born: bool, end: End) {
        match self.rows.get_mut(&place) {
            Some(kept) => kept.end = end,
            None => {
                drop(self.rows.insert(place, Kept { tracked: Arc::clone(tracked), born, end }));
            }
        }
    }

    /// Writes what is held now, and removes what is held no more.
    pub(super) async fn keep(self, session: &mut Session, own: Actor, now: i64) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut rows: Vec<((i32, String), Kept)> = self.rows.into_iter().collect();
        rows.sort_by(|(a, _), (b, _)| a.cmp(b));
        let binds = rows
            .iter()
            .map(|((class, local), _)| {
                vec![(*class).into(), local.as_str().into(), HoldKind::Keyless.as_str().into()]
            })
            .collect();
        let lines = session
            .query_each(
                "SELECT h.id FROM @sync_held_need n JOIN @sync_held h ON h.id = n.held_id \
                 WHERE n.class_id = $1 AND n.key = $2 AND h.kind = $3 ORDER BY h.id",
                binds,
            )
            .await?;
        let mut done = Vec::new();
        for (((class, local), kept), lines) in rows.into_iter().zip(lines) {
            let ids: Vec<i64> = lines.iter().map(|line| line.int(0)).collect::<Result<_>>()?;
            let Kept { tracked, born, end } = kept;
            let (op, values) = match end {
                End::Keyless(values) => (Op::Insert, values),
                End::Gone(values) if !born && ids.is_empty() => (Op::Delete, values),
                End::Keyed | End::Gone(_) => {
                    done.extend(ids);
                    continue;
                }
            };
            let line = Line { tracked: &tracked, local: &local, class, op };
            line.write(session, own, values, ids.first().copied(), now).await?;
        }
        held::done(session, &done).await
    }
}

/// A line of `sync_held`.
struct Line<'a> {
    tracked: &'a Tracked,
    local: &'a str,
    class: i32,
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
                vec![id.into(), self.class.into(), self.local.into()],
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

/// What tells a row from others here: its local key, or all of it where that may be NULL (such a
/// row is captured as deleted and inserted when it changes).
fn local_id(class: &Class, image: &Image) -> String {
    let whole = class.set || class.local.iter().any(|n| !class.columns[*n].not_null);
    let columns: Vec<usize> =
        if whole { (0..class.columns.len()).collect() } else { class.local.clone() };
    let parts: Vec<Option<String>> = columns
        .into_iter()
        .map(|n| key_part(image.values.get(n)?.as_ref()?, TypeKind::Text))
        .collect();
    let text = match parts.as_slice() {
        [Some(one)] => one.clone(),
        _ => serde_json::to_string(&parts).unwrap_or_default(),
    };
    if text.len() <= LOCAL_BYTES_MAX {
        return text;
    }
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
