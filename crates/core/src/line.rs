//! Output as lines: cutting chunks at line feeds, and joining chunks to lines within a bound.

use alloc::vec::Vec;

/// The most bytes of content, line feed included, that one record carries.
pub const MAX_RECORD: usize = 8192;

/// Which of a process's two output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Both, in the order of their numbers.
    pub const ALL: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    /// `stdout` or `stderr`.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }

    /// 0 for stdout, 1 for stderr: the place in an array of two.
    pub fn index(self) -> usize {
        match self {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
        }
    }
}

/// A piece of output that becomes one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// The bytes; a complete segment ends with its line feed.
    pub bytes: &'a [u8],
    /// The segment ends a line.
    pub complete: bool,
}

/// Cuts one chunk into segments of at most [`MAX_RECORD`] bytes; the state of a line does not cross chunks.
pub fn segments(chunk: &[u8]) -> Segments<'_> {
    Segments { rest: chunk }
}

/// Iterator of [`segments`].
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        let window = self.rest.get(..MAX_RECORD).unwrap_or(self.rest);
        let (len, complete) = match memchr::memchr(b'\n', window) {
            Some(at) => (at + 1, true),
            None => (window.len(), false),
        };
        let (bytes, rest) = self.rest.split_at(len);
        self.rest = rest;
        Some(Segment { bytes, complete })
    }
}

/// Joins the chunks of one stream to lines, for sinks that want one record per line (journald).
///
/// Less than [`MAX_RECORD`] bytes are held between chunks. When what is held and what comes reaches that, all of it
/// leaves as a partial record, so pieces of a long line have [`MAX_RECORD`] to twice that many bytes.
#[derive(Clone, Debug, Default)]
pub struct LineAssembler {
    held: Vec<u8>,
}

impl LineAssembler {
    /// An assembler that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// An assembler that holds the beginning of a line (state of an earlier shim). More than fits is the caller's
    /// to emit; here it simply leaves with the next chunk.
    pub fn with_held(held: Vec<u8>) -> Self {
        Self { held }
    }

    /// The bytes of an incomplete line.
    pub fn held(&self) -> &[u8] {
        &self.held
    }

    /// Takes a chunk and calls `emit(line, complete, fresh)` for each record; `fresh` says that the line's beginning
    /// did not come from an earlier chunk.
    pub fn push(&mut self, chunk: &[u8], mut emit: impl FnMut(&[u8], bool, bool)) {
        for piece in chunk.chunks(MAX_RECORD) {
            for segment in segments(piece) {
                if self.held.is_empty() {
                    if segment.complete || segment.bytes.len() >= MAX_RECORD {
                        emit(segment.bytes, segment.complete, true);
                    } else {
                        self.held.extend_from_slice(segment.bytes);
                    }
                    continue;
                }
                self.held.extend_from_slice(segment.bytes);
                if segment.complete || self.held.len() >= MAX_RECORD {
                    emit(&self.held, segment.complete, false);
                    self.held.clear();
                }
            }
        }
        if self.held.is_empty() {
            // Nothing stays behind for an idle stream.
            self.held = Vec::new();
        }
    }

