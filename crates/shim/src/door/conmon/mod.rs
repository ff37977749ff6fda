//! The conmon door: argv, pipes, files and sockets of conmon 2.2, for Podman and CRI-O.
//!
//! `boot` does everything before there is an event loop: arguments, the first gate, becoming a daemon.
//! `session` then launches the runtime and watches the container; `exit` leaves what callers look for.

mod boot;
mod diag;
mod exit;
mod logpath;
mod logs;
mod native;
mod notify;
mod options;
mod pipes;
mod places;
mod runtime;
mod session;
mod trace;

use std::ffi::OsString;
use std::process::ExitCode;

use boot::Started;

/// Runs as conmon; `args` without the program's name.
///
/// Must be called first thing in a process with one thread: what is open then is the caller's, and the
/// process forks.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let boot = match boot::start(args) {
        Started::Done(status) => return ExitCode::from(status),
        Started::Failed => return ExitCode::FAILURE,
        Started::Monitor(boot) => boot,
    };
    match crate::engine::idle::runtime() {
        // On the heap once, instead of twice on a stack that stays.
        Ok(runtime) => ExitCode::from(runtime.block_on(Box::pin(session::run(*boot)))),
        Err(error) => boot.refuse(&format!("Failed to start the event loop {}", pipes::strerror(&error))),
    }
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz_log_path(values: &[Vec<u8>]) -> bool {
    logpath::parse(values).is_ok()
}
