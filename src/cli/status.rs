//! `status`.

use serde_json::{Map, Value, json};

use super::links;
use super::output::{ago, count, span, time};
use super::{Context, End};
use crate::error::Result;
use crate::store::books::status::{Counts, Link, Status};
use crate::store::time as clock;

pub(crate) async fn status(context: &Context) -> Result<End> {
    let server = context.server().await?;
    let status = server.status().await?;
    let address = server.store().address();
    let differing = server.merge_differing().await?;
    let conflicts = server.open_conflicts().await?;
    let mut whole = object(&status, address);
    whole["conflicts"] = conflicts.into();
    whole["merge_differs"] = differing
        .iter()
        .map(|(class, why)| json!({ "class": class, "why": why }))
        .collect::<Vec<_>>()
        .into();
    context.out.object(&whole);
    if !context.out.json {
        people(context, &status, address, clock::now());
        if conflicts > 0 {
            context.out.say(format!("{}: `branchline conflicts`", count(conflicts, "conflict")));
        }
        for (class, why) in differing {
            context.out.say(format!(
                "`{class}` merges otherwise here than the root of the tree says, and is held: {why}"
            ));
        }
    }
    Ok(End::Done)
}

fn counts(counts: &Counts) -> Value {
    let map: Map<String, Value> =
        counts.iter().map(|(state, number)| (state.clone(), Value::from(*number))).collect();
    Value::Object(map)
}

fn link(link: &Link) -> Value {
    let mut map = links::object(&link.neighbour);
    map.insert("out".to_owned(), counts(&link.out));
    map.insert("in".to_owned(), counts(&link.came_in));
    map.insert("held".to_owned(), link.held.into());
    Value::Object(map)
}

/// The whole status for programs.
pub(crate) fn object(status: &Status, address: &str) -> Value {
    let links = status.parent.iter().chain(&status.children);
    let last = links.filter_map(|link| link.neighbour.last_contact).max();
    json!({
        "server": {
            "uuid": status.identity.server,
            "nickname": status.identity.nickname,
            "incarnation": status.identity.incarnation,
            "tree_id": status.identity.tree_id,
            "database": address,
            "classes": status.classes,
        },
        "parent": status.parent.as_ref().map(link),
        "children": status.children.iter().map(link).collect::<Vec<_>>(),
        "held": status.held,
        "last_contact": time(last),
        "unsealed_changes": status.unsealed,
        "oldest_unsealed_change_ms": status.oldest_unsealed_ms,
    })
}

fn people(context: &Context, status: &Status, address: &str, now: i64) {
    let out = context.out;
    let identity = &status.identity;
    out.say(format!("{} ({}) on {address}", identity.nickname, identity.server));
    let mut sentence = format!("{} under capture", count(status.classes, "class"));
    match status.oldest_unsealed_ms {
        None => sentence.push_str(", all changes sealed"),
        Some(age) => sentence.push_str(&format!(
            ", {} not sealed yet (the oldest {} old)",
            count(status.unsealed, "change"),
            span(age)
        )),
    }
    sentence.push_str(&format!(", {} held.", count(status.held, "record")));
    out.say(sentence);
    out.say("");
    let rows = status.parent.iter().chain(&status.children).map(|link| row(link, now)).collect();
    out.table(
        &["neighbour", "role", "state", "last contact", "out", "in", "#held"],
        rows,
        "No neighbours yet: `branchline invite NICKNAME` here, or `branchline join TOKEN`.",
    );
    for link in status.parent.iter().chain(&status.children) {
        if let Some(error) = &link.neighbour.error_message {
            out.say(format!("{}: {error}", link.neighbour.nickname));
        }
    }
}

fn row(link: &Link, now: i64) -> Vec<String> {
    let neighbour = &link.neighbour;
    let mut standing = links::standing(neighbour);
    if neighbour.disabled {
        standing.push_str(", disabled");
    }
    vec![
        neighbour.nickname.clone(),
        neighbour.role.as_str().to_ascii_lowercase(),
        standing,
        ago(neighbour.last_contact, now),
        listed(&link.out),
        listed(&link.came_in),
        link.held.to_string(),
    ]
}

fn listed(counts: &Counts) -> String {
    if counts.is_empty() {
        return "-".to_owned();
    }
    counts.iter().map(|(state, number)| format!("{number} {state}")).collect::<Vec<_>>().join(", ")
}
