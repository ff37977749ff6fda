//! The engine behind the native door: ends of every kind, execs and their trees, stopping, runtimes that misbehave,
//! garbage on the sockets. Scenarios of users are in `native.rs`.

use nix::errno::Errno;
use pintle_client::{
    Error, ErrorKind, EventKind, ExecOptions, ExecSyncOptions, ExitReason, Monitor, Status, read_exit_record,
};
use pintle_tests::{
    Act, Bundle, FakeRuntime, Native, connect_packets, eventually, fds, private_dirty_kib, process_alive,
    process_children, scaled, unique_id, wait_for, wait_for_async,
};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// For what must come; generous.
const SOON: Duration = Duration::from_secs(60);
const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 1; done";

fn sh(script: &str) -> ExecSyncOptions {
    ExecSyncOptions::new(["/bin/sh", "-c", script])
}

fn kind(error: &Error) -> Option<ErrorKind> {
    error.kind()
}

/// What ends no process by default: SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH (signal(7)).
const IGNORED_OR_STOPPING: [i32; 8] = [17, 18, 19, 20, 21, 22, 23, 28];
/// What a C library keeps to itself (nptl(7)).
const LIBC_OWN: [i32; 2] = [32, 33];

#[tokio::test]
async fn every_code_and_signal_is_told_apart() {
    let place = Native::new("ends");
    for code in [0, 1, 9, 127, 128, 137, 255] {
        let c = place.start(&Bundle::sh(&format!("exit {code}"))).await;
        let exit = c.monitor.wait(Some(SOON)).await.unwrap();
        assert_eq!(exit.reason, ExitReason::Code(code), "{exit:?}");
        assert_eq!(exit.status, code);
        // The record is on disk before the answer, and says the same.
        let record = read_exit_record(&place.root().join(&c.id)).unwrap();
        assert_eq!((&record.reason, record.status), (&exit.reason, exit.status));
        assert!(!record.boot_id.is_empty() && record.finished_at >= record.started_at);
        c.delete().await;
    }
    // As its own pid namespace's init a process dies only of SIGKILL from outside or of what it does to itself in an
    // exec'd child; so every other signal is tried on an exec.
    let c = place.start(&Bundle::sh(IDLE)).await;
    // Sent at once, when the process may still be the runtime's own program, for which SIGUSR1 means nothing.
    for signal in (1..=64).filter(|s| !IGNORED_OR_STOPPING.contains(s) && !LIBC_OWN.contains(s)) {
        let exec = c.monitor.exec(&ExecOptions::new(["/bin/sleep", "1000"])).await.unwrap();
        exec.kill(signal).await.unwrap();
        let exit = exec.wait(Some(SOON)).await.unwrap();
        assert!(
            matches!(exit.reason, ExitReason::Signal { signal: s, .. } if s == signal),
            "{signal}: {exit:?}"
        );
        assert_eq!(exit.status, 128 + signal);
        exec.delete(false).await.unwrap();
    }
    c.monitor.kill(9, false).await.unwrap();
    let exit = c.monitor.wait(Some(SOON)).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Signal { signal: 9, core_dumped: false });
    assert!(!exit.oom_killed);
    assert_eq!(kind(&c.monitor.kill(9, false).await.unwrap_err()), Some(ErrorKind::FailedPrecondition));
    c.delete().await;
    place.finish();
}

