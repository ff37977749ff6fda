//! The CRI log format, which conmon calls k8s-file: `TIMESTAMP STREAM TAG CONTENT`, one record per line.
//!
//! A record never holds more than one line feed, and it is its last byte: a file of records can be cut at any line
//! feed. `F` ends a line, `P` is a piece of one that goes on in the next record of the same stream.

use crate::line::{MAX_RECORD, Stream};
use crate::time::STAMP_LEN;
use alloc::vec::Vec;

/// Bytes before the content: timestamp, blank, stream, blank, tag, blank.
pub const PREFIX_LEN: usize = STAMP_LEN + 10;

/// Room that every record may use beyond its own end: what is copied there is overwritten by the next one.
const PAD: usize = 128;

/// The least room in which [`encode_into`] always gets on.
pub const MIN_ROOM: usize = PREFIX_LEN + MAX_RECORD + 1 + PAD;

/// Room in which the records of `len` bytes of output always fit.
pub const fn room_for(len: usize) -> usize {
    len.saturating_mul(PREFIX_LEN + 2).saturating_add(PAD)
}

/// Appends the records of one chunk to `out`; all of them get the same timestamp, that of the read.
pub fn encode(out: &mut Vec<u8>, stamp: &[u8; STAMP_LEN], stream: Stream, chunk: &[u8]) {
    let mut rest = chunk;
    while !rest.is_empty() {
        let begin = out.len();
        out.resize(begin + room_for(rest.len()).min(4 * MIN_ROOM), 0);
        let room = out.get_mut(begin..).unwrap_or_default();
        let (taken, made) = encode_into(room, stamp, stream, rest);
        out.truncate(begin + made);
        rest = rest.get(taken..).unwrap_or_default();
    }
}

/// Writes the records of a chunk into `out`, whose content before means nothing, as long as whole records surely fit: at
/// least one in [`MIN_ROOM`], all of them in [`room_for`] the chunk. Gives how much of the chunk was encoded, which ends
/// where a record does, and how many bytes were written.
pub fn encode_into(out: &mut [u8], stamp: &[u8; STAMP_LEN], stream: Stream, chunk: &[u8]) -> (usize, usize) {
    let prefixes = [prefix(stamp, stream, b" P "), prefix(stamp, stream, b" F ")];
    let (mut start, mut at) = (0, 0);
    while start < chunk.len() {
        let (len, complete) = record(chunk, start);
        let content = at + PREFIX_LEN;
        let end = content + len + usize::from(!complete);
        if end + PAD > out.len() {
            break;
        }
        if let Some(to) = out.get_mut(at..content) {
            to.copy_from_slice(if complete { &prefixes[1] } else { &prefixes[0] });
        }
        let done = match len {
            // Sizes that the compiler knows are a few instructions and no call.
            0..=16 => copy_padded::<16>(out, content, chunk, start),
            17..=32 => copy_padded::<32>(out, content, chunk, start),
            33..=64 => copy_padded::<64>(out, content, chunk, start),
            65..=96 => copy_padded::<96>(out, content, chunk, start),
            97..=PAD => copy_padded::<PAD>(out, content, chunk, start),
            _ => false,
        };
        if !done {
            if let (Some(to), Some(from)) =
                (out.get_mut(content..content + len), chunk.get(start..start + len))
            {
                to.copy_from_slice(from);
            }
        }
        if let (false, Some(to)) = (complete, out.get_mut(content + len)) {
            *to = b'\n';
        }
        (start, at) = (start + len, end);
    }
    (start, at)
}

fn prefix(stamp: &[u8; STAMP_LEN], stream: Stream, tag: &[u8; 3]) -> [u8; PREFIX_LEN] {
    let mut prefix = [b' '; PREFIX_LEN];
    let text = stamp.iter().chain(b" ").chain(stream.name().as_bytes()).chain(tag);
    for (to, from) in prefix.iter_mut().zip(text) {
        *to = *from;
    }
    prefix
}

