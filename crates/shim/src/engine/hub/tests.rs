use super::*;
use crate::engine::attach::{AttachOptions, Framing};
use crate::engine::ctl::{ControlFifo, ControlKind};
use crate::engine::log::{Captured, FileConfig, FileSink, LossCause, MemorySink, RawSink};
use crate::engine::pump::{DrainPolicy, Drained};
use pintle_core::attach::{ClientPacket, ShimPacket};
use pintle_sys::seqpacket::{self, Received};
use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// For everything that must happen, however slow the machine is.
const SOON: Duration = Duration::from_secs(60);
const PATIENT: DrainPolicy = DrainPolicy { quiet: SOON, cap: SOON };
const EOF: Drained = Drained { eof: true, leaked: false, undelivered: false };

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(SOON * 2, test).await.expect("test hangs") })
}

fn pipe() -> (OwnedFd, File) {
    let (r, w) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (r, File::from(w))
}

fn captured(hub: &Hub) -> Arc<Mutex<Captured>> {
    let (sink, kept) = MemorySink::new(usize::MAX);
    hub.add_sink(Box::new(sink));
    kept
}

fn temp() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("pintle-hub-{}-{n}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + SOON;
    while !done() {
        assert!(tokio::time::Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Lines that tell where they belong.
fn lines(bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes + 100);
    let mut n = 0usize;
    while out.len() < bytes {
        writeln!(out, "{n} {}", "y".repeat(n * 7 % 90)).unwrap();
        n += 1;
    }
    out
}

/// Writes from a thread of its own, as a container would.
fn writer(mut to: File, data: Vec<u8>, piece: usize) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for piece in data.chunks(piece) {
            to.write_all(piece).unwrap();
        }
    })
}

/// A client that reads to the end; conmon's flavour. Pauses `nap` before each packet.
fn reader(client: OwnedFd, nap: Duration) -> std::thread::JoinHandle<[Vec<u8>; 2]> {
    std::thread::spawn(move || {
        let mut out = [Vec::new(), Vec::new()];
        let mut buf = [0; 8193];
        loop {
            std::thread::sleep(nap);
            let n = nix::unistd::read(&client, &mut buf).unwrap();
            match buf.get(..n).unwrap() {
                [] => return out,
                [2, rest @ ..] => out[0].extend_from_slice(rest),
                [3, rest @ ..] => out[1].extend_from_slice(rest),
                other => panic!("packet of kind {}", other[0]),
            }
        }
    })
}

fn attach(hub: &Arc<Hub>, options: AttachOptions) -> OwnedFd {
    let (ours, theirs) = seqpacket::pair().unwrap();
    hub.attach(ours, options).unwrap();
    theirs
}

async fn join<T>(thread: std::thread::JoinHandle<T>) -> T {
    until("thread ends", || thread.is_finished()).await;
    thread.join().unwrap()
}

#[test]
fn everything_is_logged_when_drained_says_so() {
    run(async {
        let dir = temp();
        let hub = Hub::new(HubConfig::default());
        let config = FileConfig { path: dir.join("log"), ..FileConfig::default() };
        hub.add_sink(Box::new(FileSink::open(config).unwrap()));
        let kept = captured(&hub);
        let ((r1, w1), (r2, w2)) = (pipe(), pipe());
        hub.add_output(Stream::Stdout, r1).unwrap();
        hub.add_output(Stream::Stderr, r2).unwrap();
        let (out, err) = (lines(5 << 20), lines(1 << 20));
        let threads = [writer(w1, out.clone(), 100_000), writer(w2, err.clone(), 77)];
        assert_eq!(hub.drained(PATIENT).await, EOF);
        hub.finish(false).await.unwrap();
        for thread in threads {
            join(thread).await;
        }
        assert!(kept.lock().unwrap().stdout == out && kept.lock().unwrap().stderr == err);
        let mut joined = [Vec::new(), Vec::new()];
        let log = std::fs::read(dir.join("log")).unwrap();
        for record in pintle_core::cri::records(&log) {
            let record = record.unwrap();
            joined[record.stream.index()].extend_from_slice(record.content);
            if record.complete {
                joined[record.stream.index()].push(b'\n');
            }
        }
        assert!(joined == [out.clone(), err.clone()]);
        let counters = hub.counters();
        assert_eq!(counters.read, [out.len() as u64, err.len() as u64]);
        assert_eq!(counters.losses.total(), 0);
        std::fs::remove_dir_all(dir).unwrap();
    });
}