#[tokio::test]
async fn exec_sync_has_five_answers() {
    let place = Native::new("sync");
    let c = place.start(&Bundle::sh(IDLE)).await;
    let m = &c.monitor;
    let out = m.exec_sync(&sh("echo out; echo err >&2; exit 7")).await.unwrap();
    assert_eq!((out.stdout.as_slice(), out.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(out.exit.reason, ExitReason::Code(7));
    assert!(!out.truncated && !out.timed_out);

    let out = m.exec_sync(&sh("kill -11 $$")).await.unwrap();
    assert!(matches!(out.exit.reason, ExitReason::Signal { signal: 11, .. }), "{:?}", out.exit);

    let mut limited = sh("head -c 300000 /dev/zero; echo tail >&2");
    limited.max_output = Some(1000);
    let out = m.exec_sync(&limited).await.unwrap();
    assert!(out.truncated && out.stdout.len() + out.stderr.len() == 1000, "{}", out.stdout.len());
    assert_eq!(out.exit.reason, ExitReason::Code(0));

    let error = m.exec_sync(&ExecSyncOptions::new(["/no/such/program"])).await.unwrap_err();
    let Error::Call(call) = &error else { panic!("{error:?}") };
    assert_eq!(call.kind, ErrorKind::RuntimeFailed);
    assert!(call.runtime_message.contains("no such file"), "{call:?}");

    // Double fork, new session, output held open: nothing of it is left, and the answer does not wait for it.
    let mark = unique_id("tree");
    let script = format!(
        "(setsid sh -c 'while :; do sleep 1; done # {mark}' & ) ; echo before; sh -c 'sleep 1000 # {mark}' & sleep 1000"
    );
    let mut slow = sh(&script);
    slow.timeout = Some(Duration::from_millis(500));
    let out = m.exec_sync(&slow).await.unwrap();
    assert!(out.timed_out, "{out:?}");
    assert_eq!(out.stdout, b"before\n");
    assert!(matches!(out.exit.reason, ExitReason::Signal { signal: 9, .. }));
    wait_for("the tree to be gone", || !command_line_exists(&mark));
    // The container itself does not mind, and what ends in time does not time out.
    let mut quick = sh("echo still here");
    quick.timeout = Some(SOON);
    let out = m.exec_sync(&quick).await.unwrap();
    assert_eq!((out.stdout.as_slice(), out.timed_out), (&b"still here\n"[..], false));
    c.delete().await;
    place.finish();
}

fn command_line_exists(mark: &str) -> bool {
    let Ok(proc) = std::fs::read_dir("/proc") else { return false };
    let own = std::process::id().to_string();
    proc.flatten().filter(|e| e.file_name().to_string_lossy() != own).any(|e| {
        let line = std::fs::read(e.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(mark)
    })
}

#[tokio::test]
async fn large_output_of_exec_sync_is_whole() {
    let place = Native::new("large");
    let c = place.start(&Bundle::sh(IDLE)).await;
    let out = c.monitor.exec_sync(&sh("head -c 6000000 /dev/zero | tr '\\0' x; echo e >&2")).await.unwrap();
    assert_eq!((out.stdout.len(), out.truncated), (6_000_000, false));
    assert!(out.stdout.iter().all(|b| *b == b'x'));
    assert_eq!(out.stderr, b"e\n");
    c.delete().await;
    place.finish();
}

#[tokio::test]
async fn events_come_in_order_once() {
    let place = Native::new("events");
    let c = place.start(&Bundle::sh(IDLE)).await;
    let execs = scaled(12, 100);
    let running: Vec<_> = (0..execs)
        .map(|_| {
            let m = c.monitor.clone();
            tokio::spawn(async move {
                let exec = m.exec(&ExecOptions::new(["/bin/true"])).await.unwrap();
                exec.wait(Some(SOON)).await.unwrap();
                exec.id
            })
        })
        .collect();
    let mut ids = Vec::new();
    for exec in running {
        ids.push(exec.await.unwrap());
    }
    // One that is still there when the container ends.
    let last = c.monitor.exec(&ExecOptions::new(["/bin/sleep", "1000"])).await.unwrap();
    c.monitor.stop(None, Duration::ZERO).await.unwrap();
    let events = c.monitor.poll_events(0, Duration::ZERO).await.unwrap();
    let numbers: Vec<u64> = events.iter().map(|e| e.sequence).collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<_>>());
    assert_eq!((events[0].kind, events[1].kind), (EventKind::Created, EventKind::Started));
    ids.push(last.id.clone());
    for id in &ids {
        let of = |kind| {
            events
                .iter()
                .filter(|e| e.kind == kind && e.exec_id == *id)
                .map(|e| e.sequence)
                .collect::<Vec<_>>()
        };
        let (started, exited) = (of(EventKind::ExecStarted), of(EventKind::ExecExited));
        assert_eq!((started.len(), exited.len()), (1, 1), "{id}");
        assert!(started[0] < exited[0], "{id}");
    }
    let end: Vec<_> = events.iter().filter(|e| e.kind == EventKind::Exited).collect();
    assert_eq!(end.len(), 1);
    assert_eq!(end[0].sequence, events.len() as u64, "the end of the container is the last of all");
    c.delete().await;
    place.finish();
}

#[tokio::test]
async fn a_later_stop_shortens_the_first() {
    let place = Native::new("stop");
    // Ignores its stop signal.
    let c = place.start(&Bundle::sh("trap '' TERM; echo ready; while :; do sleep 1; done")).await;
    wait_for("the trap to be set", || std::fs::read_to_string(&c.log).is_ok_and(|t| t.contains("ready")));
    let m = c.monitor.clone();
    let patient = tokio::spawn(async move { m.stop(None, Duration::from_secs(3600)).await });
    wait_for_async("the stop to be under way", async || {
        c.state().await.stopping.then_some(()).ok_or("not yet")
    })
    .await;
    // Lengthening does nothing, state stays readable, new execs are refused.
    let m = c.monitor.clone();
    let longer = tokio::spawn(async move { m.stop(None, Duration::from_secs(7200)).await });
    assert_eq!(c.state().await.status, Status::Running);
    let refused = c.monitor.exec(&ExecOptions::new(["/bin/true"])).await.unwrap_err();
    assert_eq!(kind(&refused), Some(ErrorKind::FailedPrecondition));
    let exit = c.monitor.stop(None, Duration::from_millis(100)).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Signal { signal: 9, core_dumped: false });
    for waiter in [patient, longer] {
        assert_eq!(waiter.await.unwrap().unwrap().reason, exit.reason);
    }
    c.delete().await;

    // A gentle end, also out of a pause.
    let c = place.start(&Bundle::sh("trap 'exit 4' TERM; echo ready; while :; do sleep 0.1; done")).await;
    wait_for("the trap to be set", || std::fs::read_to_string(&c.log).is_ok_and(|t| t.contains("ready")));
    c.monitor.pause().await.unwrap();
    assert_eq!(c.state().await.status, Status::Paused);
    let exit = c.monitor.stop(None, SOON).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Code(4), "{exit:?}");
    c.delete().await;
    // And a hard one.
    let c = place.start(&Bundle::sh(IDLE)).await;
    c.monitor.pause().await.unwrap();
    let exit = c.monitor.stop(None, Duration::ZERO).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Signal { signal: 9, core_dumped: false });
    c.delete().await;
    place.finish();
}

