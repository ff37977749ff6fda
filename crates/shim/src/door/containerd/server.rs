//! The server: one process, one thread, the socket that `start` made.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use pintle_proto::containerd::{TASK_V2, TASK_V3, task_ttrpc};
use pintle_sys::atomic::{Durability, write};
use pintle_sys::{peer, process};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc, watch};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use super::args::Args;
use super::container::{Shared, lock};
use super::delete::ShimFile;
use super::logger::Logger;
use super::native::Native;
use super::paths::Bundle;
use super::publisher::Publisher;
use super::task::TaskService;
use crate::door::guard::{Guarded, Limits};
use crate::door::native::signals::swallow_all;
use crate::engine::reap::Reaper;
use crate::engine::signal::signal;

/// A server that nobody uses ends by itself: containerd 1.6 leaves one behind when it cannot connect.
const IDLE: Duration = Duration::from_secs(300);
/// How long the last events may take at the end.
const FLUSH: Duration = Duration::from_secs(5);

/// Runs the server until it is told to end.
pub(super) fn run(args: &Args) -> Result<(), String> {
    // Not the leader of a group where a caller of ours made it one already.
    let _ = nix::unistd::setsid();
    let listener = take_listener()?;
    let said = io::stdout().as_fd().try_clone_to_owned().map_err(|e| format!("keep standard output: {e}"))?;
    let bundle = Bundle(std::env::current_dir().map_err(|e| format!("find the working directory: {e}"))?);
    let logger = Logger::open(&bundle.log(), args.debug, &args.namespace, &args.id);
    detach(&logger)?;
    let runtime = crate::engine::idle::runtime();
    let runtime = runtime.map_err(|e| format!("start the event loop: {e}"))?;
    runtime.block_on(Box::pin(serve(args, bundle, logger, listener, said)))
}

/// The socket is standard input, so that no descriptor number has to be trusted.
fn take_listener() -> Result<StdListener, String> {
    let fd: OwnedFd =
        io::stdin().as_fd().try_clone_to_owned().map_err(|e| format!("take the socket: {e}"))?;
    let is_socket = nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::AcceptConn).unwrap_or(false);
    if !is_socket {
        return Err(
            "standard input is no listening socket: the server is started by the start action".to_owned()
        );
    }
    let listener = StdListener::from(fd);
    listener.set_nonblocking(true).map_err(|e| format!("take the socket: {e}"))?;
    Ok(listener)
}

/// Standard streams lead nowhere, except that panics reach the daemon's log.
fn detach(logger: &Logger) -> Result<(), String> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(|e| format!("open /dev/null: {e}"))?;
    let failed = |e: nix::errno::Errno| format!("detach standard streams: {e}");
    nix::unistd::dup2_stdin(&null).map_err(failed)?;
    nix::unistd::dup2_stdout(&null).map_err(failed)?;
    nix::unistd::dup2_stderr(logger.file().unwrap_or(&null)).map_err(failed)
}

async fn serve(
    args: &Args,
    bundle: Bundle,
    logger: Logger,
    listener: StdListener,
    said: OwnedFd,
) -> Result<(), String> {
    // Operators send SIGUSR1 to containerd's own shims to have their stacks printed; SIGTERM and SIGINT are taken below.
    swallow_all();
    let mut said = std::fs::File::from(said);
    let made = make(args, &bundle, &logger, listener).await;
    let text = match &made {
        Ok(_) => "ok\n".to_owned(),
        Err(message) => format!("{message}\n"),
    };
    // Without a start process to hear it, there is nobody to serve either; it will be seen by the idle check.
    let _ = said.write_all(text.as_bytes());
    drop(said);
    let running = made?;
    running.until_end(&logger).await;
    // All names go first: `delete` may run at once and must not take us for hung, and while the last events are on
    // their way a new container may come under the same id. What is gone already, `delete` took.
    let _ = std::fs::remove_file(bundle.shim());
    if !args.socket.is_empty() {
        let _ = std::fs::remove_file(&args.socket);
    }
    running.native.close();
    running.shared.publisher.flush(FLUSH).await;
    Ok(())
}

struct Running {
    shared: Arc<Shared>,
    shutdown: Arc<Notify>,
    connections: Arc<AtomicUsize>,
    native: Native,
    // Ends the accept loop when dropped.
    _server: Server,
}

