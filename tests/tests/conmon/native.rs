//! The native sockets of containers that came through the conmon door.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Output, Stdio};

use pintle_tests::{Bundle, Conmon, Running, TempDir, eventually, output_within, pintle, process, wait_for};

fn ask(run: &Running, args: &[&str]) -> Output {
    let mut command = Command::new(pintle());
    command.env("PINTLE_DIR", run.call.path("pintle")).args(args);
    output_within(&mut command)
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until the container is listed with this status.
#[track_caller]
fn listed(run: &Running, status: &str) {
    eventually(&format!("status {status}"), || {
        let list = text(&ask(run, &["ps", "-a"]));
        let found = list.lines().any(|line| line.contains(&run.call.id) && line.contains(status));
        if found { Ok(()) } else { Err(list) }
    });
}

#[test]
fn a_container_is_seen_through_its_life() {
    let dir = TempDir::new("nv");
    let script = "echo one; while ! [ -e /tmp/go ]; do sleep 0.05; done; echo two; exit 3";
    let mut run = Conmon::create(&dir, &Bundle::sh(script)).start();
    let pid = run.created();
    listed(&run, "created");
    run.go();
    listed(&run, "running");
    run.logged("one");
    let id = run.call.id.clone();
    let inspected = text(&ask(&run, &["inspect", &id]));
    assert!(inspected.contains(&pid.to_string()) && inspected.contains("conmon"), "{inspected}");
    assert!(text(&ask(&run, &["logs", &id])).contains("one"));
    let stats = text(&ask(&run, &["stats", &id]));
    assert!(!stats.is_empty());
    // Reopened through the native socket, the log goes on in a new file.
    let log = run.call.path("log");
    let old = run.call.path("log.old");
    std::fs::rename(&log, &old).expect("rename");
    text(&ask(&run, &["reopen-log", &id]));
    assert!(log.exists());
    let mut exec = Conmon::exec(&run.call, &process(&["touch", "/tmp/go"])).start();
    exec.gate();
    assert_eq!(run.exit_file(), "3");
    assert!(String::from_utf8(run.log()).expect("text").ends_with(" stdout F two\n"));
    run.gone();
    assert!(!run.call.path("pintle").join(&id).exists(), "its directory stays behind");
}

/// Status in `pintle inspect`, asked once.
fn status(run: &Running) -> String {
    let shown: serde_json::Value =
        serde_json::from_str(&text(&ask(run, &["inspect", &run.call.id]))).expect("a document");
    let shown = shown.get(0).unwrap_or(&shown);
    shown["status"].as_str().unwrap_or_else(|| panic!("{shown}")).to_owned()
}

fn events(run: &Running) -> String {
    text(&ask(run, &["events", &run.call.id]))
}

#[test]
fn what_the_engine_does_shows_at_once() {
    let dir = TempDir::new("nv");
    for round in 0..3 {
        let mut run = Conmon::create(&dir, &Bundle::sh("exec sleep 1000")).start();
        run.created();
        listed(&run, "created");
        run.go();
        if round == 0 {
            let done = ask(&run, &["exec", &run.call.id, "sh", "-c", "exit 21"]);
            assert_eq!(done.status.code(), Some(21), "{done:?}");
        }
        assert_eq!(status(&run), "running");
        let id = run.call.id.clone();
        assert!(run.runtime(&["pause", &id]).status.success());
        assert_eq!(status(&run), "paused");
        let refused = ask(&run, &["exec", &id, "true"]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("is paused"), "{refused:?}");
        assert!(run.runtime(&["resume", &id]).status.success());
        assert_eq!(status(&run), "running");
        // The other way about, each change is told once.
        text(&ask(&run, &["pause", &id]));
        assert_eq!(status(&run), "paused");
        text(&ask(&run, &["resume", &id]));
        assert_eq!(status(&run), "running");
        let told = events(&run);
        for (word, times) in [("started", 1), ("paused", 2), ("resumed", 2)] {
            assert_eq!(told.matches(&format!("Z  {word} ")).count(), times, "{word} in {told}");
        }
        text(&ask(&run, &["kill", "--signal", "KILL", &id]));
        assert_eq!(run.exit_file(), "137");
    }
}

#[test]
fn one_that_is_killed_before_its_start_was_never_started() {
    let dir = TempDir::new("nv");
    let mut run = Conmon::create(&dir, &Bundle::sh("exec sleep 1000")).start();
    run.created();
    listed(&run, "created");
    let id = run.call.id.clone();
    let mut follow = Command::new(pintle());
    follow.env("PINTLE_DIR", run.call.path("pintle")).args(["events", "--follow", &id]);
    let mut follow = follow.stdout(Stdio::piped()).spawn().expect("run pintle");
    let mut output = BufReader::new(follow.stdout.take().expect("a pipe"));
    let mut told = String::new();
    // It listens when it has told what was before.
    output.read_line(&mut told).expect("an event");
    text(&ask(&run, &["kill", "--signal", "KILL", &id]));
    assert_eq!(run.exit_file(), "137");
    output.read_to_string(&mut told).expect("the events");
    follow.wait().expect("the end of pintle");
    assert!(told.contains("exited") && !told.contains("started"), "{told}");
}

#[test]
fn nobody_takes_it_from_its_engine() {
    let dir = TempDir::new("nv");
    let mut run = Conmon::create(&dir, &Bundle::sh("exec sleep 1000")).start();
    run.begin();
    listed(&run, "running");
    let id = run.call.id.clone();
    let refused = ask(&run, &["delete", "--force", &id]);
    assert!(!refused.status.success());
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("engine behind the conmon door"), "{told}");
    listed(&run, "running");
    text(&ask(&run, &["kill", "--signal", "KILL", &id]));
    assert_eq!(run.exit_file(), "137");
}

#[test]
fn it_can_be_turned_off() {
    let dir = TempDir::new("nv");
    let mut run = Conmon::create(&dir, &Bundle::sh("exec sleep 1000")).env("PINTLE_NATIVE", "0").start();
    run.begin();
    // Asked for so that the monitor has had the time to make it.
    run.ctl("2 0 0\n");
    assert!(!run.call.path("pintle").exists());
}

#[test]
fn what_a_killed_monitor_left_does_not_stand_in_the_way() {
    let dir = TempDir::new("nv");
    let mut run = Conmon::create(&dir, &Bundle::sh("exec sleep 1000")).start();
    run.begin();
    listed(&run, "running");
    let place = run.call.path("pintle").join(&run.call.id);
    let monitor = nix::unistd::Pid::from_raw(run.monitor() as i32);
    nix::sys::signal::kill(monitor, nix::sys::signal::SIGKILL).expect("kill");
    run.gone();
    assert!(place.exists());
    let id = run.call.id.clone();
    assert!(run.runtime(&["delete", "-f", &id]).status.success());
    // The engine starts the same container again.
    let again = Conmon::bare(&run.call.dir, &id).args(&run.call.args);
    let mut again = again.start();
    again.created();
    listed(&again, "created");
    assert!(again.runtime(&["delete", "-f", &id]).status.success());
    wait_for("the directory to go", || !place.exists());
}
