//! Containers whose shim is gone.

use super::ShimBackend;
use crate::{
    Monitor,
    oci::{Container, Result, Timestamp, process},
};
use pintle_sys::pidfd::PidFd;
use std::{
    io,
    process::{Command, Output},
    time::Duration,
};
use tokio::time::Instant;

impl ShimBackend {
    /// Gives a container that lost its shim a new one, which takes over what still runs.
    pub(in crate::oci) async fn adopt(&self, container: &Container) -> Result<Monitor> {
        let mut spawn = self.spawn_config(container);
        spawn.args.push("--adopt".into());
        let monitor = Monitor::spawn(spawn).await?;
        container.set_monitor(Some(monitor.clone()));
        Ok(monitor)
    }

    /// Stops a container without a shim: a new shim does it, or signals are sent from here, to the
    /// process that was recorded and to no other.
    pub(super) async fn stop_without_shim(&self, container: &Container, timeout: Duration) -> Result<()> {
        if let Ok(monitor) = self.adopt(container).await {
            if let Ok(exit) = monitor.stop(Some(container.stop_signal()), timeout).await {
                super::status::apply_exit(container, &exit, None);
                return Ok(());
            }
        }
        let Ok((pid, _)) = process::check(&container.state()) else {
            container.update_state(super::finish);
            return Ok(());
        };
        let Ok(init) = PidFd::open(pid) else {
            container.update_state(super::finish);
            return Ok(());
        };
        // The pid may have changed hands between the look and the descriptor: look again.
        if process::check(&container.state()).is_ok() {
            if !timeout.is_zero() {
                let _ = init.signal(container.stop_signal());
            }
            let mut deadline = container.stop_deadline();
            let mut pause = Duration::from_millis(20);
            while init.signal(0).is_ok() && process::check(&container.state()).is_ok() {
                let due = deadline.borrow_and_update().is_none_or(|at| at <= Instant::now());
                if due {
                    let _ = init.signal(libc::SIGKILL);
                    pause = (pause * 2).min(Duration::from_secs(60));
                }
                tokio::time::sleep(if due { pause } else { Duration::from_millis(50) }).await;
            }
        }
        container.update_state(|state| {
            state.status = crate::oci::Status::Stopped;
            state.pid = 0;
            state.exit_code.get_or_insert(255);
            state.finished = Timestamp::now();
        });
        Ok(())
    }
}

/// Runs a command without blocking the caller's runtime.
pub(super) async fn run(mut command: Command) -> io::Result<Output> {
    tokio::task::spawn_blocking(move || command.output()).await.map_err(io::Error::other)?
}
