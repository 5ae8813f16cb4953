//! What an origin seals together, it signs together: one Ed25519 signature over the root of a
//! Merkle tree (as in RFC 6962) whose leaves are the digests of its records, or parts of records.
//!
//! A message that holds a whole batch carries nothing but the signature; one that holds some of its
//! records carries the digests of the subtrees that are absent, a few for each cut.

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use sha2::{Digest as _, Sha256};

use super::decode;
use crate::error::{Error, Result};
use crate::id::Actor;

/// Leaves of a batch at the most.
pub const LEAVES_MAX: u32 = 1 << 20;

/// Nodes of a tree that are kept or sent at the most.
const NODES_MAX: usize = 1 << 20;

type Digest = [u8; 32];

/// What is known of a batch's tree: digests of leaves, and of whole subtrees without their leaves.
/// Kept as disjoint ranges `[from, to)` in order, which together cover the batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tree {
    count: u32,
    nodes: Vec<(u32, u32, Digest)>,
}

#[derive(Serialize, Deserialize)]
struct Stored(
    u32,
    #[serde(deserialize_with = "decode::bounded::<_, _, NODES_MAX>")] Vec<(u32, u32, ByteBuf)>,
);

/// The largest power of two below `n`, for `n` of at least 2.
fn split(n: u32) -> u32 {
    let half = n.next_power_of_two() / 2;
    if half == n { half / 2 } else { half }
}

fn node(left: &Digest, right: &Digest) -> Digest {
    Sha256::new().chain_update([2]).chain_update(left).chain_update(right).finalize().into()
}

impl Tree {
    /// The tree over all leaves of a batch.
    ///
    /// # Errors
    /// [`Failed`](crate::Kind::Failed) for none, or too many.
    pub fn from_leaves(leaves: &[Digest]) -> Result<Self> {
        let count = u32::try_from(leaves.len()).unwrap_or(u32::MAX);
        if count == 0 || count > LEAVES_MAX {
            return Err(Error::failed(format!("a batch cannot have {count} records")));
        }
        let nodes = (0..count).zip(leaves).map(|(n, leaf)| (n, n + 1, *leaf)).collect();
        Ok(Self { count, nodes })
    }

    /// The tree as far as a message shows it: the leaves in it, and the digests of what is absent,
    /// from left to right.
    ///
    /// # Errors
    /// [`Decode`](crate::Kind::Decode) when they do not make a whole.
    pub fn from_parts(count: u32, leaves: &[(u32, Digest)], absent: &[Digest]) -> Result<Self> {
        if count == 0 || count > LEAVES_MAX {
            return Err(Error::decode(format!("a batch cannot have {count} records")));
        }
        let mut present: Vec<(u32, Digest)> = leaves.to_vec();
        present.sort_by_key(|(n, _)| *n);
        present.dedup();
        if present.windows(2).any(|pair| pair[0].0 == pair[1].0)
            || present.last().is_some_and(|(n, _)| *n >= count)
        {
            return Err(Error::decode("a record stands at no place of its batch"));
        }
        let mut nodes = Vec::with_capacity(present.len() + absent.len());
        let mut rest = absent.iter();
        cover(0, count, &present, &mut |from, to, leaf| {
            let digest = match leaf {
                Some(leaf) => leaf,
                None => {
                    *rest.next().ok_or_else(|| Error::decode("a digest of a batch is missing"))?
                }
            };
            nodes.push((from, to, digest));
            Ok(())
        })?;
        if rest.next().is_some() {
            return Err(Error::decode("a batch has digests left over"));
        }
        Ok(Self { count, nodes })
    }

    /// The digests of what is absent when only the records at `present` are sent.
    ///
    /// # Errors
    /// [`Failed`](crate::Kind::Failed) when a record is not known by itself here.
    pub fn absent(&self, present: &[u32]) -> Result<Vec<Digest>> {
        let mut leaves = Vec::with_capacity(present.len());
        for n in present {
            let leaf = self.nodes.binary_search_by_key(n, |(from, _, _)| *from);
            match leaf.map(|at| self.nodes[at]) {
                Ok((from, to, digest)) if to == from + 1 => leaves.push((*n, digest)),
                _ => return Err(Error::failed("a record is not known in its batch")),
            }
        }
        leaves.sort_by_key(|(n, _)| *n);
        leaves.dedup();
        let mut absent = Vec::new();
        cover(0, self.count, &leaves, &mut |from, to, leaf| {
            if leaf.is_none() {
                absent.push(self.digest(from, to)?);
            }
            Ok(())
        })?;
        Ok(absent)
    }

    /// How many records, or parts of records, the batch has.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The digest of the whole.
    ///
    /// # Errors
    /// [`Decode`](crate::Kind::Decode) when the nodes do not make a tree.
    pub fn root(&self) -> Result<Digest> {
        self.digest(0, self.count)
    }

    /// The digest of a subtree: known, or worked out from what is below it. The depth is that of
    /// the tree: 20 at the most.
    fn digest(&self, from: u32, to: u32) -> Result<Digest> {
        let at = self.nodes.partition_point(|(start, _, _)| *start < from);
        match self.nodes.get(at) {
            Some((start, end, digest)) if (*start, *end) == (from, to) => Ok(*digest),
            _ if to - from < 2 => Err(Error::decode("a batch has a hole")),
            _ => {
                let middle = from + split(to - from);
                Ok(node(&self.digest(from, middle)?, &self.digest(middle, to)?))
            }
        }
    }

