//! Packet sockets of the attach protocols, and unix sockets below directories of any path length.
#![allow(unsafe_code)]

use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, connect, listen, recv,
    send, socket, socketpair,
};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

/// Packets that one system call sends at most.
const BATCH: usize = 8;

/// Kind of a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketKind {
    /// `SOCK_STREAM`.
    Stream,
    /// `SOCK_SEQPACKET`.
    Packet,
}

impl SocketKind {
    fn raw(self) -> SockType {
        match self {
            SocketKind::Stream => SockType::Stream,
            SocketKind::Packet => SockType::SeqPacket,
        }
    }
}

/// A connected pair of packet sockets, blocking and close-on-exec.
///
/// # Errors
/// That of `socketpair`.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// The address of `name` in an open directory; its length does not depend on the directory's path.
fn address_at(dir: BorrowedFd<'_>, name: &str) -> io::Result<UnixAddr> {
    if name.is_empty() || name.contains('/') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "socket name is not a plain file name"));
    }
    Ok(UnixAddr::new(Path::new(&format!("/proc/self/fd/{}/{name}", dir.as_raw_fd())))?)
}

/// Opens a directory as an anchor for [`bind_at`] and [`connect_at`].
///
/// # Errors
/// That of `open`.
pub fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;
    Ok(open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Creates a non-blocking listening socket `name` in `dir` with exactly this mode, replacing what was there.
///
/// # Errors
/// That of the failing call; the socket file is gone then.
pub fn bind_at(
    dir: BorrowedFd<'_>,
    name: &str,
    kind: SocketKind,
    mode: u32,
    backlog: i32,
) -> io::Result<OwnedFd> {
    use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
    use nix::unistd::{UnlinkatFlags, unlinkat};
    let address = address_at(dir, name)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, kind.raw(), flags, None)?;
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    // The mode of the socket's own inode is what bind gives to the file: nobody gets in between bind and chmod.
    nix::sys::stat::fchmod(&listener, Mode::from_bits_truncate(mode))?;
    bind(listener.as_raw_fd(), &address)?;
    let done = fchmodat(dir, name, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)
        .and_then(|()| listen(&listener, Backlog::new(backlog).unwrap_or(Backlog::MAXCONN)));
    if let Err(errno) = done {
        let _ = unlinkat(dir, name, UnlinkatFlags::NoRemoveDir);
        return Err(errno.into());
    }
    Ok(listener)
}

/// Connects to the socket `name` in `dir`; blocking and close-on-exec.
///
/// # Errors
/// That of `socket` or `connect`.
pub fn connect_at(dir: BorrowedFd<'_>, name: &str, kind: SocketKind) -> io::Result<OwnedFd> {
    let address = address_at(dir, name)?;
    let stream = socket(AddressFamily::Unix, kind.raw(), SockFlag::SOCK_CLOEXEC, None)?;
    connect(stream.as_raw_fd(), &address)?;
    Ok(stream)
}

/// Accepts a waiting connection, non-blocking and close-on-exec.
///
/// # Errors
/// That of `accept4`; `WouldBlock` if nobody waits.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    loop {
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
            // SAFETY: accept4 has just made this descriptor, nobody else owns it.
            Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::ECONNABORTED) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Sends one packet without waiting and without SIGPIPE.
