//! `pintle` as its user meets it: at a terminal, in scripts, and when something is wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::termios::LocalFlags;
use nix::unistd::Pid;
use pintle_tests::{
    Leftovers, PtyChild, TempDir, eventually, newer_criu, output_within, pintle, rootfs, scaled, shim,
    unique_id, wait_exit, wait_for, within_bounds,
};
use serde_json::Value;

/// A place for containers made by the command line.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new(tag: &str) -> Self {
        Self { dir: TempDir::new(tag) }
    }

    fn root(&self) -> PathBuf {
        self.dir.join("run")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(pintle());
        c.env("PINTLE_DIR", self.root()).env("PINTLE_SHIM", shim()).env("TERM", "xterm").args(args);
        c
    }

    fn run(&self, args: &[&str]) -> Output {
        if args.first() == Some(&"rm") {
            within_bounds(&self.dir.path().to_string_lossy());
        }
        output_within(&mut self.command(args))
    }

    #[track_caller]
    fn good(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "pintle {args:?}: {:?}\n{}", out.status, text(&out.stderr));
        text(&out.stdout)
    }

    fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = ["--json"].iter().chain(args).copied().collect();
        let out = self.good(&args);
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("pintle {args:?} printed {out}: {e}"))
    }

    /// `run -d` of a script; the id.
    fn detached(&self, extra: &[&str], script: &str) -> String {
        let id = unique_id("cli");
        let fixed = ["run", "-d", "--id", id.as_str(), "--read-only", "--rootfs", root(), "-e", "PATH=/bin"];
        let args: Vec<&str> = fixed.iter().chain(extra).chain(&["--", "sh", "-c", script]).copied().collect();
        assert_eq!(self.good(&args).trim(), id);
        id
    }

    /// A command with a terminal.
    fn terminal(&self, args: &[&str]) -> PtyChild {
        PtyChild::spawn(&mut self.command(args), 31, 97)
    }

    fn run_t(&self, id: &str, script: &str) -> PtyChild {
        self.terminal(&[
            "run",
            "-it",
            "--id",
            id,
            "--read-only",
            "--rootfs",
            root(),
            "-e",
            "PATH=/bin",
            "--",
            "sh",
            "-c",
            script,
        ])
    }

    fn finish(&self) {
        assert_eq!(self.good(&["ps", "-q"]), "", "all containers were removed");
        Leftovers::of(self.dir.path().to_string_lossy()).assert_none();
        let left: Vec<_> =
            fs::read_dir(self.root()).map(|d| d.flatten().map(|e| e.path()).collect()).unwrap_or_default();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for id in text(&self.run(&["ps", "-q"]).stdout).split_whitespace() {
                let _ = self.run(&["rm", "-f", id]);
            }
        }
    }
}

fn root() -> &'static str {
    rootfs().to_str().expect("UTF-8")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Output, error output and exit code of a container are those of `pintle run`.
#[test]
fn run_passes_on_output_and_exit_code() {
    let place = Place::new("run");
    let out = place.run(&[
        "run",
        "--rm",
        "--read-only",
        "--rootfs",
        root(),
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 42",
    ]);
    assert_eq!(
        (out.status.code(), text(&out.stdout), text(&out.stderr)),
        (Some(42), "out\n".into(), "err\n".into())
    );
    let out = place.run(&["run", "--rm", "--rootfs", root(), "--read-only", "/bin/no-such-program"]);
    assert_eq!(out.status.code(), Some(127), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("/bin/no-such-program"), "{}", text(&out.stderr));
    let out = place.run(&["run", "--rm", "--rootfs", "/no/such/root", "true"]);
    assert_eq!(out.status.code(), Some(125));
    assert!(text(&out.stderr).contains("/no/such/root"), "{}", text(&out.stderr));
    let out = place.run(&["--runtime", "/no/runtime", "run", "--rm", "--rootfs", root(), "true"]);
    assert_eq!(out.status.code(), Some(125));
    assert!(text(&out.stderr).contains("/no/runtime"), "{}", text(&out.stderr));
    place.finish();
}

/// Standard input is passed on, to its end, through run and exec.
#[test]
fn standard_input_is_passed_on() {
    let place = Place::new("stdin");
    let input = place.dir.join("input");
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&input, &bytes).unwrap();
    let output = place.dir.join("output");
    let status = |command: &mut Command| {
        let mut child = command
            .stdin(fs::File::open(&input).unwrap())
            .stdout(fs::File::create(&output).unwrap())
            .spawn()
            .unwrap();
        wait_exit(&mut child)
    };
    let run =
        &["run", "-i", "--rm", "--log", "none", "--read-only", "--rootfs", root(), "-e", "PATH=/bin", "cat"];
    assert!(status(&mut place.command(run)).success());
    assert!(fs::read(&output).unwrap() == bytes, "run");
    let id = place.detached(&[], "sleep 1000");
    assert!(status(&mut place.command(&["exec", "-i", &id, "cat"])).success());
    assert!(fs::read(&output).unwrap() == bytes, "exec");
    place.good(&["rm", "-f", &id]);
    place.finish();
}

