//! Release programs that run on any Linux of their architecture, under their installed names.
//!
//! Static musl without position independence: measured beside static and dynamic glibc it has the smallest private
//! memory and the smallest program, and its log is as fast (docs/adr/0006-static-release.md).

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{build, sh};

pub(crate) fn run(_args: Vec<OsString>) -> Result<()> {
    let dir = dist()?;
    for name in ["pintle"].iter().chain(build::SHIM_NAMES) {
        let path = dir.join(name);
        let meta = fs::metadata(&path)?;
        println!("{:>9} bytes  inode {}  {}", meta.len(), meta.ino(), path.display());
    }
    Ok(())
}

/// Builds `target/dist` and returns it.
pub(crate) fn dist() -> Result<PathBuf> {
    let built = release(&["--package", "pintle-shim", "--package", "pintle-cli"])?;
    for name in ["pintle", "pintle-shim"] {
        check_static(&built.join(name))?;
    }
    let dir = sh::target().join("dist");
    build::link_names(&built, &dir)?;
    Ok(dir)
}

/// As [`dist`], with `next/pintle-shim` for the tests of upgrades, as [`build::doors`] has it.
pub(crate) fn with_next() -> Result<PathBuf> {
    let built = release(&["--package", "pintle-shim", "--features", "next-version"])?;
    let next = sh::target().join("dist/next");
    fs::create_dir_all(&next).with_context(|| format!("create {}", next.display()))?;
    build::link(&built.join("pintle-shim"), &next.join("pintle-shim"))?;
    dist()
}

/// Builds static release programs; gives where they are.
fn release(what: &[&str]) -> Result<PathBuf> {
    let host = target()?;
    let mut c = sh::cargo();
    // Naming the target keeps the flags away from build scripts and macros.
    c.args(["build", "--release", "--target", &host])
        .args(what)
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    sh::run(&mut c)?;
    Ok(sh::target().join(&host).join("release"))
}

/// The target that is built for: musl for this machine's architecture, or where its standard library is not there and cannot
/// be fetched, this machine's own (static glibc, some 20 kB more private memory).
fn target() -> Result<String> {
    let version = sh::output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|l| l.strip_prefix("host: ")).context("rustc -vV names no host")?;
    let musl = host.replace("-gnu", "-musl");
    let there = || {
        let path = sh::output(Command::new("rustc").args(["--print", "target-libdir", "--target", &musl]));
        path.is_ok_and(|p| Path::new(p.trim()).join("self-contained").exists())
    };
    if !there() {
        let _ = sh::run(Command::new("rustup").args(["target", "add", &musl]));
    }
    if there() {
        return Ok(musl);
    }
    eprintln!("notice: no standard library for {musl}, building for {host}");
    Ok(host.to_owned())
}

/// Fails unless the program needs no loader and no libraries.
fn check_static(path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    match interpreter(&bytes) {
        Some(false) => Ok(()),
        Some(true) => bail!("{} is not static", path.display()),
        None => bail!("{} is not a 64-bit little-endian ELF program", path.display()),
    }
}

/// Whether the ELF program asks for a loader; None when it is not one that we can read.
fn interpreter(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let half = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let table = u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?) as usize;
    let (size, count) = (usize::from(half(54)?), usize::from(half(56)?));
    for i in 0..count {
        let at = table.checked_add(i * size)?;
        if u32::from_le_bytes(elf.get(at..at + 4)?.try_into().ok()?) == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::interpreter;

    #[test]
    fn reads_program_headers() {
        assert_eq!(interpreter(b"#!/bin/sh"), None);
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(interpreter(&own), Some(true));
    }
}
