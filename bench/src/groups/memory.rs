//! Memory of idle monitors, and what stays after a burst.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;

use super::Scale;
use crate::{
    lab::{Lab, Running, Who, until},
    measure::{Memory, mean_memory, memory},
    report::Report,
};

fn memory_group(name: &str) -> Option<PathBuf> {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    let group = v1.join(name);
    (v1.is_dir() && fs::create_dir_all(&group).is_ok()).then_some(group)
}

/// Idle monitors, 1, 50 and 300 of them, both in turn.
pub(crate) fn idle(lab: &Lab, report: &mut Report, scale: Scale) -> Result<()> {
    // A freshly written binary shows its text as dirty.
    nix::unistd::sync();
    let counts: &[usize] = if scale.quick { &[1, 20] } else { &[1, 50, 300] };
    for n in counts {
        for who in Who::BOTH {
            let group = memory_group(&format!("pintle-bench-{}-{n}", who.name()));
            let mut all: Vec<Running> = Vec::new();
            for _ in 0..*n {
                let one = lab.create(who, &["sleep", "100000"], "k8s-file", &[], group.as_deref())?;
                lab.start(&one)?;
                all.push(one);
            }
            let pids: Vec<u32> = all.iter().map(|r| r.monitor).collect();
            settle(&pids)?;
            put(report, &format!("{n} idle"), who, mean_memory(&pids)?);
            if let Some(group) = &group {
                let bytes: f64 = fs::read_to_string(group.join("memory.usage_in_bytes"))?.trim().parse()?;
                report.add(
                    "memory",
                    format!("{n} idle: memory-cgroup charge"),
                    "kB",
                    who.name(),
                    vec![bytes / 1024.0 / *n as f64],
                );
            }
            if *n <= 50 {
                let process = lab.dir.join("process.json");
                fs::write(&process, super::exec::PROCESS)?;
                let execs = scale.of(100, 5);
                for number in 0..execs {
                    lab.exec(who, &all[0], &process, number)?;
                }
                settle(&pids[..1])?;
                put(report, &format!("{n} idle: one after {execs} execs"), who, memory(pids[0])?);
                if who == Who::Pintle {
                    for one in &all {
                        super::native::call_many(&one.id, 100)?;
                    }
                    settle(&pids)?;
                    put(report, &format!("{n} after 100 RPCs"), who, mean_memory(&pids)?);
                }
            }
            for one in &all {
                lab.end(one)?;
            }
            if let Some(group) = &group {
                let _ = until(Duration::from_secs(5), || Ok(fs::remove_dir(group).is_ok().then_some(())));
            }
        }
    }
    let value = |r: &Report, case: &str, who: &str| r.value("memory", case, who, 0.5);
    let n = if scale.quick { 20 } else { 50 };
    let dirty = value(report, &format!("{n} after 100 RPCs: Private_Dirty"), "pintle");
    report.goal(format!("idle Private_Dirty, {n} containers, after 100 RPCs"), dirty, 180.0, false, "kB");
    for (name, case, limit) in [
        ("idle Private_Dirty over conmon", "Private_Dirty", 0.55),
        ("idle PSS over conmon", "PSS", 0.6),
        ("idle RSS over conmon", "RSS", 0.8),
        ("memory-cgroup charge over conmon", "memory-cgroup charge", 0.55),
    ] {
        let case = format!("{n} idle: {case}");
        let ratio = value(report, &case, "pintle").zip(value(report, &case, "conmon")).map(|(a, b)| a / b);
        report.goal(name, ratio, limit, false, "x");
    }
    let threads = value(report, &format!("{n} idle: threads"), "pintle");
    report.goal("threads", threads, 1.0, false, "");
    Ok(())
}

/// Waits until the figures stand still for 6 s, 20 s at most: what is not needed goes back after 3 to 5 quiet seconds.
fn settle(pids: &[u32]) -> Result<()> {
    let (mut last, mut still) = ((f64::NAN, f64::NAN), 0);
    for _ in 0..20 {
        std::thread::sleep(Duration::from_secs(1));
        let m = mean_memory(pids)?;
        let now = (m.rss, m.private_dirty);
        still = if now == last { still + 1 } else { 0 };
        if still == 6 {
            break;
        }
        last = now;
    }
    Ok(())
}

fn put(report: &mut Report, case: &str, who: Who, m: Memory) {
    for (name, value, unit) in [
        ("RSS", m.rss, "kB"),
        ("PSS", m.pss, "kB"),
        ("Private_Dirty", m.private_dirty, "kB"),
        ("threads", m.threads, ""),
    ] {
        report.add("memory", format!("{case}: {name}"), unit, who.name(), vec![value]);
    }
}

/// What stays 5 s after 1 GiB of log, and after 500 connections.
pub(crate) fn burst(lab: &Lab, report: &mut Report, scale: Scale) -> Result<()> {
    nix::unistd::sync();
    let bytes = scale.of(1 << 30, 64 << 20).to_string();
    for who in Who::BOTH {
        let script = format!("sleep 3; load {bytes} 80 65536; sleep 100000");
        let one = lab.create(who, &["sh", "-c", &script], "k8s-file", &[], None)?;
        lab.start(&one)?;
        std::thread::sleep(Duration::from_secs(2));
        let before = memory(one.monitor)?.private_dirty;
        let end: u64 = bytes.parse()?;
        until(Duration::from_secs(120), || Ok((fs::metadata(&one.log)?.len() >= end).then_some(())))?;
        std::thread::sleep(Duration::from_secs(6));
        let after = memory(one.monitor)?.private_dirty;
        report.add(
            "burst",
            "Private_Dirty grown 5 s after the log burst",
            "kB",
            who.name(),
            vec![after - before],
        );
        if who == Who::Pintle {
            super::native::connect_many(&one.id, scale.of(500, 100))?;
            std::thread::sleep(Duration::from_secs(6));
            let after = memory(one.monitor)?.private_dirty;
            report.add(
                "burst",
                "Private_Dirty grown 5 s after 500 connections",
                "kB",
                who.name(),
                vec![after - before],
            );
        }
        lab.end(&one)?;
    }
    for case in
        ["Private_Dirty grown 5 s after the log burst", "Private_Dirty grown 5 s after 500 connections"]
    {
        let value = report.value("burst", case, "pintle", 0.5);
        report.goal(case, value, 100.0, false, "kB");
    }
    Ok(())
}
