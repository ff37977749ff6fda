//! The doors of containerd and conmon: metrics and the word of an OOM kill.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_proto::containerd::{metrics_v2, pack, runc_options, task, unpack};
use pintle_tests::{
    Bundle, Caller, Conmon, Leftovers, Sink, Start, Task, TaskShim, TempDir, is_cgroup2, runtimes,
    wait_for_async,
};
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;

use crate::HOG;

/// Several threads: waiting for processes must not stop the event service.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    assert!(is_cgroup2(), "this machine has no pure cgroup v2 tree; run cargo xtask test --vm");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(work)
}

/// Runs what waits in a blocking way beside the event service.
fn aside<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// A task that runs under this runtime, the daemon that hears its events, and what must outlive them.
struct Running {
    shim: TaskShim,
    task: Task,
    sink: Sink,
    _server: ttrpc::r#async::Server,
    _dir: TempDir,
}

impl Running {
    async fn new(bundle: &Bundle, runtime: PathBuf) -> Self {
        let dir = TempDir::new("ev");
        let sink = Sink::default();
        let socket = dir.join("t.sock");
        let server = sink.serve(&socket).await;
        let mut settings = Start::new(Caller::Old);
        settings.ttrpc = socket.to_str().unwrap().to_owned();
        settings.address = dir.join("c.sock").to_str().unwrap().to_owned();
        let shim = aside(|| TaskShim::start(bundle, &settings));
        let task = shim.connect().await;
        let options = pack(&runc_options::Options {
            binary_name: runtime.to_str().unwrap().to_owned(),
            root: dir.join("root").to_str().unwrap().to_owned(),
            ..Default::default()
        });
        task.create(&shim, |r| r.options = Some(options).into()).await.unwrap();
        task.start("").await.unwrap();
        Self { shim, task, sink, _server: server, _dir: dir }
    }

    async fn metrics(&self) -> metrics_v2::Metrics {
        let stats: task::StatsResponse = self.task.plain("Stats").await.unwrap();
        unpack::<metrics_v2::Metrics>(&stats.stats).expect("metrics of cgroup v2").unwrap()
    }

    /// Deletes what has ended, and sees the shim go.
    async fn finish(self) {
        self.task.delete("").await.unwrap();
        let pid = self.shim.pid();
        self.task.shutdown().await;
        aside(|| self.shim.gone(pid));
    }
}

/// containerd hears of the OOM before it hears of the end, and CRI-O's file is there once Wait has answered.
#[test]
fn containerd_hears_of_oom_before_the_end() {
    block_on(async {
        for (name, path) in runtimes() {
            let hog = Bundle::sh(&format!("exec {HOG}")).memory(20 << 20);
            let run = Running::new(&hog, path).await;
            assert_eq!(run.task.wait("").await, Ok(137), "{name}");
            assert!(run.shim.bundle.join("oom").exists(), "{name}");
            let all = aside(|| run.sink.wait("/tasks/exit"));
            let at = |topic: &str| all.iter().position(|e| e.topic == topic);
            let oom = at("/tasks/oom").unwrap_or_else(|| panic!("{name}: no OOM event: {all:?}"));
            assert!(Some(oom) < at("/tasks/exit"), "{name}: {all:?}");
            run.finish().await;
        }
    });
}

/// A plain SIGKILL is no OOM for containerd either.
#[test]
fn containerd_hears_of_no_oom_without_one() {
    block_on(async {
        let run = Running::new(&Bundle::sh("exec sleep 1000").memory(64 << 20), pintle_tests::runc()).await;
        run.task.kill("", 9).await.unwrap();
        assert_eq!(run.task.wait("").await, Ok(137));
        let all = aside(|| run.sink.wait("/tasks/exit"));
        assert!(all.iter().all(|e| e.topic != "/tasks/oom"), "{all:?}");
        assert!(!run.shim.bundle.join("oom").exists());
        run.finish().await;
    });
}