#[tokio::test]
async fn an_orphan_that_holds_stdout_does_not_hold_the_end() {
    let place = Native::new("orphan");
    // Without a pid namespace of its own nothing kills the orphan with init.
    let bundle = Bundle::sh("echo first; sleep 1000 & exit 3").edit(|c| {
        let namespaces = c["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|n| n["type"] != "pid");
    });
    let c = place.start_with(&bundle, |o| o.drain = Some(Duration::from_secs(1))).await;
    let exit = c.monitor.wait(Some(SOON)).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Code(3));
    assert!(std::fs::read_to_string(&c.log).unwrap().contains("first"));
    let record = std::fs::read_to_string(place.root().join(&c.id).join("exit.json")).unwrap();
    assert!(record.contains("\"output_leaked\":true"), "{record}");
    // Deleting takes the orphan along.
    c.delete().await;
    place.finish();
}

#[tokio::test]
async fn oom_is_told_from_sigkill() {
    let place = Native::new("oom");
    let eater = "x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done";
    let c = place.start(&Bundle::sh(eater).memory(20 * 1024 * 1024)).await;
    let exit = c.monitor.wait(Some(SOON)).await.unwrap();
    assert!(exit.oom_killed, "{exit:?}");
    let state = c.state().await;
    assert!(state.oom_kills >= 1, "{state:?}");
    let events = c.monitor.poll_events(0, Duration::ZERO).await.unwrap();
    assert!(events.iter().any(|e| e.kind == EventKind::Oom), "{events:?}");
    assert!(read_exit_record(&place.root().join(&c.id)).unwrap().oom_killed);
    c.delete().await;
    // Only a child is killed: counted, but not the container's end.
    let c = place.start(&Bundle::sh(&format!("sh -c '{eater}'; exit 5")).memory(20 * 1024 * 1024)).await;
    let exit = c.monitor.wait(Some(SOON)).await.unwrap();
    assert_eq!((exit.reason.clone(), exit.oom_killed), (ExitReason::Code(5), false));
    assert!(c.state().await.oom_kills >= 1);
    c.delete().await;
    let c = place.start(&Bundle::sh(IDLE).memory(20 * 1024 * 1024)).await;
    c.monitor.kill(9, false).await.unwrap();
    let exit = c.monitor.wait(Some(SOON)).await.unwrap();
    assert!(!exit.oom_killed && c.state().await.oom_kills == 0, "{exit:?}");
    c.delete().await;
    place.finish();
}