    /// The end of the stream: emits what is held as a partial record.
    pub fn finish(&mut self, mut emit: impl FnMut(&[u8], bool, bool)) {
        if !self.held.is_empty() {
            emit(&self.held, false, false);
            self.held = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    fn check(chunk: &[u8], expected: &[(usize, bool)]) {
        let got: Vec<_> = segments(chunk).map(|s| (s.bytes.len(), s.complete)).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn cuts() {
        check(b"", &[]);
        check(b"\n", &[(1, true)]);
        check(b"a\nbc\nd", &[(2, true), (3, true), (1, false)]);
        check(&vec![b'x'; 8192], &[(8192, false)]);
        check(&[vec![b'x'; 8191], vec![b'\n']].concat(), &[(8192, true)]);
        // As a reader with 8 KiB buffers cuts it: a full buffer, then an empty end of the line.
        check(&[vec![b'x'; 8192], vec![b'\n']].concat(), &[(8192, false), (1, true)]);
        check(&vec![b'x'; 20_000], &[(8192, false), (8192, false), (3616, false)]);
    }

    fn assemble(chunks: &[&[u8]]) -> Vec<(Vec<u8>, bool, bool)> {
        let mut out = Vec::new();
        let mut assembler = LineAssembler::new();
        for chunk in chunks {
            assembler.push(chunk, |line, complete, fresh| out.push((line.to_vec(), complete, fresh)));
        }
        assembler.finish(|line, complete, fresh| out.push((line.to_vec(), complete, fresh)));
        out
    }

    #[test]
    fn joins_small_writes() {
        let got = assemble(&[b"he", b"llo\nwor", b"ld"]);
        assert_eq!(got, vec![(b"hello\n".to_vec(), true, false), (b"world".to_vec(), false, false)]);
    }

    #[test]
    fn long_lines_leave_in_pieces() {
        let lens = |chunks: &[&[u8]]| assemble(chunks).iter().map(|r| (r.0.len(), r.1)).collect::<Vec<_>>();
        assert_eq!(lens(&[&[b'x'; 20_000]]), [(8192, false), (8192, false), (3616, false)]);
        assert_eq!(lens(&[b"x", &[b'x'; 8192]]), [(8193, false)]);
        assert_eq!(lens(&[&[b'x'; 8191], &[b'x'; 8192]]), [(16_383, false)]);
        assert_eq!(lens(&[&[b'x'; 8191], b"\n"]), [(8192, true)]);
    }

    proptest! {
        // Inputs are long; a few cases say as much as many.
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn segments_rejoin(data in proptest::collection::vec(prop_oneof![5 => Just(b'x'), 1 => Just(b'\n')], 0..40_000)) {
            let mut joined = Vec::new();
            for segment in segments(&data) {
                prop_assert!(!segment.bytes.is_empty() && segment.bytes.len() <= MAX_RECORD);
                prop_assert_eq!(segment.complete, segment.bytes.ends_with(b"\n"));
                joined.extend_from_slice(segment.bytes);
            }
            prop_assert_eq!(joined, data);
        }

        #[test]
        fn lines_do_not_depend_on_chunks(
            lines in proptest::collection::vec(proptest::collection::vec(any::<u8>().prop_filter("no lf", |b| *b != b'\n'), 0..300), 0..40),
            cuts in proptest::collection::vec(1usize..700, 1..50),
        ) {
            let data: Vec<u8> = lines.iter().flat_map(|l| l.iter().copied().chain([b'\n'])).collect();
            let mut chunks: Vec<&[u8]> = Vec::new();
            let mut rest = &data[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (a, b) = rest.split_at((*cut).min(rest.len()));
                chunks.push(a);
                rest = b;
            }
            let got: Vec<Vec<u8>> = assemble(&chunks).into_iter().map(|r| { assert!(r.1); r.0 }).collect();
            let want: Vec<Vec<u8>> = lines.iter().map(|l| [l.clone(), vec![b'\n']].concat()).collect();
            prop_assert_eq!(got, want);
        }

        #[test]
        fn nothing_is_lost_and_the_bound_holds(chunks in proptest::collection::vec(proptest::collection::vec(prop_oneof![400 => Just(b'x'), 1 => Just(b'\n')], 0..9000), 0..12)) {
            let refs: Vec<&[u8]> = chunks.iter().map(|c| &c[..]).collect();
            let got = assemble(&refs);
            for (record, ..) in &got {
                prop_assert!(record.len() < 2 * MAX_RECORD);
            }
            prop_assert_eq!(got.into_iter().flat_map(|r| r.0).collect::<Vec<u8>>(), chunks.concat());
        }
    }
}
