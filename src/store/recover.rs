//! After a restore: what the server lacks is known by what its neighbours have of each origin. They
//! send it again: records, where they are still there, whole rows otherwise.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::actors::Actors;
use super::books::{Identity, Neighbour, Role};
use super::links::{self, positive, stored};
use super::session::{Datum, Session};
use crate::error::Result;
use crate::id::{Actor, Incarnation, ServerId};
use crate::link::ranges;
use crate::merge::RowState;

/// What is known of an origin's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Numbers {
    /// Up to here nothing is missing.
    whole: u64,
    /// The highest that came.
    highest: u64,
}

async fn numbers(session: &mut Session, identity: &Identity) -> Result<BTreeMap<Actor, Numbers>> {
    let sql = "SELECT uuid, incarnation, number, highest FROM @sync_origin";
    let mut list = BTreeMap::new();
    for row in session.query(sql, vec![]).await? {
        let incarnation = u32::try_from(row.int(1)?).unwrap_or(0);
        let actor = Actor { server: ServerId(row.uuid(0)?), incarnation };
        let whole = positive(row.int(2)?);
        list.insert(actor, Numbers { whole, highest: positive(row.int(3)?).max(whole) });
    }
    let own = identity.next_number.saturating_sub(1);
    list.insert(identity.actor(), Numbers { whole: own, highest: own });
    Ok(list)
}

/// The last number of each origin that this server has taken in, or sealed: what a hello says.
pub async fn applied(
    session: &mut Session,
    identity: &Identity,
) -> Result<Vec<(Uuid, Incarnation, u64)>> {
    let all = numbers(session, identity).await?.into_iter();
    let some = all.filter(|(_, numbers)| numbers.highest > 0);
    Ok(some.map(|(a, numbers)| (a.server.0, a.incarnation, numbers.highest)).collect())
}

/// Notes which numbers of their origins were taken in.
pub async fn took(
    session: &mut Session,
    numbers: impl Iterator<Item = (Actor, u64)>,
) -> Result<()> {
    let mut came: BTreeMap<Actor, BTreeSet<u64>> = BTreeMap::new();
    for (actor, number) in numbers.filter(|(_, number)| *number > 0) {
        came.entry(actor).or_default().insert(number);
    }
    let mut binds = Vec::new();
    for (actor, numbers) in came {
        let runs = ranges::tidy(numbers.into_iter().map(|n| (n, n)).collect(), usize::MAX);
        for (from, to) in runs {
            binds.push(vec![
                actor.server.into(),
                actor.incarnation.into(),
                stored(from).into(),
                stored(to).into(),
            ]);
        }
    }
    session
        .execute_each(
            "UPDATE @sync_origin SET highest = CASE WHEN highest < $4 THEN $4 ELSE highest END, \
             number = CASE WHEN number >= $3 - 1 AND number < $4 THEN $4 ELSE number END \
             WHERE uuid = $1 AND incarnation = $2 AND (highest < $4 OR number < $4)",
            binds,
        )
        .await?;
    Ok(())
}

/// What this server and a neighbour still have to clear up: after joining, or after a restore.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// It has just joined: what the neighbour has is either here or on its way.
    joined: bool,
    /// Records that are asked for: an origin's numbers, both ends included.
    list: Vec<(Uuid, Incarnation, u64, u64)>,
    /// Epoch and number of the hello that asked.
    asked: Option<(u64, u64)>,
}

async fn wanted(session: &mut Session, neighbour: i64) -> Result<Option<Wanted>> {
    let sql = "SELECT wanted FROM @sync_server WHERE id = $1";
    let row = session.query_opt(sql, vec![neighbour.into()]).await?;
    let Some(row) = row else { return Ok(None) };
    row.opt_text(0)?.map(|text| links::decode(text, "wanted")).transpose()
}

async fn save_wanted(session: &mut Session, neighbour: i64, wanted: Option<&Wanted>) -> Result<()> {
    let text = wanted.map(links::encode).transpose()?;
    session
        .execute(
            "UPDATE @sync_server SET wanted = $2 WHERE id = $1",
            vec![neighbour.into(), text.into()],
        )
        .await?;
    Ok(())
}

