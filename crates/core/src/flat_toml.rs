//! The little of TOML that runtime option tables are made of: `Key = value`, where the value is a string, a boolean
//! or a whole number. Table headers are skipped, and values of other kinds are left out.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `"text"` or `'text'`.
    Text(String),
    /// `true` or `false`.
    Bool(bool),
    /// A decimal number.
    Number(i64),
}

/// The pairs of a document in order.
pub fn pairs(text: &str) -> Vec<(String, Value)> {
    text.lines().filter_map(pair).collect()
}

fn pair(line: &str) -> Option<(String, Value)> {
    let line = line.trim();
    if line.starts_with('#') || line.starts_with('[') {
        return None;
    }
    let (key, rest) = line.split_once('=')?;
    let key = key.trim().trim_matches('"').to_string();
    let rest = rest.trim_start();
    let value = if let Some(body) = rest.strip_prefix('\'') {
        Value::Text(body.split_once('\'')?.0.to_string())
    } else if let Some(body) = rest.strip_prefix('"') {
        Value::Text(basic_string(body)?)
    } else {
        match rest.split('#').next().unwrap_or_default().trim() {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            number => Value::Number(number.parse().ok()?),
        }
    };
    Some((key, value))
}

fn basic_string(body: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = body.chars();
    loop {
        match chars.next()? {
            '"' => return Some(out),
            '\\' => out.push(match chars.next()? {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                same @ ('"' | '\\') => same,
                _ => return None,
            }),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn values() {
        let doc = "# c\n[options]\n BinaryName = \"/bin/r\\\"x\" # c\nRoot='/a'\nSystemdCgroup = true\nIoUid = 12 # c\nX = [1]\n";
        assert_eq!(
            pairs(doc),
            vec![
                ("BinaryName".into(), Value::Text("/bin/r\"x".into())),
                ("Root".into(), Value::Text("/a".into())),
                ("SystemdCgroup".into(), Value::Bool(true)),
                ("IoUid".into(), Value::Number(12)),
            ]
        );
    }

    proptest! {
        #[test]
        fn never_panics(text in "[a-z=\"'\\\\\\n\\[\\]#\\PC]{0,60}") {
            let _ = pairs(&text);
        }
    }
}
