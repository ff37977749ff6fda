//! Command lines by the rules of GLib's `GOptionContext`.
//!
//! Callers of the conmon door wrote their argument vectors against those rules, and a few of them are
//! load-bearing: positional arguments are accepted anywhere and ignored (`--api-version` is a flag, yet
//! Podman passes `--api-version 1`), a value may start with `-`, and the last scalar wins. Arguments are
//! bytes: a path need not be UTF-8.

use alloc::{string::String, vec::Vec};
use core::fmt;

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing. A value given with `=` is accepted and ignored.
    Flag,
    /// One value; the last occurrence wins.
    Text,
    /// One value per occurrence; they accumulate in order.
    Array,
    /// A C `int` in any base `strtol` knows (`10`, `0x10`, `010`).
    Int,
    /// A 64-bit integer, same syntax.
    Long,
}

/// One row of an option table.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    /// Name after `--`.
    pub long: &'static str,
    /// Letter after `-`.
    pub short: Option<u8>,
    /// What it takes.
    pub kind: Kind,
    /// Under which name the value is stored: the own name, or that of the option it is an alias of.
    pub key: &'static str,
    /// One line of help; an option without is not listed.
    pub help: &'static str,
}

impl Opt {
    /// An option stored under its own name.
    pub const fn new(long: &'static str, short: Option<u8>, kind: Kind, help: &'static str) -> Self {
        Self { long, short, kind, key: long, help }
    }

    /// An unlisted second name of `key`.
    pub const fn alias(long: &'static str, kind: Kind, key: &'static str) -> Self {
        Self { long, short: None, kind, key, help: "" }
    }
}

/// Why a command line was refused. [`Display`](fmt::Display) gives GLib's text in UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// No such option; the whole argument is named, also for a bundle of letters.
    Unknown(Vec<u8>),
    /// The option is the last argument and takes a value.
    Missing(String),
    /// Two letters of one bundle both want a value.
    Bundle(String),
    /// Not an integer: value, option.
    NotInteger(Vec<u8>, String),
    /// An integer too large for the option: value, option.
    OutOfRange(Vec<u8>, String),
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(arg) => write!(f, "Unknown option {}", String::from_utf8_lossy(arg)),
            Self::Missing(name) => write!(f, "Missing argument for {name}"),
            Self::Bundle(name) => write!(f, "Error parsing option {name}"),
            Self::NotInteger(value, name) => {
                write!(f, "Cannot parse integer value “{}” for {name}", String::from_utf8_lossy(value))
            }
            Self::OutOfRange(value, name) => {
                write!(f, "Integer value “{}” for {name} out of range", String::from_utf8_lossy(value))
            }
        }
    }
}

impl core::error::Error for ParseError {}

/// What a command line asks for.
#[derive(Debug)]
pub enum Outcome {
    /// Print the usage and end; takes effect where it stands, also before a bad argument.
    Help,
    /// Every argument was read.
    Parsed(Parsed),
}

#[derive(Debug)]
enum Value {
    Flag,
    Text(Vec<u8>),
    Number(i64),
}

/// The options that were given.
#[derive(Debug, Default)]
pub struct Parsed {
    values: Vec<(&'static str, Value)>,
}

impl Parsed {
    /// Whether the flag was given.
    pub fn flag(&self, key: &str) -> bool {
        self.values.iter().any(|(name, _)| *name == key)
    }

    /// The last value of a text option.
    pub fn text(&self, key: &str) -> Option<&[u8]> {
        self.values.iter().rev().find_map(|(name, value)| match value {
            Value::Text(text) if *name == key => Some(text.as_slice()),
            _ => None,
        })
    }

    /// All values of an array option in the order given.
    pub fn array(&self, key: &str) -> Vec<Vec<u8>> {
        let texts = self.values.iter().filter_map(|(name, value)| match value {
            Value::Text(text) if *name == key => Some(text.clone()),
            _ => None,
        });
        texts.collect()
    }

