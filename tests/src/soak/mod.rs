//! Random lives of containers with random faults, judged by a model of what must be true.
//!
//! The plan of a life follows from the seed and the life's number (`plan`); the host tells the
//! container over a FIFO what to write, so the model knows every byte (`life`). What does not hold is
//! a violation: it is printed with what repeats it, and the soak goes on.

mod check;
mod door;
mod life;
mod plan;
mod report;
mod rng;
mod steps;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use plan::Abilities;
pub use report::Report;

/// A life that takes longer hangs.
const LIFE: Duration = Duration::from_secs(180);
/// Below this much room on the disk nothing is begun.
const ROOM: u64 = 1 << 30;

/// What to run.
#[derive(Debug, Clone)]
pub struct Config {
    /// The seed; every plan follows from it.
    pub seed: u64,
    /// Only this life.
    pub life: Option<u64>,
    /// No life begins after this time.
    pub time: Duration,
    /// Lives at the same time.
    pub jobs: usize,
    /// Print every life.
    pub verbose: bool,
}

struct Shared {
    config: Config,
    abilities: Abilities,
    began: Instant,
    next: AtomicU64,
    report: Mutex<Report>,
    dir: PathBuf,
}

/// Runs lives until the time is over.
///
/// # Errors
/// Where there is no place to run them in.
pub async fn run(config: Config, abilities: Abilities) -> anyhow::Result<Report> {
    let dir = crate::TempDir::new("soak");
    let shared = std::sync::Arc::new(Shared {
        next: AtomicU64::new(config.life.unwrap_or(0)),
        began: Instant::now(),
        report: Mutex::default(),
        dir: dir.path().to_path_buf(),
        abilities,
        config,
    });
    let jobs = if shared.config.life.is_some() { 1 } else { shared.config.jobs.clamp(1, 16) };
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..jobs {
        let shared = std::sync::Arc::clone(&shared);
        tasks.spawn(async move { worker(&shared).await });
    }
    while let Some(end) = tasks.join_next().await {
        end?;
    }
    let report = shared.report.lock().map(|r| r.clone()).unwrap_or_default();
    Ok(report)
}

async fn worker(shared: &Shared) {
    loop {
        let k = shared.next.fetch_add(1, Ordering::Relaxed);
        let over = match shared.config.life {
            Some(life) => k != life,
            None => shared.began.elapsed() >= shared.config.time,
        };
        if over {
            return;
        }
        let room = nix::sys::statvfs::statvfs(&shared.dir)
            .map_or(u64::MAX, |s| s.blocks_available() * s.fragment_size());
        if room < ROOM {
            eprintln!("soak: less than 1 GiB of room in {}: no further life", shared.dir.display());
            return;
        }
        let mut rng = rng::Rng::new(shared.config.seed, k);
        if shared.abilities.conmon && rng.chance(25) {
            through_conmon(shared, k, &door::Plan::draw(&mut rng)).await;
            continue;
        }
        let plan = plan::Plan::draw(&mut rng, shared.abilities);
        if shared.config.verbose {
            eprintln!("life {k}: {plan:?}");
        }
        let mut life = life::Life::new(k, &shared.dir, plan.clone());
        let begun = Instant::now();
        match tokio::time::timeout(LIFE, life.run()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => life.violate(format!("{}: {e:#}", life.at)),
            Err(_) => life.violate(format!("{}: hangs for {LIFE:?}", life.at)),
        }
        let report = life.finish().await;
        if shared.config.verbose {
            eprintln!("life {k}: done in {:?}", begun.elapsed());
        }
        add(shared, k, &format!("{plan:?}"), report);
    }
}

/// A life through the conmon door. Its calls block, as an engine's do.
async fn through_conmon(shared: &Shared, k: u64, plan: &door::Plan) {
    if shared.config.verbose {
        eprintln!("life {k}: conmon door: {plan:?}");
    }
    let own = plan.clone();
    let work = tokio::task::spawn_blocking(move || door::live(&own));
    let failed = |what: String| Report { containers: 1, violations: vec![(k, what)], ..Report::default() };
    let report = match tokio::time::timeout(LIFE, work).await {
        Ok(Ok(Ok(report))) => report,
        Ok(Ok(Err(e))) => failed(format!("{e:#}")),
        // What it panicked with stands above.
        Ok(Err(e)) => failed(format!("conmon door: {e}")),
        Err(_) => failed(format!("conmon door: hangs for {LIFE:?}")),
    };
    add(shared, k, &format!("conmon door: {plan:?}"), report);
}

/// Prints what did not hold, and counts.
fn add(shared: &Shared, k: u64, plan: &str, report: Report) {
    if !report.violations.is_empty() {
        eprintln!("VIOLATION in life {k} of seed {}: {plan}", shared.config.seed);
        for (_, what) in &report.violations {
            eprintln!("  {what}");
        }
        eprintln!("  again: cargo xtask soak --seed {} --life {k}", shared.config.seed);
    }
    if let Ok(mut all) = shared.report.lock() {
        all.add(report);
    }
}
