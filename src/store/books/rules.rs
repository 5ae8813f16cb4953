//! Which class goes to whom and may come from whom: the defaults, and each server's own.
//!
//! The longest matching name wins; no match means both ways. A server's own rows are all that
//! counts for it: a later default reaches it only by [`propagate`].

use super::audit;
use super::servers::Neighbour;
use crate::catalog::Class;
use crate::error::{Error, Result};
pub use crate::rules::{Rule, effective};
use crate::store::Session;

/// The rules of one server.
pub async fn rules_of(session: &mut Session, server_id: i64) -> Result<Vec<Rule>> {
    let sql = "SELECT name, send_to, receive_from FROM @sync_server_class WHERE server_id = $1 \
               ORDER BY name";
    read(session.query(sql, vec![server_id.into()]).await?)
}

/// The rules that a new server gets.
pub async fn defaults(session: &mut Session) -> Result<Vec<Rule>> {
    let sql = "SELECT name, send_to, receive_from FROM @sync_class ORDER BY name";
    read(session.query(sql, Vec::new()).await?)
}

fn read(rows: Vec<crate::store::Row>) -> Result<Vec<Rule>> {
    rows.iter()
        .map(|row| {
            Ok(Rule {
                name: row.text(0)?.to_owned(),
                send_to: row.flag(1)?,
                receive_from: row.flag(2)?,
            })
        })
        .collect()
}

/// What `class exclude` and `class include` ask for.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// A class, or a prefix that ends in `*`.
    pub name: &'a str,
    /// Whether it is to pass.
    pub allow: bool,
    /// The change is about sending.
    pub send: bool,
    /// The change is about receiving.
    pub receive: bool,
}

/// Sets a rule of one server, or of the defaults. What the change does not speak of stays as it was
/// in effect.
///
/// # Errors
/// [`Config`](crate::Kind::Config) for a name that cannot be one.
pub async fn set(
    session: &mut Session,
    server: Option<&Neighbour>,
    change: Change<'_>,
    actor: &str,
) -> Result<Rule> {
    let name = checked_name(change.name)?;
    let rules = match server {
        Some(server) => rules_of(session, server.id).await?,
        None => defaults(session).await?,
    };
    let class = name.strip_suffix('*').unwrap_or(name);
    let now = rules.iter().find(|rule| rule.name == name).or_else(|| effective(&rules, class));
    let (send, receive) = now.map_or((true, true), |rule| (rule.send_to, rule.receive_from));
    let rule = Rule {
        name: name.to_owned(),
        send_to: if change.send { change.allow } else { send },
        receive_from: if change.receive { change.allow } else { receive },
    };
    put(session, server.map(|server| server.id), &rule).await?;
    let whose = server.map_or("the defaults".to_owned(), super::servers::named);
    let action = if change.allow { "class include" } else { "class exclude" };
    let detail =
        format!("`{name}` for {whose}: send {}, receive {}", rule.send_to, rule.receive_from);
    audit::note(session, actor, action, &detail).await?;
    Ok(rule)
}

async fn put(session: &mut Session, server_id: Option<i64>, rule: &Rule) -> Result<()> {
    let values = [rule.name.as_str().into(), rule.send_to.into(), rule.receive_from.into()];
    match server_id {
        None => {
            session
                .execute(
                    "INSERT INTO @sync_class (name, send_to, receive_from) VALUES ($1, $2, $3) \
                     ON CONFLICT (name) DO UPDATE SET send_to = excluded.send_to, \
                     receive_from = excluded.receive_from",
                    values.into(),
                )
                .await?
        }
        Some(id) => {
            let mut binds = Vec::from(values);
            binds.push(id.into());
            session
                .execute(
                    "INSERT INTO @sync_server_class (name, send_to, receive_from, server_id) \
                     VALUES ($1, $2, $3, $4) ON CONFLICT (server_id, name) DO UPDATE SET \
                     send_to = excluded.send_to, receive_from = excluded.receive_from",
                    binds,
                )
                .await?
        }
    };
    Ok(())
}

/// Copies one default to existing servers.
///
/// # Errors
/// [`Config`](crate::Kind::Config) when there is no such default.
pub async fn propagate(
    session: &mut Session,
    name: &str,
    servers: &[Neighbour],
    actor: &str,
) -> Result<Rule> {
    let all = defaults(session).await?;
    let Some(rule) = all.into_iter().find(|rule| rule.name == name) else {
        return Err(Error::config(format!(
            "there is no default rule `{name}`; `branchline class list` shows those there are"
        )));
    };
    for server in servers {
        put(session, Some(server.id), &rule).await?;
    }
    let names: Vec<_> = servers.iter().map(|server| server.nickname.as_str()).collect();
    let detail = format!("`{name}` to {}", names.join(", "));
    audit::note(session, actor, "class propagate", &detail).await?;
    Ok(rule)
}

fn checked_name(name: &str) -> Result<&str> {
    let name = name.trim();
    let inner = name.strip_suffix('*').unwrap_or(name);
    if name.is_empty() || inner.contains('*') {
        return Err(Error::config(format!(
            "`{name}` is no class: give a name, or a prefix with `*` at its end"
        )));
    }
    Ok(name)
}

/// Tracked classes that a name speaks of, and tracked classes outside it that refer to one of them.
pub async fn reach(session: &mut Session, name: &str) -> Result<(Vec<String>, Vec<String>)> {
    let rule = Rule { name: name.to_owned(), send_to: false, receive_from: false };
    let (mut named, mut referring) = (Vec::new(), Vec::new());
    for class in classes(session).await? {
        if rule.matches(&class.name) {
            named.push(class.name.to_string());
        } else if class.slots().any(|slot| rule.matches(&slot.reference.target)) {
            referring.push(class.name.to_string());
        }
    }
    Ok((named, referring))
}

/// The tracked classes, by name.
pub async fn classes(session: &mut Session) -> Result<Vec<Class>> {
    let rows = session
        .query(
            "SELECT class, definition FROM @sync_tracked WHERE definition IS NOT NULL ORDER BY class",
            Vec::new(),
        )
        .await?;
    rows.iter()
        .map(|row| {
            serde_json::from_str(row.text(1)?).map_err(|error| {
                Error::failed(format!(
                    "the definition of `{}` in `sync_tracked` is damaged",
                    row.text(0).unwrap_or_default()
                ))
                .with_source(error)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_at_the_end_only() {
        assert!(checked_name("a*").is_ok());
        assert!(checked_name("*").is_ok());
        assert!(checked_name("a*b").is_err());
        assert!(checked_name(" ").is_err());
    }
}
