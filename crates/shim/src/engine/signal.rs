//! Signals as something to wait for. tokio's own registry keeps tables for every signal there is, some 40 kB of
//! private memory beside every container; this keeps one descriptor per signal asked for.

use super::ready::async_fd;
use pintle_sys::signals;
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A signal that is waited for.
#[derive(Debug)]
pub struct Signal(AsyncFd<OwnedFd>);

/// Starts to listen for a signal, within the tokio runtime. One listener per signal: a later one takes it away from the
/// one before.
///
/// # Errors
/// For a signal that cannot be handled, and if descriptors run out.
pub fn signal(number: i32) -> io::Result<Signal> {
    Ok(Signal(async_fd(signals::wake_on(number)?, Interest::READABLE)?))
}

impl Signal {
    /// Waits for the signal; several that came together are one. Cancel-safe. `None` if it cannot be waited for.
    pub async fn recv(&mut self) -> Option<()> {
        loop {
            let mut ready = self.0.readable().await.ok()?;
            let mut count = [0u8; 8];
            match ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut count)?)) {
                Ok(Ok(_)) => return Some(()),
                Ok(Err(e)) if e.kind() != io::ErrorKind::Interrupted => return None,
                _ => {}
            }
        }
    }
}
