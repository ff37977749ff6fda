//! What travels on attach sockets and control FIFOs.
//!
//! Two flavours of packets: conmon's, where the client sends raw stdin, and the native one, where every packet has a
//! kind and control packets exist (docs/protocol.md). Output looks the same in both: one byte of stream, then bytes.

use crate::line::Stream;
use alloc::vec::Vec;

/// First byte of a native control packet.
pub const KIND_CONTROL: u8 = 0;
/// First byte of native stdin.
pub const KIND_STDIN: u8 = 1;
/// First byte of stdout and of a terminal's output.
pub const KIND_STDOUT: u8 = 2;
/// First byte of stderr.
pub const KIND_STDERR: u8 = 3;
/// The most bytes of output in one packet; conmon's clients read with a buffer of one byte more.
pub const MAX_OUTPUT: usize = 8192;
/// The most bytes of stdin in one packet of our own clients.
pub const MAX_STDIN: usize = 32_768;
/// The longest packet in the native flavour.
pub const MAX_PACKET: usize = MAX_STDIN + 1;
/// The longest line of a control FIFO, without line feed.
pub const MAX_CTL_LINE: usize = 199;

/// First byte of a packet of this stream.
pub fn kind_of(stream: Stream) -> u8 {
    match stream {
        Stream::Stdout => KIND_STDOUT,
        Stream::Stderr => KIND_STDERR,
    }
}

/// A packet that means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// No byte at all.
    #[error("empty attach packet")]
    Empty,
    /// A first byte that is no kind, or not for this direction.
    #[error("attach packet of unknown kind {0}")]
    Kind(u8),
    /// A control packet with an unknown letter or fields of a wrong length.
    #[error("malformed control packet")]
    Control,
}

/// What a native client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientPacket<'a> {
    /// Bytes for stdin.
    Stdin(&'a [u8]),
    /// Close stdin when all before it is written.
    CloseStdin,
    /// New size of the terminal.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        cols: u16,
    },
}

/// What the shim sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShimPacket<'a> {
    /// Bytes of a stream.
    Output(Stream, &'a [u8]),
    /// Nothing more of this stream follows.
    End(Stream),
    /// Nothing more follows at all.
    Done,
    /// The client is dropped; why, as UTF-8 text.
    Dropped(&'a [u8]),
}

impl<'a> ClientPacket<'a> {
    /// Reads a packet from a native client.
    ///
    /// # Errors
    /// [`PacketError`]; the connection is of no use then.
    pub fn decode(packet: &'a [u8]) -> Result<Self, PacketError> {
        match packet {
            [] => Err(PacketError::Empty),
            [KIND_STDIN, bytes @ ..] => Ok(Self::Stdin(bytes)),
            [KIND_CONTROL, b'C'] => Ok(Self::CloseStdin),
            [KIND_CONTROL, b'R', r1, r0, c1, c0] => Ok(Self::Resize {
                rows: u16::from_be_bytes([*r1, *r0]),
                cols: u16::from_be_bytes([*c1, *c0]),
            }),
            [KIND_CONTROL, ..] => Err(PacketError::Control),
            [kind, ..] => Err(PacketError::Kind(*kind)),
        }
    }

    /// Appends the packet to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Stdin(bytes) => {
                out.push(KIND_STDIN);
                out.extend_from_slice(bytes);
            }
            Self::CloseStdin => out.extend_from_slice(&[KIND_CONTROL, b'C']),
            Self::Resize { rows, cols } => {
                let ([r1, r0], [c1, c0]) = (rows.to_be_bytes(), cols.to_be_bytes());
                out.extend_from_slice(&[KIND_CONTROL, b'R', r1, r0, c1, c0]);
            }
        }
    }
}

