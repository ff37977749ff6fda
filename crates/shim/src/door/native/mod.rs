//! The native door: ttrpc on `monitor.sock`, packets on `stdio.sock` and `attach.sock`, files beside them.

pub(super) mod args;
pub(super) mod convert;
pub(super) mod embed;
mod listen;
mod service;
pub(super) mod signals;
mod start;
mod stdio_sock;
mod upgrade;

use args::{Args, Command};
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the door with the arguments after the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    match Args::parse(args) {
        Ok(Command::Version) => {
            println!("pintle-shim version {}", crate::engine::persist::VERSION);
            ExitCode::SUCCESS
        }
        Ok(Command::Help) => {
            print!("{}", args::HELP);
            ExitCode::SUCCESS
        }
        Ok(Command::CheckState(version)) => match upgrade::understands(&version) {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => {
                eprintln!("{message}");
                ExitCode::from(3)
            }
        },
        Ok(Command::Run(args)) => start::run(args),
        Err(message) => {
            eprintln!("pintle-shim: {message}");
            ExitCode::from(2)
        }
    }
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz_arguments(args: Vec<std::ffi::OsString>) {
    if let Err(message) = args::Args::parse(args) {
        assert!(!message.is_empty());
    }
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz_create(request: pintle_proto::monitor::CreateRequest) -> crate::engine::spec::CreateSpec {
    convert::create_spec(request, None, "runc")
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz_handover(text: &[u8]) -> Result<(), serde_json::Error> {
    upgrade::fuzz(text)
}
