//! How a process ended, decoded once; `128+n` exists only where it is printed.

use core::fmt;

/// The two ways the kernel lets a process end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WaitStatus {
    /// It called `exit` with this status (0 to 255).
    Exited(u8),
    /// A signal killed it.
    Signaled {
        /// The signal's number, real-time signals included.
        signal: i32,
        /// Whether a core image was written.
        core: bool,
    },
}

impl WaitStatus {
    /// Decodes the status word of `wait4` or of `PIDFD_GET_INFO`. Stops and continues give `None`.
    pub fn from_raw(status: i32) -> Option<Self> {
        let low = status & 0x7f;
        if low == 0 {
            return Some(Self::Exited(((status >> 8) & 0xff) as u8));
        }
        if low == 0x7f {
            return None;
        }
        Some(Self::Signaled { signal: low, core: status & 0x80 != 0 })
    }

    /// Decodes `si_code` and `si_status` of `waitid`.
    pub fn from_siginfo(code: i32, status: i32) -> Option<Self> {
        const CLD_EXITED: i32 = 1;
        const CLD_KILLED: i32 = 2;
        const CLD_DUMPED: i32 = 3;
        match code {
            CLD_EXITED => Some(Self::Exited((status & 0xff) as u8)),
            CLD_KILLED => Some(Self::Signaled { signal: status, core: false }),
            CLD_DUMPED => Some(Self::Signaled { signal: status, core: true }),
            _ => None,
        }
    }

    /// Whether this is a plain exit with status 0.
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }
}

impl fmt::Display for WaitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit status {code}"),
            Self::Signaled { signal, core: false } => write!(f, "signal {signal}"),
            Self::Signaled { signal, core: true } => write!(f, "signal {signal} (core dumped)"),
        }
    }
}

/// The end of a process as it is told to callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exit {
    /// It exited with this code.
    Code(u8),
    /// This signal killed it.
    Signal {
        /// The signal's number.
        signal: i32,
        /// Whether a core image was written.
        core: bool,
    },
    /// It is gone and nobody can tell how.
    Unknown(UnknownReason),
}

/// Why the end of a process is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnknownReason {
    /// The monitor that was its parent died, and the kernel did not keep the status.
    MonitorLost,
    /// The machine was booted again since the process started.
    Rebooted,
}

impl UnknownReason {
    /// The text of the exit record and of messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MonitorLost => "unknown, monitor lost",
            Self::Rebooted => "unknown, machine rebooted",
        }
    }
}

impl From<WaitStatus> for Exit {
    fn from(status: WaitStatus) -> Self {
        match status {
            WaitStatus::Exited(code) => Self::Code(code),
            WaitStatus::Signaled { signal, core } => Self::Signal { signal, core },
        }
    }
}

impl Exit {
    /// The number shells and container engines print: the code, 128 + signal, or 255 if unknown.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => i32::from(code),
            Self::Signal { signal, .. } => signal.saturating_add(128),
            Self::Unknown(_) => 255,
        }
    }

    /// The signal that ended it, if one did.
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Signal { signal, .. } => Some(signal),
            _ => None,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => WaitStatus::Exited(*code).fmt(f),
            Self::Signal { signal, core } => WaitStatus::Signaled { signal: *signal, core: *core }.fmt(f),
            Self::Unknown(reason) => f.write_str(reason.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn raw_words() {
        assert_eq!(WaitStatus::from_raw(0x0300), Some(WaitStatus::Exited(3)));
        assert_eq!(WaitStatus::from_raw(9), Some(WaitStatus::Signaled { signal: 9, core: false }));
        assert_eq!(WaitStatus::from_raw(0x8b), Some(WaitStatus::Signaled { signal: 11, core: true }));
        assert_eq!(WaitStatus::from_raw(0x137f), None);
        assert_eq!(Exit::from(WaitStatus::Signaled { signal: 34, core: false }).shell_code(), 162);
        assert_eq!(Exit::Unknown(UnknownReason::MonitorLost).shell_code(), 255);
        // A record on disk may hold any number.
        assert_eq!(Exit::Signal { signal: i32::MAX, core: false }.shell_code(), i32::MAX);
    }

    #[test]
    fn every_signal_differs_from_every_code() {
        for signal in 1..=64 {
            for code in 0..=255u8 {
                let killed: Exit = WaitStatus::Signaled { signal, core: false }.into();
                assert_ne!(killed, Exit::Code(code));
            }
        }
    }

    proptest! {
        #[test]
        fn decoding_never_panics(a in any::<i32>(), b in any::<i32>()) {
            let _ = WaitStatus::from_raw(a);
            let _ = WaitStatus::from_siginfo(a, b);
        }
    }
}
