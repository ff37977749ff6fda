//! The conmon door as CRI-O uses it: its argument vectors, pipes, files and FIFO writes.
//!
//! Two CRI-Os: the newest, and that of mid-2024, which passes `-s`, `--log-size-max` and `--no-sync-log` where asked to.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_tests::{
    Act, AttachClient, Bundle, Conmon, FakeRuntime, Pipes, Running, TempDir, eventually, newer_criu,
    parse_cri, process, process_alive, rejoin, runc, scaled, start_time, unique_id, wait_for, within_bounds,
    write_fifo,
};
use serde_json::{Value, json};

/// Which CRI-O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crio {
    Newest,
    Of2024,
}

/// A pod's container below `dir`, the way CRI-O lays it out.
struct Place {
    bundle: PathBuf,
    persist: PathBuf,
    exits: PathBuf,
    attach: PathBuf,
    log: PathBuf,
}

fn create(dir: &TempDir, bundle: &Bundle, crio: Crio, extra: &[&str]) -> (Conmon, Place) {
    let id = unique_id("criocontainer");
    let place = dir.join(&id);
    fs::create_dir(&place).expect("create");
    let at = |name: &str| {
        let path = place.join(name);
        fs::create_dir(&path).expect("create");
        path
    };
    let bundle = bundle.write(&place);
    let layout = Place {
        bundle,
        persist: at("persist"),
        exits: at("exits"),
        attach: at("attach"),
        log: place.join("0.log"),
    };
    let mut call = Conmon::bare(&layout.bundle, &id).arg("-b").arg(&layout.bundle).args(["-c", &id]);
    call = call.arg("--exit-dir").arg(&layout.exits).arg("-l").arg(&layout.log);
    call = call.args(["--log-level", "info", "-n", "k8s_name_pod_ns_uid_0"]);
    call = call.arg("-P").arg(layout.bundle.join("conmon-pidfile"));
    call = call.arg("-p").arg(layout.bundle.join("pidfile")).arg("--persist-dir").arg(&layout.persist);
    call = call
        .arg("-r")
        .arg(runc())
        .arg("--runtime-arg")
        .arg(format!("--root={}", place.join("root").display()));
    call = call.arg("--socket-dir-path").arg(&layout.attach).args(["--syslog", "-u", &id]);
    if crio == Crio::Of2024 {
        call = call.args(["--log-size-max", "8192", "--no-sync-log"]);
    }
    call = call.args(extra).env("CRI_O_EXTERNAL", "1").pipes(Pipes::Bytes);
    (bare_environment(call), layout)
}

/// CRI-O's conmon has nearly no environment, so its locale is C.
fn bare_environment(call: Conmon) -> Conmon {
    call.env("LC_ALL", "").env("LANG", "")
}

struct Container {
    run: Running,
    place: Place,
    root: PathBuf,
}

impl Container {
    fn new(dir: &TempDir, bundle: &Bundle, crio: Crio, extra: &[&str]) -> Self {
        let (call, place) = create(dir, bundle, crio, extra);
        let root = dir.join(&call.id).join("root");
        Self { run: call.start(), place, root }
    }

    /// Gate, launcher, pid, and the monitor's pid and start time at once.
    fn created(&mut self) -> i64 {
        self.run.gate();
        assert!(self.run.launched().success());
        let message = self.run.message();
        let pid = message["pid"].as_i64().unwrap_or_else(|| panic!("{message}"));
        assert!(pid > 0, "{message}");
        let monitor = self.monitor();
        assert!(start_time(monitor).is_some(), "the monitor is not there when the pid is");
        pid
    }

    fn monitor(&self) -> u32 {
        let text = fs::read_to_string(self.place.bundle.join("conmon-pidfile")).expect("the pid file");
        text.parse().expect("a number without a newline")
    }

    fn runtime(&self, args: &[&str]) -> std::process::Output {
        let mut command = Command::new(runc());
        command.arg(format!("--root={}", self.root.display())).args(args);
        pintle_tests::output_within(&mut command)
    }

    fn started(dir: &TempDir, bundle: &Bundle, crio: Crio, extra: &[&str]) -> Self {
        let mut container = Self::new(dir, bundle, crio, extra);
        container.created();
        container.go();
        container
    }

    fn go(&self) {
        let done = self.runtime(&["start", &self.run.call.id]);
        assert!(done.status.success(), "{done:?}");
    }

