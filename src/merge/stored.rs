//! How a row state lies in `sync_row.state`.
//!
//! One byte of version (1), then one MessagePack array. A *stamp* is two entries in a row: the
//! actor's local number and the time. A row that was written once, whole, and nothing since (by far
//! the most) is `[stamp]`: a dozen bytes. Any other is
//!
//! ```text
//! [base, columns, seen, erased, shadow]
//! base    [] or [stamp]
//! columns [stamp, [name…], stamp, [name…]…]      names that share a stamp, stamps rising
//! seen    [stamp, stamp…]
//! erased  nil where it equals seen (a deleted row), else [stamp, stamp…]
//! shadow  nil or [name, value, name, value…]
//! ```
//!
//! Decoding is bounded by its input, never panics, and leaves no byte over.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pack::{self, Reader};
use super::{RowState, Seen, Stamp, Time};
use crate::error::{Error, Result};
use crate::id::Actor;
use crate::record::limits;

const VERSION: u8 = 1;

impl RowState {
    /// The state as it is stored; `number` gives each actor's local number.
    ///
    /// # Errors
    /// [`Failed`](crate::Kind::Failed) when an actor has no number.
    pub fn encode(&self, number: impl Fn(Actor) -> Option<u32>) -> Result<Vec<u8>> {
        let mut writer = Writer { out: Vec::with_capacity(32), number };
        writer.out.push(VERSION);
        writer.state(self)?;
        Ok(writer.out)
    }

    /// Reads what [`Self::encode`] wrote; `actor` knows the numbers.
    ///
    /// # Errors
    /// [`Decode`](crate::Kind::Decode) for bytes that are no state, and for a number that is
    /// nobody's.
    pub fn decode(bytes: &[u8], actor: impl Fn(u32) -> Option<Actor>) -> Result<Self> {
        match bytes.split_first() {
            Some((&VERSION, body)) => Decoder { reader: Reader::new(body), actor }.state(),
            Some((version, _)) => {
                Err(Error::decode(format!("a row state of unknown version {version}")))
            }
            None => Err(Error::decode("an empty row state")),
        }
    }

    /// The one stamp of a row that was written once, whole.
    fn plain(&self) -> Option<Stamp> {
        let base = self.base?;
        let only = self.columns.is_empty() && self.erased.is_empty() && self.shadow.is_none();
        (only && self.seen.iter().eq([base])).then_some(base)
    }
}

struct Writer<F> {
    out: Vec<u8>,
    number: F,
}

impl<F: Fn(Actor) -> Option<u32>> Writer<F> {
    fn state(&mut self, state: &RowState) -> Result<()> {
        if let Some(stamp) = state.plain() {
            return self.stamps([stamp].into_iter());
        }
        pack::array(&mut self.out, 5);
        self.stamps(state.base.into_iter())?;
        self.columns(&state.columns)?;
        self.stamps(state.seen.iter())?;
        if !state.erased.is_empty() && state.erased == state.seen {
            pack::nil(&mut self.out);
        } else {
            self.stamps(state.erased.iter())?;
        }
        let Some(shadow) = &state.shadow else {
            pack::nil(&mut self.out);
            return Ok(());
        };
        pack::array(&mut self.out, 2 * shadow.len());
        for (name, value) in shadow {
            pack::text(&mut self.out, name);
            pack::value(&mut self.out, value);
        }
        Ok(())
    }

    fn columns(&mut self, columns: &BTreeMap<Arc<str>, Stamp>) -> Result<()> {
        let mut by_stamp: BTreeMap<Stamp, Vec<&str>> = BTreeMap::new();
        for (name, stamp) in columns {
            by_stamp.entry(*stamp).or_default().push(name);
        }
        pack::array(&mut self.out, 3 * by_stamp.len());
        for (stamp, names) in by_stamp {
            self.stamp(stamp)?;
            pack::array(&mut self.out, names.len());
            for name in names {
                pack::text(&mut self.out, name);
            }
        }
        Ok(())
    }

