//! Each operation once, against runc.

use std::time::Duration;

use pintle_client::EventKind;
use pintle_client::oci::{Container, Error, LinuxMemory, LinuxResources, Spec, Status};
use pintle_tests::{Bundle, crun, parse_cri, wait_for_async};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::Place;

#[tokio::test]
async fn create_and_start_and_delete() {
    let place = Place::new("life");
    let container = place.created(&Bundle::sh("echo out; echo err >&2; exit 7")).await;
    let state = container.state();
    assert_eq!(state.status, Status::Created);
    assert_eq!(state.id, container.id());
    assert_eq!(state.oci_version, "1.0.2");
    assert!(state.pid > 0 && state.pid == state.init_pid && !state.init_start_time.is_empty());
    assert_eq!(container.pid().await.unwrap(), state.pid);
    place.runtime.is_container_alive(&container).await.unwrap();
    place.runtime.probe_monitor(&container).await.unwrap();
    assert!(container.read_monitor_pid_file().unwrap() > 0);
    let pid_file = std::fs::read_to_string(container.bundle_path().join("pidfile")).unwrap();
    assert_eq!(pid_file.trim(), state.pid.to_string());

    place.runtime.start_container(&container).await.unwrap();
    assert!(!container.state().started.is_zero());
    place.ended(&container).await;
    let state = container.state();
    assert_eq!((state.exit_code, state.pid, state.oom_killed), (Some(7), 0, false));
    assert!(state.finished >= state.started);
    assert!(container.pid().await.unwrap_err().is_not_found());
    let log = parse_cri(place.log(&container).as_bytes()).unwrap();
    assert_eq!(log.len(), 2);
    let exits = place.runtime.config().container_exits_dir.join(container.id());
    assert_eq!(std::fs::read_to_string(exits).unwrap(), "7");

    place.runtime.save_state(&container).await.unwrap();
    let written = std::fs::read(container.state_path()).unwrap();
    assert_eq!(written, container.state().to_json());
    place.runtime.delete_container(&container).await.unwrap();
    place.runtime.delete_container(&container).await.expect("deleting twice is harmless");
    assert!(matches!(place.runtime.probe_monitor(&container).await, Err(Error::NoMonitor(_))));
    place.finish();
}

