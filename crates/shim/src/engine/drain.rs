//! The end of the output: all of it if the streams end by themselves, and by a stated rule if a left-over process holds
//! one open.

use super::hub::Hub;
use pintle_core::line::Stream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How the last of the output is waited for.
#[derive(Clone, Copy, Debug)]
pub struct DrainPolicy {
    /// While a process that was left over holds the pipe: stop when nothing came for this long.
    pub quiet: Duration,
    /// Stop in any case.
    pub cap: Duration,
}

impl Default for DrainPolicy {
    fn default() -> Self {
        Self { quiet: Duration::from_millis(200), cap: Duration::from_secs(10) }
    }
}

/// How the output ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Every stream ended by itself: nothing is missing.
    pub eof: bool,
    /// Somebody still holds a stream open; what they write from now on is lost.
    pub leaked: bool,
    /// Bytes that were read but not taken by the reader of a FIFO in time.
    pub undelivered: bool,
}

impl Hub {
    /// Waits for the end of all output after the process has exited: every byte that was written before the last holder
    /// closed its end is with the logs then. Left-over processes that hold a stream open are given up by `policy`.
    ///
    /// # Cancel safety
    /// Can be called again.
    pub async fn drained(self: &Arc<Self>, policy: DrainPolicy) -> Drained {
        {
            let mut state = self.lock();
            state.exited = true;
            state.sinks.iter_mut().for_each(|sink| sink.process_ended());
        }
        self.room.notify_waiters();
        self.progress.notify_waiters();
        let end = Instant::now() + policy.cap;
        let mut quiet = Instant::now() + policy.quiet;
        let mut read = self.read_total();
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            // The pumps do the reading. What they have not got to yet counts as activity, too.
            let open = self.open_outputs();
            if open.is_empty() {
                return Drained { eof: true, ..Drained::default() };
            }
            let now = Instant::now();
            if self.read_total() != read {
                read = self.read_total();
                quiet = now + policy.quiet;
            }
            if now >= end || now >= quiet && self.is_empty(&open) {
                break;
            }
            tokio::select! {
                () = progress => {}
                () = tokio::time::sleep_until(end.min(quiet.max(now + Duration::from_millis(1)))) => {}
            }
        }
        self.cut_off()
    }

    fn read_total(&self) -> u64 {
        self.lock().counters.read.iter().sum()
    }

    fn open_outputs(&self) -> Vec<Arc<OwnedFd>> {
        self.lock().outputs.iter().map(|o| Arc::clone(&o.fd)).collect()
    }

    /// True if nothing can be read from any of these now, and no sink holds anything back.
    fn is_empty(&self, outputs: &[Arc<OwnedFd>]) -> bool {
        let idle = !outputs.iter().any(|fd| pintle_sys::bytes::is_readable(fd.as_fd()));
        let state = self.lock();
        idle && Stream::ALL.iter().all(|stream| !state.sinks.iter().any(|sink| sink.is_holding(*stream)))
    }

    /// Stops reading streams that others still hold open.
    fn cut_off(self: &Arc<Self>) -> Drained {
        let (outputs, undelivered) = {
            let mut state = self.lock();
            let outputs = std::mem::take(&mut state.outputs);
            let before = state.counters.losses.total();
            for stream in Stream::ALL {
                if outputs.iter().any(|o| o.stream == stream) {
                    state.end_stream(stream);
                }
            }
            state.terminal = None;
            (outputs, state.counters.losses.total() > before)
        };
        for output in &outputs {
            if let Some(task) = &output.task {
                task.abort();
            }
        }
        self.flush_clients();
        Drained { eof: false, leaked: !outputs.is_empty(), undelivered }
    }
}
