//! The proof that nothing of a container is left: processes, zombies, mounts, cgroups, state.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::census::process_alive;
use crate::wait::{eventually, within};

/// The words by which what belongs to a test is known: its ids and its directories.
#[derive(Debug, Default)]
pub struct Leftovers {
    words: Vec<String>,
}

impl Leftovers {
    /// Everything that carries this word (a unique id, a temporary directory) must go.
    pub fn of(word: impl AsRef<str>) -> Self {
        Self { words: vec![word.as_ref().to_string()] }
    }

    /// And everything that carries this one.
    #[must_use]
    pub fn and(mut self, word: impl AsRef<str>) -> Self {
        self.words.push(word.as_ref().to_string());
        self
    }

    /// Waits until nothing is left.
    ///
    /// # Panics
    /// When something stays; the message lists it.
    #[track_caller]
    pub fn assert_none(&self) {
        eventually("nothing to be left", || {
            let found = self.find();
            if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
        });
    }

    /// Waits this long at most; what is left then.
    pub fn settle(&self, patience: Duration) -> Vec<String> {
        let mut found = Vec::new();
        within(patience, || {
            found = self.find();
            found.is_empty()
        });
        found
    }

    /// Kills the processes, and those that they start meanwhile.
    pub fn kill(&self) {
        within(Duration::from_secs(10), || {
            let found = self.processes();
            for (pid, _) in &found {
                let _ = nix::sys::signal::kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            found.is_empty()
        });
    }

    /// What is there now.
    pub fn find(&self) -> Vec<String> {
        let mut found: Vec<String> = self.processes().into_iter().map(|(_, told)| told).collect();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        found.extend(mounts.lines().filter(|l| self.named(l)).map(|l| format!("mount: {l}")));
        let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        found.extend(sockets.lines().filter(|l| self.named(l)).map(|l| format!("socket: {l}")));
        self.cgroups(Path::new("/sys/fs/cgroup"), 0, &mut found);
        for state in ["/run/runc", "/run/crun", "/run/user/0/runc", "/run/user/0/crun"] {
            if let Ok(dir) = fs::read_dir(state) {
                let left = dir.flatten().map(|e| e.path()).filter(|p| self.names_path(p));
                found.extend(left.map(|p| format!("runtime state: {}", p.display())));
            }
        }
        found
    }

    fn named(&self, text: &str) -> bool {
        self.words.iter().any(|w| text.contains(w.as_str()))
    }

    fn names_path(&self, path: &Path) -> bool {
        path.file_name().is_some_and(|n| self.named(&n.to_string_lossy()))
    }

    /// Processes and zombies that carry a word in their command line, cgroup or environment.
    fn processes(&self) -> Vec<(i32, String)> {
        let Ok(proc) = fs::read_dir("/proc") else { return Vec::new() };
        let own = std::process::id().try_into().unwrap_or(0);
        let mut found = Vec::new();
        for entry in proc.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            if pid == own {
                continue;
            }
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            // A zombie has no command line; on cgroup v2 its cgroup tells whose it was. On v1 it has left that, and
            // is seen as a child of its shim, or by the census after the whole program.
            let kind = if process_alive(pid.unsigned_abs()) { "process" } else { "zombie" };
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            let environ = String::from_utf8_lossy(&environ);
            if self.named(&line) || self.named(&cgroup) || self.named(&environ) {
                found.push((pid, format!("{kind}: {pid} {line}")));
            }
        }
        found
    }

    fn cgroups(&self, dir: &Path, depth: usize, found: &mut Vec<String>) {
        // Containers lie at most a few levels below; the trees of an engine are not walked to their end.
        if depth > 4 {
            return;
        }
        let Ok(entries) = fs::read_dir(dir) else { return };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            let path: PathBuf = entry.path();
            if self.names_path(&path) {
                found.push(format!("cgroup: {}", path.display()));
            } else {
                self.cgroups(&path, depth + 1, found);
            }
        }
    }
}
