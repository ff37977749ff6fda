//! The options of a runtime in the encodings containerd and CRI-O send them in.

use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use pintle_core::flat_toml::{self, Value};
use pintle_proto::containerd::{linux_runc, runc_options, runtime_options, unpack};
use protobuf::well_known_types::any::Any;
use serde::{Deserialize, Serialize};

use super::error::{Result, TaskError};

/// Runtime state below this directory, one directory per namespace in it.
const DEFAULT_ROOT: &str = "/run/containerd/runc";

/// How the runtime is called. Kept in the bundle for `delete`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Options {
    /// Name or path of the runtime.
    pub(super) binary: String,
    /// State directory without the namespace.
    pub(super) root: String,
    pub(super) systemd_cgroup: bool,
    pub(super) no_pivot: bool,
    pub(super) no_new_keyring: bool,
    /// Cgroup the shim moves to.
    pub(super) shim_cgroup: String,
    /// Owner of the container's ends of its pipes.
    pub(super) io_uid: u32,
    pub(super) io_gid: u32,
    pub(super) criu_image_path: String,
    pub(super) criu_work_path: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            binary: "runc".to_owned(),
            root: DEFAULT_ROOT.to_owned(),
            systemd_cgroup: false,
            no_pivot: false,
            no_new_keyring: false,
            shim_cgroup: String::new(),
            io_uid: 0,
            io_gid: 0,
            criu_image_path: String::new(),
            criu_work_path: String::new(),
        }
    }
}

/// Longest table of options, in bytes.
const TABLE_MAX: u64 = 1 << 20;

impl Options {
    /// The state directory given to the runtime.
    pub(super) fn state_root(&self, namespace: &str) -> String {
        Path::new(&self.root).join(namespace).to_string_lossy().into_owned()
    }

    /// Takes what an `Any` says. `Ok(None)`: its type is not known here.
    pub(super) fn decode(any: &Any) -> Result<Option<Self>> {
        if any.type_url.is_empty() && any.value.is_empty() {
            return Ok(Some(Self::default()));
        }
        let bad = |e: protobuf::Error| TaskError::invalid(format!("options {}: {e}", any.type_url));
        let mut out = Self::default();
        if let Some(o) = unpack::<runc_options::Options>(any) {
            let o = o.map_err(bad)?;
            set(&mut out.binary, o.binary_name);
            set(&mut out.root, o.root);
            out.systemd_cgroup = o.systemd_cgroup;
            out.no_pivot = o.no_pivot_root;
            out.no_new_keyring = o.no_new_keyring;
            out.shim_cgroup = o.shim_cgroup;
            (out.io_uid, out.io_gid) = (o.io_uid, o.io_gid);
            out.criu_image_path = o.criu_image_path;
            out.criu_work_path = o.criu_work_path;
        } else if let Some(o) = unpack::<linux_runc::CreateOptions>(any) {
            let o = o.map_err(bad)?;
            out.no_pivot = o.no_pivot_root;
            out.no_new_keyring = o.no_new_keyring;
            out.shim_cgroup = o.shim_cgroup;
            (out.io_uid, out.io_gid) = (o.io_uid, o.io_gid);
            out.criu_image_path = o.criu_image_path;
            out.criu_work_path = o.criu_work_path;
        } else if let Some(o) = unpack::<runtime_options::Options>(any) {
            let o = o.map_err(bad)?;
            let text = if !o.config_body.is_empty() {
                String::from_utf8(o.config_body)
                    .map_err(|_| TaskError::invalid("options: config body is not UTF-8"))?
            } else if !o.config_path.is_empty() {
                read_table(&o.config_path)
                    .map_err(|e| TaskError::invalid(format!("options: read {}: {e}", o.config_path)))?
            } else {
                String::new()
            };
            out.apply_table(&text);
        } else {
            return Ok(None);
        }
        Ok(Some(out))
    }