/// With this neighbour everything is to be cleared up: after a restore.
pub(super) async fn begin(session: &mut Session) -> Result<()> {
    let text = links::encode(&Wanted::default())?;
    session
        .execute("UPDATE @sync_server SET wanted = $1 WHERE state = 'JOINED'", vec![text.into()])
        .await?;
    Ok(())
}

/// This server has just joined a neighbour.
pub async fn joined(session: &mut Session, neighbour: i64) -> Result<()> {
    let wanted = Wanted { joined: true, ..Wanted::default() };
    save_wanted(session, neighbour, Some(&wanted)).await
}

/// What a hello is to ask for.
pub async fn to_ask(
    session: &mut Session,
    neighbour: i64,
) -> Result<Vec<(Uuid, Incarnation, u64, u64)>> {
    Ok(wanted(session, neighbour).await?.map(|wanted| wanted.list).unwrap_or_default())
}

/// Notes which hello asked.
pub async fn asked(session: &mut Session, neighbour: i64, number: u64) -> Result<()> {
    links::lock(session, neighbour).await?;
    let (epoch, ..) = links::outbound(session, neighbour).await?;
    let Some(mut wanted) = wanted(session, neighbour).await? else { return Ok(()) };
    wanted.asked.get_or_insert((epoch, number));
    save_wanted(session, neighbour, Some(&wanted)).await
}

/// Goes on with clearing up, as a neighbour says what it has of each origin. Says whether something
/// is to be asked for now.
pub async fn compare(
    session: &mut Session,
    identity: &Identity,
    neighbour: i64,
    theirs: &[(Uuid, Incarnation, u64)],
) -> Result<bool> {
    let Some(mut wanted) = wanted(session, neighbour).await? else { return Ok(false) };
    if wanted.joined {
        let all = theirs.iter().map(|(server, incarnation, number)| {
            (Actor { server: ServerId(*server), incarnation: *incarnation }, *number)
        });
        is_whole(session, all).await?;
        save_wanted(session, neighbour, None).await?;
        return Ok(false);
    }
    if let Some((epoch, number)) = wanted.asked {
        let (now, _, outbound) = links::outbound(session, neighbour).await?;
        if now == epoch && outbound.heard(epoch) >= number {
            // The neighbour has the question: all of it is on its way, whatever else comes before.
            let all = wanted.list.iter().map(|(server, incarnation, _, to)| {
                (Actor { server: ServerId(*server), incarnation: *incarnation }, *to)
            });
            is_whole(session, all).await?;
            save_wanted(session, neighbour, None).await?;
        }
        return Ok(false);
    }
    let ours = numbers(session, identity).await?;
    for (server, incarnation, number) in theirs {
        let actor = Actor { server: ServerId(*server), incarnation: *incarnation };
        let have = ours.get(&actor).map_or(0, |numbers| numbers.whole);
        if *number > have && actor != identity.actor() {
            wanted.list.push((*server, *incarnation, have + 1, *number));
        }
    }
    let some = !wanted.list.is_empty();
    save_wanted(session, neighbour, some.then_some(&wanted)).await?;
    Ok(some)
}

/// Nothing is missing up to these numbers, or it is on its way.
async fn is_whole(
    session: &mut Session,
    numbers: impl Iterator<Item = (Actor, u64)>,
) -> Result<()> {
    let binds = numbers.map(|(actor, number)| {
        vec![actor.server.into(), actor.incarnation.into(), stored(number).into()]
    });
    session
        .execute_each(
            "UPDATE @sync_origin SET number = $3 WHERE uuid = $1 AND incarnation = $2 \
             AND number < $3",
            binds.collect(),
        )
        .await?;
    Ok(())
}

