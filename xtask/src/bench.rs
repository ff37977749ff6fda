//! `cargo xtask bench [--quick] [--commit] [GROUP...]`: measures the release binaries beside their peers.

use std::ffi::OsString;

use anyhow::Result;

use crate::{packages, sh};

/// Builds what is measured and what measures, then runs it.
///
/// `--commit` writes the table and the plots into `docs/`; all else is passed on.
pub(crate) fn run(args: Vec<OsString>) -> Result<()> {
    packages::ensure_for_tests()?;
    sh::run(sh::cargo().args(["xtask", "dist"]))?;
    // The load program runs inside containers without any library.
    let target = "x86_64-unknown-linux-gnu";
    sh::run(
        sh::cargo()
            .args(["build", "--release", "--package", "pintle-bench", "--target", target])
            .args(["--config", "profile.release.lto=false", "--config", "profile.release.codegen-units=16"])
            .env("RUSTFLAGS", "-C target-feature=+crt-static"),
    )?;
    let mut command = std::process::Command::new(sh::target().join(target).join("release/pintle-bench"));
    command.arg("--dist").arg(sh::target().join("dist")).arg("--out").arg(sh::target().join("bench"));
    for arg in args {
        if arg == "--commit" {
            command.arg("--markdown").arg(sh::root().join("docs/benchmarks.md"));
        } else {
            command.arg(arg);
        }
    }
    sh::run(&mut command)
}
