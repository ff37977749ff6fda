//! The metrics message of containerd, read from the cgroup files. A file that is missing counts as zero.

use std::fs;
use std::path::Path;

use pintle_proto::containerd::{metrics_v1 as v1, metrics_v2 as v2, pack};
use protobuf::well_known_types::any::Any;

use super::error::{Result, TaskError};
use crate::engine::cgroup::{CgroupDir, Cgroups};

/// Nanoseconds in a tick of `cpuacct.stat`: Linux shows user space 100 of them a second.
const TICK: u64 = 10_000_000;

/// Reads the metrics of a container in the message of the host's cgroup mode.
pub(super) fn read(cgroups: &Cgroups) -> Result<Any> {
    let gone = || TaskError::not_found("cgroup does not exist");
    if let Some(memory) = cgroups.dir("memory").filter(|d| !d.unified) {
        if !memory.path.is_dir() {
            return Err(gone());
        }
        return Ok(pack(&legacy(cgroups, &memory)));
    }
    let hybrid =
        ["cpu", "cpuacct", "pids", "blkio"].iter().filter_map(|c| cgroups.dir(c)).find(|d| !d.unified);
    if let Some(dir) = hybrid {
        if !dir.path.is_dir() {
            return Err(gone());
        }
        return Ok(pack(&legacy(cgroups, &dir)));
    }
    let dir = cgroups.unified().filter(|d| d.path.is_dir()).ok_or_else(gone)?;
    Ok(pack(&unified(&dir)))
}

fn text(dir: &CgroupDir, name: &str) -> String {
    dir.read(name).unwrap_or_default()
}

/// The word `max` is the largest number, anything that is no number is zero.
fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        other => other.parse().unwrap_or(0),
    }
}

fn value(dir: &CgroupDir, name: &str) -> u64 {
    number(&text(dir, name))
}

/// The value behind a key in lines of `key value`.
fn keyed(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.split_once(' ').filter(|(name, _)| *name == key))
        .map_or(0, |(_, value)| number(value))
}

fn unified(dir: &CgroupDir) -> v2::Metrics {
    let mut out = v2::Metrics::new();
    let pids = v2::PidsStat {
        current: value(dir, "pids.current"),
        limit: value(dir, "pids.max"),
        ..Default::default()
    };
    out.pids = Some(pids).into();
    let cpu = text(dir, "cpu.stat");
    out.cpu = Some(v2::CPUStat {
        usage_usec: keyed(&cpu, "usage_usec"),
        user_usec: keyed(&cpu, "user_usec"),
        system_usec: keyed(&cpu, "system_usec"),
        nr_periods: keyed(&cpu, "nr_periods"),
        nr_throttled: keyed(&cpu, "nr_throttled"),
        throttled_usec: keyed(&cpu, "throttled_usec"),
        nr_bursts: keyed(&cpu, "nr_bursts"),
        burst_usec: keyed(&cpu, "burst_usec"),
        psi: pressure(dir, "cpu.pressure").into(),
        ..Default::default()
    })
    .into();
    out.memory = Some(unified_memory(dir)).into();
    if let Some(events) = dir.read("memory.events") {
        out.memory_events = Some(v2::MemoryEvents {
            low: keyed(&events, "low"),
            high: keyed(&events, "high"),
            max: keyed(&events, "max"),
            oom: keyed(&events, "oom"),
            oom_kill: keyed(&events, "oom_kill"),
            oom_group_kill: keyed(&events, "oom_group_kill"),
            ..Default::default()
        })
        .into();
    }
    out.io = Some(v2::IOStat {
        usage: io_entries(&text(dir, "io.stat")),
        psi: pressure(dir, "io.pressure").into(),
        ..Default::default()
    })
    .into();
    let (current, limit) = (rdma(&text(dir, "rdma.current")), rdma(&text(dir, "rdma.max")));
    if !current.is_empty() || !limit.is_empty() {
        out.rdma = Some(v2::RdmaStat { current, limit, ..Default::default() }).into();
    }
    for pagesize in page_sizes() {
        let name = |what: &str| format!("hugetlb.{pagesize}.{what}");
        if dir.read(&name("current")).is_none() {
            continue;
        }
        out.hugetlb.push(v2::HugeTlbStat {
            current: value(dir, &name("current")),
            max: value(dir, &name("max")),
            failcnt: keyed(&text(dir, &name("events")), "max"),
            pagesize: pagesize.clone(),
            ..Default::default()
        });
    }
    out
}

