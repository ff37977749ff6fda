//! A container as text and descriptors, for the next program image of the same process
//! (docs/adr/0012-live-upgrade.md).

use super::cgroup::Cgroups;
use super::container::Container;
use super::events::{Event, EventKind, EventRing};
use super::exec::{Exec, follow, names_from, next_name};
use super::handover::HubState;
use super::hub::Hub;
use super::oom::OomWatch;
use super::reap::{Ended, ExitWatch, Reaper};
use super::runtime::RuntimeCli;
use super::spec::CreateSpec;
use pintle_core::cgroup::{OomCounter, OomVerdict};
use pintle_core::life::{Life, Status};
use pintle_core::record::ExitRecord;
use pintle_core::wall::{MonoTime, WallTime};
use pintle_sys::clock;
use pintle_sys::pidfd::PidFd;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How a status is written.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Status")]
enum StatusName {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
    Deleted,
}

/// A container without its descriptors; those are named by their position in a list beside it.
#[derive(Debug, Serialize, Deserialize)]
pub struct CarriedContainer {
    id: String,
    dir: PathBuf,
    #[serde(with = "StatusName")]
    status: Status,
    spec: Option<CreateSpec>,
    terminal: bool,
    pid: i32,
    pid_start: u64,
    pidfd: Option<usize>,
    attach: Option<usize>,
    created_at: i64,
    started_at: i64,
    pipes: (u64, u64),
    oom: Option<[[u64; 3]; 4]>,
    exit: Option<String>,
    /// init was reaped, and its rundown has not begun: nobody can ask the kernel again.
    end: Option<String>,
    hub: Option<CarriedHub>,
    execs: Vec<CarriedExec>,
    #[serde(default)]
    next_name: u64,
    stop_ms: Option<u64>,
    /// Signal of that stop, if it is still to be sent.
    #[serde(default)]
    stop_signal: Option<i32>,
    last_event: u64,
    events: Vec<CarriedEvent>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CarriedHub {
    state: HubState,
    fds: Vec<usize>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CarriedExec {
    id: String,
    pid: i32,
    pid_start: u64,
    pidfd: Option<usize>,
    terminal: bool,
    started_at: i64,
    /// Without one it has ended.
    hub: Option<CarriedHub>,
    exit: Option<String>,
    /// Reaped and not told yet.
    end: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct CarriedEvent {
    sequence: u64,
    at: i64,
    kind: EventKind,
    exec_id: String,
    pid: i32,
    exit: Option<String>,
    attributes: Vec<(String, String)>,
}

fn text(record: &ExitRecord) -> String {
    String::from_utf8_lossy(&record.to_json()).into_owned()
}

fn record(text: Option<&String>) -> Option<ExitRecord> {
    ExitRecord::from_json(text?.as_bytes())
}

/// What the reaper knows and has told nobody that could be carried over.
fn reaped(pid: i32, end: Option<Ended>) -> Option<String> {
    let Ended { exit, at, .. } = end?;
    Some(text(&ExitRecord {
        id: String::new(),
        exec_id: String::new(),
        pid,
        exit,
        oom: OomVerdict::default(),
        started_at: None,
        finished_at: at,
        boot_id: clock::boot_id(),
        log_bytes_lost: 0,
        output_leaked: false,
    }))
}

/// The end that was carried over, or else the watch for it.
fn end_of(pid: i32, end: Option<&String>, reaper: &Reaper) -> ExitWatch {
    match record(end) {
        Some(r) => ExitWatch::ended(pid, Ended { exit: r.exit, at: r.finished_at, mono: clock::mono() }),
        // Our child still: a zombie that ended meanwhile was reaped by the new reaper and kept.
        None => reaper.watch(pid, MonoTime(0)),
    }
}

fn nanos(time: Option<WallTime>) -> i64 {
    time.map_or(0, WallTime::unix_nanos)
}

fn time(nanos: i64) -> Option<WallTime> {
    (nanos != 0).then(|| WallTime::from_unix_nanos(nanos))
}

fn put(fds: &mut Vec<OwnedFd>, fd: OwnedFd) -> usize {
    fds.push(fd);
    fds.len() - 1
}

fn take(fds: &mut [Option<OwnedFd>], at: usize) -> io::Result<OwnedFd> {
    let fd = fds.get_mut(at).and_then(Option::take);
    fd.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("descriptor {at} was not handed over"))
    })
}

