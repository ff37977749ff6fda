//! The relay between a container's notify socket and the host's.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pintle_core::notify;
use tokio::io::Interest;

use crate::engine::ready::async_fd;

/// Messages that wait for a host that does not read; older ones are told first, newer ones are dropped.
const PENDING_MAX: usize = 64;
/// How often a host that did not read is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// Larger than what any service manager takes.
const DATAGRAM_MAX: usize = 4096;
/// `sun_path` without the NUL.
const SUN_PATH_MAX: usize = 107;

/// A bound relay.
#[derive(Debug)]
pub(super) struct Relay {
    container: UnixDatagram,
    host: UnixDatagram,
    target: Target,
}

impl Relay {
    /// Listens on `<bundle>/notify/notify.sock` for the socket of the host named by `target`.
    pub(super) fn bind(bundle: &Path, target: &std::ffi::OsStr) -> io::Result<Self> {
        let (_dir, path) = short_path(&place(bundle))?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let container = UnixDatagram::bind(&path)?;
        // The container may run as anybody.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
        container.set_nonblocking(true)?;
        let host = UnixDatagram::unbound()?;
        host.set_nonblocking(true)?;
        Ok(Self { container, host, target: Target::new(target.as_bytes())? })
    }

    /// Relays for ever. Nothing that a container or the host does ends it.
    pub(super) async fn run(self) -> io::Result<()> {
        let Self { container, host, target } = self;
        let container = async_fd(container, Interest::READABLE)?;
        let mut pending: VecDeque<Vec<u8>> = VecDeque::new();
        let mut buffer = vec![0; DATAGRAM_MAX];
        loop {
            tokio::select! {
                ready = container.readable() => {
                    let mut ready = ready?;
                    match ready.try_io(|socket| socket.get_ref().recv(&mut buffer)) {
                        Ok(Ok(length)) => {
                            let kept = notify::filter(buffer.get(..length).unwrap_or_default());
                            pending.extend(kept.filter(|_| pending.len() < PENDING_MAX));
                        }
                        Ok(Err(_)) => tokio::time::sleep(RETRY).await,
                        Err(_) => continue,
                    }
                }
                () = tokio::time::sleep(RETRY), if !pending.is_empty() => {}
            }
            while let Some(message) = pending.front() {
                match target.send(&host, message) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // No host socket now is no reason to stop: it may come back with the service manager.
                    _ => drop(pending.pop_front()),
                }
            }
        }
    }
}

/// Where a container finds its notify socket.
fn place(bundle: &Path) -> PathBuf {
    bundle.join("notify/notify.sock")
}

/// Takes the socket away, so that nothing talks to a monitor that has ended.
pub(super) fn remove(bundle: &Path) {
    let _ = std::fs::remove_file(place(bundle));
}

/// The host's socket, looked up anew for every message.
#[derive(Debug)]
enum Target {
    Abstract(SocketAddr),
    Path(PathBuf),
}

impl Target {
    fn new(name: &[u8]) -> io::Result<Self> {
        match name {
            [b'@', name @ ..] => Ok(Self::Abstract(SocketAddr::from_abstract_name(name)?)),
            _ => Ok(Self::Path(PathBuf::from(std::ffi::OsStr::from_bytes(name)))),
        }
    }

    fn send(&self, socket: &UnixDatagram, message: &[u8]) -> io::Result<usize> {
        match self {
            Self::Abstract(address) => socket.send_to_addr(message, address),
            Self::Path(path) => {
                let (_dir, path) = short_path(path)?;
                socket.send_to(message, path)
            }
        }
    }
}

/// A name for `path` that fits into a socket address, and what keeps it valid.
fn short_path(path: &Path) -> io::Result<(Option<File>, PathBuf)> {
    if path.as_os_str().len() <= SUN_PATH_MAX {
        return Ok((None, path.to_owned()));
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(parent)?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    Ok((Some(dir), short))
}
