//! stdio of a container or an exec over the packet socket: AsyncRead and AsyncWrite halves.

use crate::{
    error::{Error, Result},
    socket::connect_patiently,
};
use bytes::{Buf, Bytes};
use nix::sys::socket::{MsgFlags, SockType, recv, sendmsg};
use std::{
    io::{self, IoSlice},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::UnixStream,
    sync::{mpsc, watch},
    task::AbortHandle,
};

/// Longest payload of one packet.
const PAYLOAD: usize = 32 * 1024;
/// Packets queued for a half that is not being read.
const QUEUE: usize = 32;

/// Why a stdio connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StdioEnd {
    /// Every stream ended; nothing was lost.
    Finished,
    /// The shim dropped this client, and why.
    Dropped(String),
    /// The connection broke.
    Lost(String),
}

struct Connection {
    // A packet socket inside a stream's type: only readiness and raw packets are used of it.
    fd: UnixStream,
}

impl Connection {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: UnixStream::from_std(fd.into())? })
    }

    fn try_send(&self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let parts = [IoSlice::new(std::slice::from_ref(&kind)), IoSlice::new(payload)];
        sendmsg::<()>(self.fd.as_raw_fd(), &parts, &[], MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    async fn send(&self, kind: u8, payload: &[u8]) -> io::Result<()> {
        self.fd.async_io(Interest::WRITABLE, || self.try_send(kind, payload)).await
    }

    fn poll_send(&self, cx: &mut Context<'_>, kind: u8, payload: &[u8]) -> Poll<io::Result<()>> {
        loop {
            ready!(self.fd.poll_write_ready(cx))?;
            match self.fd.try_io(Interest::WRITABLE, || self.try_send(kind, payload)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let flags = MsgFlags::empty();
        let read = || match recv(self.fd.as_raw_fd(), buffer, flags) {
            // The shim closed while something of ours was unread. The kernel says so once, ahead of the packets
            // that are still there for us.
            Err(nix::errno::Errno::ECONNRESET) => Ok(recv(self.fd.as_raw_fd(), buffer, flags)?),
            result => Ok(result?),
        };
        self.fd.async_io(Interest::READABLE, read).await
    }
}

/// Ends the pump when the last half is gone, and with it the connection.
struct Guard(AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection that has said its token and waits to be named in a call.
pub(crate) struct Pending {
    connection: Arc<Connection>,
    pub(crate) token: Vec<u8>,
}

impl Pending {
    /// Connects to `dir/stdio.sock` and says a fresh token.
    pub(crate) async fn connect(dir: &Path) -> Result<Self> {
        let context = || format!("connecting to {}", dir.join("stdio.sock").display());
        let fd = connect_patiently(dir, "stdio.sock", SockType::SeqPacket).await.map_err(|error| {
            if crate::socket::nobody_there(&error) {
                Error::NotRunning { dir: dir.to_path_buf() }
            } else {
                Error::io(context())(error)
            }
        })?;
        let connection = Connection::new(fd).map_err(Error::io(context()))?;
        let token = token().map_err(Error::io("making a token"))?;
        let (first, rest) = token.split_at(1);
        connection.send(first[0], rest).await.map_err(Error::io(context()))?;
        Ok(Self { connection: Arc::new(connection), token })
    }

    /// The streams, after the call that named the token was answered.
    pub(crate) fn into_stdio(self) -> Stdio {
        let (out_tx, out_rx) = mpsc::channel(QUEUE);
        let (err_tx, err_rx) = mpsc::channel(QUEUE);
        let (end_tx, end_rx) = watch::channel(None);
        let mut pump =
            Pump { connection: self.connection.clone(), stdout: Some(out_tx), stderr: Some(err_tx) };
        let task = tokio::spawn(async move {
            let end = pump.run().await;
            // Told while the halves are still open: one that saw its end first would take a loss for the end of the
            // stream.
            let _ = end_tx.send(Some(end));
            drop(pump);
        });
        let guard = Arc::new(Guard(task.abort_handle()));
        let output = |packets| OutputReader {
            packets,
            rest: Bytes::new(),
            end: end_rx.clone(),
            _guard: guard.clone(),
        };
        Stdio {
            stdout: output(out_rx),
            stderr: output(err_rx),
            stdin: StdinWriter { connection: self.connection.clone(), closed: false, _guard: guard.clone() },
            control: StdioControl { connection: self.connection, end: end_rx.clone(), _guard: guard.clone() },
        }
    }
}

fn token() -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut token = vec![0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut token)?;
    Ok(token)
}

/// Moves packets from the socket to the halves.
struct Pump {
    connection: Arc<Connection>,
    stdout: Option<mpsc::Sender<Bytes>>,
    stderr: Option<mpsc::Sender<Bytes>>,
}

impl Pump {
    async fn run(&mut self) -> StdioEnd {
        let mut buffer = vec![0; PAYLOAD + 1];
        loop {
            let n = match self.connection.receive(&mut buffer).await {
                Ok(n) => n,
                Err(error) => return StdioEnd::Lost(error.to_string()),
            };
            let Some((kind, payload)) = buffer[..n].split_first() else {
                return StdioEnd::Lost("the shim closed the connection".into());
            };
            match (kind, payload) {
                (2, data) => deliver(&mut self.stdout, data).await,
                (3, data) => deliver(&mut self.stderr, data).await,
                (0, [b'E', 2, ..]) => self.stdout = None,
                (0, [b'E', 3, ..]) => self.stderr = None,
                (0, [b'X', ..]) => return StdioEnd::Finished,
                (0, [b'D', why @ ..]) => {
                    return StdioEnd::Dropped(String::from_utf8_lossy(why).into_owned());
                }
                // Additions to the protocol are skipped.
                _ => {}
            }
        }
    }
}

async fn deliver(half: &mut Option<mpsc::Sender<Bytes>>, data: &[u8]) {
    if let Some(sender) = half {
        // A half that was dropped wants nothing more.
        if !data.is_empty() && sender.send(Bytes::copy_from_slice(data)).await.is_err() {
            *half = None;
        }
    }
}

/// The streams of a container or an exec.
///
/// Take the fields apart to use them from several tasks. The connection lives until the last part
/// is dropped. If both outputs are wanted, both have to be read: one that is not stops the other
/// after about 1 MiB. An output that is not wanted is dropped.
pub struct Stdio {
    /// Feeds stdin. Shutting it down closes stdin of the process once everything is written.
    pub stdin: StdinWriter,
    /// Output; all of it with a terminal.
    pub stdout: OutputReader,
    /// Error output.
    pub stderr: OutputReader,
    /// Resizing and the end of the connection.
    pub control: StdioControl,
}

impl std::fmt::Debug for Stdio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stdio").finish_non_exhaustive()
    }
}

/// Output of a process. End of file means that the stream ended with nothing lost; a client that
/// was dropped, or lost its shim, gets an error instead.
pub struct OutputReader {
    packets: mpsc::Receiver<Bytes>,
    rest: Bytes,
    end: watch::Receiver<Option<StdioEnd>>,
    _guard: Arc<Guard>,
}

impl AsyncRead for OutputReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            match ready!(self.packets.poll_recv(cx)) {
                Some(packet) => self.rest = packet,
                None => {
                    let end = self.end.borrow().clone();
                    return Poll::Ready(match end {
                        Some(StdioEnd::Dropped(why)) => {
                            Err(io::Error::new(io::ErrorKind::ConnectionAborted, Error::Dropped(why)))
                        }
                        Some(StdioEnd::Lost(why)) => Err(io::Error::new(io::ErrorKind::ConnectionReset, why)),
                        // `None`: this stream ended before the connection.
                        Some(StdioEnd::Finished) | None => Ok(()),
                    });
                }
            }
        }
        let n = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..n]);
        self.rest.advance(n);
        Poll::Ready(Ok(()))
    }
}

