//! A container's whole life through the native door: what its log, its exit, its execs and its clients
//! are promised, with real runtimes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use pintle_client::{
    Error, ErrorKind, EventKind, ExecOptions, ExecSyncOptions, Exit, ExitReason, Monitor, Status, StdioEnd,
};
use pintle_tests::{
    Bundle, Container, Leftovers, Native, eventually, full, process_alive, read_cri, rejoin, runtimes,
    scaled, unique_id, wait_for, wait_for_async,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LONG: Duration = Duration::from_secs(120);

fn code(exit: &Exit) -> Option<i32> {
    match exit.reason {
        ExitReason::Code(n) => Some(n),
        _ => None,
    }
}

fn signal(exit: &Exit) -> Option<i32> {
    match exit.reason {
        ExitReason::Signal { signal, .. } => Some(signal),
        _ => None,
    }
}

async fn wait(c: &Container) -> Exit {
    c.monitor.wait(Some(LONG)).await.unwrap_or_else(|e| panic!("wait for {}: {e:?}", c.id))
}

fn stdout_of(c: &Container) -> Vec<u8> {
    rejoin(&read_cri(&c.log), "stdout")
}

/// Every container prints a known MiB and exits with its own code: the log is exact before the end is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_is_in_the_log_before_the_end_is_told() {
    let place = std::sync::Arc::new(Native::new("many"));
    let total = scaled(10, 200);
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(4));
    let mut tasks = Vec::new();
    for n in 0..total {
        let (place, gate) = (place.clone(), gate.clone());
        tasks.push(tokio::spawn(async move {
            let _turn = gate.acquire().await.unwrap();
            let line = format!("container {n} writes a line that is known in advance");
            let script = format!("yes '{line}' | head -c 1048576; exit {}", n % 256);
            let c = place.start(&Bundle::sh(&script)).await;
            let exit = wait(&c).await;
            // At this very moment, without waiting any more:
            let log = stdout_of(&c);
            let expected: Vec<u8> = format!("{line}\n").bytes().cycle().take(1 << 20).collect();
            assert!(log == expected, "container {n}: {} bytes instead of {}", log.len(), expected.len());
            assert_eq!(code(&exit), Some((n % 256) as i32), "container {n}: {exit:?}");
            let record = pintle_client::read_exit_record(&place.root().join(&c.id)).expect("exit record");
            assert_eq!(record.reason, exit.reason);
            c.delete().await;
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    place.finish();
}

/// Each signal that ends a process is told as that signal, and 128 + n as a code is told as a code.
#[tokio::test]
async fn every_signal_is_told_apart_from_exit_codes() {
    let place = Native::new("sig");
    let c = place.start(&Bundle::sh("sleep 1000")).await;
    // Not in here: what is ignored or stops by default, 32 and 33, which the C library keeps, and 3, which this shell ignores.
    let not_fatal = [3, 17, 18, 19, 20, 21, 22, 23, 28, 32, 33];
    let chosen: Vec<i32> = (1..=64).filter(|n| !not_fatal.contains(n)).collect();
    let step = if pintle_tests::full() { 1 } else { 4 };
    for n in chosen.into_iter().filter(|n| n % step == 1 % step || [9, 15, 11, 6].contains(n)) {
        let exec = c
            .monitor
            .exec(&ExecOptions::new(["sh", "-c", &format!("kill -{n} $$; sleep 60")]))
            .await
            .unwrap();
        let exit = exec.wait(Some(LONG)).await.unwrap();
        assert_eq!(signal(&exit), Some(n), "{exit:?}");
        assert_eq!(exit.status, 128 + n);
        let exec =
            c.monitor.exec(&ExecOptions::new(["sh", "-c", &format!("exit {}", 128 + n)])).await.unwrap();
        assert_eq!(code(&exec.wait(Some(LONG)).await.unwrap()), Some(128 + n));
    }
    c.monitor.kill(9, false).await.unwrap();
    let exit = wait(&c).await;
    assert_eq!(signal(&exit), Some(9));
    assert!(!exit.oom_killed, "a plain SIGKILL is not the kernel's OOM killer");
    c.delete().await;
    place.finish();
}

/// Not started, exited, killed, timed out, cut: five answers that cannot be taken for each other.
#[tokio::test]
async fn an_exec_ends_in_one_of_five_ways() {
    for (name, path) in runtimes() {
        let place = Native::new("five");
        let c = place.start_with(&Bundle::sh("sleep 1000"), |o| o.runtime.path = path).await;
        let sync = |args: &[&str]| ExecSyncOptions::new(args.iter().copied());

        let error = c.monitor.exec_sync(&sync(&["/no/such/program"])).await.unwrap_err();
        assert_eq!(error.kind(), Some(ErrorKind::RuntimeFailed), "{name}: {error:?}");
        let Error::Call(call) = &error else { panic!("{error:?}") };
        assert!(call.runtime_message.contains("/no/such/program"), "{name}: {call:?}");

        let done = c.monitor.exec_sync(&sync(&["sh", "-c", "echo out; echo err >&2; exit 3"])).await.unwrap();
        assert_eq!(
            (done.stdout.as_slice(), done.stderr.as_slice()),
            (&b"out\n"[..], &b"err\n"[..]),
            "{name}"
        );
        assert_eq!((code(&done.exit), done.timed_out, done.truncated), (Some(3), false, false), "{name}");

        let done = c.monitor.exec_sync(&sync(&["sh", "-c", "kill -15 $$; sleep 60"])).await.unwrap();
        assert_eq!((signal(&done.exit), done.timed_out), (Some(15), false), "{name}");

        let mut options = sync(&["sh", "-c", "echo begun; sleep 1000"]);
        options.timeout = Some(Duration::from_secs(2));
        let done = c.monitor.exec_sync(&options).await.unwrap();
        assert!(done.timed_out, "{name}: {done:?}");
        assert_eq!(done.stdout, b"begun\n", "{name}");

        let mut options = sync(&["sh", "-c", "yes | head -c 100000"]);
        options.max_output = Some(1000);
        let done = c.monitor.exec_sync(&options).await.unwrap();
        assert_eq!((done.stdout.len(), done.truncated, code(&done.exit)), (1000, true, Some(0)), "{name}");

        c.delete().await;
        place.finish();
    }
}

/// A process that daemonises itself is ended with the rest when the time is up.
#[tokio::test]
async fn exec_sync_ends_the_whole_tree_in_time() {
    let place = Native::new("tree");
    let c = place.start(&Bundle::sh("sleep 1000")).await;
    // A number that no other sleep on this machine has.
    let mark = format!("86{}", std::process::id());
    let script =
        format!("setsid sh -c 'setsid sleep {mark} & sleep {mark}' & (sleep {mark} &) ; sleep {mark}");
    let mut options = ExecSyncOptions::new(["sh", "-c", &script]);
    options.timeout = Some(Duration::from_secs(1));
    let began = Instant::now();
    let done = c.monitor.exec_sync(&options).await.unwrap();
    assert!(done.timed_out, "{done:?}");
    // 2 s are promised for a machine that has nothing else to do.
    let bound = Duration::from_secs(scaled(30, 2) as u64);
    assert!(began.elapsed() < bound, "{:?}", began.elapsed());
    Leftovers::of(format!("sleep {mark}")).assert_none();
    assert_eq!(c.state().await.status, Status::Running);
    c.delete().await;
    place.finish();
}

/// Every attach client sees the same bytes; one that does not read is let go and told so, and nobody waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attach_clients_see_the_same_and_a_stalled_one_is_dropped() {
    let place = Native::new("fan");
    let clients = scaled(8, 64);
    // More than all the buffers between the container and a client that does not read.
    let size = scaled(8, 64) << 20;
    let line = "0123456789abcdef0123456789abcdef0123456789abcdef";
    let script = format!("read go; yes {line} | head -c {size}; exit 4");
    let c = place.start_with(&Bundle::sh(&script), |o| o.stdin = true).await;
    let mut readers = Vec::new();
    for _ in 0..clients {
        let mut stdio = c.monitor.attach(false).await.unwrap().stdio;
        readers.push(tokio::spawn(async move {
            let mut bytes = Vec::new();
            stdio.stdout.read_to_end(&mut bytes).await.map(|_| bytes)
        }));
    }
    // Its output is never read.
    let mut stalled = c.monitor.attach(false).await.unwrap().stdio;
    let mut feeder = c.monitor.attach(true).await.unwrap().stdio;
    drop((feeder.stdout, feeder.stderr));
    feeder.stdin.write_all(b"go\n").await.unwrap();
    assert_eq!(code(&wait(&c).await), Some(4));
    let log = stdout_of(&c);
    assert_eq!(log.len(), size);
    for reader in readers {
        let bytes = tokio::time::timeout(LONG, reader).await.expect("a client must come to its end").unwrap();
        assert!(bytes.expect("not dropped") == log, "a client saw other bytes than the log");
    }
    let mut rest = Vec::new();
    let told = tokio::time::timeout(LONG, stalled.stdout.read_to_end(&mut rest)).await.expect("told in time");
    assert!(told.is_err(), "the client that did not read was not told that it missed something");
    // By a last packet, if its socket had room for one when the container ended, else by the connection's loss.
    assert_ne!(stalled.control.closed().await, StdioEnd::Finished);
    assert!(log.starts_with(&rest), "what it got before is the beginning");
    let io = c.state().await.io;
    assert!(io.clients_dropped >= 1, "{io:?}");
    c.delete().await;
    place.finish();
}

/// `len` bytes that do not repeat within any buffer's size.
fn pattern(from: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| ((from + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u8).collect()
}

async fn both_ways(stdio: pintle_client::Stdio, total: usize) {
    let pintle_client::Stdio { mut stdin, mut stdout, stderr, control } = stdio;
    drop(stderr);
    let writer = tokio::spawn(async move {
        let mut at = 0;
        while at < total {
            let n = (total - at).min(1 << 20);
            stdin.write_all(&pattern(at as u64, n)).await.expect("write stdin");
            at += n;
        }
        stdin.shutdown().await.expect("close stdin");
        stdin
    });
    let mut buf = vec![0; 1 << 16];
    let mut at = 0;
    loop {
        let n = stdout.read(&mut buf).await.expect("read stdout");
        if n == 0 {
            break;
        }
        assert!(buf[..n] == pattern(at as u64, n), "other bytes came back at {at}");
        at += n;
    }
    assert_eq!(at, total, "all of it came back");
    let _stdin = writer.await.unwrap();
    assert_eq!(tokio::time::timeout(LONG, control.closed()).await.expect("closed"), StdioEnd::Finished);
}

/// What goes into `cat` comes out of it, both ways at once, by exec and by attach; the end comes once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_in_comes_out_by_exec_and_by_attach() {
    let place = Native::new("cat");
    let total = scaled(12, 1024) << 20;
    let bundle = Bundle::sh("exec cat");
    let c = place.start_with(&bundle, |o| {
        o.stdin = true;
        o.stdin_once = true;
        o.logs.clear();
    });
    let c = c.await;
    let mut exec = ExecOptions::new(["cat"]);
    exec.stdin = true;
    let mut exec = c.monitor.exec(&exec).await.unwrap();
    let io = exec.stdio.take().expect("streams");
    tokio::time::timeout(LONG * 5, both_ways(io, total)).await.expect("exec in time");
    assert_eq!(code(&exec.wait(Some(LONG)).await.unwrap()), Some(0));

    let io = c.monitor.attach(true).await.unwrap().stdio;
    tokio::time::timeout(LONG * 5, both_ways(io, total)).await.expect("attach in time");
    assert_eq!(code(&wait(&c).await), Some(0));
    c.delete().await;
    place.finish();
}

/// Renamed and reopened again and again while it grows: nothing lost, split, doubled, or written behind.
#[tokio::test]
async fn the_log_is_reopened_at_full_speed_without_a_gap() {
    let place = Native::new("reopen");
    // What is written, over and over: short lines and slowly, or with the full count long ones as fast as it can.
    let (block, times, script): (Vec<u8>, usize, _) = if full() {
        let block = (0..160_000).flat_map(|n| format!("{n:0>99}\n").into_bytes());
        (block.collect(), 128, "read go; for i in $(seq 128); do cat /data/block; done; exit 0")
    } else {
        let block = (1..=1_700_000).flat_map(|n| format!("{n}\n").into_bytes());
        (block.collect(), 1, "read go; seq 1 1700000; exit 0")
    };
    let data = place.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("block"), &block).unwrap();
    let bundle = Bundle::sh(script).bind(&data, "/data");
    let c = place.start_with(&bundle, |o| o.stdin = true).await;
    let mut feeder = c.monitor.attach(true).await.unwrap().stdio;
    drop((feeder.stdout, feeder.stderr));
    feeder.stdin.write_all(b"go\n").await.unwrap();
    let mut old: Vec<(std::path::PathBuf, u64)> = Vec::new();
    let mut took = Vec::new();
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    while c.state().await.exit.is_none() {
        pace.tick().await;
        let aside = c.dir.join(format!("old{}", old.len()));
        fs::rename(&c.log, &aside).unwrap();
        let began = Instant::now();
        let answer = c.monitor.reopen_log().await;
        took.push(began.elapsed());
        let inode = match answer {
            Ok(answer) => answer.expect("a log file").1,
            Err(e) => {
                // It ended in the meantime. The kubelet renames back after an error.
                assert_eq!(e.kind(), Some(ErrorKind::FailedPrecondition), "{e:?}");
                assert!(!c.log.exists(), "an error creates nothing");
                fs::rename(&aside, &c.log).unwrap();
                break;
            }
        };
        let now = fs::metadata(&c.log).expect("the log is there when the answer comes");
        let before = fs::metadata(&aside).unwrap();
        assert_eq!(now.ino(), inode);
        assert_ne!(now.ino(), before.ino());
        old.push((aside, before.size()));
    }
    assert_eq!(code(&wait(&c).await), Some(0));
    assert!(old.len() >= 3, "only {} reopens: the container was too fast", old.len());
    took.sort();
    // 10 ms at the median are promised for a machine that has nothing else to do.
    let bound = Duration::from_millis(scaled(5_000, 10) as u64);
    assert!(took[took.len() / 2] <= bound, "{took:?}");
    let current = (c.log.clone(), fs::metadata(&c.log).unwrap().size());
    let mut at = 0;
    for (path, size) in old.iter().chain([&current]) {
        assert_eq!(fs::metadata(path).unwrap().size(), *size, "{} grew after the answer", path.display());
        let got = rejoin(&read_cri(path), "stdout");
        let mut rest = &got[..];
        while !rest.is_empty() {
            let expected = &block[at % block.len()..];
            let (piece, more) = rest.split_at(rest.len().min(expected.len()));
            assert!(piece == &expected[..piece.len()], "byte {at}, in {}, is another", path.display());
            (at, rest) = (at + piece.len(), more);
        }
    }
    assert_eq!(at, block.len() * times, "after {} reopens", old.len());
    assert!(c.state().await.io.reopened >= old.len() as u64);
    c.delete().await;
    place.finish();
}

/// A log that does not move is not truncated by a reopen, and one that cannot be opened stays in use.
#[tokio::test]
async fn a_reopen_that_fails_or_changes_nothing_loses_nothing() {
    let place = Native::new("reo2");
    let c = place.start_with(&Bundle::sh("while read l; do echo $l; done"), |o| o.stdin = true).await;
    let mut feeder = c.monitor.attach(true).await.unwrap().stdio;
    drop((feeder.stdout, feeder.stderr));
    feeder.stdin.write_all(b"one\n").await.unwrap();
    wait_for("a line in the log", || stdout_of(&c) == b"one\n");
    c.monitor.reopen_log().await.unwrap();
    assert_eq!(stdout_of(&c), b"one\n", "not renamed: the file goes on");

    let moved = c.dir.with_extension("moved");
    fs::rename(&c.dir, &moved).unwrap();
    let error = c.monitor.reopen_log().await.unwrap_err();
    assert!(error.to_string().contains(&*c.log.to_string_lossy()), "{error}");
    assert!(!c.log.exists(), "an error creates nothing");
    feeder.stdin.write_all(b"two\n").await.unwrap();
    let log = moved.join("log");
    wait_for("the old file to go on", || rejoin(&read_cri(&log), "stdout") == b"one\ntwo\n");
    fs::rename(&moved, &c.dir).unwrap();
    feeder.stdin.shutdown().await.unwrap();
    assert_eq!(code(&wait(&c).await), Some(0));
    c.delete().await;
    place.finish();
}

/// With the disk of the log full the container runs on, the loss is counted by its cause, and the log says
/// so when there is space again.
#[tokio::test]
async fn a_full_log_disk_costs_lines_and_nothing_else() {
    let place = Native::new("full");
    let disk = place.path().join("disk");
    fs::create_dir(&disk).unwrap();
    nix::mount::mount(
        Some("tmpfs"),
        &disk,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("size=256k,nr_inodes=64"),
    )
    .expect("mount a small tmpfs");
    let script =
        "read go; yes 0123456789abcdef | head -c 2097152; echo phase two; read go; echo after; exit 5";
    let log = disk.join("log");
    let path = log.clone();
    let bundle = Bundle::sh(script);
    let c = place.start_with(&bundle, |o| {
        o.stdin = true;
        o.logs[0].path = path;
    });
    let c = c.await;
    let mut stdio = c.monitor.attach(true).await.unwrap().stdio;
    stdio.stdin.write_all(b"go\n").await.unwrap();
    // The attach client sees everything: the pump does not stop for the log.
    let mut seen = Vec::new();
    let mut buf = vec![0; 1 << 16];
    while !seen.ends_with(b"phase two\n") {
        let n = tokio::time::timeout(LONG, stdio.stdout.read(&mut buf)).await.expect("output").unwrap();
        assert_ne!(n, 0);
        seen.extend_from_slice(&buf[..n]);
    }
    assert_eq!(seen.len(), 2_097_152 + 10);
    let lost: BTreeMap<String, u64> = wait_for_async("a counted loss", || async {
        let lost = c.state().await.io.lost_bytes;
        if lost.is_empty() { Err("none") } else { Ok(lost) }
    })
    .await;
    assert!(lost.keys().any(|k| k.contains("ENOSPC")), "{lost:?}");

    // Space returns.
    let full = fs::read(&log).unwrap();
    fs::rename(&log, c.dir.join("moved")).or_else(|_| fs::remove_file(&log)).unwrap();
    c.monitor.reopen_log().await.unwrap();
    stdio.stdin.write_all(b"go\n").await.unwrap();
    assert_eq!(code(&wait(&c).await), Some(5));
    let end = fs::read(&log).unwrap();
    let text = String::from_utf8_lossy(&end);
    assert!(text.contains("after"), "{text}");
    let state = c.state().await;
    let lost: u64 = state.io.lost_bytes.values().sum();
    assert!(
        text.contains(&lost.to_string()),
        "a marker tells how many of the {lost} bytes are missing: {text}"
    );
    // What is counted and what is there add up: complete records only, since a torn one is no record.
    let whole = full.iter().rposition(|b| *b == b'\n').map_or(0, |p| p + 1);
    let kept = rejoin(&pintle_tests::parse_cri(&full[..whole]).unwrap(), "stdout").len() as u64;
    let written = state.io.stdout_bytes;
    assert_eq!(written, 2_097_152 + 10 + 6);
    assert!(
        lost >= written - kept - 6 - (full.len() - whole) as u64,
        "{lost} lost, {kept} of {written} kept"
    );
    assert!(lost <= written - kept, "{lost} counted as lost, but {kept} of {written} are there");
    c.delete().await;
    nix::mount::umount(&disk).unwrap();
    place.finish();
}

/// A log directory that disappears is no reason to end, nor to hide the exit code.
#[tokio::test]
async fn a_log_directory_that_disappears_ends_nothing() {
    let place = Native::new("nodir");
    let c = place.start_with(&Bundle::sh("read go; echo more; exit 6"), |o| o.stdin = true).await;
    let mut feeder = c.monitor.attach(true).await.unwrap().stdio;
    fs::remove_file(&c.log).unwrap();
    fs::remove_dir_all(&c.dir).unwrap();
    feeder.stdin.write_all(b"go\n").await.unwrap();
    assert_eq!(code(&wait(&c).await), Some(6));
    c.delete().await;
    place.finish();
}

/// A process that the container leaves behind with its output open does not hold back the end.
#[tokio::test]
async fn an_orphan_that_holds_the_output_does_not_hide_the_end() {
    let place = Native::new("orph");
    // Without a pid namespace the kernel does not end the orphan with init.
    let bundle = Bundle::sh("sleep 1000 & echo last; exit 3").edit(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "pid");
    });
    let c = place.start(&bundle).await;
    let began = Instant::now();
    let exit = wait(&c).await;
    assert_eq!(code(&exit), Some(3));
    // 10 s are promised for a machine that has nothing else to do.
    let bound = Duration::from_secs(scaled(45, 10) as u64);
    assert!(began.elapsed() < bound, "{:?}", began.elapsed());
    assert_eq!(stdout_of(&c), b"last\n");
    c.delete().await;
    place.finish();
}

