//! Readers of the kernel's cgroup files, and the counter behind an OOM verdict.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Where a process sits: one line of `/proc/PID/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupLine {
    /// Hierarchy number; 0 is the unified one.
    pub hierarchy: u32,
    /// Controllers of a v1 hierarchy (`memory`, `name=systemd`); empty for the unified one.
    pub controllers: Vec<String>,
    /// Path below the hierarchy's root, starting with `/`.
    pub path: String,
}

/// Parses `/proc/PID/cgroup`. Lines that do not have its form are skipped.
pub fn parse_proc_cgroup(text: &str) -> Vec<CgroupLine> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let Ok(hierarchy) = number.parse() else { continue };
        if !path.starts_with('/') {
            continue;
        }
        let controllers = controllers.split(',').filter(|c| !c.is_empty()).map(ToString::to_string).collect();
        // A cgroup removed under a living process carries this mark; the path is still its path.
        let path = path.strip_suffix(" (deleted)").unwrap_or(path).to_string();
        lines.push(CgroupLine { hierarchy, controllers, path });
    }
    lines
}

/// A cgroup file system in the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupMount {
    /// True for the unified hierarchy.
    pub unified: bool,
    /// Controllers of a v1 mount.
    pub controllers: Vec<String>,
    /// Path inside the hierarchy that is visible at the mount point.
    pub root: String,
    /// Where it is mounted.
    pub mount_point: String,
}

/// The cgroup mounts in `/proc/self/mountinfo`, in order.
pub fn parse_mountinfo(text: &str) -> Vec<CgroupMount> {
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut left = left.split(' ');
        let (Some(root), Some(mount_point)) = (left.nth(3), left.next()) else { continue };
        let mut right = right.split(' ');
        let kind = right.next().unwrap_or_default();
        let options = right.nth(1).unwrap_or_default();
        let unified = match kind {
            "cgroup2" => true,
            "cgroup" => false,
            _ => continue,
        };
        let controllers = if unified {
            Vec::new()
        } else {
            options.split(',').filter(|o| !matches!(*o, "rw" | "ro")).map(ToString::to_string).collect()
        };
        found.push(CgroupMount {
            unified,
            controllers,
            root: unescape(root),
            mount_point: unescape(mount_point),
        });
    }
    found
}

/// Undoes the octal escapes of mountinfo.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let Some((&first, rest)) = bytes.split_first() {
        bytes = rest;
        if first == b'\\' && rest.len() >= 3 && rest[..3].iter().all(|b| (b'0'..=b'7').contains(b)) {
            let value = rest[..3].iter().fold(0u32, |sum, b| sum * 8 + u32::from(b - b'0'));
            out.push((value & 0xff) as u8);
            bytes = &rest[3..];
        } else {
            out.push(first);
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Joins a mount and a path of `/proc/PID/cgroup` to a directory.
/// `None` if the mount does not show that part of the hierarchy.
pub fn directory(mount: &CgroupMount, path: &str) -> Option<String> {
    let below = if mount.root == "/" {
        path
    } else {
        let rest = path.strip_prefix(mount.root.as_str())?;
        if !(rest.is_empty() || rest.starts_with('/')) {
            return None;
        }
        rest
    };
    if below.split('/').any(|part| part == "..") {
        return None;
    }
    let mut out = mount.mount_point.trim_end_matches('/').to_string();
    out.push('/');
    out.push_str(below.trim_start_matches('/'));
    Some(out.trim_end_matches('/').to_string())
}

/// The directory of `controller` (for example `memory`) for a process: the v1 hierarchy that has
/// it, else the unified one. The flag is true for the unified hierarchy.
pub fn controller_directory(
    lines: &[CgroupLine],
    mounts: &[CgroupMount],
    controller: &str,
) -> Option<(String, bool)> {
    let has = |list: &[String]| list.iter().any(|c| c == controller);
    if let Some(line) = lines.iter().find(|l| has(&l.controllers)) {
        let mount = mounts.iter().find(|m| !m.unified && has(&m.controllers))?;
        return Some((directory(mount, &line.path)?, false));
    }
    unified_directory(lines, mounts).map(|dir| (dir, true))
}

/// The directory of a process in the unified hierarchy, if that is mounted.
pub fn unified_directory(lines: &[CgroupLine], mounts: &[CgroupMount]) -> Option<String> {
    let line = lines.iter().find(|l| l.hierarchy == 0 && l.controllers.is_empty())?;
    mounts.iter().filter(|m| m.unified).find_map(|mount| directory(mount, &line.path))
}

/// The number behind `key` in a file of `key value` lines (`memory.events`, `cpu.stat`, ...).
pub fn flat_value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        if name == key { value.trim().parse().ok() } else { None }
    })
}

