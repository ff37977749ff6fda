//! Exec sessions, both api versions.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_tests::{
    Act, Bundle, Conmon, FakeRuntime, Running, TempDir, process, process_alive, require_tool, scaled,
    wait_for,
};
use serde_json::{Value, json};

fn parent(dir: &TempDir) -> Running {
    let mut parent = Conmon::create(dir, &Bundle::sh("exec sleep 1000")).start();
    parent.begin();
    parent
}

/// The same call as an old caller makes it.
fn legacy(call: Conmon) -> Conmon {
    let mut call = call;
    let at = call.args.iter().position(|arg| arg == "--api-version").expect("--api-version");
    call.args.drain(at..at + 2);
    call
}

#[test]
fn exec_01_06_legacy() {
    let dir = TempDir::new("xe");
    let parent = parent(&dir);
    let call = legacy(Conmon::exec(&parent.call, &process(&["sh", "-c", "echo one; exit 12"])));
    let log = call.path("log");
    let mut run = call.replace("-l", &log).start();
    run.gate();
    assert_eq!(run.line().expect("a message"), "{\"exit_code\": 12}\n");
    assert_eq!(run.line(), None);
    assert_eq!(run.exit_file(), "12");
    assert!(String::from_utf8(run.log()).expect("text").ends_with(" stdout F one\n"));
}

#[test]
fn exec_02_03_attach_needs_its_pipe() {
    let dir = TempDir::new("xe");
    let parent = parent(&dir);
    let call = Conmon::exec(&parent.call, &process(&["true"])).arg("--exec-attach");
    let mut run = call.arg("--sync").captured().start();
    run.gate();
    assert_eq!(run.launched().code(), Some(1));
    let text = "--attach specified but _OCI_ATTACHPIPE was not";
    assert_eq!(run.message(), json!({"data": -1, "message": text}));
    let mut told = String::new();
    std::io::Read::read_to_string(&mut run.child.stderr.take().expect("a pipe"), &mut told).expect("read");
    assert_eq!(told, format!("[conmon:e]: {text}\n"));
}

#[test]
fn exec_04_05_07_attached() {
    let dir = TempDir::new("xe");
    let parent = parent(&dir);
    let call = Conmon::exec(&parent.call, &process(&["sh", "-c", "echo ran; exit 2"])).exec_attach();
    let mut run = call.start();
    run.gate();
    assert_eq!(run.ready(), "{\"data\": 0}\n");
    run.gate();
    let pid = run.message()["data"].as_i64().expect("a pid");
    assert!(pid > 0);
    assert_eq!(run.line().expect("a message"), "{\"data\": 2}\n");
    assert_eq!(run.line(), None);
    assert_eq!(run.exit_file(), "2");
}

#[test]
fn exec_08_a_missing_binary() {
    for api in [true, false] {
        let dir = TempDir::new("xe");
        let parent = parent(&dir);
        let call = Conmon::exec(&parent.call, &process(&["/no/such/command"]));
        let mut run = if api { call } else { legacy(call) }.start();
        run.gate();
        let message = run.message();
        assert_eq!(message[if api { "data" } else { "exit_code" }], -1, "{message}");
        let text = message["message"].as_str().expect("a reason");
        assert!(text.contains("exec failed") && text.contains("no such file or directory"), "{text}");
        assert_eq!(run.line(), None);
        assert!(!run.call.path("exits").join(&run.call.id).exists());
    }
}

#[test]
fn a_pid_file_that_the_caller_made_empty_does_not_hide_the_reason() {
    let dir = TempDir::new("xe");
    let parent = parent(&dir);
    let call = legacy(Conmon::exec(&parent.call, &process(&["/no/such/command"]))).arg("--sync");
    fs::write(call.path("exec_pid"), "").expect("create the pid file");
    let log = call.path("log");
    let mut run = call.replace("-l", &log).start();
    run.gate();
    let message = run.message();
    assert_eq!(message["exit_code"], -1);
    assert!(message["message"].as_str().expect("a reason").contains("exec failed"), "{message}");
    assert_eq!(run.launched().code(), Some(1));
    assert!(run.log().is_empty(), "the runtime's words are no output of the container");
}

#[test]
fn a_stale_pid_file_is_not_trusted() {
    let dir = TempDir::new("xe");
    let parent = parent(&dir);
    let call = Conmon::exec(&parent.call, &process(&["/no/such/command"]));
    fs::write(call.path("exec_pid"), std::process::id().to_string()).expect("create the pid file");
    let mut run = call.start();
    run.gate();
    assert_eq!(run.message()["data"], -1);
    assert_eq!(run.line(), None);
}

