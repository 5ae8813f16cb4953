//! MessagePack from strangers: bounded in depth and counts, and nothing left over.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};

use super::limits;
use crate::error::{Error, Result};

/// Reads one value that takes all of `bytes`.
///
/// # Errors
/// [`Decode`](crate::Kind::Decode): it is no MessagePack, too deep, breaks a limit, or more follows.
pub(super) fn exact<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(limits::DEPTH_MAX);
    let value = T::deserialize(&mut deserializer)
        .map_err(|error| Error::decode("it is no MessagePack of this form").with_source(error))?;
    // At the end there is no marker to be read. A unit looks at no more than one marker: a list that
    // is cut short behind the value would else look like the end.
    match <()>::deserialize(&mut deserializer) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(Error::decode("bytes are left over behind a message")),
    }
}

/// A list of at most `MAX` elements; more are refused before they are read.
pub(super) fn bounded<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<T, const MAX: usize>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for List<T, MAX> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX}")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            if seq.size_hint().is_some_and(|size| size > MAX) {
                return Err(A::Error::custom(format!("a list has more than {MAX} elements")));
            }
            let mut list = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(256));
            while let Some(element) = seq.next_element()? {
                if list.len() == MAX {
                    return Err(A::Error::custom(format!("a list has more than {MAX} elements")));
                }
                list.push(element);
            }
            Ok(list)
        }
    }
    deserializer.deserialize_seq(List::<T, MAX>(PhantomData))
}

/// The name of a server: of few bytes.
pub(super) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = <&str>::deserialize(deserializer)?;
    if name.len() > limits::NAME_BYTES_MAX {
        return Err(D::Error::custom("a name is too long"));
    }
    Ok(name.to_owned())
}
