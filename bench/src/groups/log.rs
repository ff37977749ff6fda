//! Log throughput, CPU for each GiB, and attach throughput.

use std::{
    fs,
    io::{Read, Write},
    os::{fd::AsRawFd, unix::net::UnixDatagram},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::Scale;
use crate::{
    lab::{Lab, Running, Who, until},
    report::Report,
};

/// Name, line bytes, bytes a write, share of the full amount, goals: CPU over conmon, speed over conmon.
const CASES: &[(&str, usize, usize, f64, f64, f64)] = &[
    ("80-byte lines", 80, 65536, 1.0, 0.25, 3.0),
    ("16 KiB lines", 16384, 65536, 1.0, 0.4, 2.0),
    ("no newline", 0, 65536, 1.0, 0.4, 2.0),
    ("1-byte lines", 2, 65536, 0.0625, 0.2, 4.5),
    ("one write per line", 80, 0, 0.25, 1.0 / 3.0, 1.2),
];

/// Both monitors and the floor in turn, for each shape of output.
pub(crate) fn log(lab: &Lab, report: &mut Report, scale: Scale) -> Result<()> {
    let whole = scale.of(512 << 20, 64 << 20);
    let rounds = scale.of(5, 2);
    let mut empty = Vec::new();
    for who in Who::BOTH {
        let runs: Vec<f64> = (0..rounds)
            .map(|_| Ok(run(lab, who, "k8s-file", 0, 80, 65536, false)?.1))
            .collect::<Result<_>>()?;
        empty.push(crate::measure::quantile(&runs, 0.5));
    }
    let one = |report: &mut Report,
               case: &str,
               driver: &str,
               line: usize,
               write: usize,
               bytes: usize,
               both: bool|
     -> Result<()> {
        let gib = bytes as f64 / f64::from(1 << 30);
        let (mut cpu, mut speed) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for _ in 0..rounds {
            for (i, who) in Who::BOTH.into_iter().enumerate() {
                let (wall, used) = run(lab, who, driver, bytes, line, write, both)?;
                cpu[i].push((used - empty[i]).max(0.0) / gib);
                speed[i].push(gib * 1024.0 / wall);
            }
        }
        for (i, who) in Who::BOTH.into_iter().enumerate() {
            report.add("log", format!("{case}: CPU"), "s/GiB", who.name(), std::mem::take(&mut cpu[i]));
            report.add_more(
                "log",
                format!("{case}: speed"),
                "MiB/s",
                who.name(),
                std::mem::take(&mut speed[i]),
            );
        }
        Ok(())
    };
    for (case, line, write, share, cpu_goal, speed_goal) in CASES {
        let bytes = (whole as f64 * share) as usize;
        one(report, case, "k8s-file", *line, *write, bytes, false)?;
        let floor: Vec<f64> = (0..rounds).map(|_| cat(lab, bytes, *line, *write)).collect::<Result<_>>()?;
        report.add("log", format!("{case}: CPU"), "s/GiB", "floor", floor);
        let best =
            |what: &str, who: &str, part: f64| report.value("log", &format!("{case}: {what}"), who, part);
        let cpu = best("CPU", "pintle", 0.5).zip(best("CPU", "conmon", 0.5)).map(|(a, b)| a / b);
        let over = best("CPU", "pintle", 0.5).zip(best("CPU", "floor", 0.5)).map(|(a, b)| a / b);
        let speed = best("speed", "pintle", 0.5).zip(best("speed", "conmon", 0.5)).map(|(a, b)| a / b);
        report.goal(format!("log CPU over conmon, {case}"), cpu, *cpu_goal, false, "x");
        report.goal(format!("log speed over conmon, {case}"), speed, *speed_goal, true, "x");
        match *case {
            "80-byte lines" => {
                report.goal("log CPU over `cat pipe > file`, 80-byte lines", over, 1.6, false, "x")
            }
            "16 KiB lines" => {
                report.goal("log CPU over `cat pipe > file`, 16 KiB lines", over, 1.15, false, "x")
            }
            _ => {}
        }
    }
    one(report, "both streams, 80-byte lines", "k8s-file", 80, 65536, whole / 2, true)?;
    one(report, "driver none", "none", 80, 65536, whole / 2, false)?;
    if let Some(journal) = Journal::new()? {
        let bytes = whole / 64;
        let gib = bytes as f64 / f64::from(1 << 30);
        // conmon may have been built without it.
        for (who, empty) in Who::BOTH.into_iter().zip(&empty) {
            let (mut cpu, mut speed) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                match run(lab, who, "journald", bytes, 80, 65536, false) {
                    Ok((wall, used)) => {
                        cpu.push((used - empty).max(0.0) / gib);
                        speed.push(gib * 1024.0 / wall);
                    }
                    Err(why) if who == Who::Conmon => println!("  log       journald: {why:#}"),
                    Err(why) => return Err(why),
                }
            }
            if !cpu.is_empty() {
                report.add("log", "driver journald: CPU", "s/GiB", who.name(), cpu);
                report.add_more("log", "driver journald: speed", "MiB/s", who.name(), speed);
            }
        }
        drop(journal);
    }
    Ok(())
}

