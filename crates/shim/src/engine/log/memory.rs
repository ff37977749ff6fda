//! Output kept in memory up to a limit, for calls that return it.

use super::{Chunk, LogSink, Losses};
use std::sync::{Arc, Mutex, PoisonError};

/// What was kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// A stream was longer than the limit; the rest was read and thrown away.
    pub truncated: bool,
}

/// Keeps the beginning of each stream.
#[derive(Debug)]
pub struct MemorySink {
    limit: usize,
    kept: Arc<Mutex<Captured>>,
}

impl MemorySink {
    /// A sink that keeps `limit` bytes of each stream, and the place where they can be taken from.
    pub fn new(limit: usize) -> (Self, Arc<Mutex<Captured>>) {
        let kept = Arc::new(Mutex::new(Captured::default()));
        (Self { limit, kept: Arc::clone(&kept) }, kept)
    }
}

impl LogSink for MemorySink {
    fn driver(&self) -> &'static str {
        "memory"
    }

    fn write(&mut self, chunk: &Chunk<'_>, _scratch: &mut Vec<u8>, _losses: &mut Losses) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &mut *kept;
        let to = match chunk.stream {
            pintle_core::line::Stream::Stdout => &mut kept.stdout,
            pintle_core::line::Stream::Stderr => &mut kept.stderr,
        };
        let room = self.limit.saturating_sub(to.len());
        let taken = chunk.data.get(..room).unwrap_or(chunk.data);
        to.extend_from_slice(taken);
        kept.truncated |= taken.len() < chunk.data.len();
    }
}
