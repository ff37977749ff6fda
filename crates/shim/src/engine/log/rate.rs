//! A log that takes so many bytes and lines per second: the container waits, or lines are dropped, counted and marked.

use super::{Chunk, LogError, LogSink, LossCause, Losses, SinkState};
use pintle_core::line::Stream;
use pintle_core::rate::{Bucket, RateLimits};
use pintle_core::wall::WallTime;
use pintle_sys::clock;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Sleep, sleep};

/// What a stream of a dropping log is in the middle of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Nothing: the next byte begins a line.
    Between,
    /// A line that is kept to its end, also in debt.
    Kept,
    /// A line that is dropped to its end.
    Dropped,
}

/// The limit around another sink.
pub struct RateSink {
    inner: Box<dyn LogSink>,
    limits: RateLimits,
    bucket: Bucket,
    /// Lines over the limit are dropped; otherwise nothing more is read until there is room.
    drop: bool,
    /// Dropping goes on until the bucket has recovered, so that markers stay rare.
    dropping: bool,
    lines: [Line; 2],
    timer: Option<Pin<Box<Sleep>>>,
    /// The process has ended: what is left is little and goes through at once.
    ended: bool,
}

impl RateSink {
    /// Limits what `inner` gets.
    pub fn new(inner: Box<dyn LogSink>, limits: RateLimits, drop: bool) -> Self {
        let bucket = Bucket::new(limits, clock::mono().0);
        let lines = [Line::Between; 2];
        Self { inner, limits, bucket, drop, dropping: false, lines, timer: None, ended: false }
    }

    /// Whether a line that begins now is kept.
    fn keeps(&mut self, now: u64) -> bool {
        self.dropping =
            if self.dropping { self.bucket.recovered(now) > 0 } else { self.bucket.wait(now) > 0 };
        !self.dropping
    }

    /// Hands on what is kept of a chunk, in pieces as long as may be.
    fn sift(&mut self, chunk: &Chunk<'_>, scratch: &mut Vec<u8>, losses: &mut Losses) {
        let (now, stream) = (clock::mono().0, chunk.stream.index());
        let (mut kept_from, mut at) = (0, 0);
        while let Some(rest) = chunk.data.get(at..).filter(|rest| !rest.is_empty()) {
            let newline = memchr::memchr(b'\n', rest);
            let end = at + newline.map_or(rest.len(), |n| n + 1);
            let length = (end - at) as u64;
            let keep = match self.lines[stream] {
                Line::Between => self.keeps(now),
                Line::Kept => true,
                Line::Dropped => false,
            };
            if keep {
                self.bucket.take(now, length, u64::from(newline.is_some()));
            } else {
                if kept_from < at {
                    self.hand_on(chunk, kept_from..at, scratch, losses);
                }
                kept_from = end;
                losses.add(LossCause::RateLimit, length);
                self.inner.note_loss(LossCause::RateLimit, length);
            }
            self.lines[stream] = match (newline, keep) {
                (Some(_), _) => Line::Between,
                (None, true) => Line::Kept,
                (None, false) => Line::Dropped,
            };
            at = end;
        }
        if kept_from < at {
            self.hand_on(chunk, kept_from..at, scratch, losses);
        }
    }

    fn hand_on(
        &mut self,
        chunk: &Chunk<'_>,
        range: std::ops::Range<usize>,
        scratch: &mut Vec<u8>,
        losses: &mut Losses,
    ) {
        let data = chunk.data.get(range).unwrap_or_default();
        self.inner.write(&Chunk { data, ..*chunk }, scratch, losses);
    }

    /// Goes on where another image was.
    pub(super) fn resumed(mut self, cut: [u8; 2], tokens: Option<[i64; 2]>, dropping: bool) -> Self {
        self.lines = cut.map(|n| match n {
            1 => Line::Kept,
            2 => Line::Dropped,
            _ => Line::Between,
        });
        self.dropping = dropping;
        if let Some(tokens) = tokens {
            self.bucket = Bucket::resumed(self.limits, clock::mono().0, tokens);
        }
        self
    }
}

