//! From the command line to a serving shim.
//!
//! Everything that can fail is done before the fork, so that the caller hears of it; the runtime and its tasks are made
//! after it, in the process that stays.

use super::args::Args;
use super::listen;
use super::service::Service;
use super::signals;
use super::stdio_sock::Waiting;
use crate::engine::container::Container;
use crate::engine::persist;
use crate::engine::reap::Reaper;
use crate::engine::spec::check_id;
use nix::fcntl::{Flock, FlockArg, OFlag, open};
use nix::sys::stat::Mode;
use pintle_proto::monitor::service::create_monitor;
use pintle_sys::daemon::{self, Fork};
use pintle_sys::process;
use pintle_sys::seqpacket::{SocketKind, bind_at};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// A shim that nobody uses and that has no container ends after this time.
const ORPHANED: Duration = Duration::from_secs(60);
/// How long the lock of a shim that is dead may be held by what it had just forked, until that executes its program.
const LOST: Duration = Duration::from_secs(2);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// What is made before the fork.
pub(super) struct Setup {
    pub(super) args: Args,
    pub(super) dir: PathBuf,
    /// Locked for as long as the shim lives; the kernel lets go of it whatever happens.
    pub(super) lock: OwnedFd,
    pub(super) monitor: OwnedFd,
    pub(super) stdio: OwnedFd,
    pub(super) attach: OwnedFd,
    /// The directory was made by us and holds nothing of value yet.
    fresh: bool,
}

/// Who is told that the shim serves, or why it does not.
struct Ready(Option<File>);

impl Ready {
    fn tell(&mut self, line: &str) {
        if let Some(mut file) = self.0.take() {
            // Nobody has to listen.
            let _ = file.write_all(format!("{}\n", line.replace('\n', " ")).as_bytes());
        }
    }
}

