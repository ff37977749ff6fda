//! Runtime handlers: entries of the table of runtimes.

use super::{
    super::{
        consts::{CONTAINER_CREATE_TIMEOUT, DEFAULT_RUNTIME_ROOT, MIN_CONTAINER_CREATE_TIMEOUT, RuntimeType},
        error::{Error, Result},
    },
    annotations::disallowed_annotations,
    features::Features,
    size::parse_size,
};
use crate::default_shim;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Least memory of a container where the handler does not say otherwise.
pub(super) const DEFAULT_MIN_MEMORY: &str = "12MiB";
pub(super) const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One entry of the table of runtimes, `[crio.runtime.runtimes.<name>]`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct RuntimeHandler {
    /// The runtime's executable, or the shim's for type `vm`. Empty: the handler's name, in `PATH`.
    pub runtime_path: PathBuf,
    /// `oci`, `vm` or `pod`; empty: `oci`.
    pub runtime_type: String,
    /// State directory of the runtime. Empty: [`DEFAULT_RUNTIME_ROOT`].
    pub runtime_root: PathBuf,
    /// Configuration file of the runtime, only with `vm`.
    pub runtime_config_path: PathBuf,
    /// Privileged containers do not get the host's devices.
    pub privileged_without_host_devices: bool,
    /// Annotations that pods may use.
    pub allowed_annotations: Vec<String>,
    /// The monitor's executable. Empty: [`default_shim`].
    pub monitor_path: PathBuf,
    /// `pod`, or a slice of systemd.
    pub monitor_cgroup: String,
    /// Environment of the monitor and the runtime, as `KEY=VALUE`.
    pub monitor_env: Vec<String>,
    /// Empty, or `container`.
    pub monitor_exec_cgroup: String,
    /// Executables by platform, such as `linux/arm64`.
    pub platform_runtime_paths: BTreeMap<String, PathBuf>,
    /// The runtime pulls the image, into the guest.
    pub runtime_pull_image: bool,
    /// Least memory of a container, as a size text. Empty: 12 MiB.
    pub container_min_memory: String,
    /// Seconds a create may take. Default: 240; at least 30.
    pub container_create_timeout: Option<u64>,
    /// Do not sync the log at the end of a container.
    pub no_sync_log: bool,
    /// What the runtime says it can do; not configurable.
    #[serde(skip)]
    pub features: Features,
    /// Annotations that pods may not use; not configurable.
    #[serde(skip)]
    pub disallowed_annotations: Vec<&'static str>,
}

impl RuntimeHandler {
    /// The handler that is there without any configuration.
    pub fn built_in() -> Self {
        Self {
            runtime_type: "oci".into(),
            runtime_root: DEFAULT_RUNTIME_ROOT.into(),
            allowed_annotations: vec![
                "io.containers.trace-syscall".into(),
                "io.kubernetes.cri-o.Devices".into(),
            ],
            monitor_cgroup: "system.slice".into(),
            monitor_env: vec![DEFAULT_PATH.into()],
            container_min_memory: DEFAULT_MIN_MEMORY.into(),
            ..Self::default()
        }
    }

    /// Its type; an empty text means [`RuntimeType::Oci`].
    pub fn kind(&self) -> RuntimeType {
        RuntimeType::from_text(&self.runtime_type)
    }

    /// State directory of the runtime.
    pub fn root(&self) -> &Path {
        match self.runtime_root.as_os_str().is_empty() {
            true => Path::new(DEFAULT_RUNTIME_ROOT),
            false => &self.runtime_root,
        }
    }

    /// How long a create may take.
    pub fn create_timeout(&self) -> Duration {
        match self.container_create_timeout {
            None | Some(0) => CONTAINER_CREATE_TIMEOUT,
            Some(seconds) => Duration::from_secs(seconds).max(MIN_CONTAINER_CREATE_TIMEOUT),
        }
    }

    /// Least memory of a container in bytes; -1 if the text is no size.
    pub fn min_memory(&self) -> i64 {
        let text = self.container_min_memory.as_str();
        parse_size(if text.is_empty() { DEFAULT_MIN_MEMORY } else { text }).unwrap_or(-1)
    }

    /// The monitor's executable.
    pub fn shim(&self) -> PathBuf {
        match self.monitor_path.as_os_str().is_empty() {
            true => default_shim(),
            false => self.monitor_path.clone(),
        }
    }