/// Length of the record that begins at `start`, and whether it ends a line.
fn record(chunk: &[u8], start: usize) -> (usize, bool) {
    // A search costs more than the record when lines are very short: look into the first eight bytes as one number.
    let word = chunk.get(start..start + 8).and_then(|w| <[u8; 8]>::try_from(w).ok());
    if let Some(at) = word.and_then(|w| line_feed(u64::from_le_bytes(w))) {
        return (at + 1, true);
    }
    let rest = chunk.get(start..).unwrap_or_default();
    let window = rest.get(..MAX_RECORD).unwrap_or(rest);
    match memchr::memchr(b'\n', window) {
        Some(at) => (at + 1, true),
        None => (window.len(), false),
    }
}

/// Which byte of a little-endian word is the first line feed.
fn line_feed(word: u64) -> Option<usize> {
    const LOW: u64 = 0x0101_0101_0101_0101;
    let zero_there = word ^ (LOW * b'\n' as u64);
    // The lowest bit that is set belongs to the first zero byte; bits above it may err.
    let found = zero_there.wrapping_sub(LOW) & !zero_there & (LOW << 7);
    (found != 0).then(|| found.trailing_zeros() as usize / 8)
}

/// Copies `N` bytes, if both sides have as many.
fn copy_padded<const N: usize>(out: &mut [u8], at: usize, chunk: &[u8], start: usize) -> bool {
    match (chunk.get(start..start + N), out.get_mut(at..at + N)) {
        (Some(from), Some(to)) => {
            to.copy_from_slice(from);
            true
        }
        _ => false,
    }
}

/// One record of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The timestamp as written.
    pub stamp: &'a [u8],
    /// The stream.
    pub stream: Stream,
    /// The record ends a line (`F`).
    pub complete: bool,
    /// The content without the record's line feed.
    pub content: &'a [u8],
}

impl Record<'_> {
    /// Bytes of the container's output in this record.
    pub fn payload_len(&self) -> usize {
        self.content.len() + usize::from(self.complete)
    }
}

/// Why a line is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Fewer than four fields.
    #[error("log record has fewer than four fields")]
    Fields,
    /// A stream other than `stdout` and `stderr`.
    #[error("log record names an unknown stream")]
    Stream,
    /// A tag that does not begin with `P` or `F`.
    #[error("log record has an unknown tag")]
    Tag,
}

/// Reads one record; `line` may or may not end with its line feed. Tags after a colon are ignored.
///
/// # Errors
/// [`RecordError`] says what is missing.
pub fn parse(line: &[u8]) -> Result<Record<'_>, RecordError> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut fields = line.splitn(4, |b| *b == b' ');
    let (Some(stamp), Some(stream), Some(tag), Some(content)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(RecordError::Fields);
    };
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return Err(RecordError::Stream),
    };
    let complete = match tag.split(|b| *b == b':').next() {
        Some(b"F") => true,
        Some(b"P") => false,
        _ => return Err(RecordError::Tag),
    };
    Ok(Record { stamp, stream, complete, content })
}

/// The whole records in `bytes`, without line feed.
pub fn records(bytes: &[u8]) -> impl Iterator<Item = Result<Record<'_>, RecordError>> {
    bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()).map(parse)
}

