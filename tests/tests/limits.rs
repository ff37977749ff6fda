//! What a shim costs and what bounds it: no wake-ups, flat memory, bounded logs, quiet health checks, and
//! neighbours that do not feel each other.

use std::fs;
use std::time::Duration;

use pintle_client::{ExecOptions, ExecSyncOptions, ExitReason};
use pintle_tests::{
    Bundle, Container, Native, fds, full, parse_cri, private_dirty_kib, process_children, read_cri, rejoin,
    scaled, threads, wait_for_async,
};

const LONG: Duration = Duration::from_secs(120);

async fn end(c: &Container) -> ExitReason {
    c.monitor.wait(Some(LONG)).await.unwrap_or_else(|e| panic!("wait for {}: {e:?}", c.id)).reason
}

/// Lets time pass in which nothing is to happen: here the time is the point.
async fn quiet(time: Duration) {
    let _ = tokio::time::timeout(time, std::future::pending::<()>()).await;
}

/// How often the process went to sleep, and so was woken, since it began.
fn wakeups(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status of the shim");
    let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")).expect("switches");
    line.trim().parse().expect("a number")
}

/// A container that does nothing costs no wake-up: nothing in the shim runs by the clock.
#[tokio::test]
async fn an_idle_shim_is_never_woken() {
    let place = Native::new("idle");
    let c = place.start(&Bundle::sh("echo begun; sleep 1000")).await;
    let pid = c.shim_pid().await;
    let window = Duration::from_secs(if full() { 60 } else { 4 });
    // What came before (the start, our own calls) may take a few moments to settle.
    wait_for_async("a time without a wake-up", || async {
        let before = wakeups(pid);
        quiet(window).await;
        let count = wakeups(pid) - before;
        if count == 0 { Ok(()) } else { Err(format!("{count} wake-ups in {window:?}")) }
    })
    .await;
    assert_eq!(threads(pid), 1);
    c.delete().await;
    place.finish();
}

/// Execs leave nothing in the shim: no memory, descriptor or child.
#[tokio::test]
async fn a_thousand_execs_leave_nothing_in_the_shim() {
    let place = Native::new("flat");
    let c = place.start(&Bundle::sh("sleep 1000")).await;
    let pid = c.shim_pid().await;
    let some = async |count: usize| {
        for n in 0..count {
            if n % 2 == 0 {
                c.monitor.exec_sync(&ExecSyncOptions::new(["echo", "ok"])).await.expect("exec sync");
            } else {
                let exec = c.monitor.exec(&ExecOptions::new(["echo", "ok"])).await.expect("exec");
                exec.wait(Some(LONG)).await.expect("its end");
                exec.delete(false).await.expect("forgotten");
            }
        }
    };
    some(20).await;
    let open = fds(pid).len();
    let before = private_dirty_kib(pid);
    some(scaled(80, 10_000)).await;
    wait_for_async("descriptors and memory to be given back", || async {
        let (now, after) = (fds(pid).len(), private_dirty_kib(pid));
        let children = process_children(pid).len();
        // The container's first process, and an orphan of the runtime perhaps, are its children.
        let good = now <= open && after <= before + 128 && children <= 2;
        if good {
            Ok(())
        } else {
            Err(format!("{now} descriptors ({open}), {after} KiB ({before}), {children} children"))
        }
    })
    .await;
    c.delete().await;
    place.finish();
}

/// A health check that is well writes nothing: not to the shim's log, not to the state directory.
#[tokio::test]
async fn health_checks_write_nothing() {
    let place = Native::new("health");
    let c = place.start(&Bundle::sh("sleep 1000")).await;
    let dir = place.root().join(&c.id);
    let look = || {
        let mut seen: Vec<(String, u64)> = fs::read_dir(&dir)
            .unwrap()
            .flatten()
            .map(|e| (e.file_name().to_string_lossy().into_owned(), e.metadata().map_or(0, |m| m.len())))
            .collect();
        seen.sort();
        seen
    };
    c.monitor.exec_sync(&ExecSyncOptions::new(["true"])).await.unwrap();
    let before = look();
    for _ in 0..20 {
        let done = c.monitor.exec_sync(&ExecSyncOptions::new(["true"])).await.unwrap();
        assert_eq!(done.exit.reason, ExitReason::Code(0));
    }
    assert_eq!(look(), before);
    assert_eq!(fs::read(&c.log).unwrap(), b"", "the output of a health check is no output of the container");
    let pid = c.shim_pid().await;
    let logs: Vec<String> =
        fds(pid).into_values().filter(|f| f.contains("journal") || f.contains("/dev/log")).collect();
    assert!(logs.is_empty(), "{logs:?}");
    c.delete().await;
    place.finish();
}

