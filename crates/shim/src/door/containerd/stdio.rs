//! The streams of one process: FIFOs, files and logger programs on the daemon's side, pipes or a terminal on the
//! container's.
//!
//! The container never gets a FIFO itself: it would die of SIGPIPE with its client, and nobody could tell when its
//! output has ended.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Gid, Uid, fchown};
use pintle_core::stdio_uri::{self, Target};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::error::{Result, TaskError};
use super::log_program::LogProgram;
use super::logger::Logger;
use super::output::{BUFFER, Lost, Sink, Source, pump};
use crate::engine::log::Losses;
use crate::engine::ready::async_fd;
use crate::engine::reap::Reaper;
use crate::engine::runtime::RunIo;

/// How long a client may take to open its end of a FIFO.
const CLIENT_LIMIT: Duration = Duration::from_secs(30);

/// The four fields of a request, as given: clients find their FIFOs again by them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) stdin: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) terminal: bool,
}

/// Whose streams they are.
#[derive(Clone)]
pub(super) struct Owner<'a> {
    /// Container id, or exec id.
    pub(super) id: &'a str,
    pub(super) namespace: &'a str,
    /// Owner of the container's ends.
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) reaper: &'a Reaper,
    pub(super) logger: &'a Logger,
}

/// The streams of one process, on our side.
pub(super) struct Stdio {
    /// Our own writer of the stdin FIFO: while it is open, clients may come and go.
    writer: Mutex<Option<File>>,
    /// Output streams that have not ended.
    open: watch::Sender<usize>,
    /// Pieces of output that were read and that a client has not taken yet.
    held: watch::Sender<usize>,
    /// Bytes of output read.
    moved: AtomicU64,
    lost: Arc<Lost>,
    tasks: Mutex<Vec<AbortHandle>>,
    stdin_task: Mutex<Option<AbortHandle>>,
    master: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    /// What waits for the terminal: where its output goes and where its input comes from.
    waiting: Mutex<Option<(Sink, Option<pipe::Receiver>)>>,
    program: Mutex<Option<LogProgram>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Moves stdin to a terminal until all writers are gone; the terminal stays open.
async fn feed_terminal(input: pipe::Receiver, master: Arc<AsyncFd<OwnedFd>>) {
    while input.readable().await.is_ok() {
        let mut buffer = vec![0; 4096];
        match input.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                let mut rest = buffer.get(..n).unwrap_or_default();
                while !rest.is_empty() {
                    let written =
                        master.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, rest)?)).await;
                    let Ok(n) = written else { return };
                    rest = rest.get(n..).unwrap_or_default();
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Opens the writing end of a client's FIFO once the client has opened its own; anything else that exists is appended
/// to as it is.
async fn open_output(path: &str) -> Result<Sink> {
    let failed = |e: io::Error| TaskError::io(format!("open {path}"), e);
    if !std::fs::metadata(path).map_err(failed)?.file_type().is_fifo() {
        return OpenOptions::new().append(true).open(path).map(Sink::File).map_err(failed);
    }
    let end = Instant::now() + CLIENT_LIMIT;
    let mut pause = 1;
    let sender = loop {
        match pipe::OpenOptions::new().open_sender(path) {
            Ok(sender) => break sender,
            // Nobody reads yet. Opening for both directions would succeed, and a process that writes and ends at once
            // would leave the client waiting for ever.
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) && Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                pause = (pause * 2).min(20);
            }
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => {
                return Err(TaskError::deadline(format!("open {path}: no reader")));
            }
            Err(e) => return Err(failed(e)),
        }
    };
    let keep = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    Ok(Sink::Fifo(sender, keep))
}

/// The reading end of a stdin FIFO, and a writer of our own: without one, a reader without clients sees an end.
fn open_input(path: &str) -> Result<(pipe::Receiver, File)> {
    let failed = |e: io::Error| TaskError::io(format!("open {path}"), e);
    let reader = pipe::OpenOptions::new().open_receiver(path).map_err(failed)?;
    let writer = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    Ok((reader, writer))
}

