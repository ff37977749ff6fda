//! The Runtime API that CRI-O's `oci` package offers, over pintle shims.
//!
//! `docs/runtime-api.md` maps every item of that package to its counterpart here.

mod backend;
pub mod config;
mod consts;
mod container;
pub mod cri;
mod error;
pub mod fs;
mod kata;
mod port_forward;
pub mod process;
mod recovery;
mod runtime;
mod shim;
pub mod signal;
mod spec;
mod state;
pub mod stats;
mod store;
mod streams;
mod time;

pub use backend::{Duplex, ExecSyncError, ExecSyncResponse, RuntimeBackend};
pub use config::{CgroupManager, Config, Features, RuntimeHandler, Runtimes};
pub use consts::{
    AttachPipe, CONTAINER_CREATE_TIMEOUT, DEFAULT_RUNTIME_ROOT, EXEC_SYNC_LIMIT, INFRA_CONTAINER_NAME,
    KATA_VIRTUAL_VOLUME_OPTION_NAME, MIN_CONTAINER_CREATE_TIMEOUT, RuntimeType, SPOOFED_ANNOTATION,
};
pub use container::{Container, ContainerBuilder, ManagedNamespace, StopWait};
pub use cri::{ContainerMetadata, ContainerResources, ContainerVolume, IdMap, IdMappings, ImageReference};
pub use error::{Error, Result};
pub use kata::{DmVerity, KataVirtualVolume, NydusImageVolume, VolumeMetadata};
pub use pintle_core::detach::DETACH_KEYS;
pub use recovery::{Recovery, RuntimeEvent};
pub use runtime::{BackendFactory, Runtime};
pub use shim::ShimBackend;
pub use spec::{HugepageLimit, Linux, LinuxCpu, LinuxMemory, LinuxResources, Namespace, Process, Spec};
pub use state::{ContainerState, Status};
pub use stats::{CgroupStats, DiskStats};
pub use store::{ContainerStore, History, MemoryStore};
pub use streams::{Streams, TerminalSize};
pub use time::{ParseTimestampError, Timestamp};
