//! Streams that callers hand to execs and attaches, and how they are copied.

use super::{Error, Result};
use crate::{OutputReader, StdinWriter, StdioControl};
use pintle_core::detach::{DETACH_KEYS, Detach};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

/// How long outputs are waited for after a command has ended.
pub(super) const OUTPUT_GRACE: Duration = Duration::from_secs(30);

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Where the streams of a process go.
pub struct Streams {
    /// Feeds its stdin.
    pub stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Gets its output; all of it with a terminal.
    pub stdout: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Gets its error output.
    pub stderr: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// It has a terminal.
    pub terminal: bool,
    /// Sizes of the terminal; one with a zero is skipped.
    pub resize: Option<mpsc::Receiver<TerminalSize>>,
    /// Keys that end an attach; empty: none.
    pub detach_keys: Vec<u8>,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            stdin: None,
            stdout: None,
            stderr: None,
            terminal: false,
            resize: None,
            detach_keys: DETACH_KEYS.to_vec(),
        }
    }
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").field("terminal", &self.terminal).finish_non_exhaustive()
    }
}

/// How a copy of input ended.
pub(super) enum InputEnd {
    /// The input has ended.
    Ended,
    /// The detach keys were pressed.
    Detached,
}

/// Copies input to stdin of a process. A process that reads no more ends it without an error.
pub(super) async fn copy_input(
    mut from: Box<dyn AsyncRead + Send + Unpin>,
    to: &mut StdinWriter,
    mut detach: Detach,
) -> io::Result<InputEnd> {
    let mut buffer = vec![0; 32 * 1024];
    let mut out = Vec::new();
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(InputEnd::Ended);
        }
        out.clear();
        let detached = detach.feed(&buffer[..n], &mut out);
        match to.write_all(&out).await {
            Err(error) if is_gone(&error) => return Ok(InputEnd::Ended),
            other => other?,
        }
        if detached {
            return Ok(InputEnd::Detached);
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::BrokenPipe | K::ConnectionReset | K::NotConnected)
}

/// Copies an output to where it is wanted; one that nobody wants is dropped, so that it stops
/// nothing.
pub(super) async fn copy_output(
    mut from: OutputReader,
    to: Option<Box<dyn AsyncWrite + Send + Unpin>>,
) -> io::Result<()> {
    let Some(mut to) = to else { return Ok(()) };
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..n]).await?;
        to.flush().await?;
    }
}

/// Passes sizes on until there are no more; one with a zero is skipped, trouble is logged.
pub(super) async fn pass_sizes(sizes: Option<mpsc::Receiver<TerminalSize>>, control: StdioControl) {
    let Some(mut sizes) = sizes else { return };
    while let Some(size) = sizes.recv().await {
        if size.width == 0 || size.height == 0 {
            continue;
        }
        if let Err(error) = control.resize(size.width, size.height).await {
            tracing::info!("{error}");
        }
    }
}

pub(super) fn stream_error(error: io::Error) -> Error {
    match error.downcast::<crate::Error>() {
        Ok(error) => error.into(),
        Err(error) => Error::System(error),
    }
}

pub(super) fn check_command(command: &[String]) -> Result<()> {
    if command.is_empty() {
        return Err(Error::Config("exec command cannot be empty".into()));
    }
    Ok(())
}
