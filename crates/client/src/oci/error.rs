//! Errors of the Runtime API.

use nix::errno::Errno;
use std::{io, path::PathBuf};

/// Result of the Runtime API.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed. Match with [`Error::root`] to see through added words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The container has ended already.
    #[error("container is already stopped")]
    ContainerStopped,
    /// Its init process is gone, a zombie, or was told stopped by the runtime.
    #[error("container process not found")]
    ProcessNotFound,
    /// No init process was ever recorded.
    #[error("container PID not initialized")]
    PidNotInitialized,
    /// The recorded pid belongs to another process by now.
    #[error(
        "PID {pid} is running but has start time of {now}, whereas the saved start time is {saved}. PID wrap may have occurred"
    )]
    PidWrap {
        /// The recorded pid.
        pid: i32,
        /// Start time of the process that has it now.
        now: String,
        /// Start time that was recorded.
        saved: String,
    },
    /// The init process was recorded before.
    #[error("pid and start time already initialized: {pid} {start_time}")]
    InitPidAlreadySet {
        /// The recorded pid.
        pid: i32,
        /// The recorded start time.
        start_time: String,
    },
    /// A pid that would address a group of processes.
    #[error("failed to kill process: {0} is not the pid of a process")]
    BadPid(i32),
    /// The container is frozen.
    #[error("cannot stop paused container")]
    Paused,
    /// The container is being stopped: helpers may not be registered any more.
    #[error("cannot register an exec PID: container is stopping")]
    Stopping,
    /// The container is not in the state the operation needs.
    #[error("container {id} is not in {wanted} state: {status}")]
    WrongState {
        /// Id of the container.
        id: String,
        /// The state needed.
        wanted: &'static str,
        /// The state it is in.
        status: super::Status,
    },
    /// The runtime could not make the container.
    #[error("container create failed: {0}")]
    CreateFailed(String),
    /// The runtime could not restore the container.
    #[error("container restore failed: {0}")]
    RestoreFailed(String),
    /// The runtime did not make the container in time.
    #[error("create container timeout")]
    CreateTimeout,
    /// The command of an exec sync could not be run.
    #[error(transparent)]
    ExecSync(Box<super::ExecSyncError>),
    /// A configuration or a handler is wrong; the text says which.
    #[error("{0}")]
    Config(String),
    /// A signal without a name.
    #[error("unable to find signal {0}")]
    UnknownSignal(i32),
    /// No back end is registered for this type of runtime.
    #[error("no back end for runtime type \"{0}\"")]
    NoBackend(String),
    /// Not something this back end can do.
    #[error("{0}")]
    Unsupported(String),
    /// The operation needs a shim and none runs for the container.
    #[error("no monitor serves container {0}")]
    NoMonitor(String),
    /// A file or directory is at fault.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A system call failed.
    #[error(transparent)]
    System(io::Error),
    /// A document is not what it should be.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// The shim failed, or could not be reached.
    #[error(transparent)]
    Monitor(#[from] crate::Error),
    /// One of the above with words before it.
    #[error("{context}: {source}")]
    Context {
        /// The words.
        context: String,
        /// The cause.
        #[source]
        source: Box<Error>,
    },
}

impl Error {
    /// The same error with words before it.
    #[must_use]
    pub fn context(self, context: impl Into<String>) -> Self {
        Self::Context { context: context.into(), source: Box::new(self) }
    }

    /// The error under all added words.
    pub fn root(&self) -> &Self {
        let mut error = self;
        while let Self::Context { source, .. } = error {
            error = source;
        }
        error
    }

    /// Whether this is [`Error::ProcessNotFound`] (or the shim's word for it), whatever stands
    /// before it.
    pub fn is_not_found(&self) -> bool {
        match self.root() {
            Self::ProcessNotFound => true,
            Self::Monitor(error) => error.is_not_found(),
            Self::Io { source, .. } | Self::System(source) => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// Whether this is [`Error::ContainerStopped`], whatever stands before it.
    pub fn is_stopped(&self) -> bool {
        matches!(self.root(), Self::ContainerStopped)
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::System(errno.into())
    }
}
