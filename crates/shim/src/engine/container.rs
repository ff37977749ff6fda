//! One container under the shim: creation, start, end, and what is known about it at any time.
//!
//! State is a plain snapshot behind a short lock; no lock is held over an await except the one that serialises
//! operations. What a client asks for runs to its end even if that client goes: the doors spawn it.

use super::attach::AttachOptions;
use super::cgroup::Cgroups;
use super::console::ConsoleSocket;
use super::events::{EventKind, EventRing};
use super::exec::Exec;
use super::failure::{Failure, FailureKind};
use super::foreign::StartMark;
use super::hub::{Hub, HubConfig, HubEvent};
use super::logs;
use super::oom::OomWatch;
use super::persist;
use super::reap::{ExitWatch, Reaper};
use super::rundown;
use super::runtime::{RunIo, RuntimeCli};
use super::spec::{BundleFacts, CreateSpec};
use super::stdio;
use super::stop::StopHandle;
use pintle_core::life::{Call, Life, Step};
use pintle_core::record::ExitRecord;
use pintle_core::runtime::RuntimeOp;
use pintle_core::wall::WallTime;
use pintle_sys::pidfd::PidFd;
use pintle_sys::{clock, process};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How long after an OOM kill init is looked at: a killed one has ended by then, or is about to.
const OOM_SETTLES: std::time::Duration = std::time::Duration::from_millis(250);

/// What is known about a container that exists.
pub struct Inner {
    /// Where it is in its life.
    pub life: Life,
    /// The request that made it; `None` before create.
    pub spec: Option<CreateSpec>,
    /// What of config.json matters.
    pub facts: BundleFacts,
    /// init; 0 before create.
    pub pid: i32,
    /// Start time of init in clock ticks.
    pub pid_start: u64,
    /// The way to signal init.
    pub pidfd: Option<Arc<PidFd>>,
    /// Calls of the runtime.
    pub runtime: Option<RuntimeCli>,
    /// Its streams.
    pub hub: Option<Arc<Hub>>,
    /// Its cgroups, looked up after create.
    pub cgroups: Cgroups,
    /// The watch for OOM kills.
    pub oom: Option<Arc<OomWatch>>,
    /// When create was done.
    pub created_at: Option<WallTime>,
    /// When start was done.
    pub started_at: Option<WallTime>,
    /// The execs known.
    pub execs: BTreeMap<String, Arc<Exec>>,
    /// Ids of the execs that the runtime is starting.
    pub(super) starting_execs: BTreeSet<String>,
    /// A stop under way.
    pub stop: Option<StopHandle>,
    /// `attach.sock`, until there is a hub to serve it.
    pub attach: Option<OwnedFd>,
    /// Whether the runtime's exec takes `--cgroup`; `None` until asked.
    pub exec_cgroup: Option<bool>,
    /// The end of init as the reaper sees it; known before the record is.
    pub(super) end: Option<ExitWatch>,
    /// Inodes of the stdout and stderr pipes, by which an adopter finds them; 0 without.
    pub pipes: (u64, u64),
    /// How to see the start, if another door's engine does it; see [`Container::look`].
    pub(super) start_mark: Option<StartMark>,
}

/// A container; shared by the door, its supervising task and running calls.
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its state directory.
    pub dir: PathBuf,
    /// Name of the door, for `state.json`.
    pub door: &'static str,
    /// The reaper of this process.
    pub reaper: Reaper,
    /// What happened.
    pub events: EventRing,
    pub(super) inner: Mutex<Inner>,
    pub(super) ended: watch::Sender<Option<ExitRecord>>,
    /// One changing operation at a time; execs do not take it.
    pub(super) operation: tokio::sync::Mutex<()>,
    /// Read-locked by everything that a change of the program image must not tear apart.
    pub(super) activity: Arc<tokio::sync::RwLock<()>>,
    /// Held while the runtime's start runs, so that the end is not told before the start.
    pub(super) starting: tokio::sync::Mutex<()>,
    /// The files of its figures.
    pub(super) figures: Arc<super::stats_files::Kept>,
}

