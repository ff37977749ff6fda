//! The gates, and callers that vanish at each of them.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use pintle_tests::{
    Bundle, Conmon, Leftovers, Pipes, TempDir, process, process_alive, process_children, wait_for,
};
use serde_json::json;

fn simple(dir: &TempDir) -> Conmon {
    Conmon::create(dir, &Bundle::sh("echo hello; exit 3"))
}

#[test]
fn nothing_happens_before_the_first_gate() {
    let dir = TempDir::new("ga");
    let mut run = simple(&dir).start();
    let log = run.call.path("log");
    // The arguments are valid, so the log exists; nothing else does.
    wait_for("the log", || log.exists());
    pintle_tests::let_pass(Duration::from_millis(100));
    assert!(process_children(run.child.id()).is_empty());
    assert!(!run.call.path("bundle").join("attach").exists());
    assert!(!run.call.path("conmon.pid").exists());
    run.begin();
    assert_eq!(run.exit_file(), "3");
    run.gone();
}

#[test]
fn the_pid_file_exists_when_the_launcher_has_ended() {
    let dir = TempDir::new("ga");
    let mut run = simple(&dir).start();
    run.gate();
    assert!(run.launched().success());
    let text = fs::read_to_string(run.call.path("conmon.pid")).expect("the pid file");
    let pid: u32 = text.parse().expect("a number without a newline");
    assert!(process_alive(pid));
    let pid = run.message()["data"].as_i64().expect("a pid");
    assert_eq!(fs::read_to_string(run.call.path("pidfile")).expect("the pid file").trim(), pid.to_string());
}

#[test]
fn one_gate_takes_many_bytes() {
    let dir = TempDir::new("ga");
    let mut run = simple(&dir).start();
    for _ in 0..3 {
        run.gate();
    }
    assert!(run.launched().success());
    assert!(run.message()["data"].as_i64().expect("a pid") > 0);
}

#[test]
fn every_kind_of_pipe_works() {
    for pipes in [Pipes::Packets, Pipes::Bytes, Pipes::Pipe] {
        let dir = TempDir::new("ga");
        let mut run = simple(&dir).pipes(pipes).start();
        run.begin();
        assert_eq!(run.exit_file(), "3", "{pipes:?}");
        run.gone();
        assert_eq!(run.line(), None, "{pipes:?}");
    }
}

#[test]
fn a_closed_gate_pipe_opens_the_gate() {
    let dir = TempDir::new("ga");
    let mut run = simple(&dir).start();
    run.close_start();
    assert!(run.launched().success());
    assert!(run.message()["data"].as_i64().expect("a pid") > 0);
}

#[test]
fn no_pipes_at_all() {
    let dir = TempDir::new("ga");
    let call = simple(&dir);
    let output = call.refused();
    assert!(output.status.success(), "{output:?}");
    let pidfile = call.path("pidfile");
    wait_for("the container", || pidfile.exists());
    let root = format!("--root={}", call.path("root").display());
    wait_for("the end of create", || {
        let mut start = std::process::Command::new(pintle_tests::runc());
        start.args([&root, "start", &call.id]).output().is_ok_and(|output| output.status.success())
    });
    let exit = call.path("exits").join(&call.id);
    wait_for("the exit file", || exit.exists());
    assert_eq!(fs::read_to_string(exit).expect("the exit file"), "3");
    let _ = std::process::Command::new(pintle_tests::runc()).args([&root, "delete", "-f", &call.id]).output();
    Leftovers::of(&call.id).assert_none();
}

#[test]
fn term_before_the_fork_ends_with_1() {
    let dir = TempDir::new("ga");
    let mut run = simple(&dir).start();
    let log = run.call.path("log");
    wait_for("the log", || log.exists());
    // The handler is set right after the log was opened.
    let status_file = format!("/proc/{}/status", run.child.id());
    wait_for("the handler", || {
        let status = fs::read_to_string(&status_file).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0").trim();
        u64::from_str_radix(caught, 16).unwrap_or(0) & (1 << 14) != 0
    });
    let pid = nix::unistd::Pid::from_raw(run.child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).expect("kill");
    let status = run.launched();
    assert_eq!(status.code(), Some(1), "{:?}", status.signal());
    assert_eq!(run.line(), None);
}

