//! What goes wrong with conmon and must not with us. Numbers are those of docs/conmon.md.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use pintle_tests::{
    Act, Bundle, Conmon, FakeRuntime, TempDir, eventually, process, process_alive, read_cri, rejoin, wait_for,
};
use serde_json::json;

#[test]
fn w01_a_client_that_does_not_read_stops_nothing() {
    let dir = TempDir::new("wk");
    let mut run = Conmon::create(&dir, &Bundle::sh("seq 1 200000; exit 3")).start();
    run.created();
    let stuck = run.attach();
    run.go();
    assert_eq!(run.exit_file(), "3");
    let text = rejoin(&read_cri(&run.call.path("log")), "stdout");
    assert!(text.ends_with(b"\n200000\n"));
    drop(stuck);
}

#[test]
fn w02_w03_an_orphan_that_keeps_writing_withholds_nothing() {
    let dir = TempDir::new("wk");
    // The orphan leaves the container's namespaces only if there is none for pids.
    let script = "(while [ -e /tmp ]; do echo orphan; sleep 0.01; done) & echo main; exit 4";
    let bundle = Bundle::sh(script).edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    let mut run = Conmon::create(&dir, &bundle).start();
    run.begin();
    assert_eq!(run.exit_file(), "4");
    run.gone();
    assert!(String::from_utf8(run.log()).expect("text").contains(" stdout F main\n"));
    let kill = run.runtime(&["kill", "--all", &run.call.id, "9"]);
    assert!(kill.status.success(), "{kill:?}");
}

#[test]
fn w04_a_failed_reopen_changes_nothing() {
    let dir = TempDir::new("wk");
    let script = "echo before; while ! [ -e /tmp/go ]; do sleep 0.05; done; echo after; exit 5";
    let call = Conmon::create(&dir, &Bundle::sh(script));
    let place = call.path("logs");
    fs::create_dir(&place).expect("create");
    let log = place.join("log");
    let mut run = call.replace("-l", &log).start();
    run.begin();
    eventually("the first line", || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        if text.contains("before") { Ok(()) } else { Err(text) }
    });
    // The directory moves away: there is no place for a new file.
    let moved = run.call.path("moved");
    fs::rename(&place, &moved).expect("rename");
    run.ctl("2 0 0\n1 0 0\n");
    let mut exec = Conmon::exec(&run.call, &process(&["touch", "/tmp/go"])).start();
    exec.gate();
    assert_eq!(run.exit_file(), "5");
    let text = fs::read_to_string(moved.join("log")).expect("the old file");
    assert!(text.contains("before") && text.contains("after"), "{text}");
}

#[test]
fn w05_a_closed_stdin_with_data_pending_does_not_spin() {
    let dir = TempDir::new("wk");
    let mut run =
        Conmon::create(&dir, &Bundle::sh("exec <&-; echo closed; exec sleep 1000")).arg("-i").start();
    run.begin();
    run.logged("closed");
    let mut client = run.attach();
    client.send(&[b'x'; 30_000]);
    let ticks = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
        let rest: Vec<&str> = stat[stat.rfind(')').expect("name") + 2..].split(' ').collect();
        rest[11].parse::<u64>().expect("ticks") + rest[12].parse::<u64>().expect("ticks")
    };
    let monitor = run.monitor();
    let before = ticks(monitor);
    pintle_tests::let_pass(std::time::Duration::from_millis(1000));
    // A spinning process has about 100.
    assert!(ticks(monitor) - before < 30, "{} ticks in a second", ticks(monitor) - before);
}

#[test]
fn w06_an_init_that_is_nobodys_child_is_watched_to_its_end() {
    let dir = TempDir::new("wk");
    // As under a service manager that starts the container's process itself.
    let mut init = std::process::Command::new("sleep").arg("1000").spawn().expect("run sleep");
    let script = format!(
        "while [ $# -gt 0 ]; do [ \"$1\" = --pid-file ] && printf %s {} >\"$2\"; shift; done",
        init.id()
    );
    let fake = FakeRuntime::new().on("create", Act::Script(script)).write(dir.path());
    let mut run = Conmon::create(&dir, &Bundle::sh("true")).replace("-r", &fake).start();
    assert_eq!(run.created(), init.id() as i32);
    let exit = run.call.path("exits").join(&run.call.id);
    pintle_tests::let_pass(std::time::Duration::from_millis(300));
    assert!(!exit.exists() && process_alive(run.monitor()), "it does not take the process for ended");
    init.kill().expect("kill");
    init.wait().expect("reap");
    let code = run.exit_file();
    // The kernel tells a process's status to whoever holds its pidfd from 6.15 on.
    assert!(code == "137" || code == "-1", "{code}");
    run.gone();
}

