//! The program inside a measured container: writes a known number of bytes in a known shape, then exits.
//!
//! `load BYTES LINE WRITE [both]`: BYTES in all; lines of LINE bytes with the newline (0: no newline at all);
//! WRITE bytes for each `write` (0: one write for each line); `both` alternates stdout and stderr.
//! `load paced RATE SECONDS LINE`: RATE bytes a second for SECONDS, in lines of LINE bytes, a part each millisecond.
//! `load tick MICROS COUNT`: COUNT lines, one each MICROS, each the time at which it is written, in ns since the epoch.
//! `load read [BYTES]`: reads stdin to its end, or until it has read BYTES, and exits with 0.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "read") {
        let enough = args.get(1).and_then(|a| a.parse::<u64>().ok()).unwrap_or(u64::MAX);
        let mut buffer = vec![0; 65536];
        let (mut stdin, mut got) = (raw(0), 0);
        while got < enough {
            match stdin.read(&mut buffer)? {
                0 => break,
                n => got += n as u64,
            }
        }
        return Ok(());
    }
    let number = |i: usize| args.get(i).and_then(|a| a.parse::<usize>().ok()).unwrap_or(0);
    match args.first().map(String::as_str) {
        Some("paced") => return paced(number(1), number(2), number(3)),
        Some("tick") => return tick(number(1), number(2)),
        _ => {}
    }
    let (bytes, line, write) = (number(0), number(1), number(2));
    let both = args.get(3).is_some_and(|a| a == "both");
    let size = match (write, line) {
        (0, 0) => 65536,
        (0, line) => line,
        (write, 0) => write,
        // Whole lines in each write, so that every write looks alike.
        (write, line) => (write / line).max(1) * line,
    };
    let block = block(size, line);
    // The raw descriptors: the standard handles would gather or split the writes.
    let (mut out, mut err) = (raw(1), raw(2));
    let (mut left, mut turn) = (bytes, false);
    while left > 0 {
        let part = left.min(block.len());
        let target = if both && turn { &mut err } else { &mut out };
        target.write_all(&block[..part])?;
        turn = !turn;
        left -= part;
    }
    Ok(())
}

/// Lines of `line` bytes with the newline; 0: no newline at all.
fn block(size: usize, line: usize) -> Vec<u8> {
    (0..size).map(|i| if line > 0 && (i + 1) % line == 0 { b'\n' } else { b'a' + (i % 26) as u8 }).collect()
}

/// Calls `each` `count` times, `step` apart: a late one is made up for by the next.
fn pace(step: Duration, count: usize, mut each: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let began = Instant::now();
    for n in 1..=count as u32 {
        each()?;
        std::thread::sleep((step * n).saturating_sub(began.elapsed()));
    }
    Ok(())
}

fn paced(rate: usize, seconds: usize, line: usize) -> io::Result<()> {
    let mut out = raw(1);
    let block = block((rate / 1000 / line.max(1)).max(1) * line, line);
    pace(Duration::from_millis(1), seconds * 1000, || out.write_all(&block))
}

fn tick(micros: usize, count: usize) -> io::Result<()> {
    let mut out = raw(1);
    pace(Duration::from_micros(micros as u64), count, || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        out.write_all(format!("{}\n", now.as_nanos()).as_bytes())
    })
}

fn raw(fd: i32) -> std::fs::File {
    std::fs::OpenOptions::new()
        .read(fd == 0)
        .write(fd != 0)
        .open(format!("/proc/self/fd/{fd}"))
        .expect("open a standard stream")
}
