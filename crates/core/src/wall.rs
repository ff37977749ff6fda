//! Points in time as plain numbers; reading the clock is the caller's business.

use alloc::string::String;
use core::fmt::Write as _;

/// Seconds and nanoseconds since the epoch, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct WallTime {
    /// Whole seconds since 1970-01-01T00:00:00Z; may be negative.
    pub secs: i64,
    /// Nanoseconds inside the second, below 1_000_000_000.
    pub nanos: u32,
}

/// Nanoseconds of the boot clock (`CLOCK_BOOTTIME`): never steps, means nothing after a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct MonoTime(pub u64);

impl MonoTime {
    /// The time between `earlier` and this point, in nanoseconds; 0 if `earlier` is later.
    pub fn since(self, earlier: MonoTime) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl WallTime {
    /// A point from seconds and nanoseconds; nanoseconds past the second are clamped.
    pub fn new(secs: i64, nanos: u32) -> Self {
        Self { secs, nanos: nanos.min(999_999_999) }
    }

    /// Nanoseconds since the epoch, saturating at the ends of `i64`.
    pub fn unix_nanos(self) -> i64 {
        self.secs.saturating_mul(1_000_000_000).saturating_add(i64::from(self.nanos))
    }

    /// The inverse of [`WallTime::unix_nanos`].
    pub fn from_unix_nanos(nanos: i64) -> Self {
        let sub = nanos.rem_euclid(1_000_000_000);
        Self { secs: nanos.div_euclid(1_000_000_000), nanos: u32::try_from(sub).unwrap_or(0) }
    }

    /// RFC 3339 in UTC with nine digits, as in `2026-11-27T02:42:00.000000001Z`.
    pub fn to_rfc3339(self) -> String {
        let (y, m, d) = civil_from_days(self.secs.div_euclid(86_400));
        let rest = self.secs.rem_euclid(86_400);
        let mut out = String::with_capacity(32);
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}.{:09}Z",
            rest / 3600,
            rest / 60 % 60,
            rest % 60,
            self.nanos
        );
        out
    }
}

/// The calendar date of a day number counted from 1970-01-01 (proleptic Gregorian calendar).
pub fn civil_from_days(days: i64) -> (i64, u32, u32) {
    // Years are taken to start in March, so that the leap day is the last one.
    let z = days.saturating_add(719_468);
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + i64::from(month <= 2);
    (year, u32::try_from(month).unwrap_or(1), u32::try_from(day).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        assert_eq!(WallTime::new(0, 0).to_rfc3339(), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(WallTime::new(951_782_400, 5).to_rfc3339(), "2000-02-29T00:00:00.000000005Z");
        assert_eq!(WallTime::new(1_795_747_320, 1).to_rfc3339(), "2026-11-27T02:42:00.000000001Z");
        assert_eq!(WallTime::new(-1, 0).to_rfc3339(), "1969-12-31T23:59:59.000000000Z");
    }

    proptest! {
        #[test]
        fn nanos_round_trip(n in any::<i64>()) {
            prop_assert_eq!(WallTime::from_unix_nanos(n).unix_nanos(), n);
        }

        #[test]
        fn formatting_never_panics(s in any::<i64>(), n in any::<u32>()) {
            let _ = WallTime::new(s, n).to_rfc3339();
        }
    }
}
