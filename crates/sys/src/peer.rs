//! Who is at the other end of a Unix socket, and addresses of any length.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The credentials the kernel recorded for a peer when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// User id, in our user namespace.
    pub uid: u32,
    /// Pid, in our pid namespace; 0 if not visible.
    pub pid: i32,
}

/// Asks the kernel who connected.
///
/// # Errors
/// As `getsockopt(SO_PEERCRED)`.
pub fn credentials(socket: &impl AsFd) -> io::Result<Peer> {
    let cred = nix::sys::socket::getsockopt(socket, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(Peer { uid: cred.uid(), pid: cred.pid() })
}

/// Whether a peer may talk to us: root, or the user the shim runs as.
pub fn allowed(peer: Peer) -> bool {
    peer.uid == 0 || peer.uid == nix::unistd::geteuid().as_raw()
}

/// A directory held open, so that a socket in it can be bound and reached whatever the length of its path.
#[derive(Debug)]
pub struct SocketDir {
    fd: OwnedFd,
}

impl SocketDir {
    /// Opens a directory.
    ///
    /// # Errors
    /// As `open`.
    pub fn open(path: &Path) -> io::Result<Self> {
        use nix::fcntl::{OFlag, open};
        use nix::sys::stat::Mode;
        let fd = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { fd })
    }

    /// A short path to `name` in the directory, valid in this process while `self` lives.
    pub fn address(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn long_paths_and_peers() {
        let mut dir = std::env::temp_dir().join(format!("pintle-peer-{}", std::process::id()));
        let top = dir.clone();
        for _ in 0..5 {
            dir.push("x".repeat(50));
        }
        std::fs::create_dir_all(&dir).unwrap();
        let held = SocketDir::open(&dir).unwrap();
        let _listener = UnixListener::bind(held.address("s")).unwrap();
        assert!(dir.join("s").exists());
        let client = UnixStream::connect(held.address("s")).unwrap();
        let peer = credentials(&client).unwrap();
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        assert!(allowed(peer));
        assert!(allowed(Peer { uid: 0, pid: 1 }));
        std::fs::remove_dir_all(&top).unwrap();
    }
}
