//! When to let output pile up before it is read.
//!
//! A program that writes line by line wakes its reader for every line. While many small reads follow each other within
//! microseconds, a short pause between them collects a bufferful; a program that writes rarely never meets a pause.

use core::time::Duration;

/// Reads below this size are small.
const SMALL: usize = 8 * 1024;
/// A read above this means that the pipe (64 KiB) is close to full and the writer close to waiting.
const LARGE: usize = 40 * 1024;
/// Small reads in a row before the first pause.
const STREAK: u32 = 8;
/// The next read comes within this time of the last one, or the row is over.
const GAP: Duration = Duration::from_micros(200);
/// The shortest pause, and the first.
const MIN: Duration = Duration::from_micros(100);
/// The longest pause; with the timer's slack an added delay stays below 2 ms.
const MAX: Duration = Duration::from_millis(1);
/// Less than this after a pause: the burst is over.
const QUIET: usize = 512;

/// Decides on pauses for one stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batcher {
    streak: u32,
    pause: Duration,
    last: Duration,
}

impl Batcher {
    /// A batcher that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// `bytes` were read at the monotonic time `now`. Returns how long to wait before the next read, if at all.
    pub fn after_read(&mut self, now: Duration, bytes: usize) -> Option<Duration> {
        let gap = now.saturating_sub(self.last);
        self.last = now;
        if self.pause.is_zero() {
            self.streak = if bytes < SMALL && gap <= GAP { self.streak + 1 } else { 0 };
            if self.streak < STREAK {
                return None;
            }
            self.pause = MIN;
        } else if bytes < QUIET || gap > self.pause * 2 + GAP {
            // Too little came, or the read was not waiting when the pause ended.
            *self = Self { last: self.last, ..Self::default() };
            return None;
        } else if bytes > LARGE {
            self.pause = (self.pause / 2).max(MIN / 2);
        } else if bytes < LARGE / 2 {
            self.pause = (self.pause * 3 / 2).min(MAX);
        }
        // The pause is no part of the next gap's surprise.
        Some(self.pause)
    }

    /// True while pauses are made.
    pub fn is_active(&self) -> bool {
        !self.pause.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn rare_lines_are_never_delayed() {
        let mut batcher = Batcher::new();
        for n in 1..1000 {
            assert_eq!(batcher.after_read(us(n * 1000), 80), None);
        }
    }

    #[test]
    fn a_chatty_writer_is_batched_and_left_alone_afterwards() {
        let mut batcher = Batcher::new();
        let mut now = 0;
        for _ in 0..8 {
            now += 5;
            let _ = batcher.after_read(us(now), 80);
        }
        assert!(batcher.is_active());
        // 100 bytes per microsecond: the pause settles where about half a pipe comes in.
        let mut pause = MIN;
        for _ in 0..50 {
            now += pause.as_micros() as u64 + 10;
            pause = batcher.after_read(us(now), pause.as_micros() as usize * 100).unwrap();
        }
        assert!(pause >= us(100) && pause <= us(500), "{pause:?}");
        assert_eq!(batcher.after_read(us(now + 400), 80), None);
        assert!(!batcher.is_active());
    }

    #[test]
    fn bulk_is_not_delayed() {
        let mut batcher = Batcher::new();
        for n in 0..1000 {
            assert_eq!(batcher.after_read(us(n * 20), 65_536), None);
        }
    }

    proptest! {
        #[test]
        fn pauses_are_bounded(reads in proptest::collection::vec((0u64..3000, 0usize..70_000), 0..300)) {
            let mut batcher = Batcher::new();
            let mut now = 0;
            for (gap, bytes) in reads {
                now += gap;
                if let Some(pause) = batcher.after_read(us(now), bytes) {
                    prop_assert!(pause <= MAX && !pause.is_zero());
                }
            }
        }
    }
}
