//! Nobody gets in, nothing leaks out, nobody can make the shim grow.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pintle_client::{ErrorKind, ExecOptions, ExecSyncOptions, ExitReason, Monitor};
use pintle_tests::{
    Act, Bundle, Conmon, Container, Containerd, FakeRuntime, Native, OURS, TempDir, conmon, connect_packets,
    eventually, fds, output_within, pass_fds, private_dirty_kib, process_alive, read_cri, rejoin, runtimes,
    scaled, shim, unique_id, wait_for,
};

const SOON: Option<Duration> = Some(Duration::from_secs(60));
const NOBODY: libc::c_long = 65_534;

/// Runs this on a thread that is another user. The kernel keeps credentials per thread; only the C
/// library spreads them over a process.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: system calls with numbers and an empty list; they change this thread alone.
            unsafe {
                assert_eq!(libc::syscall(libc::SYS_setgroups, 0usize, std::ptr::null::<libc::gid_t>()), 0);
                assert_eq!(libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY), 0);
                assert_eq!(libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY), 0);
            }
            work()
        });
        thread.join().expect("the other user's thread")
    })
}

fn mode(path: &Path) -> u32 {
    let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("look at {}: {e}", path.display()));
    meta.permissions().mode() & 0o7777
}

/// Opens the way for everybody: what then keeps others out is the check of their uid.
fn throw_open(socket: &Path) {
    for dir in socket.ancestors().skip(1).take_while(|d| *d != Path::new("/tmp") && *d != Path::new("/run")) {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).expect("open a directory");
    }
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).expect("open a socket");
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stream,
    Packet,
}

/// Connects and waits to be closed; an error is what else happened.
fn is_closed(path: &Path, kind: Kind) -> Result<(), String> {
    let fd: OwnedFd = match kind {
        Kind::Stream => UnixStream::connect(path).map_err(|e| format!("connect: {e}"))?.into(),
        Kind::Packet => connect_packets(path).map_err(|e| format!("connect: {e}"))?,
    };
    let limit = nix::sys::time::TimeVal::new(30, 0);
    nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::ReceiveTimeout, &limit).expect("timeout");
    let mut buffer = [0; 64];
    match nix::sys::socket::recv(fd.as_raw_fd(), &mut buffer, nix::sys::socket::MsgFlags::empty()) {
        Ok(0) | Err(nix::errno::Errno::ECONNRESET) => Ok(()),
        other => Err(format!("not closed: {other:?}")),
    }
}

/// Others are closed, the owner is not.
fn keeps_others_out(path: &Path, kind: Kind) {
    throw_open(path);
    as_nobody(|| is_closed(path, kind)).unwrap_or_else(|e| panic!("{} for others: {e}", path.display()));
    let fd: OwnedFd = match kind {
        Kind::Stream => UnixStream::connect(path).expect("connect").into(),
        Kind::Packet => connect_packets(path).expect("connect"),
    };
    let mut poll = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&fd), nix::poll::PollFlags::POLLIN)];
    // Long after the other was closed.
    let n = nix::poll::poll(&mut poll, 300u16).expect("poll");
    if n > 0 {
        let mut buffer = [0; 4096];
        let got = nix::unistd::read(&fd, &mut buffer);
        assert!(got.is_ok_and(|n| n > 0), "{} closed its owner", path.display());
    }
}

async fn sleeper(native: &Native) -> Container {
    native.start(&Bundle::new(&["/bin/sleep", "100000"])).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_door_lets_nobody_in() {
    let native = Native::new("snat");
    let c = sleeper(&native).await;
    let dir = c.monitor.dir().to_path_buf();
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&native.root()), 0o700);
    for name in ["monitor.sock", "stdio.sock", "attach.sock"] {
        assert_eq!(mode(&dir.join(name)), 0o600, "{name}");
    }
    for entry in fs::read_dir(&dir).expect("state directory").flatten() {
        let m = mode(&entry.path());
        assert_eq!(m & 0o077, 0, "{} has mode {m:o}", entry.path().display());
    }
    let path = dir.join("monitor.sock");
    as_nobody(|| UnixStream::connect(&path)).expect_err("the directory is closed to others");
    keeps_others_out(&path, Kind::Stream);
    keeps_others_out(&dir.join("stdio.sock"), Kind::Packet);
    keeps_others_out(&dir.join("attach.sock"), Kind::Packet);
    c.monitor.info().await.expect("the shim goes on");
    c.delete().await;
    native.finish();
}

