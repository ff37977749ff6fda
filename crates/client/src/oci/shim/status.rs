//! Bringing the state of a container up to date.

use super::ShimBackend;
use crate::{
    Exit, State, Status as Live,
    oci::{Container, ContainerState, Result, Status, Timestamp, process},
    state_dir::exit_record,
};
use std::time::SystemTime;

impl ShimBackend {
    pub(super) async fn update_container_status(&self, container: &Container) -> Result<()> {
        let state = container.state();
        if state.exit_code.is_some() && !state.finished.is_zero() {
            return Ok(());
        }
        let monitor = self.monitor(container);
        match monitor.state().await {
            Ok(live) => {
                apply(container, &live);
                if live.status == Live::Stopped && !container.spec().has_pid_namespace() {
                    // Without a pid namespace nothing else ends what init has left behind.
                    if let Err(error) = monitor.kill(libc::SIGKILL, true).await {
                        tracing::debug!("killing what container {} left: {error}", container.id());
                    }
                }
                Ok(())
            }
            Err(error) if error.is_unreachable() => {
                if let Some(record) = exit_record(monitor.dir()) {
                    let kills = record.oom.kills;
                    apply_exit(container, &crate::state_dir::exit_of(record), Some(kills > 0));
                } else if process::check(&container.state()).is_err() {
                    // Nobody can know any more.
                    container.update_state(|state| {
                        stop(state);
                        state.exit_code = Some(255);
                        if state.finished.is_zero() {
                            state.finished = Timestamp::now();
                        }
                    });
                }
                // Else it lives without a shim, and stays what it was.
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn stop(state: &mut ContainerState) {
    state.status = Status::Stopped;
    state.pid = 0;
}

fn stamp(time: Option<SystemTime>) -> Option<Timestamp> {
    time.map(Timestamp::from)
}

/// Lays what the shim says over the state.
pub(super) fn apply(container: &Container, live: &State) {
    let spec = container.spec();
    container.update_state(|state| {
        if !spec.oci_version.is_empty() {
            state.oci_version.clone_from(&spec.oci_version);
        }
        if !spec.annotations.is_empty() {
            state.annotations.clone_from(&spec.annotations);
        }
        state.id = container.id().to_owned();
        state.bundle = container.bundle_path().to_string_lossy().into_owned();
        state.oom_killed |= live.oom_kills > 0;
        if let Some(init) = live.process {
            state.pid = init.pid;
            if state.init_pid == 0 {
                state.init_pid = init.pid;
                state.init_start_time = init.start.to_string();
            }
        }
        if let Some(started) = stamp(live.started_at) {
            state.started = started;
        }
        match live.status {
            Live::Creating => state.status = Status::Creating,
            Live::Created => state.status = Status::Created,
            Live::Running => state.status = Status::Running,
            Live::Paused => state.status = Status::Paused,
            Live::Stopped | Live::Deleted => stop(state),
            _ => {}
        }
    });
    if let Some(exit) = &live.exit {
        apply_exit(container, exit, None);
    }
}

/// Records how the container ended; what is known already stays.
pub(super) fn apply_exit(container: &Container, exit: &Exit, oom: Option<bool>) {
    container.update_state(|state| {
        stop(state);
        state.id = container.id().to_owned();
        state.exit_code.get_or_insert(exit.status);
        if state.finished.is_zero() {
            state.finished = stamp(exit.finished_at).unwrap_or_else(Timestamp::now);
        }
        if let (Some(started), true) = (stamp(exit.started_at), state.started.is_zero()) {
            state.started = started;
        }
        state.oom_killed |= oom.unwrap_or(exit.oom_killed);
    });
}