fn open_file(path: &str) -> Result<File> {
    let failed = |e: io::Error| TaskError::io(format!("open {path}"), e);
    if let Some(parent) = Path::new(path).parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o644).open(path).map_err(failed)
}

fn null() -> Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from).map_err(|e| TaskError::io("open /dev/null", e))
}

fn pipe_pair() -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| TaskError::io("make a pipe", e.into()))
}

impl Stdio {
    fn new(lost: Lost) -> Self {
        Self {
            writer: Mutex::default(),
            open: watch::channel(0).0,
            held: watch::channel(0).0,
            moved: AtomicU64::new(0),
            lost: Arc::new(lost),
            tasks: Mutex::default(),
            stdin_task: Mutex::default(),
            master: Mutex::default(),
            waiting: Mutex::default(),
            program: Mutex::default(),
        }
    }

    /// Opens everything, and gives the container's ends for the runtime. Streams flow from here on.
    pub(super) async fn open(wanted: &Wanted, owner: Owner<'_>) -> Result<(Arc<Self>, RunIo)> {
        let stdio = Arc::new(Self::new(Lost::new(owner.id, owner.logger.clone())));
        match stdio.fill(wanted, &owner).await {
            Ok(io) => Ok((stdio, io)),
            Err(error) => {
                stdio.close();
                Err(error)
            }
        }
    }

    async fn fill(self: &Arc<Self>, wanted: &Wanted, owner: &Owner<'_>) -> Result<RunIo> {
        let parse = |text: &str| stdio_uri::parse(text).map_err(|e| TaskError::invalid(e.to_string()));
        let stdout = parse(&wanted.stdout)?;
        let input = if wanted.stdin.is_empty() {
            None
        } else {
            let (reader, writer) = open_input(wanted.stdin.strip_prefix("fifo://").unwrap_or(&wanted.stdin))?;
            *lock(&self.writer) = Some(writer);
            Some(reader)
        };
        if wanted.terminal {
            let sink = match stdout {
                Target::Null => Sink::Null,
                Target::Path(path) => open_output(&path).await?,
                Target::File(path) => Sink::File(open_file(&path)?),
                Target::Binary { path, args, strict } => {
                    let (program, out, _) =
                        LogProgram::start(&path, &args, strict, owner, &self.lost).await?;
                    *lock(&self.program) = Some(program);
                    Sink::Pipe(sender(out)?)
                }
            };
            *lock(&self.waiting) = Some((sink, input));
            return Ok(RunIo::default());
        }
        let (stdout, stderr) = match stdout {
            Target::Binary { path, args, strict } => {
                let (program, out, err) = LogProgram::start(&path, &args, strict, owner, &self.lost).await?;
                *lock(&self.program) = Some(program);
                (out, err)
            }
            Target::File(path) => {
                let file = open_file(&path)?;
                let second = file.try_clone().map_err(|e| TaskError::io(format!("open {path}"), e))?;
                (file.into(), second.into())
            }
            stdout => {
                let stderr = parse(&wanted.stderr)?;
                let out = self.output(stdout, owner).await?;
                (out, self.output(stderr, owner).await?)
            }
        };
        for fd in [&stdout, &stderr] {
            give_away(fd, owner)?;
        }
        let stdin = match input {
            Some(reader) => Some(self.input(reader, owner)?),
            None => None,
        };
        Ok(RunIo { stdin, stdout: Some(stdout), stderr: Some(stderr) })
    }

