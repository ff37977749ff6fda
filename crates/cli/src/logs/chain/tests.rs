use super::*;

#[test]
fn names_of_rotated_files() {
    for (suffix, want) in [
        (".1", Some(Rotated::Number(1))),
        (".12", Some(Rotated::Number(12))),
        (".20261127-024200", Some(Rotated::Date)),
        ("-20261127", Some(Rotated::Date)),
        (".1.gz", None),
        (".20261127-024200.gz", None),
        (".old", None),
        (".01", None),
        ("-1", None),
        (".", None),
        ("", None),
        ("x1", None),
    ] {
        assert_eq!(kind(suffix.as_bytes()), want, "{suffix}");
    }
}

/// A directory that goes away at the end.
struct Dir(PathBuf);

impl Dir {
    fn new(tag: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("pintle-chain-{tag}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir.canonicalize().unwrap())
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }

    /// As the shim does it.
    fn rotate(&self, keep: u64, text: &str) {
        for n in (1..keep).rev() {
            let _ = std::fs::rename(self.0.join(format!("log.{n}")), self.0.join(format!("log.{}", n + 1)));
        }
        std::fs::rename(self.0.join("log"), self.0.join("log.1")).unwrap();
        self.write(".new", text);
        std::fs::rename(self.0.join(".new"), self.0.join("log")).unwrap();
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn text(file: &LogFile) -> String {
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.file.read_exact_at(&mut bytes, 0).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// The files that follow, and how many are missing.
fn rest(chain: &Chain, from: LogFile, watch: &mut Watch) -> (String, u64) {
    let (mut all, mut gone, mut file) = (text(&from), 0, from);
    while let Some(next) = chain.next(&file, watch).unwrap() {
        match next.missing {
            Missing::Files(n) => gone += n,
            Missing::Unknown => gone += 1000,
        }
        all.push_str(&text(&next.file));
        file = next.file;
    }
    (all, gone)
}

#[test]
fn history_is_oldest_first() {
    let dir = Dir::new("history");
    for (name, text) in [
        ("log", "e"),
        ("log.1", "d"),
        ("log.2", "c"),
        ("log.20261127-024200", "b"),
        ("log.20261126-024200", "a"),
        ("log.3.gz", "x"),
        ("logs.1", "x"),
    ] {
        dir.write(name, text);
    }
    let chain = Chain::new(&dir.0.join("log")).unwrap();
    let mut watch = Watch::new(&chain);
    let oldest = chain.oldest(&mut watch).unwrap();
    assert_eq!(rest(&chain, oldest, &mut watch), ("abcde".into(), 0));
    let mut back = String::new();
    let mut file = chain.current(&mut watch).unwrap();
    loop {
        back.push_str(&text(&file));
        match chain.older(&file).unwrap() {
            Some(older) => file = older,
            None => break,
        }
    }
    assert_eq!(back, "edcba");
}

#[test]
fn rotations_are_followed_and_what_is_gone_is_counted() {
    for (keep, rotations, want, gone) in
        [(3, 3, "abcd", 0), (3, 4, "abcde", 0), (3, 6, "adefg", 2), (1, 2, "abc", 0)]
    {
        let dir = Dir::new(&format!("gone-{keep}-{rotations}"));
        dir.write("log", "a");
        let chain = Chain::new(&dir.0.join("log")).unwrap();
        let mut watch = Watch::new(&chain);
        let first = chain.current(&mut watch).unwrap();
        for n in 1..=rotations {
            dir.rotate(keep, &char::from(b'a' + n).to_string());
        }
        assert_eq!(rest(&chain, first, &mut watch), (want.into(), gone), "{keep} {rotations}");
    }
}

#[test]
fn other_names_and_older_files_do_not_mislead() {
    let dir = Dir::new("other");
    dir.write("log.1", "old");
    dir.write("log", "a");
    let chain = Chain::new(&dir.0.join("log")).unwrap();
    let mut watch = Watch::new(&chain);
    let first = chain.current(&mut watch).unwrap();
    std::fs::rename(dir.0.join("log"), dir.0.join("elsewhere")).unwrap();
    assert!(chain.next(&first, &mut watch).unwrap().is_none(), "there is no log now");
    dir.write("log", "b");
    assert_eq!(rest(&chain, first, &mut watch), ("ab".into(), 0));
    std::fs::remove_file(dir.0.join("log")).unwrap();
    dir.write("log", "c");
    std::fs::remove_file(dir.0.join("log")).unwrap();
    let first = LogFile::open(dir.0.join("elsewhere")).unwrap().unwrap();
    assert_eq!(chain.gone(&first, &mut watch), Missing::Files(0), "it was never counted");
}

#[test]
fn nobody_counts() {
    let dir = Dir::new("uncounted");
    dir.write("log", "a");
    let chain = Chain::new(&dir.0.join("log")).unwrap();
    let mut watch = Watch::none();
    let first = chain.current(&mut watch).unwrap();
    for text in ["b", "c"] {
        dir.rotate(3, text);
    }
    assert_eq!(rest(&chain, first, &mut watch), ("abc".into(), 0));
    let first = chain.current(&mut watch).unwrap();
    for text in ["d", "e", "f", "g", "h"] {
        dir.rotate(3, text);
    }
    assert_eq!(rest(&chain, first, &mut watch), ("cefgh".into(), 1000));
}

/// Somebody rotates all the time, and the numbers grow: each file comes once, in order, and none is said to be missing.
#[test]
fn a_walk_under_rotation_misses_nothing() {
    const ROTATIONS: u64 = 150;
    let dir = Dir::new("walk");
    dir.write("log", "0");
    let chain = Chain::new(&dir.0.join("log")).unwrap();
    let mut watch = Watch::new(&chain);
    let mut file = chain.current(&mut watch).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1..=ROTATIONS {
                dir.rotate(n, &n.to_string());
            }
        });
        let mut wanted = 1;
        while wanted <= ROTATIONS {
            let Some(next) = chain.next(&file, &mut watch).unwrap() else {
                std::thread::yield_now();
                continue;
            };
            assert_eq!((next.missing, text(&next.file)), (Missing::Files(0), wanted.to_string()));
            file = next.file;
            wanted += 1;
        }
    });
}

/// A file that still has a name is never taken for one that is gone, however far it was shifted since it was seen.
#[test]
fn a_file_that_was_shifted_far_is_not_gone() {
    let dir = Dir::new("far");
    dir.write("log", "a");
    let chain = Chain::new(&dir.0.join("log")).unwrap();
    let mut watch = Watch::new(&chain);
    let first = chain.current(&mut watch).unwrap();
    for text in ["b", "c", "d", "e", "f", "g"] {
        dir.rotate(10, text);
    }
    // Counted, it is found as well.
    let next = chain.beyond(&first, &mut watch).unwrap().expect("nobody rotates");
    assert_eq!((next.missing, text(&next.file)), (Missing::Files(0), "b".into()));
    assert!(chain.older(&first).unwrap().is_none());
    assert_eq!(rest(&chain, first, &mut watch), ("abcdefg".into(), 0));
}
