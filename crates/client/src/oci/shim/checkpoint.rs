//! Checkpoint and restore with CRIU, through the runtime.

use super::{ShimBackend, create::words};
use crate::{
    CheckpointOptions, Error as ClientError, RestoreOptions, Status as Live,
    oci::{Container, Error, Result, Spec, Status, Timestamp, config::find_in_path},
};
use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// The oldest CRIU that works.
const MIN_CRIU: (u32, u32) = (3, 16);

impl ShimBackend {
    /// Whether CRIU and the runtime can checkpoint.
    async fn check_support(&self, container: &Container) -> Result<()> {
        check_criu().await.map_err(|error| error.context("check for CRIU"))?;
        let mut command = Command::new(container.runtime_path(&self.handler));
        command.args(["checkpoint", "--help"]);
        let supported = super::orphan::run(command).await.is_ok_and(|output| output.status.success());
        if supported {
            return Ok(());
        }
        let text = "configured runtime does not support checkpoint/restore";
        Err(Error::Unsupported(text.into()))
    }

    pub(super) async fn checkpoint_container(
        &self,
        container: &Container,
        spec: &Spec,
        leave_running: bool,
    ) -> Result<()> {
        self.check_support(container).await?;
        let label = spec.linux.as_ref().map(|l| l.mount_label.as_str()).unwrap_or_default();
        // CRIU's parasite writes to it from inside the container.
        make_log(&container.dir().join("dump.log"), label).await?;
        let options = CheckpointOptions {
            image_path: container.checkpoint_path(),
            work_path: container.dir().to_path_buf(),
            leave_running,
            file_locks: true,
            ..Default::default()
        };
        let monitor = self.monitor(container);
        Self::reached(container, monitor.checkpoint(&options).await).map_err(|error| {
            let runtime = container.runtime_path(&self.handler);
            error.context(format!("running \"{}\" checkpoint failed", runtime.display()))
        })?;
        let now = Timestamp::now();
        container.update_state(|state| {
            state.checkpointed_at = now;
            if !leave_running {
                // CRIU has killed it; that is not how it ended.
                state.status = Status::Stopped;
                state.pid = 0;
                state.exit_code = Some(0);
                state.finished = now;
            }
        });
        Ok(())
    }

    pub(super) async fn restore_container(
        &self,
        container: &Container,
        cgroup_parent: &str,
        mount_label: &str,
    ) -> Result<()> {
        self.check_support(container).await?;
        let inventory = container.checkpoint_path().join("inventory.img");
        if let Err(error) = std::fs::metadata(&inventory) {
            return Err(Error::Unsupported(format!(
                "a complete checkpoint for this container cannot be found, cannot restore: stat {}: {}",
                inventory.display(),
                cause(&error)
            )));
        }
        for name in ["attach", "ctl", "winsz"] {
            let path = container.bundle_path().join(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let id = container.id();
                    return Err(
                        Error::System(error).context(format!("error removing container {id} {name} file"))
                    );
                }
                _ => {}
            }
        }
        self.forget_old_shim(container).await?;
        container.update_state(|state| {
            state.init_pid = 0;
            state.init_start_time.clear();
        });
        make_log(&container.dir().join("restore.log"), mount_label).await?;
        let had_log = container.log_path().exists();
        let monitor = self.start_shim(container, cgroup_parent).await?;
        let options = RestoreOptions {
            create: self.create_options(container),
            image_path: container.checkpoint_path(),
            // Both logs of CRIU in one place.
            work_path: container.dir().to_path_buf(),
            args: lsm_args(&container.spec(), mount_label),
            ..Default::default()
        };
        let made = async {
            let init = monitor.restore(&options).await.map_err(|error| match error {
                ClientError::Call(call) => Error::RestoreFailed(words(&call)),
                other => other.into(),
            })?;
            container.update_state(|state| {
                state.status = Status::Running;
                state.exit_code = None;
                state.finished = Timestamp::ZERO;
                state.started = Timestamp::now();
            });
            container.reset_stopping();
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

    /// The shim of the time before the checkpoint makes room for a new one.
    async fn forget_old_shim(&self, container: &Container) -> Result<()> {
        match self.monitor(container).state().await {
            Err(error) if error.is_unreachable() => Ok(()),
            Err(error) => Err(error.into()),
            Ok(state) if matches!(state.status, Live::Running | Live::Paused) => Err(Error::WrongState {
                id: container.id().to_owned(),
                wanted: "stopped",
                status: container.state().status,
            }),
            Ok(_) => self.delete_container(container).await,
        }
    }
}

fn lsm_args(spec: &Spec, mount_label: &str) -> Vec<String> {
    let mut args = Vec::new();
    let process = spec.process.as_ref().map(|p| p.selinux_label.as_str()).unwrap_or_default();
    if !process.is_empty() {
        args.push(format!("--lsm-profile=selinux:{process}"));
    }
    let mount = spec.linux.as_ref().map(|l| l.mount_label.as_str()).filter(|l| !l.is_empty());
    let mount = mount.unwrap_or(mount_label);
    if !mount.is_empty() {
        args.push(format!("--lsm-mount-context={mount}"));
    }
    args
}

async fn check_criu() -> Result<()> {
    let Some(path) = find_in_path("criu") else {
        return Err(Error::Unsupported("executable file not found in $PATH".into()));
    };
    let mut command = Command::new(path);
    command.arg("--version");
    let output = super::orphan::run(command).await.map_err(Error::System)?;
    let text = String::from_utf8_lossy(&output.stdout);
    match criu_version(&text) {
        Some(version) if version >= MIN_CRIU => Ok(()),
        Some((major, minor)) => {
            let (least, minor_least) = MIN_CRIU;
            let text = format!("version {major}.{minor} is older than {least}.{minor_least}");
            Err(Error::Unsupported(text))
        }
        None => Err(Error::Unsupported("it does not tell its version".into())),
    }
}

fn criu_version(text: &str) -> Option<(u32, u32)> {
    let version = text.lines().find_map(|line| line.strip_prefix("Version:"))?.trim();
    let mut numbers = version.split('.').map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

/// Makes CRIU's log with the label it must have.
async fn make_log(path: &Path, label: &str) -> Result<()> {
    let failed = |source| Error::Io { what: "making", path: path.to_path_buf(), source };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    drop(options.open(path).map_err(failed)?);
    if label.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("chcon");
    command.arg(label).arg(PathBuf::from(path));
    let output = super::orphan::run(command).await.map_err(failed)?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed(io::Error::other(words)));
    }
    Ok(())
}

fn cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criu_versions() {
        assert_eq!(criu_version("Version: 3.17.1\nGitID: v3"), Some((3, 17)));
        assert_eq!(criu_version("Version: 4\n"), Some((4, 0)));
        assert_eq!(criu_version("usage"), None);
    }

    #[test]
    fn checkpoint_labels_become_arguments() {
        let text = r#"{"process":{"selinuxLabel":"p"},"linux":{"mountLabel":"m"}}"#;
        let spec = Spec::from_json(text.as_bytes()).unwrap();
        assert_eq!(lsm_args(&spec, ""), ["--lsm-profile=selinux:p", "--lsm-mount-context=m"]);
        assert_eq!(lsm_args(&Spec::default(), "x"), ["--lsm-mount-context=x"]);
        assert!(lsm_args(&Spec::default(), "").is_empty());
    }
}
