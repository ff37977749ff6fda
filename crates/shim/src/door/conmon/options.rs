//! The command line of the conmon door: its table and the typed, validated result.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use pintle_core::argv::{Kind, Opt, Parsed};

use super::diag::Level;
use super::logpath::{self, Drivers};
use super::pipes::strerror;

/// Every option, in the order of the usage text.
pub(super) const TABLE: &[Opt] = &[
    Opt::new("api-version", None, Kind::Flag, "Use version 1 of the messages on the sync pipe"),
    Opt::new("bundle", Some(b'b'), Kind::Text, "Directory of the OCI bundle"),
    Opt::new("cid", Some(b'c'), Kind::Text, "Id of the container"),
    Opt::new("conmon-pidfile", Some(b'P'), Kind::Text, "File for the pid of this process"),
    Opt::new("container-pidfile", Some(b'p'), Kind::Text, "File for the pid of the container's process"),
    Opt::new("cuuid", Some(b'u'), Kind::Text, "Unique id of the container, names the attach link"),
    Opt::new("exec", Some(b'e'), Kind::Flag, "Execute a command in a running container"),
    Opt::new("exec-attach", None, Kind::Flag, "Attach to the exec session before it starts"),
    Opt::new("exec-process-spec", None, Kind::Text, "File with the process to execute"),
    Opt::new("exit-command", None, Kind::Text, "Program to execute when the container has ended"),
    Opt::new("exit-command-arg", None, Kind::Array, "Argument of the exit command, repeatable"),
    Opt::new("exit-delay", None, Kind::Int, "Seconds to wait before the exit command"),
    Opt::new("exit-dir", None, Kind::Text, "Directory for the exit file"),
    Opt::new("full-attach", None, Kind::Flag, "Put the attach socket in the bundle, without a link"),
    Opt::new("leave-stdin-open", None, Kind::Flag, "Keep stdin open when an attached client leaves"),
    Opt::new("log-level", None, Kind::Text, "error, warning, info, debug or trace"),
    Opt::new(
        "log-path",
        Some(b'l'),
        Kind::Array,
        "k8s-file:PATH, journald, passthrough, none or PATH, repeatable",
    ),
    Opt::new("log-size-max", None, Kind::Long, "Bytes at which the log file starts anew"),
    Opt::new("log-global-size-max", None, Kind::Long, "Bytes after which nothing more is logged"),
    Opt::new("log-tag", None, Kind::Text, "Tag for records in journald"),
    Opt::new("log-label", None, Kind::Array, "NAME=VALUE field for records in journald, repeatable"),
    Opt::new("no-container-partial-message", None, Kind::Flag, "Do not mark partial records in journald"),
    Opt::new("log-rotate", None, Kind::Flag, "Keep numbered backups of the log file"),
    Opt::new("log-max-files", None, Kind::Int, "Number of backups that are kept"),
    Opt::new(
        "log-allowlist-dir",
        None,
        Kind::Array,
        "Directory in which log files may be rotated, repeatable",
    ),
    Opt::new("name", Some(b'n'), Kind::Text, "Name of the container"),
    Opt::new("no-new-keyring", None, Kind::Flag, "Do not create a session keyring for the container"),
    Opt::new("no-pivot", None, Kind::Flag, "Do not use pivot_root"),
    Opt::new("no-sync-log", None, Kind::Flag, "Do not fsync the log file at the end"),
    Opt::new("persist-dir", Some(b'0'), Kind::Text, "Directory for the lasting exit and oom files"),
    Opt::alias("pidfile", Kind::Text, "container-pidfile"),
    Opt::new("replace-listen-pid", None, Kind::Flag, "Set LISTEN_PID to the pid of the runtime"),
    Opt::new("restore", None, Kind::Text, "Restore the container from this checkpoint"),
    Opt::alias("restore-arg", Kind::Array, "runtime-opt"),
    Opt::new("runtime", Some(b'r'), Kind::Text, "Path of the OCI runtime"),
    Opt::new("runtime-arg", None, Kind::Array, "Global option of the runtime, repeatable"),
    Opt::new("runtime-opt", None, Kind::Array, "Option of the runtime's command, repeatable"),
    Opt::new("sdnotify-socket", None, Kind::Text, "Notify socket of the host to relay messages to"),
    Opt::new("socket-dir-path", None, Kind::Text, "Directory for the link to the attach socket"),
    Opt::new("stdin", Some(b'i'), Kind::Flag, "Open a pipe for the container's stdin"),
    Opt::new("sync", None, Kind::Flag, "Stay the child of the caller"),
    Opt::new("syslog", None, Kind::Flag, "Send own messages to syslog too"),
    Opt::new("systemd-cgroup", Some(b's'), Kind::Flag, "Let the runtime use systemd for cgroups"),
    Opt::new("terminal", Some(b't'), Kind::Flag, "Give the container a terminal"),
    Opt::new("timeout", Some(b'T'), Kind::Int, "Seconds after which the container is killed"),
    Opt::new("version", None, Kind::Flag, "Print the version"),
    Opt::alias("seccomp-notify-socket", Kind::Text, "seccomp-notify-socket"),
    Opt::alias("seccomp-notify-plugins", Kind::Text, "seccomp-notify-plugins"),
];