/// At a terminal: raw mode while it lasts, keys and size reach the program, and all is as before at the end.
#[test]
fn a_terminal_is_raw_and_restored() {
    let place = Place::new("tty");
    let id = unique_id("cli");
    let mut t = place
        .run_t(&id, "stty size; trap 'stty size' WINCH; echo ready; read a; read b; echo \"<$a>\"; exit 5");
    t.expect("31 97");
    t.expect("ready");
    assert!(!t.termios().local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO), "raw mode");
    t.resize(40, 120);
    eventually("the new size in the container", || {
        // The trap runs when `read` is interrupted or ends.
        if t.output().contains("40 120") {
            Ok(())
        } else {
            t.send("\r");
            Err(t.output())
        }
    });
    t.send("word\rword\rword\r");
    assert_eq!(t.wait().code(), Some(5), "{}", t.output());
    assert!(t.termios().local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO), "restored");
    place.good(&["rm", &id]);
    place.finish();
}

/// The detach keys leave the container running; attach comes back to it.
#[test]
fn detach_keys_leave_and_attach_returns() {
    let place = Place::new("det");
    let id = unique_id("cli");
    let mut t = place.run_t(&id, "echo ready; while read x; do echo \"got $x\"; done");
    t.expect("ready");
    t.send(b"\x10\x11");
    assert_eq!(t.wait().code(), Some(0), "{}", t.output());
    assert!(t.termios().local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO), "restored");
    assert_eq!(place.json(&["inspect", &id])["status"], "running");

    let mut t = place.terminal(&["attach", "--detach-keys", "ctrl-x,x", &id]);
    eventually("an answer", || {
        t.send("hello\r");
        if t.output().contains("got hello") { Ok(()) } else { Err(t.output()) }
    });
    t.send(b"\x18x");
    assert_eq!(t.wait().code(), Some(0), "{}", t.output());

    let mut t = place.terminal(&["exec", "-it", &id, "sh", "-c", "tty; stty size; exit 9"]);
    assert_eq!(t.wait().code(), Some(9), "{}", t.output());
    t.expect("/dev/pts/");
    t.expect("31 97");
    place.good(&["rm", "-f", &id]);
    place.finish();
}

/// An exec with a terminal that was left with the detach keys is found again, and it still listens.
#[test]
fn an_exec_is_left_and_found_again() {
    let place = Place::new("detexec");
    let id = place.detached(&[], "sleep 1000000");
    let script = "echo ready; while read x; do echo \"got $x\"; done; exit 6";
    let mut t = place.terminal(&["exec", "-it", &id, "sh", "-c", script]);
    t.expect("ready");
    t.send(b"\x10\x11");
    assert_eq!(t.wait().code(), Some(0), "{}", t.output());
    t.expect(&format!("pintle attach --exec exec-1 {id} returns to it"));
    let mut t = place.terminal(&["attach", "--exec", "exec-1", &id]);
    eventually("an answer", || {
        t.send("hello\r");
        if t.output().contains("got hello") { Ok(()) } else { Err(t.output()) }
    });
    t.send(b"\x04");
    assert_eq!(t.wait().code(), Some(6), "{}", t.output());
    place.good(&["rm", "-f", &id]);
    place.finish();
}

/// The terminal is restored also when the container is killed and when pintle gets a signal.
#[test]
fn a_terminal_is_restored_when_the_end_comes_from_outside() {
    let place = Place::new("end");
    let id = unique_id("cli");
    let mut t = place.run_t(&id, "echo ready; sleep 1000");
    t.expect("ready");
    place.good(&["kill", &id]);
    assert_eq!(t.wait().code(), Some(137), "{}", t.output());
    assert!(t.termios().local_flags.contains(LocalFlags::ICANON), "restored");
    place.good(&["rm", &id]);
    place.finish();
}

