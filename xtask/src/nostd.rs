//! The core must build where there is no operating system: then it cannot do input or output.

use std::ffi::OsString;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::sh;

const TARGET: &str = "x86_64-unknown-none";

pub(crate) fn run(_args: Vec<OsString>) -> Result<()> {
    let lib = fs::read_to_string("crates/core/src/lib.rs")?;
    for attribute in ["#![no_std]", "#![forbid(unsafe_code)]"] {
        if !lib.contains(attribute) {
            bail!("crates/core/src/lib.rs lacks {attribute}");
        }
    }
    if have_target() {
        return sh::run(sh::cargo().args(["build", "--package", "pintle-core", "--lib", "--target", TARGET]));
    }
    // Without the target the attribute above still keeps `std` out of scope, except where it is named
    // by an `extern crate`.
    eprintln!("notice: the target {TARGET} cannot be added; building the core for this machine instead");
    let extern_std =
        sh::output(Command::new("grep").args(["-rlE", r"extern\s+crate\s+std", "crates/core/src"]));
    if let Ok(files) = extern_std {
        for file in files.lines() {
            let text = fs::read_to_string(file)?;
            if !text.contains("#[cfg(test)]\nextern crate std") {
                bail!("{file} names std outside its tests");
            }
        }
    }
    sh::run(sh::cargo().args(["build", "--package", "pintle-core", "--lib"]))
}

fn have_target() -> bool {
    let installed = || {
        sh::output(Command::new("rustup").args(["target", "list", "--installed"]))
            .is_ok_and(|list| list.lines().any(|l| l.trim() == TARGET))
    };
    for _ in 0..3 {
        if installed() {
            return true;
        }
        let mut add = Command::new("rustup");
        add.args(["target", "add", TARGET]);
        if sh::capture(&mut add, Duration::from_secs(120)).is_err() {
            return false;
        }
    }
    installed()
}
