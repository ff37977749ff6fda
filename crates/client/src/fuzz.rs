//! What is fuzzed of the client: one function per target. Each takes any bytes and panics only if a promise is broken.
//!
//! Not part of the client: it is compiled for the fuzzer (`cfg(fuzzing)`) and for the tests, which replay the corpora.

use crate::oci::{
    Config, ContainerState, Features, ImageReference, Spec, Timestamp, config, process, signal,
};

/// A target: its name, which is also that of its corpus, its function, and how often the tests run it.
pub type Target = (&'static str, fn(&[u8]), usize);

/// All targets.
pub const ALL: &[Target] = &[("documents", documents, 3_000), ("words", words, 5_000)];

/// `config.json`, the state that CRI-O keeps of a container, what a runtime says of its features, and a configuration in TOML.
pub fn documents(data: &[u8]) {
    if let Ok(spec) = Spec::from_json(data) {
        let text = serde_json::to_vec(&spec).expect("our own document");
        let again = Spec::from_json(&text).expect("our own document can be read");
        assert_eq!(serde_json::to_vec(&again).expect("our own document"), text);
        let _ = (spec.has_pid_namespace(), spec.exec_process(&["true".to_owned()], true));
    }
    if let Ok(state) = ContainerState::from_json(data) {
        let text = state.to_json();
        let again = ContainerState::from_json(&text).expect("our own document can be read");
        assert_eq!(again.to_json(), text);
    }
    let _ = Features::parse(data);
    let _ = Config::from_toml(&String::from_utf8_lossy(data));
}

/// Words that people and other programs write: times, sizes, signals, image names, the kernel's line about a process.
pub fn words(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(time) = text.parse::<Timestamp>() {
        let again: Timestamp = time.to_string().parse().expect("our own time");
        assert_eq!((again, again.to_string()), (time, time.to_string()));
    }
    assert!(config::parse_size(&text).is_none_or(|size| size >= 0));
    assert_ne!(signal::parse(&text), Some(0));
    let _ = process::parse_stat(&text);
    if let Ok(name) = text.parse::<ImageReference>() {
        assert_eq!(name.to_string(), text);
    }
}

#[cfg(test)]
#[expect(unreachable_pub, reason = "the fuzz crates share the file")]
#[path = "../../core/fuzz/src/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn corpora_and_mutations() {
        let more = if std::env::var_os("PINTLE_TEST_FULL").is_some() { 50 } else { 1 };
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target, rounds) in ALL {
            replay::replay(&corpus, name, *target, rounds * more);
        }
    }

    /// A search from seeds that no reader takes would find nothing.
    #[test]
    fn seeds_are_understood() {
        let seed = |path: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(path);
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        assert!(Spec::from_json(&seed("documents/config")).expect("config.json").has_pid_namespace());
        ContainerState::from_json(&seed("documents/state")).expect("a state");
        Features::parse(&seed("documents/features")).expect("features");
        let toml = String::from_utf8(seed("documents/toml")).expect("text");
        assert!(!Config::from_toml(&toml).expect("a configuration").runtimes.is_empty());
    }

    #[test]
    fn fuzz_targets_are_complete() {
        let names: Vec<&str> = ALL.iter().map(|(name, ..)| *name).collect();
        replay::complete(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz"), &names);
    }
}
