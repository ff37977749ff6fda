//! Further processes in a running container.

use super::attach::AttachOptions;
use super::container::{Container, bind_console, receive_console};
use super::events::EventKind;
use super::failure::{Failure, FailureKind};
use super::hub::{Hub, HubConfig};
use super::pump::DrainPolicy;
use super::reap::ExitWatch;
use super::runtime::{RunIo, RuntimeCli, kill_leftover};
use super::spec::{ExecSpec, check_id};
use super::tree::{self, ExecCgroup};
use super::{control, persist, stdio};
use pintle_core::cgroup::OomVerdict;
use pintle_core::life::Call;
use pintle_core::record::ExitRecord;
use pintle_core::runtime::RuntimeOp;
use pintle_core::wall::WallTime;
use pintle_sys::pidfd::PidFd;
use pintle_sys::{clock, process};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// Execs known at a time, ended ones included until deleted.
pub const EXECS_MAX: usize = 1024;
/// Drain bound of an exec's output.
const DRAIN: Duration = Duration::from_secs(2);

/// The number in the name of the next exec and exec cgroup. No container sees one twice: a successor goes on with it.
static NAMES: AtomicU64 = AtomicU64::new(1);

/// The next number, for a successor.
pub(super) fn next_name() -> u64 {
    NAMES.load(Ordering::Relaxed)
}

/// Goes on at `next`, unless it is past that.
pub(super) fn names_from(next: u64) {
    NAMES.fetch_max(next, Ordering::Relaxed);
}

/// An exec that was started.
pub struct Exec {
    /// Its id.
    pub id: String,
    /// Its pid.
    pub pid: i32,
    /// Its start time in clock ticks.
    pub pid_start: u64,
    /// The way to signal it; `None` if it was gone before it could be held.
    pub pidfd: Option<PidFd>,
    /// It has a terminal.
    pub terminal: bool,
    /// When it was started.
    pub started_at: WallTime,
    /// Its streams.
    pub hub: Arc<Hub>,
    /// Its end as the reaper sees it; known before the record is.
    pub(super) end: ExitWatch,
    pub(super) ended: watch::Sender<Option<ExitRecord>>,
}

impl Exec {
    /// Its end, once its output is delivered.
    pub fn exit(&self) -> Option<ExitRecord> {
        self.ended.borrow().clone()
    }

    /// Waits for its end.
    pub async fn wait(&self) -> ExitRecord {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await.map(|v| v.clone()) {
            Ok(Some(record)) => record,
            _ => std::future::pending().await,
        }
    }

    /// Signals it, once it is the program that was asked for: see [`control::entered`].
    ///
    /// # Errors
    /// If it has ended.
    pub async fn kill(&self, signal: i32) -> Result<(), Failure> {
        let signal = control::check_signal(signal)?;
        let ended = || Failure::precondition(self.id.as_str(), format!("exec {} has ended", self.id));
        let pidfd = self.pidfd.as_ref().ok_or_else(ended)?;
        control::entered(self.pid, signal).await;
        pidfd.signal(signal).map_err(|e| match e.raw_os_error() {
            Some(libc::ESRCH) => ended(),
            _ => Failure::system("signal exec", self.id.as_str(), &e),
        })
    }
}

/// A started process before anybody follows it.
pub(super) struct Started {
    pub(super) pid: i32,
    pub(super) pidfd: Option<PidFd>,
    pub(super) exit: ExitWatch,
    pub(super) started_at: WallTime,
    /// The terminal, if it has one.
    pub(super) master: Option<OwnedFd>,
}

impl Started {
    /// Kills a process that nobody is going to follow.
    fn give_up(&self) {
        if let Some(pidfd) = &self.pidfd {
            // It may be gone already.
            let _ = pidfd.signal(libc::SIGKILL);
        }
    }
}

/// Keeps the id of an exec from being given twice while the runtime starts it.
struct Reserved<'a> {
    container: &'a Container,
    id: String,
}

