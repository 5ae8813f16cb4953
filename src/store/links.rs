//! What the room `link` keeps of each link, in `sync_server`; and what its decisions mean for
//! records, loads and rows on their way.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::books::{Neighbour, Role};
use super::session::{Datum, Dialect, Session};
use crate::error::{Error, Result};
use crate::link::{Inbound, Outbound, Peer, Range, Reaction, Word};

/// Locks the row of a neighbour until the transaction ends: what is kept of a link is read, changed
/// and written back. (SQLite has one writer at a time.)
pub async fn lock(session: &mut Session, neighbour: i64) -> Result<()> {
    if session.dialect() == Dialect::Postgres {
        let sql = "SELECT id FROM @sync_server WHERE id = $1 FOR UPDATE";
        session.query(sql, vec![neighbour.into()]).await?;
    }
    Ok(())
}

pub(super) fn decode<T: DeserializeOwned>(text: &str, what: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| {
        Error::failed(format!("`sync_server.{what}` is damaged")).with_source(error)
    })
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| Error::failed("the state of a link cannot be kept").with_source(error))
}

/// What came in of a link, by number.
pub async fn inbound(session: &mut Session, neighbour: i64) -> Result<Inbound> {
    let row = session
        .query_opt(
            "SELECT inbound, in_epoch, in_number FROM @sync_server WHERE id = $1",
            vec![neighbour.into()],
        )
        .await?;
    let Some(row) = row else { return Ok(Inbound::default()) };
    match row.opt_text(0)? {
        Some(text) => decode(text, "inbound"),
        None => Ok(Inbound::at(positive(row.int(1)?), positive(row.int(2)?))),
    }
}

/// Keeps what came in, and that the neighbour was heard of.
pub async fn save_inbound(
    session: &mut Session,
    neighbour: i64,
    inbound: &Inbound,
    now: i64,
) -> Result<()> {
    session
        .execute(
            "UPDATE @sync_server SET inbound = $2, in_epoch = $3, in_number = $4, \
             last_contact = $5, last_contact_state = 'ok' WHERE id = $1",
            vec![
                neighbour.into(),
                encode(inbound)?.into(),
                stored(inbound.epoch()).into(),
                stored(inbound.floor()).into(),
                Datum::time(now),
            ],
        )
        .await?;
    Ok(())
}

/// Keeps what was asked for.
pub async fn save_asked(session: &mut Session, neighbour: i64, inbound: &Inbound) -> Result<()> {
    session
        .execute(
            "UPDATE @sync_server SET inbound = $2 WHERE id = $1",
            vec![neighbour.into(), encode(inbound)?.into()],
        )
        .await?;
    Ok(())
}

/// The epoch of what we send, the last number given in it, and what the neighbour said of them.
pub async fn outbound(session: &mut Session, neighbour: i64) -> Result<(u64, u64, Outbound)> {
    let row = session
        .query_opt(
            "SELECT out_epoch, out_number, outbound FROM @sync_server WHERE id = $1",
            vec![neighbour.into()],
        )
        .await?;
    let Some(row) = row else { return Ok((0, 0, Outbound::default())) };
    let outbound = match row.opt_text(2)? {
        Some(text) => decode(text, "outbound")?,
        None => Outbound::default(),
    };
    Ok((positive(row.int(0)?), positive(row.int(1)?), outbound))
}

/// Who speaks at the other end of a link.
pub async fn peer(session: &mut Session, neighbour: i64) -> Result<Peer> {
    let sql = "SELECT peer FROM @sync_server WHERE id = $1";
    let row = session.query_opt(sql, vec![neighbour.into()]).await?;
    match row.as_ref().map(|row| row.opt_text(0)).transpose()?.flatten() {
        Some(text) => decode(text, "peer"),
        None => Ok(Peer::default()),
    }
}

/// Keeps who speaks there.
pub async fn save_peer(session: &mut Session, neighbour: i64, peer: &Peer) -> Result<()> {
    session
        .execute(
            "UPDATE @sync_server SET peer = $2 WHERE id = $1",
            vec![neighbour.into(), encode(peer)?.into()],
        )
        .await?;
    Ok(())
}

/// Messages of a neighbour that is not what it was were not taken in.
pub async fn passed(
    session: &mut Session,
    neighbour: i64,
    (epoch, number): (u64, u64),
) -> Result<()> {
    lock(session, neighbour).await?;
    let mut peer = peer(session, neighbour).await?;
    peer.pass(epoch, number);
    save_peer(session, neighbour, &peer).await
}

/// Takes in what a neighbour says of our numbers: what it misses is due at once, what it has is done
/// with where nothing else says so.
pub async fn hear(
    session: &mut Session,
    neighbour: &Neighbour,
    word: &Word,
    now: i64,
) -> Result<Reaction> {
    lock(session, neighbour.id).await?;
    let (epoch, last, mut outbound) = outbound(session, neighbour.id).await?;
    let before = outbound.clone();
    let reaction = outbound.hear((epoch, last), word, now);
    if outbound != before {
        session
            .execute(
                "UPDATE @sync_server SET outbound = $2 WHERE id = $1",
                vec![neighbour.id.into(), encode(&outbound)?.into()],
            )
            .await?;
        done(session, neighbour, outbound.heard(epoch)).await?;
    }
    for range in &reaction.again {
        #[cfg(test)]
        if crate::sim::sabotage::is_out(crate::sim::sabotage::Sabotage::Resend) {
            break;
        }
        again(session, neighbour, *range).await?;
    }
    Ok(reaction)
}

/// What travels without acknowledgements of its own is done with once its number has come in.
async fn done(session: &mut Session, neighbour: &Neighbour, number: u64) -> Result<()> {
    let binds = || vec![Datum::from(neighbour.id), stored(number).into()];
    session
        .execute("DELETE FROM @sync_row_due WHERE server_id = $1 AND link_number <= $2", binds())
        .await?;
    super::books::invites::load_arrived(session, neighbour.id, stored(number)).await
}

/// What went in these numbers is due again: records that are not answered, rows, loads.
async fn again(session: &mut Session, neighbour: &Neighbour, (from, to): Range) -> Result<()> {
    // A record in parts has the number of its last one; they lie in messages next to each other.
    const LOST: &str = "link.link_number >= $2 AND link.link_number - r.parts < $3";
    let unanswered = "link.state IN ('SENT', 'SENT_AGAIN')";
    let sql = match neighbour.role {
        Role::Parent => format!(
            "UPDATE @sync_record SET sent_at = NULL WHERE $1 = $1 AND id IN (SELECT r.id FROM \
             @sync_record r JOIN @sync_record link ON link.id = r.id WHERE {unanswered} AND {LOST})"
        ),
        Role::Child => format!(
            "UPDATE @sync_server_record SET sent_at = NULL WHERE server_id = $1 AND record_id IN \
             (SELECT r.id FROM @sync_record r JOIN @sync_server_record link ON link.record_id = r.id \
             WHERE link.server_id = $1 AND {unanswered} AND {LOST})"
        ),
    };
    let binds = || vec![Datum::from(neighbour.id), stored(from).into(), stored(to).into()];
    session.execute(&sql, binds()).await?;
    session
        .execute(
            "UPDATE @sync_row_due SET link_number = NULL \
             WHERE server_id = $1 AND link_number BETWEEN $2 AND $3",
            binds(),
        )
        .await?;
    super::books::invites::load_lost(session, neighbour.id, (stored(from), stored(to))).await
}

pub(super) fn positive(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

pub(super) fn stored(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
