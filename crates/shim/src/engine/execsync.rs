//! Running a process to its end and keeping its output.
//!
//! Five answers are told apart: not started (an error with the runtime's words), exited, killed by a signal, time up,
//! output cut. Output is capped while it streams, and the process is drained on, so that it does not block.

use super::container::Container;
use super::exec::{Launch, exec_cgroup};
use super::failure::{Failure, FailureKind};
use super::ready::async_fd;
use super::reap::Ended;
use super::runtime::{RunIo, RuntimeCli};
use super::spec::ExecSpec;
use super::{stdio, tree};
use pintle_core::exit::Exit;
use pintle_core::wall::WallTime;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// Output kept unless the caller says otherwise: stdout and stderr together.
pub const OUTPUT_DEFAULT: u64 = 16 * 1024 * 1024;
/// Added to the caller's timeout for the runtime's own work: one that hangs must not hold the caller.
const LAUNCH: Duration = Duration::from_secs(10);
/// The most a caller may ask for: it is held in the shim's memory.
pub const OUTPUT_LIMIT: u64 = 64 * 1024 * 1024;
/// Calls at a time: below what one connection may have unanswered, so that one too many is told so.
pub const CALLS_MAX: usize = 768;
/// What all calls that run at a time may hold together, and answers on their way; further output is cut.
pub const OUTPUT_TOTAL: u64 = 64 * 1024 * 1024;
/// How long output of left-over processes is waited for after the end.
const LINGER: Duration = Duration::from_millis(500);
/// The most that a pipe of ours holds (pipe(7)).
const PIPE_MAX: usize = 64 * 1024;

/// Bytes of output that are in memory now, of all calls.
static HELD: AtomicU64 = AtomicU64::new(0);

/// Calls that run now.
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// The place of one call.
struct Place;

