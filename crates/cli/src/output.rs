//! Printing: text, tables, JSON, times, ends, errors.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use pintle_client::{Error, ErrorKind, Exit, ExitReason};
use serde_json::{Value, json};

use crate::args::{Help, Usage, signal_name};

/// Standard output was closed by its reader: nothing is wrong, and there is nothing left to do.
#[derive(Debug)]
pub(crate) struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("standard output is closed")
    }
}

impl std::error::Error for Closed {}

/// Prints text.
pub(crate) fn print(text: impl AsRef<[u8]>) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_ref()).and_then(|()| out.flush()).map_err(|e| {
        let closed = e.kind() == std::io::ErrorKind::BrokenPipe;
        if closed { Closed.into() } else { anyhow::Error::from(e).context("write to standard output") }
    })
}

/// Prints one line.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<()> {
    print(format!("{text}\n"))
}

/// Prints a JSON document.
pub(crate) fn print_json(value: &Value) -> Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Prints a table whose first row is its head.
pub(crate) fn table(rows: &[Vec<String>]) -> Result<()> {
    let columns = rows.first().map_or(0, Vec::len);
    let width: Vec<usize> = (0..columns)
        .map(|c| rows.iter().filter_map(|r| r.get(c)).map(|t| visible(t)).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut l = String::new();
        for (cell, width) in row.iter().zip(&width) {
            l.push_str(cell);
            l.extend(std::iter::repeat_n(' ', width + 2 - visible(cell)));
        }
        text.push_str(l.trim_end());
        text.push('\n');
    }
    print(text)
}

/// Characters that take a place on the terminal: colours do not.
fn visible(text: &str) -> usize {
    let mut n = 0;
    let mut escape = false;
    for c in text.chars() {
        match (escape, c) {
            (false, '\x1b') => escape = true,
            (true, 'm') => escape = false,
            (false, _) => n += 1,
            _ => {}
        }
    }
    n
}

/// Reports an error and gives the exit status that stands for it.
pub(crate) fn report(error: &anyhow::Error) -> i32 {
    if error.is::<Closed>() {
        return 0;
    }
    if let Some(Help(text)) = error.downcast_ref() {
        let _ = print(text);
        return 0;
    }
    let mut text = words(error);
    let mut code = if foreground() { 125 } else { 1 };
    if let Some(Error::Call(call)) = error.chain().find_map(|e| e.downcast_ref::<Error>()) {
        let said = call.runtime_message.trim();
        if !said.is_empty() && !text.contains(said) {
            text.push_str(": ");
            text.push_str(said);
        }
        if foreground() && call.kind == ErrorKind::RuntimeFailed {
            if text.contains("executable file not found") || text.contains("no such file or directory") {
                code = 127;
            } else if text.to_lowercase().contains("permission denied") {
                code = 126;
            }
        }
    }
    let usage = error.is::<Usage>() || error.is::<lexopt::Error>();
    if usage && !foreground() {
        code = 2;
    }
    eprintln!("pintle: {text}");
    code
}

/// The error and its causes, each told once: many errors print their cause themselves.
fn words(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let more = match cause.downcast_ref::<Error>() {
            Some(Error::NotRunning { dir }) => {
                let id = dir.file_name().unwrap_or_default().to_string_lossy();
                if !dir.exists() {
                    format!("no container {id}")
                } else if pintle_client::read_exit_record(dir).is_some() {
                    format!("container {id} has ended, and its shim is gone")
                } else {
                    format!("the shim of {id} was lost and the container may live: see pintle adopt")
                }
            }
            _ => cause.to_string(),
        };
        if text.is_empty() {
            text = more;
        } else if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
    }
    text
}

/// The exit status is that of a process in the container, and so ours must be told from it.
static FOREGROUND: AtomicBool = AtomicBool::new(false);

/// Notes which command runs.
pub(crate) fn command(name: &str) {
    set_foreground(matches!(name, "run" | "exec" | "attach"));
}

