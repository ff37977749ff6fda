//! Registering descriptors with tokio.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor. `T` owns the descriptor it names and never swaps it (`OwnedFd`, sockets, `PidFd`).
///
/// # Errors
/// As `epoll_ctl`.
pub fn async_fd<T: AsFd + AsRawFd>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // tokio deprecates this form in favour of an unsafe twin whose condition is the one above; unsafe code stays in
    // the sys crate, which knows no tokio.
    #[allow(deprecated)]
    AsyncFd::with_interest(inner, interest)
}
