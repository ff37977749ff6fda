//! The containerd door: a runtime v2 shim for containerd 1.6 to 2.x and for CRI-O's `vm` runtime type.
//!
//! One process per container. It announces version 2 of the task protocol and serves versions 2 and 3, because version
//! 3 makes containerd 2.x send the other containers of a pod to the first one's shim (ADR 0030).

mod args;
mod container;
mod delete;
mod error;
mod execs;
mod info;
mod life;
mod log_program;
mod logger;
mod metrics;
mod mounts;
mod native;
mod ops;
mod options;
mod output;
mod paths;
mod process;
mod publisher;
mod runtime;
mod server;
mod start;
mod stdio;
mod task;

use std::ffi::OsString;
use std::process::ExitCode;

use args::{Action, Args};

/// Whether a command line is meant for this door, whatever the executable is called: containerd also takes an absolute
/// path as the name of a runtime.
pub fn is_ours(args: &[OsString]) -> bool {
    args.iter().any(|a| {
        matches!(
            a.to_str().map(|a| a.split('=').next().unwrap_or_default()),
            Some(
                "-namespace"
                    | "--namespace"
                    | "-publish-binary"
                    | "--publish-binary"
                    | "-info"
                    | "--info"
                    | "-v"
            )
        )
    })
}

/// Runs one of the commands containerd gives; `args` are those after the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let parsed = match Args::parse(args) {
        Ok(parsed) => parsed,
        Err(message) => return fail(&message),
    };
    let done = match parsed.action {
        Action::Version => info::version(),
        Action::Info => info::info(),
        Action::Start => start::run(&parsed),
        Action::Delete => delete::run(&parsed),
        Action::Serve => server::run(&parsed),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => fail(&message),
    }
}

fn fail(message: &str) -> ExitCode {
    use std::io::Write as _;
    // Nobody can be told that stderr is closed.
    let _ = writeln!(std::io::stderr(), "{message}");
    ExitCode::FAILURE
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz_arguments(args: Vec<std::ffi::OsString>) {
    if let Err(message) = args::Args::parse(args) {
        assert!(!message.is_empty());
    }
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz_options(input: &[u8]) -> Result<(), String> {
    options::fuzz(input);
    start::fuzz(input)
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz_config(bundle: &std::path::Path) {
    container::fuzz_config(bundle);
}