/// Says whether the exit status of the command is that of a process.
pub(crate) fn set_foreground(on: bool) {
    FOREGROUND.store(on, Ordering::Relaxed);
}

fn foreground() -> bool {
    FOREGROUND.load(Ordering::Relaxed)
}

/// How a process ended, in words.
pub(crate) fn exit_text(exit: &Exit) -> String {
    let mut text = match &exit.reason {
        ExitReason::Code(n) => format!("exited {n}"),
        ExitReason::Signal { signal, core_dumped } => {
            format!("{}{}", signal_name(*signal), if *core_dumped { ", core dumped" } else { "" })
        }
        ExitReason::Unknown(why) => format!("unknown: {why}"),
    };
    if exit.oom_killed {
        text.push_str(", out of memory");
    }
    text
}

/// How a process ended, for programs.
pub(crate) fn exit_json(exit: &Exit) -> Value {
    let (kind, code, signal, core, why) = match &exit.reason {
        ExitReason::Code(n) => ("code", Some(*n), None, false, None),
        ExitReason::Signal { signal, core_dumped } => ("signal", None, Some(*signal), *core_dumped, None),
        ExitReason::Unknown(why) => ("unknown", None, None, false, Some(why.clone())),
    };
    json!({
        "kind": kind, "code": code, "signal": signal, "core_dumped": core, "reason": why,
        "status": exit.status, "oom_killed": exit.oom_killed,
        "started_at": exit.started_at.map(rfc3339), "finished_at": exit.finished_at.map(rfc3339),
        "boot_id": exit.boot_id,
    })
}

/// A time in UTC, `2026-11-27T02:42:00.123456789Z`.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, of_day) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (y, m, d) = date(days);
    format!(
        "{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}.{:09}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
        since.subsec_nanos()
    )
}

/// Year, month and day of a number of days since 1970-01-01, counted from 1 March so that the day that
/// comes and goes is the last of its year.
fn date(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let d = doy - (153 * mp + 2) / 5 + 1;
    let m = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(m <= 2), m, d)
}

/// How long ago, roughly.
pub(crate) fn ago(time: Option<SystemTime>) -> String {
    let Some(since) = time.and_then(|t| t.elapsed().ok()) else { return "-".into() };
    let s = since.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m", s / 60),
        3600..172_800 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86_400),
    }
}

/// Bytes with a binary unit.
pub(crate) fn size(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{n} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A time span in seconds.
pub(crate) fn seconds(ns: u64) -> String {
    format!("{:.3}s", Duration::from_nanos(ns).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_each_cause_once() {
        let io = || std::io::Error::from_raw_os_error(13);
        let said = io().to_string();
        let error = Error::Io { context: "reading /x".into(), source: io() };
        assert_eq!(words(&error.into()), format!("reading /x: {said}"));
        let error = anyhow::Error::from(io()).context("open log /x");
        assert_eq!(words(&error), format!("open log /x: {said}"));
        let error = anyhow::Error::from(Error::NotRunning { dir: "/nowhere/web".into() });
        assert_eq!(words(&error), "no container web");
        assert_eq!(words(&error.context("web")), "web: no container web");
        let here = std::env::temp_dir();
        let name = here.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let error = anyhow::Error::from(Error::NotRunning { dir: here });
        assert_eq!(
            words(&error),
            format!("the shim of {name} was lost and the container may live: see pintle adopt")
        );
    }

    #[test]
    fn times_and_sizes() {
        assert_eq!(rfc3339(UNIX_EPOCH), "1970-01-01T00:00:00.000000000Z");
        let leap = UNIX_EPOCH + Duration::new(951_782_400, 5);
        assert_eq!(rfc3339(leap), "2000-02-29T00:00:00.000000005Z");
        let t = UNIX_EPOCH + Duration::from_secs(1_795_747_320);
        assert_eq!(rfc3339(t), "2026-11-27T02:42:00.000000000Z");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(20 << 20), "20.0 MiB");
        assert_eq!(visible("\x1b[32mrunning\x1b[0m"), 7);
    }
}
