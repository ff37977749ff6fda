//! Lines for the daemon's log, through the FIFO `log` of the bundle.
//!
//! A daemon that has stopped reading must not stop the shim: the FIFO is opened for reading and writing (so neither
//! ENXIO nor SIGPIPE can happen) without blocking, and a line that does not fit is dropped and counted.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pintle_core::wall::WallTime;

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum Level {
    Debug,
    Info,
    Warning,
    Error,
}

/// Writes to the daemon's log. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Logger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fifo: Option<std::fs::File>,
    least: Level,
    tail: String,
    dropped: AtomicU64,
}

impl Logger {
    /// Opens the FIFO; without one every line is dropped.
    pub(super) fn open(fifo: &Path, debug: bool, namespace: &str, id: &str) -> Self {
        let fifo = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(fifo).ok();
        let least = if debug { Level::Debug } else { Level::Info };
        let tail = format!(" runtime=pintle namespace={namespace} id={id}\n");
        Self(Arc::new(Inner { fifo, least, tail, dropped: AtomicU64::new(0) }))
    }

    /// The FIFO, so that panics become visible.
    pub(super) fn file(&self) -> Option<&std::fs::File> {
        self.0.fifo.as_ref()
    }

    pub(super) fn debug(&self, message: impl AsRef<str>) {
        self.line(Level::Debug, message.as_ref());
    }

    pub(super) fn info(&self, message: impl AsRef<str>) {
        self.line(Level::Info, message.as_ref());
    }

    pub(super) fn warning(&self, message: impl AsRef<str>) {
        self.line(Level::Warning, message.as_ref());
    }

    pub(super) fn error(&self, message: impl AsRef<str>) {
        self.line(Level::Error, message.as_ref());
    }

    fn line(&self, level: Level, message: &str) {
        let Some(mut fifo) = self.0.fifo.as_ref().filter(|_| level >= self.0.least) else { return };
        let name = match level {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
        };
        let dropped = self.0.dropped.swap(0, Ordering::Relaxed);
        let lost = if dropped > 0 { format!(" lines_dropped={dropped}") } else { String::new() };
        let now = now().to_rfc3339();
        let line = format!("time=\"{now}\" level={name} msg={message:?}{lost}{}", self.0.tail);
        // One write, so that lines of several shims do not mix; above PIPE_BUF nobody promises that.
        if !fifo.write(line.as_bytes()).is_ok_and(|n| n == line.len()) {
            self.0.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
        }
    }
}

/// The wall clock.
pub(super) fn now() -> WallTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    WallTime::new(i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}
