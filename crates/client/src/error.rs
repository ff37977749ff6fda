//! Why a call failed, by kind.

use pintle_proto::monitor::{ErrorCode as WireCode, ErrorInfo};
use protobuf::Message;
use std::{fmt, io, path::PathBuf, time::Duration};

/// Result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Kind of a failure that the shim reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A value of the request is missing or wrong.
    InvalidArgument,
    /// No such container, exec or token.
    NotFound,
    /// The id is in use.
    AlreadyExists,
    /// The state of the container does not allow the call.
    FailedPrecondition,
    /// The OCI runtime failed; its words are in [`CallError::runtime_message`].
    RuntimeFailed,
    /// The OCI runtime could not be started.
    RuntimeNotFound,
    /// A system call failed.
    System,
    /// The time was up.
    DeadlineExceeded,
    /// A limit (clients, execs, bytes) was reached.
    ResourceExhausted,
    /// This shim or this kernel cannot do it.
    Unsupported,
    /// The shim is ending or being replaced; connect again.
    Unavailable,
    /// A kind this version of the crate does not know.
    Other,
}

impl ErrorKind {
    fn from_wire(code: WireCode) -> Option<Self> {
        Some(match code {
            WireCode::INVALID_ARGUMENT => Self::InvalidArgument,
            WireCode::NOT_FOUND => Self::NotFound,
            WireCode::ALREADY_EXISTS => Self::AlreadyExists,
            WireCode::FAILED_PRECONDITION => Self::FailedPrecondition,
            WireCode::RUNTIME_FAILED => Self::RuntimeFailed,
            WireCode::RUNTIME_NOT_FOUND => Self::RuntimeNotFound,
            WireCode::SYSTEM => Self::System,
            WireCode::DEADLINE_EXCEEDED => Self::DeadlineExceeded,
            WireCode::RESOURCE_EXHAUSTED => Self::ResourceExhausted,
            WireCode::UNSUPPORTED => Self::Unsupported,
            WireCode::UNAVAILABLE => Self::Unavailable,
            WireCode::ERROR_CODE_UNSPECIFIED => return None,
        })
    }

    fn from_status(code: ttrpc::Code) -> Self {
        match code {
            ttrpc::Code::INVALID_ARGUMENT | ttrpc::Code::OUT_OF_RANGE => Self::InvalidArgument,
            ttrpc::Code::NOT_FOUND => Self::NotFound,
            ttrpc::Code::ALREADY_EXISTS => Self::AlreadyExists,
            ttrpc::Code::FAILED_PRECONDITION | ttrpc::Code::ABORTED => Self::FailedPrecondition,
            ttrpc::Code::DEADLINE_EXCEEDED => Self::DeadlineExceeded,
            ttrpc::Code::RESOURCE_EXHAUSTED => Self::ResourceExhausted,
            ttrpc::Code::UNIMPLEMENTED => Self::Unsupported,
            ttrpc::Code::UNAVAILABLE => Self::Unavailable,
            _ => Self::Other,
        }
    }
}

/// A failure that the shim reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallError {
    /// Its kind.
    pub kind: ErrorKind,
    /// One line for people.
    pub message: String,
    /// The object at fault: a path, an id, a flag. May be empty.
    pub object: String,
    /// The runtime's own words, if one of its commands failed.
    pub runtime_message: String,
    /// Exit status of the runtime, if one of its commands failed.
    pub runtime_status: i32,
    /// errno, if a system call failed; else 0.
    pub errno: i32,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CallError {}

