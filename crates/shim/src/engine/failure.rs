//! Why an operation failed, in the terms of the protocol.

use super::runtime::{RuntimeError, RuntimeFailure};
use pintle_core::exit::Exit;
use std::fmt;
use std::io;
use std::path::Path;

/// Kinds of failures; each is one code of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// A value of the request is missing or wrong.
    InvalidArgument,
    /// No such container, exec or token.
    NotFound,
    /// The id is in use.
    AlreadyExists,
    /// The state does not allow the call.
    FailedPrecondition,
    /// The OCI runtime failed.
    RuntimeFailed,
    /// The OCI runtime could not be started.
    RuntimeNotFound,
    /// A system call failed.
    System,
    /// The time was up.
    DeadlineExceeded,
    /// A limit was reached.
    ResourceExhausted,
    /// Not possible here.
    Unsupported,
    /// The shim is ending or being replaced.
    Unavailable,
}

/// A failed operation.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What kind.
    pub kind: FailureKind,
    /// The object at fault: a path, an id, a flag.
    pub object: String,
    /// One line for people.
    pub message: String,
    /// The runtime's own words; may be empty.
    pub runtime_message: String,
    /// The runtime's exit status, 128 + signal, or 0.
    pub runtime_status: i32,
    /// errno of a failed system call, or 0.
    pub errno: i32,
}

impl Failure {
    /// A failure of `kind` about `object`.
    pub fn new(kind: FailureKind, object: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            kind,
            object: object.into(),
            message: message.into(),
            runtime_message: String::new(),
            runtime_status: 0,
            errno: 0,
        }
    }

    /// A wrong value in a request.
    pub fn invalid(object: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(FailureKind::InvalidArgument, object, message)
    }

    /// A call that the state does not allow.
    pub fn precondition(object: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(FailureKind::FailedPrecondition, object, message)
    }

    /// A failed system call while doing `what` with `object`.
    pub fn system(what: &str, object: impl Into<String>, error: &io::Error) -> Self {
        let object = object.into();
        let message = format!("{what} {object}: {error}");
        Self { errno: error.raw_os_error().unwrap_or(0), ..Self::new(FailureKind::System, object, message) }
    }

    /// A failed system call with a file.
    pub fn file(what: &str, path: &Path, error: &io::Error) -> Self {
        Self::system(what, path.display().to_string(), error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Self {
        let message = error.to_string();
        let object = error.path.display().to_string();
        let (kind, status, errno) = match &error.failure {
            RuntimeFailure::NotStarted(e) => (FailureKind::RuntimeNotFound, 0, e.raw_os_error().unwrap_or(0)),
            RuntimeFailure::Ended(exit) => (FailureKind::RuntimeFailed, exit.shell_code(), 0),
            RuntimeFailure::TimedOut(_) => {
                (FailureKind::DeadlineExceeded, Exit::Signal { signal: 9, core: false }.shell_code(), 0)
            }
            RuntimeFailure::Broken(_) => (FailureKind::RuntimeFailed, 0, 0),
        };
        Self { kind, object, message, runtime_message: error.message, runtime_status: status, errno }
    }
}
