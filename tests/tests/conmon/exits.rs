//! Exit codes, exit files, their order, the exit command, signals, timeouts.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_tests::{
    Act, Bundle, Conmon, FakeRuntime, Leftovers, Running, TempDir, process, process_alive, scaled, wait_for,
};
use serde_json::json;

fn start(dir: &TempDir, script: &str) -> Running {
    Conmon::create(dir, &Bundle::sh(script)).start()
}

fn raw(pid: u32) -> Pid {
    Pid::from_raw(pid as i32)
}

#[test]
fn runtime_01_whole_life() {
    let dir = TempDir::new("ex");
    let mut run = start(&dir, "echo hello; exit 7");
    let pid = run.created();
    assert!(process_alive(pid as u32));
    run.go();
    assert_eq!(run.exit_file(), "7");
    assert_eq!(fs::read_to_string(run.call.path("persist/exit")).expect("the lasting file"), "7");
    run.gone();
    assert!(String::from_utf8(run.log()).expect("text").ends_with(" stdout F hello\n"));
    assert!(!run.call.path("bundle/attach").exists(), "the socket stays behind");
    let id = run.call.id.clone();
    drop(run);
    Leftovers::of(id).assert_none();
}

#[test]
fn signals_are_128_and_more() {
    for signal in [9, 15, 6] {
        let dir = TempDir::new("ex");
        let mut run = start(&dir, "exec sleep 1000");
        let pid = run.begin();
        // From outside, init has no protection against SIGKILL; the others need a handler or none of PID 1's.
        if signal == 9 {
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
            assert_eq!(run.exit_file(), "137");
        } else {
            let mut exec =
                Conmon::exec(&run.call, &process(&["sh", "-c", &format!("kill -{signal} $$")])).start();
            exec.gate();
            assert!(exec.message()["data"].as_i64().expect("a pid") > 0);
            assert_eq!(exec.message(), json!({"data": 128 + signal}));
        }
    }
}

#[test]
fn exit_files_have_no_newline_and_appear_whole() {
    let dir = TempDir::new("ex");
    let mut run = start(&dir, "exit 42");
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).expect("inotify");
    let exits = run.call.path("exits");
    let mask = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE;
    inotify.add_watch(&exits, mask).expect("watch");
    run.begin();
    let name = run.call.id.clone();
    let mut seen = Vec::new();
    while !seen.iter().any(|(event, _): &(String, AddWatchFlags)| *event == name) {
        for event in inotify.read_events().expect("events") {
            seen.push((event.name.unwrap_or_default().to_string_lossy().into_owned(), event.mask));
        }
    }
    // Under its final name the file is never written to: it came by a rename, complete.
    let (_, mask) = seen.iter().find(|(event, _)| *event == name).expect("the event");
    assert!(mask.contains(AddWatchFlags::IN_MOVED_TO), "{seen:?}");
    assert_eq!(fs::read_to_string(exits.join(&name)).expect("the exit file"), "42");
    // The lasting file came first.
    assert_eq!(fs::read_to_string(run.call.path("persist/exit")).expect("the lasting file"), "42");
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(exits.join(&name)).expect("metadata").permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
}

#[test]
fn the_exit_command_runs_last_and_sees_everything() {
    let dir = TempDir::new("ex");
    let call = Conmon::create(&dir, &Bundle::sh("echo last; exit 5"));
    let script = format!(
        "exec >'{out}'; cat '{exits}/{id}'; echo; cat '{persist}/exit'; echo; ls '{bundle}/attach' 2>&1; \
         tail -n 1 '{log}'; for a in \"$@\"; do echo \"[$a]\"; done; env | grep -c _OCI_; pwd; \
         ls /proc/self/fd | wc -l; grep -E 'Sig(Blk|Ign)' /proc/self/status; grep VmPeak /dev/null; exit 9",
        out = call.path("out").display(),
        exits = call.path("exits").display(),
        persist = call.path("persist").display(),
        bundle = call.path("bundle").display(),
        log = call.path("log").display(),
        id = call.id,
    );
    let call =
        call.args(["--exit-command", "/bin/bash", "--exit-command-arg", "-c", "--exit-command-arg", &script]);
    let call =
        call.args(["--exit-command-arg", "name", "--exit-command-arg", "", "--exit-command-arg", "-x"]);
    let mut run = call.start();
    run.begin();
    let monitor = run.monitor();
    run.gone();
    assert!(!process_alive(monitor));
    let out = fs::read_to_string(run.call.path("out")).expect("the output");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(&lines[..2], ["5", "5"], "{out}");
    assert!(lines[2].contains("No such file"), "{out}");
    assert!(lines[3].ends_with(" stdout F last"), "{out}");
    assert_eq!(&lines[4..7], ["[]", "[-x]", "0"], "{out}");
    assert_eq!(lines[7], run.call.dir.to_str().expect("path"), "{out}");
    // 0, 1, 2 and the directory that ls reads, nothing of the monitor.
    assert_eq!(lines[8].trim(), "4", "{out}");
    for line in &lines[9..11] {
        let mask = line.split_whitespace().last().and_then(|mask| u64::from_str_radix(mask, 16).ok());
        // Signal 32 belongs to the C library; it may be ignored in whoever runs the tests.
        assert_eq!(mask.map(|mask| mask & 0x7fff_ffff), Some(0), "{out}");
    }
}

