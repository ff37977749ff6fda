//! A laboratory: a directory on tmpfs with one root file system, and monitors started as Podman starts conmon.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// Which monitor is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Conmon,
    Pintle,
}

impl Who {
    /// Both, for paired runs.
    pub(crate) const BOTH: [Who; 2] = [Who::Conmon, Who::Pintle];

    /// As printed in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Who::Conmon => "conmon",
            Who::Pintle => "pintle",
        }
    }
}

/// Where everything of a measurement lies; ends what it started when dropped.
pub(crate) struct Lab {
    pub dir: PathBuf,
    /// The release binaries of pintle.
    pub dist: PathBuf,
    pub runc: PathBuf,
    pub conmon: PathBuf,
    next: AtomicU32,
}

/// A container under a monitor that was started through the conmon command line.
pub(crate) struct Running {
    pub id: String,
    pub pid: u32,
    pub monitor: u32,
    pub bundle: PathBuf,
    pub log: PathBuf,
    pub exit_file: PathBuf,
    /// From the start of the monitor's executable to the pid on the sync pipe.
    pub create: Duration,
}

impl Lab {
    /// Makes the directory and the root file system. `load` is the static load program.
    pub(crate) fn new(dist: &Path, load: &Path) -> Result<Lab> {
        let dir = PathBuf::from(format!("/dev/shm/pintle-bench-{}", std::process::id()));
        for part in ["rootfs/bin", "rootfs/proc", "rootfs/dev", "rootfs/sys", "runc", "exits", "b"] {
            fs::create_dir_all(dir.join(part))?;
        }
        fs::copy(find("busybox")?, dir.join("rootfs/bin/busybox")).context("busybox-static is needed")?;
        for name in ["sh", "sleep", "true", "cat"] {
            let _ = std::os::unix::fs::symlink("busybox", dir.join("rootfs/bin").join(name));
        }
        fs::copy(load, dir.join("rootfs/bin/load"))?;
        Ok(Lab { dir, dist: dist.to_owned(), runc: find("runc")?, conmon: find("conmon")?, next: 0.into() })
    }

    /// The monitor's executable.
    pub(crate) fn binary(&self, who: Who) -> PathBuf {
        match who {
            Who::Conmon => self.conmon.clone(),
            Who::Pintle => self.dist.join("conmon"),
        }
    }

