//! When to let output pile up before it is read.
//!
//! A program that writes line by line wakes its reader for every line. While many small reads follow each other within
//! microseconds, a short pause between them collects a bufferful; a program that writes rarely never meets a pause.

use core::time::Duration;

/// Reads below this size are small.
const SMALL: usize = 8 * 1024;
/// A read above this means that the pipe (64 KiB) is close to full and the writer close to waiting.
const LARGE: usize = 40 * 1024;
/// So many more quick small reads than slow or large ones start the pauses.
const ENTER: u32 = 8;
/// So many pauses in a row that brought little end them. One is not enough: on a busy machine the writer may just not
/// have had its turn.
const LEAVE: u32 = 8;
/// A read within this time of the last one is quick.
const QUICK: Duration = Duration::from_micros(250);
/// After this time without a read everything begins anew.
const IDLE: Duration = Duration::from_millis(20);
/// The shortest pause, and the first.
const MIN: Duration = Duration::from_micros(100);
/// The longest pause; with the timer's slack an added delay stays below 2 ms.
const MAX: Duration = Duration::from_millis(1);
/// A pause that brings less than so many reads' worth was not worth it.
const WORTH: usize = 4;

/// Decides on pauses for one stream.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batcher {
    score: u32,
    misses: u32,
    /// Doubles [`ENTER`] this many times: pauses were in vain before.
    vain: u32,
    /// Size of the small reads, smoothed.
    usual: usize,
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
        if gap > IDLE {
            *self = Self { last: now, usual: bytes, ..Self::default() };
            return None;
        }
        if self.pause.is_zero() {
            self.usual = (self.usual * 3 + bytes) / 4;
            self.score =
                if bytes < SMALL && gap <= QUICK { self.score + 1 } else { self.score.saturating_sub(2) };
            if self.score < ENTER << self.vain {
                return None;
            }
            (self.pause, self.misses) = (MIN, 0);
            return Some(self.pause);
        }
        if bytes < self.usual.saturating_mul(WORTH) {
            self.misses += 1;
        } else {
            (self.misses, self.vain) = (0, 0);
        }
        if self.misses >= LEAVE {
            let vain = (self.vain + 1).min(10);
            *self = Self { last: now, usual: self.usual, vain, ..Self::default() };
            return None;
        }
        if bytes > LARGE {
            self.pause = (self.pause / 2).max(MIN / 2);
        } else if bytes < LARGE / 2 {
            self.pause = (self.pause * 3 / 2).min(MAX);
        }
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
        // Nothing comes for a while: the next line is not delayed.
        assert_eq!(batcher.after_read(us(now + 30_000), 80), None);
        assert!(!batcher.is_active());
    }

    #[test]
    fn pauses_that_bring_nothing_end() {
        let mut batcher = Batcher::new();
        let mut paused = 0;
        for n in 0..10_000 {
            // 5000 lines a second: quick, but a pause collects one or two.
            paused += u32::from(batcher.after_read(us(n * 200), 80).is_some());
        }
        assert!(paused > 0 && paused < 200, "{paused}");
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
