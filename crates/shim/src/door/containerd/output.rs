//! Moves a stream of output from the container to where it is wanted, and counts what could not be moved.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use super::logger::Logger;
use crate::engine::log::{LossCause, Losses};

/// Bytes moved at once. Taken when there is something to move, given back when there is not.
pub(super) const BUFFER: usize = 32 * 1024;
/// Between two looks whether somebody reads again.
const LOOK: Duration = Duration::from_millis(200);

/// Output that went nowhere, by cause.
pub(super) struct Lost {
    /// Id of the container or exec.
    id: String,
    sums: Mutex<Losses>,
    logger: Logger,
}

impl Lost {
    pub(super) fn new(id: &str, logger: Logger) -> Self {
        Self { id: id.to_owned(), sums: Mutex::default(), logger }
    }

    /// Counts, and tells the first loss of each cause when it happens.
    pub(super) fn add(&self, cause: LossCause, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let first = sums.iter().all(|(known, _)| known != cause);
        sums.add(cause, bytes);
        if first {
            self.logger.error(format!(
                "output of {} is lost: {}, {bytes} bytes at first",
                self.id,
                cause.name()
            ));
        }
    }

    pub(super) fn sums(&self) -> Losses {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Lost {
    /// With the last stream: what it came to.
    fn drop(&mut self) {
        for (cause, bytes) in self.sums().iter() {
            self.logger.error(format!("lost {bytes} bytes of output of {}: {}", self.id, cause.name()));
        }
    }
}

/// Where output goes.
pub(super) enum Sink {
    Null,
    /// The second descriptor is a reader of our own, so that a write never fails for want of one.
    Fifo(pipe::Sender, File),
    File(File),
    Pipe(pipe::Sender),
}

impl Sink {
    /// Writes everything; on an error `bytes` is what was not written.
    pub(super) async fn write_all(&mut self, bytes: &mut &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match self {
                Self::Null => Ok(bytes.len()),
                Self::File(file) => file.write(bytes),
                Self::Fifo(sender, _) | Self::Pipe(sender) => sender.try_write(bytes),
            };
            match (written, &*self) {
                (Ok(0), _) => return Err(io::ErrorKind::WriteZero.into()),
                (Ok(n), _) => *bytes = bytes.get(n..).unwrap_or_default(),
                (Err(e), Self::Fifo(sender, _) | Self::Pipe(sender))
                    if e.kind() == io::ErrorKind::WouldBlock =>
                {
                    sender.writable().await?;
                }
                (Err(e), _) if e.kind() == io::ErrorKind::Interrupted => {}
                (Err(e), _) => return Err(e),
            }
        }
        Ok(())
    }

    /// Waits until nothing is left in a FIFO that nobody reads: a daemon that is being restarted when the container ends
    /// still finds its last words. Where somebody has it open they are his; only a pipe without any end loses what is in it.
    pub(super) async fn taken(self, lost: &Lost) {
        let Self::Fifo(sender, ours) = self else { return };
        drop(ours);
        let left = Left { sender, lost };
        while left.bytes() > 0 {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A FIFO in which something may be left.
struct Left<'a> {
    sender: pipe::Sender,
    lost: &'a Lost,
}

impl Left<'_> {
    /// What would be lost if it were closed now.
    fn bytes(&self) -> u64 {
        let mut polled = [PollFd::new(self.sender.as_fd(), PollFlags::empty())];
        let asked = poll(&mut polled, PollTimeout::ZERO);
        let unread = asked.is_ok() && polled[0].revents().is_some_and(|r| r.contains(PollFlags::POLLERR));
        if unread { pintle_sys::bytes::unread(self.sender.as_fd()) } else { 0 }
    }
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.lost.add(LossCause::Deadline, self.bytes());
    }
}

/// Where bytes come from.
pub(super) enum Source {
    Pipe(pipe::Receiver),
    Terminal(Arc<AsyncFd<OwnedFd>>),
}

impl Source {
    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.readable().await,
            Self::Terminal(master) => master.readable().await.map(|mut ready| ready.retain_ready()),
        }
    }

    /// Zero is the end. A terminal whose last process is gone says EIO instead.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.try_read(buffer),
            Self::Terminal(master) => {
                let read = master.try_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, buffer)?));
                match read {
                    Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(0),
                    other => other,
                }
            }
        }
    }

    fn unread(&self) -> u64 {
        match self {
            Self::Pipe(pipe) => pintle_sys::bytes::unread(pipe.as_fd()),
            Self::Terminal(master) => pintle_sys::bytes::unread(master.get_ref().as_fd()),
        }
    }
}

/// A stream on its way. What it still holds when it is dropped is lost.
struct Moving<'a> {
    source: Source,
    /// Bytes read and not written.
    held: u64,
    lost: &'a Lost,
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.lost.add(LossCause::Deadline, self.held.saturating_add(self.source.unread()));
    }
}

/// Moves bytes until the source ends; gives the sink back. The source is read on where the sink fails, and what that does
/// not take is counted: the container must not block on it.
pub(super) async fn pump(source: Source, mut sink: Sink, lost: &Lost, read: impl Fn(u64)) -> Sink {
    let mut moving = Moving { source, held: 0, lost };
    while moving.source.readable().await.is_ok() {
        let mut buffer = vec![0; BUFFER];
        loop {
            match moving.source.try_read(&mut buffer) {
                Ok(0) => return sink,
                Ok(n) => {
                    read(n as u64);
                    let mut rest = buffer.get(..n).unwrap_or_default();
                    while !rest.is_empty() {
                        moving.held = rest.len() as u64;
                        if let Err(e) = sink.write_all(&mut rest).await {
                            lost.add(LossCause::of(&e), rest.len() as u64);
                            rest = &[];
                        }
                    }
                    moving.held = 0;
                    // Other streams get their turn.
                    tokio::task::yield_now().await;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return sink,
            }
        }
    }
    sink
}
