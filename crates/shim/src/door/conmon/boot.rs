//! Everything before the event loop exists: arguments, the first gate, and becoming a daemon.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{pipe2, setsid};
use pintle_core::argv::{self, Outcome, Parsed};
use pintle_core::sync::Key;
use pintle_sys::atomic::{self, Durability};
use pintle_sys::fork::{self, Side};
use pintle_sys::startup::Inherited;
use pintle_sys::{disposition, process};

use super::diag::{Diag, Level};
use super::logs;
use super::options::{self, Options, Refusal, TABLE};
use super::pipes::{self, Messages, strerror};
use crate::engine::log::LogSink;

/// The version of conmon's interface that this door implements.
const VERSION: &str = "2.2.1";
/// The oom score of the monitor: it must outlive what it watches.
const OOM_SCORE: i32 = -1000;

/// Signals that must not end the monitor, besides SIGPIPE; the runtime gets back what was set before.
pub(super) const SURVIVED: [Signal; 4] = [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM];

/// What the process was started with, and what it must give back to its children.
#[derive(Debug)]
pub(super) struct Origin {
    /// Signal mask.
    pub(super) mask: SigSet,
    /// Those of [`SURVIVED`] that were ignored.
    pub(super) ignored: Vec<Signal>,
    /// Oom score adjustment, if it was changed.
    pub(super) oom_score: Option<i32>,
}

/// A process that is ready to watch a container.
pub(super) struct Boot {
    pub(super) options: Options,
    pub(super) diag: Diag,
    pub(super) origin: Origin,
    /// Held for the runtime, closed when the container has ended.
    pub(super) inherited: Inherited,
    pub(super) sync: Messages,
    pub(super) attach: Option<OwnedFd>,
    /// Kept for the second gate of an attached exec.
    pub(super) start: Option<OwnedFd>,
    pub(super) null: File,
    pub(super) sinks: Vec<Box<dyn LogSink>>,
}

impl Boot {
    /// Tells the caller why there will be no container.
    pub(super) fn refuse(mut self, text: &str) -> ExitCode {
        self.diag.error(text);
        // A caller that is gone needs no answer.
        let _ = self.sync.send(-1, text.as_bytes());
        ExitCode::FAILURE
    }
}

/// How starting ended.
pub(super) enum Started {
    /// This process is done; its exit status.
    Done(u8),
    /// This process watches the container.
    Monitor(Box<Boot>),
    /// This process was to watch, but failed; the caller has been told.
    Failed,
}

pub(super) fn start(args: impl Iterator<Item = OsString>) -> Started {
    let inherited = Inherited::record();
    umask(Mode::from_bits_truncate(0o022));
    let args: Vec<Vec<u8>> = args.map(OsString::into_vec).collect();
    let parsed = match argv::parse(TABLE, &args) {
        Ok(Outcome::Parsed(parsed)) => parsed,
        Ok(Outcome::Help) => {
            print(&argv::usage(
                "conmon",
                "monitor of one OCI container, logs to k8s-file or journald",
                TABLE,
            ));
            return Started::Done(0);
        }
        Err(error) => {
            plain_error(&format!("option parsing failed: {}", quotes_by_locale(&error.to_string())));
            return Started::Done(1);
        }
    };
    if parsed.flag("version") {
        print(&format!("conmon version {VERSION}\ncommit: pintle-{}\n", env!("CARGO_PKG_VERSION")));
        return Started::Done(0);
    }
    match prepare(&parsed, inherited) {
        Ok(prepared) => daemonise(prepared),
        Err(()) => Started::Done(1),
    }
}

fn print(text: &str) {
    // A caller that does not read its own question is not worth a message.
    let _ = io::stdout().write_all(text.as_bytes());
}

fn plain_error(text: &str) {
    let _ = writeln!(io::stderr(), "conmon: {text}");
}

/// GLib's quotation marks exist in UTF-8 locales only.
fn quotes_by_locale(text: &str) -> String {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
    let locale = locale.unwrap_or_default().to_ascii_lowercase();
    if locale.contains("utf-8") || locale.contains("utf8") {
        text.to_owned()
    } else {
        text.replace(['“', '”'], "?")
    }
}

struct Prepared {
    options: Options,
    diag: Diag,
    inherited: Inherited,
    start: Option<OwnedFd>,
    null: File,
    sinks: Vec<Box<dyn LogSink>>,
    origin: Origin,
}

