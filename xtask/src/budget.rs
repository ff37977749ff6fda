//! What the shim may cost: the size of its program, the private memory of an idle one, and the system calls
//! for each MiB of log; and that no signal ends it, since another C library keeps other signals for itself than the one
//! that the tests run with. The release programs are measured; a loaded machine moves the system calls by a factor of two,
//! the others not.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::{dist, packages, sh};

/// KiB of the program, all doors compiled in.
const PROGRAM_KIB: u64 = 3328;
/// KiB of memory that an idle shim has for itself alone.
const PRIVATE_KIB: u64 = 200;
/// System calls for each MiB of 80-byte lines: reads, writes and waits together. 140 to 200 here, by how writer and reader
/// meet under strace; one for each record would be 13 000.
const CALLS_PER_MIB: u64 = 320;
/// MiB written for that.
const MIB: u64 = 16;

/// `--dist DIR` measures programs that are there already.
pub(crate) fn run(args: Vec<OsString>) -> Result<()> {
    packages::ensure_for_tests()?;
    sh::which("strace").context("strace is missing: system calls cannot be counted")?;
    let dist = match args.as_slice() {
        [flag, dir] if flag == "--dist" => std::path::absolute(dir)?,
        _ => dist::dist()?,
    };
    let bench = Bench::new(dist)?;
    let rows = bench.measure();
    bench.clean();
    let mut over = Vec::new();
    for (what, value, limit) in rows? {
        let verdict = if value <= limit { "ok" } else { "OVER" };
        println!("{what:<34} {value:>8} of {limit:>8}  {verdict}");
        if value > limit {
            over.push(what);
        }
    }
    if !over.is_empty() {
        bail!("over budget: {}", over.join(", "));
    }
    Ok(())
}

struct Bench {
    dist: PathBuf,
    dir: PathBuf,
}

impl Bench {
    fn new(dist: PathBuf) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("pintle-budget-{}", std::process::id()));
        let bin = dir.join("rootfs/bin");
        fs::create_dir_all(&bin).with_context(|| format!("create {}", bin.display()))?;
        for name in ["dev", "proc", "sys", "mnt"] {
            fs::create_dir_all(dir.join("rootfs").join(name))?;
        }
        fs::create_dir_all(dir.join("ctl"))?;
        fs::copy(sh::which("busybox").context("busybox is missing")?, bin.join("busybox"))?;
        for name in ["sh", "sleep", "yes", "head"] {
            symlink("busybox", bin.join(name))?;
        }
        // The text of a program that is still to be written to disk counts as dirty.
        fs::File::open(dist.join("pintle-shim")).and_then(|f| f.sync_all()).context("sync the shim")?;
        Ok(Self { dist, dir })
    }

    fn pintle(&self, args: &[&str]) -> Result<String> {
        let mut c = Command::new(self.dist.join("pintle"));
        c.env("PINTLE_DIR", self.dir.join("run")).current_dir(&self.dir).args(args);
        sh::output(&mut c)
    }

    fn measure(&self) -> Result<Vec<(&'static str, u64, u64)>> {
        let program = fs::metadata(self.dist.join("pintle-shim"))?.len() / 1024;
        // 79 letters and a line feed.
        let script = format!(
            "while [ ! -e /mnt/go ]; do sleep 0.1; done; yes {} | head -c {}; while :; do sleep 1000; done",
            "x".repeat(79),
            MIB << 20
        );
        let mount = format!("{}:/mnt:ro", self.dir.join("ctl").display());
        let rootfs = ["run", "-d", "--id", "budget", "--log", "log", "--rootfs", "rootfs", "-v", &mount];
        self.pintle(&[&rootfs[..], &["--", "sh", "-c", &script]].concat())?;
        let inspect = self.pintle(&["inspect", "budget"])?;
        let value: serde_json::Value = serde_json::from_str(&inspect)?;
        let pid = value["shim"]["pid"].as_u64().context("inspect tells no shim")?;
        let private = settled(pid)?;

        let counts = self.dir.join("calls");
        let mut strace = Command::new("strace")
            .args(["-f", "-qq", "-o"])
            .arg(&counts)
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("run strace")?;
        let traced = until("strace to be attached", || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            Ok(status.lines().any(|l| l.strip_prefix("TracerPid:").is_some_and(|p| p.trim() != "0")))
        });
        let all = traced.and_then(|()| {
            fs::write(self.dir.join("ctl/go"), "")?;
            let log = self.dir.join("log");
            // Each line becomes 80 + 45 bytes.
            let full = (MIB << 20) / 80 * 125;
            until("the log to be written", || Ok(fs::metadata(&log)?.len() >= full))
        });
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(strace.id() as i32), Signal::SIGTERM);
        let _ = strace.wait();
        all?;
        let calls = fs::read_to_string(&counts).context("what strace saw")?.lines().count() as u64;
        Ok(vec![
            ("size of the program, KiB", program, PROGRAM_KIB),
            ("private memory of an idle shim, KiB", private, PRIVATE_KIB),
            ("system calls for a MiB of log", calls / MIB, CALLS_PER_MIB),
            ("signals that would end a shim", deadly(pid)?, 0),
        ])
    }

    fn clean(&self) {
        let _ = self.pintle(&["rm", "-f", "budget"]);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// How many signals would end a process, of those that it can do something about (signal(7)).
fn deadly(pid: u64) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read the shim's signals")?;
    let set = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        Ok(u64::from_str_radix(line.trim(), 16)?)
    };
    let taken = set("SigCgt:")? | set("SigIgn:")?;
    // SIGKILL and SIGSTOP; the shim's own faults; those whose default ends nothing.
    const OTHERS: [i32; 13] = [
        Signal::SIGKILL as i32,
        Signal::SIGSTOP as i32,
        Signal::SIGILL as i32,
        Signal::SIGFPE as i32,
        Signal::SIGSEGV as i32,
        Signal::SIGBUS as i32,
        Signal::SIGCHLD as i32,
        Signal::SIGCONT as i32,
        Signal::SIGTSTP as i32,
        Signal::SIGTTIN as i32,
        Signal::SIGTTOU as i32,
        Signal::SIGURG as i32,
        Signal::SIGWINCH as i32,
    ];
    Ok((1..=64).filter(|n| !OTHERS.contains(n) && taken & (1 << (n - 1)) == 0).count() as u64)
}

/// The private dirty memory of a process once it has stood still for longer than the shim waits before it gives memory
/// back.
fn settled(pid: u64) -> Result<u64> {
    let read = || -> Result<u64> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(Path::new(&path)).with_context(|| format!("read {path}"))?;
        let line = text.lines().find_map(|l| l.strip_prefix("Private_Dirty:")).context("no Private_Dirty")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
    };
    let mut last = read()?;
    let mut since = Instant::now();
    until("the memory to stand still", || {
        let now = read()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        Ok(since.elapsed() > Duration::from_secs(6))
    })?;
    read()
}

fn until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(120);
    while !condition()? {
        if Instant::now() > end {
            bail!("waited too long for {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
