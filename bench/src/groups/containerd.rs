//! Under one containerd: our shim, Debian's Go shim, and the Rust shim where it was built. Memory of many containers, and
//! the time that a start and an exec take.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::Scale;
use crate::{
    lab::{Lab, find, until},
    measure::memory,
    report::Report,
};

/// A containerd of this lab's own; ended when dropped.
struct Daemon {
    child: Child,
    socket: PathBuf,
}

impl Daemon {
    fn start(lab: &Lab) -> Result<Daemon> {
        let dir = lab.dir.join("containerd");
        fs::create_dir_all(dir.join("bin"))?;
        let socket = dir.join("c.sock");
        let config = dir.join("config.toml");
        let text = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\n  address = \"{0}/c.sock\"\n[ttrpc]\n  address = \"{0}/c.sock.ttrpc\"\n",
            dir.display()
        );
        fs::write(&config, text)?;
        // containerd finds shims in PATH by the name of the runtime.
        if let Some(rust) = rust_shim(lab) {
            let _ = std::os::unix::fs::symlink(rust, dir.join("bin/containerd-shim-rustrunc-v2"));
        }
        let path = format!(
            "{}:{}:{}",
            lab.dist.display(),
            dir.join("bin").display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let log = fs::File::create(dir.join("log"))?;
        let child = Command::new(find("containerd")?)
            .arg("--config")
            .arg(&config)
            .env("PATH", path)
            .env("PINTLE_DIR", super::native::state_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let daemon = Daemon { child, socket };
        until(Duration::from_secs(60), || Ok(daemon.ctr(&["version"]).is_ok().then_some(())))
            .context("containerd answers")?;
        Ok(daemon)
    }

    /// Starts a container that does nothing.
    fn run(&self, runtime: &str, rootfs: &str, id: &str) -> Result<()> {
        let options = ["run", "-d", "--null-io", "--rootfs", "--runtime", runtime];
        self.ctr(&[&options[..], &[rootfs, id, "/bin/sleep", "100000"]].concat())
    }

    /// Removes one that was killed, when it has ended.
    fn remove(&self, id: &str) -> Result<()> {
        until(Duration::from_secs(30), || Ok(self.ctr(&["task", "delete", id]).is_ok().then_some(())))?;
        self.ctr(&["container", "delete", id])
    }

    fn ctr(&self, args: &[&str]) -> Result<()> {
        let out = Command::new(find("ctr")?)
            .arg("--address")
            .arg(&self.socket)
            .args(args)
            .stdin(Stdio::null())
            .output()?;
        ensure!(out.status.success(), "ctr {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.child.id() as i32),
            nix::sys::signal::Signal::SIGTERM,
        );
        let _ = self.child.wait();
    }
}

/// The Rust shim, if `cargo xtask bench` has built it beside our release programs.
fn rust_shim(lab: &Lab) -> Option<PathBuf> {
    let path = lab.dist.parent()?.join("rust-shim/bin/containerd-shim-runc-v2-rs");
    path.is_file().then_some(path)
}

/// The pid of the shim that serves `id`.
fn shim_of(id: &str) -> Result<u32> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        let shim = words.first().is_some_and(|w| {
            Path::new(&*String::from_utf8_lossy(w))
                .file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("containerd-shim-"))
        });
        if shim && words.windows(2).any(|w| w[0] == b"-id" && w[1] == id.as_bytes()) {
            return Ok(pid);
        }
    }
    anyhow::bail!("no shim serves {id}")
}

/// A shim under test: what it is called in the report, and its runtime name.
type Kind = (&'static str, &'static str);