impl<'a> ShimPacket<'a> {
    /// Reads a packet from the shim, in either flavour.
    ///
    /// # Errors
    /// [`PacketError`]; the connection is of no use then.
    pub fn decode(packet: &'a [u8]) -> Result<Self, PacketError> {
        match packet {
            [] => Err(PacketError::Empty),
            [KIND_STDOUT, bytes @ ..] => Ok(Self::Output(Stream::Stdout, bytes)),
            [KIND_STDERR, bytes @ ..] => Ok(Self::Output(Stream::Stderr, bytes)),
            [KIND_CONTROL, b'E', KIND_STDOUT] => Ok(Self::End(Stream::Stdout)),
            [KIND_CONTROL, b'E', KIND_STDERR] => Ok(Self::End(Stream::Stderr)),
            [KIND_CONTROL, b'X'] => Ok(Self::Done),
            [KIND_CONTROL, b'D', text @ ..] => Ok(Self::Dropped(text)),
            [KIND_CONTROL, ..] => Err(PacketError::Control),
            [kind, ..] => Err(PacketError::Kind(*kind)),
        }
    }

    /// Appends the packet to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Output(stream, bytes) => {
                out.push(kind_of(*stream));
                out.extend_from_slice(bytes);
            }
            Self::End(stream) => out.extend_from_slice(&[KIND_CONTROL, b'E', kind_of(*stream)]),
            Self::Done => out.extend_from_slice(&[KIND_CONTROL, b'X']),
            Self::Dropped(text) => {
                out.extend_from_slice(&[KIND_CONTROL, b'D']);
                out.extend_from_slice(text);
            }
        }
    }
}

/// A command of conmon's `ctl` FIFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtlCommand {
    /// Type 1: new size of the terminal.
    Resize {
        /// Rows (the FIFO's "height").
        rows: u16,
        /// Columns (the FIFO's "width").
        cols: u16,
    },
    /// Type 2: open the logs anew.
    Reopen,
}

/// A line of a control FIFO that is no command. The rest of the FIFO is not affected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CtlError {
    /// Longer than [`MAX_CTL_LINE`].
    #[error("control line is too long")]
    TooLong,
    /// Fewer decimal numbers than the line needs.
    #[error("control line lacks a number")]
    Fields,
    /// A size below 0 or above the limit.
    #[error("terminal size is out of range")]
    Range,
    /// A type other than 1 and 2.
    #[error("control message of unknown type {0}")]
    Type(i64),
}

/// Collects lines from reads of any size; what comes out does not depend on how the bytes were cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineReader {
    held: Vec<u8>,
    overlong: bool,
}

impl LineReader {
    /// A reader that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes and calls `line` for each line they complete; an overlong one is reported once, at its end.
    pub fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(Result<&[u8], CtlError>)) {
        while let Some(at) = memchr::memchr(b'\n', bytes) {
            let (head, tail) = bytes.split_at(at);
            self.hold(head);
            line(if self.overlong { Err(CtlError::TooLong) } else { Ok(&self.held) });
            self.held.clear();
            self.overlong = false;
            bytes = tail.get(1..).unwrap_or_default();
        }
        self.hold(bytes);
    }

    fn hold(&mut self, bytes: &[u8]) {
        if self.overlong || self.held.len() + bytes.len() > MAX_CTL_LINE {
            self.overlong = true;
            self.held.clear();
        } else {
            self.held.extend_from_slice(bytes);
        }
    }
}

/// Reads a line of the `ctl` FIFO: type, height and width as decimal numbers; what follows is ignored.
///
/// # Errors
/// [`CtlError`] says why the line is no command. `max` is the largest size taken (conmon's is 1000).
pub fn parse_ctl(line: &[u8], max: u16) -> Result<CtlCommand, CtlError> {
    let (kind, rest) = number(line).ok_or(CtlError::Fields)?;
    let (rows, cols) = parse_size(rest, max)?;
    match kind {
        1 => Ok(CtlCommand::Resize { rows, cols }),
        2 => Ok(CtlCommand::Reopen),
        other => Err(CtlError::Type(other)),
    }
}

/// Reads a line of the `winsz` FIFO: height and width.
///
/// # Errors
/// As [`parse_ctl`].
pub fn parse_size(line: &[u8], max: u16) -> Result<(u16, u16), CtlError> {
    let (rows, rest) = number(line).ok_or(CtlError::Fields)?;
    let (cols, _) = number(rest).ok_or(CtlError::Fields)?;
    let fit = |n: i64| u16::try_from(n).ok().filter(|n| *n <= max).ok_or(CtlError::Range);
    Ok((fit(rows)?, fit(cols)?))
}

