//! Live upgrade: a hub as numbers and descriptors, and a hub made of them again by the next program.
//!
//! Between [`Hub::freeze`] and the `exec` nothing is read and nothing is written, so no byte can be in neither of the
//! two programs. If the `exec` fails, [`Hub::unfreeze`] goes on as if nothing had been.

use super::attach::AttachOptions;
use super::client::Client;
use super::hub::{Counters, Hub, HubConfig, State};
use super::log::{LossCause, SinkState, thaw as thaw_sink};
use super::stdin::{Pending, Stdin};
use bytes::Bytes;
use pintle_core::line::Stream;
use pintle_core::queue::QueuePolicy;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// A frozen hub without its descriptors, which travel beside it in the order of the fields.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HubState {
    config: ConfigState,
    /// Each with the number of its descriptors.
    sinks: Vec<(SinkState, usize)>,
    /// One descriptor each.
    outputs: Vec<OutputState>,
    stdin: StdinState,
    /// Bytes that have been read but not written; one descriptor.
    source: Option<Vec<u8>>,
    size: Option<(u16, u16)>,
    /// One descriptor each.
    clients: Vec<ClientState>,
    /// One descriptor each.
    listeners: Vec<AttachOptions>,
    counters: CounterState,
    exited: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ConfigState {
    stdin: bool,
    stdin_once: bool,
    leave_stdin_open: bool,
    terminal: bool,
    hangup_is_end: bool,
    budget: u64,
    deadline_ms: u64,
    progress: u64,
    max_clients: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct OutputState {
    stderr: bool,
    tty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum StdinState {
    Pending,
    /// One descriptor.
    Pipe,
    /// The terminal's.
    Terminal,
    Closed,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ClientState {
    options: AttachOptions,
    packets: Vec<(u8, Vec<u8>)>,
    input: Vec<u8>,
    input_over: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct CounterState {
    read: [u64; 2],
    stdin: u64,
    attached: u64,
    dropped: u64,
    reopened: u64,
    lost: Vec<(LostKind, u64)>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum LostKind {
    Errno(i32),
    SizeLimit,
    RateLimit,
    Deadline,
}

impl Hub {
    /// Stops all movement and returns what the next program needs. The descriptors are close-on-exec duplicates.
    ///
    /// # Errors
    /// `ResourceBusy` if a sink cannot be handed over, or the error of a `dup`; the hub goes on then.
    pub fn freeze(&self) -> io::Result<(HubState, Vec<OwnedFd>)> {
        self.lock().frozen = true;
        let frozen = self.snapshot();
        if frozen.is_err() {
            self.unfreeze();
        }
        frozen
    }

    /// Goes on after a hand-over that did not happen.
    pub fn unfreeze(&self) {
        self.lock().frozen = false;
        self.room.notify_waiters();
        self.input.notify_waiters();
    }

    fn snapshot(&self) -> io::Result<(HubState, Vec<OwnedFd>)> {
        let state = self.lock();
        let mut fds = Vec::new();
        let mut sinks = Vec::new();
        for sink in &state.sinks {
            let busy =
                || io::Error::new(io::ErrorKind::ResourceBusy, "output is being collected for a caller");
            let (sink, sink_fds) = sink.freeze()?.ok_or_else(busy)?;
            sinks.push((sink, sink_fds.len()));
            fds.extend(sink_fds);
        }
        let mut outputs = Vec::new();
        for output in &state.outputs {
            outputs.push(OutputState { stderr: output.stream == Stream::Stderr, tty: output.tty });
            fds.push(output.fd.try_clone()?);
        }
        let stdin = match &state.stdin {
            Stdin::Pending => StdinState::Pending,
            Stdin::Closed => StdinState::Closed,
            Stdin::Terminal(_) => StdinState::Terminal,
            Stdin::Open(fd) => {
                fds.push(fd.get_ref().try_clone()?);
                StdinState::Pipe
            }
        };
        let source = match &state.source {
            Some(source) => {
                fds.push(source.fd.get_ref().try_clone()?);
                Some(source.input.rest().to_vec())
            }
            None => None,
        };
        let mut clients = Vec::new();
        for client in &state.clients {
            clients.push(client_state(client));
            fds.push(client.fd.get_ref().try_clone()?);
        }
        let mut listeners = Vec::new();
        for listener in &state.listeners {
            listeners.push(listener.options);
            fds.push(listener.fd.get_ref().try_clone()?);
        }
        let hub = HubState {
            config: config_state(&self.config),
            sinks,
            outputs,
            stdin,
            source,
            size: state.size,
            clients,
            listeners,
            counters: counter_state(&state.counters),
            exited: state.exited,
        };
        Ok((hub, fds))
    }

    /// Builds a hub from the state and descriptors of [`freeze`](Self::freeze) and goes on where it stopped.
    ///
    /// # Errors
    /// `InvalidData` if the descriptors do not fit the state, or the error of one that cannot be used.
    pub fn thaw(frozen: HubState, fds: Vec<OwnedFd>) -> io::Result<Arc<Self>> {
        let mut fds = fds.into_iter();
        let mut next = || {
            fds.next()
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "descriptor of the hub is missing"))
        };
        let hub = Hub::new(config_of(&frozen.config));
        {
            let mut state = hub.lock();
            state.size = frozen.size;
            state.exited = frozen.exited;
            state.counters = counters_of(&frozen.counters);
            restore_sinks(&mut state, frozen.sinks, &mut next)?;
            match frozen.stdin {
                StdinState::Pending | StdinState::Pipe => state.stdin = Stdin::Pending,
                // The terminal takes a stdin that is pending.
                StdinState::Terminal => state.stdin = Stdin::Pending,
                StdinState::Closed => state.stdin = Stdin::Closed,
            }
        }
        for output in frozen.outputs {
            let stream = if output.stderr { Stream::Stderr } else { Stream::Stdout };
            if output.tty {
                let keep_closed = frozen.stdin != StdinState::Terminal;
                hub.restore_terminal(next()?, keep_closed)?;
            } else {
                hub.add_output(stream, next()?)?;
            }
        }
        if frozen.stdin == StdinState::Pipe {
            hub.set_stdin(next()?)?;
        }
        if let Some(input) = frozen.source {
            hub.restore_source(next()?, Pending::new(input))?;
        }
        for client in frozen.clients {
            let packets =
                client.packets.into_iter().map(|(kind, bytes)| (kind, Bytes::from(bytes))).collect();
            let input = Pending::new(client.input);
            hub.restore_client(next()?, client.options, packets, input, client.input_over)?;
        }
        for options in frozen.listeners {
            hub.serve_attach(next()?, options)?;
        }
        Ok(hub)
    }

    fn restore_terminal(self: &Arc<Self>, master: OwnedFd, without_stdin: bool) -> io::Result<()> {
        if !without_stdin {
            return self.set_terminal(master);
        }
        // Its input side was given up, or never wanted.
        let stdin = std::mem::replace(&mut self.lock().stdin, Stdin::Closed);
        let done = self.set_terminal(master);
        self.lock().stdin = stdin;
        done
    }
}

fn restore_sinks(
    state: &mut State,
    sinks: Vec<(SinkState, usize)>,
    next: &mut impl FnMut() -> io::Result<OwnedFd>,
) -> io::Result<()> {
    for (sink, count) in sinks {
        let fds = (0..count).map(|_| next()).collect::<io::Result<Vec<_>>>()?;
        state.sinks.push(thaw_sink(sink, fds)?);
    }
    Ok(())
}

fn client_state(client: &Client) -> ClientState {
    ClientState {
        options: client.options,
        packets: client.packets.iter().map(|(kind, bytes)| (*kind, bytes.to_vec())).collect(),
        input: client.input.rest().to_vec(),
        input_over: client.input_over,
    }
}

fn config_state(config: &HubConfig) -> ConfigState {
    ConfigState {
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        leave_stdin_open: config.leave_stdin_open,
        terminal: config.terminal,
        hangup_is_end: config.hangup_is_end,
        budget: config.queue.budget,
        deadline_ms: u64::try_from(config.queue.deadline.as_millis()).unwrap_or(u64::MAX),
        progress: config.queue.progress,
        max_clients: config.max_clients,
    }
}

fn config_of(state: &ConfigState) -> HubConfig {
    HubConfig {
        stdin: state.stdin,
        stdin_once: state.stdin_once,
        leave_stdin_open: state.leave_stdin_open,
        terminal: state.terminal,
        hangup_is_end: state.hangup_is_end,
        queue: QueuePolicy {
            budget: state.budget,
            deadline: Duration::from_millis(state.deadline_ms),
            progress: state.progress,
        },
        max_clients: state.max_clients,
    }
}

fn counter_state(counters: &Counters) -> CounterState {
    let kind = |cause| match cause {
        LossCause::Errno(errno) => LostKind::Errno(errno),
        LossCause::SizeLimit => LostKind::SizeLimit,
        LossCause::RateLimit => LostKind::RateLimit,
        LossCause::Deadline => LostKind::Deadline,
    };
    CounterState {
        read: counters.read,
        stdin: counters.stdin,
        attached: counters.attached,
        dropped: counters.dropped,
        reopened: counters.reopened,
        lost: counters.losses.iter().map(|(cause, bytes)| (kind(cause), bytes)).collect(),
    }
}

fn counters_of(state: &CounterState) -> Counters {
    let mut counters = Counters {
        read: state.read,
        stdin: state.stdin,
        attached: state.attached,
        dropped: state.dropped,
        reopened: state.reopened,
        ..Counters::default()
    };
    for (kind, bytes) in &state.lost {
        let cause = match kind {
            LostKind::Errno(errno) => LossCause::Errno(*errno),
            LostKind::SizeLimit => LossCause::SizeLimit,
            LostKind::RateLimit => LossCause::RateLimit,
            LostKind::Deadline => LossCause::Deadline,
        };
        counters.losses.add(cause, *bytes);
    }
    counters
}
