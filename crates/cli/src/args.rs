//! Values of arguments: ids, signals, sizes, durations.

use std::ffi::OsString;
use std::fmt::Display;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use lexopt::prelude::*;

/// A mistake in how the command was called.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// An error about how the command was called.
pub(crate) fn usage(what: impl Display) -> anyhow::Error {
    anyhow!(Usage(what.to_string()))
}

/// The help of a command was asked for: it is printed and the command ends with 0.
#[derive(Debug)]
pub(crate) struct Help(pub(crate) &'static str);

impl Display for Help {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Help {}

/// Ends an argument loop: help, or an argument that nobody knows.
pub(crate) fn unknown(arg: lexopt::Arg<'_>, help: &'static str) -> anyhow::Error {
    match arg {
        Short('h') | Long("help") => anyhow!(Help(help)),
        other => usage(other.unexpected()),
    }
}

/// UTF-8 text.
pub(crate) fn text(value: OsString) -> Result<String> {
    value.into_string().map_err(|v| usage(format!("{} is not UTF-8", v.to_string_lossy())))
}

/// Checks an id before it becomes the name of a directory.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_.-+".contains(c);
    if id.is_empty() || id.len() > 128 || !id.chars().all(good) || id.starts_with(['.', '-', '+']) {
        bail!(
            "bad id {id:?}: letters, digits and _ . - + are allowed, at most 128, not beginning with . - +"
        );
    }
    Ok(())
}

/// The only id in `ids`.
pub(crate) fn one_id(ids: Vec<String>) -> Result<String> {
    match <[String; 1]>::try_from(ids) {
        Ok([id]) => Ok(id),
        Err(ids) if ids.is_empty() => Err(usage("the id of a container is missing")),
        Err(ids) => Err(usage(format!("one id is wanted, not {}", ids.len()))),
    }
}

/// A variable of the environment as `NAME=VALUE`; a name alone stands for our own value. None if we have none.
pub(crate) fn variable(value: String) -> Result<Option<String>> {
    match value.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(Some(value)),
        None if !value.is_empty() => Ok(std::env::var(&value).ok().map(|own| format!("{value}={own}"))),
        _ => Err(usage(format!("{value:?} is not NAME=VALUE"))),
    }
}

/// A signal by number, by name, with or without `SIG`.
pub(crate) fn signal(value: &str) -> Result<i32> {
    if let Ok(n) = value.parse::<i32>() {
        if (1..=64).contains(&n) {
            return Ok(n);
        }
        return Err(usage(format!("no signal has the number {n}")));
    }
    let upper = value.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(n) = name.strip_prefix("RTMIN+").and_then(|n| n.parse::<i32>().ok()) {
        if (0..=30).contains(&n) {
            return Ok(34 + n);
        }
    }
    let full = format!("SIG{name}");
    full.parse::<nix::sys::signal::Signal>()
        .map(|s| s as i32)
        .map_err(|_| usage(format!("unknown signal {value}")))
}

/// The name of a signal, or its number.
pub(crate) fn signal_name(n: i32) -> String {
    nix::sys::signal::Signal::try_from(n).map_or_else(|_| n.to_string(), |s| s.as_str().to_string())
}

/// Bytes, with an optional binary unit: `20M`, `1GiB`.
pub(crate) fn bytes(value: &str) -> Result<u64> {
    let wrong = || usage(format!("{value} is not a size; write it like 1048576, 64k, 20M or 1G"));
    let lower = value.to_ascii_lowercase();
    let number = lower.trim_end_matches("ib").trim_end_matches('b');
    let (digits, unit) = match number.chars().last() {
        Some('k') => (&number[..number.len() - 1], 1 << 10),
        Some('m') => (&number[..number.len() - 1], 1 << 20),
        Some('g') => (&number[..number.len() - 1], 1 << 30),
        Some('t') => (&number[..number.len() - 1], 1u64 << 40),
        _ => (number, 1),
    };
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(wrong)
}

