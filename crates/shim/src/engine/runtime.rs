//! Running the OCI runtime: command line, both pipes read, a deadline, and its own words when it fails.

use super::reap::{Child, Reaper};
use pintle_core::exit::Exit;
use pintle_core::runtime::{GlobalArgs, RuntimeOp, argv, error_message};
use pintle_sys::pidfd::PidFd;
use pintle_sys::process;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::net::unix::pipe;

/// Bytes kept of each of the runtime's own output streams; the rest is read and thrown away.
pub const OUTPUT_MAX: usize = 64 * 1024;

/// How the runtime is called.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Executable; a name without a slash is looked up in `PATH`.
    pub path: PathBuf,
    /// `--root`; `None` leaves the runtime's default.
    pub root: Option<PathBuf>,
    /// Global arguments in front of the subcommand.
    pub args: Vec<OsString>,
    /// `--systemd-cgroup`.
    pub systemd_cgroup: bool,
    /// Environment added to the shim's own.
    pub env: Vec<(OsString, OsString)>,
    /// Directory for log and pid files of single calls; exists.
    pub scratch: PathBuf,
    /// Pass `--log FILE --log-format json`, so that the runtime's messages come apart from the container's stderr.
    pub json_log: bool,
    /// Time a call may take before the runtime is killed.
    pub timeout: Duration,
}

impl RuntimeConfig {
    /// runc's defaults with `scratch` for the small files; 240 s per call.
    pub fn new(path: impl Into<PathBuf>, scratch: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            root: None,
            args: Vec::new(),
            systemd_cgroup: false,
            env: Vec::new(),
            scratch: scratch.into(),
            json_log: true,
            timeout: Duration::from_secs(240),
        }
    }
}

/// The stdio of a runtime call. What is `None` is a pipe of ours for output, `/dev/null` for stdin.
#[derive(Debug, Default)]
pub struct RunIo {
    /// stdin of the call, and so of the container for create.
    pub stdin: Option<OwnedFd>,
    /// stdout.
    pub stdout: Option<OwnedFd>,
    /// stderr.
    pub stderr: Option<OwnedFd>,
}

/// What a successful call printed, up to [`OUTPUT_MAX`] bytes each.
#[derive(Debug, Default)]
pub struct RunOutput {
    /// stdout, if it was ours to read.
    pub stdout: Vec<u8>,
    /// stderr, if it was ours to read.
    pub stderr: Vec<u8>,
}

/// Why a runtime call failed.
#[derive(Debug)]
pub enum RuntimeFailure {
    /// The executable could not be started.
    NotStarted(io::Error),
    /// It ended with something else than status 0.
    Ended(Exit),
    /// It did not end in time and was killed.
    TimedOut(Duration),
    /// It said "done", but did not do its part (no pid file, no console).
    Broken(String),
}

/// A failed runtime call.
#[derive(Debug)]
pub struct RuntimeError {
    /// Subcommand, as in `create`.
    pub op: &'static str,
    /// The executable.
    pub path: PathBuf,
    /// What happened.
    pub failure: RuntimeFailure,
    /// The runtime's own words; may be empty.
    pub message: String,
    /// Everything kept of its stderr, if that was ours to read.
    pub stderr: Vec<u8>,
}

impl fmt::Display for RuntimeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.failure {
            RuntimeFailure::NotStarted(e) => write!(f, "start runtime {path}: {e}")?,
            RuntimeFailure::Ended(exit) => write!(f, "{path} {} failed with {exit}", self.op)?,
            RuntimeFailure::TimedOut(t) => {
                write!(f, "{path} {} did not end within {} ms and was killed", self.op, t.as_millis())?;
            }
            RuntimeFailure::Broken(what) => write!(f, "{path} {}: {what}", self.op)?,
        }
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}

impl std::error::Error for RuntimeError {}

static CALLS: AtomicU32 = AtomicU32::new(0);

/// An OCI runtime to be called for one container.
#[derive(Clone)]
pub struct RuntimeCli {
    config: RuntimeConfig,
    reaper: Reaper,
    id: String,
}

impl RuntimeCli {
    /// For the container `id`.
    pub fn new(config: RuntimeConfig, reaper: Reaper, id: impl Into<String>) -> Self {
        Self { config, reaper, id: id.into() }
    }