///
/// # Errors
/// That of `send`; `WouldBlock` if the peer's buffer is full.
pub fn send_packet(fd: BorrowedFd<'_>, packet: &[u8]) -> io::Result<()> {
    loop {
        match send(fd.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// Sends `bytes` as packets of one byte `kind` and at most `max` bytes each, without waiting. Returns how many bytes
/// went; fewer than all only if the peer's buffer is full.
///
/// # Errors
/// That of `sendmmsg` for the first packet; `WouldBlock` if not even that fitted.
pub fn send_chunk(fd: BorrowedFd<'_>, kind: u8, bytes: &[u8], max: usize) -> io::Result<usize> {
    let max = max.max(1);
    let mut sent = 0;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        match send_batch(fd, kind, rest, max) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if sent > 0 && error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

fn send_batch(fd: BorrowedFd<'_>, kind: u8, bytes: &[u8], max: usize) -> io::Result<usize> {
    let mut iovecs = [[libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2]; BATCH];
    // SAFETY: mmsghdr is plain data for which all zeroes is a valid value: no name, no control data, no vector.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut count = 0;
    for ((piece, iovec), header) in bytes.chunks(max).zip(&mut iovecs).zip(&mut headers) {
        iovec[0] = libc::iovec { iov_base: std::ptr::from_ref(&kind).cast_mut().cast(), iov_len: 1 };
        iovec[1] = libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
        header.msg_hdr.msg_iov = iovec.as_mut_ptr();
        header.msg_hdr.msg_iovlen = 2 as _;
        count += 1;
    }
    // musl counts the flags and these lengths in other types than glibc.
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the first `count` headers point to vectors in `iovecs`, whose entries point into `kind` and `bytes`; all
    // of them outlive the call, and the kernel only reads through them.
    let n = unsafe { libc::sendmmsg(fd.as_raw_fd(), headers.as_mut_ptr(), count, flags as _) };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    Ok(bytes.len().min(n * max))
}

/// What a receive found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A packet, now in the buffer.
    Packet,
    /// The peer has shut its sending side down or is gone.
    End,
}

/// Receives one whole packet of any length into `buf` (replacing its content), without waiting. The buffer grows only
/// as far as the packet needs, at most `limit` bytes; what is longer is cut.
///
/// # Errors
/// That of `recv`; `WouldBlock` if there is none.
pub fn recv_packet(fd: BorrowedFd<'_>, buf: &mut Vec<u8>, limit: usize) -> io::Result<Received> {
    let raw = fd.as_raw_fd();
    let retry = |flags| loop {
        match recv(raw, &mut [], flags) {
            // A peer that closes without having read all is told by one error; what it sent before is still there.
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::ECONNRESET) => {}
            other => return other,
        }
    };
    let len = retry(MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT)?;
    if len == 0 && has_ended(fd) {
        buf.clear();
        return Ok(Received::End);
    }
    // What it held is overwritten, so only growth has to be filled.
    buf.resize(len.min(limit), 0);
    loop {
        match recv(raw, buf, MsgFlags::MSG_DONTWAIT) {
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::ECONNRESET) => {}
            other => {
                buf.truncate(other?);
                return Ok(Received::Packet);
            }
        }
    }
}

/// True if an empty read is the peer's end: it has shut its sending side down (or closed) and no byte waits. Otherwise
/// it was an empty packet.
fn has_ended(fd: BorrowedFd<'_>) -> bool {
    let ended = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: ended, revents: 0 };
    let mut waiting: libc::c_int = 0;
    // SAFETY: poll gets one valid entry and does not wait; FIONREAD writes one integer. Both outlive the calls.
    let (polled, asked) = unsafe {
        (libc::poll(&raw mut poll, 1, 0), libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut waiting))
    };
    polled < 0 || (poll.revents & ended != 0 && (asked < 0 || waiting == 0))
}

