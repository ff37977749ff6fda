//! The configuration of the Runtime API: the table of runtimes and what stands around it.

mod annotations;
mod features;
mod handler;
mod size;
mod timezone;

pub use annotations::{ALLOWABLE_ANNOTATIONS, disallowed_annotations, filter_annotations};
pub use features::{Extension, Features, LinuxFeatures, MountExtensions};
pub use handler::RuntimeHandler;
pub(crate) use handler::find_in_path;
pub use size::parse_size;
pub use timezone::{TimezoneFile, timezone_file, validate_timezone};

use super::error::{Error, Result};
use crate::default_root;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Handlers by name.
pub type Runtimes = BTreeMap<String, RuntimeHandler>;

/// What manages the cgroups of containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupManager {
    /// systemd; the runtime gets `--systemd-cgroup`.
    #[default]
    Systemd,
    /// The files of the cgroup file system.
    Cgroupfs,
}

/// A kind of workload that pods choose by annotation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Workload {
    /// Annotation that chooses it.
    pub activation_annotation: String,
    /// Prefix of annotations that change its resources for one container.
    pub annotation_prefix: String,
    /// Annotations it allows.
    pub allowed_annotations: Vec<String>,
    /// Its resources where no annotation says otherwise.
    pub resources: WorkloadResources,
}

/// CPU settings of a workload; 0 and empty: not set.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct WorkloadResources {
    /// Relative weight.
    #[serde(alias = "cpushares")]
    pub cpushares: u64,
    /// Time per period, microseconds.
    pub cpuquota: i64,
    /// Length of a period, microseconds.
    pub cpuperiod: u64,
    /// CPUs.
    pub cpuset: String,
}

/// The settings that the Runtime API reads.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Handler that is used where none is named.
    pub default_runtime: String,
    /// The handlers.
    pub runtimes: Runtimes,
    /// Directory of exit files.
    pub container_exits_dir: PathBuf,
    /// Directory of attach sockets of older monitors.
    pub container_attach_socket_dir: PathBuf,
    /// What manages the cgroups of containers.
    pub cgroup_manager: CgroupManager,
    /// Bytes after which a log is rotated by the shim; negative: never.
    pub log_size_max: i64,
    /// Write logs to the journal as well.
    pub log_to_journald: bool,
    /// The runtime gets `--no-pivot`.
    pub no_pivot: bool,
    /// CPUs of what is not a container of a pod: shims in a pod's cgroup.
    pub infra_ctr_cpuset: String,
    /// Workloads by name.
    pub workloads: BTreeMap<String, Workload>,
    /// Seconds; smaller ones than 30 become 30. Nothing here uses it.
    pub ctr_stop_timeout: i64,
    /// Checkpoint and restore.
    pub enable_criu_support: bool,
    /// Time zone of containers: empty, `local`, or a name the zone database knows.
    pub timezone: String,
    /// Old name of `monitor_path`; overrides it in every handler of type `oci`.
    pub conmon: PathBuf,
    /// Old name of `monitor_cgroup`; overrides it in every handler of type `oci`.
    pub conmon_cgroup: String,
    /// Old name of `monitor_env`; overrides it in every handler of type `oci`.
    pub conmon_env: Vec<String>,
    /// Directory of the shims' state directories. Default: [`default_root`].
    pub monitor_state_dir: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            default_runtime: "runc".into(),
            runtimes: BTreeMap::from([("runc".into(), RuntimeHandler::built_in())]),
            container_exits_dir: "/var/run/crio/exits".into(),
            container_attach_socket_dir: "/var/run/crio".into(),
            cgroup_manager: CgroupManager::default(),
            log_size_max: -1,
            log_to_journald: false,
            no_pivot: false,
            infra_ctr_cpuset: String::new(),
            workloads: BTreeMap::new(),
            ctr_stop_timeout: 30,
            enable_criu_support: true,
            timezone: String::new(),
            conmon: PathBuf::new(),
            conmon_cgroup: String::new(),
            conmon_env: Vec::new(),
            monitor_state_dir: default_root(),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    crio: Crio,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Crio {
    runtime: Config,
}