/// A neighbour lost records that it had acknowledged: they are sent again. Of origins of which not all
/// asked for are here any more, it gets the whole rows instead.
pub async fn reopen(
    session: &mut Session,
    actors: &Actors,
    neighbour: &Neighbour,
    wanted: &[(Uuid, Incarnation, u64, u64)],
) -> Result<u64> {
    let mut reopened = 0;
    let mut rows_of: BTreeSet<(Uuid, Incarnation)> = BTreeSet::new();
    for (server, incarnation, from, to) in wanted {
        let actor = Actor { server: ServerId(*server), incarnation: *incarnation };
        let Some(origin) = actors.number(actor) else { continue };
        let binds = || vec![Datum::from(origin), stored(*from).into(), stored(*to).into()];
        let sql = "SELECT count(*) FROM @sync_record WHERE origin_id = $1 \
                   AND number BETWEEN $2 AND $3";
        let here = positive(session.query_one(sql, binds()).await?.int(0)?);
        if here <= to.saturating_sub(*from) {
            rows_of.insert((*server, *incarnation));
        }
        let again = "state = 'NEW', retry_count = 0, error_message = NULL, sent_at = NULL, \
                     link_number = NULL";
        let sql = match neighbour.role {
            Role::Parent => format!(
                "UPDATE @sync_record SET {again} WHERE origin_id = $1 AND number BETWEEN $2 AND $3 \
                 AND state IN ('COMMITTED', 'REJECTED')"
            ),
            Role::Child => format!(
                "UPDATE @sync_server_record SET {again} WHERE server_id = $4 \
                 AND state IN ('COMMITTED', 'REJECTED') AND record_id IN (SELECT id FROM \
                 @sync_record WHERE origin_id = $1 AND number BETWEEN $2 AND $3)"
            ),
        };
        let mut all = binds();
        if neighbour.is_child() {
            all.push(neighbour.id.into());
        }
        reopened += session.execute(&sql, all).await?;
    }
    if !rows_of.is_empty() {
        session
            .execute(
                "UPDATE @sync_server SET rows_of = $2 WHERE id = $1",
                vec![neighbour.id.into(), links::encode(&rows_of)?.into()],
            )
            .await?;
    }
    Ok(reopened)
}

/// The origins whose rows a neighbour is to get whole.
pub async fn rows_of(session: &mut Session, neighbour: i64) -> Result<Vec<Actor>> {
    let sql = "SELECT rows_of FROM @sync_server WHERE id = $1";
    let row = session.query_opt(sql, vec![neighbour.into()]).await?;
    let Some(text) = row.as_ref().map(|row| row.opt_text(0)).transpose()?.flatten() else {
        return Ok(Vec::new());
    };
    let list: Vec<(Uuid, Incarnation)> = links::decode(text, "rows_of")?;
    Ok(list
        .into_iter()
        .map(|(server, incarnation)| Actor { server: ServerId(server), incarnation })
        .collect())
}

/// Notes that the rows of these origins are on the list of what is due.
pub async fn rows_listed(session: &mut Session, neighbour: i64) -> Result<()> {
    session
        .execute("UPDATE @sync_server SET rows_of = NULL WHERE id = $1", vec![neighbour.into()])
        .await?;
    Ok(())
}

/// Row states to look through at a time.
const STATES_MAX: i64 = 2_000;

/// Rows that one of `origins` has touched, from behind `after` on, and where to go on; `None` at the
/// end.
pub async fn touched(
    session: &mut Session,
    actors: &Actors,
    origins: &[Actor],
    after: (i64, String),
) -> Result<(Vec<(String, String)>, Option<(i64, String)>)> {
    let rows = session
        .query(
            "SELECT t.class, r.key, r.state, r.class_id FROM @sync_row r \
             JOIN @sync_tracked t ON t.id = r.class_id WHERE (r.class_id, r.key) > ($1, $2) \
             ORDER BY r.class_id, r.key LIMIT $3",
            vec![after.0.into(), after.1.into(), STATES_MAX.into()],
        )
        .await?;
    let mut list = Vec::new();
    for row in &rows {
        let state = RowState::decode(row.bytes(2)?, |number| actors.actor(number))?;
        if origins.iter().any(|origin| state.seen.0.contains_key(origin)) {
            list.push((row.text(0)?.to_owned(), row.text(1)?.to_owned()));
        }
    }
    let last = rows.last().filter(|_| rows.len() as i64 == STATES_MAX);
    let next = last.map(|row| Ok::<_, crate::Error>((row.int(3)?, row.text(1)?.to_owned())));
    Ok((list, next.transpose()?))
}
