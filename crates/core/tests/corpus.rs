//! The fuzz targets over their committed corpora, and over mutations of these: the same search as the fuzzer's, only
//! short, deterministic, and with a stable compiler.

#[expect(unreachable_pub, reason = "the fuzz crates share the file")]
#[path = "../fuzz/src/replay.rs"]
mod replay;
#[expect(unreachable_pub, reason = "the fuzz crate shares the file")]
#[path = "../fuzz/src/targets.rs"]
mod targets;

use std::path::Path;

#[test]
fn corpora_and_mutations() {
    let rounds = if std::env::var_os("PINTLE_TEST_FULL").is_some() { 200_000 } else { 8_000 };
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in targets::ALL {
        replay::replay(&corpus, name, *target, rounds);
    }
}

/// Every corpus belongs to a target, and every target has an entry for the fuzzer.
#[test]
fn targets_are_complete() {
    let names: Vec<&str> = targets::ALL.iter().map(|(name, _)| *name).collect();
    replay::complete(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz"), &names);
}
