//! The time zone of containers.

use super::super::error::{Error, Result};
use std::path::PathBuf;

/// Where the file of a time zone is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimezoneFile {
    /// Containers keep the one of their image.
    Untouched,
    /// This one.
    Path(PathBuf),
}

fn database() -> PathBuf {
    let dir = std::env::var_os("TZDIR").filter(|d| !d.is_empty());
    dir.map_or_else(|| PathBuf::from("/usr/share/zoneinfo"), PathBuf::from)
}

fn is_zone_name(name: &str) -> bool {
    !name.starts_with('/') && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

/// Checks a time zone: empty, `local` in any case, or a name the zone database knows.
///
/// # Errors
/// If it is none of these.
pub fn validate_timezone(zone: &str) -> Result<()> {
    let known = zone.is_empty()
        || zone.eq_ignore_ascii_case("local")
        || (is_zone_name(zone) && (database().join(zone).is_file() || zone == "UTC"));
    if known { Ok(()) } else { Err(Error::Config(format!("invalid timezone: {zone}"))) }
}

/// The file of a time zone that was validated.
///
/// # Errors
/// If `/etc/localtime` is not a link to a zone, for `local`.
pub fn timezone_file(zone: &str) -> Result<TimezoneFile> {
    if zone.is_empty() {
        return Ok(TimezoneFile::Untouched);
    }
    if !zone.eq_ignore_ascii_case("local") {
        return Ok(TimezoneFile::Path(database().join(zone)));
    }
    let path = PathBuf::from("/etc/localtime");
    match std::fs::canonicalize(&path) {
        Ok(target) => Ok(TimezoneFile::Path(target)),
        Err(source) => Err(Error::Io { what: "following", path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timezones() {
        for zone in ["", "local", "Local", "UTC"] {
            validate_timezone(zone).unwrap();
        }
        for zone in ["Nowhere/City", "../etc/passwd", "/etc/localtime"] {
            assert_eq!(validate_timezone(zone).unwrap_err().to_string(), format!("invalid timezone: {zone}"));
        }
        assert_eq!(timezone_file("").unwrap(), TimezoneFile::Untouched);
        assert!(matches!(timezone_file("UTC").unwrap(), TimezoneFile::Path(p) if p.ends_with("UTC")));
    }
}
