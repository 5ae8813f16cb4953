//! `check`: one page that says what is captured, what is not, and what needs attention.

use serde_json::{Value, json};

use super::output::{count, span, time};
use super::{Context, End};
use crate::error::Result;
use crate::store::books::check::Facts;
use crate::store::books::servers::LinkState;
use crate::store::books::status::Link;
use crate::store::time as clock;

/// Unsealed changes older than this mean that no worker runs.
const UNSEALED_MAX_MS: i64 = 60_000;

pub(crate) async fn check(context: &Context) -> Result<End> {
    let server = context.server().await?;
    let now = clock::now();
    let facts = server.facts().await?;
    let broken = server.broken_capture().await?.into_iter().map(|class| {
        format!("the triggers of `{class}` are gone or out of date: run `branchline track`")
    });
    let skew_max = i64::try_from(context.config.clock_skew_alarm.as_millis()).unwrap_or(i64::MAX);
    let differing = server.merge_differing().await?.into_iter().map(|(class, why)| {
        format!(
            "`{class}` merges otherwise here than the root of the tree says, and its records are \
             held: {why}"
        )
    });
    let mut findings: Vec<String> = broken.chain(differing).collect();
    findings.extend(findings_of(&facts, now, skew_max));
    if context.out.json {
        context.out.object(&object(&facts, &findings));
    } else {
        page(context, &facts, &findings, now);
    }
    Ok(if findings.is_empty() { End::Done } else { End::Differs })
}

/// What needs attention, a sentence each, with what to do.
fn findings_of(facts: &Facts, now: i64, skew_max: i64) -> Vec<String> {
    let mut findings = Vec::new();
    let uncovered: Vec<_> = facts
        .not_captured
        .iter()
        .filter(|table| !table.by_rule)
        .map(|table| format!("`{}`", table.table))
        .collect();
    if facts.captured.is_empty() {
        findings.push("nothing is under capture: run `branchline track --all`".to_owned());
    } else if !uncovered.is_empty() {
        findings.push(format!(
            "not under capture: {} (`branchline track TABLE`, or `branchline class exclude TABLE` \
             if they are to stay here)",
            uncovered.join(", ")
        ));
    }
    if facts.status.held > 0 {
        findings.push(format!("{} held", count(facts.status.held, "record")));
    }
    if let Some(age) = facts.status.oldest_unsealed_ms.filter(|age| *age > UNSEALED_MAX_MS) {
        findings.push(format!(
            "{} not sealed, the oldest since {}: is a worker running?",
            count(facts.status.unsealed, "change"),
            span(age)
        ));
    }
    for link in facts.status.parent.iter().chain(&facts.status.children) {
        findings.extend(findings_of_link(link, now, skew_max));
    }
    findings
}

fn findings_of_link(link: &Link, now: i64, skew_max: i64) -> Vec<String> {
    let neighbour = &link.neighbour;
    let name = &neighbour.nickname;
    let mut findings = Vec::new();
    let stopped: i64 = link
        .out
        .iter()
        .filter(|(state, _)| state.starts_with("FAILED") || state == "SEND_FAILED")
        .map(|(_, number)| number)
        .sum();
    if stopped > 0 {
        findings.push(format!("{} not gone into `{name}`", count(stopped, "record")));
    }
    if let Some(skew) = neighbour.clock_skew_ms.filter(|skew| skew.abs() > skew_max) {
        let way = if skew > 0 { "ahead of" } else { "behind" };
        findings.push(format!("the clock of `{name}` is {} {way} ours", span(skew.abs())));
    }
    match neighbour.state {
        LinkState::Refused => findings.push(format!(
            "`{name}` refused to take this server: {}",
            neighbour.error_message.as_deref().unwrap_or("it did not say why")
        )),
        LinkState::Joined if neighbour.disabled => {
            findings.push(format!("`{name}` is disabled, and {} for it", waiting(link)));
        }
        LinkState::Joined if neighbour.last_contact_state.as_deref() == Some("failed") => {
            let since = neighbour.last_contact.map_or("ever".to_owned(), |time| span(now - time));
            findings.push(format!("the last contact with `{name}` failed, {since} ago"));
        }
        _ => {}
    }
    findings
}

fn waiting(link: &Link) -> String {
    match link.waiting() {
        1 => "1 record waits".to_owned(),
        number => format!("{number} records wait"),
    }
}

fn object(facts: &Facts, findings: &[String]) -> Value {
    json!({
        "ok": findings.is_empty(),
        "findings": findings,
        "captured": facts.captured.iter().map(|class| json!({
            "class": class.name,
            "key": class.key.iter().filter_map(|index| class.columns.get(*index))
                .map(|column| &column.name).collect::<Vec<_>>(),
            "host_triggers": class.host_triggers,
        })).collect::<Vec<_>>(),
        "not_captured": facts.not_captured.iter().map(|table| json!({
            "table": table.table, "by_rule": table.by_rule,
        })).collect::<Vec<_>>(),
        "rules": facts.defaults.iter().map(|rule| json!({
            "name": rule.name, "send_to": rule.send_to, "receive_from": rule.receive_from,
        })).collect::<Vec<_>>(),
        "held": facts.held.iter().map(|held| json!({
            "kind": held.kind, "reason": held.reason, "classes": held.classes,
            "held_at": time(Some(held.held_at)),
        })).collect::<Vec<_>>(),
        "oldest_unsealed_change_ms": facts.status.oldest_unsealed_ms,
    })
}

fn page(context: &Context, facts: &Facts, findings: &[String], now: i64) {
    let out = context.out;
    let identity = &facts.status.identity;
    out.say(format!("{} ({})", identity.nickname, identity.server));
    out.say("");
    out.say(format!("Under capture: {}", names(facts.captured.iter().map(|class| &*class.name))));
    let (by_rule, open): (Vec<_>, Vec<_>) =
        facts.not_captured.iter().partition(|table| table.by_rule);
    out.say(format!("Not captured: {}", names(open.iter().map(|table| table.table.as_str()))));
    out.say(format!(
        "Kept back by rule: {}",
        names(by_rule.iter().map(|table| table.table.as_str()))
    ));
    let triggered = facts.captured.iter().filter(|class| !class.host_triggers.is_empty());
    for class in triggered {
        out.say(format!("Host triggers on `{}`: {}", class.name, class.host_triggers.join(", ")));
    }
    for link in facts.status.parent.iter().chain(&facts.status.children) {
        let role = link.neighbour.role.as_str().to_ascii_lowercase();
        let heard = super::output::ago(link.neighbour.last_contact, now);
        out.say(format!(
            "Link to the {role} `{}`: {}, heard of {heard}, {}",
            link.neighbour.nickname,
            super::links::standing(&link.neighbour),
            waiting(link)
        ));
    }
    for held in &facts.held {
        out.say(format!(
            "Held since {} ({}): {}",
            span(now - held.held_at),
            held.classes,
            held.reason
        ));
    }
    out.say("");
    if findings.is_empty() {
        out.say("Nothing needs attention.");
    } else {
        out.say("Needs attention:");
        for finding in findings {
            out.say(format!("- {finding}"));
        }
    }
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let list: Vec<_> = names.collect();
    if list.is_empty() { "none".to_owned() } else { list.join(", ") }
}
