//! Resource usage of a container, read straight from the cgroup files of v1 and v2 and from `/proc`.
//! A number the kernel does not give is 0.

use super::cgroup::{CgroupDir, Cgroups};
use super::stats_files::{Files, Reader};
use pintle_core::cgroup::{flat_value, limit_value};
use std::collections::BTreeMap;

/// CPU time.
#[derive(Debug, Clone, Default)]
pub struct Cpu {
    /// Total, nanoseconds.
    pub usage_ns: u64,
    /// In user mode, nanoseconds.
    pub user_ns: u64,
    /// In the kernel, nanoseconds.
    pub system_ns: u64,
    /// Quota periods that have passed.
    pub periods: u64,
    /// Periods in which the quota ran out.
    pub throttled_periods: u64,
    /// Time spent waiting for quota, nanoseconds.
    pub throttled_ns: u64,
    /// Per CPU (v1 only), nanoseconds.
    pub per_cpu_ns: Vec<u64>,
}

/// Memory, bytes unless noted.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Everything charged.
    pub usage: u64,
    /// Usage without the inactive file cache.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Page cache.
    pub cache: u64,
    /// Swap used (v2: swap alone; v1: what `memsw` shows above memory).
    pub swap: u64,
    /// Limit; 0 is none.
    pub limit: u64,
    /// Highest usage seen.
    pub max_usage: u64,
    /// Times the limit was hit.
    pub fail_count: u64,
    /// Kernel memory.
    pub kernel: u64,
    /// TCP buffers.
    pub kernel_tcp: u64,
    /// Limit of swap alone; 0 is none.
    pub swap_limit: u64,
    /// `memory.stat`, verbatim and in its order.
    pub raw: Vec<(String, u64)>,
    /// Whether there is a memory controller at all.
    pub present: bool,
}

impl Memory {
    /// A line of `memory.stat`: the hierarchical `total_` one on v1.
    pub fn stat(&self, key: &str) -> u64 {
        let total = self.raw.iter().find(|(k, _)| k.strip_prefix("total_") == Some(key));
        total.or_else(|| self.raw.iter().find(|(k, _)| k == key)).map_or(0, |(_, v)| *v)
    }
}

/// I/O of one device and kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blkio {
    /// Device.
    pub major: u64,
    /// Device.
    pub minor: u64,
    /// `read`, `write`, `discard`, `sync`, `async`, `total`.
    pub op: String,
    /// Bytes moved.
    pub bytes: u64,
    /// Requests.
    pub operations: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default)]
pub struct Hugetlb {
    /// As in `2MB`.
    pub page_size: String,
    /// Bytes in use.
    pub usage: u64,
    /// Highest (v1 only).
    pub max_usage: u64,
    /// Times the limit was hit.
    pub fail_count: u64,
}

/// One network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Interface name in the container.
    pub name: String,
    /// Received: bytes, packets, errors, dropped.
    pub rx: [u64; 4],
    /// Sent: bytes, packets, errors, dropped.
    pub tx: [u64; 4],
}

/// One resource's pressure, the kernel's lines without their first word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pressure {
    /// `cpu`, `memory`, `io`.
    pub resource: String,
    /// The `some` line.
    pub some: String,
    /// The `full` line.
    pub full: String,
}

/// Everything at one moment.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// 1 or 2.
    pub cgroup_version: u32,
    /// CPU.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Processes and threads now.
    pub pids: u64,
    /// Their limit; 0 is none.
    pub pids_limit: u64,
    /// Block I/O.
    pub blkio: Vec<Blkio>,
    /// Huge pages.
    pub hugetlb: Vec<Hugetlb>,
    /// Network interfaces of init's namespace, without `lo`.
    pub network: Vec<Network>,
    /// Pressure (v2).
    pub pressure: Vec<Pressure>,
    /// Resident memory of the shim itself, bytes.
    pub shim_rss: u64,
    /// The anonymous part of it.
    pub shim_anonymous: u64,
}

fn key(text: &str, name: &str) -> u64 {
    flat_value(text, name).unwrap_or(0)
}

impl Stats {
    /// Reads the cgroups of a container and the network of `pid`.
    pub fn read(cgroups: &Cgroups, pid: i32) -> Self {
        Reader::new(cgroups, pid).read()
    }

