//! Pseudo terminals: size, output flags, and a pair for tests.
#![allow(unsafe_code)]

use nix::sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Sets the size of a terminal; the kernel tells the foreground process by SIGWINCH. Pixels are 0.
///
/// # Errors
/// That of the ioctl; `ENOTTY` if it is no terminal.
pub fn set_size(fd: BorrowedFd<'_>, rows: u16, cols: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives until the call returns.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Rows and columns of a terminal.
///
/// # Errors
/// That of the ioctl; `ENOTTY` if it is no terminal.
pub fn size(fd: BorrowedFd<'_>) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, exclusively borrowed for the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok((size.ws_row, size.ws_col)) }
}

/// Makes the terminal write CR LF for LF, which runtimes turn off. Other flags stay.
///
/// # Errors
/// That of `tcgetattr` or `tcsetattr`.
pub fn set_onlcr(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut termios = tcgetattr(fd)?;
    termios.output_flags.insert(OutputFlags::ONLCR);
    tcsetattr(fd, SetArg::TCSANOW, &termios)?;
    Ok(())
}

/// A new terminal: master and slave.
///
/// # Errors
/// That of `openpty`.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let pty = nix::pty::openpty(None, None)?;
    crate::bytes::set_cloexec(std::os::fd::AsFd::as_fd(&pty.master), true)?;
    crate::bytes::set_cloexec(std::os::fd::AsFd::as_fd(&pty.slave), true)?;
    Ok((pty.master, pty.slave))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn sizes_round_trip() {
        let (master, slave) = pair().unwrap();
        set_size(master.as_fd(), 33, 77).unwrap();
        assert_eq!(size(slave.as_fd()).unwrap(), (33, 77));
        set_onlcr(master.as_fd()).unwrap();
        let (r, _w) = nix::unistd::pipe().unwrap();
        assert!(set_size(r.as_fd(), 1, 1).is_err());
    }
}
