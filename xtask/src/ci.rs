//! What decides about a change. Every step runs even if an earlier one failed; the end of the output
//! names what failed and shows it, since that is the part which people see first.

use std::ffi::OsString;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{packages, sh, test};

/// A step: its name and its command.
fn steps() -> Vec<(&'static str, Command)> {
    let cargo = |args: &[&str]| {
        let mut c = sh::cargo();
        c.args(args);
        c
    };
    let own = |task: &[&str]| {
        let mut c = Command::new(std::env::current_exe().unwrap_or_else(|_| "xtask".into()));
        c.args(task);
        c
    };
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    vec![
        ("fmt", cargo(&["fmt", "--all", "--check"])),
        ("tidy", own(&["tidy"])),
        ("codegen", own(&["codegen", "--check"])),
        ("spec", own(&["spec-check"])),
        ("api", own(&["api-check"])),
        ("nostd", own(&["nostd"])),
        ("deny", own(&["deny"])),
        (
            "clippy",
            cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"]),
        ),
        ("doc", doc),
        ("msrv", own(&["msrv"])),
        // Builds the release programs, and is deaf to the load of the machine.
        ("budget", own(&["budget"])),
    ]
}

pub(crate) fn run(_args: Vec<OsString>) -> Result<()> {
    let began = Instant::now();
    let mut failed: Vec<(String, String)> = Vec::new();
    let mut table = Vec::new();
    if let Err(e) = packages::ensure_for_tests() {
        failed.push(("packages".into(), format!("{e:#}")));
    }
    for (name, mut command) in steps() {
        eprintln!("== {name}: {}", sh::show(&command));
        let out = sh::capture(&mut command, Duration::from_secs(1800))?;
        let good = out.status.is_some_and(|s| s.success());
        table.push(format!(
            "{:<10} {:<6} {:>8}",
            name,
            if good { "ok" } else { "FAILED" },
            sh::secs(out.took)
        ));
        let skips: Vec<&str> = out.output.lines().filter(|line| line.starts_with("skip: ")).collect();
        table.extend(skips.iter().map(|skip| format!("{name:<10} {skip}")));
        if !good {
            eprintln!("{}", out.output);
            failed.push((name.into(), out.output));
        }
    }
    let tests = Instant::now();
    let result = test::all(&test::Options::default());
    table.push(format!(
        "{:<10} {:<6} {:>8}",
        "tests",
        if result.is_ok() { "ok" } else { "FAILED" },
        sh::secs(tests.elapsed())
    ));
    eprintln!("\n{}\n{:<17} {:>8}", table.join("\n"), "total", sh::secs(began.elapsed()));
    for (name, output) in &failed {
        eprintln!("\n== {name} failed:\n{}", sh::tail(output, 60));
    }
    match result {
        Ok(()) if failed.is_empty() => Ok(()),
        Ok(()) => bail!("failed: {}", failed.iter().map(|f| f.0.as_str()).collect::<Vec<_>>().join(", ")),
        Err(e) => Err(e),
    }
}
