//! Reading k8s-file (CRI) logs: strict about every byte of the format.

use std::path::Path;

/// One record: `TIME STREAM TAG PAYLOAD\n`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// RFC 3339 with nine digits of fraction and a numeric offset.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Tag `P`: the line goes on in the stream's next record.
    pub partial: bool,
    /// What the container wrote, without the newline that ended it.
    pub payload: Vec<u8>,
}

/// Reads all records.
///
/// # Errors
/// Says which line is not a record and why.
pub fn parse_cri(mut log: &[u8]) -> Result<Vec<Record>, String> {
    let mut records = Vec::new();
    while !log.is_empty() {
        let n = records.len() + 1;
        let end = log.iter().position(|b| *b == b'\n').ok_or(format!("record {n} does not end"))?;
        let line = &log[..end];
        log = &log[end + 1..];
        let shown = || String::from_utf8_lossy(&line[..line.len().min(120)]).into_owned();
        let mut parts = line.splitn(4, |b| *b == b' ');
        let mut part = |what: &str| parts.next().ok_or(format!("record {n} has no {what}: {}", shown()));
        let time = String::from_utf8_lossy(part("time")?).into_owned();
        let stream = String::from_utf8_lossy(part("stream")?).into_owned();
        let tag = part("tag")?;
        let payload = part("payload")?.to_vec();
        // 2026-11-27T02:42:00.123456789+00:00
        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        if shape.replace('-', "+") != "0000+00+00T00:00:00.000000000+00:00" {
            return Err(format!("record {n} has a wrong time: {}", shown()));
        }
        if stream != "stdout" && stream != "stderr" {
            return Err(format!("record {n} has a wrong stream: {}", shown()));
        }
        let partial = match tag {
            b"P" => true,
            b"F" => false,
            _ => return Err(format!("record {n} has a wrong tag: {}", shown())),
        };
        records.push(Record { time, stream, partial, payload });
    }
    Ok(records)
}

/// Reads a log file.
///
/// # Panics
/// When it cannot be read or is not well formed.
#[track_caller]
pub fn read_cri(path: &Path) -> Vec<Record> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    parse_cri(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The bytes that the container wrote to one stream.
pub fn rejoin(records: &[Record], stream: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for r in records.iter().filter(|r| r.stream == stream) {
        bytes.extend_from_slice(&r.payload);
        if !r.partial {
            bytes.push(b'\n');
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::{parse_cri, rejoin};

    #[test]
    fn records() {
        let log = b"2026-11-27T02:42:00.123456789+00:00 stdout P a b\n\
                    2026-11-27T02:42:00.123456789-03:30 stderr F \n\
                    2026-11-27T02:42:00.123456789+00:00 stdout F c\n";
        let records = parse_cri(log).unwrap();
        assert_eq!(rejoin(&records, "stdout"), b"a bc\n");
        assert_eq!(rejoin(&records, "stderr"), b"\n");
        assert!(parse_cri(b"x").is_err());
        assert!(parse_cri(b"2026-11-27T02:42:00.123Z stdout F x\n").is_err());
        assert!(parse_cri(b"2026-11-27T02:42:00.123456789+00:00 stdout F\n").is_err());
    }
}