#[test]
fn the_exit_command_waits_for_its_delay() {
    let dir = TempDir::new("ex");
    let call = Conmon::create(&dir, &Bundle::sh("exit 0"));
    let mark = call.path("mark");
    let call =
        call.args(["--exit-delay", "1", "--exit-command", "/usr/bin/touch", "--exit-command-arg"]).arg(&mark);
    let mut run = call.start();
    run.begin();
    assert_eq!(run.exit_file(), "0");
    run.gone();
    let written = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).expect("a time");
    let answered = written(&run.call.path("exits").join(&run.call.id));
    let waited = written(&mark).duration_since(answered).expect("in this order");
    assert!(waited >= std::time::Duration::from_millis(900), "{waited:?}");
}

#[test]
fn the_exit_command_also_runs_after_a_failed_create() {
    let dir = TempDir::new("ex");
    let call = Conmon::create(&dir, &Bundle::new(&["/no/such/command"]));
    let mark = call.path("mark");
    let call = call.args(["--exit-command", "/usr/bin/touch", "--exit-command-arg"]).arg(&mark);
    let mut run = call.start();
    run.gate();
    assert!(run.launched().success());
    assert_eq!(run.message()["data"], -1);
    run.gone();
    assert!(mark.exists());
    assert!(!run.call.path("exits").join(&run.call.id).exists());
    assert!(!run.call.path("persist/exit").exists());
}

#[test]
fn runtime_07_08_a_broken_configuration_is_reported() {
    for api in [true, false] {
        let dir = TempDir::new("ex");
        let mut call = Conmon::create(&dir, &Bundle::new(&["/no/such/command"]));
        if !api {
            call.args.drain(..2);
        }
        let mut run = call.start();
        run.gate();
        assert!(run.launched().success(), "the launcher's work was done");
        let key = if api { "data" } else { "pid" };
        let line = run.line().expect("a message");
        assert!(line.starts_with(&format!("{{\"{key}\": -1, \"message\": \"")), "{line}");
        assert!(line.contains("runc create failed"), "{line}");
        assert!(line.contains("no such file or directory"), "{line}");
        assert_eq!(run.line(), None);
        run.gone();
        assert!(run.call.path("conmon.pid").exists());
        assert!(!run.call.path("bundle/attach").exists());
    }
}

#[test]
fn runtime_05_a_runtime_that_is_not_there() {
    let dir = TempDir::new("ex");
    let call = Conmon::create(&dir, &Bundle::sh("exit 0")).replace("-r", "/no/such/runtime");
    assert_eq!(call.refused().status.code(), Some(1));
}

#[test]
fn a_runtime_that_cannot_be_executed() {
    let dir = TempDir::new("ex");
    let call = Conmon::create(&dir, &Bundle::sh("exit 0")).replace("-r", "/tmp");
    let mut run = call.start();
    run.gate();
    assert!(run.launched().success());
    let message = run.message();
    assert_eq!(message["data"], -1);
    assert!(message["message"].as_str().expect("a reason").contains("Permission denied"), "{message}");
    run.gone();
}

