//! Resource usage of a cgroup, in the numbers that CRI reports.

use super::{CgroupManager, Error, Result};
use crate::Stats;
use pintle_core::cgroup::{flat_value, limit_value};
use std::{
    io,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// Resource usage of a cgroup. A number that the kernel does not give is 0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CgroupStats {
    /// Memory.
    pub memory: MemoryStats,
    /// CPU time.
    pub cpu: CpuStats,
    /// Processes and threads.
    pub pid: PidStats,
    /// When the sample was taken, nanoseconds since the Unix epoch.
    pub system_nano: i64,
}

/// Memory in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryStats {
    /// Everything charged.
    pub usage: u64,
    /// Page cache.
    pub cache: u64,
    /// Limit; the largest number if there is none.
    pub limit: u64,
    /// Highest usage seen.
    pub max_usage: u64,
    /// Usage without inactive page cache.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Page faults; 0 on cgroup v1.
    pub page_faults: u64,
    /// Page faults that read from disk; 0 on cgroup v1.
    pub major_page_faults: u64,
    /// Limit without the working set; 0 if there is no limit.
    pub available: u64,
    /// Kernel memory; 0 on cgroup v2.
    pub kernel_usage: u64,
    /// TCP buffers; 0 on cgroup v2.
    pub kernel_tcp_usage: u64,
    /// Swap used; on cgroup v1 memory and swap together.
    pub swap_usage: u64,
    /// Its limit, of the same kind; the largest number if there is none.
    pub swap_limit: u64,
    /// Mapped files.
    pub file_mapped: u64,
    /// Times the limit was hit; 0 on cgroup v2.
    pub failcnt: u64,
}

/// CPU time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuStats {
    /// Nanoseconds in all.
    pub total_usage: u64,
    /// Nanoseconds by CPU; empty on cgroup v2.
    pub per_cpu_usage: Vec<u64>,
    /// Nanoseconds in the kernel.
    pub usage_in_kernel_mode: u64,
    /// Nanoseconds in user mode.
    pub usage_in_user_mode: u64,
    /// Periods of the quota that have passed.
    pub throttling_active_periods: u64,
    /// Periods in which the quota ran out.
    pub throttled_periods: u64,
    /// Nanoseconds spent waiting for quota.
    pub throttled_time: u64,
}

/// Processes and threads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PidStats {
    /// How many there are.
    pub current: u64,
    /// How many there may be; 0: no limit.
    pub limit: u64,
}

fn or_max(limit: u64) -> u64 {
    if limit == 0 { u64::MAX } else { limit }
}

impl MemoryStats {
    fn finish(mut self) -> Self {
        let unlimited = self.limit == u64::MAX;
        self.available = if unlimited { 0 } else { self.limit.saturating_sub(self.working_set) };
        self
    }
}

impl From<Stats> for CgroupStats {
    /// The numbers of a shim.
    fn from(stats: Stats) -> Self {
        let v1 = stats.cgroup_version == 1;
        let (cpu, memory) =
            (stats.cpu.into_option().unwrap_or_default(), stats.memory.into_option().unwrap_or_default());
        let pids = stats.pids.into_option().unwrap_or_default();
        let raw = |key: &str| memory.raw.get(key).copied();
        let limit = or_max(memory.limit);
        Self {
            memory: MemoryStats {
                usage: memory.usage,
                cache: if v1 { raw("cache") } else { raw("file") }.unwrap_or(memory.cache),
                limit,
                max_usage: memory.max_usage,
                working_set: memory.working_set,
                rss: memory.rss,
                page_faults: if v1 { 0 } else { memory.page_faults },
                major_page_faults: if v1 { 0 } else { memory.major_page_faults },
                available: 0,
                kernel_usage: if v1 { memory.kernel } else { 0 },
                kernel_tcp_usage: if v1 { memory.kernel_tcp } else { 0 },
                swap_usage: if v1 { memory.usage.saturating_add(memory.swap) } else { memory.swap },
                swap_limit: match (v1, memory.swap_limit) {
                    (_, 0) => u64::MAX,
                    (true, swap) => limit.saturating_add(swap),
                    (false, swap) => swap,
                },
                file_mapped: memory.mapped_file,
                failcnt: if v1 { memory.fail_count } else { 0 },
            }
            .finish(),
            cpu: CpuStats {
                total_usage: cpu.usage_ns,
                per_cpu_usage: cpu.per_cpu_ns,
                usage_in_kernel_mode: cpu.system_ns,
                usage_in_user_mode: cpu.user_ns,
                throttling_active_periods: cpu.periods,
                throttled_periods: cpu.throttled_periods,
                throttled_time: cpu.throttled_ns,
            },
            pid: PidStats { current: pids.current, limit: pids.limit },
            system_nano: stats.at,
        }
    }
}

