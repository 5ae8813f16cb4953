//! The bodies of messages: MessagePack arrays, fields in the order in which they stand here.
//!
//! A field that is added comes last, with `#[serde(default)]`, and raises the format number: a
//! reader takes bodies of lower formats, in which it is missing; of a higher format it takes nothing,
//! and a body that has more fields than its format is refused. So whoever sends uses the lower of
//! the two formats that the hellos named.

use bytes::Bytes;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use uuid::Uuid;

use super::{batch, decode, limits};
use crate::error::{Error, Result};
use crate::id::{Actor, Incarnation, RecordId, ServerId};

pub use super::load::{Load, LoadRow};

/// Servers in a hello, records in an acknowledgement at the most.
const LIST_MAX: usize = 65_536;

macro_rules! coded {
    ($type:ident) => {
        impl $type {
            /// The body's bytes.
            ///
            /// # Errors
            /// [`Failed`](crate::Kind::Failed) when it cannot be encoded.
            pub fn encode(&self) -> Result<Vec<u8>> {
                rmp_serde::to_vec(self).map_err(|error| {
                    Error::failed("a message cannot be encoded").with_source(error)
                })
            }

            /// The body from its bytes.
            ///
            /// # Errors
            /// [`Decode`](crate::Kind::Decode) for bytes that are none, or break a limit.
            pub fn decode(bytes: &[u8]) -> Result<Self> {
                decode::exact(bytes)
            }
        }
    };
}

/// Records of one link, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Records {
    /// By the batches that their origins signed.
    pub groups: Vec<Group>,
}

/// Records of one signed batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Who sealed and signed it.
    pub origin: Actor,
    /// How many records, or parts of records, the batch has.
    pub count: u32,
    /// The origin's signature.
    pub signature: [u8; 64],
    /// Digests of what is absent.
    pub absent: Vec<[u8; 32]>,
    /// What is present.
    pub records: Vec<GroupRecord>,
}

/// A record, or a part of one, in a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupRecord {
    /// Its name on this hop.
    pub uuid: RecordId,
    /// Its place in the batch.
    pub index: u32,
    /// See [`super::payload`].
    pub payload: Bytes,
}

/// Named, so that it is an array of one field that others can follow.
#[derive(Serialize, Deserialize)]
struct WireRecords<'a> {
    #[serde(borrow, deserialize_with = "decode::bounded::<_, _, { limits::RECORDS_MAX }>")]
    groups: Vec<WireGroup<'a>>,
}

#[derive(Serialize, Deserialize)]
struct WireGroup<'a>(
    #[serde(borrow)] &'a serde_bytes::Bytes,
    u32,
    u32,
    #[serde(borrow)] &'a serde_bytes::Bytes,
    #[serde(borrow, deserialize_with = "decode::bounded::<_, _, LIST_MAX>")]
    Vec<&'a serde_bytes::Bytes>,
    #[serde(borrow, deserialize_with = "decode::bounded::<_, _, { limits::RECORDS_MAX }>")]
    Vec<(&'a serde_bytes::Bytes, u32, &'a serde_bytes::Bytes)>,
);

impl Records {
    /// The body's bytes.
    ///
    /// # Errors
    /// [`Failed`](crate::Kind::Failed) when it cannot be encoded.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let groups = self
            .groups
            .iter()
            .map(|group| {
                WireGroup(
                    serde_bytes::Bytes::new(group.origin.server.0.as_bytes()),
                    group.origin.incarnation,
                    group.count,
                    serde_bytes::Bytes::new(&group.signature),
                    group.absent.iter().map(|digest| serde_bytes::Bytes::new(digest)).collect(),
                    group
                        .records
                        .iter()
                        .map(|record| {
                            (
                                serde_bytes::Bytes::new(record.uuid.0.as_bytes()),
                                record.index,
                                serde_bytes::Bytes::new(&record.payload),
                            )
                        })
                        .collect(),
                )
            })
            .collect();
        rmp_serde::to_vec(&WireRecords { groups })
            .map_err(|error| Error::failed("records cannot be encoded").with_source(error))
    }

    /// The body from its bytes; payloads are not looked into.
    ///
    /// # Errors
    /// [`Decode`](crate::Kind::Decode) for bytes that are none, or break a limit.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let WireRecords { groups: list } = decode::exact(bytes)?;
        let mut groups = Vec::with_capacity(list.len());
        let mut count = 0;
        for WireGroup(server, incarnation, size, signature, absent, records) in list {
            count += records.len();
            if count > limits::RECORDS_MAX || size > batch::LEAVES_MAX {
                return Err(Error::decode("a message has too many records"));
            }
            let origin = Actor { server: ServerId(uuid(server)?), incarnation };
            let absent = absent.into_iter().map(|digest| fixed(digest)).collect::<Result<_>>()?;
            let records = records
                .into_iter()
                .map(|(id, index, payload)| {
                    let payload = Bytes::copy_from_slice(payload);
                    Ok(GroupRecord { uuid: RecordId(uuid(id)?), index, payload })
                })
                .collect::<Result<_>>()?;
            groups.push(Group {
                origin,
                count: size,
                signature: fixed(signature)?,
                absent,
                records,
            });
        }
        Ok(Self { groups })
    }
}

