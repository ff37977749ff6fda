//! Containers that a door creates, starts and ends by the rules of its callers: the engine only shows them.

use super::cgroup::Cgroups;
use super::container::{Container, Status};
use super::events::EventKind;
use super::hub::Hub;
use super::oom::OomWatch;
use super::reap::Ended;
use super::runtime::RuntimeCli;
use super::spec::{BundleFacts, CreateSpec};
use pintle_core::cgroup::OomVerdict;
use pintle_core::record::ExitRecord;
use pintle_sys::pidfd::PidFd;
use pintle_sys::{clock, process};
use std::os::unix::fs::MetadataExt;
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

impl Container {
    /// Takes in a container of another door and follows whether it has been started.
    ///
    /// # Errors
    /// If its first process is gone already.
    pub fn show(self: &Arc<Self>, foreign: Foreign) -> std::io::Result<()> {
        let Foreign { spec, terminal, pid, hub, oom, program, restored } = foreign;
        let pidfd = PidFd::open(pid)?;
        self.observe(&hub);
        let runtime = RuntimeCli::new(spec.runtime_config(&self.dir), self.reaper.clone(), self.id.as_str());
        {
            let mut inner = self.lock();
            inner.status = if restored { Status::Running } else { Status::Created };
            inner.spec = Some(spec);
            inner.facts = BundleFacts { terminal, ..BundleFacts::default() };
            inner.pid = pid;
            inner.pid_start = process::start_time(pid);
            inner.pidfd = Some(Arc::new(pidfd));
            inner.runtime = Some(runtime);
            inner.hub = Some(hub);
            inner.cgroups = Cgroups::of(pid);
            inner.oom = oom;
            inner.created_at = Some(clock::wall());
            inner.started_at = restored.then(clock::wall);
        }
        self.serve_attach();
        self.save();
        let kind = if restored { EventKind::Restored } else { EventKind::Created };
        self.events.push(kind, "", pid, None, &[]);
        if !restored {
            tokio::spawn(Arc::clone(self).follow_start(pid, program));
        }
        Ok(())
    }

    /// Nobody tells when the runtime has started it: then its first process executes another program than before.
    async fn follow_start(self: Arc<Self>, pid: i32, before: Program) {
        // Most are started at once; one that waits for a long time is not worth many wake-ups.
        for round in 0u32.. {
            if self.lock().status != Status::Created || self.exit().is_some() {
                return;
            }
            if Program::of(pid) != before {
                break;
            }
            let pause = if round < 50 { Duration::from_millis(100) } else { Duration::from_secs(2) };
            tokio::time::sleep(pause).await;
        }
        self.show_started();
    }

    fn show_started(&self) {
        let pid = {
            let mut inner = self.lock();
            if inner.status != Status::Created {
                return;
            }
            inner.status = Status::Running;
            inner.started_at = Some(clock::wall());
            inner.pid
        };
        self.save();
        self.events.push(EventKind::Started, "", pid, None, &[]);
    }

    /// Tells of OOM kills that the door has counted.
    pub fn show_oom(self: &Arc<Self>, kills: u64) {
        self.tell_oom(kills);
    }

    /// Tells the end; whoever waits is answered.
    pub fn show_end(&self, ended: Ended, oom: OomVerdict, output_leaked: bool) {
        self.show_started();
        let record = {
            let mut inner = self.lock();
            inner.status = Status::Stopped;
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
