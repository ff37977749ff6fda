//! Output: from the process's pipes or terminal to the sinks and then to the clients.
//!
//! One task per stream. The buffers are shared by all of them, made when something can be read and given back after a
//! quiet moment.

use super::hub::{Hub, HubEvent, State};
use super::log::Chunk;
use super::ready::async_fd;
use pintle_core::batch::Batcher;
use pintle_core::line::{MAX_RECORD, Stream};
use pintle_core::queue::Verdict;
use pintle_sys::watch::{Timer, read_counter};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use super::drain::{DrainPolicy, Drained};

/// Bytes of one read: a pipe's default size.
const READ: usize = 64 * 1024;
/// A read of this much found a pipe that was nearly full. It fills again while the bytes are written to the log, so
/// reading again costs less than asking epoll. Below it a pipe that gave less than was asked for is empty.
const FULL: usize = 48 * 1024;
/// Reads of one stream before others get their turn.
const TURN: usize = 4;
/// How long a terminal that nobody has open is left alone.
const HANGUP: Duration = Duration::from_millis(100);
/// The quiet moment after which buffers are freed.
const QUIET: Duration = Duration::from_millis(250);
/// Moving at least this much makes a burst, after which the allocator is asked to give memory back.
const BURST: u64 = 1 << 20;

/// One stream being read.
pub(super) struct Output {
    pub(super) id: u64,
    pub(super) stream: Stream,
    pub(super) fd: Arc<OwnedFd>,
    pub(super) tty: bool,
    pub(super) task: Option<AbortHandle>,
}

/// A stream's descriptor as epoll sees it: watched only while the pump waits for it.
struct Shared(Arc<OwnedFd>);

impl AsRawFd for Shared {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Memory of the pumps.
pub(super) struct Buffers {
    input: Vec<u8>,
    scratch: Vec<u8>,
}

impl Buffers {
    fn new() -> Self {
        Self { input: Vec::with_capacity(READ + MAX_RECORD), scratch: Vec::new() }
    }
}

/// What a turn of reading found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// There may be more.
    More,
    /// Nothing more for now.
    Empty,
    /// A sink or client has to take something first.
    Full,
    /// No process has the terminal open.
    Hangup,
    /// The end.
    End,
}

impl Hub {
    pub(super) fn start_output(
        self: &Arc<Self>,
        stream: Stream,
        fd: Arc<OwnedFd>,
        tty: bool,
    ) -> io::Result<()> {
        let watch = async_fd(Shared(Arc::clone(&fd)), Interest::READABLE)?;
        let id = {
            let mut state = self.lock();
            let id = state.next_id;
            state.next_id += 1;
            state.outputs.push(Output { id, stream, fd, tty, task: None });
            id
        };
        let task = tokio::spawn(Arc::clone(self).pump(id, stream, watch)).abort_handle();
        if let Some(output) = self.lock().outputs.iter_mut().find(|o| o.id == id) {
            output.task = Some(task);
        }
        Ok(())
    }

    async fn pump(self: Arc<Self>, id: u64, stream: Stream, watch: AsyncFd<Shared>) {
        let fd = Arc::clone(&watch.get_ref().0);
        let mut watch = Some(watch);
        let origin = Instant::now();
        let mut batcher = Batcher::new();
        let mut timer: Option<AsyncFd<Timer>> = None;
        // After a pause there is likely something, and asking costs less than waiting.
        let mut paused = false;
        loop {
            self.wait_for_room(stream).await;
            let ready = match (&watch, std::mem::take(&mut paused)) {
                (Some(watch), false) => match watch.readable().await {
                    Ok(ready) => Some(ready),
                    Err(_) => break,
                },
                (None, false) => match async_fd(Shared(Arc::clone(&fd)), Interest::READABLE) {
                    Ok(again) => {
                        watch = Some(again);
                        continue;
                    }
                    Err(error) => {
                        // No memory for an epoll entry; look again as if it were a pause.
                        tracing::warn!("watch output: {error}");
                        tokio::time::sleep(HANGUP).await;
                        paused = true;
                        continue;
                    }
                },
                (_, true) => None,
            };
            let (turn, bytes) = self.turn(id);
            match (turn, ready) {
                (Turn::End, _) => break,
                (Turn::Empty, Some(mut ready)) => ready.clear_ready(),
                (Turn::Empty, None) if bytes == 0 => continue,
                (Turn::Empty, None) => {}
                (Turn::More, ready) => {
                    paused = ready.is_none();
                    tokio::task::yield_now().await;
                    continue;
                }
                (Turn::Full, ready) => {
                    paused = ready.is_none();
                    continue;
                }
                (Turn::Hangup, _) => {
                    if self.lock().exited || self.config.hangup_is_end {
                        break;
                    }
                    // The kernel would report it as readable all the time.
                    let exit = self.progress.notified();
                    tokio::select! {
                        () = exit => {}
                        () = tokio::time::sleep(HANGUP) => {}
                    }
                    continue;
                }
            }
            match batcher.after_read(origin.elapsed(), bytes) {
                Some(pause) => {
                    // While it is watched, every write of the other side wakes us: no pause at all.
                    watch = None;
                    paused = wait(&mut timer, pause).await;
                }
                None if !batcher.is_active() => timer = None,
                None => {}
            }
        }
        drop((watch, fd));
        self.flushed(stream).await;
        self.end_output(id);
    }

