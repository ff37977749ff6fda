//! Probes as a kubelet sends them: a hundred containers, each probed once a second.

use std::{
    fs,
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};

use super::{Scale, exec::PROCESS, native::Client};
use crate::{
    lab::{Lab, Running, Who, until},
    measure::machine_cpu,
    report::Report,
};

/// Probes under way at the same time, at most: a kubelet has one worker for each container.
const WORKERS: usize = 32;

/// conmon's command line and the native call.
pub(crate) fn probes(lab: &Lab, report: &mut Report, scale: Scale) -> Result<()> {
    let (containers, seconds) = (scale.of(100, 20), scale.of(60, 5));
    let case = |what: &str| format!("{containers} containers, a probe a second each: {what}");
    let process = lab.dir.join("process.json");
    fs::write(&process, PROCESS)?;
    for who in Who::BOTH {
        let mut all = Vec::new();
        for _ in 0..containers {
            let one = lab.create(who, &["sleep", "100000"], "k8s-file", &[], None)?;
            lab.start(&one)?;
            all.push(one);
        }
        if who == Who::Pintle {
            // The engine started them behind the shims' backs, which see that a moment later.
            for one in &all {
                let client = Client::connect(&one.id)?;
                until(Duration::from_secs(60), || Ok(client.exec(PROCESS).ok()))?;
            }
        }
        let before = machine_cpu()?;
        // Only shims answer.
        let asked = if who == Who::Pintle { Some(Client::connect(&all[0].id)?) } else { None };
        let (took, states, wall) = probe(&all, containers * seconds, asked, |one, n| match who {
            Who::Conmon => lab.exec(who, one, &process, n).map(drop),
            Who::Pintle => Client::connect(&one.id)?.exec_sync(&["/bin/true"]),
        })?;
        let cpu = (machine_cpu()? - before) * 1e3 / took.len() as f64;
        ensure!(took.len() == containers * seconds, "{} probes were answered", took.len());
        report.add("probes", case("each"), "ms", who.name(), took);
        report.add("probes", case("CPU of the machine a probe"), "ms", who.name(), vec![cpu]);
        report.add("probes", case("all"), "s", who.name(), vec![wall]);
        if who == Who::Pintle {
            report.add("probes", case("State beside them"), "ms", who.name(), states);
        }
        for one in &all {
            lab.end(one)?;
        }
    }
    let at = |what, who, part| report.value("probes", &case(what), who, part);
    let over = |what, part| at(what, "pintle", part).zip(at(what, "conmon", part)).map(|(a, b)| a / b);
    let (cpu, p99) = (over("CPU of the machine a probe", 0.5), over("each", 0.99));
    let state = at("State beside them", "pintle", 0.99);
    report.goal("CPU of a probe over conmon's, a hundred a second", cpu, 0.85, false, "x");
    report.goal("a probe over conmon's, a hundred a second, p99", p99, 1.0, false, "x");
    report.goal("State beside a hundred probes a second, p99", state, 20.0, false, "ms");
    Ok(())
}

/// `count` probes, evenly over the containers and the seconds: how long each took, the State calls to `asked` beside them
/// (one every 100 ms), both in ms, and the seconds until all were done.
fn probe(
    all: &[Running],
    count: usize,
    asked: Option<Client>,
    one: impl Fn(&Running, usize) -> Result<()> + Sync,
) -> Result<(Vec<f64>, Vec<f64>, f64)> {
    let step = Duration::from_secs(1) / all.len() as u32;
    let (next, took, began) = (Mutex::new(0), Mutex::new(Vec::new()), Instant::now());
    let work = || -> Result<()> {
        loop {
            let n = {
                let mut next = next.lock().map_err(|_| anyhow!("a worker failed"))?;
                if *next == count {
                    return Ok(());
                }
                std::thread::sleep((step * *next as u32).saturating_sub(began.elapsed()));
                *next += 1;
                *next - 1
            };
            let began = Instant::now();
            one(&all[n % all.len()], n)?;
            took.lock().map_err(|_| anyhow!("a worker failed"))?.push(began.elapsed().as_secs_f64() * 1e3);
        }
    };
    let states = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        let mut states = Vec::new();
        if let Some(client) = asked {
            while workers.iter().any(|w| !w.is_finished()) {
                let began = Instant::now();
                client.state()?;
                states.push(began.elapsed().as_secs_f64() * 1e3);
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        for worker in workers {
            worker.join().map_err(|_| anyhow!("a worker failed"))??;
        }
        Ok::<_, anyhow::Error>(states)
    })?;
    Ok((took.into_inner().map_err(|_| anyhow!("a worker failed"))?, states, began.elapsed().as_secs_f64()))
}
