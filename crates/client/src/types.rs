//! What calls give, in Rust's own types.

use pintle_proto::monitor as wire;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::options::RuntimeOptions;

pub use wire::StatsResponse as Stats;

pub(crate) fn time(nanos: i64) -> Option<SystemTime> {
    (nanos > 0).then(|| UNIX_EPOCH + Duration::from_nanos(nanos.unsigned_abs()))
}

/// A pid on the wire; one that no kernel gives out becomes 0.
pub(crate) fn pid(wire: u32) -> i32 {
    i32::try_from(wire).unwrap_or(0)
}

/// Milliseconds on the wire; a time that is not zero never becomes 0, which often means "none".
pub(crate) fn millis(duration: Duration) -> u64 {
    let whole = u64::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
    whole.min(i64::MAX as u64)
}

/// Versions and abilities of a shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Version of the shim.
    pub version: String,
    /// Highest minor of the protocol that the shim speaks.
    pub protocol: u32,
    /// Pid of the shim.
    pub pid: i32,
    /// Id of the container.
    pub id: String,
    /// Front that made the shim: `native`, `conmon` or `containerd`.
    pub door: String,
    /// Names of optional abilities.
    pub abilities: Vec<String>,
    /// Version of the state it hands over at an upgrade.
    pub state_version: u32,
    /// When the shim started.
    pub started_at: Option<SystemTime>,
}

impl From<wire::InfoResponse> for Info {
    fn from(w: wire::InfoResponse) -> Self {
        Self {
            version: w.version,
            protocol: w.protocol,
            pid: pid(w.pid),
            id: w.id,
            door: w.door,
            abilities: w.abilities,
            state_version: w.state_version,
            started_at: time(w.started_at),
        }
    }
}

/// A process and what tells it from a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// Pid, in the shim's pid namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot (field 22 of `/proc/<pid>/stat`).
    pub start: u64,
}

/// Status of a container or an exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// The runtime's create is running, or has not been asked for.
    Creating,
    /// Made, not started.
    Created,
    /// Started.
    Running,
    /// Frozen.
    Paused,
    /// Ended.
    Stopped,
    /// Deleted; the shim is about to end.
    Deleted,
    /// A status this version of the crate does not know.
    Unknown,
}

impl Status {
    /// The text users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
            Self::Unknown => "unknown",
        }
    }

    fn from_wire(w: protobuf::EnumOrUnknown<wire::Status>) -> Self {
        match w.enum_value() {
            Ok(wire::Status::CREATING) => Self::Creating,
            Ok(wire::Status::CREATED) => Self::Created,
            Ok(wire::Status::RUNNING) => Self::Running,
            Ok(wire::Status::PAUSED) => Self::Paused,
            Ok(wire::Status::STOPPED) => Self::Stopped,
            Ok(wire::Status::DELETED) => Self::Deleted,
            _ => Self::Unknown,
        }
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The one way a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ExitReason {
    /// It exited with this code.
    Code(i32),
    /// A signal ended it.
    Signal {
        /// Number of the signal.
        signal: i32,
        /// A core image was written.
        core_dumped: bool,
    },
    /// Nobody can tell any more, and why.
    Unknown(String),
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Code, signal, or not known.
    pub reason: ExitReason,
    /// What shells print: the code, 128 + signal, or 255 where it is not known.
    pub status: i32,
    /// The kernel killed a process of the container for want of memory, and this end is its result.
    pub oom_killed: bool,
    /// When it started.
    pub started_at: Option<SystemTime>,
    /// When the shim reaped it.
    pub finished_at: Option<SystemTime>,
    /// Boot id of the kernel.
    pub boot_id: String,
}

impl Exit {
    /// Whether it exited with code 0.
    pub fn success(&self) -> bool {
        self.reason == ExitReason::Code(0)
    }

    pub(crate) fn from_wire(w: wire::Exit) -> Self {
        let reason = match w.kind.enum_value() {
            Ok(wire::ExitKind::CODE) => ExitReason::Code(w.code),
            Ok(wire::ExitKind::SIGNAL) => ExitReason::Signal { signal: w.signal, core_dumped: w.core_dumped },
            _ => ExitReason::Unknown(w.reason),
        };
        let status = match reason {
            ExitReason::Code(code) => code,
            ExitReason::Signal { signal, .. } => signal.saturating_add(128),
            ExitReason::Unknown(_) => 255,
        };
        Self {
            reason,
            status,
            oom_killed: w.oom_killed,
            started_at: time(w.started_at),
            finished_at: time(w.finished_at),
            boot_id: w.boot_id,
        }
    }
}

/// Snapshot of one exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecState {
    /// Id of the exec.
    pub id: String,
    /// Its pid.
    pub pid: i32,
    /// Running or stopped.
    pub status: Status,
    /// Set once it has ended.
    pub exit: Option<Exit>,
    /// It has a terminal.
    pub terminal: bool,
}

