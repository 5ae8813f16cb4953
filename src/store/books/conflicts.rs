//! `sync_conflict`: where edits met that did not know of each other, both sides of each, for a
//! person to look at and to turn round.

use std::sync::Arc;

use uuid::Uuid;

use crate::error::{Error, Result};
use crate::merge::{Stamp, value_bytes, value_from_bytes};
use crate::record::{RowId, Value};
use crate::store::actors::Actors;
use crate::store::bulk;
use crate::store::session::{Datum, Row, Session};

/// What met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConflictKind {
    /// Two edits of one column.
    Column,
    /// An edit and a delete.
    EditAndDelete,
    /// A row that was deleted is there, because a row refers to it.
    Revived,
    /// Edits that wait for an operator (policy `hold`).
    Undecided,
}

impl ConflictKind {
    const ALL: [Self; 4] = [Self::Column, Self::EditAndDelete, Self::Revived, Self::Undecided];

    /// The name in `sync_conflict.kind`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Column => "COLUMN",
            Self::EditAndDelete => "EDIT_AND_DELETE",
            Self::Revived => "REVIVED",
            Self::Undecided => "UNDECIDED",
        }
    }
}

/// One side of a conflict.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// Who and when; `None` where it was before tracking, or nobody did it.
    pub stamp: Option<Stamp>,
    /// What was written; `None` where it is no value (a delete), or is not known.
    pub value: Option<Value>,
}

/// A line to be written.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The row.
    pub row: RowId,
    /// The column; `None` where it is about the row.
    pub column: Option<Arc<str>>,
    /// What met.
    pub kind: ConflictKind,
    /// What counts now.
    pub winner: Side,
    /// What does not.
    pub loser: Side,
    /// Why, in words.
    pub note: Option<String>,
    /// The record that brought it up.
    pub original: Option<Uuid>,
}

/// Writes lines.
pub async fn write(
    session: &mut Session,
    actors: &Actors,
    entries: Vec<Entry>,
    now: i64,
) -> Result<()> {
    let name = |stamp: &Stamp| {
        let known = actors.known(stamp.actor).and_then(|known| known.nickname.clone());
        known.unwrap_or_else(|| stamp.actor.server.to_string())
    };
    let time = |stamp: Option<Stamp>| match stamp {
        Some(at) => Datum::time(i64::try_from(at.time.millis()).unwrap_or(i64::MAX)),
        None => Datum::Time(None),
    };
    let side = |side: Side| {
        [
            Datum::from(side.value.as_ref().and_then(text)),
            Datum::from(side.value.as_ref().map(value_bytes)),
            Datum::from(side.stamp.as_ref().map(name)),
            time(side.stamp),
        ]
    };
    let rows = entries.into_iter().map(|entry| {
        let head = [
            Datum::from(&*entry.row.class),
            Datum::from(&*entry.row.key),
            Datum::from(entry.column.map(|column| column.to_string())),
            Datum::from(entry.kind.as_str()),
        ];
        let tail = [Datum::from(entry.note), Datum::from(entry.original), Datum::time(now)];
        head.into_iter()
            .chain(side(entry.winner))
            .chain(side(entry.loser))
            .chain(tail)
            .collect::<Vec<_>>()
    });
    bulk::insert(
        session,
        "@sync_conflict",
        &[
            ("class", "text"),
            ("key", "text"),
            ("column_name", "text"),
            ("kind", "text"),
            ("winner_value", "text"),
            ("winner_data", "bytea"),
            ("winner_server", "text"),
            ("winner_time", "timestamptz"),
            ("loser_value", "text"),
            ("loser_data", "bytea"),
            ("loser_server", "text"),
            ("loser_time", "timestamptz"),
            ("note", "text"),
            ("original_uuid", "uuid"),
            ("detected_at", "timestamptz"),
        ],
        rows.collect(),
        "",
    )
    .await?;
    Ok(())
}

/// A value as a person reads it; `None` for NULL.
fn text(value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Text(text) => text.clone(),
        Value::Bytes(bytes) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        Value::Ref(row) => format!("{}:{}", row.class, row.key),
    })
}