#[test]
fn a_runtime_that_is_killed() {
    let dir = TempDir::new("ex");
    let fake = FakeRuntime::new().on("create", Act::Die(9)).write(dir.path());
    let mut run = Conmon::create(&dir, &Bundle::sh("exit 0")).replace("-r", &fake).start();
    run.gate();
    assert!(run.launched().success());
    assert_eq!(run.line().expect("a message"), "{\"data\": -1}\n");
    run.gone();
}

#[test]
fn a_runtime_that_writes_no_pid() {
    let dir = TempDir::new("ex");
    let fake = FakeRuntime::new().on("create", Act::Nonsense("hello".into())).write(dir.path());
    let mut run = Conmon::create(&dir, &Bundle::sh("exit 0")).replace("-r", &fake).start();
    run.gate();
    assert!(run.launched().success());
    let message = run.message();
    assert_eq!(message["data"], -1);
    let text = message["message"].as_str().expect("a reason");
    assert!(
        text.starts_with("Failed to open file “") && text.ends_with("”: No such file or directory"),
        "{text}"
    );
    run.gone();
}

#[test]
fn term_int_and_quit_go_to_the_container() {
    for (signal, name) in [(Signal::SIGTERM, "TERM"), (Signal::SIGINT, "INT"), (Signal::SIGQUIT, "QUIT")] {
        let dir = TempDir::new("ex");
        let script = format!("trap 'echo got; exit 21' {name}; echo ready; while :; do sleep 0.05; done");
        let mut run = start(&dir, &script);
        run.begin();
        run.logged("ready");
        kill(raw(run.monitor()), signal).expect("kill");
        assert_eq!(run.exit_file(), "21", "{name}");
        run.gone();
        assert!(String::from_utf8(run.log()).expect("text").contains("stdout F got"));
    }
}

#[test]
fn hup_pipe_and_user_signals_are_survived() {
    let dir = TempDir::new("ex");
    let mut run = start(&dir, "echo ready; while ! [ -e /tmp/go ]; do sleep 0.05; done; exit 13");
    run.begin();
    run.logged("ready");
    for signal in
        [Signal::SIGHUP, Signal::SIGPIPE, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGCHLD, Signal::SIGALRM]
    {
        kill(raw(run.monitor()), signal).expect("kill");
    }
    let mut exec = Conmon::exec(&run.call, &process(&["touch", "/tmp/go"])).start();
    exec.gate();
    assert_eq!(run.exit_file(), "13");
}

#[test]
fn a_signal_while_the_runtime_runs_goes_to_the_runtime() {
    let dir = TempDir::new("ex");
    let fake = FakeRuntime::new()
        .on("create", Act::Script("trap 'echo stopped by signal >&2; exit 1' TERM; touch \"$0.up\"; while :; do sleep 0.05; done".into()))
        .write(dir.path());
    let mut run = Conmon::create(&dir, &Bundle::sh("exit 0")).replace("-r", &fake).start();
    run.gate();
    assert!(run.launched().success());
    let up = dir.path().join("fake-runtime.up");
    wait_for("the runtime", || up.exists());
    kill(raw(run.monitor()), Signal::SIGTERM).expect("kill");
    let message = run.message();
    assert_eq!(message, json!({"data": -1, "message": "stopped by signal\n"}));
    run.gone();
}

#[test]
fn a_timeout_kills_the_container() {
    let dir = TempDir::new("ex");
    let call = Conmon::create(&dir, &Bundle::sh("echo before; exec sleep 1000")).args(["--timeout", "5"]);
    let mut run = call.start();
    let pid = run.begin();
    assert_eq!(run.exit_file(), "-1");
    assert_eq!(fs::read_to_string(run.call.path("persist/exit")).expect("the lasting file"), "-1");
    run.gone();
    assert!(!process_alive(pid as u32), "the answer came before the end");
    assert!(
        String::from_utf8(run.log()).expect("text").contains("stdout F before"),
        "the last output is lost"
    );
}

#[test]
fn a_timeout_covers_a_runtime_that_hangs() {
    let dir = TempDir::new("ex");
    let fake = FakeRuntime::new().on("create", Act::Hang).write(dir.path());
    let mut run = Conmon::create(&dir, &Bundle::sh("exit 0")).replace("-r", &fake).args(["-T", "1"]).start();
    run.gate();
    assert!(run.launched().success());
    assert_eq!(run.message()["data"], -1);
    run.gone();
}