    fn logged(&self, text: &str) {
        eventually(&format!("{text:?} in the log"), || {
            let log = fs::read_to_string(&self.place.log).unwrap_or_default();
            if log.contains(text) { Ok(()) } else { Err(log) }
        });
    }

    fn attach(&self) -> AttachClient {
        AttachClient::connect(&self.place.attach.join(&self.run.call.id).join("attach"))
    }

    /// `exec sync` with the arguments that CRI-O gives it.
    fn exec_sync(&self, args: &[&str], extra: &[&str]) -> (Running, PathBuf) {
        self.exec_sync_with(&process(args), extra, &runc())
    }

    fn exec_sync_with(&self, process: &Value, extra: &[&str], runtime: &Path) -> (Running, PathBuf) {
        let id = &self.run.call.id;
        let tmp = self.place.bundle.join(unique_id("exec"));
        fs::create_dir(&tmp).expect("create");
        let (pidfile, log, spec) =
            (tmp.join("pidfile123"), tmp.join("crio-log-123"), tmp.join("exec-process-123"));
        // CRI-O makes both files itself, empty, to have their names.
        fs::write(&pidfile, "").expect("create");
        fs::write(&log, "").expect("create");
        fs::write(&spec, process.to_string()).expect("write");
        let mut call =
            Conmon::bare(&tmp, id).args(["-c", id, "-n", "k8s_name_pod_ns_uid_0", "-r"]).arg(runtime);
        call = call.arg("-p").arg(&pidfile).arg("-e").arg("-l").arg(&log);
        call = call.arg("--socket-dir-path").arg(&self.place.attach).args(["--log-level", "info", "--sync"]);
        call = call.args(["--log-global-size-max", "16777216"]).args(extra);
        call = call.arg("--exec-process-spec").arg(&spec);
        call = call.arg("--runtime-arg").arg(format!("--root={}", self.root.display()));
        (bare_environment(call.pipes(Pipes::Pipe)).start(), log)
    }

    /// What CRI-O makes of an exec sync: code, message, stdout, stderr.
    fn exec_result(&self, args: &[&str], extra: &[&str]) -> (i64, String, Vec<u8>, Vec<u8>) {
        let (mut run, log) = self.exec_sync(args, extra);
        run.gate();
        run.launched();
        let message = run.message();
        let records = parse_cri(&fs::read(&log).expect("the log")).expect("well formed");
        let code = message["exit_code"].as_i64().unwrap_or_else(|| panic!("{message}"));
        let text = message["message"].as_str().unwrap_or_default().to_string();
        (code, text, rejoin(&records, "stdout"), rejoin(&records, "stderr"))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            within_bounds(&self.run.call.id);
        }
        let mut delete = Command::new(runc());
        delete.arg(format!("--root={}", self.root.display())).args(["delete", "-f", &self.run.call.id]);
        let _ = delete.stdout(Stdio::null()).stderr(Stdio::null()).status();
        if let Ok(text) = fs::read_to_string(self.place.bundle.join("conmon-pidfile")) {
            if let Ok(pid) = text.parse::<u32>() {
                wait_for("the monitor's end", || !process_alive(pid));
            }
        }
    }
}

fn both(test: impl Fn(Crio)) {
    for crio in [Crio::Newest, Crio::Of2024] {
        test(crio);
    }
}

/// Waits for a create event of exactly `name`, as CRI-O's watchers do.
fn created_event(inotify: &Inotify, name: &str) {
    loop {
        for event in inotify.read_events().expect("events") {
            let create = event.mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO);
            if create && event.name.as_deref().is_some_and(|found| found == name) {
                return;
            }
        }
    }
}

fn watch(dir: &Path) -> Inotify {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).expect("inotify");
    inotify.add_watch(dir, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO).expect("watch");
    inotify
}

#[test]
fn the_exit_watcher_finds_the_lasting_file() {
    both(|crio| {
        let dir = TempDir::new("cr");
        let mut container = Container::new(&dir, &Bundle::sh("echo hello; exit 5"), crio, &[]);
        container.created();
        let inotify = watch(&container.place.exits);
        container.go();
        created_event(&inotify, &container.run.call.id);
        // At this moment CRI-O reads the lasting file.
        assert_eq!(fs::read_to_string(container.place.persist.join("exit")).expect("the file"), "5");
        assert!(!container.place.bundle.join("oom").exists());
        container.logged(" stdout F hello\n");
        assert_eq!(container.run.line(), None, "nothing follows the pid");
    });
}

