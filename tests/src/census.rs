//! What a process holds: open files, threads, children, memory.

use std::collections::BTreeMap;
use std::fs;

/// The open files of a process: number and what it points to.
pub fn fds(pid: u32) -> BTreeMap<i32, String> {
    let Ok(dir) = fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeMap::new() };
    dir.flatten()
        .filter_map(|e| {
            let n = e.file_name().to_str()?.parse().ok()?;
            Some((n, fs::read_link(e.path()).ok()?.to_string_lossy().into_owned()))
        })
        .collect()
}

/// The number of its threads; 0 when it is gone.
pub fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// The field of `/proc/PID/stat` with this number, counted from 1 as proc(5) does.
fn stat(pid: u32, field: usize) -> Option<String> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let rest = &text[text.rfind(')')? + 2..];
    rest.split_whitespace().nth(field.checked_sub(3)?).map(str::to_string)
}

/// When it was started, in clock ticks since boot; `None` when it is gone.
pub fn start_time(pid: u32) -> Option<u64> {
    stat(pid, 22)?.parse().ok()
}

/// Whether the process exists and is not a zombie.
pub fn process_alive(pid: u32) -> bool {
    stat(pid, 3).is_some_and(|state| state != "Z" && state != "X")
}

/// Its parent.
pub fn parent_of(pid: u32) -> Option<u32> {
    stat(pid, 4)?.parse().ok()
}

/// Its children, zombies included.
pub fn process_children(pid: u32) -> Vec<u32> {
    let Ok(dir) = fs::read_dir("/proc") else { return Vec::new() };
    dir.flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(|p| parent_of(*p) == Some(pid))
        .collect()
}

/// Those of its children that have ended and were not waited for.
pub fn zombies_of(pid: u32) -> Vec<u32> {
    process_children(pid).into_iter().filter(|child| stat(*child, 3).is_some_and(|s| s == "Z")).collect()
}

fn smaps(pid: u32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    text.lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))
        .and_then(|v| v.trim().strip_suffix(" kB")?.trim().parse().ok())
        .unwrap_or(0)
}

/// Its proportional set size in KiB; 0 when it is gone.
pub fn pss_kib(pid: u32) -> u64 {
    smaps(pid, "Pss")
}

/// Its private dirty memory in KiB; 0 when it is gone.
pub fn private_dirty_kib(pid: u32) -> u64 {
    smaps(pid, "Private_Dirty")
}

/// How often the process went to sleep, and so was woken, since it began.
///
/// # Panics
/// When it is gone.
pub fn wakeups(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status of the process");
    let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")).expect("switches");
    line.trim().parse().expect("a number")
}
