//! `pintle logs`: a CRI log as its container wrote it, also while it grows and is rotated.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use lexopt::prelude::*;
use pintle_client::Error;

use crate::args::{self, one_id, text, unknown, usage};
use crate::context::Context;
use crate::output;

const LOGS: &str = "\
usage: pintle logs [options] ID

  -f, --follow       go on until the container ends; with --file alone until interrupted
  -n, --tail N       only the last N lines of the current file; default: all
      --since TIME   only what is younger: a time span such as 10m or 1h30m, a number of seconds since 1970, or
                     a time such as 2026-11-27T02:42:00Z (without a zone, or a date alone: UTC)
  -t, --timestamps   print each line's time
      --file FILE    read this log instead of the container's
";

/// How often a growing log is looked at.
const POLL: Duration = Duration::from_millis(100);

struct Show {
    timestamps: bool,
    since: Option<SystemTime>,
    /// The last piece of each stream had no end of line yet.
    open: [bool; 2],
}

pub(crate) async fn logs(cx: Context, args: Vec<OsString>) -> Result<i32> {
    let (mut follow, mut tail, mut since, mut timestamps, mut file) = (false, None, None, false, None);
    let mut ids = Vec::new();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('f') | Long("follow") => follow = true,
            Short('n') | Long("tail") => tail = lines(&text(parser.value()?)?)?,
            Long("since") => since = Some(point(&text(parser.value()?)?)?),
            Short('t') | Long("timestamps") => timestamps = true,
            Long("file") => file = Some(PathBuf::from(parser.value()?)),
            Value(v) => ids.push(text(v)?),
            other => return Err(unknown(other, LOGS)),
        }
    }
    let id = match (&file, ids.is_empty()) {
        (Some(_), true) => None,
        _ => Some(one_id(ids)?),
    };
    let path = match file {
        Some(path) => path,
        None => log_of(&cx, id.as_deref().unwrap_or_default()).await?,
    };
    let mut show = Show { timestamps, since, open: [false; 2] };
    let mut log = File::open(&path).with_context(|| format!("open log {}", path.display()))?;
    let mut rest = Vec::new();
    if let Some(lines) = tail {
        let from = start_of_tail(&mut log, lines)?;
        log.seek(SeekFrom::Start(from))?;
    }
    loop {
        let ended = match &id {
            Some(id) if follow => ended(&cx, id)?,
            // Nobody tells when a file is done.
            _ => !follow,
        };
        // Whether it has ended is asked first: what it wrote before is then all in the file.
        drain(&mut log, &mut rest, &mut show)?;
        if let Some(new) = renewed(&log, &path) {
            drain(&mut log, &mut rest, &mut show)?;
            log = new;
            continue;
        }
        if !follow || ended {
            return Ok(0);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// How many of the last lines are wanted; None for all, which docker also calls -1.
fn lines(value: &str) -> Result<Option<usize>> {
    match value {
        "all" | "-1" => Ok(None),
        n => n.parse().map(Some).map_err(|_| usage(format!("{n} is not a number of lines"))),
    }
}

/// The log file of a container.
async fn log_of(cx: &Context, id: &str) -> Result<PathBuf> {
    let dir = cx.dir(id)?;
    match cx.monitor(id)?.state().await {
        Ok(state) => return state.log_path.with_context(|| format!("container {id} has no log file")),
        Err(Error::NotRunning { .. } | Error::Disconnected { .. }) => {}
        Err(e) => return Err(e.into()),
    }
    let ours = dir.join("container.log");
    let state: Option<serde_json::Value> =
        std::fs::read(dir.join("state.json")).ok().and_then(|b| serde_json::from_slice(&b).ok());
    let told =
        state.as_ref().and_then(|s| s["log_path"].as_str()).filter(|p| !p.is_empty()).map(PathBuf::from);
    match told {
        Some(path) => Ok(path),
        None if ours.exists() => Ok(ours),
        None if dir.exists() => bail!("container {id} has no log file"),
        None => bail!("no container {id}"),
    }
}

/// Whether the container has ended, or nobody writes its log any more.
fn ended(cx: &Context, id: &str) -> Result<bool> {
    let dir = cx.dir(id)?;
    Ok(pintle_client::read_exit_record(&dir).is_some() || !pintle_client::has_shim(&dir))
}

/// The file that has taken the place of the one we read, after a rotation.
fn renewed(log: &File, path: &Path) -> Option<File> {
    let new = File::open(path).ok()?;
    let (a, b) = (log.metadata().ok()?, new.metadata().ok()?);
    ((a.dev(), a.ino()) != (b.dev(), b.ino())).then_some(new)
}

/// Prints everything up to the end of the file; a record whose end is not there yet waits in `rest`.
fn drain(log: &mut File, rest: &mut Vec<u8>, show: &mut Show) -> Result<()> {
    // A file that shrank was truncated in place.
    if log.stream_position()? > log.metadata()?.len() {
        log.seek(SeekFrom::Start(0))?;
        rest.clear();
    }
    let mut buf = vec![0; 256 * 1024];
    loop {
        let n = log.read(&mut buf)?;
        if n == 0 {
            return Ok(());
        }
        rest.extend_from_slice(&buf[..n]);
        let Some(end) = rest.iter().rposition(|b| *b == b'\n') else { continue };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        for record in rest[..=end].split_inclusive(|b| *b == b'\n') {
            show.record(record, &mut out, &mut err);
        }
        rest.drain(..=end);
        output::print(&out)?;
        if let Err(e) = std::io::stderr().write_all(&err) {
            if e.kind() != ErrorKind::BrokenPipe {
                return Err(e.into());
            }
        }
    }
}

impl Show {
    /// `TIME STREAM TAG PAYLOAD\n`; what is not a record is shown as it stands.
    fn record(&mut self, record: &[u8], out: &mut Vec<u8>, err: &mut Vec<u8>) {
        let mut parts = record.splitn(4, |b| *b == b' ');
        let (Some(time), Some(stream), Some(tag), Some(payload)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            out.extend_from_slice(record);
            return;
        };
        let which = usize::from(stream == b"stderr");
        let into = if which == 1 { err } else { out };
        let time = std::str::from_utf8(time).unwrap_or_default();
        let begins = !self.open[which];
        let partial = tag == b"P";
        if self.since.is_some_and(|since| timestamp(time).is_some_and(|t| t < since)) {
            return;
        }
        if begins && self.timestamps {
            into.extend_from_slice(time.as_bytes());
            into.push(b' ');
        }
        into.extend_from_slice(if partial {
            payload.strip_suffix(b"\n").unwrap_or(payload)
        } else {
            payload
        });
        self.open[which] = partial;
    }
}

/// Where the last `lines` lines begin.
fn start_of_tail(log: &mut File, lines: usize) -> Result<u64> {
    let size = log.metadata()?.len();
    let mut window = 64 * 1024;
    loop {
        let from = size.saturating_sub(window);
        log.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        log.take(size - from).read_to_end(&mut bytes)?;
        if let Some(at) = tail_in(&bytes, lines, from == 0) {
            return Ok(from + at as u64);
        }
        window *= 4;
    }
}

/// The offset of the last `lines` lines in the end of a log; None when they may begin before it.
fn tail_in(bytes: &[u8], lines: usize, whole: bool) -> Option<usize> {
    let mut starts = Vec::new();
    let mut at = 0;
    // The first record of a window may be torn.
    if !whole {
        at = bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |p| p + 1);
    }
    let first = at;
    let mut open = [false; 2];
    for record in bytes[at..].split_inclusive(|b| *b == b'\n') {
        let which = usize::from(record.split(|b| *b == b' ').nth(1) == Some(b"stderr"));
        if !open[which] {
            starts.push(at);
        }
        open[which] = record.split(|b| *b == b' ').nth(2) == Some(b"P");
        at += record.len();
    }
    if lines == 0 {
        return Some(at);
    }
    if starts.len() > lines || (whole && starts.len() >= lines) {
        return Some(starts[starts.len() - lines]);
    }
    whole.then_some(first)
}

/// A point in time as docker and podman read it: a span before now, seconds since 1970, or an RFC 3339 time that may
/// lack its zone or all but its date (UTC then: a log is to look the same to everybody).
fn point(value: &str) -> Result<SystemTime> {
    for rest in ["", "Z", "T00:00:00Z"] {
        if let Some(time) = timestamp(&format!("{value}{rest}")) {
            return Ok(time);
        }
    }
    let number = |c: char| c.is_ascii_digit() || c == '.';
    if !value.is_empty() && value.chars().all(number) {
        let since = value.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
        if let Some(time) = since.and_then(|since| UNIX_EPOCH.checked_add(since)) {
            return Ok(time);
        }
    }
    let span = span(value).ok_or_else(|| {
        usage(format!("{value} is neither a time span such as 10m nor a time such as 2026-11-27T02:42:00Z"))
    })?;
    Ok(SystemTime::now().checked_sub(span).unwrap_or(UNIX_EPOCH))
}

/// A time span of one or more numbers, each with its unit: `10m`, `1h30m`.
fn span(value: &str) -> Option<Duration> {
    let mut sum = Duration::ZERO;
    let mut rest = value;
    while !rest.is_empty() {
        let unit = rest.find(|c: char| c.is_ascii_alphabetic())?;
        let end = rest[unit..].find(|c: char| !c.is_ascii_alphabetic()).map_or(rest.len(), |n| unit + n);
        sum = sum.checked_add(args::duration(&rest[..end]).ok()?)?;
        rest = &rest[end..];
    }
    Some(sum).filter(|_| !value.is_empty())
}

/// Reads an RFC 3339 time.
fn timestamp(text: &str) -> Option<SystemTime> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (y, m, d) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (h, min, s) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if !(1..=12).contains(&m) || !(1..=31).contains(&d) || !matches!(text.as_bytes()[10], b'T' | b't' | b' ')
    {
        return None;
    }
    let rest = text.get(19..)?;
    let fraction: String =
        rest.strip_prefix('.').unwrap_or("").chars().take_while(char::is_ascii_digit).collect();
    let zone = if fraction.is_empty() { rest } else { &rest[1 + fraction.len()..] };
    let offset = match zone.as_bytes() {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let minutes = zone.get(1..3)?.parse::<i64>().ok()? * 60 + zone.get(4..6)?.parse::<i64>().ok()?;
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return None,
    };
    // Days since 1970-01-01, with years that begin in March.
    let y = if m <= 2 { y - 1 } else { y };
    let era = y.div_euclid(400);
    let of_era = y.rem_euclid(400);
    let of_year = (153 * ((m + 9) % 12) + 2) / 5 + d - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let seconds = days * 86_400 + h * 3600 + min * 60 + s - offset * 60;
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(UNIX_EPOCH + Duration::new(u64::try_from(seconds).ok()?, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "2026-11-27T02:42:00.000000001+00:00";

    #[test]
    fn times() {
        let t = timestamp("2026-11-27T02:42:00Z").unwrap();
        assert_eq!(t, UNIX_EPOCH + Duration::from_secs(1_795_747_320));
        assert_eq!(timestamp("2026-11-27T03:42:00+01:00"), Some(t));
        assert_eq!(timestamp(T), Some(t + Duration::from_nanos(1)));
        assert_eq!(timestamp("2026-11-27T02:42:00.5Z"), Some(t + Duration::from_millis(500)));
        for bad in ["", "10m", "2026-13-27T02:42:00Z", "2026-11-27T02:42:00", "2026-11-27é02:42:00Z"] {
            assert_eq!(timestamp(bad), None, "{bad}");
        }
    }

    #[test]
    fn points_in_time_as_users_write_them() {
        let t = UNIX_EPOCH + Duration::from_secs(1_795_747_320);
        for same in ["2026-11-27T02:42:00Z", "2026-11-27T02:42:00", "1795747320", "1795747320.0"] {
            assert_eq!(point(same).unwrap(), t, "{same}");
        }
        assert_eq!(point("2026-11-27").unwrap(), t - Duration::from_secs(2 * 3600 + 42 * 60));
        let then = point("1h30m").unwrap();
        let ago = SystemTime::now().duration_since(then).unwrap();
        assert!(ago >= Duration::from_secs(5400) && ago < Duration::from_secs(6000), "{ago:?}");
        for bad in ["", "h", "10x", "1h30", "-5m", "1.2.3", "9e99"] {
            assert!(point(bad).is_err(), "{bad}");
        }
        assert_eq!((lines("all").unwrap(), lines("-1").unwrap(), lines("7").unwrap()), (None, None, Some(7)));
        assert!(lines("x").is_err());
    }

    #[test]
    fn records_are_joined() {
        let mut show = Show { timestamps: true, since: None, open: [false; 2] };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        for record in ["stdout P a", "stderr F e", "stdout F b", "stdout F "] {
            show.record(format!("{T} {record}\n").as_bytes(), &mut out, &mut err);
        }
        assert_eq!(String::from_utf8(out).unwrap(), format!("{T} ab\n{T} \n"));
        assert_eq!(String::from_utf8(err).unwrap(), format!("{T} e\n"));
    }

    #[test]
    fn the_last_lines() {
        let log: String = ["stdout F 1", "stdout P 2", "stderr F 3", "stdout F 2", "stdout F 4"]
            .map(|r| format!("{T} {r}\n"))
            .concat();
        let one = format!("{T} stdout F 4\n").len();
        assert_eq!(tail_in(log.as_bytes(), 1, true), Some(log.len() - one));
        assert_eq!(tail_in(log.as_bytes(), 0, true), Some(log.len()));
        assert_eq!(tail_in(log.as_bytes(), 3, true), Some(one));
        assert_eq!(tail_in(log.as_bytes(), 9, true), Some(0));
        assert_eq!(tail_in(log.as_bytes(), 9, false), None);
        assert_eq!(tail_in(b"", 9, true), Some(0));
    }
}
