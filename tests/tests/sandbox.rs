//! `PINTLE_SANDBOX=all`: what the filter denies is denied to the shim and all it starts, and a container's life goes as ever.
//!
//! `PINTLE_SANDBOX=all cargo xtask test native conmon` runs whole targets so, `PINTLE_SANDBOX=process` any (CRIU cannot
//! work below a filter).
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::process::Command;
use std::time::Duration;

use pintle_client::{EventKind, ExecSyncOptions, ExitReason, Monitor};
use pintle_tests::{
    Act, Bundle, Conmon, FakeRuntime, Native, TempDir, output_within, shim, unique_id, wait_for_async,
};

const SOON: Duration = Duration::from_secs(60);

/// The number behind this name in `/proc/PID/status`; 0 where the kernel does not say.
fn status(pid: u32, name: &str) -> u32 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("status of a process");
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

/// Filters that hold for what this test starts, before anything is confined.
fn filters_before() -> u32 {
    status(std::process::id(), "Seccomp_filters")
}

/// Tries what the filter denies, with arguments that do no harm where it does not, and prints the errors by name.
#[test]
#[ignore = "run by the other tests, in another process"]
fn probe() {
    let bad = [0i64, 2_000_000];
    let time = bad.as_ptr() as usize;
    let nowhere = c"/no/such/file".as_ptr() as usize;
    let calls: &[(&str, libc::c_long, [usize; 5])] = &[
        ("kexec_load", libc::SYS_kexec_load, [0, 0, 0, 0xffff_fff0, 0]),
        ("init_module", libc::SYS_init_module, [0, 0, 0, 0, 0]),
        ("finit_module", libc::SYS_finit_module, [usize::MAX, 0, 0, 0, 0]),
        ("delete_module", libc::SYS_delete_module, [0, 0, 0, 0, 0]),
        ("swapon", libc::SYS_swapon, [0, 0x7fff_0000, 0, 0, 0]),
        ("swapoff", libc::SYS_swapoff, [0, 0, 0, 0, 0]),
        ("acct", libc::SYS_acct, [nowhere, 0, 0, 0, 0]),
        ("settimeofday", libc::SYS_settimeofday, [time, 0, 0, 0, 0]),
        ("clock_settime", libc::SYS_clock_settime, [999, time, 0, 0, 0]),
        ("perf_event_open", libc::SYS_perf_event_open, [0, 0, 0, 0, 0]),
        #[cfg(target_arch = "x86_64")]
        ("iopl", libc::SYS_iopl, [9, 0, 0, 0, 0]),
        #[cfg(target_arch = "x86_64")]
        ("ioperm", libc::SYS_ioperm, [usize::MAX, 2, 1, 0, 0]),
    ];
    for (name, number, [a, b, c, d, e]) in calls {
        // SAFETY: the arguments are refused by the kernel: null pointers, bad numbers, a file that is not there.
        let result = unsafe { libc::syscall(*number, *a, *b, *c, *d, *e) };
        assert_eq!(result, -1, "{name} did something");
        println!("probe {name} {}", io::Error::last_os_error().raw_os_error().unwrap_or(0));
    }
    println!("probe executable {}", executable_memory());
    println!("probe confined {}", i32::from(pintle_sys::sandbox::is_confined()));
}

/// The error of memory that is writable and executable; 0 if it is to be had.
fn executable_memory() -> i32 {
    let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    // SAFETY: a new private mapping, which nothing else knows of.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), 4096, all, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    if at == libc::MAP_FAILED {
        return io::Error::last_os_error().raw_os_error().unwrap_or(-1);
    }
    // SAFETY: the mapping that was just made.
    unsafe { libc::munmap(at, 4096) };
    0
}

/// Confines itself as a shim does, then looks at itself and at what it executes.
#[test]
#[ignore = "run by the other tests, in another process"]
fn confined_probe() {
    for _ in 0..2 {
        pintle_sys::sandbox::confine_process().expect("confine the process");
        pintle_sys::sandbox::confine_descendants().expect("confine its descendants");
    }
    println!("own executable {}", executable_memory());
    let filters = fs::read_to_string("/proc/thread-self/status").expect("own status");
    let filters =
        filters.lines().find_map(|l| l.strip_prefix("Seccomp_filters:")).unwrap_or("0").trim().to_owned();
    println!("own filters {filters}");
    let out = probe_command("probe").output().expect("run the probe");
    println!("{}", String::from_utf8_lossy(&out.stdout));
}

fn probe_command(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.args(["--ignored", "--exact", name, "--nocapture"]);
    command
}

/// The lines `<word> NAME NUMBER` of a probe.
fn answers(text: &str, word: &str) -> BTreeMap<String, i32> {
    let lines = text.lines().filter_map(|l| l.split(word).nth(1));
    let found: BTreeMap<String, i32> = lines
        .filter_map(|l| {
            let (name, number) = l.trim().split_once(' ')?;
            Some((name.to_owned(), number.parse().ok()?))
        })
        .collect();
    assert!(!found.is_empty(), "no probe in {text:?}");
    found
}

