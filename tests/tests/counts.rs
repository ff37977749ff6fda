//! What is promised by the thousand: short lives whose last byte must be there, races for the OOM verdict, and a log
//! without end.
//!
//! Under `cargo xtask test --dist --full counts` ten thousand of each and a terabyte; by default a few.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_client::{EventKind, Exit, ExitReason, Monitor};
use pintle_tests::{
    Bundle, Container, Native, fds, full, let_pass, private_dirty_kib, read_cri, rejoin, scaled,
};

const LONG: Duration = Duration::from_secs(120);
/// Lives at the same time.
const WORKERS: usize = 4;
/// Enough for runc's start and too little for [`HOG`].
const MEMORY: i64 = 20 << 20;
/// Takes more than [`MEMORY`] at once.
const HOG: &str = "dd if=/dev/zero of=/dev/null bs=64M count=1";

/// Runs `work` for each number below `count`, on several threads, each with a runtime of its own: the numbers that
/// one thread gets are one after the other.
fn spread(count: usize, work: impl Fn(usize, &tokio::runtime::Runtime) + Sync) {
    let (next, began) = (AtomicUsize::new(0), Instant::now());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..WORKERS)
            .map(|_| {
                scope.spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                    let runtime = runtime.expect("start a runtime");
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= count {
                            return;
                        }
                        work(n, &runtime);
                        if full() && n % 1000 == 999 {
                            println!("{} after {:.0} s", n + 1, began.elapsed().as_secs_f64());
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                // The others find nothing more to do.
                next.store(count, Ordering::Relaxed);
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// Waits until a file of this name is renamed into the watched directory.
fn await_file(watch: &Inotify, name: &str) {
    let end = Instant::now() + LONG;
    loop {
        let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        let came = poll(&mut fds, 1000u16).expect("poll");
        assert!(Instant::now() < end, "no exit file of {name} within {LONG:?}");
        if came > 0 {
            let events = watch.read_events().expect("read what happened in the exit directory");
            if events.iter().any(|e| e.name.as_deref().is_some_and(|n| n == name)) {
                return;
            }
        }
    }
}

/// What a life prints: some length, with and without a last newline.
fn words(n: usize) -> Vec<u8> {
    let length = n * 7919 % 40_000;
    let mut bytes = format!("life {n} prints what is known before\n").into_bytes();
    bytes = bytes.into_iter().cycle().take(length).collect();
    if n % 3 == 0 {
        bytes.push(b'\n');
    }
    bytes
}

/// Started, ended and forgotten: the log is whole at the moment when the exit file appears, code and events are
/// right, and nothing stays.
#[test]
fn lives_lose_nothing_and_leave_nothing() {
    let place = Native::new("lives");
    let exits = place.path().join("exits");
    fs::create_dir(&exits).expect("create the exit directory");
    let life = async |n: usize, exits: &Path, watch: &Inotify| {
        let expected = words(n);
        let code = (n % 256) as i32;
        let script = format!("cat /data/words; echo {n} >&2; exit {code}");
        let id = pintle_tests::unique_id("n");
        let data = place.path().join(&id).join("data");
        fs::create_dir_all(&data).expect("create a directory");
        fs::write(data.join("words"), &expected).expect("write the words");
        let mut options = place.options(&id, &Bundle::sh(&script).bind(&data, "/data"));
        options.exit_dir = Some(exits.to_path_buf());
        let monitor = place.shim(&id).await;
        monitor.create(&options).await.unwrap_or_else(|e| panic!("create {id}: {e:?}"));
        monitor.start().await.unwrap_or_else(|e| panic!("start {id}: {e:?}"));
        await_file(watch, &id);
        // At this very moment:
        let (log, told) = (fs::read(&options.logs[0].path), fs::read_to_string(exits.join(&id)));
        let record = pintle_client::read_exit_record(&place.root().join(&id));
        let log = pintle_tests::parse_cri(&log.expect("a log")).unwrap_or_else(|e| panic!("{id}: {e}"));
        let (out, err) = (rejoin(&log, "stdout"), rejoin(&log, "stderr"));
        assert!(out == expected, "life {n}: {} bytes of {} are in the log", out.len(), expected.len());
        assert_eq!(err, format!("{n}\n").into_bytes(), "life {n}: stderr");
        assert_eq!(told.expect("an exit file"), code.to_string(), "life {n}");
        assert_eq!(record.expect("an exit record").reason, ExitReason::Code(code), "life {n}");

        let exit = monitor.wait(Some(LONG)).await.unwrap_or_else(|e| panic!("wait for {id}: {e:?}"));
        assert_eq!((&exit.reason, exit.oom_killed), (&ExitReason::Code(code), false), "life {n}");
        let events = monitor.poll_events(0, Duration::ZERO).await.unwrap_or_else(|e| panic!("{id}: {e:?}"));
        let kinds: Vec<EventKind> = events.iter().map(|e| e.kind).collect();
        let once = [EventKind::Created, EventKind::Started, EventKind::Exited];
        let seen: Vec<EventKind> = kinds.iter().copied().filter(|k| once.contains(k)).collect();
        assert_eq!(seen, once, "life {n}: {kinds:?}");
        monitor.delete(false).await.unwrap_or_else(|e| panic!("delete {id}: {e:?}"));
        // Ten thousand of them would fill the disk.
        fs::remove_dir_all(place.path().join(&id)).expect("remove the bundle");
        fs::remove_file(exits.join(&id)).expect("remove the exit file");
    };
    spread(scaled(24, 10_000), |n, runtime| {
        thread_local! {
            static EXITS: std::cell::OnceCell<(PathBuf, Inotify)> = const { std::cell::OnceCell::new() };
        }
        EXITS.with(|mine| {
            let (dir, watch) = mine.get_or_init(|| {
                let dir = exits.join(n.to_string());
                fs::create_dir(&dir).expect("create an exit directory");
                let watch = Inotify::init(InitFlags::IN_CLOEXEC).expect("watch");
                watch.add_watch(&dir, AddWatchFlags::IN_MOVED_TO).expect("watch the exit directory");
                (dir, watch)
            });
            runtime.block_on(life(n, dir, watch));
        });
    });
    for dir in fs::read_dir(&exits).expect("exit directories").flatten() {
        fs::remove_dir(dir.path()).expect("nothing is left in an exit directory");
    }
    place.finish();
}

/// Directories of a container's cgroups, in every hierarchy.
fn cgroups_of(pid: i32, id: &str) -> Vec<PathBuf> {
    let list = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroups of the container");
    let mut found = Vec::new();
    for line in list.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        if path.contains(id) {
            let mount = if controllers.is_empty() { "unified" } else { controllers };
            for mount in [format!("/sys/fs/cgroup/{mount}"), "/sys/fs/cgroup".into()] {
                let dir = Path::new(&mount).join(path.trim_start_matches('/'));
                if dir.is_dir() {
                    found.push(dir);
                }
            }
        }
    }
    assert!(!found.is_empty(), "no cgroup of {id} in {list}");
    found
}

/// Removes cgroups as soon as the kernel lets it, as systemd does with a scope.
struct Remover(Arc<AtomicBool>, Option<std::thread::JoinHandle<usize>>);

impl Remover {
    fn of(dirs: Vec<PathBuf>, backwards: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut dirs = dirs;
            if backwards {
                dirs.reverse();
            }
            let mut removed = 0;
            while !dirs.is_empty() && !stopped.load(Ordering::Relaxed) {
                dirs.retain(|dir| match fs::remove_dir(dir) {
                    Ok(()) => {
                        removed += 1;
                        false
                    }
                    Err(_) => dir.exists(),
                });
                let_pass(Duration::from_micros(200));
            }
            removed
        });
        Self(stop, Some(thread))
    }

    /// How many it was the one to remove.
    fn stop(mut self) -> usize {
        self.0.store(true, Ordering::Relaxed);
        self.1.take().map_or(0, |t| t.join().expect("the remover"))
    }
}

