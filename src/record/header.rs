//! The fixed header of a message, parsed by hand: nothing else is looked at before it, the sender's
//! signature and the sizes are good.

use std::io::Read as _;

use bytes::Bytes;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use uuid::Uuid;

use super::limits;
use crate::error::{Error, Result};
use crate::id::ServerId;

/// The format that is written, and the highest that is read.
pub const FORMAT: u16 = 1;

/// Bytes of the header, the signature included.
pub const HEADER_BYTES: usize = UNSIGNED_BYTES + 64;

const MAGIC: &[u8; 4] = b"BRLN";
const UNSIGNED_BYTES: usize = 4 + 2 + 1 + 1 + 1 + 1 + 16 + 16 + 8 + 8 + 4 + 4;
const DOMAIN: &[u8] = b"branchline message v1";
const FLAG_ZSTD: u8 = 1;

/// Bodies below this are not worth compressing.
const COMPRESS_FROM_BYTES: usize = 256;

/// The largest window that a compressed body may ask for: 2^23 = 8 MiB.
const WINDOW_LOG_MAX: u32 = 23;

/// What a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum MessageKind {
    /// Records.
    Records = 1,
    /// What became of records.
    Acks = 2,
    /// Who speaks.
    Hello = 3,
    /// A request to become a child.
    Join = 4,
    /// The answer to it.
    Welcome = 5,
    /// Whole-row states.
    Load = 6,
}

impl MessageKind {
    /// The message's type at the broker.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Records => "records",
            Self::Acks => "acks",
            Self::Hello => "hello",
            Self::Join => "join",
            Self::Welcome => "welcome",
            Self::Load => "load",
        }
    }

    fn of(code: u8) -> Result<Self> {
        Ok(match code {
            1 => Self::Records,
            2 => Self::Acks,
            3 => Self::Hello,
            4 => Self::Join,
            5 => Self::Welcome,
            6 => Self::Load,
            other => {
                return Err(Error::decode(format!("a message is of the unknown kind {other}")));
            }
        })
    }
}

/// Who says what to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What the message is.
    pub kind: MessageKind,
    /// Who sends it.
    pub sender: ServerId,
    /// Whom it is for.
    pub receiver: ServerId,
    /// The epoch of the link in that direction.
    pub epoch: u64,
    /// The running number in it; 0 in the lanes that have none.
    pub number: u64,
}

/// A message that is ready to be published.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Header and body.
    pub bytes: Bytes,
    /// Whether the body is compressed.
    pub compressed: bool,
}

/// A message whose header was read.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Its header.
    pub header: Header,
    bytes: Bytes,
    compressed: bool,
    decoded_bytes: usize,
}

/// Compresses a body when that helps, and signs it with its header.
///
/// # Errors
/// [`Failed`](crate::Kind::Failed) when it is too large for a message.
pub fn seal(header: &Header, body: &[u8], key: &SigningKey, zstd_level: i32) -> Result<Sealed> {
    if body.len() > limits::DECODED_BYTES_MAX {
        return Err(Error::failed(format!("a body of {} bytes is too large", body.len())));
    }
    let packed = compress(body, zstd_level)?;
    let (flags, stored) = match &packed {
        Some(packed) => (FLAG_ZSTD, packed.as_slice()),
        None => (0, body),
    };
    if stored.len() > limits::MESSAGE_BYTES_MAX {
        return Err(Error::failed(format!("a message of {} bytes is too large", stored.len())));
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + stored.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_be_bytes());
    bytes.extend_from_slice(&[0, flags, header.kind as u8, 0]);
    bytes.extend_from_slice(header.sender.0.as_bytes());
    bytes.extend_from_slice(header.receiver.0.as_bytes());
    bytes.extend_from_slice(&header.epoch.to_be_bytes());
    bytes.extend_from_slice(&header.number.to_be_bytes());
    bytes.extend_from_slice(&length(stored.len()).to_be_bytes());
    bytes.extend_from_slice(&length(body.len()).to_be_bytes());
    let signature = key.sign(&[DOMAIN, &bytes, stored].concat());
    bytes.extend_from_slice(&signature.to_bytes());
    bytes.extend_from_slice(stored);
    Ok(Sealed { bytes: bytes.into(), compressed: flags & FLAG_ZSTD != 0 })
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// The compressed body, when it is at least a twentieth smaller.
fn compress(body: &[u8], level: i32) -> Result<Option<Vec<u8>>> {
    if level == 0 || body.len() < COMPRESS_FROM_BYTES {
        return Ok(None);
    }
    let packed = zstd::bulk::compress(body, level)
        .map_err(|error| Error::failed("a message cannot be compressed").with_source(error))?;
    Ok(Some(packed).filter(|packed| packed.len() + body.len() / 20 < body.len()))
}

/// Takes fields off the front of a header.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let short = || Error::decode("a message is shorter than its header");
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or_else(short)?;
        self.0 = rest;
        Ok(*field)
    }
}

