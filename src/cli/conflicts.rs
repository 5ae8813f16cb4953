//! `conflicts`: where edits met that did not know of each other, and turning one round.

use serde_json::{Value, json};

use super::grammar::{Conflicts, ConflictsList, KeepSide};
use super::output::{ago, count, text, time};
use super::{Context, End};
use crate::error::Result;
use crate::server::Server;
use crate::store::apply::Keep;
use crate::store::books::conflicts::{ConflictKind, Line, Stood};
use crate::store::time as clock;

pub(crate) async fn conflicts(
    context: &Context,
    command: Option<Conflicts>,
    list: ConflictsList,
) -> Result<End> {
    let server = context.server().await?;
    match command.unwrap_or(Conflicts::List(list)) {
        Conflicts::List(select) => show_list(context, &server, &select).await,
        Conflicts::Show { id } => {
            let line = server.conflict(id).await?;
            context.out.object(&object(&line));
            show(context, &line);
            Ok(End::Done)
        }
        Conflicts::Resolve { id, keep } => turn(context, &server, id, keep).await,
    }
}

async fn turn(context: &Context, server: &Server, id: i64, keep: KeepSide) -> Result<End> {
    let keep = match keep {
        KeepSide::Winner => Keep::Winner,
        KeepSide::Loser => Keep::Loser,
    };
    let ids = server.resolve_conflict(id, keep).await?;
    context.out.both(
        match keep {
            Keep::Winner => format!("{} resolved.", count(ids.len() as i64, "conflict")),
            Keep::Loser => format!(
                "{} turned round; it travels to all servers as an edit of this one.",
                count(ids.len() as i64, "conflict")
            ),
        },
        &json!({ "resolved": ids, "keep": keep.as_str() }),
    );
    Ok(End::Done)
}

async fn show_list(context: &Context, server: &Server, select: &ConflictsList) -> Result<End> {
    let list = server.conflicts(select.all, select.class.as_deref(), select.limit).await?;
    let now = clock::now();
    let rows = list.iter().map(|line| row(line, now)).collect();
    context.out.table(
        &["#id", "class", "key", "column", "kind", "winner", "loser", "found", "resolution"],
        rows,
        "No conflicts.",
    );
    for line in &list {
        context.out.object(&object(line));
    }
    Ok(End::Done)
}

fn row(line: &Line, now: i64) -> Vec<String> {
    let who = |side: &Stood| side.server.clone().unwrap_or_default();
    vec![
        line.id.to_string(),
        line.row.class.to_string(),
        line.row.key.to_string(),
        line.column_name.clone().unwrap_or_default(),
        line.kind.as_str().to_owned(),
        who(&line.winner),
        who(&line.loser),
        ago(Some(line.detected_at), now),
        line.resolution.clone().unwrap_or_default(),
    ]
}

/// A line for programs, its fields named as the columns.
fn object(line: &Line) -> Value {
    json!({
        "id": line.id,
        "class": line.row.class,
        "key": line.row.key,
        "column_name": text(line.column_name.as_deref()),
        "kind": line.kind.as_str(),
        "winner_value": text(line.winner.text.as_deref()),
        "winner_server": text(line.winner.server.as_deref()),
        "winner_time": time(line.winner.time),
        "loser_value": text(line.loser.text.as_deref()),
        "loser_server": text(line.loser.server.as_deref()),
        "loser_time": time(line.loser.time),
        "note": text(line.note.as_deref()),
        "original_uuid": line.original_uuid,
        "detected_at": time(Some(line.detected_at)),
        "resolved_at": time(line.resolved_at),
        "resolution": text(line.resolution.as_deref()),
    })
}

fn show(context: &Context, line: &Line) {
    let out = context.out;
    let what = match (&line.column_name, line.kind) {
        (Some(column), _) => format!("column `{column}` of row `{}`", line.row.key),
        (None, _) => format!("row `{}`", line.row.key),
    };
    out.say(format!("{} in {what} of `{}`", line.kind.as_str(), line.row.class));
    for (name, side) in [("winner", &line.winner), ("loser", &line.loser)] {
        let Some(server) = &side.server else { continue };
        let at = side.time.map_or_else(String::new, |at| format!(" at {}", clock::format(at)));
        let value = match (&line.column_name, &side.text) {
            (None, _) => String::new(),
            (Some(_), Some(value)) => format!(": {value}"),
            (Some(_), None) => ": NULL".to_owned(),
        };
        out.say(format!("{name}: by `{server}`{at}{value}"));
    }
    if let Some(note) = &line.note {
        out.say(note);
    }
    match (line.resolved_at, &line.resolution) {
        (Some(at), Some(kept)) => {
            out.say(format!("resolved at {}: the {kept} was kept", clock::format(at)));
        }
        _ if line.kind == ConflictKind::Revived => {
            out.say(format!("seen: `branchline conflicts resolve {} --keep winner`", line.id));
        }
        _ => out.say(format!(
            "to turn it round: `branchline conflicts resolve {} --keep loser`",
            line.id
        )),
    }
}
