//! `records`, `imports`, `cleanup`, `audit`, `transmissions`.

use std::time::Duration;

use serde_json::{Value, json};

use super::grammar::{Imports, Records, Select};
use super::output::{ago, count, text, time};
use super::{Context, End};
use crate::error::Result;
use crate::store::books::records::Record;
use crate::store::time as clock;

pub(crate) async fn records(
    context: &Context,
    command: Option<Records>,
    list: Select,
) -> Result<End> {
    match command.unwrap_or(Records::List(list)) {
        Records::List(select) => show_list(context, &select).await,
        Records::Show { uuid } => {
            let record = context.server().await?.record(uuid).await?;
            context.out.object(&object(&record));
            show(context, &record);
            Ok(End::Done)
        }
        Records::Reset { uuid, server } => {
            let number = context.server().await?.reset(uuid, server.as_deref()).await?;
            context.out.both(
                match number {
                    0 => "Nothing to send again: what neighbours have, or the rules keep back, stays."
                        .to_owned(),
                    _ => format!("{} to be sent again.", count(number, "delivery")),
                },
                &json!({ "reset": number }),
            );
            Ok(End::Done)
        }
    }
}

async fn show_list(context: &Context, select: &Select) -> Result<End> {
    let server = context.server().await?;
    let list =
        server.records(select.state.as_deref(), select.server.as_deref(), select.limit).await?;
    let rows = list
        .iter()
        .map(|record| {
            let children: Vec<_> = record
                .servers
                .iter()
                .map(|server| format!("{} {}", server.nickname, server.state))
                .collect();
            vec![
                time_text(record.timestamp),
                record.uuid.to_string(),
                record.origin.clone().unwrap_or_default(),
                record.contained_classes.clone(),
                record.state.clone(),
                children.join(", "),
            ]
        })
        .collect();
    context.out.table(
        &["committed", "uuid", "origin", "classes", "to parent", "to children"],
        rows,
        "No records.",
    );
    for record in &list {
        context.out.object(&object(record));
    }
    Ok(End::Done)
}

fn time_text(millis: i64) -> String {
    clock::format(millis)
}

fn object(record: &Record) -> Value {
    json!({
        "id": record.id,
        "uuid": record.uuid,
        "original_uuid": record.original_uuid,
        "timestamp": time(Some(record.timestamp)),
        "state": record.state,
        "retry_count": record.retry_count,
        "contained_classes": record.contained_classes,
        "origin": text(record.origin.as_deref()),
        "number": record.number,
        "parts": record.parts,
        "payload_bytes": record.payload_bytes,
        "source": text(record.source.as_deref()),
        "error_message": text(record.error_message.as_deref()),
        "servers": record.servers.iter().map(|server| json!({
            "nickname": server.nickname,
            "state": server.state,
            "retry_count": server.retry_count,
            "error_message": text(server.error_message.as_deref()),
        })).collect::<Vec<_>>(),
    })
}

fn show(context: &Context, record: &Record) {
    let out = context.out;
    let unknown = || "an unknown server".to_owned();
    out.say(format!("record {}", record.uuid));
    if record.original_uuid != record.uuid {
        out.say(format!("  original   {}", record.original_uuid));
    }
    out.say(format!(
        "  committed  {} by {} (its number {})",
        time_text(record.timestamp),
        record.origin.clone().unwrap_or_else(unknown),
        record.number
    ));
    if let Some(source) = &record.source {
        out.say(format!("  came from  {source}"));
    }
    out.say(format!("  classes    {}", record.contained_classes));
    out.say(format!(
        "  payload    {} in {}",
        count(record.payload_bytes, "byte"),
        count(record.parts, "part")
    ));
    let told =
        |error: &Option<String>| error.as_ref().map_or(String::new(), |error| format!(": {error}"));
    out.say(format!(
        "  to parent  {}, sent again {}{}",
        record.state,
        count(record.retry_count, "time"),
        told(&record.error_message)
    ));
    for server in &record.servers {
        out.say(format!(
            "  to {}  {}, sent again {}{}",
            server.nickname,
            server.state,
            count(server.retry_count, "time"),
            told(&server.error_message)
        ));
    }
}