    /// A new bundle whose process is `args`; gives the id as well.
    pub(crate) fn bundle(&self, args: &[&str]) -> Result<(String, PathBuf)> {
        // conmon takes no shorter ids than 13 characters with its journald driver.
        let id = format!("container-{}-{}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed));
        let bundle = self.dir.join("b").join(&id);
        fs::create_dir_all(&bundle)?;
        let mounts = serde_json::json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        ]);
        let config = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {"terminal": false, "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/",
                        "env": ["PATH=/bin"], "noNewPrivileges": true},
            "root": {"path": self.dir.join("rootfs"), "readonly": true},
            "hostname": "bench",
            "mounts": mounts,
            "linux": {"cgroupsPath": format!("/pintle-bench/{id}"),
                      "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]},
        });
        fs::write(bundle.join("config.json"), serde_json::to_vec(&config)?)?;
        Ok((id, bundle))
    }

    /// Arguments that both monitors get for a container.
    fn common(&self, id: &str, bundle: &Path) -> Vec<String> {
        let text = |p: PathBuf| p.display().to_string();
        vec![
            "--api-version".into(),
            "1".into(),
            "-c".into(),
            id.into(),
            "-u".into(),
            id.into(),
            "-n".into(),
            id.into(),
            "-r".into(),
            text(self.runc.clone()),
            format!("--runtime-arg=--root={}", self.dir.join("runc").display()),
            "-b".into(),
            text(bundle.to_owned()),
            "--exit-dir".into(),
            text(self.dir.join("exits")),
            "--socket-dir-path".into(),
            text(self.dir.join("s")),
            "--log-level".into(),
            "error".into(),
        ]
    }

    /// Creates a container under `who`; `log` is conmon's `-l` argument without the path, such as `k8s-file`.
    pub(crate) fn create(
        &self,
        who: Who,
        args: &[&str],
        log: &str,
        more: &[&str],
        cgroup: Option<&Path>,
    ) -> Result<Running> {
        fs::create_dir_all(self.dir.join("s"))?;
        let (id, bundle) = self.bundle(args)?;
        let log_path = bundle.join("ctr.log");
        let mut argv = self.common(&id, &bundle);
        let pid_file = bundle.join("pidfile");
        let monitor_file = bundle.join("conmon.pid");
        argv.extend(["-p".into(), pid_file.display().to_string()]);
        argv.extend(["--conmon-pidfile".into(), monitor_file.display().to_string()]);
        let driver =
            if log == "k8s-file" { format!("k8s-file:{}", log_path.display()) } else { log.to_owned() };
        argv.extend(["-l".into(), driver]);
        argv.extend(more.iter().map(|s| (*s).to_owned()));
        let began = Instant::now();
        let line = self.spawn_synced(who, &argv, cgroup)?;
        let create = began.elapsed();
        let pid = number(&line, "pid").or_else(|| number(&line, "data")).unwrap_or(0);
        ensure!(pid > 0, "{} answered {line:?}", who.name());
        let monitor = fs::read_to_string(&monitor_file).context("read conmon's pid file")?.trim().parse()?;
        let exit_file = self.dir.join("exits").join(&id);
        Ok(Running { id, pid: pid as u32, monitor, bundle, log: log_path, exit_file, create })
    }

    /// Runs the monitor with a sync and a start pipe and gives the first line of the sync pipe.
    pub(crate) fn spawn_synced(&self, who: Who, argv: &[String], cgroup: Option<&Path>) -> Result<String> {
        let (sync_read, sync_write) = nix::unistd::pipe()?;
        let (start_read, start_write) = nix::unistd::pipe()?;
        let (a, b) = (sync_write.as_raw_fd(), start_read.as_raw_fd());
        for ours in [&sync_read, &start_write] {
            nix::fcntl::fcntl(ours, nix::fcntl::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        }
        let mut command = match cgroup {
            None => Command::new(self.binary(who)),
            Some(group) => {
                let mut sh = Command::new("/bin/sh");
                sh.arg("-c")
                    .arg("echo $$ >\"$0/cgroup.procs\" && exec \"$@\"")
                    .arg(group)
                    .arg(self.binary(who));
                sh
            }
        };
        command
            .args(argv)
            .env("PINTLE_DIR", crate::groups::native::state_dir())
            .env("_OCI_SYNCPIPE", a.to_string())
            .env("_OCI_STARTPIPE", b.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("start {}", who.name()))?;
        drop((sync_write, start_read));
        let mut go = fs::File::from(start_write);
        go.write_all(b"\0")?;
        drop(go);
        let mut line = String::new();
        BufReader::new(fs::File::from(sync_read)).read_line(&mut line)?;
        // The first process has forked the monitor and ends.
        child.wait()?;
        Ok(line)
    }

    /// Starts the container's program.
    pub(crate) fn start(&self, running: &Running) -> Result<()> {
        self.runc(&["start", &running.id])
    }

    /// Runs a runc command to its end.
    pub(crate) fn runc(&self, args: &[&str]) -> Result<()> {
        let out = Command::new(&self.runc)
            .arg("--root")
            .arg(self.dir.join("runc"))
            .args(args)
            .stdin(Stdio::null())
            .output()?;
        ensure!(out.status.success(), "runc {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
        Ok(())
    }

    /// Execs through the conmon command line with a sync pipe; gives the time to the pid and to the exit code.
    pub(crate) fn exec(
        &self,
        who: Who,
        running: &Running,
        process: &Path,
        number: usize,
    ) -> Result<Duration> {
        let uuid = format!("{}-e{number}", running.id);
        let mut argv = self.common(&running.id, &running.bundle);
        let place = argv.iter().position(|a| a == "-u").context("no -u")? + 1;
        argv[place] = uuid.clone();
        let file = running.bundle.join(&uuid);
        argv.extend(["-e".into(), "--exec-process-spec".into(), process.display().to_string()]);
        argv.extend(["-p".into(), file.display().to_string(), "-l".into(), "none".into()]);
        let began = Instant::now();
        self.spawn_synced(who, &argv, None)?;
        let took = began.elapsed();
        // The monitor of an exec ends by itself; its exit file is not wanted here.
        until(Duration::from_secs(20), || {
            Ok(self.dir.join("exits").join(&running.id).exists().then_some(()))
        })
        .context("exit file of an exec")?;
        let _ = fs::remove_file(self.dir.join("exits").join(&running.id));
        Ok(took)
    }

    /// Waits for the end and gives the CPU seconds of the monitor itself. What `wait4` would say contains the
    /// children that it has reaped: the runtime's commands, and the container's program, which is the writer.
    pub(crate) fn reap(&self, running: &Running) -> Result<f64> {
        use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
        let pid = nix::unistd::Pid::from_raw(running.monitor as i32);
        // Not reaped yet, it still has its figures. Both monitors have one thread.
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
            .with_context(|| format!("wait for the monitor {pid}"))?;
        let text = fs::read_to_string(format!("/proc/{pid}/schedstat"))
            .with_context(|| format!("read the CPU time of {pid}"))?;
        let nanos: u64 = text.split_whitespace().next().unwrap_or_default().parse()?;
        waitpid(pid, None)?;
        let _ = self.runc(&["delete", "--force", &running.id]);
        Ok(nanos as f64 / 1e9)
    }

    /// Kills the container and waits until its monitor is gone.
    pub(crate) fn end(&self, running: &Running) -> Result<()> {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(running.pid as i32),
            nix::sys::signal::Signal::SIGKILL,
        );
        self.reap(running)?;
        let _ = fs::remove_dir_all(&running.bundle);
        let _ = fs::remove_file(&running.exit_file);
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // What a failed group left: every container of this lab carries its prefix.
        if let Ok(entries) = fs::read_dir(self.dir.join("runc")) {
            for entry in entries.flatten() {
                let _ = self.runc(&["delete", "--force", &entry.file_name().to_string_lossy()]);
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Polls until `look` gives something or the time is up.
pub(crate) fn until<T>(limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= end {
            bail!("not within {limit:?}");
        }
        std::thread::sleep(Duration::from_micros(300));
    }
}

/// An executable in PATH.
pub(crate) fn find(name: &str) -> Result<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|d| d.join(name))
        .find(|p| p.is_file())
        .with_context(|| format!("{name} is not installed"))
}

fn number(line: &str, key: &str) -> Option<i64> {
    serde_json::from_str::<serde_json::Value>(line).ok()?.get(key)?.as_i64()
}
