//! The ground the other tests stand on: this machine runs a container under each runtime, the fake
//! runtime misbehaves as told, and the leftover check sees what is there.

use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use pintle_tests::{
    AT_THE_END, Act, Bounds, Bundle, FakeRuntime, Leftovers, Native, PtyChild, TempDir, eventually, excesses,
    is_cgroup2, output_within, process_alive, runc, runtimes, shims_of, unique_id, wait_for, zombies_of,
};

#[test]
fn every_runtime_runs_a_bundle_and_leaves_nothing() {
    for (name, path) in runtimes() {
        let dir = TempDir::new("sup");
        let bundle = Bundle::sh("echo out; echo err >&2; exit 7").write(dir.path());
        let id = unique_id(name);
        let out = output_within(Command::new(&path).args(["run", "-b"]).arg(&bundle).arg(&id));
        assert_eq!(out.status.code(), Some(7), "{name}: {}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(String::from_utf8_lossy(&out.stdout), "out\n", "{name}");
        Leftovers::of(&id).and(dir.path().to_string_lossy()).assert_none();
    }
}

#[test]
fn leftovers_are_seen() {
    let dir = TempDir::new("left");
    let bundle = Bundle::sh("sleep 1000").write(dir.path());
    let id = unique_id("left");
    let started = output_within(Command::new(runc()).args(["run", "-d", "-b"]).arg(&bundle).arg(&id));
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    let left = Leftovers::of(&id);
    let found = left.find().join("\n");
    assert!(found.contains("cgroup: ") && found.contains("runtime state: "), "{found}");
    assert!(output_within(Command::new(runc()).args(["delete", "-f", &id])).status.success());
    left.assert_none();
}

/// One of each kind that a test could leave, and each is found, and not found when it is gone.
#[test]
fn every_kind_of_leftover_is_seen() {
    let dir = TempDir::new("kinds");
    let id = unique_id("kinds");
    let left = Leftovers::of(&id);
    let sees = |what: &str| {
        let found = left.find();
        assert!(found.iter().any(|l| l.starts_with(what)), "no {what} in {found:?}");
    };
    assert_eq!(left.find(), Vec::<String>::new());

    let mut process = Command::new("sleep").arg("1000").env("PINTLE_TEST_ID", &id).spawn().expect("sleep");
    // The environment is the new program's when exec is done.
    eventually("the process to be seen", || left.find().first().cloned().ok_or("not yet"));
    sees("process: ");
    let group = if is_cgroup2() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" };
    let group = std::path::Path::new(group).join(&id);
    std::fs::create_dir(&group).expect("make a cgroup");
    sees("cgroup: ");
    std::fs::write(group.join("cgroup.procs"), process.id().to_string()).expect("move a process");
    process.kill().expect("kill");
    wait_for("a zombie", || !process_alive(process.id()));
    assert!(zombies_of(std::process::id()).contains(&process.id()));
    if is_cgroup2() {
        sees("zombie: ");
    }
    process.wait().expect("reap");
    std::fs::remove_dir(&group).expect("remove the cgroup");

    let at = dir.join(&id);
    std::fs::create_dir(&at).expect("make a directory");
    mount(Some(&at), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind mount");
    sees("mount: ");
    umount2(&at, MntFlags::MNT_DETACH).expect("unmount");
    let socket = std::os::unix::net::UnixListener::bind(at.join("s")).expect("listen");
    sees("socket: ");
    drop(socket);
    let state = std::path::Path::new("/run/runc").join(&id);
    std::fs::create_dir_all(&state).expect("make a directory");
    sees("runtime state: ");
    std::fs::remove_dir(&state).expect("remove it");
    assert_eq!(left.find(), Vec::<String>::new());
}

/// A test that forgets a process fails by itself.
#[test]
fn a_test_cannot_leave_a_process() {
    let ended = std::thread::spawn(|| {
        let dir = TempDir::new("forget").patience(Duration::from_millis(100));
        let mut forgotten = Command::new("sleep").arg("1000").env("HOME", dir.path()).spawn().expect("sleep");
        // The guard kills it; somebody must reap it, or it stays as a zombie.
        std::thread::spawn(move || forgotten.wait());
    })
    .join();
    let panic = ended.expect_err("the directory's end must panic");
    let text = panic.downcast_ref::<String>().expect("a message");
    assert!(text.contains("the test leaves") && text.contains("process: "), "{text}");
}

/// What a shim holds is seen: each bound in turn, and a file outside its test's directory.
#[tokio::test]
async fn what_a_shim_holds_is_seen() {
    let place = Native::new("holds");
    let elsewhere = TempDir::new("else");
    let c = place.start_with(&Bundle::sh("sleep 1000"), |o| o.logs[0].path = elsewhere.join("log")).await;
    assert_eq!(shims_of(&c.id), [c.shim_pid().await]);
    let found = excesses(&c.id, &AT_THE_END);
    assert!(found.iter().any(|l| l.contains("is open on") && l.ends_with("/log")), "{found:?}");
    assert_eq!(excesses(&unique_id("none"), &AT_THE_END), Vec::<String>::new());
    for (bounds, what) in [
        (Bounds { fds: 5, ..AT_THE_END }, "descriptors"),
        (Bounds { private_dirty: 10, ..AT_THE_END }, "private dirty memory"),
        (Bounds { pss: 10, ..AT_THE_END }, "proportional set size"),
    ] {
        let found = excesses(&c.id, &bounds);
        assert!(found.iter().any(|l| l.contains(what)), "{what}: {found:?}");
    }
    c.monitor.delete(true).await.expect("delete");
}

#[test]
fn fake_runtime_fails_as_told() {
    let dir = TempDir::new("fake");
    let fake = FakeRuntime::new().on("create", Act::Fail("no luck".into(), 9)).write(dir.path());
    let out = output_within(Command::new(&fake).args(["--root", "/nowhere", "create", "x"]));
    assert_eq!((out.status.code(), out.stderr.as_slice()), (Some(9), &b"no luck\n"[..]));
    let version = output_within(Command::new(&fake).arg("--version"));
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("runc version"));
    assert_eq!(FakeRuntime::calls(dir.path()).len(), 2);
}

#[test]
fn a_terminal_is_driven() {
    let mut child =
        PtyChild::spawn(Command::new("sh").args(["-c", "stty size; read x; echo got $x"]), 31, 97);
    child.expect("31 97");
    child.send("yes\n");
    child.expect("got yes");
    assert!(child.wait().success());
}