#[test]
fn w09_a_talkative_runtime_does_not_block_the_create() {
    let dir = TempDir::new("wk");
    let fake = FakeRuntime::new().on("create", Act::FloodStderr(300_000)).write(dir.path());
    let mut run = Conmon::create(&dir, &Bundle::sh("echo out; exit 2")).replace("-r", &fake).start();
    run.begin();
    assert_eq!(run.exit_file(), "2");
    run.gone();
    // What a runtime says that succeeds belongs to the container's stderr.
    let records = read_cri(&run.call.path("log"));
    assert_eq!(rejoin(&records, "stderr").len(), 300_000);
    assert_eq!(rejoin(&records, "stdout"), b"out\n");
}

#[test]
fn w09_the_end_of_a_long_reason_is_told() {
    let dir = TempDir::new("wk");
    let script = "head -c 200000 /dev/zero | tr '\\0' x >&2; echo the real reason >&2; exit 1";
    let fake = FakeRuntime::new().on("create", Act::Script(script.into())).write(dir.path());
    let mut run = Conmon::create(&dir, &Bundle::sh("true")).replace("-r", &fake).start();
    run.gate();
    let message = run.message();
    assert_eq!(message["data"], -1);
    let text = message["message"].as_str().expect("a reason");
    assert!(text.ends_with("xthe real reason\n") && text.len() <= 8191, "{} bytes", text.len());
    run.gone();
}

#[test]
fn w10_clients_are_served_while_the_runtime_runs() {
    let dir = TempDir::new("wk");
    let fake = FakeRuntime::new().on("create", Act::Delay(0.5)).write(dir.path());
    let mut run =
        Conmon::create(&dir, &Bundle::sh("read a; echo got:$a")).replace("-r", &fake).arg("-i").start();
    run.gate();
    assert!(run.launched().success());
    let socket = run.call.path("bundle/attach");
    wait_for("the socket", || socket.exists());
    let mut client = run.attach();
    client.send(b"early\n");
    assert!(run.message()["data"].as_i64().expect("a pid") > 0);
    run.go();
    assert_eq!(client.until("got:early"), "got:early\n");
}

#[test]
fn w14_one_exit_file_that_fails_does_not_withhold_the_other() {
    let dir = TempDir::new("wk");
    let call = Conmon::create(&dir, &Bundle::sh("exit 8")).replace("--persist-dir", "/no/such/dir");
    let mark = call.path("mark");
    let mut run = call.args(["--exit-command", "/usr/bin/touch", "--exit-command-arg"]).arg(&mark).start();
    run.begin();
    assert_eq!(run.exit_file(), "8");
    run.gone();
    assert!(mark.exists());
    assert!(!run.call.path("bundle/attach").exists());

    let mut parent = Conmon::create(&dir, &Bundle::sh("exec sleep 1000")).start();
    parent.begin();
    let call = Conmon::exec(&parent.call, &process(&["sh", "-c", "exit 9"]))
        .replace("--persist-dir", "/no/such/dir");
    let mut exec = call.start();
    exec.gate();
    assert!(exec.message()["data"].as_i64().expect("a pid") > 0);
    assert_eq!(exec.message(), json!({"data": 9}));
}

#[test]
fn w24_every_early_failure_is_told() {
    let dir = TempDir::new("wk");
    let call = Conmon::create(&dir, &Bundle::sh("true")).replace("-b", "/no/such/bundle");
    let mut run = call.start();
    run.gate();
    assert!(run.launched().success());
    let message = run.message();
    assert_eq!(message["data"], -1);
    assert!(message["message"].as_str().expect("a reason").contains("/no/such/bundle"), "{message}");
    run.gone();
}

#[test]
fn w27_the_environment_of_the_runtime_is_clean() {
    let dir = TempDir::new("wk");
    let script = "env | grep -c _OCI_ >&2; grep SigBlk /proc/self/status >&2; ls -l /proc/self/fd >&2; ls /proc/self/fd | wc -l >&2; exit 1";
    let fake = FakeRuntime::new().on("create", Act::Script(script.into())).write(dir.path());
    let mut run = Conmon::create(&dir, &Bundle::sh("true")).replace("-r", &fake).start();
    run.gate();
    let message = run.message();
    let lines: Vec<&str> = message["message"].as_str().expect("words").lines().collect();
    assert_eq!(lines[0], "0");
    assert_eq!(lines[1].split_whitespace().last(), Some("0000000000000000"));
    // What whoever runs the tests has left open is inherited, as it must be; nothing is added to it.
    let plain =
        std::process::Command::new("sh").args(["-c", "ls /proc/self/fd | wc -l"]).output().expect("run sh");
    let expected = String::from_utf8(plain.stdout).expect("text");
    let found = lines.last().map(|line| line.trim());
    assert_eq!(found, Some(expected.trim()), "descriptors of the monitor leak: {lines:?}");
    run.gone();
}

