//! What the suites share.

pub(crate) mod cli;
pub(crate) mod databases;
pub(crate) mod proxy;
pub(crate) mod services;
pub(crate) mod sql;
pub(crate) mod tree;

/// Runs a future to its end, on a thread of its own: inside and outside of a runtime alike.
pub(crate) fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> T {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(future)
    };
    let done = std::thread::scope(|scope| scope.spawn(run).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A port on which nobody listens.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