#[test]
fn an_out_of_memory_kill_is_in_the_bundle() {
    let dir = TempDir::new("cr");
    let hungry = Bundle::sh("x=abcdefgh; while :; do x=$x$x; done").memory(20 << 20);
    let mut container = Container::new(&dir, &hungry, Crio::Newest, &[]);
    container.created();
    let inotify = watch(&container.place.exits);
    container.go();
    created_event(&inotify, &container.run.call.id);
    assert_eq!(fs::read_to_string(container.place.persist.join("exit")).expect("the file"), "137");
    assert!(container.place.bundle.join("oom").exists());
}

#[test]
fn a_failed_create_carries_the_runtimes_words() {
    both(|crio| {
        let dir = TempDir::new("cr");
        let mut container = Container::new(&dir, &Bundle::new(&["/no/such/command"]), crio, &[]);
        container.run.gate();
        assert!(container.run.launched().success());
        let message = container.run.message();
        assert_eq!(message["pid"], -1, "{message}");
        assert!(message["message"].as_str().expect("a reason").contains("no such file"), "{message}");
    });
}

#[test]
fn exec_sync_codes_and_streams() {
    let dir = TempDir::new("cr");
    let container = Container::started(&dir, &Bundle::sh("exec sleep 1000"), Crio::Newest, &[]);
    let script = "echo out; echo err >&2; printf partial; exit 7";
    let (code, message, out, err) = container.exec_result(&["sh", "-c", script], &["-T", "30"]);
    assert_eq!((code, message.as_str()), (7, ""));
    assert_eq!(out, b"out\npartial");
    assert_eq!(err, b"err\n");
    let (code, _, out, _) = container.exec_result(&["true"], &[]);
    assert_eq!((code, out.len()), (0, 0));
    let (code, _, _, _) = container.exec_result(&["sh", "-c", "kill -9 $$"], &["-s"]);
    assert_eq!(code, 137);
}

#[test]
fn exec_sync_failure_and_timeout() {
    let dir = TempDir::new("cr");
    let container = Container::started(&dir, &Bundle::sh("exec sleep 1000"), Crio::Newest, &[]);
    let (code, message, out, err) = container.exec_result(&["/no/such/command"], &[]);
    assert_eq!(code, -1);
    assert!(message.contains("exec failed"), "{message}");
    assert!(out.is_empty() && err.is_empty());
    let (code, message, out, _) =
        container.exec_result(&["sh", "-c", "echo before; sleep 1000"], &["-T", "4"]);
    assert_eq!((code, message.as_str()), (-1, "command timed out"));
    assert_eq!(out, b"before\n");
}

#[test]
fn exec_sync_output_ends_at_the_global_limit() {
    let dir = TempDir::new("cr");
    let container = Container::started(&dir, &Bundle::sh("exec sleep 1000"), Crio::Newest, &[]);
    let script = "dd if=/dev/zero bs=1M count=18 2>/dev/null | tr '\\0' x | fold -w 1000";
    let (code, _, out, _) = container.exec_result(&["sh", "-c", script], &[]);
    assert_eq!(code, 0);
    // 16 MiB with the framing, and at most one record more.
    assert!((15 << 20..=(16 << 20) + 8192).contains(&out.len()), "{} bytes", out.len());
    assert!(out.iter().all(|byte| matches!(byte, b'x' | b'\n')));
}

#[test]
fn exec_sync_with_a_terminal() {
    let dir = TempDir::new("cr");
    let container = Container::started(&dir, &Bundle::sh("exec sleep 1000"), Crio::Newest, &[]);
    let mut spec = process(&["sh", "-c", "tty; exit 4"]);
    spec["terminal"] = true.into();
    let (mut run, log) = container.exec_sync_with(&spec, &["-t"], &runc());
    run.gate();
    assert_eq!(run.message(), json!({"exit_code": 4}));
    run.launched();
    let text = fs::read_to_string(&log).expect("the log");
    assert!(text.contains("/dev/pts/"), "{text}");
}

#[test]
fn exec_sync_in_parallel() {
    let dir = TempDir::new("cr");
    let container = Container::started(&dir, &Bundle::sh("exec sleep 1000"), Crio::Newest, &[]);
    std::thread::scope(|scope| {
        for number in 0..scaled(8, 50) {
            let container = &container;
            scope.spawn(move || {
                let script = format!("echo {number}; exit {}", number % 100);
                let (code, _, out, _) = container.exec_result(&["sh", "-c", &script], &["-T", "60"]);
                assert_eq!(code, i64::try_from(number % 100).expect("a code"));
                assert_eq!(out, format!("{number}\n").as_bytes());
            });
        }
    });
}