/// Validates and passes the first gate; errors have been told.
fn prepare(parsed: &Parsed, mut inherited: Inherited) -> Result<Prepared, ()> {
    let cid = options::early_checks(parsed).map_err(|refusal| tell(&refusal, None))?;
    let lossy = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
    let syslog = parsed.flag("syslog").then(|| {
        let tag = parsed.text("log-tag").map(lossy);
        Diag::syslog_id(&cid.to_string_lossy(), tag.as_deref())
    });
    let diag = Diag::new(Level::Warning, syslog);
    diag.set_level(options::log_level(parsed).map_err(|refusal| tell(&refusal, Some(&diag)))?);
    let options = Options::validate(parsed, cid).map_err(|refusal| tell(&refusal, Some(&diag)))?;
    let sinks = logs::open(&options).map_err(|text| diag.error(&text))?;
    if !options.log.mark_partial && !options.log.drivers.journald {
        diag.warn("--no-container-partial-message has no effect without journald log driver");
    }
    let fatal = |text: String| diag.error(&text);
    let oom_score = process::oom_score_adj();
    let lowered = process::set_oom_score_adj(OOM_SCORE);
    if let Err(error) = &lowered {
        diag.debug(&format!("failed to write to /proc/self/oom_score_adj: {error}"));
    }
    let origin = Origin {
        mask: SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty()),
        ignored: SURVIVED.into_iter().filter(|signal| disposition::is_ignored(*signal)).collect(),
        oom_score: oom_score.filter(|_| lowered.is_ok()),
    };
    // Neither call can fail for these signals.
    let _ = disposition::ignore(Signal::SIGPIPE);
    let _ = disposition::end_with_failure(Signal::SIGTERM);
    let mut start = pipes::take(&mut inherited, pipes::START).map_err(fatal)?;
    if let Some(gate) = &start {
        pipes::pass_gate(gate)
            .map_err(|error| fatal(format!("start-pipe read failed {}", strerror(&error))))?;
    }
    if !matches!(options.mode, options::Mode::Exec { attach: true, .. }) {
        start = None;
    }
    let null = File::options().read(true).write(true).open("/dev/null");
    let null = null.map_err(|error| fatal(format!("Failed to open /dev/null {}", strerror(&error))))?;
    Ok(Prepared { options, diag, inherited, start, null, sinks, origin })
}

fn tell(refusal: &Refusal, diag: Option<&Diag>) {
    match (refusal, diag) {
        (Refusal::Diagnosed(text), Some(diag)) => diag.error(text),
        (Refusal::Diagnosed(text), None) => Diag::new(Level::Error, None).error(text),
        (Refusal::Plain(text), _) => plain_error(text),
    }
}

fn daemonise(prepared: Prepared) -> Started {
    if prepared.options.sync {
        return become_monitor(prepared);
    }
    // The monitor waits until its pid is on disk: a launcher that reports a failure leaves nothing behind.
    let (released, release) = match pipe2(OFlag::O_CLOEXEC) {
        Ok((read, write)) => (File::from(read), File::from(write)),
        Err(errno) => return launcher_failed(&prepared, "Failed to create a pipe", &errno.into()),
    };
    match fork::fork() {
        Ok(Side::Parent(pid)) => {
            if let Some(path) = &prepared.options.conmon_pidfile {
                let written = atomic::write(path, pid.to_string().as_bytes(), 0o644, Durability::Visible);
                if let Err(error) = written {
                    return launcher_failed(&prepared, "Failed to write conmon pidfile:", &error);
                }
            }
            if let Err(error) = (&release).write_all(&[0]) {
                return launcher_failed(&prepared, "Failed to release the monitor", &error);
            }
            Started::Done(0)
        }
        Ok(Side::Child) => {
            drop(release);
            match (&released).read(&mut [0]) {
                Ok(1) => become_monitor(prepared),
                _ => Started::Done(1),
            }
        }
        Err(error) => launcher_failed(&prepared, "Failed to fork", &error),
    }
}

fn launcher_failed(prepared: &Prepared, what: &str, error: &io::Error) -> Started {
    prepared.diag.error(&format!("{what} {}", strerror(error)));
    Started::Done(1)
}

fn become_monitor(prepared: Prepared) -> Started {
    let Prepared { options, diag, mut inherited, start, null, sinks, origin } = prepared;
    let key = Key::of(options.api_version, options.mode.is_exec());
    let sync = match pipes::take(&mut inherited, pipes::SYNC) {
        Ok(sync) => sync,
        Err(text) => {
            diag.error(&text);
            return Started::Failed;
        }
    };
    let mut sync = Messages::new(sync, key);
    match enter_session(&options, &mut inherited, &null) {
        Ok(attach) => Started::Monitor(Box::new(Boot {
            options,
            diag,
            origin,
            inherited,
            sync,
            attach,
            start,
            null,
            sinks,
        })),
        Err(text) => {
            diag.error(&text);
            let _ = sync.send(-1, text.as_bytes());
            Started::Failed
        }
    }
}

fn enter_session(
    options: &Options,
    inherited: &mut Inherited,
    null: &File,
) -> Result<Option<OwnedFd>, String> {
    let attach = pipes::take(inherited, pipes::ATTACH)?;
    if matches!(options.mode, options::Mode::Exec { attach: true, .. }) && attach.is_none() {
        return Err("--attach specified but _OCI_ATTACHPIPE was not".into());
    }
    if options.seccomp_socket {
        return Err("seccomp support not present".into());
    }
    if !options.log.drivers.passthrough {
        // Callers that capture the output of a conmon wait for its end.
        drop_stdio(null).map_err(|error| format!("Failed to replace stdio {}", strerror(&error)))?;
    }
    // Fails only in a process that leads a group already, which then has its own session or shell.
    let _ = setsid();
    for signal in SURVIVED {
        let _ = disposition::ignore(signal);
    }
    process::set_subreaper().map_err(|error| format!("Failed to set as subreaper {}", strerror(&error)))?;
    Ok(attach)
}

/// Points the standard descriptors to /dev/null.
pub(super) fn drop_stdio(null: &File) -> io::Result<()> {
    (0..=2).try_for_each(|target| fork::replace_stdio(null, target))
}
