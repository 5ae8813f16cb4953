//! The facts behind `check`: what a person should look at on one page.

use super::identity::identity;
use super::rules::{self, Rule, effective};
use super::status::{Status, status};
use crate::catalog::Class;
use crate::error::Result;
use crate::store::{Dialect, Session};

/// What `check` found.
#[derive(Clone)]
pub struct Facts {
    /// The server and its links.
    pub status: Status,
    /// Classes under capture.
    pub captured: Vec<Class>,
    /// Tables of the host that are not.
    pub not_captured: Vec<NotCaptured>,
    /// The default rules.
    pub defaults: Vec<Rule>,
    /// What is held and why, the oldest first.
    pub held: Vec<Held>,
}

/// A host's table that is not under capture.
#[derive(Clone, Debug, PartialEq)]
pub struct NotCaptured {
    /// Its name as a class.
    pub table: String,
    /// The default rules keep it back: `track --all` skips it.
    pub by_rule: bool,
}

/// A held record.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its kind.
    pub kind: String,
    /// Why it is held.
    pub reason: String,
    /// Its classes.
    pub classes: String,
    /// Since when, milliseconds since 1970.
    pub held_at: i64,
}

/// How many held records a page shows.
const HELD_SHOWN_MAX: u32 = 20;

/// Reads the facts.
///
/// # Errors
/// [`Config`](crate::Kind::Config) when `init` has not been run here.
pub async fn facts(session: &mut Session, now: i64) -> Result<Facts> {
    identity(session).await?;
    let status = status(session, now).await?;
    let captured = rules::classes(session).await?;
    let defaults = rules::defaults(session).await?;
    let not_captured = tables(session)
        .await?
        .into_iter()
        .filter(|table| !captured.iter().any(|class| *class.name == **table))
        .map(|table| NotCaptured {
            by_rule: effective(&defaults, &table)
                .is_some_and(|rule| !rule.send_to && !rule.receive_from),
            table,
        })
        .collect();
    let held = held(session).await?;
    Ok(Facts { status, captured, not_captured, defaults, held })
}

/// The host's tables, by their names as classes.
pub async fn tables(session: &mut Session) -> Result<Vec<String>> {
    let sql = match session.dialect() {
        // A partition belongs to its root.
        Dialect::Postgres => {
            "SELECT CASE WHEN n.nspname = 'public' THEN c.relname::text \
                    ELSE n.nspname || '.' || c.relname END \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't' \
             AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'branchline') \
             AND n.nspname NOT LIKE 'pg\\_toast%' AND n.nspname NOT LIKE 'pg\\_temp%' ORDER BY 1"
        }
        Dialect::Sqlite => {
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
             AND name NOT LIKE 'sync\\_%' ESCAPE '\\' ORDER BY name"
        }
    };
    let rows = session.query(sql, Vec::new()).await?;
    rows.iter().map(|row| Ok(row.text(0)?.to_owned())).collect()
}

async fn held(session: &mut Session) -> Result<Vec<Held>> {
    let rows = session
        .query(
            "SELECT kind, reason, classes, held_at FROM @sync_held ORDER BY id LIMIT $1",
            vec![HELD_SHOWN_MAX.into()],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Held {
                kind: row.text(0)?.to_owned(),
                reason: row.text(1)?.to_owned(),
                classes: row.text(2)?.to_owned(),
                held_at: row.time(3)?,
            })
        })
        .collect()
}