#[test]
fn w27_nothing_is_left_of_a_create_that_failed() {
    let dir = TempDir::new("wk");
    let fake = FakeRuntime::new().on("create", Act::Fail("no".into(), 1)).write(dir.path());
    let call = Conmon::create(&dir, &Bundle::sh("true")).replace("-r", &fake);
    let bundle = call.path("bundle");
    fs::create_dir(bundle.join("notify")).expect("create");
    let host = dir.path().join("host");
    let mut run = call.arg("--sdnotify-socket").arg(&host).start();
    run.gate();
    assert_eq!(run.message(), json!({"data": -1, "message": "no\n"}));
    run.gone();
    for name in ["attach", "ctl", "winsz", "notify/notify.sock"] {
        assert!(!bundle.join(name).exists(), "{name} stays behind");
    }
    assert!(!run.call.path("exits").join(&run.call.id).exists(), "there was no container");
}

#[test]
fn w27_the_oom_score_is_the_monitors_alone() {
    let dir = TempDir::new("wk");
    let script = "cat /proc/self/oom_score_adj >&2; exit 1";
    let fake = FakeRuntime::new().on("create", Act::Script(script.into())).write(dir.path());
    let mut run = Conmon::create(&dir, &Bundle::sh("true")).replace("-r", &fake).start();
    run.gate();
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("the own score");
    assert_eq!(run.message(), json!({"data": -1, "message": own}));
    run.gone();
}

#[test]
fn w31_a_monitor_leaves_the_socket_of_another_in_its_bundle_alone() {
    let dir = TempDir::new("wk");
    let mut parent = Conmon::create(&dir, &Bundle::sh("exec sleep 1000")).start();
    parent.begin();
    let bundle = parent.call.path("bundle");
    let exec = |script: &str| {
        let mut run =
            Conmon::exec(&parent.call, &process(&["sh", "-c", script])).replace("-b", &bundle).start();
        run.gate();
        assert!(run.message()["data"].as_i64().expect("a pid") > 0);
        run
    };
    let mut first = exec("until [ -e /tmp/go ]; do sleep 0.05; done; exit 3");
    let mut second = exec("until [ -e /tmp/on ]; do sleep 0.05; done; echo heard; exit 4");
    let mut client = pintle_tests::AttachClient::connect(&bundle.join("attach"));
    exec("touch /tmp/go");
    assert_eq!(first.message(), json!({"data": 3}));
    assert_eq!(first.line(), None);
    exec("touch /tmp/on");
    // That of the second, or of the last exec: the first one's end has not taken it away.
    assert_eq!(client.rest().0, b"heard\n");
    assert_eq!(second.message(), json!({"data": 4}));
}

#[test]
fn w29_a_monitor_that_dies_takes_a_waiting_runtime_along() {
    let dir = TempDir::new("wk");
    let script = "echo $$ >\"$0.pid\"; exec sleep 1000";
    let fake = FakeRuntime::new().on("create", Act::Script(script.into())).write(dir.path());
    let mut run = Conmon::create(&dir, &Bundle::sh("true")).replace("-r", &fake).start();
    run.gate();
    assert!(run.launched().success());
    let file = dir.path().join("fake-runtime.pid");
    let read = || fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<u32>().ok());
    wait_for("the runtime", || read().is_some());
    let runtime = read().expect("a pid");
    let monitor = nix::unistd::Pid::from_raw(run.monitor() as i32);
    nix::sys::signal::kill(monitor, nix::sys::signal::SIGKILL).expect("kill");
    wait_for("the runtime's end", || !process_alive(runtime));
}

#[test]
fn files_are_not_open_to_everybody() {
    let dir = TempDir::new("wk");
    let mut run = Conmon::create(&dir, &Bundle::sh("exec sleep 1000")).start();
    run.created();
    let mode = |name: &str| fs::metadata(run.call.path(name)).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode("bundle/attach"), 0o700);
    assert_eq!(mode("log"), 0o640);
    assert_eq!(mode("conmon.pid"), 0o644);
}