impl LogSink for RateSink {
    fn driver(&self) -> &'static str {
        self.inner.driver()
    }

    fn write(&mut self, chunk: &Chunk<'_>, scratch: &mut Vec<u8>, losses: &mut Losses) {
        if self.drop && !self.ended {
            return self.sift(chunk, scratch, losses);
        }
        let lines = if self.limits.lines > 0 { memchr::memchr_iter(b'\n', chunk.data).count() } else { 0 };
        self.bucket.take(clock::mono().0, chunk.data.len() as u64, lines as u64);
        self.inner.write(chunk, scratch, losses);
    }

    fn poll_ready(&mut self, stream: Stream, cx: &mut Context<'_>, losses: &mut Losses) -> Poll<()> {
        while self.is_waiting() {
            let left = Duration::from_nanos(self.bucket.wait(clock::mono().0));
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(left)));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.timer = None;
        }
        self.timer = None;
        self.inner.poll_ready(stream, cx, losses)
    }

    fn is_holding(&self, stream: Stream) -> bool {
        self.is_waiting() || self.inner.is_holding(stream)
    }

    fn end(&mut self, stream: Stream, now: WallTime, scratch: &mut Vec<u8>, losses: &mut Losses) {
        self.inner.end(stream, now, scratch, losses);
    }

    fn process_ended(&mut self) {
        self.ended = true;
        self.inner.process_ended();
    }

    fn note_loss(&mut self, cause: LossCause, bytes: u64) {
        self.inner.note_loss(cause, bytes);
    }

    fn reopen(&mut self) -> Result<(), LogError> {
        self.inner.reopen()
    }

    fn path(&self) -> Option<&Path> {
        self.inner.path()
    }

    fn file_id(&self) -> Option<(u64, u64)> {
        self.inner.file_id()
    }

    fn finish(&mut self, sync: bool) -> Result<(), LogError> {
        self.inner.finish(sync)
    }

    fn freeze(&self) -> io::Result<Option<(SinkState, Vec<OwnedFd>)>> {
        let Some((inner, fds)) = self.inner.freeze()? else { return Ok(None) };
        let state = SinkState::Rate {
            inner: Box::new(inner),
            bytes: self.limits.bytes,
            lines: self.limits.lines,
            drop: self.drop,
            cut: self.lines.map(|line| match line {
                Line::Between => 0,
                Line::Kept => 1,
                Line::Dropped => 2,
            }),
            tokens: Some(self.bucket.tokens(clock::mono().0)),
            dropping: self.dropping,
        };
        Ok(Some((state, fds)))
    }
}

impl RateSink {
    /// Nothing more is to be read now.
    fn is_waiting(&self) -> bool {
        let mut bucket = self.bucket;
        !self.drop && !self.ended && bucket.wait(clock::mono().0) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FileConfig, FileSink, thaw};
    use super::*;

    /// What was written over the rate is paid for after an upgrade as well.
    #[test]
    fn a_debt_outlives_an_upgrade() {
        let file = FileSink::open(FileConfig { path: "/dev/null".into(), ..FileConfig::default() }).unwrap();
        let limits = RateLimits { bytes: 1000, lines: 0 };
        let mut sink = RateSink::new(Box::new(file), limits, false);
        let chunk = Chunk { stream: Stream::Stdout, data: &[b'x'; 1_000_000], now: WallTime::default() };
        sink.write(&chunk, &mut Vec::new(), &mut Losses::default());
        let after = |edit: fn(&mut serde_json::Map<String, serde_json::Value>)| {
            let (state, fds) = sink.freeze().unwrap().unwrap();
            let mut state = serde_json::to_value(&state).unwrap();
            edit(state.as_object_mut().unwrap());
            thaw(serde_json::from_value(state).unwrap(), fds).unwrap()
        };
        // A thousand seconds of debt.
        assert!(after(|_| {}).is_holding(Stream::Stdout));
        // An image that did not know of it left none.
        let before = |state: &mut serde_json::Map<_, _>| {
            state.remove("tokens");
            state.remove("dropping");
        };
        assert!(!after(before).is_holding(Stream::Stdout));
    }
}
