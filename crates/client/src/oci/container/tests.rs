//! The unit cases of CRI-O's package for containers.

use super::*;
use crate::oci::{Error, Status};
use std::time::Duration;

pub(crate) fn container() -> Container {
    let one = |key: &str| BTreeMap::from([(key.to_owned(), key.to_owned())]);
    Container::builder("id", "name")
        .bundle_path("bundlePath")
        .log_path("logPath")
        .labels(one("label"))
        .crio_annotations(one("crio"))
        .annotations(one("annotation"))
        .user_requested_image("image")
        .image_name(Some("example.com/some-image:latest".parse().unwrap()))
        .image_id(Some("2a03a6059f21e150ae84b0973863609494aad70f0a80eaeb64bddd8d92465812".to_owned()))
        .sandbox_id("sandbox")
        .dir("dir")
        .build()
}

fn with_dir(name: &str) -> (Container, TempDir) {
    let dir = TempDir::new(name);
    let container = Container::builder("id", "name").dir(dir.0.clone()).bundle_path(dir.0.clone()).build();
    (container, dir)
}

pub(crate) struct TempDir(pub PathBuf);

impl TempDir {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pintle-oci-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn set_pids(container: &Container, init_pid: i32, pid: i32) -> Result<(), Error> {
    container.update_state(|state| {
        state.pid = pid;
        state.set_init_pid(init_pid)
    })
}

const NEVER: i32 = 4_194_305;

#[test]
fn container_getters() {
    let c = container();
    assert_eq!((c.id(), c.name()), ("id", "name"));
    assert_eq!(c.bundle_path(), Path::new("bundlePath"));
    assert_eq!(c.log_path(), Path::new("logPath"));
    assert_eq!(c.labels()["label"], "label");
    assert_eq!(c.annotations()["annotation"], "annotation");
    assert_eq!(c.crio_annotations()["crio"], "crio");
    assert_eq!(c.user_requested_image(), "image");
    assert_eq!(c.image_name().unwrap().to_string(), "example.com/some-image:latest");
    assert!(c.image_id().unwrap().starts_with("2a03"));
    assert_eq!(c.sandbox_id(), "sandbox");
    assert_eq!(c.dir(), Path::new("dir"));
    assert_eq!(c.checkpoint_path(), Path::new("dir/checkpoint"));
    assert_eq!(c.state_path(), Path::new("dir/state.json"));
    assert_eq!(c.metadata(), &ContainerMetadata::default());
    assert_eq!(c.state().oci_version, "");
    assert_eq!(c.state_cached(), c.state());
    assert_eq!(c.stop_signal_text(), "15");
    assert!(c.created_at() <= Timestamp::now());
    assert!(!c.is_spoofed() && !c.is_restore() && !c.is_infra() && !c.stdin_once());
    assert_eq!(c.restore_archive_path(), Path::new(""));
    assert_eq!(c.restore_storage_image_id(), None);
    assert_eq!(c.monitor_cgroupfs_path(), Path::new(""));
    assert!(c.checkpointed_at().is_zero());
    assert!(c.monitor().is_none());
}

#[test]
fn container_spec_round_trip() {
    let c = container();
    assert_eq!(*c.spec(), Spec::default());
    let spec = Spec { oci_version: "1.0.2".into(), ..Default::default() };
    c.set_spec(spec.clone());
    assert_eq!(*c.spec(), spec);
}

#[test]
fn container_created_flag() {
    let c = container();
    assert!(!c.is_created());
    c.set_created();
    assert!(c.is_created());
}

#[test]
fn container_id_mappings() {
    let c = container();
    assert_eq!(c.id_mappings(), None);
    let mappings =
        IdMappings { uids: vec![crate::oci::IdMap { container_id: 0, host_id: 1, size: 2 }], gids: vec![] };
    c.set_id_mappings(mappings.clone());
    assert_eq!(*c.id_mappings().unwrap(), mappings);
}

#[test]
fn container_volumes() {
    let c = container();
    let volume = ContainerVolume { container_path: "/c".into(), ..Default::default() };
    c.add_volume(volume.clone());
    assert_eq!(c.volumes(), [volume]);
}

#[test]
fn container_seccomp_profile_path() {
    let c = container();
    c.set_seccomp_profile_path("foo");
    assert_eq!(c.seccomp_profile_path(), "foo");
}

#[test]
fn container_mount_point() {
    let c = container();
    c.set_mount_point("/mnt");
    assert_eq!(c.mount_point(), Path::new("/mnt"));
}

#[test]
fn container_start_failed_with_an_error() {
    let c = container();
    let error = Error::Config("no".into());
    c.set_start_failed(Some(&error));
    let state = c.state();
    assert_eq!(state.error, "no");
    assert_eq!((state.started, state.finished), (state.created, state.created));
    assert_eq!(state.status, Status::Unknown);
}

#[test]
fn container_start_failed_without_an_error() {
    let c = container();
    c.set_start_failed(None);
    assert_eq!(c.state().error, "");
}

#[test]
fn container_restore_flag() {
    let c = container();
    c.set_restore(true);
    assert!(c.is_restore());
}

#[test]
fn container_restore_storage_image_id() {
    let c = container();
    c.set_restore_storage_image_id(Some("x".into()));
    assert_eq!(c.restore_storage_image_id().unwrap(), "x");
}

#[test]
fn container_restore_archive_path() {
    let c = container();
    c.set_restore_archive_path("/a.tar");
    assert_eq!(c.restore_archive_path(), Path::new("/a.tar"));
}

#[test]
fn container_stop_signals() {
    for (text, number) in [("SIGNO", 15), ("RTMIN+1", 35), ("SIGTRAP", 5)] {
        let c = Container::builder("id", "name").stop_signal(text).build();
        assert_eq!(c.stop_signal(), number);
        assert_eq!(c.stop_signal_text(), number.to_string());
    }
}

#[test]
fn container_resources_all() {
    let c = container();
    let spec = r#"{"process":{"oomScoreAdj":100},"linux":{"resources":{
        "cpu":{"period":100000,"quota":20000,"shares":1024,"cpus":"0-3","mems":"0"},
        "memory":{"limit":1048576,"swap":2097152},"unified":{"memory.min":"1"},
        "hugepageLimits":[{"pageSize":"2MB","limit":4096}]}}}"#;
    c.set_spec(Spec::from_json(spec.as_bytes()).unwrap());
    let r = c.resources().unwrap();
    assert_eq!((r.cpu_period, r.cpu_quota, r.cpu_shares), (100_000, 20_000, 1024));
    assert_eq!((r.cpuset_cpus.as_str(), r.cpuset_mems.as_str()), ("0-3", "0"));
    assert_eq!(r.oom_score_adj, 100);
    assert_eq!((r.memory_limit_in_bytes, r.memory_swap_limit_in_bytes), (1_048_576, 2_097_152));
    assert_eq!(r.unified["memory.min"], "1");
    assert_eq!((r.hugepage_limits[0].page_size.as_str(), r.hugepage_limits[0].limit), ("2MB", 4096));
}

