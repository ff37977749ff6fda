//! The tasks of the repository: `cargo xtask TASK`.
//!
//! Each task is a module with one `run`; this file only chooses. Nothing here is linked into what is
//! shipped, and nothing here depends on the crates it builds.

mod api_check;
mod bench;
mod budget;
mod build;
mod census;
mod ci;
mod codegen;
mod demo;
mod deny;
mod dist;
mod fuzz;
mod msrv;
mod newer;
mod nostd;
mod packages;
mod sh;
mod soak;
mod spec;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
usage: cargo xtask TASK [options]

  deny [--advisories]           dependencies against deny.toml (cargo-deny)
  demo                          a container's whole life, told step by step; leaves nothing behind
  test [TARGET...] [-- FILTER]  install what is missing, build, run every test (or the named targets)
       --full                   the full counts instead of the scaled ones
       --dist                   the static release programs instead of the debug build
       --vm                     only those that run in a guest (tests/vm/run)
       --list                   only list the test targets
  ci                            what decides about a change: fmt, clippy, doc, checks, tests
  bench [--quick] [GROUP...]    measure beside conmon, the Go shim and the floor (docs/measuring.md)
  codegen [--check]             regenerate the protocol crate from /proto (or compare)
  dist                          static release programs under their installed names, in target/dist
  fuzz [--seconds N] [--sanitizer none|address] [--list] [TARGET...]
                                search with the fuzz targets (60 s each; needs nightly and cargo-fuzz)
  msrv                          check what is shipped with the pinned Rust, and package what is published
  nostd                         build the core for a machine without an operating system
  tidy                          house rules that neither the compiler nor clippy knows
  budget                        size, idle memory and system calls of the release shim against their limits
  spec-check                    every promise of docs/SPECIFICATION.md names a proof that exists
  api-check                     every row of docs/runtime-api.md names an item and a test that exist
  packages [--print]            install the distribution packages that tests need
  soak [--minutes N] [--seed S] [--life K] [--jobs N] [--verbose] [--release]
                                random lives of containers with random faults, judged by a model
  newer [--again]               unpack the next Debian release's criu and guest kernel (target/newer)
  doors                         build the shim and link it under its other names
";

fn dispatch(task: &str, args: Vec<std::ffi::OsString>) -> Result<()> {
    match task {
        "api-check" => api_check::run(&sh::root()),
        "test" => test::run(args),
        "bench" => bench::run(args),
        "budget" => budget::run(args),
        "ci" => ci::run(args),
        "codegen" => codegen::run(&sh::root(), args.iter().any(|a| a == "--check")),
        "demo" => demo::run(args),
        "deny" => deny::run(args),
        "dist" => dist::run(args),
        "fuzz" => fuzz::run(args),
        "msrv" => msrv::run(args),
        "nostd" => nostd::run(args),
        "spec-check" => spec::run(args),
        "tidy" => tidy::run(args),
        "packages" => packages::run(args),
        "soak" => soak::run(args),
        "newer" => newer::run(args),
        "doors" => build::run(args),
        "help" | "-h" | "--help" => {
            print!("{HELP}");
            Ok(())
        }
        other => bail!("unknown task {other}\n\n{HELP}"),
    }
}

/// Gives every signal its default action back. What starts us in the background (`nohup`, a shell's `&`, many CI
/// runners) ignores SIGHUP, SIGINT or SIGQUIT, and every process of every test would inherit that.
fn default_signals() {
    use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
    for number in
        Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP | Signal::SIGPIPE))
    {
        // SAFETY: no handler is installed, and no other thread runs yet.
        #[allow(unsafe_code)]
        let _ = unsafe { signal(number, SigHandler::SigDfl) };
    }
    let _ = SigSet::empty().thread_set_mask();
}

fn main() -> ExitCode {
    default_signals();
    let mut args = std::env::args_os().skip(1);
    let task = args.next().and_then(|t| t.into_string().ok()).unwrap_or_else(|| "help".into());
    match std::env::set_current_dir(sh::root())
        .map_err(anyhow::Error::from)
        .and_then(|()| dispatch(&task, args.collect()))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask {task}: {e:#}");
            ExitCode::FAILURE
        }
    }
}
