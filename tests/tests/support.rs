//! The ground the other tests stand on: this machine runs a container under each runtime, the fake
//! runtime misbehaves as told, and the leftover check sees what is there.

use std::process::Command;

use pintle_tests::{
    Act, Bundle, FakeRuntime, Leftovers, PtyChild, TempDir, output_within, runc, runtimes, unique_id,
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