    /// How it is called.
    pub fn config(&self) -> &RuntimeConfig {
        &self.config
    }

    /// A fresh path in the scratch directory.
    pub fn scratch_path(&self, what: &str) -> PathBuf {
        let n = CALLS.fetch_add(1, Ordering::Relaxed);
        self.config.scratch.join(format!(".{what}.{}.{n}", std::process::id()))
    }

    fn global(&self, log: Option<&Path>) -> GlobalArgs {
        GlobalArgs {
            root: self.config.root.as_ref().map(|p| bytes(p.as_os_str())),
            log: log.map(|p| bytes(p.as_os_str())),
            log_json: true,
            systemd_cgroup: self.config.systemd_cgroup,
            extra: self.config.args.iter().map(|a| bytes(a)).collect(),
        }
    }

    /// The command for `op`, with arguments and environment but without stdio.
    pub fn command(&self, op: &RuntimeOp, log: Option<&Path>) -> Command {
        let mut command = Command::new(&self.config.path);
        for arg in argv(&self.global(log), op, self.id.as_bytes()) {
            command.arg(OsString::from_vec(arg));
        }
        for (key, value) in &self.config.env {
            command.env(key, value);
        }
        // sd-notify and socket activation are between the engine and the container, not for the runtime's own use.
        command
    }

    /// Runs `op` to its end within the configured time.
    ///
    /// # Errors
    /// If it cannot be started, fails, or takes too long.
    pub async fn run(&self, op: &RuntimeOp, io: RunIo) -> Result<RunOutput, RuntimeError> {
        self.run_within(op, io, self.config.timeout).await
    }

    /// Runs `op` to its end within `limit`.
    ///
    /// # Errors
    /// As [`RuntimeCli::run`].
    pub async fn run_within(
        &self,
        op: &RuntimeOp,
        io: RunIo,
        limit: Duration,
    ) -> Result<RunOutput, RuntimeError> {
        let log = self.config.json_log.then(|| self.scratch_path("runtime-log"));
        let mut command = self.command(op, log.as_deref());
        command.stdin(io.stdin.map_or_else(Stdio::null, Stdio::from));
        command.stdout(io.stdout.map_or_else(Stdio::piped, Stdio::from));
        command.stderr(io.stderr.map_or_else(Stdio::piped, Stdio::from));
        if matches!(op, RuntimeOp::Create { .. } | RuntimeOp::Restore { .. } | RuntimeOp::Exec { .. }) {
            // What it makes would be nobody's. A start, a kill or a delete under way is better carried to its end.
            pintle_sys::inherit::die_with_parent(&mut command);
        }
        let spawned = self.reaper.spawn(&mut command);
        // The command holds our copies of the container's ends; they must not outlive the start.
        drop(command);
        let result = match spawned {
            Ok(child) => supervise(child, limit).await,
            Err(e) => Err((RuntimeFailure::NotStarted(e), RunOutput::default())),
        };
        let said = log.as_deref().map(read_tail).unwrap_or_default();
        if let Some(log) = &log {
            // Not there if the runtime never opened it.
            let _ = std::fs::remove_file(log);
        }
        result.map_err(|(failure, output)| RuntimeError {
            op: op.name(),
            path: self.config.path.clone(),
            failure,
            message: error_message(&said, &output.stderr),
            stderr: output.stderr,
        })
    }

