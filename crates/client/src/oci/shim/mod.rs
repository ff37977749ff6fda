//! The back end for OCI runtimes: each container under a shim of its own.

mod checkpoint;
mod create;
mod exec;
mod orphan;
mod placement;
mod status;

use super::{
    CgroupStats, Config, Container, Duplex, Error, ExecSyncResponse, LinuxResources, Result, RuntimeBackend,
    RuntimeHandler, Spec, Status, Streams, Timestamp, port_forward,
    stats::{Hierarchies, cgroup_path},
    streams::{InputEnd, copy_input, copy_output, pass_sizes, stream_error},
};
use crate::{Monitor, Stdio};
use async_trait::async_trait;
use pintle_core::detach::Detach;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::io::AsyncWriteExt;

/// Runs containers with an OCI runtime, each under a `pintle-shim`.
///
/// It keeps nothing itself: what it knows is in the container, in the shim and on disk, so one may
/// be made at any time for any container.
#[derive(Debug, Clone)]
pub struct ShimBackend {
    config: Arc<Config>,
    handler: RuntimeHandler,
}

impl ShimBackend {
    /// A back end for containers of this handler.
    pub fn new(config: Arc<Config>, handler: RuntimeHandler) -> Self {
        Self { config, handler }
    }

    /// The shim of a container, whether it lives or not.
    pub(super) fn monitor(&self, container: &Container) -> Monitor {
        container.monitor().unwrap_or_else(|| Monitor::at(self.config.monitor_state_dir.join(container.id())))
    }

    /// As [`Error::NoMonitor`] if the shim is gone.
    fn reached<T>(container: &Container, result: crate::Result<T>) -> Result<T> {
        result.map_err(|error| match error {
            crate::Error::NotRunning { .. } => Error::NoMonitor(container.id().to_owned()),
            other => other.into(),
        })
    }
}

#[async_trait]
impl RuntimeBackend for ShimBackend {
    async fn create(&self, container: &Container, cgroup_parent: &str, restore: bool) -> Result<()> {
        if container.is_spoofed() {
            return Ok(());
        }
        if restore {
            return self.restore_container(container, cgroup_parent, "").await;
        }
        self.create_container(container, cgroup_parent).await
    }

    async fn start(&self, container: &Container) -> Result<()> {
        if container.is_spoofed() {
            return Ok(());
        }
        let started = Self::reached(container, self.monitor(container).start().await)?;
        container.update_state(|state| {
            state.started = started.map_or_else(Timestamp::now, Timestamp::from);
        });
        Ok(())
    }

    async fn exec(&self, container: &Container, command: &[String], streams: Streams) -> Result<i32> {
        if container.is_spoofed() {
            return Ok(0);
        }
        self.exec_container(container, command, streams).await
    }

    async fn exec_sync(
        &self,
        container: &Container,
        command: &[String],
        timeout: Duration,
    ) -> Result<Option<ExecSyncResponse>> {
        if container.is_spoofed() {
            return Ok(None);
        }
        self.exec_sync_container(container, command, timeout).await.map(Some)
    }

    async fn update(&self, container: &Container, resources: &LinuxResources) -> Result<()> {
        if container.is_spoofed() {
            return Ok(());
        }
        let json = serde_json::to_string(resources)?;
        Self::reached(container, self.monitor(container).update(&json).await).map_err(|error| {
            error.context(format!("updating resources for container \"{}\" failed", container.id()))
        })
    }

    async fn stop(&self, container: &Container, timeout: Duration) -> Result<()> {
        if container.is_spoofed() {
            container.update_state(|state| {
                state.status = Status::Stopped;
                state.finished = Timestamp::now();
            });
            return Ok(());
        }
        if container.check_stoppable().is_err_and(|e| e.is_stopped()) {
            return Ok(());
        }
        if container.living().await.is_err() {
            // Whatever the reason: there is nothing to be stopped, and nothing is signalled.
            container.update_state(finish);
            return Ok(());
        }
        container.set_stopping();
        container.shorten_stop(timeout);
        let monitor = self.monitor(container);
        match monitor.stop(Some(container.stop_signal()), timeout).await {
            Ok(exit) => status::apply_exit(container, &exit, None),
            Err(error) if error.is_unreachable() => self.stop_without_shim(container, timeout).await?,
            Err(error) if error.kind() == Some(crate::ErrorKind::FailedPrecondition) => {
                // It ended between the look and the signal.
                container.update_state(finish);
            }
            Err(error) => return Err(error.into()),
        }
        container.kill_exec_pids().await;
        container.set_done_stopping();
        Ok(())
    }