    /// Keys the way containerd's own configuration spells them.
    fn apply_table(&mut self, text: &str) {
        let id = |n: i64| u32::try_from(n).unwrap_or(0);
        for (key, value) in flat_toml::pairs(text) {
            match (key.as_str(), value) {
                ("BinaryName", Value::Text(v)) => set(&mut self.binary, v),
                ("Root", Value::Text(v)) => set(&mut self.root, v),
                ("SystemdCgroup", Value::Bool(v)) => self.systemd_cgroup = v,
                ("NoPivotRoot", Value::Bool(v)) => self.no_pivot = v,
                ("NoNewKeyring", Value::Bool(v)) => self.no_new_keyring = v,
                ("ShimCgroup", Value::Text(v)) => self.shim_cgroup = v,
                ("IoUid", Value::Number(v)) => self.io_uid = id(v),
                ("IoGid", Value::Number(v)) => self.io_gid = id(v),
                ("CriuImagePath", Value::Text(v)) => self.criu_image_path = v,
                ("CriuWorkPath", Value::Text(v)) => self.criu_work_path = v,
                // Keys of other shims that share the file.
                _ => {}
            }
        }
    }

    /// The systemd driver also where the options cannot say so: the specification names a slice.
    pub(super) fn look_at_spec(&mut self, cgroups_path: &str) {
        let mut parts = cgroups_path.split(':');
        let slice = parts.next().is_some_and(|s| s.ends_with(".slice") && !s.contains('/'));
        if slice && parts.clone().count() == 2 {
            self.systemd_cgroup = true;
        }
    }
}