/// Path of a container's cgroup below the mounts of the hierarchies.
pub fn cgroup_path(manager: CgroupManager, cgroup_parent: &str, id: &str) -> PathBuf {
    match manager {
        CgroupManager::Cgroupfs => {
            let parent = if cgroup_parent.is_empty() { "crio" } else { cgroup_parent };
            Path::new(parent.trim_start_matches('/')).join(format!("crio-{id}"))
        }
        CgroupManager::Systemd => {
            let slice = if cgroup_parent.is_empty() { "system.slice" } else { cgroup_parent };
            expand_slice(slice).join(format!("crio-{id}.scope"))
        }
    }
}

/// Directory of a slice: `a-b.slice` lies in `a.slice`.
pub fn expand_slice(slice: &str) -> PathBuf {
    let name = slice.rsplit('/').next().unwrap_or_default();
    let Some(stem) = name.strip_suffix(".slice") else { return PathBuf::from(slice.trim_start_matches('/')) };
    let mut path = PathBuf::new();
    if stem == "-" {
        return path;
    }
    for (at, _) in stem.match_indices('-') {
        path.push(format!("{}.slice", &stem[..at]));
    }
    path.push(name);
    path
}

/// Where the cgroup hierarchies are mounted.
#[derive(Debug, Clone)]
pub(super) struct Hierarchies {
    root: PathBuf,
    unified: bool,
}

impl Hierarchies {
    pub(super) fn of_system() -> Self {
        Self::at(Path::new("/sys/fs/cgroup"))
    }

    fn at(root: &Path) -> Self {
        Self { root: root.to_path_buf(), unified: root.join("cgroup.controllers").exists() }
    }

    /// Directories of a cgroup, one for each of these controllers that is mounted; on cgroup v2 one.
    pub(super) fn directories(&self, controllers: &[&str], path: &Path) -> Vec<PathBuf> {
        if self.unified {
            return vec![self.root.join(path)];
        }
        let mounted = controllers.iter().map(|c| self.root.join(c)).filter(|dir| dir.is_dir());
        mounted.map(|dir| dir.join(path)).collect()
    }

    pub(super) fn is_unified(&self) -> bool {
        self.unified
    }

    /// Reads the usage of a cgroup without a shim.
    pub(super) fn read(&self, path: &Path) -> Result<CgroupStats> {
        let dir = |controller: &str| match self.unified {
            true => self.root.join(path),
            false => self.root.join(controller).join(path),
        };
        if !dir("memory").is_dir() {
            let source = io::ErrorKind::NotFound.into();
            return Err(Error::Io { what: "reading cgroup", path: dir("memory"), source });
        }
        let files = |controller: &str| Files(dir(controller));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (memory, cpu) = if self.unified {
            (memory_v2(&files("memory"))?, cpu_v2(&files("cpu"))?)
        } else {
            (memory_v1(&files("memory"))?, cpu_v1(&files("cpuacct"), &files("cpu"))?)
        };
        let pids = files("pids");
        let current = match pids.number("pids.current")? {
            0 => pids.text("cgroup.procs")?.lines().count() as u64,
            n => n,
        };
        Ok(CgroupStats {
            memory: memory.finish(),
            cpu,
            pid: PidStats { current, limit: pids.number("pids.max")? },
            system_nano: i64::try_from(now.as_nanos()).unwrap_or_default(),
        })
    }
}

