//! Promises about the shim's own fate: its loss by `kill -9`, and its replacement in place.

use nix::fcntl::{Flock, FlockArg};
use pintle_client::{
    ErrorKind, EventKind, ExecOptions, ExecSyncOptions, ExitReason, Monitor, Status, has_shim,
    read_exit_record,
};
use pintle_tests::{
    Act, Bundle, FakeRuntime, Native, eventually, other_shims, parse_cri, process_alive, read_cri, rejoin,
    scaled, shim, unique_id, wait_for, wait_for_async,
};
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncReadExt;

const SOON: Duration = Duration::from_secs(60);

fn sh(script: &str) -> ExecSyncOptions {
    ExecSyncOptions::new(["/bin/sh", "-c", script])
}

fn kill_hard(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    // The shim is a daemon: whoever adopts orphans on this machine reaps it, sooner or later.
    wait_for("the shim to be dead", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
}

async fn adopt(place: &Native, id: &str) -> Monitor {
    let mut config = place.spawn_config(id);
    config.args.push("--adopt".into());
    Monitor::spawn(config).await.unwrap_or_else(|e| panic!("adopt {id}: {e}"))
}

/// The numbers 1 to n, one per line, without a gap; gives n.
fn counted(log: &Path) -> u64 {
    let bytes = rejoin(&read_cri(log), "stdout");
    let text = String::from_utf8(bytes).unwrap();
    let mut last = 0;
    for line in text.lines() {
        let number: u64 = line.parse().unwrap_or_else(|_| panic!("not a number: {line:?}"));
        assert_eq!(number, last + 1, "a gap in the log");
        last = number;
    }
    last
}

/// The last number in a log that is being written.
fn counted_so_far(log: &Path) -> u64 {
    let bytes = std::fs::read(log).unwrap();
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let text = rejoin(&parse_cri(&bytes[..whole]).unwrap(), "stdout");
    let text = String::from_utf8(text).unwrap();
    text.lines().next_back().map_or(0, |l| l.parse().unwrap())
}

/// The end is the true one where the kernel can tell, or said to be unknown; never a guess.
fn true_or_unknown(reason: &ExitReason, truth: &ExitReason) {
    match reason {
        ExitReason::Unknown(why) => assert_eq!(why, "unknown, monitor lost"),
        known => assert_eq!(known, truth),
    }
}

#[tokio::test]
async fn a_container_survives_its_shim_and_is_adopted() {
    let place = Native::new("adopt");
    // Fills its pipe several times over, so that it would die of SIGPIPE or lose lines if it could.
    let script = "trap 'exit 4' TERM; i=0; while [ $i -lt 60000 ]; do i=$((i+1)); echo $i; done; \
                  echo done >&2; while :; do sleep 0.1; done";
    let c = place.start(&Bundle::sh(script)).await;
    let dir = place.root().join(&c.id);
    for _ in 0..scaled(3, 20) {
        wait_for("some lines", || std::fs::metadata(&c.log).is_ok_and(|m| m.len() > 1000));
        let pid = Monitor::at(&dir).info().await.unwrap().pid;
        kill_hard(u32::try_from(pid).unwrap());
        // A process that it had just forked may hold the socket a moment longer.
        wait_for("nobody to serve its socket", || !has_shim(&dir));
        let monitor = adopt(&place, &c.id).await;
        let state = monitor.state().await.unwrap();
        assert_eq!(state.status, Status::Running);
        assert!(process_alive(u32::try_from(state.process.unwrap().pid).unwrap()));
    }
    // Everything works again, on the same container.
    let monitor = Monitor::at(&dir);
    let events = monitor.poll_events(0, Duration::ZERO).await.unwrap();
    assert!(events.iter().any(|e| e.kind == EventKind::Adopted), "{events:?}");
    let out = monitor.exec_sync(&sh("echo inside")).await.unwrap();
    assert_eq!(out.stdout, b"inside\n");
    let exec = monitor.exec(&ExecOptions::new(["true"])).await.unwrap();
    assert!(exec.id != "exec-1" && exec.id != "exec-2", "{} may be the name of an earlier exec", exec.id);
    exec.wait(Some(SOON)).await.unwrap();
    assert!(monitor.stats().await.is_ok());
    monitor.pause().await.unwrap();
    monitor.resume().await.unwrap();
    wait_for("the whole output", || {
        String::from_utf8_lossy(&std::fs::read(&c.log).unwrap()).contains("done")
    });
    assert_eq!(counted(&c.log), 60000);
    let exit = monitor.stop(None, SOON).await.unwrap();
    true_or_unknown(&exit.reason, &ExitReason::Code(4));
    monitor.delete(false).await.unwrap();
    place.finish();
}

/// Of output that a killed shim had read, a CRI log has all, half lines too. Docker's format has none: a json-file log
/// lacks the beginning of the line that was under way, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_shim_loses_the_line_that_it_held() {
    let place = Native::new("held");
    let script =
        "trap 'echo \" end\"; echo last; exit 0' USR1; printf 'first\\nhalf'; while :; do sleep 0.05; done";
    let c = place
        .start_with(&Bundle::sh(script), |o| {
            let mut json = o.logs[0].clone();
            json.driver = "json-file".into();
            json.path = json.path.with_extension("json");
            o.logs.push(json);
        })
        .await;
    let json = c.log.with_extension("json");
    let docker = || -> String {
        let text = std::fs::read_to_string(&json).unwrap();
        let records = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        records.map(|r| r["log"].as_str().unwrap().to_owned()).collect()
    };
    let cri = || String::from_utf8(rejoin(&read_cri(&c.log), "stdout")).unwrap();
    wait_for("half a line", || cri() == "first\nhalf" && docker() == "first\n");
    kill_hard(c.shim_pid().await);
    wait_for("nobody to serve its socket", || !has_shim(&place.root().join(&c.id)));
    let monitor = adopt(&place, &c.id).await;
    monitor.kill(10, false).await.unwrap();
    monitor.wait(Some(SOON)).await.unwrap();
    assert_eq!(cri(), "first\nhalf end\nlast\n");
    assert_eq!(docker(), "first\n end\nlast\n");
    monitor.delete(false).await.unwrap();
    place.finish();
}

