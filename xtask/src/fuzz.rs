//! `cargo xtask fuzz [--seconds N] [--sanitizer none|address] [--list] [TARGET...]`: the fuzz targets, one after the other.
//!
//! What a search finds beyond the committed seeds stays in `target/fuzz`, and is where the next search goes on.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::sh;

/// The crates with targets.
const CRATES: [&str; 3] = ["crates/client/fuzz", "crates/core/fuzz", "crates/shim/fuzz"];
/// Building may take this long on top of the search.
const BUILDING: Duration = Duration::from_secs(1800);

struct Target {
    krate: &'static str,
    name: String,
}

pub(crate) fn run(args: Vec<OsString>) -> Result<()> {
    let (mut seconds, mut sanitizer, mut list, mut wanted) = (60u64, "address".to_owned(), false, Vec::new());
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            lexopt::Arg::Long("seconds") => {
                let value = parser.value()?.to_string_lossy().into_owned();
                seconds = value.parse().with_context(|| format!("--seconds {value}: no number"))?;
            }
            lexopt::Arg::Long("sanitizer") => sanitizer = parser.value()?.to_string_lossy().into_owned(),
            lexopt::Arg::Long("list") => list = true,
            lexopt::Arg::Value(name) => wanted.push(name.to_string_lossy().into_owned()),
            other => return Err(other.unexpected().into()),
        }
    }
    let mut targets = all()?;
    for name in &wanted {
        if !targets.iter().any(|t| t.name == *name) {
            bail!("no fuzz target {name}; cargo xtask fuzz --list names them");
        }
    }
    targets.retain(|t| wanted.is_empty() || wanted.contains(&t.name));
    if list {
        targets.iter().for_each(|t| println!("{:<20} {}", t.name, t.krate));
        return Ok(());
    }
    ensure()?;
    let mut failed = Vec::new();
    for target in &targets {
        match search(target, seconds, &sanitizer)? {
            Ok(executions) => println!("{:<20} {executions:>12} executions  no finding", target.name),
            Err(what) => {
                println!("{:<20} FOUND\n{what}", target.name);
                failed.push(target.name.as_str());
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("findings in {}", failed.join(", ")) }
}

/// The targets, by their files.
fn all() -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for krate in CRATES {
        let dir = sh::root().join(krate).join("fuzz_targets");
        for entry in fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))? {
            let path = entry?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            targets.push(Target { krate, name });
        }
    }
    targets.sort_by(|a, b| (a.krate, &a.name).cmp(&(b.krate, &b.name)));
    Ok(targets)
}

fn ensure() -> Result<()> {
    let toolchains =
        sh::output(Command::new("rustup").args(["toolchain", "list"])).context("rustup is needed")?;
    if !toolchains.lines().any(|l| l.starts_with("nightly")) {
        bail!("the fuzz targets need a nightly compiler: rustup toolchain install nightly");
    }
    let found = sh::which("cargo-fuzz").is_some()
        || std::env::home_dir().is_some_and(|home| home.join(".cargo/bin/cargo-fuzz").is_file());
    if !found {
        bail!("cargo-fuzz is not installed: cargo install cargo-fuzz --locked");
    }
    Ok(())
}

/// Searches for so long; the number of executions, or the end of what the fuzzer said of its finding.
fn search(target: &Target, seconds: u64, sanitizer: &str) -> Result<Result<u64, String>> {
    let place = sh::target().join("fuzz");
    let grown: PathBuf = place.join("corpus").join(&target.name);
    let artifacts = place.join("artifacts").join(&target.name);
    for dir in [&grown, &artifacts] {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let mut c = Command::new("rustup");
    c.args(["run", "nightly", "cargo", "fuzz", "run", "--fuzz-dir", target.krate, "--sanitizer", sanitizer]);
    c.arg("--target-dir").arg(place.join("build")).arg(&target.name).arg(&grown);
    let seeds = Path::new(target.krate).join("corpus").join(&target.name);
    if sh::root().join(&seeds).is_dir() {
        c.arg(seeds);
    }
    c.arg("--").arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1");
    c.arg(format!("-artifact_prefix={}/", artifacts.display()));
    c.current_dir(sh::root()).env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
    let out = sh::capture(&mut c, BUILDING + Duration::from_secs(seconds))?;
    let executions = out
        .output
        .lines()
        .find_map(|l| l.strip_prefix("stat::number_of_executed_units:")?.trim().parse::<u64>().ok());
    // The fuzzer's own first words.
    if !out.output.contains("INFO: Seed:") {
        bail!("{} does not build or start:\n{}", target.name, sh::tail(&out.output, 40));
    }
    Ok(match (out.status.is_some_and(|s| s.success()), executions) {
        (true, Some(executions)) => Ok(executions),
        _ => Err(sh::tail(&out.output, 40)),
    })
}