impl Container {
    /// A container that does not exist yet, with the state directory `dir` (which exists).
    pub fn new(id: &str, dir: &Path, door: &'static str, reaper: Reaper, last_event: u64) -> Arc<Self> {
        Self::with_events(id, dir, door, reaper, EventRing::new(last_event))
    }

    pub(super) fn with_events(
        id: &str,
        dir: &Path,
        door: &'static str,
        reaper: Reaper,
        events: EventRing,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: id.to_owned(),
            dir: dir.to_path_buf(),
            door,
            reaper,
            events,
            inner: Mutex::new(Inner {
                life: Life::default(),
                spec: None,
                facts: BundleFacts::default(),
                pid: 0,
                pid_start: 0,
                pidfd: None,
                runtime: None,
                hub: None,
                cgroups: Cgroups::default(),
                oom: None,
                created_at: None,
                started_at: None,
                execs: BTreeMap::new(),
                starting_execs: BTreeSet::new(),
                stop: None,
                attach: None,
                exec_cgroup: None,
                end: None,
                pipes: (0, 0),
                start_mark: None,
            }),
            ended: watch::channel(None).0,
            operation: tokio::sync::Mutex::new(()),
            activity: Arc::default(),
            starting: tokio::sync::Mutex::new(()),
            figures: Arc::default(),
        })
    }

    /// The state, locked. Never hold it over an await.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The exit record, once everything is on disk.
    pub fn exit(&self) -> Option<ExitRecord> {
        self.ended.borrow().clone()
    }

    /// Waits for the end of the container: everything it wrote is in the log and the record is on disk.
    pub async fn wait(&self) -> ExitRecord {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await.map(|v| v.clone()) {
            Ok(Some(record)) => record,
            _ => std::future::pending().await,
        }
    }

    /// Calls of the runtime; a failure before create.
    pub(super) fn runtime(&self) -> Result<RuntimeCli, Failure> {
        self.lock().runtime.clone().ok_or_else(|| self.not_created())
    }

    pub(super) fn not_created(&self) -> Failure {
        Failure::precondition(self.id.as_str(), format!("container {} has not been created", self.id))
    }

    /// Fails unless this may be asked for now.
    pub(super) fn require(&self, call: Call) -> Result<(), Failure> {
        self.look();
        let status = self.lock().life.status();
        if status.allows(call) {
            return Ok(());
        }
        Err(Failure::precondition(
            self.id.as_str(),
            format!("cannot {}: container {} is {}", call.as_str(), self.id, status.as_str()),
        ))
    }

    /// The streams of the container.
    pub fn hub(&self) -> Option<Arc<Hub>> {
        self.lock().hub.clone()
    }

    /// Creates the container. On failure nothing of it is left and create may be tried again.
    ///
    /// # Errors
    /// For a bad request, and if the runtime fails.
    pub async fn create(self: &Arc<Self>, spec: CreateSpec) -> Result<(i32, u64), Failure> {
        self.bring_up(spec, None).await
    }

    /// Restores the container from a checkpoint: create and start in one.
    ///
    /// # Errors
    /// As [`Container::create`].
    pub async fn restore(
        self: &Arc<Self>,
        spec: CreateSpec,
        checkpoint: Checkpoint,
    ) -> Result<(i32, u64), Failure> {
        if !checkpoint.image_path.join("inventory.img").exists() {
            let path = checkpoint.image_path.display().to_string();
            return Err(Failure::invalid(path.clone(), format!("no checkpoint in {path}")));
        }
        self.bring_up(spec, Some(checkpoint)).await
    }

    async fn bring_up(
        self: &Arc<Self>,
        spec: CreateSpec,
        from: Option<Checkpoint>,
    ) -> Result<(i32, u64), Failure> {
        let _active = self.activity.read().await;
        let _operation = self.operation.lock().await;
        self.require(Call::Create)?;
        if self.lock().spec.is_some() {
            let message = format!("container {} exists already", self.id);
            return Err(Failure::new(FailureKind::AlreadyExists, self.id.as_str(), message));
        }
        let facts = spec.check()?;
        let runtime = RuntimeCli::new(spec.runtime_config(&self.dir), self.reaper.clone(), self.id.as_str());
        let hub = Hub::new(HubConfig {
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
            // A client that says it is done closes stdin; one that vanishes does so only with `stdin_once`.
            leave_stdin_open: false,
            terminal: facts.terminal,
            ..HubConfig::default()
        });
        logs::add_sinks(&hub, &self.id, &spec.logs)?;
        self.observe(&hub);
        let restored = from.is_some();
        // Whoever adopts after a crash from here on knows what may have to be cleaned up.
        persist::save_creating(self, &spec);
        let born = match self.run_create(&spec, &facts, &runtime, &hub, from).await {
            Ok(born) => born,
            Err(failure) => {
                // The runtime may have got half way; what it left must not stand in the way of the next try. A container
                // that was there before is somebody else's.
                if failure.kind != FailureKind::RuntimeNotFound && !says_taken(&failure.runtime_message) {
                    let _ = runtime.run(&RuntimeOp::Delete { force: true }, RunIo::default()).await;
                }
                let _ = hub.finish(false).await;
                self.save();
                return Err(failure);
            }
        };
        let Born { pid, pidfd, exit, pipes } = born;
        let pid_start = process::start_time(pid);
        let cgroups = Cgroups::of(pid);
        let oom = OomWatch::open(&cgroups).map(Arc::new);
        if let Some(error) = oom.as_ref().and_then(|o| o.deaf()) {
            eprintln!("watch {} for OOM kills: {error}; they are counted at its end", self.id);
        }
        {
            let mut inner = self.lock();
            inner.life.take(if restored { Step::Restored } else { Step::Created });
            inner.spec = Some(spec.clone());
            inner.facts = facts;
            inner.pid = pid;
            inner.pid_start = pid_start;
            inner.pidfd = Some(Arc::new(pidfd));
            inner.runtime = Some(runtime);
            inner.hub = Some(hub);
            inner.cgroups = cgroups;
            inner.oom = oom;
            inner.pipes = pipes;
            inner.created_at = Some(clock::wall());
            inner.started_at = restored.then(clock::wall);
        }
        if let Some(path) = &spec.pid_file {
            // The container runs; a pid file that cannot be written is the caller's loss, told by its absence.
            let _ = persist::write_visible(path, pid.to_string().as_bytes(), 0o644);
        }
        self.serve_attach();
        self.save();
        let kind = if restored { EventKind::Restored } else { EventKind::Created };
        self.events.push(kind, "", pid, None, &[]);
        self.supervise(exit);
        // Reading config.json and the runtime's log took more than will be needed again soon.
        pintle_sys::mem::trim();
        Ok((pid, pid_start))
    }

    async fn run_create(
        self: &Arc<Self>,
        spec: &CreateSpec,
        facts: &BundleFacts,
        runtime: &RuntimeCli,
        hub: &Arc<Hub>,
        from: Option<Checkpoint>,
    ) -> Result<Born, Failure> {
        let console = if facts.terminal {
            let (rows, columns) = facts.console_size.unwrap_or((24, 80));
            let rows = if spec.rows > 0 { spec.rows } else { rows };
            let columns = if spec.columns > 0 { spec.columns } else { columns };
            // Remembered by the hub and set before the container is started.
            let _ = hub.resize(rows, columns);
            Some(bind_console(&self.dir)?)
        } else {
            None
        };
        let pipes = if facts.terminal { stdio::Pipes::none() } else { stdio::Pipes::new(spec.stdin) };
        let pipes = pipes.map_err(|e| Failure::system("make stdio pipes of", self.id.as_str(), &e))?;
        let pid_file = runtime.scratch_path("pid");
        let extra = spec.runtime.create_args.iter().map(|a| a.as_bytes().to_vec()).collect();
        let console_socket = console.as_ref().map(|c| c.path().as_os_str().as_bytes().to_vec());
        let bundle = spec.bundle.as_os_str().as_bytes().to_vec();
        let pid_path = pid_file.as_os_str().as_bytes().to_vec();
        let restored = from.is_some();
        let op = match from {
            None => RuntimeOp::Create {
                bundle,
                pid_file: pid_path,
                console_socket,
                no_pivot: false,
                no_new_keyring: false,
                extra,
            },
            Some(checkpoint) => {
                let mut all: Vec<Vec<u8>> = extra;
                all.extend(checkpoint.args.iter().map(|a| a.as_bytes().to_vec()));
                RuntimeOp::Restore {
                    bundle,
                    pid_file: pid_path,
                    console_socket,
                    image_path: checkpoint.image_path.as_os_str().as_bytes().to_vec(),
                    work_path: checkpoint.work_path.as_os_str().as_bytes().to_vec(),
                    extra: all,
                }
            }
        };
        let created = clock::mono();
        let inodes = pipes.inodes();
        let stdio::Pipes { stdin, stdout, stderr, ours } = pipes;
        // A terminal's runtime call has pipes of its own; else its stdio becomes the container's.
        let io = RunIo { stdin, stdout, stderr };
        let call = runtime.run(&op, io);
        let mut early = stdio::Early::new(ours, restored, hub)
            .map_err(|e| Failure::system("read stdio pipes of", self.id.as_str(), &e))?;
        let result = early.read_while(call).await;
        let pid = match result {
            Ok(_) => runtime.read_pid_file(&op, &pid_file),
            Err(mut error) => {
                if error.message.is_empty() {
                    // Without words in its log, what it said on the container's stderr are its words.
                    error.message = pintle_core::runtime::error_message(b"", early.stderr());
                }
                Err(error)
            }
        };
        // Not there if the runtime failed before.
        let _ = std::fs::remove_file(&pid_file);
        let pid = pid?;
        let held = self.reaper.hold(pid, created);
        let exit = self.reaper.watch(pid, created);
        let pidfd = held.map_err(|e| Failure::system("hold the first process of", self.id.as_str(), &e))?;
        if let Some(console) = console {
            let master = receive_console(&console, &self.id).await?;
            hub.set_terminal(master)
                .map_err(|e| Failure::system("watch the terminal of", self.id.as_str(), &e))?;
        } else {
            early
                .hand_over(hub)
                .map_err(|e| Failure::system("watch the streams of", self.id.as_str(), &e))?;
        }
        Ok(Born { pid, pidfd, exit, pipes: inodes })
    }

    /// Starts the container.
    ///
    /// # Errors
    /// If it is not created, and if the runtime fails.
    pub async fn start(self: &Arc<Self>) -> Result<WallTime, Failure> {
        let _active = self.activity.read().await;
        let _operation = self.operation.lock().await;
        self.require(Call::Start)?;
        let runtime = self.runtime()?;
        let _starting = self.starting.lock().await;
        // Before it, so that no end is earlier than its start.
        let now = clock::wall();
        runtime.run(&RuntimeOp::Start, RunIo::default()).await?;
        let pid = {
            let mut inner = self.lock();
            inner.life.take(Step::Started);
            inner.started_at = Some(now);
            inner.pid
        };
        self.save();
        self.events.push(EventKind::Started, "", pid, None, &[]);
        Ok(now)
    }

    /// Starts the tasks that follow the container to its end.
    pub(super) fn supervise(self: &Arc<Self>, exit: ExitWatch) {
        let container = self.clone();
        let oom = {
            let mut inner = self.lock();
            inner.end = Some(exit.clone());
            inner.oom.clone()
        };
        tokio::spawn(async move {
            let ended = loop {
                tokio::select! {
                    biased;
                    ended = exit.wait() => break ended,
                    kills = next_kills(oom.as_deref()) => container.tell_oom(kills),
                }
            };
            rundown::run(&container, ended).await;
        });
    }

    /// Turns what the hub tells into events.
    pub(super) fn observe(self: &Arc<Self>, hub: &Arc<Hub>) {
        // Weak: the hub is part of the container.
        let container = Arc::downgrade(self);
        hub.set_observer(Arc::new(move |event| {
            let Some(container) = container.upgrade() else { return };
            let (kind, attributes) = match event {
                HubEvent::ClientDropped(id, why) => {
                    (EventKind::ClientDropped, vec![("client", id.to_string()), ("reason", why)])
                }
                HubEvent::LogLoss(cause) => (EventKind::BytesLost, vec![("cause", cause)]),
                HubEvent::LogReopened => (EventKind::LogReopened, Vec::new()),
                HubEvent::ClientAttached(_) | HubEvent::ClientLeft(_) => return,
            };
            let pid = container.lock().pid;
            container.events.push(kind, "", pid, None, &attributes);
        }));
    }

    pub(super) fn tell_oom(self: &Arc<Self>, kills: u64) {
        let (pid, oom) = {
            let inner = self.lock();
            (inner.pid, inner.oom.clone())
        };
        let verdict = oom.as_ref().map(|o| o.verdict(false)).unwrap_or_default();
        // Was it init? That shows a moment later, when it has ended or plainly lives on.
        let container = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(OOM_SETTLES).await;
            if container.exit().is_none() {
                container.oom_survived();
            }
        });
        let level = verdict.level.map_or("", |l| l.as_str());
        let attributes =
            [("kills", kills.to_string()), ("total", verdict.kills.to_string()), ("level", level.to_owned())];
        self.events.push(EventKind::Oom, "", pid, None, &attributes);
    }

    /// Notes that init has survived the kills until now, if it lives.
    pub(super) fn oom_survived(&self) {
        let (pid, oom) = {
            let inner = self.lock();
            (inner.pid, inner.oom.clone())
        };
        if let Some(oom) = oom {
            oom.init_survives(pid);
        }
    }

    /// Gives the container its attach socket; clients that come early wait in its backlog.
    pub fn set_attach_listener(&self, listener: OwnedFd) {
        self.lock().attach = Some(listener);
        self.serve_attach();
    }

    /// Lets the hub serve the attach socket, if both are there.
    pub(super) fn serve_attach(&self) {
        let (hub, listener) = {
            let mut inner = self.lock();
            if inner.hub.is_none() {
                return;
            }
            (inner.hub.clone(), inner.attach.take())
        };
        if let (Some(hub), Some(listener)) = (hub, listener) {
            if let Err(error) = hub.serve_attach(listener, AttachOptions::CONMON) {
                eprintln!("serve attach.sock of {}: {error}", self.id);
            }
        }
    }

    /// Writes `state.json`. A failure is told on stderr (the shim's log) and does not fail the operation.
    pub fn save(&self) {
        if let Err(error) = persist::save(self) {
            eprintln!("write {}: {error}", self.dir.join(persist::STATE_FILE).display());
        }
    }
}