/// Creates with a misbehaving runtime and expects a failure that leaves nothing.
async fn create_fails(fake: FakeRuntime, timeout: Option<Duration>) -> pintle_client::CallError {
    let place = Native::new("fake");
    let id = unique_id("f");
    let mut options = place.options(&id, &Bundle::sh("exit 0"));
    options.runtime.path = fake.write(place.path());
    options.timeout = timeout;
    let monitor = place.shim(&id).await;
    let error = monitor.create(&options).await.unwrap_err();
    let Error::Call(call) = error else { panic!("{error:?}") };
    // The shim lives, the container does not exist, and a second try with a good runtime works.
    assert_eq!(monitor.state().await.unwrap().status, Status::Creating);
    options.runtime.path = pintle_tests::runc();
    options.timeout = None;
    monitor.create(&options).await.unwrap();
    monitor.start().await.unwrap();
    assert_eq!(monitor.wait(Some(SOON)).await.unwrap().reason, ExitReason::Code(0));
    monitor.delete(true).await.unwrap();
    place.finish();
    call
}

#[tokio::test]
async fn a_runtime_that_fails_is_quoted() {
    let call =
        create_fails(FakeRuntime::new().on("create", Act::Fail("the moon is wrong".into(), 4)), None).await;
    assert_eq!(call.kind, ErrorKind::RuntimeFailed);
    assert_eq!((call.runtime_message.as_str(), call.runtime_status), ("the moon is wrong", 4));
}

#[tokio::test]
async fn a_runtime_that_dies_is_named() {
    let call = create_fails(FakeRuntime::new().on("create", Act::Die(11)), None).await;
    assert_eq!((call.kind, call.runtime_status), (ErrorKind::RuntimeFailed, 139), "{call:?}");
}

#[tokio::test]
async fn a_runtime_that_hangs_is_killed() {
    let limit = Some(Duration::from_millis(500));
    let call = create_fails(FakeRuntime::new().on("create", Act::Hang), limit).await;
    assert_eq!(call.kind, ErrorKind::DeadlineExceeded, "{call:?}");
}

#[tokio::test]
async fn a_runtime_that_talks_nonsense_is_not_believed() {
    let call = create_fails(FakeRuntime::new().on("create", Act::Nonsense("done!".into())), None).await;
    assert_eq!(call.kind, ErrorKind::RuntimeFailed, "{call:?}");
}

