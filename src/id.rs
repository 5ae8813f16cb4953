//! Names of things: the newtypes that cross every boundary.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A server of the tree, by the uuid that `init` gave it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServerId(pub Uuid);

/// One sync_record on one hop; a record that is passed on gets a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordId(pub Uuid);

/// A life of a server between two restores, counted from 1.
pub type Incarnation = u32;

impl ServerId {
    /// A new random identity.
    #[must_use]
    pub fn random() -> Self {
        Self(random())
    }
}

impl RecordId {
    /// A new identity, ordered by time so that indexes stay dense.
    #[must_use]
    pub fn fresh() -> Self {
        Self(in_order())
    }
}

/// A random uuid.
pub(crate) fn random() -> Uuid {
    #[cfg(test)]
    if let Some(uuid) = crate::sim::seams::uuid() {
        return uuid;
    }
    Uuid::new_v4()
}

/// A new uuid, ordered by time.
pub(crate) fn in_order() -> Uuid {
    #[cfg(test)]
    if let Some(uuid) = crate::sim::seams::uuid() {
        return uuid;
    }
    Uuid::now_v7()
}

macro_rules! as_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}
as_text!(ServerId);
as_text!(RecordId);

/// A server in one of its incarnations: who made a change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Actor {
    /// The server.
    pub server: ServerId,
    /// Its life between two restores.
    pub incarnation: Incarnation,
}