#[test]
fn bulk_output_is_not_cut_within_short_lines() {
    run(async {
        let dir = temp();
        let hub = Hub::new(HubConfig::default());
        let config = FileConfig { path: dir.join("log"), ..FileConfig::default() };
        hub.add_sink(Box::new(FileSink::open(config).unwrap()));
        let (r, mut w) = pipe();
        // Fill the pipe before anybody reads: one turn finds it full.
        let data: Vec<u8> = (0..65_536u32).map(|n| if n % 80 == 79 { b'\n' } else { b'z' }).collect();
        w.write_all(&data).unwrap();
        hub.add_output(Stream::Stdout, r).unwrap();
        drop(w);
        assert_eq!(hub.drained(PATIENT).await, EOF);
        let log = std::fs::read(dir.join("log")).unwrap();
        let partial = pintle_core::cri::records(&log).filter(|r| !r.unwrap().complete).count();
        assert_eq!(partial, 1, "only the unterminated end is a partial record");
        std::fs::remove_dir_all(dir).unwrap();
    });
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_nobody_else_notices() {
    run(async {
        // Long enough for clients that read, on whatever machine.
        let queue = QueuePolicy { deadline: Duration::from_secs(4), ..QueuePolicy::default() };
        let hub = Hub::new(HubConfig { queue, ..HubConfig::default() });
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&events);
        hub.set_observer(Arc::new(move |event| heard.lock().unwrap().push(event)));
        let kept = captured(&hub);
        let (r, w) = pipe();
        let stalled = attach(&hub, AttachOptions::CONMON);
        let good = [(); 2].map(|()| reader(attach(&hub, AttachOptions::CONMON), Duration::ZERO));
        hub.add_output(Stream::Stdout, r).unwrap();
        let data = lines(6 << 20);
        let thread = writer(w, data.clone(), 50_000);
        assert_eq!(hub.drained(PATIENT).await, EOF);
        hub.finish(false).await.unwrap();
        join(thread).await;
        for client in good {
            assert!(join(client).await[0] == data);
        }
        assert!(kept.lock().unwrap().stdout == data);
        assert_eq!(hub.counters().dropped, 1);
        assert!(events.lock().unwrap().iter().any(|e| matches!(e, HubEvent::ClientDropped(..))));
        // What it did get is in order, and then there is the end.
        assert!(data.starts_with(&join(reader(stalled, Duration::ZERO)).await[0]));
    });
}

#[test]
fn a_slow_client_gets_everything() {
    run(async {
        let queue = QueuePolicy { deadline: SOON, ..QueuePolicy::default() };
        let hub = Hub::new(HubConfig { queue, ..HubConfig::default() });
        let (r, w) = pipe();
        let client = reader(attach(&hub, AttachOptions::CONMON), Duration::from_millis(1));
        hub.add_output(Stream::Stderr, r).unwrap();
        let data = lines(2 << 20);
        let thread = writer(w, data.clone(), 8192);
        assert_eq!(hub.drained(PATIENT).await, EOF);
        hub.finish(false).await.unwrap();
        join(thread).await;
        assert!(join(client).await[1] == data);
        assert_eq!(hub.counters().dropped, 0);
    });
}

