//! What only a pure cgroup v2 tree shows: OOM verdicts in all their forms, stats, freezing, limits.
//!
//! `cargo xtask test` runs these in a small guest (tests/vm/run) where the machine has another tree.

mod doors;
mod oci;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pintle_client::{EventKind, ExecSyncOptions, Exit, ExitReason, Status};
use pintle_tests::{
    Bundle, Container, Native, is_cgroup2, runtimes, scaled, unique_id, wait_for_async, wakeups,
};

const LONG: Duration = Duration::from_secs(120);
/// Eats more than every limit here at once, then exits 0 if it may.
const HOG: &str = "dd if=/dev/zero of=/dev/null bs=64M count=1";

#[track_caller]
fn place(tag: &str) -> Native {
    assert!(is_cgroup2(), "this machine has no pure cgroup v2 tree; run cargo xtask test --vm");
    Native::new(tag)
}

async fn wait(c: &Container) -> Exit {
    c.monitor.wait(Some(LONG)).await.unwrap_or_else(|e| panic!("wait for {}: {e:?}", c.id))
}

fn signal(exit: &Exit) -> Option<i32> {
    match exit.reason {
        ExitReason::Signal { signal, .. } => Some(signal),
        _ => None,
    }
}

async fn cgroup_of(c: &Container) -> PathBuf {
    let path = c.state().await.cgroup;
    Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'))
}

/// Killed by its own limit: in the exit, the state, the events and the record, under each runtime.
#[tokio::test]
async fn own_limit() {
    let place = place("own");
    for (name, path) in runtimes() {
        let bundle = Bundle::sh(&format!("exec {HOG}")).memory(20 << 20);
        let c = place.start_with(&bundle, |o| o.runtime.path = path).await;
        let exit = wait(&c).await;
        assert_eq!(signal(&exit), Some(9), "{name}");
        assert!(exit.oom_killed, "{name}: {exit:?}");
        assert!(c.state().await.oom_kills >= 1, "{name}");
        let events = c.monitor.poll_events(0, Duration::ZERO).await.unwrap();
        assert!(events.iter().any(|e| e.kind == EventKind::Oom), "{name}: {events:?}");
        assert!(pintle_client::read_exit_record(&place.root().join(&c.id)).unwrap().oom_killed, "{name}");
        c.delete().await;
    }
    place.finish();
}

/// Killed by a limit of the cgroup above, as that of a pod.
#[tokio::test]
async fn limit_of_the_parent() {
    let place = place("pod");
    let pod = unique_id("pod");
    let parent = Path::new("/sys/fs/cgroup").join(&pod);
    fs::create_dir(&parent).unwrap();
    fs::write(parent.join("cgroup.subtree_control"), "+memory +pids +cpu").unwrap();
    fs::write(parent.join("memory.max"), (20u64 << 20).to_string()).unwrap();
    let _ = fs::write(parent.join("memory.swap.max"), "0");
    for (name, path) in runtimes() {
        let id = unique_id("c");
        let bundle = Bundle::sh(&format!("exec {HOG}")).cgroup(&format!("/{pod}/{id}"));
        let c = place.start_with(&bundle, |o| o.runtime.path = path).await;
        let exit = wait(&c).await;
        assert_eq!((signal(&exit), exit.oom_killed), (Some(9), true), "{name}: {exit:?}");
        c.delete().await;
    }
    fs::remove_dir(&parent).expect("nothing is left in the pod's cgroup");
    place.finish();
}

/// A process in a cgroup below the container's, killed by the container's limit.
#[tokio::test]
async fn nested_cgroup() {
    let place = place("nest");
    let script = format!("while [ ! -e /ctl/go ]; do sleep 0.1; done; ({HOG}); echo $?; exit 8");
    let control = place.path().join("ctl");
    fs::create_dir(&control).unwrap();
    let bundle = Bundle::sh(&script).memory(20 << 20).bind(&control, "/ctl");
    let c = place.start(&bundle).await;
    let cgroup = cgroup_of(&c).await;
    let nested = cgroup.join("nested");
    fs::create_dir(&nested).unwrap();
    for pid in fs::read_to_string(cgroup.join("cgroup.procs")).unwrap().lines() {
        // One that has ended in the meantime cannot be moved, and need not.
        let _ = fs::write(nested.join("cgroup.procs"), pid);
    }
    fs::write(control.join("go"), "").unwrap();
    let exit = wait(&c).await;
    assert_eq!(exit.status, 8, "{exit:?}");
    assert!(c.state().await.oom_kills >= 1);
    assert!(!exit.oom_killed, "its own process ended by itself");
    c.delete().await;
    place.finish();
}