/// A line as it stands.
#[derive(Clone, Debug)]
pub struct Line {
    /// `sync_conflict.id`.
    pub id: i64,
    /// The row.
    pub row: RowId,
    /// The column; `None` where it is about the row.
    pub column_name: Option<String>,
    /// What met.
    pub kind: ConflictKind,
    /// What counts.
    pub winner: Stood,
    /// What does not.
    pub loser: Stood,
    /// Why, in words.
    pub note: Option<String>,
    /// The record that brought it up.
    pub original_uuid: Option<Uuid>,
    /// When, in milliseconds since 1970.
    pub detected_at: i64,
    /// When an operator dealt with it.
    pub resolved_at: Option<i64>,
    /// What the operator kept.
    pub resolution: Option<String>,
}

/// One side of a line.
#[derive(Clone, Debug)]
pub struct Stood {
    /// The value as a person reads it.
    pub text: Option<String>,
    /// The value in full; `None` where there is none, or an earlier version wrote the line.
    pub value: Option<Value>,
    /// Who.
    pub server: Option<String>,
    /// When, in milliseconds since 1970.
    pub time: Option<i64>,
}

const COLUMNS: &str = "id, class, key, column_name, kind, winner_value, winner_data, winner_server, \
    winner_time, loser_value, loser_data, loser_server, loser_time, note, original_uuid, \
    detected_at, resolved_at, resolution";

/// Lines that nobody dealt with, or all of them; the newest first.
///
/// # Errors
/// Those of the database.
pub async fn list(
    session: &mut Session,
    all: bool,
    class: Option<&str>,
    limit: i64,
) -> Result<Vec<Line>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM @sync_conflict WHERE ($1 OR resolved_at IS NULL) \
         AND ($2 = '' OR class = $2) ORDER BY id DESC LIMIT $3"
    );
    let binds = vec![all.into(), class.unwrap_or_default().into(), limit.into()];
    session.query(&sql, binds).await?.iter().map(line).collect()
}

/// One line.
///
/// # Errors
/// [`Config`](crate::Kind::Config) when there is none with this number.
pub async fn show(session: &mut Session, id: i64) -> Result<Line> {
    let sql = format!("SELECT {COLUMNS} FROM @sync_conflict WHERE id = $1");
    let row = session.query_opt(&sql, vec![id.into()]).await?;
    let none = || Error::config(format!("there is no conflict {id}: see `branchline conflicts`"));
    line(&row.ok_or_else(none)?)
}

/// How many lines nobody dealt with.
pub async fn open(session: &mut Session) -> Result<i64> {
    let sql = "SELECT count(*) FROM @sync_conflict WHERE resolved_at IS NULL";
    session.query_one(sql, Vec::new()).await?.int(0)
}

/// Whether an operator was told already that a record waits for a decision.
pub async fn is_undecided(session: &mut Session, original: Uuid) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM @sync_conflict WHERE kind = 'UNDECIDED' \
               AND original_uuid = $1)";
    session.query_one(sql, vec![original.into()]).await?.flag(0)
}

/// Notes what an operator kept.
pub async fn resolved(session: &mut Session, id: i64, kept: &str, now: i64) -> Result<()> {
    let sql = "UPDATE @sync_conflict SET resolved_at = $2, resolution = $3 WHERE id = $1";
    session.execute(sql, vec![id.into(), Datum::time(now), kept.into()]).await?;
    Ok(())
}

fn line(row: &Row) -> Result<Line> {
    let text = |n: usize| -> Result<Option<String>> { Ok(row.opt_text(n)?.map(str::to_owned)) };
    let kind = row.text(4)?;
    let kind = ConflictKind::ALL.into_iter().find(|known| known.as_str() == kind);
    let side = |first: usize| -> Result<Stood> {
        Ok(Stood {
            text: text(first)?,
            value: row.opt_bytes(first + 1)?.map(value_from_bytes).transpose()?,
            server: text(first + 2)?,
            time: row.opt_time(first + 3)?,
        })
    };
    Ok(Line {
        id: row.int(0)?,
        row: RowId { class: row.text(1)?.into(), key: row.text(2)?.into() },
        column_name: text(3)?,
        kind: kind.ok_or_else(|| Error::failed("`sync_conflict.kind` is unknown"))?,
        winner: side(5)?,
        loser: side(9)?,
        note: text(13)?,
        original_uuid: row.opt_uuid(14)?,
        detected_at: row.time(15)?,
        resolved_at: row.opt_time(16)?,
        resolution: text(17)?,
    })
}