#[test]
fn input_waits_for_stdin_and_half_close_ends_it() {
    run(async {
        let hub = Hub::new(HubConfig { stdin: true, stdin_once: true, ..HubConfig::default() });
        let (out, mut container) = pipe();
        hub.add_output(Stream::Stdout, out).unwrap();
        let client = attach(&hub, AttachOptions::CONMON);
        let other = attach(&hub, AttachOptions::CONMON);
        // Longer than conmon's buffer, and before there is a stdin.
        let typed = lines(50_000);
        seqpacket::send_packet(client.as_fd(), &typed).unwrap();
        seqpacket::send_packet(client.as_fd(), b"").unwrap();
        seqpacket::send_packet(client.as_fd(), b"end\n").unwrap();
        nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&client),
            nix::sys::socket::Shutdown::Write,
        )
        .unwrap();
        let (stdin, to_stdin) = pipe();
        tokio::time::sleep(Duration::from_millis(20)).await;
        hub.set_stdin(to_stdin.into()).unwrap();
        let got = join(std::thread::spawn(move || {
            let mut got = Vec::new();
            File::from(stdin).read_to_end(&mut got).unwrap();
            got
        }))
        .await;
        assert!(got == [&typed[..], b"end\n"].concat());
        assert!(hub.stdin_is_closed());
        // The half-closed client still gets output, and so does the other one.
        container.write_all(b"bye\n").unwrap();
        drop(container);
        assert_eq!(hub.drained(PATIENT).await, EOF);
        hub.finish(false).await.unwrap();
        for client in [client, other] {
            assert_eq!(join(reader(client, Duration::ZERO)).await[0], b"bye\n");
        }
    });
}

#[test]
fn stdin_can_outlive_its_clients() {
    run(async {
        let config =
            HubConfig { stdin: true, stdin_once: true, leave_stdin_open: true, ..HubConfig::default() };
        let hub = Hub::new(config);
        let (stdin, to_stdin) = pipe();
        hub.set_stdin(to_stdin.into()).unwrap();
        for text in [&b"one "[..], b"two"] {
            let client = attach(&hub, AttachOptions::CONMON);
            seqpacket::send_packet(client.as_fd(), text).unwrap();
            drop(client);
            until("client is gone", || hub.counters().clients == 0).await;
        }
        assert!(!hub.stdin_is_closed());
        hub.close_stdin();
        let mut got = String::new();
        until("stdin is closed", || hub.stdin_is_closed()).await;
        File::from(stdin).read_to_string(&mut got).unwrap();
        assert_eq!(got, "one two");
    });
}

#[test]
fn a_process_that_closed_its_stdin_costs_nothing() {
    run(async {
        let hub = Hub::new(HubConfig { stdin: true, ..HubConfig::default() });
        let (stdin, to_stdin) = pipe();
        hub.set_stdin(to_stdin.into()).unwrap();
        drop(stdin);
        let client = attach(&hub, AttachOptions::CONMON);
        for _ in 0..3 {
            seqpacket::send_packet(client.as_fd(), b"x").unwrap();
        }
        until("stdin is given up", || hub.stdin_is_closed()).await;
        assert_eq!(hub.counters().stdin, 0);
    });
}

#[test]
fn a_fifo_feeds_stdin_to_its_end() {
    run(async {
        let hub = Hub::new(HubConfig { stdin: true, ..HubConfig::default() });
        let ((source, w), (stdin, to_stdin)) = (pipe(), pipe());
        hub.set_stdin_source(source).unwrap();
        hub.set_stdin(to_stdin.into()).unwrap();
        let data = lines(1 << 20);
        let thread = writer(w, data.clone(), 30_000);
        let got = join(std::thread::spawn(move || {
            let mut got = Vec::new();
            File::from(stdin).read_to_end(&mut got).unwrap();
            got
        }))
        .await;
        join(thread).await;
        assert!(got == data);
    });
}

#[test]
fn a_fifo_sets_the_pace_and_loses_nothing() {
    run(async {
        let hub = Hub::new(HubConfig::default());
        let ((r, w), (fifo, to_fifo)) = (pipe(), pipe());
        let held = fifo.try_clone().unwrap();
        hub.add_sink(Box::new(RawSink::new(&[Stream::Stdout], to_fifo.into(), vec![held]).unwrap()));
        hub.add_output(Stream::Stdout, r).unwrap();
        let data = lines(3 << 20);
        let thread = writer(w, data.clone(), 10_000);
        // Nobody reads: the container is held up.
        until("the container waits", || hub.counters().read[0] >= 65_536).await;
        let before = hub.counters().read[0];
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(hub.counters().read[0] <= before.max(4 * 65_536) && !thread.is_finished());
        let got = std::thread::spawn(move || {
            let mut got = Vec::new();
            File::from(fifo).read_to_end(&mut got).unwrap();
            got
        });
        assert_eq!(hub.drained(PATIENT).await, EOF);
        join(thread).await;
        // Both of our ends are closed as soon as all is written: the reader sees the end.
        assert!(join(got).await == data);
        assert_eq!(hub.counters().losses.total(), 0);
    });
}