#[test]
fn container_resources_fewer() {
    let c = container();
    let spec = r#"{"linux":{"resources":{"cpu":{"shares":1024},"memory":{"limit":5}}}}"#;
    c.set_spec(Spec::from_json(spec.as_bytes()).unwrap());
    let r = c.resources().unwrap();
    assert_eq!((r.cpu_shares, r.memory_limit_in_bytes, r.oom_score_adj), (1024, 5, 0));
    assert!(r.unified.is_empty() && r.hugepage_limits.is_empty());
    c.set_resources(&Spec::default());
    assert_eq!(c.resources().unwrap(), r, "a configuration without resources changes nothing");
}

#[tokio::test]
async fn load_state_of_an_empty_document() {
    let (c, dir) = with_dir("empty");
    std::fs::write(dir.0.join("state.json"), "{}").unwrap();
    c.load_state().await.unwrap();
    assert_eq!(c.state().init_pid, 0);
}

#[tokio::test]
async fn load_state_completes_an_old_document() {
    let (c, dir) = with_dir("old");
    std::fs::write(dir.0.join("state.json"), r#"{"pid":1}"#).unwrap();
    c.load_state().await.unwrap();
    assert_eq!(c.state().init_pid, 1);
    assert!(!c.state().init_start_time.is_empty());
}

#[tokio::test]
async fn load_state_of_a_process_that_never_was() {
    let (c, dir) = with_dir("never");
    std::fs::write(dir.0.join("state.json"), format!("{{\"pid\":{NEVER}}}")).unwrap();
    let before = c.state();
    assert!(c.load_state().await.is_err());
    assert_eq!(c.state(), before);
}

#[tokio::test]
async fn load_state_that_is_not_json() {
    let (c, dir) = with_dir("json");
    std::fs::write(dir.0.join("state.json"), "not json").unwrap();
    assert!(c.load_state().await.is_err());
}

#[tokio::test]
async fn load_state_without_a_file() {
    let (c, _dir) = with_dir("nofile");
    assert!(c.load_state().await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn load_state_reads_what_write_state_wrote() {
    let (c, _dir) = with_dir("rw");
    c.update_state(|s| {
        s.exit_code = Some(0);
        s.status = Status::Stopped;
    });
    c.write_state().unwrap();
    let before = c.state();
    c.update_state(|s| *s = Default::default());
    c.load_state().await.unwrap();
    assert_eq!(c.state(), before);
}

#[test]
fn check_stoppable_of_a_stopped_one() {
    let c = container();
    c.update_state(|s| s.status = Status::Stopped);
    assert!(matches!(c.check_stoppable(), Err(Error::ContainerStopped)));
    assert_eq!(c.check_stoppable().unwrap_err().to_string(), "container is already stopped");
}

#[test]
fn check_stoppable_of_a_paused_one() {
    let c = container();
    c.update_state(|s| s.status = Status::Paused);
    let error = c.check_stoppable().unwrap_err();
    assert!(!error.is_stopped());
    assert_eq!(error.to_string(), "cannot stop paused container");
}

#[test]
fn check_stoppable_of_a_running_one() {
    let c = container();
    c.update_state(|s| s.status = Status::Running);
    c.check_stoppable().unwrap();
}

#[tokio::test]
async fn living_without_a_pid() {
    let error = container().living().await.unwrap_err();
    assert_eq!(error.to_string(), "checking if PID of id is running failed: container PID not initialized");
}

#[tokio::test]
async fn living_pid_one() {
    let c = container();
    set_pids(&c, 1, 1).unwrap();
    c.living().await.unwrap();
}

#[tokio::test]
async fn living_never() {
    let c = container();
    assert!(set_pids(&c, NEVER, NEVER).is_err());
    assert!(c.living().await.is_err());
}

#[tokio::test]
async fn process_state_without_a_pid() {
    assert!(container().process_state().await.is_err());
}

#[tokio::test]
async fn process_state_of_pid_one() {
    let c = container();
    set_pids(&c, 1, 1).unwrap();
    let letter = c.process_state().await.unwrap();
    assert!(matches!(letter, 'S' | 'R'), "{letter}");
}

#[tokio::test]
async fn process_state_never() {
    let c = container();
    assert!(set_pids(&c, NEVER, NEVER).is_err());
    assert!(c.process_state().await.is_err());
}

#[tokio::test]
async fn pid_without_a_state() {
    assert!(matches!(container().pid().await, Err(Error::PidNotInitialized)));
}

#[tokio::test]
async fn pid_minus_one() {
    let c = container();
    assert!(set_pids(&c, -1, -1).is_err());
    assert!(matches!(c.pid().await, Err(Error::PidNotInitialized)));
}

#[tokio::test]
async fn pid_of_a_stopped_one() {
    let c = container();
    set_pids(&c, std::process::id() as i32, 0).unwrap();
    assert!(matches!(c.pid().await, Err(Error::ProcessNotFound)));
}

#[tokio::test]
async fn pid_never() {
    let c = container();
    assert!(set_pids(&c, NEVER, NEVER).is_err());
    assert!(matches!(c.pid().await, Err(Error::ProcessNotFound)));
}

#[tokio::test]
async fn pid_that_changed_hands() {
    let c = container();
    let me = std::process::id() as i32;
    set_pids(&c, me, me).unwrap();
    c.update_state(|s| s.init_start_time = "1".into());
    assert!(matches!(c.pid().await, Err(Error::PidWrap { .. })));
}

#[tokio::test]
async fn pid_one() {
    let c = container();
    set_pids(&c, 1, 1).unwrap();
    assert_eq!(c.pid().await.unwrap(), 1);
}

#[test]
fn container_spoofed() {
    let created = Timestamp::now();
    let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    let c = Container::spoofed("id", "name", labels, "sandbox", created, "/dir");
    assert_eq!((c.id(), c.name(), c.labels()["a"].as_str()), ("id", "name", "b"));
    assert!(c.is_spoofed());
    assert_eq!(c.created_at(), created);
    assert_eq!(c.state().started, created);
    assert_eq!(c.dir(), Path::new("/dir"));
    assert_eq!(c.sandbox_id(), "sandbox");
    assert_eq!(c.crio_annotations()["io.kubernetes.cri-o.Spoofed"], "true");
}

#[test]
fn container_sandbox_and_infra() {
    let c = container();
    c.set_sandbox_id("id");
    assert!(c.is_infra());
}

#[test]
fn container_description_and_checkpoint_time() {
    let labels = [
        ("io.kubernetes.pod.namespace", "n"),
        ("io.kubernetes.pod.name", "p"),
        ("io.kubernetes.container.name", "c"),
    ];
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>();
    assert_eq!(Container::builder("id", "x").labels(labels).build().description(), "n/p/c");
    let c = container();
    assert_eq!(c.description(), "//");
    let now = Timestamp::now();
    c.set_checkpointed_at(now);
    assert_eq!(c.checkpointed_at(), now);
}

#[cfg(feature = "cri")]
#[test]
fn container_cri_views() {
    use crate::oci::cri::CriState;
    let c = container();
    let attributes = c.cri_attributes();
    assert_eq!((attributes.id.as_str(), attributes.labels.len()), ("id", 1));
    assert_eq!(c.cri_container().state, CriState::Unknown);
    for (status, state) in [
        (Status::Created, CriState::Created),
        (Status::Running, CriState::Running),
        (Status::Paused, CriState::Running),
        (Status::Stopped, CriState::Exited),
    ] {
        c.update_state(|s| s.status = status);
        assert_eq!(c.cri_container().state, state);
    }
    let view = c.cri_container();
    assert_eq!(view.image_ref, view.image_id);
    assert_eq!(view.image.image, "image");
    let c = Container::builder("id", "name").some_repo_digest("r@sha256:1").build();
    assert_eq!(c.cri_container().image_ref, "r@sha256:1");
}

#[test]
fn container_runtime_path() {
    let c = container();
    let handler = RuntimeHandler { runtime_path: "/usr/bin/runc".into(), ..Default::default() };
    assert_eq!(c.runtime_path(&handler), Path::new("/usr/bin/runc"));
    c.set_runtime_path("/usr/bin/qemu-runc");
    assert_eq!(c.runtime_path(&handler), Path::new("/usr/bin/qemu-runc"));
}

struct Namespace(io::ErrorKind);

impl ManagedNamespace for Namespace {
    fn path(&self) -> &Path {
        Path::new("/ns")
    }

    fn remove(&self) -> io::Result<()> {
        if self.0 == io::ErrorKind::Other { Ok(()) } else { Err(self.0.into()) }
    }
}

#[test]
fn container_managed_pid_namespace() {
    let c = container();
    c.remove_managed_pid_namespace().unwrap();
    c.add_managed_pid_namespace(Arc::new(Namespace(io::ErrorKind::Other)));
    c.remove_managed_pid_namespace().unwrap();
    c.add_managed_pid_namespace(Arc::new(Namespace(io::ErrorKind::PermissionDenied)));
    let error = c.remove_managed_pid_namespace().unwrap_err().to_string();
    assert!(error.starts_with("remove PID namespace for container id: "), "{error}");
}

#[test]
fn container_monitor_pid_file() {
    let (c, dir) = with_dir("pidfile");
    assert!(c.read_monitor_pid_file().is_err());
    std::fs::write(dir.0.join("conmon-pidfile"), "42").unwrap();
    assert_eq!(c.read_monitor_pid_file().unwrap(), 42);
    std::fs::write(dir.0.join("conmon-pidfile"), "42\n").unwrap();
    assert!(c.read_monitor_pid_file().is_err());
}

#[tokio::test]
async fn container_monitor_cgroup_cleanup() {
    let (c, dir) = with_dir("cgroup");
    c.cleanup_monitor_cgroup().await;
    let cgroup = dir.0.join("monitor");
    std::fs::create_dir_all(cgroup.join("below")).unwrap();
    c.set_monitor_cgroups(vec![cgroup.clone()]);
    assert_eq!(c.monitor_cgroupfs_path(), cgroup);
    let again = Container::builder("id", "name").dir(dir.0.clone()).build();
    again.load_monitor_cgroups();
    assert_eq!(again.monitor_cgroupfs_path(), cgroup, "it survives a restart");
    c.cleanup_monitor_cgroup().await;
    assert!(!cgroup.exists());
    c.cleanup_monitor_cgroup().await;
}

#[tokio::test]
async fn wait_on_stop_when_nobody_stops() {
    let c = container();
    assert_eq!(c.wait_on_stop(Duration::from_secs(1), None).await, StopWait::NotStopping);
}

#[tokio::test]
async fn wait_on_stop_gives_up() {
    let c = container();
    assert!(c.set_stopping());
    assert!(!c.set_stopping());
    let patience = Some(Duration::from_millis(10));
    assert_eq!(c.wait_on_stop(Duration::from_secs(100), patience).await, StopWait::GaveUp);
}

#[tokio::test]
async fn done_stopping_without_watchers_and_twice() {
    let c = container();
    c.set_done_stopping();
    c.set_done_stopping();
    c.set_stopping();
    assert_eq!(c.wait_on_stop(Duration::ZERO, None).await, StopWait::Stopped, "afterwards it does not block");
}

#[tokio::test]
async fn done_stopping_lets_every_watcher_go() {
    let c = container();
    c.set_stopping();
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let c = c.clone();
            tokio::spawn(async move { c.wait_on_stop(Duration::from_secs(100), None).await })
        })
        .collect();
    tokio::task::yield_now().await;
    c.set_done_stopping();
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), StopWait::Stopped);
    }
}

