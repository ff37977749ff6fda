//! Where a container sits in the cgroup hierarchies, and what its files say.

use pintle_core::cgroup::{
    CgroupLine, CgroupMount, controller_directory, parse_frozen, parse_mountinfo, parse_populated,
    parse_proc_cgroup, unified_directory,
};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// A controller's directory for one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupDir {
    /// The directory under the mount point.
    pub path: PathBuf,
    /// True in the unified hierarchy (v2).
    pub unified: bool,
}

impl CgroupDir {
    /// Reads a file of the directory; `None` if it is missing or cannot be read.
    pub fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path.join(name)).ok()
    }
}

/// The directories of a container.
#[derive(Debug, Clone, Default)]
pub struct Cgroups {
    lines: Vec<CgroupLine>,
    mounts: Vec<CgroupMount>,
}

impl Cgroups {
    /// Looks where `pid` is now. Empty if it is gone.
    pub fn of(pid: i32) -> Self {
        let lines = std::fs::read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        Self::parse(&String::from_utf8_lossy(&lines), &String::from_utf8_lossy(&mounts))
    }

    /// The directories at `path` in all hierarchies, whether or not there is a process in them: below the roots, or below
    /// this process's own where it is relative.
    pub fn named(path: &str) -> Self {
        let mut own = Self::of(i32::try_from(std::process::id()).unwrap_or(0));
        for line in &mut own.lines {
            let joined = Path::new(&line.path).join(path);
            line.path = joined.to_string_lossy().into_owned();
        }
        own
    }

    /// Removes the directories that nothing is in; answers whether none is left.
    pub fn remove_empty(&self) -> bool {
        let controllers = self.lines.iter().flat_map(|line| &line.controllers);
        let mut dirs: Vec<PathBuf> = controllers.filter_map(|c| self.dir(c)).map(|dir| dir.path).collect();
        dirs.extend(self.unified().map(|dir| dir.path));
        dirs.into_iter().fold(true, |gone, dir| {
            // The kernel refuses where a process or another cgroup is in it.
            let _ = std::fs::remove_dir(&dir);
            gone && !dir.exists()
        })
    }

    /// From the texts of `/proc/PID/cgroup` and `/proc/self/mountinfo`.
    pub(super) fn parse(lines: &str, mounts: &str) -> Self {
        Self { lines: parse_proc_cgroup(lines), mounts: parse_mountinfo(mounts) }
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The path of the memory cgroup (or, without one, of any) below its hierarchy's root.
    pub fn path(&self) -> Option<&str> {
        let memory = self.lines.iter().find(|l| l.controllers.iter().any(|c| c == "memory"));
        memory
            .or_else(|| self.lines.iter().find(|l| l.hierarchy == 0))
            .or(self.lines.first())
            .map(|l| l.path.as_str())
    }

    /// The directory of a controller (`memory`, `cpu`, `cpuacct`, `pids`, `blkio`, `hugetlb`).
    pub fn dir(&self, controller: &str) -> Option<CgroupDir> {
        let (path, unified) = controller_directory(&self.lines, &self.mounts, controller)?;
        Some(CgroupDir { path: path.into(), unified })
    }

    /// The directory in the unified hierarchy.
    pub fn unified(&self) -> Option<CgroupDir> {
        Some(CgroupDir { path: unified_directory(&self.lines, &self.mounts)?.into(), unified: true })
    }

    /// A directory of the container's own, in whichever hierarchy has one: never a root, and never one that this
    /// process is in too. A rootless runtime without delegation leaves the container in its caller's cgroup, and
    /// killing all of that would hit the caller.
    pub fn own(&self) -> Option<CgroupDir> {
        let us = Self {
            lines: parse_proc_cgroup(&std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default()),
            mounts: Vec::new(),
        };
        let ours = |controller: Option<&&str>| match controller {
            Some(c) => Some(PathBuf::from(controller_directory(&us.lines, &self.mounts, c)?.0)),
            None => Some(PathBuf::from(unified_directory(&us.lines, &self.mounts)?)),
        };
        let controllers = ["memory", "pids", "cpu", "freezer", "devices"];
        let candidates = controllers.iter().filter_map(|c| Some((self.dir(c)?, ours(Some(c)))));
        let unified = self.unified().map(|d| (d, ours(None)));
        let own = candidates.chain(unified).find(|(d, ours)| {
            let mounts = self.mounts.iter().map(|m| Path::new(&m.mount_point));
            d.path.is_dir()
                && !mounts.into_iter().any(|m| m == d.path)
                && !ours.as_ref().is_some_and(|ours| ours.starts_with(&d.path))
        });
        own.map(|(dir, _)| dir)
    }

    /// The pids in the container's cgroup and below it, in our pid namespace.
    pub fn pids(&self) -> Vec<i32> {
        let mut pids = HashSet::new();
        if let Some(dir) = self.own() {
            for_each_below(&dir.path, 512, &mut |path| {
                let text = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
                pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0));
            });
        }
        pids.into_iter().collect()
    }

    /// Whether processes are left; `None` if the kernel does not tell (v1 without a directory).
    pub fn populated(&self) -> Option<bool> {
        let dir = self.own()?;
        match dir.read("cgroup.events").as_deref().and_then(parse_populated) {
            Some(populated) => Some(populated),
            None => Some(!self.pids().is_empty()),
        }
    }

    /// Whether its processes are frozen, by whomever; `None` if the kernel does not tell.
    pub fn frozen(&self) -> Option<bool> {
        let dir = self.dir("freezer")?;
        parse_frozen(&dir.read(if dir.unified { "cgroup.events" } else { "freezer.state" })?)
    }
}

/// Calls `visit` for a directory and those below it, at most `limit` of them.
pub fn for_each_below(dir: &Path, limit: usize, visit: &mut dyn FnMut(&Path)) {
    let mut todo = vec![dir.to_path_buf()];
    let mut seen = 0;
    while let Some(next) = todo.pop() {
        if seen >= limit {
            return;
        }
        seen += 1;
        visit(&next);
        if let Ok(entries) = std::fs::read_dir(&next) {
            todo.extend(
                entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()),
            );
        }
    }
}
