//! The pipes between a container and the shim.
//!
//! The container's stdout and stderr are opened for reading and writing on the container's side. So the pipe keeps a
//! reader when the shim dies: the container blocks when the pipe is full instead of dying of SIGPIPE, and a new shim
//! gets the pipe back through `/proc/PID/fd` with every byte in it (docs/adr/0011-crash-adoption.md). The end of file
//! comes as usual when the last process of the container closes it.

use super::hub::Hub;
use super::runtime::{OUTPUT_MAX, RunOutput, RuntimeError};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::pipe2;
use pintle_core::line::Stream;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use tokio::net::unix::pipe;

/// Our ends.
#[derive(Debug, Default)]
pub struct Ours {
    /// Writes to the container's stdin.
    pub stdin: Option<OwnedFd>,
    /// Reads its stdout.
    pub stdout: Option<OwnedFd>,
    /// Reads its stderr.
    pub stderr: Option<OwnedFd>,
}

/// All ends.
#[derive(Debug, Default)]
pub struct Pipes {
    /// The container's stdin.
    pub stdin: Option<OwnedFd>,
    /// The container's stdout.
    pub stdout: Option<OwnedFd>,
    /// The container's stderr.
    pub stderr: Option<OwnedFd>,
    /// Our ends.
    pub ours: Ours,
}

impl Pipes {
    /// No pipes: the container has a terminal.
    ///
    /// # Errors
    /// None.
    pub fn none() -> io::Result<Self> {
        Ok(Self::default())
    }

    /// Inodes of the stdout and stderr pipes; 0 without.
    pub fn inodes(&self) -> (u64, u64) {
        let inode = |fd: &Option<OwnedFd>| {
            fd.as_ref().and_then(|fd| nix::sys::stat::fstat(fd).ok()).map_or(0, |s| s.st_ino)
        };
        (inode(&self.ours.stdout), inode(&self.ours.stderr))
    }

    /// Pipes for stdout and stderr, and for stdin if wanted.
    ///
    /// # Errors
    /// As `pipe2`, and as opening `/proc/self/fd`.
    pub fn new(with_stdin: bool) -> io::Result<Self> {
        let (out_read, out_write) = output_pipe()?;
        let (err_read, err_write) = output_pipe()?;
        let mut pipes = Self {
            stdin: None,
            stdout: Some(out_write),
            stderr: Some(err_write),
            ours: Ours { stdin: None, stdout: Some(out_read), stderr: Some(err_read) },
        };
        if with_stdin {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            pipes.stdin = Some(read);
            pipes.ours.stdin = Some(write);
        }
        Ok(pipes)
    }
}

/// A pipe whose second end is open for reading, too.
fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    let path = format!("/proc/self/fd/{}", write.as_raw_fd());
    let both = open(path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    Ok((read, both))
}

/// What comes out of the pipes while the runtime creates the container.
///
/// During create it is the runtime that writes there, not the container: it is read so that a chatty runtime does not
/// block, kept for its words, and not logged. During restore the container itself runs already, so the hub gets the
/// pipes at once.
pub struct Early {
    ours: Ours,
    stderr: Vec<u8>,
    capture: bool,
}

impl Early {
    /// Over our ends; `direct` gives them to the hub at once.
    ///
    /// # Errors
    /// If the hub cannot watch them.
    pub fn new(ours: Ours, direct: bool, hub: &Arc<Hub>) -> io::Result<Self> {
        let mut early = Self { ours, stderr: Vec::new(), capture: !direct };
        if direct {
            early.hand_over(hub)?;
        }
        Ok(early)
    }

    /// What was read of stderr so far.
    pub fn stderr(&self) -> &[u8] {
        &self.stderr
    }

    /// Reads until `call` is done.
    pub async fn read_while<F>(&mut self, call: F) -> Result<RunOutput, RuntimeError>
    where
        F: Future<Output = Result<RunOutput, RuntimeError>>,
    {
        let dup = |fd: &Option<OwnedFd>| {
            let fd = fd.as_ref().filter(|_| self.capture)?;
            pipe::Receiver::from_owned_fd(fd.try_clone().ok()?).ok()
        };
        let (mut out, mut err) = (dup(&self.ours.stdout), dup(&self.ours.stderr));
        tokio::pin!(call);
        let result = loop {
            tokio::select! {
                biased;
                result = &mut call => break result,
                bytes = some(&mut out) => { let _ = bytes; }
                bytes = some(&mut err) => keep(&mut self.stderr, &bytes),
            }
        };
        if result.is_err() {
            // What is left in the pipe are its last words.
            for _ in 0..16 {
                let Some(pipe) = &err else { break };
                let mut buffer = [0u8; 8192];
                match pipe.try_read(&mut buffer) {
                    Ok(n) if n > 0 => keep(&mut self.stderr, &buffer[..n]),
                    _ => break,
                }
            }
        }
        result
    }

    /// Gives our ends to the hub.
    ///
    /// # Errors
    /// If the hub cannot watch them.
    pub fn hand_over(&mut self, hub: &Arc<Hub>) -> io::Result<()> {
        if let Some(fd) = self.ours.stdout.take() {
            hub.add_output(Stream::Stdout, fd)?;
        }
        if let Some(fd) = self.ours.stderr.take() {
            hub.add_output(Stream::Stderr, fd)?;
        }
        if let Some(fd) = self.ours.stdin.take() {
            hub.set_stdin(fd)?;
        }
        Ok(())
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = OUTPUT_MAX.saturating_sub(kept.len()).min(bytes.len());
    kept.extend_from_slice(&bytes[..room]);
}

/// The next bytes of a pipe; waits for ever once it is closed.
async fn some(pipe: &mut Option<pipe::Receiver>) -> Vec<u8> {
    while let Some(reader) = pipe.as_ref() {
        if reader.readable().await.is_err() {
            break;
        }
        let mut buffer = [0u8; 8192];
        match reader.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => return buffer[..n].to_vec(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    *pipe = None;
    std::future::pending().await
}
