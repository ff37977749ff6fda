//! CRIU through the native door, with the real criu of a newer release: the log goes on, clients attach,
//! the exit code is right.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pintle_client::{
    CheckpointOptions, CreateOptions, ErrorKind, EventKind, ExitReason, RestoreOptions, Status,
};
use pintle_tests::{
    Bundle, Container, Native, eventually, newer_criu, read_cri, rejoin, unique_id, wait_for,
};
use tokio::io::AsyncReadExt;

/// Counts, and ends with 5 when told to.
const COUNTER: &str = "i=0; while [ ! -e /ctl/stop ]; do i=$((i+1)); echo \"n $i\"; sleep 0.05; done; exit 5";

fn bundle(ctl: &Path) -> Bundle {
    fs::create_dir_all(ctl).expect("create a directory");
    Bundle::sh(COUNTER).bind(ctl, "/ctl")
}

/// An external mount needs no word to criu: runc names the bind mounts of the bundle itself.
fn with_criu(options: &mut CreateOptions, criu: &Path) {
    options.runtime.args = vec!["--criu".into(), criu.to_string_lossy().into_owned()];
}

fn stdout(log: &Path) -> String {
    String::from_utf8(rejoin(&read_cri(log), "stdout")).expect("text")
}

/// Whole lines `n 1` to `n k` without a gap; returns k.
fn count(text: &str) -> usize {
    for (i, line) in text.lines().enumerate() {
        assert_eq!(line, format!("n {}", i + 1), "in {text}");
    }
    text.lines().count()
}

async fn started(native: &Native, criu: &Path) -> Container {
    let ctl = native.path().join("ctl");
    let c = native.start_with(&bundle(&ctl), |o| with_criu(o, criu)).await;
    let log = c.log.clone();
    wait_for("some output", || log.exists() && count(&stdout(&log)) >= 5);
    c
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_leaves_it_running() {
    let Some(criu) = newer_criu() else { return };
    let native = Native::new("ckrun");
    let c = started(&native, &criu).await;
    let image = native.path().join("image");
    let mut options = CheckpointOptions { image_path: image.clone(), ..Default::default() };
    options.leave_running = true;
    options.work_path = native.path().join("work");
    c.monitor.checkpoint(&options).await.unwrap_or_else(|e| panic!("{}", told(&e, native.path())));
    assert!(image.join("inventory.img").exists());
    assert_eq!(c.state().await.status, Status::Running);
    let before = count(&stdout(&c.log));
    wait_for("more output", || count(&stdout(&c.log)) > before + 2);
    fs::write(native.path().join("ctl/stop"), "").expect("stop it");
    let exit = c.monitor.wait(Some(Duration::from_secs(60))).await.expect("its end");
    assert_eq!(exit.reason, ExitReason::Code(5));
    c.delete().await;
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restore_continues_the_log_and_knows_the_exit_code() {
    let Some(criu) = newer_criu() else { return };
    let native = Native::new("ckres");
    let c = started(&native, &criu).await;
    let image = native.path().join("image");
    let mut options = CheckpointOptions { image_path: image.clone(), ..Default::default() };
    options.work_path = native.path().join("work");
    c.monitor.checkpoint(&options).await.unwrap_or_else(|e| panic!("{}", told(&e, native.path())));
    let end = c.monitor.wait(Some(Duration::from_secs(60))).await.expect("its end");
    assert!(!matches!(end.reason, ExitReason::Code(0)), "frozen and killed is no success: {end:?}");
    let kept = fs::read(&c.log).expect("log");
    let written = count(&stdout(&c.log));
    c.delete().await;

    // Another shim, the same log.
    let id = unique_id("res");
    let monitor = native.shim(&id).await;
    let mut create = native.options(&id, &bundle(&native.path().join("ctl")));
    with_criu(&mut create, &criu);
    create.logs[0].path = c.log.clone();
    let restore = RestoreOptions {
        create,
        image_path: image,
        work_path: native.path().join("work"),
        ..Default::default()
    };
    let process = monitor.restore(&restore).await.unwrap_or_else(|e| panic!("{}", told(&e, native.path())));
    assert!(process.pid > 0);
    assert_eq!(monitor.state().await.expect("state").status, Status::Running);
    let log = c.log.clone();
    // What was in the pipe when it was frozen is gone with the old shim's end of it or was read by it:
    // it drains before it ends. So the numbers go on without a gap.
    let go_on = || {
        let now = fs::read(&log).map_err(|e| e.to_string())?;
        assert!(now.starts_with(&kept), "the log was not continued");
        let n = count(&stdout(&log));
        if n > written + 5 { Ok(()) } else { Err(format!("{n} lines, {written} before")) }
    };
    eventually("more output", go_on);
    let mut attached = monitor.attach(false).await.expect("attach");
    let mut buffer = [0; 64];
    let got = tokio::time::timeout(Duration::from_secs(60), attached.stdio.stdout.read(&mut buffer));
    assert!(got.await.expect("output in time").expect("output") > 0);
    drop(attached);
    let events = monitor.poll_events(0, Duration::from_millis(1)).await.expect("events");
    assert!(events.iter().any(|e| e.kind == EventKind::Restored), "{events:?}");

    fs::write(native.path().join("ctl/stop"), "").expect("stop it");
    let exit = monitor.wait(Some(Duration::from_secs(60))).await.expect("its end");
    assert_eq!(exit.reason, ExitReason::Code(5));
    monitor.delete(false).await.expect("delete");
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_fails_tells_why_and_leaves_nothing() {
    let Some(criu) = newer_criu() else { return };
    let native = Native::new("ckbad");
    let id = unique_id("bad");
    let monitor = native.shim(&id).await;
    let mut create = native.options(&id, &bundle(&native.path().join("ctl")));
    with_criu(&mut create, &criu);
    let image = native.path().join("empty");
    fs::create_dir(&image).expect("create a directory");
    let restore = RestoreOptions { create, image_path: image.clone(), ..Default::default() };
    let error = monitor.restore(&restore).await.expect_err("nothing to restore from");
    assert_eq!(error.kind(), Some(ErrorKind::InvalidArgument), "{error:?}");
    fs::write(image.join("inventory.img"), "nonsense").expect("write an image");
    let error = monitor.restore(&restore).await.expect_err("nonsense to restore from");
    assert_eq!(error.kind(), Some(ErrorKind::RuntimeFailed), "{error:?}");
    monitor.shutdown(true).await.expect("shutdown");
    native.finish();
}

/// The error and the end of criu's logs.
fn told(error: &pintle_client::Error, dir: &Path) -> String {
    let mut text = format!("{error:?}");
    for name in ["dump.log", "restore.log"] {
        let log = fs::read_to_string(dir.join("work").join(name)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|l| l.contains("Error") || l.contains("Warn")).collect();
        text.push_str(&format!("\n{name}: {}", lines.join("\n")));
    }
    text
}
