use super::*;
use crate::oci::RuntimeType;
use std::os::unix::fs::PermissionsExt;

/// A directory with a monitor that tells its version and a runtime without features.
struct Machine(PathBuf);

impl Machine {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("pintle-config-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let machine = Self(dir);
        machine.script("monitor", "echo monitor version 2.1.6");
        machine.script("runtime", "echo '{\"ociVersionMin\":\"1\",\"ociVersionMax\":\"1\"}'");
        machine
    }

    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn handler(&self) -> RuntimeHandler {
        RuntimeHandler {
            runtime_path: self.0.join("runtime"),
            monitor_path: self.0.join("monitor"),
            ..Default::default()
        }
    }

    /// Another thread that forks while a script is being written makes it busy for a moment.
    fn validate(&self, change: impl Fn(&mut RuntimeHandler)) -> Result<RuntimeHandler> {
        loop {
            let mut handler = self.handler();
            change(&mut handler);
            match handler.validate("name", false) {
                Err(error) if error.to_string().contains("busy") => {}
                result => return result.map(|()| handler),
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn config_toml_tables_of_crio() {
    let text = r#"
        [crio]
        root = "/var/lib/containers"
        [crio.runtime]
        default_runtime = "crun"
        cgroup_manager = "cgroupfs"
        log_size_max = 8192
        timezone = "UTC"
        seccomp_profile = ""
        [crio.runtime.runtimes.crun]
        runtime_path = "/usr/bin/crun"
        runtime_type = "oci"
        allowed_annotations = ["run.oci."]
        platform_runtime_paths = { "linux/arm64" = "/usr/bin/crun-arm64" }
        container_min_memory = "500KiB"
        some_future_key = 1
        [crio.runtime.runtimes.kata]
        runtime_type = "vm"
        privileged_without_host_devices = true
        [crio.runtime.workloads.management]
        activation_annotation = "target.workload.openshift.io/management"
        annotation_prefix = "resources.workload.openshift.io"
        resources = { "cpushares" = 0, "cpuset" = "0-1" }
        [crio.image]
        pause_image = "p"
    "#;
    let config = Config::from_toml(text).unwrap();
    assert_eq!(config.default_runtime, "crun");
    assert_eq!(config.cgroup_manager, CgroupManager::Cgroupfs);
    assert_eq!(config.log_size_max, 8192);
    let crun = &config.runtimes["crun"];
    assert_eq!(crun.platform_runtime_paths["linux/arm64"], Path::new("/usr/bin/crun-arm64"));
    assert_eq!(crun.min_memory(), 500 << 10);
    assert_eq!(config.runtimes["kata"].kind(), RuntimeType::Vm);
    assert_eq!(config.workloads["management"].resources.cpuset, "0-1");
    assert!(Config::from_toml("[crio.runtime]\nno_pivot = 3").is_err());
    assert!(Config::load(Path::new("/nowhere")).is_err());
}

#[test]
fn config_defaults() {
    let config = Config::default();
    assert_eq!(config, Config::from_toml("").unwrap());
    assert_eq!(config.default_runtime, "runc");
    assert_eq!(config.container_exits_dir, Path::new("/var/run/crio/exits"));
    assert_eq!((config.log_size_max, config.ctr_stop_timeout), (-1, 30));
    assert_eq!(config.cgroup_manager, CgroupManager::Systemd);
    let runc = &config.runtimes["runc"];
    assert_eq!(runc.runtime_root, Path::new("/run/runc"));
    assert_eq!(runc.monitor_cgroup, "system.slice");
    assert_eq!(runc.monitor_env.len(), 1);
    assert_eq!(runc.allowed_annotations.len(), 2);
    assert_eq!(runc.min_memory(), 12 << 20);
    let bare = RuntimeHandler::default();
    assert_eq!(bare.root(), Path::new("/run/runc"));
    assert_eq!(bare.create_timeout().as_secs(), 240);
    let hasty = RuntimeHandler { container_create_timeout: Some(1), ..Default::default() };
    assert_eq!(hasty.create_timeout().as_secs(), 30);
    let bad = RuntimeHandler { container_min_memory: "x".into(), ..Default::default() };
    assert_eq!(bad.min_memory(), -1);
}

#[test]
fn config_validation_texts() {
    let machine = Machine::new("texts");
    let text = |change: &dyn Fn(&mut RuntimeHandler)| machine.validate(change).unwrap_err().to_string();
    let prefix = "monitor fields translation: failed to translate monitor fields for runtime name: ";
    assert_eq!(
        text(&|h| h.runtime_path = "/nowhere".into()),
        "invalid runtime_path for runtime 'name': stat /nowhere: no such file or directory"
    );
    assert!(text(&|h| h.runtime_path = "".into()).starts_with("\"name\" not found in $PATH: "));
    assert_eq!(
        text(&|h| h.runtime_type = "vm".into()),
        "invalid runtime_path for runtime 'name': containerd binary naming pattern is not followed"
    );
    assert_eq!(
        text(&|h| h.runtime_config_path = "/x".into()),
        "runtime_config_path can only be used with the 'vm' runtime type"
    );
    let shim = machine.script("containerd-shim-kata-v2", "");
    assert_eq!(
        text(&|h| {
            h.runtime_type = "vm".into();
            h.runtime_path.clone_from(&shim);
            h.runtime_config_path = "/nowhere".into();
        }),
        "invalid runtime_config_path for runtime 'name': stat /nowhere: no such file or directory"
    );
    assert_eq!(text(&|h| h.allowed_annotations = vec!["x".into()]), "invalid allowed_annotation: x");
    assert_eq!(
        text(&|h| h.runtime_type = "wasm".into()),
        "invalid `runtime_type` \"wasm\" for runtime \"name\""
    );
    assert_eq!(
        text(&|h| h.monitor_cgroup = "system.slice".into()),
        format!("{prefix}cgroupfs manager conmon cgroup should be 'pod' or empty")
    );
    assert!(text(&|h| h.monitor_path = "no-such-monitor".into()).starts_with(prefix));
    assert!(text(&|h| h.monitor_path = "./monitor".into()).contains("is not absolute"));
    let mute = machine.script("mute", "echo hello");
    assert!(text(&|h| h.monitor_path.clone_from(&mute)).contains("does not tell its version"));
    let mut handler = machine.validate(|h| h.container_min_memory = "lots".into()).unwrap();
    assert_eq!(handler.container_min_memory, "12MiB");
    assert_eq!(handler.disallowed_annotations.len(), ALLOWABLE_ANNOTATIONS.len());
    handler.monitor_cgroup = "x".into();
    let error = handler.validate("name", true).unwrap_err().to_string();
    assert_eq!(error, format!("{prefix}conmon cgroup should be 'pod' or a systemd slice"));
}

#[test]
fn config_validation_of_the_whole() {
    let machine = Machine::new("whole");
    let base = Config {
        default_runtime: "good".into(),
        cgroup_manager: CgroupManager::Cgroupfs,
        runtimes: BTreeMap::from([
            ("good".into(), machine.handler()),
            ("bad".into(), RuntimeHandler { runtime_path: "/nowhere".into(), ..machine.handler() }),
        ]),
        ctr_stop_timeout: 1,
        conmon_cgroup: "pod".into(),
        ..Default::default()
    };
    machine.validate(|_| {}).unwrap();
    let mut config = base.clone();
    let warnings = config.validate().unwrap();
    assert_eq!(config.runtimes.keys().collect::<Vec<_>>(), ["good"]);
    assert_eq!(config.runtimes["good"].monitor_cgroup, "pod");
    assert_eq!(config.runtimes["good"].features.oci_version_min, "1");
    assert_eq!(config.ctr_stop_timeout, 30);
    assert!(
        warnings.contains(
            &"Runtime handler \"bad\" is being ignored due to: invalid runtime_path for runtime 'bad': \
          stat /nowhere: no such file or directory"
                .to_owned()
        )
    );
    let mut config = Config { default_runtime: "bad".into(), ..base.clone() };
    assert!(
        config.validate().unwrap_err().to_string().starts_with("runtime validation: invalid runtime_path")
    );
    let mut config = Config { default_runtime: "x".into(), ..base.clone() };
    assert_eq!(
        config.validate().unwrap_err().to_string(),
        "default_runtime set to \"x\", but no runtime entry table [crio.runtime.runtimes.x] was found"
    );
    let mut config = Config { log_size_max: 100, ..base.clone() };
    assert_eq!(config.validate().unwrap_err().to_string(), "log size max should be negative or >= 8192");
    let mut config = Config { timezone: "x".into(), ..base };
    assert_eq!(config.validate().unwrap_err().to_string(), "invalid timezone: x");
}

#[test]
fn config_memory_limits() {
    Config::check_memory_limit(0, 100).unwrap();
    Config::check_memory_limit(100, 100).unwrap();
    let error = Config::check_memory_limit(99, 100).unwrap_err();
    assert_eq!(error.to_string(), "set memory limit 99 too low; should be at least 100 bytes");
}