/// Without a terminal, signals go to the container, and its answer is our exit code.
#[test]
fn signals_are_passed_on() {
    let place = Place::new("sig");
    let id = unique_id("cli");
    let script = "trap 'exit 33' TERM; trap 'echo usr1' USR1; echo ready; while :; do sleep 0.1; done";
    let out = place.dir.join("out");
    let mut child = place
        .command(&[
            "run",
            "--id",
            &id,
            "--read-only",
            "--rootfs",
            root(),
            "-e",
            "PATH=/bin",
            "--",
            "sh",
            "-c",
            script,
        ])
        .stdin(Stdio::null())
        .stdout(fs::File::create(&out).unwrap())
        .spawn()
        .unwrap();
    let read = || fs::read_to_string(&out).unwrap_or_default();
    wait_for("the container to be ready", || read().contains("ready"));
    let pid = Pid::from_raw(child.id() as i32);
    kill(pid, Signal::SIGUSR1).unwrap();
    wait_for("the first signal", || read().contains("usr1"));
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(wait_exit(&mut child).code(), Some(33));
    place.good(&["rm", &id]);
    place.finish();
}

/// Ends, in all their kinds, as exit codes.
#[test]
fn exit_codes_tell_how_it_ended() {
    let place = Place::new("codes");
    let id = place.detached(&[], "trap 'exit 7' TERM; while :; do sleep 0.1; done");
    let code = |args: &[&str]| place.run(args).status.code();
    assert_eq!(code(&["exec", &id, "sh", "-c", "exit 3"]), Some(3));
    assert_eq!(code(&["exec", &id, "sh", "-c", "kill -9 $$"]), Some(137));
    assert_eq!(code(&["exec", &id, "/no/program"]), Some(127));
    assert_eq!(code(&["exec", "--timeout", "1", &id, "sleep", "1000"]), Some(124));
    assert_eq!(code(&["exec", "--timeout", "60", &id, "sh", "-c", "exit 4"]), Some(4));
    assert_eq!(code(&["exec", "nobody", "true"]), Some(125));
    assert_eq!(code(&["stop", "nobody"]), Some(1));
    assert_eq!(code(&["stop", "--bad-option"]), Some(2));
    assert_eq!(code(&["no-such-command"]), Some(2));
    assert_eq!(code(&["rm", &id]), Some(1), "it lives");
    place.good(&["stop", &id]);
    assert_eq!(place.good(&["wait", &id]).trim(), "7");
    let exit = place.json(&["wait", &id]);
    assert_eq!(
        (&exit["id"], &exit["kind"], &exit["code"], &exit["oom_killed"]),
        (&id.as_str().into(), &"code".into(), &7.into(), &false.into())
    );
    place.good(&["rm", &id]);
    assert_eq!(code(&["wait", &id]), Some(1));
    place.finish();
}

