//! A small container engine: many containers with a restart policy, a probe every second, a live
//! view, and a graceful stop of everything on ctrl-c.
//!
//! ```text
//! cargo run --example engine -- --bundle /path/to/bundle [--containers 50] [--seconds N]
//!     [--restart never|on-failure|always] [--runtime runc] [--dir DIR] [--plain]
//! ```
//!
//! The bundle serves all containers; each gets its own copy of the configuration. With `--seconds`
//! the engine stops by itself. Without a terminal, or with `--plain`, the view is one line a second.

use pintle_client::oci::{
    CgroupManager, Config, Container, Runtime, RuntimeHandler, Spec, Status, Timestamp,
};
use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Notify, time};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

#[derive(Clone, Copy, PartialEq)]
enum Restart {
    Never,
    OnFailure,
    Always,
}

struct Options {
    bundle: PathBuf,
    containers: usize,
    seconds: Option<u64>,
    restart: Restart,
    runtime: PathBuf,
    dir: PathBuf,
    plain: bool,
}

fn options() -> Result<Options> {
    let mut options = Options {
        bundle: PathBuf::new(),
        containers: 50,
        seconds: None,
        restart: Restart::OnFailure,
        runtime: "/usr/sbin/runc".into(),
        dir: std::env::temp_dir().join(format!("pintle-engine-{}", std::process::id())),
        plain: !std::io::stdout().is_terminal(),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--bundle" => options.bundle = std::fs::canonicalize(value()?)?,
            "--containers" => options.containers = value()?.parse()?,
            "--seconds" => options.seconds = Some(value()?.parse()?),
            "--runtime" => options.runtime = value()?.into(),
            "--dir" => options.dir = value()?.into(),
            "--plain" => options.plain = true,
            "--restart" => {
                options.restart = match value()?.as_str() {
                    "never" => Restart::Never,
                    "on-failure" => Restart::OnFailure,
                    "always" => Restart::Always,
                    other => return Err(format!("unknown restart policy {other}").into()),
                }
            }
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    if options.bundle.as_os_str().is_empty() {
        return Err("--bundle is missing".into());
    }
    Ok(options)
}

/// What the view shows of one container.
#[derive(Default)]
struct Row {
    current: std::sync::Mutex<Option<Container>>,
    restarts: AtomicU32,
    probes_ok: AtomicU32,
    probes_failed: AtomicU32,
    done: AtomicBool,
}

struct Engine {
    runtime: Runtime,
    options: Options,
    spec: Spec,
    rows: Vec<Row>,
    stopping: AtomicBool,
    wake: Notify,
}

impl Engine {
    /// A container and its files: each life has an id of its own and appends to the same log.
    fn prepare(&self, index: usize, life: u32) -> Result<Container> {
        let id = format!("engine-{}-{index}-{life}", std::process::id());
        let own = self.options.dir.join(format!("c{index}"));
        let bundle = own.join("bundle");
        std::fs::create_dir_all(&bundle)?;
        let mut spec = self.spec.clone();
        // A relative root means the original bundle's.
        if let Some(path) = spec.other.get_mut("root").and_then(|r| r.get_mut("path")) {
            let root = self.options.bundle.join(path.as_str().unwrap_or("rootfs"));
            *path = root.to_string_lossy().into_owned().into();
        }
        if let Some(linux) = &mut spec.linux {
            // One path for all would be one cgroup for all.
            linux.cgroups_path.clear();
        }
        std::fs::write(bundle.join("config.json"), serde_json::to_vec(&spec)?)?;
        let container = Container::builder(&id, format!("c{index}"))
            .bundle_path(&bundle)
            .dir(&own)
            .log_path(own.join("log"))
            .created(Timestamp::now())
            .build();
        container.set_spec(spec);
        Ok(container)
    }

    /// One container, life after life.
    async fn keep(self: Arc<Self>, index: usize) -> Result<()> {
        let row = &self.rows[index];
        for life in 0.. {
            let container = self.prepare(index, life)?;
            self.runtime.create_container(&container, "", false).await?;
            *row.current.lock().map_err(|e| e.to_string())? = Some(container.clone());
            self.runtime.start_container(&container).await?;
            self.runtime.save_state(&container).await?;
            let code = self.supervise(row, &container).await?;
            self.runtime.delete_container(&container).await?;
            let again = match self.options.restart {
                Restart::Never => false,
                Restart::OnFailure => code != 0,
                Restart::Always => true,
            };
            if !again || self.stopping.load(Ordering::Acquire) {
                break;
            }
            row.restarts.fetch_add(1, Ordering::Relaxed);
            // A container that ends at once must not keep the machine busy.
            let pause = Duration::from_millis(100 << life.min(6));
            tokio::select! {
                () = time::sleep(pause) => {}
                () = self.wake.notified() => {}
            }
            if self.stopping.load(Ordering::Acquire) {
                break;
            }
        }
        row.done.store(true, Ordering::Release);
        Ok(())
    }

    /// Probes a container every second until it ends or everything is to stop; gives its exit code.
    async fn supervise(&self, row: &Row, container: &Container) -> Result<i32> {
        let monitor = container.monitor().ok_or("no monitor")?;
        let end = monitor.wait(None);
        tokio::pin!(end);
        let mut tick = time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(time::MissedTickBehavior::Skip);
        loop {
            let wake = self.wake.notified();
            if self.stopping.load(Ordering::Acquire) {
                self.runtime.stop_container(container, Duration::from_secs(5)).await?;
                break;
            }
            tokio::select! {
                _ = &mut end => break,
                () = wake => {}
                _ = tick.tick() => {
                    let command = ["/bin/true".to_owned()];
                    let probe = self.runtime.exec_sync_container(container, &command, Duration::from_secs(5));
                    let counter = match probe.await {
                        Ok(Some(out)) if out.exit_code == 0 => &row.probes_ok,
                        _ => &row.probes_failed,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        self.runtime.save_state(container).await?;
        Ok(container.state().exit_code.unwrap_or(255))
    }

    fn view(&self, begin: Instant) {
        let count = |status| {
            let is = |row: &&Row| {
                let current = row.current.lock().map(|c| c.as_ref().map(|c| c.state().status));
                current.is_ok_and(|s| s == Some(status))
            };
            self.rows.iter().filter(is).count()
        };
        let sum = |get: fn(&Row) -> &AtomicU32| -> u32 {
            self.rows.iter().map(|row| get(row).load(Ordering::Relaxed)).sum()
        };
        let line = format!(
            "{:>4} s  running {}  stopped {}  restarts {}  probes {} ok, {} failed",
            begin.elapsed().as_secs(),
            count(Status::Running),
            count(Status::Stopped),
            sum(|r| &r.restarts),
            sum(|r| &r.probes_ok),
            sum(|r| &r.probes_failed),
        );
        let mut out = std::io::stdout().lock();
        if self.options.plain {
            let _ = writeln!(out, "{line}");
            return;
        }
        let _ = write!(out, "\x1b[H\x1b[2J{line}\n\n");
        for (index, row) in self.rows.iter().enumerate() {
            let status = match row.current.lock().ok().and_then(|c| c.clone()) {
                Some(container) => container.state().status.as_str(),
                None => "-",
            };
            let restarts = row.restarts.load(Ordering::Relaxed);
            let _ = write!(out, "c{index:<3} {status:<8} r{restarts:<4}");
            let _ = out.write_all(if index % 4 == 3 { b"\n" } else { b"  " });
        }
        let _ = out.write_all(b"\n");
        let _ = out.flush();
    }
}

fn runtime(options: &Options) -> Result<Runtime> {
    let exits = options.dir.join("exits");
    std::fs::create_dir_all(&exits)?;
    let handler = RuntimeHandler { runtime_path: options.runtime.clone(), ..Default::default() };
    Ok(Runtime::new(Config {
        runtimes: [("runc".to_owned(), handler)].into(),
        cgroup_manager: CgroupManager::Cgroupfs,
        monitor_state_dir: options.dir.join("run"),
        container_exits_dir: exits,
        ..Default::default()
    }))
}

fn read_spec(bundle: &Path) -> Result<Spec> {
    Ok(Spec::from_json(&std::fs::read(bundle.join("config.json"))?)?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = options()?;
    let (runtime, spec) = (runtime(&options)?, read_spec(&options.bundle)?);
    let rows = (0..options.containers).map(|_| Row::default()).collect();
    let dir = options.dir.clone();
    let limit = options.seconds.map(Duration::from_secs);
    let engine = Arc::new(Engine {
        runtime,
        options,
        spec,
        rows,
        stopping: AtomicBool::new(false),
        wake: Notify::new(),
    });
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..engine.rows.len() {
        tasks.spawn(engine.clone().keep(index));
    }
    let begin = Instant::now();
    let mut tick = time::interval(Duration::from_secs(1));
    let ctrl_c = tokio::signal::ctrl_c();
    let over = async {
        match limit {
            Some(limit) => time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(ctrl_c, over);
    let mut failures = Vec::new();
    loop {
        tokio::select! {
            done = tasks.join_next() => match done {
                None => break,
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => failures.push(error.to_string()),
                Some(Err(error)) => failures.push(error.to_string()),
            },
            _ = tick.tick() => engine.view(begin),
            _ = &mut ctrl_c, if !engine.stopping.load(Ordering::Acquire) => stop(&engine),
            () = &mut over, if !engine.stopping.load(Ordering::Acquire) => stop(&engine),
        }
    }
    engine.view(begin);
    std::fs::remove_dir_all(dir)?;
    match failures.first() {
        None => Ok(()),
        Some(first) => Err(format!("{} containers failed, the first: {first}", failures.len()).into()),
    }
}

fn stop(engine: &Engine) {
    println!("stopping everything");
    engine.stopping.store(true, Ordering::Release);
    engine.wake.notify_waiters();
}
