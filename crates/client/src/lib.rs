//! Async client of the pintle container monitor.
//!
//! A *shim* (`pintle-shim`) stands beside every container: it is the parent of the container's
//! processes, keeps their streams and log, and tells how they ended, whatever happens to the engine
//! that asked for them. This crate is the engine's side:
//!
//! * [`Monitor`] starts a shim or connects to one and offers every call of its protocol;
//! * [`Stdio`] is the streams of an attach or an exec as `AsyncRead` and `AsyncWrite` halves;
//! * [`scan`] finds the shims that live and how containers ended whose shim is gone;
//! * [`oci`] is the Runtime API known from CRI-O on top of it: containers, stores, handlers and the
//!   seventeen operations.
//!
//! Everything runs on the caller's tokio runtime, which needs I/O and time enabled.
#![deny(missing_docs)]

mod connection;
mod error;
mod events;
mod exec;
mod monitor;
mod options;
mod socket;
mod spawn;
mod state_dir;
mod stdio;
mod types;

#[cfg(any(fuzzing, test))]
pub mod fuzz;
pub mod oci;

pub use error::{CallError, Error, ErrorKind, Result};
pub use events::EventStream;
pub use exec::{Attached, Exec};
pub use monitor::{DEFAULT_TIMEOUT, Monitor};
pub use options::{
    CheckpointOptions, CreateOptions, ExecOptions, ExecSyncOptions, LogOptions, RestoreOptions,
    RuntimeOptions,
};
/// Messages of the protocol, for what has no type of its own here (parts of [`Stats`]).
pub use pintle_proto::monitor as proto;
pub use spawn::{SpawnConfig, default_shim};
pub use state_dir::{Entry, default_root, has_shim, read_exit_record, scan};
pub use stdio::{OutputReader, StdinWriter, Stdio, StdioControl, StdioEnd};
pub use types::{
    Event, EventKind, ExecOutput, ExecState, Exit, ExitReason, Info, IoCounters, ProcessId, State, Stats,
    Status,
};
