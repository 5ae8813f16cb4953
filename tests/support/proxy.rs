//! A TCP proxy in front of a service: it cuts, stalls, goes away and comes back on demand.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

/// A proxy on a loopback port of its own.
pub(crate) struct Proxy {
    address: SocketAddr,
    line: Arc<Line>,
    accepting: Option<JoinHandle<()>>,
}

/// What all connections through the proxy share.
struct Line {
    upstream: String,
    stalled: watch::Sender<bool>,
    /// Bumped to cut every connection that is open.
    cuts: watch::Sender<u64>,
    injected: broadcast::Sender<Vec<u8>>,
    accepted: AtomicUsize,
    /// What clients send is thrown away, and nobody is told.
    half_open: AtomicBool,
    /// Bytes of the service's that still pass before every connection is reset; below zero: all.
    allowance: AtomicI64,
    /// How long each piece takes, in milliseconds.
    delay: AtomicU64,
}

impl Proxy {
    /// Listens, and passes everything on to `upstream` (`host:port`).
    pub(crate) async fn to(upstream: &str) -> Self {
        let line = Arc::new(Line {
            upstream: upstream.to_owned(),
            stalled: watch::channel(false).0,
            cuts: watch::channel(0).0,
            injected: broadcast::channel(16).0,
            accepted: AtomicUsize::new(0),
            half_open: AtomicBool::new(false),
            allowance: AtomicI64::new(-1),
            delay: AtomicU64::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = Some(tokio::spawn(accept(listener, line.clone())));
        Self { address, line, accepting }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.line.accepted.load(Ordering::SeqCst)
    }

    /// Resets every open connection.
    pub(crate) fn cut(&self) {
        self.line.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Passes nothing on any more, while all connections stay open.
    pub(crate) fn stall(&self) {
        self.line.stalled.send_replace(true);
    }

    /// Passes on again, what came meanwhile included.
    pub(crate) fn resume(&self) {
        self.line.stalled.send_replace(false);
    }

    /// Throws away what clients send from now on, while all looks well to them; or no more, for
    /// connections that are made from then on.
    pub(crate) fn half_open(&self, lost: bool) {
        self.line.half_open.store(lost, Ordering::SeqCst);
        if !lost {
            self.cut();
        }
    }

    /// Lets so many bytes of either side's pass, then resets every connection, in the middle of
    /// whatever it is.
    pub(crate) fn reset_after(&self, bytes: u32) {
        self.line.allowance.store(bytes.into(), Ordering::SeqCst);
    }

    /// Takes so long for each piece, of 4 KiB at the most; zero: none.
    pub(crate) fn slow(&self, piece: Duration) {
        let millis = u64::try_from(piece.as_millis()).unwrap();
        self.line.delay.store(millis, Ordering::SeqCst);
    }

    /// Stops listening and resets what is open: connecting is refused from now on.
    pub(crate) async fn go_away(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            let _ = accepting.await;
        }
        self.cut();
    }

    /// Listens again, on the same port.
    pub(crate) async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.accepting = Some(tokio::spawn(accept(listener, self.line.clone())));
    }

    /// Sends bytes to every client as though they were the service's. Only while the service
    /// itself says nothing.
    pub(crate) fn inject(&self, bytes: &[u8]) {
        let _ = self.line.injected.send(bytes.to_vec());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
        self.cut();
    }
}

async fn accept(listener: TcpListener, line: Arc<Line>) {
    while let Ok((client, _)) = listener.accept().await {
        line.accepted.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(pass(client, line.clone()));
    }
}

async fn pass(client: TcpStream, line: Arc<Line>) {
    let mut cuts = line.cuts.subscribe();
    cuts.borrow_and_update();
    let injected = line.injected.subscribe();
    let Ok(server) = TcpStream::connect(&line.upstream).await else { return };
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
        #[allow(deprecated)] // what it warns of, a blocking drop, does not happen with zero
        stream.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (_, nothing) = broadcast::channel(1);
    tokio::select! {
        () = copy(from_client, to_server, &line, true, nothing) => {}
        () = copy(from_server, to_client, &line, false, injected) => {}
        _ = cuts.changed() => {}
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    line: &Line,
    from_client: bool,
    mut injected: broadcast::Receiver<Vec<u8>>,
) {
    let mut stalled = line.stalled.subscribe();
    let mut buffer = vec![0; 64 << 10];
    loop {
        if stalled.wait_for(|stalled| !stalled).await.is_err() {
            return;
        }
        let delay = Duration::from_millis(line.delay.load(Ordering::SeqCst));
        let room = if delay.is_zero() { buffer.len() } else { 4 << 10 };
        let mut bytes = tokio::select! {
            read = from.read(&mut buffer[..room]) => match read {
                Ok(0) | Err(_) => return,
                Ok(size) => buffer[..size].to_vec(),
            },
            Ok(bytes) = injected.recv() => bytes,
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if from_client && line.half_open.load(Ordering::SeqCst) {
            continue;
        }
        let allowed = line.allowance.load(Ordering::SeqCst);
        if allowed >= 0 {
            bytes.truncate(usize::try_from(allowed).unwrap());
            let left = allowed - i64::try_from(bytes.len()).unwrap();
            line.allowance.store(if left > 0 { left } else { -1 }, Ordering::SeqCst);
            if left == 0 {
                let _ = to.write_all(&bytes).await;
                line.cuts.send_modify(|cuts| *cuts += 1);
                return;
            }
        }
        // It may have come just as the stall began.
        if stalled.wait_for(|stalled| !stalled).await.is_err()
            || to.write_all(&bytes).await.is_err()
        {
            return;
        }
    }
}