impl Config {
    /// Reads CRI-O's configuration: the table `crio.runtime` of a TOML text. Keys it does not know
    /// are ignored, so whole files may be given; nothing is checked yet, see
    /// [`validate`](Self::validate).
    ///
    /// ```
    /// let text = r#"
    ///     [crio.runtime]
    ///     default_runtime = "crun"
    ///     cgroup_manager = "cgroupfs"
    ///     [crio.runtime.runtimes.crun]
    ///     runtime_path = "/usr/bin/crun"
    ///     runtime_root = "/run/crun"
    /// "#;
    /// let config = pintle_client::oci::Config::from_toml(text).unwrap();
    /// assert!(config.runtimes.contains_key("crun"));
    /// ```
    ///
    /// # Errors
    /// If it is not TOML or a value has the wrong type.
    pub fn from_toml(text: &str) -> Result<Self> {
        let file: File =
            toml::from_str(text).map_err(|e| Error::Config(format!("reading configuration: {e}")))?;
        Ok(file.crio.runtime)
    }

    /// As [`from_toml`](Self::from_toml), from a file.
    ///
    /// # Errors
    /// As there, and if the file cannot be read.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|source| Error::Io { what: "reading", path: path.to_path_buf(), source })?;
        Self::from_toml(&text).map_err(|e| e.context(path.display().to_string()))
    }

    /// Checks everything and fills in what is found by looking: the paths and the features of
    /// runtimes. A handler that is invalid is dropped with a warning, which is returned.
    ///
    /// # Errors
    /// If a global setting, or the default handler, is invalid.
    pub fn validate(&mut self) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        if !(self.log_size_max < 0 || self.log_size_max >= 8192) {
            return Err(Error::Config("log size max should be negative or >= 8192".into()));
        }
        validate_timezone(&self.timezone)?;
        if self.ctr_stop_timeout < 30 {
            warnings.push(format!(
                "Forcing ctr_stop_timeout to lowest possible value of 30s, was {}",
                self.ctr_stop_timeout
            ));
            self.ctr_stop_timeout = 30;
        }
        if self.enable_criu_support && find_in_path("criu").is_none() {
            self.enable_criu_support = false;
        }
        if self.default_runtime.is_empty() {
            self.default_runtime = "runc".into();
            self.runtimes.entry("runc".into()).or_insert_with(RuntimeHandler::built_in);
        }
        if !self.runtimes.contains_key(&self.default_runtime) {
            let name = &self.default_runtime;
            return Err(Error::Config(format!(
                "default_runtime set to \"{name}\", but no runtime entry table [crio.runtime.runtimes.{name}] was found"
            )));
        }
        let systemd = self.cgroup_manager == CgroupManager::Systemd;
        let mut valid = BTreeMap::new();
        for (name, mut handler) in std::mem::take(&mut self.runtimes) {
            self.translate_old_keys(&mut handler);
            match handler.validate(&name, systemd) {
                Ok(()) => {
                    match Features::of_runtime(&handler.runtime_path) {
                        Ok(features) => handler.features = features,
                        Err(error) => tracing::info!("runtime handler {name} has no features: {error}"),
                    }
                    valid.insert(name, handler);
                }
                Err(error) if name == self.default_runtime => {
                    return Err(error.context("runtime validation"));
                }
                Err(error) => {
                    let warning = format!("Runtime handler \"{name}\" is being ignored due to: {error}");
                    tracing::warn!("{warning}");
                    warnings.push(warning);
                }
            }
        }
        self.runtimes = valid;
        Ok(warnings)
    }

    fn translate_old_keys(&self, handler: &mut RuntimeHandler) {
        if handler.kind() != super::RuntimeType::Oci {
            return;
        }
        if !self.conmon.as_os_str().is_empty() {
            handler.monitor_path.clone_from(&self.conmon);
        }
        if !self.conmon_cgroup.is_empty() {
            handler.monitor_cgroup.clone_from(&self.conmon_cgroup);
        }
        if !self.conmon_env.is_empty() {
            handler.monitor_env.clone_from(&self.conmon_env);
        }
    }

    /// Refuses a memory limit (0: none) that is below the least one of a handler.
    ///
    /// # Errors
    /// If it is too low.
    pub fn check_memory_limit(limit: i64, minimum: i64) -> Result<()> {
        if limit != 0 && limit < minimum {
            return Err(Error::Config(format!(
                "set memory limit {limit} too low; should be at least {minimum} bytes"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
