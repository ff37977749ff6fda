//! Checkpoint and restore: what the runtime is told, the files around it, and its errors.

use pintle_client::oci::{Error, Status};
use pintle_tests::{Act, Bundle, FakeRuntime, TempDir, newer_criu, require_tool};

use crate::Place;

/// Does what CRIU would by ending and beginning processes.
fn double() -> FakeRuntime {
    let checkpoint = r#"
    case "$*" in *--help*) exit 0;; esac
    id= dir= leave=
    while [ $# -gt 0 ]; do case $1 in
      --image-path) dir=$2; shift;; --work-path|--root|--log|--log-format|--parent-path) shift;;
      --leave-running) leave=1;; esac; id=$1; shift; done
    mkdir -p "$dir" && touch "$dir/inventory.img"
    if [ -z "$leave" ]; then "$RUNC" kill "$id" KILL; fi
    exit 0"#;
    let restore = r#"
    id= bundle= pid=
    while [ $# -gt 0 ]; do case $1 in
      --bundle) bundle=$2; shift;; --pid-file) pid=$2; shift;;
      --image-path|--work-path|--root|--log|--log-format|--console-socket) shift;; esac; id=$1; shift; done
    "$RUNC" create --bundle "$bundle" --pid-file "$pid" "$id" && "$RUNC" start "$id"
    exit $?"#;
    FakeRuntime::new()
        .on("checkpoint", Act::Script(checkpoint.into()))
        .on("restore", Act::Script(restore.into()))
}

/// Fails as runc does: its words are in the file that `--log` names.
fn fail_in_log(words: &str) -> String {
    format!(
        "log=; while [ $# -gt 0 ]; do case $1 in --log) log=$2;; esac; shift; done; \
         printf '{{\"level\":\"error\",\"msg\":\"{words}\"}}\\n' >>\"$log\"; exit 1"
    )
}

fn place(tag: &str, fake: FakeRuntime) -> Place {
    require_tool("criu");
    let dir = TempDir::new(tag);
    let program = fake.write(dir.path());
    Place::at(dir, program, |_| ())
}

fn call(place: &Place, operation: &str) -> String {
    let calls = FakeRuntime::calls(place.path());
    let found = calls.iter().rev().find(|c| c.starts_with(operation) && !c.contains("--help"));
    found.unwrap_or_else(|| panic!("{operation} in {calls:?}")).clone()
}

#[tokio::test]
async fn checkpoint_and_restore_by_a_double() {
    let place = place("ckpt", double());
    let container = place.running(&Bundle::sh("echo started; sleep 1000")).await;
    place.logged(&container, "started").await;
    place.runtime.checkpoint_container(&container, &container.spec(), false).await.unwrap();
    let argv = call(&place, "checkpoint");
    let (image, work) = (container.checkpoint_path(), container.dir());
    for part in [
        "--file-locks",
        &format!("--image-path {}", image.display()),
        &format!("--work-path {}", work.display()),
    ] {
        assert!(argv.contains(part), "{part} in {argv}");
    }
    assert!(argv.ends_with(container.id()) && !argv.contains("--leave-running"), "{argv}");
    let dump_log = std::fs::metadata(container.dir().join("dump.log")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&dump_log.permissions()) & 0o777, 0o600);
    let state = container.state();
    assert_eq!((state.status, state.exit_code), (Status::Stopped, Some(0)));
    assert!(!state.checkpointed_at.is_zero() && state.finished == state.checkpointed_at);
    place.runtime.update_container_status(&container).await.unwrap();
    assert_eq!(container.state().exit_code, Some(0), "how CRIU ended it is not how it ended");

    let old_pid = state.init_pid;
    for name in ["attach", "ctl", "winsz"] {
        std::fs::write(container.bundle_path().join(name), "").unwrap();
    }
    pintle_tests::wait_for_async("the restore", async || {
        // The container may be dying still.
        place.runtime.restore_container(&container, "", "").await.map_err(|e| e.to_string())
    })
    .await;
    let argv = call(&place, "restore");
    for part in [
        format!("--bundle {}", container.bundle_path().display()),
        format!("--image-path {}", image.display()),
        format!("--work-path {}", work.display()),
        "--detach".to_owned(),
        "--pid-file ".to_owned(),
    ] {
        assert!(argv.contains(&part), "{part} in {argv}");
    }
    for name in ["attach", "ctl", "winsz"] {
        assert!(!container.bundle_path().join(name).exists());
    }
    let state = container.state();
    assert_eq!((state.status, state.exit_code), (Status::Running, None));
    assert!(state.init_pid > 0 && state.init_pid != old_pid && state.pid == state.init_pid);
    assert!(!state.started.is_zero() && state.finished.is_zero());
    // The same log goes on.
    pintle_tests::wait_for_async("the second start in the log", async || {
        let log = place.log(&container);
        if log.matches("started\n").count() == 2 { Ok(()) } else { Err(log) }
    })
    .await;
    let out =
        place.runtime.exec_sync_container(&container, &["/bin/true".into()], std::time::Duration::ZERO).await;
    assert_eq!(out.unwrap().unwrap().exit_code, 0);
    place.runtime.stop_container(&container, std::time::Duration::ZERO).await.unwrap();
    assert_eq!(container.state().exit_code, Some(137));
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn checkpoint_that_leaves_it_running() {
    let place = place("ckptrun", double());
    let container = place.running(&Bundle::sh("sleep 1000")).await;
    place.runtime.checkpoint_container(&container, &container.spec(), true).await.unwrap();
    assert!(call(&place, "checkpoint").contains("--leave-running"));
    assert_eq!((container.state().status, container.state().exit_code), (Status::Running, None));
    assert!(!container.checkpointed_at().is_zero());
    let error = place.runtime.restore_container(&container, "", "").await.unwrap_err();
    assert!(matches!(error, Error::WrongState { .. }), "{error}");
    place.runtime.is_container_alive(&container).await.unwrap();
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn a_runtime_without_checkpoints() {
    let place = place("ckptno", FakeRuntime::new().on("checkpoint", Act::Fail("no".into(), 1)));
    let container = place.container(&Bundle::sh("true"), |b| b);
    let error = place.runtime.checkpoint_container(&container, &container.spec(), false).await.unwrap_err();
    assert_eq!(error.to_string(), "configured runtime does not support checkpoint/restore");
    let error = place.runtime.restore_container(&container, "", "").await.unwrap_err();
    assert_eq!(error.to_string(), "configured runtime does not support checkpoint/restore");
}

#[tokio::test]
async fn restore_without_a_checkpoint() {
    let place = place("restnone", double());
    let container = place.container(&Bundle::sh("true"), |b| b);
    let error = place.runtime.restore_container(&container, "", "").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "a complete checkpoint for this container cannot be found, cannot restore: stat {}: \
             no such file or directory",
            container.checkpoint_path().join("inventory.img").display()
        )
    );
}

