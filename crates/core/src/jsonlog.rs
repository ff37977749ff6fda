//! The log format of Docker's json-file driver: one JSON object per line with `log`, `stream` and `time`.
//!
//! `log` holds a line with its line feed, or a piece of a line that is too long or that the end of the stream cut off,
//! without one; the pieces of a stream in their order are its output. Strings are escaped as Docker's daemon does
//! it, so that files are equal byte by byte: `<`, `>`, `&` and the separators U+2028 and U+2029 as numbers, tabs and other
//! control characters likewise. JSON has no place for bytes that are not UTF-8: each becomes U+FFFD.

use crate::line::Stream;
use crate::wall::WallTime;
use alloc::string::String;
use alloc::vec::Vec;

/// The most bytes of output in one record, the buffer of Docker's copier.
pub const MAX_PIECE: usize = 16 * 1024;

/// Joins chunks to lines and encodes them. A line that has not ended yet is held, less than [`MAX_PIECE`] bytes for
/// each stream.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    held: [Vec<u8>; 2],
}

impl Encoder {
    /// One that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that holds the beginnings of these lines (state of an earlier shim).
    pub fn with_held(held: [Vec<u8>; 2]) -> Self {
        Self { held }
    }

    /// What is held of each stream.
    pub fn held(&self) -> &[Vec<u8>; 2] {
        &self.held
    }

    /// Appends the records that this chunk completes; all get the time of the chunk.
    pub fn push(&mut self, out: &mut Vec<u8>, now: WallTime, stream: Stream, chunk: &[u8]) {
        let time = time(now);
        let [stdout, stderr] = &mut self.held;
        let held = if stream == Stream::Stdout { stdout } else { stderr };
        let mut rest = chunk;
        while !rest.is_empty() {
            let window = rest.get(..MAX_PIECE.saturating_sub(held.len()).max(1)).unwrap_or(rest);
            let end = memchr::memchr(b'\n', window).map(|at| at + 1);
            let (piece, tail) = rest.split_at(end.unwrap_or(window.len()));
            rest = tail;
            if held.is_empty() && end.is_some() {
                record(out, stream, piece, &time);
                continue;
            }
            held.extend_from_slice(piece);
            if end.is_some() {
                record(out, stream, held, &time);
                held.clear();
            } else if held.len() >= MAX_PIECE {
                let len = whole(held);
                record(out, stream, held.get(..len).unwrap_or_default(), &time);
                held.drain(..len);
            }
        }
        if held.is_empty() {
            // Nothing stays behind for an idle stream.
            *held = Vec::new();
        }
    }

    /// The end of a stream: appends what is held.
    pub fn finish(&mut self, out: &mut Vec<u8>, now: WallTime, stream: Stream) {
        let [stdout, stderr] = &mut self.held;
        let held = core::mem::take(if stream == Stream::Stdout { stdout } else { stderr });
        if !held.is_empty() {
            record(out, stream, &held, &time(now));
        }
    }
}

/// Length without a character that the end of the piece cuts in two.
fn whole(piece: &[u8]) -> usize {
    for (back, byte) in piece.iter().rev().take(3).enumerate() {
        let need = match byte {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => break,
        };
        let len = piece.len() - back - 1;
        return if need > back + 1 && len > 0 { len } else { piece.len() };
    }
    piece.len()
}

/// RFC 3339 in UTC as Go prints it: no zeros at the end of the fraction.
fn time(now: WallTime) -> String {
    let nine = now.to_rfc3339();
    let digits = nine.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
    let mut text = String::from(digits);
    text.push('Z');
    text
}

fn record(out: &mut Vec<u8>, stream: Stream, log: &[u8], time: &str) {
    out.extend_from_slice(b"{\"log\":\"");
    escape(out, log);
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(b"\",\"time\":\"");
    out.extend_from_slice(time.as_bytes());
    out.extend_from_slice(b"\"}\n");
}