/// The log as the container wrote it, its tail, its times, and following it over a rotation.
#[test]
fn logs_follow_over_a_rotation() {
    let place = Place::new("logs");
    let log = place.dir.join("log");
    let path = log.to_str().unwrap();
    let script = "for i in 1 2 3; do echo line $i; done; echo oops >&2; while [ ! -e /ctl/go ]; do sleep 0.1; done; echo last";
    let control = place.dir.join("ctl");
    fs::create_dir(&control).unwrap();
    let mount = format!("{}:/mnt:ro", control.display());
    let script = script.replace("/ctl", "/mnt");
    let id = place.detached(&["--log", path, "-v", &mount], &script);
    wait_for("three lines", || place.run(&["logs", &id]).stdout == b"line 1\nline 2\nline 3\n");
    wait_for("the error line", || place.run(&["logs", &id]).stderr == b"oops\n");
    assert_eq!(place.run(&["logs", "--tail", "2", &id]).stdout, b"line 3\n");
    assert_eq!(place.good(&["logs", "--since", "1h", &id]), "line 1\nline 2\nline 3\n");
    assert_eq!(place.good(&["logs", "--since", "2099-01-01T00:00:00Z", &id]), "");
    let stamped = place.good(&["logs", "-t", &id]);
    assert!(stamped.lines().all(|l| l.starts_with("20") && l.contains(" line ")), "{stamped}");

    let out = place.dir.join("out");
    let mut follow = place
        .command(&["logs", "-f", &id])
        .stdin(Stdio::null())
        .stdout(fs::File::create(&out).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the follower to begin", || fs::read(&out).unwrap().ends_with(b"line 3\n"));
    fs::rename(&log, place.dir.join("log.old")).unwrap();
    place.good(&["reopen-log", "--all"]);
    fs::write(control.join("go"), "").unwrap();
    assert!(wait_exit(&mut follow).success());
    assert_eq!(text(&fs::read(&out).unwrap()), "line 1\nline 2\nline 3\nlast\n");
    assert_eq!(text(&place.run(&["logs", &id]).stdout), "last\n");
    place.good(&["rm", &id]);
    place.finish();
}

/// A first process that does not mind SIGINT does not hold the user for ever, and is not ended.
#[test]
fn the_third_interrupt_is_ours() {
    let place = Place::new("int");
    let id = unique_id("cli");
    let (out, err) = (place.dir.join("out"), place.dir.join("err"));
    let script = "trap '' INT; echo ready; sleep 1000000";
    let mut child = place
        .command(&["run", "--id", &id, "--read-only", "--rootfs", root(), "--", "/bin/sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(fs::File::create(&out).unwrap())
        .stderr(fs::File::create(&err).unwrap())
        .spawn()
        .unwrap();
    wait_for("the container to run", || fs::read_to_string(&out).is_ok_and(|t| t == "ready\n"));
    // Signals that come together are one.
    let status = eventually("its end", || {
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
        child.try_wait().unwrap().ok_or("it runs")
    });
    assert_eq!(status.code(), Some(130));
    let said = fs::read_to_string(&err).unwrap();
    assert!(said.contains("interrupted 3 times"), "{said}");
    assert_eq!(place.json(&["inspect", &id])["status"], "running");
    place.good(&["rm", "-f", &id]);

    let full = format!("{} version > /dev/full", pintle().display());
    let out = output_within(Command::new("sh").args(["-c", &full]));
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("write to standard output"), "{}", text(&out.stderr));
    place.finish();
}

/// A `logs -f` whose output goes to files.
struct Follower {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Follower {
    fn new(place: &Place, id: &str) -> Self {
        let (out, err) = (place.dir.join(format!("{id}.out")), place.dir.join(format!("{id}.err")));
        let child = place
            .command(&["logs", "-f", id])
            .stdin(Stdio::null())
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&err).unwrap())
            .spawn()
            .unwrap();
        Self { child, out, err }
    }

    fn has(&self, end: &str) -> bool {
        fs::read(&self.out).unwrap().ends_with(end.as_bytes())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        let stopped = signal == Signal::SIGSTOP;
        wait_for("the follower to stop or go on", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
            stat.contains(") T ") == stopped
        });
    }

    /// Exit code, output and error output after the end.
    fn end(mut self) -> (Option<i32>, String, String) {
        let status = wait_exit(&mut self.child);
        (status.code(), text(&fs::read(&self.out).unwrap()), text(&fs::read(&self.err).unwrap()))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Files that are rotated at full speed: who follows gets every line, and so does who asks later, for all or for the last.
#[test]
fn logs_are_whole_over_many_rotations() {
    let place = Place::new("logrot");
    let control = place.dir.join("ctl");
    fs::create_dir(&control).unwrap();
    let mount = format!("{}:/mnt:ro", control.display());
    let lines = scaled(30_000, 300_000);
    let script = format!("echo begin; while [ ! -e /mnt/go ]; do sleep 0.1; done; seq 1 {lines}");
    // A record is some 50 bytes: enough files for all of them.
    let files = scaled(400, 4000).to_string();
    let id = place.detached(&["-v", &mount, "--log-max-size", "8k", "--log-max-files", &files], &script);
    let follower = Follower::new(&place, &id);
    wait_for("the follower to begin", || follower.has("begin\n"));
    fs::write(control.join("go"), "").unwrap();
    let want: String = (1..=lines).fold("begin\n".into(), |all, n| all + &format!("{n}\n"));
    let (code, out, err) = follower.end();
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out == want, "the follower missed something: {} of {} bytes", out.len(), want.len());
    assert!(place.root().join(&id).join("container.log.20").exists(), "it was rotated");
    assert!(place.good(&["logs", &id]) == want, "the log differs");
    let last =
        |n: usize| want.lines().rev().take(n).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>();
    for n in [1, 1000, lines] {
        let tail = place.good(&["logs", "--tail", &n.to_string(), &id]);
        assert!(tail.lines().eq(last(n)), "the last {n} lines differ");
    }
    let tail = place.good(&["logs", "-n", "0", &id]);
    assert_eq!(tail, "");
    place.good(&["rm", &id]);
    place.finish();
}

/// Docker's format by the command line: what is in the files, and what is read from them.
#[test]
fn logs_in_dockers_format() {
    let place = Place::new("logjson");
    let log = place.dir.join("log");
    let option = format!("json-file:{}", log.display());
    let script = "seq 1 500; printf '<é\\t\\377' >&2; printf end";
    let id = place.detached(&["--log", &option, "--log-max-size", "4k", "--log-max-files", "30"], script);
    place.good(&["wait", &id]);
    let want: String = (1..=500).map(|n| format!("{n}\n")).collect::<String>() + "end";
    let out = place.run(&["logs", &id]);
    assert_eq!((text(&out.stdout), text(&out.stderr)), (want, "<é\t\u{fffd}".into()));
    assert_eq!(place.run(&["logs", "-n", "2", &id]).stdout, b"end");
    assert_eq!(place.run(&["logs", "-n", "3", &id]).stdout, b"500\nend");
    assert!(place.good(&["logs", "-t", &id]).contains("Z 499\n"));
    assert!(place.dir.join("log.3").exists(), "it was rotated");
    for file in [log.clone(), place.dir.join("log.1")] {
        for line in fs::read_to_string(file).unwrap().lines() {
            let record: Value = serde_json::from_str(line).unwrap();
            assert!(record["log"].is_string() && record["time"].is_string(), "{line}");
        }
    }
    let mut damaged = fs::read(place.dir.join("log.1")).unwrap();
    damaged[0] = b'x';
    fs::write(place.dir.join("log.1"), damaged).unwrap();
    let out = place.run(&["logs", &id]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("log.1 at byte 0: log record has fewer than four fields"));
    place.good(&["rm", &id]);

    let out = place.run(&["run", "--log", "none", "--log-max-size", "1k", "--rootfs", root(), "--", "true"]);
    assert_eq!(out.status.code(), Some(125), "{}", text(&out.stderr));
    place.finish();
}

/// What was rotated away before it could be read is told in files, exactly, and is nothing but that.
#[test]
fn logs_that_were_rotated_away_are_counted() {
    let place = Place::new("loggap");
    let control = place.dir.join("ctl");
    fs::create_dir(&control).unwrap();
    let mount = format!("{}:/mnt:ro", control.display());
    let script = "echo 1000001; while [ ! -e /mnt/go ]; do sleep 0.1; done; seq 1000002 1020000";
    // Ten records of 35 + 10 + 8 bytes. No write and no read ends within a line, since all are multiples of its 8 bytes.
    let id = place.detached(&["-v", &mount, "--log-max-size", "530", "--log-max-files", "3"], script);
    let follower = Follower::new(&place, &id);
    wait_for("the follower to begin", || follower.has("1000001\n"));
    follower.signal(Signal::SIGSTOP);
    fs::write(control.join("go"), "").unwrap();
    // Some 10 000 events for a queue of the kernel that holds 16 384: what it could not hold would not be counted.
    place.good(&["wait", &id]);
    follower.signal(Signal::SIGCONT);
    let (code, out, err) = follower.end();
    assert_eq!(code, Some(1), "{err}");
    let shown: Vec<u32> = out.lines().map(|l| l.parse::<u32>().unwrap() - 1_000_000).collect();
    let files = err.strip_prefix("pintle: ").and_then(|e| e.split(' ').next()).and_then(|n| n.parse().ok());
    let files: u32 = files.unwrap_or_else(|| panic!("{err:?} tells no number"));
    assert_eq!(shown.len() as u32 + 10 * files, 20_000, "{err}");
    let kept: Vec<u32> = (1..=10).chain(10 * files + 11..=20_000).collect();
    assert_eq!(shown, kept);
    place.good(&["rm", &id]);
    place.finish();
}

/// Others rotate, too: kubelet renames and has the log reopened, logrotate copies and truncates.
#[test]
fn logs_follow_the_rotations_of_others() {
    let place = Place::new("logext");
    let control = place.dir.join("ctl");
    fs::create_dir(&control).unwrap();
    let mount = format!("{}:/mnt:ro", control.display());
    let script = "for n in 1 2 3 4 5 6; do echo line $n; while [ ! -e /mnt/$n ]; do sleep 0.02; done; done";
    let log = place.dir.join("log");
    let id = place.detached(&["--log", log.to_str().unwrap(), "-v", &mount], script);
    let written = |n: u32| {
        let want = format!("line {n}\n");
        wait_for("the line", || fs::read_to_string(&log).is_ok_and(|t| t.ends_with(&want)));
    };
    let next = |n: u32| fs::write(control.join(n.to_string()), "").unwrap();
    let follower = Follower::new(&place, &id);
    wait_for("the follower to begin", || follower.has("line 1\n"));
    follower.signal(Signal::SIGSTOP);
    next(1);
    written(2);
    for (date, n) in [("20261127-024200", 2), ("20261127-024210", 3)] {
        fs::rename(&log, place.dir.join(format!("log.{date}"))).unwrap();
        place.good(&["reopen-log", &id]);
        next(n);
        written(n + 1);
    }
    follower.signal(Signal::SIGCONT);
    wait_for("the follower to be there", || follower.has("line 4\n"));
    follower.signal(Signal::SIGSTOP);
    next(4);
    written(5);
    fs::copy(&log, place.dir.join("log.1")).unwrap();
    fs::OpenOptions::new().write(true).truncate(true).open(&log).unwrap();
    next(5);
    written(6);
    follower.signal(Signal::SIGCONT);
    next(6);
    let (code, out, err) = follower.end();
    let want: String = (1..=6).map(|n| format!("line {n}\n")).collect();
    assert_eq!((code, out, err.as_str()), (Some(0), want, ""));
    place.good(&["rm", &id]);
    place.finish();
}

/// What ps, inspect, stats and events print, for people and for programs.
#[test]
fn containers_can_be_looked_at() {
    let place = Place::new("look");
    assert_eq!(place.json(&["ps"]), serde_json::json!([]));
    let id = place.detached(&["--memory", "64M", "--pids", "50"], "echo hi; sleep 1000");
    let ps = place.good(&["ps"]);
    assert!(ps.starts_with("ID ") && ps.contains(&id) && ps.contains("running"), "{ps}");
    assert!(!ps.contains('\x1b'), "no colours in a pipe");
    assert_eq!(place.json(&["ps"])[0]["status"], "running");
    let inspect = place.json(&["inspect", &id]);
    assert_eq!(inspect["shim"]["door"], "native");
    assert!(inspect["pid"].as_u64().is_some_and(|p| p > 1));
    let stats = &place.json(&["stats", &id])[0];
    assert_eq!(stats["memory"]["limit"], 64 << 20);
    assert_eq!(stats["pids"]["limit"], 50);
    assert!(stats["memory"]["usage"].as_u64().is_some_and(|n| n > 0), "{stats}");
    place.good(&["update", "--pids", "60", &id]);
    assert_eq!(place.json(&["stats", &id])[0]["pids"]["limit"], 60);
    place.good(&["pause", &id]);
    assert_eq!(place.json(&["inspect", &id])["status"], "paused");
    place.good(&["resume", &id]);
    let events = place.good(&["events", &id]);
    for kind in ["created", "started", "updated", "paused", "resumed"] {
        assert!(events.contains(kind), "{kind}: {events}");
    }
    assert_eq!(place.good(&["rm", "-f", &id]).trim(), id);

    // The same with colours, at a terminal that wants them and at one that does not.
    let id = place.detached(&[], "sleep 1000");
    let mut t = place.terminal(&["ps"]);
    assert!(t.wait().success());
    t.expect("\x1b[32mrunning");
    let mut c = place.command(&["ps"]);
    let mut t = PtyChild::spawn(c.env("NO_COLOR", "1"), 31, 97);
    assert!(t.wait().success());
    t.expect("running");
    assert!(!t.output().contains('\x1b'), "{}", t.output());
    place.good(&["rm", "-f", &id]);
    place.finish();
}

/// create, start -a, and a bundle of the user's own.
#[test]
fn a_bundle_is_created_and_started_in_steps() {
    let place = Place::new("steps");
    let bundle = pintle_tests::Bundle::sh("echo from a bundle; exit 6").write(place.dir.path());
    let id = unique_id("cli");
    place.good(&["create", "--bundle", bundle.to_str().unwrap(), &id]);
    assert_eq!(place.json(&["inspect", &id])["status"], "created");
    let out = place.run(&["create", "--bundle", bundle.to_str().unwrap(), &id]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains(&id), "{}", text(&out.stderr));
    let out = place.run(&["start", "-a", &id]);
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(6), "from a bundle\n".to_string()));
    assert!(bundle.join("config.json").exists(), "the user's bundle is not ours to remove");
    place.good(&["rm", &id]);
    assert!(bundle.join("config.json").exists());
    place.finish();
}