/// From the death of a process to the answer of a waiting call, with the log closed and the record on disk in between.
#[tokio::test]
async fn an_end_is_told_at_once() {
    let place = Native::new("prompt");
    let mut took = Vec::new();
    for _ in 0..5 {
        let c = place.start(&Bundle::sh("exec sleep 1000")).await;
        let monitor = c.monitor.clone();
        let waiting = tokio::spawn(async move { monitor.wait(Some(LONG)).await });
        // The call is with the shim when it has answered a later one.
        let pid = c.state().await.process.unwrap().pid;
        let began = Instant::now();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        assert_eq!(signal(&waiting.await.unwrap().unwrap()), Some(9));
        took.push(began.elapsed());
        c.delete().await;
    }
    took.sort();
    // 100 ms at the median are promised for a machine that has nothing else to do.
    let bound = Duration::from_millis(scaled(10_000, 100) as u64);
    assert!(took[took.len() / 2] <= bound, "{took:?}");
}

/// OOM and SIGKILL look the same to wait(2) and must not look the same to us.
#[tokio::test]
async fn oom_is_told_in_state_event_and_record() {
    let place = Native::new("oom");
    let hog = Bundle::sh("exec dd if=/dev/zero of=/dev/null bs=64M count=1").memory(20 << 20);
    let c = place.start(&hog).await;
    let exit = wait(&c).await;
    assert_eq!(signal(&exit), Some(9));
    assert!(exit.oom_killed, "{exit:?}");
    let state = c.state().await;
    assert!(state.oom_kills >= 1, "{state:?}");
    let events = c.monitor.poll_events(0, Duration::ZERO).await.unwrap();
    assert!(events.iter().any(|e| e.kind == EventKind::Oom), "{events:?}");
    let record = pintle_client::read_exit_record(&place.root().join(&c.id)).unwrap();
    assert!(record.oom_killed);
    c.delete().await;

    // A child is killed, the container goes on and exits by itself: counted, but not its end.
    let child = Bundle::sh("dd if=/dev/zero of=/dev/null bs=64M count=1; echo $?; exit 8").memory(20 << 20);
    let c = place.start(&child).await;
    let exit = wait(&c).await;
    assert_eq!((code(&exit), exit.oom_killed), (Some(8), false), "{exit:?}");
    assert_eq!(stdout_of(&c), b"137\n");
    assert!(c.state().await.oom_kills >= 1);
    c.delete().await;

    let c = place.start(&Bundle::sh("sleep 1000").memory(64 << 20)).await;
    c.monitor.kill(9, false).await.unwrap();
    let exit = wait(&c).await;
    assert_eq!((signal(&exit), exit.oom_killed), (Some(9), false));
    assert_eq!(c.state().await.oom_kills, 0);
    c.delete().await;
    place.finish();
}