    /// The container's end of one output stream.
    async fn output(self: &Arc<Self>, target: Target, _owner: &Owner<'_>) -> Result<OwnedFd> {
        let sink = match target {
            Target::Null => return null(),
            Target::Path(path) => match open_output(&path).await? {
                Sink::File(file) => return Ok(file.into()),
                sink => sink,
            },
            Target::File(path) => return Ok(open_file(&path)?.into()),
            Target::Binary { .. } => {
                return Err(TaskError::invalid("stderr cannot have a logger of its own"));
            }
        };
        let (reader, writer) = pipe_pair()?;
        let reader = pipe::Receiver::from_owned_fd(reader).map_err(|e| TaskError::io("watch a pipe", e))?;
        self.pump_output(Source::Pipe(reader), sink);
        Ok(writer)
    }

    fn pump_output(self: &Arc<Self>, source: Source, sink: Sink) {
        self.open.send_modify(|n| *n += 1);
        // Counts down also where the task is aborted.
        let count = Count(self.clone());
        let lost = self.lost.clone();
        let task = tokio::spawn(async move {
            let sink = pump(source, sink, &lost, |n| {
                count.0.moved.fetch_add(n, Ordering::Relaxed);
                Held::new(&count.0)
            })
            .await;
            let held = Held::new(&count.0);
            drop(count);
            // A burst may have grown the heap.
            pintle_sys::mem::trim();
            sink.taken(&lost, held).await;
        });
        lock(&self.tasks).push(task.abort_handle());
    }

    /// The container's end of stdin.
    fn input(self: &Arc<Self>, reader: pipe::Receiver, owner: &Owner<'_>) -> Result<OwnedFd> {
        let (theirs, ours) = pipe_pair()?;
        give_away(&theirs, owner)?;
        let sink = Sink::Pipe(sender(ours)?);
        let task = tokio::spawn(pump_input(reader, sink));
        *lock(&self.stdin_task) = Some(task.abort_handle());
        Ok(theirs)
    }