/// Compares what a probe says in the sandbox with what it says outside.
fn judge(outside: &BTreeMap<String, i32>, inside: &BTreeMap<String, i32>) {
    assert_eq!(outside.len(), inside.len(), "{outside:?}, {inside:?}");
    let mut differ = 0;
    for (name, errno) in inside {
        match name.as_str() {
            // What a process executes may map what it likes, and knows that it is confined.
            "executable" => assert_eq!(*errno, 0, "runtimes may need executable memory"),
            "confined" => assert_eq!((outside[name], *errno), (0, 1)),
            _ => {
                assert_eq!(*errno, libc::EPERM, "{name} in the sandbox");
                differ += usize::from(outside[name] != *errno);
            }
        }
    }
    // Of the others this machine does not show who denied them; that the filter holds them is a unit test.
    assert!(differ >= 4, "only {differ} calls show the filter: {outside:?}");
}

/// The process alone: no executable memory. It and its descendants: the denied calls. Twice asked is once done.
#[test]
fn the_filter_is_inherited_and_the_rest_is_not() {
    let outside = output_within(&mut probe_command("probe"));
    let outside = answers(&String::from_utf8_lossy(&outside.stdout), "probe ");
    let out = output_within(&mut probe_command("confined_probe"));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    judge(&outside, &answers(&text, "probe "));
    let own = answers(&text, "own ");
    // Linux before 6.6 cannot refuse it to one process alone.
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let recent = (numbers.next(), numbers.next()) >= (Some(6), Some(6));
    assert_eq!(own["executable"], if recent { libc::EACCES } else { 0 }, "{release}");
    if own["filters"] != 0 {
        assert_eq!(own["filters"], filters_before() as i32 + 1, "one filter, however often it is asked for");
    }
}

/// The native door: what the runtime may, what the container sees, and a whole life with an upgrade.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confined_shim_carries_a_whole_life() {
    let native = Native::new("box");
    let id = unique_id("box");
    let mut config = native.spawn_config(&id);
    config.env.push(("PINTLE_SANDBOX".into(), "all".into()));
    let monitor = Monitor::spawn(config).await.expect("start a shim");
    let pid = monitor.info().await.expect("info").pid as u32;
    assert_eq!(status(pid, "Seccomp"), 2, "the shim has a filter");
    let filters = status(pid, "Seccomp_filters");
    assert!(filters == 0 || filters == filters_before() + 1, "{filters} filters");

    let (seen, exe) = (native.path().join("probe"), std::env::current_exe().expect("own path"));
    let probe = format!(
        "'{}' --ignored --exact probe --nocapture >'{}' 2>&1; exec \"$RUNC\" \"$@\"",
        exe.display(),
        seen.display()
    );
    let mut options =
        native.options(&id, &Bundle::sh("trap 'exit 4' TERM; echo on; while :; do sleep 0.1; done"));
    options.runtime.path = FakeRuntime::new().on("create", Act::Script(probe)).write(native.path());
    monitor.create(&options).await.expect("create");
    monitor.start().await.expect("start");
    let outside = output_within(&mut probe_command("probe"));
    let outside = answers(&String::from_utf8_lossy(&outside.stdout), "probe ");
    let inside = fs::read_to_string(&seen).expect("what the runtime's probe said");
    judge(&outside, &answers(&inside, "probe "));

    let init = monitor.state().await.expect("state").process.expect("a process").pid as u32;
    assert_eq!(status(init, "Seccomp"), 2, "the container inherits the filter");
    let out = monitor.exec_sync(&ExecSyncOptions::new(["echo", "in"])).await.expect("exec");
    assert_eq!(out.stdout, b"in\n");
    for round in 1..=3 {
        monitor.upgrade(Some(&shim())).await.expect("upgrade");
        wait_for_async("the new image to serve", || async {
            let events = monitor.poll_events(0, Duration::ZERO).await.map_err(|e| e.to_string())?;
            let seen = events.iter().filter(|e| e.kind == EventKind::Upgraded).count();
            if seen >= round { Ok(()) } else { Err(format!("{seen} of {round}")) }
        })
        .await;
    }
    assert_eq!(monitor.info().await.expect("info").pid as u32, pid);
    assert_eq!(status(pid, "Seccomp_filters"), filters, "an upgrade adds no filter");
    let mut slow = ExecSyncOptions::new(["sh", "-c", "sleep 4242 & sleep 4242"]);
    slow.timeout = Some(Duration::from_secs(1));
    assert!(monitor.exec_sync(&slow).await.expect("exec").timed_out);
    let exit = monitor.stop(None, SOON).await.expect("stop");
    assert_eq!(exit.reason, ExitReason::Code(4));
    monitor.delete(false).await.expect("delete");
    pintle_tests::Leftovers::of(&id).assert_none();
    native.finish();
}

/// The conmon door under the same filter; its exit command and files come as ever.
#[test]
fn a_confined_conmon_tells_the_end() {
    let dir = TempDir::new("boxc");
    let mut running =
        Conmon::create(&dir, &Bundle::sh("echo on; exit 5")).env("PINTLE_SANDBOX", "all").start();
    running.created();
    assert_eq!(status(running.monitor(), "Seccomp"), 2);
    running.go();
    assert_eq!(running.exit_file(), "5");
    running.gone();
}

/// A wish that is not understood is no wish for less.
#[test]
fn an_unknown_wish_is_refused() {
    let out = output_within(Command::new(shim()).arg("--version").env("PINTLE_SANDBOX", "yes"));
    assert!(!out.status.success());
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(text.contains("PINTLE_SANDBOX is \"yes\", not 0, process or all"), "{text}");
    for value in ["", "0", "process", "all"] {
        let out = output_within(Command::new(shim()).arg("--version").env("PINTLE_SANDBOX", value));
        assert!(out.status.success(), "{value:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
}