/// The files of a cgroup. One that is missing reads as empty; other trouble is an error.
struct Files(PathBuf);

impl Files {
    fn text(&self, name: &str) -> Result<String> {
        let path = self.0.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
                Ok(String::new())
            }
            Err(source) => Err(Error::Io { what: "reading", path, source }),
        }
    }

    /// A number; 0 for none, and for no limit.
    fn number(&self, name: &str) -> Result<u64> {
        Ok(limit_value(&self.text(name)?).unwrap_or_default())
    }
}

fn memory_v2(files: &Files) -> Result<MemoryStats> {
    let stat = files.text("memory.stat")?;
    let stat = |key| flat_value(&stat, key).unwrap_or_default();
    // The root cgroup has no memory.current.
    let usage = match files.number("memory.current")? {
        0 => stat("anon") + stat("file"),
        n => n,
    };
    Ok(MemoryStats {
        usage,
        cache: stat("file"),
        limit: or_max(files.number("memory.max")?),
        max_usage: files.number("memory.peak")?,
        working_set: usage.saturating_sub(stat("inactive_file")),
        rss: stat("anon"),
        page_faults: stat("pgfault"),
        major_page_faults: stat("pgmajfault"),
        swap_usage: files.number("memory.swap.current")?,
        swap_limit: or_max(files.number("memory.swap.max")?),
        file_mapped: stat("file_mapped"),
        ..Default::default()
    })
}

fn memory_v1(files: &Files) -> Result<MemoryStats> {
    let stat = files.text("memory.stat")?;
    let stat = |key| flat_value(&stat, key).unwrap_or_default();
    let usage = files.number("memory.usage_in_bytes")?;
    let hierarchy = files.text("memory.use_hierarchy")?.trim() == "1";
    Ok(MemoryStats {
        usage,
        cache: stat("cache"),
        limit: or_max(files.number("memory.limit_in_bytes")?),
        max_usage: files.number("memory.max_usage_in_bytes")?,
        working_set: usage.saturating_sub(stat("total_inactive_file")),
        rss: stat("total_rss"),
        kernel_usage: files.number("memory.kmem.usage_in_bytes")?,
        kernel_tcp_usage: files.number("memory.kmem.tcp.usage_in_bytes")?,
        swap_usage: files.number("memory.memsw.usage_in_bytes")?,
        swap_limit: or_max(files.number("memory.memsw.limit_in_bytes")?),
        file_mapped: if hierarchy { stat("total_mapped_file") } else { stat("mapped_file") },
        failcnt: files.number("memory.failcnt")?,
        ..Default::default()
    })
}

fn cpu_v2(files: &Files) -> Result<CpuStats> {
    let stat = files.text("cpu.stat")?;
    let stat = |key| flat_value(&stat, key).unwrap_or_default();
    Ok(CpuStats {
        total_usage: stat("usage_usec").saturating_mul(1000),
        per_cpu_usage: Vec::new(),
        usage_in_kernel_mode: stat("system_usec").saturating_mul(1000),
        usage_in_user_mode: stat("user_usec").saturating_mul(1000),
        throttling_active_periods: stat("nr_periods"),
        throttled_periods: stat("nr_throttled"),
        throttled_time: stat("throttled_usec").saturating_mul(1000),
    })
}

