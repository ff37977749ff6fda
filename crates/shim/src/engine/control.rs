//! Operations on a container that exists: signals, freezing, limits, checkpoint, deletion.

use super::container::{Checkpoint, Container};
use super::events::EventKind;
use super::failure::{Failure, FailureKind};
use super::runtime::RunIo;
use super::stats::Stats;
use super::{persist, stop, tree};
use pintle_core::life::{Call, Status, Step};
use pintle_core::record::ExitRecord;
use pintle_core::runtime::RuntimeOp;
use pintle_sys::process;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

/// Highest signal number.
pub const SIGNAL_MAX: i32 = 64;
const ENTER_PAUSE: Duration = Duration::from_millis(2);
const ENTER_ROUNDS: u32 = 1000;

/// Checks a signal number.
///
/// # Errors
/// `InvalidArgument`.
pub fn check_signal(signal: i32) -> Result<i32, Failure> {
    if (1..=SIGNAL_MAX).contains(&signal) {
        Ok(signal)
    } else {
        Err(Failure::invalid(signal.to_string(), format!("no signal has the number {signal}")))
    }
}

/// Waits until a process that the runtime has just started executes its program, at most 2 s: until then it is the
/// runtime's own, whose dispositions would answer the signal (Go ignores SIGUSR1, and prints its stacks at SIGQUIT).
/// SIGKILL does not wait, nothing answers it differently.
pub async fn entered(pid: i32, signal: i32) {
    if signal == libc::SIGKILL {
        return;
    }
    for _ in 0..ENTER_ROUNDS {
        if process::stat(pid).is_none_or(|s| s.has_executed()) {
            return;
        }
        tokio::time::sleep(ENTER_PAUSE).await;
    }
}

impl Container {
    /// Signals init, or every process. A program that the runtime is about to execute is waited for: see [`entered`].
    ///
    /// # Errors
    /// If the container has not been created or has ended.
    pub async fn kill(&self, signal: i32, all: bool) -> Result<(), Failure> {
        let signal = check_signal(signal)?;
        let (pidfd, cgroups, status) = {
            let inner = self.lock();
            (inner.pidfd.clone(), inner.cgroups.clone(), inner.life.status())
        };
        let Some(pidfd) = pidfd else { return Err(self.not_created()) };
        if signal == libc::SIGKILL {
            // What was killed before is not the reason of this end.
            self.oom_survived();
        }
        if status == Status::Running {
            entered(pidfd.pid(), signal).await;
        }
        if all {
            tree::signal_all(&cgroups, signal)
                .map_err(|e| Failure::system("list processes of", self.id.as_str(), &e))?;
            return Ok(());
        }
        if matches!(status, Status::Stopped | Status::Deleted) {
            return Err(Failure::precondition(self.id.as_str(), format!("container {} has ended", self.id)));
        }
        pidfd.signal(signal).map_err(|e| match e.raw_os_error() {
            Some(libc::ESRCH) => {
                Failure::precondition(self.id.as_str(), format!("container {} has ended", self.id))
            }
            _ => Failure::system("signal container", self.id.as_str(), &e),
        })
    }

    /// Freezes all processes.
    ///
    /// # Errors
    /// If it does not run, and if the runtime fails.
    pub async fn pause(&self) -> Result<(), Failure> {
        let _active = self.activity.read().await;
        let _operation = self.operation.lock().await;
        self.require(Call::Pause)?;
        self.runtime()?.run(&RuntimeOp::Pause, RunIo::default()).await?;
        self.change(Step::Paused, EventKind::Paused);
        Ok(())
    }

    /// Thaws all processes.
    ///
    /// # Errors
    /// If it is not paused, and if the runtime fails.
    pub async fn resume(&self) -> Result<(), Failure> {
        let _active = self.activity.read().await;
        let _operation = self.operation.lock().await;
        self.require(Call::Resume)?;
        self.runtime()?.run(&RuntimeOp::Resume, RunIo::default()).await?;
        self.change(Step::Resumed, EventKind::Resumed);
        Ok(())
    }

    /// Tells a step, if that is news.
    pub(super) fn change(&self, step: Step, kind: EventKind) {
        let pid = {
            let mut inner = self.lock();
            if !inner.life.take(step) {
                return;
            }
            inner.pid
        };
        self.save();
        self.events.push(kind, "", pid, None, &[]);
    }

    /// Changes limits; `resources` is `linux.resources` as JSON.
    ///
    /// # Errors
    /// For bad JSON, if it does not exist, and if the runtime fails.
    pub async fn update(&self, resources: &str) -> Result<(), Failure> {
        if !serde_json::from_str::<serde_json::Value>(resources).is_ok_and(|v| v.is_object()) {
            return Err(Failure::invalid("resources_json", "resources_json is not a JSON object"));
        }
        let _active = self.activity.read().await;
        let _operation = self.operation.lock().await;
        self.require(Call::Update)?;
        let runtime = self.runtime()?;
        let path = runtime.scratch_path("resources");
        persist::write_visible(&path, resources.as_bytes(), 0o600)
            .map_err(|e| Failure::file("write", &path, &e))?;
        let op = RuntimeOp::Update { resources: path.as_os_str().as_bytes().to_vec() };
        let result = runtime.run(&op, RunIo::default()).await;
        let _ = std::fs::remove_file(&path);
        result?;
        self.events.push(EventKind::Updated, "", self.lock_pid(), None, &[]);
        Ok(())
    }