/// A receiver in the journal's place, which throws away what it gets: what is measured is the sender.
struct Journal {
    done: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Journal {
    const PATH: &str = "/run/systemd/journal/socket";

    /// None where a journal is running: it is not to be filled.
    fn new() -> Result<Option<Self>> {
        let path = Path::new(Self::PATH);
        if path.exists() {
            println!("  log       a journal is running: no row for its driver");
            return Ok(None);
        }
        fs::create_dir_all(path.parent().context("no directory")?)?;
        let socket = UnixDatagram::bind(path)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let done = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while !ended.load(Ordering::Relaxed) {
                let _ = socket.recv(&mut buffer);
            }
        });
        Ok(Some(Self { done, thread: Some(thread) }))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(Self::PATH);
    }
}

/// One container that writes; gives wall seconds from start to exit file and CPU seconds of the monitor.
fn run(
    lab: &Lab,
    who: Who,
    driver: &str,
    bytes: usize,
    line: usize,
    write: usize,
    both: bool,
) -> Result<(f64, f64)> {
    let args = [
        "load".to_owned(),
        bytes.to_string(),
        line.to_string(),
        write.to_string(),
        if both { "both" } else { "one" }.to_owned(),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let one = lab.create(who, &args, driver, &[], None)?;
    let began = Instant::now();
    lab.start(&one)?;
    until(Duration::from_secs(300), || Ok(one.exit_file.exists().then_some(())))?;
    let wall = began.elapsed().as_secs_f64();
    let cpu = lab.reap(&one)?;
    if driver == "k8s-file" {
        ensure!(fs::metadata(&one.log)?.len() as usize >= bytes, "{} lost bytes", who.name());
    }
    fs::remove_dir_all(&one.bundle)?;
    let _ = fs::remove_file(&one.exit_file);
    Ok((wall, cpu))
}

/// CPU seconds for each GiB of copying the same input from a pipe to a file, with 64 KiB buffers.
fn cat(lab: &Lab, bytes: usize, line: usize, write: usize) -> Result<f64> {
    let mut child = Command::new(lab.dir.join("rootfs/bin/load"))
        .args([bytes.to_string(), line.to_string(), write.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut pipe = child.stdout.take().context("no pipe")?;
    let path = lab.dir.join("floor");
    let mut file = fs::File::create(&path)?;
    let mut buffer = vec![0; 65536];
    let before = own_cpu()?;
    loop {
        let n = pipe.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        file.write_all(&buffer[..n])?;
    }
    let used = own_cpu()? - before;
    child.wait()?;
    fs::remove_file(path)?;
    Ok(used / (bytes as f64 / f64::from(1 << 30)))
}

fn own_cpu() -> Result<f64> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Attach clients of the conmon socket: one, sixteen, and sixteen of which one does not read.
pub(crate) fn attach(lab: &Lab, report: &mut Report, scale: Scale) -> Result<()> {
    let bytes = scale.of(512 << 20, 64 << 20);
    let rounds = scale.of(5, 2);
    let mut all: Vec<(&str, Who, Vec<f64>, Vec<f64>)> = Vec::new();
    // Round by round, so that all cases see the same machine.
    for round in 0..rounds {
        for (case, clients, stalled) in
            [("1 client", 1, false), ("16 clients", 16, false), ("16 clients, one stalled", 15, true)]
        {
            for who in Who::BOTH {
                // conmon waits for a client that does not read for ever.
                if who == Who::Conmon && stalled {
                    continue;
                }
                // Each byte goes to every client.
                let bytes = if clients > 1 { bytes / 4 } else { bytes };
                let (speed, head) = attached(lab, who, bytes, clients, stalled)
                    .with_context(|| format!("{case}, round {round}, {}", who.name()))?;
                match all.iter_mut().find(|a| a.0 == case && a.1 == who) {
                    Some(a) => {
                        a.2.push(speed);
                        a.3.push(head);
                    }
                    None => all.push((case, who, vec![speed], vec![head])),
                }
            }
        }
    }
    for (case, who, speeds, heads) in all {
        report.add_more("attach", case, "MiB/s", who.name(), speeds);
        report.add("attach", format!("{case}: the first 8 MiB"), "s", who.name(), heads);
    }
    let at = |case, who| report.value("attach", case, who, 0.5);
    let ratio = at("1 client", "pintle").zip(at("1 client", "conmon")).map(|(a, b)| a / b);
    let slowed = at("16 clients, one stalled", "pintle")
        .zip(at("16 clients", "pintle"))
        .map(|(a, b)| (1.0 - a / b) * 100.0);
    report.goal("attach throughput over conmon, 1 client", ratio, 1.5, true, "x");
    report.goal("container slowed by a stalled 16th client, after the first 8 MiB", slowed, 5.0, false, "%");
    Ok(())
}

/// The bytes in which a client that does not read is found out: more than its queue and its socket hold.
const HEAD: usize = 8 << 20;

/// MiB/s after the first 8 MiB, and the seconds that these took: a client that does not read is waited for once, and then
/// dropped.
fn attached(lab: &Lab, who: Who, bytes: usize, clients: usize, stalled: bool) -> Result<(f64, f64)> {
    let script = format!("read x; exec load {bytes} 0 65536");
    let one = lab.create(who, &["sh", "-c", &script], "none", &["-i"], None)?;
    lab.start(&one)?;
    let connect = || client(lab, &one);
    let quiet = if stalled { Some(connect()?) } else { None };
    let mut readers = Vec::new();
    for _ in 0..clients {
        readers.push(connect()?);
    }
    std::thread::sleep(Duration::from_millis(300));
    let mut first = readers.first().context("no client")?.try_clone()?;
    let began = Instant::now();
    first.write_all(b"go\n")?;
    let threads: Vec<_> = readers
        .into_iter()
        .map(|mut file| {
            std::thread::spawn(move || -> Result<(usize, f64)> {
                let (mut buffer, mut got, mut head) = (vec![0; 65536], 0, 0.0);
                while got < bytes {
                    match file.read(&mut buffer)? {
                        0 => break,
                        n => got += n - 1,
                    }
                    if head == 0.0 && got >= HEAD {
                        head = began.elapsed().as_secs_f64();
                    }
                }
                Ok((got, head))
            })
        })
        .collect();
    let mut head = 0f64;
    for thread in threads {
        let (got, first) = thread.join().ok().context("a reader failed")??;
        ensure!(got >= bytes, "a client got {got} of {bytes} bytes");
        head = head.max(first);
    }
    let wall = began.elapsed().as_secs_f64();
    drop(quiet);
    lab.end(&one)?;
    Ok(((bytes - HEAD) as f64 / f64::from(1 << 20) / (wall - head), head))
}

/// A client of a container's attach socket.
fn client(lab: &Lab, one: &Running) -> Result<fs::File> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket as make};
    let socket = lab.dir.join("s").join(&one.id).join("attach");
    until(Duration::from_secs(20), || Ok(socket.exists().then_some(())))?;
    let fd = make(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(&socket)?)?;
    Ok(fs::File::from(fd))
}

/// Bytes of one packet of stdin.
const PACKET: usize = 8192;

/// From an attach client to a program that reads, and over a bare packet socket.
pub(crate) fn stdin(lab: &Lab, report: &mut Report, scale: Scale) -> Result<()> {
    let bytes = scale.of(256 << 20, 32 << 20);
    let rounds = scale.of(5, 2);
    let (mut both, mut floor) = ([Vec::new(), Vec::new()], Vec::new());
    for _ in 0..rounds {
        for (i, who) in Who::BOTH.into_iter().enumerate() {
            both[i].push(fed(lab, who, bytes)?);
        }
        floor.push(pair(bytes)?);
    }
    for (who, samples) in Who::BOTH.into_iter().zip(both) {
        report.add_more("stdin", "attach client to program", "MiB/s", who.name(), samples);
    }
    report.add_more("stdin", "attach client to program", "MiB/s", "floor", floor);
    Ok(())
}

fn fed(lab: &Lab, who: Who, bytes: usize) -> Result<f64> {
    let one = lab.create(who, &["load", "read", &bytes.to_string()], "none", &["-i"], None)?;
    lab.start(&one)?;
    let mut client = client(lab, &one)?;
    let packet = vec![b'x'; PACKET];
    let began = Instant::now();
    for _ in 0..bytes / PACKET {
        client.write_all(&packet)?;
    }
    until(Duration::from_secs(120), || Ok(one.exit_file.exists().then_some(())))?;
    let wall = began.elapsed().as_secs_f64();
    drop(client);
    lab.reap(&one)?;
    fs::remove_dir_all(&one.bundle)?;
    let _ = fs::remove_file(&one.exit_file);
    Ok(bytes as f64 / f64::from(1 << 20) / wall)
}

/// The same packets from one thread to another.
fn pair(bytes: usize) -> Result<f64> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let (mut ours, mut theirs) = (fs::File::from(ours), fs::File::from(theirs));
    let began = Instant::now();
    let reader = std::thread::spawn(move || -> std::io::Result<()> {
        let (mut buffer, mut got) = (vec![0; 65536], 0);
        while got < bytes {
            got += theirs.read(&mut buffer)?;
        }
        Ok(())
    });
    let packet = vec![b'x'; PACKET];
    for _ in 0..bytes / PACKET {
        ours.write_all(&packet)?;
    }
    reader.join().ok().context("the reader failed")??;
    Ok(bytes as f64 / f64::from(1 << 20) / began.elapsed().as_secs_f64())
}
