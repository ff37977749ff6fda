//! One life: the container does what it is told over a FIFO, so the model knows every byte it wrote.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_client::{
    Attached, CreateOptions, Event, ExecOptions, ExecSyncOptions, Exit, ExitReason, LogOptions, Monitor,
    SpawnConfig,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::check;
use super::plan::{End, Log, Plan, Step};
use super::report::Report;
use crate::{Bundle, Leftovers, crun, fds, private_dirty_kib, process_alive, runc, shim};

/// How long anything may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of a container with a memory limit.
const MEMORY: i64 = 40 << 20;

/// What the container runs: one command per line of the FIFO, each acknowledged by a file.
const PROGRAM: &str = r#"
hog() { sh -c 'x=$(head -c 200000000 /dev/zero | tr "\0" a); echo $x >/dev/null'; }
lines() { p=$(head -c "$2" /dev/zero | tr '\0' x); j=0; while [ $j -lt "$1" ]; do echo "$j $p"; j=$((j+1)); done; }
piece() { head -c "$1" /dev/zero | tr '\0' y; }
while :; do
  # A signal for the end of a child interrupts the open.
  read -r n c a b e 2>/dev/null </ctl/gate || continue
  case $c in
  lines) if [ "$e" = 2 ]; then lines $a $b >&2; else lines $a $b; fi ;;
  piece) if [ "$e" = 2 ]; then piece $a >&2; else piece $a; fi ;;
  feed) read -r l; echo "fed $l" ;;
  hog) hog 2>/dev/null; echo "hog $?" ;;
  exit) exit $a ;;
  orphan) sleep 100000 & exit $a ;;
  oom) exec sh -c 'x=$(head -c 200000000 /dev/zero | tr "\0" a); echo $x >/dev/null' 2>/dev/null ;;
  esac
  : >/ctl/ack.$n
done
"#;

/// A client that reads all it gets.
struct Reader {
    /// What the container had written before it came.
    before: [usize; 2],
    task: JoinHandle<std::io::Result<[Vec<u8>; 2]>>,
}

/// One life.
pub(super) struct Life {
    number: u64,
    plan: Plan,
    dir: PathBuf,
    id: String,
    pub(super) at: String,
    report: Report,
    /// What the container wrote to stdout and stderr.
    expected: [Vec<u8>; 2],
    commands: u64,
    readers: Vec<Reader>,
    stalled: Vec<Attached>,
    /// Names under which the log was put aside, and their sizes then.
    aside: Vec<(PathBuf, u64)>,
    /// The execs that events must tell of; those that run to their end in one call are not told.
    execs: u64,
    oom_children: u64,
    lost_shims: u64,
    /// It ended before its end.
    over: bool,
    fds_before: Option<usize>,
}

impl Life {
    pub(super) fn new(number: u64, root: &Path, plan: Plan) -> Self {
        let id = crate::unique_id("soak");
        Self {
            number,
            plan,
            dir: root.join(&id),
            id,
            at: "begin".into(),
            report: Report::default(),
            expected: Default::default(),
            commands: 0,
            readers: Vec::new(),
            stalled: Vec::new(),
            aside: Vec::new(),
            execs: 0,
            oom_children: 0,
            lost_shims: 0,
            over: false,
            fds_before: None,
        }
    }

    pub(super) fn violate(&mut self, what: String) {
        self.report.violations.push((self.number, what));
    }

    fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            let what = format!("{}: {}", self.at, what());
            self.violate(what);
        }
    }

    fn spawn_config(&self) -> SpawnConfig {
        let mut config = SpawnConfig::new(&self.id);
        config.root = self.dir.join("run");
        config.shim = shim();
        config.timeout = PATIENCE;
        config
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.join("run").join(&self.id)
    }

    fn log(&self) -> PathBuf {
        match self.plan.log {
            Log::Tiny(_) => self.dir.join("tiny/log"),
            _ => self.dir.join("log"),
        }
    }

    fn options(&self) -> Result<CreateOptions> {
        let ctl = self.dir.join("ctl");
        fs::create_dir_all(&ctl)?;
        nix::unistd::mkfifo(&ctl.join("gate"), nix::sys::stat::Mode::S_IRWXU)?;
        let mut bundle = Bundle::sh(PROGRAM).bind(&ctl, "/ctl");
        if self.plan.end == End::Oom || self.plan.steps.contains(&Step::OomChild) {
            bundle = bundle.memory(MEMORY);
        }
        if matches!(self.plan.end, End::Orphan(_)) {
            bundle = bundle.edit(|c| {
                if let Some(list) = c["linux"]["namespaces"].as_array_mut() {
                    list.retain(|n| n["type"] != "pid");
                }
            });
        }
        let mut options = CreateOptions::new(bundle.write(&self.dir));
        options.runtime.path = if self.plan.crun { crun() } else { runc() };
        options.stdin = true;
        options.drain = Some(Duration::from_millis(500));
        let mut log = LogOptions::file(self.log());
        match self.plan.log {
            Log::Plain => {}
            Log::Rotated(size, files) => (log.max_size, log.max_files) = (size, files),
            Log::Limited(size) => log.global_max_size = size,
            Log::Tiny(kib) => {
                let at = self.dir.join("tiny");
                fs::create_dir_all(&at)?;
                let size = format!("size={kib}k");
                let flags = nix::mount::MsFlags::empty();
                nix::mount::mount(Some("soak"), &at, Some("tmpfs"), flags, Some(size.as_str()))
                    .context("mount a tmpfs")?;
            }
        }
        options.logs.push(log);
        Ok(options)
    }

    pub(super) async fn run(&mut self) -> Result<()> {
        fs::create_dir_all(self.dir.join("run"))?;
        let options = self.options()?;
        let mut monitor = Monitor::spawn(self.spawn_config()).await?;
        self.at = "create".into();
        monitor.create(&options).await?;
        self.report.containers = 1;
        self.at = "start".into();
        monitor.start().await?;
        for (i, step) in self.plan.steps.clone().into_iter().enumerate() {
            self.at = format!("step {i} {step:?}");
            self.step(&mut monitor, step).await?;
            if self.over {
                break;
            }
        }
        self.at = format!("end {:?}", self.plan.end);
        self.end(&monitor).await
    }

    async fn step(&mut self, monitor: &mut Monitor, step: Step) -> Result<()> {
        match step {
            Step::Lines(count, length, stderr) => {
                let pad = "x".repeat(length as usize);
                let text: String = (0..count).map(|j| format!("{j} {pad}\n")).collect();
                self.wrote(stderr, text.as_bytes());
                self.tell(&format!("lines {count} {length} {}", 1 + u8::from(stderr))).await?;
            }
            Step::Piece(length, stderr) => {
                self.wrote(stderr, &vec![b'y'; length as usize]);
                self.tell(&format!("piece {length} - {}", 1 + u8::from(stderr))).await?;
            }
            Step::ExecSync(code, bytes) => self.exec_sync(monitor, code, bytes).await?,
            Step::ExecStorm(count) => {
                self.report.fault("exec storm");
                let mut all = tokio::task::JoinSet::new();
                for n in 0..count {
                    let monitor = monitor.clone();
                    all.spawn(async move {
                        let mut o = ExecSyncOptions::new(["/bin/sh", "-c", &format!("echo {n}; exit {n}")]);
                        o.timeout = Some(PATIENCE);
                        (n, monitor.exec_sync(&o).await)
                    });
                }
                while let Some(done) = all.join_next().await {
                    let (n, out) = done?;
                    let out = out.with_context(|| format!("exec {n} of the storm"))?;
                    self.report.execs += 1;
                    self.check(out.exit.reason == ExitReason::Code(n as i32), || {
                        format!("exec {n} ended with {:?}", out.exit.reason)
                    });
                    let text = format!("{n}\n");
                    self.check(out.stdout == text.as_bytes(), || format!("exec {n} said {:?}", out.stdout));
                }
            }
            Step::ExecCat(bytes) => self.exec_cat(monitor, bytes).await?,
            Step::ExecTimeout => {
                self.report.fault("exec timeout");
                let mut o =
                    ExecSyncOptions::new(["/bin/sh", "-c", "sleep 77777 & setsid sleep 77777 & wait"]);
                o.timeout = Some(Duration::from_millis(100));
                let out = monitor.exec_sync(&o).await?;
                self.report.execs += 1;
                self.check(out.timed_out, || format!("an exec that overran its time: {:?}", out.exit));
                self.await_none_of("sleep\u{0}77777").await?;
            }
            Step::ExecMissing => {
                self.report.fault("exec missing");
                let o = ExecSyncOptions::new(["/no/such/program"]);
                match monitor.exec_sync(&o).await {
                    Ok(out) => self.violate(format!("exec of nothing gave {:?}", out.exit)),
                    Err(e) => self.check(e.kind() == Some(pintle_client::ErrorKind::RuntimeFailed), || {
                        format!("exec of nothing: {e:?}")
                    }),
                }
            }
            Step::Attach => {
                let attached = monitor.attach(false).await?;
                let before = [self.expected[0].len(), self.expected[1].len()];
                let task = tokio::spawn(async move {
                    let (mut out, mut err) = (Vec::new(), Vec::new());
                    let (mut stdout, mut stderr) = (attached.stdio.stdout, attached.stdio.stderr);
                    tokio::try_join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err))?;
                    Ok([out, err])
                });
                self.readers.push(Reader { before, task });
            }
            Step::AttachStalled => {
                self.report.fault("stalled client");
                self.stalled.push(monitor.attach(false).await?);
            }
            Step::Feed => {
                let mut attached = monitor.attach(true).await?;
                self.wrote(false, b"fed word\n");
                attached.stdio.stdin.write_all(b"word\n").await?;
                self.tell("feed - - -").await?;
            }
            Step::Reopen => {
                self.report.fault("log reopened");
                let (log, aside) = (self.log(), self.dir.join(format!("log-{}", self.aside.len())));
                fs::rename(&log, &aside)?;
                monitor.reopen_log().await?;
                self.check(log.exists(), || "no log after reopen".into());
                let size = fs::metadata(&aside)?.len();
                self.aside.push((aside, size));
            }
            Step::Pause => {
                monitor.pause().await?;
                let state = monitor.state().await?;
                self.check(state.status == pintle_client::Status::Paused, || format!("{:?}", state.status));
                monitor.resume().await?;
            }
            Step::Stats => {
                let stats = monitor.stats().await?;
                self.check(stats.at != 0, || "stats without a time".into());
                self.measure(monitor).await?;
            }
            Step::Update => monitor.update(r#"{"pids":{"limit":500}}"#).await?,
            Step::Reconnect => {
                self.report.fault("client gone");
                *monitor = Monitor::connect(self.state_dir()).await?;
            }
            Step::Abandon => {
                self.report.fault("call abandoned");
                let other = Monitor::connect(self.state_dir()).await?;
                let o = ExecSyncOptions::new(["/bin/sh", "-c", "echo abandoned"]);
                let call = tokio::spawn(async move { other.exec_sync(&o).await.map(drop) });
                tokio::task::yield_now().await;
                call.abort();
                let _ = call.await;
            }
            Step::Garbage => {
                self.report.fault("garbage");
                self.garbage();
                monitor.info().await?;
            }
            Step::Signals => {
                self.report.fault("signal storm");
                let pid = monitor.info().await?.pid;
                for n in 0..200 {
                    let list = [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGCHLD];
                    kill(Pid::from_raw(pid), list[n % 4])?;
                }
                monitor.info().await?;
            }
            Step::KillShim => self.kill_shim(monitor).await?,
            Step::Upgrade => {
                self.report.fault("upgrade");
                let before = monitor.info().await?;
                monitor.upgrade(Some(&shim())).await?;
                let after = monitor.info().await?;
                self.check(before.pid == after.pid, || format!("pid {} became {}", before.pid, after.pid));
            }
            Step::OomChild => {
                self.report.fault("child OOM killed");
                self.oom_children += 1;
                self.hog(monitor).await?;
            }
        }
        Ok(())
    }

    /// A child hits the memory limit. Now and then the kernel's next victim is the first process.
    async fn hog(&mut self, monitor: &Monitor) -> Result<()> {
        let n = self.send("hog - - -").await?;
        let ack = self.dir.join(format!("ctl/ack.{n}"));
        let end = Instant::now() + PATIENCE;
        while !ack.exists() {
            ensure!(Instant::now() < end, "a child that takes all memory lives on");
            let state = monitor.state().await?;
            if state.exit.as_ref().is_some_and(|e| e.oom_killed) && !ack.exists() {
                self.report.fault("OOM killed both");
                self.plan.end = End::Oom;
                self.over = true;
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.wrote(false, b"hog 137\n");
        Ok(())
    }

    fn wrote(&mut self, stderr: bool, bytes: &[u8]) {
        self.expected[usize::from(stderr)].extend_from_slice(bytes);
        self.report.bytes += bytes.len() as u64;
    }

    /// Gives the container one command and waits until it is done.
    async fn tell(&mut self, command: &str) -> Result<()> {
        let n = self.send(command).await?;
        let ack = self.dir.join(format!("ctl/ack.{n}"));
        let end = Instant::now() + PATIENCE;
        while !ack.exists() {
            ensure!(Instant::now() < end, "{command:?} was not done within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        Ok(())
    }

    async fn send(&mut self, command: &str) -> Result<u64> {
        self.commands += 1;
        let line = format!("{} {command}\n", self.commands);
        let gate = self.dir.join("ctl/gate");
        let end = Instant::now() + PATIENCE;
        loop {
            match fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&gate) {
                Ok(mut gate) => {
                    gate.write_all(line.as_bytes())?;
                    return Ok(self.commands);
                }
                Err(e) if e.raw_os_error() == Some(libc::ENXIO) && Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
                Err(e) => return Err(anyhow!(e).context("the container does not listen")),
            }
        }
    }

    async fn exec_sync(&mut self, monitor: &Monitor, code: u8, bytes: u64) -> Result<()> {
        let script = format!("head -c {bytes} /dev/zero; echo err >&2; exit {code}");
        let mut o = ExecSyncOptions::new(["/bin/sh", "-c", &script]);
        o.timeout = Some(PATIENCE);
        let out = monitor.exec_sync(&o).await?;
        self.report.execs += 1;
        self.check(out.exit.reason == ExitReason::Code(code.into()), || {
            format!("an exec ended with {:?}", out.exit.reason)
        });
        self.check(out.stdout.len() as u64 == bytes && !out.truncated && !out.timed_out, || {
            format!("an exec gave {} bytes, truncated {}", out.stdout.len(), out.truncated)
        });
        self.check(out.stderr == b"err\n", || format!("stderr of an exec: {:?}", out.stderr));
        Ok(())
    }

    async fn exec_cat(&mut self, monitor: &Monitor, bytes: u64) -> Result<()> {
        let mut o = ExecOptions::new(["cat"]);
        (o.stdio, o.stdin) = (true, true);
        let exec = monitor.exec(&o).await?;
        self.report.execs += 1;
        self.execs += 1;
        let mut stdio = exec.stdio.context("an exec without stdio")?;
        let sent: Vec<u8> = (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect();
        let copy = sent.clone();
        let feed = tokio::spawn(async move {
            stdio.stdin.write_all(&copy).await?;
            stdio.stdin.shutdown().await
        });
        let mut got = Vec::new();
        tokio::time::timeout(PATIENCE, stdio.stdout.read_to_end(&mut got)).await.context("cat hangs")??;
        feed.await??;
        self.check(got == sent, || {
            let same = got.iter().zip(&sent).take_while(|(a, b)| a == b).count();
            format!("cat gave {} of {bytes} bytes, {same} of them right", got.len())
        });
        let exit = monitor.wait_exec(&exec.id, Some(PATIENCE)).await?;
        self.check(exit.reason == ExitReason::Code(0), || format!("cat ended with {:?}", exit.reason));
        monitor.delete_exec(&exec.id, false).await?;
        Ok(())
    }

    fn garbage(&self) {
        let dir = self.state_dir();
        let junk: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for bytes in [&junk[..], &[0xff; 64], &[0, 0, 0, 10, 0, 0, 0, 1, 1, 0, 1], b"GET / HTTP/1.0\r\n\r\n"]
        {
            if let Ok(mut s) = UnixStream::connect(dir.join("monitor.sock")) {
                let _ = s.set_write_timeout(Some(Duration::from_secs(1)));
                let _ = s.write_all(bytes);
            }
        }
        for size in [1, 15, 16, 17, 4096] {
            let Ok(s) = crate::connect_packets(&dir.join("stdio.sock")) else { continue };
            let _ = nix::unistd::write(&s, &junk[..size]);
        }
        // What comes here is stdin: nothing.
        drop(crate::connect_packets(&dir.join("attach.sock")));
    }

    async fn kill_shim(&mut self, monitor: &mut Monitor) -> Result<()> {
        self.report.fault("shim killed");
        self.lost_shims += 1;
        let pid = monitor.info().await?.pid;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        let end = Instant::now() + PATIENCE;
        while process_alive(pid as u32) {
            ensure!(Instant::now() < end, "the killed shim stays");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        let mut config = self.spawn_config();
        config.args.push("--adopt".into());
        *monitor = Monitor::spawn(config).await.context("adopt")?;
        let state = monitor.state().await?;
        self.check(state.status == pintle_client::Status::Running, || {
            format!("adopted as {:?}", state.status)
        });
        Ok(())
    }

    /// Waits until no process with this in its command line belongs to the container.
    async fn await_none_of(&mut self, words: &str) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let found = check::processes_of(&self.id, words);
            if found.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < end, "processes stay: {found:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn measure(&mut self, monitor: &Monitor) -> Result<()> {
        let pid = monitor.info().await?.pid as u32;
        let (kib, open) = (private_dirty_kib(pid), fds(pid).len());
        self.report.shim_kib = self.report.shim_kib.max(kib);
        self.report.shim_fds = self.report.shim_fds.max(open);
        let base = *self.fds_before.get_or_insert(open);
        let clients = self.readers.len() + self.stalled.len();
        self.check(open <= base + clients + 12, || format!("{base} descriptors became {open}"));
        self.check(kib < 16 * 1024, || format!("the shim holds {kib} KiB"));
        Ok(())
    }

    async fn end(&mut self, monitor: &Monitor) -> Result<()> {
        let exit = match self.plan.end {
            End::Code(code) => {
                self.send(&format!("exit {code} - -")).await?;
                monitor.wait(Some(PATIENCE)).await?
            }
            End::Orphan(code) => {
                self.report.fault("orphan");
                self.send(&format!("orphan {code} - -")).await?;
                monitor.wait(Some(PATIENCE)).await?
            }
            End::Kill(signal) => {
                // A first process ignores what it has no handler for: SIGKILL makes sure.
                monitor.kill(signal, false).await?;
                if signal != 9 {
                    monitor.kill(9, false).await.or_else(|e| match e.kind() {
                        Some(pintle_client::ErrorKind::FailedPrecondition) => Ok(()),
                        _ => Err(e),
                    })?;
                }
                monitor.wait(Some(PATIENCE)).await?
            }
            End::Stop => monitor.stop(None, Duration::from_millis(100)).await?,
            End::Oom => {
                self.report.fault("OOM killed");
                if !self.over {
                    self.send("oom - - -").await?;
                }
                monitor.wait(Some(PATIENCE)).await?
            }
            End::Delete => {
                let exit = monitor.delete(true).await?;
                return self.deleted(exit.context("deleted, but not told how it ended")?);
            }
        };
        self.judge(&exit);
        let record = pintle_client::read_exit_record(&self.state_dir());
        self.check(record.as_ref().is_some_and(|r| r.reason == exit.reason), || {
            format!("exit record {record:?}, told {exit:?}")
        });
        let state = monitor.state().await?;
        let made = self.oom_children;
        self.check(state.oom_kills >= made, || format!("{} OOM kills told, {made} made", state.oom_kills));
        let lost: u64 = state.io.lost_bytes.values().sum();
        self.logs(lost);
        if self.lost_shims == 0 {
            for stream in 0..2 {
                let told = [state.io.stdout_bytes, state.io.stderr_bytes][stream];
                let wrote = self.expected[stream].len() as u64;
                self.check(told == wrote, || format!("stream {stream}: {wrote} bytes written, {told} told"));
            }
            let events = monitor.poll_events(0, Duration::from_millis(1)).await?;
            self.events(&events);
        }
        self.measure(monitor).await?;
        self.read_clients().await?;
        let pid = monitor.info().await?.pid;
        self.at = "delete".into();
        monitor.delete(false).await?;
        let end = Instant::now() + PATIENCE;
        while process_alive(pid as u32) {
            ensure!(Instant::now() < end, "the shim stays after delete");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    fn deleted(&mut self, exit: Exit) -> Result<()> {
        self.judge(&exit);
        for reader in self.readers.drain(..) {
            reader.task.abort();
        }
        Ok(())
    }

    /// Whether it ended as it was made to end.
    fn judge(&mut self, exit: &Exit) {
        let wanted = match self.plan.end {
            End::Code(code) | End::Orphan(code) => ExitReason::Code(code.into()),
            End::Kill(_) | End::Stop | End::Oom | End::Delete => {
                ExitReason::Signal { signal: 9, core_dumped: false }
            }
        };
        let kind = match &exit.reason {
            ExitReason::Code(_) => "code".to_string(),
            ExitReason::Signal { .. } if exit.oom_killed => "OOM".into(),
            ExitReason::Signal { signal, .. } => format!("signal {signal}"),
            ExitReason::Unknown(_) => "unknown".into(),
        };
        *self.report.ends.entry(kind).or_default() += 1;
        let unknown = matches!(exit.reason, ExitReason::Unknown(_)) && self.lost_shims > 0;
        self.check(unknown || exit.reason == wanted, || format!("ended with {exit:?}, wanted {wanted:?}"));
        // After an OOM kill of another process the kernel does not tell what a SIGKILL was for.
        let oom = self.plan.end == End::Oom;
        let open = self.oom_children > 0 && matches!(exit.reason, ExitReason::Signal { .. });
        self.check(unknown || open || exit.oom_killed == oom, || format!("OOM verdict of {exit:?}"));
        self.check(exit.finished_at.is_some() && !exit.boot_id.is_empty(), || format!("times of {exit:?}"));
    }

    fn logs(&mut self, lost: u64) {
        let outcome = check::log(&self.log(), &self.aside, self.plan.log, &self.expected, lost);
        match outcome {
            Ok(injected) => {
                self.report.injected += injected;
                self.report.reported += lost;
            }
            // What a killed shim had read and not written is gone with it; what there is must be whole.
            Err(e) if self.lost_shims > 0 && e.to_string().starts_with("bytes:") => {}
            Err(e) => self.violate(format!("log: {e:#}")),
        }
    }

    fn events(&mut self, events: &[Event]) {
        if let Err(e) = check::events(events, self.execs) {
            let list: Vec<String> = events.iter().map(|e| format!("{} {:?}", e.sequence, e.kind)).collect();
            self.violate(format!("events: {e:#}: {}", list.join(", ")));
        }
    }

    /// Every client that reads got all that was written since it came.
    async fn read_clients(&mut self) -> Result<()> {
        for reader in std::mem::take(&mut self.readers) {
            let got = tokio::time::timeout(PATIENCE, reader.task).await.context("a client gets no end")??;
            let got = match got {
                Ok(got) => got,
                Err(_) if self.lost_shims > 0 => continue,
                Err(e) => bail!("a client that reads was dropped: {e}"),
            };
            if self.lost_shims > 0 {
                continue;
            }
            for (stream, bytes) in got.iter().enumerate() {
                let all = &self.expected[stream];
                let (have, want) = (bytes.len(), all.len() - reader.before[stream]);
                let fits = all.ends_with(bytes) && have >= want;
                self.check(fits, || format!("a client got {have} bytes of stream {stream}, not {want}"));
            }
        }
        self.stalled.clear();
        Ok(())
    }

    /// Prints what is there after a violation.
    async fn diagnose(&self) {
        let monitor = Monitor::at(self.state_dir()).with_timeout(Duration::from_secs(5));
        match monitor.state().await {
            Ok(state) => eprintln!("-- state of life {}: {state:?}", self.number),
            Err(e) => eprintln!("-- state of life {}: {e:?}", self.number),
        }
        let record = fs::read_to_string(self.state_dir().join("exit.json"));
        eprintln!("-- exit record: {}", record.unwrap_or_default());
        for pid in check::processes_of(&self.id, "") {
            let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let line = read("cmdline").replace('\0', " ");
            let state: Vec<String> = read("status")
                .lines()
                .filter(|l| l.starts_with("State") || l.starts_with("VmRSS") || l.starts_with("PPid"))
                .map(|l| l.replace('\t', " "))
                .collect();
            let line: String = line.chars().take(100).collect();
            eprintln!("-- process {pid}: {line} ({}; waits in {})", state.join(", "), read("wchan"));
        }
        if let Ok(text) = fs::read(self.state_dir().join("shim.log")) {
            let text = String::from_utf8_lossy(&text[text.len().saturating_sub(4000)..]).into_owned();
            eprintln!("-- shim.log: {text}");
        }
    }

    /// Clears away and proves that nothing is left.
    pub(super) async fn finish(mut self) -> Report {
        self.stalled.clear();
        for reader in self.readers.drain(..) {
            reader.task.abort();
        }
        let clean = self.report.violations.is_empty();
        self.at = "left".into();
        let left = Leftovers::of(&self.id);
        if clean {
            let end = Instant::now() + PATIENCE;
            loop {
                let mut found = left.find();
                found.retain(|f| !f.starts_with("mount: ") || !f.contains("/tiny "));
                if self.state_dir().exists() {
                    found.push(format!("state directory: {}", self.state_dir().display()));
                }
                if found.is_empty() {
                    break;
                }
                if Instant::now() >= end {
                    self.violate(format!("left: {}", found.join("; ")));
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        } else {
            self.diagnose().await;
        }
        if !self.report.violations.is_empty() {
            check::kill_all(&self.id);
            let runtime = if self.plan.crun { crun() } else { runc() };
            let _ = Command::new(runtime).args(["delete", "--force", &self.id]).output();
        }
        let _ = nix::mount::umount2(&self.dir.join("tiny"), nix::mount::MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.dir);
        self.report
    }
}