/// Bytes of the container's output in encoded records, and how many records they are. What is no record counts with
/// its whole length.
pub fn payload(bytes: &[u8]) -> (u64, u64) {
    let (mut sum, mut count) = (0u64, 0u64);
    let mut rest = bytes;
    while !rest.is_empty() {
        let len = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
        let (line, tail) = rest.split_at(len);
        sum += parse(line).map_or(line.len(), |r| r.payload_len()) as u64;
        count += 1;
        rest = tail;
    }
    (sum, count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::String;
    use std::vec;

    const STAMP: &[u8; STAMP_LEN] = b"2026-11-23T20:15:45.133617925+00:00";

    fn check(stream: Stream, chunk: &[u8], expected: &str) {
        let mut out = Vec::new();
        encode(&mut out, STAMP, stream, chunk);
        assert_eq!(
            String::from_utf8_lossy(&out),
            expected.replace('@', "2026-11-23T20:15:45.133617925+00:00")
        );
    }

    #[test]
    fn goldens() {
        check(Stream::Stdout, b"line39\n", "@ stdout F line39\n");
        check(Stream::Stderr, b"\n", "@ stderr F \n");
        check(Stream::Stdout, b"a\nb", "@ stdout F a\n@ stdout P b\n");
        check(Stream::Stdout, b"cr\r\n", "@ stdout F cr\r\n");
        check(Stream::Stdout, b"", "");
    }

    #[test]
    fn prefix_has_45_bytes_and_content_is_verbatim() {
        let mut out = Vec::new();
        encode(&mut out, STAMP, Stream::Stdout, b"\0\xff \n");
        assert_eq!(out.len(), 45 + 4);
        assert_eq!(parse(&out).unwrap().content, b"\0\xff ");
    }

    #[test]
    fn parse_refuses() {
        assert_eq!(parse(b"x stdout F"), Err(RecordError::Fields));
        assert_eq!(parse(b"x stdin F y"), Err(RecordError::Stream));
        assert_eq!(parse(b"x stdout Q y"), Err(RecordError::Tag));
        assert!(parse(b"x stdout P:tag y").is_ok_and(|r| !r.complete));
    }

    proptest! {
        // Inputs are long; a few cases say as much as many.
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn records_rejoin_to_the_input(
            chunks in proptest::collection::vec((any::<bool>(), proptest::collection::vec(prop_oneof![9 => any::<u8>(), 1 => Just(b'\n')], 0..9000)), 0..8)
        ) {
            let mut out = Vec::new();
            for (err, chunk) in &chunks {
                encode(&mut out, STAMP, if *err { Stream::Stderr } else { Stream::Stdout }, chunk);
            }
            let mut joined = [Vec::new(), Vec::new()];
            for record in records(&out) {
                let record = record.unwrap();
                prop_assert!(record.payload_len() <= crate::line::MAX_RECORD);
                let to = &mut joined[record.stream.index()];
                to.extend_from_slice(record.content);
                if record.complete { to.push(b'\n'); }
            }
            for (at, want) in joined.iter().enumerate() {
                let input: Vec<u8> = chunks.iter().filter(|c| usize::from(c.0) == at).flat_map(|c| c.1.iter().copied()).collect();
                prop_assert_eq!(want, &input);
            }
            prop_assert_eq!(payload(&out).0, chunks.iter().map(|c| c.1.len() as u64).sum::<u64>());
        }

        #[test]
        fn small_room_only_cuts(
            chunk in proptest::collection::vec(prop_oneof![30 => any::<u8>(), 1 => Just(b'\n')], 0..30_000),
            room in MIN_ROOM..40_000,
        ) {
            let mut whole = Vec::new();
            encode(&mut whole, STAMP, Stream::Stdout, &chunk);
            let (mut pieces, mut at) = (Vec::new(), 0);
            let mut out = vec![b'\n'; room];
            while at < chunk.len() {
                let (taken, made) = encode_into(&mut out, STAMP, Stream::Stdout, &chunk[at..]);
                prop_assert!(taken > 0);
                pieces.extend_from_slice(&out[..made]);
                at += taken;
            }
            prop_assert_eq!(pieces, whole);
        }

        #[test]
        fn all_of_a_chunk_fits(chunk in proptest::collection::vec(prop_oneof![1 => Just(b'x'), 1 => Just(b'\n')], 0..3000)) {
            let mut out = vec![0; room_for(chunk.len())];
            prop_assert_eq!(encode_into(&mut out, STAMP, Stream::Stdout, &chunk).0, chunk.len());
        }

        #[test]
        fn the_first_line_feed_is_found(bytes in proptest::array::uniform8(prop_oneof![any::<u8>(), 9u8..12, Just(0x8a)])) {
            prop_assert_eq!(line_feed(u64::from_le_bytes(bytes)), bytes.iter().position(|b| *b == b'\n'));
        }

        /// The plain way to write it.
        #[test]
        fn equals_the_plain_encoding(chunk in proptest::collection::vec(prop_oneof![30 => any::<u8>(), 1 => Just(b'\n')], 0..20_000)) {
            let (mut fast, mut plain) = (Vec::new(), Vec::new());
            encode(&mut fast, STAMP, Stream::Stderr, &chunk);
            for segment in crate::line::segments(&chunk) {
                plain.extend_from_slice(STAMP);
                plain.extend_from_slice(if segment.complete { b" stderr F " } else { b" stderr P " });
                plain.extend_from_slice(segment.bytes);
                if !segment.complete { plain.push(b'\n'); }
            }
            prop_assert_eq!(fast, plain);
        }

        #[test]
        fn parse_never_panics(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line);
        }
    }
}