pub(super) fn run(args: Args) -> ExitCode {
    if let Some(fd) = args.resume_fd {
        return super::upgrade::resume(args, fd);
    }
    daemon::unblock_signals();
    // Logs are 0640 whoever calls us, and runc hands its own umask on to what it executes in a container.
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    // A copy, in case it is one of the standard descriptors, which are replaced below.
    let ready =
        args.ready_fd.map(|fd| if fd > 2 { daemon::take_inherited(fd) } else { daemon::duplicate(fd) });
    let mut ready = match ready.transpose() {
        Ok(fd) => Ready(fd.map(File::from)),
        Err(error) => {
            eprintln!("pintle-shim: --ready-fd: {error}");
            return ExitCode::from(2);
        }
    };
    daemon::close_inherited(&ready.0.iter().map(AsRawFd::as_raw_fd).collect::<Vec<_>>());
    match start(args, &mut ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            ready.tell(&message);
            eprintln!("pintle-shim: {message}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: Args, ready: &mut Ready) -> Result<(), String> {
    let setup = prepare(args)?;
    if setup.args.foreground {
        return serve(setup, ready);
    }
    let (told, tell) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| format!("make a pipe: {e}"))?;
    match daemon::fork().map_err(|e| format!("fork: {e}"))? {
        Fork::Parent(_) => {
            drop(tell);
            // Closed, not unlocked: the lock is the child's, and free for the next one as soon as the child lets go of it,
            // even while we still look for what it said.
            drop(setup);
            let mut text = String::new();
            let _ = File::from(told).read_to_string(&mut text);
            std::process::exit(i32::from(text != "ok"));
        }
        Fork::Child => {
            drop(told);
            let detached = detach(&setup.dir);
            let result = detached.and_then(|()| {
                let mut both = Ready(ready.0.take());
                serve_and_tell(setup, &mut both, Some(File::from(tell)))
            });
            if let Err(message) = &result {
                eprintln!("pintle-shim: {message}");
            }
            std::process::exit(i32::from(result.is_err()));
        }
    }
}

/// Leaves the session and the terminal of the caller.
fn detach(dir: &Path) -> Result<(), String> {
    nix::unistd::setsid().map_err(|e| format!("setsid: {e}"))?;
    std::env::set_current_dir("/").map_err(|e| format!("change to /: {e}"))?;
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|e| format!("open /dev/null: {e}"))?;
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join("shim.log"));
    let log = log.map_err(|e| format!("open {}: {e}", dir.join("shim.log").display()))?;
    for (fd, target) in [(null.as_fd(), 0), (null.as_fd(), 1), (log.as_fd(), 2)] {
        daemon::replace_std(fd, target).map_err(|e| format!("replace descriptor {target}: {e}"))?;
    }
    Ok(())
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Locks a state directory. `None`: a shim has it.
fn lock(mut dir: OwnedFd) -> Option<Flock<OwnedFd>> {
    let end = Instant::now() + LOST;
    loop {
        dir = match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((dir, _)) => dir,
        };
        let socket = format!("/proc/self/fd/{}/monitor.sock", dir.as_raw_fd());
        let nobody = UnixStream::connect(socket).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
        if !nobody || Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes the state directory and its sockets.
pub(super) fn prepare(args: Args) -> Result<Setup, String> {
    check_id("container", &args.id).map_err(|e| e.message)?;
    let root = &args.root;
    let shown = root.display();
    DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(|e| format!("create {shown}: {e}"))?;
    let meta = std::fs::metadata(root).map_err(|e| format!("look at {shown}: {e}"))?;
    let own = nix::unistd::geteuid().as_raw();
    if meta.uid() != own && meta.uid() != 0 {
        return Err(format!("state directory {shown} belongs to uid {}", meta.uid()));
    }
    if meta.mode() & 0o022 != 0 && meta.mode() & 0o1000 == 0 {
        return Err(format!("state directory {shown} is writable by others"));
    }
    let dir = root.join(&args.id);
    let shown = dir.display();
    let fresh = match make_dir(&dir) {
        Ok(()) => true,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
        Err(e) => return Err(format!("create {shown}: {e}")),
    };
    if args.adopt && fresh {
        let _ = std::fs::remove_dir(&dir);
        return Err(format!("no container {} to adopt: {shown} does not exist", args.id));
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let held = open(&dir, flags, Mode::empty()).map_err(|e| format!("open {shown}: {e}"))?;
    let in_use = || format!("id {} is in use: a shim serves {shown}", args.id);
    let lock = lock(held).ok_or_else(in_use)?;
    // A plain descriptor from here on: it is released by the kernel when the last copy is closed.
    let lock_fd = lock.try_clone().map_err(|e| format!("hold {shown}: {e}"))?;
    std::mem::forget(lock);
    if !fresh {
        let meta = std::fs::metadata(&dir).map_err(|e| format!("look at {shown}: {e}"))?;
        if meta.uid() != own {
            return Err(format!("{shown} belongs to uid {}", meta.uid()));
        }
        if !args.adopt {
            occupied(&args.id, &dir)?;
        }
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(|e| format!("set mode of {shown}: {e}"))?;
    }
    let bind = |name: &str, kind| {
        bind_at(lock_fd.as_fd(), name, kind, 0o600, BACKLOG)
            .map_err(|e| format!("bind {}: {e}", dir.join(name).display()))
    };
    let sockets = bind("monitor.sock", SocketKind::Stream).and_then(|monitor| {
        let stdio = bind("stdio.sock", SocketKind::Packet)?;
        Ok((monitor, stdio, bind("attach.sock", SocketKind::Packet)?))
    });
    let (monitor, stdio, attach) = match sockets {
        Ok(sockets) => sockets,
        Err(message) => {
            if fresh {
                let _ = persist::remove_dir(&dir);
            }
            return Err(message);
        }
    };
    Ok(Setup { args, dir, lock: lock_fd, monitor, stdio, attach, fresh })
}

/// Fails if a directory without a shim belongs to a container.
fn occupied(id: &str, dir: &Path) -> Result<(), String> {
    let Ok(state) = persist::load(dir) else { return Ok(()) };
    if state.pid == 0 {
        return Ok(());
    }
    let alive =
        state.boot_id == pintle_sys::clock::boot_id() && process::start_time(state.pid) == state.pid_start;
    if alive && !dir.join(crate::engine::record::EXIT_FILE).exists() {
        return Err(format!("id {id} is in use: its container lives and has lost its shim (adopt it)"));
    }
    Err(format!("id {id} is in use by a container that has ended: {}", dir.display()))
}

fn serve(setup: Setup, ready: &mut Ready) -> Result<(), String> {
    let mut both = Ready(ready.0.take());
    serve_and_tell(setup, &mut both, None)
}

fn serve_and_tell(setup: Setup, ready: &mut Ready, parent: Option<File>) -> Result<(), String> {
    let runtime = runtime()?;
    let dir = setup.dir.clone();
    let fresh = setup.fresh;
    let result: Result<(), String> = runtime.block_on(Box::pin(async {
        let mut shim = Shim::assemble(setup).await?;
        ready.tell("ok");
        if let Some(mut parent) = parent {
            let _ = parent.write_all(b"ok");
        }
        shim.run().await;
        Ok(())
    }));
    if let Err(message) = &result {
        ready.tell(message);
        if fresh {
            let _ = persist::remove_dir(&dir);
        }
    }
    // Nothing is worth waiting for: what matters is on disk.
    runtime.shutdown_background();
    result
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime, String> {
    crate::engine::idle::runtime().map_err(|e| format!("start the runtime: {e}"))
}

/// A serving shim.
pub(super) struct Shim {
    pub(super) container: Arc<Container>,
    server: ttrpc::r#async::Server,
    listening_tasks: Vec<tokio::task::JoinHandle<()>>,
    connections: Arc<tokio::sync::Semaphore>,
    ending: watch::Receiver<bool>,
    hup: crate::engine::signal::Signal,
    pub(super) args: Args,
    pub(super) kept: Kept,
    pub(super) upgrades: super::upgrade::Receiver,
}

/// What the main task does next.
enum Next {
    End,
    Reopen,
    Upgrade(super::upgrade::Request),
    LookAround,
    Used,
}

/// Descriptors that a successor needs.
pub(super) struct Kept {
    pub(super) lock: OwnedFd,
    pub(super) monitor: OwnedFd,
    pub(super) stdio: OwnedFd,
}

impl Shim {
    /// Makes everything out of a setup: a fresh shim, or one that adopts.
    async fn assemble(setup: Setup) -> Result<Self, String> {
        let reaper = Reaper::start().map_err(|e| format!("start to reap: {e}"))?;
        let container = if setup.args.adopt {
            let adopted = crate::engine::adopt::adopt(&setup.args.id, &setup.dir, reaper).await;
            adopted.map_err(|e| e.message)?
        } else {
            Container::new(&setup.args.id, &setup.dir, "native", reaper, 0)
        };
        let Setup { args, lock, monitor, stdio, attach, .. } = setup;
        container.set_attach_listener(attach);
        container.save();
        Self::serve(container, args, Kept { lock, monitor, stdio }).await
    }

    /// Starts to serve a container.
    pub(super) async fn serve(container: Arc<Container>, args: Args, kept: Kept) -> Result<Self, String> {
        let hup = signals::install().map_err(|e| format!("handle signals: {e}"))?;
        let waiting = Arc::new(Waiting::default());
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(|e| format!("copy a socket: {e}"));
        let listening = listen::listen(copy(&kept.monitor)?, copy(&kept.stdio)?, waiting.clone())
            .map_err(|e| format!("listen: {e}"))?;
        let (ending_sender, ending) = watch::channel(false);
        let mut service = Service::new(container.clone(), waiting, ending_sender);
        service.bundle = args.bundle.clone();
        service.runtime = args.runtime.clone();
        let upgrades = service.upgrade.take_receiver();
        let mut server = ttrpc::r#async::Server::new()
            .add_listener(listening.monitor)
            .register_service(create_monitor(Arc::new(service)));
        server.start().await.map_err(|e| format!("serve: {e}"))?;
        let (connections, listening_tasks) = (listening.connections, listening.tasks);
        Ok(Self { container, server, listening_tasks, connections, ending, hup, args, kept, upgrades })
    }

    /// Serves until the container is deleted or a client ends the shim.
    pub(super) async fn run(&mut self) {
        loop {
            let unused = self.container.lock().spec.is_none();
            let next = tokio::select! {
                _ = self.ending.wait_for(|e| *e) => Next::End,
                Some(()) = self.hup.recv() => Next::Reopen,
                Some(request) = self.upgrades.recv() => Next::Upgrade(request),
                () = tokio::time::sleep(ORPHANED), if unused => Next::LookAround,
                // It is used: a timer that is still set would wake an idle shim once for nothing.
                () = self.container.events.wait(0), if unused && self.container.events.last() == 0 => Next::Used,
            };
            match next {
                Next::End => break,
                Next::Reopen => {
                    if let Some(Err(error)) = self.container.hub().map(|hub| hub.reopen_logs()) {
                        eprintln!("reopen logs of {}: {error}", self.container.id);
                    }
                }
                Next::Upgrade(request) => super::upgrade::run(self, request).await,
                Next::Used => {}
                Next::LookAround => {
                    let alone = self.connections.available_permits() == listen::CONNECTIONS_MAX;
                    // A create goes on without the client that asked for it.
                    let idle = self.container.lock().spec.is_none() && !self.container.is_being_created();
                    if alone && idle {
                        break;
                    }
                }
            }
        }
        self.stop_listening();
        // Answers under way are written; then connections are closed.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let _ = tokio::time::timeout(Duration::from_secs(2), self.server.disconnect()).await;
        // After a delete the path may belong to the next container of this id already.
        if self.dir_is_ours() {
            for name in ["monitor.sock", "stdio.sock", "attach.sock"] {
                let _ = std::fs::remove_file(self.container.dir.join(name));
            }
            if self.container.lock().spec.is_none() {
                // Nothing was ever created here.
                let _ = persist::remove_dir(&self.container.dir);
            }
        }
    }

    /// Whether the path of the state directory still leads to the directory this shim has locked.
    fn dir_is_ours(&self) -> bool {
        let locked = nix::sys::stat::fstat(&self.kept.lock);
        let there = std::fs::symlink_metadata(&self.container.dir);
        matches!((locked, there), (Ok(a), Ok(b)) if a.st_dev == b.dev() && a.st_ino == b.ino())
    }

    fn stop_listening(&mut self) {
        for task in self.listening_tasks.drain(..) {
            task.abort();
        }
    }
}
