//! Live upgrade: another program image in the same process (docs/adr/0012-live-upgrade.md).
//!
//! The old image packs the container into a memory file, makes the descriptors inheritable, blocks every signal and
//! executes the new one. Nothing is read or written in between, children stay children, attach clients keep their
//! connections. Connections of `monitor.sock` end; clients connect again.

use super::args::Args;
use super::start::{self, Kept, Shim};
use crate::engine::carry::CarriedContainer;
use crate::engine::container::Container;
use crate::engine::events::EventKind;
use crate::engine::failure::{Failure, FailureKind};
use crate::engine::persist::{STATE_VERSION, VERSION};
use crate::engine::reap::Reaper;
use crate::engine::runtime::{RuntimeFailure, supervise};
use crate::engine::tree;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Pid, execv};
use pintle_sys::daemon;
use serde::{Deserialize, Serialize};
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long operations under way are waited for.
const QUIESCE: Duration = Duration::from_secs(5);
/// Time for the answer of the upgrade call to leave.
const ANSWER: Duration = Duration::from_millis(30);
/// How long the new program may take to say whether it understands the state.
const CHECK: Duration = Duration::from_secs(30);

/// A request for the main task.
pub(super) struct Request {
    executable: String,
    answer: oneshot::Sender<Result<(), Failure>>,
}

pub(super) type Receiver = mpsc::Receiver<Request>;

/// The way from a call to the main task.
pub(super) struct Requests {
    sender: mpsc::Sender<Request>,
    receiver: Mutex<Option<Receiver>>,
}

impl Default for Requests {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(1);
        Self { sender, receiver: Mutex::new(Some(receiver)) }
    }
}

