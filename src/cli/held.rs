//! `held`.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use serde_json::{Value as Json, json};

use super::grammar::Held as Words;
use super::output::{ago, count, text, time};
use super::{Context, End};
use crate::error::{Error, Result};
use crate::record::{Item, Op, Value};
use crate::store::books::held::{Content, Held, Shown};
use crate::store::time as clock;
use crate::worker::{Tried, Worker};

pub(crate) async fn held(context: &Context, command: Option<Words>) -> Result<End> {
    match command.unwrap_or(Words::List { limit: 1_000 }) {
        Words::List { limit } => list(context, limit).await,
        Words::Show { id, values } => show(context, id, values).await,
        Words::Retry { ids, all } => retry(context, (!all).then_some(ids)).await,
        Words::Drop { id, yes } => drop(context, id, yes).await,
    }
}

/// Whether something is held is also the exit status, as of `check`.
async fn list(context: &Context, limit: u32) -> Result<End> {
    let list = context.server().await?.held(limit).await?;
    let now = clock::now();
    let rows = list.iter().map(|held| row(held, now)).collect();
    context.out.table(
        &["#id", "from", "kind", "classes", "#tries", "next", "held", "reason"],
        rows,
        "Nothing is held.",
    );
    for held in &list {
        context.out.object(&object(held));
    }
    Ok(if list.is_empty() { End::Done } else { End::Differs })
}

fn row(held: &Held, now: i64) -> Vec<String> {
    let next = match held.next_attempt {
        None => "on a cause".to_owned(),
        Some(next) if next <= now => "now".to_owned(),
        Some(next) => format!("in {}", super::output::span(next - now)),
    };
    vec![
        held.id.to_string(),
        held.server.clone().unwrap_or_else(|| "(gone)".to_owned()),
        held.kind.clone(),
        held.classes.clone(),
        held.retry_count.to_string(),
        next,
        ago(Some(held.held_at), now),
        held.reason.clone(),
    ]
}

fn object(held: &Held) -> Json {
    json!({
        "id": held.id,
        "original_uuid": held.original_uuid,
        "uuid": held.uuid,
        "server": text(held.server.as_deref()),
        "kind": held.kind,
        "reason": held.reason,
        "classes": held.classes,
        "retry_count": held.retry_count,
        "next_attempt": time(held.next_attempt),
        "held_at": time(Some(held.held_at)),
    })
}

async fn show(context: &Context, id: i64, values: bool) -> Result<End> {
    let shown = context.server().await?.show_held(id).await?;
    context.out.object(&whole(&shown, values));
    people(context, &shown, values);
    Ok(End::Done)
}

fn whole(shown: &Shown, values: bool) -> Json {
    let mut object = object(&shown.held);
    object["waits_for"] =
        shown.waits_for.iter().map(|(class, key)| json!({ "class": class, "key": key })).collect();
    match &shown.content {
        Content::Record(body) => {
            object["items"] = body.items.iter().map(|one| item(one, values)).collect();
        }
        Content::Message(bytes, header) => {
            object["bytes"] = (*bytes).into();
            object["header"] = text(header.as_deref());
        }
    }
    object
}

fn item(item: &Item, values: bool) -> Json {
    let mut object = json!({
        "class": item.row.class,
        "key": item.row.key,
        "op": op(item.op),
        "columns": item.values.iter().map(|(name, _)| name).collect::<Vec<_>>(),
    });
    if values {
        object["values"] =
            item.values.iter().map(|(name, value)| (name.to_string(), json(value))).collect();
    }
    object
}

fn op(op: Op) -> &'static str {
    match op {
        Op::Insert => "insert",
        Op::Update => "update",
        Op::Delete => "delete",
        Op::State => "state",
    }
}

fn json(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::Text(value) => value.as_str().into(),
        Value::Bytes(bytes) => {
            bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
        }
        Value::Ref(row) => json!({ "class": row.class, "key": row.key }),
    }
}

