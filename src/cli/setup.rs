//! `init`, `track`, `untrack`.

use std::collections::HashMap;

use serde_json::json;

use super::grammar::{Init, Track, Untrack};
use super::output::count;
use super::{Context, End};
use crate::catalog::decide::Request;
use crate::error::{Error, Result};
use crate::store::books::identity::Made;
use crate::store::rows;
use crate::store::track::Report;

pub(crate) async fn init(context: &Context, arguments: &Init) -> Result<End> {
    let server = context.server().await?;
    let (own, made) = server.init(&arguments.nickname, arguments.new_identity).await?;
    let (name, at) = (&own.nickname, server.store().address());
    let text = match made {
        Made::New => format!(
            "{at} is the server `{name}` now. Next: `branchline track --all`, then `branchline \
             invite NICKNAME` or `branchline join TOKEN`."
        ),
        Made::Kept => format!("{at} is the server `{name}` already; its tables are up to date."),
        Made::Renamed => format!("The server calls itself `{name}` now."),
        Made::Renewed => format!(
            "{at} is another server now, `{name}`, without neighbours. Next: `branchline join TOKEN`."
        ),
    };
    let what = match made {
        Made::New => "new",
        Made::Kept => "kept",
        Made::Renamed => "renamed",
        Made::Renewed => "renewed",
    };
    context.out.both(
        text,
        &json!({
            "uuid": own.server,
            "nickname": own.nickname,
            "incarnation": own.incarnation,
            "tree_id": own.tree_id,
            "identity": what,
        }),
    );
    Ok(End::Done)
}

/// Reads `--key TABLE=COLUMN,…`.
fn keys(arguments: &[String]) -> Result<HashMap<String, Vec<String>>> {
    let mut keys = HashMap::new();
    for argument in arguments {
        let (table, columns) = argument
            .split_once('=')
            .filter(|(table, columns)| !table.is_empty() && !columns.is_empty())
            .ok_or_else(|| Error::config(format!("`--key {argument}` is no TABLE=COLUMN,…")))?;
        keys.insert(table.to_owned(), columns.split(',').map(str::to_owned).collect());
    }
    Ok(keys)
}

pub(crate) async fn track(context: &Context, arguments: Track) -> Result<End> {
    let request = Request {
        names: arguments.tables,
        all: arguments.all,
        keys: keys(&arguments.key)?,
        add_uuid: arguments.add_uuid,
        assume_plain: arguments.assume_plain,
        ..context.config.track_request()
    };
    let server = context.server().await?;
    let what = || "reading the catalog, writing triggers".to_owned();
    let report = context.out.progress(what, server.track(request)).await?;
    print(context, &report);
    if report.classes.iter().any(|class| !class.host_triggers.is_empty()) {
        context.out.say(format!(
            "Host triggers run again where changes are applied, and what they do is put back. The \
             guard spares that: {}",
            rows::guard(server.store().dialect())
        ));
    }
    if report.refusals.is_empty() {
        return Ok(End::Done);
    }
    let refused = count(report.refusals.len() as i64, "table");
    Err(Error::failed(format!("{refused} not under capture, for the reasons given above")))
}

fn print(context: &Context, report: &Report) {
    let out = &context.out;
    for class in &report.classes {
        out.object(&json!(class));
    }
    for (kind, remarks) in [("warning", &report.warnings), ("refusal", &report.refusals)] {
        for remark in remarks {
            out.object(&json!({ "class": remark.class, kind: remark.text }));
        }
    }
    let rows = report
        .classes
        .iter()
        .map(|class| {
            let references =
                class.references.iter().map(|(column, target)| format!("{column} → {target}"));
            vec![
                class.class.clone(),
                class.state.to_owned(),
                class.key.join(", "),
                references.collect::<Vec<_>>().join(", "),
                class.host_triggers.join(", "),
            ]
        })
        .collect();
    out.table(
        &["class", "", "key", "references", "host triggers"],
        rows,
        "Nothing is under capture.",
    );
    for remark in &report.warnings {
        out.say(format!("warning: `{}`: {}", remark.class, remark.text));
    }
    for remark in &report.refusals {
        out.say(format!("refused: `{}`: {}", remark.class, remark.text));
    }
    out.say(match report.refusals.len() {
        0 => format!("{} under capture.", count(report.classes.len() as i64, "class")),
        refused => format!(
            "{} under capture, {} refused.",
            count(report.classes.len() as i64, "class"),
            count(refused as i64, "table")
        ),
    });
}

pub(crate) async fn untrack(context: &Context, arguments: Untrack) -> Result<End> {
    let names = context.server().await?.untrack(&arguments.tables).await?;
    context.out.both(
        format!(
            "{} no longer under capture: {}.",
            count(names.len() as i64, "class"),
            names.join(", ")
        ),
        &json!({ "untracked": names }),
    );
    Ok(End::Done)
}