/// A shim is replaced in place, and one that was killed is succeeded by another, from the command line.
#[test]
fn shims_are_upgraded_and_lost_ones_succeeded() {
    let place = Place::new("heirs");
    let ids = [place.detached(&[], "sleep 1000"), place.detached(&[], "read line; exit 4")];
    let shim_pid = |id: &str| place.json(&["inspect", id])["shim"]["pid"].as_i64().expect("pid of the shim");
    let before = ids.each_ref().map(|id| shim_pid(id));
    place.good(&["upgrade", &ids[0]]);
    place.good(&["upgrade", "--all"]);
    assert_eq!(ids.each_ref().map(|id| shim_pid(id)), before, "in place");
    let out = place.run(&["upgrade", "nobody"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("nobody"), "{}", text(&out.stderr));

    let id = &ids[0];
    let shim = Pid::from_raw(i32::try_from(before[0]).expect("a pid"));
    kill(shim, Signal::SIGKILL).expect("kill the shim");
    wait_for("the shim to be gone", || {
        !pintle_tests::process_alive(u32::try_from(before[0]).expect("a pid"))
    });
    let out = place.run(&["exec", id, "true"]);
    assert_eq!(out.status.code(), Some(125), "nobody is there: {}", text(&out.stderr));
    assert!(text(&out.stderr).contains("see pintle adopt"), "{}", text(&out.stderr));
    // Who follows its log does not wait for ever.
    let out = place.run(&["logs", "-f", id]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("the shim was lost"), "{}", text(&out.stderr));
    place.good(&["adopt", id]);
    assert_ne!(shim_pid(id), before[0]);
    assert_eq!(place.run(&["exec", id, "sh", "-c", "exit 9"]).status.code(), Some(9));
    for id in &ids {
        place.good(&["rm", "-f", id]);
    }
    place.finish();
}

/// From a checkpoint on disk a container goes on, with the criu of a newer release.
#[test]
fn a_checkpoint_is_restored() {
    let Some(criu) = newer_criu() else { return };
    let place = Place::new("criu");
    let ctl = place.dir.join("ctl");
    fs::create_dir(&ctl).expect("create a directory");
    let script = "i=0; while [ ! -e /ctl/stop ]; do i=$((i+1)); echo $i; sleep 0.05; done; exit 5";
    let bundle = pintle_tests::Bundle::sh(script).bind(&ctl, "/ctl").write(place.dir.path());
    let (bundle, log, image) = (bundle.to_str().unwrap(), place.dir.join("log"), place.dir.join("image"));
    let (log, image) = (log.to_str().unwrap(), image.to_str().unwrap());
    // The runtime looks for criu in PATH.
    let path = format!(
        "{}:{}",
        criu.parent().unwrap().display(),
        std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".to_string())
    );
    let good = |args: &[&str]| {
        let out = output_within(place.command(args).env("PATH", &path));
        assert!(out.status.success(), "pintle {args:?}: {}", text(&out.stderr));
        text(&out.stdout)
    };
    let lines = || pintle_tests::read_cri(std::path::Path::new(log)).len();
    let id = unique_id("cli");
    good(&["run", "-d", "--id", &id, "--log", log, "--bundle", bundle]);
    wait_for("some output", || fs::exists(log).unwrap_or(false) && lines() > 5);
    good(&["checkpoint", "--image", image, &id]);
    good(&["wait", &id]);
    good(&["rm", &id]);
    let written = lines();
    let id = unique_id("cli");
    good(&["restore", "-d", "--image", image, "--id", &id, "--log", log, "--bundle", bundle]);
    wait_for("more output", || lines() > written + 5);
    let text =
        String::from_utf8(pintle_tests::rejoin(&pintle_tests::read_cri(std::path::Path::new(log)), "stdout"))
            .expect("text");
    for (i, line) in text.lines().enumerate() {
        assert_eq!(line, (i + 1).to_string(), "a gap");
    }
    fs::write(ctl.join("stop"), "").expect("stop it");
    assert_eq!(good(&["wait", &id]).trim(), "5");
    good(&["rm", &id]);
    place.finish();
}

/// A reader of the output that goes away ends neither the container nor us with an error.
#[test]
fn a_closed_pipe_is_no_error() {
    let place = Place::new("pipe");
    let id = unique_id("cli");
    let script = format!(
        "{} run --id {id} --read-only --rootfs {} -e PATH=/bin -- sh -c 'yes | head -c 1000000; exit 3' | head -c 10; \
         exit ${{PIPESTATUS[0]}}",
        pintle().display(),
        root()
    );
    let out = output_within(
        Command::new("bash").args(["-c", &script]).env("PINTLE_DIR", place.root()).env("PINTLE_SHIM", shim()),
    );
    assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
    assert_eq!(place.good(&["logs", &id]).len(), 1_000_000);
    place.good(&["rm", &id]);
    place.finish();
}

/// Another user's directory is not trusted, and ours is closed to others.
#[test]
fn state_is_private() {
    let place = Place::new("priv");
    let id = place.detached(&[], "sleep 1000");
    let mode = |p: PathBuf| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(place.root()), 0o700);
    let dir = place.root().join(&id);
    assert_eq!(mode(dir.clone()), 0o700);
    for socket in ["monitor.sock", "stdio.sock", "attach.sock"] {
        assert_eq!(mode(dir.join(socket)), 0o600, "{socket}");
    }
    place.good(&["rm", "-f", &id]);
    place.finish();
}

