//! Watching one container from the launch of the runtime to the exit command.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid, pipe2};
use pintle_core::cgroup::OomVerdict;
use pintle_core::exit::Exit;
use pintle_core::line::Stream;
use pintle_core::sync::{Key, MESSAGE_MAX};
use pintle_sys::{clock, disposition};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until, timeout};

use super::boot::{Boot, Origin, drop_stdio};
use super::diag::Diag;
use super::exit::{self, UNKNOWN};
use super::native::Native;
use super::notify::{self, Relay};
use super::options::{Mode, Options};
use super::pipes::{Messages, pass_gate, strerror};
use super::places::{self, Places};
use super::runtime::{self, ChildStdio, Launch};
use super::trace;
use crate::engine::attach::AttachOptions;
use crate::engine::cgroup::Cgroups;
use crate::engine::console::{ConsoleError, ConsoleSocket};
use crate::engine::ctl::ControlFifo;
use crate::engine::foreign::Program;
use crate::engine::hub::{Hub, HubConfig};
use crate::engine::oom::OomWatch;
use crate::engine::pump::DrainPolicy;
use crate::engine::ready::async_fd;
use crate::engine::reap::{Ended, ExitWatch, Reaper};
use crate::engine::signal::{Signal as SignalStream, signal};

/// What callers match when a command ran out of time.
const TIMED_OUT: &str = "command timed out";
/// How long a killed process may take to be gone before callers are answered without it.
const KILL_PATIENCE: Duration = Duration::from_secs(2);
/// How long a console that a finished runtime has sent may take to arrive.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(2);
/// An orphan that holds the output does not hold up the answer: what the container wrote is in the pipe already.
const DRAIN: DrainPolicy = DrainPolicy { quiet: Duration::from_millis(20), cap: Duration::from_secs(10) };
/// What a runtime may say on stderr before the container's own output is expected; older words are passed on.
const HELD_MAX: usize = 64 * 1024;

/// How watching ended.
enum End {
    /// No container: text for the caller, text for the own log.
    Failed { message: Vec<u8>, told: String },
    /// The container has ended.
    Exited(Ended),
    /// It did not within its time, and was killed.
    TimedOut(Option<Ended>),
}

/// Everything that lives as long as the container.
struct Session {
    options: Options,
    diag: Arc<Diag>,
    sync: Messages,
    hub: Arc<Hub>,
    reaper: Reaper,
    forwarded: Forwarded,
    places: Option<Places>,
    /// Read until the end.
    fifos: Option<[ControlFifo; 2]>,
    native: Native,
    oom: OomVerdict,
}

/// Runs to the end; returns the exit status of the process.
pub(super) async fn run(mut boot: Boot) -> u8 {
    let diag = Arc::new(boot.diag);
    trace::install(&diag);
    let fail = |sync: &mut Messages, text: &str| {
        diag.error(text);
        let _ = sync.send(-1, text.as_bytes());
        1
    };
    let begun = (|| Ok((Reaper::start()?, Forwarded::new()?)))();
    let (reaper, forwarded) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let error: io::Error = error;
            return fail(&mut boot.sync, &format!("Failed to watch signals {}", strerror(&error)));
        }
    };
    if let Err(text) = start_relay(&boot.options, &diag) {
        return fail(&mut boot.sync, &text);
    }
    let hub = make_hub(&boot.options);
    std::mem::take(&mut boot.sinks).into_iter().for_each(|sink| hub.add_sink(sink));
    let mut session = Session {
        options: boot.options,
        diag: Arc::clone(&diag),
        sync: boot.sync,
        hub,
        reaper,
        forwarded,
        places: None,
        fifos: None,
        native: Native::default(),
        oom: OomVerdict::default(),
    };
    let mut pipes = match session.open(boot.attach.take(), &boot.null) {
        Ok(pipes) => pipes,
        Err(text) => return session.end(failed(text.as_bytes(), text.clone()), &mut boot.inherited).await,
    };
    let gate = match boot.start.take_if(|_| session.options.terminal) {
        Some(gate) => session.pass_gate(gate).await,
        None => Ok(()),
    };
    let since = clock::mono();
    let launched =
        gate.and_then(|()| session.launch(&boot.origin, boot.start.take(), &boot.null, &mut pipes));
    let end = match launched {
        Ok(runtime) => {
            let watch = session.reaper.watch(runtime.as_raw(), since);
            session.supervise(runtime, &watch, pipes.ours, pipes.console).await
        }
        Err(text) => failed(text.as_bytes(), text.clone()),
    };
    let status = session.end(end, &mut boot.inherited).await;
    session.sync.close();
    match exit::run_command(&session.options, &boot.origin) {
        Ok(Some(pid)) => {
            session.reaper.watch(pid.as_raw(), since).wait().await;
        }
        Ok(None) => {}
        Err(error) => diag.error(&format!("Failed to run the exit command {}", strerror(&error))),
    }
    if let (Some(places), Some(bundle)) = (&session.places, &session.options.bundle) {
        places.remove_link(bundle);
    }
    status
}

