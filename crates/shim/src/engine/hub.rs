//! The hub: a process's stdio between container, logs and attach clients.
//!
//! Log first, then clients: nobody sees a byte that the log will not hold. Nothing is dropped towards the log or a client
//! that reads; while either is full, the container waits on its pipe. A client gets a bounded buffer and a bounded
//! time, then it is dropped. No lock is held across an `await`, and nothing here ends because of what the
//! container, a client or a disk does.
//!
//! `pump` moves output, `attach` serves clients, `stdin` feeds the process, `handover` packs it all for a new program.

use super::attach::ClientId;
use super::client::Client;
use super::log::{LogError, LogSink, Losses};
use super::pump::Output;
use super::ready::async_fd;
use super::stdin::Stdin;
use pintle_core::line::Stream;
use pintle_core::queue::QueuePolicy;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// How a process's stdio behaves.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// The process has a stdin that clients feed; without it their input is thrown away.
    pub stdin: bool,
    /// The first client that ends its input ends the process's.
    pub stdin_once: bool,
    /// Overrides `stdin_once`: input survives every client.
    pub leave_stdin_open: bool,
    /// A terminal will be set by [`Hub::set_terminal`]; sizes sent before are remembered.
    pub terminal: bool,
    /// A terminal that nobody has open is finished. Otherwise it is looked at again every 100 ms until the process
    /// has exited, since somebody may open it again.
    pub hangup_is_end: bool,
    /// Patience with each client.
    pub queue: QueuePolicy,
    /// Clients at a time; more are closed at once.
    pub max_clients: usize,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            stdin: false,
            stdin_once: false,
            leave_stdin_open: false,
            terminal: false,
            hangup_is_end: false,
            queue: QueuePolicy::default(),
            max_clients: 256,
        }
    }
}

/// Numbers about a hub since its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes read from stdout (or the terminal) and from stderr.
    pub read: [u64; 2],
    /// Bytes written to stdin.
    pub stdin: u64,
    /// Clients now.
    pub clients: usize,
    /// Clients there have been.
    pub attached: u64,
    /// Clients dropped because they did not read.
    pub dropped: u64,
    /// Times the logs were opened anew.
    pub reopened: u64,
    /// Bytes that some log did not take, by cause.
    pub losses: Losses,
}

/// Something others may want to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HubEvent {
    /// A client is there.
    ClientAttached(ClientId),
    /// A client has left or its connection failed.
    ClientLeft(ClientId),
    /// A client was dropped; why.
    ClientDropped(ClientId, String),
    /// A log lost bytes for the first time since it last took some; the name of the cause.
    LogLoss(String),
    /// The logs were opened anew.
    LogReopened,
}

/// Hears of [`HubEvent`]s; called without any lock held.
pub type Observer = Arc<dyn Fn(HubEvent) + Send + Sync>;

/// The stdio of one process.
pub struct Hub {
    pub(super) config: HubConfig,
    pub(super) state: Mutex<State>,
    /// A client or sink has taken something, a client has gone.
    pub(super) room: Notify,
    /// Output was read or ended.
    pub(super) progress: Notify,
    /// The state of stdin has changed.
    pub(super) input: Notify,
    /// Held by whoever is writing a packet to stdin, so that packets of several clients do not mix.
    pub(super) feeding: tokio::sync::Mutex<()>,
}

/// Everything behind the lock.
pub(super) struct State {
    pub(super) sinks: Vec<Box<dyn LogSink>>,
    pub(super) outputs: Vec<Output>,
    pub(super) clients: Vec<Client>,
    pub(super) next_id: u64,
    pub(super) stdin: Stdin,
    pub(super) source: Option<super::stdin::Source>,
    pub(super) terminal: Option<Arc<OwnedFd>>,
    pub(super) size: Option<(u16, u16)>,
    pub(super) listeners: Vec<super::attach::Listener>,
    pub(super) counters: Counters,
    pub(super) buffers: Option<super::pump::Buffers>,
    /// Bytes moved since the buffers were last freed; what the quiet moment's `trim` is decided by.
    pub(super) moved: u64,
    pub(super) janitor: bool,
    /// The process has exited: a hang-up of the terminal is final now.
    pub(super) exited: bool,
    /// Everything has ended: a client would wait for ever.
    pub(super) closed: bool,
    /// Nothing may be read or written any more: a new program is about to take over.
    pub(super) frozen: bool,
    pub(super) observer: Option<Observer>,
}

