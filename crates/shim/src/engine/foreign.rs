//! Containers that a door creates, starts and ends by the rules of its callers: the engine only shows them.

use super::cgroup::Cgroups;
use super::container::Container;
use super::events::EventKind;
use super::hub::Hub;
use super::oom::OomWatch;
use super::reap::Ended;
use super::runtime::RuntimeCli;
use super::spec::{BundleFacts, CreateSpec, RuntimeSpec};
use pintle_core::cgroup::OomVerdict;
use pintle_core::exit::Exit;
use pintle_core::life::{Status, Step};
use pintle_core::record::ExitRecord;
use pintle_sys::pidfd::PidFd;
use pintle_sys::{clock, process};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A container that somebody else has just created.
pub struct Foreign {
    /// What it was created from.
    pub spec: CreateSpec,
    /// It has a terminal.
    pub terminal: bool,
    /// Its first process.
    pub pid: i32,
    /// Its streams.
    pub hub: Arc<Hub>,
    /// The watch for OOM kills.
    pub oom: Option<Arc<OomWatch>>,
    /// What its first process executed before anybody could start it.
    pub program: Program,
    /// It runs already.
    pub restored: bool,
}

/// The program that a process executes, as far as it may be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program(Option<(u64, u64)>);

impl Program {
    /// That of a process now.
    pub fn of(pid: i32) -> Self {
        Self(std::fs::metadata(format!("/proc/{pid}/exe")).ok().map(|meta| (meta.dev(), meta.ino())))
    }
}

/// What tells that a container has been started.
#[derive(Debug, Clone)]
pub(super) struct StartMark {
    /// What its first process executed before.
    program: Program,
    /// What its first process waited at; gone when the runtime's `start` is done, a little before the program changes.
    fifo: Option<PathBuf>,
}

impl StartMark {
    fn started(&self, pid: i32) -> bool {
        let program = Program::of(pid);
        let changed = program != self.program && program != Program(None);
        changed || self.fifo.as_ref().is_some_and(|fifo| !fifo.exists())
    }
}

impl Container {
    /// Takes in a container of another door and follows whether it has been started.
    ///
    /// # Errors
    /// If its first process is gone already.
    pub fn show(self: &Arc<Self>, foreign: Foreign) -> std::io::Result<()> {
        let Foreign { spec, terminal, pid, hub, oom, program, restored } = foreign;
        let pidfd = PidFd::open(pid)?;
        self.observe(&hub);
        let fifo = exec_fifo(&spec.runtime, &self.id).filter(|fifo| fifo.exists());
        let runtime = RuntimeCli::new(spec.runtime_config(&self.dir), self.reaper.clone(), self.id.as_str());
        {
            let mut inner = self.lock();
            inner.life.take(if restored { Step::Restored } else { Step::Created });
            inner.spec = Some(spec);
            inner.facts = BundleFacts { terminal, ..BundleFacts::default() };
            inner.pid = pid;
            inner.pid_start = process::start_time(pid);
            inner.pidfd = Some(Arc::new(pidfd));
            inner.runtime = Some(runtime);
            inner.hub = Some(hub);
            inner.cgroups = Cgroups::of(pid);
            inner.oom = oom;
            inner.start_mark = Some(StartMark { program, fifo });
            inner.created_at = Some(clock::wall());
            inner.started_at = restored.then(clock::wall);
        }
        self.serve_attach();
        self.save();
        let kind = if restored { EventKind::Restored } else { EventKind::Created };
        self.events.push(kind, "", pid, None, &[]);
        if !restored {
            tokio::spawn(Arc::clone(self).follow_start());
        }
        Ok(())
    }