fn start_relay(options: &Options, diag: &Arc<Diag>) -> Result<(), String> {
    let Some(target) = &options.sdnotify_socket else {
        return Ok(());
    };
    let bundle = options.bundle.as_deref().ok_or("Failed to relay notifications: no bundle")?;
    let relay = Relay::bind(bundle, target).map_err(|error| {
        format!("Failed to bind notify socket in {}: {}", bundle.display(), strerror(&error))
    })?;
    let diag = Arc::clone(diag);
    tokio::spawn(async move {
        if let Err(error) = relay.run().await {
            diag.warn(&format!("Failed to relay notifications: {error}"));
        }
    });
    Ok(())
}

fn make_hub(options: &Options) -> Arc<Hub> {
    Hub::new(HubConfig {
        // A terminal takes input with or without `--stdin`; the flag only says that its end counts.
        stdin: options.stdin || options.terminal,
        stdin_once: options.stdin,
        leave_stdin_open: options.leave_stdin_open,
        terminal: options.terminal,
        ..HubConfig::default()
    })
}

/// Our ends of the container's streams, before the hub reads them.
struct OwnEnds {
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

struct Pipes {
    child: Option<ChildStdio>,
    ours: OwnEnds,
    console: Option<ConsoleSocket>,
}

impl Session {
    /// Makes everything that must exist before the runtime runs.
    fn open(&mut self, ready: Option<OwnedFd>, null: &File) -> Result<Pipes, String> {
        let passthrough = self.options.log.drivers.passthrough;
        let pipes =
            self.open_pipes(null).map_err(|error| format!("Failed to create pipes {}", strerror(&error)))?;
        if let Some(bundle) = self.options.bundle.clone().filter(|_| !passthrough) {
            let (listener, places) = places::open_attach(&self.options, &bundle)?;
            self.places = Some(places);
            let served = self.hub.serve_attach(listener, AttachOptions::CONMON);
            served.map_err(|error| format!("Failed to serve attach socket {}", strerror(&error)))?;
            self.fifos = Some(places::open_fifos(&bundle, &self.hub)?);
            if matches!(self.options.mode, Mode::Exec { attach: true, .. }) {
                let mut ready = Messages::new(ready, Key::of(self.options.api_version, true));
                ready
                    .send(0, b"")
                    .map_err(|error| format!("Failed to send ready message {}", strerror(&error)))?;
            }
        }
        self.remove_stale_pidfile();
        Ok(pipes)
    }

    /// The second gate of an exec with a terminal. It is passed here and not in the runtime's child, so that the size
    /// that came before it is known when the runtime is called.
    async fn pass_gate(&mut self, gate: OwnedFd) -> Result<(), String> {
        let fail = |error: io::Error| format!("start-pipe read failed {}", strerror(&error));
        // What cannot be waited for, such as /dev/null, can be read at once.
        if let Ok(ready) = gate.try_clone().and_then(|gate| async_fd(gate, Interest::READABLE)) {
            tokio::select! {
                opened = ready.readable() => drop(opened.map_err(fail)?),
                signal = self.forwarded.next() => return Err(format!("ended by {signal} before the exec")),
            }
        }
        pass_gate(&gate).map_err(fail)?;
        self.fifos.iter().flatten().for_each(ControlFifo::catch_up);
        Ok(())
    }

