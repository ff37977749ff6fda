//! What is promised to build with the pinned Rust (`rust-version`) builds with it, and what is published can be packaged.

use std::ffi::OsString;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::sh;

/// What users build; tests, benches and tasks may need a newer Rust.
const SHIPPED: &[&str] =
    &["pintle-core", "pintle-sys", "pintle-proto", "pintle-client", "pintle-shim", "pintle-cli"];
/// What is published as a library.
const PUBLISHED: &[&str] = &["pintle-core", "pintle-sys", "pintle-proto", "pintle-client"];

pub(crate) fn run(_args: Vec<OsString>) -> Result<()> {
    let mut package = sh::cargo();
    package.args(["package", "--offline", "--no-verify", "--allow-dirty", "--quiet"]);
    sh::run(package.args(PUBLISHED.iter().flat_map(|name| ["--package", name])))?;

    let manifest = fs::read_to_string("Cargo.toml").context("read Cargo.toml")?;
    let version = manifest
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = \"")?.strip_suffix('"'))
        .context("Cargo.toml pins no rust-version")?;
    let toolchain = format!("{version}.0");
    if !have(&toolchain) {
        println!("skip: Rust {toolchain} is not installed and cannot be fetched; 1 check skipped");
        return Ok(());
    }
    // The variables of the toolchain that runs this would win over the one asked for.
    let mut check = Command::new("rustup");
    check.current_dir(sh::root()).env_remove("CARGO").env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
    check.args(["run", &toolchain, "cargo", "check", "--locked", "--quiet", "--target-dir"]);
    check.arg(sh::target().join("msrv"));
    sh::run(check.args(SHIPPED.iter().flat_map(|name| ["--package", name])))
}

/// Whether a toolchain is there, or can be had.
fn have(toolchain: &str) -> bool {
    let installed = || {
        sh::output(Command::new("rustup").args(["toolchain", "list"]))
            .is_ok_and(|list| list.lines().any(|line| line.starts_with(toolchain)))
    };
    if installed() {
        return true;
    }
    let mut install = Command::new("rustup");
    install.args(["toolchain", "install", toolchain, "--profile", "minimal", "--no-self-update"]);
    let _ = sh::capture(&mut install, Duration::from_secs(150));
    installed()
}
