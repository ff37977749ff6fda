//! Reading log files: a line of either format as a record, and where the last lines of a log begin.
//!
//! The formats are told apart line by line: a record of Docker's json-file begins with a brace, one of CRI with its time.
//! Files, rotation and what to do with a line that is no record are the caller's business.

use crate::cri;
use crate::line::Stream;
use alloc::borrow::Cow;
use alloc::string::String;
use serde_json::Value;

/// One record of a log, of either format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The time as written: RFC 3339.
    pub time: Cow<'a, str>,
    /// The stream.
    pub stream: Stream,
    /// The record ends a line.
    pub complete: bool,
    /// The output without the line feed of a line that ends here.
    pub content: Cow<'a, [u8]>,
}

/// Why a line of a log file is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Not a CRI record, and it does not begin like another one.
    #[error(transparent)]
    Cri(#[from] cri::RecordError),
    /// A time that is not text.
    #[error("log record has no time")]
    Time,
    /// It begins with a brace and is no JSON object.
    #[error("log record is no JSON object")]
    Json,
    /// A `log` that is not text, or a `stream` that is neither `stdout` nor `stderr`.
    #[error("log record lacks a field or has a wrong one")]
    Field,
}

/// Reads one line; it may or may not end with its line feed. Fields of Docker's that have no place here (`attrs`) are
/// passed over.
///
/// # Errors
/// [`EntryError`] says what is wrong.
pub fn parse(line: &[u8]) -> Result<Entry<'_>, EntryError> {
    if line.first() == Some(&b'{') {
        return parse_json(line);
    }
    let record = cri::parse(line)?;
    let time = core::str::from_utf8(record.stamp).map_err(|_| EntryError::Time)?;
    Ok(Entry {
        time: Cow::Borrowed(time),
        stream: record.stream,
        complete: record.complete,
        content: Cow::Borrowed(record.content),
    })
}

fn parse_json(line: &[u8]) -> Result<Entry<'_>, EntryError> {
    // Bytes that are not UTF-8 are replaced, as Docker's reader does.
    let text = String::from_utf8_lossy(line);
    let Ok(Value::Object(mut object)) = serde_json::from_str(&text) else { return Err(EntryError::Json) };
    let mut field = |name| match object.remove(name) {
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(EntryError::Field),
        None => Ok(None),
    };
    let time = field("time")?.ok_or(EntryError::Time)?;
    let stream = match field("stream")?.as_deref() {
        Some("stdout") => Stream::Stdout,
        Some("stderr") => Stream::Stderr,
        _ => return Err(EntryError::Field),
    };
    // Docker leaves an empty one out.
    let mut content = field("log")?.unwrap_or_default().into_bytes();
    let complete = content.last() == Some(&b'\n');
    if complete {
        content.pop();
    }
    Ok(Entry { time: Cow::Owned(time), stream, complete, content: Cow::Owned(content) })
}

/// Finds where the last lines of a log begin, from its records in backward order.
///
/// Lines of both streams count in the order of their last records, also one that has no end yet. `P` is a position,
/// whatever the caller makes of it.
#[derive(Clone, Debug)]
pub struct Tail<P> {
    wanted: usize,
    found: usize,
    /// The line of each stream that is being passed is one of those.
    inside: [bool; 2],
    seen: [bool; 2],
    start: Option<P>,
    /// Lines that are not wanted and end behind `start`.
    skip: [u64; 2],
    /// Such lines further back than `start`.
    passed: [u64; 2],
}

impl<P> Tail<P> {
    /// Looks for the last `lines` lines.
    pub fn new(lines: usize) -> Self {
        Self {
            wanted: lines,
            found: 0,
            inside: [false; 2],
            seen: [false; 2],
            start: None,
            skip: [0; 2],
            passed: [0; 2],
        }
    }

    /// Takes the record before the last one that was given, which begins at `at`. True if no older one is needed.
    pub fn older(&mut self, stream: Stream, complete: bool, at: P) -> bool {
        let [out, err] = &mut self.inside;
        let inside = if stream == Stream::Stdout { out } else { err };
        let [out, err] = &mut self.seen;
        let seen = if stream == Stream::Stdout { out } else { err };
        if complete || !*seen {
            *inside = self.found < self.wanted;
            if *inside {
                self.found += 1;
            } else {
                let [out, err] = &mut self.passed;
                *(if stream == Stream::Stdout { out } else { err }) += 1;
            }
        }
        *seen = true;
        if *inside {
            self.start = Some(at);
            for (skip, passed) in self.skip.iter_mut().zip(&mut self.passed) {
                *skip += core::mem::take(passed);
            }
        }
        self.found == self.wanted && self.inside == [false; 2]
    }

    /// Where the oldest record of such a line begins that was found so far.
    pub fn position(&self) -> Option<&P> {
        self.start.as_ref()
    }