#[test]
fn exec_sync_is_torn_down_by_sigint() {
    let dir = TempDir::new("cr");
    let fake = FakeRuntime::new().on("exec", Act::Then("touch \"$0.done\"".into())).write(dir.path());
    let container = Container::started(&dir, &Bundle::sh("exec sleep 1000"), Crio::Newest, &[]);
    let (mut run, _) = container.exec_sync_with(&process(&["sleep", "1000"]), &[], &fake);
    run.gate();
    let done = dir.path().join("fake-runtime.done");
    wait_for("the end of the runtime's work", || done.exists());
    let pidfile = run.call.path("pidfile123");
    let read = || fs::read_to_string(&pidfile).ok().and_then(|text| text.trim().parse::<u32>().ok());
    wait_for("the process to be the monitor's", || {
        read().is_some_and(|pid| {
            pintle_tests::parent_of(pid) == Some(run.child.id())
                && fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep"))
                && pintle_tests::process_children(run.child.id()) == [pid]
        })
    });
    kill(Pid::from_raw(run.child.id() as i32), Signal::SIGINT).expect("kill");
    assert_eq!(run.message(), json!({"exit_code": 130}));
}

#[test]
fn reopen_as_the_kubelet_asks_for_it() {
    both(|crio| {
        let dir = TempDir::new("cr");
        let script = "echo before; while ! [ -e /tmp/go ]; do sleep 0.05; done; echo after; sleep 1000";
        let container = Container::started(&dir, &Bundle::sh(script), crio, &[]);
        container.logged("before");
        let rotated = container.place.log.with_extension("log.20261127-024200");
        fs::rename(&container.place.log, &rotated).expect("rename");
        let inotify = watch(container.place.log.parent().expect("a directory"));
        write_fifo(&container.place.bundle.join("ctl"), "2 0 0\n");
        // CRI-O waits for this event without any limit.
        created_event(&inotify, "0.log");
        assert!(container.place.log.exists());
        container.exec_result(&["touch", "/tmp/go"], &[]);
        container.logged("after");
        let old = fs::read_to_string(&rotated).expect("the old log");
        assert!(old.contains("before") && !old.contains("after"), "{old}");
        let new = fs::read_to_string(&container.place.log).expect("the new log");
        assert!(!new.contains("before"), "{new}");
    });
}

#[test]
fn reopen_without_a_rename_answers_too() {
    let dir = TempDir::new("cr");
    let container = Container::started(&dir, &Bundle::sh("echo one; exec sleep 1000"), Crio::Newest, &[]);
    container.logged("one");
    let inotify = watch(container.place.log.parent().expect("a directory"));
    for _ in 0..3 {
        write_fifo(&container.place.bundle.join("ctl"), "2 0 0\n");
        created_event(&inotify, "0.log");
    }
}

#[test]
fn rotation_loses_and_repeats_nothing() {
    let dir = TempDir::new("cr");
    let lines = scaled(30_000, 3_000_000);
    let container =
        Container::started(&dir, &Bundle::sh(&format!("seq 1 {lines}; exit 0")), Crio::Newest, &[]);
    let mut files = BTreeMap::new();
    let exit = container.place.exits.join(&container.run.call.id);
    let inotify = watch(container.place.log.parent().expect("a directory"));
    for number in 0..8 {
        let rotated = container.place.log.with_extension(format!("log.{number}"));
        if exit.exists() || fs::rename(&container.place.log, &rotated).is_err() {
            break;
        }
        files.insert(number, rotated);
        write_fifo(&container.place.bundle.join("ctl"), "2 0 0\n");
        // A monitor that is at its end does not reopen any more.
        wait_for("the new log", || container.place.log.exists() || exit.exists());
    }
    drop(inotify);
    wait_for("the exit file", || exit.exists());
    let mut all: Vec<u8> = Vec::new();
    for file in files.values().chain([&container.place.log]).filter(|file| file.exists()) {
        let records = parse_cri(&fs::read(file).expect("a log")).expect("well formed");
        all.extend(rejoin(&records, "stdout"));
    }
    let expected: String = (1..=lines).map(|line| format!("{line}\n")).collect();
    assert!(all == expected.as_bytes(), "{} bytes instead of {}", all.len(), expected.len());
}

