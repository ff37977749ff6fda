//! OCI bundles: a shared read-only busybox root and a `config.json` that any machine may run.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::require_tool;

/// The root file system that all containers share, read-only: busybox and the links of its applets.
///
/// # Panics
/// When busybox is missing or the tree cannot be made.
pub fn rootfs() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let busybox = require_tool("busybox");
        let meta = fs::metadata(&busybox).expect("busybox");
        let uid = nix::unistd::geteuid();
        let name = format!("pintle-root-{uid}-{}-{}", meta.size(), meta.mtime());
        let root = Path::new("/tmp").join(name);
        if root.join("etc/passwd").exists() {
            return root;
        }
        let tmp = root.with_extension(format!("{}", std::process::id()));
        let _ = fs::remove_dir_all(&tmp);
        for dir in ["bin", "dev", "proc", "sys", "tmp", "etc", "home", "mnt", "run", "var"] {
            fs::create_dir_all(tmp.join(dir)).expect("create a root file system");
        }
        fs::copy(&busybox, tmp.join("bin/busybox")).expect("copy busybox");
        let list = Command::new(&busybox).arg("--list").output().expect("run busybox --list");
        for applet in String::from_utf8_lossy(&list.stdout).split_whitespace() {
            let _ = std::os::unix::fs::symlink("busybox", tmp.join("bin").join(applet));
        }
        fs::write(tmp.join("etc/group"), "root:x:0:\n").expect("write etc/group");
        fs::write(tmp.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").expect("write etc/passwd");
        if let Err(e) = fs::rename(&tmp, &root) {
            // Another test program was faster.
            let _ = fs::remove_dir_all(&tmp);
            assert!(root.join("etc/passwd").exists(), "rename to {}: {e}", root.display());
        }
        root
    })
}

/// A `config.json` in the making.
#[derive(Debug, Clone)]
pub struct Bundle {
    config: Value,
}

impl Bundle {
    /// A container that runs these arguments in the shared root file system.
    pub fn new<S: AsRef<str>>(args: &[S]) -> Self {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        let capabilities = json!([
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FOWNER",
            "CAP_KILL",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_NET_BIND_SERVICE",
            "CAP_SYS_CHROOT"
        ]);
        // Deliberately without rlimits and oomScoreAdj: raising one or lowering the other needs
        // CAP_SYS_RESOURCE, which a CI machine may lack. Without a network namespace: making and
        // unmaking one costs more than all the rest.
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0},
                "args": args,
                "env": ["PATH=/bin", "TERM=xterm", "HOME=/"],
                "cwd": "/",
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities, "permitted": capabilities
                },
                "noNewPrivileges": true
            },
            "root": {"path": rootfs(), "readonly": true},
            "hostname": "pintle",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                 "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "nodev", "mode=1777", "size=65536k"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                 "options": ["nosuid", "noexec", "nodev", "ro"]}
            ],
            "linux": {
                "resources": {},
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]
            }
        });
        Self { config }
    }

    /// A container that runs a script in busybox's shell.
    pub fn sh(script: &str) -> Self {
        Self::new(&["/bin/sh", "-c", script])
    }

    /// With a terminal.
    #[must_use]
    pub fn terminal(self) -> Self {
        self.edit(|c| c["process"]["terminal"] = true.into())
    }

    /// With a memory limit in bytes, swap included.
    #[must_use]
    pub fn memory(self, limit: i64) -> Self {
        self.edit(|c| c["linux"]["resources"]["memory"] = json!({"limit": limit, "swap": limit}))
    }

    /// With one more environment variable, `NAME=value`.
    #[must_use]
    pub fn env(self, variable: &str) -> Self {
        self.edit(|c| c["process"]["env"].as_array_mut().expect("env").push(variable.into()))
    }

    /// With one more bind mount.
    #[must_use]
    pub fn bind(self, source: &Path, destination: &str) -> Self {
        self.edit(|c| {
            c["mounts"].as_array_mut().expect("mounts").push(json!({
                "destination": destination, "type": "bind", "source": source, "options": ["rbind", "rw"]
            }));
        })
    }

    /// In this cgroup.
    #[must_use]
    pub fn cgroup(self, path: &str) -> Self {
        self.edit(|c| c["linux"]["cgroupsPath"] = path.into())
    }

    /// With any other change.
    #[must_use]
    pub fn edit(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    /// The configuration.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Writes it to `dir/bundle/config.json` and returns `dir/bundle`.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, dir: &Path) -> PathBuf {
        let bundle = dir.join("bundle");
        fs::create_dir_all(&bundle).unwrap_or_else(|e| panic!("create {}: {e}", bundle.display()));
        let text = serde_json::to_vec_pretty(&self.config).expect("encode");
        fs::write(bundle.join("config.json"), text).expect("write config.json");
        bundle
    }
}