    /// Waits until sinks hold nothing back and every client has room, or has been dropped.
    async fn wait_for_room(&self, stream: Stream) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            let (verdict, frozen) = {
                let mut state = self.lock();
                (state.clients_verdict(), state.frozen)
            };
            if frozen {
                room.await;
                continue;
            }
            match verdict {
                Verdict::Accept => {}
                Verdict::Pause { until } => {
                    let left = until.saturating_sub(super::attach::monotonic());
                    tokio::select! {
                        () = room.as_mut() => {}
                        () = tokio::time::sleep(left) => {}
                    }
                    self.drop_stalled();
                    continue;
                }
                Verdict::Drop => {
                    self.drop_stalled();
                    continue;
                }
            }
            tokio::select! {
                biased;
                () = self.sinks_ready(stream) => return,
                () = room => {}
            }
        }
    }

    async fn sinks_ready(&self, stream: Stream) {
        let mut waited = false;
        poll_fn(|cx| {
            let mut state = self.lock();
            let State { sinks, counters, .. } = &mut *state;
            let mut ready = true;
            for sink in sinks.iter_mut() {
                ready &= sink.poll_ready(stream, cx, &mut counters.losses).is_ready();
            }
            waited |= !ready;
            if ready { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        if waited {
            // A sink of both streams remembers only one of those who wait for it.
            self.room.notify_waiters();
        }
    }

    /// Waits until what was read of a stream is with the sinks' readers.
    async fn flushed(&self, stream: Stream) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            tokio::select! {
                biased;
                () = self.sinks_ready(stream) => return,
                () = room => {}
            }
        }
    }

    fn end_output(self: &Arc<Self>, id: u64) {
        {
            let mut state = self.lock();
            let Some(at) = state.outputs.iter().position(|o| o.id == id) else { return };
            let output = state.outputs.swap_remove(at);
            if output.tty {
                state.terminal = None;
            }
            if !state.outputs.iter().any(|o| o.stream == output.stream) {
                state.end_stream(output.stream);
            }
        }
        self.progress.notify_waiters();
        self.flush_clients();
    }

    /// Hands over output of the process that was read elsewhere; what the hub reads afterwards follows it.
    pub fn inject(self: &Arc<Self>, stream: Stream, bytes: &[u8]) {
        {
            let mut state = self.lock();
            let mut scratch = Vec::new();
            for piece in bytes.chunks(READ) {
                state.deliver(stream, piece, &mut scratch);
            }
            state.counters.read[stream.index()] += bytes.len() as u64;
        }
        self.progress.notify_waiters();
        self.flush_clients();
    }

    /// Reads a stream a few times and hands over what came. Returns the bytes read.
    pub(super) fn turn(self: &Arc<Self>, id: u64) -> (Turn, usize) {
        let mut lost = None;
        let result = {
            let mut state = self.lock();
            if state.frozen {
                return (Turn::Full, 0);
            }
            let Some(output) = state.outputs.iter().find(|o| o.id == id) else { return (Turn::End, 0) };
            let (fd, stream, tty) = (Arc::clone(&output.fd), output.stream, output.tty);
            let before = state.counters.losses.total();
            let mut buffers = state.buffers.take().unwrap_or_else(Buffers::new);
            let result = state.read_turn(&mut buffers, &fd, stream, tty);
            state.buffers = Some(buffers);
            state.moved += result.1 as u64;
            if before == 0 && state.counters.losses.total() > 0 {
                lost = state.counters.losses.iter().next().map(|(cause, _)| cause.name());
            }
            if !state.janitor {
                state.janitor = true;
                drop(state);
                tokio::spawn(Arc::clone(self).tidy());
            }
            result
        };
        if result.1 > 0 {
            self.progress.notify_waiters();
            self.flush_clients();
        }
        if let Some(cause) = lost {
            self.tell(HubEvent::LogLoss(cause));
        }
        result
    }

    /// Frees the buffers when nothing has moved for a moment, then ends: an idle shim is not woken by it.
    async fn tidy(self: Arc<Self>) {
        let mut moved = 0;
        loop {
            tokio::time::sleep(QUIET).await;
            let mut state = self.lock();
            if state.moved != moved {
                moved = state.moved;
                continue;
            }
            state.buffers = None;
            state.moved = 0;
            state.janitor = false;
            drop(state);
            if moved >= BURST {
                pintle_sys::mem::trim();
            }
            return;
        }
    }
}