#[test]
fn resize_and_attach() {
    let dir = TempDir::new("cr");
    let script = "echo up; while read line; do stty size; done; exit 3";
    let container = Container::started(&dir, &Bundle::sh(script).terminal(), Crio::Newest, &["-t"]);
    container.logged("up");
    let mut client = container.attach();
    write_fifo(&container.place.bundle.join("ctl"), "1 33 99\n");
    eventually("the size", || {
        client.send(b"\n");
        let packet = client.packet().ok_or("the end")?;
        let log = fs::read_to_string(&container.place.log).unwrap_or_default();
        if log.contains("33 99") { Ok(()) } else { Err(String::leak(format!("{packet:?}")) as &str) }
    });
}

#[test]
fn stdin_that_stays_open_and_stdin_once() {
    let dir = TempDir::new("cr");
    let script = "read a; echo got:$a; read b; echo got:$b; exit 4";
    let container =
        Container::started(&dir, &Bundle::sh(script), Crio::Newest, &["--leave-stdin-open", "-i"]);
    for word in ["one", "two"] {
        let mut client = container.attach();
        client.send(format!("{word}\n").as_bytes());
        container.logged(&format!("got:{word}"));
        client.half_close();
    }
    let exit = container.place.exits.join(&container.run.call.id);
    wait_for("the exit file", || exit.exists());
    assert_eq!(fs::read_to_string(&exit).expect("the exit file"), "4");

    let once = Container::started(&dir, &Bundle::sh("cat; exit 6"), Crio::Newest, &["-i"]);
    let mut client = once.attach();
    client.send(b"typed\n");
    client.half_close();
    assert_eq!(client.rest().0, b"typed\n");
    let exit = once.place.exits.join(&once.run.call.id);
    wait_for("the exit file", || exit.exists());
    assert_eq!(fs::read_to_string(&exit).expect("the exit file"), "6");
}

#[test]
fn the_link_to_the_attach_socket() {
    let dir = TempDir::new("cr");
    let mut container = Container::new(&dir, &Bundle::sh("exit 0"), Crio::Newest, &[]);
    container.created();
    let link = container.place.attach.join(&container.run.call.id);
    assert_eq!(fs::read_link(&link).expect("the link"), container.place.bundle);
    container.go();
    wait_for("the link to go", || fs::symlink_metadata(&link).is_err());
}

#[test]
fn a_restore_is_passed_on_and_its_failure_told() {
    both(|crio| {
        let dir = TempDir::new("cr");
        let fake = FakeRuntime::new().on("restore", Act::Fail("criu failed: type RESTORE errno 0".into(), 1));
        let fake = fake.write(dir.path());
        let extra = ["--restore", "/images", "--runtime-opt", "--lsm-profile=selinux:x"];
        let (call, place) = create(&dir, &Bundle::sh("exit 0"), crio, &extra);
        let root = dir.join(&call.id).join("root");
        let mut container = Container { run: call.replace("-r", &fake).start(), place, root };
        container.run.gate();
        assert!(container.run.launched().success());
        let text = "criu failed: type RESTORE errno 0\n";
        assert_eq!(container.run.message(), json!({"pid": -1, "message": text}));
        let calls = FakeRuntime::calls(dir.path());
        let tail = format!(
            "--detach --image-path /images --work-path {} --lsm-profile=selinux:x {}",
            container.place.bundle.display(),
            container.run.call.id
        );
        assert!(calls[0].starts_with("restore --root=") && calls[0].ends_with(&tail), "{calls:?}");
    });
}

