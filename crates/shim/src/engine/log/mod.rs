//! Where output goes: log drivers behind one trait.
//!
//! A sink never ends the pump. What it cannot take it counts in [`Losses`] and goes on; what it cannot take *now* (a
//! FIFO without room) it holds, one chunk at most, and says so through [`LogSink::poll_ready`], which stops the reads.

mod file;
mod journald;
mod memory;
mod rate;
mod raw;
mod rotation;

pub use file::{FileConfig, FileSink, ReopenPolicy};
pub use journald::{JOURNAL_SOCKET, JournaldSink};
pub use memory::{Captured, MemorySink};
pub use rate::RateSink;
pub use raw::RawSink;

use nix::errno::Errno;
use pintle_core::line::Stream;
use pintle_core::rate::RateLimits;
use pintle_core::wall::WallTime;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

/// What one read brought.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The stream.
    pub stream: Stream,
    /// The bytes; never empty.
    pub data: &'a [u8],
    /// The time of the read.
    pub now: WallTime,
}

/// Why bytes of output are not in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LossCause {
    /// A system call failed with this error.
    Errno(i32),
    /// The log's total size limit is reached.
    SizeLimit,
    /// The log takes no more in this second.
    RateLimit,
    /// The reader of a FIFO did not take them before the drain's deadline.
    Deadline,
}

impl LossCause {
    /// The cause of an I/O error.
    pub fn of(error: &io::Error) -> Self {
        LossCause::Errno(error.raw_os_error().unwrap_or(libc::EIO))
    }

    /// `ENOSPC`, `EIO`, ..., `size-limit`, `rate-limit` or `deadline`.
    pub fn name(self) -> String {
        match self {
            // The debug form of an errno is its name.
            LossCause::Errno(errno) => format!("{:?}", Errno::from_raw(errno)),
            LossCause::SizeLimit => "size-limit".to_owned(),
            LossCause::RateLimit => "rate-limit".to_owned(),
            LossCause::Deadline => "deadline".to_owned(),
        }
    }
}

/// Bytes of output lost by cause, and how often something was lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses(Vec<(LossCause, u64)>);

impl Losses {
    /// Counts `bytes` of container output (without any framing).
    pub fn add(&mut self, cause: LossCause, bytes: u64) {
        if bytes == 0 {
            return;
        }
        match self.0.iter_mut().find(|(c, _)| *c == cause) {
            Some((_, sum)) => *sum = sum.saturating_add(bytes),
            None => self.0.push((cause, bytes)),
        }
    }

    /// Causes and bytes, in order of first appearance.
    pub fn iter(&self) -> impl Iterator<Item = (LossCause, u64)> + '_ {
        self.0.iter().copied()
    }

    /// All bytes.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// A log that could not be opened, reopened or closed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The log file cannot be opened.
    #[error("open log file {path}", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A new file cannot be put in the old one's place; the old one is still in use.
    #[error("reopen log file {path}", path = path.display())]
    Reopen {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file's rules forbid to rotate it.
    #[error("rotate log file {path}: {reason}", path = path.display())]
    Forbidden {
        /// The file.
        path: PathBuf,
        /// Which rule.
        reason: &'static str,
    },
    /// The content may not be on disk.
    #[error("sync log file {path}", path = path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The journal's socket cannot be made.
    #[error("open journal socket")]
    Journal(#[source] io::Error),
}

impl LogError {
    /// The system's error, if one is behind it.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            LogError::Open { source, .. }
            | LogError::Reopen { source, .. }
            | LogError::Sync { source, .. } => Some(source),
            LogError::Journal(source) => Some(source),
            LogError::Forbidden { .. } => None,
        }
    }
}

/// A receiver of output. Called under the hub's lock, so nothing in it waits (a regular file's write aside).
pub trait LogSink: Send {
    /// Name of the driver, as in options: `k8s-file`, `journald`, ...
    fn driver(&self) -> &'static str;

