//! The runtime: handlers, back ends by container, and the operations on them.

use super::{
    CgroupStats, Config, Container, Duplex, Error, ExecSyncResponse, LinuxResources, Result, RuntimeBackend,
    RuntimeHandler, RuntimeType, Runtimes, ShimBackend, Spec, Streams,
    recovery::RuntimeEvent,
    stats::{DiskStats, disk_stats},
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, Weak},
    time::Duration,
};
use tokio::sync::broadcast;

/// Makes the back end of a container of some type.
pub type BackendFactory =
    Arc<dyn Fn(&Container, &RuntimeHandler) -> Result<Arc<dyn RuntimeBackend>> + Send + Sync>;

/// Events kept for a receiver that does not read.
const EVENTS: usize = 1024;

/// Runs containers by the handlers of a configuration. Cheap to clone.
///
/// ```no_run
/// # async fn run() -> pintle_client::oci::Result<()> {
/// use pintle_client::oci::{Config, Container, Runtime, Streams};
/// let mut config = Config::load("/etc/crio/crio.conf".as_ref())?;
/// config.validate()?;
/// let runtime = Runtime::new(config);
/// let container = Container::builder("1f2e", "web").bundle_path("/run/engine/1f2e").build();
/// runtime.create_container(&container, "", false).await?;
/// runtime.start_container(&container).await?;
/// let code = runtime.exec_container(&container, &["true".into()], Streams::default()).await?;
/// assert_eq!(code, 0);
/// runtime.stop_container(&container, std::time::Duration::from_secs(10)).await?;
/// runtime.delete_container(&container).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Runtime(Arc<Inner>);

struct Inner {
    config: Arc<Config>,
    factories: RwLock<HashMap<RuntimeType, BackendFactory>>,
    backends: RwLock<HashMap<String, Arc<dyn RuntimeBackend>>>,
    events: broadcast::Sender<RuntimeEvent>,
}

/// A runtime, if anybody still uses it.
pub(super) struct WeakRuntime(Weak<Inner>);

