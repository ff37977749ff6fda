//! Input: from clients, or from one FIFO, to the process's stdin.

use super::attach::ClientId;
use super::hub::{Hub, State};
use super::ready::async_fd;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;

/// Bytes read from a source at a time.
const READ: usize = 32 * 1024;

/// The process's stdin.
pub(super) enum Stdin {
    /// Not there yet; input waits.
    Pending,
    /// The write end of its pipe.
    Open(Arc<AsyncFd<OwnedFd>>),
    /// The terminal.
    Terminal(Arc<AsyncFd<OwnedFd>>),
    /// There is none (any more); input is thrown away.
    Closed,
}

/// Bytes on their way to stdin.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending {
    data: Vec<u8>,
    done: usize,
}

impl Pending {
    pub(super) fn new(data: Vec<u8>) -> Self {
        Self { data, done: 0 }
    }

    pub(super) fn rest(&self) -> &[u8] {
        self.data.get(self.done..).unwrap_or_default()
    }

    fn advance(&mut self, n: usize) {
        self.done += n;
        if self.done >= self.data.len() {
            *self = Self::default();
        }
    }
}

/// Whose bytes are to be written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Feeder {
    Client(ClientId),
    Source,
}

/// A FIFO (or anything else that can be read) that feeds stdin.
pub(super) struct Source {
    pub(super) fd: Arc<AsyncFd<OwnedFd>>,
    pub(super) input: Pending,
    pub(super) task: AbortHandle,
}

impl Hub {
    /// Sets the write end of the process's stdin pipe. Input that came before is written to it. If the input is over
    /// already, the end is closed at once.
    ///
    /// # Errors
    /// An error if the descriptor cannot be watched.
    pub fn set_stdin(&self, fd: OwnedFd) -> io::Result<()> {
        pintle_sys::bytes::set_nonblocking(fd.as_fd(), true)?;
        let fd = Arc::new(async_fd(fd, Interest::WRITABLE)?);
        {
            let mut state = self.lock();
            if matches!(state.stdin, Stdin::Pending) {
                state.stdin = Stdin::Open(fd);
            }
        }
        self.input.notify_waiters();
        Ok(())
    }

    /// Copies everything from `source` to stdin, and then its end: for the read end of a FIFO.
    ///
    /// # Errors
    /// An error if the descriptor cannot be watched.
    pub fn set_stdin_source(self: &Arc<Self>, source: OwnedFd) -> io::Result<()> {
        self.restore_source(source, Pending::default())
    }

    pub(super) fn restore_source(self: &Arc<Self>, source: OwnedFd, input: Pending) -> io::Result<()> {
        pintle_sys::bytes::set_nonblocking(source.as_fd(), true)?;
        let fd = Arc::new(async_fd(source, Interest::READABLE)?);
        let mut state = self.lock();
        // The task cannot run before the lock is free: there is one thread.
        let task = tokio::spawn(Arc::clone(self).copy_source(Arc::clone(&fd))).abort_handle();
        if let Some(old) = state.source.replace(Source { fd, input, task }) {
            old.task.abort();
        }
        Ok(())
    }

