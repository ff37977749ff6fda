//! What is left for callers when a container has ended: exit files, oom files and the exit command.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use pintle_sys::atomic::{self, Durability};
use pintle_sys::fork::{self, Side};
use pintle_sys::{disposition, process};

use super::boot::Origin;
use super::options::Options;
use super::pipes::strerror;
use super::runtime::{clean_env, restore_signals, to_c};

/// The code that callers read where none is known: after a timeout, or where a status was lost.
pub(super) const UNKNOWN: i32 = -1;

/// Writes the exit files in the order in which callers look at them. All are attempted; returns what failed.
pub(super) fn write_files(options: &Options, code: i32) -> Vec<String> {
    let persist = options.persist_dir.as_ref().map(|dir| dir.join("exit"));
    let named = options.exit_dir.as_ref().map(|dir| dir.join(&options.cid));
    let mut failed = Vec::new();
    for path in [persist, named].into_iter().flatten() {
        // Decimal without a newline: callers convert the whole content.
        if let Err(error) = atomic::write(&path, code.to_string().as_bytes(), 0o644, Durability::Durable) {
            failed.push(format!(
                "Failed to write {code} to exit file: {}: {}",
                path.display(),
                strerror(&error)
            ));
        }
    }
    failed
}

/// Creates the files that say "out of memory". All are attempted; returns what failed.
pub(super) fn write_oom_files(options: &Options) -> Vec<String> {
    let places: [Option<&PathBuf>; 2] = [options.persist_dir.as_ref(), options.bundle.as_ref()];
    let paths = places.into_iter().flatten().map(|dir| dir.join("oom"));
    let failed = paths.filter_map(|path| {
        let created = File::options().write(true).create(true).truncate(false).mode(0o666).open(&path);
        created
            .err()
            .map(|error| format!("Failed to write oom file {}: {}", path.display(), strerror(&error)))
    });
    failed.collect()
}

/// Starts the exit command; the caller waits for the pid.
pub(super) fn run_command(options: &Options, origin: &Origin) -> io::Result<Option<Pid>> {
    let Some(command) = &options.exit_command else {
        return Ok(None);
    };
    let argv = std::iter::once(command).chain(&options.exit_command_args);
    let argv = to_c(argv.map(|arg| arg.as_bytes()))?;
    // What the exit command leaves behind is not for this process to collect.
    let _ = set_child_subreaper(false);
    match fork::fork()? {
        Side::Parent(pid) => Ok(Some(pid)),
        Side::Child => become_command(options, origin, &argv),
    }
}

fn become_command(options: &Options, origin: &Origin, argv: &[std::ffi::CString]) -> ! {
    restore_signals(origin);
    let _ = disposition::reset(Signal::SIGPIPE);
    fork::close_all_but_stdio();
    std::thread::sleep(Duration::from_secs(options.exit_delay));
    if let Some(score) = origin.oom_score {
        let _ = process::set_oom_score_adj(score);
    }
    if let (Some(program), Ok(env)) = (argv.first(), to_c(clean_env().iter().map(Vec::as_slice))) {
        let _ = fork::execute(program, argv, &env);
    }
    fork::exit_now(1)
}

/// Reads the pid that the runtime has written.
///
/// A caller may have created the file empty, so "no number" is an error of its own and never pid 0.
pub(super) fn read_pidfile(path: &Path) -> Result<i32, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("Failed to open file “{}”: {}", path.display(), strerror(&error)))?;
    match text.trim().parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(format!("Failed to read a pid from “{}”", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pidfile_holds_a_positive_number() {
        let path = std::env::temp_dir().join(format!("pintle-pidfile-{}", std::process::id()));
        let read = |text: &str| {
            std::fs::write(&path, text).expect("write");
            read_pidfile(&path)
        };
        assert_eq!(read("42"), Ok(42));
        assert_eq!(read("42\n"), Ok(42));
        for bad in ["", "0", "-3", "x", "99999999999999"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        std::fs::remove_file(&path).expect("remove");
        let error = read_pidfile(&path).expect_err("missing");
        assert!(error.ends_with("No such file or directory"), "{error}");
    }
}