#[test]
fn sync_keeps_the_monitor_as_the_callers_child() {
    for code in [0, 9] {
        let dir = TempDir::new("ex");
        let mut call = Conmon::create(&dir, &Bundle::sh(&format!("exit {code}"))).arg("--sync");
        // The pid file belongs to the launcher's half.
        let at = call.args.iter().position(|arg| arg == "-P").expect("-P");
        call.args.drain(at..at + 2);
        let mut run = call.without_pidfile().start();
        run.gate();
        let pid = run.message()["data"].as_i64().expect("a pid");
        assert!(pid > 0);
        run.go();
        let status = run.launched();
        assert_eq!(status.code(), Some(code));
        assert_eq!(run.exit_file(), code.to_string());
    }
}

#[test]
fn the_monitor_is_a_daemon_under_its_own_name() {
    let dir = TempDir::new("ex");
    let mut run = start(&dir, "exec sleep 1000");
    run.begin();
    let monitor = run.monitor();
    let read = |name: &str| fs::read_to_string(format!("/proc/{monitor}/{name}")).expect("a file of /proc");
    assert_eq!(read("comm").trim(), "conmon");
    assert!(fs::read_link(format!("/proc/{monitor}/exe")).expect("exe").ends_with("conmon"));
    let stat = read("stat");
    let fields: Vec<&str> = stat[stat.rfind(')').expect("name") + 2..].split(' ').collect();
    assert_eq!(fields[3], monitor.to_string(), "not the leader of a session");
    assert_eq!(pintle_tests::threads(monitor), 1);
    for number in 0..3 {
        let link = fs::read_link(format!("/proc/{monitor}/fd/{number}")).expect("a descriptor");
        assert_eq!(link, Path::new("/dev/null"));
    }
    let status = read("status");
    let mask = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a mask");
        u64::from_str_radix(line.trim(), 16).expect("a mask")
    };
    assert_eq!(mask("SigIgn:") & (1 << 12), 1 << 12, "SIGPIPE");
    assert_eq!(mask("SigCgt:") & 0x4006, 0x4006, "INT, QUIT, TERM");
}

#[test]
fn descriptors_are_inherited_and_closed_before_the_exit_file() {
    let dir = TempDir::new("ex");
    let (ours, theirs) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe");
    let mut run = Conmon::create(&dir, &Bundle::sh("exec sleep 1000")).fd(theirs, 9).start();
    let pid = run.begin();
    assert!(pintle_tests::fds(run.monitor()).contains_key(&9), "the monitor holds it");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
    run.exit_file();
    // The last holder has let go of it by now.
    let mut byte = [0];
    assert_eq!(nix::unistd::read(&ours, &mut byte), Ok(0));
}

#[test]
fn every_short_container_is_answered() {
    let count = scaled(40, 10_000);
    let dir = TempDir::new("ex");
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < count {
                    let mut run = start(&dir, "echo first; echo last >&2; exit 17");
                    run.begin();
                    assert_eq!(run.exit_file(), "17");
                    let log = String::from_utf8(run.log()).expect("text");
                    assert!(log.contains("stdout F first\n") && log.contains("stderr F last\n"), "{log}");
                    run.gone();
                    let place = run.call.dir.clone();
                    drop(run);
                    fs::remove_dir_all(place).expect("remove");
                }
            });
        }
    });
}

#[test]
fn oom_is_told_before_the_exit_file() {
    let dir = TempDir::new("ex");
    let hungry = Bundle::sh("x=abcdefgh; while :; do x=$x$x; done").memory(20 << 20);
    let mut run = Conmon::create(&dir, &hungry).start();
    run.begin();
    assert_eq!(run.exit_file(), "137");
    assert!(run.call.path("persist/oom").exists(), "persist/oom");
    assert!(run.call.path("bundle/oom").exists(), "bundle/oom");
    assert_eq!(fs::metadata(run.call.path("persist/oom")).expect("metadata").len(), 0);
}

#[test]
fn no_oom_file_without_an_oom() {
    let dir = TempDir::new("ex");
    let mut run = Conmon::create(&dir, &Bundle::sh("exec sleep 1000").memory(50 << 20)).start();
    let pid = run.begin();
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill");
    assert_eq!(run.exit_file(), "137");
    run.gone();
    assert!(!run.call.path("persist/oom").exists());
    assert!(!run.call.path("bundle/oom").exists());
}