/// Waits for a pause of less than a millisecond; true if it could.
async fn wait(timer: &mut Option<AsyncFd<Timer>>, pause: Duration) -> bool {
    if timer.is_none() {
        *timer = Timer::new().and_then(|timer| async_fd(timer, Interest::READABLE)).ok();
    }
    let Some(timer) = timer else { return false };
    if timer.get_ref().set(pause).is_err() {
        return false;
    }
    let Ok(mut rung) = timer.readable().await else { return false };
    let _ = read_counter(timer.get_ref().as_fd());
    rung.clear_ready();
    true
}

impl State {
    pub(super) fn end_stream(&mut self, stream: Stream) {
        let now = pintle_sys::clock::wall();
        let mut scratch = Vec::new();
        for sink in &mut self.sinks {
            sink.end(stream, now, &mut scratch, &mut self.counters.losses);
        }
        self.tell_end(stream);
    }

    fn read_turn(&mut self, buffers: &mut Buffers, fd: &OwnedFd, stream: Stream, tty: bool) -> (Turn, usize) {
        let Buffers { input, scratch } = buffers;
        input.clear();
        let mut total = 0;
        let mut turn = Turn::More;
        for _ in 0..TURN {
            let found = fill(fd, input, tty, &mut total);
            let ended = found != Turn::More;
            if ended {
                turn = found;
            }
            if input.is_empty() {
                break;
            }
            // More is to come: keep the beginning of a line for the next read, so that it is not cut.
            let cut = match memchr::memrchr(b'\n', input) {
                Some(at) if !ended && input.len() - at <= MAX_RECORD => at + 1,
                _ => input.len(),
            };
            self.deliver(stream, input.get(..cut).unwrap_or_default(), scratch);
            input.drain(..cut);
            if ended {
                break;
            }
            if !self.has_room(stream) {
                turn = Turn::Full;
                break;
            }
        }
        if !input.is_empty() {
            self.deliver(stream, input, scratch);
            input.clear();
        }
        self.counters.read[stream.index()] += total as u64;
        (turn, total)
    }

    /// Log first, then clients.
    fn deliver(&mut self, stream: Stream, data: &[u8], scratch: &mut Vec<u8>) {
        if data.is_empty() {
            return;
        }
        let chunk = Chunk { stream, data, now: pintle_sys::clock::wall() };
        for sink in &mut self.sinks {
            sink.write(&chunk, scratch, &mut self.counters.losses);
        }
        if !self.clients.is_empty() {
            self.fan_out(stream, data);
        }
    }

    fn has_room(&mut self, stream: Stream) -> bool {
        self.clients_verdict() == Verdict::Accept && self.sinks.iter().all(|sink| !sink.is_holding(stream))
    }
}

/// Reads a pipe once and a terminal, which gives single lines, until the buffer is full. `More` if there is likely more.
fn fill(fd: &OwnedFd, input: &mut Vec<u8>, tty: bool, total: &mut usize) -> Turn {
    loop {
        let room = input.capacity() - input.len();
        if room == 0 {
            return Turn::More;
        }
        match pintle_sys::bytes::read_spare(fd.as_fd(), input) {
            Ok(0) => return Turn::End,
            Ok(n) => {
                *total += n;
                if !tty {
                    return if n < FULL { Turn::Empty } else { Turn::More };
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Turn::Empty,
            // A terminal that is not open anywhere.
            Err(error) if tty && error.raw_os_error() == Some(libc::EIO) => return Turn::Hangup,
            Err(error) => {
                // It cannot get better, and trying again would spin.
                tracing::warn!("read output: {error}");
                return Turn::End;
            }
        }
    }
}