/// Reads a table of options; what is no file of a sane size cannot hold the shim up or fill its memory.
fn read_table(path: &str) -> std::io::Result<String> {
    let mut file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut text = String::new();
    (&mut file).take(TABLE_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > TABLE_MAX {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

fn set(to: &mut String, value: String) {
    if !value.is_empty() {
        *to = value;
    }
}

/// Options of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CheckpointOptions {
    /// The container ends with it.
    pub(super) exit: bool,
    pub(super) open_tcp: bool,
    pub(super) unix_sockets: bool,
    pub(super) terminal: bool,
    pub(super) file_locks: bool,
    pub(super) empty_namespaces: Vec<String>,
    pub(super) cgroups_mode: String,
    pub(super) image_path: String,
    pub(super) work_path: String,
    pub(super) parent_path: String,
}

impl CheckpointOptions {
    /// Takes what an `Any` says.
    pub(super) fn decode(any: &Any) -> Result<Self> {
        if any.type_url.is_empty() && any.value.is_empty() {
            return Ok(Self::default());
        }
        let bad = |e: protobuf::Error| TaskError::invalid(format!("options {}: {e}", any.type_url));
        if let Some(o) = unpack::<runc_options::CheckpointOptions>(any) {
            let o = o.map_err(bad)?;
            return Ok(Self {
                exit: o.exit,
                open_tcp: o.open_tcp,
                unix_sockets: o.external_unix_sockets,
                terminal: o.terminal,
                file_locks: o.file_locks,
                empty_namespaces: o.empty_namespaces,
                cgroups_mode: o.cgroups_mode,
                image_path: o.image_path,
                work_path: o.work_path,
                parent_path: o.parent_path,
            });
        }
        if let Some(o) = unpack::<linux_runc::CheckpointOptions>(any) {
            let o = o.map_err(bad)?;
            return Ok(Self {
                exit: o.exit,
                open_tcp: o.open_tcp,
                unix_sockets: o.external_unix_sockets,
                terminal: o.terminal,
                file_locks: o.file_locks,
                empty_namespaces: o.empty_namespaces,
                cgroups_mode: o.cgroups_mode,
                image_path: o.image_path,
                work_path: o.work_path,
                parent_path: String::new(),
            });
        }
        Err(TaskError::invalid(format!("unknown checkpoint options {}", any.type_url)))
    }

    /// The runtime's flags for them.
    pub(super) fn flags(&self) -> Vec<Vec<u8>> {
        let mut out: Vec<Vec<u8>> = Vec::new();
        let mut push = |on: bool, name: &str| {
            if on {
                out.push(name.as_bytes().to_vec());
            }
        };
        push(self.open_tcp, "--tcp-established");
        push(self.unix_sockets, "--ext-unix-sk");
        push(self.terminal, "--shell-job");
        push(self.file_locks, "--file-locks");
        for (name, value) in
            [("--parent-path", &self.parent_path), ("--manage-cgroups-mode", &self.cgroups_mode)]
        {
            if !value.is_empty() {
                out.push(name.as_bytes().to_vec());
                out.push(value.as_bytes().to_vec());
            }
        }
        for namespace in &self.empty_namespaces {
            out.push(b"--empty-ns".to_vec());
            out.push(namespace.as_bytes().to_vec());
        }
        out
    }
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(input: &[u8]) {
    use protobuf::Message as _;
    if let Ok(any) = Any::parse_from_bytes(input) {
        let _ = Options::decode(&any);
        if let Ok(options) = CheckpointOptions::decode(&any) {
            let _ = options.flags();
        }
    }
    Options::default().apply_table(&String::from_utf8_lossy(input));
}

#[cfg(test)]
mod tests {
    use pintle_proto::containerd::pack;

    use super::*;

    #[test]
    fn three_encodings() {
        let runc = runc_options::Options {
            binary_name: "crun".into(),
            root: "/r".into(),
            systemd_cgroup: true,
            io_uid: 7,
            ..Default::default()
        };
        let o = Options::decode(&pack(&runc)).unwrap().unwrap();
        assert_eq!((o.binary.as_str(), o.systemd_cgroup, o.io_uid), ("crun", true, 7));
        assert_eq!(o.state_root("ns"), "/r/ns");

        let old = linux_runc::CreateOptions {
            no_pivot_root: true,
            criu_image_path: "/i".into(),
            ..Default::default()
        };
        let mut any = pack(&old);
        any.type_url = format!("types.containerd.io/{}", any.type_url);
        let o = Options::decode(&any).unwrap().unwrap();
        assert_eq!((o.no_pivot, o.criu_image_path.as_str(), o.root.as_str()), (true, "/i", DEFAULT_ROOT));

        let table = runtime_options::Options {
            config_body: b"BinaryName = \"/bin/r\"\nSystemdCgroup = true\n".to_vec(),
            ..Default::default()
        };
        let o = Options::decode(&pack(&table)).unwrap().unwrap();
        assert_eq!((o.binary.as_str(), o.systemd_cgroup), ("/bin/r", true));

        let other = Any { type_url: "x.y.Z".into(), ..Default::default() };
        assert_eq!(Options::decode(&other).unwrap(), None);
        let broken =
            Any { type_url: "containerd.runc.v1.Options".into(), value: vec![0xff], ..Default::default() };
        assert!(Options::decode(&broken).is_err());
    }

    #[test]
    fn slices() {
        for (path, systemd) in
            [("kubepods.slice:cri-containerd:x", true), ("/a/b.slice", false), ("a:b:c", false), ("", false)]
        {
            let mut o = Options::default();
            o.look_at_spec(path);
            assert_eq!(o.systemd_cgroup, systemd, "{path}");
        }
    }

    #[test]
    fn old_and_new_checkpoint_options_differ_in_two_numbers() {
        let old = linux_runc::CheckpointOptions { work_path: "/w".into(), exit: true, ..Default::default() };
        let new =
            runc_options::CheckpointOptions { work_path: "/w".into(), exit: true, ..Default::default() };
        assert_eq!(CheckpointOptions::decode(&pack(&old)).unwrap().work_path, "/w");
        assert_eq!(CheckpointOptions::decode(&pack(&new)).unwrap().work_path, "/w");
        assert!(CheckpointOptions::decode(&Any { type_url: "x".into(), ..Default::default() }).is_err());
    }

    #[test]
    fn a_table_that_never_ends_is_refused() {
        assert_eq!(read_table("/dev/zero").unwrap_err().kind(), std::io::ErrorKind::FileTooLarge);
    }
}
