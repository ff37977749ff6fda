//! Making containers and removing them.

use super::{ShimBackend, placement};
use crate::{
    CreateOptions, Error as ClientError, ErrorKind, LogOptions, Monitor, ProcessId, RuntimeOptions,
    SpawnConfig,
    oci::{CgroupManager, Container, Error, Result, fs},
};
use pintle_sys::pidfd::PidFd;
use std::{ffi::OsString, path::Path, time::Duration};

impl ShimBackend {
    pub(super) async fn create_container(&self, container: &Container, cgroup_parent: &str) -> Result<()> {
        let had_log = container.log_path().exists();
        let monitor = self.start_shim(container, cgroup_parent).await?;
        let made = async {
            let init = monitor.create(&self.create_options(container)).await.map_err(create_error)?;
            self.made(container, init).await
        };
        match made.await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.undo(container, &monitor, had_log).await;
                Err(error)
            }
        }
    }

    /// Starts the shim of a container and puts it where it belongs.
    pub(super) async fn start_shim(&self, container: &Container, cgroup_parent: &str) -> Result<Monitor> {
        let placement = placement::plan(&self.config, &self.handler, container, cgroup_parent)?;
        let mut spawn = self.spawn_config(container);
        spawn.cgroups = placement.make()?;
        let cgroups = spawn.cgroups.clone();
        let monitor = match Monitor::spawn(spawn).await {
            Ok(monitor) => monitor,
            Err(error) => {
                placement::remove(&cgroups);
                return Err(error.into());
            }
        };
        container.set_monitor_cgroups(cgroups);
        container.set_monitor(Some(monitor.clone()));
        let info = monitor.info().await?;
        placement.hand_to_systemd(info.pid).await?;
        let pid_file = container.bundle_path().join("conmon-pidfile");
        let written = fs::replace(&pid_file, info.pid.to_string().as_bytes(), 0o644);
        written.map_err(|source| Error::Io { what: "writing", path: pid_file, source })?;
        Ok(monitor)
    }

    pub(super) fn spawn_config(&self, container: &Container) -> SpawnConfig {
        let mut spawn = SpawnConfig::new(container.id());
        spawn.root.clone_from(&self.config.monitor_state_dir);
        spawn.shim = self.handler.shim();
        if !self.handler.monitor_env.is_empty() {
            // The monitor's whole environment, as configured; what a rootless runtime and CRIU need is
            // added where the configuration is silent.
            spawn.clear_env = true;
            let set = self.handler.monitor_env.iter().filter_map(|v| v.split_once('='));
            spawn.env = set.map(|(k, v)| (OsString::from(k), OsString::from(v))).collect();
            for name in ["XDG_RUNTIME_DIR", "PATH"] {
                let missing = !spawn.env.iter().any(|(key, _)| key == name);
                if let Some(value) = std::env::var_os(name).filter(|_| missing) {
                    spawn.env.push((name.into(), value));
                }
            }
        }
        spawn
    }

    pub(super) fn create_options(&self, container: &Container) -> CreateOptions {
        let mut options = CreateOptions::new(container.bundle_path());
        options.runtime = RuntimeOptions {
            path: container.runtime_path(&self.handler),
            root: self.handler.root().to_path_buf(),
            systemd_cgroup: self.config.cgroup_manager == CgroupManager::Systemd,
            create_args: if self.config.no_pivot { vec!["--no-pivot".into()] } else { Vec::new() },
            ..Default::default()
        };
        if !container.log_path().as_os_str().is_empty() {
            let mut log = LogOptions::file(container.log_path());
            log.max_size = u64::try_from(self.config.log_size_max).unwrap_or(0);
            options.logs.push(log);
        }
        if self.config.log_to_journald {
            let name = container.name().to_owned();
            options.logs.push(LogOptions { driver: "journald".into(), name, ..Default::default() });
        }
        options.stdin = container.stdin();
        options.stdin_once = container.stdin_once();
        options.pid_file = Some(container.bundle_path().join("pidfile"));
        options.timeout = Some(self.handler.create_timeout());
        let exits = &self.config.container_exits_dir;
        options.exit_dir = exits.is_dir().then(|| exits.clone());
        options
    }

    /// Records what the shim has made.
    pub(super) async fn made(&self, container: &Container, init: ProcessId) -> Result<()> {
        let recorded = container.update_state(|state| {
            if state.init_pid != 0 || !state.init_start_time.is_empty() {
                return Err(Error::InitPidAlreadySet {
                    pid: state.init_pid,
                    start_time: state.init_start_time.clone(),
                });
            }
            state.init_pid = init.pid;
            // The shim read it while the process could not go away.
            state.init_start_time = init.start.to_string();
            state.pid = init.pid;
            Ok(())
        });
        recorded?;
        self.update_container_status(container).await
    }

    /// Leaves nothing behind of a container that could not be made.
    pub(super) async fn undo(&self, container: &Container, monitor: &Monitor, had_log: bool) {
        if let Err(error) = self.remove_by_shim(monitor).await {
            if !error.is_unreachable() {
                tracing::warn!("cleaning up after container {}: {error}", container.id());
            }
        }
        container.set_monitor(None);
        container.cleanup_monitor_cgroup().await;
        if !had_log && !container.log_path().as_os_str().is_empty() {
            let _ = std::fs::remove_file(container.log_path());
        }
        let _ = std::fs::remove_file(container.bundle_path().join("conmon-pidfile"));
    }

    async fn remove_by_shim(&self, monitor: &Monitor) -> crate::Result<()> {
        let process = monitor.info().await.ok().and_then(|info| PidFd::open(info.pid).ok());
        match monitor.delete(true).await {
            // It never had a container, or has forgotten it already.
            Err(error)
                if matches!(error.kind(), Some(ErrorKind::NotFound | ErrorKind::FailedPrecondition)) => {}
            other => drop(other?),
        }
        monitor.shutdown(true).await?;
        // Its cgroup is empty only when it has gone; not longer than that, should it be held up.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        while process.as_ref().is_some_and(|p| !p.has_ended()) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    pub(super) async fn delete_container(&self, container: &Container) -> Result<()> {
        let monitor = self.monitor(container);
        match self.remove_by_shim(&monitor).await {
            Ok(()) => {}
            Err(error) if error.is_unreachable() => {
                self.delete_by_runtime(container).await?;
                remove_state_dir(monitor.dir())?;
            }
            Err(error) => return Err(error.into()),
        }
        container.set_monitor(None);
        Ok(())
    }

    /// A shim that is gone cannot delete: the runtime is asked directly.
    async fn delete_by_runtime(&self, container: &Container) -> Result<()> {
        let runtime = container.runtime_path(&self.handler);
        let mut command = std::process::Command::new(&runtime);
        command.arg("--root").arg(self.handler.root());
        if self.config.cgroup_manager == CgroupManager::Systemd {
            command.arg("--systemd-cgroup");
        }
        command.args(["delete", "--force", container.id()]);
        let output = super::orphan::run(command).await;
        let output = output.map_err(|source| Error::Io { what: "running", path: runtime.clone(), source })?;
        let words = String::from_utf8_lossy(&output.stderr);
        if output.status.success() || words.contains("does not exist") {
            return Ok(());
        }
        let args = format!("delete --force {}", container.id());
        let text = format!("`{} {args}` failed: {}: {}", runtime.display(), words.trim(), output.status);
        Err(Error::Config(text))
    }
}

fn remove_state_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Io { what: "removing", path: dir.to_path_buf(), source })
        }
        _ => Ok(()),
    }
}

fn create_error(error: ClientError) -> Error {
    match error {
        ClientError::Call(call) if call.kind == ErrorKind::DeadlineExceeded => Error::CreateTimeout,
        ClientError::Call(call) => Error::CreateFailed(words(&call)),
        ClientError::Timeout { .. } => Error::CreateTimeout,
        other => other.into(),
    }
}

/// The runtime's own words, or the shim's if the runtime had none.
pub(super) fn words(call: &crate::CallError) -> String {
    if call.runtime_message.is_empty() { call.message.clone() } else { call.runtime_message.clone() }
}