/// Rotation: no file exceeds its limit by more than a record, and the newest output is always there.
#[tokio::test]
async fn rotated_logs_are_bounded_and_keep_the_newest() {
    let place = Native::new("rot");
    let (limit, files, total) = (64 * 1024, 3, 2_000_000);
    let bundle = Bundle::sh(&format!("seq 1 10000000 | head -c {total}"));
    let c = place
        .start_with(&bundle, |o| {
            o.logs[0].max_size = limit;
            o.logs[0].max_files = files;
        })
        .await;
    assert_eq!(end(&c).await, ExitReason::Code(0));
    let name = |n: u32| if n == 0 { c.log.clone() } else { c.log.with_file_name(format!("log.{n}")) };
    let (mut all, mut history) = (Vec::new(), 0);
    for n in (0..=files).rev() {
        let path = name(n);
        let size = fs::metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).len();
        // A record holds at most one read of the pipe.
        assert!(size <= limit + 8192 + 64, "{} has {size} bytes", path.display());
        all.extend(read_cri(&path));
        history += size;
    }
    assert!(!name(files + 1).exists(), "one file too many");
    let kept = rejoin(&all, "stdout");
    let mut expected = String::new();
    let mut n = 1;
    while expected.len() < total {
        expected.push_str(&format!("{n}\n"));
        n += 1;
    }
    assert!(expected.as_bytes()[..total].ends_with(&kept), "what is kept is not the newest");
    assert!(history >= u64::from(files - 1) * limit, "only {history} bytes of log are kept");
    assert!(c.state().await.io.lost_bytes.is_empty(), "rotation is no loss");
    c.delete().await;
    place.finish();
}

/// A container that writes as fast as it can holds up itself, not its neighbour, and no more disk than it may.
#[tokio::test]
async fn a_noisy_neighbour_is_alone() {
    let place = Native::new("noisy");
    let noisy = place
        .start_with(&Bundle::sh("exec yes this is noise"), |o| {
            o.logs[0].max_size = 1 << 20;
            o.logs[0].max_files = 1;
        })
        .await;
    let calm =
        place.start(&Bundle::sh("for i in $(seq 20); do echo calm $i; sleep 0.05; done; exit 9")).await;
    assert_eq!(end(&calm).await, ExitReason::Code(9));
    let lines: String = (1..=20).map(|n| format!("calm {n}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&rejoin(&read_cri(&calm.log), "stdout")), lines);
    assert!(noisy.state().await.io.stdout_bytes > 1 << 20, "it was noisy");
    let disk: u64 = fs::read_dir(&noisy.dir)
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("log"))
        .filter_map(|e| e.metadata().ok())
        .map(|m| m.len())
        .sum();
    assert!(disk <= (2 << 20) + 20_000, "{disk} bytes of log");
    noisy.delete().await;
    calm.delete().await;
    place.finish();
}

/// logrotate's copytruncate: the log goes on from where the file ends now, and the limit counts what is there.
#[tokio::test]
async fn a_log_that_is_truncated_under_us_goes_on() {
    let place = Native::new("trunc");
    let bundle = Bundle::sh("while read line; do echo $line; done");
    let c = place.start_with(&bundle, |o| o.stdin = true).await;
    let mut stdio = c.monitor.attach(true).await.unwrap().stdio;
    drop((stdio.stdout, stdio.stderr));
    for n in 0..3 {
        tokio::io::AsyncWriteExt::write_all(&mut stdio.stdin, format!("line {n}\n").as_bytes())
            .await
            .unwrap();
        wait_for_async("the line in the log", || async {
            let log = fs::read(&c.log).unwrap_or_default();
            let seen = rejoin(&parse_cri(&log)?, "stdout");
            if seen == format!("line {n}\n").as_bytes() { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        fs::OpenOptions::new().write(true).open(&c.log).unwrap().set_len(0).unwrap();
    }
    c.delete().await;
    place.finish();
}