#[test]
fn a_restore_by_the_real_criu() {
    let Some(criu) = newer_criu() else { return };
    let tools = criu.parent().expect("a directory").display().to_string();
    let path = format!("{tools}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    both(|crio| {
        let dir = TempDir::new("cr");
        let ctl = dir.path().join("ctl");
        fs::create_dir(&ctl).expect("create");
        let script = "i=0; while [ ! -e /ctl/stop ]; do i=$((i+1)); echo \"n $i\"; sleep 0.05; done; exit 5";
        let bundle = Bundle::sh(script).bind(&ctl, "/ctl");
        let first = Container::started(&dir, &bundle, crio, &[]);
        first.logged("n 5\n");
        // CRI-O checkpoints with the runtime itself; its monitor reports the end that comes of it.
        let (images, work) = (dir.path().join("images"), dir.path().join("work"));
        let mut checkpoint = Command::new(runc());
        checkpoint.env("PATH", &path).arg(format!("--root={}", first.root.display())).arg("checkpoint");
        checkpoint.arg("--image-path").arg(&images).arg("--work-path").arg(&work).arg(&first.run.call.id);
        let done = pintle_tests::output_within(&mut checkpoint);
        assert!(done.status.success(), "{done:?}\n{}", criu_errors(&work.join("dump.log")));
        let exit = first.place.exits.join(&first.run.call.id);
        wait_for("the exit file", || exit.exists());
        let written = counted(&first.place.log, 1);

        // Another container, made of the checkpoint: running when its pid is told, without any start.
        let extra = ["--restore", &images.display().to_string(), "--runtime-opt", "--tcp-established"];
        let (call, place) = create(&dir, &bundle, crio, &extra);
        let root = dir.join(&call.id).join("root");
        let mut second = Container { run: call.env("PATH", &path).start(), place, root };
        second.created();
        wait_for("more output", || counted(&second.place.log, written + 1) > 5);
        let mut client = second.attach();
        client.until("n ");
        let (code, _, out, _) = second.exec_result(&["echo", "inside"], &[]);
        assert_eq!((code, out.as_slice()), (0, &b"inside\n"[..]));
        let exits = watch(&second.place.exits);
        fs::write(ctl.join("stop"), "").expect("stop it");
        created_event(&exits, &second.run.call.id);
        assert_eq!(fs::read_to_string(second.place.persist.join("exit")).expect("the file"), "5");
        counted(&second.place.log, written + 1);
        assert_eq!(second.run.line(), None, "nothing follows the pid");
    });
}

/// Whole lines `n FROM` and on without a gap; how many.
fn counted(log: &Path, from: usize) -> usize {
    let records = parse_cri(&fs::read(log).unwrap_or_default()).expect("well formed");
    let text = String::from_utf8(rejoin(&records, "stdout")).expect("text");
    for (i, line) in text.lines().enumerate() {
        assert_eq!(line, format!("n {}", i + from), "in {text}");
    }
    text.lines().count()
}

fn criu_errors(log: &Path) -> String {
    let log = fs::read_to_string(log).unwrap_or_default();
    log.lines().filter(|line| line.contains("Error")).collect::<Vec<_>>().join("\n")
}

#[test]
fn sigpipe_as_a_scope_sends_it_at_shutdown() {
    let dir = TempDir::new("cr");
    let script = "echo up; while ! [ -e /tmp/go ]; do sleep 0.05; done; exit 8";
    let container = Container::started(&dir, &Bundle::sh(script), Crio::Newest, &[]);
    container.logged("up");
    kill(Pid::from_raw(container.monitor() as i32), Signal::SIGPIPE).expect("kill");
    container.exec_result(&["touch", "/tmp/go"], &[]);
    let exit = container.place.exits.join(&container.run.call.id);
    wait_for("the exit file", || exit.exists());
    assert_eq!(fs::read_to_string(&exit).expect("the exit file"), "8");
}

#[test]
fn journald_beside_the_file() {
    // There is no journal here; what CRI-O's second `--log-path` adds must not harm the first.
    let dir = TempDir::new("cr");
    let container =
        Container::started(&dir, &Bundle::sh("echo both"), Crio::Of2024, &["--log-path", "journald:"]);
    container.logged(" stdout F both\n");
}

#[test]
fn a_prefix_command_may_start_it() {
    // CRI-O may pin the monitor with taskset: the program is then not CRI-O's direct choice.
    let dir = TempDir::new("cr");
    let (call, place) = create(&dir, &Bundle::sh("exit 9"), Crio::Newest, &[]);
    let root = dir.join(&call.id).join("root");
    let mut wrapper = File::create(dir.path().join("wrapper")).expect("create");
    writeln!(wrapper, "#!/bin/sh\nexec nice -n 0 {} \"$@\"", call.program.display()).expect("write");
    drop(wrapper);
    let call = call.args::<&str>([]).program(Path::new("/bin/sh"));
    let mut with_script = call;
    with_script.args.insert(0, dir.path().join("wrapper").into());
    let mut container = Container { run: with_script.start(), place, root };
    container.created();
    container.go();
    let exit = container.place.exits.join(&container.run.call.id);
    wait_for("the exit file", || exit.exists());
    assert_eq!(fs::read_to_string(&exit).expect("the exit file"), "9");
}
