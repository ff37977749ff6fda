//! Becoming a daemon: inherited descriptors, the fork, the session.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The two sides of a fork.
#[derive(Debug)]
pub enum Fork {
    /// The calling process; pid of the child.
    Parent(i32),
    /// The new process.
    Child,
}

/// Takes over an inherited descriptor by its number; it becomes close-on-exec.
///
/// # Errors
/// `EBADF` if it is not open.
pub fn take_inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD on any number is harmless; it fails for one that is not open.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: it is open, and the caller names it as a descriptor handed to this process for this purpose; it is
    // taken once, at start, before anything else owns descriptors.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Closes every inherited descriptor from 3 on except `keep`. Only at the very start, while this process owns nothing.
pub fn close_inherited(keep: &[RawFd]) {
    let mut keep: Vec<u32> =
        keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd >= 3).collect();
    keep.sort_unstable();
    let mut from = 3u32;
    for fd in keep.into_iter().chain([u32::MAX]) {
        if fd > from {
            let last = if fd == u32::MAX { u32::MAX } else { fd - 1 };
            // SAFETY: the caller says that nothing in this process owns these descriptors.
            unsafe { libc::syscall(libc::SYS_close_range, from, last, 0) };
        }
        from = fd.saturating_add(1);
    }
}

/// Forks. Only while the process has one thread.
///
/// # Errors
/// As `fork`.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: the process has a single thread (checked by callers, which run this before any runtime exists), so the
    // child may go on as the parent would.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Makes `fd` also known under `target` (0, 1 or 2), replacing what was there.
///
/// # Errors
/// As `dup2`.
pub fn replace_std(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    if !(0..=2).contains(&target) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: the standard descriptors are never owned by an OwnedFd in this project.
    if unsafe { libc::dup2(fd.as_raw_fd(), target) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Blocks no signal: what the caller blocked is not for the shim.
pub fn unblock_signals() {
    let set = nix::sys::signal::SigSet::empty();
    // Setting an empty mask cannot fail.
    let _ = set.thread_set_mask();
}

/// Clears or sets close-on-exec; for descriptors handed to a new program image.
///
/// # Errors
/// As `fcntl`.
pub fn set_inheritable(fd: BorrowedFd<'_>, inheritable: bool) -> io::Result<()> {
    let flags = if inheritable { nix::fcntl::FdFlag::empty() } else { nix::fcntl::FdFlag::FD_CLOEXEC };
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(flags))?;
    Ok(())
}

/// A close-on-exec copy, numbered above the standard ones, of an inherited standard descriptor.
///
/// # Errors
/// `EBADF` if it is not open.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC on any number is harmless; it fails for one that is not open.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fcntl has just made this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Blocks every signal that can be blocked; a new program image inherits that.
pub fn block_signals() {
    let set = nix::sys::signal::SigSet::all();
    // Setting a mask cannot fail.
    let _ = set.thread_set_mask();
}