/// A single number; the words `max` and `-1`, and v1's "no limit", give `None`.
pub fn limit_value(text: &str) -> Option<u64> {
    // v1 shows "no limit" as the largest multiple of the page size.
    const V1_NO_LIMIT: u64 = 0x7fff_ffff_ffff_f000;
    text.trim().parse().ok().filter(|v| *v < V1_NO_LIMIT)
}

/// The counters of `memory.events`, or of v1's `memory.oom_control`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryEvents {
    /// Times the limit was hit and an allocation was about to fail (v2 `oom`; v1: unknown, 0).
    pub oom: u64,
    /// Processes killed by the OOM killer in this cgroup or below.
    pub oom_kill: u64,
    /// Times the whole group was killed (v2 only).
    pub oom_group_kill: u64,
    /// v1 `under_oom`: an OOM is being dealt with right now.
    pub under_oom: bool,
}

/// Parses `memory.events` (v2) or `memory.oom_control` (v1). `None` if the text is neither.
pub fn parse_memory_events(text: &str) -> Option<MemoryEvents> {
    let oom_kill = flat_value(text, "oom_kill");
    let known = oom_kill.is_some() || flat_value(text, "oom_kill_disable").is_some();
    known.then(|| MemoryEvents {
        oom: flat_value(text, "oom").unwrap_or(0),
        oom_kill: oom_kill.unwrap_or(0),
        oom_group_kill: flat_value(text, "oom_group_kill").unwrap_or(0),
        under_oom: flat_value(text, "under_oom") == Some(1),
    })
}

/// Whether `cgroup.events` says that processes are left. `None` if the text does not tell.
pub fn parse_populated(text: &str) -> Option<bool> {
    flat_value(text, "populated").map(|v| v != 0)
}

/// Whether a frozen cgroup is meant by v2's `cgroup.events` or v1's `freezer.state`. `None` if the text does not tell.
pub fn parse_frozen(text: &str) -> Option<bool> {
    match text.trim() {
        "FROZEN" => Some(true),
        "THAWED" | "FREEZING" => Some(false),
        events => flat_value(events, "frozen").map(|v| v != 0),
    }
}

/// Which limit the kernel ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OomLevel {
    /// The container's own limit.
    Own,
    /// A limit of a cgroup above it (the pod's).
    Ancestor,
    /// Neither cgroup counted an event: the machine ran out of memory, or the level is not visible.
    System,
}

impl OomLevel {
    /// The word used in records and events.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Ancestor => "ancestor",
            Self::System => "system",
        }
    }

    /// The inverse of [`OomLevel::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Own, Self::Ancestor, Self::System].into_iter().find(|l| l.as_str() == text)
    }
}

/// What is known about OOM kills of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OomVerdict {
    /// Processes of the container the OOM killer killed.
    pub kills: u64,
    /// Times the container's own limit was hit (v2 only).
    pub limit_hits: u64,
    /// Which limit was hit last; `None` while no kill was seen.
    pub level: Option<OomLevel>,
    /// Whether init itself was among the killed: it died by SIGKILL and kills were counted.
    pub init_killed: bool,
}

/// Counts OOM events relative to a start value, so that a cgroup's earlier life does not count.
#[derive(Debug, Clone, Copy, Default)]
pub struct OomCounter {
    base_own: MemoryEvents,
    last_own: MemoryEvents,
    base_parent: MemoryEvents,
    last_parent: MemoryEvents,
    /// As many kills the container's init has survived.
    survived: u64,
}

