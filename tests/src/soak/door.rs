//! A life through the conmon door: the calls, pipes and files of an engine, random steps, one end.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::check;
use super::life::{MEMORY, PATIENCE, PROGRAM};
use super::plan::Log;
use super::report::Report;
use super::rng::Rng;
use crate::{AttachClient, Bundle, Conmon, Leftovers, Pipes, Running, TempDir, fds, process, process_alive};

/// One thing that happens to the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It writes lines: how many, how long, to stderr instead of stdout.
    Lines(u64, u64, bool),
    /// It writes these many bytes without a newline.
    Piece(u64, bool),
    /// CRI-O's exec-sync: code and bytes of output.
    ExecSync(u8, u64),
    /// So many of them at once.
    ExecStorm(u64),
    /// An exec of a program that is not there.
    ExecMissing,
    /// The log is renamed and opened anew over the `ctl` FIFO.
    Reopen,
    /// A client that reads all from now on.
    Attach,
    /// A client that reads nothing.
    AttachStalled,
    /// Nonsense on FIFO and socket.
    Garbage,
    /// Signals that a monitor has to bear.
    Signals,
}

/// How it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// By itself, with this code.
    Code(u8),
    /// By the engine's runtime call.
    Kill,
    /// By the memory limit.
    Oom,
    /// The monitor is killed: the container lives on, until the engine deletes it.
    Lost,
}

/// A life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    steps: Vec<Step>,
    end: End,
}

impl Plan {
    /// The plan of one life.
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let count = rng.range(1, 8);
        let steps = (0..count).map(|_| match rng.weighted(&[30, 8, 20, 5, 4, 10, 6, 4, 5, 5]) {
            0 => Step::Lines(rng.range(1, 3000), rng.range(1, 120), rng.chance(25)),
            1 => Step::Piece(rng.range(1, 100_000), rng.chance(25)),
            2 => Step::ExecSync(rng.range(0, 256) as u8, rng.range(0, 200_000)),
            3 => Step::ExecStorm(rng.range(2, 7)),
            4 => Step::ExecMissing,
            5 => Step::Reopen,
            6 => Step::Attach,
            7 => Step::AttachStalled,
            8 => Step::Garbage,
            _ => Step::Signals,
        });
        let steps = steps.collect();
        let end = match rng.weighted(&[55, 15, 15, 15]) {
            0 => End::Code(rng.range(0, 256) as u8),
            1 => End::Kill,
            2 => End::Oom,
            _ => End::Lost,
        };
        Self { steps, end }
    }
}

struct Life<'a> {
    plan: &'a Plan,
    run: Running,
    report: Report,
    ctl: PathBuf,
    commands: u64,
    expected: [Vec<u8>; 2],
    aside: Vec<(PathBuf, u64)>,
    readers: Vec<std::thread::JoinHandle<(Vec<u8>, Vec<u8>)>>,
    stalled: Vec<AttachClient>,
    fds_before: usize,
}

