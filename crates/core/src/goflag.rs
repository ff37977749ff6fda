//! Command lines as Go's `flag` package reads them: `-x v`, `--x v`, `-x=v`, booleans without a value, and the
//! first word that is no flag ends the flags.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A flag the program knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// True if it takes no value of its own (`-x`, but also `-x=false`).
    pub boolean: bool,
}

/// A command line taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Flags with their values in order; a boolean has `true` or `false`.
    pub flags: Vec<(&'static str, String)>,
    /// The words after the flags.
    pub rest: Vec<String>,
}

impl Parsed {
    /// The last value given for a flag.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.flags.iter().rev().find(|(n, _)| *n == name).map(|(_, v)| v.as_str())
    }

    /// Whether a boolean flag is on.
    pub fn is_set(&self, name: &str) -> bool {
        self.get(name) == Some("true")
    }
}

/// Why a command line was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// Nobody knows this flag.
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    /// The value is missing.
    #[error("flag needs an argument: -{0}")]
    NoValue(String),
    /// A boolean flag got something else.
    #[error("invalid boolean value {value:?} for -{name}")]
    NotBoolean {
        /// The flag.
        name: String,
        /// What it got.
        value: String,
    },
    /// A word such as `--=x`.
    #[error("bad flag syntax: {0}")]
    Syntax(String),
}

/// Takes a command line (without the program's name) apart.
pub fn parse(known: &[Flag], args: &[String]) -> Result<Parsed, FlagError> {
    let mut out = Parsed::default();
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let Some(body) = word.strip_prefix('-').filter(|b| !b.is_empty()) else {
            out.rest.push(word.clone());
            break;
        };
        let body = body.strip_prefix('-').unwrap_or(body);
        if body.is_empty() {
            break; // "--" ends the flags and is dropped
        }
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        if name.is_empty() || name.starts_with('-') {
            return Err(FlagError::Syntax(word.clone()));
        }
        let flag =
            known.iter().find(|f| f.name == name).ok_or_else(|| FlagError::Unknown(name.to_string()))?;
        let value = match (flag.boolean, inline) {
            (true, None) => "true".to_string(),
            (true, Some(text)) => boolean(name, text)?.to_string(),
            (false, Some(text)) => text.to_string(),
            (false, None) => words.next().ok_or_else(|| FlagError::NoValue(name.to_string()))?.clone(),
        };
        out.flags.push((flag.name, value));
    }
    out.rest.extend(words.cloned());
    Ok(out)
}

fn boolean(name: &str, text: &str) -> Result<bool, FlagError> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(FlagError::NotBoolean { name: name.to_string(), value: other.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KNOWN: &[Flag] = &[
        Flag { name: "id", boolean: false },
        Flag { name: "address", boolean: false },
        Flag { name: "debug", boolean: true },
    ];

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn forms() {
        let p = parse(KNOWN, &words(&["-id", "a", "--address", "", "-debug", "start", "-id", "b"])).unwrap();
        assert_eq!((p.get("id"), p.get("address"), p.is_set("debug")), (Some("a"), Some(""), true));
        assert_eq!(p.rest, ["start", "-id", "b"]);
        let p = parse(KNOWN, &words(&["--id=a=b", "-debug=false", "--", "-x"])).unwrap();
        assert_eq!((p.get("id"), p.is_set("debug")), (Some("a=b"), false));
        assert_eq!(p.rest, ["-x"]);
        assert_eq!(parse(KNOWN, &words(&["-nope"])), Err(FlagError::Unknown("nope".into())));
        assert_eq!(parse(KNOWN, &words(&["-id"])), Err(FlagError::NoValue("id".into())));
        assert!(matches!(parse(KNOWN, &words(&["-debug=x"])), Err(FlagError::NotBoolean { .. })));
        assert!(matches!(parse(KNOWN, &words(&["--=x"])), Err(FlagError::Syntax(_))));
        assert_eq!(parse(KNOWN, &words(&["-"])).unwrap().rest, ["-"]);
    }

    proptest! {
        #[test]
        fn never_panics(args in proptest::collection::vec("[-=a-z\\PC]{0,12}", 0..6)) {
            let _ = parse(KNOWN, &args);
        }
    }
}
