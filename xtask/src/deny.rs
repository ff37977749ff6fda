//! Dependencies against `deny.toml`: bans, licenses, sources; and known vulnerabilities where their list can be had.

use std::ffi::OsString;

use anyhow::Result;

use crate::sh;

/// Runs `cargo deny`, or says that it is not there.
pub(crate) fn run(args: Vec<OsString>) -> Result<()> {
    if sh::which("cargo-deny").is_none() {
        println!("skip: cargo-deny is not installed; cargo install cargo-deny --locked");
        return Ok(());
    }
    sh::run(sh::cargo().args([
        "deny",
        "--offline",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ]))?;
    // The list is fetched: only where that was asked for.
    if args.iter().any(|a| a == "--advisories") {
        sh::run(sh::cargo().args(["deny", "check", "advisories"]))?;
    }
    Ok(())
}
