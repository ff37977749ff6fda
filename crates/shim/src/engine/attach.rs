//! Attach clients: packets out with bounded patience, packets in to stdin.

use super::client::{Client, OVERHEAD};
use super::hub::{Hub, HubEvent, State};
use super::ready::async_fd;
use super::stdin::{Feeder, Pending};
use bytes::Bytes;
use pintle_core::attach::{ClientPacket, KIND_CONTROL, kind_of};
use pintle_core::line::Stream;
use pintle_core::queue::{ClientQueue, Verdict};
use pintle_sys::seqpacket::{self, Received};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// The longest packet taken from a client.
const MAX_INPUT: usize = 256 * 1024;
/// Packets taken from one client in a row before others have their turn.
const RUN: u32 = 16;
/// Clients read and write.
const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// Names a client of one hub.
pub type ClientId = u64;

/// The flavour of packets (see `pintle_core::attach`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Framing {
    /// conmon's: the client sends raw stdin, the end is a closed socket.
    #[default]
    Conmon,
    /// Ours: kinds in both directions, control packets, ends are told.
    Native,
}

/// What a client takes part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachOptions {
    /// It feeds stdin; otherwise what it sends is thrown away.
    pub stdin: bool,
    /// It gets stdout.
    pub stdout: bool,
    /// It gets stderr.
    pub stderr: bool,
    /// Flavour of packets.
    pub framing: Framing,
}

impl AttachOptions {
    /// All streams, in conmon's flavour.
    pub const CONMON: Self = Self { stdin: true, stdout: true, stderr: true, framing: Framing::Conmon };

    fn wants(&self, stream: Stream) -> bool {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }
}

/// A socket on which clients arrive.
pub(super) struct Listener {
    pub(super) fd: Arc<AsyncFd<OwnedFd>>,
    pub(super) options: AttachOptions,
    pub(super) task: AbortHandle,
}

/// Time for the clients' patience.
pub(super) fn monotonic() -> Duration {
    Duration::from_nanos(pintle_sys::clock::mono().0)
}

impl Hub {
    /// Serves a connected packet socket as a client until it or the process ends. It gets what is read from now on.
    ///
    /// # Errors
    /// `QuotaExceeded` at the limit of clients, or an error if the descriptor cannot be watched.
    pub fn attach(self: &Arc<Self>, client: OwnedFd, options: AttachOptions) -> io::Result<ClientId> {
        pintle_sys::bytes::set_nonblocking(client.as_fd(), true)?;
        let fd = Arc::new(async_fd(client, BOTH)?);
        let id = {
            let mut state = self.lock();
            if state.closed {
                return Err(io::Error::new(io::ErrorKind::NotConnected, "its streams have ended"));
            }
            if state.clients.len() >= self.config.max_clients {
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many attach clients"));
            }
            let id = state.next_id;
            state.next_id += 1;
            state.counters.attached += 1;
            state.clients.push(Client {
                id,
                fd,
                options,
                queue: ClientQueue::new(self.config.queue),
                packets: VecDeque::new(),
                input: Pending::default(),
                input_over: false,
                reader: None,
                writer: None,
                gone: false,
            });
            id
        };
        self.start_client(id);
        self.tell(HubEvent::ClientAttached(id));
        Ok(id)
    }

    /// Puts back a client of an earlier program.
    pub(super) fn restore_client(
        self: &Arc<Self>,
        fd: OwnedFd,
        options: AttachOptions,
        packets: VecDeque<(u8, Bytes)>,
        input: Pending,
        input_over: bool,
    ) -> io::Result<()> {
        let fd = Arc::new(async_fd(fd, BOTH)?);
        let mut queue = ClientQueue::new(self.config.queue);
        for (_, bytes) in &packets {
            queue.push(bytes.len() as u64 + OVERHEAD);
        }
        let id = {
            let mut state = self.lock();
            let id = state.next_id;
            state.next_id += 1;
            state.clients.push(Client {
                id,
                fd,
                options,
                queue,
                packets,
                input,
                input_over,
                reader: None,
                writer: None,
                gone: false,
            });
            id
        };
        if !input_over {
            self.start_client(id);
        }
        self.flush_clients();
        Ok(())
    }

