//! Bytes as they are: to a FIFO whose reader decides the pace, or appended to a file.

use super::{Chunk, LogSink, LossCause, Losses, SinkState, mismatch};
use crate::engine::ready::async_fd;
use pintle_core::line::Stream;
use pintle_core::wall::WallTime;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Context, Poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The far end.
enum Target {
    /// Can be waited for.
    Pipe(AsyncFd<OwnedFd>),
    /// Takes everything at once.
    File(OwnedFd),
}

/// Copies streams to one descriptor. What does not fit is held, at most one chunk, and the container waits.
pub struct RawSink {
    target: Option<Target>,
    /// Kept open until the end, so that a FIFO keeps a reader and a returning one finds what was written.
    held: Vec<OwnedFd>,
    streams: [bool; 2],
    ended: [bool; 2],
    pending: Vec<u8>,
    /// Written bytes of `pending`.
    done: usize,
    broken: Option<LossCause>,
}

impl RawSink {
    /// A sink for these streams. The descriptor is made non-blocking. `held` (for example a read end of the same FIFO)
    /// is closed together with it when the last of the streams has ended and everything is written.
    ///
    /// Must be called within the runtime.
    ///
    /// # Errors
    /// An error if the descriptor cannot be watched.
    pub fn new(streams: &[Stream], fd: OwnedFd, held: Vec<OwnedFd>) -> io::Result<Self> {
        let mut wanted = [false; 2];
        for stream in streams {
            wanted[stream.index()] = true;
        }
        Ok(Self {
            target: Some(Self::target(fd)?),
            held,
            streams: wanted,
            ended: [false; 2],
            pending: Vec::new(),
            done: 0,
            broken: None,
        })
    }

    fn target(fd: OwnedFd) -> io::Result<Target> {
        let kind = nix::sys::stat::fstat(&fd)?.st_mode & nix::sys::stat::SFlag::S_IFMT.bits();
        if kind == nix::sys::stat::SFlag::S_IFREG.bits() {
            return Ok(Target::File(fd));
        }
        pintle_sys::bytes::set_nonblocking(fd.as_fd(), true)?;
        let same = fd.try_clone()?;
        match async_fd(fd, Interest::WRITABLE) {
            Ok(fd) => Ok(Target::Pipe(fd)),
            // Devices like /dev/null cannot be waited for and need not.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(Target::File(same)),
            Err(error) => Err(error),
        }
    }

    /// Writes what it can of `bytes`; returns how much, or breaks.
    fn try_write(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let fd = match &self.target {
                Some(Target::Pipe(fd)) => fd.as_fd(),
                Some(Target::File(fd)) => fd.as_fd(),
                None => break,
            };
            match pintle_sys::bytes::write(fd, rest) {
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.broken = Some(LossCause::of(&error));
                    break;
                }
            }
        }
        done
    }

    fn drop_pending(&mut self, cause: LossCause, losses: &mut Losses) {
        losses.add(cause, (self.pending.len() - self.done) as u64);
        self.pending = Vec::new();
        self.done = 0;
    }

    fn close(&mut self) {
        self.target = None;
        self.held.clear();
    }

    pub(super) fn thaw(state: SinkState, fds: Vec<OwnedFd>) -> io::Result<Self> {
        let SinkState::Raw { streams, ended, pending, broken } = state else {
            return Err(mismatch());
        };
        let mut fds = fds.into_iter();
        let target = fds.next().map(Self::target).transpose()?;
        Ok(Self {
            target,
            held: fds.collect(),
            streams,
            ended,
            pending,
            done: 0,
            broken: broken.map(LossCause::Errno),
        })
    }
}

impl LogSink for RawSink {
    fn driver(&self) -> &'static str {
        "raw"
    }

    fn write(&mut self, chunk: &Chunk<'_>, _scratch: &mut Vec<u8>, losses: &mut Losses) {
        if !self.streams[chunk.stream.index()] {
            return;
        }
        if self.broken.is_none() && self.pending.is_empty() {
            let done = self.try_write(chunk.data);
            self.pending.extend_from_slice(chunk.data.get(done..).unwrap_or_default());
        } else {
            self.pending.extend_from_slice(chunk.data);
        }
        if let Some(cause) = self.broken {
            self.drop_pending(cause, losses);
        }
    }

    fn poll_ready(&mut self, stream: Stream, cx: &mut Context<'_>, losses: &mut Losses) -> Poll<()> {
        if !self.streams[stream.index()] {
            return Poll::Ready(());
        }
        while self.done < self.pending.len() {
            if let Some(Target::Pipe(fd)) = &self.target {
                let mut guard = match fd.poll_write_ready(cx) {
                    Poll::Ready(Ok(guard)) => guard,
                    Poll::Ready(Err(error)) => {
                        self.broken = Some(LossCause::of(&error));
                        break;
                    }
                    Poll::Pending => return Poll::Pending,
                };
                let rest = self.pending.get(self.done..).unwrap_or_default();
                match guard.try_io(|fd| pintle_sys::bytes::write(fd.as_fd(), rest)) {
                    Ok(Ok(n)) => self.done += n,
                    Ok(Err(error)) => {
                        self.broken = Some(LossCause::of(&error));
                        break;
                    }
                    Err(_would_block) => {}
                }
            } else {
                let rest = std::mem::take(&mut self.pending);
                self.done += self.try_write(rest.get(self.done..).unwrap_or_default());
                self.pending = rest;
                break;
            }
        }
        match self.broken {
            Some(cause) => self.drop_pending(cause, losses),
            None => {
                self.pending = Vec::new();
                self.done = 0;
            }
        }
        Poll::Ready(())
    }

    fn is_holding(&self, stream: Stream) -> bool {
        self.streams[stream.index()] && self.done < self.pending.len()
    }

    fn end(&mut self, stream: Stream, _now: WallTime, _scratch: &mut Vec<u8>, losses: &mut Losses) {
        self.ended[stream.index()] = true;
        let over = self.streams.iter().zip(self.ended).all(|(wanted, ended)| !wanted || ended);
        if over {
            self.drop_pending(LossCause::Deadline, losses);
            self.close();
        }
    }

    fn finish(&mut self, _sync: bool) -> Result<(), super::LogError> {
        self.close();
        Ok(())
    }

    fn freeze(&self) -> io::Result<Option<(SinkState, Vec<OwnedFd>)>> {
        let mut fds = Vec::new();
        match &self.target {
            Some(Target::Pipe(fd)) => fds.push(fd.get_ref().try_clone()?),
            Some(Target::File(fd)) => fds.push(fd.try_clone()?),
            None => {}
        }
        for fd in &self.held {
            fds.push(fd.try_clone()?);
        }
        let broken = match self.broken {
            Some(LossCause::Errno(errno)) => Some(errno),
            _ => None,
        };
        let pending = self.pending.get(self.done..).unwrap_or_default().to_vec();
        Ok(Some((SinkState::Raw { streams: self.streams, ended: self.ended, pending, broken }, fds)))
    }
}