#[tokio::test]
async fn restore_that_fails_leaves_nothing() {
    let fake = FakeRuntime::new()
        .on("checkpoint", Act::Script("exit 0".into()))
        .on("restore", Act::Script(fail_in_log("criu failed: type RESTORE")));
    let place = place("restbad", fake);
    let container = place.container(&Bundle::sh("true"), |b| b);
    std::fs::create_dir_all(container.checkpoint_path()).unwrap();
    std::fs::write(container.checkpoint_path().join("inventory.img"), "").unwrap();
    let error = place.runtime.restore_container(&container, "", "").await.unwrap_err().to_string();
    assert!(error.starts_with("container restore failed: "), "{error}");
    assert!(error.contains("criu failed"), "{error}");
    assert!(!container.log_path().exists());
    assert!(container.dir().join("restore.log").exists());
    place.finish();
}

#[tokio::test]
async fn checkpoint_that_fails_in_the_runtime() {
    let script = "case \"$*\" in *--help*) exit 0;; esac; echo 'criu failed: type DUMP' >&2; exit 1";
    let place = place("ckptbad", FakeRuntime::new().on("checkpoint", Act::Script(script.into())));
    let container = place.running(&Bundle::sh("sleep 1000")).await;
    let error = place.runtime.checkpoint_container(&container, &container.spec(), false).await.unwrap_err();
    assert!(error.to_string().starts_with("running \""), "{error}");
    assert_eq!(container.state().status, Status::Running, "a failed checkpoint changes nothing");
    assert!(container.checkpointed_at().is_zero());
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn checkpoint_and_restore_by_criu() {
    let Some(criu) = newer_criu() else { return };
    let script = format!("exec \"$RUNC\" --criu '{}' \"$@\"", criu.display());
    let fake =
        FakeRuntime::new().on("checkpoint", Act::Script(script.clone())).on("restore", Act::Script(script));
    let place = place("ckptreal", fake);
    let counter = "i=0; while [ $i -lt 1000000 ]; do i=$((i+1)); echo n$i; sleep 0.05; done";
    let container = place.running(&Bundle::sh(counter)).await;
    place.logged(&container, "n5\n").await;
    place.runtime.checkpoint_container(&container, &container.spec(), false).await.unwrap_or_else(|e| {
        let log = std::fs::read_to_string(container.dir().join("dump.log")).unwrap_or_default();
        panic!("{e}: {}", log.lines().rev().take(20).collect::<Vec<_>>().join("\n"))
    });
    assert!(container.checkpoint_path().join("inventory.img").exists());
    assert_eq!((container.state().status, container.state().exit_code), (Status::Stopped, Some(0)));
    let last = || {
        let log = place.log(&container);
        let word = log.lines().last().and_then(|l| l.rsplit(" n").next()).unwrap_or_default().to_owned();
        word.parse::<u32>().unwrap_or(0)
    };
    let before = last();
    pintle_tests::wait_for_async("the restore", async || {
        // The shim may be busy with the end of the container still.
        place.runtime.restore_container(&container, "", "").await.map_err(|e| e.to_string())
    })
    .await;
    assert_eq!(container.state().status, Status::Running);
    // It counts on from where it was, in the same log; attach works.
    pintle_tests::wait_for_async("more numbers", async || {
        let now = last();
        if now > before + 5 { Ok(()) } else { Err(format!("{now} after {before}")) }
    })
    .await;
    assert_eq!(place.log(&container).matches(" n1\n").count(), 1, "it did not begin again");
    let (write, mut read) = tokio::io::duplex(4096);
    let streams = pintle_client::oci::Streams { stdout: Some(Box::new(write)), ..Default::default() };
    let (runtime, attached) = (place.runtime.clone(), container.clone());
    let session = tokio::spawn(async move { runtime.attach_container(&attached, streams).await });
    let mut some = [0; 16];
    assert!(tokio::io::AsyncReadExt::read(&mut read, &mut some).await.unwrap() > 0);
    place.runtime.stop_container(&container, std::time::Duration::ZERO).await.unwrap();
    drop(read);
    let _ = session.await.unwrap();
    assert_eq!(container.state().exit_code, Some(137));
    place.runtime.delete_container(&container).await.unwrap();
    place.finish();
}
