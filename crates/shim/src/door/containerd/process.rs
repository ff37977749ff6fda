//! One process of a container: its init, or an exec.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pintle_core::exit::Exit;
use pintle_core::wall::{MonoTime, WallTime};
use pintle_sys::pidfd::PidFd;
use tokio::sync::watch;

use super::stdio::{Stdio, Wanted};
use crate::engine::reap::{Ended, Reaper};

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Known, not running yet (an init waits in the runtime's hands).
    Created,
    /// The runtime is starting it.
    Starting,
    Running,
    Stopped,
}

/// How and when it ended, the way containerd counts: 128 + signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessExit {
    pub(super) status: u32,
    pub(super) at: WallTime,
    pub(super) how: Exit,
}

impl From<Ended> for ProcessExit {
    fn from(ended: Ended) -> Self {
        Self { status: u32::try_from(ended.exit.shell_code()).unwrap_or(255), at: ended.at, how: ended.exit }
    }
}

/// What changes about a process.
pub(super) struct ProcessState {
    pub(super) phase: Phase,
    pub(super) pid: i32,
    pub(super) pidfd: Option<Arc<PidFd>>,
    pub(super) exit: Option<ProcessExit>,
    /// Starts that failed: whoever waits for the end then waits no longer.
    pub(super) failures: u32,
    /// Rows and columns asked for before there was a terminal.
    pub(super) size: Option<(u16, u16)>,
    /// CloseIO came before there was a stdin.
    pub(super) stdin_closed: bool,
    pub(super) stdio: Option<Arc<Stdio>>,
    /// The process document of an exec, until it runs.
    pub(super) spec: Vec<u8>,
    pub(super) created_at: WallTime,
    pub(super) started_at: Option<WallTime>,
}

/// A process.
pub(super) struct Process {
    /// Empty for init.
    pub(super) exec_id: String,
    pub(super) wanted: Wanted,
    state: Mutex<ProcessState>,
    changed: watch::Sender<()>,
}

impl Process {
    pub(super) fn new(exec_id: impl Into<String>, wanted: Wanted, spec: Vec<u8>) -> Self {
        let state = ProcessState {
            phase: Phase::Created,
            pid: 0,
            pidfd: None,
            exit: None,
            failures: 0,
            size: None,
            stdin_closed: false,
            stdio: None,
            spec,
            created_at: super::logger::now(),
            started_at: None,
        };
        Self { exec_id: exec_id.into(), wanted, state: Mutex::new(state), changed: watch::channel(()).0 }
    }

    /// The state, for a moment: never hold it over an await.
    pub(super) fn lock(&self) -> MutexGuard<'_, ProcessState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn phase(&self) -> Phase {
        self.lock().phase
    }

    pub(super) fn stdio(&self) -> Option<Arc<Stdio>> {
        self.lock().stdio.clone()
    }

    /// Notes the pid that a runtime started after `since` gave.
    pub(super) fn set_pid(&self, pid: i32, reaper: &Reaper, since: MonoTime) {
        let mut state = self.lock();
        state.pid = pid;
        // Where the process is gone already, nothing is to be signalled.
        state.pidfd = reaper.hold(pid, since).ok().map(Arc::new);
    }

    /// Tells those who wait that something has changed.
    pub(super) fn notify(&self) {
        self.changed.send_replace(());
    }

    /// Waits for the end. `None`: the process could not be started.
    pub(super) async fn wait(&self) -> Option<ProcessExit> {
        let mut changed = self.changed.subscribe();
        let failures = self.lock().failures;
        loop {
            {
                let state = self.lock();
                if state.phase == Phase::Stopped {
                    return state.exit;
                }
                if state.failures != failures {
                    return None;
                }
            }
            if changed.changed().await.is_err() {
                return None;
            }
        }
    }
}