    fn lock_pid(&self) -> i32 {
        self.lock().pid
    }

    /// Resource usage now. Within the tokio runtime.
    ///
    /// # Errors
    /// If the container does not exist or has ended.
    pub fn stats(&self) -> Result<Stats, Failure> {
        let (pid, status) = {
            let inner = self.lock();
            (inner.pid, inner.life.status())
        };
        if pid == 0 {
            return Err(self.not_created());
        }
        let pid = if matches!(status, Status::Stopped | Status::Deleted) { 0 } else { pid };
        Ok(self.figures.read(pid, || self.lock().cgroups.clone()))
    }

    /// Writes a checkpoint; unless `leave_running` the container ends by it.
    ///
    /// # Errors
    /// If it does not run, and if the runtime fails.
    pub async fn checkpoint(&self, to: Checkpoint, leave_running: bool) -> Result<(), Failure> {
        let _active = self.activity.read().await;
        let _operation = self.operation.lock().await;
        self.require(Call::Checkpoint)?;
        let runtime = self.runtime()?;
        let op = RuntimeOp::Checkpoint {
            image_path: to.image_path.as_os_str().as_bytes().to_vec(),
            work_path: to.work_path.as_os_str().as_bytes().to_vec(),
            leave_running,
            extra: to.args.iter().map(|a| a.as_bytes().to_vec()).collect(),
        };
        runtime.run(&op, RunIo::default()).await?;
        let path = to.image_path.display().to_string();
        self.events.push(EventKind::Checkpointed, "", self.lock_pid(), None, &[("image_path", path)]);
        Ok(())
    }

    /// Whether a create or restore is under way.
    pub fn is_being_created(&self) -> bool {
        self.lock().life.status() == Status::Creating && self.operation.try_lock().is_err()
    }

    /// Waits for a create that is under way: what it makes a moment later would stay for ever.
    pub async fn created_or_failed(&self) {
        if self.is_being_created() {
            drop(self.operation.lock().await);
        }
    }

    /// Deletes the container: the runtime's state, the cgroup, the state directory. The shim may end afterwards.
    ///
    /// # Errors
    /// If it lives and `force` is not set, and if the runtime cannot delete it.
    pub async fn delete(self: &Arc<Self>, force: bool) -> Result<Option<ExitRecord>, Failure> {
        self.created_or_failed().await;
        let (status, exists) = {
            let inner = self.lock();
            (inner.life.status(), inner.pidfd.is_some() || inner.spec.is_some())
        };
        self.refuse_if_deleted()?;
        if exists && self.exit().is_none() {
            if !force {
                // It may have ended a moment ago with its rundown still under way; that is worth the wait.
                let gone = self.lock().pidfd.as_ref().is_some_and(|p| p.has_ended());
                if !gone {
                    let message = format!("cannot delete: container {} is {}", self.id, status.as_str());
                    return Err(Failure::precondition(self.id.as_str(), message));
                }
            } else {
                stop::kill_hard(self).await;
            }
            self.wait().await;
        }
        let _active = self.activity.read().await;
        let _operation = self.operation.lock().await;
        // Another delete may have come first.
        self.refuse_if_deleted()?;
        if exists {
            self.delete_from_runtime().await?;
        }
        // Before it counts as deleted, so that a caller may try again.
        persist::remove_dir(&self.dir).map_err(|e| Failure::file("remove", &self.dir, &e))?;
        self.lock().life.take(Step::Deleted);
        let exit = self.exit();
        self.events.push(EventKind::Deleted, "", self.lock_pid(), exit.clone(), &[]);
        Ok(exit)
    }

    fn refuse_if_deleted(&self) -> Result<(), Failure> {
        if self.lock().life.status() != Status::Deleted {
            return Ok(());
        }
        let message = format!("container {} is deleted", self.id);
        Err(Failure::new(FailureKind::NotFound, self.id.as_str(), message))
    }

    async fn delete_from_runtime(&self) -> Result<(), Failure> {
        let runtime = self.runtime()?;
        let (cgroups, execs) = {
            let mut inner = self.lock();
            (inner.cgroups.clone(), std::mem::take(&mut inner.execs))
        };
        drop(execs);
        // What outlived init (no pid namespace of its own) would keep the cgroup busy.
        let mut last = None;
        for round in 0..10u32 {
            if cgroups.populated() == Some(true) {
                let _ = tree::signal_all(&cgroups, libc::SIGKILL);
                tokio::time::sleep(Duration::from_millis(10 << round.min(6))).await;
            }
            self.reaper.collect();
            match runtime.run(&RuntimeOp::Delete { force: round > 0 }, RunIo::default()).await {
                Ok(_) => return Ok(()),
                Err(error) if says_gone(&error.message) => return Ok(()),
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(10 << round.min(6))).await;
        }
        match last {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}

/// Whether a runtime says that it does not know the container (any more): runc's, crun's and youki's words.
fn says_gone(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("does not exist") || message.contains("no such container")
}
