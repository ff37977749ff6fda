//! The native protocol of systemd-journald: one datagram of fields per record.
//!
//! A value without line feed travels as `NAME=VALUE`, any other one with its length in front, so content is verbatim.

use crate::line::Stream;
use alloc::vec::Vec;

/// What a container's records have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalConfig {
    /// Full container id.
    pub id: Vec<u8>,
    /// `CONTAINER_NAME`.
    pub name: Option<Vec<u8>>,
    /// `CONTAINER_TAG`.
    pub tag: Option<Vec<u8>>,
    /// Further fields as `NAME=VALUE`, in order.
    pub labels: Vec<Vec<u8>>,
    /// Do not mark partial records with `CONTAINER_PARTIAL_MESSAGE`.
    pub no_partial_marker: bool,
    /// Take the priority of a line from a prefix like `<3>`. Off by default: Podman's reader knows 6 and 3 only.
    pub priority_prefix: bool,
}

/// Encodes records of one container; the constant fields are encoded once.
#[derive(Clone, Debug)]
pub struct JournalEncoder {
    full_id: Vec<u8>,
    identity: Vec<u8>,
    labels: Vec<u8>,
    marker: bool,
    prefix: bool,
}

impl JournalEncoder {
    /// Prepares the constant fields.
    pub fn new(config: &JournalConfig) -> Self {
        let short = config.id.get(..12).unwrap_or(&config.id);
        let (mut full_id, mut identity, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        push_field(&mut full_id, b"CONTAINER_ID_FULL", &config.id);
        push_field(&mut identity, b"CONTAINER_ID", short);
        if let Some(tag) = &config.tag {
            push_field(&mut identity, b"CONTAINER_TAG", tag);
        }
        if let Some(name) = &config.name {
            push_field(&mut identity, b"CONTAINER_NAME", name);
        }
        let identifier = config.tag.as_deref().or(config.name.as_deref()).unwrap_or(short);
        push_field(&mut identity, b"SYSLOG_IDENTIFIER", identifier);
        for label in &config.labels {
            let at = memchr::memchr(b'=', label).unwrap_or(label.len());
            push_field(
                &mut labels,
                label.get(..at).unwrap_or_default(),
                label.get(at + 1..).unwrap_or_default(),
            );
        }
        Self { full_id, identity, labels, marker: !config.no_partial_marker, prefix: config.priority_prefix }
    }

    /// Appends the datagram of one record to `out`. `fresh` says that the line begins in this read, so that a
    /// priority prefix counts.
    pub fn encode(&self, out: &mut Vec<u8>, stream: Stream, line: &[u8], complete: bool, fresh: bool) {
        let mut priority = match stream {
            Stream::Stdout => b'6',
            Stream::Stderr => b'3',
        };
        let mut message = line;
        if let (true, true, [b'<', digit @ b'0'..=b'7', b'>', rest @ ..]) = (self.prefix, fresh, line) {
            (priority, message) = (*digit, rest);
        }
        push_field(out, b"MESSAGE", message);
        out.extend_from_slice(&self.full_id);
        push_field(out, b"PRIORITY", &[priority]);
        out.extend_from_slice(&self.identity);
        if !complete && self.marker {
            push_field(out, b"CONTAINER_PARTIAL_MESSAGE", b"true");
        }
        out.extend_from_slice(&self.labels);
    }
}

fn push_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    if memchr::memchr(b'\n', value).is_some() {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// The datagram is cut short or has a field without name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed journal datagram at byte {at}")]
pub struct JournalError {
    /// Where.
    pub at: usize,
}

/// Name and value.
pub type Field<'a> = (&'a [u8], &'a [u8]);

/// Reads the fields of a datagram as names and values, in order.
///
/// # Errors
/// [`JournalError`] if a length does not fit or a field is not ended.
pub fn fields(datagram: &[u8]) -> Result<Vec<Field<'_>>, JournalError> {
    let mut out = Vec::new();
    let mut at = 0usize;
    while let Some(rest) = datagram.get(at..).filter(|rest| !rest.is_empty()) {
        let error = JournalError { at };
        let name_len = memchr::memchr2(b'=', b'\n', rest).ok_or(error)?;
        let (name, tail) = rest.split_at(name_len);
        let (value, used) = match tail.split_first() {
            Some((b'=', tail)) => {
                let len = memchr::memchr(b'\n', tail).ok_or(error)?;
                (tail.get(..len).ok_or(error)?, len + 1)
            }
            Some((_, tail)) => {
                let (len, tail) = tail.split_first_chunk::<8>().ok_or(error)?;
                let len = usize::try_from(u64::from_le_bytes(*len)).map_err(|_| error)?;
                let value = tail.get(..len).ok_or(error)?;
                if tail.get(len) != Some(&b'\n') {
                    return Err(error);
                }
                (value, len + 9)
            }
            None => return Err(error),
        };
        if name.is_empty() {
            return Err(error);
        }
        out.push((name, value));
        at += name_len + 1 + used;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::String;
    use std::vec;

    fn check(config: &JournalConfig, line: &[u8], complete: bool, fresh: bool, expected: &[(&str, &str)]) {
        let mut out = Vec::new();
        JournalEncoder::new(config).encode(&mut out, Stream::Stdout, line, complete, fresh);
        let got: Vec<_> = fields(&out)
            .unwrap()
            .into_iter()
            .map(|(n, v)| (String::from_utf8_lossy(n).into_owned(), String::from_utf8_lossy(v).into_owned()))
            .collect();
        let want: Vec<_> = expected.iter().map(|(n, v)| (String::from(*n), String::from(*v))).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn all_fields_in_order() {
        let config = JournalConfig {
            id: b"0123456789abcdef".to_vec(),
            name: Some(b"web".to_vec()),
            tag: Some(b"t".to_vec()),
            labels: vec![b"A=1".to_vec(), b"B_2=x y".to_vec()],
            ..JournalConfig::default()
        };
        check(
            &config,
            b"hello\n",
            true,
            true,
            &[
                ("MESSAGE", "hello\n"),
                ("CONTAINER_ID_FULL", "0123456789abcdef"),
                ("PRIORITY", "6"),
                ("CONTAINER_ID", "0123456789ab"),
                ("CONTAINER_TAG", "t"),
                ("CONTAINER_NAME", "web"),
                ("SYSLOG_IDENTIFIER", "t"),
                ("A", "1"),
                ("B_2", "x y"),
            ],
        );
    }

    #[test]
    fn partial_and_priority() {
        let mut config = JournalConfig { id: b"0123456789abcdef".to_vec(), ..JournalConfig::default() };
        let tail = [
            ("CONTAINER_ID_FULL", "0123456789abcdef"),
            ("PRIORITY", "6"),
            ("CONTAINER_ID", "0123456789ab"),
            ("SYSLOG_IDENTIFIER", "0123456789ab"),
        ];
        let with = |message, more: &[(&'static str, &'static str)]| {
            [&[("MESSAGE", message)], &tail[..], more].concat()
        };
        check(&config, b"<4>x", false, true, &with("<4>x", &[("CONTAINER_PARTIAL_MESSAGE", "true")]));
        config.no_partial_marker = true;
        check(&config, b"x", false, true, &with("x", &[]));
        config.priority_prefix = true;
        check(&config, b"<6>x\n", true, true, &with("x\n", &[]));
        check(&config, b"<4>x\n", true, false, &with("<4>x\n", &[]));
        check(&config, b"<9>x\n", true, true, &with("<9>x\n", &[]));
    }

    #[test]
    fn wire_form() {
        let mut out = Vec::new();
        push_field(&mut out, b"M", b"a\n");
        push_field(&mut out, b"P", b"6");
        assert_eq!(out, b"M\n\x02\0\0\0\0\0\0\0a\n\nP=6\n");
    }

    proptest! {
        #[test]
        fn any_line_round_trips(line in proptest::collection::vec(any::<u8>(), 0..500), id in proptest::collection::vec(any::<u8>(), 0..70)) {
            let mut out = Vec::new();
            JournalEncoder::new(&JournalConfig { id, ..JournalConfig::default() }).encode(&mut out, Stream::Stderr, &line, false, true);
            let fields = fields(&out).unwrap();
            prop_assert_eq!(fields[0], (&b"MESSAGE"[..], &line[..]));
            prop_assert_eq!(fields[2], (&b"PRIORITY"[..], &b"3"[..]));
        }

        #[test]
        fn reading_never_panics(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = fields(&data);
        }
    }
}