impl<'a> Reserved<'a> {
    /// Reserves `wanted`, or an id that is free if that is empty.
    fn take(container: &'a Container, wanted: &str) -> Result<Self, Failure> {
        if !wanted.is_empty() {
            check_id("exec", wanted)?;
        }
        let mut inner = container.lock();
        let in_use = |id: &str| inner.execs.contains_key(id) || inner.starting_execs.contains(id);
        let id = if wanted.is_empty() {
            // Another program image before this one, or a caller, may have used the next name.
            let mut names =
                std::iter::repeat_with(|| format!("exec-{}", NAMES.fetch_add(1, Ordering::Relaxed)));
            names.find(|id| !in_use(id)).unwrap_or_default()
        } else {
            wanted.to_owned()
        };
        if in_use(&id) {
            let message = format!("container {} has an exec {id} already", container.id);
            return Err(Failure::new(FailureKind::AlreadyExists, id, message));
        }
        room(inner.execs.len() + inner.starting_execs.len(), &container.id, &id)?;
        inner.starting_execs.insert(id.clone());
        drop(inner);
        Ok(Self { container, id })
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.container.lock().starting_execs.remove(&self.id);
    }
}

/// Whether there may be another exec `id` beside so many.
fn room(execs: usize, container: &str, id: &str) -> Result<(), Failure> {
    if execs < EXECS_MAX {
        return Ok(());
    }
    let message = format!("container {container} has {EXECS_MAX} execs");
    Err(Failure::new(FailureKind::ResourceExhausted, id, message))
}

/// How an exec is started, apart from what it runs.
#[derive(Debug, Default)]
pub(super) struct Launch {
    pub(super) io: RunIo,
    pub(super) size: (u16, u16),
    pub(super) cgroup: Option<String>,
    /// How long the runtime's exec may take; `None`: as long as any of its calls.
    pub(super) limit: Option<Duration>,
}

