//! Datagrams to journald: small ones on the wire, large ones as a sealed memory file.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, setsockopt, socket,
    sockopt,
};
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// A sender to one address. It is not connected, so the receiver may come and go.
#[derive(Debug)]
pub struct DatagramSender {
    socket: OwnedFd,
    address: UnixAddr,
}

impl DatagramSender {
    /// A sender to the socket at `path`, which need not exist yet.
    ///
    /// # Errors
    /// That of `socket`, or a path that is too long.
    pub fn new(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        // Room for a burst of large records; the kernel may give less.
        let _ = setsockopt(&socket, sockopt::SndBuf, &(8 << 20));
        Ok(Self { socket, address: UnixAddr::new(path)? })
    }

    /// Sends one datagram, at most waiting `patience` for room. What does not fit into one travels as a memory file.
    ///
    /// # Errors
    /// `NotFound` or `ConnectionRefused` if nobody listens, `WouldBlock` if the receiver's queue stays full.
    pub fn send(&self, bytes: &[u8], patience: Duration) -> io::Result<()> {
        match self.try_send(bytes, patience) {
            Err(Errno::EMSGSIZE | Errno::ENOBUFS) => self.send_file(bytes, patience),
            other => Ok(other?),
        }
    }

    fn try_send(&self, bytes: &[u8], patience: Duration) -> Result<(), Errno> {
        self.message(&[IoSlice::new(bytes)], &[], patience)
    }

    fn send_file(&self, bytes: &[u8], patience: Duration) -> io::Result<()> {
        let mut file = std::fs::File::from(memfd_create(
            "journal-record",
            MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
        )?);
        file.write_all(bytes)?;
        let seals =
            SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        let fds = [file.as_raw_fd()];
        Ok(self.message(&[], &[ControlMessage::ScmRights(&fds)], patience)?)
    }

    fn message(
        &self,
        iov: &[IoSlice<'_>],
        control: &[ControlMessage<'_>],
        patience: Duration,
    ) -> Result<(), Errno> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut waited = false;
        loop {
            match sendmsg(self.socket.as_raw_fd(), iov, control, MsgFlags::MSG_NOSIGNAL, Some(&self.address))
            {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !waited && !patience.is_zero() => {
                    waited = true;
                    // An unconnected socket is writable as soon as its own buffer has room, whatever the receiver's
                    // queue does: connect for the wait.
                    let wait = || -> Result<(), Errno> {
                        let probe = socket(
                            AddressFamily::Unix,
                            SockType::Datagram,
                            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                            None,
                        )?;
                        nix::sys::socket::connect(probe.as_raw_fd(), &self.address)?;
                        let until = Instant::now().checked_add(patience);
                        loop {
                            let left =
                                until.map_or(patience, |u| u.saturating_duration_since(Instant::now()));
                            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
                            let mut fds = [PollFd::new(probe.as_fd(), PollFlags::POLLOUT)];
                            match poll(&mut fds, timeout) {
                                // A child that ends is no reason to lose a record.
                                Err(Errno::EINTR) if !left.is_zero() => {}
                                other => return other.map(drop),
                            }
                        }
                    };
                    wait()?;
                }
                Err(errno) => return Err(errno),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn small_on_the_wire_and_large_as_a_file() {
        let path = std::env::temp_dir().join(format!("pintle-datagram-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let sender = DatagramSender::new(&path).unwrap();
        assert_eq!(sender.send(b"x", Duration::ZERO).unwrap_err().kind(), io::ErrorKind::NotFound);
        let receiver = UnixDatagram::bind(&path).unwrap();
        sender.send(b"A=1\n", Duration::ZERO).unwrap();
        let large = vec![b'y'; 9 << 20];
        sender.send(&large, Duration::ZERO).unwrap();
        let mut buf = [0; 64];
        let got = crate::fdpass::recv_fds(receiver.as_fd(), &mut buf).unwrap();
        assert_eq!((&buf[..got.len], got.fds.len()), (&b"A=1\n"[..], 0));
        let mut got = crate::fdpass::recv_fds(receiver.as_fd(), &mut buf).unwrap();
        assert_eq!((got.len, got.fds.len()), (0, 1));
        let mut text = Vec::new();
        let mut file = std::fs::File::from(got.fds.remove(0));
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut text).unwrap();
        assert_eq!(text, large);
        // The queue is full some time: the wait is bounded.
        let error = (0..100_000).find_map(|_| sender.send(b"z", Duration::from_millis(20)).err()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        std::fs::remove_file(path).unwrap();
    }
    #[test]
    fn a_signal_does_not_end_the_wait_for_room() {
        let path = std::env::temp_dir().join(format!("pintle-datagram-signal-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let receiver = UnixDatagram::bind(&path).unwrap();
        let sender = DatagramSender::new(&path).unwrap();
        while sender.send(b"z", Duration::ZERO).is_ok() {}
        crate::signals::swallow(libc::SIGWINCH).unwrap();
        let waiter = nix::sys::pthread::pthread_self();
        let disturber = std::thread::spawn(move || {
            for _ in 0..20 {
                std::thread::sleep(Duration::from_millis(10));
                nix::sys::pthread::pthread_kill(waiter, nix::sys::signal::Signal::SIGWINCH).unwrap();
            }
            receiver.recv(&mut [0; 8]).unwrap();
            receiver
        });
        sender.send(b"kept", Duration::from_secs(60)).unwrap();
        drop(disturber.join().unwrap());
        std::fs::remove_file(path).unwrap();
    }
}
