//! What a container and its execs are made of: requests after validation, as they are kept for adoption and upgrade.

use super::failure::{Failure, FailureKind};
use super::runtime::RuntimeConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest id.
pub const ID_MAX: usize = 256;
/// Drain bound for output that left-over processes hold open, unless the request gives one.
pub const DRAIN_DEFAULT: Duration = Duration::from_secs(2);

/// Which runtime, and how it is called.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RuntimeSpec {
    /// Path or name; empty: `runc`.
    pub path: String,
    /// `--root`; empty: the runtime's default.
    pub root: String,
    /// Global arguments.
    pub args: Vec<String>,
    /// `--systemd-cgroup`.
    pub systemd_cgroup: bool,
    /// Further arguments of create and restore.
    pub create_args: Vec<String>,
    /// Further arguments of exec.
    pub exec_args: Vec<String>,
}

/// One log.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LogSpec {
    /// `k8s-file`, `json-file`, `journald` or `none`.
    pub driver: String,
    /// File of a file driver.
    pub path: PathBuf,
    /// Rotation size; 0: never.
    pub max_size: u64,
    /// Rotated files kept.
    pub max_files: u32,
    /// Total limit; 0: none.
    pub global_max_size: u64,
    /// Bytes per second; 0: no limit.
    #[serde(default)]
    pub max_bytes_per_second: u64,
    /// Lines per second; 0: no limit.
    #[serde(default)]
    pub max_lines_per_second: u64,
    /// Drop lines over the rate instead of letting the container wait.
    #[serde(default)]
    pub drop_over_rate: bool,
    /// `k8s-file`: close a line that the end of its stream cuts off.
    #[serde(default)]
    pub close_partial: bool,
    /// journald tag.
    pub tag: String,
    /// journald labels.
    pub labels: Vec<String>,
    /// journald container name.
    pub name: String,
}

/// A container to be created.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CreateSpec {
    /// Bundle directory, absolute.
    pub bundle: PathBuf,
    /// The runtime.
    pub runtime: RuntimeSpec,
    /// The logs.
    pub logs: Vec<LogSpec>,
    /// Give it a stdin.
    pub stdin: bool,
    /// Close stdin when the first client that fed it leaves.
    pub stdin_once: bool,
    /// Columns and rows of the terminal; 0: 80x24.
    pub columns: u16,
    /// See `columns`.
    pub rows: u16,
    /// Extra pid file.
    pub pid_file: Option<PathBuf>,
    /// Time limit of create; `None`: 240 s.
    pub timeout_ms: Option<u64>,
    /// Drain bound; `None`: [`DRAIN_DEFAULT`].
    pub drain_ms: Option<u64>,
    /// Environment of runtime commands, as KEY=VALUE.
    pub env: Vec<String>,
    /// Directory for an exit file in conmon's format.
    pub exit_dir: Option<PathBuf>,
    /// Command run after the end.
    pub exit_command: Vec<String>,
}

/// What of `config.json` matters to the shim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleFacts {
    /// `process.terminal`.
    pub terminal: bool,
    /// `process.consoleSize`, if given.
    pub console_size: Option<(u16, u16)>,
    /// The container has a pid namespace of its own, so that everything in it dies with init.
    pub own_pid_namespace: bool,
}

/// Checks a container or exec id: letters, digits, `_`, `.`, `-`, `+`, at most [`ID_MAX`] bytes, no leading dot.
///
/// # Errors
/// `InvalidArgument` that names the id.
pub fn check_id(what: &str, id: &str) -> Result<(), Failure> {
    let fine = !id.is_empty()
        && id.len() <= ID_MAX
        && !id.starts_with('.')
        && !id.starts_with('-')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'+'));
    if fine { Ok(()) } else { Err(Failure::invalid(id, format!("bad {what} id {id:?}"))) }
}

fn config_path(bundle: &Path) -> PathBuf {
    bundle.join("config.json")
}