    fn stamps(&mut self, stamps: impl ExactSizeIterator<Item = Stamp>) -> Result<()> {
        pack::array(&mut self.out, 2 * stamps.len());
        stamps.into_iter().try_for_each(|stamp| self.stamp(stamp))
    }

    fn stamp(&mut self, stamp: Stamp) -> Result<()> {
        let number = (self.number)(stamp.actor).ok_or_else(|| {
            Error::failed(format!("server {} has no local number", stamp.actor.server))
        })?;
        pack::uint(&mut self.out, number.into());
        pack::uint(&mut self.out, stamp.time.0);
        Ok(())
    }
}

struct Decoder<'a, F> {
    reader: Reader<'a>,
    actor: F,
}

impl<F: Fn(u32) -> Option<Actor>> Decoder<'_, F> {
    fn state(&mut self) -> Result<RowState> {
        let mut state = RowState::default();
        match self.reader.array()? {
            2 => {
                let stamp = self.stamp()?;
                state.base = Some(stamp);
                state.seen.touch(stamp);
            }
            5 => {
                let base = self.stamps()?;
                state.base = base.first().copied();
                state.columns = self.columns(state.base)?;
                state.seen = self.seen()?;
                state.erased = if self.reader.nil() { state.seen.clone() } else { self.seen()? };
                if !self.reader.nil() {
                    state.shadow = Some(self.shadow()?);
                }
                if base.len() > 1 {
                    return Err(Error::decode("a row state has two bases"));
                }
            }
            _ => return Err(Error::decode("a row state is damaged")),
        }
        self.reader.end()?;
        Ok(state)
    }

    /// How many groups of `per` entries an array has.
    fn groups(&mut self, per: usize, max: usize) -> Result<usize> {
        let len = self.reader.array()?;
        if len % per != 0 || len / per > max {
            return Err(Error::decode("a list in a row state is damaged or too long"));
        }
        Ok(len / per)
    }

    fn columns(&mut self, base: Option<Stamp>) -> Result<BTreeMap<Arc<str>, Stamp>> {
        let mut columns = BTreeMap::new();
        for _ in 0..self.groups(3, limits::COLUMNS_MAX)? {
            let stamp = self.stamp()?;
            for _ in 0..self.groups(1, limits::COLUMNS_MAX)? {
                let name = self.name()?;
                if base != Some(stamp) {
                    columns.insert(name, stamp);
                }
            }
        }
        Ok(columns)
    }

    fn shadow(&mut self) -> Result<BTreeMap<Arc<str>, crate::record::Value>> {
        let count = self.groups(2, limits::COLUMNS_MAX)?;
        (0..count).map(|_| Ok((self.name()?, self.reader.value()?))).collect()
    }

    fn name(&mut self) -> Result<Arc<str>> {
        let name = self.reader.text()?;
        if name.len() > limits::NAME_BYTES_MAX {
            return Err(Error::decode("a column name in a row state is too long"));
        }
        Ok(Arc::from(name))
    }

    fn seen(&mut self) -> Result<Seen> {
        Ok(self.stamps()?.into_iter().collect())
    }

    fn stamps(&mut self) -> Result<Vec<Stamp>> {
        (0..self.groups(2, limits::ACTORS_MAX)?).map(|_| self.stamp()).collect()
    }

    fn stamp(&mut self) -> Result<Stamp> {
        let number = self.reader.uint()?;
        let actor = u32::try_from(number).ok().and_then(&self.actor);
        let actor = actor.ok_or_else(|| {
            Error::decode(format!("a row state names server number {number}, which is nobody's"))
        })?;
        Ok(Stamp { time: Time(self.reader.uint()?), actor })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::merge::laws::states;
    use crate::merge::model::{actor, actor_number, name, stamp};
    use crate::record::{Op, RowId, Value};

    fn encode(state: &RowState) -> Vec<u8> {
        state.encode(actor_number).unwrap()
    }

    fn decode(bytes: &[u8]) -> Result<RowState> {
        RowState::decode(bytes, |number| (number < 64).then(|| actor(number)))
    }

    fn dead() -> RowState {
        let mut state = RowState::default();
        state.touch_local(Op::Insert, [], stamp(1, 1_700_000_000_000 << 16));
        state.touch_local(Op::Update, [name("a"), name("b")], stamp(2, 1_700_000_000_001 << 16));
        state.touch_local(Op::Delete, [], stamp(1, 1_700_000_000_002 << 16));
        let row = RowId { class: "person".into(), key: "x".into() };
        let values = [("a", Value::Int(-5)), ("b", Value::Ref(row)), ("c", Value::Null)];
        state.shadow = Some(values.into_iter().map(|(n, value)| (name(n), value)).collect());
        state
    }

    #[test]
    fn a_plain_row_takes_a_dozen_bytes() {
        let mut state = RowState::default();
        state.touch_local(Op::Insert, [], stamp(1, 1_700_000_000_000 << 16));
        let bytes = encode(&state);
        assert_eq!(bytes.len(), 12);
        assert_eq!(decode(&bytes).unwrap(), state);
    }

    #[test]
    fn a_deleted_row_comes_back_with_its_shadow() {
        assert_eq!(decode(&encode(&dead())).unwrap(), dead());
    }

    /// What is stored on disks out there: this test fails when the format changes.
    #[test]
    fn the_stored_bytes_are_those_of_version_1() {
        let mut state = RowState::default();
        state.touch_local(Op::Insert, [], stamp(1, 5));
        assert_eq!(encode(&state), [1, 0x92, 1, 5]);
        state.touch_local(Op::Update, [name("a")], stamp(2, 6));
        let update =
            [1, 0x95, 0x92, 1, 5, 0x93, 2, 6, 0x91, 0xa1, b'a', 0x94, 1, 5, 2, 6, 0x90, 0xc0];
        assert_eq!(encode(&state), update);
        state.touch_local(Op::Delete, [], stamp(2, 7));
        state.shadow = Some([(name("a"), Value::Null)].into());
        let delete = [
            1, 0x95, 0x92, 1, 5, 0x93, 2, 6, 0x91, 0xa1, b'a', 0x94, 1, 5, 2, 7, 0xc0, 0x92, 0xa1,
            b'a', 0xc0,
        ];
        assert_eq!(encode(&state), delete);
    }

    #[test]
    fn an_actor_without_a_number_is_an_error() {
        assert!(dead().encode(|_| None).is_err());
        assert!(RowState::decode(&encode(&dead()), |_| None).is_err());
    }

    #[test]
    fn a_damaged_state_is_an_error_or_another_state_but_no_panic() {
        let bytes = encode(&dead());
        for n in 0..bytes.len() {
            assert!(decode(&bytes[..n]).is_err());
            for byte in 0..=255 {
                let mut damaged = bytes.clone();
                damaged[n] = byte;
                let _ = decode(&damaged);
            }
        }
        let mut longer = bytes.clone();
        longer.push(0xc0);
        assert!(decode(&longer).is_err());
        let mut later = bytes;
        later[0] = 2;
        assert!(decode(&later).unwrap_err().to_string().contains("version 2"));
    }

    #[test]
    fn no_state_at_all_is_stored_too() {
        assert_eq!(decode(&encode(&RowState::default())).unwrap(), RowState::default());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn every_state_comes_back(state in states()) {
            prop_assert_eq!(decode(&encode(&state)).unwrap(), state);
        }

        #[test]
        fn any_bytes_are_read_without_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            bytes.insert(0, 1);
            bytes.insert(1, 0x95);
            let _ = decode(&bytes);
        }
    }
}
