//! Killing a process with everything it started, also what has left its session and its parent.
//!
//! The processes of an exec cannot be told by parentage: an orphan in a pid namespace goes to the container's init.
//! So an exec that may have to be killed runs in a sub-cgroup of the container's cgroup (`exec --cgroup`), which no
//! process leaves by forking. Where the runtime cannot do that, descendants are followed as far as `/proc` shows them.

use super::cgroup::{Cgroups, for_each_below};
use pintle_sys::pidfd::PidFd;
use pintle_sys::process;
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

/// A sub-cgroup for one exec.
#[derive(Debug)]
pub struct ExecCgroup {
    dir: PathBuf,
    /// Argument of the runtime's `--cgroup`.
    pub argument: String,
}

impl ExecCgroup {
    /// Makes one below the container's cgroup. `None` where that is not possible.
    pub fn make(cgroups: &Cgroups, name: &str) -> Option<Self> {
        // One hierarchy is enough. On v1 a controller that neither limits nor counts anything is the least intrusive.
        let (parent, controller) = match cgroups.dir("freezer").filter(|d| !d.unified) {
            Some(dir) => (dir, Some("freezer")),
            None => (cgroups.unified()?, None),
        };
        // Never below a root: that would not be the container's own cgroup.
        if !parent.path.join("cgroup.procs").exists() || !parent.path.parent()?.join("cgroup.procs").exists()
        {
            return None;
        }
        let dir = parent.path.join(name);
        std::fs::create_dir(&dir).ok()?;
        let argument = match controller {
            Some(controller) => format!("{controller}:{name}"),
            None => name.to_owned(),
        };
        Some(Self { dir, argument })
    }

    /// SIGKILL to everything in it. Answers whether it is empty afterwards (zombies do not count).
    pub fn kill(&self) -> bool {
        if std::fs::write(self.dir.join("cgroup.kill"), "1").is_ok() {
            return pids_below(&self.dir).is_empty();
        }
        let freezer = self.dir.join("freezer.state");
        // Frozen processes cannot fork away between being listed and being killed; they die when thawed.
        let _ = std::fs::write(&freezer, "FROZEN");
        for pid in pids_below(&self.dir) {
            signal_if(pid, libc::SIGKILL, || pids_below(&self.dir).contains(&pid));
        }
        let _ = std::fs::write(&freezer, "THAWED");
        pids_below(&self.dir).into_iter().all(|pid| process::stat(pid).is_none_or(|s| s.state == b'Z'))
    }

    /// Whether processes are left in it.
    pub fn is_empty(&self) -> bool {
        pids_below(&self.dir).is_empty()
    }
}

impl Drop for ExecCgroup {
    fn drop(&mut self) {
        // What an exec left running on purpose goes back to the container's own cgroup.
        if let Some(parent) = self.dir.parent() {
            for pid in pids_below(&self.dir) {
                let _ = std::fs::write(parent.join("cgroup.procs"), pid.to_string());
            }
        }
        // Fails if a process forked in between; the runtime's delete removes the directory then.
        let _ = std::fs::remove_dir(&self.dir);
    }
}

fn pids_below(dir: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    for_each_below(dir, 64, &mut |path| {
        let text = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0));
    });
    pids
}

/// Signals the process that had this pid when it was found, holding it by pidfd first and then looking whether it is still
/// the one, so that a recycled pid is not hit.
fn signal_if(pid: i32, signal: i32, still: impl FnOnce() -> bool) {
    let Ok(held) = PidFd::open(pid) else { return };
    if still() {
        let _ = held.signal(signal);
    }
}

/// All processes of which `is` is true now; with `kill` they get SIGKILL. For what no cgroup tells from others.
pub fn matching(kill: bool, is: impl Fn(i32) -> bool) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let found: Vec<i32> = pids.filter(|pid| is(*pid)).collect();
    for pid in found.iter().filter(|_| kill) {
        signal_if(*pid, libc::SIGKILL, || is(*pid));
    }
    found
}

/// Signals every process of a container.
///
/// # Errors
/// If the container's cgroup is not known, so that its processes cannot be listed.
pub fn signal_all(cgroups: &Cgroups, signal: i32) -> io::Result<()> {
    let dir = cgroups.own().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    if signal == libc::SIGKILL && dir.unified && std::fs::write(dir.path.join("cgroup.kill"), "1").is_ok() {
        return Ok(());
    }
    for pid in cgroups.pids() {
        signal_if(pid, signal, || cgroups.pids().contains(&pid));
    }
    Ok(())
}

/// The living descendants of `root` (itself included) among `candidates`, as parentage shows them now.
pub fn descendants(root: i32, candidates: &[i32]) -> Vec<i32> {
    let parents: Vec<(i32, i32)> =
        candidates.iter().filter_map(|p| process::stat(*p).map(|s| (*p, s.ppid))).collect();
    let mut found: HashSet<i32> = HashSet::from([root]);
    loop {
        let before = found.len();
        found.extend(
            parents.iter().filter(|(_, parent)| found.contains(parent)).map(|(p, _)| *p).collect::<Vec<_>>(),
        );
        if found.len() == before {
            return found.into_iter().collect();
        }
    }
}

/// Signals `root` and the descendants that parentage shows.
pub fn signal_descendants(root: &PidFd, cgroups: &Cgroups, signal: i32) {
    for pid in descendants(root.pid(), &cgroups.pids()) {
        if pid == root.pid() {
            continue;
        }
        signal_if(pid, signal, || cgroups.pids().contains(&pid));
    }
    let _ = root.signal(signal);
}