#[test]
fn the_timeout_of_an_exec() {
    for api in [true, false] {
        let dir = TempDir::new("xe");
        let parent = parent(&dir);
        let call =
            Conmon::exec(&parent.call, &process(&["sh", "-c", "echo before; sleep 1000"])).args(["-T", "4"]);
        let log = call.path("log");
        let call = call.replace("-l", &log).arg("--sync");
        let mut run = if api { call } else { legacy(call) }.start();
        run.gate();
        if api {
            assert!(run.message()["data"].as_i64().expect("a pid") > 0);
        }
        let key = if api { "data" } else { "exit_code" };
        let line = run.line().expect("a message");
        assert_eq!(line, format!("{{\"{key}\": -1, \"message\": \"command timed out\"}}\n"));
        assert_eq!(run.launched().code(), Some(255));
        assert!(
            String::from_utf8(run.log()).expect("text").contains("stdout F before"),
            "the last output is lost"
        );
        assert_eq!(run.exit_file(), "-1");
    }
}

#[test]
fn a_timeout_answers_in_time_where_the_parent_reaps_late() {
    // The exec'd shell ignores what it can and its child holds the output; nobody in the container reaps.
    let dir = TempDir::new("xe");
    let parent = parent(&dir);
    let script = "trap '' TERM HUP INT; setsid sleep 1000 & sleep 1000";
    let call =
        legacy(Conmon::exec(&parent.call, &process(&["sh", "-c", script]))).args(["-T", "1"]).arg("--sync");
    let started = std::time::Instant::now();
    let mut run = call.start();
    run.gate();
    assert_eq!(run.message(), json!({"exit_code": -1, "message": "command timed out"}));
    assert_eq!(run.launched().code(), Some(255));
    assert!(started.elapsed() < std::time::Duration::from_secs(30));
}

#[test]
fn int_ends_an_exec() {
    // CRI-O tears down with it.
    let dir = TempDir::new("xe");
    let parent = parent(&dir);
    let call = legacy(Conmon::exec(&parent.call, &process(&["sleep", "1000"]))).arg("--sync");
    let pidfile = call.path("exec_pid");
    let mut run = call.start();
    run.gate();
    pintle_tests::wait_for("the process", || {
        // The runtime itself must be done: until then the signal is for it.
        fs::read_to_string(&pidfile).ok().and_then(|text| text.trim().parse::<u32>().ok()).is_some_and(
            |pid| {
                pintle_tests::parent_of(pid) == Some(run.child.id())
                    && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep"))
            },
        )
    });
    kill(Pid::from_raw(run.child.id() as i32), Signal::SIGINT).expect("kill");
    assert_eq!(run.message(), json!({"exit_code": 130}));
    assert_eq!(run.launched().code(), Some(130));
}

#[test]
fn every_short_exec_is_answered() {
    let count = scaled(60, 10_000);
    let dir = TempDir::new("xe");
    let parent = parent(&dir);
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < count {
                    let call = Conmon::exec(&parent.call, &process(&["sh", "-c", "echo a; echo z; exit 9"]));
                    let log = call.path("log");
                    let mut run = call.replace("-l", &log).start();
                    run.gate();
                    assert!(run.message()["data"].as_i64().expect("a pid") > 0);
                    assert_eq!(run.message(), json!({"data": 9}));
                    // The file is there before the message is.
                    let file = run.call.path("exits").join(&run.call.id);
                    assert_eq!(fs::read_to_string(file).expect("the exit file"), "9");
                    let log = String::from_utf8(run.log()).expect("text");
                    assert!(log.contains("stdout F a\n") && log.ends_with("stdout F z\n"), "{log}");
                    let place = run.call.dir.clone();
                    drop(run);
                    fs::remove_dir_all(place).expect("remove");
                }
            });
        }
    });
}

#[test]
fn an_exec_with_a_terminal_that_fails_tells_why() {
    let dir = TempDir::new("xe");
    let parent = parent(&dir);
    let mut spec = process(&["/no/such/command"]);
    spec["terminal"] = true.into();
    let mut run = Conmon::exec(&parent.call, &spec).arg("-t").start();
    run.gate();
    let message = run.message();
    assert_eq!(message["data"], -1);
    assert!(message["message"].as_str().expect("a reason").contains("exec failed"), "{message}");
}

#[test]
fn a_terminal_that_the_spec_does_not_want() {
    let dir = TempDir::new("xe");
    let parent = parent(&dir);
    let mut run = Conmon::exec(&parent.call, &process(&["true"])).arg("-t").start();
    run.gate();
    let message: Value = run.message();
    assert_eq!(message["data"], -1, "{message}");
    assert!(!message["message"].as_str().expect("a reason").is_empty());
}

