//! The native protocol: call latency, and reopening the log under load.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use pintle_proto::monitor::{
    EventsRequest, ExecRequest, ExecSyncRequest, ReopenLogRequest, StateRequest, StatsRequest, WaitRequest,
    service::MonitorClient,
};
use tokio::runtime::{Builder, Runtime};
use ttrpc::context::Context;

use super::Scale;
use crate::{
    lab::{Lab, Who, until},
    report::Report,
};

/// State directory of the monitors of this run.
pub(crate) fn state_dir() -> PathBuf {
    PathBuf::from(format!("/dev/shm/pintle-bench-{}/n", std::process::id()))
}

/// A connection to a shim's native socket, driven from this thread.
pub(crate) struct Client {
    rt: Runtime,
    client: MonitorClient,
}

fn context() -> Context {
    Context { metadata: HashMap::new(), timeout_nano: 60_000_000_000 }
}

impl Client {
    /// Waits for the socket and connects.
    pub(crate) fn connect(id: &str) -> Result<Client> {
        let socket = state_dir().join(id).join("monitor.sock");
        until(Duration::from_secs(20), || Ok(socket.exists().then_some(()))).context("native socket")?;
        let rt = Builder::new_current_thread().enable_all().build()?;
        let client = rt.block_on(async {
            ttrpc::asynchronous::Client::connect(&format!("unix://{}", socket.display())).await
        })?;
        Ok(Client { rt, client: MonitorClient::new(client) })
    }

    /// Starts one process, and gives its id; output is discarded.
    pub(crate) fn exec(&self, process: &str) -> Result<String> {
        let request = ExecRequest { process_json: process.to_owned(), ..Default::default() };
        Ok(self.rt.block_on(self.client.exec(context(), &request))?.exec_id)
    }

    /// Runs one process to its end.
    pub(crate) fn exec_sync(&self, args: &[&str]) -> Result<()> {
        self.rt.block_on(self.client.exec_sync(context(), &sync(args)))?;
        Ok(())
    }

    /// Asks for the state.
    pub(crate) fn state(&self) -> Result<()> {
        self.rt.block_on(self.client.state(context(), &StateRequest::new()))?;
        Ok(())
    }

    /// Runs `n` processes at once, and gives the time until the last has answered, and each one's in milliseconds.
    pub(crate) fn exec_parallel(&self, n: usize) -> Result<(Duration, Vec<f64>)> {
        let (began, mut took) = (Instant::now(), Vec::new());
        self.rt.block_on(async {
            let calls: Vec<_> = (0..n)
                .map(|_| {
                    let client = self.client.clone();
                    tokio::spawn(async move {
                        client.exec_sync(context(), &sync(&["/bin/true"])).await?;
                        anyhow::Ok(began.elapsed().as_secs_f64() * 1e3)
                    })
                })
                .collect();
            for call in calls {
                took.push(call.await??);
            }
            anyhow::Ok(())
        })?;
        Ok((began.elapsed(), took))
    }
}

fn sync(args: &[&str]) -> ExecSyncRequest {
    ExecSyncRequest { args: args.iter().map(|a| (*a).to_owned()).collect(), ..Default::default() }
}

/// `n` calls of State on one connection.
pub(crate) fn call_many(id: &str, n: usize) -> Result<()> {
    let client = Client::connect(id)?;
    for _ in 0..n {
        client.state()?;
    }
    Ok(())
}

/// `n` connections, one after the other, each with one call.
pub(crate) fn connect_many(id: &str, n: usize) -> Result<()> {
    for _ in 0..n {
        call_many(id, 1)?;
    }
    Ok(())
}

/// The files of the cgroup that the reply of Stats needs (v1 only), and the interfaces, open.
fn stats_files(pid: u32) -> Vec<fs::File> {
    const FILES: &[(&str, &[&str])] = &[
        (
            "memory",
            &[
                "memory.stat",
                "memory.usage_in_bytes",
                "memory.limit_in_bytes",
                "memory.max_usage_in_bytes",
                "memory.memsw.usage_in_bytes",
                "memory.memsw.limit_in_bytes",
                "memory.failcnt",
                "memory.kmem.usage_in_bytes",
                "memory.kmem.tcp.usage_in_bytes",
            ],
        ),
        ("cpuacct", &["cpuacct.usage", "cpuacct.stat", "cpuacct.usage_percpu"]),
        ("cpu", &["cpu.stat"]),
        ("pids", &["pids.current", "pids.max"]),
        ("blkio", &["blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"]),
    ];
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for (controller, names) in FILES {
        let line = groups.lines().find_map(|l| {
            let mut parts = l.splitn(3, ':').skip(1);
            parts.next()?.split(',').any(|c| c == *controller).then_some(parts.next()?)
        });
        let Some(path) = line else { continue };
        let open = |name: &&str| fs::File::open(format!("/sys/fs/cgroup/{controller}{path}/{name}")).ok();
        found.extend(names.iter().filter_map(open));
    }
    found.extend(
        [format!("/proc/{pid}/net/dev"), "/proc/self/statm".into()]
            .iter()
            .filter_map(|p| fs::File::open(p).ok()),
    );
    found
}