/// Lives it; what does not hold is an error that names the step. Blocks.
pub(super) fn live(plan: &Plan) -> Result<Report> {
    let dir = TempDir::new("soakc");
    let ctl = dir.join("ctl");
    fs::create_dir(&ctl)?;
    nix::unistd::mkfifo(&ctl.join("gate"), nix::sys::stat::Mode::S_IRWXU)?;
    let mut bundle = Bundle::sh(PROGRAM).bind(&ctl, "/ctl");
    if plan.end == End::Oom {
        bundle = bundle.memory(MEMORY);
    }
    let mut run = Conmon::create(&dir, &bundle).start();
    run.begin();
    let id = run.call.id.clone();
    // The view of the native door comes a little later.
    let view = run.call.path("pintle").join(&id).join("monitor.sock");
    let end = Instant::now() + PATIENCE;
    while !view.exists() {
        ensure!(Instant::now() < end, "conmon door: no native view within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(3));
    }
    let fds_before = fds(run.monitor()).len();
    let mut life = Life {
        plan,
        run,
        report: Report { containers: 1, ..Report::default() },
        ctl,
        commands: 0,
        expected: Default::default(),
        aside: Vec::new(),
        readers: Vec::new(),
        stalled: Vec::new(),
        fds_before,
    };
    life.report.fault("conmon door");
    for (i, step) in plan.steps.iter().enumerate() {
        life.step(*step).with_context(|| format!("conmon door: step {i} {step:?}"))?;
    }
    life.end().with_context(|| format!("conmon door: end {:?}", plan.end))?;
    let Life { run, report, .. } = life;
    drop(run);
    let end = Instant::now() + PATIENCE;
    loop {
        let found = Leftovers::of(&id).find();
        if found.is_empty() {
            return Ok(report);
        }
        ensure!(Instant::now() < end, "conmon door: left: {}", found.join("; "));
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Life<'_> {
    fn wrote(&mut self, stderr: bool, bytes: &[u8]) {
        self.expected[usize::from(stderr)].extend_from_slice(bytes);
        self.report.bytes += bytes.len() as u64;
    }

    fn send(&mut self, command: &str) -> Result<u64> {
        self.commands += 1;
        let gate = self.ctl.join("gate");
        let end = Instant::now() + PATIENCE;
        loop {
            match fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&gate) {
                Ok(mut gate) => {
                    gate.write_all(format!("{} {command}\n", self.commands).as_bytes())?;
                    return Ok(self.commands);
                }
                Err(e) if e.raw_os_error() == Some(libc::ENXIO) && Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(3));
                }
                Err(e) => return Err(anyhow!(e).context("the container does not listen")),
            }
        }
    }

    fn tell(&mut self, command: &str) -> Result<()> {
        let n = self.send(command)?;
        let ack = self.ctl.join(format!("ack.{n}"));
        self.until(&format!("{command:?} to be done"), || ack.exists())
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !holds() {
            ensure!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
            std::thread::sleep(Duration::from_millis(3));
        }
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Lines(count, length, stderr) => {
                let pad = "x".repeat(length as usize);
                let text: String = (0..count).map(|j| format!("{j} {pad}\n")).collect();
                self.wrote(stderr, text.as_bytes());
                self.tell(&format!("lines {count} {length} {}", 1 + u8::from(stderr)))?;
            }
            Step::Piece(length, stderr) => {
                self.wrote(stderr, &vec![b'y'; length as usize]);
                self.tell(&format!("piece {length} - {}", 1 + u8::from(stderr)))?;
            }
            Step::ExecSync(code, bytes) => {
                let exec = self.exec(code, bytes);
                self.finish_exec(exec, code, bytes)?;
            }
            Step::ExecStorm(count) => {
                self.report.fault("exec storm");
                let all: Vec<(u8, Running)> =
                    (0..count as u8).map(|n| (n, self.exec(n, u64::from(n) * 100))).collect();
                for (n, exec) in all {
                    self.finish_exec(exec, n, u64::from(n) * 100)?;
                }
            }
            Step::ExecMissing => {
                self.report.fault("exec missing");
                let mut exec = Conmon::exec(&self.run.call, &process(&["/no/such/program"])).start();
                exec.gate();
                let message = exec.message();
                ensure!(message["data"] == -1, "an exec of nothing: {message}");
                ensure!(message["message"].as_str().is_some_and(|t| !t.is_empty()), "no reason: {message}");
            }
            Step::Reopen => {
                self.report.fault("log reopened");
                let log = self.run.call.path("log");
                let aside = self.run.call.path(&format!("aside-{}", self.aside.len()));
                fs::rename(&log, &aside)?;
                self.run.ctl("2 0 0\n");
                self.until("a new log", || log.exists())?;
                let size = fs::metadata(&aside)?.len();
                self.aside.push((aside, size));
            }
            Step::Attach => {
                let mut client = self.run.attach();
                self.readers.push(std::thread::spawn(move || client.rest()));
            }
            Step::AttachStalled => {
                self.report.fault("stalled client");
                self.stalled.push(self.run.attach());
            }
            Step::Garbage => {
                self.report.fault("garbage");
                self.run.ctl("nonsense\n9 9 9\n1 x y\n\n");
                let mut client = self.run.attach();
                client.send(&[0xff; 300]);
            }
            Step::Signals => {
                self.report.fault("signal storm");
                let monitor = Pid::from_raw(self.run.monitor() as i32);
                for n in 0..60 {
                    kill(monitor, [Signal::SIGHUP, Signal::SIGPIPE, Signal::SIGUSR1][n % 3])?;
                }
                ensure!(process_alive(self.run.monitor()), "a signal ended the monitor");
            }
        }
        Ok(())
    }

    fn exec(&mut self, code: u8, bytes: u64) -> Running {
        self.report.execs += 1;
        let script = format!("head -c {bytes} /dev/zero | tr '\\0' e; exit {code}");
        let call = Conmon::exec(&self.run.call, &process(&["/bin/sh", "-c", &script]));
        let log = call.path("log");
        let call = call.replace("-l", &log).arg("--sync").pipes(Pipes::Pipe);
        let mut exec = call.start();
        exec.gate();
        exec
    }

    fn finish_exec(&mut self, mut exec: Running, code: u8, bytes: u64) -> Result<()> {
        let message = exec.message();
        ensure!(message["data"].as_i64().is_some_and(|pid| pid > 0), "an exec that did not start: {message}");
        let message = exec.message();
        ensure!(message["data"] == i64::from(code), "an exec ended with {message}, not {code}");
        let file = exec.exit_file();
        ensure!(file == code.to_string(), "an exec's exit file says {file}, not {code}");
        let records = crate::parse_cri(&exec.log()).map_err(|e| anyhow!("log of an exec: {e}"))?;
        let got = crate::rejoin(&records, "stdout");
        ensure!(got.len() as u64 == bytes, "an exec gave {} of {bytes} bytes", got.len());
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let monitor = self.run.monitor();
        let (kib, open) = (crate::private_dirty_kib(monitor), fds(monitor).len());
        self.report.shim_kib = self.report.shim_kib.max(kib);
        self.report.shim_fds = self.report.shim_fds.max(open);
        let clients = self.readers.len() + self.stalled.len();
        let list = || fds(monitor).into_values().collect::<Vec<_>>().join(", ");
        ensure!(
            open <= self.fds_before + clients + 12,
            "{} descriptors became {open}: {}",
            self.fds_before,
            list()
        );
        ensure!(kib < 16 * 1024, "the monitor holds {kib} KiB");
        let id = self.run.call.id.clone();
        let wanted = match self.plan.end {
            End::Code(code) => {
                self.send(&format!("exit {code} - -"))?;
                code.to_string()
            }
            End::Kill => {
                let done = self.run.runtime(&["kill", &id, "KILL"]);
                ensure!(done.status.success(), "runc kill: {}", String::from_utf8_lossy(&done.stderr));
                "137".into()
            }
            End::Oom => {
                self.report.fault("OOM killed");
                self.send("oom - - -")?;
                "137".into()
            }
            End::Lost => return self.lose(&id),
        };
        let told = self.run.exit_file();
        // At this very moment:
        let log = check::log(&self.run.call.path("log"), &self.aside, Log::Plain, &self.expected, 0);
        log.context("at the moment of the exit file")?;
        ensure!(told == wanted, "the exit file says {told}, not {wanted}");
        let oom = self.run.call.path("persist/oom").exists();
        ensure!(oom == (self.plan.end == End::Oom), "oom file: {oom}");
        let kind = if oom {
            "OOM".to_owned()
        } else {
            format!("conmon {}", if told == "137" { "137" } else { "code" })
        };
        *self.report.ends.entry(kind).or_default() += 1;
        self.until("the monitor's end", || !process_alive(monitor))?;
        for reader in self.readers.drain(..) {
            let (out, err) = reader.join().map_err(|_| anyhow!("a client that reads came to no end"))?;
            for (stream, got) in [out, err].iter().enumerate() {
                let all = &self.expected[stream];
                ensure!(
                    all.ends_with(got),
                    "a client saw {} bytes that are no end of stream {stream}",
                    got.len()
                );
            }
        }
        self.stalled.clear();
        Ok(())
    }

    /// Without its monitor the container lives, and nobody says that it has ended.
    fn lose(&mut self, id: &str) -> Result<()> {
        self.report.fault("conmon killed");
        let monitor = self.run.monitor();
        let pid: u32 = fs::read_to_string(self.run.call.path("pidfile"))?.trim().parse()?;
        kill(Pid::from_raw(monitor as i32), Signal::SIGKILL)?;
        self.until("the killed monitor to go", || !process_alive(monitor))?;
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        ensure!(process_alive(pid), "the container ended with its monitor");
        ensure!(!self.run.call.path("exits").join(id).exists(), "an exit file of a container that lives");
        let log = check::log(&self.run.call.path("log"), &self.aside, Log::Plain, &self.expected, 0);
        // What it had read and not written is gone with it.
        if let Err(e) = log {
            ensure!(e.to_string().starts_with("bytes:"), "{e:#}");
        }
        *self.report.ends.entry("monitor lost".into()).or_default() += 1;
        let done = self.run.runtime(&["delete", "--force", id]);
        ensure!(done.status.success(), "runc delete: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }
}
