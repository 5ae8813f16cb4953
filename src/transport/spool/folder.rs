//! The folder of one queue: names, writing, listing. Blocking; nothing here knows of tokio.
//!
//! A message is a file `<time>-<writer>.<kind>.msg`. `time` is nanoseconds since 1970 in 20
//! digits, raised above all that the folder held when its writer began, so that the order of the
//! names is the order of publishing even when the clock was set back. Whatever else lies in the
//! folder is left alone, but for what a writer left half written.

use std::collections::BinaryHeap;
use std::ffi::OsStr;
use std::fs::{self, DirEntry, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::transport::Outgoing;

/// The file whose lock makes its holder the one active consumer.
pub(super) const LOCK: &str = ".consumer.lock";
/// Where files go that are not messages of ours although they are named so.
const REJECTED: &str = "rejected";
const MESSAGE: &str = ".msg";
const UNFINISHED: &str = ".tmp";
/// Half written files older than this are a crash's: writing one takes seconds.
const UNFINISHED_AGE: Duration = Duration::from_secs(600);
/// A file takes whole blocks of a disk; so many messages without a byte are bounded as well.
const BLOCK_BYTES: u64 = 4_096;

/// The folder of one queue.
#[derive(Clone, Debug)]
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the folder if it is not there, in a spool directory that is.
    pub(super) fn make(&self) -> io::Result<()> {
        match fs::create_dir(&self.0) {
            Ok(()) => self.0.parent().map_or(Ok(()), sync_folder)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        self.remove_unfinished()
    }

    /// Removes what a crash left half written.
    pub(super) fn remove_unfinished(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            if is_unfinished(&entry.file_name()) && is_old(&entry) {
                let _ = fs::remove_file(entry.path()); // another process may be quicker
            }
        }
        Ok(())
    }

    /// Removes the folder with all that is in it; that there is none is fine. It goes out of
    /// sight first, so that nobody sees it half empty.
    pub(super) fn remove(&self) -> io::Result<()> {
        let mut aside = self.0.clone().into_os_string();
        aside.push(format!(".removed-{:08x}", rand::random::<u32>()));
        match fs::rename(&self.0, &aside) {
            Ok(()) => fs::remove_dir_all(&aside),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The names of the first `count` messages that `skip` does not hold back, in order.
    pub(super) fn first(
        &self,
        count: usize,
        skip: impl Fn(&str) -> bool,
    ) -> io::Result<Vec<String>> {
        let mut first = BinaryHeap::with_capacity(count + 1);
        self.each_message(|name, _| {
            if !skip(&name) {
                first.push(name);
            }
            if first.len() > count {
                first.pop();
            }
        })?;
        Ok(first.into_sorted_vec())
    }

    /// How much the messages take on the disk, and the latest time in their names.
    pub(super) fn measure(&self) -> io::Result<(u64, u64)> {
        let (mut bytes, mut latest) = (0, 0);
        self.each_message(|name, entry| {
            latest = latest.max(time_of(&name).unwrap_or(0));
            bytes += entry.metadata().map_or(0, |found| on_disk(found.len()));
        })?;
        Ok((bytes, latest))
    }

    fn each_message(&self, mut see: impl FnMut(String, &DirEntry)) -> io::Result<()> {
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            // Only plain files: reading from a pipe would hang, a link may lead anywhere.
            if let Ok(name) = entry.file_name().into_string()
                && time_of(&name).is_some()
                && entry.file_type().is_ok_and(|kind| kind.is_file())
            {
                see(name, &entry);
            }
        }
        Ok(())
    }

    /// Writes a message beside its name, down to the disk, and returns both paths for
    /// [`Folder::finish`].
    pub(super) fn write(&self, name: &str, body: &[u8]) -> io::Result<Unfinished> {
        let unfinished = self.0.join(format!(".{name}{UNFINISHED}"));
        let mut file = OpenOptions::new().write(true).create_new(true).open(&unfinished)?;
        let written = file.write_all(body).and_then(|()| file.sync_all());
        if let Err(error) = written {
            let _ = fs::remove_file(&unfinished); // the disk may be full: give back what we took
            return Err(error);
        }
        Ok(Unfinished { from: unfinished, to: self.0.join(name) })
    }

    /// Moves a message out of the way that is none, keeping it for a person to look at.
    pub(super) fn reject(&self, name: &str) -> io::Result<PathBuf> {
        let rejected = self.0.join(REJECTED);
        match fs::create_dir(&rejected) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let aside = rejected.join(name);
        fs::rename(self.0.join(name), &aside)?;
        Ok(aside)
    }

    /// Puts what was renamed and removed in the folder on the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        sync_folder(&self.0)
    }
}

