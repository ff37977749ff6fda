//! The seventeen operations, open to other back ends.

use super::{
    Container, Result,
    spec::{LinuxResources, Spec},
    stats::CgroupStats,
    streams::Streams,
};
use async_trait::async_trait;
use std::{fmt, path::Path, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite};

/// Both ways of a port forward.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What an exec sync gives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecSyncResponse {
    /// Output; all of it with a terminal.
    pub stdout: Vec<u8>,
    /// Error output, or `command timed out`.
    pub stderr: Vec<u8>,
    /// Exit code, 128 + n for signal n, -1 if the time was up.
    pub exit_code: i32,
    /// Output was cut at the limit.
    pub truncated: bool,
}

/// An exec sync that could not run its command.
#[derive(Debug)]
pub struct ExecSyncError {
    /// What the monitor wrote on its standard output; always empty with a shim.
    pub stdout: Vec<u8>,
    /// What the monitor wrote on its standard error: the runtime's own words.
    pub stderr: Vec<u8>,
    /// Always -1.
    pub exit_code: i32,
    /// The cause.
    pub source: Box<super::Error>,
}

impl fmt::Display for ExecSyncError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "command error: {}, stdout: {}, stderr: {}, exit code {}",
            self.source,
            String::from_utf8_lossy(&self.stdout),
            String::from_utf8_lossy(&self.stderr),
            self.exit_code
        )
    }
}

impl std::error::Error for ExecSyncError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

/// What runs containers. [`ShimBackend`](super::ShimBackend) does it with an OCI runtime under a
/// shim; other kinds are registered by [`Runtime::register_backend`](super::Runtime::register_backend).
///
/// Every operation on a spoofed container succeeds and touches nothing, except
/// [`stats`](Self::stats), [`port_forward`](Self::port_forward) and
/// [`checkpoint`](Self::checkpoint). A future that is dropped does not undo what has begun.
#[async_trait]
pub trait RuntimeBackend: Send + Sync {
    /// Makes the container from its bundle; with `restore`, from its checkpoint.
    ///
    /// # Errors
    /// In the runtime's own words; nothing is left behind then.
    async fn create(&self, container: &Container, cgroup_parent: &str, restore: bool) -> Result<()>;

    /// Starts the container's process.
    ///
    /// # Errors
    /// If the runtime fails; the state does not change then.
    async fn start(&self, container: &Container) -> Result<()>;

    /// Runs a command in the container with these streams, to its end; gives its exit code. If the
    /// future is dropped the command is killed.
    ///
    /// # Errors
    /// If the command cannot be run, or a stream fails.
    async fn exec(&self, container: &Container, command: &[String], streams: Streams) -> Result<i32>;

    /// Runs a command in the container and collects its output; `None` for a spoofed container. A
    /// timeout of zero means none.
    ///
    /// # Errors
    /// [`Error::ExecSync`](super::Error::ExecSync) if the command cannot be run. One that overruns its time is no
    /// error.
    async fn exec_sync(
        &self,
        container: &Container,
        command: &[String],
        timeout: Duration,
    ) -> Result<Option<ExecSyncResponse>>;

    /// Changes the limits of the container.
    ///
    /// # Errors
    /// If the runtime fails.
    async fn update(&self, container: &Container, resources: &LinuxResources) -> Result<()>;

    /// Stops the container: its stop signal, SIGKILL after the timeout, and no giving up. A later
    /// call may shorten the timeout of one under way, never lengthen it. If the future is dropped
    /// the stop goes on.
    ///
    /// # Errors
    /// If it cannot be known that the container has stopped.
    async fn stop(&self, container: &Container, timeout: Duration) -> Result<()>;

    /// Removes the container from the runtime, killing what still runs; one that is gone is fine.
    /// Files are the caller's business.
    ///
    /// # Errors
    /// If the runtime fails.
    async fn delete(&self, container: &Container) -> Result<()>;

    /// Brings the state up to date.
    ///
    /// # Errors
    /// If a shim is there and does not answer. A container nobody knows is stopped, with exit code
    /// 255.
    async fn update_status(&self, container: &Container) -> Result<()>;

    /// Freezes the container.
    ///
    /// # Errors
    /// If the runtime fails.
    async fn pause(&self, container: &Container) -> Result<()>;

    /// Thaws the container.
    ///
    /// # Errors
    /// If the runtime fails.
    async fn unpause(&self, container: &Container) -> Result<()>;

    /// Resource usage. `cgroup_parent` is that of the sandbox, needed where no shim can tell.
    ///
    /// # Errors
    /// If the cgroup cannot be read.
    async fn stats(&self, container: &Container, cgroup_parent: &str) -> Result<CgroupStats>;

    /// Sends a signal, 1 to 31, to the container's process.
    ///
    /// # Errors
    /// If there is no such signal, or the process has ended.
    async fn signal(&self, container: &Container, signal: i32) -> Result<()>;

    /// Connects streams to the container's own, until its output ends or its input was detached
    /// from. There is no replay.
    ///
    /// # Errors
    /// If a stream fails.
    async fn attach(&self, container: &Container, streams: Streams) -> Result<()>;

    /// Connects a stream to a TCP port in a network namespace, until both directions have ended.
    ///
    /// # Errors
    /// If nothing listens there, or a stream fails.
    async fn port_forward(
        &self,
        container: &Container,
        netns_path: &Path,
        port: u16,
        stream: Box<dyn Duplex>,
    ) -> Result<()>;

    /// Opens the log anew; nothing is written to the old file after it returns.
    ///
    /// # Errors
    /// If the new file cannot be opened.
    async fn reopen_log(&self, container: &Container) -> Result<()>;

    /// Checkpoints the container to its [`checkpoint_path`](Container::checkpoint_path).
    ///
    /// # Errors
    /// If CRIU or the runtime cannot do it.
    async fn checkpoint(&self, container: &Container, spec: &Spec, leave_running: bool) -> Result<()>;

    /// Restores the container from its checkpoint.
    ///
    /// # Errors
    /// If there is no whole checkpoint, or CRIU or the runtime cannot do it.
    async fn restore(&self, container: &Container, cgroup_parent: &str, mount_label: &str) -> Result<()>;
}
