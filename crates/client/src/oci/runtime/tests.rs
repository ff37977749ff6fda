//! The unit cases of CRI-O's package for runtimes, and dispatch to back ends.

use super::*;
use crate::oci::{Features, Timestamp};
use async_trait::async_trait;
use std::{collections::BTreeMap, sync::Mutex};

fn runtime() -> Runtime {
    let handler = |path: &str| RuntimeHandler { runtime_path: path.into(), ..Default::default() };
    let annotations =
        ["io.containers.trace-syscall", "irq-load-balancing.crio.io", "cpu-quota.crio.io", "bundle"];
    let mut performance = handler("/usr/bin/high-performance");
    performance.allowed_annotations = annotations.map(str::to_owned).into();
    performance.privileged_without_host_devices = true;
    performance.container_min_memory = "1MiB".into();
    performance.platform_runtime_paths.insert("linux/arm64".into(), "/usr/bin/arm".into());
    performance.features = Features::parse(
        br#"{"ociVersionMin":"1","ociVersionMax":"1","mountOptions":["rro"],
        "linux":{"mountExtensions":{"idmap":{"enabled":true}}}}"#,
    )
    .unwrap();
    let vm = RuntimeHandler { runtime_type: "vm".into(), ..handler("/usr/bin/containerd-shim-kata-v2") };
    let runtimes = BTreeMap::from([
        ("runc".to_owned(), handler("/usr/bin/runc")),
        ("invalid".to_owned(), RuntimeHandler::default()),
        ("performance".to_owned(), performance),
        ("vm".to_owned(), vm),
    ]);
    Runtime::new(Config { runtimes, timezone: "UTC".into(), ..Default::default() })
}

#[test]
fn runtime_new() {
    assert_eq!(Runtime::new(Config::default()).config(), &Config::default());
}

#[test]
fn runtime_runtimes() {
    assert_eq!(runtime().runtimes().keys().collect::<Vec<_>>(), ["invalid", "performance", "runc", "vm"]);
}

#[test]
fn runtime_validate_handler() {
    let runtime = runtime();
    assert_eq!(runtime.validate_runtime_handler("runc").unwrap(), &runtime.runtimes()["runc"]);
    let text = |name| runtime.validate_runtime_handler(name).unwrap_err().to_string();
    assert_eq!(text(""), "empty runtime handler");
    assert_eq!(
        text("x"),
        "failed to find runtime handler x from runtime list map[invalid performance runc vm]"
    );
    assert_eq!(text("invalid"), "empty runtime path for runtime handler invalid");
}

#[test]
fn runtime_types() {
    let runtime = runtime();
    assert_eq!(runtime.runtime_type("runc").unwrap(), "");
    assert_eq!(runtime.runtime_type("").unwrap(), "");
    assert_eq!(runtime.runtime_type("vm").unwrap(), "vm");
}

#[test]
fn runtime_allowed_annotations() {
    let runtime = runtime();
    let allowed = runtime.allowed_annotations("performance").unwrap();
    assert!(allowed.iter().any(|a| a == "irq-load-balancing.crio.io"));
    assert!(!allowed.iter().any(|a| a == "io.kubernetes.cri-o.Devices"));
    assert!(runtime.allowed_annotations("invalid").is_err());
}

#[test]
fn runtime_privileged_without_host_devices() {
    let runtime = runtime();
    assert!(runtime.privileged_without_host_devices("performance").unwrap());
    assert!(runtime.privileged_without_host_devices("invalid").is_err());
    assert!(!runtime.privileged_without_host_devices("").unwrap());
}

#[test]
fn runtime_other_queries() {
    let runtime = runtime();
    assert_eq!(runtime.timezone(), "UTC");
    assert_eq!(runtime.container_min_memory("performance").unwrap(), 1 << 20);
    assert_eq!(runtime.container_min_memory("").unwrap(), 12 << 20);
    assert_eq!(
        runtime.platform_runtime_path("performance", "linux/arm64").unwrap(),
        Path::new("/usr/bin/arm")
    );
    assert_eq!(runtime.platform_runtime_path("performance", "linux/amd64").unwrap(), Path::new(""));
    assert!(runtime.supports_id_map("performance"));
    assert!(!runtime.supports_id_map("runc") && !runtime.supports_id_map("x"));
    assert!(!runtime.supports_rro_mounts("runc") && !runtime.supports_rro_mounts("x"));
    let features = &runtime.runtimes()["performance"].features;
    assert_eq!(runtime.supports_rro_mounts("performance"), features.rro_mounts());
}

