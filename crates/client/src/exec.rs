//! A process started in a container, and attach sessions.

use crate::{
    error::Result,
    monitor::Monitor,
    stdio::Stdio,
    types::{Exit, ProcessId},
};
use std::time::Duration;

/// A process started by [`Monitor::exec`]. Dropping it does not end the process.
#[derive(Debug)]
pub struct Exec {
    pub(crate) monitor: Monitor,
    /// Its id.
    pub id: String,
    /// The process.
    pub process: ProcessId,
    /// Its streams, if [`ExecOptions::stdio`](crate::ExecOptions::stdio) asked for them.
    pub stdio: Option<Stdio>,
}

impl Exec {
    /// Waits for its end; `None` waits for ever.
    ///
    /// # Errors
    /// As [`Monitor::wait_exec`].
    pub async fn wait(&self, limit: Option<Duration>) -> Result<Exit> {
        self.monitor.wait_exec(&self.id, limit).await
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// As [`Monitor::kill_exec`].
    pub async fn kill(&self, signal: i32) -> Result<()> {
        self.monitor.kill_exec(&self.id, signal).await
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// As [`Monitor::resize_pty`].
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        self.monitor.resize_pty(&self.id, columns, rows).await
    }

    /// Makes the shim forget it; with `force`, kills it first.
    ///
    /// # Errors
    /// As [`Monitor::delete_exec`].
    pub async fn delete(&self, force: bool) -> Result<Option<Exit>> {
        self.monitor.delete_exec(&self.id, force).await
    }
}

/// An attach session, made by [`Monitor::attach`]. Dropping all of its streams ends it.
#[derive(Debug)]
pub struct Attached {
    /// The process has a terminal: all output is stdout.
    pub terminal: bool,
    /// The streams.
    pub stdio: Stdio,
}
