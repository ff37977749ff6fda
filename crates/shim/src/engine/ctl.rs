//! The control FIFOs of the conmon door: `ctl` and `winsz`.

use super::hub::Hub;
use super::ready::async_fd;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, mkfifo, unlinkat};
use pintle_core::attach::{CtlCommand, LineReader, parse_ctl, parse_size};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

/// The largest size that conmon takes.
pub const MAX_SIZE: u16 = 1000;

/// Which FIFO, and with it the form of its lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlKind {
    /// `TYPE HEIGHT WIDTH`.
    Ctl,
    /// `HEIGHT WIDTH`.
    Winsz,
}

/// A FIFO being read. Reading ends with the value; the file stays, as its callers expect.
#[derive(Debug)]
pub struct ControlFifo {
    task: AbortHandle,
    /// Both ends: writers never find nobody, and the reader never finds the end.
    _ends: (Arc<AsyncFd<OwnedFd>>, OwnedFd),
}

impl ControlFifo {
    /// Makes the FIFO `name` in `dir` (0660 less the umask, replacing what was there) and carries out what is written
    /// to it on `hub`.
    ///
    /// # Errors
    /// The error of `mkfifo` or `open`.
    pub fn create(dir: &Path, name: &str, kind: ControlKind, hub: &Arc<Hub>) -> io::Result<Self> {
        let path = dir.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        mkfifo(&path, Mode::from_bits_truncate(0o660))?;
        Self::open(dir, name, kind, hub).inspect_err(|_| {
            let _ = std::fs::remove_file(&path);
        })
    }

    /// Opens a FIFO that exists (after a hand-over to a new program).
    ///
    /// # Errors
    /// The error of `open`.
    pub fn open(dir: &Path, name: &str, kind: ControlKind, hub: &Arc<Hub>) -> io::Result<Self> {
        let flags = OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let anchor = pintle_sys::seqpacket::open_dir(dir)?;
        let reader = openat(&anchor, name, flags | OFlag::O_RDONLY, Mode::empty())?;
        let writer = openat(&anchor, name, flags | OFlag::O_WRONLY, Mode::empty())?;
        let reader = Arc::new(async_fd(reader, Interest::READABLE)?);
        let task = tokio::spawn(serve(Arc::clone(&reader), kind, Arc::clone(hub))).abort_handle();
        Ok(Self { task, _ends: (reader, writer) })
    }

    /// Removes the file of a FIFO that could not be used.
    ///
    /// # Errors
    /// The error of `unlink`.
    pub fn remove(dir: &Path, name: &str) -> io::Result<()> {
        let anchor = pintle_sys::seqpacket::open_dir(dir)?;
        Ok(unlinkat(&anchor, name, UnlinkatFlags::NoRemoveDir)?)
    }
}

impl Drop for ControlFifo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(fifo: Arc<AsyncFd<OwnedFd>>, kind: ControlKind, hub: Arc<Hub>) {
    let mut lines = LineReader::new();
    while let Ok(mut ready) = fifo.readable().await {
        let mut bytes = [0; 512];
        match nix::unistd::read(fifo.as_fd(), &mut bytes) {
            Ok(n) => lines.push(bytes.get(..n).unwrap_or_default(), |line| {
                let command = line.and_then(|line| match kind {
                    ControlKind::Ctl => parse_ctl(line, MAX_SIZE),
                    ControlKind::Winsz => {
                        parse_size(line, MAX_SIZE).map(|(rows, cols)| CtlCommand::Resize { rows, cols })
                    }
                });
                match command {
                    Ok(command) => obey(&hub, command),
                    Err(error) => tracing::warn!("control fifo: {error}"),
                }
            }),
            Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => {
                tracing::warn!("read control fifo: {errno}");
                return;
            }
        }
    }
}

fn obey(hub: &Arc<Hub>, command: CtlCommand) {
    match command {
        CtlCommand::Resize { rows, cols } => {
            if let Err(error) = hub.resize(rows, cols) {
                tracing::warn!("resize terminal: {error}");
            }
        }
        CtlCommand::Reopen => {
            if let Err(error) = hub.reopen_logs() {
                let cause = error.io().map(ToString::to_string).unwrap_or_default();
                tracing::warn!("{error}: {cause}");
            }
        }
    }
}
