//! Plain forms of the CRI messages that a container is described with.

use super::spec::Spec;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};

pub use super::spec::HugepageLimit;

/// Name and attempt of a container in its pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct ContainerMetadata {
    /// Name in the pod.
    pub name: String,
    /// How often it was made anew.
    pub attempt: u32,
}

/// The image a container was made from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct ImageSpec {
    /// What the user asked for.
    pub image: String,
}

/// State of a container as CRI names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CriState {
    /// Made, not started.
    Created,
    /// Running or paused.
    Running,
    /// Ended.
    Exited,
    /// Not known.
    #[default]
    Unknown,
}

/// CRI's view of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CriContainer {
    /// Id of the container.
    pub id: String,
    /// Id of its sandbox.
    pub pod_sandbox_id: String,
    /// Name and attempt.
    pub metadata: ContainerMetadata,
    /// What the user asked for.
    pub image: ImageSpec,
    /// Digest of the image, or its id.
    pub image_ref: String,
    /// Id of the image.
    pub image_id: String,
    /// Its state.
    pub state: CriState,
    /// Creation time, nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// CRI's attributes of a container, sent with its statistics.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerAttributes {
    /// Id of the container.
    pub id: String,
    /// Name and attempt.
    pub metadata: ContainerMetadata,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Resources of a container as CRI names them; 0 and empty mean "not set".
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerResources {
    /// Length of a CPU period, microseconds.
    pub cpu_period: i64,
    /// CPU time per period, microseconds.
    pub cpu_quota: i64,
    /// Relative CPU weight.
    pub cpu_shares: i64,
    /// Memory, bytes.
    pub memory_limit_in_bytes: i64,
    /// OOM score adjustment.
    pub oom_score_adj: i64,
    /// CPUs.
    pub cpuset_cpus: String,
    /// Memory nodes.
    pub cpuset_mems: String,
    /// Huge pages.
    pub hugepage_limits: Vec<HugepageLimit>,
    /// cgroup v2 files and values.
    pub unified: BTreeMap<String, String>,
    /// Memory and swap together, bytes.
    pub memory_swap_limit_in_bytes: i64,
}

impl ContainerResources {
    /// The resources of a configuration; `None` if it has no resources section.
    pub fn from_spec(spec: &Spec) -> Option<Self> {
        let from = spec.linux.as_ref()?.resources.as_ref()?;
        let mut to = Self {
            hugepage_limits: from.hugepage_limits.clone(),
            unified: from.unified.clone(),
            ..Default::default()
        };
        if let Some(cpu) = &from.cpu {
            to.cpuset_cpus.clone_from(&cpu.cpus);
            to.cpuset_mems.clone_from(&cpu.mems);
            let signed = |n: Option<u64>| n.map_or(0, |n| i64::try_from(n).unwrap_or(i64::MAX));
            to.cpu_period = signed(cpu.period);
            to.cpu_shares = signed(cpu.shares);
            to.cpu_quota = cpu.quota.unwrap_or_default();
        }
        if let Some(memory) = &from.memory {
            to.memory_limit_in_bytes = memory.limit.unwrap_or_default();
            to.memory_swap_limit_in_bytes = memory.swap.unwrap_or_default();
        }
        let score = spec.process.as_ref().and_then(|p| p.oom_score_adj);
        to.oom_score_adj = score.unwrap_or_default().into();
        Some(to)
    }
}

/// A mount that the user asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerVolume {
    /// Where it is in the container.
    pub container_path: String,
    /// Where it is on the host.
    pub host_path: String,
    /// Not writable.
    pub readonly: bool,
    /// Nothing mounted below it is writable either.
    pub recursive_read_only: bool,
    /// How mounts spread.
    pub propagation: MountPropagation,
    /// Its files get the label of the container.
    pub selinux_relabel: bool,
}

/// How mounts spread; a number in JSON, as in CRI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(into = "i32", try_from = "i32")]
pub enum MountPropagation {
    /// Not at all.
    #[default]
    Private = 0,
    /// From the host into the container.
    HostToContainer = 1,
    /// Both ways.
    Bidirectional = 2,
}

impl From<MountPropagation> for i32 {
    fn from(value: MountPropagation) -> Self {
        value as Self
    }
}

impl TryFrom<i32> for MountPropagation {
    type Error = String;

    fn try_from(value: i32) -> Result<Self, String> {
        Ok(match value {
            0 => Self::Private,
            1 => Self::HostToContainer,
            2 => Self::Bidirectional,
            n => return Err(format!("{n} is not a mount propagation")),
        })
    }
}

/// Mappings of user and group ids between container and host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IdMappings {
    /// User ids.
    pub uids: Vec<IdMap>,
    /// Group ids.
    pub gids: Vec<IdMap>,
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IdMap {
    /// First id in the container.
    pub container_id: u32,
    /// First id on the host.
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// A fully qualified image name: registry, path, and a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageReference(String);

impl FromStr for ImageReference {
    type Err = super::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || super::Error::Config(format!("`{text}` is not a fully qualified image name"));
        let (domain, path) = text.split_once('/').ok_or_else(bad)?;
        let has_domain = domain.contains(['.', ':']) || domain == "localhost";
        let named = path.contains(':') || path.contains('@');
        let clean = !text.contains(char::is_whitespace) && !path.is_empty();
        if has_domain && clean && named { Ok(Self(text.to_owned())) } else { Err(bad()) }
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_json_omits_nothing() {
        let volume = ContainerVolume {
            container_path: "/c".into(),
            propagation: MountPropagation::Bidirectional,
            ..Default::default()
        };
        let text = r#"{"container_path":"/c","host_path":"","readonly":false,"recursive_read_only":false,"propagation":2,"selinux_relabel":false}"#;
        assert_eq!(serde_json::to_string(&volume).unwrap(), text);
        assert_eq!(serde_json::from_str::<ContainerVolume>(text).unwrap(), volume);
        assert!(serde_json::from_str::<ContainerVolume>(r#"{"propagation":3}"#).is_err());
    }

    #[test]
    fn image_references_are_fully_qualified() {
        for good in ["example.com/a:latest", "localhost/a@sha256:1", "r:5000/a/b:1"] {
            assert_eq!(good.parse::<ImageReference>().unwrap().to_string(), good);
        }
        for bad in ["a", "library/a:1", "example.com/a", "example.com/", "example.com/a b:1"] {
            assert!(bad.parse::<ImageReference>().is_err(), "{bad}");
        }
    }
}
