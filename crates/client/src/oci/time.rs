//! Points in time as `state.json` holds them: RFC 3339 with nanoseconds, the offset kept, and a
//! zero value (`0001-01-01T00:00:00Z`) that means "not set".

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{
    cmp::Ordering,
    fmt,
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Seconds from the first of January of year 1 to the Unix epoch.
const ZERO_UNIX: i64 = -62_135_596_800;
/// The last second of year 9999, the last one RFC 3339 can write.
const MAX_UNIX: i64 = 253_402_300_799;

/// A point in time with nanoseconds and the offset it was written with.
///
/// Two timestamps are equal when they name the same instant, whatever their offsets. The default
/// is the zero value, [`Timestamp::ZERO`], which callers read as "not set".
///
/// ```
/// use pintle_client::oci::Timestamp;
/// let t: Timestamp = "2024-06-17T10:00:00.5+02:00".parse().unwrap();
/// assert_eq!(t.to_string(), "2024-06-17T10:00:00.5+02:00");
/// assert!(Timestamp::default().is_zero());
/// ```
#[derive(Clone, Copy)]
pub struct Timestamp {
    unix: i64,
    nanos: u32,
    offset_minutes: i16,
}

impl Timestamp {
    /// The value of a time nobody has set.
    pub const ZERO: Self = Self { unix: ZERO_UNIX, nanos: 0, offset_minutes: 0 };

    /// The present time, in UTC.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// A time from nanoseconds since the Unix epoch; values outside the years 1 to 9999 are
    /// brought to the nearest end.
    pub fn from_unix_nanos(nanos: i128) -> Self {
        let unix = nanos.div_euclid(1_000_000_000);
        let unix = i64::try_from(unix)
            .unwrap_or(if unix < 0 { ZERO_UNIX } else { MAX_UNIX })
            .clamp(ZERO_UNIX, MAX_UNIX);
        Self { unix, nanos: nanos.rem_euclid(1_000_000_000) as u32, offset_minutes: 0 }
    }

    /// Nanoseconds since the Unix epoch.
    pub fn unix_nanos(self) -> i128 {
        i128::from(self.unix) * 1_000_000_000 + i128::from(self.nanos)
    }

    /// Whether this is the zero value.
    pub fn is_zero(self) -> bool {
        self.unix == ZERO_UNIX && self.nanos == 0
    }
}

impl Default for Timestamp {
    fn default() -> Self {
        Self::ZERO
    }
}

impl PartialEq for Timestamp {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Timestamp {}

impl PartialOrd for Timestamp {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timestamp {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.unix, self.nanos).cmp(&(other.unix, other.nanos))
    }
}

impl std::hash::Hash for Timestamp {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.unix, self.nanos).hash(state);
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let nanos = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_nanos() as i128,
            Err(before) => -(before.duration().as_nanos() as i128),
        };
        Self::from_unix_nanos(nanos)
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        let whole = Duration::from_secs(time.unix.unsigned_abs());
        let base = if time.unix < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
        base + Duration::from_nanos(u64::from(time.nanos))
    }
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let yoe = year.rem_euclid(400);
    let mp = if month > 2 { month - 3 } else { month + 9 };
    let doy = (153 * mp + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    era * 146_097 + doe - 719_468
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = self.unix + i64::from(self.offset_minutes) * 60;
        let (year, month, day) = pintle_core::wall::civil_from_days(local.div_euclid(86_400));
        let second = local.rem_euclid(86_400);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}",
            second / 3600,
            second / 60 % 60,
            second % 60
        )?;
        if self.nanos > 0 {
            let fraction = format!("{:09}", self.nanos);
            write!(f, ".{}", fraction.trim_end_matches('0'))?;
        }
        if self.offset_minutes == 0 {
            return f.write_str("Z");
        }
        let sign = if self.offset_minutes < 0 { '-' } else { '+' };
        let offset = self.offset_minutes.unsigned_abs();
        write!(f, "{sign}{:02}:{:02}", offset / 60, offset % 60)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not an RFC 3339 time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an RFC 3339 time")]
pub struct ParseTimestampError(String);

impl FromStr for Timestamp {
    type Err = ParseTimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseTimestampError(text.chars().take(64).collect()))
    }
}

fn digits(text: &[u8], from: usize, len: usize) -> Option<i64> {
    let part = text.get(from..from + len)?;
    if !part.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(part.iter().fold(0, |n, b| n * 10 + i64::from(b - b'0')))
}

fn parse(text: &str) -> Option<Timestamp> {
    let b = text.as_bytes();
    let at = |i: usize, what: u8| (b.get(i)? | 0x20 == what | 0x20).then_some(());
    let (year, month, day) = (digits(b, 0, 4)?, digits(b, 5, 2)?, digits(b, 8, 2)?);
    let (hour, minute, second) = (digits(b, 11, 2)?, digits(b, 14, 2)?, digits(b, 17, 2)?);
    (b.get(4) == Some(&b'-') && b.get(7) == Some(&b'-')).then_some(())?;
    at(10, b'T')?;
    (b.get(13) == Some(&b':') && b.get(16) == Some(&b':')).then_some(())?;
    let in_range = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60
        && year > 0;
    in_range.then_some(())?;
    let mut rest = b.get(19..)?;
    let mut nanos = 0u32;
    if rest.first() == Some(&b'.') {
        let fraction = rest[1..].iter().take_while(|b| b.is_ascii_digit()).count();
        (fraction > 0).then_some(())?;
        for i in 0..9 {
            let digit = rest[1..=fraction].get(i).map_or(0, |b| b - b'0');
            nanos = nanos * 10 + u32::from(digit);
        }
        rest = &rest[1 + fraction..];
    }
    let offset_minutes = match *rest {
        [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let (hours, minutes) = (digits(rest, 1, 2)?, digits(rest, 4, 2)?);
            (hours < 24 && minutes < 60).then_some(())?;
            let total = (hours * 60 + minutes) as i16;
            if sign == b'-' { -total } else { total }
        }
        _ => return None,
    };
    let local = days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some(Timestamp { unix: local - i64::from(offset_minutes) * 60, nanos, offset_minutes })
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_survive_a_round_trip() {
        for text in [
            "0001-01-01T00:00:00Z",
            "1969-12-31T23:59:59.999999999Z",
            "2024-02-29T12:34:56.000000001+05:30",
            "2024-06-17T10:00:00.12-11:00",
            "9999-12-31T23:59:59Z",
        ] {
            assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn instants_compare_whatever_their_offset() {
        let east: Timestamp = "2024-06-17T12:00:00+02:00".parse().unwrap();
        let utc: Timestamp = "2024-06-17T10:00:00Z".parse().unwrap();
        assert_eq!(east, utc);
        assert_eq!(utc.unix_nanos(), 1_718_618_400_000_000_000);
        assert_eq!(Timestamp::from(SystemTime::from(east)), utc);
        assert!(Timestamp::ZERO < utc);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "2024-06-17",
            "2024-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2024-06-17T24:00:00Z",
            "2024-06-17T10:00:00",
            "2024-06-17T10:00:00.Z",
            "2024-06-17T10:00:00+2:00",
            "2024-06-17T10:00:00Zé",
            "é024-06-17T10:00:00Z",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }
}
