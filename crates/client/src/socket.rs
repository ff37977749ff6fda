//! Connecting to the sockets of a state directory, whatever the length of its path.

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
        stat::Mode,
    },
};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

/// Connects a socket of this type to `dir/name`.
///
/// The address of a Unix socket holds 107 bytes; a path through the directory's descriptor is
/// short whatever the directory is called.
pub(crate) fn connect_in(dir: &Path, name: &str, kind: SockType) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir = open(dir, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, kind, flags, None)?;
    let address = UnixAddr::new(path.as_str())?;
    match connect(fd.as_raw_fd(), &address) {
        Ok(()) => Ok(fd),
        // A full backlog; the caller retries.
        Err(Errno::EAGAIN) => Err(io::ErrorKind::WouldBlock.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// As [`connect_in`], trying again for a moment while the listener's backlog is full.
pub(crate) async fn connect_patiently(dir: &Path, name: &str, kind: SockType) -> io::Result<OwnedFd> {
    let mut tries = 0;
    loop {
        match connect_in(dir, name, kind) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < 400 => {
                tries += 1;
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            other => return other,
        }
    }
}

/// Whether the error of a connect means that nobody listens there.
pub(crate) fn nobody_there(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
