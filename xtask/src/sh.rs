//! Running programs: with a printed command line, with captured output, with a time limit.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A `cargo` command in the root of the repository.
///
/// The variables that cargo set for this process are taken out: they would make the inner cargo build
/// everything anew.
pub(crate) fn cargo() -> Command {
    let mut c = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    c.current_dir(root());
    for (k, _) in std::env::vars_os() {
        let Some(k) = k.to_str() else { continue };
        if k.starts_with("CARGO_PKG_") || k.starts_with("CARGO_MANIFEST") || k == "CARGO_CRATE_NAME" {
            c.env_remove(k);
        }
    }
    c
}

/// The command as one would type it.
pub(crate) fn show(c: &Command) -> String {
    let mut s = Path::new(c.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    for a in c.get_args() {
        s.push(' ');
        s.push_str(&a.to_string_lossy());
    }
    s
}

/// Runs the command with its output going where ours goes.
pub(crate) fn run(c: &mut Command) -> Result<()> {
    let shown = show(c);
    eprintln!("$ {shown}");
    let status = c.stdin(Stdio::null()).status().with_context(|| format!("run {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// Standard output of the command; its failure is an error that carries its standard error.
pub(crate) fn output(c: &mut Command) -> Result<String> {
    let shown = show(c);
    let out = c.stdin(Stdio::null()).output().with_context(|| format!("run {shown}"))?;
    if !out.status.success() {
        bail!("{shown}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Where a program lies, as a shell would find it.
pub(crate) fn which(program: impl AsRef<OsStr>) -> Option<PathBuf> {
    let program = program.as_ref();
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/lib/conmon"].iter().map(PathBuf::from))
        .map(|d| d.join(program))
        .find(|p| p.is_file())
}

/// What came of a command with a time limit.
pub(crate) struct Captured {
    /// None when the time was over and the whole process group was killed.
    pub(crate) status: Option<ExitStatus>,
    /// Standard output and standard error in the order in which they came.
    pub(crate) output: String,
    /// How long it took.
    pub(crate) took: Duration,
    /// The pid it had.
    pub(crate) pid: u32,
}

/// Runs the command in a process group of its own with both outputs captured.
///
/// Output is read until the command ends, not until its pipes close: a process that it left behind
/// (a monitor that outlives a failed test) must not hold us.
pub(crate) fn capture(c: &mut Command, limit: Duration) -> Result<Captured> {
    let shown = show(c);
    let began = Instant::now();
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("pipe")?;
    let mut reader = std::fs::File::from(reader);
    c.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let mut child = c.spawn().with_context(|| format!("run {shown}"))?;
    // The command holds our ends of the pipe: without them the reader sees the end of the file.
    c.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());

    let (tx, rx) = mpsc::channel::<Vec<u8>>();
    std::thread::spawn(move || {
        let mut buf = vec![0; 64 * 1024];
        while let Ok(n) = reader.read(&mut buf) {
            if n == 0 || tx.send(buf[..n].to_vec()).is_err() {
                return;
            }
        }
    });

    let mut bytes = Vec::new();
    let mut status = None;
    loop {
        match rx.recv_timeout(Duration::from_millis(50)) {
            Ok(b) => bytes.extend_from_slice(&b),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => std::thread::sleep(Duration::from_millis(10)),
        }
        if let Some(s) = child.try_wait()? {
            status = Some(s);
            break;
        }
        if began.elapsed() > limit {
            break;
        }
    }
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    if status.is_none() {
        let _ = child.wait();
    }
    // What is still in the pipe.
    while let Ok(b) = rx.recv_timeout(Duration::from_millis(200)) {
        bytes.extend_from_slice(&b);
        if bytes.len() > 64 << 20 {
            break;
        }
    }
    let output = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Captured { status, output, took: began.elapsed(), pid: child.id() })
}

/// The last `n` lines of a text.
pub(crate) fn tail(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}

/// The beginning and the end of a text that has more than `n` lines.
pub(crate) fn excerpt(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() <= n {
        return lines.join("\n");
    }
    let left_out = format!("... {} lines ...", lines.len() - n);
    [&lines[..n / 2], &[left_out.as_str()], &lines[lines.len() - n / 2..]].concat().join("\n")
}

/// Seconds with one decimal.
pub(crate) fn secs(d: Duration) -> String {
    format!("{:.1} s", d.as_secs_f64())
}
