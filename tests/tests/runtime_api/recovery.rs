//! An engine that starts again, with and without its shims.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pintle_client::oci::{Container, Runtime, Spec, Status, Timestamp};
use pintle_tests::{Bundle, Leftovers, TempDir, full, runc, scaled, wait_for_async};

use crate::{Place, config, known, prepare};

fn kill_shim(container: &Container) {
    let pid = container.read_monitor_pid_file().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
}

/// What an engine knows of a container after a restart.
fn again(place: &Place, container: &Container) -> Container {
    let fresh = known(place.path(), container.id()).build();
    fresh.set_spec(container.spec());
    fresh
}

#[tokio::test]
async fn a_restarted_engine_finds_live_and_dead() {
    let place = Place::new("recover");
    let live = place.running(&Bundle::sh("trap 'exit 8' TERM; echo up; while :; do sleep 0.05; done")).await;
    let dead = place.running(&Bundle::sh("exit 5")).await;
    let created = place.created(&Bundle::sh("exit 6")).await;
    place.logged(&live, "up").await;
    for container in [&live, &created] {
        place.runtime.save_state(container).await.unwrap();
    }
    // The engine does not see how this one ends: it wrote "running" and was gone.
    dead.update_state(|s| {
        s.exit_code = None;
        s.finished = Timestamp::ZERO;
        s.status = Status::Running;
    });
    dead.write_state().unwrap();
    wait_for_async("the short one to end", async || {
        let state = dead.monitor().unwrap().state().await.unwrap();
        state.exit.map(drop).ok_or("it runs")
    })
    .await;

    let runtime = Runtime::new(config(place.path(), runc()));
    let fresh: Vec<_> = [&live, &dead, &created].map(|c| again(&place, c)).into();
    let recovery = runtime.reconnect(&fresh).await.unwrap();
    assert!(recovery.failed.is_empty() && recovery.cleaned.is_empty(), "{recovery:?}");
    assert!(recovery.strangers.is_empty(), "{recovery:?}");
    assert_eq!((recovery.live.len(), recovery.dead.len()), (2, 1), "{recovery:?}");
    let [live, dead, created] = &fresh[..] else { panic!() };
    assert_eq!((dead.state().status, dead.state().exit_code), (Status::Stopped, Some(5)));
    assert_eq!(live.state().status, Status::Running);
    assert!(live.is_created());
    assert_eq!(created.state().status, Status::Created);
    runtime.start_container(created).await.unwrap();
    runtime.stop_container(live, Duration::from_secs(1000)).await.unwrap();
    assert_eq!(live.state().exit_code, Some(8));
    for container in &fresh {
        runtime.delete_container(container).await.unwrap();
    }
    place.finish();
}

