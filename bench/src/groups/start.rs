//! Start-up, exit latency, wake-ups, sizes, and many containers at once.

use std::{
    fs,
    os::fd::AsFd,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::Scale;
use crate::{
    lab::{Lab, Running, Who, until},
    measure::{size as file_size, wakeups},
    report::Report,
};

/// Binary sizes.
pub(crate) fn size(lab: &Lab, report: &mut Report, _: Scale) -> Result<()> {
    for who in Who::BOTH {
        report.add("size", "binary", "kB", who.name(), vec![file_size(&lab.binary(who))?]);
    }
    if let Ok(go) = crate::lab::find("containerd-shim-runc-v2") {
        report.add("size", "binary", "kB", "go shim", vec![file_size(&go)?]);
    }
    Ok(())
}

/// From exec of the monitor to the pid on its pipe, beside the bare runtime.
pub(crate) fn startup(lab: &Lab, report: &mut Report, scale: Scale) -> Result<()> {
    let rounds = scale.of(40, 5);
    let (mut floor, mut took) = (Vec::new(), [Vec::new(), Vec::new()]);
    for round in 0..=rounds {
        let (id, bundle) = lab.bundle(&["sleep", "100000"])?;
        let began = Instant::now();
        let status = Command::new(&lab.runc)
            .arg("--root")
            .arg(lab.dir.join("runc"))
            .args(["create", "--bundle"])
            .arg(&bundle)
            .arg(&id)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .status()?;
        let bare = began.elapsed().as_secs_f64() * 1e3;
        anyhow::ensure!(status.success(), "runc create failed");
        lab.runc(&["delete", "--force", &id])?;
        for (i, who) in Who::BOTH.into_iter().enumerate() {
            let one = lab.create(who, &["sleep", "100000"], "k8s-file", &[], None)?;
            // The first round warms the caches.
            if round > 0 {
                took[i].push(one.create.as_secs_f64() * 1e3);
            }
            lab.end(&one)?;
        }
        if round > 0 {
            floor.push(bare);
        }
    }
    report.add("startup", "create", "ms", "floor", floor);
    let [conmon, pintle] = took;
    report.add("startup", "create", "ms", "conmon", conmon);
    report.add("startup", "create", "ms", "pintle", pintle);
    let p50 = |who| report.value("startup", "create", who, 0.5);
    let over = p50("pintle").zip(p50("floor")).map(|(a, b)| a - b);
    let ratio = p50("pintle").zip(p50("conmon")).map(|(a, b)| a / b);
    report.goal("create over bare `runc create`, p50", over, 3.0, false, "ms");
    report.goal("start-up over conmon, p50", ratio, 1.0, false, "x");
    Ok(())
}

/// From the process being gone to the exit file.
pub(crate) fn exit(lab: &Lab, report: &mut Report, scale: Scale) -> Result<()> {
    let rounds = scale.of(40, 5);
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (i, who) in Who::BOTH.into_iter().enumerate() {
            let one = lab.create(who, &["sleep", "100000"], "k8s-file", &[], None)?;
            lab.start(&one)?;
            let held = pintle_sys::pidfd::PidFd::open(one.pid as i32)?;
            held.signal(libc::SIGKILL)?;
            // Readable from the moment the process is gone, before anybody has reaped it.
            let mut gone = [nix::poll::PollFd::new(held.as_fd(), nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut gone, 20_000u16)?;
            let began = Instant::now();
            until(Duration::from_secs(20), || Ok(one.exit_file.exists().then_some(())))?;
            took[i].push(began.elapsed().as_secs_f64() * 1e3);
            lab.end(&one)?;
        }
    }
    let [conmon, pintle] = took;
    report.add("exit", "gone to exit file", "ms", "conmon", conmon);
    report.add("exit", "gone to exit file", "ms", "pintle", pintle);
    let at = |part| report.value("exit", "gone to exit file", "pintle", part);
    let (p50, p99) = (at(0.5), at(0.99));
    report.goal("exit to durable record, p50", p50, 5.0, false, "ms");
    report.goal("exit to durable record, p99", p99, 20.0, false, "ms");
    Ok(())
}

/// Wake-ups of an idle monitor, a minute long.
pub(crate) fn idle(lab: &Lab, report: &mut Report, scale: Scale) -> Result<()> {
    let seconds = scale.of(60, 5);
    let mut all = Vec::new();
    for who in Who::BOTH {
        let one = lab.create(who, &["sleep", "100000"], "k8s-file", &[], None)?;
        lab.start(&one)?;
        all.push((who, one));
    }
    // The shim gives memory back after 3 to 5 quiet seconds; a minute that is idle begins after that.
    std::thread::sleep(Duration::from_secs(8));
    let before: Vec<f64> = all.iter().map(|(_, r)| wakeups(r.monitor)).collect::<Result<_>>()?;
    std::thread::sleep(Duration::from_secs(seconds as u64));
    for ((who, one), before) in all.iter().zip(before) {
        report.add(
            "idle",
            format!("wake-ups in {seconds} s"),
            "",
            who.name(),
            vec![wakeups(one.monitor)? - before],
        );
        lab.end(one)?;
    }
    let value = report.value("idle", &format!("wake-ups in {seconds} s"), "pintle", 0.5);
    report.goal(format!("idle wake-ups in {seconds} s"), value, 0.0, false, "");
    Ok(())
}

/// Many started, then all stopped, in turns of a tenth each.
pub(crate) fn scale(lab: &Lab, report: &mut Report, scale: Scale) -> Result<()> {
    let n = scale.of(300, 20);
    let block = n / 10;
    let mut alive: [Vec<Running>; 2] = [Vec::new(), Vec::new()];
    // Wall clock and CPU of starting and of stopping.
    let mut sums = [[0.0; 4]; 2];
    for _ in 0..10 {
        for (i, who) in Who::BOTH.into_iter().enumerate() {
            let (began, busy) = (Instant::now(), children_cpu()?);
            for _ in 0..block {
                let one = lab.create(who, &["sleep", "100000"], "k8s-file", &[], None)?;
                lab.start(&one)?;
                alive[i].push(one);
            }
            sums[i][0] += began.elapsed().as_secs_f64();
            sums[i][1] += children_cpu()? - busy;
        }
    }
    for _ in 0..10 {
        for (all, sums) in alive.iter_mut().zip(&mut sums) {
            let (began, busy) = (Instant::now(), children_cpu()?);
            let ending = all.split_off(all.len() - block);
            for one in &ending {
                let pid = nix::unistd::Pid::from_raw(one.pid as i32);
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
            }
            for one in &ending {
                lab.reap(one)?;
                let _ = fs::remove_dir_all(&one.bundle);
                let _ = fs::remove_file(Path::new(&one.exit_file));
            }
            sums[2] += began.elapsed().as_secs_f64();
            sums[3] += children_cpu()? - busy;
        }
    }
    for (i, who) in Who::BOTH.into_iter().enumerate() {
        for (j, what) in ["started", "started, CPU", "stopped", "stopped, CPU"].into_iter().enumerate() {
            report.add("scale", format!("{n} {what}"), "s", who.name(), vec![sums[i][j]]);
        }
    }
    let [conmon, pintle] = sums;
    let ratio = |of: [usize; 2]| {
        of.iter().map(|i| pintle[*i]).sum::<f64>() / of.iter().map(|i| conmon[*i]).sum::<f64>()
    };
    report.goal(format!("{n} started and stopped over conmon"), Some(ratio([0, 2])), 1.0, false, "x");
    report.goal(format!("{n} started and stopped, CPU over conmon"), Some(ratio([1, 3])), 1.0, false, "x");
    Ok(())
}

/// CPU seconds of everything that this process has waited for; a monitor's come with its end.
fn children_cpu() -> Result<f64> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