fn cpu_v1(acct: &Files, cpu: &Files) -> Result<CpuStats> {
    // Ticks of 1/100 s on every Linux.
    const TICK: u64 = 10_000_000;
    let (ticks, stat) = (acct.text("cpuacct.stat")?, cpu.text("cpu.stat")?);
    let per_cpu = acct.text("cpuacct.usage_percpu")?;
    let tick = |key| flat_value(&ticks, key).unwrap_or_default().saturating_mul(TICK);
    let stat = |key| flat_value(&stat, key).unwrap_or_default();
    Ok(CpuStats {
        total_usage: acct.number("cpuacct.usage")?,
        per_cpu_usage: per_cpu.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect(),
        usage_in_kernel_mode: tick("system"),
        usage_in_user_mode: tick("user"),
        throttling_active_periods: stat("nr_periods"),
        throttled_periods: stat("nr_throttled"),
        throttled_time: stat("throttled_time"),
    })
}

/// Usage of a container's file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskStats {
    /// Bytes of the file system.
    pub total_bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Inodes of the file system.
    pub total_inodes: u64,
    /// Inodes in use.
    pub used_inodes: u64,
}

/// Usage of the file system that holds `path`.
///
/// # Errors
/// If there is none.
pub fn disk_stats(path: &Path) -> Result<DiskStats> {
    let stat = nix::sys::statvfs::statvfs(path).map_err(|errno| Error::Io {
        what: "looking at the file system of",
        path: path.to_path_buf(),
        source: errno.into(),
    })?;
    let size = stat.fragment_size();
    Ok(DiskStats {
        total_bytes: stat.blocks().saturating_mul(size),
        used_bytes: stat.blocks().saturating_sub(stat.blocks_free()).saturating_mul(size),
        total_inodes: stat.files(),
        used_inodes: stat.files().saturating_sub(stat.files_free()),
    })
}

#[cfg(test)]
mod tests {
    use super::super::container::tests::TempDir;
    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        std::fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn stats_paths() {
        let path = |manager, parent| cgroup_path(manager, parent, "x").display().to_string();
        assert_eq!(path(CgroupManager::Cgroupfs, ""), "crio/crio-x");
        assert_eq!(path(CgroupManager::Cgroupfs, "/pods/p"), "pods/p/crio-x");
        assert_eq!(path(CgroupManager::Systemd, ""), "system.slice/crio-x.scope");
        assert_eq!(path(CgroupManager::Systemd, "a-b.slice"), "a.slice/a-b.slice/crio-x.scope");
        assert_eq!(expand_slice("-.slice"), Path::new(""));
    }

    #[test]
    fn stats_of_cgroup_v2() {
        let root = TempDir::new("stats-v2");
        write(&root.0, &[("cgroup.controllers", "memory")]);
        write(
            &root.0.join("c"),
            &[
                ("memory.current", "1000\n"),
                ("memory.max", "5000\n"),
                ("memory.peak", "2000\n"),
                ("memory.swap.current", "7\n"),
                ("memory.swap.max", "max\n"),
                (
                    "memory.stat",
                    "anon 11\nfile 12\nfile_mapped 13\ninactive_file 100\npgfault 14\npgmajfault 15\n",
                ),
                (
                    "cpu.stat",
                    "usage_usec 3\nuser_usec 2\nsystem_usec 1\nnr_periods 4\nnr_throttled 5\nthrottled_usec 6\n",
                ),
                ("pids.current", "9\n"),
                ("pids.max", "max\n"),
            ],
        );
        let stats = Hierarchies::at(&root.0).read(Path::new("c")).unwrap();
        let expected = MemoryStats {
            usage: 1000,
            cache: 12,
            limit: 5000,
            max_usage: 2000,
            working_set: 900,
            rss: 11,
            page_faults: 14,
            major_page_faults: 15,
            available: 4100,
            swap_usage: 7,
            swap_limit: u64::MAX,
            file_mapped: 13,
            ..Default::default()
        };
        assert_eq!(stats.memory, expected);
        assert_eq!(
            stats.cpu,
            CpuStats {
                total_usage: 3000,
                per_cpu_usage: vec![],
                usage_in_kernel_mode: 1000,
                usage_in_user_mode: 2000,
                throttling_active_periods: 4,
                throttled_periods: 5,
                throttled_time: 6000,
            }
        );
        assert_eq!(stats.pid, PidStats { current: 9, limit: 0 });
        assert!(stats.system_nano > 0);
        assert!(Hierarchies::at(&root.0).read(Path::new("none")).unwrap_err().is_not_found());
    }