/// stdin of a process. [`shutdown`](tokio::io::AsyncWriteExt::shutdown) closes it after everything
/// written before; dropping it does not.
pub struct StdinWriter {
    connection: Arc<Connection>,
    closed: bool,
    _guard: Arc<Guard>,
}

impl AsyncWrite for StdinWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let chunk = &buf[..buf.len().min(PAYLOAD)];
        ready!(self.connection.poll_send(cx, 1, chunk))?;
        Poll::Ready(Ok(chunk.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            match ready!(self.connection.poll_send(cx, 0, b"C")) {
                // The process may be gone already: then its stdin is closed as well.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Poll::Ready(Err(error)),
                _ => self.closed = true,
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Resizes the terminal and tells how the connection ended. Cheap to clone.
#[derive(Clone)]
pub struct StdioControl {
    connection: Arc<Connection>,
    end: watch::Receiver<Option<StdioEnd>>,
    _guard: Arc<Guard>,
}

impl StdioControl {
    /// Sets the size of the terminal.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let [r, o] = rows.to_be_bytes();
        let [c, l] = columns.to_be_bytes();
        self.connection.send(0, &[b'R', r, o, c, l]).await.map_err(Error::io("resizing a terminal"))
    }

    /// Closes stdin once everything written before has reached the process.
    ///
    /// # Errors
    /// If the connection is gone.
    pub async fn close_stdin(&self) -> Result<()> {
        self.connection.send(0, b"C").await.map_err(Error::io("closing stdin"))
    }

    /// Waits for the end of the connection.
    pub async fn closed(&self) -> StdioEnd {
        let mut end = self.end.clone();
        let end = end.wait_for(Option::is_some).await.map(|end| end.clone());
        end.ok().flatten().unwrap_or_else(|| StdioEnd::Lost("closed by this client".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, send, socketpair};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair() -> (Stdio, OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let connection = Arc::new(Connection::new(ours).unwrap());
        (Pending { connection, token: Vec::new() }.into_stdio(), theirs)
    }

    fn say(fd: &OwnedFd, packet: &[u8]) {
        send(fd.as_raw_fd(), packet, MsgFlags::empty()).unwrap();
    }

    fn hear(fd: &OwnedFd) -> Vec<u8> {
        let mut buffer = [0; 70_000];
        let n = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        buffer[..n].to_vec()
    }

    #[tokio::test]
    async fn streams_are_told_apart_and_end_one_by_one() {
        let (mut io, shim) = pair();
        for packet in [&b"\x02one"[..], b"\x03bad", b"\x09future", b"\x02two", b"\x00E\x02", b"\x03!"] {
            say(&shim, packet);
        }
        let mut out = String::new();
        io.stdout.read_to_string(&mut out).await.unwrap();
        assert_eq!(out, "onetwo");
        say(&shim, b"\x00X");
        let mut err = String::new();
        io.stderr.read_to_string(&mut err).await.unwrap();
        assert_eq!(err, "bad!");
        assert_eq!(io.control.closed().await, StdioEnd::Finished);
    }

    #[tokio::test]
    async fn stdin_is_cut_into_packets_and_closed_once() {
        let (mut io, shim) = pair();
        io.stdin.write_all(&vec![7; PAYLOAD + 1]).await.unwrap();
        io.control.resize(132, 50).await.unwrap();
        io.stdin.shutdown().await.unwrap();
        io.stdin.shutdown().await.unwrap();
        assert_eq!(hear(&shim).len(), PAYLOAD + 1);
        assert_eq!(hear(&shim), [1, 7]);
        assert_eq!(hear(&shim), [0, b'R', 0, 50, 0, 132]);
        assert_eq!(hear(&shim), [0, b'C']);
        assert!(io.stdin.write(b"x").await.is_err());
    }

    #[tokio::test]
    async fn a_dropped_client_and_a_lost_shim_are_errors() {
        let (mut io, shim) = pair();
        say(&shim, b"\x02kept");
        say(&shim, b"\x00Dtoo slow");
        let mut out = Vec::new();
        let error = io.stdout.read_to_end(&mut out).await.unwrap_err();
        assert_eq!(out, b"kept");
        assert!(error.to_string().contains("too slow"), "{error}");
        assert_eq!(io.control.closed().await, StdioEnd::Dropped("too slow".into()));

        let (mut io, shim) = pair();
        drop(shim);
        assert!(io.stdout.read_to_end(&mut out).await.is_err());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_loss_is_never_taken_for_the_end() {
        for round in 0..2000 {
            let (mut io, shim) = pair();
            let reader = tokio::spawn(async move { io.stdout.read_to_end(&mut Vec::new()).await });
            say(&shim, b"\x00Dtoo slow");
            let read = reader.await.unwrap();
            assert!(read.is_err(), "round {round}: {read:?}");
        }
    }

    #[tokio::test]
    async fn dropping_every_half_closes_the_connection() {
        let (io, shim) = pair();
        let Stdio { stdin, stdout, stderr, control } = io;
        drop((stdout, stderr, control));
        say(&shim, b"\x02nobody reads this");
        drop(stdin);
        let mut buffer = [0; 8];
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        // A peer that leaves bytes unread resets the connection instead of ending it.
        while !matches!(
            recv(shim.as_raw_fd(), &mut buffer, MsgFlags::empty()),
            Ok(0) | Err(nix::errno::Errno::ECONNRESET)
        ) {
            assert!(tokio::time::Instant::now() < deadline);
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
}