/// All of the group.
pub(crate) fn shims(lab: &Lab, report: &mut Report, scale: Scale) -> Result<()> {
    nix::unistd::sync();
    let daemon = Daemon::start(lab)?;
    let mut kinds = vec![("go shim", "io.containerd.runc.v2"), ("pintle", "io.containerd.pintle.v2")];
    if rust_shim(lab).is_some() {
        kinds.insert(1, ("rust shim", "io.containerd.rustrunc.v2"));
    }
    let rootfs = lab.dir.join("rootfs").display().to_string();
    starts_and_execs(&daemon, &kinds, &rootfs, report, scale)?;
    memory_of_shims(&daemon, &kinds, &rootfs, report, scale)
}

/// `ctr run -d` and `ctr task exec`, in turns; the client and containerd are the same for all.
fn starts_and_execs(
    daemon: &Daemon,
    kinds: &[Kind],
    rootfs: &str,
    report: &mut Report,
    scale: Scale,
) -> Result<()> {
    let ms = |began: Instant| began.elapsed().as_secs_f64() * 1e3;
    let mut times = vec![(Vec::new(), Vec::new()); kinds.len()];
    for round in 0..scale.of(30, 3) {
        for ((who, runtime), (starts, execs)) in kinds.iter().zip(&mut times) {
            let id = format!("pb{}-{}-s{round}", std::process::id(), who.replace(' ', ""));
            let began = Instant::now();
            daemon.run(runtime, rootfs, &id)?;
            starts.push(ms(began));
            let began = Instant::now();
            daemon.ctr(&["task", "exec", "--exec-id", "e", &id, "/bin/true"])?;
            execs.push(ms(began));
            daemon.ctr(&["task", "kill", "-s", "9", &id])?;
            until(Duration::from_secs(30), || {
                Ok(daemon.ctr(&["task", "delete", &id]).is_ok().then_some(()))
            })?;
            daemon.ctr(&["container", "delete", &id])?;
        }
    }
    for ((who, _), (starts, execs)) in kinds.iter().zip(times) {
        report.add("containerd", "start (ctr run -d)", "ms", who, starts);
        report.add("containerd", "exec (ctr task exec)", "ms", who, execs);
    }
    for (case, name) in [
        ("start (ctr run -d)", "start under containerd over the Go shim, p50"),
        ("exec (ctr task exec)", "exec under containerd over the Go shim, p50"),
    ] {
        let ratio = report
            .value("containerd", case, "pintle", 0.5)
            .zip(report.value("containerd", case, "go shim", 0.5))
            .map(|(ours, theirs)| ours / theirs);
        report.goal(name, ratio, 1.0, false, "x");
    }
    Ok(())
}

/// The sum over all shims of each kind.
fn memory_of_shims(
    daemon: &Daemon,
    kinds: &[Kind],
    rootfs: &str,
    report: &mut Report,
    scale: Scale,
) -> Result<()> {
    let n = scale.of(50, 5);
    for (who, runtime) in kinds.iter().copied() {
        let ids: Vec<String> =
            (0..n).map(|i| format!("pb{}-{}-{i}", std::process::id(), who.replace(' ', ""))).collect();
        for id in &ids {
            daemon.run(runtime, rootfs, id)?;
        }
        std::thread::sleep(Duration::from_secs(5));
        let (mut pss, mut dirty) = (0.0, 0.0);
        for id in &ids {
            let one = memory(shim_of(id)?)?;
            pss += one.pss;
            dirty += one.private_dirty;
        }
        report.add("containerd", format!("{n} containers: PSS of all shims"), "kB", who, vec![pss]);
        report.add(
            "containerd",
            format!("{n} containers: Private_Dirty of all shims"),
            "kB",
            who,
            vec![dirty],
        );
        for id in &ids {
            let _ = daemon.ctr(&["task", "kill", "-s", "9", id]);
        }
        for id in &ids {
            daemon.remove(id)?;
        }
    }
    let case = format!("{n} containers: PSS of all shims");
    let ratio = report
        .value("containerd", &case, "pintle", 0.5)
        .zip(report.value("containerd", &case, "go shim", 0.5))
        .map(|(a, b)| a / b);
    report.goal("PSS of all shims over the Go shim's", ratio, 0.25, false, "x");
    Ok(())
}
