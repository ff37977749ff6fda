use super::*;
use nix::fcntl::OFlag;
use pintle_sys::watch::{Mask, Watcher};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of its own for each test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pintle-log-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(&self.0)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn text(&self, name: &str) -> String {
        let bytes = std::fs::read(self.0.join(name)).unwrap();
        // Without timestamps.
        String::from_utf8(bytes).unwrap().lines().map(|l| format!("{}\n", l.get(36..).unwrap_or(l))).collect()
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Rig {
    dir: Dir,
    sink: FileSink,
    losses: Losses,
}

impl Rig {
    fn new(change: impl FnOnce(&mut FileConfig)) -> Self {
        let dir = Dir::new();
        let mut config = FileConfig { path: dir.log(), ..FileConfig::default() };
        change(&mut config);
        let sink = FileSink::open(config).unwrap();
        Self { dir, sink, losses: Losses::default() }
    }

    fn put(&mut self, stream: Stream, data: &str) {
        let chunk = Chunk { stream, data: data.as_bytes(), now: WallTime::new(1_795_464_945, 7) };
        self.sink.write(&chunk, &mut Vec::new(), &mut self.losses);
    }

    fn out(&mut self, data: &str) {
        self.put(Stream::Stdout, data);
    }
}

fn full_device() -> File {
    std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// Very short lines become many times as long; what is made of them at a time does not.
#[test]
fn one_write_is_bounded() {
    let mut rig = Rig::new(|_| {});
    let data = [b'\n'; 65_536];
    let chunk = Chunk { stream: Stream::Stdout, data: &data, now: WallTime::default() };
    let mut scratch = Vec::new();
    rig.sink.write(&chunk, &mut scratch, &mut rig.losses);
    assert_eq!((scratch.len(), rig.losses.total()), (WRITE, 0));
    let log = std::fs::read(rig.dir.log()).unwrap();
    assert_eq!(pintle_core::cri::records(&log).count(), data.len());
}

#[test]
fn records_and_mode() {
    let mut rig = Rig::new(|_| {});
    rig.out("a\nb");
    rig.put(Stream::Stderr, "e\n");
    assert_eq!(rig.dir.text("log"), "stdout F a\nstdout P b\nstderr F e\n");
    let raw = std::fs::read_to_string(rig.dir.log()).unwrap();
    assert!(raw.contains(":45.000000007"), "{raw}");
    assert_eq!(std::fs::metadata(rig.dir.log()).unwrap().mode() & 0o137, 0);
    rig.sink.finish(true).unwrap();
    assert_eq!(rig.losses, Losses::default());
}

#[test]
fn reopen_after_a_rename_makes_a_new_inode() {
    let mut rig = Rig::new(|_| {});
    std::fs::set_permissions(rig.dir.log(), std::fs::Permissions::from_mode(0o604)).unwrap();
    rig.out("old\n");
    let before = rig.sink.file_id();
    std::fs::rename(rig.dir.log(), rig.dir.0.join("log.20261127")).unwrap();
    rig.out("still old\n");
    rig.sink.reopen().unwrap();
    rig.out("new\n");
    assert_eq!(rig.dir.text("log.20261127"), "stdout F old\nstdout F still old\n");
    assert_eq!(rig.dir.text("log"), "stdout F new\n");
    assert_ne!(rig.sink.file_id(), before);
    assert_eq!(std::fs::metadata(rig.dir.log()).unwrap().mode() & 0o777, 0o604);
    assert_eq!(rig.dir.names(), ["log", "log.20261127"]);
}

#[test]
fn reopen_without_a_rename_keeps_everything_and_makes_an_event() {
    let mut rig = Rig::new(|_| {});
    rig.out("old\n");
    let watcher = Watcher::new().unwrap();
    watcher.add(&rig.dir.0, Mask::IN_CREATE | Mask::IN_MODIFY | Mask::IN_MOVED_TO).unwrap();
    rig.sink.reopen().unwrap();
    let events = watcher.read().unwrap();
    assert!(events.iter().any(|e| e.name.as_deref() == Some("log".as_ref())), "{events:?}");
    rig.out("new\n");
    assert_eq!(rig.dir.text("log"), "stdout F old\nstdout F new\n");
}

#[test]
fn reopen_by_replacement_is_conmons() {
    let mut rig = Rig::new(|c| c.reopen = ReopenPolicy::Replace);
    rig.out("old\n");
    let watcher = Watcher::new().unwrap();
    watcher.add(&rig.dir.0, Mask::IN_CREATE | Mask::IN_MOVED_TO).unwrap();
    rig.sink.reopen().unwrap();
    assert!(watcher.read().unwrap().iter().any(|e| e.name.as_deref() == Some("log".as_ref())));
    rig.out("new\n");
    assert_eq!(rig.dir.text("log"), "stdout F new\n");
    assert_eq!(rig.dir.names(), ["log"]);
}

#[test]
fn a_file_that_somebody_else_has_made_is_used() {
    let mut rig = Rig::new(|_| {});
    rig.out("old\n");
    std::fs::rename(rig.dir.log(), rig.dir.0.join("log.1")).unwrap();
    std::fs::write(rig.dir.log(), "theirs\n").unwrap();
    rig.sink.reopen().unwrap();
    rig.out("new\n");
    assert_eq!(rig.dir.text("log"), "theirs\nstdout F new\n");
}

#[test]
fn a_failed_reopen_changes_nothing() {
    let mut rig = Rig::new(|_| {});
    rig.out("a\n");
    let moved = rig.dir.0.with_extension("gone");
    std::fs::rename(&rig.dir.0, &moved).unwrap();
    let error = rig.sink.reopen().unwrap_err();
    assert_eq!(error.to_string(), format!("reopen log file {}", rig.dir.log().display()));
    rig.out("b\n");
    std::fs::rename(&moved, &rig.dir.0).unwrap();
    assert_eq!(rig.dir.text("log"), "stdout F a\nstdout F b\n");
    // Nor is a link followed, or a directory taken for a log.
    std::fs::remove_file(rig.dir.log()).unwrap();
    std::os::unix::fs::symlink("elsewhere", rig.dir.log()).unwrap();
    rig.sink.reopen().unwrap_err();
    assert_eq!(rig.dir.names(), ["log"]);
}

#[test]
fn the_size_limit_truncates_between_records() {
    let mut rig = Rig::new(|c| c.limits.file = 150);
    for n in 0..10 {
        rig.out(&format!("line {n}\n"));
    }
    // A record has 52 bytes: two fit.
    assert_eq!(rig.dir.text("log"), "stdout F line 8\nstdout F line 9\n");
    rig.out("x\ny\nz\n");
    assert_eq!(rig.dir.text("log"), "stdout F x\nstdout F y\nstdout F z\n");
    assert_eq!(rig.dir.names(), ["log"]);
}

#[test]
fn the_size_limit_brings_a_vanished_log_back() {
    let mut rig = Rig::new(|c| c.limits.file = 60);
    rig.out("old\n");
    std::fs::rename(rig.dir.log(), rig.dir.0.join("kept")).unwrap();
    std::fs::set_permissions(&rig.dir.0, std::fs::Permissions::from_mode(0o777)).unwrap();
    rig.out("new\n");
    assert_eq!(rig.dir.text("kept"), "stdout F old\n");
    assert_eq!(rig.dir.text("log"), "stdout F new\n");
}

#[test]
fn the_size_limit_counts_what_was_there_and_foreign_truncation() {
    let dir = Dir::new();
    std::fs::write(dir.log(), "x".repeat(140) + "\n").unwrap();
    let config =
        FileConfig { path: dir.log(), limits: SizeLimits { file: 150, total: 0 }, ..FileConfig::default() };
    let sink = FileSink::open(config).unwrap();
    let mut rig = Rig { dir, sink, losses: Losses::default() };
    rig.out("a\n");
    assert_eq!(rig.dir.text("log"), "stdout F a\n");
    rig.out("b\n");
    rig.out("c\n");
    // logrotate's copytruncate: the next record is at the beginning, and there is room for three again.
    std::fs::OpenOptions::new().write(true).open(rig.dir.log()).unwrap().set_len(0).unwrap();
    for text in ["d\n", "e\n", "f\n"] {
        rig.out(text);
    }
    assert_eq!(rig.dir.text("log"), "stdout F d\nstdout F e\nstdout F f\n");
}

#[test]
fn the_total_limit_drops_and_counts() {
    let mut rig = Rig::new(|c| c.limits.total = 100);
    for _ in 0..5 {
        rig.out("1234\n");
    }
    assert_eq!(rig.dir.text("log"), "stdout F 1234\nstdout F 1234\n");
    assert_eq!(rig.losses.iter().collect::<Vec<_>>(), [(LossCause::SizeLimit, 15)]);
}

#[test]
fn rotation_keeps_exactly_so_many_files() {
    for keep in [1u32, 3] {
        let mut rig = Rig::new(|c| {
            c.limits.file = 60;
            c.max_files = Some(keep);
        });
        // What a crashed predecessor left does not block it.
        std::fs::write(rig.dir.0.join(".log.pintle-new"), "stale").unwrap();
        for n in 0..9 {
            rig.out(&format!("line {n}\n"));
        }
        let mut want = vec!["log".to_owned()];
        want.extend((1..=keep).map(|n| format!("log.{n}")));
        assert_eq!(rig.dir.names(), want);
        assert_eq!(rig.dir.text("log"), "stdout F line 8\n");
        for n in 1..=keep {
            assert_eq!(rig.dir.text(&format!("log.{n}")), format!("stdout F line {}\n", 8 - n));
        }
    }
}

#[test]
fn a_gap_in_the_old_files_costs_no_older_one() {
    let mut rig = Rig::new(|c| c.max_files = Some(3));
    std::fs::write(rig.dir.0.join("log.3"), "oldest").unwrap();
    rig.out("first\n");
    rig.sink.reopen().unwrap();
    assert_eq!(rig.dir.text("log.1"), "stdout F first\n");
    assert_eq!(std::fs::read(rig.dir.0.join("log.3")).unwrap(), b"oldest");
}

/// ext4 writes a file to the disk when it is renamed over another.
#[test]
fn rotation_renames_over_nothing() {
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    let mut rig = Rig::new(|c| c.max_files = Some(2));
    rig.sink.reopen().unwrap();
    rig.sink.reopen().unwrap();
    let mut there: Vec<_> = rig.dir.names();
    assert_eq!(there, ["log", "log.1", "log.2"]);
    let watch = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    let changes = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVE;
    watch.add_watch(&rig.dir.0, changes).unwrap();
    rig.sink.reopen().unwrap();
    for event in watch.read_events().unwrap() {
        let name = event.name.unwrap().into_string().unwrap();
        if event.mask.contains(AddWatchFlags::IN_MOVED_TO) {
            assert!(!there.contains(&name), "{name} was replaced");
            there.push(name);
        } else {
            there.retain(|n| *n != name);
        }
    }
    there.sort();
    assert_eq!(there, ["log", "log.1", "log.2"]);
}

#[test]
fn reopening_a_rotating_log_rotates_it() {
    let mut rig = Rig::new(|c| c.max_files = Some(1));
    rig.out("old\n");
    rig.sink.reopen().unwrap();
    rig.out("new\n");
    assert_eq!(rig.dir.text("log.1"), "stdout F old\n");
    assert_eq!(rig.dir.text("log"), "stdout F new\n");
    // Somebody else has renamed it: the name comes back, nothing is shifted.
    std::fs::rename(rig.dir.log(), rig.dir.0.join("kept")).unwrap();
    rig.sink.reopen().unwrap();
    rig.out("newest\n");
    assert_eq!(rig.dir.text("log"), "stdout F newest\n");
    assert_eq!(rig.dir.text("log.1"), "stdout F old\n");
}

#[test]
fn a_vanished_log_is_made_anew_only_in_trusted_directories() {
    let dir = Dir::new();
    let allowed = vec![dir.0.join("nowhere")];
    let mut rig = Rig::new(|c| {
        c.max_files = Some(1);
        c.allow_dirs = allowed;
    });
    std::fs::remove_file(rig.dir.log()).unwrap();
    let error = rig.sink.reopen().unwrap_err().to_string();
    assert!(error.ends_with("its directory is in none of the allowed ones"), "{error}");
    rig.sink.config.allow_dirs = vec![rig.dir.0.clone()];
    std::fs::set_permissions(&rig.dir.0, std::fs::Permissions::from_mode(0o777)).unwrap();
    let error = rig.sink.reopen().unwrap_err().to_string();
    assert!(error.ends_with("its directory is writable for everybody"), "{error}");
    std::fs::set_permissions(&rig.dir.0, std::fs::Permissions::from_mode(0o755)).unwrap();
    rig.sink.reopen().unwrap();
    rig.out("x\n");
    assert_eq!(rig.dir.text("log"), "stdout F x\n");
}

#[test]
fn a_full_disk_is_counted_and_marked_when_it_has_room_again() {
    let mut rig = Rig::new(|_| {});
    rig.out("before\n");
    let disk = std::mem::replace(&mut rig.sink.file, full_device());
    rig.out("lost\nlost, too\n");
    rig.put(Stream::Stderr, "gone");
    assert_eq!(rig.losses.iter().collect::<Vec<_>>(), [(LossCause::Errno(libc::ENOSPC), 19)]);
    rig.sink.file = disk;
    rig.out("after\n");
    // stderr stands within a line, so the marker goes to the stream that does not.
    assert_eq!(
        rig.dir.text("log"),
        "stdout F before\nstdout F [pintle: 19 bytes of output lost: ENOSPC]\nstdout F after\n"
    );
    rig.sink.finish(false).unwrap();
    assert_eq!(rig.losses.total(), 19);
}

#[test]
fn a_torn_record_is_taken_back() {
    let mut rig = Rig::new(|_| {});
    rig.out("whole\n");
    // As if a write had stopped within the second of three records.
    let mut records = Vec::new();
    cri::encode(&mut records, b"2026-11-23T20:15:45.133617925+00:00", Stream::Stdout, b"one\ntwo\nthree\n");
    let written = 45 + 4 + 20;
    std::io::Write::write_all(&mut &rig.sink.file, &records[..written]).unwrap();
    let error = io::Error::from_raw_os_error(libc::EIO);
    let mut losses = Losses::default();
    rig.sink.lose(&records, &records[written..], &error, &mut losses);
    assert_eq!(losses.iter().collect::<Vec<_>>(), [(LossCause::Errno(libc::EIO), 10)]);
    assert_eq!(rig.dir.text("log"), "stdout F whole\nstdout F one\n");
    rig.out("four\n");
    let tail = "stderr F [pintle: 10 bytes of output lost: EIO]\nstdout F four\n";
    assert_eq!(rig.dir.text("log"), format!("stdout F whole\nstdout F one\n{tail}"));
}

#[test]
fn devices_are_not_rotated() {
    let config = FileConfig {
        path: "/dev/null".into(),
        limits: SizeLimits { file: 1, total: 0 },
        ..FileConfig::default()
    };
    let mut sink = FileSink::open(config).unwrap();
    let mut losses = Losses::default();
    let chunk = Chunk { stream: Stream::Stdout, data: b"x\ny\n", now: WallTime::default() };
    sink.write(&chunk, &mut Vec::new(), &mut losses);
    sink.reopen().unwrap();
    sink.finish(true).unwrap();
    assert_eq!(losses.total(), 0);
    let flags = nix::fcntl::fcntl(&sink.file, nix::fcntl::FcntlArg::F_GETFL).unwrap();
    assert!(OFlag::from_bits_retain(flags).contains(OFlag::O_APPEND));
    assert_eq!(std::fs::metadata("/dev/null").unwrap().mode() & libc::S_IFMT, libc::S_IFCHR);
}

#[test]
fn opening_fails_with_the_path() {
    let error =
        FileSink::open(FileConfig { path: "/nowhere/log".into(), ..FileConfig::default() }).unwrap_err();
    assert_eq!(error.to_string(), "open log file /nowhere/log");
    assert_eq!(error.io().unwrap().raw_os_error(), Some(libc::ENOENT));
}

#[test]
fn constant_rotation_loses_and_tears_nothing() {
    let mut rig = Rig::new(|c| {
        c.limits.file = 4096;
        c.max_files = Some(400);
    });
    let mut input = String::new();
    for n in 0..3000 {
        let line = format!("{n} {}\n", "x".repeat(n % 97));
        rig.out(&line);
        input.push_str(&line);
    }
    let mut joined = String::new();
    for n in (1..=400).rev() {
        let name = format!("log.{n}");
        if rig.dir.0.join(&name).exists() {
            assert!(std::fs::metadata(rig.dir.0.join(&name)).unwrap().len() <= 4096);
            joined.push_str(&rig.dir.text(&name));
        }
    }
    joined.push_str(&rig.dir.text("log"));
    assert_eq!(joined.replace("stdout F ", ""), input);
}

#[test]
fn a_cut_off_line_is_closed_where_that_was_asked_for() {
    for (close_partial, want) in
        [(false, "stdout P cut\nstderr F whole\n"), (true, "stdout P cut\nstderr F whole\nstdout F \n")]
    {
        let mut rig = Rig::new(|c| c.close_partial = close_partial);
        rig.out("cut");
        rig.put(Stream::Stderr, "whole\n");
        for stream in Stream::ALL {
            rig.sink.end(stream, WallTime::new(1_795_464_945, 7), &mut Vec::new(), &mut rig.losses);
        }
        rig.sink.finish(false).unwrap();
        assert_eq!(rig.dir.text("log"), want);
    }
}

/// What a JSON parser reads in all files of a log, oldest first.
fn json_of(dir: &Dir, stream: &str) -> String {
    let mut names: Vec<String> = dir.names().into_iter().filter(|n| n.starts_with("log")).collect();
    names.sort_by_key(|n| std::cmp::Reverse(n.strip_prefix("log.").map_or(0, |n| n.parse::<u32>().unwrap())));
    let mut text = String::new();
    for name in names {
        for line in std::fs::read_to_string(dir.0.join(name)).unwrap().lines() {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            if record["stream"] == stream {
                text.push_str(record["log"].as_str().unwrap());
            }
        }
    }
    text
}

#[test]
fn json_records_are_whole_in_every_file() {
    let mut rig = Rig::new(|c| {
        c.json = true;
        c.limits.file = 4096;
        c.max_files = Some(400);
    });
    let mut input = String::new();
    for n in 0..3000 {
        // Cut anywhere: a line is one record all the same.
        let line = format!("{n} <\u{20ac}> {}\n", "x".repeat(n % 97));
        let (head, tail) = line.split_at(n % 3);
        rig.out(head);
        rig.out(tail);
        input.push_str(&line);
    }
    rig.out("no end");
    rig.sink.end(Stream::Stdout, WallTime::default(), &mut Vec::new(), &mut rig.losses);
    assert_eq!(json_of(&rig.dir, "stdout"), input + "no end");
    assert!(rig.dir.names().iter().all(|n| std::fs::metadata(rig.dir.0.join(n)).unwrap().len() <= 4096));
    assert_eq!(rig.losses, Losses::default());
    assert_eq!(rig.sink.driver(), "json-file");
}

#[test]
fn json_on_a_full_disk_is_counted_and_marked() {
    let mut rig = Rig::new(|c| c.json = true);
    rig.out("before\n");
    let disk = std::mem::replace(&mut rig.sink.file, full_device());
    rig.out("\"lost\" \u{2028}\nhalf");
    // The half line is not lost: it is held.
    assert_eq!(rig.losses.iter().collect::<Vec<_>>(), [(LossCause::Errno(libc::ENOSPC), 11)]);
    rig.sink.file = disk;
    rig.out(" line\n");
    assert_eq!(json_of(&rig.dir, "stdout"), "before\nhalf line\n");
    assert_eq!(json_of(&rig.dir, "stderr"), "[pintle: 11 bytes of output lost: ENOSPC]\n");
}

#[test]
fn what_json_holds_is_handed_over() {
    let mut rig = Rig::new(|c| c.json = true);
    rig.out("one li");
    rig.put(Stream::Stderr, "err");
    let (state, fds) = rig.sink.freeze().unwrap().unwrap();
    let state = serde_json::from_slice(&serde_json::to_vec(&state).unwrap()).unwrap();
    rig.sink = FileSink::thaw(state, fds).unwrap();
    rig.out("ne\n");
    for stream in Stream::ALL {
        rig.sink.end(stream, WallTime::default(), &mut Vec::new(), &mut rig.losses);
    }
    assert_eq!(
        (json_of(&rig.dir, "stdout"), json_of(&rig.dir, "stderr")),
        ("one line\n".into(), "err".into())
    );
}