/// Whether a runtime says that it has a container of this id: runc's, crun's and youki's words.
fn says_taken(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("container") && message.contains("already exists")
}

async fn next_kills(oom: Option<&OomWatch>) -> u64 {
    match oom {
        Some(oom) => oom.next().await,
        None => std::future::pending().await,
    }
}

pub(super) fn bind_console(dir: &Path) -> Result<ConsoleSocket, Failure> {
    // The name of a socket is short; where the state directory's is long, the console goes elsewhere.
    let parent = Some(dir).filter(|d| d.as_os_str().len() < 50);
    ConsoleSocket::bind(parent).map_err(|e| {
        let path = dir.display().to_string();
        Failure::new(FailureKind::System, path, e.to_string())
    })
}

/// Takes the terminal that the runtime has sent.
pub(super) async fn receive_console(console: &ConsoleSocket, id: &str) -> Result<OwnedFd, Failure> {
    console.receive(Duration::from_secs(10)).await.map_err(|e| {
        Failure::new(FailureKind::RuntimeFailed, id, format!("receive the terminal of {id}: {e}"))
    })
}

/// A container that the runtime has just made.
struct Born {
    pid: i32,
    pidfd: PidFd,
    exit: ExitWatch,
    pipes: (u64, u64),
}

/// Where a checkpoint is, and further arguments of the runtime.
#[derive(Debug, Clone, Default)]
pub struct Checkpoint {
    /// Images.
    pub image_path: PathBuf,
    /// CRIU's work directory.
    pub work_path: PathBuf,
    /// Further arguments.
    pub args: Vec<String>,
}
