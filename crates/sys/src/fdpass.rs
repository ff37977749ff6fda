//! Passing descriptors over unix sockets. Every received one is owned and close-on-exec, wanted or not.
#![allow(unsafe_code)]

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The most descriptors one message brings; more are cut off by the kernel (and closed by it).
pub const MAX_FDS: usize = 16;
/// Room for them and their header, in units that are aligned for it.
const SPACE: usize = 1 + (MAX_FDS * size_of::<RawFd>()).div_ceil(size_of::<libc::cmsghdr>());

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
    // The library's own call gives no descriptor of a message that was cut off, and those that came would stay open.
    let mut space = [MaybeUninit::<libc::cmsghdr>::uninit(); SPACE];
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: msghdr is plain data for which all zeroes is a valid value: no name, no vector, no control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = space.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&space) as _;
    let len = loop {
        // SAFETY: the header points to one vector over `buf` and to `space`, both exclusively ours for the call.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
        match usize::try_from(n) {
            Ok(n) => break n,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    };
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled the header: its control length tells how much of `space` is initialised, and CMSG_*
    // walk inside of that. Cut off or not, each SCM_RIGHTS message is a header and as many whole descriptors as fitted,
    // which the kernel has just installed for this message; this is their only owner.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(&raw const header);
        while !at.is_null() {
            if ((*at).cmsg_level, (*at).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let whole: usize = (*at).cmsg_len as _;
                let bytes = whole.saturating_sub(libc::CMSG_LEN(0) as usize);
                let data = libc::CMSG_DATA(at).cast::<RawFd>();
                for n in 0..bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(n).read_unaligned()));
                }
            }
            at = libc::CMSG_NXTHDR(&raw const header, at);
        }
    }
    let truncated = header.msg_flags & (libc::MSG_CTRUNC | libc::MSG_TRUNC) != 0;
    Ok(Message { len, fds, truncated })
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

    #[test]
    fn of_a_message_that_is_cut_off_nothing_stays_open() {
        let (a, b) = UnixStream::pair().unwrap();
        let (r, w) = nix::unistd::pipe().unwrap();
        let many = [w.as_fd(); MAX_FDS + 3];
        send_fds(a.as_fd(), b"x", &many).unwrap();
        drop(w);
        let mut buf = [0; 16];
        let got = recv_fds(b.as_fd(), &mut buf).unwrap();
        assert_eq!((got.len, got.fds.len(), got.truncated), (1, MAX_FDS, true));
        drop(got);
        // The pipe ends only when its last writer is closed.
        crate::bytes::set_nonblocking(r.as_fd(), true).unwrap();
        assert_eq!(nix::unistd::read(&r, &mut buf), Ok(0));
    }
}
