//! Making containers.

use super::{Container, Inner, Meta, stop::Stopping};
use crate::oci::{
    consts::SPOOFED_ANNOTATION,
    cri::{ContainerMetadata, ImageReference, ImageSpec},
    state::ContainerState,
    time::Timestamp,
};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, RwLock},
};

/// Everything a container is made from, made by [`Container::builder`]. Nothing is checked here.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct ContainerBuilder {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) bundle_path: PathBuf,
    pub(super) log_path: PathBuf,
    pub(super) dir: PathBuf,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) crio_annotations: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) image: ImageSpec,
    pub(super) image_name: Option<ImageReference>,
    pub(super) image_id: Option<String>,
    pub(super) some_repo_digest: String,
    pub(super) metadata: ContainerMetadata,
    pub(super) sandbox_id: String,
    pub(super) terminal: bool,
    pub(super) stdin: bool,
    pub(super) stdin_once: bool,
    pub(super) runtime_handler: String,
    pub(super) created: Timestamp,
    pub(super) stop_signal: String,
    pub(super) spoofed: bool,
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty),* $(,)?) => {
        $(
            $(#[$doc])*
            pub fn $name(mut self, $name: impl Into<$type>) -> Self {
                self.$name = $name.into();
                self
            }
        )*
    };
}

impl ContainerBuilder {
    setters! {
        /// Bundle directory; holds `config.json`.
        bundle_path: PathBuf,
        /// CRI log.
        log_path: PathBuf,
        /// Persistent directory; holds `state.json`.
        dir: PathBuf,
        /// Labels.
        labels: BTreeMap<String, String>,
        /// The engine's own annotations.
        crio_annotations: BTreeMap<String, String>,
        /// Kubernetes' annotations.
        annotations: BTreeMap<String, String>,
        /// Some name of the image.
        image_name: Option<ImageReference>,
        /// Id of the image.
        image_id: Option<String>,
        /// Some digest of the image; becomes its reference if not empty.
        some_repo_digest: String,
        /// Name and attempt.
        metadata: ContainerMetadata,
        /// Id of the sandbox.
        sandbox_id: String,
        /// The process has a terminal.
        terminal: bool,
        /// The process has a stdin.
        stdin: bool,
        /// stdin is closed when the first client that fed it leaves.
        stdin_once: bool,
        /// Handler in the runtime table; empty: the default one.
        runtime_handler: String,
        /// Creation time.
        created: Timestamp,
        /// Stop signal of the image, see [`stop_signal`](crate::oci::signal::stop_signal).
        stop_signal: String,
    }

    /// Image as the user asked for it.
    pub fn user_requested_image(mut self, image: impl Into<String>) -> Self {
        self.image = ImageSpec { image: image.into() };
        self
    }

    /// The container.
    pub fn build(self) -> Container {
        let state = ContainerState { created: self.created, ..Default::default() };
        self.with_state(state)
    }

    fn with_state(self, state: ContainerState) -> Container {
        let meta = Meta { sandbox_id: self.sandbox_id.clone(), ..Default::default() };
        Container(Arc::new(Inner {
            description: self,
            meta: RwLock::new(meta),
            state: RwLock::new(Arc::new(state)),
            created: false.into(),
            stopping: Stopping::default(),
            exec_pids: Mutex::default(),
            monitor: RwLock::default(),
        }))
    }
}

impl Container {
    /// A container, described field by field.
    ///
    /// ```
    /// use pintle_client::oci::Container;
    /// let container = Container::builder("1f2e", "web")
    ///     .bundle_path("/run/engine/1f2e")
    ///     .dir("/var/lib/engine/1f2e")
    ///     .log_path("/var/log/engine/1f2e.log")
    ///     .build();
    /// assert_eq!(container.stop_signal(), 15);
    /// ```
    pub fn builder(id: impl Into<String>, name: impl Into<String>) -> ContainerBuilder {
        ContainerBuilder { id: id.into(), name: name.into(), created: Timestamp::now(), ..Default::default() }
    }

    /// A container that exists in storage but not in a runtime: an infra container that was left
    /// out. Operations on it succeed and touch nothing.
    pub fn spoofed(
        id: impl Into<String>,
        name: impl Into<String>,
        labels: BTreeMap<String, String>,
        sandbox_id: impl Into<String>,
        created: Timestamp,
        dir: impl Into<PathBuf>,
    ) -> Self {
        let mut builder = Self::builder(id, name)
            .labels(labels)
            .sandbox_id(sandbox_id)
            .created(created)
            .dir(dir)
            .crio_annotations(BTreeMap::from([(SPOOFED_ANNOTATION.to_owned(), "true".to_owned())]));
        builder.spoofed = true;
        builder.with_state(ContainerState { created, started: created, ..Default::default() })
    }
}
