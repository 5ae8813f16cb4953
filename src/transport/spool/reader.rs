//! Reads one queue folder; the holder of its lock is the one active consumer.
//!
//! A message is in hand from its delivery until it is acknowledged, which deletes its file. What
//! is in hand is remembered by name, not as "all up to here": a message whose writer was slow to
//! rename it comes late, but comes.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

use super::blocking;
use super::folder::{Folder, LOCK};
use crate::error::{Error, Result};
use crate::transport::{BODY_BYTES_MAX, Consumer, Delivery};

/// Names that are read ahead of the messages: what one listing of a long queue is good for.
const AHEAD_MAX: usize = 1_024;

/// A queue folder opened for reading.
pub(super) struct SpoolConsumer {
    reader: Arc<Mutex<Reader>>,
    poll: Duration,
}

impl SpoolConsumer {
    pub(super) fn new(folder: Folder, prefetch: u16, poll: Duration) -> Self {
        let prefetch = usize::from(prefetch.max(1));
        Self { reader: Arc::new(Mutex::new(Reader::new(folder, prefetch))), poll }
    }

    /// What is read already; nothing while the reader is at work for a call that was cancelled.
    fn ready(&self) -> Option<Delivery> {
        self.reader.try_lock().ok()?.ready.pop_front()
    }

    async fn next_within(&mut self, wait: Duration) -> Result<Option<Delivery>> {
        let until = Instant::now() + wait;
        loop {
            // What the task reads it leaves with the reader, so nothing is lost when we are
            // cancelled while it works: the next call finds it here.
            if let Some(delivery) = self.ready() {
                return Ok(Some(delivery));
            }
            let reader = self.reader.clone();
            blocking(move || locked(&reader).look()).await?;
            if let Some(delivery) = self.ready() {
                return Ok(Some(delivery));
            }
            let now = Instant::now();
            if now >= until {
                return Ok(None);
            }
            sleep_until(until.min(now + self.poll)).await;
        }
    }
}

impl Consumer for SpoolConsumer {
    fn next<'a>(&'a mut self, wait: Duration) -> BoxFuture<'a, Result<Option<Delivery>>> {
        Box::pin(self.next_within(wait))
    }

    fn acknowledge<'a>(&'a mut self, tag: u64) -> BoxFuture<'a, Result<()>> {
        let reader = self.reader.clone();
        Box::pin(blocking(move || locked(&reader).acknowledge(tag)))
    }
}

fn locked(reader: &Mutex<Reader>) -> MutexGuard<'_, Reader> {
    reader.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The blocking half.
struct Reader {
    folder: Folder,
    prefetch: usize,
    lock: Option<File>,
    /// Names that the last listing found, in order.
    ahead: VecDeque<String>,
    /// What is delivered, or ready to be, and not acknowledged; by rising tag.
    in_hand: VecDeque<(u64, String)>,
    ready: VecDeque<Delivery>,
    tag: u64,
}

impl Reader {
    fn new(folder: Folder, prefetch: usize) -> Self {
        Self {
            folder,
            prefetch,
            lock: None,
            ahead: VecDeque::new(),
            in_hand: VecDeque::new(),
            ready: VecDeque::new(),
            tag: 0,
        }
    }

    /// Makes the next message ready, if there is one and it is our turn to read.
    fn look(&mut self) -> Result<()> {
        if !self.ready.is_empty() {
            return Ok(());
        }
        if !self.is_active()? || self.in_hand.len() >= self.prefetch {
            return Ok(());
        }
        if self.ahead.is_empty() {
            let in_hand: HashSet<&str> = self.in_hand.iter().map(|(_, name)| &**name).collect();
            let found = self.folder.first(AHEAD_MAX, |name| in_hand.contains(name));
            self.ahead = found.map_err(|error| self.gone(error))?.into();
        }
        while let Some(name) = self.ahead.pop_front() {
            if let Some(body) = self.read(&name)? {
                self.tag += 1;
                let tag = self.tag;
                self.in_hand.push_back((tag, name));
                self.ready.push_back(Delivery { body, tag, redelivered: false });
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether we hold the lock; takes it when nobody does. The system frees it when its holder
    /// dies, however it dies.
    fn is_active(&mut self) -> Result<bool> {
        let path = self.folder.path().join(LOCK);
        if let Some(lock) = &self.lock {
            return match is_at(lock, &path) {
                Ok(true) => Ok(true),
                Ok(false) => Err(self.gone(io::ErrorKind::NotFound.into())),
                Err(error) => Err(self.gone(error)),
            };
        }
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|error| self.gone(error))?;
        match file.try_lock() {
            Ok(()) => {
                self.folder.remove_unfinished().map_err(|error| self.gone(error))?;
                self.lock = Some(file);
                Ok(true)
            }
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(self.gone(error)),
        }
    }

    /// The message's bytes; nothing when it went away meanwhile, or is none of ours.
    fn read(&self, name: &str) -> Result<Option<Bytes>> {
        let path = self.folder.path().join(name);
        let mut body = Vec::new();
        let read = File::open(&path)
            .and_then(|file| file.take(BODY_BYTES_MAX as u64 + 1).read_to_end(&mut body));
        let reason = match read {
            Ok(_) if body.len() <= BODY_BYTES_MAX => return Ok(Some(body.into())),
            Ok(_) => format!("it has more than {BODY_BYTES_MAX} bytes"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => error.to_string(),
        };
        let aside = self.folder.reject(name).map_err(|error| self.gone(error))?;
        tracing::warn!(
            path = %path.display(),
            aside = %aside.display(),
            reason,
            "file is no message that can be read, and is moved aside"
        );
        Ok(None)
    }

    fn acknowledge(&mut self, tag: u64) -> Result<()> {
        if tag == 0 || tag > self.tag {
            let path = self.folder.path().display();
            return Err(Error::failed(format!("`{path}` has delivered no message of tag {tag}")));
        }
        let mut removed = false;
        while let Some((_, name)) = self.in_hand.pop_front_if(|(of, _)| *of <= tag) {
            match fs::remove_file(self.folder.path().join(&name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.gone(error));
                }
                _ => removed = true,
            }
        }
        if removed {
            self.folder.sync().map_err(|error| self.gone(error))?;
        }
        Ok(())
    }

    fn gone(&self, error: io::Error) -> Error {
        let path = self.folder.path().display();
        if error.kind() == io::ErrorKind::NotFound {
            return Error::failed(format!("queue `{path}` was removed: declare it again"));
        }
        Error::unreachable(format!("could not read queue `{path}`")).with_source(error)
    }
}

/// Whether the file still is the one at `path`: the queue may have been removed and made again.
#[cfg(unix)]
fn is_at(file: &File, path: &std::path::Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (held, found) = (file.metadata()?, fs::metadata(path)?);
    Ok((held.dev(), held.ino()) == (found.dev(), found.ino()))
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &std::path::Path) -> io::Result<bool> {
    fs::metadata(path).map(|_| true)
}
