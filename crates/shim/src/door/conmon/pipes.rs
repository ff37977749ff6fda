//! The pipes that a caller hands over by number in the environment.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use pintle_core::sync::{self, Key};
use pintle_sys::startup::Inherited;

pub(super) const SYNC: &str = "_OCI_SYNCPIPE";
pub(super) const START: &str = "_OCI_STARTPIPE";
pub(super) const ATTACH: &str = "_OCI_ATTACHPIPE";

/// A gate consumes what one read of this size gives: callers write several bytes into a FIFO for one gate.
const GATE_BUFFER: usize = 8192;

/// Takes the pipe that the variable names; `None` if it is not set.
pub(super) fn take(inherited: &mut Inherited, variable: &str) -> Result<Option<OwnedFd>, String> {
    let Some(value) = std::env::var_os(variable) else {
        return Ok(None);
    };
    let digits = value.to_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let Some(fd) = digits.and_then(|text| text.parse().ok()) else {
        return Err(format!("unable to parse {variable} {}", value.to_string_lossy()));
    };
    match inherited.take(fd) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) => Err(format!("unable to make {variable} CLOEXEC {}", strerror(&error))),
    }
}

/// Waits until the caller opens the gate. The end of the pipe opens it too: callers may just close it.
pub(super) fn pass_gate(gate: &OwnedFd) -> io::Result<()> {
    let mut gate = File::from(gate.try_clone()?);
    let mut buffer = [0; GATE_BUFFER];
    loop {
        match gate.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(()),
        }
    }
}

/// The side of a pipe on which the caller reads messages.
#[derive(Debug)]
pub(super) struct Messages {
    pipe: Option<File>,
    key: Key,
}

impl Messages {
    pub(super) fn new(pipe: Option<OwnedFd>, key: Key) -> Self {
        Self { pipe: pipe.map(File::from), key }
    }

    /// Sends one message as one write. A caller that is gone is not an error: the container goes on.
    pub(super) fn send(&mut self, number: i64, text: &[u8]) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(());
        };
        let message = sync::encode(self.key, number, text);
        let sent = loop {
            match pipe.write(&message) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match sent {
            Ok(count) if count == message.len() => Ok(()),
            Ok(count) => {
                self.pipe = None;
                Err(io::Error::other(format!("short write of {count} bytes")))
            }
            Err(error) => {
                self.pipe = None;
                // CRI-O's pipe is a pair of sockets: the end of one with something unread is a reset.
                let gone = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
                if gone.contains(&error.kind()) { Ok(()) } else { Err(error) }
            }
        }
    }

    pub(super) fn close(&mut self) {
        self.pipe = None;
    }
}

/// The text of an error as C programs print it.
pub(super) fn strerror(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(code) => text.strip_suffix(&format!(" (os error {code})")).unwrap_or(&text).to_owned(),
        None => text,
    }
}