fn pack_hub(hub: &Hub, fds: &mut Vec<OwnedFd>) -> io::Result<CarriedHub> {
    let (state, own) = hub.freeze()?;
    Ok(CarriedHub { state, fds: own.into_iter().map(|fd| put(fds, fd)).collect() })
}

fn unpack_hub(hub: CarriedHub, fds: &mut [Option<OwnedFd>]) -> io::Result<Arc<Hub>> {
    let own = hub.fds.into_iter().map(|at| take(fds, at)).collect::<io::Result<Vec<_>>>()?;
    Hub::thaw(hub.state, own)
}

fn copy(fd: &impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}

impl Container {
    /// Waits until nothing is under way that a change of the program image would tear apart, and keeps it that way for
    /// as long as the guard lives. `None` if that takes too long.
    pub async fn quiesce(&self, limit: Duration) -> Option<tokio::sync::OwnedRwLockWriteGuard<()>> {
        tokio::time::timeout(limit, self.activity.clone().write_owned()).await.ok()
    }

    /// Freezes the container's streams and packs everything. Nothing may be awaited between this and the exec.
    ///
    /// # Errors
    /// If a descriptor cannot be copied or a log cannot be handed over; call [`Container::unfreeze`] then.
    pub fn pack(&self, fds: &mut Vec<OwnedFd>) -> io::Result<CarriedContainer> {
        let stop = self.stop_left();
        let stop_ms = stop.map(|(left, _)| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        let exit = self.exit();
        let inner = self.lock();
        let hub = match &inner.hub {
            Some(hub) if exit.is_none() => Some(pack_hub(hub, fds)?),
            _ => None,
        };
        let mut execs = Vec::new();
        for exec in inner.execs.values() {
            let end = exec.exit();
            execs.push(CarriedExec {
                id: exec.id.clone(),
                pid: exec.pid,
                pid_start: exec.pid_start,
                pidfd: exec.pidfd.as_ref().map(copy).transpose()?.map(|fd| put(fds, fd)),
                terminal: exec.terminal,
                started_at: exec.started_at.unix_nanos(),
                hub: if end.is_none() { Some(pack_hub(&exec.hub, fds)?) } else { None },
                end: if end.is_none() { reaped(exec.pid, exec.end.peek()) } else { None },
                exit: end.as_ref().map(text),
            });
        }
        let events = self.events.after(0, usize::MAX).into_iter().map(|e| CarriedEvent {
            sequence: e.sequence,
            at: e.at.unix_nanos(),
            kind: e.kind,
            exec_id: e.exec_id,
            pid: e.pid,
            exit: e.exit.as_ref().map(text),
            attributes: e.attributes,
        });
        Ok(CarriedContainer {
            id: self.id.clone(),
            dir: self.dir.clone(),
            status: inner.life.status(),
            spec: inner.spec.clone(),
            terminal: inner.facts.terminal,
            pid: inner.pid,
            pid_start: inner.pid_start,
            pidfd: inner.pidfd.as_deref().map(copy).transpose()?.map(|fd| put(fds, fd)),
            attach: inner.attach.as_ref().map(copy).transpose()?.map(|fd| put(fds, fd)),
            created_at: nanos(inner.created_at),
            started_at: nanos(inner.started_at),
            pipes: inner.pipes,
            oom: inner.oom.as_ref().map(|o| o.counter().numbers()),
            end: match (&exit, &inner.end) {
                (None, Some(end)) => reaped(inner.pid, end.peek()),
                _ => None,
            },
            exit: exit.as_ref().map(text),
            hub,
            execs,
            next_name: next_name(),
            stop_ms,
            stop_signal: stop.and_then(|(_, unsent)| unsent),
            last_event: self.events.last(),
            events: events.collect(),
        })
    }

    /// Goes on after a pack whose exec did not happen.
    pub fn unfreeze(&self) {
        let (hub, execs) = {
            let inner = self.lock();
            (inner.hub.clone(), inner.execs.values().cloned().collect::<Vec<_>>())
        };
        if let Some(hub) = hub {
            hub.unfreeze();
        }
        for exec in execs {
            exec.hub.unfreeze();
        }
    }

    /// Builds the container again and goes on with it.
    ///
    /// # Errors
    /// If a descriptor is missing or cannot be used.
    pub fn unpack(
        carried: CarriedContainer,
        fds: &mut [Option<OwnedFd>],
        reaper: Reaper,
    ) -> io::Result<Arc<Self>> {
        // An older version did not carry it: past what it can have used, if it did not run an exec each second since boot.
        let least = if carried.next_name == 0 { pintle_sys::clock::mono().0 / 1_000_000_000 } else { 0 };
        names_from(carried.next_name.max(least));
        let events = carried.events.into_iter().map(|e| Event {
            sequence: e.sequence,
            at: WallTime::from_unix_nanos(e.at),
            kind: e.kind,
            exec_id: e.exec_id,
            pid: e.pid,
            exit: record(e.exit.as_ref()),
            attributes: e.attributes,
        });
        let events = EventRing::resume(carried.last_event, events.collect());
        let container = Self::with_events(&carried.id, &carried.dir, "native", reaper.clone(), events);
        let exit = record(carried.exit.as_ref());
        let cgroups =
            if exit.is_none() && carried.pid > 0 { Cgroups::of(carried.pid) } else { Cgroups::default() };
        let hub = carried.hub.map(|hub| unpack_hub(hub, fds)).transpose()?;
        if let Some(hub) = &hub {
            container.observe(hub);
        }
        let mut running = Vec::new();
        {
            let mut inner = container.lock();
            let started = carried.started_at != 0;
            inner.life = Life::resume(carried.status, started, exit.is_some());
            if let Some(spec) = &carried.spec {
                inner.facts = spec.facts();
                let config = spec.runtime_config(&carried.dir);
                inner.runtime = Some(RuntimeCli::new(config, reaper.clone(), carried.id.as_str()));
            }
            inner.facts.terminal = carried.terminal;
            inner.spec = carried.spec;
            inner.pid = carried.pid;
            inner.pid_start = carried.pid_start;
            let pidfd = carried.pidfd.map(|at| take(fds, at)).transpose()?;
            inner.pidfd = pidfd.map(|fd| Arc::new(PidFd::from_fd(fd, carried.pid)));
            inner.attach = carried.attach.map(|at| take(fds, at)).transpose()?;
            inner.created_at = time(carried.created_at);
            inner.started_at = time(carried.started_at);
            inner.pipes = carried.pipes;
            inner.oom = carried.oom.and_then(|numbers| {
                OomWatch::resume(&cgroups, OomCounter::from_numbers(numbers)).map(Arc::new)
            });
            inner.cgroups = cgroups;
            inner.hub = hub;
            for exec in carried.execs {
                let end = record(exec.exit.as_ref());
                let hub = match exec.hub {
                    Some(hub) => unpack_hub(hub, fds)?,
                    None => Hub::new(super::hub::HubConfig::default()),
                };
                let pidfd = exec.pidfd.map(|at| take(fds, at)).transpose()?;
                let ended = end.is_some();
                let watch = match &end {
                    Some(record) => end_of(exec.pid, Some(&text(record)), &reaper),
                    None => end_of(exec.pid, exec.end.as_ref(), &reaper),
                };
                let restored = Arc::new(Exec {
                    id: exec.id.clone(),
                    pid: exec.pid,
                    pid_start: exec.pid_start,
                    pidfd: pidfd.map(|fd| PidFd::from_fd(fd, exec.pid)),
                    terminal: exec.terminal,
                    started_at: WallTime::from_unix_nanos(exec.started_at),
                    hub,
                    end: watch,
                    ended: watch::channel(end).0,
                });
                if !ended {
                    running.push(restored.clone());
                }
                inner.execs.insert(exec.id, restored);
            }
        }
        for exec in running {
            let exit = exec.end.clone();
            tokio::spawn(follow(container.clone(), exec, exit));
        }
        if let Some(exit) = exit {
            container.ended.send_replace(Some(exit));
        } else if carried.pid > 0 {
            container.supervise(end_of(carried.pid, carried.end.as_ref(), &reaper));
            if let Some(ms) = carried.stop_ms {
                container.resume_stop(Duration::from_millis(ms), carried.stop_signal);
            }
        }
        container.serve_attach();
        Ok(container)
    }
}