/// Microseconds that reading them takes.
fn read_all(files: &[fs::File]) -> f64 {
    let mut buffer = [0u8; 8192];
    let began = Instant::now();
    for file in files {
        let _ = std::hint::black_box(file.read_at(&mut buffer, 0));
    }
    began.elapsed().as_secs_f64() * 1e6
}

/// State, stats and wait.
pub(crate) fn rpc(lab: &Lab, report: &mut Report, scale: Scale) -> Result<()> {
    let one = lab.create(Who::Pintle, &["sleep", "100000"], "k8s-file", &[], None)?;
    lab.start(&one)?;
    let rounds = scale.of(2000, 200);
    let c = Client::connect(&one.id)?;
    // An exec that has ended: Wait answers at once, and from memory.
    let ended = until(Duration::from_secs(60), || Ok(c.exec(super::exec::PROCESS).ok()))?;
    let wait = WaitRequest { exec_id: ended, ..Default::default() };
    c.rt.block_on(c.client.wait(context(), &wait))?;
    let files = stats_files(one.pid);
    let mut bare = Vec::new();
    let mut took: HashMap<&str, Vec<f64>> = HashMap::new();
    for _ in 0..rounds {
        let mut call = |name: &'static str, began: Instant| {
            took.entry(name).or_default().push(began.elapsed().as_secs_f64() * 1e6)
        };
        let began = Instant::now();
        c.state()?;
        call("State", began);
        let began = Instant::now();
        c.rt.block_on(c.client.stats(context(), &StatsRequest::new()))?;
        call("Stats", began);
        let began = Instant::now();
        c.rt.block_on(c.client.wait(context(), &wait))?;
        call("Wait", began);
        bare.push(read_all(&files));
        let began = Instant::now();
        // The container lives, so the answer is DEADLINE_EXCEEDED after the least time; that it answers is the point.
        let _ = c.rt.block_on(c.client.poll_events(context(), &EventsRequest::new()))?;
        call("PollEvents", began);
    }
    report.add("native", "Stats: its files alone, already open", "us", "floor", bare);
    for name in ["State", "Stats", "Wait", "PollEvents"] {
        report.add("native", name, "us", "pintle", took.remove(name).unwrap_or_default());
        let p50 = report.value("native", name, "pintle", 0.5);
        let p99 = report.value("native", name, "pintle", 0.99);
        report.goal(format!("{name} RPC, p50"), p50, 80.0, false, "us");
        report.goal(format!("{name} RPC, p99"), p99, 1000.0, false, "us");
    }
    let mut runtime = Vec::new();
    for _ in 0..scale.of(30, 5) {
        let began = Instant::now();
        lab.runc(&["state", &one.id])?;
        runtime.push(began.elapsed().as_secs_f64() * 1e6);
    }
    report.add("native", "State", "us", "floor", runtime);
    // Wait on an ended container answers from memory.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(one.pid as i32), nix::sys::signal::Signal::SIGKILL)?;
    let waited = c.rt.block_on(c.client.wait(context(), &WaitRequest::new()))?;
    ensure!(waited.exit.signal == 9, "wait answered {waited:?}");
    lab.reap(&one)?;
    Ok(())
}

/// Latency of ReopenLog a hundred times a second, while the container writes 200 MB/s.
pub(crate) fn reopen(lab: &Lab, report: &mut Report, scale: Scale) -> Result<()> {
    let seconds = scale.of(15, 2);
    let writer = ["load", "paced", "200000000", &seconds.to_string(), "80"];
    let one = lab.create(Who::Pintle, &writer, "k8s-file", &[], None)?;
    let c = Client::connect(&one.id)?;
    lab.start(&one)?;
    let (mut took, began) = (Vec::new(), Instant::now());
    for round in 0u32.. {
        std::thread::sleep((Duration::from_millis(10) * round).saturating_sub(began.elapsed()));
        if one.exit_file.exists() {
            break;
        }
        let moved = one.bundle.join("ctr.log.old");
        fs::rename(&one.log, &moved)?;
        let began = Instant::now();
        match c.rt.block_on(c.client.reopen_log(context(), &ReopenLogRequest::new())) {
            Ok(_) => took.push(began.elapsed().as_secs_f64() * 1e3),
            Err(_) => break,
        }
        ensure!(fs::metadata(&moved)?.ino() != fs::metadata(&one.log)?.ino(), "the log is no new file");
    }
    const CASE: &str = "ReopenLog, 100 a second, 200 MB/s";
    report.add("reopen", CASE, "ms", "pintle", took);
    let at = |part| report.value("reopen", CASE, "pintle", part);
    let (p99, p999) = (at(0.99), at(0.999));
    report.goal("ReopenLog under load, p99", p99, 20.0, false, "ms");
    report.goal("ReopenLog under load, p99.9", p999, 50.0, false, "ms");
    lab.reap(&one)?;
    Ok(())
}