#[tokio::test]
async fn stop_timeouts_only_shorten() {
    let c = container();
    let deadline = c.stop_deadline();
    assert!(c.shorten_stop(Duration::from_secs(15)));
    let first = deadline.borrow().unwrap();
    assert!(!c.shorten_stop(Duration::from_secs(60)), "the longer one is ignored");
    assert_eq!(deadline.borrow().unwrap(), first);
    assert!(c.shorten_stop(Duration::from_secs(1)));
    assert!(deadline.borrow().unwrap() < first);
    assert!(c.shorten_stop(Duration::ZERO));
    assert!(!c.shorten_stop(Duration::MAX));
}

fn sleeper() -> std::process::Child {
    std::process::Command::new("sleep").arg("1000").spawn().unwrap()
}

#[test]
fn delete_exec_pid_existing_unknown_and_again() {
    let c = container();
    for pid in [NEVER, NEVER + 1] {
        c.add_exec_pid(pid, true).unwrap();
    }
    c.delete_exec_pid(NEVER);
    c.delete_exec_pid(NEVER + 2);
    for _ in 0..3 {
        c.delete_exec_pid(NEVER);
    }
    assert_eq!(c.exec_pids().keys().copied().collect::<Vec<_>>(), [NEVER + 1]);
}

#[test]
fn add_exec_pid_while_stopping() {
    let c = container();
    c.set_stopping();
    let error = c.add_exec_pid(NEVER, true).unwrap_err();
    assert_eq!(error.to_string(), "cannot register an exec PID: container is stopping");
}