fn unified_memory(dir: &CgroupDir) -> v2::MemoryStat {
    let stat = text(dir, "memory.stat");
    let of = |key: &str| keyed(&stat, key);
    v2::MemoryStat {
        anon: of("anon"),
        file: of("file"),
        kernel_stack: of("kernel_stack"),
        slab: of("slab"),
        sock: of("sock"),
        shmem: of("shmem"),
        file_mapped: of("file_mapped"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        anon_thp: of("anon_thp"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        slab_reclaimable: of("slab_reclaimable"),
        slab_unreclaimable: of("slab_unreclaimable"),
        pgfault: of("pgfault"),
        pgmajfault: of("pgmajfault"),
        // Split in two since Linux 5.9.
        workingset_refault: of("workingset_refault")
            + of("workingset_refault_anon")
            + of("workingset_refault_file"),
        workingset_activate: of("workingset_activate")
            + of("workingset_activate_anon")
            + of("workingset_activate_file"),
        workingset_nodereclaim: of("workingset_nodereclaim"),
        pgrefill: of("pgrefill"),
        pgscan: of("pgscan"),
        pgsteal: of("pgsteal"),
        pgactivate: of("pgactivate"),
        pgdeactivate: of("pgdeactivate"),
        pglazyfree: of("pglazyfree"),
        pglazyfreed: of("pglazyfreed"),
        thp_fault_alloc: of("thp_fault_alloc"),
        thp_collapse_alloc: of("thp_collapse_alloc"),
        usage: value(dir, "memory.current"),
        usage_limit: value(dir, "memory.max"),
        swap_usage: value(dir, "memory.swap.current"),
        swap_limit: value(dir, "memory.swap.max"),
        max_usage: value(dir, "memory.peak"),
        swap_max_usage: value(dir, "memory.swap.peak"),
        psi: pressure(dir, "memory.pressure").into(),
        ..Default::default()
    }
}

/// `None` where the kernel does not measure pressure.
fn pressure(dir: &CgroupDir, name: &str) -> Option<v2::PSIStats> {
    let text = dir.read(name)?;
    let line = |kind: &str| {
        let line = text.lines().find(|l| l.starts_with(kind))?;
        let of = |key: &str| line.split(' ').find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
        let average = |key: &str| of(key).and_then(|v| v.parse().ok()).unwrap_or(0.0);
        Some(v2::PSIData {
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
            total: of("total").map_or(0, number),
            ..Default::default()
        })
    };
    Some(v2::PSIStats { some: line("some").into(), full: line("full").into(), ..Default::default() })
}

fn io_entries(text: &str) -> Vec<v2::IOEntry> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (major, minor) = words.next()?.split_once(':')?;
            let mut out = v2::IOEntry { major: number(major), minor: number(minor), ..Default::default() };
            for (key, text) in words.filter_map(|w| w.split_once('=')) {
                match key {
                    "rbytes" => out.rbytes = number(text),
                    "wbytes" => out.wbytes = number(text),
                    "rios" => out.rios = number(text),
                    "wios" => out.wios = number(text),
                    _ => {}
                }
            }
            Some(out)
        })
        .collect()
}

fn rdma(text: &str) -> Vec<v2::RdmaEntry> {
    let small = |text: &str| u32::try_from(number(text)).unwrap_or(u32::MAX);
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let mut out = v2::RdmaEntry { device: words.next()?.to_owned(), ..Default::default() };
            for (key, text) in words.filter_map(|w| w.split_once('=')) {
                match key {
                    "hca_handle" => out.hca_handles = small(text),
                    "hca_object" => out.hca_objects = small(text),
                    _ => {}
                }
            }
            Some(out)
        })
        .collect()
}

/// Sizes of huge pages in the names of cgroup files, such as `2MB`.
fn page_sizes() -> Vec<String> {
    let Ok(entries) = fs::read_dir(Path::new("/sys/kernel/mm/hugepages")) else { return Vec::new() };
    let mut out: Vec<String> = entries
        .flatten()
        .filter_map(|e| {
            let name = e.file_name().into_string().ok()?;
            let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            Some(match kib {
                k if k >= 1 << 20 => format!("{}GB", k >> 20),
                k if k >= 1 << 10 => format!("{}MB", k >> 10),
                k => format!("{k}KB"),
            })
        })
        .collect();
    out.sort();
    out
}

