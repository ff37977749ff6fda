//! The attach socket: framing, stdin rules, terminals.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use pintle_tests::{AttachClient, Bundle, Conmon, Running, TempDir, read_cri, rejoin, scaled, wait_for};

fn create(dir: &TempDir, script: &str, args: &[&str]) -> Running {
    Conmon::create(dir, &Bundle::sh(script)).args(args).start()
}

#[test]
fn attach_01_with_stdin() {
    let dir = TempDir::new("at");
    let mut run = create(&dir, "cat; echo end; exit 4", &["--stdin"]);
    run.created();
    let mut client = run.attach();
    run.go();
    client.send(b"hello\n");
    client.half_close();
    // A client that has ended its input still gets all the output.
    assert_eq!(client.rest().0, b"hello\nend\n");
    assert_eq!(run.exit_file(), "4");
    run.gone();
    assert_eq!(rejoin(&read_cri(&run.call.path("log")), "stdout"), b"hello\nend\n");
    assert!(!run.call.path("bundle/attach").exists());
}

#[test]
fn attach_02_without_stdin() {
    let dir = TempDir::new("at");
    let mut run = create(&dir, "cat; echo end", &[]);
    run.created();
    let mut client = run.attach();
    client.send(b"nobody reads this");
    run.go();
    assert_eq!(client.rest().0, b"end\n");
    assert_eq!(run.exit_file(), "0");
}

#[test]
fn attach_03_leave_stdin_open() {
    let dir = TempDir::new("at");
    let script = "while read line; do echo got:$line; [ $line = last ] && exit 3; done; exit 1";
    let mut run = create(&dir, script, &["--stdin", "--leave-stdin-open"]);
    run.begin();
    for word in ["one", "two"] {
        let mut client = run.attach();
        client.send(format!("{word}\n").as_bytes());
        client.until(&format!("got:{word}"));
        client.half_close();
        drop(client);
        assert!(run.call.path("bundle/attach").exists());
    }
    let mut client = run.attach();
    client.send(b"last\n");
    assert_eq!(run.exit_file(), "3");
    let text = rejoin(&read_cri(&run.call.path("log")), "stdout");
    assert_eq!(text, b"got:one\ngot:two\ngot:last\n");
}

#[test]
fn the_first_client_to_leave_ends_the_input() {
    let dir = TempDir::new("at");
    let mut run = create(&dir, "cat; exit 6", &["--stdin"]);
    run.begin();
    let mut watcher = run.attach();
    let mut client = run.attach();
    client.send(b"data\n");
    drop(client);
    assert_eq!(watcher.rest().0, b"data\n");
    assert_eq!(run.exit_file(), "6");
}

#[test]
fn packets_have_a_kind_and_a_bounded_size() {
    let dir = TempDir::new("at");
    let script = "dd if=/dev/zero bs=20000 count=1 2>/dev/null; echo oops >&2; sleep 0.1";
    let mut run = create(&dir, script, &[]);
    run.created();
    let mut client = run.attach();
    run.go();
    // rest() checks every packet.
    let (out, err) = client.rest();
    assert_eq!(out, vec![0; 20_000]);
    assert_eq!(err, b"oops\n");
}

#[test]
fn a_burst_arrives_whole_at_every_client_that_reads() {
    let megabytes = scaled(8, 200);
    let dir = TempDir::new("at");
    let script = format!("head -c {} /dev/urandom | tee /mnt/copy", megabytes << 20);
    let mnt = dir.path().join("mnt");
    fs::create_dir(&mnt).expect("create");
    let bundle = Bundle::sh(&script).bind(&mnt, "/mnt");
    let mut run = Conmon::create(&dir, &bundle).replace("-l", "none").start();
    run.created();
    let clients: Vec<AttachClient> = (0..2).map(|_| run.attach()).collect();
    run.go();
    let readers: Vec<_> =
        clients.into_iter().map(|mut client| std::thread::spawn(move || client.rest().0)).collect();
    let copies: Vec<Vec<u8>> = readers.into_iter().map(|reader| reader.join().expect("a reader")).collect();
    let original = fs::read(mnt.join("copy")).expect("the original");
    assert_eq!(original.len(), megabytes << 20);
    assert!(copies.iter().all(|copy| *copy == original));
    assert_eq!(run.exit_file(), "0");
}

#[test]
fn big_packets_of_a_client_are_not_cut() {
    let dir = TempDir::new("at");
    let mut run = create(&dir, "cat | md5sum", &["--stdin"]);
    run.begin();
    let mut client = run.attach();
    let bytes: Vec<u8> = (0..100_000u32).map(|number| (number % 251) as u8).collect();
    client.send(&bytes);
    client.half_close();
    let text = String::from_utf8(client.rest().0).expect("text");
    let file = dir.path().join("bytes");
    fs::write(&file, &bytes).expect("write");
    let expected = std::process::Command::new("md5sum").arg(&file).output().expect("md5sum").stdout;
    assert_eq!(text.split(' ').next(), String::from_utf8(expected).expect("text").split(' ').next());
}