/// A message that is on the disk, but not in the queue yet.
#[must_use]
pub(super) struct Unfinished {
    from: PathBuf,
    to: PathBuf,
}

impl Unfinished {
    /// Puts it into the queue; for good only once the folder is synced.
    pub(super) fn finish(&self) -> io::Result<()> {
        fs::rename(&self.from, &self.to)
    }

    pub(super) fn discard(&self) {
        let _ = fs::remove_file(&self.from);
    }
}

/// What a file of so many bytes takes on the disk.
pub(super) fn on_disk(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(BLOCK_BYTES)
}

/// The name of a message published at `time` by this `writer`.
pub(super) fn name(time: u64, writer: u32, message: &Outgoing) -> String {
    let plain = message.kind.bytes().all(|byte| byte.is_ascii_lowercase());
    let kind = if plain { message.kind } else { "message" };
    format!("{time:020}-{writer:08x}.{kind}{MESSAGE}")
}

/// The time in a message's name; nothing for any other name.
pub(super) fn time_of(name: &str) -> Option<u64> {
    let (stem, kind) = name.strip_suffix(MESSAGE)?.split_once('.')?;
    let (time, writer) = stem.split_once('-')?;
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let well_formed = time.len() == 20
        && time.bytes().all(|byte| byte.is_ascii_digit())
        && writer.len() == 8
        && writer.bytes().all(lower_hex)
        && !kind.is_empty()
        && kind.bytes().all(|byte| byte.is_ascii_lowercase());
    if well_formed { time.parse().ok() } else { None }
}

/// Nanoseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn is_unfinished(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        let inner = name.strip_prefix('.').and_then(|name| name.strip_suffix(UNFINISHED));
        inner.and_then(time_of).is_some()
    })
}

fn is_old(entry: &DirEntry) -> bool {
    let modified = entry.metadata().and_then(|found| found.modified());
    modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > UNFINISHED_AGE))
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some file systems (FAT by way of some drivers) cannot sync a folder.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(()) // a folder cannot be opened as a file; renaming is on the disk's own journal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_by_time_and_foreign_names_are_none() {
        let name = "00000000000000000007-0000abcd.records.msg";
        assert_eq!(time_of(name), Some(7));
        for foreign in [
            "",
            ".msg",
            "notes.txt",
            "7-0000abcd.records.msg",
            "00000000000000000007-0000ABCD.records.msg",
            "00000000000000000007-0000abcd.msg",
            "00000000000000000007-0000abcd..msg",
            "00000000000000000007-0000abcd.records.msg.bak",
            "0000000000000000000x-0000abcd.records.msg",
            "+0000000000000000007-0000abcd.records.msg",
            "99999999999999999999-0000abcd.records.msg",
            "..00000000000000000007-0000abcd.records.msg",
        ] {
            assert_eq!(time_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_first_names_come_in_order_whatever_their_number() {
        let at = tempfile::tempdir().unwrap();
        let folder = Folder(at.path().to_owned());
        for time in [5_u64, 1, 4, 2, 3] {
            fs::write(at.path().join(format!("{time:020}-00000000.acks.msg")), b"x").unwrap();
        }
        let times =
            |names: Vec<String>| names.iter().filter_map(|n| time_of(n)).collect::<Vec<_>>();
        assert_eq!(times(folder.first(3, |_| false).unwrap()), [1, 2, 3]);
        assert_eq!(times(folder.first(3, |n| time_of(n) < Some(3)).unwrap()), [3, 4, 5]);
        assert_eq!(folder.measure().unwrap(), (5 * BLOCK_BYTES, 5));
    }
}