impl WeakRuntime {
    pub(super) fn upgrade(&self) -> Option<Runtime> {
        self.0.upgrade().map(Runtime)
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl Runtime {
    /// A runtime of this configuration, which is taken as it is; see [`Config::validate`].
    pub fn new(config: Config) -> Self {
        let config = Arc::new(config);
        let shims = config.clone();
        let oci: BackendFactory = Arc::new(move |_, handler| {
            Ok(Arc::new(ShimBackend::new(shims.clone(), handler.clone())) as Arc<dyn RuntimeBackend>)
        });
        Self(Arc::new(Inner {
            config,
            factories: RwLock::new(HashMap::from([(RuntimeType::Oci, oci)])),
            backends: RwLock::default(),
            events: broadcast::channel(EVENTS).0,
        }))
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Has containers of handlers of this type run by other back ends.
    pub fn register_backend(&self, kind: RuntimeType, factory: BackendFactory) {
        self.0.factories.write().unwrap_or_else(PoisonError::into_inner).insert(kind, factory);
    }

    /// The table of handlers.
    pub fn runtimes(&self) -> &Runtimes {
        &self.0.config.runtimes
    }

    /// The handler of this name.
    ///
    /// # Errors
    /// If the name is empty or unknown, or the handler has no path.
    pub fn validate_runtime_handler(&self, name: &str) -> Result<&RuntimeHandler> {
        if name.is_empty() {
            return Err(Error::Config("empty runtime handler".into()));
        }
        let Some(handler) = self.runtimes().get(name) else {
            let names: Vec<&str> = self.runtimes().keys().map(String::as_str).collect();
            let list = names.join(" ");
            let text = format!("failed to find runtime handler {name} from runtime list map[{list}]");
            return Err(Error::Config(text));
        };
        if handler.runtime_path.as_os_str().is_empty() {
            return Err(Error::Config(format!("empty runtime path for runtime handler {name}")));
        }
        Ok(handler)
    }

    /// The handler of this name, or the default one for an empty name.
    pub(super) fn handler(&self, name: &str) -> Result<&RuntimeHandler> {
        self.validate_runtime_handler(if name.is_empty() { &self.0.config.default_runtime } else { name })
    }

    /// Whether privileged containers of a handler do without the host's devices.
    ///
    /// # Errors
    /// If there is no such handler.
    pub fn privileged_without_host_devices(&self, handler: &str) -> Result<bool> {
        Ok(self.handler(handler)?.privileged_without_host_devices)
    }

    /// The executable of a handler for a platform such as `linux/arm64`; empty if it has none of
    /// its own.
    ///
    /// # Errors
    /// If there is no such handler.
    pub fn platform_runtime_path(&self, handler: &str, platform: &str) -> Result<PathBuf> {
        Ok(self.handler(handler)?.platform_runtime_paths.get(platform).cloned().unwrap_or_default())
    }

    /// Annotations that pods of a handler may use.
    ///
    /// # Errors
    /// If there is no such handler.
    pub fn allowed_annotations(&self, handler: &str) -> Result<&[String]> {
        Ok(&self.handler(handler)?.allowed_annotations)
    }

    /// Type of a handler as configured: empty where it is not set.
    ///
    /// # Errors
    /// If there is no such handler.
    pub fn runtime_type(&self, handler: &str) -> Result<&str> {
        Ok(&self.handler(handler)?.runtime_type)
    }

    /// Time zone of containers, as configured.
    pub fn timezone(&self) -> &str {
        &self.0.config.timezone
    }

    /// Least memory of containers of a handler, in bytes; -1 if what is configured is no size.
    ///
    /// # Errors
    /// If there is no such handler.
    pub fn container_min_memory(&self, handler: &str) -> Result<i64> {
        Ok(self.handler(handler)?.min_memory())
    }

    /// Whether a handler's runtime can mount with mapped ids; false if there is no such handler.
    pub fn supports_id_map(&self, handler: &str) -> bool {
        self.handler(handler).is_ok_and(|h| h.features.id_map())
    }

    /// Whether a handler's runtime can make mounts recursively read-only; false if there is no such
    /// handler.
    pub fn supports_rro_mounts(&self, handler: &str) -> bool {
        self.handler(handler).is_ok_and(|h| h.features.rro_mounts())
    }

    fn new_backend(&self, container: &Container) -> Result<Arc<dyn RuntimeBackend>> {
        let handler = self.handler(container.runtime_handler())?;
        let kind = handler.kind();
        let factory = {
            let factories = self.0.factories.read().unwrap_or_else(PoisonError::into_inner);
            factories.get(&kind).cloned()
        };
        let factory = factory.ok_or_else(|| Error::NoBackend(kind.to_string()))?;
        factory(container, handler)
    }

    fn registered(&self, id: &str) -> Option<Arc<dyn RuntimeBackend>> {
        self.0.backends.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn register(&self, id: &str, backend: Arc<dyn RuntimeBackend>) {
        self.0.backends.write().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), backend);
    }

    fn unregister(&self, id: &str) {
        self.0.backends.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// The back end that runs a container; made and registered at the first question.
    ///
    /// # Errors
    /// If its handler is unknown, or of a type no back end is registered for.
    pub fn backend_for(&self, container: &Container) -> Result<Arc<dyn RuntimeBackend>> {
        if let Some(backend) = self.registered(container.id()) {
            return Ok(backend);
        }
        let backend = self.new_backend(container)?;
        let mut backends = self.0.backends.write().unwrap_or_else(PoisonError::into_inner);
        // Another caller may have been faster: all use the same one.
        Ok(backends.entry(container.id().to_owned()).or_insert(backend).clone())
    }

    pub(super) fn shared_config(&self) -> Arc<Config> {
        self.0.config.clone()
    }

    /// A handle that does not keep the runtime alive.
    pub(super) fn downgrade(&self) -> WeakRuntime {
        WeakRuntime(Arc::downgrade(&self.0))
    }

    pub(super) fn event_sender(&self) -> &broadcast::Sender<RuntimeEvent> {
        &self.0.events
    }

    /// Makes a container, with a new back end; see [`RuntimeBackend::create`].
    ///
    /// # Errors
    /// As there.
    pub async fn create_container(
        &self,
        container: &Container,
        cgroup_parent: &str,
        restore: bool,
    ) -> Result<()> {
        let backend = self.new_backend(container)?;
        self.register(container.id(), backend.clone());
        match backend.create(container, cgroup_parent, restore).await {
            Ok(()) => {
                self.watch(container);
                Ok(())
            }
            Err(error) => {
                self.unregister(container.id());
                Err(error)
            }
        }
    }

    /// See [`RuntimeBackend::start`].
    ///
    /// # Errors
    /// As there.
    pub async fn start_container(&self, container: &Container) -> Result<()> {
        self.backend_for(container)?.start(container).await
    }

    /// See [`RuntimeBackend::exec`].
    ///
    /// # Errors
    /// As there.
    pub async fn exec_container(
        &self,
        container: &Container,
        command: &[String],
        streams: Streams,
    ) -> Result<i32> {
        self.backend_for(container)?.exec(container, command, streams).await
    }

    /// See [`RuntimeBackend::exec_sync`].
    ///
    /// # Errors
    /// As there.
    pub async fn exec_sync_container(
        &self,
        container: &Container,
        command: &[String],
        timeout: Duration,
    ) -> Result<Option<ExecSyncResponse>> {
        self.backend_for(container)?.exec_sync(container, command, timeout).await
    }

    /// See [`RuntimeBackend::update`].
    ///
    /// # Errors
    /// As there.
    pub async fn update_container(&self, container: &Container, resources: &LinuxResources) -> Result<()> {
        self.backend_for(container)?.update(container, resources).await
    }

    /// See [`RuntimeBackend::stop`].
    ///
    /// # Errors
    /// As there.
    pub async fn stop_container(&self, container: &Container, timeout: Duration) -> Result<()> {
        self.backend_for(container)?.stop(container, timeout).await
    }

    /// Removes a container and then its back end; see [`RuntimeBackend::delete`].
    ///
    /// # Errors
    /// As there.
    pub async fn delete_container(&self, container: &Container) -> Result<()> {
        let backend = match self.registered(container.id()) {
            Some(backend) => backend,
            None => self.new_backend(container)?,
        };
        backend.delete(container).await?;
        self.unregister(container.id());
        Ok(())
    }

    /// See [`RuntimeBackend::update_status`].
    ///
    /// # Errors
    /// As there.
    pub async fn update_container_status(&self, container: &Container) -> Result<()> {
        self.backend_for(container)?.update_status(container).await
    }

    /// See [`RuntimeBackend::pause`].
    ///
    /// # Errors
    /// As there.
    pub async fn pause_container(&self, container: &Container) -> Result<()> {
        self.backend_for(container)?.pause(container).await
    }

    /// See [`RuntimeBackend::unpause`].
    ///
    /// # Errors
    /// As there.
    pub async fn unpause_container(&self, container: &Container) -> Result<()> {
        self.backend_for(container)?.unpause(container).await
    }

    /// See [`RuntimeBackend::stats`].
    ///
    /// # Errors
    /// As there.
    pub async fn container_stats(&self, container: &Container, cgroup_parent: &str) -> Result<CgroupStats> {
        self.backend_for(container)?.stats(container, cgroup_parent).await
    }

    /// Usage of the file system of a container's mount point.
    ///
    /// # Errors
    /// If nothing is there.
    pub fn disk_stats(&self, container: &Container) -> Result<DiskStats> {
        disk_stats(&container.mount_point())
    }

    /// See [`RuntimeBackend::signal`].
    ///
    /// # Errors
    /// As there.
    pub async fn signal_container(&self, container: &Container, signal: i32) -> Result<()> {
        self.backend_for(container)?.signal(container, signal).await
    }

    /// See [`RuntimeBackend::attach`].
    ///
    /// # Errors
    /// As there.
    pub async fn attach_container(&self, container: &Container, streams: Streams) -> Result<()> {
        self.backend_for(container)?.attach(container, streams).await
    }

    /// See [`RuntimeBackend::port_forward`].
    ///
    /// # Errors
    /// As there.
    pub async fn port_forward_container(
        &self,
        container: &Container,
        netns_path: &Path,
        port: u16,
        stream: Box<dyn Duplex>,
    ) -> Result<()> {
        self.backend_for(container)?.port_forward(container, netns_path, port, stream).await
    }

    /// See [`RuntimeBackend::reopen_log`].
    ///
    /// # Errors
    /// As there.
    pub async fn reopen_container_log(&self, container: &Container) -> Result<()> {
        self.backend_for(container)?.reopen_log(container).await
    }

    /// See [`RuntimeBackend::checkpoint`].
    ///
    /// # Errors
    /// As there.
    pub async fn checkpoint_container(
        &self,
        container: &Container,
        spec: &Spec,
        leave_running: bool,
    ) -> Result<()> {
        self.backend_for(container)?.checkpoint(container, spec, leave_running).await
    }

    /// See [`RuntimeBackend::restore`].
    ///
    /// # Errors
    /// As there.
    pub async fn restore_container(
        &self,
        container: &Container,
        cgroup_parent: &str,
        mount_label: &str,
    ) -> Result<()> {
        self.backend_for(container)?.restore(container, cgroup_parent, mount_label).await?;
        self.watch(container);
        Ok(())
    }

    /// Whether the container's process runs.
    ///
    /// # Errors
    /// Why it does not, or why nobody knows.
    pub async fn is_container_alive(&self, container: &Container) -> Result<()> {
        container.living().await
    }

    /// Whether the container's shim answers.
    ///
    /// # Errors
    /// [`Error::NoMonitor`] if it is gone.
    pub async fn probe_monitor(&self, container: &Container) -> Result<()> {
        if container.is_spoofed() {
            return Ok(());
        }
        let monitor = self.monitor_of(container);
        match monitor.info().await {
            Ok(_) => Ok(()),
            Err(error) if error.is_unreachable() => Err(Error::NoMonitor(container.id().to_owned())),
            Err(error) => Err(error.into()),
        }
    }

    /// Brings the state up to date (trouble is logged) and writes it to disk.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn save_state(&self, container: &Container) -> Result<()> {
        if let Err(error) = self.update_container_status(container).await {
            tracing::warn!("updating the status of container {}: {error}", container.id());
        }
        container.write_state()
    }
}

#[cfg(test)]
mod tests;
