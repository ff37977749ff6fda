//! One life: the container does what it is told over a FIFO, so the model knows every byte it wrote.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use pintle_client::{Attached, CreateOptions, Event, Exit, ExitReason, LogOptions, Monitor, SpawnConfig};
use tokio::task::JoinHandle;

use super::check;
use super::plan::{End, Log, Plan, Step};
use super::report::Report;
use crate::{Bundle, Leftovers, crun, fds, private_dirty_kib, process_alive, runc, shim};

/// How long anything may take before it counts as hanging.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Of a container with a memory limit.
pub(super) const MEMORY: i64 = 40 << 20;

/// What the container runs: one command per line of the FIFO, each acknowledged by a file.
pub(super) const PROGRAM: &str = r#"
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
pub(super) struct Reader {
    /// What the container had written before it came.
    pub(super) before: [usize; 2],
    pub(super) task: JoinHandle<std::io::Result<[Vec<u8>; 2]>>,
}

/// One life.
pub(super) struct Life {
    pub(super) number: u64,
    pub(super) plan: Plan,
    pub(super) dir: PathBuf,
    pub(super) id: String,
    pub(super) at: String,
    pub(super) report: Report,
    /// What the container wrote to stdout and stderr.
    pub(super) expected: [Vec<u8>; 2],
    pub(super) commands: u64,
    pub(super) readers: Vec<Reader>,
    pub(super) stalled: Vec<Attached>,
    /// Names under which the log was put aside, and their sizes then.
    pub(super) aside: Vec<(PathBuf, u64)>,
    /// The execs that events must tell of; those that run to their end in one call are not told.
    pub(super) execs: u64,
    pub(super) oom_children: u64,
    pub(super) lost_shims: u64,
    /// It ended before its end.
    pub(super) over: bool,
    pub(super) fds_before: Option<usize>,
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

    pub(super) fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            let what = format!("{}: {}", self.at, what());
            self.violate(what);
        }
    }

    pub(super) fn spawn_config(&self) -> SpawnConfig {
        let mut config = SpawnConfig::new(&self.id);
        config.root = self.dir.join("run");
        config.shim = shim();
        config.timeout = PATIENCE;
        config
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.dir.join("run").join(&self.id)
    }

    pub(super) fn log(&self) -> PathBuf {
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

    pub(super) fn wrote(&mut self, stderr: bool, bytes: &[u8]) {
        self.expected[usize::from(stderr)].extend_from_slice(bytes);
        self.report.bytes += bytes.len() as u64;
    }

    /// Gives the container one command and waits until it is done.
    pub(super) async fn tell(&mut self, command: &str) -> Result<()> {
        let n = self.send(command).await?;
        let ack = self.dir.join(format!("ctl/ack.{n}"));
        let end = Instant::now() + PATIENCE;
        while !ack.exists() {
            ensure!(Instant::now() < end, "{command:?} was not done within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        Ok(())
    }

    pub(super) async fn send(&mut self, command: &str) -> Result<u64> {
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

    pub(super) async fn measure(&mut self, monitor: &Monitor) -> Result<()> {
        let pid = monitor.info().await?.pid as u32;
        let (kib, all) = (private_dirty_kib(pid), fds(pid));
        // Stats asked twice within seconds keeps its files open for a while (docs/adr/0018), beside those of the OOM watch.
        let kept =
            all.values().filter(|l| l.starts_with("/sys/fs/cgroup/") || l.starts_with("/proc/")).count();
        self.check(kept <= 40, || format!("{kept} files of cgroups are open: {all:?}"));
        let open = all.len() - kept;
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