/// The metrics are those of v2: what is used, the limits, also after an update, and a child's OOM kill.
#[test]
fn containerd_metrics() {
    block_on(async {
        for (name, path) in runtimes() {
            let script = format!("{HOG}; i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done; exec sleep 1000");
            let run = Running::new(&Bundle::sh(&script).memory(20 << 20), path).await;
            // The kernel may take two seconds to bring its statistics up to date.
            let metrics = wait_for_async("an OOM kill, CPU time and memory in the metrics", async || {
                let m = run.metrics().await;
                let counted = m.cpu.usage_usec > 1000 && m.memory.anon > 0 && m.memory.pgfault > 0;
                let ready = counted && m.memory_events.oom_kill >= 1;
                if ready { Ok(m) } else { Err(format!("{m:?}")) }
            })
            .await;
            assert_eq!(metrics.memory.usage_limit, 20 << 20, "{name}");
            assert!(metrics.memory.usage > 0, "{name}: {metrics:?}");
            assert!(metrics.pids.current >= 1, "{name}: {metrics:?}");
            assert!(metrics.memory_events.max >= 1, "{name}: {metrics:?}");
            let (user, system) = (metrics.cpu.user_usec, metrics.cpu.system_usec);
            assert!(
                user + system > 0 && user + system <= metrics.cpu.usage_usec + 10_000,
                "{name}: {metrics:?}"
            );

            let update = task::UpdateTaskRequest {
                id: run.shim.id.clone(),
                resources: Some(Any {
                    type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
                    value: br#"{"memory":{"limit":50331648},"pids":{"limit":77}}"#.to_vec(),
                    ..Default::default()
                })
                .into(),
                ..Default::default()
            };
            let done: Result<Empty, _> = run.task.call("Update", &update).await;
            done.unwrap_or_else(|e| panic!("{name}: {e:?}"));
            let metrics = run.metrics().await;
            assert_eq!((metrics.memory.usage_limit, metrics.pids.limit), (48 << 20, 77), "{name}");

            // The kill of a child came as an event, while the task runs.
            aside(|| run.sink.wait("/tasks/oom"));
            assert!(!run.sink.topics().contains(&"exit".to_owned()), "{name}");
            run.task.kill("", 9).await.unwrap();
            assert_eq!(run.task.wait("").await, Ok(137), "{name}");
            run.finish().await;
        }
    });
}

/// The OOM files of the conmon door are there before the exit file.
#[test]
fn conmon_tells_oom_before_the_exit_file() {
    assert!(is_cgroup2(), "this machine has no pure cgroup v2 tree; run cargo xtask test --vm");
    let dir = TempDir::new("cm");
    let hungry = Bundle::sh(&format!("exec {HOG}")).memory(20 << 20);
    let mut run = Conmon::create(&dir, &hungry).start();
    run.begin();
    assert_eq!(run.exit_file(), "137");
    assert!(run.call.path("persist/oom").exists(), "persist/oom");
    assert!(run.call.path("bundle/oom").exists(), "bundle/oom");
    assert_eq!(fs::metadata(run.call.path("persist/oom")).expect("metadata").len(), 0);
    run.gone();
    let id = run.call.id.clone();
    drop(run);
    Leftovers::of(id).assert_none();
}

/// No OOM file after a plain SIGKILL.
#[test]
fn conmon_tells_no_oom_without_one() {
    assert!(is_cgroup2(), "this machine has no pure cgroup v2 tree; run cargo xtask test --vm");
    let dir = TempDir::new("cm");
    let mut run = Conmon::create(&dir, &Bundle::sh("exec sleep 1000").memory(50 << 20)).start();
    let pid = run.begin();
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
    assert_eq!(run.exit_file(), "137");
    run.gone();
    assert!(!run.call.path("persist/oom").exists());
    assert!(!run.call.path("bundle/oom").exists());
    let id = run.call.id.clone();
    drop(run);
    Leftovers::of(id).assert_none();
}
