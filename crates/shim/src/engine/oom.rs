//! Watching a container's cgroup for OOM kills.
//!
//! Facts come from the kernel's counters; notifications say when to look. So a notification that also comes with the
//! removal of a cgroup (v1) is no kill, and a kill whose notification comes late is still counted by the look at the end.
//! Whoever removes the cgroup before that look takes the counters away, also from those who hold the file open. On v1 the
//! notifications are then what is left: the removal makes one, each OOM one more.

use super::cgroup::{CgroupDir, Cgroups, for_each_below};
use super::ready::async_fd;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use pintle_core::cgroup::{MemoryEvents, OomCounter, OomVerdict, parse_memory_events};
use pintle_sys::watch::{event_fd, read_counter};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One level. Its files are held open from the start, for the day on which there are no descriptors to be had, but they
/// are opened anew for each look: the kernel keeps a page for every file that was read once, until it is closed.
struct Level {
    dir: CgroupDir,
    /// The directory itself: another one under its name is not it.
    place: OwnedFd,
    events: File,
    failcnt: Option<File>,
}

const FAILCNT: &str = "memory.failcnt";

impl Level {
    fn open(dir: &CgroupDir) -> Option<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let place = nix::fcntl::open(&dir.path, flags, Mode::empty()).ok()?;
        let events = open_in(&place, Self::events_name(dir)).ok()?;
        let failcnt = if dir.unified { None } else { open_in(&place, FAILCNT).ok() };
        Some(Self { dir: dir.clone(), place, events, failcnt })
    }

    fn events_name(dir: &CgroupDir) -> &'static str {
        if dir.unified { "memory.events" } else { "memory.oom_control" }
    }

    /// What a file says now.
    fn text(&self, name: &str, held: &File) -> Option<String> {
        match open_in(&self.place, name) {
            Ok(file) => read_at_start(&file),
            Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => read_at_start(held),
            Err(_) => None,
        }
    }

    /// `None` once the cgroup is gone.
    fn read(&self, with_nested: bool) -> Option<MemoryEvents> {
        let mut events = parse_memory_events(&self.text(Self::events_name(&self.dir), &self.events)?)?;
        if let Some(failcnt) = &self.failcnt {
            // v1 has no count of OOMs; how often the limit was hit tells the level apart.
            events.oom = self.text(FAILCNT, failcnt).and_then(|t| t.trim().parse().ok()).unwrap_or(0);
            if with_nested {
                // v1 books a kill on the victim's own cgroup only.
                let mut sum = 0u64;
                for_each_below(&self.dir.path, 256, &mut |path| {
                    if path != self.dir.path {
                        let text =
                            std::fs::read_to_string(path.join("memory.oom_control")).unwrap_or_default();
                        sum = sum.saturating_add(parse_memory_events(&text).map_or(0, |e| e.oom_kill));
                    }
                });
                events.oom_kill = events.oom_kill.saturating_add(sum);
            }
        }
        Some(events)
    }
}