/// How a race is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Race {
    /// Killed by its limit.
    Oom,
    /// Killed by its limit, the cgroups removed at once.
    OomRemoved,
    /// SIGKILL, the cgroups removed at once.
    KillRemoved,
    /// SIGKILL by somebody else than the shim.
    Kill,
    /// It ends by itself, the cgroups removed at once.
    CodeRemoved,
    /// A child is killed by the limit, then it ends by itself.
    Child,
}

const RACES: [Race; 6] =
    [Race::Oom, Race::OomRemoved, Race::KillRemoved, Race::Kill, Race::CodeRemoved, Race::Child];

async fn race(place: &Native, n: usize, race: Race) -> usize {
    let script = match race {
        Race::Oom | Race::OomRemoved => format!("exec {HOG}"),
        Race::Kill | Race::KillRemoved => "echo on; exec sleep 1000".to_owned(),
        Race::CodeRemoved => format!("exit {}", n % 256),
        Race::Child => format!("{HOG} 2>/dev/null; exit {}", n % 256),
    };
    let c = place.create(&Bundle::sh(&script).memory(MEMORY)).await;
    let pid = c.state().await.process.expect("a process").pid;
    let removed = matches!(race, Race::OomRemoved | Race::KillRemoved | Race::CodeRemoved);
    let remover = removed.then(|| Remover::of(cgroups_of(pid, &c.id), n % 2 == 0));
    c.monitor.start().await.unwrap_or_else(|e| panic!("race {n} {race:?}: start: {e:?}"));
    if matches!(race, Race::Kill | Race::KillRemoved) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill the container");
    }
    let exit = wait(&c.monitor, n, race).await;
    let state = c.state().await;
    let said = format!("race {n} {race:?}: {exit:?}, {} OOM kills", state.oom_kills);
    let killed = exit.reason == ExitReason::Signal { signal: 9, core_dumped: false };
    match race {
        Race::Oom | Race::OomRemoved => {
            assert!(killed && exit.oom_killed && state.oom_kills >= 1, "{said}");
        }
        Race::Kill | Race::KillRemoved => {
            assert!(killed && !exit.oom_killed && state.oom_kills == 0, "{said}");
        }
        Race::CodeRemoved | Race::Child => {
            assert_eq!(exit.reason, ExitReason::Code((n % 256) as i32), "{said}");
            assert!(!exit.oom_killed, "{said}");
            assert_eq!(state.oom_kills >= 1, race == Race::Child, "{said}");
        }
    }
    let record = pintle_client::read_exit_record(&place.root().join(&c.id)).expect("an exit record");
    assert_eq!((record.reason, record.oom_killed), (exit.reason, exit.oom_killed), "{said}");
    let removed = remover.map_or(0, Remover::stop);
    forget(&c, n).await;
    removed
}

