//! The one invocation of the OCI runtime: its argument vector, and the child that becomes it.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode as FileMode, fchmod};
use nix::unistd::{Pid, getpid, getppid};
use pintle_sys::fork::{self, Side};
use pintle_sys::{disposition, process};

use super::boot::{Origin, SURVIVED};
use super::diag::{Diag, Level};
use super::options::{Mode, Options};
use super::pipes;

/// Bytes of a process's document; a longer one is left as it is.
const PROCESS_MAX: u64 = 16 << 20;

/// Signals that the monitor passes on.
pub(super) const FORWARDED: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT];

/// The runtime's argument vector, program first; `process` takes the place of the caller's process of an exec.
pub(super) fn argv(
    options: &Options,
    console_socket: Option<&Path>,
    process: Option<&Path>,
) -> Vec<OsString> {
    let mut argv = vec![options.runtime.clone()];
    let mut push = |items: &[&OsStr]| argv.extend(items.iter().map(|item| item.to_os_string()));
    let s = OsStr::new;
    let pidfile = options.container_pidfile.as_os_str();
    let bundle = options.bundle.as_deref().map(Path::as_os_str).unwrap_or_default();
    if options.systemd_cgroup && !options.mode.is_exec() {
        push(&[s("--systemd-cgroup")]);
    }
    options.runtime_args.iter().for_each(|arg| push(&[arg]));
    match &options.mode {
        Mode::Exec { process: given, .. } => {
            let process = process.map_or(given.as_os_str(), Path::as_os_str);
            // The long form: gVisor knows no other.
            push(&[s("exec"), s("--pid-file"), pidfile, s("--process"), process, s("--detach")]);
        }
        Mode::Create | Mode::Restore(_) => {
            let command = if options.mode == Mode::Create { "create" } else { "restore" };
            push(&[s(command), s("--bundle"), bundle, s("--pid-file"), pidfile]);
            if options.no_pivot {
                push(&[s("--no-pivot")]);
            }
            if options.no_new_keyring {
                push(&[s("--no-new-keyring")]);
            }
        }
    }
    if let Mode::Restore(image) = &options.mode {
        push(&[s("--detach"), s("--image-path"), image, s("--work-path"), bundle]);
    }
    options.runtime_opts.iter().for_each(|opt| push(&[opt]));
    if let Some(socket) = console_socket {
        push(&[s("--console-socket"), socket.as_os_str()]);
    }
    push(&[&options.cid]);
    argv
}

/// The process of an exec with the size that its terminal will have, if it has one.
///
/// The runtime sets `consoleSize` before the process runs; a size that the monitor sets on the terminal may come after
/// the first instruction, as the runtime does not wait until the terminal was taken.
pub(super) fn sized_process(path: &Path, (rows, columns): (u16, u16)) -> Option<Vec<u8>> {
    let file = File::open(path).ok()?;
    let mut text = Vec::new();
    file.take(PROCESS_MAX).read_to_end(&mut text).ok()?;
    let mut process: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let fields = process.as_object_mut()?;
    if fields.get("terminal") != Some(&true.into()) {
        return None;
    }
    fields.insert("consoleSize".into(), serde_json::json!({ "height": rows, "width": columns }));
    serde_json::to_vec(&process).ok()
}

/// What becomes the standard descriptors of the runtime; in passthrough it keeps the monitor's.
#[derive(Debug)]
pub(super) struct ChildStdio {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// What the child needs from the monitor.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    pub(super) origin: &'a Origin,
    pub(super) argv: &'a [OsString],
    pub(super) stdio: Option<ChildStdio>,
    /// The gate that an attached exec passes right before it executes the runtime.
    pub(super) gate: Option<&'a OwnedFd>,
    pub(super) replace_listen_pid: bool,
}

/// Forks the child that becomes the runtime.
pub(super) fn launch(launch: Launch<'_>) -> io::Result<Pid> {
    let argv = to_c(launch.argv.iter().map(|arg| arg.as_bytes()))?;
    let monitor = getpid();
    let forwarded: SigSet = FORWARDED.into_iter().collect();
    // A signal for the runtime that arrives between the fork and the exec must not reach a handler of ours.
    let mask = forwarded.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK)?;
    let side = fork::fork();
    if let Ok(Side::Child) = side {
        become_runtime(&launch, &argv, monitor);
    }
    mask.thread_set_mask()?;
    match side? {
        Side::Parent(pid) => Ok(pid),
        Side::Child => fork::exit_now(1),
    }
}

