//! The state directory of a container.

use super::container::Container;
use super::spec::CreateSpec;
use pintle_core::life::Status;
use pintle_core::wall::WallTime;
use pintle_sys::atomic::{Durability, write};
use pintle_sys::{clock, process};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// Name of the state file.
pub const STATE_FILE: &str = "state.json";
/// Version of its layout; a shim takes over from this one and older ones.
pub const STATE_VERSION: u32 = pintle_proto::STATE_VERSION + cfg!(feature = "next-version") as u32;
/// Version of this program.
pub const VERSION: &str = if cfg!(feature = "next-version") {
    concat!(env!("CARGO_PKG_VERSION"), "+next")
} else {
    env!("CARGO_PKG_VERSION")
};

/// What clients, an adopter and a new version of the shim need to find their way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StateFile {
    /// Layout version.
    pub version: u32,
    /// Container id.
    pub id: String,
    /// Which door made it.
    pub door: String,
    /// Pid of the shim.
    pub shim_pid: i32,
    /// Its start time in clock ticks, against pid reuse.
    pub shim_pid_start: u64,
    /// Boot id; a state of another boot is history.
    pub boot_id: String,
    /// Status when it was written.
    pub status: String,
    /// init's pid; 0 before create.
    pub pid: i32,
    /// Its start time in clock ticks.
    pub pid_start: u64,
    /// OCI bundle.
    pub bundle: String,
    /// First log file; empty without one.
    pub log_path: String,
    /// Has a terminal.
    pub terminal: bool,
    /// Nanoseconds since the epoch; 0 is not set.
    pub created_at: i64,
    /// Nanoseconds since the epoch; 0 is not set.
    pub started_at: i64,
    /// Newest event.
    pub last_event: u64,
    /// Inodes of the stdout and stderr pipes; 0 without.
    pub stdout_inode: u64,
    /// See `stdout_inode`.
    pub stderr_inode: u64,
    /// The request that made it.
    pub spec: Option<CreateSpec>,
}

fn nanos(time: Option<WallTime>) -> i64 {
    time.map_or(0, WallTime::unix_nanos)
}

/// The state of a container as a document.
pub fn document(container: &Container) -> StateFile {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let inner = container.lock();
    let spec = inner.spec.clone();
    let log_path = spec.as_ref().and_then(|s| s.logs.iter().find(|l| !l.path.as_os_str().is_empty()));
    StateFile {
        version: STATE_VERSION,
        id: container.id.clone(),
        door: container.door.to_owned(),
        shim_pid: own,
        shim_pid_start: process::start_time(own),
        boot_id: clock::boot_id(),
        status: inner.life.status().as_str().to_owned(),
        pid: inner.pid,
        pid_start: inner.pid_start,
        bundle: spec.as_ref().map(|s| s.bundle.display().to_string()).unwrap_or_default(),
        log_path: log_path.map(|l| l.path.display().to_string()).unwrap_or_default(),
        terminal: inner.facts.terminal,
        created_at: nanos(inner.created_at),
        started_at: nanos(inner.started_at),
        last_event: container.events.last(),
        stdout_inode: inner.pipes.0,
        stderr_inode: inner.pipes.1,
        spec,
    }
}

/// Writes the state file.
///
/// # Errors
/// As writing a file.
pub fn save(container: &Container) -> io::Result<()> {
    if container.lock().life.status() == Status::Deleted {
        return Ok(());
    }
    let bytes = serde_json::to_vec(&document(container)).map_err(io::Error::other)?;
    write_visible(&container.dir.join(STATE_FILE), &bytes, 0o600)
}

/// Writes the state file of a container that the runtime is about to create.
pub fn save_creating(container: &Container, spec: &CreateSpec) {
    let mut state = document(container);
    state.spec = Some(spec.clone());
    state.bundle = spec.bundle.display().to_string();
    let bytes = serde_json::to_vec(&state).unwrap_or_default();
    // Without it a crash in the next moments is cleaned up less well; that is no reason not to create.
    let _ = write_visible(&container.dir.join(STATE_FILE), &bytes, 0o600);
}

/// Reads a state file.
///
/// # Errors
/// As reading a file; `InvalidData` for one that is broken or of a newer version.
pub fn load(dir: &Path) -> io::Result<StateFile> {
    let state: StateFile = serde_json::from_slice(&std::fs::read(dir.join(STATE_FILE))?)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    if state.version > STATE_VERSION {
        let message = format!("state version {} is newer than {STATE_VERSION}", state.version);
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(state)
}

/// Writes a file atomically for readers.
///
/// # Errors
/// As writing a file.
pub fn write_visible(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    write(path, bytes, mode, Durability::Visible)
}

/// Writes a file atomically and durably.
///
/// # Errors
/// As writing and syncing a file.
pub fn write_durable(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    write(path, bytes, mode, Durability::Durable)
}

/// Removes a state directory with the files the shim makes in it.
///
/// # Errors
/// As removing; a directory that is gone is fine.
pub fn remove_dir(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
