//! sd-notify, LISTEN_PID, passthrough.

use std::fs::{self, File};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Stdio;

use pintle_tests::{Act, Bundle, Conmon, DEADLINE, FakeRuntime, Running, TempDir, wait_for};
use serde_json::json;

fn receive(socket: &UnixDatagram) -> String {
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let mut buffer = [0; 8192];
    let length = socket.recv(&mut buffer).expect("a notification");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// A container with a relay to `target`, and the socket that the container would use.
fn relayed(dir: &TempDir, target: &str) -> (Running, UnixDatagram) {
    let call = Conmon::create(dir, &Bundle::sh("exec sleep 1000"));
    let notify = call.path("bundle").join("notify");
    fs::create_dir(&notify).expect("create");
    let mut run = call.arg(format!("--sdnotify-socket={target}")).start();
    run.created();
    let socket = notify.join("notify.sock");
    assert_eq!(fs::metadata(&socket).expect("the socket").permissions().mode() & 0o777, 0o777);
    let container = UnixDatagram::unbound().expect("socket");
    container.connect(&socket).expect("connect");
    (run, container)
}

#[test]
fn notifications_pass_by_the_allow_list() {
    let dir = TempDir::new("sv");
    let path = dir.path().join("host");
    let host = UnixDatagram::bind(&path).expect("bind");
    let (_run, container) = relayed(&dir, path.to_str().expect("path"));
    container.send(b"READY=1\nMAINPID=77\nSTATUS=fine\r\nFDSTORE=1").expect("send");
    assert_eq!(receive(&host), "READY=1\nSTATUS=fine");
    // Nothing of these passes, and none of them ends the relay.
    for message in [&b"MAINPID=77"[..], b"", b"\0READY=1", b"EXTEND_TIMEOUT_USEC=9", b"XREADY=1"] {
        container.send(message).expect("send");
    }
    for line in [
        "RELOADING=1",
        "STOPPING=1",
        "WATCHDOG=1",
        "WATCHDOG=trigger",
        "ERRNO=2",
        "BUSERROR=a.b",
        "MONOTONIC_USEC=1",
    ] {
        container.send(line.as_bytes()).expect("send");
        assert_eq!(receive(&host), line);
    }
}

#[test]
fn a_host_socket_that_comes_and_goes_does_not_end_the_relay() {
    let dir = TempDir::new("sv");
    let path = dir.path().join("host");
    let (_run, container) = relayed(&dir, path.to_str().expect("path"));
    container.send(b"STATUS=lost").expect("send");
    pintle_tests::let_pass(std::time::Duration::from_millis(100));
    let host = UnixDatagram::bind(&path).expect("bind");
    container.send(b"READY=1").expect("send");
    // A slow monitor may have found the new socket for the first message already.
    while receive(&host) != "READY=1" {}
}

#[test]
fn a_host_that_reads_late_gets_all() {
    let dir = TempDir::new("sv");
    let path = dir.path().join("host");
    let host = UnixDatagram::bind(&path).expect("bind");
    let (_run, container) = relayed(&dir, path.to_str().expect("path"));
    // More than the queue of a datagram socket takes at once (10 by default).
    for number in 0..30 {
        container.send(format!("STATUS={number}").as_bytes()).expect("send");
    }
    for number in 0..30 {
        assert_eq!(receive(&host), format!("STATUS={number}"));
    }
}

/// A host that does not read costs a bounded queue: what comes first is kept, the rest is dropped, and the relay goes on.
#[test]
fn a_host_that_does_not_read_has_a_bounded_queue() {
    const WAITING: usize = 64;
    let dir = TempDir::new("sv");
    let path = dir.path().join("host");
    let host = UnixDatagram::bind(&path).expect("bind");
    let (_run, container) = relayed(&dir, path.to_str().expect("path"));
    // Sends wait for the relay, which waits for nobody.
    for number in 0..200 {
        container.send(format!("STATUS={number}").as_bytes()).expect("send");
    }
    let mut got: Vec<String> = (0..WAITING).map(|_| receive(&host)).collect();
    assert!(got.iter().enumerate().all(|(n, text)| *text == format!("STATUS={n}")), "{got:?}");
    // A datagram that is too long is cut.
    container.send(format!("READY=1\nSTATUS={}", "x".repeat(5000)).as_bytes()).expect("send");
    while !got.last().expect("some").starts_with("READY=1") {
        got.push(receive(&host));
    }
    assert!(got.len() < 200, "{} of 200 were kept", got.len());
    assert_eq!(got.last().expect("some").len(), 4096);
}

#[test]
fn an_abstract_host_socket() {
    let dir = TempDir::new("sv");
    let name = pintle_tests::unique_id("abs");
    let host =
        UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).expect("a name")).expect("bind");
    let (_run, container) = relayed(&dir, &format!("@{name}"));
    container.send(b"READY=1").expect("send");
    assert_eq!(receive(&host), "READY=1");
}