    /// Takes a chunk. `scratch` is shared memory for encoding; its content means nothing.
    fn write(&mut self, chunk: &Chunk<'_>, scratch: &mut Vec<u8>, losses: &mut Losses);

    /// Ready when the sink holds nothing back for this stream, so that the next chunk may be read.
    fn poll_ready(&mut self, stream: Stream, cx: &mut Context<'_>, losses: &mut Losses) -> Poll<()> {
        let _ = (stream, cx, losses);
        Poll::Ready(())
    }

    /// True if [`poll_ready`](Self::poll_ready) would not be ready at once.
    fn is_holding(&self, stream: Stream) -> bool {
        let _ = stream;
        false
    }

    /// Nothing more of this stream follows.
    fn end(&mut self, stream: Stream, now: WallTime, scratch: &mut Vec<u8>, losses: &mut Losses) {
        let _ = (stream, now, scratch, losses);
    }

    /// The process has ended: what is in its pipes is all that follows.
    fn process_ended(&mut self) {}

    /// Bytes that were meant for this log were dropped before they came here: to be marked.
    fn note_loss(&mut self, cause: LossCause, bytes: u64) {
        let _ = (cause, bytes);
    }

    /// Opens the log anew. After `Ok` no byte goes to the old file; after an error the old file is still in use and
    /// no new one was made.
    ///
    /// # Errors
    /// [`LogError`] names the file.
    fn reopen(&mut self) -> Result<(), LogError> {
        Ok(())
    }

    /// The file's path, for drivers that have one.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// Device and inode of the current file.
    fn file_id(&self) -> Option<(u64, u64)> {
        None
    }

    /// The end of the log: flushes, and makes it durable if `sync`.
    ///
    /// # Errors
    /// [`LogError::Sync`].
    fn finish(&mut self, sync: bool) -> Result<(), LogError> {
        let _ = sync;
        Ok(())
    }

    /// The state that a new program image needs to go on, and the descriptors it refers to by index. `None` if this
    /// sink cannot be handed over.
    fn freeze(&self) -> io::Result<Option<(SinkState, Vec<OwnedFd>)>> {
        Ok(None)
    }
}

/// Serialised sink; descriptors travel beside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "driver", rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the fields are those of the sinks")]
pub enum SinkState {
    File {
        path: PathBuf,
        max_size: u64,
        max_total: u64,
        rotate: bool,
        max_files: u32,
        replace: bool,
        allow_dirs: Vec<PathBuf>,
        written: u64,
        total: u64,
        partial: [bool; 2],
        lost: Vec<(i32, u64)>,
        torn: bool,
        #[serde(default)]
        json: bool,
        #[serde(default)]
        close_partial: bool,
        #[serde(default)]
        held: [Vec<u8>; 2],
    },
    Journald {
        socket: PathBuf,
        id: Vec<u8>,
        name: Option<Vec<u8>>,
        tag: Option<Vec<u8>>,
        labels: Vec<Vec<u8>>,
        no_partial_marker: bool,
        priority_prefix: bool,
        held: [Vec<u8>; 2],
    },
    Rate {
        inner: Box<SinkState>,
        bytes: u64,
        lines: u64,
        drop: bool,
        cut: [u8; 2],
        /// What was left of the rate, or its debt; a full second's worth where an earlier image did not say.
        #[serde(default)]
        tokens: Option<[i64; 2]>,
        #[serde(default)]
        dropping: bool,
    },
    Raw {
        streams: [bool; 2],
        ended: [bool; 2],
        pending: Vec<u8>,
        broken: Option<i32>,
    },
}

/// Builds a sink from its state and its descriptors, the inverse of [`LogSink::freeze`].
///
/// # Errors
/// An error if descriptors are missing or unusable.
pub fn thaw(state: SinkState, fds: Vec<OwnedFd>) -> io::Result<Box<dyn LogSink>> {
    Ok(match state {
        state @ SinkState::File { .. } => Box::new(FileSink::thaw(state, fds)?),
        state @ SinkState::Journald { .. } => Box::new(JournaldSink::thaw(state)?),
        SinkState::Rate { inner, bytes, lines, drop, cut, tokens, dropping } => {
            let sink = RateSink::new(thaw(*inner, fds)?, RateLimits { bytes, lines }, drop);
            Box::new(sink.resumed(cut, tokens, dropping))
        }
        state @ SinkState::Raw { .. } => Box::new(RawSink::thaw(state, fds)?),
    })
}

fn mismatch() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "state of the log does not fit its descriptors")
}