    /// Reads through files that may be open already. Which files, and in which order, depends only on the directories
    /// and on what is there.
    pub(super) fn take(places: &Places, files: &mut Files) -> Self {
        let mut stats = Self { cgroup_version: 1, ..Self::default() };
        if let Some(dir) = &places.memory {
            stats.cgroup_version = if dir.unified { 2 } else { 1 };
            stats.memory = memory(dir, files);
        }
        stats.cpu = cpu(places, files);
        if let Some(dir) = &places.pids {
            stats.pids = number(files, dir, "pids.current");
            stats.pids_limit = number(files, dir, "pids.max");
        }
        if let Some(dir) = &places.io {
            stats.blkio = if dir.unified {
                parse_io_stat(files.read(dir, "io.stat").unwrap_or_default())
            } else {
                const BYTES: [&str; 2] =
                    ["blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"];
                const OPS: [&str; 2] = ["blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced"];
                let mut lines = |names: [&'static str; 2]| {
                    let name = if files.exists(dir, names[0]) { names[0] } else { names[1] };
                    blkio_lines(files.read(dir, name).unwrap_or_default())
                };
                let bytes = lines(BYTES);
                merge_blkio(bytes, &lines(OPS))
            };
        }
        if let Some(dir) = &places.hugetlb {
            stats.hugetlb = places.page_sizes.iter().map(|size| hugetlb(dir, size, files)).collect();
        }
        if places.pid > 0 {
            stats.network = files.network(places.pid).map(parse_net_dev).unwrap_or_default();
        }
        let own = files.own_memory().unwrap_or_default();
        let pages =
            |n: usize| own.split_ascii_whitespace().nth(n).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        // All that is resident, and of it what belongs to files or is shared.
        let (resident, shared) = (pages(1), pages(2));
        stats.shim_rss = resident * places.page;
        stats.shim_anonymous = resident.saturating_sub(shared) * places.page;
        if let Some(dir) = &places.unified {
            for (resource, file) in
                [("cpu", "cpu.pressure"), ("memory", "memory.pressure"), ("io", "io.pressure")]
            {
                if let Some(text) = files.read(dir, file) {
                    stats.pressure.push(parse_pressure(resource, text));
                }
            }
        }
        stats
    }
}

/// Where the figures of a container are.
#[derive(Debug)]
pub(super) struct Places {
    pid: i32,
    /// Bytes of a page.
    page: u64,
    memory: Option<CgroupDir>,
    /// v1 only.
    cpuacct: Option<CgroupDir>,
    cpu: Option<CgroupDir>,
    pids: Option<CgroupDir>,
    io: Option<CgroupDir>,
    hugetlb: Option<CgroupDir>,
    page_sizes: Vec<String>,
    unified: Option<CgroupDir>,
}

impl Places {
    pub(super) fn of(cgroups: &Cgroups, pid: i32) -> Self {
        let hugetlb = cgroups.dir("hugetlb");
        Self {
            pid,
            page: pintle_sys::mem::page() as u64,
            memory: cgroups.dir("memory"),
            cpuacct: cgroups.dir("cpuacct").filter(|d| !d.unified),
            cpu: cgroups.dir("cpu"),
            pids: cgroups.dir("pids"),
            io: cgroups.dir("blkio").filter(|d| !d.unified).or_else(|| cgroups.dir("io")),
            page_sizes: hugetlb.as_ref().map(page_sizes).unwrap_or_default(),
            hugetlb,
            unified: cgroups.unified(),
        }
    }
}

fn number(files: &mut Files, dir: &CgroupDir, name: &str) -> u64 {
    files.read(dir, name).and_then(limit_value).unwrap_or(0)
}