    /// Calls the runtime.
    fn launch(
        &self,
        origin: &Origin,
        gate: Option<OwnedFd>,
        null: &File,
        pipes: &mut Pipes,
    ) -> Result<Pid, String> {
        let process = self.sized_process(pipes.console.as_ref());
        let console = pipes.console.as_ref().map(ConsoleSocket::path);
        let argv = runtime::argv(&self.options, console, process.as_deref());
        self.diag.trace(&format!("runtime arguments: {argv:?}"));
        let launched = runtime::launch(Launch {
            origin,
            argv: &argv,
            stdio: pipes.child.take(),
            gate: gate.as_ref(),
            replace_listen_pid: self.options.replace_listen_pid,
        });
        if self.options.log.drivers.passthrough {
            // Only the container keeps the caller's descriptors.
            let _ = drop_stdio(null);
        }
        launched.map_err(|error| format!("Failed to fork the runtime {}", strerror(&error)))
    }

    /// Where the runtime finds the process of an exec with the size of its terminal; `None` where the caller's will do.
    fn sized_process(&self, console: Option<&ConsoleSocket>) -> Option<std::path::PathBuf> {
        let Mode::Exec { process, .. } = &self.options.mode else { return None };
        let sized = runtime::sized_process(Path::new(process), self.hub.size()?)?;
        // Without it the size comes a little later.
        console?.leave("process.json", &sized).ok()
    }

    /// A pid of an earlier run must not be taken for the new one; a file that a caller made empty stays.
    fn remove_stale_pidfile(&self) {
        let path = &self.options.container_pidfile;
        if std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() > 0) {
            let _ = std::fs::remove_file(path);
        }
    }

    fn open_pipes(&self, null: &File) -> io::Result<Pipes> {
        let null = || null.try_clone().map(OwnedFd::from);
        let none = OwnEnds { stdout: None, stderr: None };
        if self.options.log.drivers.passthrough {
            let console = if self.options.terminal { Some(bind_console()?) } else { None };
            return Ok(Pipes { child: None, ours: none, console });
        }
        let (stderr, child_stderr) = pipe2(OFlag::O_CLOEXEC)?;
        if self.options.terminal {
            let child = ChildStdio { stdin: null()?, stdout: null()?, stderr: child_stderr };
            let ours = OwnEnds { stdout: None, stderr: Some(stderr) };
            return Ok(Pipes { child: Some(child), ours, console: Some(bind_console()?) });
        }
        let stdin = if self.options.stdin {
            let (child_stdin, stdin) = pipe2(OFlag::O_CLOEXEC)?;
            self.hub.set_stdin(stdin)?;
            child_stdin
        } else {
            null()?
        };
        let (stdout, child_stdout) = pipe2(OFlag::O_CLOEXEC)?;
        let child = ChildStdio { stdin, stdout: child_stdout, stderr: child_stderr };
        Ok(Pipes {
            child: Some(child),
            ours: OwnEnds { stdout: Some(stdout), stderr: Some(stderr) },
            console: None,
        })
    }

