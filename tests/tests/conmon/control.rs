//! The `ctl` and `winsz` FIFOs.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use pintle_tests::{Bundle, Conmon, Running, TempDir, process, wait_for, write_fifo};

/// A container with a terminal that tells its size for ever.
fn terminal(dir: &TempDir) -> Running {
    let script = "echo up; while :; do stty size; sleep 0.05; done";
    let mut run = Conmon::create(dir, &Bundle::sh(script).terminal()).arg("-t").start();
    run.begin();
    run.logged("stdout F up");
    run
}

/// Each bad line is followed by a good one; the bad one must have had no effect and not have harmed the good one.
#[track_caller]
fn rejected(lines: &[&str]) {
    let dir = TempDir::new("ct");
    let run = terminal(&dir);
    for (number, line) in lines.iter().enumerate() {
        let good = number + 5;
        run.ctl(&format!("{line}\n1 {good} {good}\n"));
        run.logged(&format!("F {good} {good}\r"));
    }
    let log = String::from_utf8(run.log()).expect("text");
    let sizes: Vec<&str> = log.lines().filter_map(|line| line.split(" F ").nth(1)).map(str::trim).collect();
    let known = |size: &&str| {
        let mut parts = size.split(' ').map(|part| part.parse::<usize>().unwrap_or(usize::MAX));
        let (rows, cols) = (parts.next(), parts.next());
        *size == "up"
            || *size == "0 0"
            // busybox says so while there is no size.
            || size.starts_with("stty:")
            || rows == cols && rows.is_some_and(|rows| (5..5 + lines.len()).contains(&rows))
    };
    let odd: Vec<&&str> = sizes.iter().filter(|size| !known(size)).collect();
    assert!(odd.is_empty(), "sizes that nobody set: {odd:?}");
}

#[track_caller]
fn resized(line: &str, size: &str) {
    let dir = TempDir::new("ct");
    let run = terminal(&dir);
    run.ctl(line);
    run.logged(&format!("F {size}\r"));
}

#[test]
fn ctrl_01_to_03_08_to_13_16_to_18_rejected() {
    let long = "1 ".repeat(32_500);
    rejected(&[
        "1 -1 -1",
        "1 2",
        "1",
        "foo",
        "999",
        "999 2 2",
        "1 1.5 1.5",
        "1 0x10 0x10",
        "1 100000 100000",
        "1 1001 1001",
        "1 65535 65535",
        "1 1001 5",
        "",
        &long,
    ]);
}

#[test]
fn ctrl_04_06_14_15_accepted() {
    resized("1 2 2 3\n", "2 2");
    resized("1 3 4\n", "3 4");
    resized("1 0010 0020\n", "10 20");
    resized("1 1000 1000\n", "1000 1000");
}

#[test]
fn ctrl_05_a_long_line_is_rejected_and_the_next_is_not() {
    let dir = TempDir::new("ct");
    let run = terminal(&dir);
    // More than a pipe holds at once would block, so in parts.
    for _ in 0..16 {
        run.ctl(&"9".repeat(4096));
    }
    run.ctl("\n1 7 8\n");
    run.logged("F 7 8\r");
}

#[test]
fn lines_in_parts_and_several_at_once() {
    let dir = TempDir::new("ct");
    let run = terminal(&dir);
    run.ctl("1 ");
    run.ctl("11 ");
    run.ctl("12\n1 13 14\nbad\n1 15 16\n1 1");
    run.logged("F 15 16\r");
    run.ctl("7 18\n");
    run.logged("F 17 18\r");
}

#[test]
fn winsz_takes_sizes_too() {
    let dir = TempDir::new("ct");
    let run = terminal(&dir);
    write_fifo(&run.call.path("bundle").join("winsz"), "bad\n21 22\n");
    run.logged("F 21 22\r");
}

#[test]
fn the_fifos_are_made_anew() {
    let dir = TempDir::new("ct");
    let call = Conmon::create(&dir, &Bundle::sh("exec sleep 1000"));
    fs::write(call.path("bundle").join("ctl"), "stale").expect("write");
    let mut run = call.start();
    run.created();
    for name in ["ctl", "winsz"] {
        let meta = fs::metadata(run.call.path("bundle").join(name)).expect("the fifo");
        assert!(meta.file_type().is_fifo(), "{name}");
        assert_eq!(meta.permissions().mode() & 0o777, 0o640, "{name}");
    }
}