impl Hub {
    /// A hub without sinks, outputs and clients. To be used within a tokio runtime with I/O and time.
    pub fn new(config: HubConfig) -> Arc<Self> {
        let stdin = if config.stdin { Stdin::Pending } else { Stdin::Closed };
        Arc::new(Self {
            config,
            state: Mutex::new(State {
                sinks: Vec::new(),
                outputs: Vec::new(),
                clients: Vec::new(),
                next_id: 1,
                stdin,
                source: None,
                terminal: None,
                size: None,
                listeners: Vec::new(),
                counters: Counters::default(),
                buffers: None,
                moved: 0,
                janitor: false,
                exited: false,
                closed: false,
                frozen: false,
                observer: None,
            }),
            room: Notify::new(),
            progress: Notify::new(),
            input: Notify::new(),
            feeding: tokio::sync::Mutex::new(()),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the hub was made.
    pub fn config(&self) -> &HubConfig {
        &self.config
    }

    /// Who hears of events.
    pub fn set_observer(&self, observer: Observer) {
        self.lock().observer = Some(observer);
    }

    pub(super) fn tell(&self, event: HubEvent) {
        let observer = self.lock().observer.clone();
        if let Some(observer) = observer {
            observer(event);
        }
    }

    /// Adds a log. Output read before is not in it: add sinks first.
    pub fn add_sink(&self, sink: Box<dyn LogSink>) {
        self.lock().sinks.push(sink);
    }

    /// Begins to read a stream of the process: the read end of a pipe (or anything that can be waited for), which is
    /// made non-blocking.
    ///
    /// # Errors
    /// An error if the descriptor cannot be watched.
    pub fn add_output(self: &Arc<Self>, stream: Stream, fd: OwnedFd) -> io::Result<()> {
        pintle_sys::bytes::set_nonblocking(fd.as_fd(), true)?;
        self.start_output(stream, Arc::new(fd), false)
    }

    /// Makes a terminal's master the process's stdout and, if the hub has stdin, its stdin. A remembered size is set.
    ///
    /// # Errors
    /// An error if the descriptor cannot be watched. A size that cannot be set is only logged.
    pub fn set_terminal(self: &Arc<Self>, master: OwnedFd) -> io::Result<()> {
        pintle_sys::bytes::set_nonblocking(master.as_fd(), true)?;
        let master = Arc::new(master);
        // Both sides are waited for apart from each other, as two descriptors of one terminal.
        let input = async_fd(master.try_clone()?, Interest::WRITABLE)?;
        {
            let mut state = self.lock();
            if let Some((rows, cols)) = state.size {
                if let Err(error) = pintle_sys::pty::set_size(master.as_fd(), rows, cols) {
                    tracing::warn!("set terminal size: {error}");
                }
            }
            state.terminal = Some(Arc::clone(&master));
            if matches!(state.stdin, Stdin::Pending) {
                state.stdin = Stdin::Terminal(Arc::new(input));
            }
        }
        self.input.notify_waiters();
        self.start_output(Stream::Stdout, master, true)
    }

    /// Sets the size of the terminal, or remembers it for when there is one; the last one counts.
    ///
    /// # Errors
    /// `Unsupported` without a terminal, or the error of the ioctl.
    pub fn resize(&self, rows: u16, cols: u16) -> io::Result<()> {
        if !self.config.terminal {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "process has no terminal"));
        }
        let mut state = self.lock();
        state.size = Some((rows, cols));
        match &state.terminal {
            Some(master) => pintle_sys::pty::set_size(master.as_fd(), rows, cols),
            None => Ok(()),
        }
    }

    /// The size of the terminal, or that which it will have; `None` if none was set.
    pub fn size(&self) -> Option<(u16, u16)> {
        self.lock().size
    }

    /// Opens all logs anew. After `Ok` no byte goes to an old file any more.
    ///
    /// # Errors
    /// The first error; the log it is about is still written to its old file, the others are reopened.
    pub fn reopen_logs(&self) -> Result<(), LogError> {
        let mut first = Ok(());
        {
            let mut state = self.lock();
            for sink in &mut state.sinks {
                if let (Err(error), true) = (sink.reopen(), first.is_ok()) {
                    first = Err(error);
                }
            }
            state.counters.reopened += 1;
        }
        self.tell(HubEvent::LogReopened);
        first
    }

    /// Device and inode of the first log that is a file.
    pub fn log_file_id(&self) -> Option<(u64, u64)> {
        self.lock().sinks.iter().find_map(|sink| sink.file_id())
    }

    /// Numbers so far.
    pub fn counters(&self) -> Counters {
        let state = self.lock();
        Counters { clients: state.clients.len(), ..state.counters.clone() }
    }

    /// Ends the logs: what they lost is noted in them, and they are made durable if `sync`. Output read later goes to
    /// clients only. Call it when the output is [`drained`](Self::drained).
    ///
    /// # Errors
    /// The first error; all logs are closed all the same.
    pub fn finish_logs(&self, sync: bool) -> Result<(), LogError> {
        let sinks = std::mem::take(&mut self.lock().sinks);
        let mut first = Ok(());
        for mut sink in sinks {
            if let (Err(error), true) = (sink.finish(sync), first.is_ok()) {
                first = Err(error);
            }
        }
        first
    }

    /// Ends everything, in the order logs, clients, descriptors; clients that read get what is queued for them.
    ///
    /// # Errors
    /// As [`finish_logs`](Self::finish_logs).
    ///
    /// # Cancel safety
    /// Can be called again.
    pub async fn finish(self: &Arc<Self>, sync: bool) -> Result<(), LogError> {
        let logs = self.finish_logs(sync);
        self.close_clients(Duration::from_secs(5)).await;
        self.close();
        // Aborted tasks let go of their descriptors when they are scheduled next.
        tokio::task::yield_now().await;
        logs
    }

    /// Lets go of the process's descriptors and of listeners, at once.
    pub fn close(&self) {
        let mut tasks: Vec<AbortHandle> = Vec::new();
        let taken = {
            let mut state = self.lock();
            state.closed = true;
            let outputs = std::mem::take(&mut state.outputs);
            let listeners = std::mem::take(&mut state.listeners);
            let clients = std::mem::take(&mut state.clients);
            let source = state.source.take();
            tasks.extend(outputs.iter().filter_map(|o| o.task.clone()));
            tasks.extend(listeners.iter().map(|l| l.task.clone()));
            tasks.extend(clients.iter().flat_map(Client::tasks));
            tasks.extend(source.iter().map(|s| s.task.clone()));
            let old = std::mem::replace(&mut state.stdin, Stdin::Closed);
            (outputs, listeners, clients, source, old, state.terminal.take(), state.buffers.take())
        };
        for task in tasks {
            task.abort();
        }
        drop(taken);
        self.input.notify_waiters();
        self.room.notify_waiters();
        self.progress.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