/// What the runtime is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    Create,
    /// From the checkpoint at this path.
    Restore(OsString),
    Exec {
        /// File with the process.
        process: OsString,
        /// A caller attaches before the process starts (`--exec-attach`).
        attach: bool,
    },
}

impl Mode {
    pub(super) fn is_exec(&self) -> bool {
        matches!(self, Self::Exec { .. })
    }
}

/// A validated command line.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) mode: Mode,
    pub(super) api_version: bool,
    /// Absent only in exec mode.
    pub(super) bundle: Option<PathBuf>,
    pub(super) cid: OsString,
    pub(super) cuuid: OsString,
    pub(super) name: Option<OsString>,
    pub(super) conmon_pidfile: Option<PathBuf>,
    pub(super) container_pidfile: PathBuf,
    pub(super) exit_command: Option<OsString>,
    pub(super) exit_command_args: Vec<OsString>,
    /// Seconds.
    pub(super) exit_delay: u64,
    pub(super) exit_dir: Option<PathBuf>,
    pub(super) persist_dir: Option<PathBuf>,
    pub(super) full_attach: bool,
    pub(super) socket_dir: PathBuf,
    pub(super) leave_stdin_open: bool,
    pub(super) stdin: bool,
    pub(super) terminal: bool,
    pub(super) log: LogOptions,
    pub(super) no_new_keyring: bool,
    pub(super) no_pivot: bool,
    pub(super) replace_listen_pid: bool,
    pub(super) runtime: OsString,
    pub(super) runtime_args: Vec<OsString>,
    pub(super) runtime_opts: Vec<OsString>,
    pub(super) sdnotify_socket: Option<OsString>,
    pub(super) sync: bool,
    pub(super) systemd_cgroup: bool,
    /// Seconds; absent if there is no limit.
    pub(super) timeout: Option<u64>,
    /// A socket was asked for that this door never serves (section "not supported" of docs/conmon.md).
    pub(super) seccomp_socket: bool,
}

/// What concerns logging.
#[derive(Debug)]
pub(super) struct LogOptions {
    pub(super) drivers: Drivers,
    /// Bytes.
    pub(super) size_max: Option<u64>,
    /// Bytes.
    pub(super) global_size_max: Option<u64>,
    pub(super) tag: Option<Vec<u8>>,
    pub(super) labels: Vec<Vec<u8>>,
    pub(super) mark_partial: bool,
    pub(super) rotate: bool,
    pub(super) max_files: u32,
    pub(super) allow_dirs: Vec<PathBuf>,
    pub(super) sync: bool,
}

/// A refused command line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Told as `conmon: TEXT`.
    Plain(String),
    /// Told as `[conmon:e]: TEXT`, and to syslog if that was asked for.
    Diagnosed(String),
}

fn refuse<T>(text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Diagnosed(text.into()))
}

/// The checks that come before the log level is known.
pub(super) fn early_checks(parsed: &Parsed) -> Result<OsString, Refusal> {
    let max_files = parsed.number("log-max-files").unwrap_or(1);
    if max_files < 0 {
        return Err(Refusal::Plain(format!("log-max-files must be non-negative, got {max_files}")));
    }
    if max_files == 0 && parsed.flag("log-rotate") {
        let text = "log-max-files must be at least 1 when log-rotate is enabled, got 0";
        return Err(Refusal::Plain(text.into()));
    }
    match parsed.text("cid") {
        Some(cid) => Ok(os(cid)),
        None => Err(Refusal::Plain("Container ID not provided. Use --cid".into())),
    }
}

/// The level of own messages.
pub(super) fn log_level(parsed: &Parsed) -> Result<Level, Refusal> {
    let Some(name) = parsed.text("log-level") else {
        return Ok(Level::Warning);
    };
    match name.to_ascii_lowercase().as_slice() {
        b"error" | b"fatal" | b"panic" => Ok(Level::Error),
        b"warn" | b"warning" => Ok(Level::Warning),
        b"info" => Ok(Level::Info),
        b"debug" => Ok(Level::Debug),
        b"trace" => Ok(Level::Trace),
        _ => refuse(format!("No such log level {}", String::from_utf8_lossy(name))),
    }
}