impl Place {
    fn take(container: &str) -> Result<Self, Failure> {
        // One thread: nobody comes in between.
        if CALLS.load(Ordering::Relaxed) >= CALLS_MAX {
            let message = format!("container {container} has {CALLS_MAX} ExecSync calls under way");
            return Err(Failure::new(FailureKind::ResourceExhausted, container, message));
        }
        CALLS.fetch_add(1, Ordering::Relaxed);
        Ok(Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        CALLS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The share of one call in the memory for output; given back when dropped, so it goes where the output goes.
#[derive(Debug, Default)]
pub struct Held(AtomicU64);

impl Held {
    /// As many of `wanted` bytes as there is room for.
    fn take(&self, wanted: u64) -> u64 {
        // One thread: nobody comes in between.
        let taken = OUTPUT_TOTAL.saturating_sub(HELD.load(Ordering::Relaxed)).min(wanted);
        HELD.fetch_add(taken, Ordering::Relaxed);
        self.0.fetch_add(taken, Ordering::Relaxed);
        taken
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(*self.0.get_mut(), Ordering::Relaxed);
    }
}

/// What came of it.
#[derive(Debug)]
pub struct SyncResult {
    /// Its pid.
    pub pid: i32,
    /// How it ended.
    pub exit: Exit,
    /// When it was started.
    pub started_at: WallTime,
    /// When it was reaped.
    pub finished_at: WallTime,
    /// Its stdout, or all output of a terminal.
    pub stdout: Vec<u8>,
    /// Its stderr.
    pub stderr: Vec<u8>,
    /// To be kept as long as the output is.
    pub held: Held,
    /// Output was cut.
    pub truncated: bool,
    /// The time was up and the tree was killed.
    pub timed_out: bool,
}

impl Container {
    /// Runs a process to its end. `timeout` counts from the moment it runs.
    ///
    /// # Errors
    /// For a bad request, and if the runtime cannot start it.
    pub async fn exec_sync(
        self: &Arc<Self>,
        spec: ExecSpec,
        timeout: Option<Duration>,
        max_output: u64,
    ) -> Result<SyncResult, Failure> {
        // Its output is in this program's memory only.
        let _active = self.activity.read().await;
        let (runtime, bundle, exec_args) = self.check_exec_possible()?;
        let _place = Place::take(&self.id)?;
        let (document, terminal) = spec.process(&bundle)?;
        // Only what may have to be killed needs a cgroup of its own.
        let cgroup = match timeout {
            Some(_) if self.runtime_can_place(&runtime).await => exec_cgroup(self),
            _ => None,
        };
        let mut launch = Launch {
            cgroup: cgroup.as_ref().map(|c| c.argument.clone()),
            limit: timeout.map(|t| t + LAUNCH),
            ..Launch::default()
        };
        let output = Output {
            held: Held::default(),
            max: max_output.min(OUTPUT_LIMIT),
            truncated: AtomicBool::new(false),
        };
        let (mut out, mut err) = (Reader::default(), Reader::default());
        if !terminal {
            let pipes = stdio::Pipes::new(false)
                .map_err(|e| Failure::system("make pipes for exec in", self.id.as_str(), &e))?;
            launch.io = RunIo { stdin: pipes.stdin, stdout: pipes.stdout, stderr: pipes.stderr };
            let watch =
                |fd| Reader::new(fd).map_err(|e| Failure::system("read exec in", self.id.as_str(), &e));
            out = watch(pipes.ours.stdout)?;
            err = watch(pipes.ours.stderr)?;
        }
        // It runs, and may fill its pipes, before the runtime's exec returns.
        let start = self.launch(&runtime, &document, terminal, exec_args, launch);
        tokio::pin!(start);
        let started = loop {
            tokio::select! {
                biased;
                started = &mut start => break started,
                () = out.fill(&output) => {}
                () = err.fill(&output) => {}
            }
        };
        let mut started = match started {
            Ok(started) => started,
            Err(mut failure) => {
                // Its end may be known before its last words are read.
                linger(&mut out, &mut err, &output, true).await;
                if failure.runtime_message.is_empty() && !err.bytes.is_empty() {
                    failure.runtime_message = pintle_core::runtime::error_message(b"", &err.bytes);
                    failure.message = format!("{}: {}", failure.message, failure.runtime_message);
                }
                return Err(failure);
            }
        };
        if let Some(master) = started.master.take() {
            out = Reader::new(Some(master))
                .map_err(|e| Failure::system("read exec in", self.id.as_str(), &e))?;
        }
        let deadline = timeout.map(|t| Instant::now() + t);
        let mut timed_out = false;
        let ended = loop {
            tokio::select! {
                // The end comes first: what ended in time did not time out.
                biased;
                ended = started.exit.wait() => break ended,
                () = until(deadline.filter(|_| !timed_out)) => {
                    timed_out = true;
                    self.kill_tree(cgroup.as_ref(), started.pidfd.as_ref());
                }
                () = out.fill(&output) => {}
                () = err.fill(&output) => {}
            }
        };
        linger(&mut out, &mut err, &output, timed_out).await;
        if let Some(cgroup) = cgroup.as_ref().filter(|_| timed_out) {
            // What the first kill missed because it was being born.
            for round in 0..50u64 {
                if cgroup.kill() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(round.min(20))).await;
            }
        }
        let Ended { exit, at, .. } = ended;
        Ok(SyncResult {
            pid: started.pid,
            exit,
            started_at: started.started_at,
            finished_at: at,
            stdout: out.bytes,
            stderr: err.bytes,
            truncated: output.truncated.load(Ordering::Relaxed),
            held: output.held,
            timed_out,
        })
    }

    fn kill_tree(&self, cgroup: Option<&tree::ExecCgroup>, pidfd: Option<&pintle_sys::pidfd::PidFd>) {
        match cgroup {
            Some(cgroup) => {
                cgroup.kill();
            }
            None => {
                let cgroups = self.lock().cgroups.clone();
                if let Some(pidfd) = pidfd {
                    tree::signal_descendants(pidfd, &cgroups, libc::SIGKILL);
                }
            }
        }
        if let Some(pidfd) = pidfd {
            let _ = pidfd.signal(libc::SIGKILL);
        }
    }

    /// Whether the runtime's exec can place a process in a sub-cgroup. Asked once per container.
    async fn runtime_can_place(&self, runtime: &RuntimeCli) -> bool {
        if let Some(known) = self.lock().exec_cgroup {
            return known;
        }
        let text = runtime.help("exec").await;
        let unified = self.lock().cgroups.dir("freezer").is_none_or(|d| d.unified);
        // With several hierarchies the argument must name one, which is runc's form.
        let can = text.contains("--cgroup") && (unified || text.contains("[<controller>:]"));
        self.lock().exec_cgroup = Some(can);
        can
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Reads what is left: to the end of file if it comes soon, else what is there.
async fn linger(out: &mut Reader, err: &mut Reader, output: &Output, killed: bool) {
    let end = Instant::now() + if killed { LINGER / 2 } else { LINGER };
    while out.fd.is_some() || err.fd.is_some() {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(end) => {
                // A busy shim may come here late, for the first time.
                out.rest(output);
                err.rest(output);
                return;
            }
            () = out.fill(output) => {}
            () = err.fill(output) => {}
        }
    }
}

/// What two readers share; both run in one task, but its future must be `Send`.
struct Output {
    held: Held,
    max: u64,
    truncated: AtomicBool,
}

#[derive(Default)]
struct Reader {
    fd: Option<AsyncFd<OwnedFd>>,
    bytes: Vec<u8>,
}

impl Reader {
    fn new(fd: Option<OwnedFd>) -> io::Result<Self> {
        let Some(fd) = fd else { return Ok(Self::default()) };
        let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFL)?;
        let flags = nix::fcntl::OFlag::from_bits_retain(flags) | nix::fcntl::OFlag::O_NONBLOCK;
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(flags))?;
        Ok(Self { fd: Some(async_fd(fd, Interest::READABLE)?), bytes: Vec::new() })
    }

    /// One read; waits for ever once the stream has ended.
    async fn fill(&mut self, output: &Output) {
        let Some(fd) = &self.fd else { return std::future::pending().await };
        let ready = fd.readable().await;
        // Not before the wait: it would be part of the future, and that is moved about on the stack.
        let mut buffer = [0u8; 16 * 1024];
        let read = match ready {
            Err(_) => Ok(0),
            Ok(mut ready) => match ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut buffer)?)) {
                Err(_would_block) => return,
                Ok(read) => read,
            },
        };
        match read {
            Ok(n) if n > 0 => self.keep(&buffer[..n], output),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // A terminal whose last user is gone says EIO instead of an end of file.
            _ => self.fd = None,
        }
    }

    /// What is there now; of one that never stops writing, not more than a pipe holds.
    fn rest(&mut self, output: &Output) {
        let mut buffer = [0u8; 16 * 1024];
        for _ in 0..PIPE_MAX / buffer.len() {
            let Some(fd) = &self.fd else { return };
            match nix::unistd::read(fd.get_ref(), &mut buffer) {
                Ok(n) if n > 0 => self.keep(&buffer[..n], output),
                Err(nix::errno::Errno::EINTR) => {}
                _ => return,
            }
        }
    }

    fn keep(&mut self, bytes: &[u8], output: &Output) {
        let room = output.max.saturating_sub(output.held.0.load(Ordering::Relaxed));
        let take = output.held.take(room.min(bytes.len() as u64)) as usize;
        if take < bytes.len() {
            output.truncated.store(true, Ordering::Relaxed);
        }
        self.bytes.extend_from_slice(&bytes[..take]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// What calls hold is counted for all of them together.
    fn alone() -> MutexGuard<'static, ()> {
        static ALONE: Mutex<()> = Mutex::new(());
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A shim that is busy for longer than output is waited for still takes what is there.
    #[test]
    fn what_is_there_is_read_however_late() {
        let _alone = alone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for _ in 0..4 {
            runtime.block_on(async {
                let output =
                    Output { held: Held::default(), max: OUTPUT_LIMIT, truncated: AtomicBool::new(false) };
                let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
                let (mut out, mut err) = (Reader::default(), Reader::new(Some(read)).unwrap());
                nix::unistd::write(&write, b"no luck\n").unwrap();
                let busy = async { std::thread::sleep(LINGER) };
                tokio::join!(linger(&mut out, &mut err, &output, true), busy);
                assert_eq!(err.bytes, b"no luck\n");
                // The stream is still open: the end was not what made it be read.
                drop(write);
            });
        }
    }

    /// A pipe with some words in it that its writer keeps open.
    fn held_open() -> (Reader, io::PipeWriter) {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"last words").unwrap();
        (Reader::new(Some(reader.into())).unwrap(), writer)
    }

    #[test]
    fn what_a_leftover_holds_open_is_waited_for_so_long() {
        let _alone = alone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let output =
                Output { held: Held::default(), max: OUTPUT_LIMIT, truncated: AtomicBool::new(false) };
            for (killed, least) in [(false, LINGER), (true, LINGER / 2)] {
                let (mut out, _writer) = held_open();
                let began = Instant::now();
                linger(&mut out, &mut Reader::default(), &output, killed).await;
                assert!(began.elapsed() >= least && out.fd.is_some());
                assert_eq!(out.bytes, b"last words");
            }
            // All calls together hold so much, and what one held is there again for others.
            let rest = Held::default();
            assert_eq!(rest.take(u64::MAX), OUTPUT_TOTAL - 20);
            assert_eq!(rest.take(1), 0);
            let (mut cut, writer) = held_open();
            drop(writer);
            linger(&mut cut, &mut Reader::default(), &output, false).await;
            assert!(cut.bytes.is_empty() && output.truncated.load(Ordering::Relaxed));
            drop(rest);
            assert_eq!(Held::default().take(1), 1);
        });
    }
}
