//! Signals as something to wait for.
//!
//! Not the runtime's: both programs are built together, so what this one asked of tokio the shim would get too, and the
//! tables of tokio's signals are some 30 kB beside every container.

use std::io;
use std::os::fd::OwnedFd;

use pintle_sys::{signals, watch};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A signal that is waited for.
pub(crate) struct Signal(AsyncFd<OwnedFd>);

/// Starts to listen for a signal; one listener for each.
pub(crate) fn signal(number: i32) -> io::Result<Signal> {
    // Deprecated for descriptors that may be swapped under it, which an OwnedFd does not.
    #[allow(deprecated)]
    let fd = AsyncFd::with_interest(signals::wake_on(number)?, Interest::READABLE)?;
    Ok(Signal(fd))
}

impl Signal {
    /// Waits for the signal; several that came together are one. Cancel-safe.
    pub(crate) async fn recv(&mut self) -> Option<()> {
        loop {
            let mut ready = self.0.readable().await.ok()?;
            match ready.try_io(|fd| watch::read_counter(std::os::fd::AsFd::as_fd(fd.get_ref()))) {
                Ok(Ok(_)) => return Some(()),
                Ok(Err(e)) if e.kind() != io::ErrorKind::Interrupted => return None,
                _ => {}
            }
        }
    }
}
