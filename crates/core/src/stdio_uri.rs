//! What containerd writes in the stdout field of a process: the path of a FIFO or file, or a URI.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Where output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Nowhere.
    Null,
    /// A FIFO or a file, by path.
    Path(String),
    /// `file://`: a file that gets both streams, raw.
    File(String),
    /// `binary://`: a program that reads both streams.
    Binary {
        /// The program.
        path: String,
        /// Its arguments: each key and the first value of it.
        args: Vec<String>,
        /// `binary-v2`: a program that ends before it says that it is ready is an error.
        strict: bool,
    },
}

/// Why a value was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// No such scheme.
    #[error("unknown STDIO scheme {0}")]
    Scheme(String),
    /// A URI without a path.
    #[error("no path in {0:?}")]
    NoPath(String),
    /// A `%` that is not followed by two hexadecimal digits.
    #[error("invalid escape in {0:?}")]
    Escape(String),
}

fn decode(text: &str, plus: bool) -> Result<String, UriError> {
    let bad = || UriError::Escape(text.to_string());
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                let mut digit = || bytes.next().and_then(|d| char::from(d).to_digit(16)).ok_or_else(bad);
                let value = digit()? * 16 + digit()?;
                out.push((value & 0xff) as u8);
            }
            b'+' if plus => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).map_err(|_| bad())
}

/// Understands one value.
pub fn parse(text: &str) -> Result<Target, UriError> {
    if text.is_empty() {
        return Ok(Target::Null);
    }
    let Some((scheme, rest)) = text.split_once("://") else { return Ok(Target::Path(text.to_string())) };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = decode(path, false)?;
    if !matches!(scheme, "fifo" | "file" | "binary" | "binary-v2") {
        return Err(UriError::Scheme(scheme.to_string()));
    }
    if path.is_empty() {
        return Err(UriError::NoPath(text.to_string()));
    }
    match scheme {
        "fifo" => Ok(Target::Path(path)),
        "file" => Ok(Target::File(path)),
        _ => {
            let mut args: Vec<String> = Vec::new();
            let mut seen: Vec<String> = Vec::new();
            for pair in query.split('&').filter(|p| !p.is_empty()) {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let key = decode(key, true)?;
                if seen.contains(&key) {
                    continue;
                }
                args.push(key.clone());
                args.push(decode(value, true)?);
                seen.push(key);
            }
            Ok(Target::Binary { path, args, strict: scheme == "binary-v2" })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn forms() {
        assert_eq!(parse(""), Ok(Target::Null));
        assert_eq!(parse("/run/x"), Ok(Target::Path("/run/x".into())));
        assert_eq!(parse("fifo:///run/x"), Ok(Target::Path("/run/x".into())));
        assert_eq!(parse("file:///a%20b?x=1"), Ok(Target::File("/a b".into())));
        assert_eq!(
            parse("binary:///bin/l?a=1&b=&a=2&c=x+y%26"),
            Ok(Target::Binary {
                path: "/bin/l".into(),
                args: vec!["a".into(), "1".into(), "b".into(), "".into(), "c".into(), "x y&".into()],
                strict: false
            })
        );
        assert_eq!(parse("http://x/"), Err(UriError::Scheme("http".into())));
        assert!(matches!(parse("file://"), Err(UriError::NoPath(_))));
        assert!(matches!(parse("file:///%f"), Err(UriError::Escape(_))));
    }

    proptest! {
        #[test]
        fn never_panics(text in "(file|binary|fifo|x)?(://)?[a-z%?&=+/\\PC]{0,30}") {
            let _ = parse(&text);
        }
    }
}