pub(crate) async fn imports(
    context: &Context,
    command: Option<Imports>,
    list: Select,
) -> Result<End> {
    let Imports::List(select) = command.unwrap_or(Imports::List(list));
    let server = context.server().await?;
    let list =
        server.imports(select.state.as_deref(), select.server.as_deref(), select.limit).await?;
    let rows = list
        .iter()
        .map(|import| {
            vec![
                time_text(import.timestamp),
                import.uuid.to_string(),
                import.server.clone().unwrap_or_default(),
                import.state.clone(),
                import.error_message.clone().unwrap_or_default(),
            ]
        })
        .collect();
    context.out.table(&["came in", "uuid", "from", "state", ""], rows, "Nothing came in yet.");
    for import in &list {
        context.out.object(&json!({
            "uuid": import.uuid,
            "original_uuid": import.original_uuid,
            "state": import.state,
            "retry_count": import.retry_count,
            "error_message": text(import.error_message.as_deref()),
            "server": text(import.server.as_deref()),
            "timestamp": time(Some(import.timestamp)),
        }));
    }
    Ok(End::Done)
}

pub(crate) async fn cleanup(context: &Context, age: Option<Duration>) -> Result<End> {
    let age = age.unwrap_or(context.config.cleanup_age);
    let done = context.server().await?.cleanup(age).await?;
    let parts = [
        (done.records, "record"),
        (done.server_records, "delivery"),
        (done.imports, "import"),
        (done.parts, "part"),
        (done.batches, "batch"),
        (done.transmissions, "failed exchange"),
        (done.invitations, "expired invitation"),
    ];
    let listed: Vec<_> = parts
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, one)| match *one {
            "batch" => {
                format!("{number} signed {}", if *number == 1 { "batch" } else { "batches" })
            }
            one => count(*number, one),
        })
        .collect();
    let older = humantime::format_duration(age);
    context.out.both(
        if listed.is_empty() {
            format!("Nothing older than {older} is done with.")
        } else {
            format!("Deleted, of what is older than {older}: {}.", listed.join(", "))
        },
        &json!({
            "records": done.records,
            "server_records": done.server_records,
            "imports": done.imports,
            "parts": done.parts,
            "batches": done.batches,
            "transmissions": done.transmissions,
            "invitations": done.invitations,
        }),
    );
    Ok(End::Done)
}

pub(crate) async fn audit(context: &Context, limit: u32) -> Result<End> {
    let entries = context.server().await?.audit(limit).await?;
    let rows = entries
        .iter()
        .rev()
        .map(|entry| {
            vec![
                time_text(entry.timestamp),
                entry.actor.clone(),
                entry.action.clone(),
                entry.detail.clone(),
            ]
        })
        .collect();
    context.out.table(&["when", "who", "what", ""], rows, "Nobody has done anything yet.");
    for entry in entries.iter().rev() {
        context.out.object(&json!({
            "timestamp": time(Some(entry.timestamp)),
            "actor": entry.actor,
            "action": entry.action,
            "detail": entry.detail,
        }));
    }
    Ok(End::Done)
}

pub(crate) async fn transmissions(context: &Context, limit: u32) -> Result<End> {
    let server = context.server().await?;
    let list = server.transmissions(limit).await?;
    let names = server.neighbours().await?;
    let name = |id: Option<i64>| {
        names.iter().find(|server| Some(server.id) == id).map(|server| server.nickname.as_str())
    };
    let now = clock::now();
    let rows = list
        .iter()
        .rev()
        .map(|one| {
            vec![
                ago(Some(one.timestamp), now),
                one.direction.clone(),
                name(one.server_id).unwrap_or_default().to_owned(),
                one.error_message.clone(),
            ]
        })
        .collect();
    context.out.table(&["when", "way", "server", "error"], rows, "No exchange has failed.");
    for one in list.iter().rev() {
        context.out.object(&json!({
            "timestamp": time(Some(one.timestamp)),
            "direction": one.direction,
            "server": text(name(one.server_id)),
            "error_message": one.error_message,
        }));
    }
    Ok(End::Done)
}
