//! Processes held by a descriptor, so that a recycled pid is never hit.
#![allow(unsafe_code)]

use pintle_core::exit::WaitStatus;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A process, held by a pidfd. Readable (poll) once the process has ended.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
    pid: i32,
}

/// `struct pidfd_info`, first version (64 bytes).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ids: [u32; 8],
    exit_code: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
// _IOWR(0xff, 11, 64 bytes)
const PIDFD_GET_INFO: libc::Ioctl = 0xc040_ff0b_u32 as libc::Ioctl;

impl PidFd {
    /// Opens the process `pid`. The caller knows that the pid cannot have been recycled (it is a child not yet
    /// reaped), or checks its start time afterwards.
    ///
    /// # Errors
    /// `ESRCH` if there is no such process, `EINVAL` for a pid below 1.
    pub fn open(pid: i32) -> io::Result<Self> {
        if pid < 1 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let raw = i32::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it. It is close-on-exec.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Self { fd, pid })
    }

    /// Takes over a pidfd that was opened elsewhere (before an upgrade).
    pub fn from_fd(fd: OwnedFd, pid: i32) -> Self {
        Self { fd, pid }
    }

    /// The pid it was opened for. Only a name once the process has been reaped.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal (0 only checks).
    ///
    /// # Errors
    /// `ESRCH` if the process has been reaped, `EINVAL` for no signal, `EPERM`.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: the info pointer may be null; the descriptor is ours and open.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether the process has ended (a zombie has).
    pub fn has_ended(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid pollfd, and the count says so.
        let rc = unsafe { libc::poll(&raw mut poll, 1, 0) };
        rc > 0 && poll.revents & libc::POLLIN != 0
    }

    /// How the process ended, as the kernel keeps it for holders of the descriptor after somebody reaped it.
    /// `None` while it is not reaped, or on a kernel without this (before Linux 6.15).
    pub fn exit_info(&self) -> Option<WaitStatus> {
        let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..Default::default() };
        // SAFETY: the request number carries the size of the struct, which is what the pointer refers to.
        let rc = unsafe { libc::ioctl(self.fd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
        if rc < 0 || info.mask & PIDFD_INFO_EXIT == 0 {
            return None;
        }
        WaitStatus::from_raw(info.exit_code)
    }

    /// A second descriptor for the same process.
    ///
    /// # Errors
    /// As `dup`.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, pid: self.pid })
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for PidFd {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn life_and_end() {
        assert_eq!(std::mem::size_of::<PidfdInfo>(), 64);
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let fd = PidFd::open(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(!fd.has_ended());
        fd.signal(0).unwrap();
        fd.signal(9).unwrap();
        child.wait().unwrap();
        assert!(fd.has_ended());
        assert_eq!(fd.signal(9).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        // Old kernels have no exit information; new ones must give the right one.
        if let Some(status) = fd.exit_info() {
            assert_eq!(status, WaitStatus::Signaled { signal: 9, core: false });
        }
        assert!(PidFd::open(0).is_err());
        assert!(PidFd::open(-1).is_err());
    }
}
