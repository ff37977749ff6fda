//! Many calls at once, and calls that meet in awkward moments.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pintle_client::oci::{Error, Status, Streams};
use pintle_tests::{Act, Bundle, FakeRuntime, scaled, wait_for_async};

use crate::Place;

#[tokio::test]
async fn parallel_execs_while_everything_is_polled() {
    let place = Place::new("par");
    let container = place.running(&Bundle::sh("while :; do echo x; sleep 0.02; done")).await;
    let done = Arc::new(AtomicBool::new(false));
    let poller = tokio::spawn({
        let (runtime, container, done) = (place.runtime.clone(), container.clone(), done.clone());
        async move {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                runtime.container_stats(&container, "").await.unwrap();
                runtime.update_container_status(&container).await.unwrap();
                runtime.reopen_container_log(&container).await.unwrap();
                rounds += 1;
                tokio::task::yield_now().await;
            }
            rounds
        }
    });
    let execs: Vec<_> = (0..scaled(16, 64))
        .map(|i| {
            let (runtime, container) = (place.runtime.clone(), container.clone());
            tokio::spawn(async move {
                let command = ["/bin/sh".into(), "-c".into(), format!("echo {i}; exit {i}")];
                let out = runtime.exec_sync_container(&container, &command, Duration::ZERO).await;
                let out = out.unwrap().unwrap();
                assert_eq!((out.exit_code, out.stdout), (i as i32, format!("{i}\n").into_bytes()));
            })
        })
        .collect();
    for exec in execs {
        exec.await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    assert!(poller.await.unwrap() > 0);
    assert_eq!(container.state().status, Status::Running);
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn no_call_waits_for_an_unrelated_runtime_command() {
    let dir = pintle_tests::TempDir::new("nowait");
    let gate = dir.join("gate");
    let script = format!("until test -e {}; do sleep 0.05; done; exec \"$RUNC\" \"$@\"", gate.display());
    let fake = FakeRuntime::new().on("pause", Act::Script(script)).write(dir.path());
    let place = Place::at(dir, fake, |_| ());
    let container = place.running(&Bundle::sh("sleep 1000")).await;
    let pause = tokio::spawn({
        let (runtime, container) = (place.runtime.clone(), container.clone());
        async move { runtime.pause_container(&container).await }
    });
    wait_for_async("the pause to be under way", async || {
        let calls = FakeRuntime::calls(place.path());
        if calls.iter().any(|c| c.starts_with("pause")) { Ok(()) } else { Err("not yet") }
    })
    .await;
    place.runtime.container_stats(&container, "").await.unwrap();
    place.runtime.update_container_status(&container).await.unwrap();
    place.runtime.reopen_container_log(&container).await.unwrap();
    container.pid().await.unwrap();
    let out = place.runtime.exec_sync_container(&container, &["/bin/true".into()], Duration::ZERO).await;
    assert_eq!(out.unwrap().unwrap().exit_code, 0);
    assert!(!pause.is_finished(), "all of them were faster than the pause");
    std::fs::write(&gate, "").unwrap();
    pause.await.unwrap().unwrap();
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn stop_and_delete_during_create() {
    let dir = pintle_tests::TempDir::new("stopcreate");
    let gate = dir.join("gate");
    let script = format!("until test -e {}; do sleep 0.05; done; exec \"$RUNC\" \"$@\"", gate.display());
    let fake = FakeRuntime::new().on("create", Act::Script(script)).write(dir.path());
    let place = Place::at(dir, fake, |_| ());
    let container = place.container(&Bundle::sh("sleep 1000"), |b| b);
    let create = tokio::spawn({
        let (runtime, container) = (place.runtime.clone(), container.clone());
        async move { runtime.create_container(&container, "", false).await }
    });
    wait_for_async("the create to be under way", async || {
        let calls = FakeRuntime::calls(place.path());
        if calls.iter().any(|c| c.starts_with("create")) { Ok(()) } else { Err("not yet") }
    })
    .await;
    // Nothing runs yet: there is nothing to be stopped, and nothing is waited for.
    place.runtime.stop_container(&container, Duration::from_secs(100)).await.unwrap();
    std::fs::write(&gate, "").unwrap();
    create.await.unwrap().unwrap();
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn delete_during_exec() {
    let place = Place::new("delexec");
    let container = place.running(&Bundle::sh("sleep 1000")).await;
    let exec = tokio::spawn({
        let (runtime, container) = (place.runtime.clone(), container.clone());
        async move {
            let command = ["/bin/sh".into(), "-c".into(), "sleep 1000".into()];
            runtime.exec_container(&container, &command, Streams::default()).await
        }
    });
    wait_for_async("the exec to run", async || {
        let state = container.monitor().unwrap().state().await.unwrap();
        if state.execs.iter().any(|e| e.exit.is_none()) { Ok(()) } else { Err("not yet") }
    })
    .await;
    place.runtime.delete_container(&container).await.unwrap();
    // Killed with its container, or its shim is gone before it could be told: it does not hang.
    match exec.await.unwrap() {
        Ok(code) => assert_eq!(code, 137),
        Err(error) => assert!(matches!(error.root(), Error::Monitor(_) | Error::System(_)), "{error:?}"),
    }
    place.finish();
}

#[tokio::test]
async fn attach_during_exit() {
    let place = Place::new("attexit");
    for _ in 0..scaled(3, 30) {
        let container = place.running(&Bundle::sh("sleep 0.1; echo end")).await;
        loop {
            // Each attach ends by itself, with the container or because it has ended.
            if place.runtime.attach_container(&container, Streams::default()).await.is_err() {
                break;
            }
        }
        place.ended(&container).await;
        assert_eq!(container.state().exit_code, Some(0));
        place.runtime.delete_container(&container).await.unwrap();
    }
    place.finish();
}