    /// Takes the terminal a runtime sent.
    pub(super) fn attach_terminal(self: &Arc<Self>, master: OwnedFd, size: Option<(u16, u16)>) -> Result<()> {
        if let Some((rows, columns)) = size {
            pintle_sys::pty::set_size(master.as_fd(), rows, columns)
                .map_err(|e| TaskError::io("set the size of the terminal", e))?;
        }
        let flags =
            fcntl(&master, FcntlArg::F_GETFL).map_err(|e| TaskError::io("watch the terminal", e.into()))?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&master, FcntlArg::F_SETFL(flags))
            .map_err(|e| TaskError::io("watch the terminal", e.into()))?;
        let master = async_fd(master, Interest::READABLE | Interest::WRITABLE)
            .map_err(|e| TaskError::io("watch the terminal", e))?;
        let master = Arc::new(master);
        *lock(&self.master) = Some(master.clone());
        let waiting = lock(&self.waiting).take();
        let (sink, input) = waiting.unwrap_or((Sink::Null, None));
        self.pump_output(Source::Terminal(master.clone()), sink);
        if let Some(input) = input {
            let task = tokio::spawn(feed_terminal(input, master));
            *lock(&self.stdin_task) = Some(task.abort_handle());
        }
        Ok(())
    }

    /// Sets the size of the terminal; without one nothing happens.
    pub(super) fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        match lock(&self.master).as_ref() {
            Some(master) => pintle_sys::pty::set_size(master.get_ref().as_fd(), rows, columns),
            None => Ok(()),
        }
    }

    /// Gives up our own writer of stdin: the container sees the end when the last client is gone too and all is read.
    pub(super) fn close_stdin(&self) {
        lock(&self.writer).take();
    }

    /// The process has ended: nothing more goes in.
    pub(super) fn process_ended(&self) {
        self.close_stdin();
        if let Some(task) = lock(&self.stdin_task).take() {
            task.abort();
        }
    }

    /// Waits until all output has ended, but not longer than `limit`, nor longer than `quiet` without a byte moving.
    pub(super) async fn drained(&self, quiet: Duration, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut open = self.open.subscribe();
        loop {
            if *open.borrow_and_update() == 0 {
                return true;
            }
            let before = self.moved.load(Ordering::Relaxed);
            let next = (Instant::now() + quiet).min(end);
            if tokio::time::timeout_at(next, open.changed()).await.is_err()
                && (Instant::now() >= end || self.moved.load(Ordering::Relaxed) == before)
            {
                return *open.borrow() == 0;
            }
        }
    }

    /// Waits until all output has ended and who reads it has taken it, but not longer than `limit`; nor longer than `quiet`
    /// for output that others hold open without writing any. True: it has ended.
    ///
    /// `ctr` and others throw away what they have not read yet when they hear of the end of a process.
    pub(super) async fn settled(&self, quiet: Duration, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let (mut open, mut held) = (self.open.subscribe(), self.held.subscribe());
        loop {
            let waiting = *held.borrow_and_update() > 0;
            if *open.borrow_and_update() == 0 && !waiting {
                return true;
            }
            let before = self.moved.load(Ordering::Relaxed);
            let next = if waiting { end } else { (Instant::now() + quiet).min(end) };
            let change = async {
                tokio::select! {
                    _ = open.changed() => {}
                    _ = held.changed() => {}
                }
            };
            if tokio::time::timeout_at(next, change).await.is_ok() {
                continue;
            }
            // Where this process was not let run, there may be output that it has not even seen.
            tokio::task::yield_now().await;
            let still = self.moved.load(Ordering::Relaxed) == before && *self.held.borrow() == 0;
            if Instant::now() >= end || still {
                return *self.open.borrow() == 0;
            }
        }
    }

    /// Waits for the logger program to end by itself, and ends it if it does not.
    pub(super) async fn finish_program(&self, limit: Duration) {
        let program = lock(&self.program).take();
        if let Some(program) = program {
            program.finish(limit).await;
        }
    }

    /// Closes whatever is still open, with what is in it.
    pub(super) fn close(&self) {
        self.process_ended();
        for task in lock(&self.tasks).drain(..) {
            task.abort();
        }
        lock(&self.waiting).take();
        lock(&self.master).take();
        if let Some(program) = lock(&self.program).take() {
            tokio::spawn(async move { program.finish(Duration::ZERO).await });
        }
    }

    /// Bytes of output read so far, as far as they pass through here, and those of them that went nowhere.
    pub(super) fn counters(&self) -> (u64, Losses) {
        (self.moved.load(Ordering::Relaxed), self.lost.sums())
    }

    /// Gives up the terminal once everything written to it has been read.
    pub(super) fn release_terminal(&self) {
        lock(&self.master).take();
    }
}

struct Count(Arc<Stdio>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.open.send_modify(|n| *n = n.saturating_sub(1));
    }
}

/// Output on its way to a client.
struct Held(Arc<Stdio>);

impl Held {
    fn new(stdio: &Arc<Stdio>) -> Self {
        stdio.held.send_modify(|n| *n += 1);
        Self(stdio.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.send_modify(|n| *n = n.saturating_sub(1));
    }
}

async fn pump_input(reader: pipe::Receiver, sink: Sink) {
    // A container that has closed its stdin ends this; the FIFO's reader goes with it, and a client learns by EPIPE.
    let mut sink = sink;
    while reader.readable().await.is_ok() {
        let mut buffer = vec![0; BUFFER];
        match reader.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                if sink.write_all(buffer.get(..n).unwrap_or_default()).await.is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

fn sender(fd: OwnedFd) -> Result<pipe::Sender> {
    pipe::Sender::from_owned_fd(fd).map_err(|e| TaskError::io("watch a pipe", e))
}

/// Lets a container that runs as somebody else open its streams again through /proc.
fn give_away(fd: &OwnedFd, owner: &Owner<'_>) -> Result<()> {
    if (owner.uid, owner.gid) == (0, 0) {
        return Ok(());
    }
    match fchown(fd, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid))) {
        Ok(()) => Ok(()),
        Err(e) => Err(TaskError::io("give a stream to the container's user", e.into())),
    }
}

#[cfg(test)]
mod tests;
