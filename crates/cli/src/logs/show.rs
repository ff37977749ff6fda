//! Records as lines on standard output and standard error.

use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::SystemTime;

use anyhow::Result;
use pintle_core::line::Stream;
use pintle_core::logread;

use super::time::timestamp;
use crate::output;

/// Lines that are no records of which each is named; further ones are only counted.
const NAMED: u64 = 10;

/// What is shown, and what could not be.
#[derive(Default)]
pub(super) struct Show {
    timestamps: bool,
    since: Option<SystemTime>,
    /// Lines of each stream that are still to be left out.
    pub(super) skip: [u64; 2],
    /// The last piece of each stream had no end of line yet.
    open: [bool; 2],
    /// Lines that were no records.
    unreadable: u64,
    /// Something of the log is known to be missing.
    gap: bool,
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Show {
    /// Shows lines with their times, or those that are not older.
    pub(super) fn new(timestamps: bool, since: Option<SystemTime>) -> Self {
        Self { timestamps, since, ..Self::default() }
    }

    /// Takes one line of a log file, which begins there.
    pub(super) fn line(&mut self, line: &[u8], path: &Path, at: u64) {
        let entry = match logread::parse(line) {
            Ok(entry) => entry,
            Err(e) => return self.unreadable(path, at, &e.to_string()),
        };
        let which = entry.stream.index();
        if self.skip[which] > 0 {
            self.skip[which] -= u64::from(entry.complete);
            return;
        }
        if self.since.is_some_and(|since| timestamp(&entry.time).is_some_and(|t| t < since)) {
            return;
        }
        let into = if entry.stream == Stream::Stderr { &mut self.err } else { &mut self.out };
        if self.timestamps && !self.open[which] {
            into.extend_from_slice(entry.time.as_bytes());
            into.push(b' ');
        }
        into.extend_from_slice(&entry.content);
        if entry.complete {
            into.push(b'\n');
        }
        self.open[which] = !entry.complete;
    }

    /// Names a line that is no record; it is not shown.
    pub(super) fn unreadable(&mut self, path: &Path, at: u64, why: &str) {
        self.unreadable += 1;
        if self.unreadable <= NAMED {
            self.say(&format!("{} at byte {at}: {why}", path.display()));
        }
    }

    /// Tells that something of the log is missing here.
    pub(super) fn gap(&mut self, what: &str) {
        self.gap = true;
        self.say(what);
    }

    /// A remark of ours, between the lines where it belongs.
    pub(super) fn say(&mut self, what: &str) {
        self.err.extend_from_slice(format!("pintle: {what}\n").as_bytes());
    }

    /// Prints what has come together.
    ///
    /// # Errors
    /// When standard output is closed or cannot be written.
    pub(super) fn flush(&mut self) -> Result<()> {
        if !self.out.is_empty() {
            output::print(&self.out)?;
            self.out.clear();
        }
        if let Err(e) = std::io::stderr().write_all(&self.err) {
            if e.kind() != ErrorKind::BrokenPipe {
                return Err(e.into());
            }
        }
        self.err.clear();
        Ok(())
    }

    /// The end: 0, or 1 if something of the log could not be shown.
    ///
    /// # Errors
    /// As for [`flush`](Self::flush).
    pub(super) fn finish(mut self) -> Result<i32> {
        if self.unreadable > NAMED {
            self.say(&format!("{} lines of the log are no records and are not shown", self.unreadable));
        }
        self.flush()?;
        Ok(i32::from(self.unreadable > 0 || self.gap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "2026-11-27T02:42:00.000000001+00:00";

    fn shown(show: &mut Show, records: &[&str]) -> (String, String) {
        for record in records {
            show.line(format!("{T} {record}\n").as_bytes(), Path::new("/log"), 7);
        }
        let text = |bytes: &mut Vec<u8>| String::from_utf8(std::mem::take(bytes)).unwrap();
        (text(&mut show.out), text(&mut show.err))
    }

    #[test]
    fn records_are_joined() {
        let mut show = Show { timestamps: true, ..Show::default() };
        let (out, err) = shown(&mut show, &["stdout P a", "stderr F e", "stdout F b", "stdout F "]);
        assert_eq!(out, format!("{T} ab\n{T} \n"));
        assert_eq!(err, format!("{T} e\n"));
    }

    #[test]
    fn lines_are_left_out_whole() {
        let mut show = Show { skip: [1, 0], ..Show::default() };
        let (out, err) = shown(&mut show, &["stdout P a", "stderr F e", "stdout F b", "stdout F c"]);
        assert_eq!((out.as_str(), err.as_str()), ("c\n", "e\n"));
    }

    #[test]
    fn what_is_no_record_is_named_and_counted() {
        let mut show = Show::default();
        let (out, err) = shown(&mut show, &["stdout F a", "nonsense", "stdout F b"]);
        assert_eq!(out, "a\nb\n");
        assert_eq!(err, "pintle: /log at byte 7: log record has fewer than four fields\n");
        for _ in 0..20 {
            show.line(b"x\n", Path::new("/log"), 0);
        }
        assert_eq!((show.unreadable, show.err.split(|b| *b == b'\n').count()), (21, 10));
    }
}