/// Only a child is killed: counted, told as an event, but not the container's end.
#[tokio::test]
async fn only_a_child() {
    let place = place("child");
    for (name, path) in runtimes() {
        let bundle = Bundle::sh(&format!("{HOG}; echo $?; sleep 1000")).memory(20 << 20);
        let c = place.start_with(&bundle, |o| o.runtime.path = path).await;
        // Of inotify instances a user has 128 by default, for all containers together: not one is wanted for the watch.
        let open = pintle_tests::fds(c.shim_pid().await);
        assert!(!open.values().any(|to| to.contains("inotify")), "{name}: {open:?}");
        wait_for_async("an OOM event while the container runs", || async {
            let events = c.monitor.poll_events(0, Duration::ZERO).await.map_err(|e| e.to_string())?;
            if events.iter().any(|e| e.kind == EventKind::Oom) { Ok(()) } else { Err(format!("{events:?}")) }
        })
        .await;
        assert_eq!(c.state().await.status, Status::Running, "{name}");
        c.monitor.kill(9, false).await.unwrap();
        let exit = wait(&c).await;
        assert_eq!((signal(&exit), exit.oom_killed), (Some(9), false), "{name}: a plain SIGKILL afterwards");
        c.delete().await;
    }
    place.finish();
}

/// A container with a limit that does nothing costs no wake-up: the watch over its memory sleeps, too.
#[tokio::test]
async fn an_idle_shim_is_never_woken() {
    let place = place("idle");
    let c = place.start(&Bundle::sh("exec sleep 1000").memory(64 << 20)).await;
    let pid = c.shim_pid().await;
    wait_for_async("a time without a wake-up", || async {
        let before = wakeups(pid);
        // Here the time is the point.
        let _ = tokio::time::timeout(Duration::from_secs(4), std::future::pending::<()>()).await;
        match wakeups(pid) - before {
            0 => Ok(()),
            n => Err(format!("{n} wake-ups")),
        }
    })
    .await;
    c.delete().await;
    place.finish();
}

/// The cgroup goes away right after the kill: the verdict must not depend on who is faster.
#[tokio::test]
async fn race_with_the_end() {
    let place = place("race");
    let bundle = Bundle::sh(&format!("exec {HOG}")).memory(20 << 20);
    for n in 0..scaled(8, 1000) {
        let c = place.start(&bundle).await;
        let exit = wait(&c).await;
        assert!(exit.oom_killed, "run {n}: {exit:?}");
        c.delete().await;
    }
    place.finish();
}

/// A plain SIGKILL with a limit far away, or with none, is not OOM.
#[tokio::test]
async fn a_plain_kill_is_not_oom() {
    let place = place("kill");
    for bundle in [Bundle::sh("sleep 1000"), Bundle::sh("sleep 1000").memory(64 << 20)] {
        let c = place.start(&bundle).await;
        c.monitor.kill(9, false).await.unwrap();
        let exit = wait(&c).await;
        assert_eq!((signal(&exit), exit.oom_killed), (Some(9), false), "{exit:?}");
        assert_eq!(c.state().await.oom_kills, 0);
        c.delete().await;
    }
    place.finish();
}

/// Stats, limits that change, and freezing, under each runtime.
#[tokio::test]
async fn stats_update_and_freeze() {
    let place = place("stat");
    for (name, path) in runtimes() {
        let bundle =
            Bundle::sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 1000").memory(64 << 20);
        let c = place.start_with(&bundle, |o| o.runtime.path = path).await;
        wait_for_async("CPU time to be counted", || async {
            let s = c.monitor.stats().await.map_err(|e| e.to_string())?;
            if s.cpu.usage_ns > 1_000_000 { Ok(()) } else { Err(format!("{:?}", s.cpu)) }
        })
        .await;
        let stats = c.monitor.stats().await.unwrap();
        assert_eq!(stats.cgroup_version, 2, "{name}");
        assert_eq!(stats.memory.limit, 64 << 20, "{name}");
        assert!(stats.memory.usage > 0 && stats.pids.current >= 1, "{name}: {stats:?}");

        let limits = r#"{"memory":{"limit":50331648},"pids":{"limit":77}}"#;
        c.monitor.update(limits).await.unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let stats = c.monitor.stats().await.unwrap();
        assert_eq!((stats.memory.limit, stats.pids.limit), (48 << 20, 77), "{name}");

        let frozen = cgroup_of(&c).await.join("cgroup.events");
        c.monitor.pause().await.unwrap();
        assert_eq!(c.state().await.status, Status::Paused, "{name}");
        assert!(fs::read_to_string(&frozen).unwrap().contains("frozen 1"), "{name}");
        c.monitor.resume().await.unwrap();
        let done = c.monitor.exec_sync(&ExecSyncOptions::new(["echo", "thawed"])).await.unwrap();
        assert_eq!(done.stdout, b"thawed\n", "{name}");
        c.delete().await;
    }
    place.finish();
}

/// A process that daemonised itself inside an exec is found by its cgroup and ended with the rest.
#[tokio::test]
async fn exec_sync_ends_the_whole_tree() {
    let place = place("tree");
    for (name, path) in runtimes() {
        let c = place.start_with(&Bundle::sh("sleep 1000"), |o| o.runtime.path = path).await;
        let script = "echo early; setsid sh -c 'sleep 8642 & sleep 8642' & sleep 8642";
        let mut options = ExecSyncOptions::new(["sh", "-c", script]);
        options.timeout = Some(Duration::from_secs(8));
        let done = c.monitor.exec_sync(&options).await.unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert!(done.timed_out, "{name}: {done:?}");
        assert_eq!(done.stdout, b"early\n", "{name}: what was written is kept");
        pintle_tests::Leftovers::of("sleep 8642").assert_none();
        assert_eq!(c.state().await.status, Status::Running, "{name}");
        c.delete().await;
    }
    place.finish();
}
