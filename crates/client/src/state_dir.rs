//! What is on disk about containers: finding their shims, and how they ended if a shim is gone.

use crate::{
    error::{Error, Result},
    monitor::Monitor,
    socket::{connect_in, nobody_there},
    types::{Exit, ExitReason, time},
};
use nix::sys::socket::SockType;
use pintle_core::{exit::Exit as End, record::ExitRecord};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Directory of all state directories: `$PINTLE_DIR`, or `/run/pintle` for root, or
/// `$XDG_RUNTIME_DIR/pintle`.
pub fn default_root() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = variable("PINTLE_DIR") {
        return dir;
    }
    if !nix::unistd::geteuid().is_root() {
        if let Some(dir) = variable("XDG_RUNTIME_DIR") {
            return dir.join("pintle");
        }
    }
    PathBuf::from("/run/pintle")
}

/// A state directory found by [`scan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Id of the container: the name of the directory.
    pub id: String,
    /// The directory.
    pub dir: PathBuf,
    /// A shim listens there.
    pub alive: bool,
    /// How the container ended, if it has and the record is on disk.
    pub exit: Option<Exit>,
    /// The shim's `state.json`, if it can be read.
    pub document: Option<serde_json::Value>,
}

impl Entry {
    /// A handle on its shim.
    pub fn monitor(&self) -> Monitor {
        Monitor::at(&self.dir)
    }
}

/// Looks at every state directory under `root`, sorted by id. A root that does not exist is empty.
///
/// # Errors
/// If the root cannot be read.
pub fn scan(root: &Path) -> Result<Vec<Entry>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(format!("reading {}", root.display()))(error)),
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let (dir, name) = (entry.path(), entry.file_name());
        let Some(id) = name.to_str().filter(|id| !id.starts_with('.')) else { continue };
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            found.push(look_at(id, dir));
        }
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(found)
}

fn look_at(id: &str, dir: PathBuf) -> Entry {
    let document = fs::read(dir.join("state.json")).ok();
    Entry {
        id: id.to_owned(),
        alive: has_shim(&dir),
        exit: read_exit_record(&dir),
        document: document.and_then(|bytes| serde_json::from_slice(&bytes).ok()),
        dir,
    }
}

/// Whether a shim listens in this state directory.
pub fn has_shim(dir: &Path) -> bool {
    match connect_in(dir, "monitor.sock", SockType::Stream) {
        Ok(_) => true,
        Err(error) => !nobody_there(&error) && error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// Reads the exit record of a state directory; `None` if there is none, or it is not whole.
pub fn read_exit_record(dir: &Path) -> Option<Exit> {
    exit_record(dir).map(exit_of)
}

pub(crate) fn exit_record(dir: &Path) -> Option<ExitRecord> {
    ExitRecord::from_json(&fs::read(dir.join("exit.json")).ok()?)
}

pub(crate) fn exit_of(record: ExitRecord) -> Exit {
    let reason = match record.exit {
        End::Code(code) => ExitReason::Code(code.into()),
        End::Signal { signal, core } => ExitReason::Signal { signal, core_dumped: core },
        End::Unknown(reason) => ExitReason::Unknown(reason.as_str().to_owned()),
    };
    Exit {
        reason,
        status: record.exit.shell_code(),
        oom_killed: record.oom.init_killed,
        started_at: record.started_at.and_then(|t| time(t.unix_nanos())),
        finished_at: time(record.finished_at.unix_nanos()),
        boot_id: record.boot_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn scan_tells_the_living_from_the_dead() {
        let root = std::env::temp_dir().join(format!("pintle-scan-{}", std::process::id()));
        assert_eq!(scan(&root).unwrap(), []);
        for id in ["dead", "live", "stale", ".hidden"] {
            fs::create_dir_all(root.join(id)).unwrap();
        }
        fs::write(root.join("file"), "").unwrap();
        fs::write(root.join("dead/exit.json"), r#"{"version":1,"code":3,"finished_at_nanos":5,"id":"dead"}"#)
            .unwrap();
        fs::write(root.join("dead/state.json"), r#"{"id":"dead"}"#).unwrap();
        let _listener = UnixListener::bind(root.join("live/monitor.sock")).unwrap();
        drop(UnixListener::bind(root.join("stale/monitor.sock")).unwrap());
        let found = scan(&root).unwrap();
        let ids: Vec<_> = found.iter().map(|e| (e.id.as_str(), e.alive)).collect();
        assert_eq!(ids, [("dead", false), ("live", true), ("stale", false)]);
        let exit = found[0].exit.as_ref().unwrap();
        assert_eq!((exit.status, &exit.reason), (3, &ExitReason::Code(3)));
        assert_eq!(found[0].document.as_ref().unwrap()["id"], "dead");
        assert_eq!(found[1].exit, None);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn scan_reaches_sockets_behind_long_paths() {
        let root = std::env::temp_dir().join(format!("pintle-long-{}", std::process::id()));
        let dir = root.join("d".repeat(200));
        fs::create_dir_all(&dir).unwrap();
        let short = root.join("s");
        let _listener = UnixListener::bind(&short).unwrap();
        fs::rename(&short, dir.join("monitor.sock")).unwrap();
        assert!(has_shim(&dir));
        fs::remove_dir_all(root).unwrap();
    }
}
