//! Faults of the machine itself: a clock that steps, disks that fail, are slow, or stand still.
//!
//! `cargo xtask test --vm` runs these in a small guest (tests/vm/run), whose clock and disks are its own.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pintle_client::{EventKind, ExecSyncOptions, ExitReason, Status};
use pintle_tests::{
    Bundle, Container, Native, output_within, parse_cri, process_alive, read_cri, rejoin, require_tool,
    wait_for, wait_for_async,
};

const LONG: Duration = Duration::from_secs(120);
const DAY: u64 = 24 * 3600;

/// A place for containers in a guest that may be broken.
#[track_caller]
fn place(tag: &str) -> Native {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    assert!(cpu.contains("User Mode Linux"), "not on a machine of your own; run cargo xtask test --vm");
    Native::new(tag)
}

#[track_caller]
fn run(program: &str, args: &[&str]) {
    let out = output_within(Command::new(require_tool(program)).args(args));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {said}");
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970")
}

/// One test at a time may turn the clock.
static CLOCK: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Sets the wall clock on (or back) by so many seconds.
fn step(seconds: i64) {
    let to = now().as_secs().saturating_add_signed(seconds);
    run("date", &["-s", &format!("@{to}")]);
}

/// The stamps of a log, in nanoseconds since the epoch, in the order of the records.
fn stamps(log: &Path) -> Vec<u128> {
    read_cri(log).iter().map(|r| epoch(&r.time)).collect()
}

/// An RFC 3339 time with nine digits in UTC as nanoseconds since the epoch.
fn epoch(stamp: &str) -> u128 {
    let out = output_within(Command::new(require_tool("date")).args(["-d", stamp, "+%s%N"]));
    let text = String::from_utf8_lossy(&out.stdout);
    text.trim().parse().unwrap_or_else(|_| panic!("no time: {stamp:?}"))
}

/// The wall clock a day on, two days back and on again, while a log flows: each record has the time of the clock.
#[tokio::test]
async fn log_times_follow_the_clock() {
    let place = place("clock");
    let _turn = CLOCK.lock().await;
    let ctl = place.path().join("ctl");
    fs::create_dir(&ctl).unwrap();
    let script = "read l; echo $l; read l; echo $l; read l; echo $l; read l; echo $l; exit 7";
    let c = place.start_with(&Bundle::sh(script), |o| o.stdin = true).await;
    let mut stdin = c.monitor.attach(true).await.unwrap().stdio.stdin;
    let mut bounds = Vec::new();
    for (n, turn) in [0, DAY as i64, -2 * DAY as i64, DAY as i64].into_iter().enumerate() {
        if turn != 0 {
            step(turn);
        }
        let before = now().as_nanos();
        tokio::io::AsyncWriteExt::write_all(&mut stdin, format!("line {n}\n").as_bytes()).await.unwrap();
        wait_for_async("the line in the log", || async {
            let count = parse_cri(&fs::read(&c.log).unwrap_or_default())?.len();
            if count == n + 1 { Ok(()) } else { Err(format!("{count} records")) }
        })
        .await;
        bounds.push((before, now().as_nanos()));
    }
    let exit = c.monitor.wait(Some(LONG)).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Code(7));
    let stamps = stamps(&c.log);
    assert_eq!(stamps.len(), 4);
    for (stamp, (before, after)) in stamps.iter().zip(&bounds) {
        assert!((before..=after).contains(&stamp), "{stamp} is not in {before}..{after}");
    }
    assert!(stamps[1] - stamps[0] >= u128::from(DAY - 600) * 1_000_000_000);
    assert!(stamps[2] < stamps[0], "the clock was set back");
    // The record of the end is that of the clock as it is now.
    let record = pintle_client::read_exit_record(&place.root().join(&c.id)).expect("a record");
    let finished = record.finished_at.expect("a time").duration_since(UNIX_EPOCH).unwrap().as_nanos();
    assert!(finished >= bounds[3].0 && finished <= now().as_nanos(), "{finished}, {bounds:?}");
    c.delete().await;
    place.finish();
}