    /// From the launch of the runtime to the container's end.
    async fn supervise(
        &mut self,
        runtime: Pid,
        watch: &ExitWatch,
        ours: OwnEnds,
        console: Option<ConsoleSocket>,
    ) -> End {
        let since = clock::mono();
        let exec = self.options.mode.is_exec();
        // Nothing of a create can be written before its start; an exec runs while its runtime still ends.
        let mut stdout = ours.stdout;
        if let Some(fd) = stdout.take_if(|_| exec) {
            let _ = self.hub.add_output(Stream::Stdout, fd);
        }
        let mut held = match ours.stderr.map(Held::new).transpose() {
            Ok(held) => held,
            Err(error) => return failed(b"", format!("Failed to read stderr {}", strerror(&error))),
        };
        let has_console = console.is_some();
        let limit =
            self.options.timeout.filter(|_| !matches!(self.options.mode, Mode::Exec { attach: true, .. }));
        let mut limit = limit.map(|seconds| Box::pin(sleep_until(deadline(seconds))));
        // The runtime's own end is the limit.
        let mut receiving = console.map(|console| {
            Box::pin(async move { console.receive(Duration::from_secs(u32::MAX.into())).await })
        });
        let mut terminal = false;
        let mut early = None;
        let status = loop {
            tokio::select! {
                ended = watch.wait() => break ended.exit,
                signal = self.forwarded.next() => {
                    early = Some(signal);
                    pass_on(runtime, signal);
                }
                () = Held::fill(&mut held, &self.hub) => {}
                received = optional(&mut receiving) => {
                    receiving = None;
                    match received {
                        Ok(master) => terminal = self.use_terminal(master),
                        Err(error) => self.diag.warn(&format!("Failed to receive console descriptor: {error}")),
                    }
                }
                () = optional(&mut limit) => {
                    self.diag.warn("the runtime timed out");
                    let _ = kill(runtime, Signal::SIGKILL);
                    timeout(KILL_PATIENCE, watch.wait()).await.ok();
                    return if exec { End::TimedOut(None) } else { failed(b"the runtime timed out", "the runtime timed out".into()) };
                }
            }
        };
        // What a finished runtime has sent lies in the socket already.
        if let Some(receiving) = receiving.take_if(|_| status == Exit::Code(0)) {
            if let Ok(Ok(master)) = timeout(CONSOLE_PATIENCE, receiving).await {
                terminal = self.use_terminal(master);
            }
        }
        if let Some(held) = &mut held {
            held.read_rest();
        }
        let words = held.as_ref().map(Held::tail).unwrap_or_default();
        if status != Exit::Code(0) {
            return failed(&words, format!("Failed to create container: {status}"));
        }
        if has_console && !terminal {
            let text = "Runtime did not set up terminal";
            return failed(if words.is_empty() { text.as_bytes() } else { &words }, text.into());
        }
        let pid = match exit::read_pidfile(&self.options.container_pidfile) {
            Ok(pid) => pid,
            Err(text) => {
                let message = if words.is_empty() { text.clone().into_bytes() } else { words };
                return failed(&message, format!("Failed to read pidfile: {text}"));
            }
        };
        // Before the caller knows of it and starts it.
        let program = Program::of(pid);
        let init = self.reaper.watch(pid, since);
        if !exec || self.options.api_version {
            self.send(i64::from(pid), b"");
        }
        if let Some(signal) = early {
            // The runtime had done its work before the signal came, so it was meant for what it has started.
            pass_on(Pid::from_raw(pid), signal);
        }
        if let Some(held) = held {
            held.hand_over(&self.hub);
        }
        if let Some(fd) = stdout {
            let _ = self.hub.add_output(Stream::Stdout, fd);
        }
        self.watch_container((pid, program), &init).await
    }

    fn use_terminal(&self, master: OwnedFd) -> bool {
        // Runtimes clear it; without it lines end with a bare newline.
        if let Err(error) = pintle_sys::pty::set_onlcr(master.as_fd()) {
            self.diag.warn(&format!("Failed to set console terminal settings: {error}"));
        }
        match self.hub.set_terminal(master) {
            Ok(()) => true,
            Err(error) => {
                self.diag.error(&format!("Failed to use the terminal: {error}"));
                false
            }
        }
    }

