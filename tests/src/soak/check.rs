//! What must be true of a log, of events and of what is left.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_client::{Event, EventKind};

use super::plan::Log;
use crate::{Record, parse_cri, rejoin};

/// Compares a log with what was written; gives the bytes that are missing by what was done to the log.
pub(super) fn log(
    path: &Path,
    aside: &[(PathBuf, u64)],
    kind: Log,
    expected: &[Vec<u8>; 2],
    lost: u64,
) -> Result<u64> {
    let mut files: Vec<PathBuf> = Vec::new();
    for (old, size) in aside {
        let now = fs::metadata(old)?.len();
        ensure!(now == *size, "{} grew from {size} to {now} after reopen", old.display());
        files.push(old.clone());
    }
    if let Log::Rotated(size, keep) = kind {
        for n in (1..=keep + 1).rev() {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{n}"));
            let old = PathBuf::from(name);
            if old.exists() {
                ensure!(n <= keep, "{} is one too many", old.display());
                files.push(old);
            }
        }
        for file in files.iter().chain([&path.to_path_buf()]) {
            // A record holds at most one read, plus its head.
            let len = fs::metadata(file)?.len();
            ensure!(len <= size + (64 << 10) + 64, "{} has {len} bytes, limit {size}", file.display());
        }
    }
    files.push(path.to_path_buf());
    let mut records = Vec::new();
    for file in &files {
        let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
        records.extend(parse_cri(&bytes).map_err(|e| anyhow!("{}: {e}", file.display()))?);
    }
    let markers = |r: &Record| r.stream == "stderr" && r.payload.starts_with(b"[pintle: ");
    let marked = records.iter().any(markers);
    records.retain(|r| !markers(r));
    let got = [rejoin(&records, "stdout"), rejoin(&records, "stderr")];
    match kind {
        Log::Plain => {
            for (stream, bytes) in got.iter().enumerate() {
                let (have, want) = (bytes.len(), expected[stream].len());
                ensure!(*bytes == expected[stream], "bytes: stream {stream} has {have}, written {want}");
            }
            ensure!(lost == 0, "{lost} bytes told lost, all are there");
            Ok(0)
        }
        Log::Rotated(..) => {
            for (stream, bytes) in got.iter().enumerate() {
                ensure!(expected[stream].ends_with(bytes), "the log is not the end of stream {stream}");
            }
            ensure!(lost == 0, "{lost} bytes told lost by rotation");
            Ok(0)
        }
        Log::Limited(_) | Log::Tiny(_) => {
            // Only stdout was written, in whole lines; the gaps are between them.
            let (have, want) = (got[0].len() as u64, expected[0].len() as u64);
            ensure!(have + lost == want, "{want} bytes written, {have} in the log, {lost} told lost");
            ensure!(lost == 0 || matches!(kind, Log::Limited(_)) || marked || tight(path), "no marker");
            if let Log::Limited(limit) = kind {
                let len = fs::metadata(path)?.len();
                ensure!(len <= limit + (16 << 10) + 128, "the log has {len} bytes, limit {limit}");
                ensure!(expected[0].starts_with(&got[0]), "the log is not the beginning");
            }
            ensure!(got[1] == expected[1], "stderr differs");
            Ok(want - have)
        }
    }
}

/// Whether the file system has no room for a marker.
fn tight(path: &Path) -> bool {
    let Some(parent) = path.parent() else { return false };
    nix::sys::statvfs::statvfs(parent).is_ok_and(|s| s.blocks_available() == 0)
}

/// Each process one start and one end, in order, without a gap.
pub(super) fn events(events: &[Event], execs: u64) -> Result<()> {
    let mut last = None;
    for e in events {
        if let Some(last) = last {
            ensure!(e.sequence == last + 1, "number {} follows {last}", e.sequence);
        }
        last = Some(e.sequence);
    }
    if events.first().is_none_or(|e| e.sequence != 1) {
        // The ring holds the newest only.
        return Ok(());
    }
    let at = |kind| {
        let found: Vec<usize> = (0..events.len()).filter(|i| events[*i].kind == kind).collect();
        match found[..] {
            [one] => Ok(one),
            _ => Err(anyhow!("{} times {kind:?}", found.len())),
        }
    };
    let (created, started, exited) =
        (at(EventKind::Created)?, at(EventKind::Started)?, at(EventKind::Exited)?);
    ensure!(created < started && started < exited, "created, started and exited are out of order");
    let mut begun = 0;
    for (i, e) in events.iter().enumerate().filter(|(_, e)| e.kind == EventKind::ExecStarted) {
        begun += 1;
        let ends: Vec<usize> = (0..events.len())
            .filter(|n| events[*n].kind == EventKind::ExecExited && events[*n].exec_id == e.exec_id)
            .collect();
        match ends[..] {
            [end] if end > i && end < exited => {}
            _ => bail!("exec {} started at {i} and ended at {ends:?}", e.exec_id),
        }
    }
    ensure!(begun == execs, "{begun} execs told, {execs} run");
    Ok(())
}

/// The processes of a container whose command line contains these words.
pub(super) fn processes_of(id: &str, words: &str) -> Vec<u32> {
    let Ok(proc) = fs::read_dir("/proc") else { return Vec::new() };
    proc.flatten()
        .filter(|e| {
            let line = fs::read(e.path().join("cmdline")).unwrap_or_default();
            let cgroup = fs::read_to_string(e.path().join("cgroup")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(words) && cgroup.contains(id)
        })
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect()
}

/// Kills every process that carries this id.
pub(super) fn kill_all(id: &str) {
    let Ok(proc) = fs::read_dir("/proc") else { return };
    for e in proc.flatten() {
        let Some(pid) = e.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let line = fs::read(e.path().join("cmdline")).unwrap_or_default();
        let cgroup = fs::read_to_string(e.path().join("cgroup")).unwrap_or_default();
        let ours = String::from_utf8_lossy(&line).contains(id) || cgroup.contains(id);
        if ours && pid != std::process::id() as i32 {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
