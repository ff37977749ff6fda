//! Own messages: stderr while it exists, syslog if asked for.

use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU8, Ordering};

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Error,
    Warning,
    Info,
    Debug,
    Trace,
}

impl Level {
    /// Letter on stderr and word in syslog.
    fn spelling(self) -> (char, &'static str) {
        match self {
            Self::Error => ('e', "error"),
            Self::Warning => ('w', "nwarn"),
            Self::Info => ('i', "ninfo"),
            Self::Debug => ('d', "ndebug"),
            Self::Trace => ('d', "ntrace"),
        }
    }
}

const SYSLOG: &str = "/dev/log";
/// Facility "user" with priorities "error" and "info".
const USER_ERR: u8 = 8 + 3;
const USER_INFO: u8 = 8 + 6;

/// Where own messages go.
#[derive(Debug)]
pub(super) struct Diag {
    level: AtomicU8,
    /// The id in syslog messages, if they are wanted.
    syslog: Option<String>,
}

impl Diag {
    pub(super) fn new(level: Level, syslog: Option<String>) -> Self {
        Self { level: AtomicU8::new(level as u8), syslog }
    }

    /// The id of syslog messages: container and tag, cut to 20 characters.
    pub(super) fn syslog_id(cid: &str, tag: Option<&str>) -> String {
        let id = match tag {
            Some(tag) => format!("{cid}: {tag}"),
            None => cid.to_owned(),
        };
        id.chars().take(20).collect()
    }

    pub(super) fn set_level(&self, level: Level) {
        self.level.store(level as u8, Ordering::Relaxed);
    }

    pub(super) fn error(&self, text: &str) {
        self.tell(Level::Error, text);
    }

    pub(super) fn warn(&self, text: &str) {
        self.tell(Level::Warning, text);
    }

    pub(super) fn info(&self, text: &str) {
        self.tell(Level::Info, text);
    }

    pub(super) fn debug(&self, text: &str) {
        self.tell(Level::Debug, text);
    }

    pub(super) fn trace(&self, text: &str) {
        self.tell(Level::Trace, text);
    }

    fn tell(&self, level: Level, text: &str) {
        if level as u8 > self.level.load(Ordering::Relaxed) {
            return;
        }
        let (letter, word) = level.spelling();
        // A message that cannot be told must not stop the monitor.
        let _ = writeln!(std::io::stderr(), "[conmon:{letter}]: {text}");
        if let Some(id) = &self.syslog {
            let priority = if level == Level::Error { USER_ERR } else { USER_INFO };
            let _ = syslog(&format!("<{priority}>conmon: conmon {id} <{word}>: {text}"));
        }
    }
}

/// Sends one message; never blocks, so a stuck logger loses it rather than stop the container.
fn syslog(message: &str) -> std::io::Result<usize> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to(message.as_bytes(), SYSLOG)
}
