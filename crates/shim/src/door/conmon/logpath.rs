//! The syntax of `--log-path`, and which fields a driver accepts.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The drivers that were asked for; several may be active at once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Drivers {
    /// Path of the k8s-file log. Of several, the last one counts.
    pub(super) file: Option<PathBuf>,
    pub(super) journald: bool,
    pub(super) passthrough: bool,
}

/// Reads every `--log-path` value.
pub(super) fn parse(values: &[Vec<u8>]) -> Result<Drivers, String> {
    if values.is_empty() {
        return Err("Log driver not provided. Use --log-path".into());
    }
    let mut drivers = Drivers::default();
    for value in values {
        parse_one(value, &mut drivers)?;
    }
    Ok(drivers)
}

fn parse_one(value: &[u8], drivers: &mut Drivers) -> Result<(), String> {
    let skip_colons = |text: &[u8]| -> Vec<u8> {
        let start = text.iter().position(|byte| *byte != b':').unwrap_or(text.len());
        text.get(start..).unwrap_or_default().to_vec()
    };
    let colon = value.iter().position(|byte| *byte == b':');
    let (driver, rest) = match colon {
        // A leading colon says that a path follows, whatever it looks like.
        Some(0) | None if skip_colons(value).is_empty() => return Err("log-path must not be empty".into()),
        Some(0) => (&b"k8s-file"[..], Some(skip_colons(value))),
        Some(at) => (value.get(..at).unwrap_or_default(), value.get(at..).map(skip_colons)),
        None => (value, None),
    };
    match driver {
        b"journald" => drivers.journald = true,
        b"none" | b"off" | b"null" => {}
        b"passthrough" => drivers.passthrough = true,
        b"k8s-file" => match rest.filter(|path| !path.is_empty()) {
            Some(path) => drivers.file = Some(OsString::from_vec(path).into()),
            None => return Err("k8s-file requires a filename".into()),
        },
        _ if rest.is_none() => drivers.file = Some(OsString::from_vec(driver.to_vec()).into()),
        _ => return Err(format!("No such log driver {}", String::from_utf8_lossy(driver))),
    }
    Ok(())
}

/// Refuses fields that no active driver can store, and an id that is too short for journald.
pub(super) fn check_fields(
    drivers: &Drivers,
    cid: &[u8],
    tag: bool,
    labels: &[Vec<u8>],
) -> Result<(), String> {
    if drivers.journald {
        if cid.len() <= 12 {
            return Err("Container ID must be longer than 12 characters".into());
        }
        return labels.iter().try_for_each(|label| check_label(label));
    }
    if drivers.file.is_some() && tag {
        return Err("k8s-file doesn't support --log-tag".into());
    }
    if drivers.file.is_some() && !labels.is_empty() {
        return Err("k8s-file doesn't support --log-label".into());
    }
    Ok(())
}

fn check_label(label: &[u8]) -> Result<(), String> {
    let shown = String::from_utf8_lossy(label);
    if label.starts_with(b"=") {
        return Err(format!(
            "Container labels must be in format LABEL=VALUE (no LABEL present in '{shown}')"
        ));
    }
    if label.iter().filter(|byte| **byte == b'=').count() != 1 {
        return Err(format!(
            "Container labels must be in format LABEL=VALUE (none or more than one '=' present in '{shown}')"
        ));
    }
    let name = label.split(|byte| *byte == b'=').next().unwrap_or_default();
    if !name.iter().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_')) {
        return Err(format!(
            "Container label names must contain only uppercase letters, numbers and underscore (in '{shown}')"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Result<Drivers, String> {
        parse(&values.iter().map(|value| value.as_bytes().to_vec()).collect::<Vec<_>>())
    }

    fn file(path: &str) -> Drivers {
        Drivers { file: Some(path.into()), ..Drivers::default() }
    }

    #[test]
    fn paths() {
        let rows = [
            ("/p", "/p"),
            ("None", "None"),
            ("json-file", "json-file"),
            (":/p", "/p"),
            ("::/p", "/p"),
            (":journald", "journald"),
            ("k8s-file:/p", "/p"),
            ("k8s-file::/p", "/p"),
            ("k8s-file:/d/a:b.log", "/d/a:b.log"),
        ];
        for (value, path) in rows {
            assert_eq!(read(&[value]), Ok(file(path)), "{value}");
        }
    }

    #[test]
    fn keywords() {
        for value in ["none", "off:", "null:x"] {
            assert_eq!(read(&[value]), Ok(Drivers::default()), "{value}");
        }
        for value in ["journald", "journald:", "journald:x"] {
            assert_eq!(read(&[value]), Ok(Drivers { journald: true, ..Drivers::default() }), "{value}");
        }
        assert_eq!(read(&["passthrough:x"]), Ok(Drivers { passthrough: true, ..Drivers::default() }));
        let several = read(&["/a", "journald", "none", "k8s-file:/b"]).expect("valid");
        assert_eq!(several, Drivers { journald: true, ..file("/b") });
    }

    #[test]
    fn refused_values() {
        for value in ["", ":", "::"] {
            assert_eq!(read(&[value]), Err("log-path must not be empty".into()), "{value:?}");
        }
        for value in ["k8s-file", "k8s-file:", "k8s-file::"] {
            assert_eq!(read(&[value]), Err("k8s-file requires a filename".into()), "{value}");
        }
        assert_eq!(read(&["json-file:x"]), Err("No such log driver json-file".into()));
        assert_eq!(read(&["x:"]), Err("No such log driver x".into()));
        assert_eq!(read(&[]), Err("Log driver not provided. Use --log-path".into()));
    }

    #[test]
    fn fields_by_driver() {
        let id = b"0123456789abc";
        let journald = Drivers { journald: true, ..file("/l") };
        assert_eq!(check_fields(&journald, id, true, &[b"A_1=b".to_vec()]), Ok(()));
        let short = check_fields(&journald, b"0123456789ab", false, &[]);
        assert_eq!(short, Err("Container ID must be longer than 12 characters".into()));
        assert!(check_fields(&file("/l"), id, true, &[]).is_err_and(|text| text.ends_with("--log-tag")));
        let labels = [b"A=b".to_vec()];
        assert!(
            check_fields(&file("/l"), id, false, &labels).is_err_and(|text| text.ends_with("--log-label"))
        );
        for (label, text) in
            [("=x", "no LABEL"), ("A", "none or more"), ("A=b=c", "none or more"), ("a=b", "only uppercase")]
        {
            let error = check_fields(&journald, id, false, &[label.as_bytes().to_vec()]).expect_err(label);
            assert!(error.contains(text), "{error}");
        }
    }
}
