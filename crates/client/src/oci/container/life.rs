//! Whether the container lives, and its state on disk.

use super::Container;
use crate::{
    Status as Live,
    oci::{Error, Result, fs, process, state::ContainerState},
};
use std::{
    io,
    path::{Path, PathBuf},
};

impl Container {
    /// Pid of its init process, if it runs.
    ///
    /// # Errors
    /// As [`process::check`].
    pub async fn pid(&self) -> Result<i32> {
        Ok(self.check().await?.0)
    }

    /// Whether its init process runs.
    ///
    /// # Errors
    /// As [`process::check`], with words before it.
    pub async fn living(&self) -> Result<()> {
        match self.check().await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.context(format!("checking if PID of {} is running failed", self.id()))),
        }
    }

    /// State letter of its init process: `S` sleeping, `R` running, `D` blocked, ...
    ///
    /// # Errors
    /// As [`living`](Self::living).
    pub async fn process_state(&self) -> Result<char> {
        match self.check().await {
            Ok((_, letter)) => Ok(letter),
            Err(error) => Err(error.context(format!("checking if PID of {} is running failed", self.id()))),
        }
    }

    /// The shim holds a pidfd and knows; without one the start time is compared.
    async fn check(&self) -> Result<(i32, char)> {
        if let Some(monitor) = self.monitor() {
            match monitor.state().await {
                Ok(state) => {
                    let Some(init) = state.process else { return Err(Error::PidNotInitialized) };
                    if state.exit.is_some() || matches!(state.status, Live::Stopped | Live::Deleted) {
                        return Err(Error::ProcessNotFound);
                    }
                    let stat = process::stat_from_file(&process::stat_path(init.pid))
                        .map_err(|_| Error::ProcessNotFound)?;
                    // The shim reaps at once: what stands at this pid is ours, or has just ended.
                    let other = stat.start_time != init.start.to_string() && init.start != 0;
                    if other || matches!(stat.state, 'X' | 'Z') {
                        return Err(Error::ProcessNotFound);
                    }
                    return Ok((init.pid, stat.state));
                }
                Err(error) if error.is_unreachable() => {}
                Err(error) => return Err(error.into()),
            }
        }
        process::check(&self.state())
    }

    /// Reads the state from disk; it replaces the one in memory.
    ///
    /// A file of a version that did not record the init process is completed from `/proc`. If a
    /// shim serves the container, the pid it tells must be the recorded one, else the state stays as
    /// it was.
    ///
    /// # Errors
    /// If there is no file, it is not a state document, or its process is gone before its start
    /// time could be recorded.
    pub async fn load_state(&self) -> Result<()> {
        let path = self.state_path();
        let mut state = read_state(&path)?;
        if state.init_pid == 0 && state.init_start_time.is_empty() && state.pid != 0 {
            state.set_init_pid(state.pid)?;
        }
        if let Some(monitor) = self.monitor() {
            if let Some(init) = monitor.state().await.ok().and_then(|s| s.process) {
                if state.init_pid != 0 && state.init_pid != init.pid {
                    let (pid, start_time) = (state.init_pid, state.init_start_time);
                    return Err(Error::InitPidAlreadySet { pid, start_time });
                }
            }
        }
        self.update_state(|slot| *slot = state);
        Ok(())
    }

    /// Writes the state to disk as it is: a temporary file, synced, renamed over the old one.
    ///
    /// # Errors
    /// If the directory is missing or the disk is full; the old file stays then.
    pub fn write_state(&self) -> Result<()> {
        let path = self.state_path();
        fs::replace(&path, &self.state().to_json(), 0o644).map_err(|source| Error::Io {
            what: "writing",
            path,
            source,
        })
    }

    /// Pid of the monitor, from `<bundle>/conmon-pidfile`.
    ///
    /// # Errors
    /// If there is no file, or it is not a decimal number and nothing else.
    pub fn read_monitor_pid_file(&self) -> Result<i32> {
        let path = self.bundle_path().join("conmon-pidfile");
        let failed = |source| Error::Io { what: "reading", path: path.clone(), source };
        let text = std::fs::read_to_string(&path).map_err(failed)?;
        text.parse().map_err(|e| failed(io::Error::new(io::ErrorKind::InvalidData, e)))
    }

    /// Removes the cgroup its shim was put in, once it is empty. Failures are logged and forgiven.
    pub async fn cleanup_monitor_cgroup(&self) {
        let cgroups = std::mem::take(&mut self.meta_mut().monitor_cgroups);
        if self.is_spoofed() || cgroups.is_empty() {
            return;
        }
        for path in &cgroups {
            if let Err(error) = remove_cgroup(path) {
                tracing::info!("removing monitor cgroup {}: {error}", path.display());
            }
        }
        let _ = std::fs::remove_file(self.monitor_cgroup_file());
    }

    fn monitor_cgroup_file(&self) -> PathBuf {
        self.dir().join("monitor-cgroup")
    }

    /// Records the cgroups of the shim, in memory and beside the state.
    pub(crate) fn set_monitor_cgroups(&self, cgroups: Vec<PathBuf>) {
        if !cgroups.is_empty() && self.dir().is_dir() {
            let lines: Vec<_> = cgroups.iter().map(|c| c.to_string_lossy()).collect();
            if let Err(error) = fs::replace(&self.monitor_cgroup_file(), lines.join("\n").as_bytes(), 0o600) {
                tracing::warn!("recording the monitor cgroup of container {}: {error}", self.id());
            }
        }
        self.meta_mut().monitor_cgroups = cgroups;
    }

    /// Finds the cgroups of the shim again after a restart of the engine.
    pub(crate) fn load_monitor_cgroups(&self) {
        let text = std::fs::read_to_string(self.monitor_cgroup_file()).unwrap_or_default();
        let cgroups = text.lines().filter(|line| line.starts_with('/')).map(PathBuf::from).collect();
        self.meta_mut().monitor_cgroups = cgroups;
    }
}

fn read_state(path: &Path) -> Result<ContainerState> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io {
        what: "reading",
        path: path.to_path_buf(),
        source,
    })?;
    Ok(ContainerState::from_json(&bytes)?)
}

/// Removes a cgroup and those below it; the files in it go with the directories.
fn remove_cgroup(path: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_cgroup(&entry.path())?;
        }
    }
    std::fs::remove_dir(path)
}