impl Container {
    /// The exec `id`.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn exec_by_id(&self, id: &str) -> Result<Arc<Exec>, Failure> {
        self.lock().execs.get(id).cloned().ok_or_else(|| {
            Failure::new(FailureKind::NotFound, id, format!("container {} has no exec {id}", self.id))
        })
    }

    pub(super) fn check_exec_possible(&self) -> Result<(RuntimeCli, PathBuf, Vec<String>), Failure> {
        self.require(Call::Exec)?;
        let runtime = self.runtime()?;
        let inner = self.lock();
        if inner.stop.is_some() {
            drop(inner);
            return Err(Failure::precondition(
                self.id.as_str(),
                format!("container {} is being stopped", self.id),
            ));
        }
        let spec = inner.spec.clone().unwrap_or_default();
        Ok((runtime, spec.bundle, spec.runtime.exec_args))
    }

    /// Starts a process. `client` is a packet socket that becomes its stdio; `stdin` lets the client feed it.
    ///
    /// # Errors
    /// For a bad request, and if the runtime cannot start it: its words say why.
    pub async fn exec(
        self: &Arc<Self>,
        spec: ExecSpec,
        client: Option<(OwnedFd, AttachOptions)>,
        stdin: bool,
        size: (u16, u16),
        pid_file: Option<PathBuf>,
    ) -> Result<Arc<Exec>, Failure> {
        let _active = self.activity.read().await;
        let (runtime, bundle, exec_args) = self.check_exec_possible()?;
        let reserved = Reserved::take(self, &spec.exec_id)?;
        let (document, terminal) = spec.process(&bundle)?;
        // A pipe ends with its writer; a terminal is left with the detach keys and found again by a later attach.
        let config = HubConfig { stdin, stdin_once: stdin && !terminal, terminal, ..HubConfig::default() };
        let hub = Hub::new(config);
        let id = reserved.id.clone();
        let begun = async {
            if let Some((fd, options)) = client {
                // Attached before anything runs, so that not a byte is missed.
                hub.attach(fd, options)
                    .map_err(|e| Failure::system("attach client of exec", id.as_str(), &e))?;
            }
            let mut launch = Launch { size, ..Launch::default() };
            if !terminal {
                let pipes = stdio::Pipes::new(stdin)
                    .map_err(|e| Failure::system("make stdio pipes of exec", id.as_str(), &e))?;
                let early = stdio::Early::new(pipes.ours, true, &hub)
                    .map_err(|e| Failure::system("read stdio of exec", id.as_str(), &e))?;
                drop(early);
                launch.io = RunIo { stdin: pipes.stdin, stdout: pipes.stdout, stderr: pipes.stderr };
            }
            let mut started = self.launch(&runtime, &document, terminal, exec_args, launch).await?;
            if let Some(master) = started.master.take() {
                if size.0 > 0 && size.1 > 0 {
                    let _ = hub.resize(size.0, size.1);
                }
                hub.set_terminal(master).map_err(|e| {
                    started.give_up();
                    Failure::system("watch the terminal of exec", id.as_str(), &e)
                })?;
            }
            Ok(started)
        };
        let started = match begun.await {
            Ok(started) => started,
            Err(failure) => {
                // Its client, if there is one, is told the end.
                let _ = hub.finish(false).await;
                return Err(failure);
            }
        };
        let exec = Arc::new(Exec {
            id: id.clone(),
            pid: started.pid,
            pid_start: process::start_time(started.pid),
            pidfd: started.pidfd,
            terminal,
            started_at: started.started_at,
            hub,
            end: started.exit.clone(),
            ended: watch::channel(None).0,
        });
        self.lock().execs.insert(id.clone(), exec.clone());
        drop(reserved);
        if let Some(path) = &pid_file {
            // As for create: told by its absence.
            let _ = persist::write_visible(path, exec.pid.to_string().as_bytes(), 0o644);
        }
        self.events.push(EventKind::ExecStarted, &id, exec.pid, None, &[]);
        tokio::spawn(follow(self.clone(), exec.clone(), started.exit));
        Ok(exec)
    }

    /// Has the runtime start a process and takes hold of it.
    pub(super) async fn launch(
        &self,
        runtime: &RuntimeCli,
        document: &serde_json::Value,
        terminal: bool,
        mut exec_args: Vec<String>,
        launch: Launch,
    ) -> Result<Started, Failure> {
        let path = runtime.scratch_path("process");
        let mut document = document.clone();
        let (rows, columns) = launch.size;
        if terminal && rows > 0 && columns > 0 {
            // The runtime sets it before the first instruction, which nobody outside can do.
            document["consoleSize"] = serde_json::json!({ "height": rows, "width": columns });
        }
        let bytes = serde_json::to_vec(&document).unwrap_or_default();
        persist::write_visible(&path, &bytes, 0o600).map_err(|e| Failure::file("write", &path, &e))?;
        let console = match terminal.then(|| bind_console(&self.dir)).transpose() {
            Ok(console) => console,
            Err(failure) => {
                let _ = std::fs::remove_file(&path);
                return Err(failure);
            }
        };
        if let Some(cgroup) = launch.cgroup {
            exec_args.push("--cgroup".to_owned());
            exec_args.push(cgroup);
        }
        let pid_file = runtime.scratch_path("pid");
        let op = RuntimeOp::Exec {
            process: path.as_os_str().as_bytes().to_vec(),
            pid_file: pid_file.as_os_str().as_bytes().to_vec(),
            console_socket: console.as_ref().map(|c| c.path().as_os_str().as_bytes().to_vec()),
            detach: true,
            extra: exec_args.iter().map(|a| a.as_bytes().to_vec()).collect(),
        };
        let since = clock::mono();
        let started_at = clock::wall();
        let result = match launch.limit {
            Some(limit) => runtime.run_within(&op, launch.io, limit).await,
            None => runtime.run(&op, launch.io).await,
        };
        let _ = std::fs::remove_file(&path);
        if result.is_err() {
            kill_leftover(&pid_file);
        }
        let pid = result.and_then(|_| runtime.read_pid_file(&op, &pid_file));
        let _ = std::fs::remove_file(&pid_file);
        let pid = pid?;
        let pidfd = self.reaper.hold(pid, since).ok();
        let exit = self.reaper.watch(pid, since);
        let mut started = Started { pid, pidfd, exit, started_at, master: None };
        if let Some(console) = console {
            match receive_console(&console, &self.id).await {
                Ok(master) => started.master = Some(master),
                Err(failure) => {
                    started.give_up();
                    return Err(failure);
                }
            }
        }
        Ok(started)
    }

    /// Signals an exec and everything it started that parentage shows.
    ///
    /// # Errors
    /// For a bad signal.
    pub fn kill_exec_tree(&self, exec: &Exec, signal: i32) -> Result<(), Failure> {
        let signal = control::check_signal(signal)?;
        let cgroups = self.lock().cgroups.clone();
        if let Some(pidfd) = &exec.pidfd {
            tree::signal_descendants(pidfd, &cgroups, signal);
        }
        Ok(())
    }

    /// Forgets an exec that has ended; with `force` kills it first, with everything it started that parentage shows.
    ///
    /// # Errors
    /// If there is none, or it runs and `force` is not set.
    pub async fn delete_exec(&self, id: &str, force: bool) -> Result<ExitRecord, Failure> {
        let exec = self.exec_by_id(id)?;
        if exec.exit().is_none() {
            if !force && exec.pidfd.as_ref().is_some_and(|p| !p.has_ended()) {
                return Err(Failure::precondition(id, format!("exec {id} is running")));
            }
            if force {
                let cgroups = self.lock().cgroups.clone();
                if let Some(pidfd) = &exec.pidfd {
                    tree::signal_descendants(pidfd, &cgroups, libc::SIGKILL);
                }
            }
        }
        let record = exec.wait().await;
        self.lock().execs.remove(id);
        Ok(record)
    }
}

