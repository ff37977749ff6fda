//! Making an OCI bundle from a directory with a root file system and a command.
//!
//! The configuration asks for nothing that the caller does not have: without root it maps the caller to
//! root of a user namespace, and capabilities that were taken from the caller are not asked for.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::args::{self, usage};
use crate::context::Context;

/// What the configuration is made from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) rootfs: Option<PathBuf>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) terminal: bool,
    pub(crate) read_only: bool,
    pub(crate) private_network: bool,
    pub(crate) mounts: Vec<String>,
    pub(crate) resources: Resources,
}

/// Limits, as of `run` and of `update`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Resources {
    pub(crate) memory: Option<u64>,
    pub(crate) pids: Option<u64>,
    pub(crate) cpus: Option<(i64, u64)>,
}

impl Resources {
    /// `linux.resources` of the OCI specification.
    pub(crate) fn json(&self) -> Value {
        let mut value = json!({});
        if let Some(limit) = self.memory {
            // Without the second number a container would go on in swap.
            value["memory"] = json!({"limit": limit, "swap": limit});
        }
        if let Some(limit) = self.pids {
            value["pids"] = json!({"limit": limit});
        }
        if let Some((quota, period)) = self.cpus {
            value["cpu"] = json!({"quota": quota, "period": period});
        }
        value
    }
}

/// Where the bundle of a container lies that was made here.
pub(crate) fn place(cx: &Context, id: &str) -> PathBuf {
    cx.root.join(".bundles").join(id)
}

/// Removes it, if it was made here.
pub(crate) fn remove(cx: &Context, id: &str) {
    let _ = fs::remove_dir_all(place(cx, id));
    // Only when it is empty.
    let _ = fs::remove_dir(cx.root.join(".bundles"));
}

/// Writes `config.json` and returns the bundle's directory.
pub(crate) fn make(cx: &Context, id: &str, options: &Options) -> Result<PathBuf> {
    let rootfs = options.rootfs.as_deref().unwrap_or(Path::new("/"));
    let rootfs =
        fs::canonicalize(rootfs).with_context(|| format!("root file system {}", rootfs.display()))?;
    if !rootfs.is_dir() {
        bail!("root file system {} is not a directory", rootfs.display());
    }
    let config = config(options, &rootfs, nix::unistd::geteuid().is_root())?;
    let dir = place(cx, id);
    if dir.exists() {
        if cx.dir(id)?.exists() {
            bail!("id {id} is in use");
        }
        remove(cx, id);
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("create {}", dir.display()))?;
    let file = dir.join("config.json");
    fs::write(&file, serde_json::to_vec_pretty(&config)?)
        .with_context(|| format!("write {}", file.display()))?;
    Ok(dir)
}

fn config(options: &Options, rootfs: &Path, root: bool) -> Result<Value> {
    if options.args.is_empty() {
        return Err(usage("the command to run is missing"));
    }
    let capabilities = capabilities();
    let (uid, gid) = user(options.user.as_deref().unwrap_or("0"))?;
    let mut env = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_string()];
    if options.terminal {
        env.push(format!("TERM={}", std::env::var("TERM").unwrap_or_else(|_| "xterm".into())));
    }
    for variable in &options.env {
        if let Some(variable) = args::variable(variable.clone())? {
            let name = variable.split('=').next();
            env.retain(|e| e.split('=').next() != name);
            env.push(variable);
        }
    }
    let mut namespaces = vec![
        json!({"type": "pid"}),
        json!({"type": "ipc"}),
        json!({"type": "uts"}),
        json!({"type": "mount"}),
    ];
    if options.private_network {
        namespaces.push(json!({"type": "network"}));
    }
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if root {
        pts.push("gid=5");
    }
    let sys = if root || options.private_network {
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]})
    } else {
        // A new sysfs of a network namespace that is not ours is refused.
        json!({"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]})
    };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": pts}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"]}),
        sys,
    ];
    for mount in &options.mounts {
        mounts.push(bind(mount)?);
    }
    let mut linux = json!({
        "resources": options.resources.json(),
        "namespaces": namespaces,
        "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug",
            "/proc/scsi", "/sys/firmware"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    });
    if !root {
        linux["namespaces"].as_array_mut().into_iter().for_each(|n| n.push(json!({"type": "user"})));
        let map = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
        linux["uidMappings"] = map(nix::unistd::geteuid().as_raw());
        linux["gidMappings"] = map(nix::unistd::getegid().as_raw());
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": options.terminal,
            "user": {"uid": uid, "gid": gid},
            "args": options.args,
            "env": env,
            "cwd": options.cwd.as_deref().unwrap_or("/"),
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": true,
        },
        "root": {"path": rootfs, "readonly": options.read_only},
        "hostname": options.hostname.as_deref().unwrap_or("pintle"),
        "mounts": mounts,
        "linux": linux,
    }))
}