#[test]
fn the_caller_dies_after_the_first_gate() {
    // The container goes on: its monitor does not depend on whoever started it.
    let dir = TempDir::new("ga");
    let mut run = Conmon::create(&dir, &Bundle::sh("echo up; sleep 0.3; exit 4")).start();
    run.gate();
    assert!(run.launched().success());
    let pid = run.message()["data"].as_i64().expect("a pid");
    assert!(pid > 0);
    run.close_start();
    run.go();
    assert_eq!(run.exit_file(), "4");
}

#[test]
fn a_sync_pipe_without_a_reader_does_not_matter() {
    let dir = TempDir::new("ga");
    let (ours, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe");
    drop(ours);
    let mut run = simple(&dir).fd(theirs, 3).start();
    run.gate();
    assert!(run.launched().success());
    let pidfile = run.call.path("pidfile");
    wait_for("the container", || fs::read_to_string(&pidfile).is_ok_and(|text| !text.is_empty()));
    wait_for("the end of create", || run.runtime(&["start", &run.call.id]).status.success());
    assert_eq!(run.exit_file(), "3");
}

#[test]
fn an_attached_exec_waits_at_both_gates() {
    let dir = TempDir::new("ga");
    let mut parent = Conmon::create(&dir, &Bundle::sh("exec sleep 1000")).start();
    parent.begin();
    let mut run = Conmon::exec(&parent.call, &process(&["sh", "-c", "echo ran"])).exec_attach().start();
    run.gate();
    assert_eq!(run.ready(), "{\"data\": 0}\n");
    assert!(run.launched().success());
    let place = run.call.path("");
    for name in ["attach", "ctl", "winsz"] {
        assert!(place.join(name).exists(), "{name}");
    }
    let mut client = pintle_tests::AttachClient::connect(&place.join("attach"));
    pintle_tests::let_pass(Duration::from_millis(200));
    assert!(!place.join("exec_pid").exists(), "the runtime ran before its gate");
    run.gate();
    assert!(run.message()["data"].as_i64().expect("a pid") > 0);
    assert_eq!(client.rest(), (b"ran\n".to_vec(), Vec::new()));
    assert_eq!(run.message(), json!({"data": 0}));
    assert_eq!(run.exit_file(), "0");
}

#[test]
fn a_caller_that_dies_between_the_gates_lets_the_exec_run() {
    let dir = TempDir::new("ga");
    let mut parent = Conmon::create(&dir, &Bundle::sh("exec sleep 1000")).start();
    parent.begin();
    let mut run = Conmon::exec(&parent.call, &process(&["sh", "-c", "exit 6"])).exec_attach().start();
    run.gate();
    run.ready();
    run.close_start();
    assert!(run.message()["data"].as_i64().expect("a pid") > 0);
    assert_eq!(run.exit_file(), "6");
}

#[test]
fn captured_outputs_end_with_the_launcher() {
    use std::io::Read;
    let dir = TempDir::new("ga");
    let mut run = Conmon::create(&dir, &Bundle::sh("exec sleep 1000")).captured().start();
    run.begin();
    for pipe in
        [run.child.stdout.take().map(std::os::fd::OwnedFd::from), run.child.stderr.take().map(Into::into)]
    {
        let mut text = Vec::new();
        std::fs::File::from(pipe.expect("a pipe")).read_to_end(&mut text).expect("read");
        assert!(text.is_empty(), "{}", String::from_utf8_lossy(&text));
    }
}

#[test]
fn a_pid_file_that_cannot_be_written_leaves_no_monitor() {
    let dir = TempDir::new("ga");
    let call = simple(&dir);
    let bad = call.path("no/such/dir/pid");
    let call = call.replace("-P", &bad).captured();
    let mut run = call.start();
    run.gate();
    let output = {
        let status = run.launched();
        (status, run.line())
    };
    assert_eq!(output.0.code(), Some(1));
    assert_eq!(output.1, None, "no container was reported");
    assert!(!run.call.path("pidfile").exists(), "no container was made");
}
