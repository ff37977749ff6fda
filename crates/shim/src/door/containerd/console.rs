//! The socket over which a runtime hands out a terminal.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::net::UnixListener;

static MADE: AtomicU32 = AtomicU32::new(0);

/// A listening socket in a private directory of its own: bundles have paths too long for an address. Dropping it
/// removes both.
#[derive(Debug)]
pub(super) struct ConsoleSocket {
    dir: PathBuf,
    path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Makes directory and socket.
    pub(super) fn bind() -> io::Result<Self> {
        let base = std::env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty() && Path::new(d).is_dir());
        let base = base.map_or_else(std::env::temp_dir, PathBuf::from);
        let n = MADE.fetch_add(1, Ordering::Relaxed);
        let dir = base.join(format!("pty{}-{n}", std::process::id()));
        // A name that a dead process of our pid left behind.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        let path = dir.join("s");
        match UnixListener::bind(&path) {
            Ok(listener) => Ok(Self { dir, path, listener }),
            Err(e) => {
                let _ = std::fs::remove_dir_all(&dir);
                Err(e)
            }
        }
    }

    /// Its path, for the runtime's command line.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the terminal from the runtime.
    pub(super) async fn receive(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept().await?;
        loop {
            stream.readable().await?;
            let mut name = [0u8; 4096];
            let got = stream.try_io(tokio::io::Interest::READABLE, || {
                pintle_sys::fdpass::recv_fds(stream.as_fd(), &mut name)
            });
            match got {
                Ok(message) => {
                    return message.fds.into_iter().next().ok_or_else(|| {
                        io::Error::new(io::ErrorKind::InvalidData, "the runtime sent no terminal")
                    });
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // Nothing depends on it any more.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