impl OomCounter {
    /// A counter that starts at what the container's cgroup and the one above it show now.
    pub fn new(own: MemoryEvents, parent: MemoryEvents) -> Self {
        Self {
            base_own: own,
            last_own: own,
            base_parent: parent,
            last_parent: parent,
            survived: own.oom_kill,
        }
    }

    /// The counter as plain numbers, for a successor: start and last readings of the own cgroup and of the one above.
    pub fn numbers(&self) -> [[u64; 3]; 4] {
        [self.base_own, self.last_own, self.base_parent, self.last_parent]
            .map(|e| [e.oom, e.oom_kill, e.oom_group_kill])
    }

    /// The inverse of [`OomCounter::numbers`].
    pub fn from_numbers(numbers: [[u64; 3]; 4]) -> Self {
        let [base_own, last_own, base_parent, last_parent] =
            numbers.map(|[oom, oom_kill, oom_group_kill]| MemoryEvents {
                oom,
                oom_kill,
                oom_group_kill,
                under_oom: false,
            });
        // Whether init survived them is looked at again when it matters.
        Self { base_own, last_own, base_parent, last_parent, survived: base_own.oom_kill }
    }

    /// Takes in a new reading; answers how many kills are new since the last one.
    /// A reading below the last one (a cgroup made anew) counts from zero.
    pub fn observe(&mut self, own: MemoryEvents, parent: Option<MemoryEvents>) -> u64 {
        if own.oom_kill < self.last_own.oom_kill {
            self.base_own = MemoryEvents::default();
            self.last_own = MemoryEvents::default();
            self.survived = 0;
        }
        let new = own.oom_kill - self.last_own.oom_kill;
        self.last_own = own;
        if let Some(parent) = parent {
            self.last_parent = parent;
        }
        new
    }

    /// Takes in a kill that is known of although the counters cannot be read any more; answers 1.
    pub fn observe_unread_kill(&mut self) -> u64 {
        let last = self.last_own;
        self.observe(MemoryEvents { oom: last.oom + 1, oom_kill: last.oom_kill + 1, ..last }, None)
    }

    /// Init lives and is not about to die: none of the kills that were observed was its own.
    pub fn init_survived(&mut self) {
        self.survived = self.last_own.oom_kill;
    }