fn open_in(place: &OwnedFd, name: &str) -> Result<File, Errno> {
    nix::fcntl::openat(place, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map(File::from)
}

fn read_at_start(file: &File) -> Option<String> {
    let mut buffer = [0u8; 1024];
    let n = file.read_at(&mut buffer, 0).ok()?;
    Some(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

/// The watch over one container. Dropping it ends it.
pub struct OomWatch {
    own: Level,
    parent: Option<Level>,
    notify: io::Result<AsyncFd<OwnedFd>>,
    /// Notifications of v1 so far.
    signals: AtomicU64,
    counter: Mutex<OomCounter>,
}

/// How long the notification of a cgroup's removal is waited for, and how often it is looked for.
const REMOVAL: (Duration, u32) = (Duration::from_millis(5), 80);

impl OomWatch {
    /// Starts to watch. `None` where there is no memory controller for the container.
    ///
    /// Where the kernel gives no notification (one without them on v1, or no descriptor to be had) the counters are still
    /// read at the end: the verdict is as good, only kills of others than init are told late.
    pub fn open(cgroups: &Cgroups) -> Option<Self> {
        Self::start(cgroups, None)
    }

    /// Goes on with the counter of a predecessor. Kills between its last look and now are told as new ones.
    pub fn resume(cgroups: &Cgroups, counter: OomCounter) -> Option<Self> {
        Self::start(cgroups, Some(counter))
    }

    /// Why kills are not told when they happen, if they are not.
    pub fn deaf(&self) -> Option<&io::Error> {
        self.notify.as_ref().err()
    }

    /// The counter, for a successor.
    pub fn counter(&self) -> OomCounter {
        *self.counter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(cgroups: &Cgroups, counter: Option<OomCounter>) -> Option<Self> {
        let mut dir = cgroups.dir("memory")?;
        // A nested leaf without the controller (systemd in a container): the first level above that has it counts.
        let own = loop {
            if let Some(level) = Level::open(&dir) {
                break level;
            }
            dir.path = dir.path.parent().filter(|p| p.join("cgroup.procs").exists())?.to_path_buf();
        };
        let parent = own.dir.path.parent().map(Path::to_path_buf);
        let parent = parent.and_then(|path| Level::open(&CgroupDir { path, unified: own.dir.unified }));
        let notify = if own.dir.unified {
            // Like any file of kernfs, `memory.events` polls as priority data when it has changed. An inotify instance
            // would do as well, but of those a user has 128 by default, for all containers together.
            own.events.try_clone().and_then(|file| async_fd(file.into(), Interest::PRIORITY))
        } else {
            eventfd(&own).and_then(|fd| async_fd(fd, Interest::READABLE))
        };
        let start_own = own.read(true).unwrap_or_default();
        let start_parent = parent.as_ref().and_then(|p| p.read(false)).unwrap_or_default();
        let counter = Mutex::new(counter.unwrap_or_else(|| OomCounter::new(start_own, start_parent)));
        Some(Self { own, parent, notify, signals: AtomicU64::new(0), counter })
    }

    /// Reads the counters now; answers how many kills are new.
    pub fn look(&self) -> u64 {
        let Some(own) = self.own.read(true) else { return 0 };
        let parent = self.parent.as_ref().and_then(|p| p.read(false));
        self.counter.lock().unwrap_or_else(PoisonError::into_inner).observe(own, parent)
    }

    /// Notes that none of the kills until now was init's, if init lives on: a later SIGKILL from elsewhere is then not
    /// taken for one.
    pub fn init_survives(&self, init: i32) {
        self.look();
        // In this order: a kill is counted before its signal is sent.
        if init > 0 && !pintle_sys::process::is_dying(init) {
            self.counter.lock().unwrap_or_else(PoisonError::into_inner).init_survived();
        }
    }

    /// The facts so far.
    pub fn verdict(&self, init_sigkilled: bool) -> OomVerdict {
        self.counter.lock().unwrap_or_else(PoisonError::into_inner).verdict(init_sigkilled)
    }

    /// Looks when init has ended, first thing; answers how many kills are new. Takes up to 0.4 s where init was killed and
    /// somebody has removed the cgroup already.
    pub async fn look_at_end(&self, init_sigkilled: bool) -> u64 {
        let new = self.look();
        let counted = self.verdict(false).kills;
        if new > 0 || !init_sigkilled || self.own.dir.unified || self.own.read(false).is_some() {
            return new;
        }
        for _ in 0..REMOVAL.1 {
            if self.take_signals() >= counted + 2 {
                return self.counter.lock().unwrap_or_else(PoisonError::into_inner).observe_unread_kill();
            }
            tokio::time::sleep(REMOVAL.0).await;
        }
        0
    }

    /// Empties the notifications of v1; gives their number so far.
    fn take_signals(&self) -> u64 {
        if let Some(eventfd) = self.notify.as_ref().ok().filter(|_| !self.own.dir.unified) {
            let new = read_counter(eventfd.get_ref().as_fd()).unwrap_or(0);
            self.signals.fetch_add(new, Ordering::Relaxed);
        }
        self.signals.load(Ordering::Relaxed)
    }

    /// Waits until at least one new kill is counted; answers how many. Cancel-safe.
    pub async fn next(&self) -> u64 {
        // v1 notifies before it kills: the count follows a little later. v2 counts first, but notifies of each time the limit
        // was hit, a hundred times a second: the pause bounds the looks.
        let pauses: &[u64] = if self.own.dir.unified { &[0, 100] } else { &[0, 5, 20, 100, 400] };
        let interest = if self.own.dir.unified { Interest::PRIORITY } else { Interest::READABLE };
        loop {
            let Ok(notify) = &self.notify else { return std::future::pending().await };
            match notify.ready(interest).await {
                Ok(mut ready) => {
                    self.take_signals();
                    ready.clear_ready();
                }
                Err(_) => return std::future::pending().await,
            }
            for pause in pauses {
                if *pause > 0 {
                    tokio::time::sleep(Duration::from_millis(*pause)).await;
                }
                let new = self.look();
                if new > 0 {
                    return new;
                }
            }
            // The cgroup may be gone, in which case the descriptor can stay readable: that must not spin.
            if !self.own.dir.path.exists() {
                return std::future::pending().await;
            }
        }
    }
}

fn eventfd(level: &Level) -> io::Result<OwnedFd> {
    let fd = event_fd()?;
    let line = format!("{} {}", fd.as_raw_fd(), level.events.as_raw_fd());
    std::fs::write(level.dir.path.join("cgroup.event_control"), line)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict does not depend on the notification: a kernel or a user's limit may refuse it.
    #[test]
    fn without_notification_the_counters_still_tell() {
        let root = std::env::temp_dir().join(format!("pintle-oom-{}", std::process::id()));
        let dir = root.join("memory/c");
        // A directory where the notification would be asked for: it cannot be written to.
        std::fs::create_dir_all(dir.join("cgroup.event_control")).unwrap();
        let count = |n: u32| {
            let text = format!("oom_kill_disable 0\nunder_oom 0\noom_kill {n}\n");
            std::fs::write(dir.join("memory.oom_control"), text).unwrap();
        };
        count(1);
        let mount = format!("1 2 0:3 / {} rw - cgroup cgroup rw,memory\n", root.join("memory").display());
        let cgroups = Cgroups::parse("5:memory:/c\n", &mount);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let watch = OomWatch::open(&cgroups).expect("the counters can be read");
            assert!(watch.deaf().is_some());
            assert_eq!(watch.look(), 0);
            count(2);
            assert_eq!(watch.look(), 1);
            let verdict = watch.verdict(true);
            assert!(verdict.init_killed && verdict.kills == 1, "{verdict:?}");
        });
        std::fs::remove_dir_all(&root).unwrap();
    }
}
