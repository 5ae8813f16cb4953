//! The merge states of rows (`sync_row`), read and written in bulk.

use std::collections::HashMap;
use std::sync::Arc;

use super::actors::Actors;
use super::bulk;
use super::session::{Datum, Session};
use crate::error::{Context as _, Result};
use crate::merge::RowState;

/// A row by the local number of its class, and its key.
pub type Place = (i32, Arc<str>);

/// States of the rows that a transaction works on.
#[derive(Default)]
pub struct States {
    rows: HashMap<Place, Held>,
}

struct Held {
    state: RowState,
    /// As it was read; `None` when the row had no line.
    stored: Option<Vec<u8>>,
    dirty: bool,
}

impl States {
    /// Reads the states of `places` that are not here yet.
    pub async fn load(
        &mut self,
        session: &mut Session,
        actors: &Actors,
        places: impl IntoIterator<Item = Place>,
    ) -> Result<()> {
        let mut by_class: HashMap<i32, Vec<Arc<str>>> = HashMap::new();
        for (class, key) in places {
            if !self.rows.contains_key(&(class, Arc::clone(&key))) {
                by_class.entry(class).or_default().push(key);
            }
        }
        for (class, keys) in by_class {
            let sql = format!(
                "SELECT key, state FROM @sync_row WHERE class_id = $1 AND {}",
                session.dialect().any("key", 2)
            );
            let list = keys.iter().map(|key| Some(key.to_string())).collect();
            let rows = session.query(&sql, vec![class.into(), Datum::Texts(list)]).await?;
            for row in rows {
                let stored = row.bytes(1)?.to_vec();
                let state = RowState::decode(&stored, |number| actors.actor(number))
                    .context(|| format!("a state in `sync_row` of class {class} is damaged"))?;
                let held = Held { state, stored: Some(stored), dirty: false };
                self.rows.insert((class, row.text(0)?.into()), held);
            }
            for key in keys {
                self.rows.entry((class, key)).or_insert_with(|| Held {
                    state: RowState::default(),
                    stored: None,
                    dirty: false,
                });
            }
        }
        Ok(())
    }

    /// The state of a row that was loaded; that of a row never changed otherwise.
    #[must_use]
    pub fn get(&self, place: &Place) -> RowState {
        self.rows.get(place).map(|held| held.state.clone()).unwrap_or_default()
    }

    /// A look at the state of a row that was loaded.
    #[must_use]
    pub fn peek(&self, place: &Place) -> Option<&RowState> {
        self.rows.get(place).map(|held| &held.state)
    }

    /// The state of a row, to be changed.
    pub fn change(&mut self, place: Place) -> &mut RowState {
        let held = self.rows.entry(place).or_insert_with(|| Held {
            state: RowState::default(),
            stored: None,
            dirty: true,
        });
        held.dirty = true;
        &mut held.state
    }

    /// Writes what was changed. Open invitations without a load keep the states as they were.
    pub async fn save(&mut self, session: &mut Session, actors: &mut Actors) -> Result<()> {
        let dirty: Vec<Place> = self
            .rows
            .iter()
            .filter(|(_, held)| held.dirty)
            .map(|(place, _)| place.clone())
            .collect();
        if dirty.is_empty() {
            return Ok(());
        }
        self.keep_for_invitations(session, &dirty).await?;
        let mut rows = Vec::with_capacity(dirty.len());
        for place in dirty {
            let Some(held) = self.rows.get_mut(&place) else { continue };
            #[cfg(test)]
            if crate::sim::sabotage::is_out(crate::sim::sabotage::Sabotage::Erased) {
                held.state.erased = crate::merge::Seen::default();
            }
            actors.admit(session, held.state.actors()).await?;
            let bytes = held.state.encode(|actor| actors.number(actor))?;
            rows.push(vec![
                Datum::from(place.0),
                Datum::from(place.1.to_string()),
                Datum::from(bytes.clone()),
            ]);
            held.stored = Some(bytes);
            held.dirty = false;
        }
        bulk::insert(
            session,
            "@sync_row",
            &[("class_id", "int"), ("key", "text"), ("state", "bytea")],
            rows,
            "ON CONFLICT (class_id, key) DO UPDATE SET state = excluded.state",
        )
        .await?;
        Ok(())
    }

    async fn keep_for_invitations(&self, session: &mut Session, dirty: &[Place]) -> Result<()> {
        let open = session
            .query(
                "SELECT server_id FROM @sync_invite WHERE NOT load AND loaded_at IS NULL",
                vec![],
            )
            .await?;
        for invitation in open {
            let server = invitation.int(0)?;
            let rows = dirty
                .iter()
                .filter_map(|place| Some((place, self.rows.get(place)?)))
                .map(|(place, held)| {
                    vec![
                        Datum::from(server),
                        Datum::from(place.0),
                        Datum::from(place.1.to_string()),
                        Datum::from(held.stored.clone()),
                    ]
                })
                .collect();
            bulk::insert(
                session,
                "@sync_invite_state",
                &[("server_id", "int"), ("class_id", "int"), ("key", "text"), ("state", "bytea")],
                rows,
                "ON CONFLICT DO NOTHING",
            )
            .await?;
        }
        Ok(())
    }
}