    /// Nobody tells when the runtime has started it: the event comes from looking now and then.
    async fn follow_start(self: Arc<Self>) {
        // Most are started at once; one that waits for a long time is not worth many wake-ups.
        for round in 0u32.. {
            self.look();
            if self.lock().life.status() != Status::Created || self.exit().is_some() {
                return;
            }
            let pause = if round < 50 { Duration::from_millis(100) } else { Duration::from_secs(2) };
            tokio::time::sleep(pause).await;
        }
    }

    /// Brings the status up to date with what the engine of another door has done: it starts and freezes the
    /// container without a word to us. Called wherever the status counts; a container of our own has it at hand.
    pub fn look(&self) {
        let (mark, pid, pidfd, status, cgroups) = {
            let inner = self.lock();
            let (Some(mark), Some(pidfd)) = (inner.start_mark.clone(), inner.pidfd.clone()) else { return };
            (mark, inner.pid, pidfd, inner.life.status(), inner.cgroups.clone())
        };
        // Seen before the end is asked for: what is gone executes nothing, and its pid may be another's.
        let started = status == Status::Created && mark.started(pid);
        let frozen = cgroups.frozen();
        if pidfd.has_ended() {
            self.lock().life.take(Step::Died);
            return;
        }
        if started {
            self.show_started();
        }
        match frozen {
            Some(true) => self.change(Step::Paused, EventKind::Paused),
            Some(false) => self.change(Step::Resumed, EventKind::Resumed),
            None => {}
        }
    }

    fn show_started(&self) {
        let pid = {
            let mut inner = self.lock();
            if !inner.life.take(Step::Started) {
                return;
            }
            inner.started_at = Some(clock::wall());
            inner.pid
        };
        self.save();
        self.events.push(EventKind::Started, "", pid, None, &[]);
    }

    /// Whether a container that has ended was never started: killed while the runtime's `start` had not come for it.
    fn never_started(&self, exit: Exit) -> bool {
        let inner = self.lock();
        let killed = matches!(exit, Exit::Signal { signal: libc::SIGKILL, .. });
        let wrote = inner.hub.as_ref().is_some_and(|hub| hub.counters().read != [0, 0]);
        let fifo = inner.start_mark.as_ref().and_then(|mark| mark.fifo.as_ref());
        killed && !wrote && fifo.is_some_and(|fifo| fifo.exists())
    }

    /// Tells of OOM kills that the door has counted.
    pub fn show_oom(self: &Arc<Self>, kills: u64) {
        self.tell_oom(kills);
    }

    /// Tells the end; whoever waits is answered.
    pub fn show_end(&self, ended: Ended, oom: OomVerdict, output_leaked: bool) {
        if !self.never_started(ended.exit) {
            self.show_started();
        }
        let record = {
            let mut inner = self.lock();
            if !inner.life.take(Step::Ended) {
                return;
            }
            inner.stop = None;
            inner.oom = None;
            ExitRecord {
                id: self.id.clone(),
                exec_id: String::new(),
                pid: inner.pid,
                exit: ended.exit,
                oom,
                started_at: inner.started_at,
                finished_at: ended.at,
                boot_id: clock::boot_id(),
                log_bytes_lost: inner.hub.as_ref().map_or(0, |hub| hub.counters().losses.total()),
                output_leaked,
            }
        };
        self.events.push(EventKind::Exited, "", record.pid, Some(record.clone()), &[]);
        self.ended.send_replace(Some(record));
    }
}

/// What the first process waits at until its start; runc and crun remove it then.
fn exec_fifo(runtime: &RuntimeSpec, id: &str) -> Option<PathBuf> {
    let mut args = runtime.args.iter();
    let mut root = None;
    while let Some(arg) = args.next() {
        match arg.strip_prefix("--root") {
            Some("") => root = args.next().map(PathBuf::from),
            Some(value) => root = value.strip_prefix('=').map(PathBuf::from).or(root),
            None => {}
        }
    }
    let name = Path::new(&runtime.path).file_name()?;
    Some(root.unwrap_or_else(|| Path::new("/run").join(name)).join(id).join("exec.fifo"))
}