async fn make(
    args: &Args,
    bundle: &Bundle,
    logger: &Logger,
    listener: StdListener,
) -> Result<Running, String> {
    let reaper = Reaper::start().map_err(|e| format!("start to reap children: {e}"))?;
    let ttrpc = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    let publisher = Publisher::start(
        &args.namespace,
        &ttrpc,
        &args.address,
        &args.publish_binary,
        logger.clone(),
        reaper.clone(),
    );
    let shared = Arc::new(Shared {
        namespace: args.namespace.clone(),
        reaper,
        no_events: ttrpc.is_empty() && args.address.is_empty(),
        publisher,
        logger: logger.clone(),
        containers: Mutex::default(),
        creating: Mutex::default(),
        touched: watch::channel(0).0,
    });
    let native = Native::open(&shared, &args.id, &bundle.0).await;
    keep_shim(args, bundle, native.dir())?;
    let shutdown = Arc::new(Notify::new());
    let service = Arc::new(TaskService { shared: shared.clone(), shutdown: shutdown.clone() });
    let mut services = task_ttrpc::create_task(service.clone());
    // The third version is the second under another name.
    if let Some(methods) = task_ttrpc::create_task(service).remove(TASK_V2) {
        services.insert(TASK_V3.to_owned(), methods);
    }
    let connections = Arc::new(AtomicUsize::new(0));
    let incoming = accept(listener, Limits::CONTAINERD, connections.clone(), logger.clone())?;
    let mut server = Server::new().register_service(services).add_listener(Listener::new(incoming));
    server.start().await.map_err(|e| format!("serve: {e}"))?;
    Ok(Running { shared, shutdown, connections, native, _server: server })
}

fn keep_shim(args: &Args, bundle: &Bundle, native: Option<PathBuf>) -> Result<(), String> {
    let pid = i32::try_from(std::process::id()).unwrap_or(0);
    let file = ShimFile { pid, start: process::start_time(pid), socket: args.socket.clone(), native };
    let bytes = serde_json::to_vec(&file).map_err(|e| format!("encode shim file: {e}"))?;
    let path = bundle.shim();
    write(&path, &bytes, 0o600, Durability::Visible).map_err(|e| format!("write {}: {e}", path.display()))
}

impl Running {
    async fn until_end(&self, logger: &Logger) {
        let (Ok(mut term), Ok(mut int)) = (signal(libc::SIGTERM), signal(libc::SIGINT)) else {
            return self.shutdown.notified().await;
        };
        let mut touched = self.shared.touched.subscribe();
        loop {
            tokio::select! {
                () = self.shutdown.notified() => {
                    // The answer goes out before the process does; nobody minds if it does not.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    return;
                }
                _ = term.recv() => {}
                _ = int.recv() => {}
                _ = touched.changed() => continue,
                () = tokio::time::sleep(IDLE) => {
                    if !self.in_use() && self.connections.load(Ordering::Relaxed) == 0 {
                        logger.info("ends: no container and no client");
                        return;
                    }
                    continue;
                }
            }
            if !self.in_use() {
                logger.info("ends by signal");
                return;
            }
            // containerd would take our end for the container's and kill it.
            logger.warning("signal ignored: a container lives");
        }
    }

    fn in_use(&self) -> bool {
        !lock(&self.shared.containers).is_empty() || !lock(&self.shared.creating).is_empty()
    }
}

/// Counts a connection while it is open.
pub(super) struct Count(Arc<AtomicUsize>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

type Connection = Guarded<UnixStream, Count>;

/// Accepts for ever; peers that are neither root nor us are turned away.
pub(super) fn accept(
    listener: StdListener,
    limits: Limits,
    count: Arc<AtomicUsize>,
    logger: Logger,
) -> Result<impl futures_core::Stream<Item = io::Result<Connection>> + Send + 'static, String> {
    let listener = UnixListener::from_std(listener).map_err(|e| format!("watch the socket: {e}"))?;
    let (sender, receiver) = mpsc::channel(16);
    let total = Arc::default();
    tokio::spawn(async move {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Out of descriptors: it may pass.
                    logger.warning(format!("accept: {e}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if !peer::credentials(&stream).is_ok_and(peer::allowed) {
                logger.warning("connection refused: the peer is somebody else");
                continue;
            }
            count.fetch_add(1, Ordering::Relaxed);
            let stream = Guarded::new(stream, limits, Arc::clone(&total), Count(count.clone()));
            if sender.send(Ok(stream)).await.is_err() {
                return;
            }
        }
    });
    Ok(Incoming(receiver))
}

struct Incoming(mpsc::Receiver<io::Result<Connection>>);

impl futures_core::Stream for Incoming {
    type Item = io::Result<Connection>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}