/// Follows an exec to its end.
pub(super) async fn follow(container: Arc<Container>, exec: Arc<Exec>, exit: ExitWatch) {
    let ended = exit.wait().await;
    let _active = container.activity.read().await;
    let drained = exec.hub.drained(DrainPolicy { cap: DRAIN, ..DrainPolicy::default() }).await;
    let _ = exec.hub.finish(false).await;
    let record = ExitRecord {
        id: container.id.clone(),
        exec_id: exec.id.clone(),
        pid: exec.pid,
        exit: ended.exit,
        oom: OomVerdict::default(),
        started_at: Some(exec.started_at),
        finished_at: ended.at,
        boot_id: clock::boot_id(),
        log_bytes_lost: 0,
        output_leaked: drained.leaked,
    };
    container.events.push(EventKind::ExecExited, &exec.id, exec.pid, Some(record.clone()), &[]);
    exec.ended.send_replace(Some(record));
}

/// Keeps a sub-cgroup for one exec, if the container's cgroups allow it.
pub(super) fn exec_cgroup(container: &Container) -> Option<ExecCgroup> {
    let cgroups = container.lock().cgroups.clone();
    // Counting alone begins anew with every program image, and one that was lost may have left its directories.
    let stamp = clock::mono().0;
    ExecCgroup::make(&cgroups, &format!("pintle-exec-{stamp:x}-{}", NAMES.fetch_add(1, Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_too_many_is_refused_by_name() {
        room(1023, "c", "e").unwrap();
        let failure = room(1024, "c", "e").unwrap_err();
        assert_eq!((failure.kind, failure.object.as_str()), (FailureKind::ResourceExhausted, "e"));
        assert_eq!(failure.message, "container c has 1024 execs");
    }
}