impl CallError {
    fn from_status(status: &ttrpc::Status) -> Self {
        let detail = status.details.iter().find(|any| any.type_url.ends_with("ErrorInfo"));
        let info = detail.and_then(|any| ErrorInfo::parse_from_bytes(&any.value).ok()).unwrap_or_default();
        let kind = ErrorKind::from_wire(info.code.enum_value_or_default());
        Self {
            kind: kind
                .unwrap_or_else(|| ErrorKind::from_status(status.code.enum_value_or(ttrpc::Code::UNKNOWN))),
            message: status.message.clone(),
            object: info.object,
            runtime_message: info.runtime_message,
            runtime_status: info.runtime_status,
            errno: info.errno,
        }
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The shim answered with an error.
    #[error(transparent)]
    Call(#[from] CallError),
    /// No shim serves this directory: it has ended, or was never started.
    #[error("no shim serves {}", dir.display())]
    NotRunning {
        /// State directory of the container.
        dir: PathBuf,
    },
    /// The connection broke while the call was under way. A changing call may have been carried
    /// out; ask for the state.
    #[error("connection to the shim of {} was lost: {reason}", dir.display())]
    Disconnected {
        /// State directory of the container.
        dir: PathBuf,
        /// What the transport said.
        reason: String,
    },
    /// The call's own time limit was up. A changing call goes on in the shim.
    #[error("the shim of {} did not answer `{call}` within {limit:?}", dir.display())]
    Timeout {
        /// State directory of the container.
        dir: PathBuf,
        /// Name of the call.
        call: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// A shim could not be started.
    #[error("starting {}: {message}", shim.display())]
    Spawn {
        /// Executable of the shim.
        shim: PathBuf,
        /// What went wrong, in the shim's words if it had any.
        message: String,
    },
    /// A local system call or file failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done to what.
        context: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The shim dropped this client of its stdio.
    #[error("the shim dropped this stdio client: {0}")]
    Dropped(String),
    /// A path that is not UTF-8 cannot be told to the shim.
    #[error("path {} is not UTF-8", path.display())]
    BadPath {
        /// The path.
        path: PathBuf,
    },
    /// The answer broke the protocol.
    #[error("malformed answer: {0}")]
    Protocol(String),
}

impl Error {
    /// The kind the shim gave, if the shim answered.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Call(call) => Some(call.kind),
            _ => None,
        }
    }

    /// No such container, exec or token.
    pub fn is_not_found(&self) -> bool {
        self.kind() == Some(ErrorKind::NotFound)
    }

    /// Nobody answers: the shim has ended, is ending, or the connection broke.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::NotRunning { .. } | Self::Disconnected { .. })
            || self.kind() == Some(ErrorKind::Unavailable)
    }

    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }

    pub(crate) fn from_ttrpc(error: ttrpc::Error, dir: &std::path::Path) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => Self::Call(CallError::from_status(&status)),
            other => Self::Disconnected { dir: dir.to_path_buf(), reason: other.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_beat_the_status_code() {
        let mut info = ErrorInfo::new();
        info.code = WireCode::RUNTIME_FAILED.into();
        info.object = "c1".into();
        info.runtime_message = "no such file".into();
        info.runtime_status = 1;
        let mut any = ttrpc::proto::Any::new();
        any.type_url = "type.googleapis.com/pintle.monitor.v1.ErrorInfo".into();
        any.value = info.write_to_bytes().unwrap();
        let mut status = ttrpc::get_status(ttrpc::Code::INTERNAL, "runtime failed");
        let plain = CallError::from_status(&status);
        assert_eq!(plain.kind, ErrorKind::Other);
        status.details.push(any);
        let call = CallError::from_status(&status);
        assert_eq!(call.kind, ErrorKind::RuntimeFailed);
        assert_eq!((call.object.as_str(), call.runtime_status), ("c1", 1));
        assert_eq!(call.to_string(), "runtime failed");
    }

    #[test]
    fn status_codes_without_details() {
        let status = ttrpc::get_status(ttrpc::Code::NOT_FOUND, "no");
        let error = Error::from_ttrpc(ttrpc::Error::RpcStatus(status), "/d".as_ref());
        assert!(error.is_not_found());
        let error = Error::from_ttrpc(ttrpc::Error::RemoteClosed, "/d".as_ref());
        assert!(error.is_unreachable());
    }
}