/// Records its calls.
#[derive(Default)]
struct Double(Mutex<Vec<&'static str>>);

impl Double {
    fn note(&self, call: &'static str) {
        self.0.lock().unwrap().push(call);
    }
}

#[async_trait]
impl RuntimeBackend for Double {
    async fn create(&self, _: &Container, parent: &str, _: bool) -> Result<()> {
        self.note("create");
        if parent == "bad" { Err(Error::CreateTimeout) } else { Ok(()) }
    }
    async fn start(&self, _: &Container) -> Result<()> {
        self.note("start");
        Ok(())
    }
    async fn exec(&self, _: &Container, _: &[String], _: Streams) -> Result<i32> {
        self.note("exec");
        Ok(7)
    }
    async fn exec_sync(&self, _: &Container, _: &[String], _: Duration) -> Result<Option<ExecSyncResponse>> {
        self.note("exec_sync");
        Ok(None)
    }
    async fn update(&self, _: &Container, _: &LinuxResources) -> Result<()> {
        self.note("update");
        Ok(())
    }
    async fn stop(&self, _: &Container, _: Duration) -> Result<()> {
        self.note("stop");
        Ok(())
    }
    async fn delete(&self, _: &Container) -> Result<()> {
        self.note("delete");
        Ok(())
    }
    async fn update_status(&self, _: &Container) -> Result<()> {
        self.note("update_status");
        Ok(())
    }
    async fn pause(&self, _: &Container) -> Result<()> {
        self.note("pause");
        Ok(())
    }
    async fn unpause(&self, _: &Container) -> Result<()> {
        self.note("unpause");
        Ok(())
    }
    async fn stats(&self, _: &Container, _: &str) -> Result<CgroupStats> {
        self.note("stats");
        Ok(CgroupStats::default())
    }
    async fn signal(&self, _: &Container, _: i32) -> Result<()> {
        self.note("signal");
        Ok(())
    }
    async fn attach(&self, _: &Container, _: Streams) -> Result<()> {
        self.note("attach");
        Ok(())
    }
    async fn port_forward(&self, _: &Container, _: &Path, _: u16, _: Box<dyn Duplex>) -> Result<()> {
        self.note("port_forward");
        Ok(())
    }
    async fn reopen_log(&self, _: &Container) -> Result<()> {
        self.note("reopen_log");
        Ok(())
    }
    async fn checkpoint(&self, _: &Container, _: &Spec, _: bool) -> Result<()> {
        self.note("checkpoint");
        Ok(())
    }
    async fn restore(&self, _: &Container, _: &str, _: &str) -> Result<()> {
        self.note("restore");
        Ok(())
    }
}

#[tokio::test]
async fn runtime_passes_every_operation_to_the_registered_backend() {
    let runtime = runtime();
    let c = Container::builder("id", "name").runtime_handler("vm").build();
    assert_eq!(runtime.backend_for(&c).err().unwrap().to_string(), "no back end for runtime type \"vm\"");
    let double = Arc::new(Double::default());
    let shared = double.clone();
    runtime.register_backend(
        RuntimeType::Vm,
        Arc::new(move |_, _| Ok(shared.clone() as Arc<dyn RuntimeBackend>)),
    );
    runtime.create_container(&c, "", false).await.unwrap();
    runtime.start_container(&c).await.unwrap();
    assert_eq!(runtime.exec_container(&c, &[], Streams::default()).await.unwrap(), 7);
    assert_eq!(runtime.exec_sync_container(&c, &[], Duration::ZERO).await.unwrap(), None);
    runtime.update_container(&c, &LinuxResources::default()).await.unwrap();
    runtime.stop_container(&c, Duration::ZERO).await.unwrap();
    runtime.update_container_status(&c).await.unwrap();
    runtime.pause_container(&c).await.unwrap();
    runtime.unpause_container(&c).await.unwrap();
    runtime.container_stats(&c, "").await.unwrap();
    runtime.signal_container(&c, 1).await.unwrap();
    runtime.attach_container(&c, Streams::default()).await.unwrap();
    let (stream, _other) = tokio::io::duplex(1);
    runtime.port_forward_container(&c, Path::new("/"), 1, Box::new(stream)).await.unwrap();
    runtime.reopen_container_log(&c).await.unwrap();
    runtime.checkpoint_container(&c, &Spec::default(), false).await.unwrap();
    runtime.restore_container(&c, "", "").await.unwrap();
    runtime.delete_container(&c).await.unwrap();
    let calls = double.0.lock().unwrap().join(" ");
    assert_eq!(
        calls,
        "create start exec exec_sync update stop update_status pause unpause stats signal attach \
         port_forward reopen_log checkpoint restore delete"
    );
}

#[tokio::test]
async fn runtime_registers_one_backend_per_container() {
    let runtime = runtime();
    let made = Arc::new(Mutex::new(0));
    let count = made.clone();
    runtime.register_backend(
        RuntimeType::Vm,
        Arc::new(move |_, _| {
            *count.lock().unwrap() += 1;
            Ok(Arc::new(Double::default()) as Arc<dyn RuntimeBackend>)
        }),
    );
    let c = Container::builder("id", "name").runtime_handler("vm").build();
    let first = runtime.backend_for(&c).unwrap();
    assert!(Arc::ptr_eq(&first, &runtime.backend_for(&c).unwrap()));
    runtime.create_container(&c, "", false).await.unwrap();
    assert!(!Arc::ptr_eq(&first, &runtime.backend_for(&c).unwrap()), "a create takes a new one");
    assert!(matches!(runtime.create_container(&c, "bad", false).await, Err(Error::CreateTimeout)));
    let before = *made.lock().unwrap();
    runtime.delete_container(&c).await.unwrap();
    assert_eq!(*made.lock().unwrap(), before + 1, "a failed create leaves none registered");
}

#[tokio::test]
async fn runtime_spoofed_containers_are_left_alone() {
    let dir = crate::oci::container::tests::TempDir::new("spoofed");
    let config = Config { monitor_state_dir: dir.0.join("run"), ..runtime().config().clone() };
    let runtime = Runtime::new(config);
    let c = Container::spoofed("id", "name", BTreeMap::new(), "id", Timestamp::now(), &dir.0);
    runtime.create_container(&c, "", false).await.unwrap();
    runtime.start_container(&c).await.unwrap();
    assert_eq!(runtime.exec_sync_container(&c, &["x".into()], Duration::ZERO).await.unwrap(), None);
    assert_eq!(runtime.exec_container(&c, &["x".into()], Streams::default()).await.unwrap(), 0);
    runtime.update_container(&c, &LinuxResources::default()).await.unwrap();
    runtime.pause_container(&c).await.unwrap();
    runtime.unpause_container(&c).await.unwrap();
    runtime.signal_container(&c, 9).await.unwrap();
    runtime.attach_container(&c, Streams::default()).await.unwrap();
    runtime.reopen_container_log(&c).await.unwrap();
    runtime.restore_container(&c, "", "").await.unwrap();
    runtime.update_container_status(&c).await.unwrap();
    runtime.probe_monitor(&c).await.unwrap();
    runtime.stop_container(&c, Duration::from_secs(1)).await.unwrap();
    assert_eq!(c.state().status, crate::oci::Status::Stopped);
    assert!(!c.state().finished.is_zero());
    assert!(runtime.container_stats(&c, "/no/such/parent").await.unwrap_err().is_not_found());
    runtime.delete_container(&c).await.unwrap();
    assert!(!dir.0.join("run").exists());
}

#[tokio::test]
async fn runtime_without_shims_and_handlers() {
    let runtime = runtime();
    let c = Container::builder("no-such-shim", "name").build();
    assert!(matches!(runtime.start_container(&c).await, Err(Error::NoMonitor(_))));
    assert!(matches!(runtime.probe_monitor(&c).await, Err(Error::NoMonitor(_))));
    assert!(runtime.is_container_alive(&c).await.is_err());
    assert!(runtime.disk_stats(&c).is_err());
    assert!(matches!(runtime.signal_container(&c, 34).await, Err(Error::UnknownSignal(34))));
    assert_eq!(runtime.signal_container(&c, 0).await.unwrap_err().to_string(), "unable to find signal 0");
    runtime.update_container_status(&c).await.unwrap();
    assert_eq!(c.state().exit_code, Some(255), "nobody can know how it ended");
    let error = runtime.exec_sync_container(&c, &[], Duration::ZERO).await.unwrap_err().to_string();
    assert_eq!(error, "command error: exec command cannot be empty, stdout: , stderr: , exit code -1");
    let c = Container::builder("x", "name").runtime_handler("none").build();
    assert!(runtime.start_container(&c).await.is_err());
}
