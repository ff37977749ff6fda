//! The program inside a measured container: writes a known number of bytes in a known shape, then exits.
//!
//! `load BYTES LINE WRITE [both]`: BYTES in all; lines of LINE bytes with the newline (0: no newline at all);
//! WRITE bytes for each `write` (0: one write for each line); `both` alternates stdout and stderr.
//! `load read [BYTES]`: reads stdin to its end, or until it has read BYTES, and exits with 0.

use std::io::{self, Read, Write};

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
    let (bytes, line, write) = (number(0), number(1), number(2));
    let both = args.get(3).is_some_and(|a| a == "both");
    let size = match (write, line) {
        (0, 0) => 65536,
        (0, line) => line,
        (write, 0) => write,
        // Whole lines in each write, so that every write looks alike.
        (write, line) => (write / line).max(1) * line,
    };
    let block: Vec<u8> = (0..size)
        .map(|i| if line > 0 && (i + 1) % line == 0 { b'\n' } else { b'a' + (i % 26) as u8 })
        .collect();
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

fn raw(fd: i32) -> std::fs::File {
    std::fs::OpenOptions::new()
        .read(fd == 0)
        .write(fd != 0)
        .open(format!("/proc/self/fd/{fd}"))
        .expect("open a standard stream")
}
