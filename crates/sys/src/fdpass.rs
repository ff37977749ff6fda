//! Passing descriptors over unix sockets. Every received one is owned and close-on-exec, wanted or not.
#![allow(unsafe_code)]

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The most descriptors one message brings; more are cut off by the kernel (and closed by it).
pub const MAX_FDS: usize = 16;

/// Sends bytes and descriptors as one message; at least one byte is needed on stream sockets.
///
/// # Errors
/// That of `sendmsg`.
pub fn send_fds(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &control[..0] } else { &control[..] };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)
        {
            Err(nix::errno::Errno::EINTR) => {}
            other => return Ok(other?),
        }
    }
}

/// What came with one message.
#[derive(Debug)]
pub struct Message {
    /// Bytes put into the buffer; 0 at the end of the connection.
    pub len: usize,
    /// The descriptors, in order.
    pub fds: Vec<OwnedFd>,
    /// Descriptors or bytes were cut off.
    pub truncated: bool,
}

/// Receives one message with up to [`MAX_FDS`] descriptors.
///
/// # Errors
/// That of `recvmsg`.
pub fn recv_fds(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<Message> {
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    loop {
        let mut iov = [IoSliceMut::new(buf)];
        let message =
            match recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
                Err(nix::errno::Errno::EINTR) => continue,
                other => other?,
            };
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just installed these descriptors for this message; this is their only owner.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let truncated = message.flags.intersects(MsgFlags::MSG_CTRUNC | MsgFlags::MSG_TRUNC);
        return Ok(Message { len: message.bytes, fds, truncated });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_arrive_owned_and_close_on_exec() {
        let (a, b) = UnixStream::pair().unwrap();
        let (r, w) = nix::unistd::pipe().unwrap();
        send_fds(a.as_fd(), b"name", &[r.as_fd(), w.as_fd()]).unwrap();
        let mut buf = [0; 16];
        let got = recv_fds(b.as_fd(), &mut buf).unwrap();
        assert_eq!((&buf[..got.len], got.fds.len(), got.truncated), (&b"name"[..], 2, false));
        let flags = nix::fcntl::fcntl(&got.fds[0], nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        nix::unistd::write(&got.fds[1], b"x").unwrap();
        assert_eq!(nix::unistd::read(&r, &mut buf).unwrap(), 1);
        drop(a);
        assert_eq!(recv_fds(b.as_fd(), &mut buf).unwrap().len, 0);
    }
}