/// What a lost shim had just forked holds the lock of its directory for a moment: an adopter waits for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adopter_waits_for_what_the_lost_shim_had_forked() {
    let place = Native::new("forked");
    let c = place.start(&Bundle::sh("sleep 1000000")).await;
    kill_hard(c.shim_pid().await);
    let dir = place.root().join(&c.id);
    wait_for("nobody to serve its socket", || !has_shim(&dir));
    let lock = eventually("the lock to be free", || {
        let dir = std::fs::File::open(&dir).map_err(|e| e.to_string())?;
        Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e.to_string())
    });
    let release = std::thread::spawn(move || {
        pintle_tests::let_pass(Duration::from_millis(300));
        drop(lock);
    });
    let monitor = adopt(&place, &c.id).await;
    release.join().unwrap();
    assert_eq!(monitor.state().await.unwrap().status, Status::Running);
    monitor.delete(true).await.unwrap();
}

/// Wherever in a life the shim is lost, the next one knows how the container stands and in the end how it ended.
#[tokio::test]
async fn a_shim_may_be_lost_at_any_moment() {
    let place = Native::new("anytime");
    let rounds = scaled(12, 100);
    let mut unknown = 0;
    for round in 0..rounds {
        let c = place
            .create(&Bundle::sh("i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i; done; exit 7"))
            .await;
        let pid = c.shim_pid().await;
        let m = c.monitor.clone();
        let start = tokio::spawn(async move { m.start().await.is_ok() });
        // Spread over start, run, end and rundown; where exactly does not matter, only that it varies.
        pintle_tests::let_pass_async(Duration::from_millis(3 * round as u64)).await;
        kill_hard(pid);
        let _ = start.await;
        let monitor = adopt(&place, &c.id).await;
        let state = monitor.state().await.unwrap();
        if state.status == Status::Created {
            monitor.start().await.unwrap();
        }
        let exit = monitor.wait(Some(SOON)).await.unwrap();
        true_or_unknown(&exit.reason, &ExitReason::Code(7));
        unknown += usize::from(matches!(exit.reason, ExitReason::Unknown(_)));
        // What is in the log is a true beginning of what it wrote.
        counted(&c.log);
        monitor.delete(true).await.unwrap();
    }
    println!("{unknown} of {rounds} ends were unknown");
    place.finish();
}