fn memory(dir: &CgroupDir, files: &mut Files) -> Memory {
    let mut memory = Memory { present: true, ..Memory::default() };
    let stat = files.read(dir, "memory.stat").unwrap_or_default();
    memory.raw = stat
        .lines()
        .filter_map(|l| l.split_once(' '))
        .filter_map(|(k, v)| Some((k.to_owned(), v.trim().parse().ok()?)))
        .collect();
    if dir.unified {
        memory.usage = number(files, dir, "memory.current");
        memory.limit = number(files, dir, "memory.max");
        memory.max_usage = number(files, dir, "memory.peak");
        memory.swap = number(files, dir, "memory.swap.current");
        memory.swap_limit = number(files, dir, "memory.swap.max");
        memory.fail_count = files.read(dir, "memory.events").map_or(0, |t| key(t, "max"));
        memory.rss = memory.stat("anon");
        memory.cache = memory.stat("file");
        memory.kernel = memory.stat("kernel");
        memory.kernel_tcp = memory.stat("sock");
    } else {
        memory.usage = number(files, dir, "memory.usage_in_bytes");
        memory.limit = number(files, dir, "memory.limit_in_bytes");
        memory.max_usage = number(files, dir, "memory.max_usage_in_bytes");
        let both = number(files, dir, "memory.memsw.usage_in_bytes");
        memory.swap = both.saturating_sub(memory.usage);
        memory.swap_limit = number(files, dir, "memory.memsw.limit_in_bytes").saturating_sub(memory.limit);
        memory.fail_count = number(files, dir, "memory.failcnt");
        memory.rss = memory.stat("rss");
        memory.cache = memory.stat("cache");
        memory.kernel = number(files, dir, "memory.kmem.usage_in_bytes");
        memory.kernel_tcp = number(files, dir, "memory.kmem.tcp.usage_in_bytes");
    }
    memory.working_set = memory.usage.saturating_sub(memory.stat("inactive_file"));
    memory
}

fn cpu(places: &Places, files: &mut Files) -> Cpu {
    let mut cpu = Cpu::default();
    let Some(dir) = places.cpuacct.as_ref().or(places.cpu.as_ref()) else {
        return cpu;
    };
    if dir.unified {
        let text = files.read(dir, "cpu.stat").unwrap_or_default();
        cpu.usage_ns = key(text, "usage_usec").saturating_mul(1000);
        cpu.user_ns = key(text, "user_usec").saturating_mul(1000);
        cpu.system_ns = key(text, "system_usec").saturating_mul(1000);
        cpu.throttled_ns = key(text, "throttled_usec").saturating_mul(1000);
        cpu.periods = key(text, "nr_periods");
        cpu.throttled_periods = key(text, "nr_throttled");
        return cpu;
    }
    // cpuacct.stat counts in ticks of 1/100 s on every Linux.
    const TICK_NS: u64 = 10_000_000;
    cpu.usage_ns = number(files, dir, "cpuacct.usage");
    let ticks = files.read(dir, "cpuacct.stat").unwrap_or_default();
    cpu.user_ns = key(ticks, "user").saturating_mul(TICK_NS);
    cpu.system_ns = key(ticks, "system").saturating_mul(TICK_NS);
    let per_cpu = files.read(dir, "cpuacct.usage_percpu").unwrap_or_default();
    cpu.per_cpu_ns = per_cpu.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
    if let Some(text) = places.cpu.as_ref().and_then(|d| files.read(d, "cpu.stat")) {
        cpu.periods = key(text, "nr_periods");
        cpu.throttled_periods = key(text, "nr_throttled");
        cpu.throttled_ns = key(text, "throttled_time");
    }
    cpu
}

/// The sizes of huge pages that the directory has files for, as in `2MB`, sorted.
fn page_sizes(dir: &CgroupDir) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(&dir.path) else { return Vec::new() };
    let suffix = if dir.unified { ".current" } else { ".usage_in_bytes" };
    let size = |name: &str| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?;
        (!size.contains('.')).then(|| size.to_owned())
    };
    let mut sizes: Vec<String> =
        entries.flatten().filter_map(|entry| size(entry.file_name().to_str()?)).collect();
    sizes.sort();
    sizes
}

fn hugetlb(dir: &CgroupDir, size: &str, files: &mut Files) -> Hugetlb {
    let name = |file: &str| format!("hugetlb.{size}.{file}");
    let page_size = size.to_owned();
    if dir.unified {
        let usage = number(files, dir, &name("current"));
        let fail_count = files.read(dir, &name("events")).map_or(0, |t| key(t, "max"));
        return Hugetlb { page_size, usage, max_usage: 0, fail_count };
    }
    Hugetlb {
        page_size,
        usage: number(files, dir, &name("usage_in_bytes")),
        max_usage: number(files, dir, &name("max_usage_in_bytes")),
        fail_count: number(files, dir, &name("failcnt")),
    }
}

