//! Messages on the sync and attach pipes of a conmon caller.
//!
//! One JSON object and a newline per message, with exactly one space after `:` and `,`: callers read up
//! to the first newline or decode the first value, and some compare text.

use alloc::{string::String, vec::Vec};

/// The largest text that goes into one message, in bytes before escaping.
///
/// Callers read the object as one packet or line; the cap keeps it far below a socket's buffer also when
/// every byte is escaped. The end of a long text is kept, since a runtime's reason stands there.
pub const MESSAGE_MAX: usize = 8191;

/// Under which name the number is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// `--api-version`: every number.
    Data,
    /// Without it: the exit code of an exec session.
    ExitCode,
    /// Without it: the pid of a container.
    Pid,
}

impl Key {
    /// The key by mode.
    pub fn of(api_version: bool, exec: bool) -> Self {
        match (api_version, exec) {
            (true, _) => Self::Data,
            (false, true) => Self::ExitCode,
            (false, false) => Self::Pid,
        }
    }

    /// Its spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::ExitCode => "exit_code",
            Self::Pid => "pid",
        }
    }
}

/// Encodes one message; an empty `message` is left out.
pub fn encode(key: Key, number: i64, message: &[u8]) -> Vec<u8> {
    let mut out = alloc::format!("{{\"{}\": {number}", key.as_str()).into_bytes();
    if !message.is_empty() {
        out.extend_from_slice(b", \"message\": \"");
        escape(tail(message), &mut out);
        out.push(b'"');
    }
    out.extend_from_slice(b"}\n");
    out
}

/// The last [`MESSAGE_MAX`] bytes, from the start of a character.
fn tail(message: &[u8]) -> &[u8] {
    let mut start = message.len().saturating_sub(MESSAGE_MAX);
    while start > 0 && message.get(start).is_some_and(|byte| byte & 0xc0 == 0x80) {
        start += 1;
    }
    message.get(start..).unwrap_or_default()
}

/// Bytes that are not UTF-8 become U+FFFD: JSON has no other way to carry them.
fn escape(text: &[u8], out: &mut Vec<u8>) {
    for character in String::from_utf8_lossy(text).chars() {
        match character {
            '\\' => out.extend_from_slice(b"\\\\"),
            '"' => out.extend_from_slice(b"\\\""),
            '/' => out.extend_from_slice(b"\\/"),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            '\u{8}' => out.extend_from_slice(b"\\b"),
            '\u{c}' => out.extend_from_slice(b"\\f"),
            '\0'..='\u{1f}' | '\u{7f}' => {
                out.extend_from_slice(alloc::format!("\\u{:04x}", character as u32).as_bytes());
            }
            _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_spelling_is_exact() {
        assert_eq!(encode(Key::of(true, false), 42, b""), b"{\"data\": 42}\n");
        assert_eq!(encode(Key::of(true, true), 0, b""), b"{\"data\": 0}\n");
        assert_eq!(encode(Key::of(false, true), 7, b""), b"{\"exit_code\": 7}\n");
        assert_eq!(encode(Key::of(false, false), 42, b""), b"{\"pid\": 42}\n");
        let timed_out = encode(Key::ExitCode, -1, b"command timed out");
        assert_eq!(timed_out, b"{\"exit_code\": -1, \"message\": \"command timed out\"}\n");
    }

    #[test]
    fn control_bytes_are_escaped() {
        let text = b"a\\b\"c/d\n\r\t\x08\x0c\x01\x7f\xc3\xa9\xff";
        let expected =
            "{\"pid\": -1, \"message\": \"a\\\\b\\\"c\\/d\\n\\r\\t\\b\\f\\u0001\\u007fé\u{fffd}\"}\n";
        assert_eq!(encode(Key::Pid, -1, text), expected.as_bytes());
    }

    #[test]
    fn the_end_of_a_long_text_is_kept() {
        let mut text = "é".repeat(10_000).into_bytes();
        text.extend_from_slice(b"the reason");
        let message = encode(Key::Pid, -1, &text);
        assert!(message.ends_with(b"the reason\"}\n"));
        assert!(message.len() < MESSAGE_MAX + 64);
        assert!(!String::from_utf8_lossy(&message).contains('\u{fffd}'));
    }

    proptest! {
        #[test]
        fn every_message_is_one_line_of_json(text in proptest::collection::vec(any::<u8>(), 0..300), number in any::<i64>()) {
            let message = encode(Key::Data, number, &text);
            let (line, rest) = message.split_at(message.len() - 1);
            prop_assert_eq!(rest, b"\n");
            prop_assert!(!line.contains(&b'\n'));
            let value: serde_json::Value = serde_json::from_slice(line).expect("valid JSON");
            prop_assert_eq!(value["data"].as_i64(), Some(number));
            if !text.is_empty() {
                let expected = String::from_utf8_lossy(&text);
                prop_assert_eq!(value["message"].as_str(), Some(expected.as_ref()));
            }
        }
    }
}
