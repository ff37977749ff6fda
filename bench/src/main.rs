//! Paired measurements: pintle, Debian's conmon and the floor of kernel and runtime, in one run.
//!
//! `pintle-bench --dist DIR --out DIR [--quick] [--markdown FILE] [GROUP...]`; called by `cargo xtask bench`.

mod groups;
mod lab;
mod measure;
mod report;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use groups::{GROUPS, Scale};
use report::Report;

fn main() -> Result<()> {
    let (mut dist, mut out, mut markdown, mut quick, mut wanted) = (None, None, None, false, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().map(PathBuf::from).with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--dist" => dist = Some(value()?),
            "--out" => out = Some(value()?),
            "--markdown" => markdown = Some(value()?),
            "--quick" => quick = true,
            name if GROUPS.iter().any(|g| g.0 == name) => wanted.push(name.to_owned()),
            other => bail!(
                "unknown group {other:?}; there are {}",
                GROUPS.iter().map(|g| g.0).collect::<Vec<_>>().join(", ")
            ),
        }
    }
    let dist = dist.context("--dist DIR is needed")?;
    let out = out.context("--out DIR is needed")?;
    ensure!(nix::unistd::geteuid().is_root(), "the bench needs root: cgroups and runc");
    // Monitors daemonise; as their subreaper this process gets their CPU time.
    nix::sys::prctl::set_child_subreaper(true)?;
    let load = std::env::current_exe()?.with_file_name("pintle-bench-load");
    let scale = Scale { quick };
    let mut report = Report { machine: machine(), ..Report::default() };
    println!("{}", report.machine);
    for (name, run) in GROUPS {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == name) {
            continue;
        }
        println!("{name}");
        // A lab for each group: what a failed one leaves is ended before the next begins.
        let lab = lab::Lab::new(&dist, &load)?;
        if let Err(why) = run(&lab, &mut report, scale) {
            println!("  group {name} failed: {why:#}");
            report.failed.push(((*name).to_owned(), format!("{why:#}")));
        }
    }
    println!("goals");
    for g in &report.goals {
        println!(
            "  {:<60} {:<14} {:<14} {}",
            g.what,
            g.goal,
            g.reached,
            if g.met { "met" } else { "NOT MET" }
        );
    }
    report.write(&out, markdown.as_deref())?;
    ensure!(report.failed.is_empty(), "{} groups failed", report.failed.len());
    Ok(())
}

/// One line about the machine.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo")
        .lines()
        .find_map(|l| l.strip_prefix("model name").map(|v| v.trim_start_matches(['\t', ' ', ':']).to_owned()))
        .unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let version = |program: &str| {
        std::process::Command::new(program)
            .arg("--version")
            .output()
            .ok()
            .and_then(|o| String::from_utf8_lossy(&o.stdout).lines().next().map(str::to_owned))
            .unwrap_or_else(|| format!("{program}: not found"))
    };
    format!(
        "Machine: {cores} cores, {cpu}, Linux {}; {}; {}; load at the start {:.1}.",
        read("/proc/sys/kernel/osrelease").trim(),
        version("runc"),
        version("conmon"),
        measure::load()
    )
}