fn read_config(bundle: &Path) -> Result<Value, Failure> {
    let path = config_path(bundle);
    let bytes = std::fs::read(&path).map_err(|e| {
        let failure = Failure::file("read", &path, &e);
        if e.kind() == std::io::ErrorKind::NotFound {
            Failure { kind: FailureKind::InvalidArgument, ..failure }
        } else {
            failure
        }
    })?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Failure::invalid(path.display().to_string(), format!("parse {}: {e}", path.display())))
}

impl CreateSpec {
    /// Checks the request against the file system and reads what matters of `config.json`.
    ///
    /// # Errors
    /// `InvalidArgument` or `System` that names the object at fault.
    pub fn check(&self) -> Result<BundleFacts, Failure> {
        let bundle = self.bundle.display().to_string();
        if !self.bundle.is_absolute() {
            return Err(Failure::invalid(bundle.clone(), format!("bundle path {bundle:?} is not absolute")));
        }
        if !self.bundle.is_dir() {
            return Err(Failure::invalid(bundle.clone(), format!("bundle {bundle} is not a directory")));
        }
        let config = read_config(&self.bundle)?;
        let file = config_path(&self.bundle).display().to_string();
        let Some(process) = config.get("process").filter(|p| p.is_object()) else {
            return Err(Failure::invalid(file.clone(), format!("{file}: no process")));
        };
        if process.get("args").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            return Err(Failure::invalid(file.clone(), format!("{file}: no process.args")));
        }
        let root = config.get("root").and_then(|root| root.get("path")).and_then(Value::as_str);
        let Some(root) = root.filter(|r| !r.is_empty()) else {
            return Err(Failure::invalid(file.clone(), format!("{file}: no root.path")));
        };
        let root = self.bundle.join(root);
        if !root.is_dir() {
            let root = root.display().to_string();
            return Err(Failure::invalid(root.clone(), format!("root filesystem {root} is not a directory")));
        }
        for log in &self.logs {
            log.check()?;
        }
        for (name, path) in [("pid file", &self.pid_file), ("exit directory", &self.exit_dir)] {
            if let Some(path) = path.as_ref().filter(|p| !p.is_absolute()) {
                let path = path.display().to_string();
                return Err(Failure::invalid(path.clone(), format!("{name} {path} is not absolute")));
            }
        }
        for entry in &self.env {
            if !entry.contains('=') {
                return Err(Failure::invalid(
                    entry.as_str(),
                    format!("environment entry {entry:?} is not KEY=VALUE"),
                ));
            }
        }
        Ok(facts(&config))
    }

    /// The same facts without the checks, for a container that exists already.
    pub fn facts(&self) -> BundleFacts {
        read_config(&self.bundle).map(|c| facts(&c)).unwrap_or_default()
    }

    /// Where runtimes that make cgroups themselves put the container `id`: paths below the root of each hierarchy, or
    /// below the runtime's own cgroup where they are relative. Empty where systemd makes them.
    pub fn cgroups_paths(&self, id: &str) -> Vec<String> {
        let Ok(config) = read_config(&self.bundle) else { return Vec::new() };
        let paths = match config.pointer("/linux/cgroupsPath").and_then(Value::as_str) {
            // runc takes its own cgroup, crun the root.
            None | Some("") => vec![id.to_owned(), format!("/{id}")],
            Some(path) => vec![path.to_owned()],
        };
        let own = |path: &str| path != "/" && !path.split('/').any(|part| part == "..");
        if self.runtime.systemd_cgroup { Vec::new() } else { paths.into_iter().filter(|p| own(p)).collect() }
    }

    /// Calls of the runtime for this container, with small files in `scratch`.
    pub fn runtime_config(&self, scratch: &Path) -> RuntimeConfig {
        let path = if self.runtime.path.is_empty() { "runc" } else { &self.runtime.path };
        let mut config = RuntimeConfig::new(path, scratch);
        config.root = Some(&self.runtime.root).filter(|r| !r.is_empty()).map(PathBuf::from);
        config.args = self.runtime.args.iter().map(Into::into).collect();
        config.systemd_cgroup = self.runtime.systemd_cgroup;
        config.env =
            self.env.iter().filter_map(|e| e.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect();
        if let Some(ms) = self.timeout_ms.filter(|ms| *ms > 0) {
            config.timeout = Duration::from_millis(ms);
        }
        config
    }

    /// The drain bound.
    pub fn drain(&self) -> Duration {
        self.drain_ms.filter(|ms| *ms > 0).map_or(DRAIN_DEFAULT, Duration::from_millis)
    }
}