    /// What `SUBCOMMAND --help` prints; empty if the runtime does not tell.
    pub async fn help(&self, subcommand: &str) -> String {
        let mut command = Command::new(&self.config.path);
        command
            .args([subcommand, "--help"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let Ok(child) = self.reaper.spawn(&mut command) else { return String::new() };
        match supervise(child, Duration::from_secs(10)).await {
            Ok(output) | Err((_, output)) => {
                let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
                text.push_str(&String::from_utf8_lossy(&output.stderr));
                text
            }
        }
    }

    /// Reads a pid file that the runtime wrote.
    ///
    /// # Errors
    /// If it is missing or holds no pid.
    pub fn read_pid_file(&self, op: &RuntimeOp, path: &Path) -> Result<i32, RuntimeError> {
        let parsed = std::fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<i32>().ok());
        // A broken runtime must not make us signal the first process, ourselves or our parents.
        let parsed = parsed.filter(|pid| !process::is_own_line(*pid));
        parsed.ok_or_else(|| RuntimeError {
            op: op.name(),
            path: self.config.path.clone(),
            failure: RuntimeFailure::Broken(format!("no pid in {}", path.display())),
            message: String::new(),
            stderr: Vec::new(),
        })
    }
}

/// Kills the process that a failed call has written into its pid file, if it is a child of ours by now: nobody is going
/// to follow it.
pub fn kill_leftover(pid_file: &Path) {
    let pid = std::fs::read_to_string(pid_file).ok().and_then(|t| t.trim().parse::<i32>().ok());
    let Some(held) = pid.filter(|pid| *pid > 1).and_then(|pid| PidFd::open(pid).ok()) else { return };
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    if process::stat(held.pid()).is_some_and(|s| s.ppid == own) {
        // It may have ended already.
        let _ = held.signal(libc::SIGKILL);
    }
}

/// Sees a call to its end, or kills it after `limit`; gives what it said, up to [`OUTPUT_MAX`] bytes each.
///
/// Reads both pipes while the call runs, then what is left in them without waiting for an end of file: a process that
/// the runtime left behind may hold them for ever.
pub async fn supervise(child: Child, limit: Duration) -> Result<RunOutput, (RuntimeFailure, RunOutput)> {
    let Child { pidfd, stdout, stderr, exit, .. } = child;
    let (mut out, mut err) = (Capture::new(stdout), Capture::new(stderr));
    let deadline = tokio::time::sleep(limit);
    tokio::pin!(deadline);
    let mut timed_out = false;
    let ended = loop {
        tokio::select! {
            ended = exit.wait() => break ended,
            () = out.fill(), if out.open() => {}
            () = err.fill(), if err.open() => {}
            () = &mut deadline, if !timed_out => {
                timed_out = true;
                // It may be gone already; then the exit is about to be seen.
                let _ = pidfd.signal(libc::SIGKILL);
            }
        }
    };
    out.finish();
    err.finish();
    let output = RunOutput { stdout: out.kept, stderr: err.kept };
    if ended.success() {
        Ok(output)
    } else if timed_out {
        Err((RuntimeFailure::TimedOut(limit), output))
    } else {
        Err((RuntimeFailure::Ended(ended.exit), output))
    }
}

struct Capture {
    pipe: Option<pipe::Receiver>,
    kept: Vec<u8>,
}

impl Capture {
    fn new(fd: Option<OwnedFd>) -> Self {
        Self { pipe: fd.and_then(|fd| pipe::Receiver::from_owned_fd(fd).ok()), kept: Vec::new() }
    }

    fn open(&self) -> bool {
        self.pipe.is_some()
    }

    async fn fill(&mut self) {
        if let Some(pipe) = &self.pipe {
            if pipe.readable().await.is_ok() {
                self.take();
            } else {
                self.pipe = None;
            }
        }
    }

    /// One read; keeps what still fits. False when there is nothing more to read now.
    fn take(&mut self) -> bool {
        let Some(pipe) = &self.pipe else { return false };
        let mut buffer = [0u8; 8192];
        match pipe.try_read(&mut buffer) {
            Ok(0) => {
                self.pipe = None;
                false
            }
            Ok(n) => {
                let room = OUTPUT_MAX.saturating_sub(self.kept.len()).min(n);
                self.kept.extend_from_slice(&buffer[..room]);
                true
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => false,
            Err(_) => {
                self.pipe = None;
                false
            }
        }
    }

    fn finish(&mut self) {
        // A flooding orphan must not keep us here: a pipe holds 64 KiB, more came after the end.
        for _ in 0..32 {
            if !self.take() {
                break;
            }
        }
    }
}

fn bytes(text: &OsStr) -> Vec<u8> {
    text.as_bytes().to_vec()
}

/// The last [`OUTPUT_MAX`] bytes of a file; nothing if it cannot be read.
fn read_tail(path: &Path) -> Vec<u8> {
    let mut kept = Vec::new();
    if let Ok(mut file) = std::fs::File::open(path) {
        let len = file.metadata().map(|m| m.len()).unwrap_or(0);
        let _ = file.seek(SeekFrom::Start(len.saturating_sub(OUTPUT_MAX as u64)));
        let _ = file.take(OUTPUT_MAX as u64).read_to_end(&mut kept);
    }
    kept
}
