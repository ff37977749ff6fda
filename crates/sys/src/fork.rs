//! Forking a process that has one thread, and what the child does before it executes a program.

#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::unistd::{ForkResult, Pid};

/// Which side of a [`fork`] this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The parent, with the child's pid.
    Parent(Pid),
    /// The child.
    Child,
}

/// Forks the calling process, which must have exactly one thread.
///
/// With one thread no lock can be held by somebody else at the time of the fork, so the child may go on
/// with ordinary code.
///
/// # Errors
/// `EBUSY` if the process has more than one thread, else what fork(2) says.
pub fn fork() -> io::Result<Side> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: the process has one thread (checked above, and only this thread could start another), so
    // the child's memory is consistent and every lock is free.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Side::Parent(child)),
        ForkResult::Child => Ok(Side::Child),
    }
}

/// Ends the process at once: no destructors, no exit hooks, no flushing of the parent's buffers.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory.
    unsafe { libc::_exit(status) }
}

/// Replaces descriptor `target` (0, 1 or 2) by a duplicate of `fd`.
///
/// # Errors
/// What dup2(2) says; `EINVAL` for another target, which somebody may own.
pub fn replace_stdio(fd: impl AsFd, target: RawFd) -> io::Result<()> {
    if !(0..=2).contains(&target) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let fd = fd.as_fd().as_raw_fd();
    if fd == target {
        return clear_cloexec(target);
    }
    // SAFETY: `fd` is open (borrowed above) and the standard descriptors are not owned by any value, so
    // closing the old one behind `target` takes nothing away from anybody.
    if unsafe { libc::dup2(fd, target) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn clear_cloexec(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_SETFD takes an integer and touches no memory.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Closes every descriptor from 3 upwards. For a forked child about to execute a program.
pub fn close_all_but_stdio() {
    // SAFETY: the caller is a forked child that only executes a program or ends; the owners of these
    // descriptors are copies of the parent's values that are never dropped here.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } == 0 {
        return;
    }
    // Kernels before 5.9.
    for fd in 3..65_536 {
        // SAFETY: as above.
        unsafe { libc::close(fd) };
    }
}

/// Executes `path` (no search in `PATH`); returns only with an error.
pub fn execute(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    match nix::unistd::execve(path, args, env) {
        Ok(never) => absurd(never),
        Err(errno) => errno.into(),
    }
}

fn absurd(never: Infallible) -> io::Error {
    match never {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_forked() {
        let error = std::thread::spawn(|| fork().map(|_| ())).join().expect("no panic").expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
    }

    #[test]
    fn only_standard_descriptors_are_replaced() {
        let null = std::fs::File::open("/dev/null").expect("open /dev/null");
        assert_eq!(replace_stdio(&null, 3).expect_err("refused").raw_os_error(), Some(libc::EINVAL));
    }
}
