//! What calls take, in Rust's own types.

use crate::{
    error::{Error, Result},
    types::millis,
};
use pintle_proto::monitor as wire;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// A path on the wire, where text is UTF-8: another one would name another file.
pub(crate) fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| Error::BadPath { path: path.to_path_buf() })
}

fn maybe(path: Option<&PathBuf>) -> Result<String> {
    path.map_or(Ok(String::new()), |path| text(path))
}

/// The OCI runtime and how it is called.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimeOptions {
    /// Path or name of the executable. Empty: `runc`, found in `PATH`.
    pub path: PathBuf,
    /// `--root` of the runtime. Empty: the runtime's default.
    pub root: PathBuf,
    /// Global arguments before the command.
    pub args: Vec<String>,
    /// Pass `--systemd-cgroup`.
    pub systemd_cgroup: bool,
    /// Further arguments of `create` and `restore`.
    pub create_args: Vec<String>,
    /// Further arguments of `exec`.
    pub exec_args: Vec<String>,
}

impl RuntimeOptions {
    fn to_wire(&self) -> Result<wire::RuntimeOptions> {
        Ok(wire::RuntimeOptions {
            path: text(&self.path)?,
            root: text(&self.root)?,
            args: self.args.clone(),
            systemd_cgroup: self.systemd_cgroup,
            create_args: self.create_args.clone(),
            exec_args: self.exec_args.clone(),
            ..Default::default()
        })
    }

    pub(crate) fn from_wire(w: wire::RuntimeOptions) -> Self {
        Self {
            path: w.path.into(),
            root: w.root.into(),
            args: w.args,
            systemd_cgroup: w.systemd_cgroup,
            create_args: w.create_args,
            exec_args: w.exec_args,
        }
    }
}

/// One log of the container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogOptions {
    /// `k8s-file` (CRI format), `json-file` (Docker's: one JSON object per line; a line that has not ended is held by the
    /// shim, up to 16 KiB, and bytes that are not UTF-8 become U+FFFD), `journald` or `none`.
    pub driver: String,
    /// File of a file driver; absolute.
    pub path: PathBuf,
    /// Bytes after which a file is rotated; 0: never.
    pub max_size: u64,
    /// Rotated files kept beside the current one; 0: none, the file is truncated.
    pub max_files: u32,
    /// Bytes over the whole life after which nothing more is logged; 0: no limit.
    pub global_max_size: u64,
    /// Bytes of output that it takes per second, on average and with at most one second's worth at once; 0: no limit.
    pub max_bytes_per_second: u64,
    /// Lines per second, likewise.
    pub max_lines_per_second: u64,
    /// Over the rate: drop lines, counted as `rate-limit` and marked in the log. Otherwise the container waits.
    pub drop_over_rate: bool,
    /// `k8s-file`: a line that the end of its stream cuts off, which is a `P` record, is closed by an empty `F` record, as
    /// readers want it that wait for one. Otherwise, as with conmon, the `P` record is the last.
    pub close_partial: bool,
    /// Tag (journald).
    pub tag: String,
    /// Labels (journald), as `KEY=VALUE`.
    pub labels: Vec<String>,
    /// Container name (journald). Empty: the id.
    pub name: String,
}

impl LogOptions {
    /// A log file in CRI format, never rotated by the shim.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { driver: "k8s-file".into(), path: path.into(), ..Default::default() }
    }

    fn to_wire(&self) -> Result<wire::LogOptions> {
        Ok(wire::LogOptions {
            driver: self.driver.clone(),
            path: text(&self.path)?,
            max_size: self.max_size,
            max_files: self.max_files,
            global_max_size: self.global_max_size,
            max_bytes_per_second: self.max_bytes_per_second,
            max_lines_per_second: self.max_lines_per_second,
            drop_over_rate: self.drop_over_rate,
            close_partial: self.close_partial,
            tag: self.tag.clone(),
            labels: self.labels.clone(),
            name: self.name.clone(),
            ..Default::default()
        })
    }
}

