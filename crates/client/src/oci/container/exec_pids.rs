//! Helper processes that callers run for a container and that must not outlive its stop. (Execs are
//! children of the shim, which ends them by itself.)

use super::Container;
use crate::oci::{Error, Result};
use pintle_sys::pidfd::PidFd;
use std::{sync::Arc, time::Duration};

/// A helper: how to end it, and the process itself, whoever gets its pid later.
#[derive(Debug, Clone)]
pub(super) struct ExecPid {
    should_kill: bool,
    process: Option<Arc<PidFd>>,
}

impl ExecPid {
    /// A pid that is no process (any more) needs no ending.
    pub(super) fn new(pid: i32, should_kill: bool) -> Self {
        Self { should_kill, process: PidFd::open(pid).ok().map(Arc::new) }
    }

    /// Whether nothing more is to be done about it.
    fn signalled(&self) -> bool {
        let Some(process) = &self.process else { return true };
        match process.signal(if self.should_kill { libc::SIGKILL } else { libc::SIGINT }) {
            Ok(()) => true,
            Err(error) => error.raw_os_error() == Some(libc::ESRCH),
        }
    }
}

impl Container {
    /// Registers a helper. With `should_kill` it gets SIGKILL when the container is stopped, else
    /// SIGINT.
    ///
    /// # Errors
    /// [`Error::Stopping`] if the container is being stopped.
    pub fn add_exec_pid(&self, pid: i32, should_kill: bool) -> Result<()> {
        // The table is locked first: a stop that begins later kills what is registered here.
        let mut table = self.exec_pids();
        if self.is_stopping() {
            return Err(Error::Stopping);
        }
        table.insert(pid, ExecPid::new(pid, should_kill));
        Ok(())
    }

    /// Forgets a helper; an unknown one is fine.
    pub fn delete_exec_pid(&self, pid: i32) {
        self.exec_pids().remove(&pid);
    }

    /// Signals every helper until none is left to signal. One that is gone is done, and whoever has
    /// its pid by now is not touched.
    pub async fn kill_exec_pids(&self) {
        let mut left: Vec<ExecPid> = self.exec_pids().values().cloned().collect();
        loop {
            left.retain(|exec| !exec.signalled());
            if left.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
