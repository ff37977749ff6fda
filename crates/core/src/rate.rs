//! A limit of bytes and lines per second, as a bucket that may be overdrawn by one chunk.
//!
//! Tokens come at the rate and are kept for at most one second. What is taken may exceed what is there: the debt has to
//! be paid before anything else is taken, so the average never exceeds the rate, whatever the size of the pieces.

/// Bytes and lines per second; 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RateLimits {
    /// Bytes per second.
    pub bytes: u64,
    /// Lines per second.
    pub lines: u64,
}

impl RateLimits {
    /// Whether nothing is limited.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }
}

const SECOND: i128 = 1_000_000_000;

/// The bucket. Times are nanoseconds of a clock that does not step.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    limits: RateLimits,
    /// Tokens in billionths: of bytes, of lines.
    tokens: [i128; 2],
    at: u64,
}

impl Bucket {
    /// A full one.
    pub fn new(limits: RateLimits, now: u64) -> Self {
        let full = |rate: u64| i128::from(rate) * SECOND;
        Self { limits, tokens: [full(limits.bytes), full(limits.lines)], at: now }
    }

    /// One that goes on where another was: with what its [`tokens`](Self::tokens) said.
    pub fn resumed(limits: RateLimits, now: u64, tokens: [i64; 2]) -> Self {
        let full = Self::new(limits, now);
        let [bytes, lines] = full.tokens;
        let [had_bytes, had_lines] = tokens.map(|n| i128::from(n) * SECOND);
        Self { tokens: [bytes.min(had_bytes), lines.min(had_lines)], ..full }
    }

    /// Whole bytes and lines that may be taken now, rounded down; a debt is negative.
    pub fn tokens(mut self, now: u64) -> [i64; 2] {
        self.refill(now);
        self.tokens.map(|n| {
            let whole = n.div_euclid(SECOND);
            i64::try_from(whole).unwrap_or(if whole < 0 { i64::MIN } else { i64::MAX })
        })
    }

    fn rates(&self) -> [i128; 2] {
        [i128::from(self.limits.bytes), i128::from(self.limits.lines)]
    }

    fn refill(&mut self, now: u64) {
        let passed = i128::from(now.saturating_sub(self.at));
        self.at = self.at.max(now);
        let rates = self.rates();
        for (tokens, rate) in self.tokens.iter_mut().zip(rates) {
            *tokens = tokens.saturating_add(rate.saturating_mul(passed)).min(rate * SECOND);
        }
    }

    /// Takes bytes and lines, also more than there is.
    pub fn take(&mut self, now: u64, bytes: u64, lines: u64) {
        self.refill(now);
        let rates = self.rates();
        for (tokens, (rate, taken)) in self.tokens.iter_mut().zip(rates.into_iter().zip([bytes, lines])) {
            if rate > 0 {
                *tokens = tokens.saturating_sub(i128::from(taken) * SECOND);
            }
        }
    }

    /// Nanoseconds until there is something to take; 0: now.
    pub fn wait(&mut self, now: u64) -> u64 {
        self.until(now, 0)
    }

    /// Nanoseconds until half of a second's tokens are there; 0: now.
    pub fn recovered(&mut self, now: u64) -> u64 {
        self.until(now, SECOND / 2)
    }

    /// Until more than `part` of each rate is there.
    fn until(&mut self, now: u64, part: i128) -> u64 {
        self.refill(now);
        let needs =
            self.tokens.iter().zip(self.rates()).filter(|(_, rate)| *rate > 0).map(|(tokens, rate)| {
                let missing = (rate * part).max(1) - tokens;
                if missing <= 0 { 0 } else { (missing + rate - 1) / rate }
            });
        u64::try_from(needs.max().unwrap_or(0)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_limit_never_waits() {
        let mut b = Bucket::new(RateLimits::default(), 0);
        b.take(1, u64::MAX, u64::MAX);
        assert_eq!((b.wait(1), b.recovered(1)), (0, 0));
    }

    #[test]
    fn a_debt_is_paid_first() {
        let mut b = Bucket::new(RateLimits { bytes: 1000, lines: 0 }, 0);
        b.take(0, 3000, 9);
        // 2000 bytes of debt, and one billionth.
        assert_eq!(b.wait(0), 2_000_000_001);
        assert_eq!(b.recovered(0), 2_500_000_000);
        assert_eq!(b.wait(2_000_000_001), 0);
        let mut b = Bucket::new(RateLimits { bytes: 0, lines: 10 }, 0);
        b.take(0, 1 << 40, 20);
        assert!(b.wait(0) >= 1_000_000_000);
    }

    #[test]
    fn a_debt_is_handed_over() {
        let limits = RateLimits { bytes: 1000, lines: 0 };
        let mut b = Bucket::new(limits, 0);
        b.take(0, 3000, 9);
        assert_eq!(b.tokens(0), [-2000, 0]);
        assert_eq!(Bucket::resumed(limits, 0, b.tokens(0)).wait(0), b.wait(0));
        // Rounded against the container, and never more than a second's worth.
        assert_eq!(b.tokens(1), [-2000, 0]);
        assert_eq!(Bucket::resumed(limits, 0, [i64::MAX; 2]).tokens(0), [1000, 0]);
        assert!(Bucket::resumed(limits, 0, [i64::MIN; 2]).wait(0) > 1 << 62);
    }

    proptest! {
        #[test]
        fn the_average_holds(
            bytes in 1u64..1_000_000, lines in 1u64..10_000,
            pieces in proptest::collection::vec((1u64..70_000, 0u64..1000, 0u64..50_000_000), 1..100),
        ) {
            let limits = RateLimits { bytes, lines };
            let (mut bucket, mut now, mut taken, mut last) = (Bucket::new(limits, 0), 0, [0u64; 2], [0u64; 2]);
            for (b, l, pause) in pieces {
                now += pause;
                now += bucket.wait(now);
                prop_assert_eq!(bucket.wait(now), 0);
                bucket.take(now, b, l);
                taken = [taken[0] + b, taken[1] + l];
                last = [b, l];
            }
            // One second's worth at the start, then the rate; the last piece may be a debt.
            let seconds = now as f64 / 1e9 + 1.0;
            prop_assert!((taken[0] - last[0]) as f64 <= bytes as f64 * seconds + 1.0);
            prop_assert!((taken[1] - last[1]) as f64 <= lines as f64 * seconds + 1.0);
        }
    }
}