/// A runtime that never returns from create goes with its shim, before anybody adopts what it left.
#[tokio::test]
async fn a_runtime_that_creates_does_not_outlive_its_shim() {
    let place = Native::new("orphan");
    let note = place.path().join("runtime.pid");
    let hang =
        Act::Script(format!("echo $$ >'{0}.new'; mv '{0}.new' '{0}'; exec sleep 1000000", note.display()));
    let fake = FakeRuntime::new().on("create", hang).write(place.path());
    let id = unique_id("o");
    let mut options = place.options(&id, &Bundle::sh("exit 6"));
    options.runtime.path = fake;
    let monitor = place.shim(&id).await;
    let shim = monitor.info().await.unwrap().pid;
    let create = tokio::spawn(async move { monitor.create(&options).await.is_ok() });
    let runtime: u32 = wait_for_async("the runtime to hang", async || {
        let text = std::fs::read_to_string(&note).map_err(|e| e.to_string())?;
        text.trim().parse().map_err(|e| format!("{text:?}: {e}"))
    })
    .await;
    kill_hard(u32::try_from(shim).unwrap());
    wait_for("the runtime to end with its shim", || {
        let stat = std::fs::read_to_string(format!("/proc/{runtime}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
    assert!(!create.await.unwrap());
    let monitor = adopt(&place, &id).await;
    assert_eq!(monitor.state().await.unwrap().status, Status::Creating);
    monitor.shutdown(true).await.unwrap();
    place.finish();
}

/// Wherever in a create by a real runtime the shim is lost, the next one knows whether there is a container, and a
/// deletion leaves nothing of it.
#[tokio::test]
async fn a_shim_may_be_lost_anywhere_in_create() {
    let place = Native::new("midway");
    let (rounds, mut made) = (scaled(8, 80), 0);
    for round in 0..rounds {
        let id = unique_id("m");
        let options = place.options(&id, &Bundle::sh("exit 6"));
        let monitor = place.shim(&id).await;
        let shim = monitor.info().await.unwrap().pid;
        let create = tokio::spawn(async move { monitor.create(&options).await.is_ok() });
        // Spread over the runtime's work; where exactly does not matter, only that it varies.
        pintle_tests::let_pass_async(Duration::from_millis(120 * round as u64 / rounds as u64)).await;
        kill_hard(u32::try_from(shim).unwrap());
        let _ = create.await.unwrap();
        let monitor = adopt(&place, &id).await;
        match monitor.state().await.unwrap().status {
            Status::Creating => monitor.shutdown(true).await.unwrap(),
            Status::Created => {
                made += 1;
                monitor.start().await.unwrap();
                let exit = monitor.wait(Some(SOON)).await.unwrap();
                true_or_unknown(&exit.reason, &ExitReason::Code(6));
                monitor.delete(true).await.unwrap();
            }
            other => panic!("{id} is {other:?} after a create that was cut off"),
        }
    }
    println!("{made} of {rounds} were created");
    place.finish();
}

/// A shim that is lost while the runtime creates leaves nothing that stands in the way.
#[tokio::test]
async fn a_shim_may_be_lost_during_create() {
    let place = Native::new("birth");
    // Hangs for as long as its caller lives.
    let hang = Act::Script("while kill -0 $PPID; do sleep 0.05; done; exit 1".to_string());
    let fake = FakeRuntime::new().on("create", hang).write(place.path());
    let id = unique_id("b");
    let mut options = place.options(&id, &Bundle::sh("exit 6"));
    options.runtime.path = fake;
    let monitor = place.shim(&id).await;
    let pid = monitor.info().await.unwrap().pid;
    let (m, o) = (monitor.clone(), options.clone());
    let create = tokio::spawn(async move { m.create(&o).await.is_ok() });
    wait_for_async("the runtime to run", async || {
        FakeRuntime::calls(place.path()).iter().any(|c| c.contains("create")).then_some(()).ok_or("not yet")
    })
    .await;
    kill_hard(u32::try_from(pid).unwrap());
    assert!(!create.await.unwrap());
    let monitor = adopt(&place, &id).await;
    assert_eq!(monitor.state().await.unwrap().status, Status::Creating);
    options.runtime.path = pintle_tests::runc();
    monitor.create(&options).await.unwrap();
    monitor.start().await.unwrap();
    assert_eq!(monitor.wait(Some(SOON)).await.unwrap().reason, ExitReason::Code(6));
    monitor.delete(false).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn an_end_that_nobody_saw_is_said_to_be_unknown() {
    let place = Native::new("unseen");
    let c = place.start(&Bundle::sh("while :; do sleep 1; done")).await;
    let dir = place.root().join(&c.id);
    let init = c.state().await.process.unwrap().pid;
    kill_hard(c.shim_pid().await);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(init), nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_for("init to be dead", || {
        let stat = std::fs::read_to_string(format!("/proc/{init}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
    // The id is not free: somebody has to take note of the end first.
    let error = Monitor::spawn(place.spawn_config(&c.id)).await.unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    let monitor = adopt(&place, &c.id).await;
    let exit = monitor.wait(Some(SOON)).await.unwrap();
    true_or_unknown(&exit.reason, &ExitReason::Signal { signal: 9, core_dumped: false });
    assert_eq!(read_exit_record(&dir).unwrap().reason, exit.reason);
    monitor.delete(false).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn a_record_outlives_its_shim() {
    let place = Native::new("record");
    let c = place.start(&Bundle::sh("exit 3")).await;
    let dir = place.root().join(&c.id);
    c.monitor.wait(Some(SOON)).await.unwrap();
    c.monitor.shutdown(false).await.unwrap();
    wait_for("the shim to end", || !has_shim(&dir));
    assert_eq!(read_exit_record(&dir).unwrap().reason, ExitReason::Code(3));
    let error = Monitor::spawn(place.spawn_config(&c.id)).await.unwrap_err();
    assert!(error.to_string().contains("has ended"), "{error}");
    let monitor = adopt(&place, &c.id).await;
    assert_eq!(monitor.wait(Some(SOON)).await.unwrap().reason, ExitReason::Code(3));
    monitor.delete(false).await.unwrap();
    // Of a container that never was there is nothing to adopt.
    let mut config = place.spawn_config("never");
    config.args.push("--adopt".into());
    let error = Monitor::spawn(config).await.unwrap_err();
    assert!(error.to_string().contains("no container never"), "{error}");
    place.finish();
}

async fn upgraded(monitor: &Monitor, times: usize) {
    let before = monitor.info().await.unwrap().pid;
    monitor.upgrade(Some(&shim())).await.unwrap();
    // The connection ends with the old image; the event says that the new one serves.
    wait_for_async("the new image to serve", async || {
        let events = monitor.poll_events(0, Duration::ZERO).await.map_err(|e| e.to_string())?;
        let seen = events.iter().filter(|e| e.kind == EventKind::Upgraded).count();
        if seen >= times { Ok(()) } else { Err(format!("{seen} of {times}")) }
    })
    .await;
    assert_eq!(monitor.info().await.unwrap().pid, before, "another process");
}

/// A stop signal that waits for the program it is meant for is sent by the successor.
#[tokio::test]
async fn a_stop_signal_is_not_lost_in_an_upgrade() {
    let place = Native::new("unsent");
    // Says that it has started the container, which is still the runtime's own process then.
    let fake = FakeRuntime::new().on("start", Act::Nonsense(String::new())).write(place.path());
    // Not the first process of a pid namespace: that would not die of a signal without a handler.
    let bundle = Bundle::new(&["/bin/sleep", "1000"]).edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|n| n["type"] != "pid");
    });
    let c = place.start_with(&bundle, |o| o.runtime.path = fake).await;
    let m = c.monitor.clone();
    let stopping = tokio::spawn(async move { m.stop(Some(libc::SIGTERM), SOON).await });
    wait_for_async("the stop", async || {
        let state = c.monitor.state().await.map_err(|e| e.to_string())?;
        state.stopping.then_some(()).ok_or_else(|| "not yet".to_string())
    })
    .await;
    upgraded(&c.monitor, 1).await;
    let mut start = std::process::Command::new(pintle_tests::runc());
    let out = pintle_tests::output_within(start.args(["start", &c.id]));
    assert!(out.status.success(), "{out:?}");
    let exit = c.monitor.wait(Some(SOON)).await.unwrap();
    assert!(matches!(exit.reason, ExitReason::Signal { signal: libc::SIGTERM, .. }), "{exit:?}");
    // The call itself belonged to the old image.
    let _ = stopping.await.unwrap();
    c.delete().await;
    place.finish();
}

#[tokio::test]
async fn an_upgrade_loses_nothing() {
    let place = Native::new("upgrade");
    let script = "trap 'exit 4' TERM; i=0; while :; do i=$((i+1)); echo $i; done";
    let c = place.start(&Bundle::sh(script)).await;
    let attached = c.monitor.attach(false).await.unwrap();
    let mut stdout = attached.stdio.stdout;
    let reader = tokio::spawn(async move {
        let mut bytes = Vec::new();
        stdout.read_to_end(&mut bytes).await.map(|_| bytes)
    });
    let exec = c.monitor.exec(&ExecOptions::new(["/bin/sh", "-c", "sleep 1000; exit 9"])).await.unwrap();
    let start = c.state().await.process.unwrap();
    let rounds = scaled(10, 100);
    let mut names = std::collections::BTreeSet::from([exec.id.clone()]);
    for round in 1..=rounds {
        upgraded(&c.monitor, round).await;
        // No name is given twice, also not that of an exec that is forgotten.
        let other = c.monitor.exec(&ExecOptions::new(["true"])).await.unwrap();
        assert!(names.insert(other.id.clone()), "{} was there before", other.id);
        other.wait(Some(SOON)).await.unwrap();
        other.delete(false).await.unwrap();
    }
    let state = c.state().await;
    assert_eq!(state.process.unwrap(), start);
    assert_eq!(state.status, Status::Running);
    // What was under way before still is.
    exec.kill(15).await.unwrap();
    let exit = exec.wait(Some(SOON)).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Signal { signal: 15, core_dumped: false });
    let exit = c.monitor.stop(None, SOON).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Code(4));
    let last = counted(&c.log);
    assert!(last > 0);
    // The attach client saw the same, from where it began.
    let bytes = tokio::time::timeout(SOON, reader).await.unwrap().unwrap().unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let numbers: Vec<u64> = text.lines().skip(1).map(|l| l.parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "a gap at the attach client");
    assert_eq!(numbers.last(), Some(&last));
    let events = c.monitor.poll_events(0, Duration::ZERO).await.unwrap();
    let sequence: Vec<u64> = events.iter().map(|e| e.sequence).collect();
    assert_eq!(sequence, (1..=events.len() as u64).collect::<Vec<_>>());
    c.delete().await;
    place.finish();
}

/// From one build to another, whose state version is the next one: nothing is lost on the way; the way back is refused
/// with a reason, in place and by adoption, and the newer one runs on.
#[tokio::test]
async fn an_upgrade_goes_from_one_build_to_another() {
    let (next, old) = other_shims();
    between(&shim(), &next, true).await;
    // An older commit whose state version is ours may be gone back to.
    if let Some(old) = old {
        between(&old, &shim(), false).await;
        between(&old, &next, true).await;
        println!("also from {}", old.display());
    }
}

async fn between(old: &Path, new: &Path, newer_state: bool) {
    let place = Native::new("builds");
    let id = unique_id("bl");
    let mut config = place.spawn_config(&id);
    config.shim = old.to_path_buf();
    let monitor = Monitor::spawn(config).await.unwrap();
    let script = "trap 'exit 4' TERM; i=0; while :; do i=$((i+1)); echo $i; done";
    let options = place.options(&id, &Bundle::sh(script));
    let log = options.logs[0].path.clone();
    monitor.create(&options).await.unwrap();
    monitor.start().await.unwrap();
    let mut stdout = monitor.attach(false).await.unwrap().stdio.stdout;
    let reader = tokio::spawn(async move {
        let mut bytes = Vec::new();
        // An error is the loss of the shim, where the test kills it.
        let end = stdout.read_to_end(&mut bytes).await.is_ok();
        (bytes, end)
    });
    let exec = monitor.exec(&ExecOptions::new(["sleep", "1000"])).await.unwrap();
    let before = monitor.info().await.unwrap();
    let process = monitor.state().await.unwrap().process;
    let there = async |times: usize| {
        wait_for_async("the other image to serve", async || {
            let events = monitor.poll_events(0, Duration::ZERO).await.map_err(|e| e.to_string())?;
            let seen = events.iter().filter(|e| e.kind == EventKind::Upgraded).count();
            if seen >= times { Ok(events) } else { Err(format!("{seen} upgrades told")) }
        })
        .await
    };
    wait_for("some lines", || std::fs::metadata(&log).is_ok_and(|m| m.len() > 1000));
    let upgraded_at = counted_so_far(&log);
    monitor.upgrade(Some(new)).await.unwrap();
    let events = there(1).await;
    // And it goes on.
    wait_for("lines after the upgrade", || counted_so_far(&log) > upgraded_at + 1000);
    let after = monitor.info().await.unwrap();
    assert_eq!(after.pid, before.pid, "another process");
    let told = events.iter().find(|e| e.kind == EventKind::Upgraded).unwrap();
    assert_eq!((&told.attributes["from"], &told.attributes["to"]), (&before.version, &after.version));
    let running = std::fs::read_link(format!("/proc/{}/exe", after.pid)).unwrap();
    assert_eq!(running, new.canonicalize().unwrap());
    assert_eq!(monitor.state().await.unwrap().process, process);
    if newer_state {
        assert_ne!(before.version, after.version);
        assert_eq!(after.state_version, before.state_version + 1);
        let error = monitor.upgrade(Some(old)).await.unwrap_err();
        let reason = format!("state version {} is not understood", after.state_version);
        assert!(error.to_string().contains(&reason), "{error}");
        assert_eq!(monitor.info().await.unwrap(), after, "the one that was there runs on");
    } else {
        monitor.upgrade(Some(old)).await.unwrap();
        there(2).await;
        monitor.upgrade(Some(new)).await.unwrap();
        there(3).await;
    }
    // What was under way before still is.
    exec.kill(15).await.unwrap();
    let exit = exec.wait(Some(SOON)).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Signal { signal: 15, core_dumped: false });
    if newer_state {
        // The state on disk is the newer one's, too: the older one does not guess what it means.
        kill_hard(u32::try_from(after.pid).unwrap());
        let mut config = place.spawn_config(&id);
        config.shim = old.to_path_buf();
        config.args.push("--adopt".into());
        let error = Monitor::spawn(config.clone()).await.unwrap_err();
        assert!(error.to_string().contains("is newer than"), "{error}");
        config.shim = new.to_path_buf();
        let adopter = Monitor::spawn(config).await.unwrap();
        let exit = adopter.stop(None, SOON).await.unwrap();
        true_or_unknown(&exit.reason, &ExitReason::Code(4));
    } else {
        let exit = monitor.stop(None, SOON).await.unwrap();
        assert_eq!(exit.reason, ExitReason::Code(4));
    }
    let last = counted(&log);
    // The attach client that came before the upgrade saw all of it, whole lines from its first to its last one.
    let (bytes, end) = tokio::time::timeout(SOON, reader).await.unwrap().unwrap();
    assert_eq!(end, !newer_state, "how the client's connection ended");
    let text = String::from_utf8(bytes).unwrap();
    let whole = &text[..text.rfind('\n').unwrap()];
    let numbers: Vec<u64> = whole.lines().skip(1).map(|l| l.parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "a gap at the attach client");
    let seen = *numbers.last().unwrap();
    assert!(seen > upgraded_at, "the client saw {seen}, and {upgraded_at} was written before the upgrade");
    assert!(newer_state || seen == last, "the client saw {seen} of {last}");
    monitor.delete(true).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn an_upgrade_that_does_not_fit_is_refused() {
    let place = Native::new("refuse");
    let c = place.start(&Bundle::sh("while :; do sleep 1; done")).await;
    let pid = c.shim_pid().await;
    for (program, words) in
        [("/no/such/shim", "/no/such/shim"), ("/bin/false", "cannot take over"), ("relative", "absolute")]
    {
        let error = c.monitor.upgrade(Some(Path::new(program))).await.unwrap_err();
        assert!(error.to_string().contains(words), "{program}: {error}");
    }
    // One that leaves a process behind which holds its error output: neither waited for, nor left.
    let (program, left) = (place.path().join("forks"), place.path().join("left"));
    let script =
        format!("#!/bin/sh\nsleep 1000000 &\necho $! >'{}'\necho too old >&2\nexit 1\n", left.display());
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let error = c.monitor.upgrade(Some(&program)).await.unwrap_err();
    assert!(error.to_string().contains("cannot take over: too old"), "{error}");
    let left: u32 = std::fs::read_to_string(&left).unwrap().trim().parse().unwrap();
    wait_for("what the program left to be gone", || !std::path::Path::new(&format!("/proc/{left}")).exists());
    // An operation that lives in the old image only is not cut off.
    let m = c.monitor.clone();
    let busy = tokio::spawn(async move {
        m.exec_sync(&sh("touch /tmp/began; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo whole")).await
    });
    wait_for_async("the exec to run", async || {
        let out = c.monitor.exec_sync(&sh("test -e /tmp/began")).await.map_err(|e| e.to_string())?;
        (out.exit.reason == ExitReason::Code(0)).then_some(()).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    let error = c.monitor.upgrade(Some(&shim())).await.unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::Unavailable), "{error}");
    c.monitor.exec_sync(&sh("touch /tmp/go")).await.unwrap();
    assert_eq!(busy.await.unwrap().unwrap().stdout, b"whole\n");
    assert_eq!(c.shim_pid().await, pid);
    let out = c.monitor.exec_sync(&sh("exit 3")).await.unwrap();
    assert_eq!(out.exit.reason, ExitReason::Code(3));
    c.delete().await;
    place.finish();
}