fn uuid(bytes: &[u8]) -> Result<Uuid> {
    Uuid::from_slice(bytes).map_err(|_| Error::decode("a uuid has 16 bytes"))
}

fn fixed<const N: usize>(bytes: &[u8]) -> Result<[u8; N]> {
    bytes
        .try_into()
        .map_err(|_| Error::decode(format!("a field has {} bytes instead of {N}", bytes.len())))
}

/// What became of a record at its receiver.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[repr(u8)]
#[serde(try_from = "u8", into = "u8")]
pub enum AckState {
    /// In the tables.
    Committed = 1,
    /// It was known already.
    AlreadyCommitted = 2,
    /// Held.
    Failed = 3,
    /// Held, and tried no more by itself.
    FailedAndStopped = 4,
    /// Refused by the rules.
    Rejected = 5,
}

impl From<AckState> for u8 {
    fn from(state: AckState) -> Self {
        state as Self
    }
}

impl TryFrom<u8> for AckState {
    type Error = String;
    fn try_from(code: u8) -> Result<Self, String> {
        Ok(match code {
            1 => Self::Committed,
            2 => Self::AlreadyCommitted,
            3 => Self::Failed,
            4 => Self::FailedAndStopped,
            5 => Self::Rejected,
            other => return Err(format!("the acknowledgement {other} is unknown")),
        })
    }
}

/// What became of records.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Acks {
    /// Epoch of the link towards the one who acknowledges; 0 when nothing is said about it.
    pub in_epoch: u64,
    /// Up to which number of it everything has come in.
    pub in_number: u64,
    /// Records by their state.
    #[serde(deserialize_with = "decode::bounded::<_, _, 16>")]
    pub groups: Vec<AckGroup>,
    /// Why records are held or refused.
    #[serde(deserialize_with = "decode::bounded::<_, _, LIST_MAX>")]
    pub reasons: Vec<AckReason>,
    /// Numbers of messages that did not come and are wanted again, as ranges, both ends included.
    #[serde(deserialize_with = "decode::bounded::<_, _, LIST_MAX>")]
    pub gaps: Vec<(u64, u64)>,
    /// Up to which number of each origin the whole subtree has everything.
    #[serde(deserialize_with = "decode::bounded::<_, _, LIST_MAX>")]
    pub subtree: Vec<(Uuid, Incarnation, u64)>,
    /// Rows, by class and key, of which the whole state is asked for.
    #[serde(deserialize_with = "decode::bounded::<_, _, LIST_MAX>")]
    pub rows: Vec<(String, String)>,
}
coded!(Acks);

/// Records of one state, by their names on the hop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AckGroup {
    /// The state.
    pub state: AckState,
    /// The records.
    #[serde(deserialize_with = "decode::bounded::<_, _, LIST_MAX>")]
    pub records: Vec<RecordId>,
}

/// Why a record is held or refused. Never a row's values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AckReason {
    /// The record by its name on the hop.
    pub record: RecordId,
    /// The reason, for people.
    pub message: String,
}

impl Acks {
    /// What became of `groups`.
    #[must_use]
    pub fn new(
        in_epoch: u64,
        in_number: u64,
        groups: Vec<AckGroup>,
        reasons: Vec<AckReason>,
    ) -> Self {
        Self { in_epoch, in_number, groups, reasons, ..Self::default() }
    }
}

/// A server of the tree that the speaker vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownOrigin {
    /// Who.
    pub actor: Actor,
    /// What it calls itself.
    #[serde(deserialize_with = "decode::name")]
    pub nickname: String,
    /// Its Ed25519 key.
    #[serde(with = "serde_bytes")]
    pub public_key: [u8; 32],
}

