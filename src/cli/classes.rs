//! `class`: which class goes to whom and may come from whom.

use serde_json::json;

use super::grammar::{Class, ClassChange};
use super::{Context, End};
use crate::error::Result;
use crate::server::RuleSet;
use crate::store::books::rules::{Change, Rule};
use crate::store::books::servers::Neighbour;

pub(crate) async fn class(context: &Context, command: Class) -> Result<End> {
    match command {
        Class::List { server } => list(context, server.as_deref()).await,
        Class::Exclude(change) => set(context, &change, false).await,
        Class::Include(change) => set(context, &change, true).await,
        Class::Propagate { names, server } => propagate(context, &names, server.as_deref()).await,
    }
}

async fn list(context: &Context, server: Option<&str>) -> Result<End> {
    let rules = context.server().await?.rules(server).await?;
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let rows = rules
        .iter()
        .map(|(server, rule)| {
            let server = server.clone().unwrap_or_else(|| "(default)".to_owned());
            vec![server, rule.name.clone(), yes(rule.send_to), yes(rule.receive_from)]
        })
        .collect();
    context.out.table(
        &["server", "class", "send", "receive"],
        rows,
        "No rules: every class goes both ways.",
    );
    for (server, rule) in &rules {
        context.out.object(&object(server.as_deref(), rule));
    }
    Ok(End::Done)
}

fn object(server: Option<&str>, rule: &Rule) -> serde_json::Value {
    json!({
        "server": server,
        "name": rule.name,
        "send_to": rule.send_to,
        "receive_from": rule.receive_from,
    })
}

async fn set(context: &Context, change: &ClassChange, allow: bool) -> Result<End> {
    let both = change.send == change.receive;
    let (send, receive) = (both || change.send, both || change.receive);
    let changes: Vec<_> =
        change.names.iter().map(|name| Change { name, allow, send, receive }).collect();
    let (server, done) =
        context.server().await?.set_rules(change.server.as_deref(), &changes).await?;
    let whom = match &server {
        Some(server) => format!("`{}`", server.nickname),
        None => "servers that join later".to_owned(),
    };
    for RuleSet { rule, named, referring } in &done {
        let mut value = object(server.as_ref().map(|server| server.nickname.as_str()), rule);
        value["referring"] = referring.clone().into();
        context.out.both(sentence(rule, &whom), &value);
        if named.is_empty() {
            context.out.note(format!("note: no tracked class is called `{}` yet", rule.name));
        }
        if !allow && !referring.is_empty() {
            context.out.note(format!(
                "note: {} refer to it; a record of theirs that waits for a row kept back is REJECTED",
                quoted(referring)
            ));
        }
    }
    if server.is_none() {
        context.out.note(
            "note: servers that are there keep their own rules; `branchline class propagate CLASS` \
             copies this to them",
        );
    }
    Ok(End::Done)
}

fn sentence(rule: &Rule, whom: &str) -> String {
    let way = |yes: bool| if yes { "" } else { "not " };
    format!(
        "`{}` is {}sent to and {}taken from {whom}.",
        rule.name,
        way(rule.send_to),
        way(rule.receive_from)
    )
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

async fn propagate(context: &Context, names: &[String], server: Option<&str>) -> Result<End> {
    let (chosen, done) = context.server().await?.propagate(names, server).await?;
    let whom: Vec<String> =
        chosen.iter().map(|server: &Neighbour| server.nickname.clone()).collect();
    for rule in &done {
        let mut value = object(None, rule);
        value["servers"] = whom.clone().into();
        let text = if whom.is_empty() {
            "There is no neighbour to copy it to yet.".to_owned()
        } else {
            sentence(rule, &quoted(&whom))
        };
        context.out.both(text, &value);
    }
    Ok(End::Done)
}
