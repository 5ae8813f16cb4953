//! Whole-row states that a neighbour sent: each row by itself, as an item of op `State` of a record
//! that nobody sealed. Such a record is neither booked nor passed on; a row that does not go in (it
//! refers to one that is not here yet) is held like any other record, and goes in when it can.

use super::{Applied, Applier, Incoming, Pending};
use crate::error::Result;
use crate::id::RecordId;
use crate::merge::Time;
use crate::record::messages::LoadRow;
use crate::record::{Body, payload};
use crate::store::actors::Actors;
use crate::store::session::Session;

impl Incoming {
    /// The state of a row, as a record of the neighbour that sent it.
    #[must_use]
    pub fn state(row: &LoadRow, source: crate::id::Actor, now: i64) -> Self {
        let newest = row.state.seen.latest();
        let uuid = RecordId::fresh();
        let body = Body {
            original_uuid: uuid.0,
            origin: source,
            number: 0,
            time: newest.max(Time::default()),
            committed_at: now,
            part: (0, 1),
            items: vec![row.item()],
        };
        Self { uuid, body, parts: Vec::new(), places: Vec::new() }
    }

    /// Whether it is the state of a row, not a record.
    #[must_use]
    pub(super) fn is_state(&self) -> bool {
        self.places.is_empty()
    }

    /// A state as it is held.
    pub(super) fn to_be_held(&self) -> Result<Self> {
        let sealed = payload::encode_parts(std::slice::from_ref(&self.body))?;
        let parts = sealed.into_iter().map(|part| (part.payload.into(), part.leaf)).collect();
        Ok(Self { parts, ..self.clone() })
    }
}

impl Applier<'_> {
    /// Joins states of rows and brings the tables to what they say. The caller holds the seal lock,
    /// has sealed everything, and commits.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub async fn states(
        &self,
        session: &mut Session,
        actors: &mut Actors,
        rows: &[Incoming],
    ) -> Result<Applied> {
        let mut applied = Applied::default();
        let mut outcomes = vec![None; rows.len()];
        let pending = rows
            .iter()
            .enumerate()
            .map(|(at, incoming)| Pending {
                at,
                incoming,
                items: self.allowed(incoming),
                held: None,
                decided: false,
            })
            .filter(|pending| !pending.items.is_empty());
        self.run(session, actors, pending.collect(), &mut outcomes, &mut applied).await?;
        applied.outcomes = outcomes.into_iter().flatten().collect();
        Ok(applied)
    }
}
