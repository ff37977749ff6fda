//! Signals as wake-ups: a handler that writes to an eventfd, and nothing else.
//!
//! Handlers instead of a mask with a signalfd, because a mask would be inherited by the runtime and the container;
//! handlers are reset by exec. Far smaller than a general registry: one word per signal.
#![allow(unsafe_code)]

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// Highest signal number, plus one.
const COUNT: usize = 65;

/// Who is woken by a signal: a descriptor that is never closed, or -1.
static WAKE: [AtomicI32; COUNT] = [const { AtomicI32::new(-1) }; COUNT];

extern "C" fn handler(signal: libc::c_int) {
    let slot = usize::try_from(signal).ok().and_then(|s| WAKE.get(s));
    let fd = slot.map_or(-1, |s| s.load(Ordering::Relaxed));
    if fd >= 0 {
        let one = 1u64.to_ne_bytes();
        // SAFETY: write and errno are async-signal-safe; the buffer is on this stack. A full eventfd is a wake-up that
        // is pending anyway.
        unsafe {
            let errno = *libc::__errno_location();
            libc::write(fd, one.as_ptr().cast(), one.len());
            *libc::__errno_location() = errno;
        }
    }
}

fn install(signal: i32) -> io::Result<()> {
    // SAFETY: sigaction is plain data for which all zeroes is a valid value (an empty mask, no flags).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler does only what is allowed in one; the action outlives the call.
    if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A descriptor that becomes readable with each `signal`; reading it clears it. Asking again for the same signal
/// takes it away from the one before.
///
/// # Errors
/// `EINVAL` for a signal that cannot be handled, or that of `eventfd`.
pub fn wake_on(signal: i32) -> io::Result<OwnedFd> {
    let slot = usize::try_from(signal).ok().and_then(|s| WAKE.get(s));
    let slot = slot.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    let ours =
        OwnedFd::from(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    // The handler's copy is never closed: the handler may run at any time.
    let handlers = ours.try_clone()?.into_raw_fd();
    slot.store(handlers, Ordering::Relaxed);
    install(signal)?;
    Ok(ours)
}

/// Lets `signal` do nothing, without ignoring it: an ignored signal would be inherited.
///
/// # Errors
/// `EINVAL` for a signal that cannot be handled.
pub fn swallow(signal: i32) -> io::Result<()> {
    install(signal)
}

/// As [`swallow`], for the signals that a C library has for itself (glibc 32 and 33, musl 32 to 34). It lets nobody handle
/// them, and the kernel's default is to end the process. What it uses them for needs several threads: cancelling one, and
/// changing the user of all. Blocking them would not last: musl forgets that they were when it starts a program.
///
/// # Errors
/// That of `rt_sigaction`.
pub fn swallow_library_signals() -> io::Result<()> {
    /// More than the kernel's structure has on any architecture; it is taken from one signal and given to others.
    type Action = [u64; 8];
    let sigaction = |signal: libc::c_int, new: *const Action, old: *mut Action| {
        // SAFETY: each pointer is null or to an action that outlives the call. The kernel reads one that it has written,
        // and its handler does only what is allowed in one.
        match unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, new, old, size_of::<u64>()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    let mut action = Action::default();
    swallow(libc::SIGUSR2)?;
    sigaction(libc::SIGUSR2, std::ptr::null(), &raw mut action)?;
    (32..=34).try_for_each(|signal| sigaction(signal, &raw const action, std::ptr::null_mut()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wake_and_swallow() {
        let fd = wake_on(libc::SIGUSR2).unwrap();
        let mut buffer = [0u8; 8];
        assert_eq!(nix::unistd::read(&fd, &mut buffer), Err(nix::errno::Errno::EAGAIN));
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGUSR2).unwrap();
        assert_eq!(nix::unistd::read(&fd, &mut buffer), Ok(8));
        swallow(libc::SIGUSR1).unwrap();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGUSR1).unwrap();
        assert!(wake_on(libc::SIGKILL).is_err());
        assert!(wake_on(0).is_err() && wake_on(65).is_err() && wake_on(-1).is_err());
    }
}
