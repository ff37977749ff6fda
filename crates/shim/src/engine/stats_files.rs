//! The files behind the figures of a container, kept open while somebody asks often: opening one costs nine times as
//! much as reading it again.

use super::cgroup::{CgroupDir, Cgroups};
use super::stats::{Places, Stats};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Calls that follow one another within this time find the files open; after it they are closed.
const KEEP: Duration = Duration::from_secs(3);
/// More than any of the files has: cgroup files are read whole or not at all.
const LARGEST: usize = 64 << 10;

/// Open files in the order in which they are read.
#[derive(Debug, Default)]
pub(super) struct Files {
    slots: Vec<Slot>,
    next: usize,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Slot {
    controller: usize,
    name: Box<str>,
    file: Option<File>,
}

impl Files {
    fn slot(&mut self, owner: usize, name: &str, path: impl FnOnce() -> std::path::PathBuf) -> usize {
        let at = self.next;
        let known = self.slots.get(at).is_some_and(|s| s.controller == owner && *s.name == *name);
        if !known {
            self.slots.truncate(at);
            let file = File::open(path()).ok();
            self.slots.push(Slot { controller: owner, name: name.into(), file });
        }
        self.next += 1;
        at
    }

    /// What a file of a directory says now; `None` if it is missing or cannot be read.
    pub(super) fn read(&mut self, dir: &CgroupDir, name: &str) -> Option<&str> {
        let at = self.slot(std::ptr::from_ref(dir).addr(), name, || dir.path.join(name));
        self.text(at, false)
    }

    /// Whether a file is there.
    pub(super) fn exists(&mut self, dir: &CgroupDir, name: &str) -> bool {
        let at = self.slot(std::ptr::from_ref(dir).addr(), name, || dir.path.join(name));
        let there = self.slots[at].file.is_some();
        if there {
            // It is read next.
            self.next = at;
        }
        there
    }

    /// The network interfaces of a process.
    pub(super) fn network(&mut self, pid: i32) -> Option<&str> {
        let at = self.slot(0, "net/dev", || Path::new("/proc").join(pid.to_string()).join("net/dev"));
        self.text(at, true)
    }

    /// Memory of this process in pages. Half a `status` is not wanted, and that takes six times as long.
    pub(super) fn own_memory(&mut self) -> Option<&str> {
        let at = self.slot(0, "statm", || "/proc/self/statm".into());
        self.text(at, false)
    }

    /// `records`: a file that the kernel makes record by record, so that a short read is not its end.
    fn text(&mut self, at: usize, records: bool) -> Option<&str> {
        let file = self.slots.get(at)?.file.as_ref()?;
        let mut length = 0;
        loop {
            if self.buffer.len() < length + 1024 {
                self.buffer.resize((length + 1024).next_power_of_two().max(4096), 0);
            }
            let read = file.read_at(&mut self.buffer[length..], length as u64).ok()?;
            length += read;
            if read == 0 || (!records && length < self.buffer.len()) || length >= LARGEST {
                break;
            }
        }
        std::str::from_utf8(&self.buffer[..length]).ok()
    }
}

/// Reads the figures of one container.
#[derive(Debug)]
pub(super) struct Reader {
    places: Box<Places>,
    files: Files,
}

impl Reader {
    pub(super) fn new(cgroups: &Cgroups, pid: i32) -> Self {
        Self { places: Box::new(Places::of(cgroups, pid)), files: Files::default() }
    }

    pub(super) fn read(&mut self) -> Stats {
        self.files.next = 0;
        Stats::take(&self.places, &mut self.files)
    }
}

/// Keeps the reader of a container while it is asked often.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    reader: Option<(i32, Reader)>,
    asked: Option<Instant>,
    closing: bool,
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The figures now, read from `pid`'s cgroups. Within a tokio runtime.
    ///
    /// From the second call within some seconds the files stay open, for as long: who asks once a minute shall not
    /// cost descriptors.
    pub(super) fn read(self: &Arc<Self>, pid: i32, cgroups: impl FnOnce() -> Cgroups) -> Stats {
        let mut state = self.lock();
        let now = Instant::now();
        let often = state.asked.replace(now).is_some_and(|before| now.duration_since(before) < KEEP);
        if let Some((_, reader)) = state.reader.as_mut().filter(|(of, _)| *of == pid) {
            return reader.read();
        }
        let mut reader = Reader::new(&cgroups(), pid);
        let stats = reader.read();
        // An ended container's files go away.
        if often && pid > 0 {
            state.reader = Some((pid, reader));
            if !std::mem::replace(&mut state.closing, true) {
                tokio::spawn(close_later(Arc::downgrade(self)));
            }
        }
        stats
    }

    /// Closes the files: the container has ended, and an open file of `/proc` keeps its network namespace.
    pub(super) fn close(&self) {
        self.lock().reader = None;
    }
}

async fn close_later(kept: Weak<Kept>) {
    let mut wait = KEEP;
    loop {
        tokio::time::sleep(wait).await;
        let Some(kept) = kept.upgrade() else { return };
        let mut state = kept.lock();
        let unused = state.asked.map_or(KEEP, |asked| asked.elapsed());
        if unused >= KEEP {
            *state = State::default();
            return;
        }
        wait = KEEP - unused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(path: &Path) -> CgroupDir {
        CgroupDir { path: path.to_owned(), unified: false }
    }

    #[test]
    fn files_are_read_anew_and_missing_ones_stay_missing() {
        let path = std::env::temp_dir().join(format!("pintle-stats-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("a"), "1").unwrap();
        std::fs::write(path.join("big"), "x".repeat(10_000)).unwrap();
        let dir = dir(&path);
        let mut files = Files::default();
        for value in ["1", "22", "3"] {
            std::fs::write(path.join("a"), value).unwrap();
            files.next = 0;
            assert_eq!(files.read(&dir, "a"), Some(value));
            assert!(!files.exists(&dir, "none"));
            assert_eq!(files.read(&dir, "none"), None);
            assert!(files.exists(&dir, "big"));
            assert_eq!(files.read(&dir, "big").map(str::len), Some(10_000));
            assert_eq!(files.slots.len(), 4);
        }
        // Another order is noticed.
        files.next = 0;
        assert_eq!(files.read(&dir, "big").map(str::len), Some(10_000));
        std::fs::remove_dir_all(&path).unwrap();
    }

    fn open_files() -> usize {
        let of = |e: std::fs::DirEntry| std::fs::read_link(e.path()).ok();
        let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(of);
        all.filter(|target| target.ends_with("net/dev")).count()
    }

    #[test]
    fn kept_from_the_second_call_and_closed_when_unused() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let kept = Arc::new(Kept::default());
            let first = kept.read(pid, || Cgroups::of(pid));
            assert_eq!(open_files(), 0);
            kept.read(pid, || Cgroups::of(pid));
            assert_eq!(open_files(), 1);
            let again = kept.read(pid, || unreachable!("the files are open"));
            assert_eq!((first.cgroup_version, first.network), (again.cgroup_version, again.network));
            assert!(again.cpu.usage_ns >= first.cpu.usage_ns);
            let end = Instant::now() + Duration::from_secs(60);
            while open_files() > 0 {
                assert!(Instant::now() < end, "the files are never closed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            kept.read(pid, || Cgroups::of(pid));
            kept.read(pid, || Cgroups::of(pid));
            kept.close();
            assert_eq!(open_files(), 0);
        });
    }
}