/// A timeout is a length of time: a clock that steps makes it neither longer nor shorter.
#[tokio::test]
async fn timeouts_do_not_follow_the_clock() {
    let place = place("clockt");
    let _turn = CLOCK.lock().await;
    // Forward a day: nothing with a limit ends early. Back a day: nothing runs for a day.
    for turn in [DAY as i64, -(DAY as i64)] {
        let script = "trap '' TERM; echo on; while :; do sleep 0.1; done";
        let c = place.start(&Bundle::sh(script)).await;
        wait_for("the container to ignore SIGTERM", || !read_cri(&c.log).is_empty());

        let limit = Duration::from_secs(3);
        let mut options = ExecSyncOptions::new(["sleep", "1000"]);
        options.timeout = Some(limit);
        let (monitor, began) = (c.monitor.clone(), Instant::now());
        let call = tokio::spawn(async move { monitor.exec_sync(&options).await });
        wait_for_async("the exec to run", || async {
            let found = pintle_tests::Leftovers::of("sleep 1000").find();
            if found.is_empty() { Err("not yet") } else { Ok(()) }
        })
        .await;
        step(turn);
        let done = call.await.unwrap().unwrap();
        assert!(done.timed_out, "{done:?}");
        let took = began.elapsed();
        assert!(took >= limit && took < LONG, "an exec limited to {limit:?} took {took:?}");

        let (monitor, began) = (c.monitor.clone(), Instant::now());
        let stop = tokio::spawn(async move { monitor.stop(None, limit).await });
        wait_for_async("the stop to be under way", || async {
            if c.monitor.state().await.is_ok_and(|s| s.stopping) { Ok(()) } else { Err("not yet") }
        })
        .await;
        step(-turn);
        let exit = stop.await.unwrap().unwrap();
        let took = began.elapsed();
        assert_eq!(exit.reason, ExitReason::Signal { signal: 9, core_dumped: false });
        assert!(took >= limit && took < LONG, "a stop limited to {limit:?} took {took:?}");
        assert!(!exit.oom_killed && exit.finished_at.is_some(), "{exit:?}");
        c.delete().await;
    }
    place.finish();
}

/// A disk of 32 MiB behind the device mapper, with ext4 on it, mounted.
struct Disk {
    name: String,
    mount: PathBuf,
}

/// 512-byte sectors of a [`Disk`].
const SECTORS: u32 = 65_536;

impl Disk {
    fn new(place: &Native, tag: &str) -> Self {
        static LOADED: Once = Once::new();
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        LOADED.call_once(|| {
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("release");
            let drivers = format!("/usr/lib/uml/modules/{}/kernel/drivers", release.trim());
            for (module, options) in [
                ("block/brd.ko", &["rd_nr=8", "rd_size=32768"][..]),
                ("md/dm-mod.ko", &[]),
                ("md/dm-delay.ko", &[]),
            ] {
                let name =
                    module.rsplit('/').next().unwrap_or(module).trim_end_matches(".ko").replace('-', "_");
                if Path::new("/sys/module").join(name).exists() {
                    continue;
                }
                let path = format!("{drivers}/{module}");
                let mut args = vec!["insmod", &path];
                args.extend(options);
                run("busybox", &args);
            }
        });
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let disk = Self { name: format!("{tag}{number}"), mount: place.path().join(tag) };
        fs::create_dir(&disk.mount).expect("create a directory");
        let device = format!("/dev/ram{number}");
        run("dmsetup", &["create", &disk.name, "--noudevsync", "--table", &disk.linear(&device)]);
        run("dmsetup", &["mknodes"]);
        run("mkfs.ext4", &["-q", "-F", &disk.path()]);
        run("mount", &["-t", "ext4", &disk.path(), &disk.mount.to_string_lossy()]);
        disk
    }

    fn path(&self) -> String {
        format!("/dev/mapper/{}", self.name)
    }

    fn linear(&self, device: &str) -> String {
        format!("0 {SECTORS} linear {device} 0")
    }

    /// Another table under the mounted file system.
    fn becomes(&self, table: &str) {
        // Without a flush: what is under way meets the new table.
        run("dmsetup", &["suspend", "--noudevsync", "--noflush", "--nolockfs", &self.name]);
        run("dmsetup", &["load", "--noudevsync", &self.name, "--table", table]);
        run("dmsetup", &["resume", "--noudevsync", &self.name]);
    }

    /// The device under the table.
    fn device(&self) -> String {
        let number: String = self.name.chars().filter(char::is_ascii_digit).collect();
        format!("/dev/ram{number}")
    }

    fn freeze(&self, on: bool) {
        run("fsfreeze", &[if on { "--freeze" } else { "--unfreeze" }, &self.mount.to_string_lossy()]);
    }