#[tokio::test]
async fn half_created_ones_are_removed_and_strangers_are_left_alone() {
    let place = Place::new("half");
    let half = place.created(&Bundle::sh("true")).await;
    let stranger = place.created(&Bundle::sh("true")).await;
    // No state on disk: the engine was gone before it could write it.
    let runtime = Runtime::new(config(place.path(), runc()));
    let recovery = runtime.reconnect(&[again(&place, &half)]).await.unwrap();
    assert_eq!(recovery.cleaned.len(), 1, "{recovery:?}");
    assert_eq!(recovery.strangers, [stranger.id()]);
    place.runtime.probe_monitor(&stranger).await.unwrap();
    place.runtime.delete_container(&stranger).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn containers_that_lost_their_shims_are_taken_up() {
    let place = Place::new("orphan");
    let runs = place.running(&Bundle::sh("echo up; while :; do sleep 0.05; done")).await;
    let ended = place.running(&Bundle::sh("exit 3")).await;
    place.logged(&runs, "up").await;
    place.ended(&ended).await;
    for container in [&runs, &ended] {
        place.runtime.save_state(container).await.unwrap();
        kill_shim(container);
    }
    // What the shim's record knows must be found without what the engine wrote.
    ended.update_state(|s| {
        s.exit_code = None;
        s.finished = Timestamp::ZERO;
    });
    ended.write_state().unwrap();
    let runtime = Runtime::new(config(place.path(), runc()));
    let fresh: Vec<_> = [&runs, &ended].map(|c| again(&place, c)).into();
    let recovery = runtime.reconnect(&fresh).await.unwrap();
    assert!(recovery.failed.is_empty(), "{recovery:?}");
    assert_eq!(fresh[1].state().exit_code, Some(3));
    assert_eq!(fresh[0].state().status, Status::Running);
    runtime.stop_container(&fresh[0], Duration::ZERO).await.unwrap();
    assert_eq!(fresh[0].state().status, Status::Stopped);
    assert!(fresh[0].pid().await.is_err());
    for container in &fresh {
        runtime.delete_container(container).await.unwrap();
    }
    place.finish();
}

#[tokio::test]
async fn nothing_hangs_on_a_shim_that_is_gone() {
    let place = Place::new("gone");
    let container = place.running(&Bundle::sh("sleep 1000")).await;
    kill_shim(&container);
    let calls = async {
        wait_for_async("the shim to be gone", async || {
            if place.runtime.probe_monitor(&container).await.is_err() { Ok(()) } else { Err("it is there") }
        })
        .await;
        assert!(place.runtime.reopen_container_log(&container).await.is_err());
        assert!(place.runtime.attach_container(&container, Default::default()).await.is_err());
        assert!(place.runtime.pause_container(&container).await.is_err());
        assert!(
            place
                .runtime
                .exec_sync_container(&container, &["/bin/true".into()], Duration::ZERO)
                .await
                .is_err()
        );
        place.runtime.update_container_status(&container).await.unwrap();
        place.runtime.stop_container(&container, Duration::ZERO).await.unwrap();
        place.runtime.delete_container(&container).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(120), calls).await.expect("no call hangs");
    place.finish();
}

#[tokio::test]
async fn a_forged_state_never_hits_a_bystander() {
    let place = Place::new("forged");
    let mut bystander = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
    let pid = bystander.id().unwrap() as i32;
    let container = place.container(&Bundle::sh("true"), |b| b);
    container.update_state(|state| {
        state.id = container.id().to_owned();
        state.status = Status::Running;
        state.pid = pid;
        state.init_pid = pid;
        state.init_start_time = "1".into();
    });
    container.write_state().unwrap();
    let fresh = again(&place, &container);
    place.runtime.reconnect(std::slice::from_ref(&fresh)).await.unwrap();
    assert_eq!((fresh.state().status, fresh.state().exit_code), (Status::Stopped, Some(255)));
    for c in [&container, &fresh] {
        assert!(c.living().await.is_err());
        place.runtime.stop_container(c, Duration::ZERO).await.unwrap();
        assert!(place.runtime.signal_container(c, 9).await.is_err());
        place.runtime.delete_container(c).await.unwrap();
    }
    assert!(bystander.try_wait().unwrap().is_none(), "the bystander lives");
    bystander.kill().await.unwrap();
    place.finish();
}

/// What the `i`th container of the scripted life does: script, memory limit, exit code, OOM.
fn part(i: usize) -> (&'static str, Option<i64>, i32, bool) {
    match i % 5 {
        0 => ("exit 10", None, 10, false),
        1 => ("sleep 0.3; exit 11", None, 11, false),
        2 => ("x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done", Some(20 << 20), 137, true),
        3 => ("sleep 0.6; kill -9 $$; sleep 5", None, 12, false),
        _ => ("sleep 1; exit 13", None, 13, false),
    }
}

fn bundle(i: usize) -> Bundle {
    let (script, memory, ..) = part(i);
    let bundle = Bundle::sh(script);
    memory.into_iter().fold(bundle, Bundle::memory)
}

/// The engine that is killed. Each container lives its life in a task of its own.
#[test]
#[ignore = "the process that an_engine_killed_at_any_moment kills"]
fn engine_process() {
    let (dir, ids) = (std::env::var("ENGINE_DIR").unwrap(), std::env::var("ENGINE_IDS").unwrap());
    let dir = Path::new(&dir);
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio.block_on(async {
        let runtime = Runtime::new(config(dir, runc()));
        let mut lives = Vec::new();
        for (i, id) in ids.split(' ').enumerate() {
            let container = known(dir, id).build();
            container.set_spec(Spec::from_json(bundle(i).config().to_string().as_bytes()).unwrap());
            let runtime = runtime.clone();
            lives.push(tokio::spawn(async move {
                runtime.create_container(&container, "", false).await.unwrap();
                runtime.save_state(&container).await.unwrap();
                runtime.start_container(&container).await.unwrap();
                runtime.save_state(&container).await.unwrap();
                let exit = container.monitor().unwrap().wait(None).await.unwrap();
                runtime.save_state(&container).await.unwrap();
                assert_eq!(container.state().exit_code, Some(exit.status));
            }));
        }
        for life in lives {
            life.await.unwrap();
        }
    });
}

/// A sequence that is the same in each run.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

#[tokio::test]
async fn an_engine_killed_at_any_moment() {
    let (rounds, containers) = (scaled(5, 100), scaled(5, 20));
    let mut seed = 20_240_617;
    for round in 0..rounds {
        // The moments cover the whole life: making, starting, ending, being written down.
        let moment = Duration::from_millis(next(&mut seed) % if full() { 6000 } else { 2500 });
        one_round(round, containers, moment).await;
    }
}

async fn one_round(round: usize, containers: usize, moment: Duration) {
    let dir = TempDir::new("kill9");
    let ids: Vec<String> = (0..containers).map(|_| pintle_tests::unique_id("k")).collect();
    for (i, id) in ids.iter().enumerate() {
        prepare(dir.path(), id, &bundle(i));
    }
    let mut engine = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "recovery::engine_process", "--test-threads=1"])
        .env("ENGINE_DIR", dir.path())
        .env("ENGINE_IDS", ids.join(" "))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Somewhere in the middle of its work.
    let _ = tokio::time::timeout(moment, std::future::pending::<()>()).await;
    let _ = engine.kill();
    engine.wait().unwrap();

    let runtime = Runtime::new(config(dir.path(), runc()));
    let fresh: Vec<Container> = ids
        .iter()
        .enumerate()
        .map(|(i, id)| {
            let container = known(dir.path(), id).build();
            container.set_spec(Spec::from_json(bundle(i).config().to_string().as_bytes()).unwrap());
            container
        })
        .collect();
    let what = format!("round {round}, killed after {moment:?}");
    let recovery = tokio::time::timeout(Duration::from_secs(120), runtime.reconnect(&fresh)).await;
    let recovery = recovery.unwrap_or_else(|_| panic!("{what}: the recovery hangs")).unwrap();
    assert!(recovery.failed.is_empty(), "{what}: {recovery:?}");
    for (i, container) in fresh.iter().enumerate() {
        let (script, _, code, oom) = part(i);
        let what = format!("{what}: container {i} ({script})");
        if recovery.cleaned.contains(container) {
            assert!(!container.state_path().exists(), "{what}");
            continue;
        }
        if container.state().status == Status::Created {
            // It was never started, or was being started when the engine went.
            let started = runtime.start_container(container).await;
            let state = container.monitor().unwrap().state().await.unwrap();
            assert!(started.is_ok() || state.status != pintle_client::Status::Created, "{what}: {started:?}");
        }
        wait_for_async(&what, async || {
            runtime.update_container_status(container).await.map_err(|e| e.to_string())?;
            container.state().exit_code.map(drop).ok_or("it runs".to_owned())
        })
        .await;
        let state = container.state();
        assert_eq!(state.status, Status::Stopped, "{what}");
        // The third kind of script cannot end itself by SIGKILL: init of a pid namespace is immune.
        let expected = if i % 5 == 3 { 0 } else { code };
        assert_eq!((state.exit_code, state.oom_killed), (Some(expected), oom), "{what}");
        assert!(!state.finished.is_zero(), "{what}");
        runtime.delete_container(container).await.unwrap();
    }
    let mut left = Leftovers::of(dir.path().to_string_lossy());
    for id in &ids {
        left = left.and(id);
    }
    left.assert_none();
}
