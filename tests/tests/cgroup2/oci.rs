//! The Runtime API under crun: what works on v1 with runc works here, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pintle_client::oci::{
    CgroupManager, Config, Container, ContainerBuilder, Error, LinuxMemory, LinuxResources, Runtime,
    RuntimeHandler, Spec, Status, Streams,
};
use pintle_tests::{
    Bundle, Leftovers, TempDir, crun, is_cgroup2, parse_cri, shim, unique_id, wait_for_async,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;

/// An engine with one runtime.
struct Engine {
    dir: TempDir,
    path: PathBuf,
    runtime: Runtime,
}

fn config(dir: &Path, path: &Path) -> Config {
    let handler = RuntimeHandler {
        runtime_path: path.to_owned(),
        runtime_root: dir.join("root"),
        monitor_path: shim(),
        ..RuntimeHandler::default()
    };
    let exits = dir.join("exits");
    fs::create_dir_all(&exits).expect("create the directory of exit files");
    Config {
        runtimes: [("runc".to_owned(), handler)].into(),
        cgroup_manager: CgroupManager::Cgroupfs,
        monitor_state_dir: dir.join("run"),
        container_exits_dir: exits,
        ..Config::default()
    }
}

impl Engine {
    fn new(tag: &str, path: PathBuf) -> Self {
        assert!(is_cgroup2(), "this machine has no pure cgroup v2 tree; run cargo xtask test --vm");
        let dir = TempDir::new(tag);
        let runtime = Runtime::new(config(dir.path(), &path));
        Self { dir, path, runtime }
    }

    /// A container as the engine knows it from its own records.
    fn known(&self, id: &str) -> ContainerBuilder {
        let own = self.dir.join(id);
        Container::builder(id, id)
            .bundle_path(own.join("bundle"))
            .dir(own.join("state"))
            .log_path(own.join("log"))
    }

    async fn created(
        &self,
        bundle: &Bundle,
        change: impl FnOnce(ContainerBuilder) -> ContainerBuilder,
    ) -> Container {
        let id = unique_id("r");
        let own = self.dir.join(&id);
        bundle.write(&own);
        fs::create_dir_all(own.join("state")).expect("create the state directory");
        let c = change(self.known(&id)).build();
        c.set_spec(Spec::from_json(bundle.config().to_string().as_bytes()).expect("spec"));
        self.runtime.create_container(&c, "", false).await.expect("create");
        c
    }

    async fn start(&self, c: &Container) {
        self.runtime.start_container(c).await.expect("start");
        self.status(c, Status::Running).await;
    }

    async fn status(&self, c: &Container, wanted: Status) {
        self.runtime.update_container_status(c).await.expect("status");
        assert_eq!(c.state().status, wanted);
    }

    async fn ended(&self, c: &Container) {
        wait_for_async("the container to end", async || {
            self.runtime.update_container_status(c).await.map_err(|e| e.to_string())?;
            c.state().exit_code.map(drop).ok_or_else(|| format!("{:?}", c.state().status))
        })
        .await;
        assert_eq!(c.state().status, Status::Stopped);
    }

    async fn logged(&self, c: &Container, text: &str) {
        wait_for_async("a line in the log", async || {
            let log = fs::read_to_string(c.log_path()).unwrap_or_default();
            if log.contains(text) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    async fn delete(&self, c: &Container) {
        self.runtime.delete_container(c).await.expect("delete");
        Leftovers::of(c.id()).assert_none();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // A failed test leaves containers: none may disturb the next test.
        for entry in pintle_client::scan(&self.dir.join("run")).unwrap_or_default() {
            let root = format!("--root={}", self.dir.join("root").display());
            let mut delete = std::process::Command::new(&self.path);
            let _ = delete.arg(root).args(["delete", "-f", &entry.id]).output();
        }
    }
}

fn command(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).into()
}

/// Collects what is written to the stream that it gives.
fn collector() -> (DuplexStream, JoinHandle<Vec<u8>>) {
    let (write, mut read) = tokio::io::duplex(64 * 1024);
    let task = tokio::spawn(async move {
        let mut all = Vec::new();
        let _ = read.read_to_end(&mut all).await;
        all
    });
    (write, task)
}

/// Create, start, execs, pause, a new log, signal, recovery, stop, delete.
#[tokio::test]
async fn the_life_of_a_container_under_crun() {
    let engine = Engine::new("life", crun());
    let script = "trap 'echo bye; exit 3' TERM; trap 'echo got' USR1; echo up; while :; do sleep 0.2; done";
    let c = engine.created(&Bundle::sh(script), |b| b).await;
    let state = c.state();
    assert_eq!(state.status, Status::Created);
    assert!(state.pid > 0 && state.pid == state.init_pid);
    assert_eq!(c.pid().await.unwrap(), state.pid);
    engine.start(&c).await;
    engine.logged(&c, "stdout F up\n").await;

    let runtime = &engine.runtime;
    let sync = async |script: &str, limit| {
        runtime.exec_sync_container(&c, &command(script), Duration::from_secs(limit)).await.unwrap().unwrap()
    };
    let out = sync("echo out; echo err >&2; exit 4", 0).await;
    assert_eq!((&out.stdout[..], &out.stderr[..], out.exit_code), (&b"out\n"[..], &b"err\n"[..], 4));
    assert_eq!(sync("kill -9 $$", 0).await.exit_code, 137);
    let out = sync("echo early; setsid sleep 7531 & sleep 7531", 8).await;
    assert_eq!((&out.stdout[..], &out.stderr[..]), (&b"early\n"[..], &b"command timed out"[..]));
    assert_eq!(out.exit_code, -1);
    Leftovers::of("sleep 7531").assert_none();
    let error = runtime.exec_sync_container(&c, &["/none".into()], Duration::ZERO).await.unwrap_err();
    let Error::ExecSync(error) = error else { panic!("{error}") };
    assert!(error.exit_code == -1 && error.to_string().contains("/none"), "crun's own words: {error}");

    let ((stdout, out), (mut feed, stdin)) = (collector(), tokio::io::duplex(64));
    feed.write_all(b"some input").await.unwrap();
    feed.shutdown().await.unwrap();
    let streams =
        Streams { stdin: Some(Box::new(stdin)), stdout: Some(Box::new(stdout)), ..Default::default() };
    let code = runtime.exec_container(&c, &command("cat; exit 9"), streams).await.unwrap();
    assert_eq!((code, out.await.unwrap()), (9, b"some input".to_vec()));

    runtime.pause_container(&c).await.unwrap();
    engine.status(&c, Status::Paused).await;
    assert!(matches!(c.check_stoppable(), Err(Error::Paused)));
    runtime.unpause_container(&c).await.unwrap();
    engine.status(&c, Status::Running).await;

    let old = c.log_path().with_extension("old");
    fs::rename(c.log_path(), &old).unwrap();
    runtime.reopen_container_log(&c).await.unwrap();
    let moved = fs::read(&old).unwrap();
    runtime.signal_container(&c, 10).await.unwrap();
    engine.logged(&c, "stdout F got\n").await;
    assert_eq!(fs::read(&old).unwrap(), moved, "nothing is written to the old file");

    // The engine is gone, and another one finds the container.
    runtime.save_state(&c).await.unwrap();
    let later = Runtime::new(config(engine.dir.path(), &engine.path));
    let found = engine.known(c.id()).build();
    found.set_spec(c.spec());
    let recovery = later.reconnect(std::slice::from_ref(&found)).await.unwrap();
    assert!(recovery.failed.is_empty() && recovery.live.len() == 1, "{recovery:?}");
    assert_eq!((found.state().status, found.pid().await.unwrap()), (Status::Running, state.pid));
    later.stop_container(&found, Duration::from_secs(1000)).await.unwrap();
    assert_eq!((found.state().status, found.state().exit_code), (Status::Stopped, Some(3)));
    let log = parse_cri(&fs::read(c.log_path()).unwrap()).unwrap();
    let lines: Vec<_> = log.iter().map(|r| String::from_utf8_lossy(&r.payload).trim().to_owned()).collect();
    assert_eq!(lines, ["got", "bye"]);
    later.delete_container(&found).await.unwrap();
    Leftovers::of(found.id()).assert_none();
}

/// Numbers of v2 that are not zero, limits that change, and OOM told from a plain kill.
#[tokio::test]
async fn stats_update_and_oom_under_crun() {
    let engine = Engine::new("stat", crun());
    let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exec sleep 1000";
    let c = engine.created(&Bundle::sh(script).memory(64 << 20), |b| b).await;
    engine.start(&c).await;
    let runtime = &engine.runtime;
    // The kernel may take two seconds to bring its statistics up to date.
    let stats = wait_for_async("CPU time and memory to be counted", async || {
        let stats = runtime.container_stats(&c, "").await.map_err(|e| e.to_string())?;
        let counted =
            stats.cpu.total_usage > 1_000_000 && stats.memory.rss > 0 && stats.memory.page_faults > 0;
        if counted { Ok(stats) } else { Err(format!("{stats:?}")) }
    })
    .await;
    let memory = &stats.memory;
    assert_eq!(memory.limit, 64 << 20);
    assert!(memory.usage > 0 && memory.working_set > 0 && memory.working_set <= memory.usage, "{stats:?}");
    assert_eq!(memory.available, memory.limit - memory.working_set);
    assert!(memory.max_usage > 0, "{stats:?}");
    assert_eq!((memory.kernel_usage, memory.kernel_tcp_usage), (0, 0), "v1 alone has these");
    assert!(stats.cpu.usage_in_kernel_mode + stats.cpu.usage_in_user_mode > 0, "{stats:?}");
    assert!(stats.pid.current >= 1 && stats.system_nano > 0, "{stats:?}");

    let resources = LinuxResources {
        memory: Some(LinuxMemory { limit: Some(96 << 20), ..Default::default() }),
        other: [("pids".to_owned(), serde_json::json!({"limit": 55}))].into_iter().collect(),
        ..Default::default()
    };
    runtime.update_container(&c, &resources).await.unwrap();
    let stats = runtime.container_stats(&c, "").await.unwrap();
    assert_eq!((stats.memory.limit, stats.pid.limit), (96 << 20, 55));

    runtime.signal_container(&c, 9).await.unwrap();
    engine.ended(&c).await;
    assert_eq!((c.state().exit_code, c.state().oom_killed), (Some(137), false));
    engine.delete(&c).await;

    let eater = engine.created(&Bundle::sh(&format!("exec {}", crate::HOG)).memory(20 << 20), |b| b).await;
    runtime.start_container(&eater).await.unwrap();
    engine.ended(&eater).await;
    assert_eq!((eater.state().exit_code, eater.state().oom_killed), (Some(137), true));
    engine.delete(&eater).await;
}

/// A client that feeds the container, and one that talks to a port inside it.
#[tokio::test]
async fn attach_and_port_forward_under_crun() {
    let engine = Engine::new("att", crun());
    let runtime = &engine.runtime;
    let c = engine.created(&Bundle::sh("cat; echo end"), |b| b.stdin(true).stdin_once(true)).await;
    let (stdout, out) = collector();
    let (mut feed, stdin) = tokio::io::duplex(64);
    let streams =
        Streams { stdin: Some(Box::new(stdin)), stdout: Some(Box::new(stdout)), ..Default::default() };
    let (later, attached) = (runtime.clone(), c.clone());
    let session = tokio::spawn(async move { later.attach_container(&attached, streams).await });
    wait_for_async("the client to be attached", async || {
        let state = c.monitor().unwrap().state().await.map_err(|e| e.to_string())?;
        if state.io.clients == 1 { Ok(()) } else { Err(state.io.clients.to_string()) }
    })
    .await;
    engine.start(&c).await;
    feed.write_all(b"hello\n").await.unwrap();
    feed.shutdown().await.unwrap();
    session.await.unwrap().unwrap();
    assert_eq!(out.await.unwrap(), b"hello\nend\n");
    engine.ended(&c).await;
    assert_eq!(c.state().exit_code, Some(0));
    engine.delete(&c).await;

    let script = "printf '#!/bin/sh\\nx=$(cat); echo \"got $x\"' >/tmp/s; chmod +x /tmp/s; \
                  exec nc -ll -p 8080 -e /tmp/s";
    let bundle = Bundle::sh(script).edit(|c| {
        let namespaces = c["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(serde_json::json!({"type": "network"}));
    });
    let c = engine.created(&bundle, |b| b).await;
    engine.start(&c).await;
    let netns = format!("/proc/{}/ns/net", c.pid().await.unwrap());
    let answer = wait_for_async("an answer through the port", async || {
        let (mut client, inner) = tokio::io::duplex(4096);
        let forward = runtime.port_forward_container(&c, netns.as_ref(), 8080, Box::new(inner));
        let talk = async {
            client.write_all(b"ping").await?;
            client.shutdown().await?;
            let mut answer = String::new();
            client.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let (forwarded, answer) = tokio::join!(forward, talk);
        forwarded.map_err(|e| e.to_string())?;
        answer.map_err(|e| e.to_string())
    })
    .await;
    assert_eq!(answer, "got ping\n");
    runtime.stop_container(&c, Duration::ZERO).await.unwrap();
    engine.delete(&c).await;
}