/// What a container is made from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CreateOptions {
    /// OCI bundle; absolute. Must hold `config.json`.
    pub bundle: PathBuf,
    /// The OCI runtime.
    pub runtime: RuntimeOptions,
    /// The logs; none is allowed.
    pub logs: Vec<LogOptions>,
    /// Give the process a stdin that attach clients feed; without it stdin is `/dev/null`.
    pub stdin: bool,
    /// Close stdin when the first client that fed it leaves.
    pub stdin_once: bool,
    /// Columns and rows of the terminal before the first instruction; 80x24 by default.
    pub size: Option<(u16, u16)>,
    /// File that gets the pid of the first process.
    pub pid_file: Option<PathBuf>,
    /// Time the runtime's create may take. Default: 240 s.
    pub timeout: Option<Duration>,
    /// Time that output of left-over processes is drained after the end. Default: the shim's.
    pub drain: Option<Duration>,
    /// Environment of runtime commands, added to the shim's, as `KEY=VALUE`.
    pub env: Vec<String>,
    /// Directory that additionally gets conmon's exit file, named by the id.
    pub exit_dir: Option<PathBuf>,
    /// Command run after the end, when everything is on disk. Empty: none.
    pub exit_command: Vec<String>,
}

impl CreateOptions {
    /// Options for a bundle; everything else by default.
    pub fn new(bundle: impl Into<PathBuf>) -> Self {
        Self { bundle: bundle.into(), ..Default::default() }
    }

    /// Limit of the runtime's create.
    pub(crate) fn limit(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(240))
    }

    pub(crate) fn to_wire(&self) -> Result<wire::CreateRequest> {
        let (columns, rows) = self.size.unwrap_or_default();
        Ok(wire::CreateRequest {
            bundle: text(&self.bundle)?,
            runtime: protobuf::MessageField::some(self.runtime.to_wire()?),
            logs: self.logs.iter().map(LogOptions::to_wire).collect::<Result<_>>()?,
            stdin: self.stdin,
            stdin_once: self.stdin_once,
            columns: columns.into(),
            rows: rows.into(),
            pid_file: maybe(self.pid_file.as_ref())?,
            timeout_ms: self.timeout.map(millis).unwrap_or_default(),
            drain_ms: self.drain.map(millis).unwrap_or_default(),
            env: self.env.clone(),
            exit_dir: maybe(self.exit_dir.as_ref())?,
            exit_command: self.exit_command.clone(),
            ..Default::default()
        })
    }
}

/// A process to run in the container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecOptions {
    /// Id, unique in the container. Empty: the shim makes one.
    pub id: String,
    /// `process` of the OCI runtime specification as JSON. Exactly one of this and `args`.
    pub process_json: String,
    /// Arguments, run with the user, environment and directory of the container's own process.
    pub args: Vec<String>,
    /// `KEY=VALUE` added to the environment, with `args`.
    pub env: Vec<String>,
    /// Working directory, with `args`. Empty: the container's.
    pub cwd: String,
    /// `UID[:GID]`, with `args`. Empty: the container's.
    pub user: String,
    /// Give it a terminal, with `args`; with `process_json` its own field counts.
    pub terminal: bool,
    /// Columns and rows of the terminal.
    pub size: Option<(u16, u16)>,
    /// Connect its stdio to this client. Without it output is discarded.
    pub stdio: bool,
    /// Feed its stdin from this client.
    pub stdin: bool,
    /// File that gets its pid.
    pub pid_file: Option<PathBuf>,
}

impl ExecOptions {
    /// A command whose output comes back to this client.
    pub fn new<S: Into<String>>(args: impl IntoIterator<Item = S>) -> Self {
        Self { args: args.into_iter().map(Into::into).collect(), stdio: true, ..Default::default() }
    }

    pub(crate) fn to_wire(&self) -> Result<wire::ExecRequest> {
        let (columns, rows) = self.size.unwrap_or_default();
        Ok(wire::ExecRequest {
            exec_id: self.id.clone(),
            process_json: self.process_json.clone(),
            args: self.args.clone(),
            env: self.env.clone(),
            cwd: self.cwd.clone(),
            user: self.user.clone(),
            terminal: self.terminal,
            columns: columns.into(),
            rows: rows.into(),
            stdin: self.stdin,
            pid_file: maybe(self.pid_file.as_ref())?,
            ..Default::default()
        })
    }
}