#[test]
fn a_fifo_without_reader_does_not_stop_the_container() {
    run(async {
        let hub = Hub::new(HubConfig::default());
        let ((r, w), (fifo, to_fifo)) = (pipe(), pipe());
        hub.add_sink(Box::new(RawSink::new(&[Stream::Stdout], to_fifo.into(), Vec::new()).unwrap()));
        hub.add_output(Stream::Stdout, r).unwrap();
        drop(fifo);
        let data = lines(1 << 20);
        let len = data.len() as u64;
        let thread = writer(w, data, 10_000);
        assert_eq!(hub.drained(PATIENT).await, EOF);
        join(thread).await;
        assert_eq!(hub.counters().losses.iter().collect::<Vec<_>>(), [(LossCause::Errno(libc::EPIPE), len)]);
    });
}

#[test]
fn what_a_leftover_process_holds_is_given_up() {
    run(async {
        let hub = Hub::new(HubConfig::default());
        let kept = captured(&hub);
        let (r, mut w) = pipe();
        hub.add_output(Stream::Stdout, r).unwrap();
        w.write_all(b"last words").unwrap();
        let policy = DrainPolicy { quiet: Duration::ZERO, cap: SOON };
        let drained = hub.drained(policy).await;
        assert_eq!(drained, Drained { eof: false, leaked: true, undelivered: false });
        assert_eq!(kept.lock().unwrap().stdout, b"last words");
        hub.finish(false).await.unwrap();
    });
}

#[test]
fn a_leftover_process_that_writes_for_ever_is_cut_off() {
    run(async {
        let hub = Hub::new(HubConfig::default());
        let (r, mut w) = pipe();
        hub.add_output(Stream::Stdout, r).unwrap();
        let thread = std::thread::spawn(move || while w.write_all(b"more\n").is_ok() {});
        let drained = hub.drained(DrainPolicy { quiet: SOON, cap: Duration::from_millis(100) }).await;
        assert!(drained.leaked);
        // Its pipe has no reader any more.
        join(thread).await;
    });
}

#[test]
fn a_terminal_has_its_size_from_the_first_moment_and_ends_with_a_hangup() {
    run(async {
        let config = HubConfig { stdin: true, terminal: true, ..HubConfig::default() };
        let hub = Hub::new(config);
        let kept = captured(&hub);
        let client = attach(&hub, AttachOptions::CONMON);
        seqpacket::send_packet(client.as_fd(), b"typed\n").unwrap();
        hub.resize(10, 20).unwrap();
        hub.resize(30, 90).unwrap();
        let (master, slave) = pintle_sys::pty::pair().unwrap();
        hub.set_terminal(master).unwrap();
        assert_eq!(pintle_sys::pty::size(slave.as_fd()).unwrap(), (30, 90));
        hub.resize(31, 91).unwrap();
        assert_eq!(pintle_sys::pty::size(slave.as_fd()).unwrap(), (31, 91));
        let (slave, typed) = join(std::thread::spawn(move || {
            let mut buf = [0; 100];
            let n = nix::unistd::read(&slave, &mut buf).unwrap();
            (slave, buf[..n].to_vec())
        }))
        .await;
        assert_eq!(typed, b"typed\n");
        nix::unistd::write(&slave, b"hi\n").unwrap();
        drop(slave);
        assert_eq!(hub.drained(PATIENT).await, EOF);
        let text = String::from_utf8(kept.lock().unwrap().stdout.clone()).unwrap();
        assert!(text.ends_with("hi\r\n"), "{text:?}");
        assert!(Hub::new(HubConfig::default()).resize(1, 1).is_err());
    });
}