#[test]
fn a_link_in_the_socket_directory() {
    let dir = TempDir::new("at");
    let call = Conmon::create(&dir, &Bundle::sh("echo hello; sleep 0.2"));
    let mut call = call;
    call.args.retain(|arg| arg != "--full-attach");
    let sockets = call.path("sock");
    let mut run = call.arg("--socket-dir-path").arg(&sockets).start();
    run.created();
    let link = sockets.join(&run.call.id);
    assert_eq!(fs::read_link(&link).expect("the link"), run.call.path("bundle"));
    let mode = fs::metadata(link.join("attach")).expect("the socket");
    assert!(mode.file_type().is_socket());
    assert_eq!(mode.permissions().mode() & 0o777, 0o700);
    let mut client = AttachClient::connect(&link.join("attach"));
    run.go();
    assert_eq!(client.rest().0, b"hello\n");
    run.gone();
    assert!(fs::symlink_metadata(&link).is_err(), "the link stays behind");
}

#[test]
fn paths_longer_than_a_socket_address() {
    let dir = TempDir::new("at");
    let long = dir.path().join("x".repeat(120)).join("y".repeat(100));
    fs::create_dir_all(&long).expect("create");
    let bundle = Bundle::sh("echo hello; sleep 0.2").write(&long);
    let mut run = Conmon::create(&dir, &Bundle::sh("true")).replace("-b", &bundle).start();
    run.created();
    let mut client = AttachClient::connect(&bundle.join("attach"));
    run.go();
    assert_eq!(client.rest().0, b"hello\n");
    assert_eq!(run.exit_file(), "0");
}

#[test]
fn a_missing_socket_directory_is_told() {
    let dir = TempDir::new("at");
    let mut call = Conmon::create(&dir, &Bundle::sh("true"));
    call.args.retain(|arg| arg != "--full-attach");
    let mut run = call.args(["--socket-dir-path", "/no/such/dir"]).start();
    run.gate();
    assert!(run.launched().success());
    let message = run.message();
    assert_eq!(message["data"], -1);
    assert!(message["message"].as_str().expect("a reason").contains("/no/such/dir"), "{message}");
    run.gone();
}

#[test]
fn a_terminal_echoes_and_keeps_its_input_open() {
    let dir = TempDir::new("at");
    let script = "echo ready; read a; echo got:$a; read b; echo got:$b; exit 5";
    let bundle = Bundle::sh(script).terminal();
    let mut run = Conmon::create(&dir, &bundle).arg("-t").start();
    run.begin();
    run.logged("ready");
    let mut client = run.attach();
    client.send(b"one\n");
    client.until("got:one\r\n");
    drop(client);
    let mut client = run.attach();
    client.send(b"two\n");
    client.until("got:two\r\n");
    assert_eq!(run.exit_file(), "5");
    run.gone();
    let text = String::from_utf8(rejoin(&read_cri(&run.call.path("log")), "stdout")).expect("text");
    assert_eq!(text, "ready\r\none\r\ngot:one\r\ntwo\r\ngot:two\r\n");
}

#[test]
fn a_terminal_survives_that_nobody_has_it_open() {
    let dir = TempDir::new("at");
    let script = "T=$(tty); echo before; exec <&- >&- 2>&-; sleep 0.5; echo after >$T; sleep 0.2; exit 7";
    let mut run = Conmon::create(&dir, &Bundle::sh(script).terminal()).arg("-t").start();
    run.begin();
    assert_eq!(run.exit_file(), "7");
    let text = String::from_utf8(rejoin(&read_cri(&run.call.path("log")), "stdout")).expect("text");
    assert!(text.contains("before") && text.contains("after"), "{text:?}");
}

#[test]
fn no_socket_of_a_terminal_stays_behind() {
    let dir = TempDir::new("at");
    let tmp = dir.path().join("tmp");
    fs::create_dir(&tmp).expect("create");
    let bad = Bundle::new(&["/no/such/command"]).terminal();
    let mut run = Conmon::create(&dir, &bad).arg("-t").env("TMPDIR", &tmp).start();
    run.gate();
    assert_eq!(run.message()["data"], -1);
    run.gone();
    wait_for("an empty directory", || fs::read_dir(&tmp).expect("list").count() == 0);
}

#[test]
fn clients_that_come_and_go_leave_nothing_open() {
    let dir = TempDir::new("at");
    let mut run = create(&dir, "exec sleep 1000", &["--stdin", "--leave-stdin-open"]);
    run.begin();
    let monitor = run.monitor();
    let view = run.call.path("pintle").join(&run.call.id).join("monitor.sock");
    wait_for("the view of the native door", || view.exists());
    let before = pintle_tests::fds(monitor).len();
    for _ in 0..scaled(50, 1000) {
        let mut client = run.attach();
        client.send(b"x");
    }
    // Its own few may have come since the count; each client would be one more.
    wait_for("all clients to be gone", || pintle_tests::fds(monitor).len() <= before + 12);
}