/// What the first instruction of an exec sees when its caller has sent the size before the second gate.
fn first_size(parent: &Running, program: &Path) -> String {
    let mut spec = process(&["stty", "size"]);
    spec["terminal"] = true.into();
    let call = Conmon::exec(&parent.call, &spec).program(program);
    let mut run = call.arg("-t").exec_attach().start();
    run.gate();
    run.ready();
    write_fifo(&run.call.path("ctl"), "1 43 123\n");
    let mut client = pintle_tests::AttachClient::connect(&run.call.path("attach"));
    run.gate();
    let (out, _) = client.rest();
    String::from_utf8_lossy(&out).trim().to_string()
}

/// The runtime does not wait until its terminal was taken: a size that is only set then comes too late at times.
#[test]
fn a_size_sent_before_the_terminal_exists_is_there_at_the_first_instruction() {
    let dir = TempDir::new("ct");
    let mut parent = Conmon::create(&dir, &Bundle::sh("exec sleep 1000")).start();
    parent.begin();
    let (ours, peer) = (pintle_tests::conmon(), pintle_tests::require_tool("conmon"));
    let rounds = pintle_tests::scaled(20, 1000);
    let mut late = 0;
    for round in 0..rounds {
        assert_eq!(first_size(&parent, &ours), "43 123", "in round {round}");
        // For comparison, with the same load.
        if pintle_tests::full() && first_size(&parent, &peer) != "43 123" {
            late += 1;
        }
    }
    println!("of {rounds} sizes none came late; with Debian's conmon {late} did");
}

#[test]
fn an_exec_that_is_ended_at_its_second_gate_leaves_nothing() {
    let dir = TempDir::new("ct");
    let mut parent = Conmon::create(&dir, &Bundle::sh("exec sleep 1000")).start();
    parent.begin();
    let mut spec = process(&["stty", "size"]);
    spec["terminal"] = true.into();
    let mut run = Conmon::exec(&parent.call, &spec).args(["-t", "--sync"]).exec_attach().start();
    run.gate();
    run.ready();
    let monitor = nix::unistd::Pid::from_raw(run.child.id() as i32);
    nix::sys::signal::kill(monitor, nix::sys::signal::Signal::SIGTERM).expect("kill");
    assert_eq!(run.message()["data"], -1);
    assert_eq!(run.launched().code(), Some(1));
    for name in ["attach", "ctl", "winsz", "exec_pid"] {
        assert!(!run.call.path(name).exists(), "{name}");
    }
}

#[test]
fn ctrl_07_reopen_recreates_the_log() {
    let dir = TempDir::new("ct");
    let script = "echo before; while ! [ -e /tmp/go ]; do sleep 0.05; done; echo after";
    let mut run = Conmon::create(&dir, &Bundle::sh(script)).start();
    run.begin();
    run.logged("before");
    fs::remove_file(run.call.path("log")).expect("remove the log");
    run.ctl("2 1 1\n");
    let log = run.call.path("log");
    wait_for("the log", || log.exists());
    // Whoever truncates it must not get a hole: the new file is open for appending like the first one.
    let fds = pintle_tests::fds(run.monitor());
    let (fd, _) =
        fds.iter().find(|(_, to)| to.as_str() == log.to_str().expect("path")).expect("the log is open");
    let info = fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", run.monitor())).expect("fdinfo");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags");
    assert_ne!(u32::from_str_radix(flags.trim(), 8).expect("octal") & 0o2000, 0, "{info}");
    let mut exec = Conmon::exec(&run.call, &process(&["touch", "/tmp/go"])).start();
    exec.gate();
    assert_eq!(run.exit_file(), "0");
    let text = String::from_utf8(run.log()).expect("text");
    assert!(text.ends_with(" stdout F after\n") && !text.contains("before"), "{text}");
}

#[test]
fn ctrl_19_reopen_with_rotation_keeps_the_old_log() {
    let dir = TempDir::new("ct");
    let script = "echo before; while ! [ -e /tmp/go ]; do sleep 0.05; done; echo after";
    let mut run = Conmon::create(&dir, &Bundle::sh(script)).arg("--log-rotate").start();
    run.begin();
    run.logged("before");
    run.ctl("2 1 1\n");
    let old = run.call.path("log.1");
    wait_for("the old log", || old.exists());
    let mut exec = Conmon::exec(&run.call, &process(&["touch", "/tmp/go"]));
    let exec_log = exec.path("log");
    exec = exec.replace("-l", &exec_log);
    let mut exec = exec.start();
    exec.gate();
    assert_eq!(run.exit_file(), "0");
    assert!(fs::read_to_string(&old).expect("the old log").ends_with(" stdout F before\n"));
    let text = String::from_utf8(run.log()).expect("text");
    assert!(text.ends_with(" stdout F after\n") && !text.contains("before"), "{text}");
}
