//! What stands between a client's bytes and the ttrpc crate: frames are looked at before they are believed.
//!
//! The crate would allocate what a header announces, keep tables for frames that make no sense here, and start a task
//! per request without limit. A connection that sends an oversized frame, a frame of a kind that no client of this
//! protocol sends, or more requests than are answered is closed.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;

/// Longest frame taken, as in the ttrpc protocol.
const FRAME_MAX: u32 = 4 << 20;
/// Requests of one connection that are not answered yet.
const IN_FLIGHT_MAX: u32 = 1024;
const HEADER: usize = 10;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// Follows the frames in a byte stream without keeping them.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; HEADER],
    have: usize,
    payload: u32,
}

impl Frames {
    /// Takes the next bytes; calls `frame` with length and type of each header that becomes complete.
    fn feed(&mut self, mut bytes: &[u8], frame: &mut dyn FnMut(u32, u8) -> io::Result<()>) -> io::Result<()> {
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
                let [a, b, c, d, ..] = self.header;
                self.payload = u32::from_be_bytes([a, b, c, d]);
                frame(self.payload, self.header[8])?;
            }
        }
        Ok(())
    }
}

/// A connection whose frames are checked.
pub(super) struct Guarded {
    stream: UnixStream,
    incoming: Frames,
    outgoing: Frames,
    in_flight: u32,
    _permit: OwnedSemaphorePermit,
}

impl Guarded {
    pub(super) fn new(stream: UnixStream, permit: OwnedSemaphorePermit) -> Self {
        Self {
            stream,
            incoming: Frames::default(),
            outgoing: Frames::default(),
            in_flight: 0,
            _permit: permit,
        }
    }
}

fn refuse(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl AsyncRead for Guarded {
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
        let this = &mut *self;
        let in_flight = &mut this.in_flight;
        let checked = this.incoming.feed(&buf.filled()[before..], &mut |length, kind| {
            if length > FRAME_MAX {
                return Err(refuse("frame is too long"));
            }
            if kind != REQUEST {
                return Err(refuse("frame is no request"));
            }
            *in_flight += 1;
            if *in_flight > IN_FLIGHT_MAX {
                return Err(refuse("too many requests are under way"));
            }
            Ok(())
        });
        Poll::Ready(checked)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let written = match Pin::new(&mut this.stream).poll_write(cx, buf) {
            Poll::Ready(Ok(written)) => written,
            other => return other,
        };
        let in_flight = &mut this.in_flight;
        let counted = this.outgoing.feed(&buf[..written], &mut |_, kind| {
            if kind == RESPONSE {
                *in_flight = in_flight.saturating_sub(1);
            }
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
                    .feed(piece, &mut |l, k| {
                        seen.push((l, k));
                        Ok(())
                    })
                    .unwrap();
            }
            assert_eq!(seen, [(3, 1), (0, 2), (64, 3)]);
        }
    }
}