    async fn delete(&self, container: &Container) -> Result<()> {
        if container.is_spoofed() {
            return Ok(());
        }
        self.delete_container(container).await
    }

    async fn update_status(&self, container: &Container) -> Result<()> {
        if container.is_spoofed() {
            return Ok(());
        }
        self.update_container_status(container).await
    }

    async fn pause(&self, container: &Container) -> Result<()> {
        if container.is_spoofed() {
            return Ok(());
        }
        Self::reached(container, self.monitor(container).pause().await)
    }

    async fn unpause(&self, container: &Container) -> Result<()> {
        if container.is_spoofed() {
            return Ok(());
        }
        Self::reached(container, self.monitor(container).resume().await)
    }

    async fn stats(&self, container: &Container, cgroup_parent: &str) -> Result<CgroupStats> {
        if !container.is_spoofed() {
            match self.monitor(container).stats().await {
                Ok(stats) => return Ok(stats.into()),
                Err(error) if error.is_unreachable() => {}
                Err(error) => return Err(error.into()),
            }
        }
        let path = cgroup_path(self.config.cgroup_manager, cgroup_parent, container.id());
        Hierarchies::of_system().read(&path)
    }

    async fn signal(&self, container: &Container, signal: i32) -> Result<()> {
        if container.is_spoofed() {
            return Ok(());
        }
        if !(1..=31).contains(&signal) {
            return Err(Error::UnknownSignal(signal));
        }
        Self::reached(container, self.monitor(container).kill(signal, false).await)
    }

    async fn attach(&self, container: &Container, streams: Streams) -> Result<()> {
        if container.is_spoofed() {
            return Ok(());
        }
        let monitor = self.monitor(container);
        let attached =
            Self::reached(container, monitor.attach(streams.stdin.is_some()).await).map_err(|e| {
                e.context(format!("failed to connect to container {} attach socket", container.id()))
            })?;
        attach(container, attached.stdio, streams).await
    }

    async fn port_forward(
        &self,
        container: &Container,
        netns_path: &Path,
        port: u16,
        stream: Box<dyn Duplex>,
    ) -> Result<()> {
        port_forward::port_forward(container.id(), netns_path, port, stream).await
    }

    async fn reopen_log(&self, container: &Container) -> Result<()> {
        if container.is_spoofed() {
            return Ok(());
        }
        Self::reached(container, self.monitor(container).reopen_log().await).map(drop)
    }

    async fn checkpoint(&self, container: &Container, spec: &Spec, leave_running: bool) -> Result<()> {
        self.checkpoint_container(container, spec, leave_running).await
    }

    async fn restore(&self, container: &Container, cgroup_parent: &str, mount_label: &str) -> Result<()> {
        if container.is_spoofed() {
            return Ok(());
        }
        self.restore_container(container, cgroup_parent, mount_label).await
    }
}

fn finish(state: &mut super::ContainerState) {
    if state.finished.is_zero() {
        state.finished = Timestamp::now();
    }
}

/// Copies until the output ends, the keys to detach were pressed, or an input that was there has
/// ended and the container's stdin is to stay open for others.
async fn attach(container: &Container, stdio: Stdio, streams: Streams) -> Result<()> {
    let Stdio { mut stdin, stdout, stderr, control } = stdio;
    let keeps_stdin = container.stdin() && !container.stdin_once() && !streams.terminal;
    let keys = Detach::new(streams.detach_keys);
    let input = async {
        // `Some`: the session ends with the input.
        let Some(source) = streams.stdin else { return Ok(None) };
        match copy_input(source, &mut stdin, keys).await? {
            InputEnd::Detached => Ok(Some(())),
            InputEnd::Ended if container.stdin_once() => {
                stdin.shutdown().await?;
                Ok(None)
            }
            InputEnd::Ended => Ok(keeps_stdin.then_some(())),
        }
    };
    let output = async {
        tokio::try_join!(copy_output(stdout, streams.stdout), copy_output(stderr, streams.stderr))?;
        // Outputs that nobody wanted end at once; the session lasts as long as the container's.
        control.closed().await;
        std::io::Result::Ok(())
    };
    let sizes = pass_sizes(streams.resize, control.clone());
    tokio::pin!(input, output, sizes);
    let (mut input_done, mut sizes_done) = (false, false);
    let result: std::io::Result<()> = loop {
        tokio::select! {
            result = &mut output => break result,
            result = &mut input, if !input_done => match result {
                Ok(None) => input_done = true,
                Ok(Some(())) => break Ok(()),
                Err(error) => break Err(error),
            },
            () = &mut sizes, if !sizes_done => sizes_done = true,
        }
    };
    result.map_err(stream_error)
}
