//! A program that takes the container's output (`binary://`): descriptors 3 and 4 are stdout and stderr, 5 is where it
//! says that it is ready.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio as ProcessStdio};
use std::sync::Arc;
use std::time::Duration;

use pintle_sys::inherit;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::error::{Result, TaskError};
use super::output::Lost;
use super::stdio::Owner;
use crate::engine::log::LossCause;
use crate::engine::reap::Child;

/// How long it may take to be ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to end after SIGTERM.
const TERM_LIMIT: Duration = Duration::from_secs(12);
/// How long what it has left unread may take to end.
const REST_LIMIT: Duration = Duration::from_secs(1);

/// A running logger program.
pub(super) struct LogProgram {
    child: Child,
    spare: JoinHandle<()>,
}

impl LogProgram {
    /// Starts it and waits until it is ready; gives the ends the container writes to.
    pub(super) async fn start(
        path: &str,
        args: &[String],
        strict: bool,
        owner: &Owner<'_>,
        lost: &Arc<Lost>,
    ) -> Result<(Self, OwnedFd, OwnedFd)> {
        let failed = |e: io::Error| TaskError::io(format!("start logger {path}"), e);
        let (out_read, out_write) = pair().map_err(failed)?;
        let (err_read, err_write) = pair().map_err(failed)?;
        let (ready, says) = pair().map_err(failed)?;
        let spare = (out_read.try_clone().map_err(failed)?, err_read.try_clone().map_err(failed)?);
        let mut command = Command::new(path);
        command.args(args).env_clear();
        command.env("CONTAINER_ID", owner.id).env("CONTAINER_NAMESPACE", owner.namespace);
        command.stdin(ProcessStdio::null()).stdout(ProcessStdio::null()).stderr(ProcessStdio::null());
        inherit::give(&mut command, vec![(out_read, 3), (err_read, 4), (says, 5)]);
        let child = owner.reaper.spawn(&mut command).map_err(failed)?;
        drop(command);
        // The container outlives a logger that dies: what nobody takes is read, counted and thrown away, as SIGPIPE
        // would kill it and a full pipe would stop it.
        let (exit, lost) = (child.exit.clone(), lost.clone());
        let spare = tokio::spawn(async move {
            exit.wait().await;
            tokio::join!(discard(spare.0, &lost), discard(spare.1, &lost));
        });
        let program = Self { child, spare };
        match timeout(READY_LIMIT, said(ready)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) if !strict => {}
            Ok(Ok(false)) => {
                program.finish(Duration::ZERO).await;
                return Err(TaskError::unknown(format!("logger {path} ended before it was ready")));
            }
            Ok(Err(e)) => return Err(failed(e)),
            Err(_) => {
                program.finish(Duration::ZERO).await;
                return Err(TaskError::deadline(format!("logger {path} is not ready")));
            }
        }
        Ok((program, out_write, err_write))
    }

    /// Waits for its end, then asks for it, then forces it.
    pub(super) async fn finish(mut self, limit: Duration) {
        let exit = &self.child.exit;
        if timeout(limit, exit.wait()).await.is_err() {
            // It may end on its own in between.
            let _ = self.child.pidfd.signal(libc::SIGTERM);
            if timeout(TERM_LIMIT, exit.wait()).await.is_err() {
                let _ = self.child.pidfd.signal(libc::SIGKILL);
            }
        }
        // What it has left unread is counted; whoever still holds the streams open is not waited for.
        if timeout(REST_LIMIT, &mut self.spare).await.is_err() {
            self.spare.abort();
        }
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

/// True for a byte, false for an end without one.
async fn said(ready: OwnedFd) -> io::Result<bool> {
    let ready = pipe::Receiver::from_owned_fd(ready)?;
    loop {
        ready.readable().await?;
        match ready.try_read(&mut [0u8; 1]) {
            Ok(n) => return Ok(n > 0),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
}

async fn discard(fd: OwnedFd, lost: &Lost) {
    let Ok(pipe) = pipe::Receiver::from_owned_fd(fd) else { return };
    while pipe.readable().await.is_ok() {
        match pipe.try_read(&mut [0u8; 4096]) {
            Ok(0) => return,
            Ok(n) => lost.add(LossCause::Errno(libc::EPIPE), n as u64),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