/// Bytes, losses and clients of the container's stdio.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IoCounters {
    /// Bytes read from stdout.
    pub stdout_bytes: u64,
    /// Bytes read from stderr.
    pub stderr_bytes: u64,
    /// Bytes written to stdin.
    pub stdin_bytes: u64,
    /// Bytes a log did not take, by cause.
    pub lost_bytes: BTreeMap<String, u64>,
    /// Attach clients now.
    pub clients: u32,
    /// Attach clients dropped so far because they did not read.
    pub clients_dropped: u64,
    /// Times the log was opened anew.
    pub reopened: u64,
}

impl IoCounters {
    pub(crate) fn from_wire(w: wire::IoCounters) -> Self {
        Self {
            stdout_bytes: w.stdout_bytes,
            stderr_bytes: w.stderr_bytes,
            stdin_bytes: w.stdin_bytes,
            lost_bytes: w.lost_bytes.into_iter().collect(),
            clients: w.clients,
            clients_dropped: w.clients_dropped,
            reopened: w.reopened,
        }
    }
}

/// Snapshot of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Id of the container.
    pub id: String,
    /// Its status.
    pub status: Status,
    /// Its first process; `None` before create.
    pub process: Option<ProcessId>,
    /// Its bundle.
    pub bundle: PathBuf,
    /// When it was created.
    pub created_at: Option<SystemTime>,
    /// When it was started.
    pub started_at: Option<SystemTime>,
    /// Set once it has ended.
    pub exit: Option<Exit>,
    /// The execs known, ended ones included until they are deleted.
    pub execs: Vec<ExecState>,
    /// Bytes, losses and clients.
    pub io: IoCounters,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Times the memory limit was hit with nothing to reclaim.
    pub oom_events: u64,
    /// It has a terminal.
    pub terminal: bool,
    /// Number of the newest event.
    pub last_event: u64,
    /// First log file.
    pub log_path: Option<PathBuf>,
    /// The OCI runtime in use.
    pub runtime: RuntimeOptions,
    /// A stop is under way.
    pub stopping: bool,
    /// Its cgroup below the mount of its hierarchy (memory on v1).
    pub cgroup: String,
}

impl From<wire::StateResponse> for State {
    fn from(w: wire::StateResponse) -> Self {
        let oom = w.oom.into_option().unwrap_or_default();
        Self {
            id: w.id,
            status: Status::from_wire(w.status),
            process: (w.pid != 0).then(|| ProcessId { pid: pid(w.pid), start: w.pid_start }),
            bundle: w.bundle.into(),
            created_at: time(w.created_at),
            started_at: time(w.started_at),
            exit: w.exit.into_option().map(Exit::from_wire),
            execs: w.execs.into_iter().map(ExecState::from).collect(),
            io: IoCounters::from_wire(w.io.into_option().unwrap_or_default()),
            oom_kills: oom.oom_kills,
            oom_events: oom.oom_events,
            terminal: w.terminal,
            last_event: w.last_event,
            log_path: (!w.log_path.is_empty()).then(|| w.log_path.into()),
            runtime: RuntimeOptions::from_wire(w.runtime.into_option().unwrap_or_default()),
            stopping: w.stopping,
            cgroup: w.cgroup,
        }
    }
}

impl From<wire::ExecState> for ExecState {
    fn from(w: wire::ExecState) -> Self {
        Self {
            id: w.exec_id,
            pid: pid(w.pid),
            status: Status::from_wire(w.status),
            exit: w.exit.into_option().map(Exit::from_wire),
            terminal: w.terminal,
        }
    }
}

/// Kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// The container was created.
    Created,
    /// Its process was started.
    Started,
    /// An exec was started.
    ExecStarted,
    /// An exec has ended.
    ExecExited,
    /// The container's first process has ended.
    Exited,
    /// A process of it was killed for want of memory.
    Oom,
    /// It was frozen.
    Paused,
    /// It was thawed.
    Resumed,
    /// Its log was opened anew.
    LogReopened,
    /// A log lost bytes; the attributes tell cause and count.
    BytesLost,
    /// An attach client was dropped.
    ClientDropped,
    /// Its limits were changed.
    Updated,
    /// It was checkpointed.
    Checkpointed,
    /// It was restored.
    Restored,
    /// It was deleted.
    Deleted,
    /// The shim was replaced in place.
    Upgraded,
    /// A new shim took over after the old one was lost.
    Adopted,
    /// Events before this one were dropped; the attribute `count` tells how many.
    EventsLost,
    /// A kind this version of the crate does not know.
    Unknown,
}

impl EventKind {
    /// Name of the kind, in kebab case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Started => "started",
            Self::ExecStarted => "exec-started",
            Self::ExecExited => "exec-exited",
            Self::Exited => "exited",
            Self::Oom => "oom",
            Self::Paused => "paused",
            Self::Resumed => "resumed",
            Self::LogReopened => "log-reopened",
            Self::BytesLost => "bytes-lost",
            Self::ClientDropped => "client-dropped",
            Self::Updated => "updated",
            Self::Checkpointed => "checkpointed",
            Self::Restored => "restored",
            Self::Deleted => "deleted",
            Self::Upgraded => "upgraded",
            Self::Adopted => "adopted",
            Self::EventsLost => "events-lost",
            Self::Unknown => "unknown",
        }
    }

    fn from_wire(kind: protobuf::EnumOrUnknown<wire::EventKind>) -> Self {
        use wire::EventKind as W;
        match kind.enum_value() {
            Ok(W::CREATED) => Self::Created,
            Ok(W::STARTED) => Self::Started,
            Ok(W::EXEC_STARTED) => Self::ExecStarted,
            Ok(W::EXEC_EXITED) => Self::ExecExited,
            Ok(W::EXITED) => Self::Exited,
            Ok(W::OOM) => Self::Oom,
            Ok(W::PAUSED_EVENT) => Self::Paused,
            Ok(W::RESUMED) => Self::Resumed,
            Ok(W::LOG_REOPENED) => Self::LogReopened,
            Ok(W::BYTES_LOST) => Self::BytesLost,
            Ok(W::CLIENT_DROPPED) => Self::ClientDropped,
            Ok(W::UPDATED) => Self::Updated,
            Ok(W::CHECKPOINTED) => Self::Checkpointed,
            Ok(W::RESTORED) => Self::Restored,
            Ok(W::DELETED_EVENT) => Self::Deleted,
            Ok(W::UPGRADED) => Self::Upgraded,
            Ok(W::ADOPTED) => Self::Adopted,
            Ok(W::EVENTS_LOST) => Self::EventsLost,
            _ => Self::Unknown,
        }
    }
}

impl std::fmt::Display for EventKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Grows by one with each event of this container, over upgrade and adoption of its shim.
    pub sequence: u64,
    /// When it happened.
    pub at: Option<SystemTime>,
    /// What happened.
    pub kind: EventKind,
    /// The exec it happened to; empty for the container.
    pub exec_id: String,
    /// The process it happened to; 0 if none.
    pub pid: i32,
    /// How the process ended, for [`EventKind::Exited`] and [`EventKind::ExecExited`].
    pub exit: Option<Exit>,
    /// More about it, by kind.
    pub attributes: BTreeMap<String, String>,
}

impl Event {
    /// `None` for a heartbeat, which only probes the connection.
    pub(crate) fn from_wire(w: wire::Event) -> Option<Self> {
        if w.kind.enum_value() == Ok(wire::EventKind::HEARTBEAT) {
            return None;
        }
        Some(Self {
            sequence: w.sequence,
            at: time(w.at),
            kind: EventKind::from_wire(w.kind),
            exec_id: w.exec_id,
            pid: pid(w.pid),
            exit: w.exit.into_option().map(Exit::from_wire),
            attributes: w.attributes.into_iter().collect(),
        })
    }
}

/// How an [`exec_sync`](crate::Monitor::exec_sync) went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Output; all of it with a terminal.
    pub stdout: Vec<u8>,
    /// Error output.
    pub stderr: Vec<u8>,
    /// Output was cut at the limit.
    pub truncated: bool,
    /// The time was up and the tree was killed.
    pub timed_out: bool,
    /// How it ended.
    pub exit: Exit,
    /// Its pid.
    pub pid: i32,
}
