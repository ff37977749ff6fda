//! `cargo xtask soak`: random lives of containers with random faults (tests/src/soak).

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::{build, packages, sh};

/// Builds what is tested and what tests, then runs it; every option is passed on.
///
/// `--release` takes the programs of `cargo xtask dist` instead of those for development.
pub(crate) fn run(args: Vec<OsString>) -> Result<()> {
    packages::ensure_for_tests()?;
    let doors = if args.iter().any(|a| a == "--release") { crate::dist::dist()? } else { build::doors()? };
    sh::run(sh::cargo().args(["build", "--package", "pintle-tests", "--bin", "soak"]))?;
    let mut command = Command::new(sh::target().join("debug/soak"));
    command.env("PINTLE_DOORS", doors).args(args.iter().filter(|a| *a != "--release"));
    sh::run(&mut command)
}