    async fn watch_container(&mut self, (pid, program): (i32, Program), init: &ExitWatch) -> End {
        let mut limit = self.options.timeout.map(|seconds| Box::pin(sleep_until(deadline(seconds))));
        let oom = OomWatch::open(&Cgroups::of(pid)).map(Arc::new);
        if let Some(error) = oom.as_ref().and_then(|oom| oom.deaf()) {
            self.diag.warn(&format!("Failed to watch for OOM: {error}"));
        }
        self.native =
            Native::open(&self.options, &self.diag, &self.reaper, &self.hub, oom.clone(), (pid, program));
        let mut told = false;
        let end = loop {
            tokio::select! {
                ended = init.wait() => break End::Exited(ended),
                signal = self.forwarded.next() => pass_on(Pid::from_raw(pid), signal),
                kills = next_kill(oom.as_deref()) => if kills > 0 {
                    self.native.oom(kills);
                    if !told {
                        told = true;
                        self.report_oom();
                    }
                },
                () = optional(&mut limit) => {
                    break End::TimedOut(self.kill_group(pid, init).await);
                }
            }
        };
        if let Some(oom) = &oom {
            let killed = matches!(&end, End::Exited(Ended { exit: Exit::Signal { signal: 9, .. }, .. }));
            oom.look_at_end(killed).await;
            let verdict = oom.verdict(killed);
            self.oom = verdict;
            if verdict.kills > 0 && !told {
                self.report_oom();
            } else if verdict.kills == 0 {
                self.diag.debug("Cgroup appears to have been removed, or nothing in it was killed");
            }
        }
        end
    }

    fn report_oom(&self) {
        self.diag.info("OOM event received");
        exit::write_oom_files(&self.options).iter().for_each(|text| self.diag.warn(text));
    }

    /// Kills what the container's process leads and waits a moment for its last output.
    async fn kill_group(&self, pid: i32, init: &ExitWatch) -> Option<Ended> {
        let pid = Pid::from_raw(pid);
        match getpgid(Some(pid)) {
            Ok(group) if group.as_raw() > 1 => drop(killpg(group, Signal::SIGKILL)),
            _ => drop(kill(pid, Signal::SIGKILL)),
        }
        let ended = timeout(KILL_PATIENCE, init.wait()).await;
        if ended.is_err() {
            self.diag.warn(&format!("process {pid} is still there after SIGKILL"));
        }
        ended.ok()
    }

    /// Everything that callers rely on being done when the process is over, in their order.
    async fn end(&mut self, end: End, inherited: &mut pintle_sys::startup::Inherited) -> u8 {
        let (code, message, ended) = match end {
            End::Failed { message, told } => {
                self.diag.error(&told);
                self.send(-1, &message);
                self.remove_sockets();
                if let (Some(bundle), Some(_)) = (&self.options.bundle, self.fifos.take()) {
                    places::remove_fifos(bundle);
                }
                self.close_streams().await;
                inherited.close();
                return 1;
            }
            End::Exited(ended @ Ended { exit: Exit::Unknown(_), .. }) => (UNKNOWN, "", Some(ended)),
            End::Exited(ended) => (ended.exit.shell_code(), "", Some(ended)),
            End::TimedOut(ended) => (UNKNOWN, TIMED_OUT, ended),
        };
        let drained = self.hub.drained(DRAIN).await;
        if drained.leaked {
            self.diag.info("a process outside of the container still holds its output");
        }
        self.close_streams().await;
        self.native.close(ended.map(|ended| (ended, self.oom)), drained.leaked).await;
        inherited.close();
        let failed = exit::write_files(&self.options, code);
        failed.iter().for_each(|text| self.diag.error(text));
        if self.options.mode.is_exec() {
            self.send(i64::from(code), message.as_bytes());
        }
        self.remove_sockets();
        // The low byte, as exit(3) takes it: -1 is 255.
        if failed.is_empty() { (code & 0xff) as u8 } else { 1 }
    }

    fn remove_sockets(&self) {
        if let Some(places) = &self.places {
            places.remove_socket();
        }
        if let (Some(bundle), Some(_)) = (&self.options.bundle, &self.options.sdnotify_socket) {
            notify::remove(bundle);
        }
    }

    /// Logs first, then clients.
    async fn close_streams(&self) {
        if let Err(error) = self.hub.finish(self.options.log.sync).await {
            self.diag.warn(&format!("Failed to end the log: {error}"));
        }
    }

    fn send(&mut self, number: i64, text: &[u8]) {
        if let Err(error) = self.sync.send(number, text) {
            self.diag
                .error(&format!("Unable to send container stderr message to parent {}", strerror(&error)));
        }
    }
}

fn failed(message: &[u8], told: String) -> End {
    End::Failed { message: message.to_vec(), told }
}

