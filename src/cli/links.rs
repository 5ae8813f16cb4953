//! `invite`, `join`, `servers`.

use std::io::Read as _;

use serde_json::{Value, json};

use super::grammar::{Invite, Join, Servers};
use super::output::{ago, line, text, time};
use super::{Context, End};
use crate::error::{Error, Result};
use crate::store::books::servers::Neighbour;
use crate::store::{time as clock, without_password};

pub(crate) async fn invite(context: &Context, arguments: &Invite) -> Result<End> {
    let server = context.server().await?;
    let token = server.invite(&arguments.nickname, !arguments.no_load, arguments.expires).await?;
    let text = token.encode()?;
    if context.out.json {
        context.out.object(&json!({
            "token": text,
            "uuid": token.invite,
            "nickname": token.nickname,
            "load": token.load,
            "expires_at": time(Some(token.expires_at)),
            "broker_url": without_password(&token.broker_url),
        }));
    } else {
        line(&text);
    }
    if arguments.no_load && !context.out.json {
        context.out.note(
            "note: the child gets what is committed from now on; if there are rows already, give \
             it a copy of this database taken now",
        );
    }
    Ok(End::Done)
}

pub(crate) async fn join(context: &Context, arguments: Join) -> Result<End> {
    let mut line = arguments.token;
    if line == "-" {
        line.clear();
        std::io::stdin()
            .take(64 << 10)
            .read_to_string(&mut line)
            .map_err(|error| Error::config("cannot read the token").with_source(error))?;
    }
    let joining = context.server().await?.join(&line, arguments.moving).await?;
    let parent = &joining.parent;
    if joining.renewed {
        context.out.say(format!(
            "This database was a copy of `{}`'s: it is a server of its own now, `{}`.",
            parent.nickname, joining.identity.nickname
        ));
    }
    if let Some(old) = &joining.moved_from {
        context.out.say(format!(
            "Left `{old}`; run `branchline servers evict {}` there.",
            joining.identity.nickname
        ));
    }
    context.out.both(
        format!(
            "Asked `{}` to take `{}` as a child; it does so with its next `sync` or `worker`.",
            parent.nickname, joining.identity.nickname
        ),
        &json!({
            "server": { "uuid": joining.identity.server, "nickname": joining.identity.nickname },
            "parent": { "uuid": parent.server, "nickname": parent.nickname, "state": "joining",
                        "address": without_password(&parent.address) },
            "new_identity": joining.renewed,
            "moved_from": joining.moved_from,
        }),
    );
    Ok(End::Done)
}

pub(crate) async fn servers(context: &Context, command: Option<Servers>) -> Result<End> {
    match command.unwrap_or(Servers::List) {
        Servers::List => list(context).await,
        Servers::Evict { server } => evict(context, &server).await,
        Servers::Disable { server } => disable(context, &server, true).await,
        Servers::Enable { server } => disable(context, &server, false).await,
    }
}

/// How far a link has come, for people and in JSON.
pub(crate) fn standing(server: &Neighbour) -> String {
    server.state.as_str().to_ascii_lowercase()
}

/// A neighbour with the fields of `sync_server`.
pub(crate) fn object(server: &Neighbour) -> serde_json::Map<String, Value> {
    let value = json!({
        "uuid": server.server,
        "nickname": server.nickname,
        "role": server.role.as_str(),
        "state": standing(server),
        "address": without_password(&server.address),
        "disabled": server.disabled,
        "last_contact": time(server.last_contact),
        "last_contact_state": text(server.last_contact_state.as_deref()),
        "error_message": text(server.error_message.as_deref()),
        "incarnation": server.incarnation,
        "clock_skew_ms": server.clock_skew_ms,
        "joined_at": time(server.joined_at),
    });
    match value {
        Value::Object(map) => map,
        _ => serde_json::Map::new(),
    }
}

async fn list(context: &Context) -> Result<End> {
    let all = context.server().await?.neighbours().await?;
    let now = clock::now();
    let rows = all
        .iter()
        .map(|server| {
            let standing = if server.disabled {
                format!("{}, disabled", standing(server))
            } else {
                standing(server)
            };
            vec![
                server.nickname.clone(),
                server.role.as_str().to_ascii_lowercase(),
                standing,
                ago(server.last_contact, now),
                server.server.to_string(),
                server.error_message.clone().unwrap_or_default(),
            ]
        })
        .collect();
    context.out.table(
        &["server", "role", "state", "last contact", "uuid", ""],
        rows,
        "No neighbours yet: `branchline invite NICKNAME` here, or `branchline join TOKEN`.",
    );
    for server in &all {
        context.out.object(&Value::Object(object(server)));
    }
    Ok(End::Done)
}

async fn evict(context: &Context, name: &str) -> Result<End> {
    let (server, left) = context.server().await?.evict(name).await?;
    if let Some(error) = left {
        context.out.note(format!(
            "note: the queues of the link stay with the broker, which could not be asked to remove \
             them: {}",
            error.chain()
        ));
    }
    context.out.both(
        format!("`{}` is no neighbour any more, and nothing waits for it.", server.nickname),
        &json!({ "evicted": server.nickname, "uuid": server.server }),
    );
    Ok(End::Done)
}

async fn disable(context: &Context, name: &str, disabled: bool) -> Result<End> {
    let server = context.server().await?.set_disabled(name, disabled).await?;
    let what = if disabled { "disabled: records for it wait" } else { "enabled" };
    context.out.both(
        format!("`{}` is {what}.", server.nickname),
        &json!({ "nickname": server.nickname, "uuid": server.server, "disabled": disabled }),
    );
    Ok(End::Done)
}
