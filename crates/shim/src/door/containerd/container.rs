//! A container: its life from create to delete, and the order of its events.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pintle_core::runtime::RuntimeOp;
use pintle_core::wall::MonoTime;
use pintle_proto::containerd::task::CreateTaskRequest;
use pintle_proto::containerd::task_events::{TaskCreate, TaskExit, TaskIO, TaskOOM};
use pintle_sys::atomic::{Durability, write};
use pintle_sys::clock;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::args::check_name;
use super::error::{Result, TaskError};
use super::logger::Logger;
use super::mounts;
use super::options::Options;
use super::paths::Bundle;
use super::process::{Phase, Process, ProcessExit};
use super::publisher::{Publisher, timestamp};
use super::runtime;
use super::stdio::{Owner, Stdio, Wanted};
use crate::engine::cgroup::Cgroups;
use crate::engine::console::{ConsoleError, ConsoleSocket};
use crate::engine::oom::OomWatch;
use crate::engine::reap::Reaper;
use crate::engine::runtime::{RunIo, RunOutput, RuntimeCli, RuntimeError};

/// How long an end may be held back for output: as long as some moves or waits for its client, and not longer than this.
pub(super) const SETTLE: Duration = Duration::from_secs(2);
/// Without a byte for this long, the output is taken to be held open by somebody else.
pub(super) const QUIET: Duration = Duration::from_millis(100);
/// How long Delete waits for output that others hold open.
pub(super) const DRAIN: Duration = Duration::from_secs(10);
/// How long a runtime may take to send a terminal after it has ended.
const CONSOLE: Duration = Duration::from_secs(30);
/// What all containers of a server share.
pub(super) struct Shared {
    pub(super) namespace: String,
    pub(super) reaper: Reaper,
    pub(super) publisher: Publisher,
    pub(super) logger: Logger,
    /// Nobody takes events: the caller is CRI-O.
    pub(super) no_events: bool,
    pub(super) containers: Mutex<BTreeMap<String, Arc<Container>>>,
    /// Ids that are being created.
    pub(super) creating: Mutex<std::collections::BTreeSet<String>>,
    /// Grows with each change that a waiting idle check wants to know of.
    pub(super) touched: watch::Sender<u64>,
}