    /// As if the disk had been pulled out: every access fails with EIO from now on.
    fn pull_out(&self) {
        // EXT4_IOC_SHUTDOWN, without a flush.
        const SHUTDOWN: libc::c_ulong = 0x8004_587d;
        let root = File::open(&self.mount).expect("open the mount");
        let flags: u32 = 2;
        // SAFETY: the ioctl reads one number, which lives through the call.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN as _, &raw const flags) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A frozen or broken one may be busy: the guest ends soon.
        let _ = nix::mount::umount2(&self.mount, nix::mount::MntFlags::MNT_DETACH);
        let _ = Command::new("dmsetup").args(["remove", "--noudevsync", "--deferred", &self.name]).output();
    }
}

/// Prints what a line of the FIFO says: `COUNT` lines; or ends with the code after `x`.
const PRINTER: &str = "while read -r n; do case $n in x*) exit ${n#x} ;; esac; \
                       j=0; while [ $j -lt $n ]; do echo 0123456789012345678; j=$((j+1)); done; done";
/// Bytes of one of its lines.
const LINE: u64 = 20;

/// A container with a stdin that logs to this file.
async fn logging_to(place: &Native, log: &std::path::Path, script: &str) -> Container {
    place
        .start_with(&Bundle::sh(script), |o| {
            o.stdin = true;
            o.logs[0].path = log.to_path_buf();
        })
        .await
}

async fn tell(c: &Container, stdin: &mut (impl tokio::io::AsyncWrite + Unpin), text: &str, total: u64) {
    tokio::io::AsyncWriteExt::write_all(stdin, format!("{text}\n").as_bytes())
        .await
        .expect("tell the container");
    wait_for_async("the output to be read", || async {
        let io = c.monitor.state().await.map_err(|e| e.to_string())?.io;
        if io.stdout_bytes == total { Ok(()) } else { Err(format!("{io:?}")) }
    })
    .await;
}

/// A disk that answers with EIO: each byte is counted, told, and marked when the log is opened on a good disk.
#[tokio::test]
async fn a_disk_that_fails_is_a_counted_loss() {
    let place = place("eio");
    let disk = Disk::new(&place, "eio");
    let log = disk.mount.join("log");
    let c = logging_to(&place, &log, PRINTER).await;
    let mut stdin = c.monitor.attach(true).await.unwrap().stdio.stdin;
    tell(&c, &mut stdin, "100", 100 * LINE).await;
    assert_eq!(rejoin(&read_cri(&log), "stdout").len() as u64, 100 * LINE);
    disk.pull_out();
    tell(&c, &mut stdin, "5000", 5100 * LINE).await;
    let state = c.state().await;
    assert_eq!(state.status, Status::Running);
    assert_eq!(state.io.lost_bytes.get("EIO"), Some(&(5000 * LINE)), "{:?}", state.io);
    let events = c.monitor.poll_events(0, Duration::ZERO).await.unwrap();
    assert!(events.iter().any(|e| e.kind == EventKind::BytesLost), "{events:?}");
    let out = c.monitor.exec_sync(&ExecSyncOptions::new(["echo", "alive"])).await.unwrap();
    assert_eq!(out.stdout, b"alive\n");
    c.monitor.reopen_log().await.expect_err("nowhere to open it");
    // A good disk in the same place.
    nix::mount::umount2(&disk.mount, nix::mount::MntFlags::MNT_DETACH).expect("unmount");
    c.monitor.reopen_log().await.expect("a log on the good disk");
    tell(&c, &mut stdin, "10", 5110 * LINE).await;
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"x6\n").await.unwrap();
    let exit = c.monitor.wait(Some(LONG)).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Code(6));
    let records = read_cri(&log);
    let marker = format!("[pintle: {} bytes of output lost: EIO]", 5000 * LINE);
    assert!(records.iter().any(|r| r.payload == marker.as_bytes()), "no {marker}");
    assert_eq!(rejoin(&records, "stdout").len() as u64, 10 * LINE);
    assert_eq!(c.state().await.io.lost_bytes.values().sum::<u64>(), 5000 * LINE);
    c.delete().await;
    drop(disk);
    place.finish();
}

