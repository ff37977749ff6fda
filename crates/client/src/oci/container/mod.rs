//! One container: what it is, what state it is in, how it is being stopped.

mod builder;
mod exec_pids;
mod life;
mod stop;

pub use builder::ContainerBuilder;
pub use stop::StopWait;

use super::{
    config::RuntimeHandler,
    cri::{ContainerMetadata, ContainerResources, ContainerVolume, IdMappings, ImageReference},
    signal,
    spec::Spec,
    state::ContainerState,
    time::Timestamp,
};
use crate::Monitor;
use exec_pids::ExecPid;
use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
};
use stop::Stopping;

/// A namespace that the engine holds for a container.
pub trait ManagedNamespace: Send + Sync {
    /// Path it is bound at.
    fn path(&self) -> &Path;
    /// Lets go of it.
    ///
    /// # Errors
    /// If it cannot be unmounted or removed.
    fn remove(&self) -> io::Result<()>;
}

/// A container. Cheap to clone; clones are the same container.
///
/// Every method returns at once and never waits for an operation under way; those that have to ask
/// the shim are `async`.
#[derive(Clone)]
pub struct Container(Arc<Inner>);

struct Inner {
    description: ContainerBuilder,
    meta: RwLock<Meta>,
    state: RwLock<Arc<ContainerState>>,
    created: AtomicBool,
    stopping: Stopping,
    exec_pids: Mutex<HashMap<i32, ExecPid>>,
    monitor: RwLock<Option<Monitor>>,
}

/// What may change and is not state.
#[derive(Default)]
struct Meta {
    sandbox_id: String,
    spec: Option<Arc<Spec>>,
    resources: Option<Arc<ContainerResources>>,
    volumes: Vec<ContainerVolume>,
    mount_point: PathBuf,
    id_mappings: Option<Arc<IdMappings>>,
    seccomp_profile_path: String,
    pid_namespace: Option<Arc<dyn ManagedNamespace>>,
    runtime_path: PathBuf,
    restore: bool,
    restore_archive_path: PathBuf,
    restore_storage_image_id: Option<String>,
    monitor_cgroups: Vec<PathBuf>,
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl PartialEq for Container {
    /// Whether both are handles on one container.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Container {}

impl Container {
    // A panic while a lock is held cannot leave a half-made value behind: every change is one
    // assignment.
    fn meta(&self) -> RwLockReadGuard<'_, Meta> {
        self.0.meta.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn meta_mut(&self) -> RwLockWriteGuard<'_, Meta> {
        self.0.meta.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn exec_pids(&self) -> MutexGuard<'_, HashMap<i32, ExecPid>> {
        self.0.exec_pids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Id.
    pub fn id(&self) -> &str {
        &self.0.description.id
    }

    /// Name.
    pub fn name(&self) -> &str {
        &self.0.description.name
    }

    /// Bundle directory.
    pub fn bundle_path(&self) -> &Path {
        &self.0.description.bundle_path
    }

    /// Persistent directory.
    pub fn dir(&self) -> &Path {
        &self.0.description.dir
    }

    /// CRI log.
    pub fn log_path(&self) -> &Path {
        &self.0.description.log_path
    }

    /// Labels.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.0.description.labels
    }

    /// Kubernetes' annotations.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.0.description.annotations
    }

    /// The engine's own annotations.
    pub fn crio_annotations(&self) -> &BTreeMap<String, String> {
        &self.0.description.crio_annotations
    }

    /// Name and attempt.
    pub fn metadata(&self) -> &ContainerMetadata {
        &self.0.description.metadata
    }

    /// Id of the sandbox.
    pub fn sandbox_id(&self) -> String {
        self.meta().sandbox_id.clone()
    }

    /// Moves the container to another sandbox.
    pub fn set_sandbox_id(&self, id: impl Into<String>) {
        self.meta_mut().sandbox_id = id.into();
    }

    /// Whether it is the infra container of its sandbox.
    pub fn is_infra(&self) -> bool {
        self.meta().sandbox_id == self.id()
    }

    /// Image as the user asked for it.
    pub fn user_requested_image(&self) -> &str {
        &self.0.description.image.image
    }

    /// Some name of the image.
    pub fn image_name(&self) -> Option<&ImageReference> {
        self.0.description.image_name.as_ref()
    }

    /// Id of the image; none for an infra container.
    pub fn image_id(&self) -> Option<&str> {
        self.0.description.image_id.as_deref()
    }

    /// Handler in the runtime table; empty: the default one.
    pub fn runtime_handler(&self) -> &str {
        &self.0.description.runtime_handler
    }