impl Options {
    /// Validates everything else, in the order in which callers know the errors.
    pub(super) fn validate(parsed: &Parsed, cid: OsString) -> Result<Self, Refusal> {
        let exec = parsed.flag("exec");
        let attach = parsed.flag("exec-attach");
        let api_version = parsed.flag("api-version");
        if exec && parsed.text("restore").is_some() {
            return refuse("Cannot use 'exec' and 'restore' at the same time");
        }
        if attach && !exec {
            return refuse("Attach can only be specified with exec");
        }
        if attach && !api_version {
            return refuse("Attach can only be specified for a non-legacy exec session");
        }
        let cuuid = parsed.text("cuuid").map(os);
        if cuuid.is_none() && (!exec || api_version) {
            return refuse("Container UUID not provided. Use --cuuid");
        }
        let runtime = checked_runtime(parsed)?;
        let mode = match (exec, parsed.text("restore")) {
            (true, _) => match parsed.text("exec-process-spec") {
                Some(process) => Mode::Exec { process: os(process), attach },
                None => return refuse("Exec process spec path not provided. Use --exec-process-spec"),
            },
            (false, Some(image)) => Mode::Restore(os(image)),
            (false, None) => Mode::Create,
        };
        let Ok(cwd) = std::env::current_dir() else {
            return refuse("Failed to get working directory");
        };
        let Ok(exit_delay) = u64::try_from(parsed.number("exit-delay").unwrap_or(0)) else {
            return refuse("Delay before invoking exit command must be greater than or equal to 0");
        };
        let path = |key| parsed.text(key).map(|text| PathBuf::from(os(text)));
        let list = |key| parsed.array(key).into_iter().map(OsString::from_vec).collect::<Vec<_>>();
        let bundle = path("bundle").or_else(|| (!exec).then(|| cwd.clone()));
        let container_pidfile = path("container-pidfile").unwrap_or_else(|| {
            let mut name = OsString::from("pidfile-");
            name.push(&cid);
            cwd.join(name)
        });
        Ok(Self {
            log: log_options(parsed, &cid)?,
            mode,
            api_version,
            bundle,
            cuuid: cuuid.unwrap_or_default(),
            name: parsed.text("name").map(os),
            conmon_pidfile: path("conmon-pidfile"),
            container_pidfile,
            exit_command: parsed.text("exit-command").map(os),
            exit_command_args: list("exit-command-arg"),
            exit_delay,
            exit_dir: path("exit-dir"),
            persist_dir: path("persist-dir"),
            full_attach: parsed.flag("full-attach"),
            socket_dir: path("socket-dir-path").unwrap_or_else(|| "/var/run/crio".into()),
            leave_stdin_open: parsed.flag("leave-stdin-open"),
            stdin: parsed.flag("stdin"),
            terminal: parsed.flag("terminal"),
            no_new_keyring: parsed.flag("no-new-keyring"),
            no_pivot: parsed.flag("no-pivot"),
            replace_listen_pid: parsed.flag("replace-listen-pid"),
            runtime,
            runtime_args: list("runtime-arg"),
            runtime_opts: list("runtime-opt"),
            sdnotify_socket: parsed.text("sdnotify-socket").map(os),
            sync: parsed.flag("sync"),
            systemd_cgroup: parsed.flag("systemd-cgroup"),
            timeout: positive(parsed.number("timeout")),
            seccomp_socket: parsed.text("seccomp-notify-socket").is_some(),
            cid,
        })
    }
}

fn checked_runtime(parsed: &Parsed) -> Result<OsString, Refusal> {
    let Some(runtime) = parsed.text("runtime").map(os) else {
        return refuse("Runtime path not provided. Use --runtime");
    };
    match access(Path::new(&runtime), AccessFlags::X_OK) {
        Ok(()) => Ok(runtime),
        Err(errno) => {
            let cause = strerror(&errno.into());
            refuse(format!("Runtime path {} is not valid {cause}", runtime.to_string_lossy()))
        }
    }
}