fn deadline(seconds: u64) -> Instant {
    let now = Instant::now();
    // Too far away to be told from never.
    now.checked_add(Duration::from_secs(seconds)).unwrap_or(now + Duration::from_secs(u32::MAX.into()))
}

fn pass_on(pid: Pid, signal: Signal) {
    // It may be gone by now; then its end is about to be seen.
    let _ = kill(pid, signal);
}

async fn next_kill(oom: Option<&OomWatch>) -> u64 {
    match oom {
        Some(oom) => oom.next().await,
        None => std::future::pending().await,
    }
}

/// Waits for a future that may not be there, which is for ever then.
async fn optional<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// The signals that go to the container.
struct Forwarded {
    term: SignalStream,
    int: SignalStream,
    quit: SignalStream,
}

impl Forwarded {
    fn new() -> io::Result<Self> {
        // The handlers are chained: the one that ends the process must be gone first.
        disposition::reset(Signal::SIGTERM)?;
        Ok(Self { term: signal(libc::SIGTERM)?, int: signal(libc::SIGINT)?, quit: signal(libc::SIGQUIT)? })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.term.recv() => Signal::SIGTERM,
            _ = self.int.recv() => Signal::SIGINT,
            _ = self.quit.recv() => Signal::SIGQUIT,
        }
    }
}

/// What arrives on stderr while the runtime runs: its own words if it fails, the container's if it does not.
struct Held {
    fd: AsyncFd<File>,
    bytes: VecDeque<u8>,
    ended: bool,
}

impl Held {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        pintle_sys::bytes::set_nonblocking(fd.as_fd(), true)?;
        Ok(Self { fd: async_fd(File::from(fd), Interest::READABLE)?, bytes: VecDeque::new(), ended: false })
    }

    /// Reads once; for ever pending when there is nothing more to come.
    async fn fill(held: &mut Option<Self>, hub: &Arc<Hub>) {
        let Some(held) = held.as_mut().filter(|held| !held.ended) else {
            return std::future::pending().await;
        };
        let mut buffer = [0; 8192];
        match held.fd.readable().await {
            Ok(mut ready) => match ready.try_io(|fd| fd.get_ref().read(&mut buffer)) {
                Ok(Ok(0)) => held.ended = true,
                Ok(Ok(length)) => held.bytes.extend(buffer.get(..length).unwrap_or_default()),
                Ok(Err(error)) => held.ended = error.kind() != io::ErrorKind::Interrupted,
                Err(_) => {}
            },
            Err(_) => held.ended = true,
        }
        // A runtime that never stops talking must not fill the memory; the reason of a failure comes last.
        if held.bytes.len() > HELD_MAX {
            let older: Vec<u8> = held.bytes.drain(..held.bytes.len() - MESSAGE_MAX).collect();
            hub.inject(Stream::Stderr, &older);
        }
    }

    /// Reads what is there now, at most what a pipe holds.
    fn read_rest(&mut self) {
        let mut buffer = [0; 8192];
        for _ in 0..16 {
            match self.fd.get_ref().read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(length) => {
                    self.bytes.extend(buffer.get(..length).unwrap_or_default());
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => {}
            }
            return;
        }
    }

    fn tail(&self) -> Vec<u8> {
        self.bytes.iter().skip(self.bytes.len().saturating_sub(MESSAGE_MAX)).copied().collect()
    }

    /// The runtime has done its work: what was said belongs to the container's output.
    fn hand_over(mut self, hub: &Arc<Hub>) {
        hub.inject(Stream::Stderr, self.bytes.make_contiguous());
        let _ = hub.add_output(Stream::Stderr, self.fd.into_inner().into());
    }
}

/// Where callers look for it: `$TMPDIR`, or what stands in for it.
fn bind_console() -> io::Result<ConsoleSocket> {
    let names = ["TMPDIR", "TMP", "TEMP"];
    let dir = names
        .iter()
        .filter_map(std::env::var_os)
        .find(|dir| !dir.is_empty())
        .unwrap_or_else(|| "/tmp".into());
    ConsoleSocket::bind(Some(Path::new(&dir))).map_err(|error| match error {
        ConsoleError::Create { source, .. } => source,
        other => io::Error::other(other),
    })
}