    /// `<namespace>/<pod>/<container>`, from the labels.
    pub fn description(&self) -> String {
        let label = |key: &str| self.labels().get(key).map(String::as_str).unwrap_or_default();
        format!(
            "{}/{}/{}",
            label("io.kubernetes.pod.namespace"),
            label("io.kubernetes.pod.name"),
            label("io.kubernetes.container.name")
        )
    }

    /// CRI's attributes.
    #[cfg(feature = "cri")]
    pub fn cri_attributes(&self) -> super::cri::ContainerAttributes {
        super::cri::ContainerAttributes {
            id: self.id().to_owned(),
            metadata: self.metadata().clone(),
            labels: self.labels().clone(),
            annotations: self.annotations().clone(),
        }
    }

    /// CRI's view, with the present state.
    #[cfg(feature = "cri")]
    pub fn cri_container(&self) -> super::cri::CriContainer {
        use super::{cri::CriState, state::Status};
        let description = &self.0.description;
        let state = self.state();
        let image_id = description.image_id.clone().unwrap_or_default();
        super::cri::CriContainer {
            id: description.id.clone(),
            pod_sandbox_id: self.sandbox_id(),
            metadata: description.metadata.clone(),
            image: description.image.clone(),
            image_ref: match description.some_repo_digest.as_str() {
                "" => image_id.clone(),
                digest => digest.to_owned(),
            },
            image_id,
            state: match state.status {
                Status::Created => CriState::Created,
                Status::Running | Status::Paused => CriState::Running,
                Status::Stopped => CriState::Exited,
                Status::Creating | Status::Unknown => CriState::Unknown,
            },
            created_at: i64::try_from(description.created.unix_nanos()).unwrap_or_default(),
            labels: description.labels.clone(),
            annotations: description.annotations.clone(),
        }
    }

    /// Where the state is kept: `<dir>/state.json`.
    pub fn state_path(&self) -> PathBuf {
        self.dir().join("state.json")
    }

    /// Where checkpoints go: `<dir>/checkpoint`, on disk because they can be as large as memory.
    pub fn checkpoint_path(&self) -> PathBuf {
        self.dir().join("checkpoint")
    }

    /// Records the configuration and, if it has any, its resources.
    pub fn set_spec(&self, spec: impl Into<Arc<Spec>>) {
        let spec = spec.into();
        self.meta_mut().spec = Some(spec.clone());
        self.set_resources(&spec);
    }

    /// The configuration; an empty one if none was set.
    pub fn spec(&self) -> Arc<Spec> {
        self.meta().spec.clone().unwrap_or_default()
    }

    /// Records the resources of a configuration; one without any changes nothing.
    pub fn set_resources(&self, spec: &Spec) {
        if let Some(resources) = ContainerResources::from_spec(spec) {
            self.meta_mut().resources = Some(Arc::new(resources));
        }
    }

    /// The resources last recorded.
    pub fn resources(&self) -> Option<Arc<ContainerResources>> {
        self.meta().resources.clone()
    }

    /// Records a mount that the user asked for.
    pub fn add_volume(&self, volume: ContainerVolume) {
        self.meta_mut().volumes.push(volume);
    }

    /// The mounts that the user asked for.
    pub fn volumes(&self) -> Vec<ContainerVolume> {
        self.meta().volumes.clone()
    }

    /// Records where the root file system is mounted.
    pub fn set_mount_point(&self, path: impl Into<PathBuf>) {
        self.meta_mut().mount_point = path.into();
    }

    /// Where the root file system is mounted.
    pub fn mount_point(&self) -> PathBuf {
        self.meta().mount_point.clone()
    }

    /// Records the id mappings.
    pub fn set_id_mappings(&self, mappings: IdMappings) {
        self.meta_mut().id_mappings = Some(Arc::new(mappings));
    }

    /// The id mappings.
    pub fn id_mappings(&self) -> Option<Arc<IdMappings>> {
        self.meta().id_mappings.clone()
    }

    /// Records which seccomp profile is in use.
    pub fn set_seccomp_profile_path(&self, path: impl Into<String>) {
        self.meta_mut().seccomp_profile_path = path.into();
    }

    /// The seccomp profile in use; a record only.
    pub fn seccomp_profile_path(&self) -> String {
        self.meta().seccomp_profile_path.clone()
    }

    /// Records a pid namespace that is held for this container.
    pub fn add_managed_pid_namespace(&self, namespace: Arc<dyn ManagedNamespace>) {
        self.meta_mut().pid_namespace = Some(namespace);
    }