impl Requests {
    /// The main task's end; an empty one the second time.
    pub(super) fn take_receiver(&self) -> Receiver {
        let taken = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Asks for an upgrade; answers when everything is ready for it.
    pub(super) async fn request(&self, executable: String) -> Result<(), Failure> {
        let busy = || Failure::new(FailureKind::Unavailable, "shim", "an upgrade is under way");
        let (answer, answered) = oneshot::channel();
        self.sender.try_send(Request { executable, answer }).map_err(|_| busy())?;
        answered.await.map_err(|_| busy())?
    }
}

/// What the new image gets.
#[derive(Debug, Serialize, Deserialize)]
struct Handover {
    version: u32,
    old_version: String,
    bundle: Option<PathBuf>,
    runtime: String,
    lock: RawFd,
    monitor: RawFd,
    stdio: RawFd,
    fds: Vec<RawFd>,
    container: CarriedContainer,
}

/// The executable this process was started from, also after it was replaced on disk.
fn own_executable() -> PathBuf {
    let path = std::env::current_exe().unwrap_or_default();
    let text = path.to_string_lossy().into_owned();
    text.strip_suffix(" (deleted)").map_or(path, PathBuf::from)
}

/// Asks a program whether it understands the state of this one.
async fn check(executable: &Path, reaper: &Reaper) -> Result<(), Failure> {
    let shown = executable.display().to_string();
    if !executable.is_absolute() {
        return Err(Failure::invalid(
            shown.clone(),
            format!("path of the new shim {shown:?} is not absolute"),
        ));
    }
    let mut command = Command::new(executable);
    command.args(["--check-state", &STATE_VERSION.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // What it starts is ended with it, so that no caller need know of it.
    command.process_group(0);
    let child = reaper.spawn(&mut command).map_err(|e| Failure::file("start", executable, &e))?;
    let group = child.pid;
    let result = supervise(child, CHECK).await;
    end_group(group);
    match result {
        Ok(_) => Ok(()),
        Err((RuntimeFailure::TimedOut(limit), _)) => {
            let message = format!("{shown} did not say within {} s whether it fits", limit.as_secs());
            Err(Failure::new(FailureKind::DeadlineExceeded, shown, message))
        }
        Err((failure, output)) => {
            let said = &output.stderr[..output.stderr.len().min(4096)];
            let said = String::from_utf8_lossy(said);
            let how = match failure {
                RuntimeFailure::Ended(exit) => exit.to_string(),
                other => format!("{other:?}"),
            };
            let message = format!("{shown} cannot take over: {} ({how})", said.trim());
            Err(Failure::precondition(shown, message))
        }
    }
}

/// Kills what is left of a process group whose first process has ended. Its orphans are ours by now, and what has not
/// been reaped keeps its pid.
fn end_group(group: i32) {
    tree::matching(true, |pid| {
        nix::unistd::getpgid(Some(Pid::from_raw(pid))).is_ok_and(|of| of.as_raw() == group)
    });
}

/// Whether a state version is understood; the other side of [`check`].
pub(super) fn understands(version: &str) -> Result<(), String> {
    match version.parse::<u32>() {
        Ok(version) if version <= STATE_VERSION && version > 0 => Ok(()),
        _ => Err(format!("state version {version} is not understood, only 1 to {STATE_VERSION}")),
    }
}

/// Carries a request out. Returns only if it did not come to a new image.
pub(super) async fn run(shim: &mut Shim, request: Request) {
    let executable =
        if request.executable.is_empty() { own_executable() } else { PathBuf::from(request.executable) };
    if let Err(failure) = check(&executable, &shim.container.reaper).await {
        let _ = request.answer.send(Err(failure));
        return;
    }
    let Some(quiet) = shim.container.quiesce(QUIESCE).await else {
        let id = shim.container.id.clone();
        let message = format!("operations of container {id} are under way");
        let _ = request.answer.send(Err(Failure::new(FailureKind::Unavailable, id, message)));
        return;
    };
    if request.answer.send(Ok(())).is_err() {
        // Nobody waits any more; the wish stands.
    }
    tokio::time::sleep(ANSWER).await;
    let error = execute(shim, &executable);
    // Still here: as if nothing had been.
    shim.container.unfreeze();
    daemon::unblock_signals();
    eprintln!("upgrade to {}: {error}", executable.display());
    drop(quiet);
}

/// Packs and executes; returns only with an error.
fn execute(shim: &Shim, executable: &Path) -> io::Error {
    match prepare(shim, executable) {
        // Everything in here lives until the exec, which closes nothing of it.
        Ok(ready) => match execv(&ready.path, &ready.args) {
            Ok(never) => match never {},
            Err(errno) => errno.into(),
        },
        Err(error) => error,
    }
}

struct Prepared {
    path: CString,
    args: Vec<CString>,
    /// Held open; inheritable.
    _held: Vec<OwnedFd>,
}

fn prepare(shim: &Shim, executable: &Path) -> io::Result<Prepared> {
    // A signal between the exec and the new image's handlers would end it.
    daemon::block_signals();
    let mut fds = Vec::new();
    let container = shim.container.pack(&mut fds)?;
    let copy = |fd: &OwnedFd| fd.try_clone();
    let Kept { lock, monitor, stdio } = &shim.kept;
    let (lock, monitor, stdio) = (copy(lock)?, copy(monitor)?, copy(stdio)?);
    let handover = Handover {
        version: STATE_VERSION,
        old_version: VERSION.to_owned(),
        bundle: shim.args.bundle.clone(),
        runtime: shim.args.runtime.clone(),
        lock: lock.as_raw_fd(),
        monitor: monitor.as_raw_fd(),
        stdio: stdio.as_raw_fd(),
        fds: fds.iter().map(AsRawFd::as_raw_fd).collect(),
        container,
    };
    let memory = memfd_create("pintle-upgrade", MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(memory);
    serde_json::to_writer(&mut file, &handover).map_err(io::Error::other)?;
    file.flush()?;
    file.rewind()?;
    let memory = OwnedFd::from(file);
    let text = |text: &str| CString::new(text).map_err(io::Error::other);
    let bytes = |path: &Path| CString::new(OsString::from(path).into_vec()).map_err(io::Error::other);
    let args = vec![
        text("pintle-shim")?,
        text("--id")?,
        text(&shim.args.id)?,
        text("--dir")?,
        bytes(&shim.args.root)?,
        text("--resume-fd")?,
        text(&memory.as_raw_fd().to_string())?,
    ];
    let mut held = fds;
    held.extend([lock, monitor, stdio, memory]);
    for fd in &held {
        daemon::set_inheritable(fd.as_fd(), true)?;
    }
    Ok(Prepared { path: bytes(executable)?, args, _held: held })
}

/// The new image's side.
pub(super) fn resume(args: Args, fd: RawFd) -> ExitCode {
    match take_over(args, fd) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("pintle-shim: take over: {message}");
            ExitCode::FAILURE
        }
    }
}

fn take_over(mut args: Args, fd: RawFd) -> Result<(), String> {
    let memory = daemon::take_inherited(fd).map_err(|e| format!("descriptor {fd}: {e}"))?;
    let mut text = Vec::new();
    File::from(memory).read_to_end(&mut text).map_err(|e| format!("read the state: {e}"))?;
    let handover: Handover = serde_json::from_slice(&text).map_err(|e| format!("read the state: {e}"))?;
    drop(text);
    let take = |fd: RawFd| daemon::take_inherited(fd).map_err(|e| format!("descriptor {fd}: {e}"));
    let kept =
        Kept { lock: take(handover.lock)?, monitor: take(handover.monitor)?, stdio: take(handover.stdio)? };
    let mut fds: Vec<Option<OwnedFd>> =
        handover.fds.iter().map(|fd| take(*fd).map(Some)).collect::<Result<_, _>>()?;
    args.bundle = handover.bundle;
    args.runtime = handover.runtime;
    let runtime = start::runtime()?;
    let result: Result<(), String> = runtime.block_on(Box::pin(async {
        let reaper = Reaper::start().map_err(|e| format!("start to reap: {e}"))?;
        let container =
            Container::unpack(handover.container, &mut fds, reaper).map_err(|e| format!("rebuild: {e}"))?;
        let mut shim = Shim::serve(container, args, kept).await?;
        // The handlers are in place.
        daemon::unblock_signals();
        let pid = shim.container.lock().pid;
        let from = [("from", handover.old_version), ("to", VERSION.to_owned())];
        shim.container.events.push(EventKind::Upgraded, "", pid, None, &from);
        shim.container.save();
        shim.run().await;
        Ok(())
    }));
    runtime.shutdown_background();
    result
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &[u8]) -> Result<(), serde_json::Error> {
    serde_json::from_slice::<Handover>(text).map(drop)
}