#[test]
fn conmon_door_lets_nobody_in() {
    let dir = TempDir::new("scon");
    let mut running = Conmon::create(&dir, &Bundle::new(&["/bin/sleep", "100000"])).start();
    running.begin();
    let attach = running.call.path("bundle/attach");
    assert_eq!(mode(&attach.canonicalize().expect("the attach socket")) & 0o077, 0);
    keeps_others_out(&attach.canonicalize().expect("the attach socket"), Kind::Packet);
    assert!(process_alive(running.monitor()));
    let out = running.runtime(&["kill", &running.call.id, "KILL"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(running.exit_file(), "137");
    running.gone();
}

#[test]
fn containerd_door_lets_nobody_in() {
    let daemon = Containerd::start("sctd");
    let id = unique_id("s");
    let out = output_within(&mut daemon.run_command(OURS, &id, &["-d"], &["/bin/sleep", "100000"]));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let socket = daemon.shim_socket(&id);
    assert_eq!(mode(&socket) & 0o077, 0, "{}", socket.display());
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).expect("open a socket");
    // Its directory belongs to the daemon and to all its shims: it stays closed, so go through a link.
    let link = daemon.path().join("link.sock");
    fs::hard_link(&socket, &link).expect("link the socket");
    keeps_others_out(&link, Kind::Stream);
    fs::remove_file(&link).expect("unlink");
    daemon.remove(&id);
    daemon.nothing_left(&id);
}

/// Flags of each descriptor, from fdinfo.
fn flags(pid: u32) -> BTreeMap<i32, u32> {
    let dir = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("fdinfo");
    dir.flatten()
        .filter_map(|e| {
            let text = fs::read_to_string(e.path()).ok()?;
            let line = text.lines().find_map(|l| l.strip_prefix("flags:"))?.trim().to_string();
            Some((e.file_name().to_str()?.parse().ok()?, u32::from_str_radix(&line, 8).ok()?))
        })
        .collect()
}

/// A descriptor that every child of this process inherits.
fn canary(dir: &Path) -> (OwnedFd, PathBuf) {
    let path = dir.join("canary");
    let file = fs::File::create(&path).expect("create the canary");
    let n = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_DUPFD(200)).expect("duplicate");
    // SAFETY: the number was just made and belongs to nobody else.
    (unsafe { std::os::fd::FromRawFd::from_raw_fd(n) }, path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fd_census() {
    let native = Native::new("sfd");
    let (leak, path) = canary(native.path());
    let canary = path.to_string_lossy().into_owned();
    let list = native.path().join("runtime-fds");
    let look = format!(
        "for f in /proc/$$/fd/*; do echo \"$op $(readlink $f)\"; done >>'{}'; exec \"$RUNC\" \"$@\"",
        list.display()
    );
    let fake = ["create", "start", "exec", "kill", "delete"]
        .iter()
        .fold(FakeRuntime::new(), |f, op| f.on(op, Act::Script(look.clone())))
        .write(native.path());
    let bundle = Bundle::new(&["/bin/sleep", "100000"]);
    let c = native
        .start_with(&bundle, |o| {
            o.runtime.path = fake;
            o.stdin = true;
        })
        .await;
    let shim = c.shim_pid().await;
    let init = c.state().await.process.expect("a process").pid as u32;
    let exec = c.monitor.exec(&ExecOptions::new(["/bin/sleep", "100000"])).await.expect("exec");
    let _attached = c.monitor.attach(true).await.expect("attach");

    for (what, pid) in [("the container", init), ("an exec", exec.process.pid as u32)] {
        let open = fds(pid);
        assert_eq!(open.keys().copied().collect::<Vec<_>>(), [0, 1, 2], "{what}: {open:?}");
    }
    let open = fds(shim);
    assert!(!open.values().any(|to| *to == canary), "the shim keeps what it inherited: {open:?}");
    for (fd, f) in flags(shim) {
        let inherited = f & libc::O_CLOEXEC as u32 == 0;
        assert!(fd <= 2 || !inherited, "descriptor {fd} ({:?}) is not close-on-exec", open.get(&fd));
    }
    assert!(open.len() < 48, "{} descriptors: {open:?}", open.len());
    // Readers of the pipes are the shim's alone: the container sees its end when it closes.
    c.monitor.exec_sync(&ExecSyncOptions::new(["true"])).await.expect("exec");
    c.delete().await;

    let seen = fs::read_to_string(&list).expect("what the runtime saw");
    assert!(seen.lines().any(|l| l.starts_with("exec ")), "{seen}");
    for line in seen.lines() {
        let to = line.split_once(' ').expect("a word and a target").1;
        let known = to.starts_with("pipe:")
            || to == "/dev/null"
            || to.ends_with("/fake-runtime")
            || to.ends_with("/runtime-fds")
            || to.ends_with("/shim.log")
            // The shell's own look at its descriptors.
            || to.is_empty()
            || to.starts_with("/proc/");
        assert!(known, "the runtime got {line}");
    }
    drop(leak);
    native.finish();
}

#[test]
fn conmon_keeps_what_it_inherits_from_the_container() {
    let dir = TempDir::new("scfd");
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe");
    let call = Conmon::create(&dir, &Bundle::new(&["/bin/sleep", "100000"])).fd(writer, 33);
    let mut running = call.start();
    let init = running.begin() as u32;
    let open = fds(init);
    assert_eq!(open.keys().copied().collect::<Vec<_>>(), [0, 1, 2], "{open:?}");
    // A reserved port stays reserved while the container lives.
    assert!(fds(running.monitor()).contains_key(&33), "{:?}", fds(running.monitor()));
    let out = running.runtime(&["kill", &running.call.id, "KILL"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(running.exit_file(), "137");
    running.gone();
    let mut rest = Vec::new();
    fs::File::from(reader).read_to_end(&mut rest).expect("the end of the inherited pipe");
}

/// What a process says of itself: umask, blocked and ignored signals, capabilities to gain.
fn own_status(text: &str) -> BTreeMap<String, String> {
    let wanted = ["Umask", "SigBlk", "SigIgn", "NoNewPrivs"];
    text.lines()
        .filter_map(|l| l.split_once(':'))
        .filter(|(k, _)| wanted.contains(k))
        .map(|(k, v)| (k.to_string(), v.trim().to_string()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_the_caller_reaches_the_container() {
    let native = Native::new("senv");
    // A caller with a strange umask, blocked and ignored signals, and secrets.
    let strange = native.path().join("strange");
    let text = format!(
        "#!/bin/sh\numask 077\nexport PINTLE_TEST_SECRET=canary\n\
         exec env --block-signal=USR1,TERM,RTMAX --ignore-signal=HUP,PIPE,USR2 '{}' \"$@\"\n",
        shim().display()
    );
    fs::write(&strange, text).expect("write a script");
    fs::set_permissions(&strange, fs::Permissions::from_mode(0o755)).expect("make it executable");
    let score = fs::read_to_string("/proc/self/oom_score_adj").expect("own oom score");
    for (name, runtime) in runtimes() {
        let id = unique_id("env");
        let mut config = native.spawn_config(&id);
        config.shim = strange.clone();
        // The script may still be held open for writing by a fork of another test.
        let monitor = loop {
            match Monitor::spawn(config.clone()).await {
                Err(pintle_client::Error::Spawn { message, .. }) if message.contains("busy") => {}
                other => break other.expect("start a shim"),
            }
        };
        let script = "cat /proc/self/status; echo ENV; cat /proc/$$/environ | tr '\\0' '\\n'; \
                      echo SCORE; cat /proc/self/oom_score_adj; sleep 100000";
        let mut options = native.options(&id, &Bundle::sh(script));
        options.runtime.path = runtime;
        let log = options.logs[0].path.clone();
        monitor.create(&options).await.unwrap_or_else(|e| panic!("{name}: create: {e:?}"));
        monitor.start().await.unwrap_or_else(|e| panic!("{name}: start: {e:?}"));
        let out = eventually("the container to tell", || {
            let text = String::from_utf8_lossy(&rejoin(&read_cri(&log), "stdout")).into_owned();
            match text.split_once("SCORE\n") {
                Some((_, score)) if score.ends_with('\n') => Ok(text),
                _ => Err(text),
            }
        });
        let exec = ExecSyncOptions::new(["/bin/cat", "/proc/self/status"]);
        let exec = monitor.exec_sync(&exec).await.expect("exec");
        let exec = String::from_utf8_lossy(&exec.stdout).into_owned();
        for (what, text) in [("the container", &out), ("an exec", &exec)] {
            let status = own_status(text);
            assert_eq!(status["Umask"], "0022", "{name}, {what}");
            assert_eq!(status["SigBlk"], "0000000000000000", "{name}, {what}");
            // The C library's spawn leaves its own signals (32, 33) ignored in every program it starts.
            let ignored = u64::from_str_radix(&status["SigIgn"], 16).expect("a mask");
            assert_eq!(ignored & !(0b11 << 31), 0, "{name}, {what}: {ignored:x}");
            assert_eq!(status["NoNewPrivs"], "1", "{name}, {what}");
        }
        let (_, rest) = out.split_once("ENV\n").expect("environment");
        let (env, told) = rest.split_once("SCORE\n").expect("score");
        for line in env.lines().filter(|l| !l.is_empty()) {
            let key = line.split('=').next().unwrap_or(line);
            // runc sets HOME where it is missing; the shell itself adds nothing to its first environment.
            assert!(["PATH", "TERM", "HOME"].contains(&key), "{name}: the container got {line}");
        }
        assert_eq!(told.trim(), score.trim(), "{name}: oom_score_adj");
        monitor.delete(true).await.expect("delete");
    }
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_planted_beside_the_log_lead_nowhere() {
    let native = Native::new("slnk");
    let victim = native.path().join("victim");
    let ctl = native.path().join("ctl");
    fs::create_dir(&ctl).expect("create a directory");
    fs::write(&victim, "precious").expect("write");
    let untouched = || assert_eq!(fs::read_to_string(&victim).expect("victim"), "precious");
    let script = "i=0; while [ ! -e /ctl/stop ]; do echo line $i; i=$((i+1)); sleep 0.02; done; exit 3";
    let c = native.start(&Bundle::sh(script).bind(&ctl, "/ctl")).await;
    let log = c.log.clone();
    wait_for("output", || fs::read(&log).is_ok_and(|b| b.len() > 200));

    // A link in the log's place: not followed, and the old file stays in use.
    let old = log.with_extension("old");
    fs::rename(&log, &old).expect("rename the log");
    symlink(&victim, &log).expect("plant a link");
    let error = c.monitor.reopen_log().await.expect_err("a link is no log");
    assert!(error.kind().is_some(), "{error:?}");
    untouched();
    let size = fs::metadata(&old).expect("old log").len();
    wait_for("the old log to go on", || fs::metadata(&old).is_ok_and(|m| m.len() > size));
    // So for a link that leads to nothing: nothing is made there.
    fs::remove_file(&log).expect("remove the link");
    let nothing = native.path().join("nothing");
    symlink(&nothing, &log).expect("plant a link");
    c.monitor.reopen_log().await.expect_err("a link is no log");
    assert!(!nothing.exists());
    // A directory, a FIFO, a device: none of them is a log.
    fs::remove_file(&log).expect("remove the link");
    fs::create_dir(&log).expect("plant a directory");
    c.monitor.reopen_log().await.expect_err("a directory is no log");
    fs::remove_dir(&log).expect("remove the directory");
    nix::unistd::mkfifo(&log, nix::sys::stat::Mode::S_IRWXU).expect("plant a FIFO");
    c.monitor.reopen_log().await.expect_err("a FIFO is no log");
    fs::remove_file(&log).expect("remove the FIFO");
    c.monitor.reopen_log().await.expect("reopen");
    assert!(fs::symlink_metadata(&log).expect("log").is_file());
    assert_eq!(mode(&log), mode(&old), "the mode is kept");

    fs::write(ctl.join("stop"), "").expect("stop it");
    let exit = c.monitor.wait(SOON).await.expect("its end");
    assert_eq!(exit.reason, ExitReason::Code(3));
    let mut records = read_cri(&old);
    records.extend(read_cri(&log));
    let text = String::from_utf8(rejoin(&records, "stdout")).expect("text");
    for (i, line) in text.lines().enumerate() {
        assert_eq!(line, format!("line {i}"));
    }
    untouched();
    c.delete().await;
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_planted_at_the_names_of_rotation_lead_nowhere() {
    let native = Native::new("srot");
    let victim = native.path().join("victim");
    fs::write(&victim, "precious").expect("write");
    let id = unique_id("rot");
    let monitor = native.shim(&id).await;
    let script =
        "i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done";
    let mut options = native.options(&id, &Bundle::sh(script));
    (options.logs[0].max_size, options.logs[0].max_files) = (20_000, 3);
    let log = options.logs[0].path.clone();
    let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", log.display()));
    for name in [beside(".1"), beside(".2"), log.with_file_name(".log.pintle-new")] {
        symlink(&victim, &name).expect("plant a link");
    }
    monitor.create(&options).await.expect("create");
    monitor.start().await.expect("start");
    monitor.wait(SOON).await.expect("its end");
    assert_eq!(fs::read_to_string(&victim).expect("victim"), "precious");
    assert!(fs::symlink_metadata(beside(".1")).expect("a rotated file").is_file());
    assert!(fs::symlink_metadata(&log).expect("the log").is_file());
    monitor.delete(false).await.expect("delete");
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_are_names_and_not_paths() {
    let native = Native::new("sids");
    let long = "x".repeat(2000);
    for id in ["", ".", "..", "../up", "a/b", "/abs", "a\nb", "-x", long.as_str()] {
        let error = Monitor::spawn(native.spawn_config(id)).await.expect_err("a strange id");
        assert!(matches!(error, pintle_client::Error::Spawn { .. }), "{id:?}: {error:?}");
    }
    assert!(!native.path().join("up").exists());
    let c = sleeper(&native).await;
    for id in ["../up", "a/b", ".", "..", long.as_str()] {
        let mut options = ExecOptions::new(["true"]);
        options.id = id.into();
        let error = c.monitor.exec(&options).await.expect_err("a strange id");
        assert_eq!(error.kind(), Some(ErrorKind::InvalidArgument), "{id:?}: {error:?}");
    }
    c.delete().await;
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_directory_of_somebody_else_is_not_used() {
    let native = Native::new("sown");
    let id = unique_id("own");
    let root = native.root();
    fs::create_dir_all(root.join(&id)).expect("create a directory");
    std::os::unix::fs::chown(root.join(&id), Some(65_534), Some(65_534)).expect("give it away");
    let error = Monitor::spawn(native.spawn_config(&id)).await.expect_err("somebody else's directory");
    assert!(matches!(error, pintle_client::Error::Spawn { .. }), "{error:?}");
    fs::remove_dir(root.join(&id)).expect("remove it");
    // A link where the state directory should be.
    let elsewhere = native.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("create a directory");
    symlink(&elsewhere, root.join(&id)).expect("plant a link");
    let error = Monitor::spawn(native.spawn_config(&id)).await.expect_err("a link");
    assert!(matches!(error, pintle_client::Error::Spawn { .. }), "{error:?}");
    assert_eq!(fs::read_dir(&elsewhere).expect("elsewhere").count(), 0);
    fs::remove_file(root.join(&id)).expect("remove it");
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_cannot_make_the_shim_grow() {
    let native = Native::new("smax");
    let ctl = native.path().join("ctl");
    fs::create_dir(&ctl).expect("create a directory");
    let script =
        "while [ ! -e /ctl/go ]; do sleep 0.05; done; head -c 40000000 /dev/zero | tr '\\0' x; sleep 100000";
    let c = native.start(&Bundle::sh(script).bind(&ctl, "/ctl")).await;
    let shim = c.shim_pid().await;
    let dir = c.monitor.dir().to_path_buf();
    let idle = fds(shim).len();

    // Connections that say nothing.
    let mut held: Vec<OwnedFd> = Vec::new();
    for n in 0..scaled(600, 3000) {
        let name = ["monitor.sock", "stdio.sock", "attach.sock"][n % 3];
        let connected = match name {
            "monitor.sock" => UnixStream::connect(dir.join(name)).map(OwnedFd::from),
            _ => connect_packets(&dir.join(name)),
        };
        held.extend(connected);
    }
    let most = fds(shim).len();
    assert!(most < idle + 800, "{most} descriptors for {} clients", held.len());
    let kib = private_dirty_kib(shim);
    assert!(kib < 24 * 1024, "{kib} KiB for {} clients", held.len());
    drop(held);
    eventually("the connections to be closed", || {
        let now = fds(shim).len();
        if now <= idle + 4 { Ok(()) } else { Err(format!("{now} descriptors, {idle} before")) }
    });

    // Clients that do not read, while much is written.
    let mut stalled = Vec::new();
    for _ in 0..24 {
        match c.monitor.attach(false).await {
            Ok(attached) => stalled.push(attached),
            Err(e) => assert_eq!(e.kind(), Some(ErrorKind::ResourceExhausted), "{e:?}"),
        }
    }
    fs::write(ctl.join("go"), "").expect("let it go");
    let mut largest = 0;
    pintle_tests::wait_for_async("all to be read", || {
        largest = largest.max(private_dirty_kib(shim));
        async {
            let io = c.monitor.state().await.map_err(|e| e.to_string())?.io;
            if io.stdout_bytes == 40_000_000 { Ok(()) } else { Err(format!("{io:?}")) }
        }
    })
    .await;
    assert!(largest < 48 * 1024, "{largest} KiB for 24 clients that do not read");
    assert!(c.state().await.io.clients_dropped > 0);
    drop(stalled);
    assert_eq!(rejoin(&read_cri(&c.log), "stdout").len(), 40_000_000);
    c.delete().await;
    native.finish();
}

/// A request is held until it is answered, and a wait is answered at the container's end.
/// A field of protobuf.
fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    // The length as a varint of five bytes.
    let mut out = vec![tag];
    out.extend((0..5).map(|n| (bytes.len() >> (7 * n)) as u8 & 0x7f | if n < 4 { 0x80 } else { 0 }));
    out.extend_from_slice(bytes);
    out
}

/// A request of ttrpc.
fn request(method: &str, payload: &[u8]) -> Vec<u8> {
    let service = field(0x0a, b"pintle.monitor.v1.Monitor");
    [service, field(0x12, method.as_bytes()), field(0x1a, payload)].concat()
}

/// The frame of a request.
fn frame(stream: u32, flags: u8, request: &[u8]) -> Vec<u8> {
    let mut frame = (request.len() as u32).to_be_bytes().to_vec();
    frame.extend(stream.to_be_bytes());
    frame.extend([1, flags]);
    frame.extend_from_slice(request);
    frame
}

/// One follower of events too many is refused by name, and the others hear something also where nothing happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_are_bounded_and_hear_of_silence() {
    const MOST: u32 = 64;
    let native = Native::new("sfol");
    let c = sleeper(&native).await;
    let before = c.monitor.poll_events(0, Duration::ZERO).await.expect("events").len();
    let mut stream = UnixStream::connect(c.monitor.dir().join("monitor.sock")).expect("connect");
    stream.set_read_timeout(SOON).expect("a limit");
    for n in 0..=MOST {
        // Nothing more of the client follows.
        stream.write_all(&frame(2 * n + 1, 1, &request("Events", b""))).expect("ask");
    }
    let mut heard = BTreeMap::<u32, usize>::new();
    let mut refused = String::new();
    while refused.is_empty() || heard.len() < MOST as usize || heard.values().any(|n| *n <= before) {
        let mut header = [0; 10];
        stream.read_exact(&mut header).expect("a frame");
        let [a, b, c, d, e, f, g, h, kind, _] = header;
        let mut payload = vec![0; u32::from_be_bytes([a, b, c, d]) as usize];
        stream.read_exact(&mut payload).expect("its payload");
        match kind {
            3 => *heard.entry(u32::from_be_bytes([e, f, g, h])).or_default() += 1,
            _ => refused += &String::from_utf8_lossy(&payload),
        }
    }
    assert!(refused.contains("64 clients follow the events already"), "{refused}");
    assert_eq!(heard.len(), MOST as usize);
    drop(stream);
    c.delete().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_cannot_make_the_shim_grow() {
    const MIB: usize = 1 << 20;
    let wait = request("Wait", &field(0x7a, &vec![b'x'; MIB]));
    let native = Native::new("swai");
    let c = sleeper(&native).await;
    let shim = c.shim_pid().await;
    let mut held = Vec::new();
    let mut largest = 0;
    let mut taken = 0;
    for _ in 0..8 {
        let mut stream = UnixStream::connect(c.monitor.dir().join("monitor.sock")).expect("connect");
        for request in 0..32u32 {
            if stream.write_all(&frame(2 * request + 1, 0, &wait)).is_err() {
                break;
            }
            taken += 1;
        }
        largest = largest.max(private_dirty_kib(shim));
        held.push(stream);
    }
    // Others are served all the while.
    assert_eq!(c.state().await.status, pintle_client::Status::Running);
    largest = largest.max(private_dirty_kib(shim));
    assert!(taken >= 8, "only {taken} requests were taken");
    assert!(largest < 96 * 1024, "{largest} KiB for {taken} requests of 1 MiB");
    drop(held);
    eventually("the memory to be given back", || {
        let kib = private_dirty_kib(shim);
        if kib < 16 * 1024 { Ok(()) } else { Err(format!("{kib} KiB")) }
    });
    c.delete().await;
    native.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_of_an_exec_is_bounded() {
    let native = Native::new("sexo");
    let c = sleeper(&native).await;
    let shim = c.shim_pid().await;
    let mut options = ExecSyncOptions::new(["/bin/sh", "-c", "head -c 30000000 /dev/zero; exit 5"]);
    options.max_output = Some(1 << 20);
    let out = c.monitor.exec_sync(&options).await.expect("exec");
    assert!(out.truncated);
    assert_eq!(out.stdout.len() + out.stderr.len(), 1 << 20);
    assert_eq!(out.exit.reason, ExitReason::Code(5), "the rest is read and thrown away");
    eventually("the memory to be given back", || {
        let kib = private_dirty_kib(shim);
        if kib < 8 * 1024 { Ok(()) } else { Err(format!("{kib} KiB")) }
    });
    c.delete().await;
    native.finish();
}

#[test]
fn hostile_descriptors_of_a_conmon_call_are_refused() {
    // The sync pipe is named by number: nonsense must neither crash nor write into somebody's file.
    let dir = TempDir::new("shfd");
    let file = dir.join("file");
    fs::write(&file, "").expect("write");
    for number in ["-1", "0x3", "999999", "nonsense", "99999999999999999999"] {
        let call = Conmon::create(&dir, &Bundle::new(&["/bin/true"]));
        let mut command = call.command();
        command.env("_OCI_SYNCPIPE", number).env("_OCI_STARTPIPE", number);
        let open = fs::OpenOptions::new().append(true).open(&file).expect("open");
        pass_fds(&mut command, vec![(open.into(), 9)]);
        let out = output_within(&mut command);
        assert!(out.status.code().is_some_and(|c| c != 0), "{number}: {:?}", out.status);
    }
    assert_eq!(fs::metadata(&file).expect("file").size(), 0);
    assert!(conmon().is_file());
}

#[test]
fn nonsense_on_a_socket_is_no_request() {
    // The parsers have fuzz targets of their own; this is the way from the socket to them.
    let native = Native::new("sfuz");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("start a runtime");
    let c = runtime.block_on(sleeper(&native));
    let socket = c.monitor.dir().join("monitor.sock");
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let shim = runtime.block_on(c.shim_pid());
    for round in 0..scaled(300, 20_000) {
        let mut s = UnixStream::connect(&socket).expect("connect");
        s.set_write_timeout(SOON).expect("timeout");
        // A good header before a bad body, or nothing good at all.
        let size = (random() % 300) as usize;
        let body: Vec<u8> = (0..size).map(|_| random() as u8).collect();
        if round % 2 == 0 {
            let mut head = (size as u32).to_be_bytes().to_vec();
            head.extend((random() as u32).to_be_bytes());
            head.extend([1, 0]);
            let _ = s.write_all(&head);
        }
        let _ = s.write_all(&body);
        if round % 50 == 0 {
            assert!(process_alive(shim), "round {round}");
            runtime.block_on(c.monitor.info()).expect("the shim answers");
        }
    }
    runtime.block_on(c.monitor.info()).expect("the shim answers");
    runtime.block_on(c.delete());
    native.finish();
}
