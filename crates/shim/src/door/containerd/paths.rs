//! Where things lie: the socket, and the files in the bundle.

use std::path::{Path, PathBuf};

use pintle_core::sha256;

/// The directory of sockets unless the daemon names another.
pub(super) const SOCKET_DIR: &str = "/run/containerd/s";
/// Longest path a socket address holds, one byte kept for the terminating zero and one as a margin.
const MAX_SOCKET_PATH: usize = 106;

/// The path of the server's socket. The daemon's tests compute it too, so the derivation is part of the contract.
pub(super) fn socket(dir: &str, address: &str, namespace: &str, id: &str) -> Result<PathBuf, String> {
    let joined = [address, namespace, id].into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join("/");
    let path = Path::new(dir).join(sha256::hex(clean(&joined).as_bytes()));
    if path.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(format!("socket path {} is longer than {MAX_SOCKET_PATH} bytes", path.display()));
    }
    Ok(path)
}

/// Go's `path.Clean`: no empty parts, no `.`, and `..` taken back where there is something to take.
fn clean(path: &str) -> String {
    let absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if absolute => {}
                _ => parts.push(".."),
            },
            other => parts.push(other),
        }
    }
    let joined = parts.join("/");
    if absolute {
        format!("/{joined}")
    } else if joined.is_empty() {
        ".".to_owned()
    } else {
        joined
    }
}

/// Files of a bundle.
#[derive(Debug, Clone)]
pub(super) struct Bundle(pub(super) PathBuf);

impl Bundle {
    /// What the daemon reads to find the server again.
    pub(super) fn address(&self) -> PathBuf {
        self.0.join("address")
    }
    /// The daemon's log FIFO.
    pub(super) fn log(&self) -> PathBuf {
        self.0.join("log")
    }
    /// How the runtime is called, kept for `delete`.
    pub(super) fn options(&self) -> PathBuf {
        self.0.join("options.json")
    }
    /// Pid file of init.
    pub(super) fn init_pid(&self) -> PathBuf {
        self.0.join("init.pid")
    }
    /// Pid file of an exec.
    pub(super) fn exec_pid(&self, exec_id: &str) -> PathBuf {
        self.0.join(format!("{exec_id}.pid"))
    }
    /// The exit of init, kept for `delete`.
    pub(super) fn exit(&self) -> PathBuf {
        self.0.join("exit.json")
    }
    /// Pid and start time of the server, kept for `delete`.
    pub(super) fn shim(&self) -> PathBuf {
        self.0.join("shim.json")
    }
    /// Tells CRI-O that memory ran out.
    pub(super) fn oom(&self) -> PathBuf {
        self.0.join("oom")
    }
    /// Where the root file system is mounted.
    pub(super) fn rootfs(&self) -> PathBuf {
        self.0.join("rootfs")
    }
    /// The specification.
    pub(super) fn config(&self) -> PathBuf {
        self.0.join("config.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_names() {
        let named = socket(SOCKET_DIR, "/run/containerd/containerd.sock", "k8s.io", "abc").unwrap();
        let digest = sha256::hex(b"/run/containerd/containerd.sock/k8s.io/abc");
        assert_eq!(named, Path::new("/run/containerd/s").join(digest));
        let cri_o = socket(SOCKET_DIR, "", "default", "x").unwrap();
        assert_eq!(cri_o, Path::new("/run/containerd/s").join(sha256::hex(b"default/x")));
        assert!(socket(&"/d".repeat(30), "", "default", "x").is_err());
    }

    #[test]
    fn cleaning() {
        assert_eq!(clean("/a//b/./c/../d/"), "/a/b/d");
        assert_eq!(clean("../a/.."), "..");
        assert_eq!(clean("/.."), "/");
        assert_eq!(clean(""), ".");
    }
}