fn log_options(parsed: &Parsed, cid: &OsString) -> Result<LogOptions, Refusal> {
    let drivers = logpath::parse(&parsed.array("log-path")).map_err(Refusal::Diagnosed)?;
    let tag = parsed.text("log-tag").map(<[u8]>::to_vec);
    let labels = parsed.array("log-label");
    logpath::check_fields(&drivers, cid.as_bytes(), tag.is_some(), &labels).map_err(Refusal::Diagnosed)?;
    Ok(LogOptions {
        drivers,
        size_max: positive(parsed.number("log-size-max")),
        global_size_max: positive(parsed.number("log-global-size-max")),
        tag,
        labels,
        mark_partial: !parsed.flag("no-container-partial-message"),
        rotate: parsed.flag("log-rotate"),
        max_files: parsed.number("log-max-files").and_then(|files| u32::try_from(files).ok()).unwrap_or(1),
        allow_dirs: parsed.array("log-allowlist-dir").iter().map(|dir| os(dir).into()).collect(),
        sync: !parsed.flag("no-sync-log"),
    })
}

/// Zero and negative values mean "no limit".
fn positive(number: Option<i64>) -> Option<u64> {
    number.and_then(|number| u64::try_from(number).ok()).filter(|number| *number > 0)
}

fn os(text: &[u8]) -> OsString {
    OsString::from_vec(text.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pintle_core::argv::{Outcome, parse};

    fn validate(args: &[&str]) -> Result<Options, Refusal> {
        let args: Vec<Vec<u8>> = args.iter().map(|arg| arg.as_bytes().to_vec()).collect();
        let Ok(Outcome::Parsed(parsed)) = parse(TABLE, &args) else {
            panic!("{args:?} does not parse");
        };
        let cid = early_checks(&parsed)?;
        log_level(&parsed)?;
        Options::validate(&parsed, cid)
    }

    #[test]
    fn defaults_of_a_create() {
        let options = validate(&["-c", "a", "-u", "b", "-r", "/tmp", "-l", "/l"]).expect("valid");
        assert_eq!(options.mode, Mode::Create);
        let cwd = std::env::current_dir().expect("cwd");
        assert_eq!(options.bundle.as_deref(), Some(cwd.as_path()));
        assert_eq!(options.container_pidfile, cwd.join("pidfile-a"));
        assert_eq!(options.socket_dir, Path::new("/var/run/crio"));
        assert_eq!(options.log.max_files, 1);
        assert!(options.timeout.is_none() && options.log.size_max.is_none());
    }

    #[test]
    fn an_exec_has_no_bundle_of_its_own() {
        let args = ["-c", "a", "-e", "--exec-process-spec", "/s", "-r", "/tmp", "-l", "none", "-T", "-5"];
        let options = validate(&args).expect("valid");
        assert!(options.bundle.is_none());
        assert!(options.mode.is_exec());
        assert!(options.timeout.is_none());
    }

    #[test]
    fn refusals_come_in_order() {
        let refused = |args: &[&str]| validate(args).expect_err("refused");
        let plain = |text: &str| Refusal::Plain(text.into());
        let told = |text: &str| Refusal::Diagnosed(text.into());
        let args = ["--log-max-files", "-1"];
        assert_eq!(refused(&args), plain("log-max-files must be non-negative, got -1"));
        assert_eq!(refused(&["--log-level", "x"]), plain("Container ID not provided. Use --cid"));
        assert_eq!(refused(&["-c", "", "--log-level", "x"]), told("No such log level x"));
        let both = ["-c", "a", "-e", "--restore", "r", "--exec-attach"];
        assert_eq!(refused(&both), told("Cannot use 'exec' and 'restore' at the same time"));
        let args = ["-c", "a", "--exec-attach"];
        assert_eq!(refused(&args), told("Attach can only be specified with exec"));
        let args = ["-c", "a", "-e", "--exec-attach"];
        assert_eq!(refused(&args), told("Attach can only be specified for a non-legacy exec session"));
        assert_eq!(refused(&["-c", "a"]), told("Container UUID not provided. Use --cuuid"));
        let args = ["-c", "a", "-e", "--api-version"];
        assert_eq!(refused(&args), told("Container UUID not provided. Use --cuuid"));
        assert_eq!(refused(&["-c", "a", "-u", "b"]), told("Runtime path not provided. Use --runtime"));
        let text = "Runtime path /proc/none is not valid No such file or directory";
        assert_eq!(refused(&["-c", "a", "-u", "b", "-r", "/proc/none"]), told(text));
        let text = "Exec process spec path not provided. Use --exec-process-spec";
        assert_eq!(refused(&["-c", "a", "-e", "-r", "/tmp"]), told(text));
        let text = "Delay before invoking exit command must be greater than or equal to 0";
        assert_eq!(refused(&["-c", "a", "-u", "b", "-r", "/tmp", "--exit-delay", "-1"]), told(text));
        let text = "Log driver not provided. Use --log-path";
        assert_eq!(refused(&["-c", "a", "-u", "b", "-r", "/tmp"]), told(text));
    }
}
