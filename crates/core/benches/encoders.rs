//! What the log path computes for each read: `cargo bench -p pintle-core`.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use pintle_core::journal::{JournalConfig, JournalEncoder};
use pintle_core::line::{LineAssembler, Stream, segments};
use pintle_core::rotate::{SizeCounter, SizeLimits};
use pintle_core::time::{STAMP_LEN, Stamper};
use pintle_core::wall::WallTime;
use pintle_core::{attach, cri};

const STAMP: &[u8; STAMP_LEN] = b"2026-11-23T20:15:45.133617925+00:00";
const READ: usize = 64 * 1024;

fn main() {
    divan::main();
}

/// One read of lines of this length, line feed included.
fn input(line: usize) -> Vec<u8> {
    (0..READ).map(|n| if n % line == line - 1 { b'\n' } else { b'x' }).collect()
}

#[divan::bench(args = [2, 80, 1024, 16_384, 1_000_000])]
fn cri_encode(bencher: Bencher, line: usize) {
    let data = input(line);
    let mut out = vec![0; 128 * 1024];
    bencher.counter(BytesCount::new(READ)).bench_local(|| {
        // As the file driver does it: into a bounded buffer.
        let mut rest = black_box(&data[..]);
        while !rest.is_empty() {
            let (taken, made) = cri::encode_into(&mut out, STAMP, Stream::Stdout, rest);
            black_box(&out[..made]);
            rest = &rest[taken..];
        }
    });
}

/// The floor of the above: one copy.
#[divan::bench]
fn copy(bencher: Bencher) {
    let data = input(80);
    let mut out = Vec::with_capacity(READ);
    bencher.counter(BytesCount::new(READ)).bench_local(|| {
        out.clear();
        out.extend_from_slice(black_box(&data));
        out.len()
    });
}

#[divan::bench(args = [2, 80, 16_384])]
fn cut_lines(bencher: Bencher, line: usize) {
    let data = input(line);
    bencher.counter(BytesCount::new(READ)).bench_local(|| segments(black_box(&data)).count());
}

#[divan::bench(args = [2, 80, 16_384])]
fn journal_encode(bencher: Bencher, line: usize) {
    let data = input(line);
    let config =
        JournalConfig { id: vec![b'a'; 64], name: Some(b"name".to_vec()), ..JournalConfig::default() };
    let encoder = JournalEncoder::new(&config);
    let (mut lines, mut out) = (LineAssembler::new(), Vec::new());
    bencher.counter(BytesCount::new(READ)).bench_local(|| {
        lines.push(black_box(&data), |line, complete, fresh| {
            out.clear();
            encoder.encode(&mut out, Stream::Stdout, line, complete, fresh);
        });
        out.len()
    });
}

#[divan::bench]
fn stamp_new_second(bencher: Bencher) {
    let (mut stamper, mut secs) = (Stamper::new(), 1_795_464_945);
    bencher.bench_local(|| {
        secs += 1;
        *stamper.stamp(WallTime::new(secs, 5), 3600)
    });
}

#[divan::bench]
fn stamp_same_second(bencher: Bencher) {
    let (mut stamper, mut nanos) = (Stamper::new(), 0);
    bencher.bench_local(|| {
        nanos += 1;
        *stamper.stamp(WallTime::new(1_795_464_945, nanos), 3600)
    });
}

#[divan::bench]
fn rotate_every_read(bencher: Bencher) {
    let mut records = Vec::new();
    cri::encode(&mut records, STAMP, Stream::Stdout, &input(80));
    let limits = SizeLimits { file: 40_000, total: 0 };
    bencher.counter(BytesCount::new(records.len())).bench_local(|| {
        let (mut counter, mut at, mut steps) = (SizeCounter::default(), 0, 0);
        while let Some(step) = limits.next_step(&counter, black_box(&records), at) {
            at = counter.apply(&step, at);
            steps += 1;
        }
        steps
    });
}

#[divan::bench]
fn ctl_line() -> Result<attach::CtlCommand, attach::CtlError> {
    attach::parse_ctl(black_box(b"1 24 80"), 1000)
}