fn escape(out: &mut Vec<u8>, text: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    for chunk in text.utf8_chunks() {
        let mut rest = chunk.valid().as_bytes();
        // Copies what needs no escape in one go. 0xE2 begins the two separators, and much else.
        while let Some(at) =
            rest.iter().position(|b| matches!(b, ..0x20 | b'\\' | b'"' | b'<' | b'>' | b'&' | 0xE2))
        {
            let (plain, tail) = rest.split_at(at);
            out.extend_from_slice(plain);
            rest = match tail {
                [0xE2, 0x80, last @ (0xA8 | 0xA9), tail @ ..] => {
                    out.extend_from_slice(if *last == 0xA8 { b"\\u2028" } else { b"\\u2029" });
                    tail
                }
                [byte, tail @ ..] => {
                    match byte {
                        0xE2 => out.push(0xE2),
                        b'\\' | b'"' => out.extend_from_slice(&[b'\\', *byte]),
                        b'\n' => out.extend_from_slice(b"\\n"),
                        b'\r' => out.extend_from_slice(b"\\r"),
                        _ => {
                            out.extend_from_slice(b"\\u00");
                            let digit = |n: u8| HEX.get(usize::from(n)).copied().unwrap_or_default();
                            out.extend_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
                        }
                    }
                    tail
                }
                [] => tail,
            };
        }
        out.extend_from_slice(rest);
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

/// Bytes of the container's output in encoded records. What is no record of this encoder counts with its whole length.
pub fn payload(bytes: &[u8]) -> u64 {
    let lines = bytes.split_inclusive(|b| *b == b'\n');
    lines.map(|line| payload_of(line).unwrap_or(line.len() as u64)).sum()
}

fn payload_of(line: &[u8]) -> Option<u64> {
    let mut rest = line.strip_prefix(b"{\"log\":\"")?;
    let mut sum = 0;
    loop {
        let (bytes, tail) = match rest {
            [b'"', ..] => return Some(sum),
            [b'\\', b'u', b'2', _, _, _, tail @ ..] => (3, tail),
            // A byte that was not UTF-8; the character itself is never escaped.
            [b'\\', b'u', _, _, _, _, tail @ ..] | [b'\\', _, tail @ ..] | [_, tail @ ..] => (1, tail),
            [] => return None,
        };
        sum += bytes;
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use proptest::prelude::*;
    use std::borrow::ToOwned;

    const NOW: WallTime = WallTime { secs: 1_795_747_320, nanos: 120_000_000 };

    fn encode(chunks: &[(Stream, &[u8])]) -> String {
        let (mut encoder, mut out) = (Encoder::new(), Vec::new());
        for (stream, chunk) in chunks {
            encoder.push(&mut out, NOW, *stream, chunk);
        }
        for stream in Stream::ALL {
            encoder.finish(&mut out, NOW, stream);
        }
        String::from_utf8(out).unwrap()
    }

    fn check(chunk: &[u8], log: &str) {
        let want =
            format!("{{\"log\":\"{log}\",\"stream\":\"stdout\",\"time\":\"2026-11-27T02:42:00.12Z\"}}\n");
        assert_eq!(encode(&[(Stream::Stdout, chunk)]), want);
    }

    /// What `MarshalJSONBuf` of moby's package jsonlog writes for these.
    #[test]
    fn goldens() {
        check(b"hello\n", "hello\\n");
        check(b"no end", "no end");
        check(b"\n", "\\n");
        check(b"a\tb\r\n", "a\\u0009b\\r\\n");
        check(b"\"q\" \\ <a href='x'>&\n", "\\\"q\\\" \\\\ \\u003ca href='x'\\u003e\\u0026\\n");
        check(b"\x1b[1m\0\x7f\n", "\\u001b[1m\\u0000\x7f\\n");
        check("größe \u{2028}\u{2029}\u{20ac}\u{fffd}\n".as_bytes(), "größe \\u2028\\u2029€\u{fffd}\\n");
        check(b"x\xff\xe2\x82y\n", "x\\ufffd\\ufffd\\ufffdy\\n");
    }

    #[test]
    fn times_have_no_zeros_at_the_end() {
        let at = |nanos| time(WallTime { secs: NOW.secs, nanos });
        assert_eq!(at(0), "2026-11-27T02:42:00Z");
        assert_eq!(at(10), "2026-11-27T02:42:00.00000001Z");
        assert_eq!(at(123_456_789), "2026-11-27T02:42:00.123456789Z");
    }

    #[test]
    fn lines_are_joined_over_chunks_and_streams_apart() {
        let out = encode(&[(Stream::Stdout, b"on"), (Stream::Stderr, b"err\n"), (Stream::Stdout, b"e\ntwo")]);
        let logs: Vec<_> = out.lines().map(|l| l.split(",\"time").next().unwrap().to_owned()).collect();
        let want = [
            "{\"log\":\"err\\n\",\"stream\":\"stderr\"",
            "{\"log\":\"one\\n\",\"stream\":\"stdout\"",
            "{\"log\":\"two\",\"stream\":\"stdout\"",
        ];
        assert_eq!(logs, want);
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let mut line = "x".repeat(MAX_PIECE - 1);
        line.push_str("€uro\n");
        let out = encode(&[(Stream::Stdout, line.as_bytes())]);
        let mut lines = out.lines();
        assert!(lines.next().unwrap().contains("xxx\",\"stream"));
        assert!(lines.next().unwrap().starts_with("{\"log\":\"€uro\\n\""));
        assert_eq!(lines.next(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        /// A JSON parser gives the output back, each byte that is not UTF-8 as one U+FFFD, however it came in pieces.
        #[test]
        fn records_rejoin_to_the_input(
            chunks in proptest::collection::vec((any::<bool>(), proptest::collection::vec(
                prop_oneof![9 => any::<u8>(), 3 => Just(b'\n'), 3 => b' '..b'~', 1 => Just(0xe2), 1 => Just(0x80)], 0..9000)), 0..6)
        ) {
            let chunks: Vec<_> = chunks.iter()
                .map(|(err, c)| (if *err { Stream::Stderr } else { Stream::Stdout }, c.as_slice())).collect();
            let out = encode(&chunks);
            let mut joined = [String::new(), String::new()];
            for line in out.lines() {
                let record: serde_json::Value = serde_json::from_str(line).unwrap();
                prop_assert_eq!(record.as_object().unwrap().len(), 3);
                prop_assert_eq!(&record["time"], "2026-11-27T02:42:00.12Z");
                joined[usize::from(record["stream"] == "stderr")].push_str(record["log"].as_str().unwrap());
            }
            for stream in Stream::ALL {
                let input: Vec<u8> =
                    chunks.iter().filter(|c| c.0 == stream).flat_map(|c| c.1.iter().copied()).collect();
                let mut want = String::new();
                for chunk in input.utf8_chunks() {
                    want.push_str(chunk.valid());
                    want.extend(chunk.invalid().iter().map(|_| '\u{fffd}'));
                }
                prop_assert_eq!(&joined[stream.index()], &want);
            }
            let total: usize = chunks.iter().map(|c| c.1.len()).sum();
            prop_assert_eq!(payload(out.as_bytes()), total as u64);
        }

        /// No piece is longer than it may be, and a line that fits is one record.
        #[test]
        fn pieces_are_bounded(lens in proptest::collection::vec(0..40_000usize, 1..4), cut in 1..30_000usize) {
            let input: String = lens.iter().map(|n| "y".repeat(*n) + "\n").collect();
            let chunks: Vec<_> = input.as_bytes().chunks(cut).map(|c| (Stream::Stdout, c)).collect();
            let out = encode(&chunks);
            let want: usize = lens.iter().map(|n| (n + 1).div_ceil(MAX_PIECE)).sum();
            prop_assert_eq!(out.lines().count(), want);
        }

        #[test]
        fn payload_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = payload(&bytes);
        }
    }
}
