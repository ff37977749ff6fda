//! What stands between a client's bytes and the ttrpc crate: frames are looked at before they are believed.
//!
//! The crate would keep tables for frames that make no sense here, start a task per request without limit, and hold the
//! payload of a request until it is answered. A connection that sends an oversized frame, a frame of a kind that no
//! client of these protocols sends, a second request under an unanswered one's number, or more requests or bytes than
//! may wait for answers is closed.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longest frame that the ttrpc protocol takes; the crate skips what is longer without keeping it.
const FRAME_MAX: u32 = 4 << 20;
/// Requests of one connection of the native door that are not answered yet, and their bytes; bytes of all connections.
const NATIVE_REQUESTS: usize = 1024;
const NATIVE_BYTES: u64 = 8 << 20;
const NATIVE_TOTAL: u64 = 32 << 20;
/// The same of the containerd door. One daemon stands behind the connection and waits for every process of a pod, so the
/// numbers are large.
const CONTAINERD_REQUESTS: usize = 16 * 1024;
const CONTAINERD_BYTES: u64 = 64 << 20;
const CONTAINERD_TOTAL: u64 = 128 << 20;
const HEADER: usize = 10;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 3;
const FLAG_REMOTE_CLOSED: u8 = 1;

/// What the connections of a door may have under way. All count requests that are not answered yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Longest frame, in bytes; the connection ends with a longer one.
    pub(super) frame: u32,
    /// Requests of one connection.
    pub(super) requests: usize,
    /// Bytes of the requests of one connection.
    pub(super) bytes: u64,
    /// Bytes of the requests of all connections.
    pub(super) total: u64,
}

impl Limits {
    /// Those of the native door.
    pub(super) const NATIVE: Self =
        Self { frame: FRAME_MAX, requests: NATIVE_REQUESTS, bytes: NATIVE_BYTES, total: NATIVE_TOTAL };
    /// Those of the containerd door. A frame that is too long is answered by the crate, as the daemon expects.
    pub(super) const CONTAINERD: Self = Self {
        frame: u32::MAX,
        requests: CONTAINERD_REQUESTS,
        bytes: CONTAINERD_BYTES,
        total: CONTAINERD_TOTAL,
    };
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    length: u32,
    stream: u32,
    kind: u8,
    flags: u8,
}

/// Follows the frames in a byte stream without keeping them.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; HEADER],
    have: usize,
    payload: u32,
}

impl Frames {
    /// Takes the next bytes; calls `frame` with each header that becomes complete.
    fn feed(&mut self, mut bytes: &[u8], frame: &mut dyn FnMut(Header) -> io::Result<()>) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let skip = bytes.len().min(self.payload as usize);
                self.payload -= skip as u32;
                bytes = &bytes[skip..];
                continue;
            }
            let take = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + take].copy_from_slice(&bytes[..take]);
            self.have += take;
            bytes = &bytes[take..];
            if self.have == HEADER {
                self.have = 0;
                let [a, b, c, d, e, f, g, h, kind, flags] = self.header;
                self.payload = u32::from_be_bytes([a, b, c, d]);
                let stream = u32::from_be_bytes([e, f, g, h]);
                frame(Header { length: self.payload, stream, kind, flags })?;
            }
        }
        Ok(())
    }
}

/// The requests of a connection that are not answered yet.
#[derive(Debug)]
struct Open {
    limits: Limits,
    /// Bytes by stream.
    streams: HashMap<u32, u32>,
    bytes: u64,
    /// Bytes of all connections.
    total: Arc<AtomicU64>,
}

impl Open {
    fn came(&mut self, header: Header) -> io::Result<()> {
        if header.length > self.limits.frame {
            return Err(refuse("frame is too long"));
        }
        if header.kind != REQUEST {
            return Err(refuse("frame is no request"));
        }
        if self.streams.len() >= self.limits.requests {
            return Err(refuse("too many requests are under way"));
        }
        // What is skipped is not held.
        let held = if header.length > FRAME_MAX { 0 } else { header.length };
        if self.streams.contains_key(&header.stream) {
            return Err(refuse("stream is in use"));
        }
        let all = self.total.load(Ordering::Relaxed) + u64::from(held);
        if self.bytes + u64::from(held) > self.limits.bytes || all > self.limits.total {
            return Err(refuse("too many bytes are under way"));
        }
        self.streams.insert(header.stream, held);
        self.bytes += u64::from(held);
        self.total.fetch_add(held.into(), Ordering::Relaxed);
        Ok(())
    }

