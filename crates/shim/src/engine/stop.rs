//! Stopping: the stop signal, and SIGKILL when the time is up. A later caller may shorten the time, never lengthen it.

use super::container::Container;
use super::events::EventKind;
use super::failure::Failure;
use super::runtime::RunIo;
use super::{control, tree};
use pintle_core::life::{Status, Step};
use pintle_core::record::ExitRecord;
use pintle_core::runtime::RuntimeOp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A stop under way.
pub struct StopHandle {
    deadline: watch::Sender<Instant>,
    /// The stop signal, until it is sent.
    unsent: Option<i32>,
}

/// The longest timeout taken; more than any machine lives, less than the clock's range.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 86_400);

impl Container {
    /// Stops the container and waits for its end.
    ///
    /// # Errors
    /// If it has not been created, or the signal cannot be sent.
    pub async fn stop(self: &Arc<Self>, signal: i32, timeout: Duration) -> Result<ExitRecord, Failure> {
        self.begin_stop(signal, timeout)?;
        Ok(self.wait().await)
    }

    /// Starts a stop, or shortens the one under way.
    ///
    /// # Errors
    /// As [`Container::stop`].
    pub fn begin_stop(self: &Arc<Self>, signal: i32, timeout: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + timeout.min(FOREVER);
        let receiver = {
            let mut inner = self.lock();
            if inner.pidfd.is_none() {
                drop(inner);
                return Err(self.not_created());
            }
            if matches!(inner.life.status(), Status::Stopped | Status::Deleted) {
                return Ok(());
            }
            if let Some(stop) = &inner.stop {
                stop.deadline.send_if_modified(|old| {
                    let sooner = deadline < *old;
                    if sooner {
                        *old = deadline;
                    }
                    sooner
                });
                return Ok(());
            }
            let (sender, receiver) = watch::channel(deadline);
            inner.stop = Some(StopHandle { deadline: sender, unsent: Some(signal) });
            receiver
        };
        tokio::spawn(run(self.clone(), receiver));
        Ok(())
    }

    /// Time left of a stop under way, and its signal if that is still to be sent.
    pub(super) fn stop_left(&self) -> Option<(Duration, Option<i32>)> {
        let inner = self.lock();
        let stop = inner.stop.as_ref()?;
        let left = stop.deadline.borrow().saturating_duration_since(Instant::now());
        Some((left, stop.unsent))
    }

    /// Goes on with a stop of an earlier program.
    pub(super) fn resume_stop(self: &Arc<Self>, left: Duration, unsent: Option<i32>) {
        let (sender, receiver) = watch::channel(Instant::now() + left.min(FOREVER));
        self.lock().stop = Some(StopHandle { deadline: sender, unsent });
        tokio::spawn(run(self.clone(), receiver));
    }
}

async fn run(container: Arc<Container>, mut deadline: watch::Receiver<Instant>) {
    container.look();
    let (pidfd, status, signal) = {
        let inner = container.lock();
        (inner.pidfd.clone(), inner.life.status(), inner.stop.as_ref().and_then(|s| s.unsent))
    };
    let Some(pidfd) = pidfd else { return };
    // A process that is not started yet is the runtime's own: it has no handler and nothing to save.
    let gentle = *deadline.borrow() > Instant::now() && status != Status::Created;
    if gentle {
        if let Some(signal) = signal {
            if status == Status::Running {
                control::entered(pidfd.pid(), signal).await;
            }
            // A failed send means that it is ending, or that only SIGKILL will do.
            let _ = pidfd.signal(signal);
            if let Some(stop) = &mut container.lock().stop {
                stop.unsent = None;
            }
        }
        if status == Status::Paused {
            // A frozen container cannot react to its stop signal.
            thaw(&container).await;
        }
        loop {
            let until = *deadline.borrow_and_update();
            tokio::select! {
                _ = container.wait() => return,
                () = tokio::time::sleep_until(until) => break,
                changed = deadline.changed() => if changed.is_err() { break },
            }
        }
    }
    kill_hard(&container).await;
}

async fn thaw(container: &Arc<Container>) {
    if let Ok(runtime) = container.runtime() {
        if runtime.run(&RuntimeOp::Resume, RunIo::default()).await.is_ok() {
            container.change(Step::Resumed, EventKind::Resumed);
        }
    }
}

/// SIGKILL until it is gone. Processes in the kernel (NFS) die when the kernel lets them; there is no giving up, but
/// the tries become rare.
pub(super) async fn kill_hard(container: &Arc<Container>) {
    let mut pause = Duration::from_millis(200);
    // What was killed before is not the reason of this end.
    container.oom_survived();
    loop {
        let (pidfd, cgroups, paused) = {
            let inner = container.lock();
            (inner.pidfd.clone(), inner.cgroups.clone(), inner.life.status() == Status::Paused)
        };
        let Some(pidfd) = pidfd else { return };
        let _ = pidfd.signal(libc::SIGKILL);
        let private = container.lock().facts.own_pid_namespace;
        if !private {
            // Without a pid namespace of its own nobody else kills the rest.
            let _ = tree::signal_all(&cgroups, libc::SIGKILL);
        }
        if paused {
            // v1 delivers SIGKILL only when thawed.
            thaw(container).await;
        }
        tokio::select! {
            _ = container.wait() => return,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(60)),
        }
    }
}
