//! `init`, `track`, `untrack`.

use std::collections::HashMap;

use serde_json::json;

use super::grammar::{Init, Track, Untrack};
use super::output::count;
use super::{Context, End};
use crate::catalog::decide::Request;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::publisher::relay;
use crate::store::Store;
use crate::store::books::identity::{self, Made};
use crate::store::books::{self, audit};
use crate::store::track::{self, Report};

pub(crate) async fn init(context: &Context, arguments: &Init) -> Result<End> {
    let store = context.store().await?;
    let (own, made) =
        identity::init(&store, &arguments.nickname, arguments.new_identity, &context.actor).await?;
    let (name, at) = (&own.nickname, store.address());
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
    let store = context.store().await?;
    let request = Request {
        names: arguments.tables,
        all: arguments.all,
        keys: keys(&arguments.key)?,
        add_uuid: arguments.add_uuid,
        assume_plain: arguments.assume_plain,
        ..context.config.track_request()
    };
    let report = books::write(&store, async |session| {
        let report = track::track(session, request.clone()).await?;
        let detail = format!("{} classes", report.classes.len());
        audit::note(session, &context.actor, "track", &detail).await?;
        Ok(report)
    })
    .await?;
    print(context, &report);
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
    let store = context.store().await?;
    let bounds = relay::bounds(&context.config);
    let names = books::write(&store, async |session| {
        let names = track::untrack(session, &arguments.tables, bounds).await?;
        audit::note(session, &context.actor, "untrack", &names.join(", ")).await?;
        Ok(names)
    })
    .await?;
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

/// Puts every table under capture that the default rules do not keep back.
pub(crate) async fn track_all(store: &Store, config: &Config) -> Result<()> {
    let request = Request { all: true, ..config.track_request() };
    let report =
        books::write(store, async |session| track::track(session, request.clone()).await).await?;
    match report.refusals.first() {
        None => Ok(()),
        Some(refusal) => Err(Error::failed(format!("`{}`: {}", refusal.class, refusal.text))),
    }
}

/// Classes whose triggers are missing or out of date, a sentence each.
pub(crate) async fn broken_capture(_context: &Context, store: &Store) -> Result<Vec<String>> {
    let mut session = store.read().await?;
    let catalog = track::load(&mut session).await?;
    let broken = track::broken(&mut session, &catalog).await?;
    session.rollback().await?;
    Ok(broken
        .into_iter()
        .map(|class| {
            format!("the triggers of `{class}` are gone or out of date: run `branchline track`")
        })
        .collect())
}