    fn went(&mut self, header: Header) {
        let last = header.kind == RESPONSE || (header.kind == DATA && header.flags & FLAG_REMOTE_CLOSED != 0);
        if let Some(held) = last.then(|| self.streams.remove(&header.stream)).flatten() {
            self.bytes -= u64::from(held);
            self.total.fetch_sub(held.into(), Ordering::Relaxed);
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A connection whose frames are checked.
pub(super) struct Guarded<S, H> {
    stream: S,
    incoming: Frames,
    outgoing: Frames,
    open: Open,
    _held: H,
}

impl<S, H> Guarded<S, H> {
    /// Guards `stream`. `total` is shared by the connections of a door, and `held` lives as long as this one.
    pub(super) fn new(stream: S, limits: Limits, total: Arc<AtomicU64>, held: H) -> Self {
        Self {
            stream,
            incoming: Frames::default(),
            outgoing: Frames::default(),
            open: Open { limits, streams: HashMap::new(), bytes: 0, total },
            _held: held,
        }
    }
}

fn refuse(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl<S: AsyncRead + Unpin, H: Unpin> AsyncRead for Guarded<S, H> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {}
            other => return other,
        }
        let Self { incoming, open, .. } = &mut *self;
        Poll::Ready(incoming.feed(&buf.filled()[before..], &mut |header| open.came(header)))
    }
}

impl<S: AsyncWrite + Unpin, H: Unpin> AsyncWrite for Guarded<S, H> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, outgoing, open, .. } = &mut *self;
        let written = match Pin::new(stream).poll_write(cx, buf) {
            Poll::Ready(Ok(written)) => written,
            other => return other,
        };
        let counted = outgoing.feed(&buf[..written], &mut |header| {
            open.went(header);
            Ok(())
        });
        Poll::Ready(counted.map(|()| written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: u32, kind: u8) -> Vec<u8> {
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, 1, kind, 0]);
        bytes.extend(std::iter::repeat_n(7u8, length.min(64) as usize));
        bytes
    }

    #[test]
    fn frames_in_any_pieces() {
        let bytes: Vec<u8> = [frame(3, 1), frame(0, 2), frame(64, 3)].concat();
        for size in 1..bytes.len() {
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(size) {
                frames
                    .feed(piece, &mut |header| {
                        seen.push((header.length, header.kind));
                        Ok(())
                    })
                    .unwrap();
            }
            assert_eq!(seen, [(3, 1), (0, 2), (64, 3)]);
        }
    }

    fn request(stream: u32, length: u32) -> Header {
        Header { length, stream, kind: REQUEST, flags: 0 }
    }

    fn open(total: &Arc<AtomicU64>) -> Open {
        open_within(Limits::NATIVE, total)
    }

    fn open_within(limits: Limits, total: &Arc<AtomicU64>) -> Open {
        Open { limits, streams: HashMap::new(), bytes: 0, total: total.clone() }
    }

    /// The crate keeps a request's payload until the answer: a thousand requests that wait were gigabytes.
    #[test]
    fn bytes_of_unanswered_requests_are_bounded() {
        let total = Arc::new(AtomicU64::new(0));
        let mut first = open(&total);
        for stream in 2..4 {
            first.came(request(stream, FRAME_MAX)).unwrap();
        }
        assert!(first.came(request(5, 1)).is_err());
        first.went(Header { kind: RESPONSE, ..request(3, 0) });
        first.came(request(5, FRAME_MAX)).unwrap();
        let mut others: Vec<Open> = (0..3).map(|_| open(&total)).collect();
        for other in &mut others {
            for stream in 2..4 {
                other.came(request(stream, FRAME_MAX)).unwrap();
            }
        }
        assert_eq!(total.load(Ordering::Relaxed), Limits::NATIVE.total);
        let mut late = open(&total);
        assert!(late.came(request(1, 1)).is_err());
        drop(others);
        late.came(request(1, FRAME_MAX)).unwrap();
        drop((first, late));
        assert_eq!(total.load(Ordering::Relaxed), 0);
    }

    /// Each limit of either door, and one more.
    #[test]
    fn the_limits_of_both_doors_hold() {
        for limits in [Limits::NATIVE, Limits::CONTAINERD] {
            let fresh = || open_within(limits, &Arc::default());
            let longest = limits.frame.min(FRAME_MAX);
            let mut long = fresh();
            long.came(request(1, longest)).unwrap();
            // The crate skips it and says so, where it is let through.
            assert_eq!(long.came(request(3, longest + 1)).is_ok(), limits.frame > FRAME_MAX);
            let mut many = fresh();
            for stream in 0..limits.requests as u32 {
                many.came(request(stream, 0)).unwrap();
            }
            assert!(many.came(request(u32::MAX, 0)).is_err());
            let mut much = fresh();
            for stream in 0..(limits.bytes / u64::from(FRAME_MAX)) as u32 {
                much.came(request(stream, FRAME_MAX)).unwrap();
            }
            assert!(much.came(request(u32::MAX, 1)).is_err());
            let all = Arc::new(AtomicU64::new(limits.total));
            assert!(open_within(limits, &all).came(request(1, 1)).is_err());
        }
    }

    #[test]
    fn a_stream_is_open_until_it_is_closed() {
        let mut open = open(&Arc::default());
        open.came(request(1, 5)).unwrap();
        open.went(Header { kind: DATA, ..request(1, 7) });
        assert!(open.came(request(1, 5)).is_err());
        open.went(Header { kind: DATA, flags: FLAG_REMOTE_CLOSED, ..request(1, 0) });
        open.came(request(1, 5)).unwrap();
        assert!(open.came(Header { kind: DATA, ..request(3, 0) }).is_err());
        for stream in 2..=1024 {
            open.came(request(stream, 0)).unwrap();
        }
        assert!(open.came(request(2000, 0)).is_err());
    }
}
