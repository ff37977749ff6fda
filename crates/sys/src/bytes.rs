//! Reading into memory that nobody has written yet.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// One `read` into the spare room of `buf`, which grows by what was read; 0 is the end of the file (or no room).
///
/// # Errors
/// That of `read`; an interrupted call is repeated.
pub fn read_spare(fd: BorrowedFd<'_>, buf: &mut Vec<u8>) -> io::Result<usize> {
    let spare = buf.spare_capacity_mut();
    loop {
        // SAFETY: the pointer and length are those of the vector's own spare capacity, exclusively borrowed here; the
        // kernel only writes to it. The descriptor is open for the duration of the borrow.
        let n = unsafe { libc::read(fd.as_raw_fd(), spare.as_mut_ptr().cast(), spare.len()) };
        if let Ok(n) = usize::try_from(n) {
            // SAFETY: the kernel has initialised the first n bytes of the spare capacity, and n is at most its length.
            unsafe { buf.set_len(buf.len() + n) };
            return Ok(n);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Bytes that wait to be read in a pipe (asked at either end) or a terminal; 0 where the kernel does not tell.
pub fn unread(fd: BorrowedFd<'_>) -> u64 {
    let mut waiting: libc::c_int = 0;
    // SAFETY: FIONREAD writes one integer, which outlives the call.
    let asked = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut waiting) };
    if asked < 0 { 0 } else { u64::try_from(waiting).unwrap_or(0) }
}

/// One `write`; an interrupted call is repeated.
///
/// # Errors
/// That of `write`.
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match nix::unistd::write(fd, bytes) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Makes a descriptor non-blocking or blocking. The flag belongs to the open file, so all its holders see it.
///
/// # Errors
/// That of `fcntl`.
pub fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let mut flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_NONBLOCK, on);
    fcntl(fd, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

/// Sets or clears close-on-exec.
///
/// # Errors
/// That of `fcntl`.
pub fn set_cloexec(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let flag = if on { FdFlag::FD_CLOEXEC } else { FdFlag::empty() };
    fcntl(fd, FcntlArg::F_SETFD(flag))?;
    Ok(())
}

/// True if a read would bring something now: bytes, the end, or an error.
pub fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry, and no waiting.
    let n = unsafe { libc::poll(&raw mut poll, 1, 0) };
    n != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn reads_append_and_see_the_end() {
        let (r, w) = nix::unistd::pipe().unwrap();
        assert_eq!(write(w.as_fd(), b"hello").unwrap(), 5);
        drop(w);
        let mut buf = Vec::with_capacity(16);
        buf.extend_from_slice(b"> ");
        assert_eq!(read_spare(r.as_fd(), &mut buf).unwrap(), 5);
        assert_eq!(buf, b"> hello");
        assert_eq!(read_spare(r.as_fd(), &mut buf).unwrap(), 0);
    }

    #[test]
    fn nonblocking_reads_say_so() {
        let (r, _w) = nix::unistd::pipe().unwrap();
        set_nonblocking(r.as_fd(), true).unwrap();
        let error = read_spare(r.as_fd(), &mut Vec::with_capacity(4)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
