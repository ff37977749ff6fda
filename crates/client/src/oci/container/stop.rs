//! Being stopped: who asked, until when, and who waits for the end.

use super::Container;
use crate::oci::{Error, Result, state::Status};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// How waiting for a stop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopWait {
    /// The container has stopped.
    Stopped,
    /// The waiter's patience ended first; the stop goes on.
    GaveUp,
    /// Nobody is stopping the container.
    NotStopping,
}

/// The stop of one container. The shim carries it out and is the authority on it; this is what
/// clients of one process share.
pub(super) struct Stopping {
    inner: Mutex<Inner>,
    done: watch::Sender<bool>,
    deadline: watch::Sender<Option<Instant>>,
}

#[derive(Default)]
struct Inner {
    stopping: bool,
}

impl Default for Stopping {
    fn default() -> Self {
        Self { inner: Mutex::default(), done: watch::channel(false).0, deadline: watch::channel(None).0 }
    }
}

impl Stopping {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Container {
    /// Whether it may be stopped.
    ///
    /// # Errors
    /// [`Error::ContainerStopped`] if it has ended already, [`Error::Paused`] if it is frozen. (Stopping
    /// a frozen container works all the same: the shim thaws it.)
    pub fn check_stoppable(&self) -> Result<()> {
        match self.state().status {
            Status::Stopped => Err(Error::ContainerStopped),
            Status::Paused => Err(Error::Paused),
            _ => Ok(()),
        }
    }

    /// Marks it as being stopped; true for the first who does.
    pub fn set_stopping(&self) -> bool {
        !std::mem::replace(&mut self.0.stopping.lock().stopping, true)
    }

    /// Whether it is being stopped, or has been.
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.lock().stopping
    }

    /// Marks the stop as done and lets every waiter go. May be called any number of times.
    pub fn set_done_stopping(&self) {
        self.0.stopping.done.send_replace(true);
    }

    /// A container that was restored can be stopped anew.
    pub(crate) fn reset_stopping(&self) {
        self.0.stopping.lock().stopping = false;
        self.0.stopping.done.send_replace(false);
        self.0.stopping.deadline.send_replace(None);
    }

    /// Brings the moment of SIGKILL forward. A later one than is known already changes nothing;
    /// true if this one counts.
    pub fn shorten_stop(&self, timeout: Duration) -> bool {
        let new = Instant::now().checked_add(timeout);
        self.0.stopping.deadline.send_if_modified(|deadline| match (*deadline, new) {
            (_, None) => false,
            (Some(old), Some(new)) if new >= old => false,
            (_, Some(new)) => {
                *deadline = Some(new);
                true
            }
        })
    }

    /// When SIGKILL is due, and word of it when that changes.
    pub fn stop_deadline(&self) -> watch::Receiver<Option<Instant>> {
        self.0.stopping.deadline.subscribe()
    }

    /// Waits until a stop under way has ended, asking for SIGKILL after `timeout` if that is
    /// earlier than asked before; at most for `patience`.
    ///
    /// If a shim serves the container the new timeout is told to it.
    pub async fn wait_on_stop(&self, timeout: Duration, patience: Option<Duration>) -> StopWait {
        if !self.is_stopping() {
            return StopWait::NotStopping;
        }
        let mut done = self.0.stopping.done.subscribe();
        let told = self.shorten_stop(timeout);
        let end = async {
            if let (true, Some(monitor)) = (told, self.monitor()) {
                let signal = Some(self.stop_signal());
                tokio::select! {
                    // Whatever comes of it, the one who leads the stop reports its end.
                    _ = monitor.stop(signal, timeout) => {}
                    _ = done.wait_for(|done| *done) => return,
                }
            }
            // The sender lives as long as the container.
            let _ = done.wait_for(|done| *done).await;
        };
        match patience {
            None => end.await,
            Some(patience) => {
                if tokio::time::timeout(patience, end).await.is_err() {
                    return StopWait::GaveUp;
                }
            }
        }
        StopWait::Stopped
    }
}