/// A time span: seconds, or with a unit `ms`, `s`, `m`, `h`.
pub(crate) fn duration(value: &str) -> Result<Duration> {
    let wrong = || usage(format!("{value} is not a time span; write it like 10, 1.5s, 500ms, 2m or 1h"));
    let at = value.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(value.len());
    let factor = match &value[at..] {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = value[..at].parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * factor).map_err(|_| wrong())
}

/// A number of CPUs such as `1.5` as quota and period in microseconds.
pub(crate) fn cpus(value: &str) -> Result<(i64, u64)> {
    let n: f64 = value.parse().unwrap_or(-1.0);
    if !(0.01..=10_000.0).contains(&n) {
        return Err(usage(format!("{value} is not a number of CPUs, such as 0.5 or 2")));
    }
    Ok(((n * 100_000.0).round() as i64, 100_000))
}

#[cfg(test)]
#[expect(unreachable_pub, reason = "the fuzz crates share the file")]
#[expect(dead_code, reason = "this crate has no targets of its own")]
#[path = "../../core/fuzz/src/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is typed is a value in its range, or an error that names it: the words of the client's fuzz target, and
    /// mutations of them.
    #[test]
    fn any_word_is_a_value_or_an_error() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/fuzz/corpus");
        let target = |data: &[u8]| {
            let word = String::from_utf8_lossy(data).into_owned();
            let named = |error: anyhow::Error| assert!(!error.to_string().is_empty());
            let _ = duration(&word).map_err(named);
            let _ = bytes(&word).map_err(named);
            match signal(&word) {
                Ok(number) => assert!((1..=64).contains(&number) && !signal_name(number).is_empty()),
                Err(error) => named(error),
            }
            match cpus(&word) {
                Ok((quota, period)) => assert!(quota > 0 && period > 0),
                Err(error) => named(error),
            }
            if check_id(&word).is_ok() {
                assert!(!word.is_empty() && !word.contains('/') && !word.starts_with('.'));
            }
            if let Ok(Some(variable)) = variable(word) {
                assert!(variable.contains('=') && !variable.starts_with('='));
            }
        };
        super::replay::replay(&corpus, "words", target, 5_000);
    }

    #[test]
    fn values() {
        assert_eq!(signal("TERM").unwrap(), 15);
        assert_eq!(signal("sigkill").unwrap(), 9);
        assert_eq!(signal("64").unwrap(), 64);
        assert_eq!(signal("RTMIN+1").unwrap(), 35);
        assert!(signal("0").is_err() && signal("65").is_err() && signal("NOPE").is_err());
        assert_eq!(bytes("20M").unwrap(), 20 << 20);
        assert_eq!(bytes("1GiB").unwrap(), 1 << 30);
        assert_eq!(bytes("7").unwrap(), 7);
        assert!(bytes("x").is_err() && bytes("").is_err() && bytes("99999999999T").is_err());
        assert_eq!(duration("1.5").unwrap(), Duration::from_millis(1500));
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("2m").unwrap(), Duration::from_secs(120));
        assert!(duration("-1").is_err() && duration("1d").is_err() && duration("").is_err());
        assert_eq!(cpus("0.5").unwrap(), (50_000, 100_000));
        assert!(cpus("0").is_err() && cpus("many").is_err());
        assert_eq!(variable("A=b=c".into()).unwrap().as_deref(), Some("A=b=c"));
        assert_eq!(variable("PATH".into()).unwrap(), std::env::var("PATH").ok().map(|v| format!("PATH={v}")));
        assert_eq!(variable("PINTLE_NOT_SET_ANYWHERE".into()).unwrap(), None);
        assert!(variable("=x".into()).is_err() && variable(String::new()).is_err());
        assert!(check_id("web-1").is_ok() && check_id("../x").is_err() && check_id(".x").is_err());
        assert!(check_id("").is_err() && check_id(&"x".repeat(129)).is_err());
    }
}
