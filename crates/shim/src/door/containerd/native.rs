//! The native protocol for containers of this door: `pintle ps`, `stats`, `inspect`, `kill` and the like see them.
//!
//! Making and deleting containers, and their streams, stay containerd's: those calls answer that they are not offered.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use pintle_core::wall::WallTime;
use pintle_proto::monitor as wire;
use pintle_proto::monitor::service::{Monitor, create_monitor};
use pintle_sys::seqpacket::{SocketKind, bind_at, open_dir};
use pintle_sys::{clock, process};
use protobuf::MessageField;
use tokio::time::timeout;
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, TtrpcContext};

use super::container::{Container, Freeze, Shared, lock};
use super::error::TaskError;
use super::logger::now;
use super::process::{Phase, Process, ProcessExit};
use super::server::accept;
use super::task::detached;
use crate::door::guard::Limits;
use crate::door::native::args::default_root;
use crate::door::native::convert;
use crate::engine::persist::{STATE_FILE, STATE_VERSION, StateFile, VERSION, write_visible};
use crate::engine::stats::Stats;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// The native socket and its directory; empty where it is turned off or cannot be made.
pub(super) struct Native {
    dir: Option<PathBuf>,
    // Ends with the process.
    _server: Option<Server>,
}

impl Native {
    /// Registers the shim. Whatever fails is logged: the container matters more than who looks at it.
    pub(super) async fn open(shared: &Arc<Shared>, id: &str, bundle: &Path) -> Self {
        let off = Self { dir: None, _server: None };
        if std::env::var_os("PINTLE_NATIVE").is_some_and(|v| v == "0") {
            return off;
        }
        let made = match make_dir(&shared.namespace, id) {
            Ok(dir) => serve(shared, id, bundle, &dir).await.map(|server| (dir, server)),
            Err(e) => Err(e),
        };
        match made {
            Ok((dir, server)) => Self { dir: Some(dir), _server: Some(server) },
            Err(e) => {
                shared.logger.warning(format!("serve the native protocol: {e}"));
                off
            }
        }
    }

    pub(super) fn dir(&self) -> Option<PathBuf> {
        self.dir.clone()
    }

