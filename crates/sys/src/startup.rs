//! Descriptors that were open when the process started.
//!
//! A caller may place descriptors that the runtime must inherit or that only have to be held (reserved
//! ports). They are recorded before anything else opens a file, and each named one can be taken once.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// The descriptors from 3 upwards that the process was started with.
#[derive(Debug, Default)]
pub struct Inherited {
    fds: Vec<RawFd>,
}

impl Inherited {
    /// Records the open descriptors.
    ///
    /// Must be the first thing that a process does: what is open now is owned by this value, so nothing
    /// else in the process may own any of it.
    pub fn record() -> Self {
        let Ok(listing) = std::fs::read_dir("/proc/self/fd") else {
            return Self::default();
        };
        let numbers = listing.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut fds: Vec<RawFd> = numbers.filter(|fd| *fd > 2).collect();
        // The listing itself was open while it was read, and is not any more.
        fds.retain(|fd| is_open(*fd));
        Self { fds }
    }

    /// Takes one descriptor and marks it close-on-exec.
    ///
    /// # Errors
    /// `EBADF` if it was not open at the start or has been taken before.
    pub fn take(&mut self, fd: RawFd) -> io::Result<OwnedFd> {
        let at = self.fds.iter().position(|known| *known == fd);
        let at = at.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        // SAFETY: F_SETFD takes an integer and touches no memory.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
        self.fds.swap_remove(at);
        // SAFETY: the descriptor was open at the start, is owned by this value alone (see `record`) and
        // is given away exactly once, since it is off the list now.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.fds.is_empty()
    }

    /// Closes all that was not taken.
    pub fn close(&mut self) {
        for fd in self.fds.drain(..) {
            // SAFETY: the descriptor is owned by this value and leaves the list here.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD takes no argument and touches no memory.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}