#[tokio::test]
async fn kill_exec_pids_of_an_empty_table_and_of_the_dead() {
    let c = container();
    c.kill_exec_pids().await;
    for pid in [0, NEVER] {
        c.add_exec_pid(pid, true).unwrap();
    }
    c.kill_exec_pids().await;
}

#[tokio::test]
async fn kill_exec_pids_sends_both_kinds_of_signals() {
    use std::os::unix::process::ExitStatusExt;
    let c = container();
    let (mut killed, mut interrupted) = (sleeper(), sleeper());
    c.add_exec_pid(killed.id() as i32, true).unwrap();
    c.add_exec_pid(interrupted.id() as i32, false).unwrap();
    c.set_stopping();
    c.kill_exec_pids().await;
    assert_eq!(killed.wait().unwrap().signal(), Some(9));
    assert_eq!(interrupted.wait().unwrap().signal(), Some(2));
    c.delete_exec_pid(1);
    assert_eq!(c.exec_pids().len(), 2, "the table stays usable");
}

#[tokio::test]
async fn kill_exec_pids_spares_a_bystander() {
    let c = container();
    let (mut gone, mut bystander) = (sleeper(), sleeper());
    let helper = ExecPid::new(gone.id() as i32, true);
    gone.kill().unwrap();
    gone.wait().unwrap();
    // As if the kernel had given the helper's pid to the bystander.
    c.exec_pids().insert(bystander.id() as i32, helper);
    c.kill_exec_pids().await;
    assert!(bystander.try_wait().unwrap().is_none());
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}
