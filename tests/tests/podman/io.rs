//! Streams, terminals, attaching.

use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use pintle_tests::{PtyChild, parse_cri, rejoin, scaled};

use crate::world::{IMAGE, World, until, wait};
use crate::{Scenario, flaky, scenario};

pub(crate) const SCENARIOS: &[Scenario] = &[
    scenario("run_two_streams", run_two_streams),
    scenario("run_binary", run_binary),
    scenario("run_big_output", run_big_output),
    scenario("start_attached_big", start_attached_big),
    scenario("run_big_output_two_streams", run_big_output_two_streams),
    scenario("run_last_line_unfinished", run_last_line_unfinished),
    scenario("run_stdin_to_eof", run_stdin_to_eof),
    scenario("run_stdin_big", run_stdin_big),
    scenario("run_without_stdin", run_without_stdin),
    scenario("run_terminal_size", run_terminal_size),
    scenario("run_terminal_input", run_terminal_input),
    scenario("run_terminal_resize", run_terminal_resize),
    scenario("run_terminal_exit_code", run_terminal_exit_code),
    scenario("run_attach_one_stream", run_attach_one_stream),
    scenario("exec_stdin", exec_stdin),
    scenario("exec_stdin_big", exec_stdin_big),
    scenario("exec_terminal", exec_terminal),
    scenario("exec_terminal_size", exec_terminal_size),
    scenario("exec_big_output", exec_big_output),
    scenario("exec_short_output", exec_short_output),
    scenario("attach_two_clients", attach_two_clients),
    scenario("attach_with_input", attach_with_input),
    scenario("attach_no_stdin", attach_no_stdin),
    scenario("start_attached_interactive", start_attached_interactive),
    flaky("detach_keys", detach_keys),
    scenario("slow_reader_does_not_stop_the_log", slow_reader),
    scenario("run_preserve_fds", run_preserve_fds),
    scenario("exec_preserve_fds", exec_preserve_fds),
];

/// Bytes that look like nothing else, repeatable.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state: u32 = 12345;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// A file of text with lines of all lengths, none like another; it goes with the value.
pub(crate) struct Text {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Text {
    /// `megabytes` MiB, to the byte.
    pub(crate) fn write(world: &World, megabytes: usize) -> Result<Self> {
        let length = megabytes << 20;
        let filler: Vec<u8> = noise(20_000).iter().map(|byte| b'!' + byte % 94).collect();
        let mut bytes = Vec::with_capacity(length + filler.len());
        // Some lines are longer than what is read at once, and so come in parts.
        for number in 0_usize.. {
            if bytes.len() >= length {
                break;
            }
            bytes.extend_from_slice(format!("{number} ").as_bytes());
            let long = if number % 50 == 0 { 20_000 } else { 1_000 };
            bytes.extend_from_slice(&filler[..(number * 7919) % long]);
            bytes.push(b'\n');
        }
        bytes.truncate(length);
        if let Some(last) = bytes.last_mut() {
            *last = b'\n';
        }
        let path = world.path("text");
        std::fs::write(&path, &bytes)?;
        Ok(Self { path, bytes })
    }

    pub(crate) fn mount(&self) -> String {
        format!("{}:/mnt/file:ro", self.path.display())
    }