    /// The facts so far; `init_sigkilled` says whether init died by SIGKILL.
    pub fn verdict(&self, init_sigkilled: bool) -> OomVerdict {
        let kills = self.last_own.oom_kill.saturating_sub(self.base_own.oom_kill);
        let limit_hits = self.last_own.oom.saturating_sub(self.base_own.oom);
        let above = self.last_parent.oom.saturating_sub(self.base_parent.oom);
        let level = (kills > 0).then_some(if limit_hits > 0 {
            OomLevel::Own
        } else if above > 0 {
            OomLevel::Ancestor
        } else {
            OomLevel::System
        });
        OomVerdict {
            kills,
            limit_hits,
            level,
            init_killed: init_sigkilled && self.last_own.oom_kill > self.survived,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    const V2: &str = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n";
    const V1: &str = "oom_kill_disable 0\nunder_oom 1\noom_kill 4\n";

    #[test]
    fn frozen_by_either_version() {
        assert_eq!(parse_frozen("populated 1\nfrozen 1\n"), Some(true));
        assert_eq!(parse_frozen("populated 1\nfrozen 0\n"), Some(false));
        assert_eq!(parse_frozen("FROZEN\n"), Some(true));
        assert_eq!(parse_frozen("FREEZING\n"), Some(false));
        assert_eq!(parse_frozen("THAWED\n"), Some(false));
        assert_eq!(parse_frozen("populated 1\n"), None);
    }

    #[test]
    fn memory_events() {
        let v2 = parse_memory_events(V2).unwrap();
        assert_eq!((v2.oom, v2.oom_kill, v2.oom_group_kill, v2.under_oom), (3, 2, 1, false));
        let v1 = parse_memory_events(V1).unwrap();
        assert_eq!((v1.oom, v1.oom_kill, v1.under_oom), (0, 4, true));
        assert_eq!(parse_memory_events("nonsense"), None);
    }

    #[test]
    fn places() {
        let lines = parse_proc_cgroup("7:memory,x:/a/b\n1:name=systemd:/u\n0::/a/c (deleted)\nbad\n");
        assert_eq!(lines.len(), 3);
        let mounts = parse_mountinfo(
            "30 24 0:26 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n\
             31 24 0:27 /a /mnt/with\\040space rw - cgroup2 none rw\n\
             1 1 0:1 / / rw - ext4 /dev/vda rw\n",
        );
        assert_eq!(mounts.len(), 2);
        assert_eq!(
            controller_directory(&lines, &mounts, "memory"),
            Some(("/sys/fs/cgroup/memory/a/b".into(), false))
        );
        assert_eq!(controller_directory(&lines, &mounts, "cpu"), Some(("/mnt/with space/c".into(), true)));
        assert_eq!(directory(&mounts[1], "/ab"), None);
        assert_eq!(directory(&mounts[0], "/a/../../x"), None);
    }

    #[test]
    fn verdicts() {
        let zero = MemoryEvents::default();
        let kill = |oom, oom_kill| MemoryEvents { oom, oom_kill, ..zero };
        let mut c = OomCounter::new(kill(1, 1), zero);
        assert_eq!(c.verdict(true), OomVerdict::default());
        assert_eq!(c.observe(kill(2, 2), None), 1);
        assert_eq!(c.observe(kill(2, 2), None), 0);
        let v = c.verdict(true);
        assert_eq!((v.kills, v.level, v.init_killed), (1, Some(OomLevel::Own), true));
        assert!(!c.verdict(false).init_killed);
        let mut gone = OomCounter::new(kill(1, 1), zero);
        assert_eq!(gone.observe_unread_kill(), 1);
        assert_eq!(gone.verdict(true), c.verdict(true));
        // A child was killed, init was seen alive after it, and then somebody killed init.
        c.init_survived();
        let v = c.verdict(true);
        assert_eq!((v.kills, v.init_killed), (1, false));
        assert_eq!(c.observe(kill(3, 3), None), 1);
        assert!(c.verdict(true).init_killed);
        let mut c = OomCounter::new(zero, zero);
        c.observe(kill(0, 1), Some(kill(1, 1)));
        assert_eq!(c.verdict(true).level, Some(OomLevel::Ancestor));
        let c = OomCounter::from_numbers(c.numbers());
        assert_eq!(c.verdict(true).level, Some(OomLevel::Ancestor));
        let mut c = OomCounter::new(zero, zero);
        c.observe(kill(0, 1), None);
        assert_eq!(c.verdict(true).level, Some(OomLevel::System));
    }

    #[test]
    fn limits() {
        assert_eq!(limit_value("max\n"), None);
        assert_eq!(limit_value("9223372036854771712\n"), None);
        assert_eq!(limit_value("4096\n"), Some(4096));
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "\\PC{0,200}", lines in proptest::collection::vec("[ -~]{0,60}", 0..8)) {
            let joined = lines.join("\n");
            for t in [text.as_str(), joined.as_str()] {
                let l = parse_proc_cgroup(t);
                let m = parse_mountinfo(t);
                let _ = controller_directory(&l, &m, "memory");
                let _ = parse_memory_events(t);
                let _ = parse_populated(t);
                let _ = parse_frozen(t);
                let _ = limit_value(t);
            }
        }

        #[test]
        fn kills_add_up(readings in proptest::collection::vec(0u64..50, 0..20)) {
            let mut sorted = readings;
            sorted.sort_unstable();
            let mut c = OomCounter::new(MemoryEvents::default(), MemoryEvents::default());
            let mut sum = 0;
            for oom_kill in &sorted {
                sum += c.observe(MemoryEvents { oom_kill: *oom_kill, ..Default::default() }, None);
            }
            prop_assert_eq!(sum, sorted.last().copied().unwrap_or(0));
            prop_assert_eq!(vec![c.verdict(false).kills], vec![sum]);
        }
    }
}
