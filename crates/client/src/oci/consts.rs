//! Constants of the Runtime API.

use std::{fmt, time::Duration};

/// How long a create may take where the handler does not say otherwise.
pub const CONTAINER_CREATE_TIMEOUT: Duration = Duration::from_secs(240);
/// Shortest limit a handler may set for a create.
pub const MIN_CONTAINER_CREATE_TIMEOUT: Duration = Duration::from_secs(30);
/// Name of a pod's infra container in workload settings.
pub const INFRA_CONTAINER_NAME: &str = "POD";
/// Left side of the mount option that carries an encoded volume.
pub const KATA_VIRTUAL_VOLUME_OPTION_NAME: &str = "io.katacontainers.volume";
/// Annotation of a container that exists in storage but not in a runtime.
pub const SPOOFED_ANNOTATION: &str = "io.kubernetes.cri-o.Spoofed";
/// `--root` of the runtime where the handler does not say otherwise.
pub const DEFAULT_RUNTIME_ROOT: &str = "/run/runc";
/// Bytes of output an exec sync keeps.
pub const EXEC_SYNC_LIMIT: u64 = 16 * 1024 * 1024;

/// Stream numbers of the packet framing of attach sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AttachPipe {
    /// Standard input. Sent by neither side of conmon's protocol, where input is raw.
    Stdin = 1,
    /// First byte of a packet of standard output.
    Stdout = 2,
    /// First byte of a packet of standard error.
    Stderr = 3,
}

/// Which kind of back end runs the containers of a handler.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum RuntimeType {
    /// An OCI runtime under a shim.
    #[default]
    Oci,
    /// A task shim of containerd.
    Vm,
    /// One monitor for a whole pod.
    Pod,
    /// Something else.
    Other(String),
}

impl RuntimeType {
    /// The type of a configured text; an empty one means [`RuntimeType::Oci`].
    pub fn from_text(text: &str) -> Self {
        match text {
            "" | "oci" => Self::Oci,
            "vm" => Self::Vm,
            "pod" => Self::Pod,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Oci => "oci",
            Self::Vm => "vm",
            Self::Pod => "pod",
            Self::Other(text) => text,
        }
    }
}

impl fmt::Display for RuntimeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consts_have_the_known_values() {
        let pipes = [AttachPipe::Stdin, AttachPipe::Stdout, AttachPipe::Stderr];
        assert_eq!(pipes.map(|p| p as u8), [1, 2, 3]);
        assert_eq!(CONTAINER_CREATE_TIMEOUT.as_secs(), 240);
        assert_eq!(INFRA_CONTAINER_NAME, "POD");
        assert_eq!(KATA_VIRTUAL_VOLUME_OPTION_NAME, "io.katacontainers.volume");
    }

    #[test]
    fn consts_runtime_types() {
        assert_eq!(RuntimeType::from_text(""), RuntimeType::Oci);
        for text in ["oci", "vm", "pod", "other"] {
            assert_eq!(RuntimeType::from_text(text).to_string(), text);
        }
    }
}
