//! An engine that starts again: finding its containers, and hearing what becomes of them.

use super::{Container, Error, Result, Runtime, RuntimeType, ShimBackend, process};
use crate::{Event, EventKind, Monitor, Status as Live, has_shim, scan, state_dir::exit_record};
use std::collections::HashSet;
use tokio::sync::broadcast;

/// What became of the containers of an engine that starts again.
#[derive(Debug, Default)]
pub struct Recovery {
    /// They live, and their shims answer.
    pub live: Vec<Container>,
    /// They have ended; how is in their state.
    pub dead: Vec<Container>,
    /// Their creation was never finished; nothing is left of them.
    pub cleaned: Vec<Container>,
    /// Their state could not be learnt, and why.
    pub failed: Vec<(Container, Error)>,
    /// Ids of shims of no container that was given.
    pub strangers: Vec<String>,
}

/// Something happened to a container.
#[derive(Debug, Clone)]
pub struct RuntimeEvent {
    /// The container.
    pub container: Container,
    /// What happened.
    pub event: Event,
}

/// What one container turned out to be.
enum Fate {
    Live,
    Dead,
    Cleaned,
}

impl Runtime {
    pub(super) fn monitor_of(&self, container: &Container) -> Monitor {
        let dir = self.config().monitor_state_dir.join(container.id());
        container.monitor().unwrap_or_else(|| Monitor::at(dir))
    }

    /// Events of all containers that were created by or reconnected to this runtime, from now on.
    /// When a container ends, its state is up to date and on disk before its event is heard.
    pub fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.event_sender().subscribe()
    }

    /// Follows a container until it is deleted or its shim is gone.
    pub(super) fn watch(&self, container: &Container) {
        let (Some(monitor), Ok(handle)) = (container.monitor(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        // The task must not keep the runtime alive for as long as containers live.
        let (container, weak) = (container.clone(), self.downgrade());
        handle.spawn(async move {
            let mut events = monitor.events(0);
            while let Ok(Some(event)) = events.next().await {
                let Some(runtime) = weak.upgrade() else { return };
                if event.kind == EventKind::Exited {
                    if let Err(error) = runtime.save_state(&container).await {
                        tracing::debug!("saving the state of container {}: {error}", container.id());
                    }
                }
                // Nobody listening is fine.
                let _ = runtime.event_sender().send(RuntimeEvent { container: container.clone(), event });
            }
        });
    }

    /// Takes up containers that an engine before this one left: live ones by their shims, dead ones
    /// by their exit records, half-created ones (without a state on disk) by removing them. A
    /// container that lives without a shim gets a new one. Nothing waits for a shim that is gone.
    ///
    /// # Errors
    /// If the directory of state directories cannot be read. Trouble with one container is in
    /// [`Recovery::failed`].
    pub async fn reconnect(&self, containers: &[Container]) -> Result<Recovery> {
        let mut recovery = Recovery::default();
        let mut tasks = tokio::task::JoinSet::new();
        for container in containers {
            let (runtime, container) = (self.clone(), container.clone());
            tasks.spawn(async move {
                let fate = runtime.reconnect_one(&container).await;
                (container, fate)
            });
        }
        while let Some(done) = tasks.join_next().await {
            let Ok((container, fate)) = done else { continue };
            match fate {
                Ok(Fate::Live) => recovery.live.push(container),
                Ok(Fate::Dead) => recovery.dead.push(container),
                Ok(Fate::Cleaned) => recovery.cleaned.push(container),
                Err(error) => recovery.failed.push((container, error)),
            }
        }
        let known: HashSet<&str> = containers.iter().map(Container::id).collect();
        for entry in scan(&self.config().monitor_state_dir)? {
            if entry.alive && !known.contains(entry.id.as_str()) {
                recovery.strangers.push(entry.id);
            }
        }
        Ok(recovery)
    }

    async fn reconnect_one(&self, container: &Container) -> Result<Fate> {
        if container.is_spoofed() {
            return Ok(Fate::Live);
        }
        container.load_monitor_cgroups();
        let dir = self.config().monitor_state_dir.join(container.id());
        if has_shim(&dir) {
            container.set_monitor(Some(Monitor::at(&dir)));
        }
        match container.load_state().await {
            Ok(()) => {}
            Err(error) if error.is_not_found() => {
                // The engine ended before it wrote the state of a finished creation.
                self.delete_container(container).await?;
                container.cleanup_monitor_cgroup().await;
                return Ok(Fate::Cleaned);
            }
            Err(error) => return Err(error),
        }
        let known_end = container.state().exit_code.is_some();
        if container.monitor().is_none() && !known_end && exit_record(&dir).is_none() {
            self.adopt_if_alive(container).await;
        }
        self.save_state(container).await?;
        container.set_created();
        let live = match container.monitor() {
            Some(monitor) => {
                let state = monitor.state().await;
                state.is_ok_and(|s| !matches!(s.status, Live::Stopped | Live::Deleted))
            }
            None => process::check(&container.state()).is_ok(),
        };
        if container.monitor().is_some() {
            self.watch(container);
        }
        Ok(if live { Fate::Live } else { Fate::Dead })
    }

    async fn adopt_if_alive(&self, container: &Container) {
        let Ok(handler) = self.handler(container.runtime_handler()) else { return };
        if handler.kind() != RuntimeType::Oci || process::check(&container.state()).is_err() {
            return;
        }
        let backend = ShimBackend::new(self.shared_config(), handler.clone());
        if let Err(error) = backend.adopt(container).await {
            tracing::warn!("container {} lives without a monitor: {error}", container.id());
        }
    }
}
