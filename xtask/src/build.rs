//! Building the two programs and giving the shim its other names.
//!
//! Engines look at the name of the executable file (`/proc/PID/exe`, `comm`), so each name is a file of
//! its own, hard-linked: a symbolic link would show the target's name.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::sh;

/// Every name under which the shim is installed.
pub(crate) const SHIM_NAMES: &[&str] = &["pintle-shim", "conmon", "containerd-shim-pintle-v2"];

pub(crate) fn run(_args: Vec<OsString>) -> Result<()> {
    println!("{}", doors()?.display());
    Ok(())
}

/// Builds for development and fills `target/doors`.
///
/// `next/pintle-shim` in it is another build, with another state version, for the tests of upgrades.
pub(crate) fn doors() -> Result<PathBuf> {
    let next = sh::target().join("doors/next");
    fs::create_dir_all(&next).with_context(|| format!("create {}", next.display()))?;
    sh::run(sh::cargo().args(["build", "--package", "pintle-shim", "--features", "next-version"]))?;
    link(&sh::target().join("debug/pintle-shim"), &next.join("pintle-shim"))?;
    sh::run(sh::cargo().args(["build", "--package", "pintle-shim", "--package", "pintle-cli"]))?;
    let dir = sh::target().join("doors");
    link_names(&sh::target().join("debug"), &dir)?;
    Ok(dir)
}

/// Links `pintle` and the shim's names from `built` into `dir`.
pub(crate) fn link_names(built: &Path, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    link(&built.join("pintle"), &dir.join("pintle"))?;
    for name in SHIM_NAMES {
        link(&built.join("pintle-shim"), &dir.join(name))?;
    }
    Ok(())
}

/// Puts `from` at `to` in one step, so that a running test never finds the name empty.
pub(crate) fn link(from: &Path, to: &Path) -> Result<()> {
    let tmp = to.with_extension(format!("new{}", std::process::id()));
    let _ = fs::remove_file(&tmp);
    fs::hard_link(from, &tmp)
        .or_else(|_| fs::copy(from, &tmp).map(|_| ()))
        .and_then(|()| fs::rename(&tmp, to))
        .with_context(|| format!("link {} to {}", from.display(), to.display()))?;
    // Renaming one hard link over another of the same file does nothing and leaves the first.
    let _ = fs::remove_file(&tmp);
    Ok(())
}
