//! Descriptors that become readable when something happens: inotify, eventfd, timerfd. All are non-blocking and
//! close-on-exec.

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

pub use nix::sys::inotify::AddWatchFlags as Mask;

/// An inotify instance.
#[derive(Debug)]
pub struct Watcher(Inotify);

/// One inotify event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What [`Watcher::add`] returned.
    pub watch: WatchDescriptor,
    /// What happened.
    pub mask: Mask,
    /// The file in a watched directory.
    pub name: Option<OsString>,
}

impl Watcher {
    /// A watcher of nothing.
    ///
    /// # Errors
    /// That of `inotify_init1`, for example `EMFILE` at the user's limit.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?))
    }

    /// Watches a path.
    ///
    /// # Errors
    /// That of `inotify_add_watch`.
    pub fn add(&self, path: &Path, mask: AddWatchFlags) -> io::Result<WatchDescriptor> {
        Ok(self.0.add_watch(path, mask)?)
    }

    /// Ends a watch.
    ///
    /// # Errors
    /// `EINVAL` if it is over already.
    pub fn remove(&self, watch: WatchDescriptor) -> io::Result<()> {
        Ok(self.0.rm_watch(watch)?)
    }

    /// The events that wait; `WouldBlock` if none.
    ///
    /// # Errors
    /// That of `read`.
    pub fn read(&self) -> io::Result<Vec<Event>> {
        let events = self.0.read_events()?;
        Ok(events.into_iter().map(|e| Event { watch: e.wd, mask: e.mask, name: e.name }).collect())
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for Watcher {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.0.as_fd())
    }
}

/// An eventfd whose counter starts at 0.
///
/// # Errors
/// That of `eventfd`.
pub fn event_fd() -> io::Result<OwnedFd> {
    use nix::sys::eventfd::{EfdFlags, EventFd};
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    Ok(event.into())
}

/// Reads and resets the counter of an eventfd or timerfd; `WouldBlock` if it is 0.
///
/// # Errors
/// That of `read`.
pub fn read_counter(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut counter = [0; 8];
    nix::unistd::read(fd, &mut counter)?;
    Ok(u64::from_ne_bytes(counter))
}

/// A one-shot timer with the kernel's resolution; the runtime's own ends on whole milliseconds.
#[derive(Debug)]
pub struct Timer(TimerFd);

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// That of `timerfd_create`.
    pub fn new() -> io::Result<Self> {
        Ok(Self(TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK)?))
    }

    /// Becomes readable once, after this time (at least a nanosecond).
    ///
    /// # Errors
    /// That of `timerfd_settime`.
    pub fn set(&self, after: Duration) -> io::Result<()> {
        let after = after.max(Duration::from_nanos(1));
        self.0.set(Expiration::OneShot(after.into()), TimerSetTimeFlags::empty())?;
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for Timer {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.0.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inotify_names_the_file() {
        let dir = std::env::temp_dir().join(format!("pintle-watch-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let watcher = Watcher::new().unwrap();
        let watch = watcher.add(&dir, Mask::IN_CREATE).unwrap();
        assert_eq!(watcher.read().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        std::fs::write(dir.join("x"), "").unwrap();
        let events = watcher.read().unwrap();
        assert_eq!(events, [Event { watch, mask: Mask::IN_CREATE, name: Some("x".into()) }]);
        watcher.remove(watch).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn counters_and_timers() {
        let event = event_fd().unwrap();
        assert_eq!(read_counter(event.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        nix::unistd::write(&event, &3u64.to_ne_bytes()).unwrap();
        assert_eq!(read_counter(event.as_fd()).unwrap(), 3);
        let timer = Timer::new().unwrap();
        timer.set(Duration::ZERO).unwrap();
        let mut fds = [nix::poll::PollFd::new(timer.as_fd(), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut fds, 30_000u16).unwrap(), 1);
        assert_eq!(read_counter(timer.as_fd()).unwrap(), 1);
    }
}
