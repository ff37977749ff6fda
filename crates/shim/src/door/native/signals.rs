//! No signal ends the shim: it has to be there when its container ends.
//!
//! Handlers instead of ignoring, because an ignored signal would be inherited by the runtime and the container.

use crate::engine::signal::{Signal, signal};
use pintle_sys::signals::{swallow, swallow_library_signals};

/// Installs handlers for every signal that would end the process and can be handled. SIGHUP means "reopen the logs";
/// the others mean nothing: who wants the container to end says so to the container.
pub(super) fn install() -> std::io::Result<Signal> {
    swallow_all();
    signal(libc::SIGHUP)
}

/// Lets every signal that would end the process and can be handled do nothing.
pub(in crate::door) fn swallow_all() {
    // It cannot fail: all of these can be handled.
    let _ = swallow_library_signals();
    let real_time = 34..=64;
    for number in (1..=31).chain(real_time) {
        let fatal_or_special = matches!(
            number,
            libc::SIGKILL
                | libc::SIGSTOP
                | libc::SIGCHLD
                | libc::SIGILL
                | libc::SIGFPE
                | libc::SIGSEGV
                | libc::SIGBUS
                | libc::SIGPIPE
                | libc::SIGCONT
                | libc::SIGURG
                | libc::SIGWINCH
        );
        if !fatal_or_special {
            // musl refuses 34, which has been taken care of.
            let _ = swallow(number);
        }
    }
}