/// A process to run to its end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecSyncOptions {
    /// As in [`ExecOptions`].
    pub process_json: String,
    /// As in [`ExecOptions`].
    pub args: Vec<String>,
    /// As in [`ExecOptions`].
    pub env: Vec<String>,
    /// As in [`ExecOptions`].
    pub cwd: String,
    /// As in [`ExecOptions`].
    pub user: String,
    /// As in [`ExecOptions`].
    pub terminal: bool,
    /// Time until the whole tree of the process is killed. Default: none.
    pub timeout: Option<Duration>,
    /// Bytes kept of stdout and stderr together. Default: 16 MiB.
    pub max_output: Option<u64>,
}

impl ExecSyncOptions {
    /// A command, run as the container's own process is.
    pub fn new<S: Into<String>>(args: impl IntoIterator<Item = S>) -> Self {
        Self { args: args.into_iter().map(Into::into).collect(), ..Default::default() }
    }

    pub(crate) fn to_wire(&self) -> Result<wire::ExecSyncRequest> {
        Ok(wire::ExecSyncRequest {
            process_json: self.process_json.clone(),
            args: self.args.clone(),
            env: self.env.clone(),
            cwd: self.cwd.clone(),
            user: self.user.clone(),
            terminal: self.terminal,
            timeout_ms: self.timeout.map(|t| millis(t).max(1)).unwrap_or_default(),
            max_output: self.max_output.unwrap_or_default(),
            ..Default::default()
        })
    }
}

/// How to checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckpointOptions {
    /// Directory of the images; absolute.
    pub image_path: PathBuf,
    /// CRIU's work directory. Empty: the runtime's default.
    pub work_path: PathBuf,
    /// Leave the container running.
    pub leave_running: bool,
    /// Save open TCP connections.
    pub tcp_established: bool,
    /// Save file locks.
    pub file_locks: bool,
    /// Save connected Unix sockets.
    pub ext_unix_sk: bool,
    /// Save shell jobs.
    pub shell_job: bool,
    /// Parent checkpoint, relative to `image_path`.
    pub parent_path: PathBuf,
    /// Only dump memory ahead of the real checkpoint.
    pub pre_dump: bool,
    /// Further arguments for the runtime.
    pub args: Vec<String>,
}

impl CheckpointOptions {
    pub(crate) fn to_wire(&self) -> Result<wire::CheckpointRequest> {
        Ok(wire::CheckpointRequest {
            image_path: text(&self.image_path)?,
            work_path: text(&self.work_path)?,
            leave_running: self.leave_running,
            tcp_established: self.tcp_established,
            file_locks: self.file_locks,
            ext_unix_sk: self.ext_unix_sk,
            shell_job: self.shell_job,
            parent_path: text(&self.parent_path)?,
            pre_dump: self.pre_dump,
            args: self.args.clone(),
            ..Default::default()
        })
    }
}

/// How to restore.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestoreOptions {
    /// As for create; start is not needed.
    pub create: CreateOptions,
    /// As in [`CheckpointOptions`].
    pub image_path: PathBuf,
    /// As in [`CheckpointOptions`].
    pub work_path: PathBuf,
    /// As in [`CheckpointOptions`].
    pub tcp_established: bool,
    /// As in [`CheckpointOptions`].
    pub file_locks: bool,
    /// As in [`CheckpointOptions`].
    pub ext_unix_sk: bool,
    /// As in [`CheckpointOptions`].
    pub shell_job: bool,
    /// As in [`CheckpointOptions`].
    pub parent_path: PathBuf,
    /// Further arguments for the runtime.
    pub args: Vec<String>,
}

impl RestoreOptions {
    pub(crate) fn to_wire(&self) -> Result<wire::RestoreRequest> {
        Ok(wire::RestoreRequest {
            create: protobuf::MessageField::some(self.create.to_wire()?),
            image_path: text(&self.image_path)?,
            work_path: text(&self.work_path)?,
            tcp_established: self.tcp_established,
            file_locks: self.file_locks,
            ext_unix_sk: self.ext_unix_sk,
            shell_job: self.shell_job,
            parent_path: text(&self.parent_path)?,
            args: self.args.clone(),
            ..Default::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn paths_that_cannot_be_told_are_errors() {
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/a\xff"));
        let error = CreateOptions::new(path).to_wire().unwrap_err();
        assert!(matches!(error, Error::BadPath { .. }), "{error}");
        let mut options = CreateOptions::new("/b");
        options.logs.push(LogOptions::file(path));
        assert!(options.to_wire().is_err());
    }
}
