//! What a shim costs and what bounds it: no wake-ups, flat memory, bounded logs, quiet health checks, and
//! neighbours that do not feel each other.

use std::fs;
use std::time::Duration;

use pintle_client::{ExecOptions, ExecSyncOptions, ExitReason};
use pintle_tests::{
    Bundle, Conmon, Container, Native, TempDir, fds, full, parse_cri, private_dirty_kib, process_children,
    read_cri, rejoin, scaled, threads, wait_for_async, wakeups,
};

const LONG: Duration = Duration::from_secs(120);

async fn end(c: &Container) -> ExitReason {
    c.monitor.wait(Some(LONG)).await.unwrap_or_else(|e| panic!("wait for {}: {e:?}", c.id)).reason
}

/// Lets time pass in which nothing is to happen: here the time is the point.
async fn quiet(time: Duration) {
    let _ = tokio::time::timeout(time, std::future::pending::<()>()).await;
}

/// Containers that do nothing cost no wake-up, through the native door and the conmon door: nothing runs by the clock.
#[tokio::test]
async fn an_idle_shim_is_never_woken() {
    let place = Native::new("idle");
    let c = place.start(&Bundle::sh("echo begun; sleep 1000")).await;
    let dir = TempDir::new("idlec");
    let mut conmon = Conmon::create(&dir, &Bundle::sh("echo begun; sleep 1000")).start();
    conmon.begin();
    conmon.logged("begun");
    let pids = [c.shim_pid().await, conmon.monitor()];
    let still = async |window: Duration| {
        let before = pids.map(wakeups);
        quiet(window).await;
        let counts: Vec<u64> =
            pids.map(wakeups).iter().zip(before).map(|(after, before)| after - before).collect();
        if counts == [0, 0] { Ok(()) } else { Err(format!("{counts:?} wake-ups in {window:?}")) }
    };
    // What came before (the start, our own calls) may take a few moments to settle; then not one more.
    wait_for_async("a time without a wake-up", || still(Duration::from_secs(4))).await;
    if full() {
        still(Duration::from_secs(60)).await.unwrap();
    }
    assert_eq!(pids.map(threads), [1, 1]);
    let done = conmon.runtime(&["kill", &conmon.call.id, "KILL"]);
    assert!(done.status.success(), "{done:?}");
    conmon.gone();
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
    // With the full count the shim's memory of the newest 1024 events, two for each exec that is told, is full before.
    some(scaled(20, 1100)).await;
    let open = fds(pid).len();
    let before = private_dirty_kib(pid);
    some(scaled(80, 10_000)).await;
    // And as many at once as a shim takes (256 connections for stdio), twice.
    for _ in 0..2 {
        let mut at_once = tokio::task::JoinSet::new();
        for n in 0..scaled(12, 250) {
            let monitor = c.monitor.clone();
            at_once.spawn(async move { (n, monitor.exec_sync(&ExecSyncOptions::new(["echo", "ok"])).await) });
        }
        while let Some(done) = at_once.join_next().await {
            let (n, done) = done.expect("join");
            assert_eq!(done.unwrap_or_else(|e| panic!("exec {n} of many: {e:?}")).stdout, b"ok\n");
        }
    }
    wait_for_async("descriptors and memory to be given back", || async {
        let (now, after) = (fds(pid).len(), private_dirty_kib(pid));
        let children = process_children(pid).len();
        // The container's first process, and an orphan of the runtime perhaps, are its children.
        let good = now <= open && after <= before + 128 && children <= 2;
        if good {
            println!("{before} KiB and {open} descriptors before, {after} and {now} after");
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

/// The time of a record as seconds of its day, for differences.
fn second_of_day(stamp: &str) -> f64 {
    let part = |range: std::ops::Range<usize>| stamp[range].parse::<f64>().expect("a time");
    part(11..13) * 3600.0 + part(14..16) * 60.0 + part(17..29)
}

/// How late each line of a calm container came into its log, in seconds: it prints the time at which it prints.
async fn latencies(place: &Native, lines: usize) -> Vec<f64> {
    // busybox's date knows no fractions: the uptime has hundredths.
    let script = format!(
        "for i in $(seq {lines}); do read up rest </proc/uptime; echo calm $i $up; sleep 0.02; done; exit 9"
    );
    let c = place.start(&Bundle::sh(&script)).await;
    assert_eq!(end(&c).await, ExitReason::Code(9));
    let records = read_cri(&c.log);
    assert_eq!(records.len(), lines, "the calm container's lines");
    let uptime: f64 =
        fs::read_to_string("/proc/uptime").unwrap().split(' ').next().unwrap().parse().expect("an uptime");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let boot = (now - uptime) % 86_400.0;
    let late = records.iter().enumerate().map(|(n, r)| {
        let text = String::from_utf8_lossy(&r.payload).into_owned();
        let mut words = text.split(' ');
        assert_eq!((words.next(), words.next()), (Some("calm"), Some((n + 1).to_string().as_str())));
        let printed: f64 = words.next().expect("a time").parse().expect("a time");
        // Modulo a day, and a day may end in between.
        (second_of_day(&r.time) - boot - printed).rem_euclid(86_400.0)
    });
    // The clocks are read to hundredths, one after the other: a little less than nothing is nothing.
    let late = late.map(|l| if l > 43_200.0 { 0.0 } else { l }).collect();
    c.delete().await;
    late
}

/// A container that writes as fast as it can, held at its rate by waiting or by dropping, or not held at all, fills no more
/// disk than it may, and its neighbour's lines come into their log as ever.
#[tokio::test]
async fn a_noisy_neighbour_is_alone() {
    let place = Native::new("noisy");
    let lines = scaled(50, 1000);
    // A few lines on a loaded machine say less than a thousand on a quiet one.
    let (percent, bound) = if full() { (99, 0.1) } else { (90, 1.0) };
    let worst = |mut late: Vec<f64>| {
        late.sort_by(f64::total_cmp);
        late[late.len() * percent / 100]
    };
    let alone = worst(latencies(&place, lines).await);
    for (rate, drop) in [(0, false), (256 * 1024, false), (256 * 1024, true)] {
        let noisy = place
            .start_with(&Bundle::sh("exec yes this is noise"), |o| {
                o.logs[0].max_size = 1 << 20;
                o.logs[0].max_files = 1;
                o.logs[0].max_bytes_per_second = rate;
                o.logs[0].drop_over_rate = drop;
            })
            .await;
        wait_for_async("noise", || async {
            let bytes = noisy.monitor.state().await.map_err(|e| e.to_string())?.io.stdout_bytes;
            if bytes > 100_000 { Ok(()) } else { Err(format!("{bytes} bytes")) }
        })
        .await;
        let beside = worst(latencies(&place, lines).await);
        println!(
            "{percent} of 100 lines within {alone:.3} s alone, {beside:.3} s beside {rate} bytes/s, drop {drop}"
        );
        // By far more than a scheduler's turn, by far less than a queue behind the neighbour's megabytes.
        assert!(beside < alone + bound, "{beside} s beside the noise, {alone} s without");
        let disk: u64 = fs::read_dir(&noisy.dir)
            .unwrap()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with("log"))
            .filter_map(|e| e.metadata().ok())
            .map(|m| m.len())
            .sum();
        assert!(disk <= (2 << 20) + 70_000, "{disk} bytes of log");
        noisy.delete().await;
    }
    place.finish();
}

/// A log's rate in bytes or lines holds on average; the container waits for it, and nothing is lost.
#[tokio::test]
async fn a_rate_is_held_by_waiting() {
    let place = Native::new("rate");
    for lines in [false, true] {
        // 5 s of it: one second's worth is there at the start, and what is in the pipe at the end goes through at once.
        let (line, count) = ("0123456789012345678901234567890123456789012345678\n", 10_000u64);
        let total = count * 50;
        let script = format!("yes '{}' | head -n {count}; exit 3", line.trim_end());
        let c = place
            .start_with(&Bundle::sh(&script), |o| {
                o.logs[0].max_bytes_per_second = if lines { 0 } else { total / 5 };
                o.logs[0].max_lines_per_second = if lines { count / 5 } else { 0 };
            })
            .await;
        // It goes on in a new image.
        c.monitor.upgrade(None).await.unwrap();
        assert_eq!(end(&c).await, ExitReason::Code(3));
        let records = read_cri(&c.log);
        assert_eq!(rejoin(&records, "stdout"), line.repeat(10_000).into_bytes());
        assert!(c.state().await.io.lost_bytes.is_empty());
        // In no second more than its worth, the second's worth that was saved, and what one read and the pipe hold; the
        // new image knows what the old one owed.
        let times: Vec<f64> = records.iter().map(|r| second_of_day(&r.time)).collect();
        let took = (times[times.len() - 1] - times[0]).rem_euclid(86_400.0);
        let at_once = 2 * 65_536 / 50 + count / 5;
        let least = (count - at_once) as f64 / (count as f64 / 5.0);
        assert!(
            took >= least - 0.2,
            "lines {lines}: {count} records in {took:.2} s, at least {least:.2} s wanted"
        );
        c.delete().await;
    }
    place.finish();
}

/// The same by dropping: the container never waits; whole lines are missing, each byte is counted, and the gaps are marked.
#[tokio::test]
async fn a_rate_is_held_by_dropping() {
    let place = Native::new("drop");
    let control = place.path().join("ctl");
    fs::create_dir(&control).unwrap();
    let script = "seq 1 400000; : >/ctl/done; while [ ! -e /ctl/go ]; do sleep 0.1; done; echo last; exit 3";
    let c = place
        .start_with(&Bundle::sh(script).bind(&control, "/ctl"), |o| {
            o.logs[0].max_lines_per_second = 1000;
            o.logs[0].drop_over_rate = true;
        })
        .await;
    wait_for_async("the writer to be done", || async {
        if control.join("done").exists() { Ok(()) } else { Err("not yet") }
    })
    .await;
    let written = (1..=400_000u32).map(|n| n.to_string().len() as u64 + 1).sum::<u64>();
    wait_for_async("all to be read", || async {
        let io = c.monitor.state().await.map_err(|e| e.to_string())?.io;
        if io.stdout_bytes == written { Ok(()) } else { Err(format!("{io:?}")) }
    })
    .await;
    // More than half of a second's worth is there again.
    quiet(Duration::from_millis(1500)).await;
    fs::write(control.join("go"), "").unwrap();
    assert_eq!(end(&c).await, ExitReason::Code(3));
    let io = c.state().await.io;
    let lost = io.lost_bytes.get("rate-limit").copied().unwrap_or(0);
    assert_eq!(io.lost_bytes.len(), 1, "{io:?}");
    let records = read_cri(&c.log);
    let marked: u64 = records
        .iter()
        .filter_map(|r| {
            let text = String::from_utf8_lossy(&r.payload).into_owned();
            let rest = text.strip_prefix("[pintle: ")?.strip_suffix(" bytes of output lost: rate-limit]")?;
            rest.parse::<u64>().ok()
        })
        .sum();
    let kept = rejoin(&records, "stdout");
    assert_eq!(kept.len() as u64 + lost, written + 5, "{io:?}");
    assert_eq!(marked, lost, "what the markers add up to");
    let text = String::from_utf8(kept).unwrap();
    assert!(text.ends_with("last\n"), "it is logged again once the rate allows");
    let numbers: Vec<u32> =
        text.lines().filter(|l| *l != "last").map(|l| l.parse().expect("a whole line")).collect();
    assert!(numbers.windows(2).all(|w| w[0] < w[1]) && numbers[0] == 1, "lines out of order");
    assert!(numbers.len() < 200_000, "{} lines at 1000 per second", numbers.len());
    c.delete().await;
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