#[tokio::test]
async fn the_same_life_under_crun() {
    let place = Place::with("crun", crun(), |c| {
        let handler = c.runtimes.get_mut("runc").unwrap();
        handler.runtime_root = "/run/crun".into();
    });
    let script = "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done";
    let container = place.running(&Bundle::sh(script)).await;
    place.logged(&container, "up").await;
    let command = ["/bin/sh".into(), "-c".into(), "echo in; exit 4".into()];
    let out = place.runtime.exec_sync_container(&container, &command, Duration::ZERO).await.unwrap().unwrap();
    assert_eq!((out.stdout.as_slice(), out.exit_code), (&b"in\n"[..], 4));
    place.runtime.reopen_container_log(&container).await.unwrap();
    place.runtime.stop_container(&container, Duration::from_secs(1000)).await.unwrap();
    assert_eq!((container.state().status, container.state().exit_code), (Status::Stopped, Some(3)));
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn create_that_fails_leaves_nothing() {
    let place = Place::new("bad");
    let container = place.container(&Bundle::new(&["/no/such/program"]), |b| b);
    let error = place.runtime.create_container(&container, "", false).await.unwrap_err().to_string();
    assert!(error.starts_with("container create failed: "), "{error}");
    assert!(error.contains("/no/such/program"), "the runtime's own words: {error}");
    assert!(!container.log_path().exists());
    assert_eq!(container.state().init_pid, 0);
    assert!(container.monitor().is_none());
    assert!(std::fs::read_dir(place.path().join("run")).map_or(true, |mut d| d.next().is_none()));
    place.finish();
}

#[tokio::test]
async fn start_that_is_refused_changes_nothing() {
    let place = Place::new("twice");
    let container = place.running(&Bundle::sh("sleep 1000")).await;
    let before = container.state();
    let error = place.runtime.start_container(&container).await.unwrap_err();
    container.set_start_failed(None);
    assert_eq!(container.state().status, before.status, "{error}");
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn pause_and_unpause() {
    let place = Place::new("pause");
    let container = place.running(&Bundle::sh("while :; do echo tick; sleep 0.05; done")).await;
    place.logged(&container, "tick").await;
    place.runtime.pause_container(&container).await.unwrap();
    place.runtime.update_container_status(&container).await.unwrap();
    assert_eq!(container.state().status, Status::Paused);
    assert!(matches!(container.check_stoppable(), Err(Error::Paused)));
    place.runtime.unpause_container(&container).await.unwrap();
    place.runtime.update_container_status(&container).await.unwrap();
    assert_eq!(container.state().status, Status::Running);
    let before = place.log(&container).len();
    wait_for_async("more lines", async || {
        let now = place.log(&container).len();
        if now > before { Ok(()) } else { Err(now) }
    })
    .await;
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn update_and_stats() {
    let place = Place::new("stats");
    let container = place.running(&Bundle::sh("sleep 1000").memory(64 << 20)).await;
    let stats = place.runtime.container_stats(&container, "").await.unwrap();
    assert_eq!(stats.memory.limit, 64 << 20);
    assert!(stats.memory.usage > 0 && stats.memory.working_set <= stats.memory.usage);
    assert_eq!(stats.memory.available, stats.memory.limit - stats.memory.working_set);
    assert!(stats.cpu.total_usage > 0 && stats.system_nano > 0);
    assert!(stats.pid.current >= 1);
    let memory = LinuxMemory { limit: Some(96 << 20), swap: Some(96 << 20), ..Default::default() };
    let resources = LinuxResources { memory: Some(memory), ..Default::default() };
    place.runtime.update_container(&container, &resources).await.unwrap();
    let stats = place.runtime.container_stats(&container, "").await.unwrap();
    assert_eq!(stats.memory.limit, 96 << 20);
    let memory = LinuxMemory { limit: Some(1), ..Default::default() };
    let resources = LinuxResources { memory: Some(memory), ..Default::default() };
    let error = place.runtime.update_container(&container, &resources).await.unwrap_err().to_string();
    let start = format!("updating resources for container \"{}\" failed: ", container.id());
    assert!(error.starts_with(&start), "{error}");
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn signal() {
    let place = Place::new("signal");
    let container = place
        .running(&Bundle::sh("trap 'echo got; exit 3' USR1; echo up; while :; do sleep 0.05; done"))
        .await;
    place.logged(&container, "up").await;
    let error = place.runtime.signal_container(&container, 40).await.unwrap_err();
    assert_eq!(error.to_string(), "unable to find signal 40");
    place.runtime.signal_container(&container, 10).await.unwrap();
    place.ended(&container).await;
    assert_eq!(container.state().exit_code, Some(3));
    place.logged(&container, "got").await;
    assert!(place.runtime.signal_container(&container, 15).await.is_err(), "it has ended");
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn oom_is_told_from_a_plain_kill() {
    let place = Place::new("oom");
    let eater =
        place.running(&Bundle::sh("x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done").memory(20 << 20)).await;
    let killed = place.running(&Bundle::sh("sleep 1000").memory(20 << 20)).await;
    place.runtime.signal_container(&killed, 9).await.unwrap();
    place.ended(&eater).await;
    place.ended(&killed).await;
    assert!(eater.state().oom_killed);
    assert_eq!((killed.state().exit_code, killed.state().oom_killed), (Some(137), false));
    for container in [&eater, &killed] {
        place.runtime.delete_container(container).await.unwrap();
    }
    place.finish();
}

#[tokio::test]
async fn reopen_log() {
    let place = Place::new("reopen");
    let container =
        place.running(&Bundle::sh("i=0; while :; do i=$((i+1)); echo line$i; sleep 0.01; done")).await;
    place.logged(&container, "line1\n").await;
    let old = container.log_path().with_extension("old");
    std::fs::rename(container.log_path(), &old).unwrap();
    place.runtime.reopen_container_log(&container).await.unwrap();
    let moved = std::fs::read(&old).unwrap();
    place.logged(&container, "line").await;
    assert_eq!(std::fs::read(&old).unwrap(), moved, "nothing is written to the old file");
    place.runtime.stop_container(&container, Duration::ZERO).await.unwrap();
    let mut all = moved;
    all.extend(std::fs::read(container.log_path()).unwrap());
    let records = parse_cri(&all).unwrap();
    for (i, record) in records.iter().enumerate() {
        assert_eq!(String::from_utf8_lossy(&record.payload).trim_end(), format!("line{}", i + 1));
    }
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn port_forward_into_the_container() {
    let place = Place::new("forward");
    // A server that answers long after the request has ended: only a half-close can carry it.
    let script = "printf '#!/bin/sh\\nx=$(cat); sleep 1.5; echo \"got $x\"' >/tmp/s; chmod +x /tmp/s; \
                  echo up; exec nc -ll -p 8080 -e /tmp/s";
    let bundle = Bundle::sh(script).edit(|c| {
        let namespaces = c["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(serde_json::json!({"type": "network"}));
    });
    let container = place.running(&bundle).await;
    let netns = format!("/proc/{}/ns/net", container.pid().await.unwrap());
    // A spoofed infra container has no shim and forwards all the same.
    let spoofed = Container::spoofed(
        "infra",
        "infra",
        Default::default(),
        "infra",
        pintle_client::oci::Timestamp::now(),
        place.path(),
    );
    for via in [&container, &spoofed] {
        let answer = wait_for_async("an answer through the port", async || {
            let (mut client, inner) = tokio::io::duplex(4096);
            let forward = place.runtime.port_forward_container(via, netns.as_ref(), 8080, Box::new(inner));
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
    }
    let (_client, inner) = tokio::io::duplex(64);
    let error = place.runtime.port_forward_container(&container, netns.as_ref(), 9, Box::new(inner)).await;
    let error = error.unwrap_err().to_string();
    let words = format!("failed to connect to localhost:9 inside namespace {}: ", container.id());
    assert!(
        error.starts_with("port forward into network namespace \"/proc/") && error.contains(&words),
        "{error}"
    );
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn events_come_in_order_with_the_state_on_disk() {
    let place = Place::new("events");
    let mut events = place.runtime.events();
    let container = place.running(&Bundle::sh("exit 4")).await;
    let mut kinds = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let event = events.recv().await.expect("events");
            assert_eq!(event.container.id(), container.id());
            kinds.push(event.event.kind);
            if event.event.kind == EventKind::Exited {
                return event;
            }
        }
    });
    let ended = ended.await.expect("the event of the end");
    assert_eq!(ended.event.exit.unwrap().status, 4);
    assert_eq!(container.state().exit_code, Some(4));
    let on_disk = std::fs::read(container.state_path()).unwrap();
    assert!(String::from_utf8_lossy(&on_disk).contains("\"exitCode\":4"));
    let at = |kind| kinds.iter().position(|k| *k == kind).unwrap_or_else(|| panic!("{kind} in {kinds:?}"));
    assert!(
        at(EventKind::Created) < at(EventKind::Started) && at(EventKind::Started) < at(EventKind::Exited)
    );
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn children_without_a_pid_namespace_end_with_init() {
    let place = Place::new("hostpid");
    let bundle = Bundle::sh("sleep 999.25 & echo up; exit 5").edit(|c| {
        let namespaces = c["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|n| n["type"] != "pid");
    });
    let container = place.running(&bundle).await;
    assert!(!container.spec().has_pid_namespace());
    place.ended(&container).await;
    assert_eq!(container.state().exit_code, Some(5));
    wait_for_async("the child to end", async || {
        let left = std::process::Command::new("pgrep").args(["-f", "^sleep 999.25"]).output().unwrap();
        if left.stdout.is_empty() { Ok(()) } else { Err(String::from_utf8_lossy(&left.stdout).into_owned()) }
    })
    .await;
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn create_in_a_cgroup_of_the_pod() {
    let place = Place::new("pod");
    let container = place.container(&Bundle::sh("sleep 1000"), |b| b);
    let parent = format!("/{}", place.path().file_name().unwrap().to_string_lossy());
    place.runtime.create_container(&container, &parent, false).await.unwrap();
    let cgroup = container.monitor_cgroupfs_path();
    assert!(cgroup.ends_with(format!("crio-conmon-{}", container.id())), "{}", cgroup.display());
    let shim = container.read_monitor_pid_file().unwrap();
    let members = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
    assert!(members.lines().any(|pid| pid == shim.to_string()), "{members}");
    place.runtime.delete_container(&container).await.unwrap();
    wait_for_async("the monitor's cgroup to go", async || {
        container.cleanup_monitor_cgroup().await;
        // Empty only once the shim has gone.
        let _ = std::fs::remove_dir(&cgroup);
        if cgroup.exists() { Err("it is there") } else { Ok(()) }
    })
    .await;
    for hierarchy in ["", "memory", "cpu", "pids"] {
        let path =
            std::path::Path::new("/sys/fs/cgroup").join(hierarchy).join(parent.trim_start_matches('/'));
        let own = path.join(format!("crio-conmon-{}", container.id()));
        wait_for_async("every hierarchy to be clean", async || {
            let _ = std::fs::remove_dir(&own);
            let _ = std::fs::remove_dir(&path);
            if path.exists() { Err(path.display().to_string()) } else { Ok(()) }
        })
        .await;
    }
    place.finish();
}

#[tokio::test]
async fn disk_stats_and_spec() {
    let place = Place::new("disk");
    let container = place.container(&Bundle::sh("true"), |b| b);
    container.set_mount_point(place.path());
    assert!(place.runtime.disk_stats(&container).unwrap().total_bytes > 0);
    assert_ne!(*container.spec(), Spec::default());
}
