//! When a log file is full: what to write, where to begin a new file, what not to write at all.
//!
//! Works on encoded records (each ends with its only line feed), so a cut never splits one.

use core::ops::Range;

/// Limits of a log file. 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SizeLimits {
    /// Bytes of one file.
    pub file: u64,
    /// Bytes that are ever written, over all files. Checked before a record, so the total may pass it by one record.
    pub total: u64,
}

/// One step of writing a buffer of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write these bytes to the current file.
    Write(Range<usize>),
    /// Begin a new file; its size is 0.
    Rotate,
    /// Do not write these bytes: the total limit is reached.
    Drop(Range<usize>),
}

/// Counts bytes of the current file and of all files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SizeCounter {
    /// Size of the current file.
    pub file: u64,
    /// Bytes written so far, never reset.
    pub total: u64,
}

impl SizeLimits {
    /// True if there is no limit.
    pub fn is_none(&self) -> bool {
        self.file == 0 && self.total == 0
    }

    /// The next step for `records[from..]`; `None` when nothing is left. Feed the steps back with
    /// [`SizeCounter::apply`] if they were done.
    ///
    /// A record larger than the file limit gets a file of its own.
    pub fn next_step(&self, counter: &SizeCounter, records: &[u8], from: usize) -> Option<Step> {
        let rest = records.get(from..).filter(|rest| !rest.is_empty())?;
        if self.total > 0 && counter.total >= self.total {
            return Some(Step::Drop(from..records.len()));
        }
        let whole = rest.len() as u64;
        let fits_file = self.file == 0 || counter.file + whole <= self.file;
        let fits_total = self.total == 0 || counter.total + whole <= self.total;
        if fits_file && fits_total {
            return Some(Step::Write(from..records.len()));
        }
        // Record by record: as many as go into this file, then the new one.
        let mut taken = 0usize;
        while let Some(tail) = rest.get(taken..).filter(|tail| !tail.is_empty()) {
            let record = memchr::memchr(b'\n', tail).map_or(tail.len(), |at| at + 1);
            if self.total > 0 && counter.total + taken as u64 >= self.total {
                break;
            }
            let over = self.file > 0 && counter.file + (taken + record) as u64 > self.file;
            if over && taken + counter.file as usize > 0 {
                break;
            }
            taken += record;
            if over {
                break;
            }
        }
        Some(if taken == 0 { Step::Rotate } else { Step::Write(from..from + taken) })
    }
}

impl SizeCounter {
    /// Takes a step into account and returns where the next one begins.
    pub fn apply(&mut self, step: &Step, from: usize) -> usize {
        match step {
            Step::Write(range) => {
                let len = range.len() as u64;
                self.file = self.file.saturating_add(len);
                self.total = self.total.saturating_add(len);
                range.end
            }
            Step::Rotate => {
                self.file = 0;
                from
            }
            Step::Drop(range) => range.end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;
    use std::vec;

    /// Runs a buffer to its end; returns the files written (the first may have had content before) and bytes dropped.
    fn run(limits: SizeLimits, counter: &mut SizeCounter, records: &[u8], files: &mut Vec<Vec<u8>>) -> usize {
        let (mut at, mut dropped) = (0, 0);
        while let Some(step) = limits.next_step(counter, records, at) {
            match &step {
                Step::Write(range) => files.last_mut().unwrap().extend_from_slice(&records[range.clone()]),
                Step::Rotate => files.push(Vec::new()),
                Step::Drop(range) => dropped += range.len(),
            }
            at = counter.apply(&step, at);
        }
        dropped
    }

    #[test]
    fn a_limit_smaller_than_a_record_keeps_the_last_record() {
        let mut files = vec![Vec::new()];
        let mut counter = SizeCounter::default();
        run(
            SizeLimits { file: 10, total: 0 },
            &mut counter,
            b"first long record\nsecond long record\n",
            &mut files,
        );
        assert_eq!(files, [b"first long record\n".to_vec(), b"second long record\n".to_vec()]);
    }

    #[test]
    fn total_limit_overshoots_by_one_record() {
        let mut files = vec![Vec::new()];
        let dropped = run(
            SizeLimits { file: 0, total: 5 },
            &mut SizeCounter::default(),
            b"aaa\nbbb\nccc\n",
            &mut files,
        );
        assert_eq!(files[0], b"aaa\nbbb\n");
        assert_eq!(dropped, 4);
    }

    #[test]
    fn old_content_counts() {
        let mut files = vec![Vec::new()];
        let mut counter = SizeCounter { file: 9, total: 9 };
        run(SizeLimits { file: 10, total: 0 }, &mut counter, b"aa\n", &mut files);
        assert_eq!(files, [b"".to_vec(), b"aa\n".to_vec()]);
    }

    proptest! {
        #[test]
        fn bounds_hold_and_nothing_is_lost(
            limit in 1u64..200, total in prop_oneof![Just(0u64), 1u64..2000],
            batches in proptest::collection::vec(proptest::collection::vec(0usize..120, 0..20), 1..10),
        ) {
            let limits = SizeLimits { file: limit, total };
            let mut counter = SizeCounter::default();
            let mut files = vec![Vec::new()];
            let (mut input, mut dropped) = (Vec::new(), 0);
            for batch in &batches {
                let buffer: Vec<u8> = batch.iter().flat_map(|n| core::iter::repeat_n(b'x', *n).chain([b'\n'])).collect();
                dropped += run(limits, &mut counter, &buffer, &mut files);
                input.extend(buffer);
            }
            for file in &files {
                let records = file.split_inclusive(|b| *b == b'\n').count();
                prop_assert!(file.len() as u64 <= limit || records == 1);
                prop_assert!(file.is_empty() || file.ends_with(b"\n"));
            }
            let written = files.concat();
            prop_assert_eq!(written.len() + dropped, input.len());
            prop_assert_eq!(&written[..], &input[..written.len()]);
            if total == 0 { prop_assert_eq!(dropped, 0); }
            if dropped > 0 { prop_assert!(written.len() as u64 >= total && (written.len() as u64) < total + 121); }
        }
    }
}
