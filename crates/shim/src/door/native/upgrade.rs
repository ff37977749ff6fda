//! Live upgrade: another program image in the same process (docs/adr/0005-live-upgrade.md).

use super::args::Args;
use super::start::Shim;
use crate::engine::failure::{Failure, FailureKind};
use std::os::fd::RawFd;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use tokio::sync::{mpsc, oneshot};

/// A request for the main task.
pub(super) struct Request {
    executable: String,
    answer: oneshot::Sender<Result<(), Failure>>,
}

pub(super) type Receiver = mpsc::Receiver<Request>;

/// The way from a call to the main task.
pub(super) struct Requests {
    sender: mpsc::Sender<Request>,
    receiver: Mutex<Option<Receiver>>,
}

impl Default for Requests {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(1);
        Self { sender, receiver: Mutex::new(Some(receiver)) }
    }
}

impl Requests {
    /// The main task's end; an empty one the second time.
    pub(super) fn take_receiver(&self) -> Receiver {
        let taken = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Asks for an upgrade; answers when it is certain to be tried.
    pub(super) async fn request(&self, executable: String) -> Result<(), Failure> {
        let busy = || Failure::new(FailureKind::Unavailable, "shim", "an upgrade is under way");
        let (answer, answered) = oneshot::channel();
        self.sender.try_send(Request { executable, answer }).map_err(|_| busy())?;
        answered.await.map_err(|_| busy())?
    }
}

pub(super) async fn run(_shim: &mut Shim, request: Request) {
    let _ = request.executable;
    let failure = Failure::new(FailureKind::Unsupported, "upgrade", "this build cannot upgrade in place");
    let _ = request.answer.send(Err(failure));
}

pub(super) fn resume(_args: Args, _fd: RawFd) -> ExitCode {
    eprintln!("pintle-shim: this build cannot resume");
    ExitCode::FAILURE
}