    /// What came must be this text, to the byte.
    pub(crate) fn check(&self, came: &[u8]) -> Result<()> {
        let differ = self.bytes.iter().zip(came).position(|(one, other)| one != other);
        ensure!(differ.is_none(), "byte {} differs", differ.unwrap_or_default());
        ensure!(came.len() == self.bytes.len(), "{} bytes of {}", came.len(), self.bytes.len());
        Ok(())
    }
}

impl Drop for Text {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn run_two_streams(world: &World) -> Result<()> {
    let done = world.code(0, &["run", "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2"])?;
    ensure!(done.out() == "out" && done.err() == "err", "{done:?}");
    Ok(())
}

fn run_binary(world: &World) -> Result<()> {
    let bytes = noise(100_000);
    let file = world.path("binary");
    std::fs::write(&file, &bytes)?;
    let mount = format!("{}:/mnt/file:ro", file.display());
    let done = world.code(0, &["run", "--rm", "-v", &mount, IMAGE, "cat", "/mnt/file"])?;
    ensure!(done.stdout == bytes, "{} bytes instead of {}", done.stdout.len(), bytes.len());
    Ok(())
}

fn run_big_output(world: &World) -> Result<()> {
    let text = Text::write(world, scaled(20, 200))?;
    let args = ["run", "--rm", "-v", &text.mount(), "--log-driver", "none", IMAGE, "cat", "/mnt/file"];
    text.check(&world.code(0, &args)?.stdout)
}

/// Through the log and an attached client at once.
fn start_attached_big(world: &World) -> Result<()> {
    let text = Text::write(world, scaled(16, 200))?;
    let name = world.id("sab");
    world.ok(&["create", "-v", &text.mount(), "--name", &name, IMAGE, "cat", "/mnt/file"])?;
    text.check(&world.code(0, &["start", "-a", &name])?.stdout)?;
    let path = world.field(&name, ".HostConfig.LogConfig.Path")?;
    let records = parse_cri(&std::fs::read(path)?).map_err(anyhow::Error::msg)?;
    text.check(&rejoin(&records, "stdout"))?;
    world.remove(&name)
}

fn run_big_output_two_streams(world: &World) -> Result<()> {
    let script = "(seq 1 100000) & (seq 1 100000 >&2) & wait";
    let done = world.code(0, &["run", "--rm", IMAGE, "sh", "-c", script])?;
    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    ensure!(done.stdout == expected.as_bytes(), "stdout: {} bytes", done.stdout.len());
    ensure!(done.stderr == expected.as_bytes(), "stderr: {} bytes", done.stderr.len());
    Ok(())
}

fn run_last_line_unfinished(world: &World) -> Result<()> {
    let done = world.code(0, &["run", "--rm", IMAGE, "printf", "a\\nb"])?;
    ensure!(done.stdout == b"a\nb", "{done:?}");
    Ok(())
}

fn run_stdin_to_eof(world: &World) -> Result<()> {
    let done = world.fed(&["run", "--rm", "-i", IMAGE, "cat"], b"one\ntwo")?;
    ensure!(done.status.success() && done.stdout == b"one\ntwo", "{done:?}");
    Ok(())
}

fn run_stdin_big(world: &World) -> Result<()> {
    let bytes = noise(5 << 20);
    let done = world.fed(&["run", "--rm", "-i", IMAGE, "cat"], &bytes)?;
    ensure!(done.status.success(), "{} {}", done.status, done.err());
    ensure!(done.stdout == bytes, "{} bytes came back of {}", done.stdout.len(), bytes.len());
    Ok(())
}

fn run_without_stdin(world: &World) -> Result<()> {
    let done = world.fed(&["run", "--rm", IMAGE, "sh", "-c", "cat; echo end"], b"not for it")?;
    ensure!(done.out() == "end", "{done:?}");
    Ok(())
}

fn run_terminal_size(world: &World) -> Result<()> {
    let script = "stty size; tty";
    let mut child =
        PtyChild::spawn(&mut world.podman(&["run", "--rm", "-t", IMAGE, "sh", "-c", script]), 51, 133);
    let status = child.wait();
    child.expect("51 133");
    child.expect("/dev/pts/0");
    ensure!(status.success(), "{status}: {}", child.output());
    Ok(())
}

fn run_terminal_input(world: &World) -> Result<()> {
    let script = "echo ready; read line; echo got:$line; exit 12";
    let mut child =
        PtyChild::spawn(&mut world.podman(&["run", "--rm", "-it", IMAGE, "sh", "-c", script]), 24, 80);
    child.expect("ready");
    child.send("hello\n");
    child.expect("got:hello");
    let status = child.wait();
    ensure!(status.code() == Some(12), "{status}: {}", child.output());
    Ok(())
}

fn run_terminal_resize(world: &World) -> Result<()> {
    let script = "echo ready; while :; do stty size; sleep 0.1; done";
    let name = world.id("rsz");
    let mut command = world.podman(&["run", "--rm", "--name", &name, "-it", IMAGE, "sh", "-c", script]);
    let child = PtyChild::spawn(&mut command, 24, 80);
    child.expect("ready");
    child.expect("24 80");
    child.resize(40, 101);
    child.expect("40 101");
    drop(child);
    world.remove(&name)
}

fn run_terminal_exit_code(world: &World) -> Result<()> {
    let mut child =
        PtyChild::spawn(&mut world.podman(&["run", "--rm", "-it", IMAGE, "sh", "-c", "exit 33"]), 24, 80);
    let status = child.wait();
    ensure!(status.code() == Some(33), "{status}: {}", child.output());
    Ok(())
}

fn run_attach_one_stream(world: &World) -> Result<()> {
    let done =
        world.code(0, &["run", "--rm", "-a", "stderr", IMAGE, "sh", "-c", "echo out; echo err >&2"])?;
    ensure!(done.out().is_empty() && done.err() == "err", "{done:?}");
    Ok(())
}

fn exec_stdin(world: &World) -> Result<()> {
    let name = world.detached("exi", &[], "exec sleep 1000")?;
    let done = world.fed(&["exec", "-i", &name, "cat"], b"one\ntwo")?;
    ensure!(done.status.success() && done.stdout == b"one\ntwo", "{done:?}");
    let done = world.fed(&["exec", &name, "cat"], b"not for it")?;
    ensure!(done.status.success() && done.stdout.is_empty(), "{done:?}");
    world.remove(&name)
}

fn exec_stdin_big(world: &World) -> Result<()> {
    let name = world.detached("exb", &[], "exec sleep 1000")?;
    let bytes = noise(3 << 20);
    let done = world.fed(&["exec", "-i", &name, "cat"], &bytes)?;
    ensure!(done.stdout == bytes, "{} bytes came back of {}", done.stdout.len(), bytes.len());
    world.remove(&name)
}

fn exec_terminal(world: &World) -> Result<()> {
    let name = world.detached("ext", &[], "exec sleep 1000")?;
    let script = "tty; read line; echo got:$line; exit 5";
    let mut child = PtyChild::spawn(&mut world.podman(&["exec", "-it", &name, "sh", "-c", script]), 24, 80);
    child.expect("/dev/pts/");
    child.send("hello\n");
    child.expect("got:hello");
    let status = child.wait();
    ensure!(status.code() == Some(5), "{status}: {}", child.output());
    world.remove(&name)
}

fn exec_terminal_size(world: &World) -> Result<()> {
    // The runtime does not wait until the terminal was received, so the first instruction may be earlier.
    let script = "until [ -n \"$(stty size 2>/dev/null)\" ]; do :; done; stty size";
    let name = world.detached("exz", &[], "exec sleep 1000")?;
    let mut child = PtyChild::spawn(&mut world.podman(&["exec", "-it", &name, "sh", "-c", script]), 47, 119);
    let status = child.wait();
    child.expect("47 119");
    ensure!(status.success(), "{status}: {}", child.output());
    world.remove(&name)
}

fn exec_big_output(world: &World) -> Result<()> {
    let name = world.detached("exg", &[], "exec sleep 1000")?;
    let megabytes = scaled(10, 100);
    let script = format!("dd if=/dev/zero bs=1M count={megabytes} 2>/dev/null | tr '\\0' 'b'");
    let done = world.code(0, &["exec", &name, "sh", "-c", &script])?;
    ensure!(done.stdout.len() == megabytes << 20, "{} bytes", done.stdout.len());
    ensure!(done.stdout.iter().all(|byte| *byte == b'b'));
    world.remove(&name)
}

fn exec_short_output(world: &World) -> Result<()> {
    let name = world.detached("exq", &[], "exec sleep 1000")?;
    for round in 0..scaled(8, 50) {
        let done = world.code(0, &["exec", &name, "echo", "short"])?;
        ensure!(done.out() == "short", "round {round}: {done:?}");
    }
    world.remove(&name)
}

fn attach_two_clients(world: &World) -> Result<()> {
    let script = "echo ready; while ! [ -e /tmp/go ]; do sleep 0.05; done; seq 1 1000; exit 8";
    let name = world.detached("at2", &[], script)?;
    world.logged(&name, "ready")?;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut command = world.podman(&["attach", "--no-stdin", &name]);
        clients.push(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
    }
    // Attached: the client's socket is connected.
    until("both clients", || Ok(clients.iter().all(|client| has_packet_socket(client.id()))))?;
    world.ok(&["exec", &name, "touch", "/tmp/go"])?;
    let expected: String = (1..=1000).map(|number| format!("{number}\n")).collect();
    for client in &mut clients {
        let mut text = String::new();
        client.stdout.take().context("a pipe")?.read_to_string(&mut text)?;
        // Podman ends the output of an attached client with a newline of its own.
        ensure!(text.trim_end() == expected.trim_end(), "{} bytes", text.len());
        wait(client)?;
    }
    ensure!(world.ok(&["wait", &name])? == "8");
    world.remove(&name)
}

/// Whether the process holds a connected packet socket.
fn has_packet_socket(pid: u32) -> bool {
    let own: Vec<String> = pintle_tests::fds(pid).into_values().collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
    // Columns: address, references, protocol, flags, type (0005: packets), state (03: connected), inode.
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(4) == Some(&"0005") && row.get(5) == Some(&"03"))
        .any(|row| row.get(6).is_some_and(|inode| own.contains(&format!("socket:[{inode}]"))))
}

fn attach_with_input(world: &World) -> Result<()> {
    let name = world.detached("ati", &["-i"], "read line; echo got:$line; cat; exit 7")?;
    let mut command = world.podman(&["attach", &name]);
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    client.stdin.take().context("a pipe")?.write_all(b"hello\nrest")?;
    let mut text = String::new();
    client.stdout.take().context("a pipe")?.read_to_string(&mut text)?;
    ensure!(text.trim_end() == "got:hello\nrest", "{text:?}");
    wait(&mut client)?;
    ensure!(world.ok(&["wait", &name])? == "7");
    world.remove(&name)
}

fn attach_no_stdin(world: &World) -> Result<()> {
    let name = world.detached("atn", &[], "while ! [ -e /tmp/go ]; do sleep 0.05; done; echo end")?;
    let mut command = world.podman(&["attach", &name]);
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = client.stdin.take().context("a pipe")?;
    // Nobody reads it; it must neither stop the client nor the container.
    input.write_all(&noise(60_000))?;
    until("the client", || Ok(has_packet_socket(client.id())))?;
    world.ok(&["exec", &name, "touch", "/tmp/go"])?;
    let mut text = String::new();
    client.stdout.take().context("a pipe")?.read_to_string(&mut text)?;
    ensure!(text.trim_end() == "end", "{text:?}");
    drop(input);
    wait(&mut client)?;
    world.remove(&name)
}

fn start_attached_interactive(world: &World) -> Result<()> {
    let name = world.id("sai");
    world.ok(&["create", "-i", "--name", &name, IMAGE, "sh", "-c", "cat; exit 2"])?;
    let done = world.fed(&["start", "-a", "-i", &name], b"typed")?;
    ensure!(done.code() == 2 && done.stdout == b"typed", "{done:?}");
    world.remove(&name)
}

fn detach_keys(world: &World) -> Result<()> {
    let name = world.id("keys");
    let script = "echo ready; while read line; do echo got:$line; done";
    let mut command = world.podman(&["run", "--name", &name, "-it", IMAGE, "sh", "-c", script]);
    let mut child = PtyChild::spawn(&mut command, 24, 80);
    child.expect("ready");
    child.send("one\n");
    child.expect("got:one");
    // Podman sees the keys only if each of them comes in a read of its own.
    child.send("\x10");
    pintle_tests::let_pass(std::time::Duration::from_millis(500));
    child.send("\x11");
    let status = child.wait();
    ensure!(status.success(), "{status}: {}", child.output());
    ensure!(world.field(&name, ".State.Running")? == "true");
    let mut child = PtyChild::spawn(&mut world.podman(&["attach", &name]), 24, 80);
    until("the client", || Ok(has_packet_socket(child.pid())))?;
    child.send("two\n");
    child.expect("got:two");
    drop(child);
    world.remove(&name)
}

fn slow_reader(world: &World) -> Result<()> {
    let script = "seq 1 400000; echo the-end";
    let name = world.id("slow");
    world.ok(&["create", "--name", &name, IMAGE, "sh", "-c", script])?;
    let mut command = world.podman(&["start", "-a", &name]);
    let mut client = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    // Reads a little and then slowly, but to the end: all of it must come.
    let mut pipe = client.stdout.take().context("a pipe")?;
    let mut text = vec![0; 1000];
    pipe.read_exact(&mut text)?;
    pintle_tests::let_pass(std::time::Duration::from_millis(300));
    pipe.read_to_end(&mut text)?;
    wait(&mut client)?;
    ensure!(text.ends_with(b"\n400000\nthe-end\n"), "the end is missing");
    ensure!(text.iter().filter(|byte| **byte == b'\n').count() == 400_001, "lines are missing");
    world.remove(&name)
}

fn run_preserve_fds(world: &World) -> Result<()> {
    let done = with_fd_3(world, &["run", "--rm", "--preserve-fds", "1", IMAGE, "sh", "-c", "cat <&3"])?;
    ensure!(done == "from the outside", "{done:?}");
    Ok(())
}

fn exec_preserve_fds(world: &World) -> Result<()> {
    let name = world.detached("pfd", &[], "exec sleep 1000")?;
    let done = with_fd_3(world, &["exec", "--preserve-fds", "1", &name, "sh", "-c", "cat <&3"])?;
    ensure!(done == "from the outside", "{done:?}");
    world.remove(&name)
}

#[allow(unsafe_code)]
fn with_fd_3(world: &World, args: &[&str]) -> Result<String> {
    let path = world.path("fd3");
    std::fs::write(&path, "from the outside")?;
    let file = std::fs::File::open(&path)?;
    let fd = file.as_raw_fd();
    let mut command = world.podman(args);
    // SAFETY: dup2 and fcntl are async-signal-safe and touch no memory of the parent.
    unsafe {
        command.pre_exec(move || {
            let done = if fd == 3 { libc::fcntl(3, libc::F_SETFD, 0) } else { libc::dup2(fd, 3) };
            if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    let done = world.finish(command, b"")?;
    ensure!(done.status.success(), "{done:?}");
    Ok(done.out())
}
