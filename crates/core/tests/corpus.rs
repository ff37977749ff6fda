//! The fuzz targets over their committed corpora, and over mutations of these: the same search as the fuzzer's, only
//! short, deterministic, and with a stable compiler.

#[expect(unreachable_pub, reason = "the fuzz crate shares the file")]
#[path = "../fuzz/src/targets.rs"]
mod targets;

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

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(data.len());
        match random.below(6) {
            0 if !data.is_empty() => data[at] = random.below(256) as u8,
            1 if !data.is_empty() => data[at] ^= 1 << random.below(8),
            2 => data.insert(at, [b'\n', b' ', 0, 0xff, b'=', b'9'][random.below(6)]),
            3 if !data.is_empty() => {
                data.remove(at);
            }
            4 => data.truncate(at),
            _ => {
                let other = &seeds[random.below(seeds.len())];
                data.extend_from_slice(&other[random.below(other.len())..]);
            }
        }
    }
    data
}

#[test]
fn corpora_and_mutations() {
    let rounds = if std::env::var_os("PINTLE_TEST_FULL").is_some() { 200_000 } else { 2_000 };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in targets::ALL {
        let mut files: Vec<_> = std::fs::read_dir(root.join(name))
            .unwrap_or_else(|error| panic!("corpus of {name}: {error}"))
            .map(|entry| entry.expect("entry").path())
            .collect();
        files.sort();
        let mut seeds: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).expect("seed")).collect();
        assert!(seeds.len() >= 2, "corpus of {name} is too small");
        seeds.push(Vec::new());
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mutants = (0..rounds).map(|_| mutate(&mut random, &seeds)).collect::<Vec<_>>();
        for data in seeds.iter().chain(&mutants) {
            let caught = std::panic::catch_unwind(|| target(data));
            assert!(caught.is_ok(), "target {name} fails on {:?}", data.escape_ascii().to_string());
        }
    }
}

/// Every corpus belongs to a target, and every target has an entry for the fuzzer.
#[test]
fn targets_are_complete() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut corpora: Vec<String> = std::fs::read_dir(fuzz.join("corpus"))
        .expect("corpora")
        .map(|entry| entry.expect("entry").file_name().into_string().expect("name"))
        .collect();
    corpora.sort();
    let mut names: Vec<String> = targets::ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    names.sort();
    assert_eq!(corpora, names);
    let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).expect("manifest");
    for name in names {
        assert!(fuzz.join(format!("fuzz_targets/{name}.rs")).exists(), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