/// `--rm` holds whoever is there at the end: nobody, a client that was killed, one that left.
#[test]
fn rm_does_not_need_its_client() {
    let place = Place::new("auto");
    let gone = |id: &str| wait_for("the container to be removed", || !place.root().join(id).exists());
    gone(&place.detached(&["--rm"], "exit 3"));

    let id = unique_id("cli");
    let args = ["run", "--rm", "--id", &id, "--read-only", "--rootfs", root(), "-e", "PATH=/bin"];
    let script = ["--", "sh", "-c", "echo up; sleep 1000"];
    let args: Vec<&str> = args.into_iter().chain(script).collect();
    let mut client = place.command(&args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    wait_for("the container to run", || place.run(&["logs", &id]).stdout == b"up\n");
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(place.json(&["inspect", &id])["status"], "running");
    place.good(&["kill", &id]);
    gone(&id);
    wait_for("the bundles to be removed", || !place.root().join(".bundles").exists());
    place.finish();
}

/// Exit codes and words of commands that were called wrongly or for nothing.
#[test]
fn mistakes_are_told_as_docker_tells_them() {
    let place = Place::new("wrong");
    let fails = |args: &[&str]| {
        let out = place.run(args);
        (out.status.code().unwrap_or(-1), text(&out.stderr))
    };
    for command in ["start", "stop", "kill", "pause", "rm", "wait", "stats", "inspect", "events", "logs"] {
        let (code, said) = fails(&[command, "nope"]);
        assert!(code == 1 && said.contains("no container nope"), "{command}: {code} {said}");
    }
    for args in [&["exec", "nope", "true"][..], &["attach", "nope"], &["start", "-a", "nope"]] {
        let (code, said) = fails(args);
        assert!(code == 125 && said.contains("no container nope"), "{args:?}: {code} {said}");
    }
    for args in [&["ps", "--bogus"][..], &["stop", "-t"], &["logs", "--tail", "x", "y"], &["start"]] {
        assert_eq!(fails(args).0, 2, "{args:?}");
    }
    let id = unique_id("cli");
    place.good(&[
        "create",
        "--id",
        &id,
        "--read-only",
        "--rootfs",
        root(),
        "-e",
        "PATH=/bin",
        "sleep",
        "1000",
    ]);
    assert_eq!(fails(&["start", "-a", "--detach-keys", "xx", &id]).0, 125);
    assert_eq!(place.json(&["inspect", &id])["status"], "created", "it was not started");
    place.good(&["start", &id]);
    assert_eq!(fails(&["exec", "-i", "--timeout", "5", &id, "cat"]).0, 125);
    let mut env = place.command(&["exec", "-e", "PINTLE_TEST_OWN", "-e", "PINTLE_TEST_NONE", &id, "env"]);
    let env = text(&output_within(env.env("PINTLE_TEST_OWN", "a b")).stdout);
    assert!(env.contains("PINTLE_TEST_OWN=a b\n") && !env.contains("NONE"), "{env}");
    place.good(&["kill", &id]);
    place.good(&["wait", &id]);
    let all = place.json(&["ps"]);
    assert!(all[0]["id"] == id.as_str() && all[0]["pid"].is_null(), "{all}");
    place.good(&["rm", &id]);
    place.finish();
}

/// A user without root runs a container in a user namespace of runc.
#[test]
fn a_user_without_root_runs_a_container() {
    pintle_tests::require_tool("setpriv");
    let dir = TempDir::new("less");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let home = dir.join("home");
    fs::create_dir(&home).unwrap();
    // The programs may lie where that user cannot go.
    let bin = home.join("bin");
    fs::create_dir(&bin).unwrap();
    for (from, to) in [(pintle(), "pintle"), (shim(), "pintle-shim")] {
        fs::copy(from, bin.join(to)).unwrap();
        fs::set_permissions(bin.join(to), fs::Permissions::from_mode(0o755)).unwrap();
    }
    nix::unistd::chown(&home, Some(4242.into()), Some(4242.into())).unwrap();
    let out = output_within(
        Command::new("setpriv")
            .args(["--reuid", "4242", "--regid", "4242", "--clear-groups"])
            .arg(bin.join("pintle"))
            .args(["--runtime-root"])
            .arg(home.join("runc"))
            .args([
                "run",
                "--rm",
                "--read-only",
                "--rootfs",
                root(),
                "-e",
                "PATH=/bin",
                "--",
                "sh",
                "-c",
                "id -u; exit 3",
            ])
            .env("XDG_RUNTIME_DIR", &home)
            .env("HOME", &home)
            .env_remove("PINTLE_DIR")
            .current_dir(&home),
    );
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(3), "0\n".to_string()), "{}", text(&out.stderr));
    Leftovers::of(dir.path().to_string_lossy()).assert_none();
}