impl Opened {
    /// Reads the header and checks the sizes. Nothing is believed yet.
    ///
    /// # Errors
    /// [`Decode`](crate::Kind::Decode), saying what is wrong.
    pub fn parse(bytes: Bytes) -> Result<Self> {
        if bytes.len() > HEADER_BYTES + limits::MESSAGE_BYTES_MAX {
            return Err(Error::decode(format!("a message of {} bytes is too large", bytes.len())));
        }
        let mut fields = Fields(&bytes);
        if &fields.take::<4>()? != MAGIC {
            return Err(Error::decode("it is no message of Branchline"));
        }
        let format = u16::from_be_bytes(fields.take()?);
        if format == 0 || format > FORMAT {
            return Err(Error::decode(format!(
                "a message is of format {format}, and this version reads up to {FORMAT}: update it"
            )));
        }
        let [suite, flags, kind, reserved] = fields.take::<4>()?;
        if suite != 0 {
            return Err(Error::decode(format!("a message is of the unknown suite {suite}")));
        }
        if flags & !FLAG_ZSTD != 0 || reserved != 0 {
            return Err(Error::decode("a message has unknown flags"));
        }
        let header = Header {
            kind: MessageKind::of(kind)?,
            sender: ServerId(Uuid::from_bytes(fields.take()?)),
            receiver: ServerId(Uuid::from_bytes(fields.take()?)),
            epoch: u64::from_be_bytes(fields.take()?),
            number: u64::from_be_bytes(fields.take()?),
        };
        let stored = u32::from_be_bytes(fields.take()?) as usize;
        let decoded_bytes = u32::from_be_bytes(fields.take()?) as usize;
        let _signature: [u8; 64] = fields.take()?;
        if fields.0.len() != stored {
            return Err(Error::decode(format!(
                "a message has {} bytes behind its header instead of {stored}",
                fields.0.len()
            )));
        }
        let compressed = flags & FLAG_ZSTD != 0;
        if decoded_bytes > limits::DECODED_BYTES_MAX || (!compressed && decoded_bytes != stored) {
            return Err(Error::decode(format!("a body of {decoded_bytes} bytes is not accepted")));
        }
        Ok(Self { header, bytes, compressed, decoded_bytes })
    }

    /// Checks that the sender signed it.
    ///
    /// # Errors
    /// [`Decode`](crate::Kind::Decode) when it did not.
    pub fn verify(&self, key: &VerifyingKey) -> Result<()> {
        let (unsigned, rest) = self.bytes.split_at(UNSIGNED_BYTES);
        let (signature, body) = rest.split_at(64);
        let signature = Signature::from_slice(signature)
            .map_err(|_| Error::decode("a message has no signature"))?;
        key.verify_strict(&[DOMAIN, unsigned, body].concat(), &signature).map_err(|_| {
            Error::decode(format!("a message is not signed by its sender {}", self.header.sender))
        })
    }

