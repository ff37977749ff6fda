//! The search with a stable compiler: every committed seed, then mutations of the seeds, the same in each run.

use std::path::Path;

/// Small and good enough to mutate with (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

/// Numbers at which parsers turn: ends of integer types, lengths of frames, and their texts.
const EDGES: &[&[u8]] = &[
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\xff\xff",
    b"\0\0\0\0",
    b"\0\x40\0\x01",
    b"18446744073709551616",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"4294967296",
    b"-1",
];

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(data.len());
        match random.below(8) {
            0 if !data.is_empty() => data[at] = random.below(256) as u8,
            1 if !data.is_empty() => data[at] ^= 1 << random.below(8),
            2 => data.insert(at, [b'\n', b' ', 0, 0xff, b'=', b'9'][random.below(6)]),
            3 if !data.is_empty() => {
                data.remove(at);
            }
            4 => data.truncate(at),
            5 => {
                let end = data.len().min(at + random.below(64));
                let piece = data[at..end].to_vec();
                for _ in 0..=random.below(8) {
                    data.extend_from_slice(&piece);
                }
            }
            6 => {
                let edge = EDGES[random.below(EDGES.len())];
                let end = data.len().min(at + edge.len());
                data.splice(at..end, edge.iter().copied());
            }
            _ => {
                let other = &seeds[random.below(seeds.len())];
                data.extend_from_slice(&other[random.below(other.len())..]);
            }
        }
    }
    data
}

/// Runs a target over the seeds in `corpus` and over `rounds` mutations of them.
///
/// # Panics
/// If the target does; the message has the round (0: a seed itself) and the input in hexadecimal.
pub fn replay(corpus: &Path, name: &str, target: fn(&[u8]), rounds: usize) {
    let entries =
        std::fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("corpus of {name}: {error}"));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    let mut seeds: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).expect("seed")).collect();
    assert!(seeds.len() >= 2, "corpus of {name} is too small");
    seeds.push(Vec::new());
    let run = |round: usize, data: &[u8]| {
        let hex = || data.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let caught = std::panic::catch_unwind(|| target(data));
        assert!(caught.is_ok(), "target {name} fails in round {round} on the bytes {}", hex());
    };
    for seed in &seeds {
        run(0, seed);
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 1..=rounds {
        run(round, &mutate(&mut random, &seeds));
    }
}

/// Checks that every target has a corpus and an entry for the fuzzer, and that there are no others.
///
/// # Panics
/// If one is missing.
pub fn complete(fuzz: &Path, names: &[&str]) {
    let entries = std::fs::read_dir(fuzz.join("corpus")).expect("corpora");
    let mut corpora: Vec<String> =
        entries.map(|entry| entry.expect("entry").file_name().into_string().expect("name")).collect();
    corpora.sort();
    let mut names = names.to_vec();
    names.sort_unstable();
    assert_eq!(corpora, names);
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).expect("manifest");
    for name in names {
        assert!(fuzz.join(format!("fuzz_targets/{name}.rs")).exists(), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