/// A decimal number after optional blanks and sign, and what follows it; huge ones are clamped.
fn number(text: &[u8]) -> Option<(i64, &[u8])> {
    let text = text.trim_ascii_start();
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let len = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    let (head, rest) = digits.split_at(len);
    if head.is_empty() {
        return None;
    }
    let value = head.iter().fold(0i64, |sum, b| sum.saturating_mul(10).saturating_add(i64::from(b - b'0')));
    Some((if negative { -value } else { value }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    fn check(line: &str, expected: Result<CtlCommand, CtlError>) {
        assert_eq!(parse_ctl(line.as_bytes(), 1000), expected, "{line:?}");
    }

    #[test]
    fn ctl_lines() {
        check("1 24 80", Ok(CtlCommand::Resize { rows: 24, cols: 80 }));
        check("1 2 2 3", Ok(CtlCommand::Resize { rows: 2, cols: 2 }));
        check("  1\t010  08 ", Ok(CtlCommand::Resize { rows: 10, cols: 8 }));
        check("2 0 0", Ok(CtlCommand::Reopen));
        check("2", Err(CtlError::Fields));
        check("2 0", Err(CtlError::Fields));
        check("", Err(CtlError::Fields));
        check("1.5 2 2", Err(CtlError::Fields));
        check("0x1 2 2", Err(CtlError::Fields));
        check("1 -1 2", Err(CtlError::Range));
        check("1 1 1001", Err(CtlError::Range));
        check("1 1 99999999999999999999999", Err(CtlError::Range));
        check("3 1 1", Err(CtlError::Type(3)));
        check("-1 1 1", Err(CtlError::Type(-1)));
        check("resize", Err(CtlError::Fields));
    }

    fn lines(chunks: &[&[u8]]) -> Vec<Result<Vec<u8>, CtlError>> {
        let mut reader = LineReader::new();
        let mut out = Vec::new();
        for chunk in chunks {
            reader.push(chunk, |line| out.push(line.map(<[u8]>::to_vec)));
        }
        out
    }

    #[test]
    fn a_bad_line_does_not_touch_its_neighbours() {
        let long = vec![b'9'; 5000];
        let got = lines(&[b"1 2 3\n", &long, &long, b"\n2 0", b" 0\n1"]);
        assert_eq!(got, vec![Ok(b"1 2 3".to_vec()), Err(CtlError::TooLong), Ok(b"2 0 0".to_vec())]);
    }

    #[test]
    fn packets() {
        assert_eq!(ShimPacket::decode(b"\x02hi"), Ok(ShimPacket::Output(Stream::Stdout, b"hi")));
        assert_eq!(ShimPacket::decode(b"\x01hi"), Err(PacketError::Kind(1)));
        assert_eq!(
            ClientPacket::decode(b"\x00R\x00\x18\x01\x00"),
            Ok(ClientPacket::Resize { rows: 24, cols: 256 })
        );
        assert_eq!(ClientPacket::decode(b"\x00R\x00"), Err(PacketError::Control));
        assert_eq!(ClientPacket::decode(b""), Err(PacketError::Empty));
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_lines(
            data in proptest::collection::vec(prop_oneof![6 => b'0'..=b'9', 2 => Just(b' '), 1 => Just(b'\n')], 0..1500),
            cuts in proptest::collection::vec(1usize..300, 1..20),
        ) {
            let mut chunks: Vec<&[u8]> = Vec::new();
            let mut rest = &data[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (a, b) = rest.split_at((*cut).min(rest.len()));
                chunks.push(a);
                rest = b;
            }
            prop_assert_eq!(lines(&chunks), lines(&[&data]));
        }

        #[test]
        fn parsers_never_panic(data in proptest::collection::vec(any::<u8>(), 0..64), max in any::<u16>()) {
            let _ = parse_ctl(&data, max);
            let _ = parse_size(&data, max);
            if let Ok(packet) = ClientPacket::decode(&data) {
                let mut again = Vec::new();
                packet.encode(&mut again);
                prop_assert_eq!(&again, &data);
            }
            if let Ok(packet) = ShimPacket::decode(&data) {
                let mut again = Vec::new();
                packet.encode(&mut again);
                prop_assert_eq!(&again, &data);
            }
        }
    }
}