    /// Where to begin, and how many lines of each stream to leave out from there: they end between the wanted ones.
    /// None if there is no such line.
    pub fn start(self) -> Option<(P, [u64; 2])> {
        let skip = self.skip;
        self.start.map(|start| (start, skip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonlog;
    use crate::wall::WallTime;
    use alloc::format;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    const CRI: &str = "2026-11-23T20:15:45.133617925+00:00";

    fn read(line: &str) -> (String, Stream, bool, String) {
        let entry = parse(line.as_bytes()).unwrap();
        let content = String::from_utf8(entry.content.into_owned()).unwrap();
        (entry.time.into_owned(), entry.stream, entry.complete, content)
    }

    #[test]
    fn both_formats() {
        assert_eq!(read(&format!("{CRI} stderr P a b\n")), (CRI.into(), Stream::Stderr, false, "a b".into()));
        let time = "2026-11-27T02:42:00.12Z";
        let docker = format!("{{\"log\":\"a \\u003c\\\"\\n\",\"stream\":\"stdout\",\"time\":\"{time}\"}}\n");
        assert_eq!(read(&docker), (time.into(), Stream::Stdout, true, "a <\"".into()));
        let other = format!("{{\"stream\":\"stderr\", \"attrs\":{{\"a\":\"b\"}},\"time\":\"{time}\"}}");
        assert_eq!(read(&other), (time.into(), Stream::Stderr, false, String::new()));
    }

    #[test]
    fn what_is_no_record_is_told() {
        assert_eq!(parse(b""), Err(EntryError::Cri(cri::RecordError::Fields)));
        assert_eq!(parse(b"\xff stdout F x"), Err(EntryError::Time));
        assert_eq!(parse(b"{\"log\":\"x"), Err(EntryError::Json));
        assert_eq!(parse(b"{\"log\":\"x\",\"stream\":\"stdout\"}"), Err(EntryError::Time));
        assert_eq!(parse(b"{\"log\":1,\"stream\":\"stdout\",\"time\":\"\"}"), Err(EntryError::Field));
        assert_eq!(parse(b"{\"log\":\"x\",\"stream\":\"stdin\",\"time\":\"\"}"), Err(EntryError::Field));
    }

    /// The last lines the plain way: all lines in the order of their last records, each with all of its records.
    fn plain(records: &[(Stream, bool)], lines: usize) -> Vec<usize> {
        let mut open: [Vec<usize>; 2] = Default::default();
        let mut all = Vec::new();
        for (at, (stream, complete)) in records.iter().enumerate() {
            open[stream.index()].push(at);
            if *complete {
                all.push(core::mem::take(&mut open[stream.index()]));
            }
        }
        all.extend(open.into_iter().filter(|line| !line.is_empty()));
        all.sort_by_key(|line| line.last().copied());
        let mut wanted: Vec<usize> = all.split_off(all.len().saturating_sub(lines)).concat();
        wanted.sort_unstable();
        wanted
    }

    proptest! {
        #[test]
        fn json_records_come_back(
            chunks in proptest::collection::vec((any::<bool>(), proptest::collection::vec(
                prop_oneof![9 => any::<u8>(), 3 => Just(b'\n'), 3 => b' '..b'~'], 0..300)), 0..6)
        ) {
            let now = WallTime { secs: 1_795_747_320, nanos: 120_000_000 };
            let (mut encoder, mut log) = (jsonlog::Encoder::new(), Vec::new());
            let mut want: [Vec<u8>; 2] = Default::default();
            for (err, chunk) in &chunks {
                let stream = if *err { Stream::Stderr } else { Stream::Stdout };
                encoder.push(&mut log, now, stream, chunk);
                want[stream.index()].extend_from_slice(chunk);
            }
            for stream in Stream::ALL {
                encoder.finish(&mut log, now, stream);
            }
            let mut got: [Vec<u8>; 2] = Default::default();
            for line in log.split_inclusive(|b| *b == b'\n') {
                let entry = parse(line).unwrap();
                prop_assert_eq!(&entry.time, "2026-11-27T02:42:00.12Z");
                let into = &mut got[entry.stream.index()];
                into.extend_from_slice(&entry.content);
                if entry.complete { into.push(b'\n'); }
            }
            for (got, want) in got.iter().zip(&want) {
                let mut lossy = String::new();
                for chunk in want.utf8_chunks() {
                    lossy.push_str(chunk.valid());
                    lossy.extend(chunk.invalid().iter().map(|_| '\u{fffd}'));
                }
                prop_assert_eq!(got, lossy.as_bytes());
            }
        }

        #[test]
        fn parse_never_panics(
            line in proptest::collection::vec(any::<u8>(), 0..200),
            brace in any::<bool>(),
        ) {
            let line = if brace { [b"{\"log\":", &line[..]].concat() } else { line };
            let _ = parse(&line);
        }

        #[test]
        fn the_tail_is_that_of_the_plain_way(
            records in proptest::collection::vec((any::<bool>(), any::<bool>()), 0..30),
            lines in 1usize..8,
        ) {
            let records: Vec<_> = records.iter()
                .map(|(err, complete)| (if *err { Stream::Stderr } else { Stream::Stdout }, *complete)).collect();
            let mut tail = Tail::new(lines);
            for (at, (stream, complete)) in records.iter().enumerate().rev() {
                if tail.older(*stream, *complete, at) { break; }
            }
            let mut got = Vec::new();
            if let Some((start, mut skip)) = tail.start() {
                for (at, (stream, complete)) in records.iter().enumerate().skip(start) {
                    let skip = &mut skip[stream.index()];
                    if *skip == 0 {
                        got.push(at);
                    } else if *complete {
                        *skip -= 1;
                    }
                }
            }
            prop_assert_eq!(got, plain(&records, lines));
        }
    }
}
