//! The parts of an OCI runtime configuration that the Runtime API reads; the rest is kept as it is.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// An OCI runtime configuration (`config.json`).
///
/// Keys that have no field here survive in `other`, so reading and writing loses nothing.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Version of the specification.
    pub oci_version: String,
    /// The container's process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What only Linux has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linux: Option<Linux>,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Spec {
    /// Reads a configuration.
    ///
    /// # Errors
    /// If it is not JSON or a field has the wrong type.
    pub fn from_json(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }

    /// Whether the container has a pid namespace of its own or shares another container's; without
    /// one it lives in the host's.
    pub fn has_pid_namespace(&self) -> bool {
        let namespaces = self.linux.as_ref().map(|l| l.namespaces.as_slice()).unwrap_or_default();
        namespaces.iter().any(|n| n.kind == "pid")
    }

    /// The process section for an exec: the container's own with other arguments.
    pub fn exec_process(&self, args: &[String], terminal: bool) -> Option<Process> {
        let process = self.process.as_ref()?;
        let mut process = Process { args: args.to_vec(), terminal, ..process.clone() };
        process.other.remove("consoleSize");
        Some(process)
    }
}

/// A process section.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// It gets a terminal.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub terminal: bool,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its OOM score adjustment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Its SELinux label.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selinux_label: String,
    /// Everything else: user, environment, working directory, capabilities, ...
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The Linux section.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    /// Resource limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<LinuxResources>,
    /// Path of the cgroup, in the form of the cgroup manager.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cgroups_path: String,
    /// Namespaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<Namespace>,
    /// SELinux label of mounts.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mount_label: String,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A namespace of the container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Namespace {
    /// Kind: `pid`, `network`, `mount`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// Path of one to join; empty: a new one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
}

/// `linux.resources` of a configuration, and the argument of an update.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LinuxResources {
    /// CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<LinuxCpu>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<LinuxMemory>,
    /// Huge pages.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hugepage_limits: Vec<HugepageLimit>,
    /// cgroup v2 files and values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unified: BTreeMap<String, String>,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// CPU limits.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxCpu {
    /// Relative weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<u64>,
    /// Time per period, microseconds; -1: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<i64>,
    /// Length of a period, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<u64>,
    /// CPUs it may run on.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cpus: String,
    /// Memory nodes it may use.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mems: String,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Memory limits.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LinuxMemory {
    /// Memory, bytes; -1: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// Memory and swap together, bytes; -1: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<i64>,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A limit of huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HugepageLimit {
    /// Size, such as `2MB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_keeps_what_it_does_not_know() {
        let text = r#"{"ociVersion":"1.0.2","root":{"path":"r"},"process":{"args":["a"],"cwd":"/",
            "user":{"uid":1},"terminal":true,"consoleSize":{"height":1,"width":2}},
            "linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/n"}],"seccomp":{"x":1},
            "resources":{"pids":{"limit":5},"cpu":{"shares":2,"idle":1}}}}"#;
        let spec = Spec::from_json(text.as_bytes()).unwrap();
        let before: Value = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_value(&spec).unwrap(), before);
        assert!(spec.has_pid_namespace());
        let process = spec.exec_process(&["b".into()], false).unwrap();
        let process = serde_json::to_value(process).unwrap();
        assert_eq!(process, serde_json::json!({"args":["b"],"cwd":"/","user":{"uid":1}}));
        assert!(!Spec::default().has_pid_namespace());
        assert!(Spec::default().exec_process(&[], false).is_none());
    }
}