/// A disk that fails behind the page cache shows it when the log is synced at the end: that is told, not hidden.
#[tokio::test]
async fn a_log_that_does_not_reach_the_disk_is_told() {
    let place = place("sync");
    let disk = Disk::new(&place, "sync");
    let log = disk.mount.join("log");
    let c = logging_to(&place, &log, PRINTER).await;
    let mut stdin = c.monitor.attach(true).await.unwrap().stdio.stdin;
    tell(&c, &mut stdin, "100", 100 * LINE).await;
    disk.becomes(&format!("0 {SECTORS} error"));
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"x5\n").await.unwrap();
    let exit = c.monitor.wait(Some(LONG)).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Code(5));
    let events = c.monitor.poll_events(0, Duration::ZERO).await.unwrap();
    let told = events.iter().find(|e| e.kind == EventKind::BytesLost);
    let told = told.unwrap_or_else(|| panic!("not told: {events:?}"));
    let cause = told.attributes.get("cause").map(String::as_str);
    assert!(matches!(cause, Some("EIO" | "EROFS")), "{told:?}");
    assert!(told.attributes.get("sync").is_some_and(|s| s.contains("/sync/log")), "{told:?}");
    c.delete().await;
    drop(disk);
    place.finish();
}

/// Writes to the disk take a second each: nothing in the way of output waits for them, nor does a reopen.
#[tokio::test]
async fn a_slow_disk_delays_nothing() {
    let place = place("slow");
    let disk = Disk::new(&place, "slow");
    let latency = Duration::from_secs(1);
    let device = disk.device();
    disk.becomes(&format!("0 {SECTORS} delay {device} 0 0 {device} 0 {}", latency.as_millis()));
    let log = disk.mount.join("log");
    let total = 3_000_000;
    let c = logging_to(
        &place,
        &log,
        &format!("read l; yes 0123456789012345678 | head -c {total}; read l; exit 3"),
    )
    .await;
    let mut stdin = c.monitor.attach(true).await.unwrap().stdio.stdin;
    tell(&c, &mut stdin, "go", total).await;
    let mut kept = Vec::new();
    let mut fastest = Duration::MAX;
    for n in 0..5 {
        let aside = disk.mount.join(format!("log-{n}"));
        fs::rename(&log, &aside).unwrap();
        let began = Instant::now();
        c.monitor.reopen_log().await.unwrap();
        fastest = fastest.min(began.elapsed());
        kept.extend(read_cri(&aside));
    }
    // One that waited for the disk would have taken this long each time.
    assert!(fastest < latency, "reopening took {fastest:?} at best");
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"end\n").await.unwrap();
    let exit = c.monitor.wait(Some(LONG)).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Code(3));
    kept.extend(read_cri(&log));
    assert_eq!(rejoin(&kept, "stdout").len() as u64, total);
    assert!(c.state().await.io.lost_bytes.is_empty());
    c.delete().await;
    drop(disk);
    place.finish();
}

/// A file system that stands still holds up the container that logs to it and nobody else; afterwards nothing is missing.
#[tokio::test]
async fn a_frozen_disk_costs_time_and_no_byte() {
    let place = place("frozen");
    let disk = Disk::new(&place, "frozen");
    let log = disk.mount.join("log");
    let held = logging_to(&place, &log, PRINTER).await;
    let mut stdin = held.monitor.attach(true).await.unwrap().stdio.stdin;
    tell(&held, &mut stdin, "10", 10 * LINE).await;
    let shim = held.shim_pid().await;
    disk.freeze(true);
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"20000\nx8\n").await.unwrap();
    // In uninterruptible sleep, in the write.
    wait_for("the shim to wait for the disk", || {
        let stat = fs::read_to_string(format!("/proc/{shim}/stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('D'))
    });
    // A whole life beside it.
    let free =
        place.start(&Bundle::sh("i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done; exit 9")).await;
    let exit = free.monitor.wait(Some(LONG)).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Code(9));
    assert_eq!(read_cri(&free.log).len(), 2000);
    free.delete().await;
    assert!(process_alive(shim));
    disk.freeze(false);
    let exit = held.monitor.wait(Some(LONG)).await.unwrap();
    assert_eq!(exit.reason, ExitReason::Code(8));
    assert_eq!(rejoin(&read_cri(&log), "stdout").len() as u64, 20_010 * LINE);
    assert!(held.state().await.io.lost_bytes.is_empty());
    held.delete().await;
    drop(disk);
    place.finish();
}