    /// Lets go of the pid namespace held for this container, if there is one.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove_managed_pid_namespace(&self) -> super::Result<()> {
        let Some(namespace) = self.meta_mut().pid_namespace.take() else { return Ok(()) };
        namespace.remove().map_err(|error| {
            let context = format!("remove PID namespace for container {}", self.id());
            super::Error::System(error).context(context)
        })
    }

    /// Records the runtime's executable chosen for the platform of the image.
    pub fn set_runtime_path(&self, path: impl Into<PathBuf>) {
        self.meta_mut().runtime_path = path.into();
    }

    /// The runtime's executable: the one chosen for the platform, or the handler's. Every command
    /// uses this one.
    pub fn runtime_path(&self, handler: &RuntimeHandler) -> PathBuf {
        let chosen = self.meta().runtime_path.clone();
        if chosen.as_os_str().is_empty() { handler.runtime_path.clone() } else { chosen }
    }

    /// Whether it is to be restored when it is started.
    pub fn is_restore(&self) -> bool {
        self.meta().restore
    }

    /// Has it restored when it is started.
    pub fn set_restore(&self, restore: bool) {
        self.meta_mut().restore = restore;
    }

    /// Archive to restore from.
    pub fn restore_archive_path(&self) -> PathBuf {
        self.meta().restore_archive_path.clone()
    }

    /// Sets the archive to restore from.
    pub fn set_restore_archive_path(&self, path: impl Into<PathBuf>) {
        self.meta_mut().restore_archive_path = path.into();
    }

    /// Image to restore from.
    pub fn restore_storage_image_id(&self) -> Option<String> {
        self.meta().restore_storage_image_id.clone()
    }

    /// Sets the image to restore from.
    pub fn set_restore_storage_image_id(&self, id: Option<String>) {
        self.meta_mut().restore_storage_image_id = id;
    }

    /// Whether it is only in storage, not in a runtime.
    pub fn is_spoofed(&self) -> bool {
        self.0.description.spoofed
    }

    /// Whether its process has a terminal.
    pub fn terminal(&self) -> bool {
        self.0.description.terminal
    }

    /// Whether its process has a stdin.
    pub fn stdin(&self) -> bool {
        self.0.description.stdin
    }

    /// Whether its stdin is closed when the first client that fed it leaves.
    pub fn stdin_once(&self) -> bool {
        self.0.description.stdin_once
    }

    /// The signal it is stopped with; SIGTERM if the image names none, or an unknown one.
    pub fn stop_signal(&self) -> i32 {
        signal::stop_signal(&self.0.description.stop_signal)
    }

    /// The number of that signal, as text.
    pub fn stop_signal_text(&self) -> String {
        self.stop_signal().to_string()
    }

    /// The state, as a snapshot. Never blocks.
    pub fn state(&self) -> Arc<ContainerState> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same as [`state`](Self::state), which never blocks either.
    pub fn state_cached(&self) -> Arc<ContainerState> {
        self.state()
    }

    /// Changes the state: readers see the one before or the one after.
    pub fn update_state<T>(&self, change: impl FnOnce(&mut ContainerState) -> T) -> T {
        let mut slot = self.0.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut state = ContainerState::clone(&slot);
        let result = change(&mut state);
        *slot = Arc::new(state);
        result
    }

    /// When it was created.
    pub fn created_at(&self) -> Timestamp {
        self.state().created
    }

    /// When it was last checkpointed.
    pub fn checkpointed_at(&self) -> Timestamp {
        self.state().checkpointed_at
    }

    /// Records when it was checkpointed.
    pub fn set_checkpointed_at(&self, time: Timestamp) {
        self.update_state(|state| state.checkpointed_at = time);
    }

    /// Whether its creation is finished.
    pub fn is_created(&self) -> bool {
        self.0.created.load(Ordering::Acquire)
    }

    /// Records that its creation is finished. Not persisted.
    pub fn set_created(&self) {
        self.0.created.store(true, Ordering::Release);
    }

    /// Records a start that failed: it ended when it was created. The status is left alone.
    pub fn set_start_failed(&self, error: Option<&(dyn std::error::Error + 'static)>) {
        self.update_state(|state| {
            state.finished = state.created;
            state.started = state.created;
            if let Some(error) = error {
                state.error = error.to_string();
            }
        });
    }

    /// The shim that serves it, as far as is known.
    pub fn monitor(&self) -> Option<Monitor> {
        self.0.monitor.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records the shim that serves it.
    pub fn set_monitor(&self, monitor: Option<Monitor>) {
        *self.0.monitor.write().unwrap_or_else(PoisonError::into_inner) = monitor;
    }

    /// cgroup its shim was put in; empty if none was made for it. It is kept on disk beside the
    /// state, so that a restarted engine can remove it.
    pub fn monitor_cgroupfs_path(&self) -> PathBuf {
        self.meta().monitor_cgroups.first().cloned().unwrap_or_default()
    }
}

#[cfg(test)]
pub(crate) mod tests;