fn become_runtime(launch: &Launch<'_>, argv: &[CString], monitor: Pid) -> ! {
    // Nobody would watch the container if the monitor died now, or has died already.
    let _ = set_pdeathsig(Signal::SIGKILL);
    if getppid() != monitor {
        fork::exit_now(1);
    }
    restore_signals(launch.origin);
    if let Some(Err(error)) = launch.stdio.as_ref().map(place) {
        fail(&format!("Failed to set up stdio of the runtime: {error}"), 1);
    }
    let mut env = clean_env();
    if let Some(at) = env.iter().position(|variable| variable.starts_with(b"LISTEN_PID=")) {
        let value = env.get(at).and_then(|variable| variable.get(11..)).unwrap_or_default().to_vec();
        match listen_pid(&value, launch.replace_listen_pid, monitor) {
            Ok(Some(pid)) => env[at] = format!("LISTEN_PID={pid}").into_bytes(),
            Ok(None) => {}
            Err(text) => fail(&text, 1),
        }
    }
    if let Some(Err(error)) = launch.gate.map(pipes::pass_gate) {
        fail(&format!("start-pipe read failed {}", pipes::strerror(&error)), 1);
    }
    if let Some(score) = launch.origin.oom_score {
        let _ = process::set_oom_score_adj(score);
    }
    let program = argv.first();
    let (Some(program), Ok(env)) = (program, to_c(env.iter().map(Vec::as_slice))) else {
        fork::exit_now(127);
    };
    let error = fork::execute(program, argv, &env);
    fail(
        &format!("Failed to execute runtime {}: {}", program.to_string_lossy(), pipes::strerror(&error)),
        127,
    );
}

fn fail(text: &str, status: i32) -> ! {
    Diag::new(Level::Error, None).error(text);
    fork::exit_now(status);
}

/// Gives back the dispositions and the mask that the monitor was started with.
pub(super) fn restore_signals(origin: &Origin) {
    for signal in FORWARDED.into_iter().chain([Signal::SIGCHLD]) {
        let _ = disposition::reset(signal);
    }
    for signal in SURVIVED.into_iter().filter(|signal| !origin.ignored.contains(signal)) {
        let _ = disposition::reset(signal);
    }
    let _ = origin.mask.thread_set_mask();
}

fn place(stdio: &ChildStdio) -> io::Result<()> {
    for (target, fd) in [(0, &stdio.stdin), (1, &stdio.stdout), (2, &stdio.stderr)] {
        // Lets a container that does not run as root open /dev/stdout anew; not possible for /dev/null.
        if is_pipe(fd) {
            let _ = fchmod(fd.as_fd(), FileMode::from_bits_truncate(0o777));
        }
        fork::replace_stdio(fd, target)?;
    }
    Ok(())
}

fn is_pipe(fd: &OwnedFd) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let file = fd.try_clone().map(File::from);
    file.and_then(|file| file.metadata()).is_ok_and(|meta| meta.file_type().is_fifo())
}

/// The environment without the pipes of this monitor.
pub(super) fn clean_env() -> Vec<Vec<u8>> {
    let ours = [pipes::SYNC, pipes::START, pipes::ATTACH];
    let kept = std::env::vars_os().filter(|(name, _)| !ours.iter().any(|own| name == own));
    let joined = kept.map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name.into_vec()
    });
    joined.collect()
}

/// Which pid socket activation is meant for, if it has to change.
fn listen_pid(value: &[u8], replace: bool, monitor: Pid) -> Result<Option<Pid>, String> {
    let pid =
        std::str::from_utf8(value).ok().and_then(|text| text.parse::<i32>().ok()).filter(|pid| *pid > 0);
    match pid {
        Some(pid) if replace || pid == monitor.as_raw() => Ok(Some(getpid())),
        Some(_) => Ok(None),
        None => Err(format!("Invalid LISTEN_PID {}", String::from_utf8_lossy(value))),
    }
}

/// Converts for execve; an argument with a NUL byte cannot come from a command line.
pub(super) fn to_c<'a>(items: impl Iterator<Item = &'a [u8]>) -> io::Result<Vec<CString>> {
    items.map(|item| CString::new(item).map_err(io::Error::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_added_to_a_process_with_a_terminal() {
        let path = std::env::temp_dir().join(format!("pintle-process-{}", std::process::id()));
        let sized = |text: &str| {
            std::fs::write(&path, text).expect("write");
            sized_process(&path, (24, 80)).map(|json| String::from_utf8(json).expect("text"))
        };
        let with =
            sized(r#"{"terminal": true, "args": ["a"], "own": 1, "consoleSize": {"height": 1, "width": 2}}"#);
        let with: serde_json::Value = serde_json::from_str(&with.expect("a process")).expect("a document");
        assert_eq!(with["consoleSize"], serde_json::json!({"height": 24, "width": 80}));
        assert_eq!((&with["args"][0], &with["own"]), (&"a".into(), &1.into()));
        for other in [r#"{"terminal": false}"#, "{}", "[]", "{", ""] {
            assert_eq!(sized(other), None, "{other}");
        }
        std::fs::remove_file(&path).expect("remove");
        assert_eq!(sized_process(&path, (24, 80)), None);
    }

    #[test]
    fn listen_pid_is_checked() {
        let monitor = Pid::from_raw(7);
        assert_eq!(listen_pid(b"8", false, monitor), Ok(None));
        assert_eq!(listen_pid(b"7", false, monitor), Ok(Some(getpid())));
        assert_eq!(listen_pid(b"8", true, monitor), Ok(Some(getpid())));
        for bad in ["", "x", "0", "-1", "1x"] {
            assert!(listen_pid(bad.as_bytes(), true, monitor).is_err(), "{bad}");
        }
    }
}