    /// The form in which it is stored.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let nodes = self
            .nodes
            .iter()
            .map(|(from, to, d)| (*from, *to, ByteBuf::from(d.to_vec())))
            .collect();
        rmp_serde::to_vec(&Stored(self.count, nodes)).unwrap_or_default()
    }

    /// The tree from its stored form.
    ///
    /// # Errors
    /// [`Decode`](crate::Kind::Decode) when it is damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let Stored(count, list) = decode::exact(bytes)?;
        let mut nodes = Vec::with_capacity(list.len());
        let mut covered = 0;
        for (from, to, digest) in list {
            if from != covered || to <= from {
                return Err(Error::decode("the nodes of a batch are not in order"));
            }
            covered = to;
            let digest = digest.as_slice().try_into();
            nodes.push((from, to, digest.map_err(|_| Error::decode("a digest has 32 bytes"))?));
        }
        if covered != count || count == 0 || count > LEAVES_MAX {
            return Err(Error::decode(format!("a batch cannot have {count} records")));
        }
        Ok(Self { count, nodes })
    }
}

/// Walks the least set of subtrees that covers `[from, to)` so that each present leaf stands by
/// itself.
fn cover(
    from: u32,
    to: u32,
    present: &[(u32, Digest)],
    visit: &mut impl FnMut(u32, u32, Option<Digest>) -> Result<()>,
) -> Result<()> {
    let first = present.partition_point(|(n, _)| *n < from);
    let inside = present.get(first).filter(|(n, _)| *n < to);
    match inside {
        None => visit(from, to, None),
        Some((_, leaf)) if to - from == 1 => visit(from, to, Some(*leaf)),
        Some(_) => {
            let middle = from + split(to - from);
            cover(from, middle, present, visit)?;
            cover(middle, to, present, visit)
        }
    }
}

fn signed(origin: Actor, count: u32, root: &Digest) -> Vec<u8> {
    let mut text = b"branchline batch v1".to_vec();
    text.extend_from_slice(origin.server.0.as_bytes());
    text.extend_from_slice(&origin.incarnation.to_be_bytes());
    text.extend_from_slice(&count.to_be_bytes());
    text.extend_from_slice(root);
    text
}

/// The origin's signature of a batch.
#[must_use]
pub fn sign(key: &SigningKey, origin: Actor, count: u32, root: &Digest) -> [u8; 64] {
    key.sign(&signed(origin, count, root)).to_bytes()
}

/// Checks an origin's signature of a batch.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode) when it is not good.
pub fn verify(
    key: &VerifyingKey,
    origin: Actor,
    count: u32,
    root: &Digest,
    signature: &[u8; 64],
) -> Result<()> {
    key.verify_strict(&signed(origin, count, root), &Signature::from_bytes(signature)).map_err(
        |_| Error::decode(format!("a batch is not signed by its origin {}", origin.server)),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::ServerId;

    fn leaves(count: u32) -> Vec<Digest> {
        (0..count).map(|n| Sha256::digest(n.to_be_bytes()).into()).collect()
    }

    proptest! {
        #[test]
        fn any_subset_shows_the_same_root(count in 1_u32..200, mask in prop::collection::vec(any::<bool>(), 200)) {
            let all = leaves(count);
            let tree = Tree::from_leaves(&all).unwrap();
            let present: Vec<u32> = (0..count).filter(|n| mask[*n as usize]).collect();
            let absent = tree.absent(&present).unwrap();
            let shown: Vec<(u32, Digest)> = present.iter().map(|n| (*n, all[*n as usize])).collect();
            let partial = Tree::from_parts(count, &shown, &absent).unwrap();
            prop_assert_eq!(partial.root().unwrap(), tree.root().unwrap());
            let stored = Tree::from_bytes(&partial.to_bytes()).unwrap();
            prop_assert_eq!(&stored, &partial);
            // Passed on once more, with fewer.
            let fewer: Vec<u32> = present.iter().copied().step_by(2).collect();
            let absent = partial.absent(&fewer).unwrap();
            let shown: Vec<(u32, Digest)> = fewer.iter().map(|n| (*n, all[*n as usize])).collect();
            let again = Tree::from_parts(count, &shown, &absent).unwrap();
            prop_assert_eq!(again.root().unwrap(), tree.root().unwrap());
        }
    }

    #[test]
    fn a_changed_leaf_breaks_the_signature() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let origin = Actor { server: ServerId::random(), incarnation: 1 };
        let mut all = leaves(5);
        let root = Tree::from_leaves(&all).unwrap().root().unwrap();
        let signature = sign(&key, origin, 5, &root);
        assert!(verify(&key.verifying_key(), origin, 5, &root, &signature).is_ok());
        all[3][0] ^= 1;
        let root = Tree::from_leaves(&all).unwrap().root().unwrap();
        assert!(verify(&key.verifying_key(), origin, 5, &root, &signature).is_err());
    }

    #[test]
    fn hostile_trees_are_refused() {
        let one = leaves(1)[0];
        assert!(Tree::from_parts(0, &[], &[]).is_err());
        assert!(Tree::from_parts(u32::MAX, &[(0, one)], &[one]).is_err());
        assert!(Tree::from_parts(4, &[(4, one)], &[one]).is_err());
        assert!(Tree::from_parts(4, &[(0, one)], &[one]).is_err());
        assert!(Tree::from_parts(4, &[(0, one)], &[one, one, one]).is_err());
        assert!(Tree { count: 4, nodes: vec![(0, 3, one)] }.root().is_err());
    }
}