fn people(context: &Context, shown: &Shown, values: bool) {
    let (out, held) = (context.out, &shown.held);
    out.say(format!("held {}: {}", held.id, held.kind));
    out.say(format!("  reason     {}", held.reason));
    out.say(format!("  came from  {}", held.server.as_deref().unwrap_or("a server that is gone")));
    if let Some(original) = held.original_uuid {
        out.say(format!("  record     {original}"));
    }
    out.say(format!("  since      {}", clock::format(held.held_at)));
    let next = held.next_attempt.map_or("on a cause, or by hand".to_owned(), clock::format);
    out.say(format!("  next try   {next} ({} so far)", held.retry_count));
    for (class, key) in &shown.waits_for {
        out.say(format!("  waits for  `{class}` {key}"));
    }
    match &shown.content {
        Content::Message(bytes, header) => {
            let header = header.as_deref().unwrap_or("it has no header of ours");
            out.say(format!("  message    {}: {header}", count(*bytes as i64, "byte")));
        }
        Content::Record(body) => {
            for item in &body.items {
                let names: Vec<_> = item.values.iter().map(|(name, _)| &**name).collect();
                let (class, key) = (&item.row.class, &item.row.key);
                out.say(format!("  {} `{class}` {key}: {}", op(item.op), names.join(", ")));
                for (name, value) in item.values.iter().filter(|_| values) {
                    out.say(format!("    {name} = {}", json(value)));
                }
            }
        }
    }
}

/// Tries held records at once and says what became of each.
async fn retry(context: &Context, ids: Option<Vec<i64>>) -> Result<End> {
    let worker = Worker::open(context.config.clone()).await?;
    let (tried, untold) = worker.retry(ids.as_deref(), &context.actor).await?;
    let rows = tried.iter().map(|one| vec![one.id.to_string(), said(one).to_owned(), reason(one)]);
    context.out.table(&["#id", "now", "reason"], rows.collect(), "Nothing is held.");
    for one in &tried {
        context.out.object(&json!({
            "id": one.id,
            "state": said(one),
            "reason": one.held.as_ref().map(|held| &held.reason),
        }));
    }
    note(context, untold);
    let still = tried.iter().any(|one| one.held.is_some());
    Ok(if still { End::Differs } else { End::Done })
}

fn said(tried: &Tried) -> &'static str {
    match &tried.held {
        None => "COMMITTED",
        Some(held) if held.next_attempt.is_none() => "FAILED_AND_STOPPED",
        Some(_) => "FAILED",
    }
}

fn reason(tried: &Tried) -> String {
    tried.held.as_ref().map(|held| held.reason.clone()).unwrap_or_default()
}

async fn drop(context: &Context, id: i64, yes: bool) -> Result<End> {
    let server = context.server().await?;
    if !yes {
        confirm(&server.show_held(id).await?.held)?;
    }
    let worker = Worker::open(context.config.clone()).await?;
    let dropped = server.drop_held(id).await?;
    let untold = worker.tell().await.err();
    let from = dropped.server.as_deref().unwrap_or("a server that is gone");
    context.out.both(
        format!("Dropped {id}: it does not go in here, and `{from}` is told REJECTED."),
        &json!({ "dropped": id, "original_uuid": dropped.original_uuid, "told": untold.is_none() }),
    );
    note(context, untold);
    Ok(End::Done)
}

/// What neighbours could not be told waits in the database for the worker.
fn note(context: &Context, untold: Option<Error>) {
    if let Some(error) = untold {
        context.out.note(format!(
            "note: the sender could not be told yet; `worker` or `sync` will do it: {}",
            error.chain()
        ));
    }
}

/// Asks on the terminal; without one, `--yes` is the answer.
fn confirm(held: &Held) -> Result<()> {
    let no = |message: &str| Err(Error::config(message.to_owned()));
    if !std::io::stdin().is_terminal() {
        return no("what is dropped is gone: confirm with --yes");
    }
    let mut out = std::io::stderr();
    let _ = write!(
        out,
        "Held {} ({}, {}): {}\nIts rows will be missing here, and what builds on them is held. Drop it? [y/N] ",
        held.id, held.kind, held.classes, held.reason
    );
    let _ = out.flush();
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    no("nothing was dropped")
}
