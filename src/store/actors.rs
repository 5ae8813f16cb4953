//! Every server of the tree in each of its incarnations, by a small local number (`sync_origin`).

use std::collections::HashMap;

use super::session::Session;
use crate::error::{Error, Result};
use crate::id::{Actor, ServerId};

/// The numbers of all known actors, as of one transaction.
#[derive(Clone, Debug, Default)]
pub struct Actors {
    numbers: HashMap<Actor, u32>,
    actors: HashMap<u32, Known>,
}

/// What is known of an actor.
#[derive(Clone, Debug)]
pub struct Known {
    /// Who.
    pub actor: Actor,
    /// Its Ed25519 key, once a neighbour has told it.
    pub public_key: Option<[u8; 32]>,
    /// The name it gave itself.
    pub nickname: Option<String>,
}

impl Actors {
    /// Reads them all: hundreds at most.
    pub async fn load(session: &mut Session) -> Result<Self> {
        let rows = session
            .query("SELECT id, uuid, incarnation, public_key, nickname FROM @sync_origin", vec![])
            .await?;
        let mut actors = Self::default();
        for row in rows {
            let number = number_of(row.int(0)?)?;
            let incarnation = u32::try_from(row.int(2)?)
                .map_err(|_| Error::failed("an incarnation is out of range"))?;
            let actor = Actor { server: ServerId(row.uuid(1)?), incarnation };
            let public_key = row.opt_bytes(3)?.and_then(|bytes| bytes.try_into().ok());
            let nickname = row.opt_text(4)?.map(str::to_owned);
            actors.numbers.insert(actor, number);
            actors.actors.insert(number, Known { actor, public_key, nickname });
        }
        Ok(actors)
    }

    /// The number of an actor that is known.
    #[must_use]
    pub fn number(&self, actor: Actor) -> Option<u32> {
        self.numbers.get(&actor).copied()
    }

    /// The actor with a number.
    #[must_use]
    pub fn actor(&self, number: u32) -> Option<Actor> {
        self.actors.get(&number).map(|known| known.actor)
    }

    /// What is known of an actor.
    #[must_use]
    pub fn known(&self, actor: Actor) -> Option<&Known> {
        self.actors.get(&self.number(actor)?)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Known> {
        self.actors.values()
    }

    /// Gives a number to each actor that has none.
    pub async fn admit(
        &mut self,
        session: &mut Session,
        actors: impl IntoIterator<Item = Actor>,
    ) -> Result<()> {
        for actor in actors {
            if !self.numbers.contains_key(&actor) {
                self.learn(session, actor, None, None).await?;
            }
        }
        Ok(())
    }

    /// Notes what a neighbour tells of an actor; a key that is known never changes. Says whether
    /// anything is new.
    pub async fn learn(
        &mut self,
        session: &mut Session,
        actor: Actor,
        public_key: Option<[u8; 32]>,
        nickname: Option<&str>,
    ) -> Result<bool> {
        let before = self.known(actor).cloned();
        if let Some(known) = &before {
            let key_is_new = known.public_key.is_none() && public_key.is_some();
            let name_is_new = known.nickname.is_none() && nickname.is_some();
            if !key_is_new && !name_is_new {
                return Ok(false);
            }
        }
        let row = session
            .query_one(
                "INSERT INTO @sync_origin (uuid, incarnation, public_key, nickname) \
                 VALUES ($1, $2, $3, $4) ON CONFLICT (uuid, incarnation) DO UPDATE SET \
                 public_key = coalesce(sync_origin.public_key, excluded.public_key), \
                 nickname = coalesce(sync_origin.nickname, excluded.nickname) RETURNING id",
                vec![
                    actor.server.into(),
                    actor.incarnation.into(),
                    public_key.map(|key| key.to_vec()).into(),
                    nickname.map(str::to_owned).into(),
                ],
            )
            .await?;
        let number = number_of(row.int(0)?)?;
        let known = Known {
            actor,
            public_key: before.as_ref().and_then(|known| known.public_key).or(public_key),
            nickname: before
                .and_then(|known| known.nickname)
                .or_else(|| nickname.map(str::to_owned)),
        };
        self.numbers.insert(actor, number);
        self.actors.insert(number, known);
        Ok(true)
    }
}

fn number_of(id: i64) -> Result<u32> {
    u32::try_from(id).map_err(|_| Error::failed("`sync_origin.id` is out of range"))
}
