//! `sync_answer`: what senders are still to be told of records that were held. A line is written in
//! the transaction that decides the record, and goes once the broker has the answer.

use crate::error::Result;
use crate::id::RecordId;
use crate::store::apply::Outcome;
use crate::store::session::{Datum, Session};

/// Notes what the senders of held records are to be told.
pub async fn note(
    session: &mut Session,
    ids: &[i64],
    state: &str,
    message: Option<&str>,
) -> Result<()> {
    let sql = format!(
        "INSERT INTO @sync_answer (server_id, uuid, state, error_message) \
         SELECT h.server_id, h.uuid, $1, $2 FROM @sync_held h \
         JOIN @sync_server s ON s.id = h.server_id WHERE h.uuid IS NOT NULL AND {} \
         ON CONFLICT (server_id, uuid) DO UPDATE SET state = excluded.state, \
         error_message = excluded.error_message",
        session.dialect().any("h.id", 3)
    );
    let binds = vec![state.into(), message.map(str::to_owned).into(), Datum::Ints(ids.to_vec())];
    session.execute(&sql, binds).await?;
    Ok(())
}

/// What a neighbour is still to be told of records that were held.
pub async fn left(session: &mut Session, server: i64, limit: i64) -> Result<Vec<Outcome>> {
    let rows = session
        .query(
            "SELECT uuid, state, error_message FROM @sync_answer WHERE server_id = $1 \
             ORDER BY uuid LIMIT $2",
            vec![server.into(), limit.into()],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Outcome {
                uuid: RecordId(row.uuid(0)?),
                state: row.text(1)?.parse()?,
                message: row.opt_text(2)?.map(str::to_owned),
            })
        })
        .collect()
}

/// Removes answers that lie with the broker, where nothing else became of the record meanwhile.
pub async fn told(session: &mut Session, server: i64, outcomes: &[Outcome]) -> Result<()> {
    let binds = outcomes
        .iter()
        .map(|outcome| vec![server.into(), outcome.uuid.into(), outcome.state.as_str().into()])
        .collect();
    let sql = "DELETE FROM @sync_answer WHERE server_id = $1 AND uuid = $2 AND state = $3";
    session.execute_each(sql, binds).await?;
    Ok(())
}

/// Neighbours that are to be told something.
pub async fn servers(session: &mut Session) -> Result<Vec<i64>> {
    let rows = session.query("SELECT DISTINCT server_id FROM @sync_answer", vec![]).await?;
    rows.iter().map(|row| row.int(0)).collect()
}
