//! The invitation: one line of text that a parent prints and a child reads, and all that the child
//! needs to connect.
//!
//! `brln1_` and the base64url of a MessagePack array and four bytes of its SHA-256. It holds the
//! secret that proves the invitation: whoever has the line may join once, until it expires. The
//! parent keeps only the key that verifies the proof.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::id::ServerId;

const PREFIX: &str = "brln1_";
const VERSION: u8 = 1;
const CHECKSUM_LEN: usize = 4;
const CHARS_MAX: usize = 4_096;

/// An invitation to become a child of one server.
#[derive(Clone, PartialEq)]
pub struct Token {
    /// The tree: the uuid that its root had when it was made.
    pub tree_id: Uuid,
    /// The parent to be.
    pub parent: ServerId,
    /// What the parent calls itself.
    pub parent_nickname: String,
    /// The key that verifies what the parent signs.
    pub parent_key: VerifyingKey,
    /// The broker of the link, login included.
    pub broker_url: String,
    /// Names the invitation.
    pub invite: Uuid,
    /// Signs the join request; the parent has its verifying half.
    pub secret: SigningKey,
    /// What the parent calls the child to be.
    pub nickname: String,
    /// From when on it is worth nothing: milliseconds since 1970.
    pub expires_at: i64,
    /// Whether the parent sends the child a first load of all data.
    pub load: bool,
}

#[derive(Serialize, Deserialize)]
struct Wire(u8, Uuid, Uuid, String, ByteArray<32>, String, Uuid, ByteArray<32>, String, i64, bool);

impl Token {
    /// The line of text.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when an address or a name is far too long.
    pub fn encode(&self) -> Result<String> {
        let wire = Wire(
            VERSION,
            self.tree_id,
            self.parent.0,
            self.parent_nickname.clone(),
            ByteArray::new(self.parent_key.to_bytes()),
            self.broker_url.clone(),
            self.invite,
            ByteArray::new(self.secret.to_bytes()),
            self.nickname.clone(),
            self.expires_at,
            self.load,
        );
        let mut bytes = rmp_serde::to_vec(&wire)
            .map_err(|error| Error::failed("the token cannot be written").with_source(error))?;
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        if text.len() > CHARS_MAX {
            return Err(Error::config(
                "the token becomes too long: shorten the broker's address or the nicknames",
            ));
        }
        Ok(text)
    }

    /// Reads the line of text; white space in and around it, as a mail may add it, is no matter.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config), saying what is wrong with it: no token at all, cut short or
    /// mangled, of a later version.
    pub fn decode(text: &str) -> Result<Self> {
        let text: String =
            text.chars().filter(|c| !c.is_whitespace()).take(CHARS_MAX + 1).collect();
        let mangled = || {
            Error::config(
                "the token is cut short or mangled: copy the whole line that `branchline invite` printed",
            )
        };
        let Some(body) = text.strip_prefix(PREFIX) else {
            return Err(match text.strip_prefix("brln") {
                Some(rest)
                    if rest.starts_with(|c: char| c.is_ascii_digit()) && rest.contains('_') =>
                {
                    Error::config("the token was made by a later Branchline: update this one")
                }
                _ => Error::config(format!(
                    "this is no token: one begins with `{PREFIX}` and is printed by `branchline invite NICKNAME` on the parent"
                )),
            });
        };
        if text.len() > CHARS_MAX {
            return Err(Error::config("this is no token: it is far too long"));
        }
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| mangled())?;
        let (bytes, sum) = bytes.split_last_chunk::<CHECKSUM_LEN>().ok_or_else(mangled)?;
        if *sum != checksum(bytes) {
            return Err(mangled());
        }
        if bytes.get(1) != Some(&VERSION) {
            return Err(Error::config("the token was made by a later Branchline: update this one"));
        }
        let wire: Wire = rmp_serde::from_slice(bytes).map_err(|_| mangled())?;
        Ok(Self {
            tree_id: wire.1,
            parent: ServerId(wire.2),
            parent_nickname: wire.3,
            parent_key: VerifyingKey::from_bytes(&wire.4).map_err(|_| mangled())?,
            broker_url: wire.5,
            invite: wire.6,
            secret: SigningKey::from_bytes(&wire.7),
            nickname: wire.8,
            expires_at: wire.9,
            load: wire.10,
        })
    }

    /// The key that the parent keeps to verify the join request.
    #[must_use]
    pub fn verify_key(&self) -> VerifyingKey {
        self.secret.verifying_key()
    }
}

/// The secret and the broker's password stay out of logs.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("tree_id", &self.tree_id)
            .field("parent", &self.parent)
            .field("invite", &self.invite)
            .finish_non_exhaustive()
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_LEN] {
    let digest = Sha256::digest(bytes);
    [digest[0], digest[1], digest[2], digest[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            tree_id: Uuid::from_u128(1),
            parent: ServerId(Uuid::from_u128(2)),
            parent_nickname: "Hôpital".into(),
            parent_key: SigningKey::from_bytes(&[7; 32]).verifying_key(),
            broker_url: "amqp://u:p@broker/%2f".into(),
            invite: Uuid::from_u128(3),
            secret: SigningKey::from_bytes(&[9; 32]),
            nickname: "clinic one".into(),
            expires_at: 1_800_000_000_000,
            load: true,
        }
    }

    #[test]
    fn a_token_comes_back_from_its_line() {
        let line = token().encode().unwrap();
        assert!(line.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'), "{line}");
        assert_eq!(Token::decode(&line).unwrap(), token());
        assert_eq!(
            Token::decode(&format!(" {}\n{} \n", &line[..80], &line[80..])).unwrap(),
            token()
        );
    }

    #[test]
    fn a_mangled_token_is_told_from_none() {
        let line = token().encode().unwrap();
        for cut in 0..line.len() {
            let error = Token::decode(&line[..cut]).unwrap_err();
            assert_eq!(error.kind(), crate::Kind::Config);
            let expected = if cut < PREFIX.len() { "this is no token" } else { "cut short" };
            assert!(error.to_string().contains(expected), "{cut}: {error}");
        }
        for place in PREFIX.len()..line.len() {
            let mut bytes = line.clone().into_bytes();
            bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
            let text = String::from_utf8(bytes).unwrap();
            assert!(Token::decode(&text).is_err(), "{place}");
        }
        assert!(Token::decode("hello").unwrap_err().to_string().contains("no token"));
        assert!(Token::decode("").is_err());
        assert!(
            Token::decode(&line.replace(PREFIX, "brln2_"))
                .unwrap_err()
                .to_string()
                .contains("later")
        );
        assert!(Token::decode(&format!("{PREFIX}{}", "A".repeat(100_000))).is_err());
    }

    #[test]
    fn secrets_stay_out_of_logs() {
        let shown = format!("{:?}", token());
        assert!(!shown.contains("secret") && !shown.contains(":p@"), "{shown}");
    }
}