fn device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `io.stat` of v2: one line per device with `rbytes=`, `wbytes=`, `rios=`, ...
fn parse_io_stat(text: &str) -> Vec<Blkio> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some((major, minor)) = words.next().and_then(device) else { continue };
        let values: BTreeMap<&str, u64> =
            words.filter_map(|w| w.split_once('=')).filter_map(|(k, v)| Some((k, v.parse().ok()?))).collect();
        for (op, bytes, ios) in
            [("read", "rbytes", "rios"), ("write", "wbytes", "wios"), ("discard", "dbytes", "dios")]
        {
            let get = |k: &str| values.get(k).copied().unwrap_or(0);
            if values.contains_key(bytes) {
                found.push(Blkio {
                    major,
                    minor,
                    op: op.to_owned(),
                    bytes: get(bytes),
                    operations: get(ios),
                });
            }
        }
    }
    found
}

type BlkioLine = ((u64, u64), String, u64);

/// A v1 file: lines of `8:0 Read 4096`.
fn blkio_lines(text: &str) -> Vec<BlkioLine> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let device = device(words.next()?)?;
            Some((device, words.next()?.to_ascii_lowercase(), words.next()?.parse().ok()?))
        })
        .collect()
}

/// The pair of v1 files: bytes and requests.
fn merge_blkio(bytes: Vec<BlkioLine>, ops: &[BlkioLine]) -> Vec<Blkio> {
    bytes
        .into_iter()
        .map(|((major, minor), op, bytes)| {
            let same = |o: &&BlkioLine| o.0 == (major, minor) && o.1 == op;
            let operations = ops.iter().find(same).map_or(0, |o| o.2);
            Blkio { major, minor, op, bytes, operations }
        })
        .collect()
}

fn parse_net_dev(text: &str) -> Vec<Network> {
    let mut found = Vec::new();
    for line in text.lines().skip(2) {
        let Some((name, rest)) = line.split_once(':') else { continue };
        let n: Vec<u64> = rest.split_ascii_whitespace().filter_map(|v| v.parse().ok()).collect();
        if name.trim() == "lo" || n.len() < 12 {
            continue;
        }
        found.push(Network {
            name: name.trim().to_owned(),
            rx: [n[0], n[1], n[2], n[3]],
            tx: [n[8], n[9], n[10], n[11]],
        });
    }
    found
}

fn parse_pressure(resource: &str, text: &str) -> Pressure {
    let line =
        |word: &str| text.lines().find_map(|l| l.strip_prefix(word)).unwrap_or_default().trim().to_owned();
    Pressure { resource: resource.to_owned(), some: line("some "), full: line("full ") }
}

#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(text: &str) {
    std::hint::black_box((parse_io_stat(text), parse_net_dev(text), parse_pressure("memory", text)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_of_both_versions() {
        let v2 = parse_io_stat("8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\nbad\n");
        assert_eq!(v2.len(), 3);
        assert_eq!((v2[1].op.as_str(), v2[1].bytes, v2[1].operations), ("write", 20, 2));
        let v1 =
            merge_blkio(blkio_lines("8:0 Read 10\n8:0 Total 10\nTotal 10\n"), &blkio_lines("8:0 Read 3\n"));
        assert_eq!(v1.len(), 2);
        assert_eq!((v1[0].op.as_str(), v1[0].operations, v1[1].operations), ("read", 3, 0));
    }

    #[test]
    fn network_and_pressure() {
        let text = "h\nh\n lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n eth0:5 6 7 8 0 0 0 0 9 10 11 12 0 0 0 0\n";
        assert_eq!(
            parse_net_dev(text),
            vec![Network { name: "eth0".into(), rx: [5, 6, 7, 8], tx: [9, 10, 11, 12] }]
        );
        let p = parse_pressure("io", "some avg10=1.00\nfull avg10=2.00\n");
        assert_eq!((p.some.as_str(), p.full.as_str()), ("avg10=1.00", "avg10=2.00"));
    }

    #[test]
    fn of_ourselves() {
        // Whatever the machine has, reading must work; a process always has some memory where there is a controller.
        let pid = i32::try_from(std::process::id()).unwrap();
        let cgroups = Cgroups::of(pid);
        assert!(!cgroups.is_empty());
        let stats = Stats::read(&cgroups, pid);
        assert!(stats.cgroup_version == 1 || stats.cgroup_version == 2);
    }
}