/// Whoever calls may die at any moment: the shim lives and the next caller finds it.
#[tokio::test]
async fn clients_that_are_killed_leave_the_shim_alone() {
    let place = Native::new("kill9");
    let c = place.start_with(&Bundle::sh("cat; sleep 1000"), |o| o.stdin = true).await;
    let commands: &[&[&str]] = &[
        &["inspect", "ID"],
        &["stats", "ID"],
        &["wait", "ID"],
        &["events", "-f", "ID"],
        &["attach", "ID"],
        &["exec", "-i", "ID", "cat"],
        &["exec", "--timeout", "1", "ID", "sleep", "1000"],
        &["reopen-log", "ID"],
        &["pause", "ID"],
        &["resume", "ID"],
        &["update", "--pids", "100", "ID"],
        &["logs", "-f", "ID"],
    ];
    let pid = c.shim_pid().await;
    for round in 0..scaled(2, 20) {
        for command in commands {
            let args = command.iter().map(|a| if *a == "ID" { c.id.as_str() } else { *a });
            let mut child = std::process::Command::new(pintle_tests::pintle())
                .arg("--root")
                .arg(place.root())
                .args(args)
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            // Somewhere in the middle of the call.
            let moment = Duration::from_millis(7 * (round as u64 + 1));
            let _ = tokio::time::timeout(moment, std::future::pending::<()>()).await;
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(c.shim_pid().await, pid, "after pintle {command:?}");
        }
    }
    // A pause may have been its last call.
    wait_for_async("the container to run", || async {
        let status = c.state().await.status;
        if status == Status::Paused {
            let _ = c.monitor.resume().await;
        }
        if status == Status::Running { Ok(()) } else { Err(status) }
    })
    .await;
    let done = c.monitor.exec_sync(&ExecSyncOptions::new(["echo", "still here"])).await.unwrap();
    assert_eq!(done.stdout, b"still here\n");
    c.delete().await;
    place.finish();
}

