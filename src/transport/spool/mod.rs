//! A directory instead of a broker: one folder a queue, one file a message.
//!
//! What is confirmed is on the disk: written beside, synced, renamed, and the folder synced. Any
//! number of processes may publish; one reads a queue at a time, by a lock of the system that
//! ends with its process. A copy of the directory is as good as the directory, so a stick carries
//! it. The directory's parent must be there already: a stick that is not mounted is out of
//! reach, not empty.

mod folder;
mod reader;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;

use self::folder::Folder;
use self::reader::SpoolConsumer;
use self::writer::Writer;
use super::{Consumer, Outcome, Outgoing, Queue, Settings, Transport};
use crate::error::{Error, Result};

/// The transport over one directory.
pub(super) struct Spool {
    root: PathBuf,
    address: String,
    poll: Duration,
    writer: Arc<Mutex<Writer>>,
    closed: AtomicBool,
}

impl Spool {
    /// Prepares the transport; the first declaration makes the directory.
    pub(super) fn new(directory: &str, settings: &Settings) -> Result<Self> {
        if directory.is_empty() {
            return Err(Error::config("a spool address needs its directory: `spool:DIR`"));
        }
        let root = std::path::absolute(directory).map_err(|error| {
            Error::config(format!("`{directory}` is not a directory's name")).with_source(error)
        })?;
        Ok(Self {
            address: format!("spool:{}", root.display()),
            poll: settings.spool_poll,
            writer: Arc::new(Mutex::new(Writer::new(root.clone(), settings.queue_bytes_max))),
            closed: AtomicBool::new(false),
            root,
        })
    }

    fn folder(&self, queue: Queue) -> Folder {
        Folder(self.root.join(queue.name()))
    }

    fn check(&self) -> Result<()> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::failed(format!("the transport to `{}` is closed", self.address)));
        }
        Ok(())
    }
}

impl Transport for Spool {
    fn declare<'a>(&'a self, queue: Queue) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.check()?;
            let (root, folder) = (self.root.clone(), self.folder(queue));
            blocking(move || {
                make_root(&root)?;
                folder.make().map_err(|error| unreachable("make", folder.path(), error))
            })
            .await
        })
    }

    fn publish<'a>(&'a self, messages: Vec<Outgoing>) -> BoxFuture<'a, Result<Vec<Outcome>>> {
        Box::pin(async move {
            self.check()?;
            let (root, writer) = (self.root.clone(), self.writer.clone());
            blocking(move || {
                std::fs::metadata(&root).map_err(|error| unreachable("read", &root, error))?;
                let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(writer.publish(&messages))
            })
            .await
        })
    }

    fn consume<'a>(
        &'a self,
        queue: Queue,
        prefetch: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Consumer>>> {
        Box::pin(async move {
            self.check()?;
            let folder = self.folder(queue);
            let place = folder.path().display().to_string();
            let looked = folder.clone();
            if !blocking(move || Ok(looked.path().is_dir())).await? {
                return Err(Error::failed(format!("there is no queue `{place}`: declare it")));
            }
            let consumer = SpoolConsumer::new(folder, prefetch, self.poll);
            Ok(Box::new(consumer) as Box<dyn Consumer>)
        })
    }

    fn remove<'a>(&'a self, queue: Queue) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.check()?;
            let folder = self.folder(queue);
            blocking(move || {
                folder.remove().map_err(|error| unreachable("remove", folder.path(), error))
            })
            .await
        })
    }

    fn address(&self) -> &str {
        &self.address
    }

    fn close<'a>(&'a self) -> BoxFuture<'a, ()> {
        self.closed.store(true, Ordering::Relaxed);
        Box::pin(std::future::ready(()))
    }
}

/// Makes the spool directory, but not its parent.
fn make_root(root: &std::path::Path) -> Result<()> {
    match std::fs::create_dir(root) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(unreachable("make", root, error))
        }
        _ => Ok(()),
    }
}

fn unreachable(doing: &str, path: &std::path::Path, error: io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => ": it is not there, is its disk mounted",
        _ => "",
    };
    Error::unreachable(format!("could not {doing} `{}`{hint}", path.display())).with_source(error)
}

/// Does file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::failed("work on the spool directory broke off").with_source(error)
    })?
}