impl Shared {
    /// The container, or the error its absence is.
    pub(super) fn get(&self, id: &str) -> Result<Arc<Container>> {
        let found = lock(&self.containers).get(id).cloned();
        found.ok_or_else(|| TaskError::not_found("container not created"))
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the container is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freeze {
    Thawed,
    Pausing,
    Paused,
}

/// What changes about a container beside its processes.
pub(super) struct ContainerState {
    pub(super) freeze: Freeze,
    /// The end of init was seen, though not told yet: no exec may start.
    pub(super) init_ended: bool,
    /// The end of init was told, or will not be.
    pub(super) reported: bool,
    /// Execs that are being started or run.
    pub(super) active: usize,
    /// Starts of init under way.
    pub(super) starting: bool,
    pub(super) deleted: bool,
    /// Nothing more is to be published for it.
    pub(super) muted: bool,
    cgroups: Arc<Cgroups>,
    pub(super) oom: Option<Arc<OomWatch>>,
    pub(super) oom_kills: u64,
    /// Ends with the container, also with one whose create fails late.
    pub(super) oom_task: Option<OomTask>,
}

/// The task that follows a container's memory. Its descriptors are the container's, and the shim may have others for a long
/// time yet.
pub(super) struct OomTask(AbortHandle);

impl Drop for OomTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Restore instead of create.
pub(super) struct Restore {
    pub(super) image: String,
    pub(super) parent: String,
}

/// A container.
pub(super) struct Container {
    pub(super) id: String,
    pub(super) bundle: Bundle,
    pub(super) shared: Arc<Shared>,
    pub(super) options: Options,
    pub(super) cli: RuntimeCli,
    pub(super) init: Arc<Process>,
    pub(super) restore: Option<Restore>,
    /// One state-changing call of the runtime at a time; kill and exec go beside it.
    pub(super) ops: tokio::sync::Mutex<()>,
    pub(super) private_pids: bool,
    pub(super) execs: Mutex<BTreeMap<String, Arc<Process>>>,
    state: Mutex<ContainerState>,
    changed: watch::Sender<()>,
    /// The container's ends of its streams, between Create and the Start of a restore.
    pub(super) pending: Mutex<Option<RunIo>>,
}

/// The parts of the specification that matter here.
#[derive(Debug, Default, serde::Deserialize)]
struct Spec {
    #[serde(default)]
    linux: SpecLinux,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecLinux {
    #[serde(default)]
    namespaces: Vec<SpecNamespace>,
    #[serde(default)]
    cgroups_path: String,
}

#[derive(Debug, serde::Deserialize)]
struct SpecNamespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

fn read_spec(bundle: &Bundle) -> Option<Spec> {
    serde_json::from_slice(&fs::read(bundle.config()).ok()?).ok()
}

/// The specification of a bundle, and its bytes as the options of a mount.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz_config(bundle: &Path) {
    let bundle = Bundle(bundle.to_path_buf());
    if let Some(spec) = read_spec(&bundle) {
        Options::default().look_at_spec(&spec.linux.cgroups_path);
    }
    mounts::fuzz(&String::from_utf8_lossy(&fs::read(bundle.config()).unwrap_or_default()));
}

/// Keeps an id from being created twice at a time.
struct Reservation {
    shared: Arc<Shared>,
    id: String,
}

impl Reservation {
    fn take(shared: &Arc<Shared>, id: &str) -> Result<Self> {
        let exists = lock(&shared.containers).contains_key(id);
        if exists || !lock(&shared.creating).insert(id.to_owned()) {
            return Err(TaskError::exists(format!("container {id}")));
        }
        Ok(Self { shared: shared.clone(), id: id.to_owned() })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        lock(&self.shared.creating).remove(&self.id);
    }
}

impl Container {
    /// Create.
    pub(super) async fn create(shared: &Arc<Shared>, request: CreateTaskRequest) -> Result<Arc<Self>> {
        check_name("id", &request.id).map_err(TaskError::invalid)?;
        let reservation = Reservation::take(shared, &request.id)?;
        let any = request.options.clone().into_option().unwrap_or_default();
        let mut options = Options::decode(&any)?
            .ok_or_else(|| TaskError::invalid(format!("unknown options {}", any.type_url)))?;
        let bundle = Bundle(PathBuf::from(&request.bundle));
        let spec = read_spec(&bundle);
        options.look_at_spec(spec.as_ref().map_or("", |s| s.linux.cgroups_path.as_str()));
        // A specification that cannot be read is taken for one whose processes do not end with init.
        let private_pids =
            spec.is_some_and(|s| s.linux.namespaces.iter().any(|n| n.kind == "pid" && n.path.is_empty()));
        keep_options(&bundle, &options)?;
        mounts::mount_all(&request.rootfs, bundle.rootfs(), &shared.reaper).await?;
        let wanted = Wanted {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let cli = runtime::cli(&options, &shared.namespace, &request.id, &bundle, shared.reaper.clone());
        let restore = (!request.checkpoint.is_empty()).then(|| Restore {
            image: request.checkpoint.clone(),
            parent: request.parent_checkpoint.clone(),
        });
        let container = Arc::new(Self {
            id: request.id.clone(),
            bundle,
            shared: shared.clone(),
            options,
            cli,
            init: Arc::new(Process::new("", wanted, Vec::new())),
            restore,
            ops: tokio::sync::Mutex::default(),
            private_pids,
            execs: Mutex::default(),
            state: Mutex::new(ContainerState {
                freeze: Freeze::Thawed,
                init_ended: false,
                reported: false,
                active: 0,
                starting: false,
                deleted: false,
                muted: false,
                cgroups: Arc::default(),
                oom: None,
                oom_kills: 0,
                oom_task: None,
            }),
            changed: watch::channel(()).0,
            pending: Mutex::default(),
        });
        let since = clock::mono();
        if let Err(error) = container.make().await {
            container.undo().await;
            return Err(error);
        }
        let event = TaskCreate {
            container_id: request.id.clone(),
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: Some(TaskIO {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
                ..Default::default()
            })
            .into(),
            checkpoint: request.checkpoint,
            pid: container.pid(),
            ..Default::default()
        };
        lock(&shared.containers).insert(request.id, container.clone());
        drop(reservation);
        shared.touched.send_modify(|n| *n += 1);
        shared.publisher.send("/tasks/create", &event);
        if container.restore.is_none() {
            container.supervise_init(since);
        }
        Ok(container)
    }

    /// Streams, and then the runtime's create.
    async fn make(self: &Arc<Self>) -> Result<()> {
        let (stdio, io) = Stdio::open(&self.init.wanted, self.owner(&self.id)).await?;
        self.init.lock().stdio = Some(stdio.clone());
        if self.restore.is_some() {
            *lock(&self.pending) = Some(io);
            return Ok(());
        }
        // An older life of the bundle.
        let _ = fs::remove_file(self.bundle.init_pid());
        let op = |console: Option<&Path>| RuntimeOp::Create {
            bundle: path_bytes(&self.bundle.0),
            pid_file: path_bytes(&self.bundle.init_pid()),
            console_socket: console.map(path_bytes),
            no_pivot: self.options.no_pivot,
            no_new_keyring: self.options.no_new_keyring,
            extra: Vec::new(),
        };
        let since = clock::mono();
        let ran = self.run_with_console(&self.init, &stdio, op, io).await?;
        let pid = self.cli.read_pid_file(&ran, &self.bundle.init_pid()).map_err(|e| runtime::failure(&e))?;
        self.found_init(pid, since);
        Ok(())
    }

    /// Everything that depends on the pid of init, which the runtime started after `since`.
    pub(super) fn found_init(self: &Arc<Self>, pid: i32, since: MonoTime) {
        self.init.set_pid(pid, &self.shared.reaper, since);
        let cgroups = Arc::new(Cgroups::of(pid));
        let oom = OomWatch::open(&cgroups).map(Arc::new);
        if let Some(e) = oom.as_ref().and_then(|watch| watch.deaf()) {
            self.shared.logger.warning(format!("watch for OOM kills: {e}; they are counted at the end"));
        }
        {
            let mut state = self.lock();
            state.cgroups = cgroups;
            state.oom = oom.clone();
        }
        if let Some(watch) = oom {
            let weak = Arc::downgrade(self);
            let task = tokio::spawn(async move {
                loop {
                    let kills = watch.next().await;
                    let Some(container) = weak.upgrade() else { return };
                    container.tell_oom(kills);
                }
            });
            self.lock().oom_task = Some(OomTask(task.abort_handle()));
        }
    }

    /// Runs a call that starts a process, and takes its terminal where it has one. Gives the call back.
    pub(super) async fn run_with_console(
        &self,
        process: &Process,
        stdio: &Arc<Stdio>,
        op: impl Fn(Option<&Path>) -> RuntimeOp,
        io: RunIo,
    ) -> Result<RuntimeOp> {
        if !process.wanted.terminal {
            let op = op(None);
            self.run_op(&op, io).await?;
            return Ok(op);
        }
        let failed = |e: ConsoleError| TaskError::unknown(e.to_string());
        let socket = ConsoleSocket::bind(None).map_err(failed)?;
        let op = op(Some(socket.path()));
        let got = {
            let receive = socket.receive(Duration::MAX);
            tokio::pin!(receive);
            let run = self.run_op(&op, io);
            tokio::pin!(run);
            let mut early = None;
            loop {
                tokio::select! {
                    biased;
                    ended = &mut run => {
                        ended?;
                        break;
                    }
                    got = &mut receive, if early.is_none() => early = Some(got),
                }
            }
            match early {
                Some(got) => got,
                None => timeout(CONSOLE, receive)
                    .await
                    .map_err(|_| TaskError::deadline("the runtime sent no terminal"))?,
            }
        };
        let master = got.map_err(failed)?;
        stdio.attach_terminal(master, process.lock().size)?;
        Ok(op)
    }

    /// Runs a call of the runtime, its failure in containerd's words.
    pub(super) async fn run_op(&self, op: &RuntimeOp, io: RunIo) -> Result<RunOutput> {
        self.cli.run(op, io).await.map_err(|e| runtime::failure(&e))
    }

    /// Runs a call and keeps the failure as it is.
    pub(super) async fn try_op(&self, op: &RuntimeOp) -> std::result::Result<RunOutput, RuntimeError> {
        self.cli.run(op, RunIo::default()).await
    }

    /// Takes back what a failed create left.
    async fn undo(&self) {
        if runtime::known(&self.cli, &self.id) {
            if let Err(e) = self.try_op(&RuntimeOp::Delete { force: true }).await {
                self.shared.logger.warning(format!("take back a failed create: {e}"));
            }
        }
        if let Some(stdio) = self.init.stdio() {
            stdio.close();
        }
        if let Err(e) = mounts::unmount_all(self.bundle.rootfs()).await {
            self.shared.logger.warning(format!("unmount the root file system of a failed create: {e}"));
        }
    }

    pub(super) fn owner<'a>(&'a self, id: &'a str) -> Owner<'a> {
        Owner {
            id,
            namespace: &self.shared.namespace,
            uid: self.options.io_uid,
            gid: self.options.io_gid,
            reaper: &self.shared.reaper,
            logger: &self.shared.logger,
        }
    }

    /// The state, for a moment: never hold it over an await.
    pub(super) fn lock(&self) -> MutexGuard<'_, ContainerState> {
        lock(&self.state)
    }

    pub(super) fn cgroups(&self) -> Arc<Cgroups> {
        self.lock().cgroups.clone()
    }

    /// Pid of init, 0 before there is one.
    pub(super) fn pid(&self) -> u32 {
        u32::try_from(self.init.lock().pid).unwrap_or(0)
    }

    pub(super) fn notify(&self) {
        self.changed.send_replace(());
    }

    pub(super) async fn until(&self, ready: impl Fn(&ContainerState) -> bool) {
        let mut changed = self.changed.subscribe();
        while !ready(&self.lock()) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Init for an empty exec id.
    pub(super) fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        let found = lock(&self.execs).get(exec_id).cloned();
        found.ok_or_else(|| TaskError::not_found(format!("process does not exist {exec_id}")))
    }

    /// All execs.
    pub(super) fn execs(&self) -> Vec<Arc<Process>> {
        lock(&self.execs).values().cloned().collect()
    }

    pub(super) fn publish_exit(&self, process: &Process, exit: ProcessExit) {
        let id = if process.exec_id.is_empty() { &self.id } else { &process.exec_id };
        let event = TaskExit {
            container_id: self.id.clone(),
            id: id.clone(),
            pid: u32::try_from(process.lock().pid).unwrap_or(0),
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        };
        self.shared.publisher.send("/tasks/exit", &event);
    }

    pub(super) fn tell_oom(&self, kills: u64) {
        {
            let mut state = self.lock();
            state.oom_kills += kills;
            if state.muted {
                return;
            }
        }
        // CRI-O takes no events and looks for this.
        if let Err(e) = fs::write(self.bundle.oom(), b"") {
            self.shared.logger.warning(format!("write {}: {e}", self.bundle.oom().display()));
        }
        let event = TaskOOM { container_id: self.id.clone(), ..Default::default() };
        self.shared.publisher.send("/tasks/oom", &event);
    }
}

/// The word for a state in messages.
pub(super) fn phase_word(phase: Phase, freeze: Freeze) -> &'static str {
    match (phase, freeze) {
        (Phase::Created | Phase::Starting, _) => "created",
        (Phase::Running, Freeze::Thawed) => "running",
        (Phase::Running, _) => "paused",
        (Phase::Stopped, _) => "stopped",
    }
}

pub(super) fn path_bytes(path: &Path) -> Vec<u8> {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()).to_vec()
}

fn keep_options(bundle: &Bundle, options: &Options) -> Result<()> {
    let path = bundle.options();
    let bytes = serde_json::to_vec(options).unwrap_or_default();
    write(&path, &bytes, 0o600, Durability::Visible)
        .map_err(|e| TaskError::io(format!("write {}", path.display()), e))
}
