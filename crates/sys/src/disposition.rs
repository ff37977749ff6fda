//! What happens when a signal arrives: ignored, default, or the process ends at once.

#![allow(unsafe_code)]

use std::io;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Ignores the signal; this is inherited by programs that the process executes.
///
/// # Errors
/// What sigaction(2) says.
pub fn ignore(signal: Signal) -> io::Result<()> {
    set(signal, SigHandler::SigIgn)
}

/// Gives the signal its default effect.
///
/// # Errors
/// What sigaction(2) says.
pub fn reset(signal: Signal) -> io::Result<()> {
    set(signal, SigHandler::SigDfl)
}

/// Makes the signal end the process with status 1, without any cleaning up.
///
/// # Errors
/// What sigaction(2) says.
pub fn end_with_failure(signal: Signal) -> io::Result<()> {
    set(signal, SigHandler::Handler(end))
}

extern "C" fn end(_: libc::c_int) {
    // SAFETY: _exit is async-signal-safe.
    unsafe { libc::_exit(1) }
}

/// Whether the signal is ignored now.
pub fn is_ignored(signal: Signal) -> bool {
    let mut old = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only asks; `old` is valid for writing one sigaction.
    let asked = unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), old.as_mut_ptr()) } == 0;
    // SAFETY: zeroed memory is a valid sigaction and the call has filled it.
    asked && unsafe { old.assume_init() }.sa_sigaction == libc::SIG_IGN
}

fn set(signal: Signal, handler: SigHandler) -> io::Result<()> {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler is SIG_IGN, SIG_DFL or `end`, which only calls _exit.
    unsafe { sigaction(signal, &action) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dispositions_are_seen() {
        ignore(Signal::SIGUSR2).expect("ignore");
        assert!(is_ignored(Signal::SIGUSR2));
        reset(Signal::SIGUSR2).expect("reset");
        assert!(!is_ignored(Signal::SIGUSR2));
    }
}