#[test]
fn a_missing_notify_directory_is_told() {
    let dir = TempDir::new("sv");
    let call = Conmon::create(&dir, &Bundle::sh("true")).arg("--sdnotify-socket=/no/such");
    let mut run = call.start();
    run.gate();
    assert!(run.launched().success());
    let message = run.message();
    assert_eq!(message["data"], -1);
    assert!(message["message"].as_str().expect("a reason").contains("notify socket"), "{message}");
    run.gone();
}

/// A runtime that tells what LISTEN_PID it got.
fn listen(dir: &TempDir, args: &[&str], value: &str) -> (Running, String) {
    let script = "echo \"$LISTEN_PID $$ $LISTEN_FDS\" >\"$0.listen\"; echo no >&2; exit 1";
    let fake = FakeRuntime::new().on("create", Act::Script(script.into())).write(dir.path());
    let call = Conmon::create(dir, &Bundle::sh("true")).replace("-r", &fake).args(args);
    let mut run = call.env("LISTEN_PID", value).env("LISTEN_FDS", "2").start();
    run.gate();
    run.launched();
    let message = run.message();
    run.gone();
    let told = fs::read_to_string(dir.path().join("fake-runtime.listen"));
    (run, told.unwrap_or_else(|_| message["message"].as_str().unwrap_or_default().to_string()))
}

#[test]
fn listen_pid_is_passed_on_or_replaced() {
    let dir = TempDir::new("sv");
    let (_run, told) = listen(&dir, &[], "4242");
    assert!(told.starts_with("4242 ") && told.ends_with(" 2\n"), "{told}");
    let dir = TempDir::new("sv");
    let (_run, told) = listen(&dir, &["--replace-listen-pid"], "4242");
    let fields: Vec<&str> = told.split_whitespace().collect();
    assert_eq!(fields[0], fields[1], "the runtime's own pid");
    for bad in ["x", "0", "-4", ""] {
        let dir = TempDir::new("sv");
        let (_run, told) = listen(&dir, &[], bad);
        assert!(told.starts_with(&format!("[conmon:e]: Invalid LISTEN_PID {bad}")), "{told}");
    }
}

#[test]
fn passthrough_uses_the_callers_streams() {
    let dir = TempDir::new("sv");
    let call =
        Conmon::create(&dir, &Bundle::sh("cat; echo out; echo err >&2; exit 3")).replace("-l", "passthrough");
    let (stdin, out, err) = (dir.path().join("in"), dir.path().join("out"), dir.path().join("err"));
    fs::write(&stdin, "typed\n").expect("write");
    let mut command = call.command();
    command.stdin(File::open(&stdin).expect("open"));
    command.stdout(File::create(&out).expect("create")).stderr(File::create(&err).expect("create"));
    assert!(command.status().expect("run").success());
    let root = format!("--root={}", call.path("root").display());
    wait_for("the container", || {
        let mut start = std::process::Command::new(pintle_tests::runc());
        start.args([&root, "start", &call.id]).stdin(Stdio::null());
        start.output().is_ok_and(|output| output.status.success())
    });
    let exit = call.path("exits").join(&call.id);
    wait_for("the exit file", || exit.exists());
    assert_eq!(fs::read_to_string(exit).expect("the exit file"), "3");
    assert_eq!(fs::read_to_string(out).expect("out"), "typed\nout\n");
    assert_eq!(fs::read_to_string(err).expect("err"), "err\n");
    for name in ["attach", "ctl", "winsz"] {
        assert!(!Path::new(&call.path("bundle")).join(name).exists(), "{name}");
    }
    let _ = std::process::Command::new(pintle_tests::runc()).args([&root, "delete", "-f", &call.id]).output();
}

#[test]
fn seccomp_options_of_old_conmons() {
    // Taken, and refused only where a socket is really asked for: nobody would serve it.
    let dir = TempDir::new("sv");
    let call = Conmon::create(&dir, &Bundle::sh("true")).args(["--seccomp-notify-plugins", "x"]);
    let mut run = call.start();
    assert!(run.created() > 0);
    let call = Conmon::create(&dir, &Bundle::sh("true")).args(["--seccomp-notify-socket", "/tmp/x"]);
    let mut run = call.start();
    run.gate();
    assert!(run.launched().success());
    assert_eq!(run.message(), json!({"data": -1, "message": "seccomp support not present"}));
}