    /// The last value of an integer option.
    pub fn number(&self, key: &str) -> Option<i64> {
        self.values.iter().rev().find_map(|(name, value)| match value {
            Value::Number(number) if *name == key => Some(*number),
            _ => None,
        })
    }
}

/// Reads `args` (without the program's name) by `table`.
pub fn parse(table: &[Opt], args: &[Vec<u8>]) -> Result<Outcome, ParseError> {
    let mut parsed = Parsed::default();
    let mut at = 0;
    while let Some(arg) = args.get(at) {
        if let Some(long) = arg.strip_prefix(b"--") {
            match long {
                b"" => break,
                b"help" | b"help-all" => return Ok(Outcome::Help),
                _ => at = long_option(table, args, at, long, &mut parsed)?,
            }
        } else if let Some(letters) = arg.strip_prefix(b"-").filter(|letters| !letters.is_empty()) {
            match bundle(table, args, at, letters, &mut parsed)? {
                Some(last) => at = last,
                None => return Ok(Outcome::Help),
            }
        }
        at += 1;
    }
    Ok(Outcome::Parsed(parsed))
}

/// Returns the index of the last argument that was used.
fn long_option(
    table: &[Opt],
    args: &[Vec<u8>],
    at: usize,
    long: &[u8],
    parsed: &mut Parsed,
) -> Result<usize, ParseError> {
    let split = long.iter().position(|byte| *byte == b'=');
    let (name, inline) = match split {
        Some(split) => (long.get(..split).unwrap_or(long), long.get(split + 1..)),
        None => (long, None),
    };
    let Some(opt) = table.iter().find(|opt| opt.long.as_bytes() == name) else {
        let whole = args.get(at).cloned().unwrap_or_default();
        return Err(ParseError::Unknown(whole));
    };
    let shown = alloc::format!("--{}", opt.long);
    if opt.kind == Kind::Flag {
        parsed.values.push((opt.key, Value::Flag));
        return Ok(at);
    }
    let (value, last) = match inline {
        Some(value) => (value, at),
        None => match args.get(at + 1) {
            Some(value) => (value.as_slice(), at + 1),
            None => return Err(ParseError::Missing(shown)),
        },
    };
    parsed.values.push((opt.key, read_value(opt, value, shown)?));
    Ok(last)
}

/// Reads a bundle of letters; `None` means that help was asked for.
fn bundle(
    table: &[Opt],
    args: &[Vec<u8>],
    at: usize,
    letters: &[u8],
    parsed: &mut Parsed,
) -> Result<Option<usize>, ParseError> {
    let mut last = at;
    let own_h = table.iter().any(|opt| opt.short == Some(b'h'));
    for letter in letters {
        if *letter == b'?' || (*letter == b'h' && !own_h) {
            return Ok(None);
        }
        let Some(opt) = table.iter().find(|opt| opt.short == Some(*letter)) else {
            let whole = args.get(at).cloned().unwrap_or_default();
            return Err(ParseError::Unknown(whole));
        };
        if opt.kind == Kind::Flag {
            parsed.values.push((opt.key, Value::Flag));
            continue;
        }
        let shown = alloc::format!("-{}", char::from(*letter));
        if last > at {
            return Err(ParseError::Bundle(shown));
        }
        let Some(value) = args.get(at + 1) else {
            return Err(ParseError::Missing(shown));
        };
        parsed.values.push((opt.key, read_value(opt, value, shown)?));
        last = at + 1;
    }
    Ok(Some(last))
}

fn read_value(opt: &Opt, value: &[u8], shown: String) -> Result<Value, ParseError> {
    let bounds = match opt.kind {
        Kind::Flag => return Ok(Value::Flag),
        Kind::Text | Kind::Array => return Ok(Value::Text(value.to_vec())),
        Kind::Int => i64::from(i32::MIN)..=i64::from(i32::MAX),
        Kind::Long => i64::MIN..=i64::MAX,
    };
    match strtol(value) {
        None => Err(ParseError::NotInteger(value.to_vec(), shown)),
        Some(Some(number)) if bounds.contains(&number) => Ok(Value::Number(number)),
        Some(_) => Err(ParseError::OutOfRange(value.to_vec(), shown)),
    }
}

/// C `strtol` with base 0 over the whole string: `None` if it is not an integer, `Some(None)` if it
/// does not fit in 64 bits.
fn strtol(text: &[u8]) -> Option<Option<i64>> {
    let start = text.iter().position(|byte| !matches!(byte, b' ' | b'\t'..=b'\r'))?;
    let text = text.get(start..)?;
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let (base, digits) = match digits {
        [b'0', b'x' | b'X', rest @ ..] => (16, rest),
        [b'0', rest @ ..] if !rest.is_empty() => (8, rest),
        _ => (10, digits),
    };
    if digits.is_empty() {
        return None;
    }
    let mut number: Option<i128> = Some(0);
    for digit in digits {
        let digit = char::from(*digit).to_digit(base)?;
        number = number.and_then(|number| {
            let next = number * i128::from(base) + i128::from(digit);
            // One more than the largest magnitude of an i64 is enough to know that it does not fit.
            (next <= 1 << 64).then_some(next)
        });
    }
    let signed = number.map(|number| if negative { -number } else { number });
    Some(signed.and_then(|number| i64::try_from(number).ok()))
}

/// The usage text: a synopsis and one aligned line per listed option.
pub fn usage(program: &str, summary: &str, table: &[Opt]) -> String {
    let mut text = alloc::format!(
        "Usage:\n  {program} [OPTION…] - {summary}\n\nHelp Options:\n  {:<28} {}\n\nApplication Options:\n",
        "-h, --help",
        "Show help options"
    );
    for opt in table.iter().filter(|opt| !opt.help.is_empty()) {
        let name = match opt.short {
            Some(letter) => alloc::format!("-{}, --{}", char::from(letter), opt.long),
            None => alloc::format!("--{}", opt.long),
        };
        text.push_str(&alloc::format!("  {name:<28} {}\n", opt.help));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{string::ToString, vec};
    use proptest::prelude::*;

    const TABLE: &[Opt] = &[
        Opt::new("api-version", None, Kind::Flag, "api"),
        Opt::new("cid", Some(b'c'), Kind::Text, "id"),
        Opt::new("terminal", Some(b't'), Kind::Flag, "tty"),
        Opt::new("timeout", Some(b'T'), Kind::Int, "seconds"),
        Opt::new("log-size-max", None, Kind::Long, "bytes"),
        Opt::new("runtime-opt", None, Kind::Array, "option"),
        Opt::alias("restore-arg", Kind::Array, "runtime-opt"),
    ];

    fn read(args: &[&str]) -> Result<Parsed, String> {
        let args: Vec<Vec<u8>> = args.iter().map(|arg| arg.as_bytes().to_vec()).collect();
        match parse(TABLE, &args) {
            Ok(Outcome::Parsed(parsed)) => Ok(parsed),
            Ok(Outcome::Help) => Err("help".to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_positional_argument_is_ignored_anywhere() {
        let parsed = read(&["--api-version", "1", "x", "-", "--cid", "a", "y"]).expect("parses");
        assert!(parsed.flag("api-version"));
        assert_eq!(parsed.text("cid"), Some(&b"a"[..]));
    }

    #[test]
    fn a_value_may_look_like_an_option_and_may_be_empty() {
        let parsed =
            read(&["--cid", "-u", "--runtime-opt", "", "--runtime-opt=--x=y", "--restore-arg", "--"]);
        let parsed = parsed.expect("parses");
        assert_eq!(parsed.text("cid"), Some(&b"-u"[..]));
        assert_eq!(parsed.array("runtime-opt"), vec![b"".to_vec(), b"--x=y".to_vec(), b"--".to_vec()]);
    }

    #[test]
    fn the_last_scalar_wins_and_a_double_dash_ends() {
        let parsed = read(&["-c", "a", "--cid=b", "--timeout", "1", "-T", "2", "--", "--cid", "c"]);
        let parsed = parsed.expect("parses");
        assert_eq!(parsed.text("cid"), Some(&b"b"[..]));
        assert_eq!(parsed.number("timeout"), Some(2));
    }

    #[test]
    fn bundles_take_one_value_from_the_next_argument() {
        for bundle in ["-tc", "-ct"] {
            let parsed = read(&[bundle, "x"]).expect("parses");
            assert!(parsed.flag("terminal"));
            assert_eq!(parsed.text("cid"), Some(&b"x"[..]));
        }
        assert_eq!(read(&["-cfoo", "v"]).unwrap_err(), "Unknown option -cfoo");
        assert_eq!(read(&["-cfoo"]).unwrap_err(), "Missing argument for -c");
        assert_eq!(read(&["-c=foo", "v"]).unwrap_err(), "Unknown option -c=foo".to_string());
        assert_eq!(read(&["-cT", "1"]).unwrap_err(), "Error parsing option -T".to_string());
    }

    #[test]
    fn a_flag_ignores_its_value() {
        assert!(read(&["--api-version=0"]).expect("parses").flag("api-version"));
    }

    #[test]
    fn help_takes_effect_where_it_stands() {
        assert_eq!(read(&["--help", "--bogus"]).unwrap_err(), "help");
        assert_eq!(read(&["-t?"]).unwrap_err(), "help");
        assert_eq!(read(&["--bogus", "--help"]).unwrap_err(), "Unknown option --bogus");
    }

    #[test]
    fn integers_follow_strtol() {
        for (text, number) in [("0x10", 16), ("010", 8), ("-1", -1), (" +7", 7), ("0", 0)] {
            assert_eq!(read(&["-T", text]).expect("parses").number("timeout"), Some(number), "{text}");
        }
        assert_eq!(
            read(&["--timeout", "abc"]).unwrap_err(),
            "Cannot parse integer value “abc” for --timeout"
        );
        for bad in ["", "1x", "0x", "08", "-", " "] {
            assert!(read(&["-T", bad]).unwrap_err().starts_with("Cannot parse"), "{bad:?}");
        }
        assert_eq!(
            read(&["-T", "99999999999"]).unwrap_err(),
            "Integer value “99999999999” for -T out of range"
        );
        let long = read(&["--log-size-max", "99999999999"]).expect("parses");
        assert_eq!(long.number("log-size-max"), Some(99_999_999_999));
        let huge = "9".repeat(400);
        assert!(read(&["--log-size-max", &huge]).unwrap_err().ends_with("out of range"));
        let least = read(&["--log-size-max", "-9223372036854775808"]).expect("parses");
        assert_eq!(least.number("log-size-max"), Some(i64::MIN));
    }

    #[test]
    fn a_missing_value_is_named_as_given() {
        assert_eq!(read(&["--cid"]).unwrap_err(), "Missing argument for --cid");
        assert_eq!(read(&["-c"]).unwrap_err(), "Missing argument for -c");
    }

    #[test]
    fn the_usage_lists_every_option_with_help() {
        let text = usage("conmon", "conmon utility", TABLE);
        assert!(text.contains("  -c, --cid                    id\n"), "{text}");
        assert!(!text.contains("restore-arg"));
    }

    proptest! {
        #[test]
        fn any_arguments_give_an_answer(args in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..12)) {
            let _ = parse(TABLE, &args);
        }

        #[test]
        fn integers_agree_with_the_standard_library(number in any::<i64>()) {
            prop_assert_eq!(strtol(number.to_string().as_bytes()), Some(Some(number)));
            let hex = alloc::format!("0x{:x}", number.unsigned_abs());
            let expected = i64::try_from(number.unsigned_abs()).ok();
            prop_assert_eq!(strtol(hex.as_bytes()), Some(expected));
        }
    }
}
