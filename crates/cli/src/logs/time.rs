//! Points in time as users of docker and podman write them, and as logs hold them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use pintle_client::oci::Timestamp;

use crate::args::{self, usage};

/// A point in time as docker and podman read it: a span before now, seconds since 1970, or an RFC 3339 time that may
/// lack its zone or all but its date (UTC then: a log is to look the same to everybody).
pub(super) fn point(value: &str) -> Result<SystemTime> {
    for rest in ["", "Z", "T00:00:00Z"] {
        if let Some(time) = timestamp(&format!("{value}{rest}")) {
            return Ok(time);
        }
    }
    let number = |c: char| c.is_ascii_digit() || c == '.';
    if !value.is_empty() && value.chars().all(number) {
        let since = value.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
        if let Some(time) = since.and_then(|since| UNIX_EPOCH.checked_add(since)) {
            return Ok(time);
        }
    }
    let span = span(value).ok_or_else(|| {
        usage(format!("{value} is neither a time span such as 10m nor a time such as 2026-11-27T02:42:00Z"))
    })?;
    Ok(SystemTime::now().checked_sub(span).unwrap_or(UNIX_EPOCH))
}

/// A time span of one or more numbers, each with its unit: `10m`, `1h30m`.
fn span(value: &str) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    let mut rest = value;
    while !rest.is_empty() {
        let unit = rest.find(|c: char| c.is_ascii_alphabetic())?;
        let end = rest[unit..].find(|c: char| !c.is_ascii_alphabetic()).map_or(rest.len(), |n| unit + n);
        sum = sum.checked_add(args::duration(&rest[..end]).ok()?)?;
        rest = &rest[end..];
    }
    Some(sum).filter(|_| !value.is_empty())
}

/// Reads an RFC 3339 time; a space may stand for its `T`.
pub(super) fn timestamp(text: &str) -> Option<SystemTime> {
    text.replacen(' ', "T", 1).parse::<Timestamp>().ok().map(SystemTime::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "2026-11-27T02:42:00.000000001+00:00";

    #[test]
    fn times() {
        let t = timestamp("2026-11-27T02:42:00Z").unwrap();
        assert_eq!(t, UNIX_EPOCH + Duration::from_secs(1_795_747_320));
        assert_eq!(timestamp("2026-11-27T03:42:00+01:00"), Some(t));
        assert_eq!(timestamp(T), Some(t + Duration::from_nanos(1)));
        assert_eq!(timestamp("2026-11-27T02:42:00.5Z"), Some(t + Duration::from_millis(500)));
        for bad in [
            "",
            "10m",
            "2026-13-27T02:42:00Z",
            "2026-11-27T02:42:00",
            "2026-11-27é02:42:00Z",
            "2026x01x31T99:99:99Z",
        ] {
            assert_eq!(timestamp(bad), None, "{bad}");
        }
    }

    #[test]
    fn points_in_time_as_users_write_them() {
        let t = UNIX_EPOCH + Duration::from_secs(1_795_747_320);
        for same in ["2026-11-27T02:42:00Z", "2026-11-27T02:42:00", "1795747320", "1795747320.0"] {
            assert_eq!(point(same).unwrap(), t, "{same}");
        }
        assert_eq!(point("2026-11-27").unwrap(), t - Duration::from_secs(2 * 3600 + 42 * 60));
        let then = point("1h30m").unwrap();
        let ago = SystemTime::now().duration_since(then).unwrap();
        assert!(ago >= Duration::from_secs(5400) && ago < Duration::from_secs(6000), "{ago:?}");
        for bad in ["", "h", "10x", "1h30", "-5m", "1.2.3", "9e99"] {
            assert!(point(bad).is_err(), "{bad}");
        }
    }
}
