//! What the kernel tells of a log: that it grew, and each time that another file took its name. Without inotify (its
//! instances are few) the log is looked at every now and then.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::inotify::WatchDescriptor;
use pintle_sys::watch::{Mask, Watcher};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::chain::{Chain, LogFile};

/// How often a growing log is looked at if nobody tells.
const POLL: Duration = Duration::from_millis(100);

/// How often if the kernel does: it does not tell what another machine writes to a shared file system, nor that a shim
/// was killed.
const LOOK: Duration = Duration::from_secs(1);

/// Which file under the log's name one is, counted since we watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation {
    /// Counted anew when events were lost.
    epoch: u32,
    number: i64,
}

impl Generation {
    /// That of a later file, or of an earlier one.
    pub(super) fn plus(self, more: i64) -> Self {
        Self { number: self.number.saturating_add(more), ..self }
    }

    /// How much later it is than the other one; None if that was not counted.
    pub(super) fn since(self, other: Self) -> Option<u64> {
        let more = self.number.saturating_sub(other.number);
        (self.epoch == other.epoch).then(|| u64::try_from(more).unwrap_or(0))
    }
}

/// A watch on a log's directory, on the file that is read, and on the container's end.
pub(super) struct Watch {
    kernel: Option<(Watcher, WatchDescriptor)>,
    name: OsString,
    now: Generation,
    files: Vec<WatchDescriptor>,
}

impl Watch {
    /// Watches the log, if the kernel lets us.
    pub(super) fn new(chain: &Chain) -> Self {
        let kernel = Watcher::new().and_then(|watcher| {
            let dir = watcher.add(chain.dir(), Self::NAMES)?;
            Ok((watcher, dir))
        });
        Self { kernel: kernel.ok(), name: chain.name().to_owned(), ..Self::none() }
    }

    /// Watches nothing.
    pub(super) fn none() -> Self {
        let now = Generation { epoch: 0, number: 0 };
        Self { kernel: None, name: OsString::new(), now, files: Vec::new() }
    }

    /// What tells of names in a directory. All directories get the same: two watches of one are one.
    const NAMES: Mask = Mask::IN_MOVED_TO.union(Mask::IN_CREATE);

    /// Also tells of new names in this directory.
    pub(super) fn directory(&self, dir: &Path) {
        if let Some((watcher, _)) = &self.kernel {
            // Without it the next look finds what is new.
            let _ = watcher.add(dir, Self::NAMES);
        }
    }

    /// From now on tells when this file grows, and no longer of others.
    pub(super) fn only(&mut self, file: &LogFile) {
        let Some((watcher, _)) = &self.kernel else { return };
        for old in self.files.drain(..) {
            let _ = watcher.remove(old);
        }
        self.also(file);
    }

    /// Also tells when this file grows.
    pub(super) fn also(&mut self, file: &LogFile) {
        let Some((watcher, _)) = &self.kernel else { return };
        // By its descriptor: its name may have changed.
        let path = format!("/proc/self/fd/{}", file.file.as_raw_fd());
        if let Ok(watch) = watcher.add(Path::new(&path), Mask::IN_MODIFY) {
            if !self.files.contains(&watch) {
                self.files.push(watch);
            }
        }
    }

    /// Reads what the kernel has told.
    pub(super) fn read(&mut self) {
        let Some((watcher, dir)) = &self.kernel else { return };
        while let Ok(events) = watcher.read() {
            for event in events {
                if event.mask.contains(Mask::IN_Q_OVERFLOW) {
                    self.now = Generation { epoch: self.now.epoch.wrapping_add(1), number: 0 };
                } else if event.watch == *dir && event.name.as_ref() == Some(&self.name) {
                    self.now = self.now.plus(1);
                }
            }
        }
    }

    /// That of the current file, if somebody counts.
    pub(super) fn generation(&self) -> Option<Generation> {
        self.kernel.as_ref().map(|_| self.now)
    }

    /// Waits until there may be something new.
    pub(super) async fn wait(&self) {
        if let Some((watcher, _)) = &self.kernel {
            #[allow(deprecated, reason = "see crate::signal")]
            if let Ok(fd) = AsyncFd::with_interest(watcher.as_fd(), Interest::READABLE) {
                let _ = tokio::time::timeout(LOOK, fd.readable()).await;
                return;
            }
        }
        tokio::time::sleep(POLL).await;
    }
}