impl LogSpec {
    fn check(&self) -> Result<(), Failure> {
        match self.driver.as_str() {
            "none" | "journald" => Ok(()),
            "k8s-file" | "json-file" | "" => {
                let path = self.path.display().to_string();
                if !self.path.is_absolute() {
                    return Err(Failure::invalid(path.clone(), format!("log path {path:?} is not absolute")));
                }
                match self.path.parent() {
                    Some(dir) if dir.is_dir() => Ok(()),
                    _ => {
                        Err(Failure::invalid(path.clone(), format!("directory of log {path} does not exist")))
                    }
                }
            }
            other => Err(Failure::invalid(other, format!("unknown log driver {other:?}"))),
        }
    }
}

fn facts(config: &Value) -> BundleFacts {
    let size = |name: &str| {
        let size = config.pointer(&format!("/process/consoleSize/{name}"))?.as_u64()?;
        u16::try_from(size).ok().filter(|n| *n > 0)
    };
    let namespaces = config.pointer("/linux/namespaces").and_then(Value::as_array);
    let own_pid_namespace = namespaces.is_some_and(|list| {
        list.iter().any(|n| n.get("type").and_then(Value::as_str) == Some("pid") && n.get("path").is_none())
    });
    BundleFacts {
        terminal: config.pointer("/process/terminal").and_then(Value::as_bool).unwrap_or(false),
        console_size: size("height").zip(size("width")),
        own_pid_namespace,
    }
}

/// A process to be run in a container.
#[derive(Debug, Clone, Default)]
pub struct ExecSpec {
    /// Id; empty: made up.
    pub exec_id: String,
    /// `process` document; empty: made from the fields below.
    pub process_json: String,
    /// Arguments.
    pub args: Vec<String>,
    /// Added environment.
    pub env: Vec<String>,
    /// Working directory; empty: the container's.
    pub cwd: String,
    /// Terminal.
    pub terminal: bool,
    /// `UID[:GID]`; empty: the container's.
    pub user: String,
}

