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
    rust_shim(&args);
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

/// Builds containerd's Rust shim as one more peer for the whole bench; where that fails the bench goes without it.
///
/// 0.1.1, since containerd 1.6 does not take the answer of 0.2.
fn rust_shim(args: &[OsString]) {
    let root = sh::target().join("rust-shim");
    if !args.is_empty() && !args.iter().any(|a| a == "containerd") || root.join("bin").is_dir() {
        return;
    }
    let mut command = sh::cargo();
    command.args(["install", "--quiet", "--version", "0.1.1", "containerd-runc-shim", "--root"]).arg(&root);
    if let Err(why) = sh::run(&mut command) {
        eprintln!("without the Rust shim: {why:#}");
    }
}
