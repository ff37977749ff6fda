//! What goes wrong around a shim, put in on purpose: runtimes, callers, disks, descriptors, signals.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::resource::{Resource, rlim_t};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_client::{CreateOptions, ErrorKind, ExecOptions, ExecSyncOptions, ExitReason, Monitor, Status};
use pintle_tests::{
    Act, Bundle, Container, FakeRuntime, Native, eventually, fds, private_dirty_kib, process_alive, read_cri,
    rejoin, require_tool, scaled, unique_id, wait_for,
};
use tokio::io::AsyncReadExt;

/// For what must come.
const SOON: Option<Duration> = Some(Duration::from_secs(60));

fn runtime(options: &mut CreateOptions, dir: &Path, fake: FakeRuntime) {
    options.runtime.path = fake.write(dir);
}

/// Asks for a container of a runtime that fails at create; gives the error.
async fn refused(native: &Native, act: Act, timeout: Option<Duration>) -> pintle_client::Error {
    let id = unique_id("fr");
    let monitor = native.shim(&id).await;
    let mut options = native.options(&id, &Bundle::sh("sleep 1000"));
    runtime(&mut options, native.path(), FakeRuntime::new().on("create", act));
    options.timeout = timeout;
    let error = monitor.create(&options).await.expect_err("a create that fails");
    // The shim lives and says what is: nothing.
    monitor.info().await.expect("the shim lives");
    monitor.shutdown(true).await.expect("shutdown");
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtime_that_fails_at_create_is_quoted() {
    let native = Native::new("ffail");
    let error = refused(&native, Act::Fail("the moon is full".into(), 3), None).await;
    assert_eq!(error.kind(), Some(ErrorKind::RuntimeFailed), "{error:?}");
    assert!(format!("{error:?}").contains("the moon is full"), "{error:?}");
    let error = refused(&native, Act::Die(9), None).await;
    assert_eq!(error.kind(), Some(ErrorKind::RuntimeFailed), "{error:?}");
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtime_that_hangs_at_create_is_given_up() {
    let native = Native::new("fhang");
    let error = refused(&native, Act::Hang, Some(Duration::from_secs(1))).await;
    assert!(
        matches!(error.kind(), Some(ErrorKind::DeadlineExceeded | ErrorKind::RuntimeFailed)),
        "{error:?}"
    );
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtime_that_reports_nonsense_is_no_success() {
    let native = Native::new("fnons");
    for act in [
        Act::Nonsense("}{ nonsense".into()),
        // A pid file that names nobody.
        Act::Script("for a; do [ \"$p\" = --pid-file ] && echo 999999999 >\"$a\"; p=$a; done; exit 0".into()),
        Act::Script("for a; do [ \"$p\" = --pid-file ] && echo nonsense >\"$a\"; p=$a; done; exit 0".into()),
        Act::Script("for a; do [ \"$p\" = --pid-file ] && echo 1 >\"$a\"; p=$a; done; exit 0".into()),
    ] {
        let what = format!("{act:?}");
        let error = refused(&native, act, Some(Duration::from_secs(20))).await;
        assert!(error.kind().is_some(), "{what}: {error:?}");
    }
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtime_that_floods_stderr_neither_hangs_nor_fills_the_shim() {
    let native = Native::new("fflood");
    let size = 8 << 20;
    let fake = FakeRuntime::new().on("create", Act::FloodStderr(size)).on("start", Act::FloodStderr(size));
    let c = native.create_with(&Bundle::sh("exit 4"), |o| runtime(o, native.path(), fake)).await;
    let shim = c.shim_pid().await;
    assert!(private_dirty_kib(shim) < 6 * 1024, "{} KiB", private_dirty_kib(shim));
    c.monitor.start().await.expect("start");
    let exit = c.monitor.wait(SOON).await.expect("its end");
    assert_eq!(exit.reason, ExitReason::Code(4));
    c.delete().await;

    let id = unique_id("ff");
    let monitor = native.shim(&id).await;
    let mut options = native.options(&id, &Bundle::sh("exit 0"));
    let script = format!("head -c {size} /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 1");
    runtime(&mut options, native.path(), FakeRuntime::new().on("create", Act::Script(script)));
    let error = monitor.create(&options).await.expect_err("a create that fails");
    assert!(format!("{error:?}").len() < 256 * 1024, "the message is bounded");
    monitor.shutdown(true).await.expect("shutdown");
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtime_that_fails_at_start_leaves_a_container_to_delete() {
    let native = Native::new("fstart");
    for act in [Act::Fail("not today".into(), 1), Act::Die(9)] {
        let fake = FakeRuntime::new().on("start", act);
        let c = native.create_with(&Bundle::sh("exit 0"), |o| runtime(o, native.path(), fake)).await;
        let error = c.monitor.start().await.expect_err("a start that fails");
        assert_eq!(error.kind(), Some(ErrorKind::RuntimeFailed), "{error:?}");
        assert!(matches!(c.state().await.status, Status::Created | Status::Stopped));
        c.delete().await;
    }
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtime_that_fails_at_exec_is_told_from_a_process_that_fails() {
    let native = Native::new("fexec");
    let fake = FakeRuntime::new().on("exec", Act::Fail("exec is out of order".into(), 255));
    let c = native.start_with(&Bundle::sh("sleep 1000"), |o| runtime(o, native.path(), fake)).await;
    let error = c.monitor.exec_sync(&ExecSyncOptions::new(["true"])).await.expect_err("no exec");
    assert_eq!(error.kind(), Some(ErrorKind::RuntimeFailed), "{error:?}");
    assert!(format!("{error:?}").contains("exec is out of order"), "{error:?}");
    let error = c.monitor.exec(&ExecOptions::new(["true"])).await.expect_err("no exec");
    assert_eq!(error.kind(), Some(ErrorKind::RuntimeFailed), "{error:?}");
    c.delete().await;

    let c = native.start(&Bundle::sh("sleep 1000")).await;
    let out = c.monitor.exec_sync(&ExecSyncOptions::new(["/bin/sh", "-c", "exit 255"])).await.expect("exec");
    assert_eq!(out.exit.reason, ExitReason::Code(255));
    let error = c.monitor.exec_sync(&ExecSyncOptions::new(["/no/such"])).await.expect_err("no program");
    assert_eq!(error.kind(), Some(ErrorKind::RuntimeFailed), "{error:?}");
    c.delete().await;
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_reaches_the_program_and_not_the_runtime_before_it() {
    let native = Native::new("fearly");
    // Answers while its process is still its own code, which swallows the signal, until the file `go` is there.
    let script = format!(
        "pid_file=; while [ $# -gt 0 ]; do case $1 in --pid-file) pid_file=$2;; esac; shift; done; \
         ( trap 'echo early >>{dir}/early' USR1; while [ ! -e {dir}/go ]; do :; done; exec sleep 1000 ) \
         </dev/null >/dev/null 2>&1 & printf %s $! >\"$pid_file\"; exit 0",
        dir = native.path().display()
    );
    let fake = FakeRuntime::new().on("exec", Act::Script(script));
    let c = native.start_with(&Bundle::sh("sleep 1000"), |o| runtime(o, native.path(), fake)).await;
    let exec = c.monitor.exec(&ExecOptions::new(["ignored"])).await.expect("exec");
    let (sent, ()) = tokio::join!(exec.kill(libc::SIGUSR1), async {
        // The request is with the shim when it has answered a later one.
        c.state().await;
        std::fs::write(native.path().join("go"), "").expect("go");
    });
    sent.expect("kill");
    let exit = exec.wait(Some(Duration::from_secs(60))).await.expect("its end");
    assert!(matches!(exit.reason, ExitReason::Signal { signal: libc::SIGUSR1, .. }), "{exit:?}");
    assert!(!native.path().join("early").exists(), "the runtime was signalled");
    // One that never executes its program gets the signal in the end.
    std::fs::remove_file(native.path().join("go")).expect("no go");
    let exec = c.monitor.exec(&ExecOptions::new(["ignored"])).await.expect("exec");
    exec.kill(libc::SIGUSR1).await.expect("kill");
    wait_for("the signal", || native.path().join("early").exists());
    exec.kill(libc::SIGKILL).await.expect("kill");
    exec.wait(Some(Duration::from_secs(60))).await.expect("its end");
    c.delete().await;
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtime_that_hangs_at_exec_blocks_nobody_else() {
    let native = Native::new("fexh");
    let fake = FakeRuntime::new().on("exec", Act::Hang);
    let c = native.start_with(&Bundle::sh("sleep 1000"), |o| runtime(o, native.path(), fake)).await;
    let mut options = ExecSyncOptions::new(["true"]);
    options.timeout = Some(Duration::from_secs(2));
    let monitor = c.monitor.clone();
    let hanging = tokio::spawn(async move { monitor.exec_sync(&options).await });
    for _ in 0..20 {
        assert_eq!(c.state().await.status, Status::Running);
        c.monitor.stats().await.expect("stats");
    }
    match hanging.await.expect("join") {
        Ok(out) => assert!(out.timed_out, "{out:?}"),
        Err(e) => {
            assert!(matches!(e.kind(), Some(ErrorKind::DeadlineExceeded | ErrorKind::RuntimeFailed)), "{e:?}")
        }
    }
    c.delete().await;
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtime_that_fails_at_delete_is_told() {
    let native = Native::new("fdel");
    // Fails once, works then.
    let mark = native.path().join("mark");
    let script =
        format!("[ -e '{0}' ] && exec \"$RUNC\" \"$@\"; : >'{0}'; echo busy >&2; exit 1", mark.display());
    let fake = FakeRuntime::new().on("delete", Act::Script(script));
    let c = native.start_with(&Bundle::sh("exit 6"), |o| runtime(o, native.path(), fake)).await;
    let exit = c.monitor.wait(SOON).await.expect("its end");
    assert_eq!(exit.reason, ExitReason::Code(6));
    // Told, and the next try works; or the shim tried again by itself.
    if let Err(e) = c.monitor.delete(false).await {
        assert_eq!(e.kind(), Some(ErrorKind::RuntimeFailed), "{e:?}");
        c.monitor.delete(false).await.expect("the second delete");
    }
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_vanish_at_any_gate() {
    let native = Native::new("fgone");
    let fake =
        FakeRuntime::new().on("create", Act::Delay(0.3)).on("start", Act::Delay(0.3)).write(native.path());
    // Before create, in it, after it, in start.
    for gate in 0..4 {
        let id = unique_id("g");
        let monitor = native.shim(&id).await;
        let mut options = native.options(&id, &Bundle::sh("echo on; sleep 1000"));
        options.runtime.path = fake.clone();
        if gate > 0 {
            let other = Monitor::connect(monitor.dir()).await.expect("connect");
            let asked = options.clone();
            let call = tokio::spawn(async move {
                other.create(&asked).await?;
                if gate == 3 { other.start().await.map(drop) } else { Ok(()) }
            });
            let wanted = ["", "create", "start", "start"][gate];
            if gate == 2 {
                call.await.expect("join").expect("create");
            } else {
                wait_for("the runtime to be called", || {
                    let calls = FakeRuntime::calls(native.path());
                    calls.iter().any(|l| l.starts_with(wanted) && l.contains(&id))
                });
                call.abort();
                let _ = call.await;
            }
            // A changing call runs to its end without its client.
            let end = if gate == 3 { Status::Running } else { Status::Created };
            pintle_tests::wait_for_async("the call to be carried out", || async {
                let status = monitor.state().await.map_err(|e| e.to_string())?.status;
                if status == end { Ok(()) } else { Err(format!("{status:?}")) }
            })
            .await;
        } else {
            monitor.create(&options).await.expect("create");
        }
        monitor.delete(true).await.expect("delete");
    }
    native.finish();
}

/// Sets the soft limit of another process and gives the one before.
fn limit(pid: u32, resource: Resource, soft: rlim_t) -> rlim_t {
    let name = match resource {
        Resource::RLIMIT_NOFILE => "nofile",
        _ => "fsize",
    };
    let prlimit = require_tool("prlimit");
    let run = |args: &[String]| {
        let out = std::process::Command::new(&prlimit).args(args).output().expect("run prlimit");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_string()
    };
    let pid = format!("--pid={pid}");
    let old = run(&[
        pid.clone(),
        format!("--{name}"),
        "--output=SOFT".into(),
        "--noheadings".into(),
        "--raw".into(),
    ]);
    run(&[pid, format!("--{name}={soft}:")]);
    old.parse().unwrap_or(rlim_t::MAX)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_descriptors_left() {
    let native = Native::new("femf");
    let ctl = native.path().join("ctl");
    fs::create_dir(&ctl).expect("create a directory");
    let script = "while [ ! -e /ctl/stop ]; do echo tick; sleep 0.05; done; echo last; exit 9";
    let c = native.start(&Bundle::sh(script).bind(&ctl, "/ctl")).await;
    let shim = c.shim_pid().await;
    let open = fds(shim).len() as rlim_t;
    let old = limit(shim, Resource::RLIMIT_NOFILE, open);
    // Nothing that needs a descriptor works, and all of it fails without harm.
    let others = (0..8).map(|_| {
        let dir = c.monitor.dir().to_path_buf();
        tokio::spawn(async move {
            let Ok(m) = Monitor::connect(&dir).await else { return };
            let m = m.with_timeout(Duration::from_millis(300));
            let _ = m.info().await;
        })
    });
    for task in others.collect::<Vec<_>>() {
        task.await.expect("join");
    }
    let error = c
        .monitor
        .exec_sync(&ExecSyncOptions {
            timeout: SOON,
            max_output: Some(1024),
            ..ExecSyncOptions::new(["true"])
        })
        .await;
    assert!(error.is_err(), "an exec without descriptors: {error:?}");
    assert_eq!(c.state().await.status, Status::Running);
    let lines = read_cri(&c.log).len();
    wait_for("the log to go on", || read_cri(&c.log).len() > lines + 3);
    limit(shim, Resource::RLIMIT_NOFILE, old);
    let out = c.monitor.exec_sync(&ExecSyncOptions::new(["echo", "back"])).await.expect("exec");
    assert_eq!(out.stdout, b"back\n");
    limit(shim, Resource::RLIMIT_NOFILE, fds(shim).len() as rlim_t);
    fs::write(ctl.join("stop"), "").expect("stop it");
    let exit = c.monitor.wait(SOON).await.expect("its end");
    assert_eq!(exit.reason, ExitReason::Code(9));
    assert!(rejoin(&read_cri(&c.log), "stdout").ends_with(b"last\n"));
    limit(shim, Resource::RLIMIT_NOFILE, old);
    c.delete().await;
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_size_limit_is_a_counted_loss() {
    let native = Native::new("ffsz");
    let ctl = native.path().join("ctl");
    fs::create_dir(&ctl).expect("create a directory");
    let script = "while [ ! -e /ctl/go ]; do sleep 0.05; done; \
                  i=0; while [ $i -lt 5000 ]; do echo 01234567890123456789; i=$((i+1)); done; exit 2";
    let c = native.start(&Bundle::sh(script).bind(&ctl, "/ctl")).await;
    // The kernel answers with EFBIG and SIGXFSZ, which would end the shim.
    limit(c.shim_pid().await, Resource::RLIMIT_FSIZE, 32 * 1024);
    fs::write(ctl.join("go"), "").expect("let it go");
    let exit = c.monitor.wait(SOON).await.expect("its end");
    assert_eq!(exit.reason, ExitReason::Code(2));
    losses(&c, 5000 * 21).await;
    c.delete().await;
    native.finish();
}

/// All that was written is in the log or told to be lost.
async fn losses(c: &Container, written: u64) {
    let io = c.state().await.io;
    let lost: u64 = io.lost_bytes.values().sum();
    let kept = rejoin(&read_cri(&c.log), "stdout").len() as u64;
    assert_eq!(io.stdout_bytes, written);
    assert!(lost > 0, "nothing was lost: {io:?}");
    assert_eq!(kept + lost, written, "{io:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_is_counted_and_marked_and_the_log_goes_on() {
    let native = Native::new("fnosp");
    let (ctl, disk) = (native.path().join("ctl"), native.path().join("disk"));
    fs::create_dir(&ctl).expect("create a directory");
    fs::create_dir(&disk).expect("create a directory");
    let mount = |flags, size: &str| {
        nix::mount::mount(Some("tmpfs"), &disk, Some("tmpfs"), flags, Some(size)).expect("mount a tmpfs");
    };
    mount(nix::mount::MsFlags::empty(), "size=64k");
    let script = "i=0; while [ $i -lt 6000 ]; do echo 01234567890123456789; i=$((i+1)); done; \
                  : >/ctl/full; while [ ! -e /ctl/go ]; do sleep 0.05; done; echo after; exit 3";
    let log = disk.join("log");
    let c = native.start_with(&Bundle::sh(script).bind(&ctl, "/ctl"), |o| o.logs[0].path = log.clone()).await;
    wait_for("the disk to be full", || ctl.join("full").exists());
    pintle_tests::wait_for_async("all to be read", || async {
        let io = c.monitor.state().await.map_err(|e| e.to_string())?.io;
        if io.stdout_bytes == 6000 * 21 { Ok(()) } else { Err(format!("{io:?}")) }
    })
    .await;
    let told = c.state().await.io.lost_bytes;
    assert!(told.get("ENOSPC").is_some_and(|n| *n > 0), "{told:?}");
    mount(nix::mount::MsFlags::MS_REMOUNT, "size=1m");
    fs::write(ctl.join("go"), "").expect("let it go");
    let exit = c.monitor.wait(SOON).await.expect("its end");
    assert_eq!(exit.reason, ExitReason::Code(3));
    let records = read_cri(&log);
    let marker = format!("[pintle: {} bytes of output lost: ENOSPC]", told["ENOSPC"]);
    assert!(records.iter().any(|r| r.payload == marker.as_bytes()), "no marker {marker}");
    assert!(rejoin(&records, "stdout").ends_with(b"\nafter\n"));
    let c = Container { log, ..c };
    losses(&c, 6000 * 21 + 6).await;
    c.delete().await;
    nix::mount::umount(&disk).expect("unmount");
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_directory_gone_keeps_the_old_file() {
    let native = Native::new("fdir");
    let (ctl, logs) = (native.path().join("ctl"), native.path().join("logs"));
    fs::create_dir(&ctl).expect("create a directory");
    fs::create_dir(&logs).expect("create a directory");
    let script = "echo one; while [ ! -e /ctl/go ]; do sleep 0.05; done; echo two; exit 7";
    let log = logs.join("log");
    let c = native.start_with(&Bundle::sh(script).bind(&ctl, "/ctl"), |o| o.logs[0].path = log.clone()).await;
    wait_for("the first line", || fs::read(&log).is_ok_and(|b| !b.is_empty()));
    let keep = fs::File::open(&log).expect("open the log");
    fs::remove_dir_all(&logs).expect("remove the directory");
    let error = c.monitor.reopen_log().await.expect_err("nowhere to open it");
    assert!(error.kind().is_some(), "{error:?}");
    assert!(!logs.exists(), "a failed reopen creates nothing");
    fs::write(ctl.join("go"), "").expect("let it go");
    let exit = c.monitor.wait(SOON).await.expect("its end");
    assert_eq!(exit.reason, ExitReason::Code(7));
    let text = std::io::read_to_string(keep).expect("read the log");
    assert!(text.contains(" stdout F two\n"), "{text}");
    c.delete().await;
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_log_directory_is_an_error_of_create() {
    let native = Native::new("fnold");
    let id = unique_id("nold");
    let monitor = native.shim(&id).await;
    let mut options = native.options(&id, &Bundle::sh("exit 0"));
    options.logs[0].path = native.path().join("no/such/directory/log");
    let error = monitor.create(&options).await.expect_err("no place for the log");
    assert!(format!("{error}").contains("no/such/directory"), "{error}");
    assert!(!native.path().join("no").exists());
    monitor.shutdown(true).await.expect("shutdown");
    native.finish();
}

/// Every signal that may come from outside without meaning the end of a program by its own fault.
fn storm() -> Vec<i32> {
    let own_fault = [libc::SIGILL, libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS];
    let never = [libc::SIGKILL, libc::SIGSTOP];
    (1..=64).filter(|s| !own_fault.contains(s) && !never.contains(s)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signal_storm() {
    let native = Native::new("fsig");
    let ctl = native.path().join("ctl");
    fs::create_dir(&ctl).expect("create a directory");
    let script = "trap 'exit 99' TERM HUP INT; i=0; while [ ! -e /ctl/go ]; do echo $i; i=$((i+1)); sleep 0.02; done; exit 11";
    let c = native.start(&Bundle::sh(script).bind(&ctl, "/ctl")).await;
    let shim = c.shim_pid().await;
    let signals = storm();
    for n in 0..scaled(2000, 10_000) {
        // In an order that no run repeats and that covers all pairs in the long run.
        let signal = signals[(n * 37 + n / signals.len()) % signals.len()];
        send(shim, signal);
        if n % 500 == 0 {
            assert!(process_alive(shim), "signal {signal} ended the shim");
            c.monitor.info().await.unwrap_or_else(|e| panic!("after {n} signals: {e:?}"));
        }
    }
    // A stop signal stopped it, if the kernel takes such for a process without a terminal.
    kill(Pid::from_raw(shim as i32), Signal::SIGCONT).expect("continue the shim");
    assert_eq!(c.state().await.status, Status::Running, "no signal is passed on to the container");
    let out = c.monitor.exec_sync(&ExecSyncOptions::new(["echo", "x"])).await.expect("exec");
    assert_eq!(out.stdout, b"x\n");
    fs::write(ctl.join("go"), "").expect("let it go");
    let exit = c.monitor.wait(SOON).await.expect("its end");
    assert_eq!(exit.reason, ExitReason::Code(11));
    let text = String::from_utf8(rejoin(&read_cri(&c.log), "stdout")).expect("text");
    for (i, line) in text.lines().enumerate() {
        assert_eq!(line, i.to_string());
    }
    c.delete().await;
    native.finish();
}

/// By number, since real-time signals have no names.
#[allow(unsafe_code)]
fn send(pid: u32, signal: i32) {
    // SAFETY: kill takes two numbers and touches no memory of ours.
    unsafe { libc::kill(pid as i32, signal) };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_stall_vanish_or_talk_nonsense() {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    let native = Native::new("fcli");
    let c = native.start(&Bundle::sh("while read -r l; do echo $l; done; exit 12")).await;
    let _ = c.monitor.close_stdin("").await;
    let exit = c.monitor.wait(SOON).await.expect("its end");
    assert_eq!(exit.reason, ExitReason::Code(12), "without a stdin it reads the end");
    c.delete().await;

    let c = native.start(&Bundle::sh("sleep 1000")).await;
    let shim = c.shim_pid().await;
    let socket = c.monitor.dir().join("monitor.sock");
    // Frames that are announced and never come, of every absurd length; the shim must not make room.
    let mut held = Vec::new();
    for length in [1u32, 10, 4 << 20, (4 << 20) + 1, u32::MAX, i32::MAX as u32] {
        for kind in [0u8, 1, 2, 3, 255] {
            let mut s = UnixStream::connect(&socket).expect("connect");
            let mut head = length.to_be_bytes().to_vec();
            head.extend([0, 0, 0, 1, kind, 0]);
            let _ = s.write_all(&head);
            held.push(s);
        }
    }
    // Part of a header.
    for n in 0..9 {
        let mut s = UnixStream::connect(&socket).expect("connect");
        let _ = s.write_all(&[0; 9][..n]);
        held.push(s);
    }
    // A request that is no message.
    let mut s = UnixStream::connect(&socket).expect("connect");
    let body = [0xff; 64];
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend([0, 0, 0, 1, 1, 0]);
    frame.extend(body);
    let _ = s.write_all(&frame);
    held.push(s);
    for name in ["stdio.sock", "attach.sock"] {
        for size in [0usize, 1, 15, 16, 17, 60_000] {
            let Ok(s) = pintle_tests::connect_packets(&c.monitor.dir().join(name)) else { continue };
            let _ = nix::unistd::write(&s, &vec![0u8; size]);
        }
    }
    for _ in 0..10 {
        c.monitor.info().await.expect("the shim answers others");
    }
    let out = c.monitor.exec_sync(&ExecSyncOptions::new(["echo", "fine"])).await.expect("exec");
    assert_eq!(out.stdout, b"fine\n");
    let kib = private_dirty_kib(shim);
    assert!(kib < 12 * 1024, "{kib} KiB for frames that never came");
    drop(held);
    let before = fds(shim).len();
    eventually("connections to be closed", || {
        let now = fds(shim).len();
        if now <= before { Ok(()) } else { Err(format!("{now} descriptors")) }
    });
    c.delete().await;
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_holds_nobody_up() {
    let native = Native::new("fstal");
    let ctl = native.path().join("ctl");
    fs::create_dir(&ctl).expect("create a directory");
    let script =
        "while [ ! -e /ctl/go ]; do sleep 0.05; done; head -c 12000000 /dev/zero | tr '\\0' x; exit 0";
    let c = native.start(&Bundle::sh(script).bind(&ctl, "/ctl")).await;
    let stalled = c.monitor.attach(false).await.expect("attach");
    let mut reader = c.monitor.attach(false).await.expect("attach");
    fs::write(ctl.join("go"), "").expect("let it go");
    let mut got = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(120), reader.stdio.stdout.read_to_end(&mut got));
    read.await.expect("output in time").expect("a client that reads is not dropped");
    assert_eq!(got.len(), 12_000_000);
    let exit = c.monitor.wait(SOON).await.expect("its end");
    assert_eq!(exit.reason, ExitReason::Code(0));
    assert_eq!(c.state().await.io.clients_dropped, 1, "the stalled client was dropped and counted");
    drop(stalled);
    assert_eq!(rejoin(&read_cri(&c.log), "stdout").len(), 12_000_000);
    c.delete().await;
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cgroup_removed_early() {
    let native = Native::new("fcg");
    let ctl = native.path().join("ctl");
    fs::create_dir(&ctl).expect("create a directory");
    let script = "while [ ! -e /ctl/go ]; do sleep 0.05; done; exit 13";
    let c = native.start(&Bundle::sh(script).bind(&ctl, "/ctl")).await;
    let state = c.state().await;
    let pid = state.process.expect("a process").pid;
    // Everything of the container moves to the roots, then its cgroups go.
    let mut removed = 0;
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroups of the container");
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        if !path.contains(&c.id) {
            continue;
        }
        let mount = mount_of(controllers);
        let dir = Path::new(&mount).join(path.trim_start_matches('/'));
        eventually("the cgroup to be removed", || {
            for p in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = fs::write(Path::new(&mount).join("cgroup.procs"), p);
            }
            match fs::remove_dir(&dir) {
                Err(e) if dir.exists() => Err(e),
                _ => Ok(()),
            }
        });
        removed += 1;
    }
    assert!(removed > 0, "{cgroups}");
    // Told or empty, but no harm.
    let _ = c.monitor.stats().await;
    assert_eq!(c.state().await.status, Status::Running);
    fs::write(ctl.join("go"), "").expect("let it go");
    let exit = c.monitor.wait(SOON).await.expect("its end");
    assert_eq!(exit.reason, ExitReason::Code(13));
    assert!(!exit.oom_killed);
    c.delete().await;
    native.finish();
}

/// Where the hierarchy of these controllers is mounted.
fn mount_of(controllers: &str) -> String {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let wanted: Vec<&str> = controllers.split(',').collect();
    for line in mounts.lines() {
        let f: Vec<&str> = line.split(' ').collect();
        let is = match f[2] {
            "cgroup2" => controllers.is_empty(),
            "cgroup" => {
                let options: Vec<&str> = f[3].split(',').collect();
                !controllers.is_empty() && wanted.iter().all(|w| options.contains(w))
            }
            _ => false,
        };
        if is {
            return f[1].to_string();
        }
    }
    panic!("no mount for {controllers:?} in {mounts}");
}

/// The shim is killed at each step of a container's rundown. What it has written is whole; what it has not
/// is had from an adopter, which tells the truth or that nobody can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_each_step_of_the_rundown() {
    if std::env::var_os("PINTLE_TEST_DIST").is_some() {
        println!("notice: left out: the release programs have no places to die at");
        return;
    }
    let native = Native::new("fstep");
    let steps = ["reaped", "drained", "log-closed", "record-written", "exit-file-written", "saved", "told"];
    for (n, step) in steps.into_iter().enumerate() {
        let id = unique_id("step");
        let mut config = native.spawn_config(&id);
        config.env.push(("PINTLE_FAILPOINT".into(), step.into()));
        let monitor = Monitor::spawn(config).await.expect("start a shim");
        let shim = monitor.info().await.expect("info").pid as u32;
        let mut options = native.options(&id, &Bundle::sh("echo one; echo two >&2; exit 7"));
        let exits = native.path().join("exits");
        fs::create_dir_all(&exits).expect("create a directory");
        options.exit_dir = Some(exits.clone());
        let log = options.logs[0].path.clone();
        monitor.create(&options).await.expect("create");
        // Its answer may be lost with the shim.
        let _ = monitor.start().await;
        wait_for("the shim to be killed", || !process_alive(shim));
        let dir = monitor.dir().to_path_buf();

        let recorded = n >= 3;
        let raw = fs::read(dir.join("exit.json"));
        assert_eq!(raw.is_ok(), recorded, "{step}: exit.json");
        let record = pintle_client::read_exit_record(&dir);
        assert_eq!(record.is_some(), recorded, "{step}: a record that is there is whole");
        let code = fs::read_to_string(exits.join(&id));
        assert_eq!(code.ok().as_deref(), (n >= 4).then_some("7"), "{step}: exit file");
        if n >= 1 {
            let records = read_cri(&log);
            assert_eq!(rejoin(&records, "stdout"), b"one\n", "{step}");
            assert_eq!(rejoin(&records, "stderr"), b"two\n", "{step}");
        }

        let mut config = native.spawn_config(&id);
        config.args.push("--adopt".into());
        let adopter = Monitor::spawn(config).await.unwrap_or_else(|e| panic!("{step}: adopt: {e:?}"));
        let exit = adopter.wait(SOON).await.unwrap_or_else(|e| panic!("{step}: wait: {e:?}"));
        match exit.reason {
            ExitReason::Code(7) => {}
            ExitReason::Unknown(_) if !recorded => {}
            other => panic!("{step}: ended with {other:?}"),
        }
        let kept = pintle_client::read_exit_record(&dir).expect("a record");
        assert_eq!(kept.reason, exit.reason, "{step}");
        // Adoption neither repeats nor removes what the log holds.
        if n >= 1 {
            assert_eq!(rejoin(&read_cri(&log), "stdout"), b"one\n", "{step}");
        }
        adopter.delete(true).await.unwrap_or_else(|e| panic!("{step}: delete: {e:?}"));
        pintle_tests::Leftovers::of(&id).assert_none();
    }
    native.finish();
}