/// Who speaks, and what it knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Its life between two restores.
    pub incarnation: Incarnation,
    /// The process that speaks.
    pub session: Uuid,
    /// What it calls itself.
    #[serde(deserialize_with = "decode::name")]
    pub nickname: String,
    /// Its key; must be the one it joined with.
    #[serde(with = "serde_bytes")]
    pub public_key: [u8; 32],
    /// The epoch of what it sends.
    pub out_epoch: u64,
    /// The next number in it.
    pub out_number: u64,
    /// The epoch of what it receives.
    pub in_epoch: u64,
    /// Up to which number of it everything has come in.
    pub in_number: u64,
    /// Its clock, in milliseconds since 1970.
    pub clock: u64,
    /// The highest message format that it reads.
    pub format: u16,
    /// SHA-256 of its catalog, for people; may be empty.
    pub schema: ByteBuf,
    /// How classes merge in the tree, as its root says.
    pub merge: ByteBuf,
    /// Of each origin the last number that it has applied.
    #[serde(deserialize_with = "decode::bounded::<_, _, LIST_MAX>")]
    pub applied: Vec<(Uuid, Incarnation, u64)>,
    /// The servers that it vouches for.
    #[serde(deserialize_with = "decode::bounded::<_, _, LIST_MAX>")]
    pub origins: Vec<KnownOrigin>,
    /// Numbers of messages that did not come and are wanted again, as ranges, both ends included.
    #[serde(deserialize_with = "decode::bounded::<_, _, LIST_MAX>")]
    pub gaps: Vec<(u64, u64)>,
    /// Up to which number of each origin the whole tree has everything.
    #[serde(deserialize_with = "decode::bounded::<_, _, LIST_MAX>")]
    pub stable: Vec<(Uuid, Incarnation, u64)>,
    /// Numbers of the epoch of what it sends that will never come: ranges, both ends included.
    #[serde(deserialize_with = "decode::bounded::<_, _, LIST_MAX>")]
    pub skipped: Vec<(u64, u64)>,
    /// Records that it lacks and asks for, its own lost ones included: of each origin its running
    /// numbers from and to, both included.
    #[serde(deserialize_with = "decode::bounded::<_, _, LIST_MAX>")]
    pub wanted: Vec<(Uuid, Incarnation, u64, u64)>,
}
coded!(Hello);

/// A request to become a child.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Join {
    /// The invitation.
    pub invite: Uuid,
    /// What the server calls itself.
    #[serde(deserialize_with = "decode::name")]
    pub nickname: String,
    /// Its key.
    #[serde(with = "serde_bytes")]
    pub public_key: [u8; 32],
    /// Its life between two restores.
    pub incarnation: Incarnation,
    /// The process that asks.
    pub session: Uuid,
    /// The highest message format that it reads.
    pub format: u16,
    /// Its clock, in milliseconds since 1970.
    pub clock: u64,
    /// Made with the invitation's secret: it is the token's holder who asks, for this key.
    #[serde(with = "serde_bytes")]
    pub proof: [u8; 64],
}
coded!(Join);

impl Join {
    /// What the proof signs.
    fn text(&self, child: ServerId, parent: ServerId) -> Vec<u8> {
        let mut text = b"branchline join v1".to_vec();
        text.extend_from_slice(child.0.as_bytes());
        text.extend_from_slice(&self.public_key);
        text.extend_from_slice(parent.0.as_bytes());
        text.extend_from_slice(self.invite.as_bytes());
        text
    }

    /// Makes the proof with the token's secret.
    #[must_use]
    pub fn proven(mut self, secret: &SigningKey, child: ServerId, parent: ServerId) -> Self {
        self.proof = secret.sign(&self.text(child, parent)).to_bytes();
        self
    }

    /// Checks the proof with what the parent kept of the invitation.
    ///
    /// # Errors
    /// [`Decode`](crate::Kind::Decode) when it is not good.
    pub fn verify(&self, invite: &VerifyingKey, child: ServerId, parent: ServerId) -> Result<()> {
        let text = self.text(child, parent);
        invite
            .verify_strict(&text, &Signature::from_bytes(&self.proof))
            .map_err(|_| Error::decode("a request to join is not made with its token"))
    }

    /// The key of the server that asks.
    ///
    /// # Errors
    /// [`Decode`](crate::Kind::Decode) when it is none.
    pub fn key(&self) -> Result<VerifyingKey> {
        VerifyingKey::from_bytes(&self.public_key)
            .map_err(|error| Error::decode("a request has no good key").with_source(error))
    }
}

/// The parent's answer to a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// Whether the server is a child now.
    pub accepted: bool,
    /// Why not.
    pub reason: String,
    /// The tree that it belongs to.
    pub tree_id: Uuid,
    /// What the parent calls itself.
    #[serde(deserialize_with = "decode::name")]
    pub nickname: String,
    /// The servers that the parent vouches for.
    #[serde(deserialize_with = "decode::bounded::<_, _, LIST_MAX>")]
    pub origins: Vec<KnownOrigin>,
    /// How classes merge in the tree.
    pub merge: ByteBuf,
    /// The highest message format that the parent reads.
    pub format: u16,
    /// Its clock, in milliseconds since 1970.
    pub clock: u64,
}
coded!(Welcome);