#[tokio::test]
async fn a_runtime_that_is_not_there_is_named() {
    let place = Native::new("none");
    let id = unique_id("f");
    let mut options = place.options(&id, &Bundle::sh("exit 0"));
    options.runtime.path = "/no/such/runtime".into();
    let monitor = place.shim(&id).await;
    let error = monitor.create(&options).await.unwrap_err();
    assert_eq!(kind(&error), Some(ErrorKind::RuntimeNotFound));
    assert!(error.to_string().contains("/no/such/runtime"), "{error}");
    monitor.shutdown(false).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn a_runtime_that_floods_its_stderr_gets_through() {
    let place = Native::new("flood");
    let fake =
        FakeRuntime::new().on("create", Act::FloodStderr(3_000_000)).on("start", Act::FloodStderr(3_000_000));
    let runtime = fake.write(place.path());
    let c = place.start_with(&Bundle::sh("echo mine; exit 6"), |o| o.runtime.path = runtime).await;
    assert_eq!(c.monitor.wait(Some(SOON)).await.unwrap().reason, ExitReason::Code(6));
    // What the runtime said is not the container's output.
    let log = std::fs::read_to_string(&c.log).unwrap();
    assert!(log.contains("mine") && !log.contains("xxxx"), "{} bytes", log.len());
    c.delete().await;
    place.finish();
}

#[tokio::test]
async fn a_client_that_vanishes_does_not_stop_what_it_asked_for() {
    let place = Native::new("vanish");
    let runtime =
        FakeRuntime::new().on("create", Act::Delay(0.5)).on("start", Act::Delay(0.5)).write(place.path());
    let id = unique_id("v");
    let mut options = place.options(&id, &Bundle::sh("exit 8"));
    options.runtime.path = runtime;
    let monitor = place.shim(&id).await;
    // The connection is closed while the call is under way.
    let (m, o) = (monitor.clone(), options.clone());
    let call = tokio::spawn(async move {
        let _ = Monitor::at(m.dir()).with_timeout(Duration::from_millis(100)).create(&o).await;
    });
    call.await.unwrap();
    let other = Monitor::connect(monitor.dir()).await.unwrap();
    wait_for_async("the container to be created", async || {
        let status = other.state().await.unwrap().status;
        if status == Status::Created { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    let m = monitor.clone();
    let start = tokio::spawn(async move {
        let _ = Monitor::at(m.dir()).with_timeout(Duration::from_millis(100)).start().await;
    });
    start.await.unwrap();
    assert_eq!(other.wait(Some(SOON)).await.unwrap().reason, ExitReason::Code(8));
    other.delete(false).await.unwrap();
    place.finish();
}

#[tokio::test]
async fn garbage_closes_its_own_connection_only() {
    let place = Native::new("garbage");
    let c = place.start(&Bundle::sh(IDLE)).await;
    let dir = place.root().join(&c.id);
    let header = |length: u32, kind: u8| {
        let mut frame = length.to_be_bytes().to_vec();
        frame.extend([0, 0, 0, 1, kind, 0]);
        frame
    };
    let mut bad = vec![
        vec![0xff; 64],
        header(5 << 20, 1),
        header(u32::MAX, 1),
        [header(4, 3), vec![0; 4]].concat(),
        [header(4, 2), vec![0; 4]].concat(),
        [header(4, 77), vec![0; 4]].concat(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    // Half frames, left hanging.
    bad.push(header(1000, 1));
    bad.push(vec![0, 0]);
    let mut held = Vec::new();
    for (i, bytes) in bad.iter().enumerate() {
        let mut stream = UnixStream::connect(dir.join("monitor.sock")).unwrap();
        stream.write_all(bytes).unwrap();
        if i < 7 {
            stream.set_read_timeout(Some(SOON)).unwrap();
            let mut answer = Vec::new();
            // An end of file or a reset; in any case not a wait.
            let _ = stream.read_to_end(&mut answer);
        } else {
            held.push(stream);
        }
    }
    for socket in ["stdio.sock", "attach.sock"] {
        for bytes in [&b"x"[..], &[0u8; 16], &[0xff; 4000]] {
            let fd = pintle_sys::seqpacket::open_dir(&dir).unwrap();
            let kind = pintle_sys::seqpacket::SocketKind::Packet;
            let stream =
                pintle_sys::seqpacket::connect_at(std::os::fd::AsFd::as_fd(&fd), socket, kind).unwrap();
            let _ = pintle_sys::seqpacket::send_packet(std::os::fd::AsFd::as_fd(&stream), bytes);
        }
    }
    let out = c.monitor.exec_sync(&sh("echo fine")).await.unwrap();
    assert_eq!(out.stdout, b"fine\n");
    drop(held);
    c.delete().await;
    place.finish();
}

#[tokio::test]
async fn no_signal_ends_the_shim() {
    let place = Native::new("storm");
    let c = place.start(&Bundle::sh(IDLE)).await;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(c.shim_pid().await).unwrap());
    let rounds = scaled(20, 200);
    for round in 0..rounds {
        for signal in 1..=64 {
            let deadly =
                [libc::SIGKILL, libc::SIGSTOP, libc::SIGILL, libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS];
            // Stopping it is not ending it, but it would not go on by itself.
            let stops = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
            if deadly.contains(&signal) || stops.contains(&signal) {
                continue;
            }
            // nix knows no real-time signals; kill(1) does.
            if signal <= 31 {
                let signal = nix::sys::signal::Signal::try_from(signal).unwrap();
                nix::sys::signal::kill(pid, signal).unwrap();
            } else if round == 0 {
                let status = std::process::Command::new("kill")
                    .args([format!("-{signal}"), pid.to_string()])
                    .status()
                    .unwrap();
                assert!(status.success());
            }
        }
    }
    let out = c.monitor.exec_sync(&sh("exit 5")).await.unwrap();
    assert_eq!(out.exit.reason, ExitReason::Code(5));
    assert_eq!(c.shim_pid().await, u32::try_from(pid.as_raw()).unwrap());
    c.monitor.kill(9, false).await.unwrap();
    assert!(matches!(c.monitor.wait(Some(SOON)).await.unwrap().reason, ExitReason::Signal { signal: 9, .. }));
    c.delete().await;
    place.finish();
}

#[tokio::test]
async fn nothing_leaks_into_the_container() {
    let place = Native::new("leak");
    let script =
        "ls /proc/self/fd; grep -E 'Sig(Blk|Ign)' /proc/self/status; umask; cat /proc/self/oom_score_adj";
    let c = place.start(&Bundle::sh(IDLE)).await;
    let out = c.monitor.exec_sync(&sh(script)).await.unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    // 0, 1, 2, and the one that lists.
    assert_eq!(lines[..4], ["0", "1", "2", "3"], "{text}");
    assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
    // What the test's own caller ignores is inherited, as it would be without a shim.
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = own.lines().find(|l| l.starts_with("SigIgn")).unwrap();
    let ignored = u64::from_str_radix(ignored.split_whitespace().nth(1).unwrap(), 16).unwrap();
    // Rust ignores SIGPIPE for itself and gives it back to children.
    let ignored = ignored & !(1 << (libc::SIGPIPE - 1));
    // glibc ignores its two internal signals in what it spawns; they say nothing about a shim.
    let internal = 0b11 << 31;
    let told = text.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
    let told = u64::from_str_radix(told, 16).unwrap();
    assert_eq!(told & !internal, ignored & !internal, "{text}");
    // The shim has no children but the container's first process.
    let shim = c.shim_pid().await;
    wait_for("only init to be the shim's child", || process_children(shim).len() == 1);
    c.delete().await;
    wait_for("the shim to end", || !process_alive(shim));
    place.finish();
}

#[tokio::test]
async fn ids_and_paths() {
    let place = Native::new("ids");
    for bad in ["", "../x", "a/b", ".hidden", "-x", "a b"] {
        let mut config = place.spawn_config("x");
        config.id = bad.to_string();
        let error = Monitor::spawn(config).await.unwrap_err();
        assert!(error.to_string().contains("id"), "{bad:?}: {error}");
    }
    let c = place.start(&Bundle::sh(IDLE)).await;
    let error = Monitor::spawn(place.spawn_config(&c.id)).await.unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    let again = place.options(&c.id, &Bundle::sh("exit 0"));
    let error = c.monitor.create(&again).await.unwrap_err();
    assert!(
        matches!(kind(&error), Some(ErrorKind::FailedPrecondition | ErrorKind::AlreadyExists)),
        "{error:?}"
    );
    c.delete().await;
    // A state directory whose sockets' paths are far too long for an address.
    let long = place.root().join("l".repeat(120)).join("m".repeat(100));
    let id = unique_id("long");
    let mut config = place.spawn_config(&id);
    config.root.clone_from(&long);
    let monitor = Monitor::spawn(config).await.unwrap();
    let bundle = Bundle::sh("stty size; exit 2").terminal();
    let mut options = place.options(&id, &bundle);
    options.size = Some((101, 37));
    monitor.create(&options).await.unwrap();
    monitor.start().await.unwrap();
    assert_eq!(monitor.wait(Some(SOON)).await.unwrap().reason, ExitReason::Code(2));
    let log = std::fs::read_to_string(place.path().join(&id).join("log")).unwrap();
    assert!(log.contains("37 101"), "{log}");
    monitor.delete(false).await.unwrap();
    std::fs::remove_dir_all(place.root().join("l".repeat(120))).unwrap();
    place.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_of_many_calls_has_one_bound() {
    const CALLS: u64 = 8;
    const EACH: u64 = 16 * 1024 * 1024;
    let place = Native::new("bound");
    let c = place.start(&Bundle::sh(IDLE)).await;
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let monitor = c.monitor.clone();
            let options = sh(&format!("head -c {EACH} /dev/zero; exit 7"));
            tokio::spawn(async move { monitor.exec_sync(&options).await.unwrap() })
        })
        .collect();
    let (mut got, mut whole) = (0, 0);
    for call in calls {
        let out = call.await.unwrap();
        assert_eq!(out.exit.reason, ExitReason::Code(7));
        assert_eq!(out.truncated, (out.stdout.len() as u64) < EACH, "cut and said so");
        got += out.stdout.len();
        whole += usize::from(!out.truncated);
    }
    // The clients' answers may leave one by one, so more than the bound may get through in all, never more at a time.
    let peak = status_kb(c.shim_pid().await, "VmHWM:");
    assert!(peak < 160 * 1024, "{peak} kB at the peak for {got} bytes, {whole} of {CALLS} whole");
    let out = c.monitor.exec_sync(&sh(&format!("head -c {EACH} /dev/zero"))).await.unwrap();
    assert!(!out.truncated && out.stdout.len() as u64 == EACH, "the room is free again");
    c.delete().await;
    place.finish();
}

/// More calls at a time than connections may wait for their turn: none is turned away, each has its own answer, and the
/// shim is as small afterwards as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_calls_at_once_are_all_answered() {
    let place = Native::new("crowd");
    let c = place.start(&Bundle::sh(IDLE)).await;
    c.monitor.exec_sync(&sh("exit 0")).await.unwrap();
    let shim = c.shim_pid().await;
    let before = (fds(shim).len(), private_dirty_kib(shim));
    let calls: Vec<_> = (0..scaled(300, 500))
        .map(|n| {
            let monitor = c.monitor.clone();
            let options = sh(&format!("echo out {n}; echo err {n} >&2; exit {}", n % 100));
            (n, tokio::spawn(async move { monitor.exec_sync(&options).await }))
        })
        .collect();
    for (n, call) in calls {
        let out = call.await.unwrap().unwrap_or_else(|e| panic!("call {n}: {e:?}"));
        assert_eq!(out.exit.reason, ExitReason::Code(n as i32 % 100), "call {n}");
        assert_eq!((out.stdout, out.stderr), (format!("out {n}\n").into(), format!("err {n}\n").into()));
    }
    wait_for_async("the shim to be small again", async || {
        let now = (fds(shim).len(), private_dirty_kib(shim));
        // A tenth, and what fragments of the heap keep in a debug build: 352 kB in one of 16 runs, else less.
        if now.0 <= before.0 + 2 && now.1 <= before.1 + before.1 / 10 + 512 {
            Ok(())
        } else {
            Err(format!("{now:?} after {before:?}"))
        }
    })
    .await;
    c.delete().await;
}

/// As many connections as have places, and some more, that no call ever names: a call whose connection comes behind them
/// is answered all the same, and those that still wait when there is room again keep their places.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_nobody_names_hold_up_no_call() {
    let place = Native::new("unnamed");
    let c = place.start(&Bundle::sh(IDLE)).await;
    let socket = c.monitor.dir().join("stdio.sock");
    let idle: Vec<_> = (0u8..=255).chain(0..8).map(|_| connect_packets(&socket).unwrap()).collect();
    for (n, fd) in (0u64..).zip(&idle).filter(|(n, _)| n % 16 == 0) {
        let token = [n.to_ne_bytes(), [7; 8]].concat();
        pintle_sys::seqpacket::send_packet(std::os::fd::AsFd::as_fd(fd), &token).unwrap();
    }
    let out = c.monitor.exec_sync(&sh("echo out; exit 3")).await.unwrap();
    assert_eq!((out.exit.reason, out.stdout), (ExitReason::Code(3), b"out\n".to_vec()));
    // As many of those that came first had to go as were in the way.
    let (first, late) = idle.split_at(256);
    let closed = first.iter().filter(|fd| is_at_end(fd)).count();
    assert!((8..=9).contains(&closed), "{closed} closed");
    assert!(!late.iter().any(is_at_end));
    drop(idle);
    c.delete().await;
}

/// Whether the other side has closed.
fn is_at_end(fd: &OwnedFd) -> bool {
    let flags = nix::sys::socket::MsgFlags::MSG_DONTWAIT;
    matches!(nix::sys::socket::recv(fd.as_raw_fd(), &mut [0], flags), Ok(0) | Err(Errno::ECONNRESET))
}

/// One call more than may run at a time is refused by name, and the others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_too_many_is_refused_by_name() {
    const MOST: usize = 768;
    let place = Native::new("most");
    let gate = place.path().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let hang = Act::Script(format!("read x <'{}'; echo no luck >&2; exit 1", gate.display()));
    let fake = FakeRuntime::new().on("exec", hang).write(place.path());
    let c = place.start_with(&Bundle::sh(IDLE), |o| o.runtime.path = fake).await;
    let shim = c.shim_pid().await;
    let calls: Vec<_> = (0..MOST)
        .map(|_| {
            let monitor = c.monitor.clone();
            tokio::spawn(async move { monitor.exec_sync(&sh("exit 0")).await })
        })
        .collect();
    wait_for("all calls to run", || process_children(shim).len() >= MOST);
    let error = c.monitor.exec_sync(&sh("exit 0")).await.unwrap_err();
    assert_eq!(kind(&error), Some(ErrorKind::ResourceExhausted), "{error:?}");
    assert!(error.to_string().contains(&format!("{MOST} ExecSync calls")), "{error}");
    // Open for both ends nobody is waited for; every reader goes on, and finds the end when it is closed again.
    wait_for("the runtimes to go on", || {
        drop(std::fs::File::options().read(true).write(true).open(&gate).unwrap());
        process_children(shim).len() <= 1
    });
    for call in calls {
        let error = call.await.unwrap().unwrap_err();
        assert!(error.to_string().contains("no luck"), "{error:?}");
    }
    c.delete().await;
}

/// A line of `/proc/PID/status` in kB.
fn status_kb(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_during_create_leaves_no_container() {
    let place = Native::new("midway");
    let gate = place.path().join("gate");
    let fake = FakeRuntime::new().on(
        "create",
        Act::Script(format!(
            ": >{0}; while [ -e {0} ]; do sleep 0.02; done; exec \"$RUNC\" \"$@\"",
            gate.display()
        )),
    );
    let id = unique_id("mid");
    let monitor = place.shim(&id).await;
    let mut options = place.options(&id, &Bundle::sh(IDLE));
    options.runtime.path = fake.write(place.path());
    let creator = monitor.clone();
    let creating = tokio::spawn(async move { creator.create(&options).await });
    wait_for("the runtime's create", || gate.exists());
    assert_eq!(kind(&monitor.shutdown(false).await.unwrap_err()), Some(ErrorKind::FailedPrecondition));
    let ender = monitor.clone();
    let ending = tokio::spawn(async move { ender.shutdown(true).await });
    // Both requests are with the shim when it has answered a later one.
    monitor.state().await.unwrap();
    std::fs::remove_file(&gate).unwrap();
    let _ = creating.await.unwrap();
    ending.await.unwrap().unwrap();
    let exit =
        eventually("the record", || pintle_client::read_exit_record(&place.root().join(&id)).ok_or("none"));
    assert_eq!(exit.reason, ExitReason::Signal { signal: 9, core_dumped: false }, "killed, not forgotten");
    let mut rm = std::process::Command::new(pintle_tests::pintle());
    let out = pintle_tests::output_within(rm.arg("--root").arg(place.root()).args(["rm", &id]));
    assert!(out.status.success(), "{out:?}");
    place.finish();
}

#[tokio::test]
async fn an_exec_id_is_given_once() {
    let place = Native::new("twins");
    let c = place.start(&Bundle::sh(IDLE)).await;
    let named = |id: &str| ExecOptions { id: id.into(), ..ExecOptions::new(["/bin/sleep", "1000"]) };
    // Both are with the runtime at the same time.
    let twins = (named("twin"), named("twin"));
    let answers = tokio::join!(c.monitor.exec(&twins.0), c.monitor.exec(&twins.1));
    let refused: Vec<_> =
        [&answers.0, &answers.1].into_iter().filter_map(|a| a.as_ref().err().map(kind)).collect();
    assert_eq!(refused, [Some(ErrorKind::AlreadyExists)]);
    // What the shim makes up avoids what callers chose.
    for n in 1..=4 {
        c.monitor.exec(&named(&format!("exec-{n}"))).await.unwrap();
    }
    let own = c.monitor.exec(&named("")).await.unwrap();
    assert_eq!(c.state().await.execs.len(), 6, "{}", own.id);
    c.delete().await;
    place.finish();
}

#[tokio::test]
async fn a_container_that_others_made_under_the_id_survives() {
    let place = Native::new("other");
    for runtime in [pintle_tests::runc(), pintle_tests::crun()] {
        let id = unique_id("o");
        let mut options = place.options(&id, &Bundle::sh(IDLE));
        options.runtime.path.clone_from(&runtime);
        options.runtime.root = place.path().join("runtime");
        let call = |args: &[&str]| {
            let mut command = std::process::Command::new(&runtime);
            command.arg("--root").arg(place.path().join("runtime")).args(args);
            // The container keeps what it is given as its own.
            command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
            command.stderr(std::process::Stdio::null()).status().unwrap().success()
        };
        let pid_file = place.path().join("other-pid");
        let bundle = options.bundle.to_str().unwrap().to_owned();
        assert!(call(&["create", "--bundle", &bundle, "--pid-file", pid_file.to_str().unwrap(), &id]));
        let pid: u32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
        let monitor = place.shim(&id).await;
        let error = monitor.create(&options).await.unwrap_err();
        assert_eq!(kind(&error), Some(ErrorKind::RuntimeFailed), "{error}");
        assert!(process_alive(pid), "{}: {error}", runtime.display());
        monitor.shutdown(false).await.unwrap();
        assert!(call(&["delete", "--force", &id]));
    }
    place.finish();
}

#[tokio::test]
async fn an_exec_whose_start_fails_leaves_no_process() {
    let place = Native::new("halfway");
    let pid_file = place.path().join("left");
    let fake = FakeRuntime::new().on("exec", Act::Script(pintle_tests::start_and_fail(&pid_file)));
    let c = place.start_with(&Bundle::sh(IDLE), |o| o.runtime.path = fake.write(place.path())).await;
    let error = c.monitor.exec(&ExecOptions::new(["/bin/true"])).await.unwrap_err();
    assert_eq!(kind(&error), Some(ErrorKind::RuntimeFailed));
    let pid: u32 = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    wait_for("the process of the failed exec to be gone", || !process_alive(pid));
    c.delete().await;
    place.finish();
}
