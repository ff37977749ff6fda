//! What a shim holds at the end of a test: descriptors, memory, and nothing of anybody else.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::census::{fds, private_dirty_kib, pss_kib, zombies_of};
use crate::tools::shim;
use crate::wait::{eventually, wait_for_async};

/// What a shim may hold.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Descriptors.
    pub fds: usize,
    /// Private dirty memory, KiB.
    pub private_dirty: u64,
    /// Proportional set size, KiB.
    pub pss: u64,
}

/// What one may hold when its test is over, in a debug build. Measured in the tests of the native and the conmon door:
/// 30 descriptors at the median, 59 in the moment after a hundred clients were killed; 0.8 MiB of private dirty memory
/// at the median, and 11 after 64 MiB of output of execs until it is given back in the first idle seconds, which
/// are waited for; a PSS of 4.8 MiB, and some 10 of one that has just started and shares its program text with nobody.
pub const AT_THE_END: Bounds = Bounds { fds: 64, private_dirty: 4 * 1024, pss: 16 * 1024 };

/// The shims of this build that carry the word (an id, a directory) in their command line or environment.
pub fn shims_of(word: &str) -> Vec<u32> {
    let Ok(ours) = fs::metadata(shim()) else { return Vec::new() };
    let Ok(proc) = fs::read_dir("/proc") else { return Vec::new() };
    proc.flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            fs::metadata(format!("/proc/{pid}/exe"))
                .is_ok_and(|exe| (exe.dev(), exe.ino()) == (ours.dev(), ours.ino()))
        })
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            [line, environ].iter().any(|text| String::from_utf8_lossy(text).contains(word))
        })
        .collect()
}

/// What the shims that carry the word hold above these bounds, the children that they did not reap, and what they
/// have open of anybody else's files.
pub fn excesses(word: &str, bounds: &Bounds) -> Vec<String> {
    shims_of(word).into_iter().flat_map(|pid| excesses_of(pid, word, bounds)).collect()
}

fn excesses_of(pid: u32, word: &str, bounds: &Bounds) -> Vec<String> {
    let fds = fds(pid);
    let mut found = Vec::new();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for (fd, target) in &fds {
        let file = target.starts_with('/');
        let kind = if file { "file" } else { target.split(':').next().unwrap_or_default() };
        *kinds.entry(kind).or_default() += 1;
        // containerd makes the FIFOs of its clients in a directory of its own.
        let known = ["/proc/", "/sys/fs/cgroup", "/dev/", "/memfd:", "/run/containerd/fifo/"];
        if file && !target.contains(word) && !known.iter().any(|k| target.starts_with(k)) {
            found.push(format!("shim {pid}: descriptor {fd} is open on {target}"));
        }
    }
    if fds.len() > bounds.fds {
        found.push(format!("shim {pid}: {} descriptors, more than {}: {kinds:?}", fds.len(), bounds.fds));
    }
    found.extend(zombies_of(pid).into_iter().map(|child| format!("shim {pid}: zombie {child}")));
    for (what, has, may) in [
        ("private dirty memory", private_dirty_kib(pid), bounds.private_dirty),
        ("proportional set size", pss_kib(pid), bounds.pss),
    ] {
        if has > may {
            found.push(format!("shim {pid}: {has} KiB of {what}, more than {may}"));
        }
    }
    found
}

fn check(word: &str) -> Result<(), String> {
    let found = excesses(word, &AT_THE_END);
    if found.is_empty() { Ok(()) } else { Err(found.join("\n")) }
}

/// Waits until each shim that carries the word is within its bounds: ends of clients and the giving back of memory
/// take a moment.
///
/// # Panics
/// When one stays above; the message says in what.
#[track_caller]
pub fn within_bounds(word: &str) {
    eventually("the shim to be within its bounds", || check(word));
}

/// [`within_bounds`] for asynchronous tests.
///
/// # Panics
/// When one stays above.
pub async fn within_bounds_async(word: &str) {
    wait_for_async("the shim to be within its bounds", async || check(word)).await;
}