    fn start_client(self: &Arc<Self>, id: ClientId) {
        let task = tokio::spawn(Arc::clone(self).read_client(id)).abort_handle();
        if let Some(client) = self.lock().clients.iter_mut().find(|c| c.id == id) {
            client.reader = Some(task);
        }
    }

    /// Accepts clients from a listening packet socket until the hub is closed. Peers that are neither root nor our own
    /// user are turned away.
    ///
    /// # Errors
    /// An error if the descriptor cannot be watched.
    pub fn serve_attach(self: &Arc<Self>, listener: OwnedFd, options: AttachOptions) -> io::Result<()> {
        pintle_sys::bytes::set_nonblocking(listener.as_fd(), true)?;
        let fd = Arc::new(async_fd(listener, Interest::READABLE)?);
        let task = tokio::spawn(Arc::clone(self).accept(Arc::clone(&fd), options)).abort_handle();
        self.lock().listeners.push(Listener { fd, options, task });
        Ok(())
    }

    async fn accept(self: Arc<Self>, listener: Arc<AsyncFd<OwnedFd>>, options: AttachOptions) {
        while let Ok(mut ready) = listener.readable().await {
            if self.lock().frozen {
                self.room.notified().await;
                continue;
            }
            match seqpacket::accept(listener.as_fd()) {
                Ok(client) => self.welcome(client, options),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => {
                    // Out of descriptors or memory: it stays readable, so look again later instead of spinning.
                    tracing::warn!("accept attach client: {error}");
                    drop(ready);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    fn welcome(self: &Arc<Self>, client: OwnedFd, options: AttachOptions) {
        match pintle_sys::peer::credentials(&client) {
            Ok(peer) if pintle_sys::peer::allowed(peer) => {
                if let Err(error) = self.attach(client, options) {
                    tracing::warn!("attach client: {error}");
                }
            }
            Ok(peer) => tracing::warn!("attach client of uid {} is not allowed", peer.uid),
            Err(error) => tracing::warn!("attach client: {error}"),
        }
    }

    /// Starts writers for clients with a queue and removes those whose connection failed.
    pub(super) fn flush_clients(self: &Arc<Self>) {
        let mut left = Vec::new();
        {
            let mut state = self.lock();
            if state.clients.is_empty() || state.frozen {
                return;
            }
            let mut at = 0;
            while let Some(client) = state.clients.get_mut(at) {
                if client.gone && !client.may_feed() {
                    left.push(state.clients.swap_remove(at));
                    continue;
                }
                if !client.packets.is_empty() && client.writer.is_none() {
                    let (id, fd) = (client.id, Arc::clone(&client.fd));
                    client.writer = Some(tokio::spawn(Arc::clone(self).write_client(id, fd)).abort_handle());
                }
                at += 1;
            }
        }
        self.farewell(left);
    }

    fn farewell(&self, left: Vec<Client>) {
        for client in left {
            client.hang_up();
            self.room.notify_waiters();
            self.tell(HubEvent::ClientLeft(client.id));
        }
    }

    fn remove_client(&self, id: ClientId) {
        let mut left = Vec::new();
        {
            let mut state = self.lock();
            if let Some(at) = state.clients.iter().position(|c| c.id == id) {
                left.push(state.clients.swap_remove(at));
            }
        }
        self.farewell(left);
    }

    async fn write_client(self: Arc<Self>, id: ClientId, fd: Arc<AsyncFd<OwnedFd>>) {
        loop {
            let Ok(mut ready) = fd.writable().await else { break };
            if self.lock().frozen {
                self.room.notified().await;
                continue;
            }
            let (empty, over) = {
                let mut state = self.lock();
                let Some(client) = state.clients.iter_mut().find(|c| c.id == id) else { return };
                let empty = client.send_queued();
                if empty {
                    client.writer = None;
                } else {
                    ready.clear_ready();
                }
                (empty, client.gone && !client.may_feed())
            };
            self.room.notify_waiters();
            if over {
                break;
            }
            if empty {
                return;
            }
        }
        self.remove_client(id);
    }

    /// Drops clients that have used up their patience.
    pub(super) fn drop_stalled(&self) {
        let now = monotonic();
        let mut dropped = Vec::new();
        {
            let mut state = self.lock();
            let mut at = 0;
            while let Some(client) = state.clients.get_mut(at) {
                if client.queue.verdict(now) == Verdict::Drop {
                    state.counters.dropped += 1;
                    dropped.push(state.clients.swap_remove(at));
                } else {
                    at += 1;
                }
            }
        }
        for client in dropped {
            let reason = format!("does not read: {} bytes are waiting for it", client.queue.queued());
            tracing::warn!("attach client dropped: it {reason}");
            if client.options.framing == Framing::Native {
                // There may be no room even for this; the event tells, too.
                let _ = seqpacket::send_packet(
                    client.fd.as_fd(),
                    &[&[KIND_CONTROL, b'D'], reason.as_bytes()].concat(),
                );
            }
            client.hang_up();
            self.room.notify_waiters();
            self.tell(HubEvent::ClientDropped(client.id, reason));
        }
    }

    async fn read_client(self: Arc<Self>, id: ClientId) {
        let Some(fd) = self.lock().clients.iter().find(|c| c.id == id).map(|c| Arc::clone(&c.fd)) else {
            return;
        };
        // A packet of an earlier program may still be on its way.
        self.feed(Feeder::Client(id)).await;
        let (mut packet, mut run) = (Vec::new(), 0u32);
        loop {
            let Ok(mut ready) = fd.readable().await else { break };
            if self.lock().frozen {
                self.room.notified().await;
                continue;
            }
            match seqpacket::recv_packet(fd.as_fd(), &mut packet, MAX_INPUT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    run = 0;
                    if packet.capacity() > 4096 {
                        packet = Vec::new();
                    }
                    continue;
                }
                Err(_) => break,
                Ok(Received::End) => return self.client_ended(id, &fd).await,
                Ok(Received::Packet) => {}
            }
            drop(ready);
            let Some(options) = self.lock().clients.iter().find(|c| c.id == id).map(|c| c.options) else {
                return;
            };
            if !self.take_packet(id, options, &packet).await {
                break;
            }
            run += 1;
            if run % RUN == 0 {
                tokio::task::yield_now().await;
            }
        }
        self.remove_client(id);
    }

    /// Handles a packet; false if the client speaks nonsense.
    async fn take_packet(&self, id: ClientId, options: AttachOptions, packet: &[u8]) -> bool {
        let bytes = match options.framing {
            Framing::Conmon => packet,
            Framing::Native => match ClientPacket::decode(packet) {
                Ok(ClientPacket::Stdin(bytes)) => bytes,
                Ok(ClientPacket::CloseStdin) => {
                    if options.stdin && !self.config.leave_stdin_open {
                        self.end_stdin().await;
                    }
                    return true;
                }
                Ok(ClientPacket::Resize { rows, cols }) => {
                    if let Err(error) = self.resize(rows, cols) {
                        tracing::debug!("resize by attach client: {error}");
                    }
                    return true;
                }
                Err(error) => {
                    tracing::warn!("attach client dropped: {error}");
                    return false;
                }
            },
        };
        if options.stdin && !bytes.is_empty() && !self.write_through(id, bytes) {
            self.feed(Feeder::Client(id)).await;
        }
        true
    }

    /// The client sends nothing any more: it has half-closed, or is gone altogether.
    async fn client_ended(self: &Arc<Self>, id: ClientId, fd: &AsyncFd<OwnedFd>) {
        let hung_up = seqpacket::hung_up(fd.as_fd());
        let (options, gone) = {
            let mut state = self.lock();
            let Some(client) = state.clients.iter_mut().find(|c| c.id == id) else { return };
            client.input_over = true;
            client.reader = None;
            (client.options, client.gone)
        };
        let _ = nix::sys::socket::shutdown(fd.get_ref().as_raw_fd(), nix::sys::socket::Shutdown::Read);
        // A native client that shuts its sending side down means it; a vanished one only counts for stdin_once.
        let meant = self.config.stdin_once || (options.framing == Framing::Native && !hung_up);
        if options.stdin && meant && !self.config.leave_stdin_open {
            self.end_stdin().await;
        }
        if hung_up || gone {
            self.remove_client(id);
        }
    }

    /// Gives clients what is queued for them as long as they take it, tells them the end, and closes them and the
    /// listeners.
    ///
    /// # Cancel safety
    /// Can be called again.
    pub async fn close_clients(self: &Arc<Self>, cap: Duration) {
        let listeners = std::mem::take(&mut self.lock().listeners);
        for listener in &listeners {
            listener.task.abort();
            // Those who have connected but were not accepted would see a reset instead of an end.
            while let Ok(client) = seqpacket::accept(listener.fd.as_fd()) {
                drop(client);
            }
        }
        drop(listeners);
        for client in &mut self.lock().clients {
            client.push_control(b"X");
        }
        self.flush_clients();
        let end = Instant::now() + cap;
        let policy = self.config.queue;
        let (mut since, mut sent) = (Instant::now(), u64::MAX);
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            let (waiting, now_sent) = {
                let state = self.lock();
                let waiting = state.clients.iter().filter(|c| !c.packets.is_empty()).count();
                (waiting, state.clients.iter().map(|c| c.queue.sent()).sum::<u64>())
            };
            let now = Instant::now();
            if now_sent != sent {
                (since, sent) = (now, now_sent);
            }
            if waiting == 0 || now >= end || now >= since + policy.deadline {
                break;
            }
            tokio::select! {
                () = room => {}
                () = tokio::time::sleep_until(end.min(since + policy.deadline)) => {}
            }
        }
        let clients = std::mem::take(&mut self.lock().clients);
        let stalled = clients.iter().filter(|c| !c.packets.is_empty()).count() as u64;
        self.lock().counters.dropped += stalled;
        self.farewell(clients);
    }
}

impl State {
    /// Copies output to the clients that want it.
    pub(super) fn fan_out(&mut self, stream: Stream, data: &[u8]) {
        let mut whole = None;
        for client in self.clients.iter_mut().filter(|c| !c.gone && c.options.wants(stream)) {
            client.push(kind_of(stream), data, &mut whole);
        }
    }

    /// Tells native clients that a stream is over.
    pub(super) fn tell_end(&mut self, stream: Stream) {
        for client in self.clients.iter_mut().filter(|c| !c.gone && c.options.wants(stream)) {
            client.push_control(match stream {
                Stream::Stdout => b"E\x02",
                Stream::Stderr => b"E\x03",
            });
        }
    }

    /// The strictest verdict of all clients.
    pub(super) fn clients_verdict(&mut self) -> Verdict {
        if self.clients.is_empty() {
            return Verdict::Accept;
        }
        let now = monotonic();
        let mut strictest = Verdict::Accept;
        for client in &mut self.clients {
            match (client.queue.verdict(now), strictest) {
                (Verdict::Drop, _) => return Verdict::Drop,
                (Verdict::Pause { until }, Verdict::Pause { until: other }) => {
                    strictest = Verdict::Pause { until: until.min(other) };
                }
                (verdict @ Verdict::Pause { .. }, _) => strictest = verdict,
                (Verdict::Accept, _) => {}
            }
        }
        strictest
    }
}
