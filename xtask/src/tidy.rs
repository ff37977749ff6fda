//! House rules that neither the compiler nor clippy knows.

use std::ffi::OsString;
use std::fs;
use std::process::Command;

use anyhow::{Result, bail};

use crate::sh;

pub(crate) fn run(_args: Vec<OsString>) -> Result<()> {
    let list =
        sh::output(Command::new("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]))?;
    let mut found = Vec::new();
    for path in list.lines() {
        let Ok(text) = fs::read_to_string(path) else { continue };
        found.extend(check(path, &text));
    }
    if found.is_empty() {
        return Ok(());
    }
    bail!("{} remarks\n{}", found.len(), found.join("\n"));
}

/// What is wrong with one file, as `path:line: remark`.
fn check(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let rust = path.ends_with(".rs");
    let generated = path.starts_with("crates/proto/src/") && !path.ends_with("lib.rs");
    // A module of tests is about the module that it stands in.
    let tests = path.ends_with("/tests.rs");
    if rust && !generated && !tests && !text.starts_with("//!") && !text.starts_with("#![") {
        found.push(format!("{path}:1: the file does not start with what it is for (//!)"));
    }
    // The words are put together here so that this file does not find itself.
    let unfinished = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("FIX", "ME"),
        concat!("#[ig", "nore]"),
    ];
    let sleeps = [concat!("thread::", "sleep("), concat!("time::", "sleep(")];
    let machine =
        [concat!("/wo", "rk/"), concat!("/ro", "ot/."), concat!("../sh", "ared"), concat!(".lib", "rary/")];
    for (n, line) in text.lines().enumerate() {
        let at = || format!("{path}:{}", n + 1);
        if rust && !generated {
            for word in unfinished.iter().filter(|w| line.contains(**w)) {
                found.push(format!("{}: unfinished: {word}", at()));
            }
        }
        if path.starts_with("tests/tests/") && sleeps.iter().any(|s| line.contains(s)) && !is_poll(line) {
            found.push(format!("{}: a test waits for a condition with a deadline, not for a time", at()));
        }
        if !path.ends_with(".lock") && machine.iter().any(|m| line.contains(m)) {
            found.push(format!("{}: a path of one machine", at()));
        }
        if path.starts_with("proto/pintle/") && is_item(line) && !documented(text, n) {
            found.push(format!("{}: a message, field or value without a comment", at()));
        }
        if rust && line.ends_with(' ') {
            found.push(format!("{}: space at the end of the line", at()));
        }
    }
    found
}

/// Whether a line of a protocol file begins a message, an enum, a call, a field or a value.
fn is_item(line: &str) -> bool {
    let line = line.trim();
    let declares = ["message ", "enum ", "service ", "rpc "].iter().any(|word| line.starts_with(word));
    declares || (line.ends_with(';') && line.contains(" = ") && !line.starts_with("option "))
}

fn documented(text: &str, n: usize) -> bool {
    n > 0 && text.lines().nth(n - 1).is_some_and(|before| before.trim().starts_with("//"))
}

/// Whether a sleep is the short pause of a loop that waits for a condition: less than a tenth of a second.
fn is_poll(line: &str) -> bool {
    let millis = line.split("from_millis(").nth(1).and_then(|rest| rest.split(')').next());
    millis.and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n < 100)
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn rules() {
        assert!(check("a.rs", "//! Purpose.\nfn main() {}\n").is_empty());
        assert_eq!(check("a.rs", "fn main() {}\n").len(), 1);
        assert_eq!(check("a.rs", concat!("//! A.\nfn f() { to", "do!() }\n")).len(), 1);
        assert_eq!(check("tests/tests/a.rs", concat!("//! A.\nstd::thread::", "sleep(d);\n")).len(), 1);
        let poll = concat!("//! A.\ntokio::time::", "sleep(Duration::from_millis(20)).await;\n");
        assert!(check("tests/tests/a.rs", poll).is_empty());
        let poll = concat!("//! A.\ntokio::time::", "sleep(Duration::from_millis(200)).await;\n");
        assert_eq!(check("tests/tests/a.rs", poll).len(), 1);
        assert!(check("crates/a.rs", concat!("//! A.\nstd::thread::", "sleep(d);\n")).is_empty());
        let proto = "// A.\nmessage A {\n  // B.\n  uint32 b = 1;\n}\n";
        assert!(check("proto/pintle/a.proto", proto).is_empty());
        assert_eq!(check("proto/pintle/a.proto", &proto.replace("  // B.\n", "")).len(), 1);
        assert_eq!(check("README.md", concat!("see /wo", "rk/main\n")).len(), 1);
    }
}