    /// Checks it, fills in what is found by looking and by running the monitor, and replaces a bad
    /// minimum of memory by the default one.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&mut self, name: &str, systemd_cgroup: bool) -> Result<()> {
        let config = |text: String| Err(Error::Config(text));
        if self.runtime_path.as_os_str().is_empty() {
            self.runtime_path = find_in_path(name).ok_or_else(|| {
                Error::Config(format!("\"{name}\" not found in $PATH: executable file not found in $PATH"))
            })?;
        }
        if let Some(cause) = missing(&self.runtime_path) {
            return config(format!("invalid runtime_path for runtime '{name}': {cause}"));
        }
        let kind = self.kind();
        if kind == RuntimeType::Vm && !is_shim_name(&self.runtime_path) {
            return config(format!(
                "invalid runtime_path for runtime '{name}': containerd binary naming pattern is not followed"
            ));
        }
        if !self.runtime_config_path.as_os_str().is_empty() {
            if kind != RuntimeType::Vm {
                return config("runtime_config_path can only be used with the 'vm' runtime type".into());
            }
            if let Some(cause) = missing(&self.runtime_config_path) {
                return config(format!("invalid runtime_config_path for runtime '{name}': {cause}"));
            }
        }
        self.disallowed_annotations = disallowed_annotations(&self.allowed_annotations)?;
        if let RuntimeType::Other(kind) = &kind {
            return config(format!("invalid `runtime_type` \"{kind}\" for runtime \"{name}\""));
        }
        if kind == RuntimeType::Oci {
            self.validate_monitor(systemd_cgroup).map_err(|error| {
                error.context(format!(
                    "monitor fields translation: failed to translate monitor fields for runtime {name}"
                ))
            })?;
        }
        if parse_size(&self.container_min_memory).is_none() {
            if !self.container_min_memory.is_empty() {
                tracing::error!(
                    "runtime handler {name}: `{}` is not a size, the minimum memory is {DEFAULT_MIN_MEMORY}",
                    self.container_min_memory
                );
            }
            self.container_min_memory = DEFAULT_MIN_MEMORY.into();
        }
        Ok(())
    }

    fn validate_monitor(&mut self, systemd_cgroup: bool) -> Result<()> {
        let config = |text: String| Err(Error::Config(text));
        if self.monitor_cgroup.is_empty() && systemd_cgroup {
            self.monitor_cgroup = "system.slice".into();
        }
        let mut shim = self.shim();
        if shim.components().count() == 1 {
            let name = shim.display().to_string();
            shim = find_in_path(&name).ok_or_else(|| {
                Error::Config(format!("\"{name}\" not found in $PATH: executable file not found in $PATH"))
            })?;
        }
        if !shim.is_absolute() {
            return config(format!("monitor path {} is not absolute", shim.display()));
        }
        let run = Command::new(&shim).arg("--version").output();
        let output = run.map_err(|source| Error::Io { what: "running", path: shim.clone(), source })?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_whitespace().find(|word| is_version(word));
        if version.is_none() {
            return config(format!("monitor {} does not tell its version", shim.display()));
        }
        self.monitor_path = shim;
        let cgroup = self.monitor_cgroup.as_str();
        match systemd_cgroup {
            false if !matches!(cgroup, "" | "pod") => {
                config("cgroupfs manager conmon cgroup should be 'pod' or empty".into())
            }
            true if cgroup != "pod" && !cgroup.ends_with(".slice") => {
                config("conmon cgroup should be 'pod' or a systemd slice".into())
            }
            _ => Ok(()),
        }
    }
}

fn is_version(word: &str) -> bool {
    let core = word.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<_> = core.split('.').map(|n| n.parse::<u32>().is_ok()).collect();
    numbers.len() == 3 && numbers.iter().all(|is_number| *is_number)
}

/// The cause if a file does not exist; other trouble shows when it is used.
fn missing(path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Some(format!("stat {}: no such file or directory", path.display()))
        }
        _ => None,
    }
}

/// Whether the file name has the form `containerd-shim-<letters, digits, - or +>`.
fn is_shim_name(path: &Path) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("containerd-shim-"));
    name.is_some_and(|rest| {
        !rest.is_empty() && rest.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '+'))
    })
}

/// The executable of this name in `PATH`.
pub(crate) fn find_in_path(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| {
        std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    })
}