    #[test]
    fn stats_of_cgroup_v1() {
        let root = TempDir::new("stats-v1");
        write(
            &root.0.join("memory/c"),
            &[
                ("memory.usage_in_bytes", "1000\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("memory.max_usage_in_bytes", "2000\n"),
                ("memory.failcnt", "3\n"),
                ("memory.use_hierarchy", "1\n"),
                ("memory.memsw.usage_in_bytes", "1007\n"),
                ("memory.memsw.limit_in_bytes", "8000\n"),
                ("memory.kmem.usage_in_bytes", "21\n"),
                (
                    "memory.stat",
                    "cache 12\nmapped_file 1\ntotal_mapped_file 13\ntotal_inactive_file 2000\ntotal_rss 11\n",
                ),
            ],
        );
        write(
            &root.0.join("cpuacct/c"),
            &[
                ("cpuacct.usage", "30\n"),
                ("cpuacct.usage_percpu", "10 20 \n"),
                ("cpuacct.stat", "user 2\nsystem 1\n"),
            ],
        );
        write(&root.0.join("cpu/c"), &[("cpu.stat", "nr_periods 4\nnr_throttled 5\nthrottled_time 6\n")]);
        write(&root.0.join("pids/c"), &[("cgroup.procs", "1\n2\n"), ("pids.max", "10\n")]);
        let stats = Hierarchies::at(&root.0).read(Path::new("c")).unwrap();
        let expected = MemoryStats {
            usage: 1000,
            cache: 12,
            limit: u64::MAX,
            max_usage: 2000,
            working_set: 0,
            rss: 11,
            kernel_usage: 21,
            swap_usage: 1007,
            swap_limit: 8000,
            file_mapped: 13,
            failcnt: 3,
            ..Default::default()
        };
        assert_eq!(stats.memory, expected);
        assert_eq!(stats.cpu.per_cpu_usage, [10, 20]);
        assert_eq!((stats.cpu.usage_in_user_mode, stats.cpu.usage_in_kernel_mode), (20_000_000, 10_000_000));
        assert_eq!((stats.cpu.throttled_time, stats.cpu.total_usage), (6, 30));
        assert_eq!(stats.pid, PidStats { current: 2, limit: 10 });
    }

    #[test]
    fn stats_of_a_shim() {
        let mut wire = Stats::new();
        wire.cgroup_version = 1;
        wire.at = 5;
        let mut memory = crate::proto::MemoryStats::new();
        (memory.usage, memory.swap, memory.limit, memory.working_set) = (100, 7, 1000, 60);
        memory.raw.insert("cache".into(), 12);
        wire.memory = protobuf::MessageField::some(memory.clone());
        let stats = CgroupStats::from(wire.clone());
        assert_eq!((stats.memory.swap_usage, stats.memory.available), (107, 940));
        assert_eq!((stats.memory.cache, stats.memory.swap_limit, stats.system_nano), (12, u64::MAX, 5));
        wire.cgroup_version = 2;
        memory.limit = 0;
        wire.memory = protobuf::MessageField::some(memory);
        let stats = CgroupStats::from(wire);
        assert_eq!((stats.memory.swap_usage, stats.memory.limit, stats.memory.available), (7, u64::MAX, 0));
    }

    #[test]
    fn stats_of_a_disk() {
        let stats = disk_stats(Path::new("/")).unwrap();
        assert!(stats.total_bytes >= stats.used_bytes);
        assert!(disk_stats(Path::new("/nowhere")).is_err());
    }
}