#[test]
fn a_terminal_may_be_opened_again() {
    run(async {
        let hub = Hub::new(HubConfig { terminal: true, ..HubConfig::default() });
        let kept = captured(&hub);
        let (master, slave) = pintle_sys::pty::pair().unwrap();
        let name =
            std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&slave))).unwrap();
        hub.set_terminal(master).unwrap();
        drop(slave);
        tokio::time::sleep(Duration::from_millis(150)).await;
        let mut again =
            std::fs::OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY).open(name).unwrap();
        again.write_all(b"back\n").unwrap();
        until("output comes", || !kept.lock().unwrap().stdout.is_empty()).await;
        drop(again);
        assert_eq!(hub.drained(PATIENT).await, EOF);
    });
}

#[test]
fn native_clients_are_told_of_ends() {
    run(async {
        let hub = Hub::new(HubConfig { stdin: true, terminal: false, ..HubConfig::default() });
        let options = AttachOptions { stdin: true, stdout: true, stderr: false, framing: Framing::Native };
        let client = attach(&hub, options);
        let ((out, mut w), (err, w2), (stdin, to_stdin)) = (pipe(), pipe(), pipe());
        hub.add_output(Stream::Stdout, out).unwrap();
        hub.add_output(Stream::Stderr, err).unwrap();
        hub.set_stdin(to_stdin.into()).unwrap();
        for packet in
            [ClientPacket::Stdin(b"in"), ClientPacket::Resize { rows: 1, cols: 2 }, ClientPacket::CloseStdin]
        {
            let mut bytes = Vec::new();
            packet.encode(&mut bytes);
            seqpacket::send_packet(client.as_fd(), &bytes).unwrap();
        }
        until("stdin is closed", || hub.stdin_is_closed()).await;
        let mut got = String::new();
        File::from(stdin).read_to_string(&mut got).unwrap();
        assert_eq!(got, "in");
        w.write_all(b"out").unwrap();
        (&w2).write_all(b"err").unwrap();
        drop((w, w2));
        assert_eq!(hub.drained(PATIENT).await, EOF);
        hub.finish(false).await.unwrap();
        let mut packets = Vec::new();
        let mut buf = Vec::new();
        while seqpacket::recv_packet(client.as_fd(), &mut buf, 1 << 20).unwrap() == Received::Packet {
            packets.push(buf.clone());
        }
        let packets: Vec<_> = packets.iter().map(|p| ShimPacket::decode(p).unwrap()).collect();
        let want =
            [ShimPacket::Output(Stream::Stdout, b"out"), ShimPacket::End(Stream::Stdout), ShimPacket::Done];
        assert_eq!(packets, want);
    });
}

