//! Publishes into queue folders: written beside, synced, renamed, and the folder synced.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::folder::{self, Folder, Unfinished};
use crate::failpoint::crash_point;
use crate::transport::{BODY_BYTES_MAX, Outcome, Outgoing, Queue};

/// How long a measured size is believed: other processes publish, and the consumer deletes.
const MEASURE_AGE_MAX: Duration = Duration::from_secs(5);

/// Publishes for one process. Blocking.
pub(super) struct Writer {
    root: PathBuf,
    bytes_max: u64,
    /// Tells apart what several writers publish in one nanosecond.
    id: u32,
    queues: HashMap<Queue, Filling>,
}

/// How full a queue is, as far as is known.
struct Filling {
    bytes: u64,
    latest: u64,
    measured: Instant,
}

impl Writer {
    pub(super) fn new(root: PathBuf, bytes_max: u64) -> Self {
        Self { root, bytes_max, id: rand::random(), queues: HashMap::new() }
    }

    /// Publishes in order; one outcome for each message. All of a queue go to the disk with one
    /// sync of its folder.
    pub(super) fn publish(&mut self, messages: &[Outgoing]) -> Vec<Outcome> {
        let mut outcomes = vec![Outcome::Confirmed; messages.len()];
        let mut by_queue: HashMap<Queue, Vec<usize>> = HashMap::new();
        for (at, message) in messages.iter().enumerate() {
            by_queue.entry(message.queue).or_default().push(at);
        }
        for (queue, places) in by_queue {
            let folder = Folder(self.root.join(queue.name()));
            let mut written: Vec<(usize, Unfinished)> = Vec::with_capacity(places.len());
            for at in places {
                match self.write(&folder, &messages[at]) {
                    Ok(unfinished) => written.push((at, unfinished)),
                    Err(reason) => outcomes[at] = Outcome::Refused(reason),
                }
            }
            finish(&folder, &written, &mut outcomes);
        }
        outcomes
    }

    fn write(&mut self, folder: &Folder, message: &Outgoing) -> Result<Unfinished, String> {
        let size = message.body.len();
        if size > BODY_BYTES_MAX {
            return Err(format!(
                "{size} bytes are more than a message may have ({BODY_BYTES_MAX})"
            ));
        }
        let refuse = |error: &io::Error| refused(folder, error);
        let takes = folder::on_disk(size as u64);
        let (bytes_max, writer) = (self.bytes_max, self.id);
        let filling = self.filling(folder, message.queue, takes).map_err(|error| refuse(&error))?;
        if filling.bytes + takes > bytes_max {
            let path = folder.path().display();
            return Err(format!("queue `{path}` is full: it may hold {bytes_max} bytes"));
        }
        let time = folder::now().max(filling.latest.saturating_add(1));
        let name = folder::name(time, writer, message);
        let written = folder.write(&name, &message.body).map_err(|error| refuse(&error))?;
        filling.latest = time;
        filling.bytes += takes;
        Ok(written)
    }

    /// What is known of the queue, measured again when that is old, or would say that it is full.
    fn filling(&mut self, folder: &Folder, queue: Queue, takes: u64) -> io::Result<&mut Filling> {
        let stale = |known: &Filling| {
            known.measured.elapsed() > MEASURE_AGE_MAX || known.bytes + takes > self.bytes_max
        };
        if self.queues.get(&queue).is_none_or(stale) {
            let before = self.queues.remove(&queue).map_or(0, |known| known.latest);
            let (bytes, latest) = folder.measure()?;
            let latest = latest.max(before);
            self.queues.insert(queue, Filling { bytes, latest, measured: Instant::now() });
        }
        self.queues.get_mut(&queue).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Renames what is written into the queue, in order, and syncs the folder once.
fn finish(folder: &Folder, written: &[(usize, Unfinished)], outcomes: &mut [Outcome]) {
    crash_point!("publish.written");
    let mut failed = None;
    for (at, unfinished) in written {
        if failed.is_none() {
            failed = unfinished.finish().err();
        }
        if let Some(error) = &failed {
            unfinished.discard();
            outcomes[*at] = Outcome::Refused(refused(folder, error));
        }
    }
    if !written.is_empty()
        && let Err(error) = folder.sync()
    {
        for (at, _) in written {
            outcomes[*at] = Outcome::Refused(refused(folder, &error));
        }
    }
}

fn refused(folder: &Folder, error: &io::Error) -> String {
    let path = folder.path().display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("there is no queue `{path}`"),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!("the disk is full: could not write to `{path}`: {error}")
        }
        _ => format!("could not write to `{path}`: {error}"),
    }
}