/// True if the peer has closed the socket altogether, not just its sending side.
pub fn hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one valid entry, and no waiting.
    let polled = unsafe { libc::poll(&raw mut poll, 1, 0) };
    polled != 0 && poll.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn chunks_become_packets() {
        let (a, b) = pair().unwrap();
        let data: Vec<u8> = (0..20_000u32).map(|n| n as u8).collect();
        assert_eq!(send_chunk(a.as_fd(), 2, &data, 8192).unwrap(), 20_000);
        let (mut buf, mut joined, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..3 {
            assert_eq!(recv_packet(b.as_fd(), &mut buf, 1 << 20).unwrap(), Received::Packet);
            assert_eq!(buf[0], 2);
            sizes.push(buf.len());
            joined.extend_from_slice(&buf[1..]);
        }
        assert_eq!(sizes, [8193, 8193, 3617]);
        assert_eq!(joined, data);
    }

    #[test]
    fn a_full_peer_gets_a_prefix() {
        let (a, b) = pair().unwrap();
        let data = vec![7u8; 4 << 20];
        let sent = send_chunk(a.as_fd(), 3, &data, 8192).unwrap();
        assert!(sent > 0 && sent < data.len() && sent % 8192 == 0);
        let error = send_chunk(a.as_fd(), 3, &data, 8192).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(b);
        let gone = send_chunk(a.as_fd(), 3, &data, 8192).unwrap_err().kind();
        assert!(matches!(gone, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe));
        assert_eq!(send_chunk(a.as_fd(), 3, &data, 8192).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn an_empty_packet_is_not_the_end() {
        let (a, b) = pair().unwrap();
        let mut buf = Vec::new();
        send_packet(a.as_fd(), b"").unwrap();
        send_packet(a.as_fd(), b"x").unwrap();
        assert_eq!(recv_packet(b.as_fd(), &mut buf, 100).unwrap(), Received::Packet);
        assert!(buf.is_empty());
        assert_eq!(recv_packet(b.as_fd(), &mut buf, 100).unwrap(), Received::Packet);
        assert_eq!(buf, b"x");
        assert_eq!(recv_packet(b.as_fd(), &mut buf, 100).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        send_packet(a.as_fd(), b"").unwrap();
        send_packet(a.as_fd(), b"y").unwrap();
        drop(a);
        assert_eq!(recv_packet(b.as_fd(), &mut buf, 100).unwrap(), Received::Packet);
        assert!(buf.is_empty());
        assert_eq!(recv_packet(b.as_fd(), &mut buf, 100).unwrap(), Received::Packet);
        assert_eq!(buf, b"y");
        assert_eq!(recv_packet(b.as_fd(), &mut buf, 100).unwrap(), Received::End);
    }

    #[test]
    fn sockets_below_long_paths() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let top = std::env::temp_dir().join(format!("pintle-seqpacket-{}", std::process::id()));
        let deep = (0..8).fold(top.clone(), |p, n| p.join(format!("{n}{}", "d".repeat(100))));
        std::fs::create_dir_all(&deep).unwrap();
        let dir = open_dir(&deep).unwrap();
        let listener = bind_at(dir.as_fd(), "attach", SocketKind::Packet, 0o700, 10).unwrap();
        let listener_again = bind_at(dir.as_fd(), "attach", SocketKind::Packet, 0o700, 10).unwrap();
        drop(listener);
        let meta = std::fs::symlink_metadata(deep.join("attach")).unwrap();
        assert_eq!(
            (meta.permissions().mode() & 0o7777, meta.uid()),
            (0o700, nix::unistd::geteuid().as_raw())
        );
        let client = connect_at(dir.as_fd(), "attach", SocketKind::Packet).unwrap();
        let server = accept(listener_again.as_fd()).unwrap();
        send_packet(server.as_fd(), b"hi").unwrap();
        let mut buf = Vec::new();
        assert_eq!(recv_packet(client.as_fd(), &mut buf, 10).unwrap(), Received::Packet);
        assert_eq!(accept(listener_again.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(connect_at(dir.as_fd(), "../x", SocketKind::Packet).is_err());
        std::fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn what_a_peer_sent_before_it_closed_without_reading_is_received() {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        send_packet(theirs.as_fd(), b"data").unwrap();
        send_packet(ours.as_fd(), b"not read").unwrap();
        drop(theirs);
        let mut buf = Vec::new();
        assert_eq!(recv_packet(ours.as_fd(), &mut buf, 100).unwrap(), Received::Packet);
        assert_eq!(buf, b"data");
        assert_eq!(recv_packet(ours.as_fd(), &mut buf, 100).unwrap(), Received::End);
    }
}