#[test]
fn no_terminal_arrives_although_the_runtime_succeeds() {
    let dir = TempDir::new("xe");
    let fake = FakeRuntime::new().on("create", Act::Nonsense(String::new())).write(dir.path());
    let mut run = Conmon::create(&dir, &Bundle::sh("true").terminal()).replace("-r", &fake).arg("-t").start();
    run.gate();
    assert_eq!(run.message(), json!({"data": -1, "message": "Runtime did not set up terminal"}));
    run.gone();
}

#[test]
fn execs_leave_no_process() {
    let dir = TempDir::new("xe");
    let parent = parent(&dir);
    let mut run = Conmon::exec(&parent.call, &process(&["true"])).start();
    run.gate();
    let pid = run.message()["data"].as_i64().expect("a pid");
    assert_eq!(run.message(), json!({"data": 0}));
    assert!(!process_alive(u32::try_from(pid).expect("a pid")));
    assert_eq!(run.line(), None, "the monitor closes the pipe when it ends");
}

/// A place where the journal and the system's logger are this test: a mount namespace, held by a process.
struct Recorder {
    keeper: std::process::Child,
    journal: UnixDatagram,
    logger: UnixDatagram,
}

impl Recorder {
    fn new(dir: &TempDir) -> Self {
        let (run, dev) = (dir.path().join("run"), dir.path().join("dev"));
        fs::create_dir_all(run.join("systemd/journal")).expect("create a directory");
        fs::create_dir(&dev).expect("create a directory");
        fs::write(dev.join("null"), "").expect("create a file");
        let bind = |path| {
            let socket = UnixDatagram::bind(path).expect("bind");
            socket.set_nonblocking(true).expect("set");
            socket
        };
        let (journal, logger) = (bind(run.join("systemd/journal/socket")), bind(dev.join("log")));
        let script = "mount --bind /dev/null \"$1/null\" && mount --rbind \"$1\" /dev && mount --rbind \"$0\" /run && \
                      echo ready && exec sleep 1000";
        let mut command = Command::new(require_tool("unshare"));
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(&run).arg(&dev);
        let mut keeper = command.stdout(Stdio::piped()).spawn().expect("unshare");
        let mut ready = [0; 6];
        let out = keeper.stdout.as_mut().expect("a pipe");
        std::io::Read::read_exact(out, &mut ready).expect("the mounts");
        Self { keeper, journal, logger }
    }

    /// The same call, made there.
    fn inside(&self, mut call: Conmon) -> Conmon {
        let program = std::mem::replace(&mut call.program, require_tool("nsenter"));
        let more = ["--mount".into(), "--target".into(), self.keeper.id().to_string().into(), program.into()];
        call.args.splice(0..0, more);
        call
    }

    /// Every message since the last look.
    fn heard(&self) -> Vec<String> {
        let mut all = Vec::new();
        for socket in [&self.journal, &self.logger] {
            let mut buffer = [0; 65536];
            while let Ok(length) = socket.recv(&mut buffer) {
                all.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
        }
        all
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// Health checks as Podman makes them, with a container whose log is the journal and with `--syslog`: neither those that
/// are well nor those that are not write a word.
#[test]
fn health_checks_write_nothing_to_the_journal() {
    let dir = TempDir::new("hc");
    let recorder = Recorder::new(&dir);
    let call = Conmon::create(&dir, &Bundle::sh("echo up; exec sleep 1000"));
    let mut run = recorder.inside(call.replace("-l", "journald").arg("--syslog")).start();
    run.begin();
    // That shows that the recorder hears.
    let mut first = Vec::new();
    wait_for("the container's line in the journal", || {
        first.extend(recorder.heard());
        !first.is_empty()
    });
    assert!(first.len() == 1 && first[0].starts_with("MESSAGE\n") && first[0].contains("up\n"), "{first:?}");
    for round in 0..scaled(10, 500) {
        let code = round % 3;
        let check = process(&["sh", "-c", &format!("echo checked; exit {code}")]);
        let mut exec = recorder.inside(Conmon::exec(&run.call, &check).arg("--syslog")).start();
        exec.gate();
        assert_eq!(exec.exit_file(), code.to_string());
    }
    assert_eq!(recorder.heard(), Vec::<String>::new());
    let failing = Conmon::exec(&run.call, &process(&["/no/such/program"])).arg("--syslog");
    let mut exec = recorder.inside(failing).start();
    exec.gate();
    wait_for("a check that cannot run to be told", || !recorder.heard().is_empty());
}
