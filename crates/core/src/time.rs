//! Points in time as the shim writes them down: RFC 3339 with nine digits and a numeric offset.
//!
//! Reading the clock and the time zone is `pintle-sys`'s work; here is only arithmetic.

use crate::wall::WallTime;

/// Length of every timestamp this module writes.
pub const STAMP_LEN: usize = 35;

/// Writes timestamps into a fixed buffer and computes the calendar only when the second changes.
#[derive(Clone, Debug)]
pub struct Stamper {
    text: [u8; STAMP_LEN],
    secs: i64,
    offset: i32,
    valid: bool,
}

impl Default for Stamper {
    fn default() -> Self {
        Self::new()
    }
}

impl Stamper {
    /// A stamper that has not written anything yet.
    pub fn new() -> Self {
        Self { text: *b"1970-01-01T00:00:00.000000000+00:00", secs: 0, offset: 0, valid: false }
    }

    /// True if [`stamp`](Self::stamp) needs a fresh UTC offset for this time: the second differs from the last one.
    pub fn is_stale(&self, now: WallTime) -> bool {
        !self.valid || self.secs != now.secs
    }

    /// The timestamp of `now` in a zone `offset` seconds east of UTC, like `2026-11-23T20:15:45.133617925+00:00`.
    ///
    /// Years outside 0 to 9999 and offsets of a day or more are clamped: the text always has 35 bytes.
    pub fn stamp(&mut self, now: WallTime, offset: i32) -> &[u8; STAMP_LEN] {
        if self.is_stale(now) || self.offset != offset {
            self.calendar(now.secs, offset);
        }
        put_digits(&mut self.text, 20, 9, u64::from(now.nanos.min(999_999_999)));
        &self.text
    }

    /// The timestamp of `now` with the offset of the last call.
    pub fn stamp_cached(&mut self, now: WallTime) -> &[u8; STAMP_LEN] {
        self.stamp(now, self.offset)
    }

    fn calendar(&mut self, secs: i64, offset: i32) {
        let offset_minutes = (offset / 60).clamp(-1439, 1439);
        // From year 0 to the end of year 9999, so that four digits always do.
        let local =
            secs.saturating_add(i64::from(offset_minutes) * 60).clamp(-62_167_219_200, 253_402_300_799);
        let (days, rest) = (local.div_euclid(86_400), local.rem_euclid(86_400) as u64);
        let (year, month, day) = civil(days);
        let text = &mut self.text;
        put_digits(text, 0, 4, year);
        put_digits(text, 5, 2, month);
        put_digits(text, 8, 2, day);
        put_digits(text, 11, 2, rest / 3600);
        put_digits(text, 14, 2, rest / 60 % 60);
        put_digits(text, 17, 2, rest % 60);
        let minutes = u64::from(offset_minutes.unsigned_abs());
        if let Some(sign) = text.get_mut(29) {
            *sign = if offset_minutes < 0 { b'-' } else { b'+' };
        }
        put_digits(text, 30, 2, minutes / 60);
        put_digits(text, 33, 2, minutes % 60);
        (self.secs, self.offset, self.valid) = (secs, offset, true);
    }
}

/// Year, month and day of a day number since the epoch, by the 400-year cycle that starts in March of year 0.
fn civil(days: i64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year.max(0) as u64, month as u64, day as u64)
}

fn put_digits(text: &mut [u8; STAMP_LEN], at: usize, width: usize, mut value: u64) {
    if let Some(field) = text.get_mut(at..at + width) {
        for digit in field.iter_mut().rev() {
            *digit = b'0' + (value % 10) as u8;
            value /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::{String, ToString};

    fn check(secs: i64, nanos: u32, offset: i32, expected: &str) {
        let mut stamper = Stamper::new();
        let text = String::from_utf8(stamper.stamp(WallTime::new(secs, nanos), offset).to_vec()).unwrap();
        assert_eq!(text, expected);
    }

    #[test]
    fn known_points() {
        check(0, 0, 0, "1970-01-01T00:00:00.000000000+00:00");
        check(1_795_464_945, 133_617_925, 0, "2026-11-23T20:15:45.133617925+00:00");
        check(1_795_464_945, 5, 3600, "2026-11-23T21:15:45.000000005+01:00");
        check(951_782_400, 0, 0, "2000-02-29T00:00:00.000000000+00:00");
        check(1_709_164_800, 0, -12_600, "2024-02-28T20:30:00.000000000-03:30");
        check(-1, 999_999_999, 0, "1969-12-31T23:59:59.999999999+00:00");
        check(4_107_542_399, 0, 0, "2100-02-28T23:59:59.000000000+00:00");
        check(4_107_542_400, 0, 0, "2100-03-01T00:00:00.000000000+00:00");
    }

    #[test]
    fn absurd_input_keeps_the_width() {
        for secs in [i64::MIN, i64::MAX, -62_167_219_201, 253_402_300_800] {
            for offset in [i32::MIN, 0, i32::MAX] {
                assert_eq!(Stamper::new().stamp(WallTime { secs, nanos: u32::MAX }, offset).len(), STAMP_LEN);
            }
        }
    }

    /// Days counted the slow way, as an oracle.
    fn slow(mut days: i64) -> (u64, u64, u64) {
        let leap = |y: i64| (y % 4 == 0 && y % 100 != 0) || y % 400 == 0;
        let mut year = 1970;
        while days >= if leap(year) { 366 } else { 365 } {
            days -= if leap(year) { 366 } else { 365 };
            year += 1;
        }
        let lengths = [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let mut month = 0;
        while days >= lengths[month] {
            days -= lengths[month];
            month += 1;
        }
        (year as u64, month as u64 + 1, days as u64 + 1)
    }

    #[test]
    fn calendar_equals_counting() {
        for days in 0..80_000 {
            assert_eq!(civil(days), slow(days), "day {days}");
        }
    }

    proptest! {
        #[test]
        fn the_cache_changes_nothing(times in proptest::collection::vec((0i64..4, 0u32..1_000_000_000, -2i32..3), 1..40)) {
            let mut cached = Stamper::new();
            for (secs, nanos, zone) in times {
                let now = WallTime::new(secs, nanos);
                let fresh = String::from_utf8_lossy(Stamper::new().stamp(now, zone * 3600)).to_string();
                prop_assert_eq!(fresh.as_bytes(), &cached.stamp(now, zone * 3600)[..]);
            }
        }
    }
}