    /// The body, decompressed within its limits.
    ///
    /// # Errors
    /// [`Decode`](crate::Kind::Decode) when it is damaged, or larger than it said.
    pub fn body(&self) -> Result<Vec<u8>> {
        let stored = &self.bytes[HEADER_BYTES..];
        if !self.compressed {
            return Ok(stored.to_vec());
        }
        let damaged = |error: std::io::Error| {
            Error::decode("the body of a message does not decompress").with_source(error)
        };
        let mut decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(damaged)?;
        decoder.window_log_max(WINDOW_LOG_MAX).map_err(damaged)?;
        let mut body = Vec::with_capacity(self.decoded_bytes);
        decoder.take(self.decoded_bytes as u64 + 1).read_to_end(&mut body).map_err(damaged)?;
        if body.len() != self.decoded_bytes {
            return Err(Error::decode("the body of a message has another size than it says"));
        }
        Ok(body)
    }

    /// How many bytes the body has once it is decompressed, as the header says.
    #[must_use]
    pub fn decoded_bytes(&self) -> usize {
        self.decoded_bytes
    }

    /// The message as it came.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            kind: MessageKind::Acks,
            sender: ServerId(Uuid::from_u128(1)),
            receiver: ServerId(Uuid::from_u128(2)),
            epoch: 3,
            number: 4,
        }
    }

    #[test]
    fn a_message_comes_back_and_is_compressed_when_that_helps() {
        let key = SigningKey::from_bytes(&[1; 32]);
        for body in [vec![], b"short".to_vec(), vec![7; 100_000]] {
            let sealed = seal(&header(), &body, &key, 3).unwrap();
            assert_eq!(sealed.compressed, body.len() > 1_000);
            let opened = Opened::parse(sealed.bytes).unwrap();
            assert_eq!(opened.header, header());
            opened.verify(&key.verifying_key()).unwrap();
            assert_eq!(opened.body().unwrap(), body);
            let other = SigningKey::from_bytes(&[2; 32]).verifying_key();
            assert!(opened.verify(&other).is_err());
        }
    }

    #[test]
    fn the_header_is_laid_out_as_the_protocol_says() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let sealed = seal(&header(), b"x", &key, 0).unwrap();
        let mut expected = b"BRLN\0\x01\0\0\x02\0".to_vec();
        expected.extend(1_u128.to_be_bytes());
        expected.extend(2_u128.to_be_bytes());
        expected.extend(3_u64.to_be_bytes());
        expected.extend(4_u64.to_be_bytes());
        expected.extend([0, 0, 0, 1, 0, 0, 0, 1]);
        assert_eq!(sealed.bytes[..UNSIGNED_BYTES], expected);
        assert_eq!(sealed.bytes.len(), HEADER_BYTES + 1);
    }

    #[test]
    fn no_changed_or_cut_byte_is_taken() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let sealed = seal(&header(), &vec![9; 2_000], &key, 3).unwrap();
        for at in 0..sealed.bytes.len() {
            let mut bytes = sealed.bytes.to_vec();
            bytes[at] ^= 0x41;
            let taken = Opened::parse(bytes.into())
                .and_then(|opened| opened.verify(&key.verifying_key()).map(|()| opened))
                .and_then(|opened| opened.body());
            assert!(taken.is_err(), "byte {at}");
            assert!(Opened::parse(sealed.bytes.slice(..at)).is_err());
        }
    }

    #[test]
    fn a_bomb_is_cut_off() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let packed = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
        let sealed = seal(&header(), &vec![0; 3_000], &key, 3).unwrap();
        let mut bytes = sealed.bytes[..HEADER_BYTES].to_vec();
        bytes[UNSIGNED_BYTES - 8..UNSIGNED_BYTES - 4]
            .copy_from_slice(&u32::try_from(packed.len()).unwrap().to_be_bytes());
        bytes.extend(packed);
        assert!(Opened::parse(bytes.into()).unwrap().body().is_err());
    }
}
