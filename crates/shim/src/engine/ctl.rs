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
use std::sync::{Arc, Mutex, PoisonError};
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
pub struct ControlFifo {
    task: AbortHandle,
    reader: Arc<Reader>,
    /// Held so that writers never find nobody, and the reader never finds the end.
    _writer: OwnedFd,
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
        let fd = async_fd(reader, Interest::READABLE)?;
        let lines = Mutex::new(LineReader::new());
        let reader = Arc::new(Reader { fd, kind, hub: Arc::clone(hub), lines });
        let task = tokio::spawn(serve(Arc::clone(&reader))).abort_handle();
        Ok(Self { task, reader, _writer: writer })
    }

    /// Carries out what has been written until now: for a caller who must not run ahead of it.
    pub fn catch_up(&self) {
        // At most what a pipe holds: a writer that never stops must not keep us here.
        for _ in 0..128 {
            if self.reader.read_once().is_err() {
                return;
            }
        }
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

async fn serve(fifo: Arc<Reader>) {
    while let Ok(mut ready) = fifo.fd.readable().await {
        match fifo.read_once() {
            Ok(()) => {}
            Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
            Err(errno) => {
                tracing::warn!("read control fifo: {errno}");
                return;
            }
        }
    }
}

/// The reading end, and what came of a line that is not whole yet.
struct Reader {
    fd: AsyncFd<OwnedFd>,
    kind: ControlKind,
    hub: Arc<Hub>,
    lines: Mutex<LineReader>,
}

impl Reader {
    /// Carries out what one read gives.
    fn read_once(&self) -> Result<(), nix::errno::Errno> {
        let mut bytes = [0; 512];
        let length = match nix::unistd::read(self.fd.as_fd(), &mut bytes) {
            Err(nix::errno::Errno::EINTR) => return Ok(()),
            other => other?,
        };
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push(bytes.get(..length).unwrap_or_default(), |line| {
            let command = line.and_then(|line| match self.kind {
                ControlKind::Ctl => parse_ctl(line, MAX_SIZE),
                ControlKind::Winsz => {
                    parse_size(line, MAX_SIZE).map(|(rows, cols)| CtlCommand::Resize { rows, cols })
                }
            });
            match command {
                Ok(command) => obey(&self.hub, command),
                Err(error) => tracing::warn!("control fifo: {error}"),
            }
        });
        Ok(())
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