fn legacy(cgroups: &Cgroups, any: &CgroupDir) -> v1::Metrics {
    let dir = |controller: &str| {
        cgroups.dir(controller).filter(|d| !d.unified).unwrap_or_else(|| CgroupDir {
            // Not mounted: every file is missing.
            path: any.path.join("."),
            unified: false,
        })
    };
    let mut out = v1::Metrics::new();
    let pids = dir("pids");
    let limit = text(&pids, "pids.max").trim().parse().unwrap_or(0);
    out.pids =
        Some(v1::PidsStat { current: value(&pids, "pids.current"), limit, ..Default::default() }).into();
    out.cpu = Some(legacy_cpu(&dir("cpuacct"), &dir("cpu"))).into();
    let memory = dir("memory");
    out.memory = Some(legacy_memory(&memory)).into();
    let oom = text(&memory, "memory.oom_control");
    out.memory_oom_control = Some(v1::MemoryOomControl {
        oom_kill_disable: keyed(&oom, "oom_kill_disable"),
        under_oom: keyed(&oom, "under_oom"),
        oom_kill: keyed(&oom, "oom_kill"),
        ..Default::default()
    })
    .into();
    out.blkio = Some(legacy_blkio(&dir("blkio"))).into();
    let hugetlb = dir("hugetlb");
    for pagesize in page_sizes() {
        let name = |what: &str| format!("hugetlb.{pagesize}.{what}");
        if hugetlb.read(&name("usage_in_bytes")).is_none() {
            continue;
        }
        out.hugetlb.push(v1::HugetlbStat {
            usage: value(&hugetlb, &name("usage_in_bytes")),
            max: value(&hugetlb, &name("max_usage_in_bytes")),
            failcnt: value(&hugetlb, &name("failcnt")),
            pagesize: pagesize.clone(),
            ..Default::default()
        });
    }
    out
}

