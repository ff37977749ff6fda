//! Which descriptors a new program gets, beyond its standard streams.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Gives a program descriptors under chosen numbers (3 and above). The command keeps them open until it is dropped.
///
/// # Panics
/// Never; a number that is given twice gets the last descriptor.
pub fn give(command: &mut Command, fds: Vec<(OwnedFd, RawFd)>) {
    let map = move || {
        // First out of the way of all targets, then into place: a source may sit on the target of another.
        let lowest = fds.iter().map(|(_, target)| *target).max().unwrap_or(2) + 1;
        let mut moved = [-1; 16];
        if fds.len() > moved.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for ((fd, _), slot) in fds.iter().zip(moved.iter_mut()) {
            // SAFETY: duplicates a descriptor that `fds` owns; no memory is touched.
            *slot = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) };
            if *slot < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        for ((_, target), slot) in fds.iter().zip(moved.iter()) {
            // SAFETY: `slot` is the duplicate made above; the target number belongs to the program about to start.
            if unsafe { libc::dup2(*slot, *target) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure calls only fcntl and dup2, which are async-signal-safe, and allocates nothing.
    unsafe {
        command.pre_exec(map);
    }
}

/// Has a program killed when the calling thread ends. What the program forks is not: the kernel clears the wish for
/// children. An `execve` of the caller does not end its thread.
///
/// The thread that starts the command must be one that lives as long as the process.
pub fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let wish = move || {
        // SAFETY: prctl with integers only.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // A parent that has died before will not send it any more.
        if std::os::unix::process::parent_id() != parent {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    };
    // SAFETY: the closure calls only prctl and getppid, which are async-signal-safe, and allocates nothing.
    unsafe {
        command.pre_exec(wish);
    }
}

/// Marks every descriptor from `first` on to be closed when another program is started: a caller's forgotten pipe
/// must not live on in a process that stays.
///
/// # Errors
/// As `close_range`; `ENOSYS` before Linux 5.9 and `EINVAL` before 5.11.
pub fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    let first = libc::c_uint::try_from(first).map_err(io::Error::other)?;
    // SAFETY: changes descriptor flags only.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC as libc::c_int,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::Stdio;

    #[test]
    fn numbers_may_cross() {
        let (first, a) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let (second, b) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let (mut first, mut second) = (std::fs::File::from(first), std::fs::File::from(second));
        let targets = (b.as_raw_fd(), a.as_raw_fd());
        let mut command = Command::new("/bin/bash");
        command.arg("-c").arg(format!("echo one >&{}; echo two >&{}", targets.0, targets.1));
        command.stdin(Stdio::null());
        give(&mut command, vec![(a, targets.0), (b, targets.1)]);
        assert!(command.status().unwrap().success());
        drop(command);
        let (mut one, mut two) = (String::new(), String::new());
        first.read_to_string(&mut one).unwrap();
        second.read_to_string(&mut two).unwrap();
        assert_eq!((one.as_str(), two.as_str()), ("one\n", "two\n"));
        let _ = io::stdout().flush();
    }
}