async fn wait(monitor: &Monitor, n: usize, race: Race) -> Exit {
    monitor.wait(Some(LONG)).await.unwrap_or_else(|e| panic!("race {n} {race:?}: wait: {e:?}"))
}

async fn forget(c: &Container, n: usize) {
    c.monitor.delete(false).await.unwrap_or_else(|e| panic!("race {n}: delete: {e:?}"));
    fs::remove_dir_all(&c.dir).expect("remove the bundle");
}

/// The verdict is right each time: own limit, a plain SIGKILL, an ordinary end, a child that was hit; with the
/// cgroups removed under the shim, in any order, as systemd and runtimes do it.
#[test]
fn oom_verdicts_are_right_in_every_race() {
    let place = Native::new("races");
    let removed = AtomicUsize::new(0);
    let count = scaled(24, 10_000);
    spread(count, |n, runtime| {
        let gone = runtime.block_on(race(&place, n, RACES[n % RACES.len()]));
        removed.fetch_add(gone, Ordering::Relaxed);
    });
    let removed = removed.into_inner();
    println!("{count} races, {removed} cgroups removed before the runtime did");
    assert!(removed > 0, "the cgroups were never removed early: nothing was raced");
    place.finish();
}

/// A log without end: a terabyte goes through a shim into files that are rotated, each byte is read and none is lost, the
/// disk holds what it may, and the shim's memory and descriptors are after each part what they were after the first.
#[tokio::test]
async fn a_terabyte_of_log_leaves_the_shim_as_it_was() {
    /// Ends of the block that is written again and again are ends of lines.
    const BLOCK: usize = 16_000_000;
    const PARTS: u64 = 16;
    const MAX_SIZE: u64 = 32 << 20;
    let place = Native::new("terabyte");
    let blocks = scaled(16, 62_500);
    let total = (blocks * BLOCK) as u64;
    let data = place.path().join("data");
    fs::create_dir(&data).expect("create a directory");
    let block: Vec<u8> = (0..BLOCK / 200).flat_map(|n| format!("{n:0>198}-\n").into_bytes()).collect();
    assert_eq!(block.len(), BLOCK);
    fs::write(data.join("block"), &block).expect("write the block");
    let script = format!("i=0; while [ $i -lt {blocks} ]; do cat /data/block; i=$((i+1)); done; exit 7");
    let began = Instant::now();
    let c = place
        .start_with(&Bundle::sh(&script).bind(&data, "/data"), |o| {
            o.logs[0].max_size = MAX_SIZE;
            o.logs[0].max_files = 2;
        })
        .await;
    let pid = c.shim_pid().await;
    let files = |c: &Container| {
        let entries = fs::read_dir(&c.dir).expect("the bundle").flatten();
        entries.filter(|e| e.file_name().to_string_lossy().starts_with("log")).collect::<Vec<_>>()
    };
    // Held against the first part: private memory and descriptors. Proportional memory would tell of the shims of other
    // tests, which share the program's text.
    let (mut first, mut most, mut parts) = (None, [0; 2], 0);
    loop {
        let state = c.state().await;
        let read = state.io.stdout_bytes;
        if read >= (parts + 1) * (total / PARTS) {
            parts = read / (total / PARTS);
            let now = [private_dirty_kib(pid), fds(pid).len() as u64];
            first.get_or_insert(now);
            most = std::array::from_fn(|i| most[i].max(now[i]));
            let disk: u64 = files(&c).iter().filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum();
            assert!(disk <= 3 * (MAX_SIZE + 300_000), "{disk} bytes of log on the disk");
            println!(
                "{read} bytes after {:.0} s: {now:?}, {disk} bytes on the disk",
                began.elapsed().as_secs_f64()
            );
        }
        if state.exit.is_some() {
            break;
        }
        assert!(
            began.elapsed() < LONG * scaled(4, 80) as u32,
            "{read} of {total} bytes in {:?}",
            began.elapsed()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let exit = c.monitor.wait(Some(LONG)).await.expect("the end");
    assert_eq!(exit.reason, ExitReason::Code(7));
    let io = c.state().await.io;
    assert_eq!((io.stdout_bytes, io.lost_bytes.len()), (total, 0), "{io:?}");
    let first = first.expect("a part");
    for (i, (what, more)) in [("private memory", 128), ("descriptors", 2)].iter().enumerate() {
        assert!(most[i] <= first[i] + more, "{what}: {} at first, {} at most", first[i], most[i]);
    }
    // What is kept is the end of what was written.
    let mut kept = Vec::new();
    for n in (0..=2).rev() {
        let name = if n == 0 { c.log.clone() } else { c.log.with_file_name(format!("log.{n}")) };
        kept.extend(read_cri(&name));
    }
    let kept = rejoin(&kept, "stdout");
    assert!(kept.len() as u64 > MAX_SIZE, "{} bytes are kept", kept.len());
    let expected = block.iter().rev().cycle();
    assert!(kept.iter().rev().eq(expected.take(kept.len())), "what is kept is not the newest");
    println!("{total} bytes in {:.0} s: {first:?} at first, {most:?} at most", began.elapsed().as_secs_f64());
    c.delete().await;
    place.finish();
}