/// Garbage, half frames and oversized frames on every socket end the connection and nothing else.
#[tokio::test]
async fn garbage_on_the_sockets_ends_the_connection_only() {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket};
    use std::os::fd::AsRawFd;
    let place = Native::new("junk");
    let c = place.start_with(&Bundle::sh("cat"), |o| o.stdin = true).await;
    let dir = place.root().join(&c.id);
    let open = |name: &str, kind| {
        let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(fd.as_raw_fd(), &UnixAddr::new(&dir.join(name)).unwrap()).unwrap();
        fd
    };
    let mut frames: Vec<Vec<u8>> = vec![
        vec![0xff; 10],
        vec![0; 10],
        pattern(1, 100_000),
        vec![0, 0, 0, 10, 0, 0, 0, 1, 1, 0, b'x'],
        vec![0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    frames.extend((0..20).map(|n| pattern(n * 7919, 64)));
    let mut held = Vec::new();
    for frame in &frames {
        let stream = open("monitor.sock", SockType::Stream);
        let _ = send(stream.as_raw_fd(), frame, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
        for name in ["stdio.sock", "attach.sock"] {
            let packets = open(name, SockType::SeqPacket);
            for packet in frame.chunks(40_000) {
                let _ = send(packets.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT);
            }
            held.push(packets);
        }
        held.push(stream);
        assert_eq!(c.state().await.status, Status::Running);
    }
    drop(held);
    let done = c.monitor.exec_sync(&ExecSyncOptions::new(["true"])).await.unwrap();
    assert_eq!(code(&done.exit), Some(0));
    let pid = c.shim_pid().await;
    // Everything that came in is let go again.
    wait_for("the shim to close what was dropped", || pintle_tests::fds(pid).len() < 40);
    c.delete().await;
    place.finish();
}

/// Every mistake is answered by an error that names the object, and leaves nothing.
#[tokio::test]
async fn mistakes_are_named_and_leave_nothing() {
    let place = Native::new("bad");
    let good = Bundle::sh("sleep 1000");
    let create = async |name: &str, change: &dyn Fn(&mut pintle_client::CreateOptions)| -> Error {
        let id = unique_id("bad");
        let mut options = place.options(&id, &good);
        change(&mut options);
        let monitor = place.shim(&id).await;
        let error = monitor.create(&options).await.expect_err(name);
        let _ = monitor.delete(true).await;
        let _ = monitor.shutdown(true).await;
        error
    };
    let says = |error: &Error, word: &str| {
        let text = match error {
            Error::Call(call) => format!("{} {} {}", call.message, call.object, call.runtime_message),
            other => other.to_string(),
        };
        assert!(text.contains(word), "{word} is not in: {text}");
    };

    says(&create("no bundle", &|o| o.bundle = "/no/bundle".into()).await, "/no/bundle");
    let broken = place.path().join("broken");
    fs::create_dir(&broken).unwrap();
    says(&create("no config.json", &|o| o.bundle = broken.clone()).await, "config.json");
    fs::write(broken.join("config.json"), b"{\"ociVersion\": ").unwrap();
    says(&create("broken config.json", &|o| o.bundle = broken.clone()).await, "config.json");
    says(&create("no runtime", &|o| o.runtime.path = "/no/runtime".into()).await, "/no/runtime");
    says(&create("no log directory", &|o| o.logs[0].path = "/no/dir/log".into()).await, "/no/dir");
    let no_root = Bundle::sh("true").edit(|c| c["root"]["path"] = "/no/rootfs".into());
    let dir = place.path().join("noroot");
    let bundle = no_root.write(&dir);
    says(&create("no rootfs", &|o| o.bundle = bundle.clone()).await, "/no/rootfs");
    let nothing = Bundle::new(&["/no/program"]).write(&place.path().join("noprog"));
    // crun finds this at create, runc at start.
    let id = unique_id("bad");
    let mut options = place.options(&id, &good);
    options.bundle = nothing;
    let monitor = place.shim(&id).await;
    let error = match monitor.create(&options).await {
        Err(e) => e,
        Ok(_) => monitor.start().await.expect_err("a program that is missing"),
    };
    says(&error, "/no/program");
    let _ = monitor.delete(true).await;
    let _ = monitor.shutdown(true).await;

    // The id: bad, or in use.
    let slash = Monitor::spawn(place.spawn_config("a/b")).await.expect_err("an id with a slash");
    says(&slash, "a/b");
    let c = place.start(&good).await;
    let again = Monitor::spawn(place.spawn_config(&c.id)).await.expect_err("an id in use");
    says(&again, &c.id);
    assert_eq!(c.state().await.status, Status::Running, "the first of that name is not disturbed");

    // Calls that the state does not allow, and objects that are not there.
    assert_eq!(c.monitor.start().await.unwrap_err().kind(), Some(ErrorKind::FailedPrecondition));
    assert_eq!(c.monitor.delete(false).await.unwrap_err().kind(), Some(ErrorKind::FailedPrecondition));
    assert!(c.monitor.kill_exec("nobody", 9).await.unwrap_err().is_not_found());
    assert_eq!(c.monitor.kill(99, false).await.unwrap_err().kind(), Some(ErrorKind::InvalidArgument));
    c.delete().await;
    wait_for_async("the shim to end after the deletion", || async {
        match c.monitor.state().await {
            Err(e) if e.is_unreachable() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    place.finish();
}

/// The path of a socket ends at 107 bytes; that of a state directory does not.
#[tokio::test]
async fn state_directories_may_have_long_paths() {
    let place = Native::new("long");
    let root = place.path().join("x".repeat(120)).join("y".repeat(80));
    fs::create_dir_all(&root).unwrap();
    let id = unique_id("long");
    let mut config = place.spawn_config(&id);
    config.root = root;
    let monitor = Monitor::spawn(config).await.unwrap();
    monitor.create(&place.options(&id, &Bundle::sh("exit 9"))).await.unwrap();
    let mut stdio = monitor.attach(false).await.unwrap().stdio;
    monitor.start().await.unwrap();
    assert_eq!(code(&monitor.wait(Some(LONG)).await.unwrap()), Some(9));
    let mut bytes = Vec::new();
    stdio.stdout.read_to_end(&mut bytes).await.unwrap();
    monitor.delete(false).await.unwrap();
    place.finish();
    Leftovers::of(&id).assert_none();
}

/// The terminal has its size before the first instruction, and another one when asked.
#[tokio::test]
async fn a_terminal_has_its_size_from_the_start() {
    let place = Native::new("tty");
    for (name, path) in runtimes() {
        let script = "stty size; read x; stty size; exit 2";
        let c = place
            .create_with(&Bundle::sh(script).terminal(), |o| {
                o.stdin = true;
                o.size = Some((97, 31));
                o.runtime.path = path;
            })
            .await;
        let mut attached = c.monitor.attach(true).await.unwrap();
        assert!(attached.terminal);
        c.monitor.start().await.unwrap();
        let mut text = String::new();
        let mut buf = [0; 1024];
        while !text.contains("31 97") {
            let n =
                tokio::time::timeout(LONG, attached.stdio.stdout.read(&mut buf)).await.expect(name).unwrap();
            assert_ne!(n, 0, "{name}: {text}");
            text.push_str(&String::from_utf8_lossy(&buf[..n]));
        }
        attached.stdio.control.resize(120, 40).await.unwrap();
        attached.stdio.stdin.write_all(b"\n").await.unwrap();
        while !text.contains("40 120") {
            let n =
                tokio::time::timeout(LONG, attached.stdio.stdout.read(&mut buf)).await.expect(name).unwrap();
            assert_ne!(n, 0, "{name}: {text}");
            text.push_str(&String::from_utf8_lossy(&buf[..n]));
        }
        assert_eq!(code(&wait(&c).await), Some(2), "{name}");
        let log = String::from_utf8_lossy(&stdout_of(&c)).into_owned();
        assert!(log.contains("31 97\r\n"), "{name}: {log:?}");
        c.delete().await;
    }
    // And each time.
    let c = place.start(&Bundle::sh("exec sleep 1000")).await;
    for round in 0..scaled(10, 1000) {
        let (columns, rows) = (43 + round as u16, 123);
        let mut options = ExecOptions::new(["stty", "size"]);
        (options.terminal, options.size) = (true, Some((columns, rows)));
        let mut exec = c.monitor.exec(&options).await.unwrap();
        let mut text = String::new();
        let mut stdio = exec.stdio.take().expect("stdio");
        stdio.stdout.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, format!("{rows} {columns}\r\n"), "in round {round}");
        assert_eq!(exec.wait(Some(LONG)).await.unwrap().reason, ExitReason::Code(0));
        exec.delete(false).await.unwrap();
    }
    c.delete().await;
    place.finish();
}

/// What happens is told once, in order, and can be read again from any number.
#[tokio::test]
async fn events_come_once_and_in_order() {
    let place = Native::new("ev");
    let c = place.start(&Bundle::sh("sleep 1000")).await;
    let exec = c.monitor.exec(&ExecOptions::new(["true"])).await.unwrap();
    exec.wait(Some(LONG)).await.unwrap();
    c.monitor.pause().await.unwrap();
    c.monitor.resume().await.unwrap();
    c.monitor.reopen_log().await.unwrap();
    let exit = c.monitor.stop(None, Duration::from_secs(1)).await.unwrap();
    assert_eq!(signal(&exit), Some(9), "sh as init ignores SIGTERM, so SIGKILL ends it");
    let events = c.monitor.poll_events(0, Duration::ZERO).await.unwrap();
    let numbers: Vec<u64> = events.iter().map(|e| e.sequence).collect();
    assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "{numbers:?}");
    let kinds: Vec<EventKind> = events.iter().map(|e| e.kind).collect();
    use EventKind::{Created, ExecExited, ExecStarted, Exited, LogReopened, Paused, Resumed, Started};
    let expected = [Created, Started, ExecStarted, ExecExited, Paused, Resumed, LogReopened, Exited];
    assert_eq!(kinds, expected);
    let rest = c.monitor.poll_events(numbers[3], Duration::ZERO).await.unwrap();
    assert_eq!(rest.first().map(|e| e.sequence), Some(numbers[4]));
    c.delete().await;
    place.finish();
}

/// The shim outlives whoever started it, and its record outlives the shim.
#[tokio::test]
async fn the_shim_outlives_its_caller_and_the_record_outlives_the_shim() {
    let place = Native::new("alone");
    let root = place.root();
    let bundle = Bundle::sh("sleep 1000").write(place.path());
    let id = unique_id("alone");
    let out = pintle_tests::output_within(
        std::process::Command::new(pintle_tests::pintle())
            .arg("--root")
            .arg(&root)
            .args(["run", "-d", "--bundle"])
            .arg(&bundle)
            .arg(&id),
    );
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let monitor = Monitor::connect(root.join(&id)).await.unwrap();
    let shim = monitor.info().await.unwrap().pid as u32;
    assert!(process_alive(shim));
    assert_eq!(pintle_tests::threads(shim), 1, "one thread");
    assert_eq!(pintle_tests::parent_of(shim).map(|p| p == std::process::id()), Some(false));
    monitor.kill(9, false).await.unwrap();
    let exit = monitor.wait(Some(LONG)).await.unwrap();
    monitor.shutdown(true).await.unwrap();
    wait_for("the shim to end", || !process_alive(shim));
    let record = eventually("the record", || {
        pintle_client::read_exit_record(&root.join(&id)).ok_or("no record after the shim's end")
    });
    assert_eq!(record.reason, exit.reason);
    let out = pintle_tests::output_within(
        std::process::Command::new(pintle_tests::pintle()).arg("--root").arg(&root).args(["rm", &id]),
    );
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    place.finish();
    Leftovers::of(&id).assert_none();
}