    async fn copy_source(self: Arc<Self>, fd: Arc<AsyncFd<OwnedFd>>) {
        self.feed(Feeder::Source).await;
        loop {
            let Ok(mut ready) = fd.readable().await else { break };
            if self.lock().frozen {
                self.room.notified().await;
                continue;
            }
            let mut data = Vec::with_capacity(READ);
            match pintle_sys::bytes::read_spare(fd.as_fd(), &mut data) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    continue;
                }
                Err(error) => {
                    tracing::warn!("read stdin source: {error}");
                    break;
                }
            }
            drop(ready);
            match &mut self.lock().source {
                Some(source) => source.input = Pending::new(data),
                None => return,
            }
            self.feed(Feeder::Source).await;
        }
        self.end_stdin().await;
        self.lock().source = None;
    }

    /// Closes stdin when all input that has arrived is written. On a terminal the input side is over for good.
    pub fn close_stdin(self: &Arc<Self>) {
        let hub = Arc::clone(self);
        tokio::spawn(async move { hub.end_stdin().await });
    }

    /// True if nothing can be written to stdin any more.
    pub fn stdin_is_closed(&self) -> bool {
        matches!(self.lock().stdin, Stdin::Closed)
    }

    pub(super) async fn end_stdin(&self) {
        let turn = self.feeding.lock().await;
        // The descriptor is closed when its last user lets go: now, since nobody else is feeding.
        let old = std::mem::replace(&mut self.lock().stdin, Stdin::Closed);
        drop(old);
        drop(turn);
        self.input.notify_waiters();
    }

    /// Writes a client's bytes as far as there is room at once, without a copy; the rest is its pending input then, to be
    /// fed. True if there is no rest.
    pub(super) fn write_through(&self, id: ClientId, bytes: &[u8]) -> bool {
        // Whoever feeds now has the turn; his bytes are not mixed with these.
        let turn = self.feeding.try_lock();
        let mut state = self.lock();
        let written = match (&state.stdin, &turn) {
            (Stdin::Open(fd) | Stdin::Terminal(fd), Ok(_)) if !state.frozen => {
                // An error comes again when the rest is fed.
                pintle_sys::bytes::write(fd.as_fd(), bytes).unwrap_or(0)
            }
            _ => 0,
        };
        state.counters.stdin += written as u64;
        let rest = bytes.get(written..).unwrap_or_default();
        if !rest.is_empty() {
            if let Some(pending) = state.pending(Feeder::Client(id)) {
                *pending = Pending::new(rest.to_vec());
            }
        }
        rest.is_empty()
    }

    /// Writes a feeder's pending bytes, all of them, or throws them away if there is no stdin.
    pub(super) async fn feed(&self, from: Feeder) {
        if self.lock().pending(from).is_none_or(|p| p.rest().is_empty()) {
            return;
        }
        let _turn = self.feeding.lock().await;
        loop {
            let changed = self.input.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let fd = {
                let mut state = self.lock();
                if state.pending(from).is_none_or(|p| p.rest().is_empty()) {
                    return;
                }
                match (&state.stdin, state.frozen) {
                    (Stdin::Closed, _) => {
                        if let Some(pending) = state.pending(from) {
                            *pending = Pending::default();
                        }
                        return;
                    }
                    (Stdin::Pending, _) | (_, true) => None,
                    (Stdin::Open(fd) | Stdin::Terminal(fd), false) => Some(Arc::clone(fd)),
                }
            };
            let Some(fd) = fd else {
                changed.await;
                continue;
            };
            let mut ready = tokio::select! {
                ready = fd.writable() => match ready {
                    Ok(ready) => ready,
                    Err(_) => return,
                },
                () = changed => continue,
            };
            if self.write_pending(from, &fd) {
                ready.clear_ready();
            }
        }
    }

    /// One write; true if there was no room.
    fn write_pending(&self, from: Feeder, fd: &AsyncFd<OwnedFd>) -> bool {
        let mut state = self.lock();
        if state.frozen {
            return false;
        }
        let Some(pending) = state.pending(from) else { return false };
        match pintle_sys::bytes::write(fd.as_fd(), pending.rest()) {
            Ok(n) => {
                pending.advance(n);
                state.counters.stdin += n as u64;
                false
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(error) => {
                // The process has closed its stdin. Trying again would find the same.
                tracing::debug!("write stdin: {error}");
                *pending = Pending::default();
                state.stdin = Stdin::Closed;
                drop(state);
                self.input.notify_waiters();
                false
            }
        }
    }
}

impl State {
    fn pending(&mut self, from: Feeder) -> Option<&mut Pending> {
        match from {
            Feeder::Client(id) => self.clients.iter_mut().find(|c| c.id == id).map(|c| &mut c.input),
            Feeder::Source => self.source.as_mut().map(|s| &mut s.input),
        }
    }
}