/// `UID[:GID]`.
fn user(text: &str) -> Result<(u32, u32)> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    match (uid.parse(), gid.parse()) {
        (Ok(uid), Ok(gid)) => Ok((uid, gid)),
        _ => Err(usage(format!("{text} is not UID[:GID]"))),
    }
}

/// `SOURCE:DESTINATION[:ro]`.
fn bind(text: &str) -> Result<Value> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, mode) = match parts.as_slice() {
        [s, d] => (*s, *d, "rw"),
        [s, d, m @ ("ro" | "rw")] => (*s, *d, *m),
        _ => return Err(usage(format!("{text} is not SOURCE:DESTINATION[:ro]"))),
    };
    let source = fs::canonicalize(source).with_context(|| format!("mount source {source}"))?;
    Ok(json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", mode]}))
}

/// The usual capabilities of a container, less those that we do not have ourselves.
fn capabilities() -> Vec<&'static str> {
    const USUAL: &[(u32, &str)] = &[
        (0, "CAP_CHOWN"),
        (1, "CAP_DAC_OVERRIDE"),
        (3, "CAP_FOWNER"),
        (4, "CAP_FSETID"),
        (5, "CAP_KILL"),
        (6, "CAP_SETGID"),
        (7, "CAP_SETUID"),
        (8, "CAP_SETPCAP"),
        (10, "CAP_NET_BIND_SERVICE"),
        (18, "CAP_SYS_CHROOT"),
        (31, "CAP_SETFCAP"),
    ];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounding = status
        .lines()
        .find_map(|l| l.strip_prefix("CapBnd:"))
        .and_then(|v| u64::from_str_radix(v.trim(), 16).ok())
        .unwrap_or(u64::MAX);
    USUAL.iter().filter(|(bit, _)| bounding & (1 << bit) != 0).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options { args: vec!["sh".into()], ..Options::default() }
    }

    #[test]
    fn what_is_asked_for_is_there() {
        let mut o = options();
        o.env = vec!["PATH=/bin".into(), "A=b=c".into()];
        o.user = Some("7:8".into());
        o.resources = Resources { memory: Some(1 << 20), pids: Some(9), cpus: Some((50_000, 100_000)) };
        let c = config(&o, Path::new("/r"), true).unwrap();
        assert_eq!(c["process"]["env"], json!(["PATH=/bin", "A=b=c"]));
        assert_eq!(c["process"]["user"], json!({"uid": 7, "gid": 8}));
        assert_eq!(c["linux"]["resources"]["memory"]["swap"], 1 << 20);
        assert!(c["linux"]["uidMappings"].is_null());
    }

    #[test]
    fn without_root_there_is_a_user_namespace() {
        let c = config(&options(), Path::new("/r"), false).unwrap();
        let spaces = c["linux"]["namespaces"].as_array().unwrap();
        assert!(spaces.contains(&json!({"type": "user"})));
        assert_eq!(c["linux"]["uidMappings"][0]["size"], 1);
        assert!(!c["mounts"][2]["options"].as_array().unwrap().contains(&json!("gid=5")));
    }

    #[test]
    fn mistakes_are_named() {
        let mut o = options();
        o.args.clear();
        assert!(config(&o, Path::new("/r"), true).is_err());
        assert!(user("x").is_err() && bind("/a").is_err() && bind("/:/b:rx").is_err());
        o = options();
        o.env = vec!["=x".into()];
        assert!(config(&o, Path::new("/r"), true).is_err());
    }
}
