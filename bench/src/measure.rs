//! Reads the kernel's figures about a process and sums up samples.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// Memory of one process or the mean over several, kB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub rss: f64,
    pub pss: f64,
    pub private_dirty: f64,
    pub anonymous: f64,
    pub threads: f64,
}

/// Memory of a process, from `smaps_rollup`.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("read memory of process {pid}"))?;
    let field = |name: &str| -> f64 {
        text.lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok())
            .unwrap_or(0.0)
    };
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?.count() as f64;
    Ok(Memory {
        rss: field("Rss"),
        pss: field("Pss"),
        private_dirty: field("Private_Dirty"),
        anonymous: field("Anonymous"),
        threads,
    })
}

/// The mean over several processes.
pub(crate) fn mean_memory(pids: &[u32]) -> Result<Memory> {
    let mut sum = Memory::default();
    for pid in pids {
        let one = memory(*pid)?;
        sum.rss += one.rss;
        sum.pss += one.pss;
        sum.private_dirty += one.private_dirty;
        sum.anonymous += one.anonymous;
        sum.threads += one.threads;
    }
    let n = pids.len().max(1) as f64;
    Ok(Memory {
        rss: sum.rss / n,
        pss: sum.pss / n,
        private_dirty: sum.private_dirty / n,
        anonymous: sum.anonymous / n,
        threads: sum.threads / n,
    })
}

/// CPU seconds that the whole machine was busy since boot.
pub(crate) fn machine_cpu() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("empty /proc/stat")?;
    let f: Vec<f64> = line.split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    // user, nice, system, irq, softirq; idle and iowait are left out.
    Ok([0, 1, 2, 5, 6].iter().filter_map(|i| f.get(*i)).sum::<f64>() / 100.0)
}

/// Context switches of a process: how often it was woken.
pub(crate) fn wakeups(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(text
        .lines()
        .filter(|l| l.starts_with("voluntary_ctxt_switches"))
        .filter_map(|l| l.split_whitespace().nth(1)?.parse::<f64>().ok())
        .sum())
}

/// Load average over one minute.
pub(crate) fn load() -> f64 {
    fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|t| t.split_whitespace().next()?.parse().ok())
        .unwrap_or(0.0)
}

/// Size of a file in kB.
pub(crate) fn size(path: &Path) -> Result<f64> {
    Ok(fs::metadata(path).with_context(|| format!("size of {}", path.display()))?.len() as f64 / 1024.0)
}

/// The value below which `part` (0 to 1) of the samples lie.
pub(crate) fn quantile(samples: &[f64], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n => sorted[((n - 1) as f64 * part).round() as usize],
    }
}
