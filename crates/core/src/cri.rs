//! The CRI log format, which conmon calls k8s-file: `TIMESTAMP STREAM TAG CONTENT`, one record per line.
//!
//! A record never holds more than one line feed, and it is its last byte: a file of records can be cut at any line
//! feed. `F` ends a line, `P` is a piece of one that goes on in the next record of the same stream.

use crate::line::{MAX_RECORD, Stream};
use crate::time::STAMP_LEN;
use alloc::vec::Vec;

/// Bytes before the content: timestamp, blank, stream, blank, tag, blank.
pub const PREFIX_LEN: usize = STAMP_LEN + 10;

/// Records up to this content length are put together on the stack.
const SHORT: usize = 512;
/// Size of that place.
const BLOCK: usize = 4096;
/// Content up to these lengths is copied as this many bytes, which is a few instructions and no call; what is too much is
/// overwritten by the next record.
const TINY: usize = 32;
const SMALL: usize = 128;

/// Appends the records of one chunk to `out`; all of them get the same timestamp, that of the read.
pub fn encode(out: &mut Vec<u8>, stamp: &[u8; STAMP_LEN], stream: Stream, chunk: &[u8]) {
    encode_some(out, stamp, stream, chunk, usize::MAX);
}

/// Like [`encode`], but stops after the record with which `out` has `limit` bytes or more (and some more: a block). Returns
/// how much of the chunk it has encoded; what is left begins where a record does.
pub fn encode_some(
    out: &mut Vec<u8>,
    stamp: &[u8; STAMP_LEN],
    stream: Stream,
    chunk: &[u8],
    limit: usize,
) -> usize {
    let mut writer = Writer::new(out, stamp, stream);
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', chunk) {
        while end + 1 - start > MAX_RECORD {
            writer.put(chunk, start, MAX_RECORD, false);
            start += MAX_RECORD;
        }
        writer.put(chunk, start, end + 1 - start, true);
        start = end + 1;
        if writer.out.len() >= limit {
            break;
        }
    }
    while start < chunk.len() && writer.out.len() < limit {
        // Only the unterminated end of the chunk is left, unless the limit was reached.
        let len = (chunk.len() - start).min(MAX_RECORD);
        writer.put(chunk, start, len, false);
        start += len;
    }
    writer.flush();
    start
}

/// Puts short records together where the compiler knows the sizes, and appends them by the block.
struct Writer<'a> {
    out: &'a mut Vec<u8>,
    prefix: [[u8; PREFIX_LEN]; 2],
    block: [u8; BLOCK],
    used: usize,
}

impl<'a> Writer<'a> {
    fn new(out: &'a mut Vec<u8>, stamp: &[u8; STAMP_LEN], stream: Stream) -> Self {
        let mut prefix = [[b' '; PREFIX_LEN]; 2];
        for (prefix, tag) in prefix.iter_mut().zip([b" P ", b" F "]) {
            let text = stamp.iter().chain(b" ").chain(stream.name().as_bytes()).chain(tag);
            for (to, from) in prefix.iter_mut().zip(text) {
                *to = *from;
            }
        }
        Self { out, prefix, block: [0; BLOCK], used: 0 }
    }

    fn put(&mut self, chunk: &[u8], start: usize, len: usize, complete: bool) {
        let prefix = if complete { &self.prefix[1] } else { &self.prefix[0] };
        let Some(content) = chunk.get(start..start + len) else { return };
        if len <= SHORT {
            if self.used + PREFIX_LEN + SHORT + 1 > BLOCK {
                self.flush();
            }
            let prefix = if complete { &self.prefix[1] } else { &self.prefix[0] };
            let at = self.used + PREFIX_LEN;
            if let Some(to) = self.block.get_mut(self.used..at) {
                to.copy_from_slice(prefix);
            }
            let done = if len <= TINY {
                copy_padded::<TINY>(&mut self.block, at, chunk, start)
            } else {
                len <= SMALL && copy_padded::<SMALL>(&mut self.block, at, chunk, start)
            };
            if let (false, Some(to)) = (done, self.block.get_mut(at..at + len)) {
                to.copy_from_slice(content);
            }
            self.used = at + len;
            if !complete {
                if let Some(to) = self.block.get_mut(self.used) {
                    *to = b'\n';
                }
                self.used += 1;
            }
            return;
        }
        let prefix = *prefix;
        self.flush();
        self.out.reserve(PREFIX_LEN + len + 1);
        self.out.extend_from_slice(&prefix);
        self.out.extend_from_slice(content);
        if !complete {
            self.out.push(b'\n');
        }
    }

    fn flush(&mut self) {
        self.out.extend_from_slice(self.block.get(..self.used).unwrap_or_default());
        self.used = 0;
    }
}

/// Copies `N` bytes, if both sides have as many.
fn copy_padded<const N: usize>(block: &mut [u8; BLOCK], at: usize, chunk: &[u8], start: usize) -> bool {
    match (chunk.get(start..start + N), block.get_mut(at..at + N)) {
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
        fn a_limit_only_cuts(
            chunk in proptest::collection::vec(prop_oneof![30 => any::<u8>(), 1 => Just(b'\n')], 0..30_000),
            limit in 0usize..40_000,
        ) {
            let mut whole = Vec::new();
            encode(&mut whole, STAMP, Stream::Stdout, &chunk);
            let (mut pieces, mut at) = (Vec::new(), 0);
            while at < chunk.len() {
                let mut out = Vec::new();
                let n = encode_some(&mut out, STAMP, Stream::Stdout, &chunk[at..], limit.max(1));
                prop_assert!(n > 0 && out.len() <= limit.max(1) + MAX_RECORD + BLOCK + PREFIX_LEN + 1);
                pieces.extend_from_slice(&out);
                at += n;
            }
            prop_assert_eq!(pieces, whole);
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