impl ExecSpec {
    /// The process document for the runtime, and whether it has a terminal.
    ///
    /// # Errors
    /// `InvalidArgument` that names the field.
    pub fn process(&self, bundle: &Path) -> Result<(Value, bool), Failure> {
        if !self.process_json.is_empty() {
            if !self.args.is_empty() {
                return Err(Failure::invalid("args", "both process_json and args are given"));
            }
            let doc: Value = serde_json::from_str(&self.process_json)
                .map_err(|e| Failure::invalid("process_json", format!("parse process_json: {e}")))?;
            if doc.get("args").and_then(Value::as_array).is_none_or(Vec::is_empty) {
                return Err(Failure::invalid("process_json", "process_json has no args"));
            }
            let terminal = doc.get("terminal").and_then(Value::as_bool).unwrap_or(false);
            return Ok((doc, terminal));
        }
        if self.args.is_empty() {
            return Err(Failure::invalid("args", "neither process_json nor args are given"));
        }
        let config = read_config(bundle)?;
        let Some(Value::Object(mut process)) = config.get("process").cloned() else {
            let file = config_path(bundle).display().to_string();
            return Err(Failure::invalid(file.clone(), format!("{file}: no process")));
        };
        process.insert("args".into(), json!(self.args));
        process.insert("terminal".into(), json!(self.terminal));
        process.remove("consoleSize");
        if !self.cwd.is_empty() {
            process.insert("cwd".into(), json!(self.cwd));
        }
        if !self.env.is_empty() {
            let mut env: Vec<Value> =
                process.get("env").and_then(Value::as_array).cloned().unwrap_or_default();
            for entry in &self.env {
                let Some((key, _)) = entry.split_once('=') else {
                    let message = format!("environment entry {entry:?} is not KEY=VALUE");
                    return Err(Failure::invalid(entry.as_str(), message));
                };
                env.retain(|e| e.as_str().and_then(|e| e.split_once('=')).is_none_or(|(k, _)| k != key));
                env.push(json!(entry));
            }
            process.insert("env".into(), Value::Array(env));
        }
        if !self.user.is_empty() {
            let (uid, gid) = self.user.split_once(':').unwrap_or((&self.user, ""));
            let number = |text: &str| {
                text.parse::<u32>().map_err(|_| {
                    Failure::invalid(self.user.as_str(), format!("user {:?} is not UID[:GID]", self.user))
                })
            };
            let mut user = json!({ "uid": number(uid)? });
            let gid = if gid.is_empty() { 0 } else { number(gid)? };
            user["gid"] = json!(gid);
            process.insert("user".into(), user);
        }
        Ok((Value::Object(process), self.terminal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for good in ["a", "A-b_c.d+1", &"x".repeat(256)] {
            check_id("container", good).unwrap();
        }
        for bad in ["", ".", "..", ".x", "-x", "a/b", "a b", "ä", "a\0", &"x".repeat(257)] {
            assert!(check_id("container", bad).is_err(), "{bad:?}");
        }
    }

    /// State files and hand-overs of the first shims are read by every later one.
    #[test]
    fn a_log_of_the_first_version_is_read() {
        let text = r#"{"driver":"k8s-file","path":"/l","max_size":1,"max_files":2,"global_max_size":3,"tag":"t",
            "labels":["A=b"],"name":"n"}"#;
        let log: LogSpec = serde_json::from_str(text).unwrap();
        assert!((log.max_size, log.max_files, log.global_max_size) == (1, 2, 3) && !log.close_partial);
    }

    #[test]
    fn bundles() {
        let dir = std::env::temp_dir().join(format!("pintle-spec-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let spec = CreateSpec { bundle: dir.clone(), ..CreateSpec::default() };
        let says = |text: &str| spec.check().unwrap_err().message.contains(text);
        assert!(says("config.json"));
        let put = |text: &str| std::fs::write(dir.join("config.json"), text).unwrap();
        put("{");
        assert!(says("parse"));
        put("{}");
        assert!(says("no process"));
        put(r#"{"process":{"args":[]}}"#);
        assert!(says("process.args"));
        put(r#"{"process":{"args":["a"]}}"#);
        assert!(says("root.path"));
        put(r#"{"process":{"args":["a"],"terminal":true,"env":["A=1"],"consoleSize":{"height":5,"width":6}},
             "root":{"path":"r"},"linux":{"namespaces":[{"type":"pid"}]}}"#);
        assert!(says("root filesystem"));
        std::fs::create_dir(dir.join("r")).unwrap();
        let facts = spec.check().unwrap();
        assert!(facts.terminal && facts.own_pid_namespace);
        assert_eq!(facts.console_size, Some((5, 6)));
        let log = LogSpec { driver: "k8s-file".into(), path: dir.join("no/log"), ..LogSpec::default() };
        let bad = CreateSpec { logs: vec![log], ..spec.clone() };
        assert!(bad.check().unwrap_err().message.contains("does not exist"));
        let exec = ExecSpec {
            args: vec!["x".into()],
            env: vec!["A=2".into()],
            user: "5:6".into(),
            cwd: "/w".into(),
            ..ExecSpec::default()
        };
        let (doc, terminal) = exec.process(&dir).unwrap();
        assert!(!terminal);
        assert_eq!(doc["env"], json!(["A=2"]));
        assert_eq!(
            (&doc["user"]["uid"], &doc["user"]["gid"], &doc["cwd"]),
            (&json!(5), &json!(6), &json!("/w"))
        );
        assert!(ExecSpec::default().process(&dir).is_err());
        assert!(ExecSpec { user: "root".into(), ..exec }.process(&dir).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