fn legacy_cpu(cpuacct: &CgroupDir, cpu: &CgroupDir) -> v1::CPUStat {
    let ticks = text(cpuacct, "cpuacct.stat");
    let stat = text(cpu, "cpu.stat");
    v1::CPUStat {
        usage: Some(v1::CPUUsage {
            total: value(cpuacct, "cpuacct.usage"),
            kernel: keyed(&ticks, "system").saturating_mul(TICK),
            user: keyed(&ticks, "user").saturating_mul(TICK),
            per_cpu: text(cpuacct, "cpuacct.usage_percpu").split_whitespace().map(number).collect(),
            ..Default::default()
        })
        .into(),
        throttling: Some(v1::Throttle {
            periods: keyed(&stat, "nr_periods"),
            throttled_periods: keyed(&stat, "nr_throttled"),
            throttled_time: keyed(&stat, "throttled_time"),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn legacy_memory(dir: &CgroupDir) -> v1::MemoryStat {
    let stat = text(dir, "memory.stat");
    let of = |key: &str| keyed(&stat, key);
    let entry = |kind: &str| {
        let name = |what: &str| format!("memory.{kind}{what}");
        Some(v1::MemoryEntry {
            limit: value(dir, &name("limit_in_bytes")),
            usage: value(dir, &name("usage_in_bytes")),
            max: value(dir, &name("max_usage_in_bytes")),
            failcnt: value(dir, &name("failcnt")),
            ..Default::default()
        })
    };
    v1::MemoryStat {
        cache: of("cache"),
        rss: of("rss"),
        rss_huge: of("rss_huge"),
        mapped_file: of("mapped_file"),
        dirty: of("dirty"),
        writeback: of("writeback"),
        pg_pg_in: of("pgpgin"),
        pg_pg_out: of("pgpgout"),
        pg_fault: of("pgfault"),
        pg_maj_fault: of("pgmajfault"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        hierarchical_memory_limit: of("hierarchical_memory_limit"),
        hierarchical_swap_limit: of("hierarchical_memsw_limit"),
        total_cache: of("total_cache"),
        total_rss: of("total_rss"),
        total_rss_huge: of("total_rss_huge"),
        total_mapped_file: of("total_mapped_file"),
        total_dirty: of("total_dirty"),
        total_writeback: of("total_writeback"),
        total_pg_pg_in: of("total_pgpgin"),
        total_pg_pg_out: of("total_pgpgout"),
        total_pg_fault: of("total_pgfault"),
        total_pg_maj_fault: of("total_pgmajfault"),
        total_inactive_anon: of("total_inactive_anon"),
        total_active_anon: of("total_active_anon"),
        total_inactive_file: of("total_inactive_file"),
        total_active_file: of("total_active_file"),
        total_unevictable: of("total_unevictable"),
        usage: entry("").into(),
        swap: entry("memsw.").into(),
        kernel: entry("kmem.").into(),
        kernel_tcp: entry("kmem.tcp.").into(),
        ..Default::default()
    }
}

fn legacy_blkio(dir: &CgroupDir) -> v1::BlkIOStat {
    // The throttling policy counts on every kernel, the CFQ files only where that scheduler is.
    let first = |names: &[&str]| {
        names.iter().map(|name| blkio_entries(&text(dir, name))).find(|e| !e.is_empty()).unwrap_or_default()
    };
    v1::BlkIOStat {
        io_service_bytes_recursive: first(&[
            "blkio.io_service_bytes_recursive",
            "blkio.bfq.io_service_bytes_recursive",
            "blkio.throttle.io_service_bytes_recursive",
            "blkio.throttle.io_service_bytes",
        ]),
        io_serviced_recursive: first(&[
            "blkio.io_serviced_recursive",
            "blkio.bfq.io_serviced_recursive",
            "blkio.throttle.io_serviced_recursive",
            "blkio.throttle.io_serviced",
        ]),
        io_queued_recursive: first(&["blkio.io_queued_recursive"]),
        io_service_time_recursive: first(&["blkio.io_service_time_recursive"]),
        io_wait_time_recursive: first(&["blkio.io_wait_time_recursive"]),
        io_merged_recursive: first(&["blkio.io_merged_recursive"]),
        io_time_recursive: first(&["blkio.time_recursive"]),
        sectors_recursive: first(&["blkio.sectors_recursive"]),
        ..Default::default()
    }
}

/// Lines of `major:minor op value`, or without the op. Sums have no device and are left out.
fn blkio_entries(text: &str) -> Vec<v1::BlkIOEntry> {
    text.lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (device, op, count) = match words.as_slice() {
                [device, op, count] => (*device, *op, *count),
                [device, count] => (*device, "", *count),
                _ => return None,
            };
            let (major, minor) = device.split_once(':')?;
            Some(v1::BlkIOEntry {
                op: op.to_owned(),
                major: number(major),
                minor: number(minor),
                value: number(count),
                ..Default::default()
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(files: &[(&str, &str)], tag: &str) -> CgroupDir {
        let path = std::env::temp_dir().join(format!("pintle-metrics-{tag}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        for (name, text) in files {
            fs::write(path.join(name), text).unwrap();
        }
        CgroupDir { path, unified: true }
    }

    #[test]
    fn unified_files() {
        let files = [
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 10\nuser_usec 7\n"),
            (
                "cpu.pressure",
                "some avg10=1.50 avg60=0.00 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
            ),
            ("memory.stat", "anon 4096\nworkingset_refault_anon 1\nworkingset_refault_file 2\n"),
            ("memory.current", "8192\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\noom 1\noom_kill 2\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\nbad\n"),
            ("rdma.current", "mlx hca_handle=1 hca_object=max\n"),
        ];
        let dir = dir(&files, "v2");
        let m = unified(&dir);
        assert_eq!((m.pids.current, m.pids.limit), (3, u64::MAX));
        assert_eq!((m.cpu.usage_usec, m.cpu.user_usec, m.cpu.psi.full.total), (10, 7, 5));
        assert_eq!((m.memory.anon, m.memory.usage, m.memory.workingset_refault), (4096, 8192, 3));
        assert_eq!((m.memory_events.oom, m.memory_events.oom_kill), (1, 2));
        assert_eq!((m.io.usage.len(), m.io.usage[0].wios), (1, 4));
        assert_eq!(m.rdma.current[0].hca_objects, u32::MAX);
        fs::remove_dir_all(dir.path).unwrap();
    }

    #[test]
    fn legacy_files() {
        let files = [
            ("cpuacct.stat", "user 2\nsystem 3\n"),
            ("cpuacct.usage", "5\n"),
            ("cpuacct.usage_percpu", "1 4 \n"),
            ("memory.stat", "rss 1\ntotal_inactive_file 9\nhierarchical_memsw_limit 5\n"),
            ("memory.usage_in_bytes", "11\n"),
        ];
        let dir = dir(&files, "v1");
        let cpu = legacy_cpu(&dir, &dir);
        assert_eq!((cpu.usage.user, cpu.usage.total, cpu.usage.per_cpu.len()), (2 * TICK, 5, 2));
        let memory = legacy_memory(&dir);
        assert_eq!((memory.rss, memory.total_inactive_file, memory.usage.usage), (1, 9, 11));
        assert_eq!(blkio_entries("8:0 Read 5\n8:0 7\nTotal 12\n").len(), 2);
        fs::remove_dir_all(dir.path).unwrap();
    }
}