    /// Takes the directory away; the container is history then.
    pub(super) fn close(&self) {
        if let Some(dir) = &self.dir {
            // `delete` may have been first.
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// The directory of the id; with the namespace before it where another namespace has the id already.
fn make_dir(namespace: &str, id: &str) -> io::Result<PathBuf> {
    let root = default_root();
    DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
    for name in [id.to_owned(), format!("{namespace}.{id}")] {
        let dir = root.join(name);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            Err(_) => {}
        }
        let held = open_dir(&dir)?;
        let socket = format!("/proc/self/fd/{}/monitor.sock", std::os::fd::AsRawFd::as_raw_fd(&held));
        // Of a shim that was killed: nobody listens. One that is being made has no socket yet, but its id is another's.
        if matches!(UnixStream::connect(socket), Err(e) if e.kind() == io::ErrorKind::ConnectionRefused) {
            fs::remove_dir_all(&dir)?;
            DirBuilder::new().mode(0o700).create(&dir)?;
            return Ok(dir);
        }
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{id} is in use below {}", root.display())))
}

async fn serve(shared: &Arc<Shared>, id: &str, bundle: &Path, dir: &Path) -> io::Result<Server> {
    let held = open_dir(dir)?;
    let socket = bind_at(held.as_fd(), "monitor.sock", SocketKind::Stream, 0o600, BACKLOG)?;
    let service = Arc::new(Service {
        shared: Arc::downgrade(shared),
        id: id.to_owned(),
        bundle: bundle.to_path_buf(),
        since: now(),
    });
    service.save(dir)?;
    let mut touched = shared.touched.subscribe();
    let (saving, dir) = (service.clone(), dir.to_path_buf());
    tokio::spawn(async move {
        while touched.changed().await.is_ok() {
            // A snapshot for who finds no shim any more; the socket tells what is.
            let _ = saving.save(&dir);
        }
    });
    let incoming = accept(
        UnixListener::from(socket),
        Limits::NATIVE,
        Arc::new(AtomicUsize::new(0)),
        shared.logger.clone(),
    )
    .map_err(io::Error::other)?;
    let mut server =
        Server::new().register_service(create_monitor(service)).add_listener(Listener::new(incoming));
    server.start().await.map_err(io::Error::other)?;
    Ok(server)
}

struct Service {
    shared: Weak<Shared>,
    id: String,
    bundle: PathBuf,
    since: WallTime,
}

type Answer<T> = ttrpc::Result<T>;

impl Service {
    fn find(&self) -> Option<Arc<Container>> {
        lock(&self.shared.upgrade()?.containers).get(&self.id).cloned()
    }

    fn container(&self) -> Result<Arc<Container>, TaskError> {
        self.find().ok_or_else(|| TaskError::not_found(format!("container {} is not created", self.id)))
    }

    fn save(&self, dir: &Path) -> io::Result<()> {
        let state = self.snapshot();
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let pid = i32::try_from(state.pid).unwrap_or(0);
        let file = StateFile {
            version: STATE_VERSION,
            id: self.id.clone(),
            door: "containerd".to_owned(),
            shim_pid: own,
            shim_pid_start: process::start_time(own),
            boot_id: clock::boot_id(),
            status: match state.status.enum_value_or_default() {
                wire::Status::CREATED => "created",
                wire::Status::RUNNING => "running",
                wire::Status::PAUSED => "paused",
                wire::Status::STOPPED => "stopped",
                _ => "creating",
            }
            .to_owned(),
            pid,
            pid_start: state.pid_start,
            bundle: state.bundle,
            log_path: String::new(),
            terminal: state.terminal,
            created_at: state.created_at,
            started_at: state.started_at,
            last_event: 0,
            stdout_inode: 0,
            stderr_inode: 0,
            spec: None,
        };
        let bytes = serde_json::to_vec(&file).map_err(io::Error::other)?;
        write_visible(&dir.join(STATE_FILE), &bytes, 0o600)
    }

    fn snapshot(&self) -> wire::StateResponse {
        let mut out = wire::StateResponse {
            id: self.id.clone(),
            status: wire::Status::CREATING.into(),
            bundle: self.bundle.to_string_lossy().into_owned(),
            io: MessageField::some(wire::IoCounters::default()),
            ..Default::default()
        };
        let Some(container) = self.find() else { return out };
        let (freeze, kills) = {
            let state = container.lock();
            (state.freeze, state.oom_kills)
        };
        out.oom = MessageField::some(wire::OomCounters { oom_kills: kills, ..Default::default() });
        out.runtime = MessageField::some(wire::RuntimeOptions {
            path: container.options.binary.clone(),
            root: container.options.state_root(&container.shared.namespace),
            systemd_cgroup: container.options.systemd_cgroup,
            ..Default::default()
        });
        out.cgroup = container.cgroups().path().unwrap_or_default().to_owned();
        out.execs = container
            .execs()
            .iter()
            .map(|exec| {
                let state = exec.lock();
                wire::ExecState {
                    exec_id: exec.exec_id.clone(),
                    pid: convert::unsigned(state.pid),
                    status: status(state.phase, Freeze::Thawed).into(),
                    exit: state.exit.map(|e| exit_of(e, state.started_at, false)).into(),
                    terminal: exec.wanted.terminal,
                    ..Default::default()
                }
            })
            .collect();
        let state = container.init.lock();
        if let Some(stdio) = &state.stdio {
            let (read, lost) = stdio.counters();
            // The two streams are not told apart here.
            let lost_bytes = lost.iter().map(|(cause, bytes)| (cause.name(), bytes)).collect();
            out.io =
                MessageField::some(wire::IoCounters { stdout_bytes: read, lost_bytes, ..Default::default() });
        }
        out.status = status(state.phase, freeze).into();
        out.pid = convert::unsigned(state.pid);
        out.pid_start = process::start_time(state.pid);
        out.created_at = state.created_at.unix_nanos();
        out.started_at = state.started_at.map_or(0, WallTime::unix_nanos);
        out.exit = state.exit.map(|e| exit_of(e, state.started_at, kills > 0)).into();
        out.terminal = container.init.wanted.terminal;
        out
    }
}

fn status(phase: Phase, freeze: Freeze) -> wire::Status {
    match (phase, freeze) {
        (Phase::Created | Phase::Starting, _) => wire::Status::CREATED,
        (Phase::Running, Freeze::Paused) => wire::Status::PAUSED,
        (Phase::Running, _) => wire::Status::RUNNING,
        (Phase::Stopped, _) => wire::Status::STOPPED,
    }
}

fn exit_of(exit: ProcessExit, started: Option<WallTime>, kills: bool) -> wire::Exit {
    let mut out = wire::Exit {
        status: exit.status,
        // Only an end by the kernel's own signal can be the result of a kill for memory.
        oom_killed: kills && exit.how.signal() == Some(libc::SIGKILL),
        started_at: started.map_or(0, WallTime::unix_nanos),
        finished_at: exit.at.unix_nanos(),
        boot_id: clock::boot_id(),
        ..Default::default()
    };
    convert::how(&mut out, exit.how);
    out
}

#[async_trait]
impl Monitor for Service {
    async fn info(&self, _: &TtrpcContext, _: wire::InfoRequest) -> Answer<wire::InfoResponse> {
        Ok(wire::InfoResponse {
            version: VERSION.to_owned(),
            protocol: pintle_proto::PROTOCOL_MINOR,
            pid: std::process::id(),
            id: self.id.clone(),
            door: "containerd".to_owned(),
            abilities: vec!["stats".to_owned()],
            state_version: STATE_VERSION,
            started_at: self.since.unix_nanos(),
            ..Default::default()
        })
    }

    async fn state(&self, _: &TtrpcContext, _: wire::StateRequest) -> Answer<wire::StateResponse> {
        Ok(self.snapshot())
    }

    async fn wait(&self, _: &TtrpcContext, request: wire::WaitRequest) -> Answer<wire::WaitResponse> {
        let container = self.container()?;
        let process: Arc<Process> = container.process(&request.exec_id)?;
        let limit = match request.timeout_ms {
            0 => Duration::MAX,
            ms => Duration::from_millis(ms),
        };
        let ended = timeout(limit, process.wait()).await;
        let ended = ended.map_err(|_| TaskError::deadline(format!("{} has not ended", self.id)))?;
        let exit = ended.ok_or_else(|| TaskError::precondition("the process did not start"))?;
        let kills = request.exec_id.is_empty() && container.lock().oom_kills > 0;
        let exit = exit_of(exit, process.lock().started_at, kills);
        Ok(wire::WaitResponse { exit: MessageField::some(exit), ..Default::default() })
    }

    async fn kill(&self, _: &TtrpcContext, request: wire::KillRequest) -> Answer<wire::KillResponse> {
        let container = self.container()?;
        detached(async move { container.kill(&request.exec_id, request.signal, request.all).await }).await?;
        Ok(wire::KillResponse::new())
    }

    async fn pause(&self, _: &TtrpcContext, _: wire::PauseRequest) -> Answer<wire::PauseResponse> {
        let container = self.container()?;
        detached(async move { container.pause().await }).await?;
        Ok(wire::PauseResponse::new())
    }

    async fn resume(&self, _: &TtrpcContext, _: wire::ResumeRequest) -> Answer<wire::ResumeResponse> {
        let container = self.container()?;
        detached(async move { container.resume().await }).await?;
        Ok(wire::ResumeResponse::new())
    }

    async fn update(&self, _: &TtrpcContext, request: wire::UpdateRequest) -> Answer<wire::UpdateResponse> {
        let container = self.container()?;
        detached(async move { container.update(request.resources_json.as_bytes()).await }).await?;
        Ok(wire::UpdateResponse::new())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: wire::ResizePtyRequest,
    ) -> Answer<wire::ResizePtyResponse> {
        let (rows, columns) = convert::pair(request.rows, request.columns);
        self.container()?.resize(&request.exec_id, rows, columns)?;
        Ok(wire::ResizePtyResponse::new())
    }

    async fn stats(&self, _: &TtrpcContext, _: wire::StatsRequest) -> Answer<wire::StatsResponse> {
        let container = self.container()?;
        let pid = i32::try_from(container.pid()).unwrap_or(0);
        Ok(convert::stats(&Stats::read(&container.cgroups(), pid)))
    }
}