#[test]
fn nonsense_and_crowds_are_turned_away() {
    run(async {
        let hub = Hub::new(HubConfig { max_clients: 2, ..HubConfig::default() });
        let options = AttachOptions { framing: Framing::Native, ..AttachOptions::CONMON };
        let first = attach(&hub, options);
        let _second = attach(&hub, options);
        let (ours, _theirs) = seqpacket::pair().unwrap();
        assert_eq!(hub.attach(ours, options).unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        seqpacket::send_packet(first.as_fd(), b"\xffnonsense").unwrap();
        until("it is dropped", || hub.counters().clients == 1).await;
    });
}

#[test]
fn clients_that_connect_get_output_and_an_end() {
    run(async {
        let dir = temp();
        let anchor = seqpacket::open_dir(&dir).unwrap();
        let kind = seqpacket::SocketKind::Packet;
        let listener = seqpacket::bind_at(anchor.as_fd(), "attach", kind, 0o700, 10).unwrap();
        let hub = Hub::new(HubConfig::default());
        hub.serve_attach(listener, AttachOptions::CONMON).unwrap();
        let (r, mut w) = pipe();
        hub.add_output(Stream::Stdout, r).unwrap();
        let clients: Vec<_> = (0..8)
            .map(|_| reader(seqpacket::connect_at(anchor.as_fd(), "attach", kind).unwrap(), Duration::ZERO))
            .collect();
        until("all are there", || hub.counters().clients == 8).await;
        w.write_all(b"hello").unwrap();
        drop(w);
        assert_eq!(hub.drained(PATIENT).await, EOF);
        // Too late for output, but not for the end.
        let late = seqpacket::connect_at(anchor.as_fd(), "attach", kind).unwrap();
        hub.finish(false).await.unwrap();
        for client in clients {
            assert_eq!(join(client).await[0], b"hello");
        }
        assert!(join(reader(late, Duration::ZERO)).await[0].is_empty());
        std::fs::remove_dir_all(dir).unwrap();
    });
}

#[test]
fn control_fifos() {
    run(async {
        let dir = temp();
        let hub = Hub::new(HubConfig { terminal: true, ..HubConfig::default() });
        let config = FileConfig { path: dir.join("log"), ..FileConfig::default() };
        hub.add_sink(Box::new(FileSink::open(config).unwrap()));
        std::fs::write(dir.join("ctl"), "in the way").unwrap();
        let _ctl = ControlFifo::create(&dir, "ctl", ControlKind::Ctl, &hub).unwrap();
        let _winsz = ControlFifo::create(&dir, "winsz", ControlKind::Winsz, &hub).unwrap();
        let (master, slave) = pintle_sys::pty::pair().unwrap();
        let size = || pintle_sys::pty::size(slave.as_fd()).unwrap();
        hub.set_terminal(master).unwrap();
        let mut ctl = std::fs::OpenOptions::new().write(true).open(dir.join("ctl")).unwrap();
        std::fs::rename(dir.join("log"), dir.join("old")).unwrap();
        for piece in [&b"1 5"[..], b" 6\nbad line\n1 9999 1\n2 0 ", b"0\n1 7 8\n"] {
            ctl.write_all(piece).unwrap();
        }
        until("both commands", || size() == (7, 8) && dir.join("log").exists()).await;
        std::fs::OpenOptions::new()
            .write(true)
            .open(dir.join("winsz"))
            .unwrap()
            .write_all(b"11 12\n")
            .unwrap();
        until("the size", || size() == (11, 12)).await;
        assert_eq!(hub.counters().reopened, 1);
        hub.close();
        std::fs::remove_dir_all(dir).unwrap();
    });
}

#[test]
fn reopening_under_load_loses_and_mixes_nothing() {
    run(async {
        let dir = temp();
        let hub = Hub::new(HubConfig::default());
        let config = FileConfig { path: dir.join("log"), ..FileConfig::default() };
        hub.add_sink(Box::new(FileSink::open(config).unwrap()));
        let (r, w) = pipe();
        hub.add_output(Stream::Stdout, r).unwrap();
        let data = lines(4 << 20);
        let thread = writer(w, data.clone(), 4000);
        let mut sizes = Vec::new();
        while !thread.is_finished() && sizes.len() < 200 {
            let old = dir.join(format!("old.{:04}", sizes.len()));
            std::fs::rename(dir.join("log"), &old).unwrap();
            hub.reopen_logs().unwrap();
            sizes.push((old.clone(), std::fs::metadata(&old).unwrap().len()));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(hub.drained(PATIENT).await, EOF);
        hub.finish(true).await.unwrap();
        join(thread).await;
        let mut joined = Vec::new();
        for (path, size) in sizes.iter().cloned().chain([(dir.join("log"), 0)]) {
            let log = std::fs::read(&path).unwrap();
            // Not one byte after the reply.
            assert!(size == log.len() as u64 || path.ends_with("log"));
            for record in pintle_core::cri::records(&log) {
                let record = record.unwrap();
                joined.extend_from_slice(record.content);
                if record.complete {
                    joined.push(b'\n');
                }
            }
        }
        assert!(joined == data);
        std::fs::remove_dir_all(dir).unwrap();
    });
}

#[test]
fn a_hub_can_be_handed_over_in_full_flight() {
    run(async {
        let dir = temp();
        let queue = QueuePolicy { deadline: SOON, ..QueuePolicy::default() };
        let config = HubConfig { stdin: true, stdin_once: true, queue, ..HubConfig::default() };
        let mut hub = Hub::new(config);
        let log = FileConfig { path: dir.join("log"), ..FileConfig::default() };
        hub.add_sink(Box::new(FileSink::open(log).unwrap()));
        let ((r, w), (stdin, to_stdin)) = (pipe(), pipe());
        hub.add_output(Stream::Stdout, r).unwrap();
        hub.set_stdin(to_stdin.into()).unwrap();
        let client = attach(&hub, AttachOptions::CONMON);
        let input = lines(200_000);
        let sender = {
            let (client, input) = (client.try_clone().unwrap(), input.clone());
            std::thread::spawn(move || {
                for piece in input.chunks(9000) {
                    nix::unistd::write(&client, piece).unwrap();
                    std::thread::sleep(Duration::from_millis(1));
                }
                nix::sys::socket::shutdown(
                    std::os::fd::AsRawFd::as_raw_fd(&client),
                    nix::sys::socket::Shutdown::Write,
                )
                .unwrap();
            })
        };
        let eater = std::thread::spawn(move || {
            let mut got = Vec::new();
            File::from(stdin).read_to_end(&mut got).unwrap();
            got
        });
        let client = reader(client, Duration::from_micros(100));
        let data = lines(4 << 20);
        let thread = writer(w, data.clone(), 3000);
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let (state, fds) = hub.freeze().unwrap();
            let text = serde_json::to_string(&state).unwrap();
            let next = Hub::thaw(serde_json::from_str(&text).unwrap(), fds).unwrap();
            // The old program ends by exec; here it is closed without a trace.
            hub.close();
            hub = next;
        }
        assert_eq!(hub.drained(PATIENT).await, EOF);
        assert!(join(eater).await == input);
        hub.finish(false).await.unwrap();
        join(thread).await;
        join(sender).await;
        assert!(join(client).await[0] == data);
        assert_eq!(hub.counters().read[0], data.len() as u64);
        assert_eq!(hub.counters().stdin, input.len() as u64);
        let log = std::fs::read(dir.join("log")).unwrap();
        let payload = pintle_core::cri::payload(&log).0;
        assert_eq!(payload, data.len() as u64);
        std::fs::remove_dir_all(dir).unwrap();
    });
}

#[test]
fn an_upgrade_that_fails_changes_nothing() {
    run(async {
        let queue = QueuePolicy { deadline: SOON, ..QueuePolicy::default() };
        let hub = Hub::new(HubConfig { queue, ..HubConfig::default() });
        let (r, w) = pipe();
        hub.add_output(Stream::Stdout, r).unwrap();
        let client = reader(attach(&hub, AttachOptions::CONMON), Duration::ZERO);
        let data = lines(1 << 20);
        let thread = writer(w, data.clone(), 3000);
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            drop(hub.freeze().unwrap());
            tokio::time::sleep(Duration::from_millis(1)).await;
            hub.unfreeze();
        }
        assert_eq!(hub.drained(PATIENT).await, EOF);
        hub.finish(false).await.unwrap();
        join(thread).await;
        assert!(join(client).await[0] == data);
        captured(&hub);
        assert_eq!(hub.freeze().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert!(!hub.lock().frozen);
    });
}

#[test]
fn memory_is_given_back_in_a_quiet_moment() {
    run(async {
        let hub = Hub::new(HubConfig::default());
        let (r, mut w) = pipe();
        hub.add_output(Stream::Stdout, r).unwrap();
        join(writer(w.try_clone().unwrap(), vec![b'x'; 3_000_000], 60_000)).await;
        until("buffers are freed", || {
            let state = hub.lock();
            state.buffers.is_none() && !state.janitor && state.counters.read[0] == 3_000_000
        })
        .await;
        w.write_all(b"again\n").unwrap();
        until("it is read", || hub.counters().read[0] == 3_000_006).await;
        hub.close();
    });
}