#[test]
fn the_runtime_is_called_as_documented() {
    let dir = TempDir::new("ex");
    let fake = FakeRuntime::new().write(dir.path());
    let call = Conmon::create(&dir, &Bundle::sh("exit 0")).replace("-r", &fake);
    let call = call.args([
        "--no-pivot",
        "--no-new-keyring",
        "--runtime-opt",
        "--preserve-fds",
        "--runtime-opt",
        "0",
    ]);
    let mut run = call.start();
    run.created();
    let calls = FakeRuntime::calls(dir.path());
    let path = |name: &str| run.call.path(name).display().to_string();
    let expected = format!(
        "create --root={} create --bundle {} --pid-file {} --no-pivot --no-new-keyring --preserve-fds 0 {}",
        path("root"),
        path("bundle"),
        path("pidfile"),
        run.call.id
    );
    assert_eq!(calls, [expected]);
}

#[test]
fn a_restore_is_called_as_documented() {
    let dir = TempDir::new("ex");
    let fake = FakeRuntime::new().on("restore", Act::Fail("no image".into(), 1)).write(dir.path());
    let call = Conmon::create(&dir, &Bundle::sh("exit 3")).replace("-r", &fake);
    let call = call.args(["--restore", "/the/image", "--runtime-opt", "--tcp-established", "-s"]);
    let mut run = call.start();
    run.gate();
    assert!(run.launched().success());
    let message = run.message();
    let path = |name: &str| run.call.path(name).display().to_string();
    let expected = format!(
        "restore --systemd-cgroup --root={} restore --bundle {b} --pid-file {} --detach --image-path /the/image \
         --work-path {b} --tcp-established {}",
        path("root"),
        path("pidfile"),
        run.call.id,
        b = path("bundle"),
    );
    assert_eq!(FakeRuntime::calls(dir.path()), [expected]);
    assert_eq!(message, json!({"data": -1, "message": "no image\n"}));
}

#[test]
fn runtimes_other_than_runc_work_too() {
    let dir = TempDir::new("ex");
    let crun = pintle_tests::crun();
    let mut run = Conmon::create(&dir, &Bundle::sh("echo hello; exit 6")).replace("-r", &crun).start();
    run.created();
    let root = format!("--root={}", run.call.path("root").display());
    let done =
        Command::new(&crun).args([&root, "start", &run.call.id]).stdin(Stdio::null()).output().expect("run");
    assert!(done.status.success(), "{done:?}");
    assert_eq!(run.exit_file(), "6");
    run.gone();
    let _ = Command::new(&crun).args([&root, "delete", "-f", &run.call.id]).output();
}

#[test]
fn short_and_hidden_names_of_options() {
    let dir = TempDir::new("ex");
    let mut call = Conmon::create(&dir, &Bundle::sh("echo out; exit 6")).arg("--no-sync-log");
    for arg in &mut call.args {
        match arg.to_str() {
            Some("--persist-dir") => *arg = "-0".into(),
            Some("-p") => *arg = "--pidfile".into(),
            _ => {}
        }
    }
    let pidfile = call.path("pidfile");
    let mut run = call.start();
    let pid = run.begin();
    assert_eq!(fs::read_to_string(pidfile).expect("the pid file"), pid.to_string());
    assert_eq!(run.exit_file(), "6");
    assert_eq!(fs::read_to_string(run.call.path("persist/exit")).expect("the lasting file"), "6");

    let fake = FakeRuntime::new().on("restore", Act::Script("exit 1".into())).write(dir.path());
    let call = Conmon::create(&dir, &Bundle::sh("exit 0")).replace("-r", &fake);
    let call = call.args(["--restore", "/images", "--restore-arg", "--one", "--runtime-opt", "--two"]);
    let mut run = call.args(["--restore-arg", "--three"]).start();
    run.gate();
    // Empty words are no message.
    assert_eq!(run.message(), serde_json::json!({"data": -1}));
    let calls = FakeRuntime::calls(dir.path());
    assert!(calls[0].contains(" --one --two --three "), "{calls:?}");
    run.gone();
}
