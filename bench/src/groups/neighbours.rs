//! How late a calm container's lines come into its log, alone and beside one that writes as fast as it can.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};

use super::Scale;
use crate::{
    lab::{Lab, Who, until},
    report::Report,
};

/// Between two lines.
const TICK: &str = "5000";

/// Each monitor with its own kind as neighbour.
pub(crate) fn neighbours(lab: &Lab, report: &mut Report, scale: Scale) -> Result<()> {
    let lines = scale.of(2000, 200);
    for who in Who::BOTH {
        let alone = calm(lab, who, lines)?;
        report.add("neighbours", "a line to its log, alone", "ms", who.name(), alone);
        let noisy = lab.create(
            who,
            &["load", &usize::MAX.to_string(), "80", "65536"],
            "k8s-file",
            &["--log-size-max", "67108864"],
            None,
        )?;
        lab.start(&noisy)?;
        until(Duration::from_secs(60), || Ok((fs::metadata(&noisy.log)?.len() > 1 << 20).then_some(())))?;
        let beside = calm(lab, who, lines);
        lab.end(&noisy)?;
        report.add("neighbours", "a line to its log, beside a noisy one", "ms", who.name(), beside?);
    }
    let at = |case| report.value("neighbours", case, "pintle", 0.99);
    let more = at("a line to its log, beside a noisy one")
        .zip(at("a line to its log, alone"))
        .map(|(beside, alone)| beside - alone);
    report.goal("a line beside a noisy neighbour, over alone, p99", more, 5.0, false, "ms");
    Ok(())
}

/// Milliseconds from the time in a line to the time of its record.
fn calm(lab: &Lab, who: Who, lines: usize) -> Result<Vec<f64>> {
    let one = lab.create(who, &["load", "tick", TICK, &lines.to_string()], "k8s-file", &[], None)?;
    lab.start(&one)?;
    until(Duration::from_secs(300), || Ok(one.exit_file.exists().then_some(())))?;
    lab.reap(&one)?;
    let text = fs::read_to_string(&one.log).context("read the log")?;
    let late: Vec<f64> = text.lines().map(late).collect::<Option<_>>().context("a record that is none")?;
    ensure!(late.len() == lines, "{} of {lines} lines in the log of {}", late.len(), who.name());
    fs::remove_dir_all(&one.bundle)?;
    let _ = fs::remove_file(&one.exit_file);
    Ok(late)
}

/// Of `2026-01-02T03:04:05.678901234+00:00 stdout F NANOSECONDS`: the difference, within an hour.
fn late(record: &str) -> Option<f64> {
    const HOUR: f64 = 3_600_000.0;
    let printed: u128 = record.rsplit(' ').next()?.parse().ok()?;
    let number = |range: std::ops::Range<usize>| record.get(range)?.parse::<f64>().ok();
    let read = number(14..16)? * 60_000.0 + number(17..29)? * 1e3;
    let printed = (printed % 3_600_000_000_000) as f64 / 1e6;
    Some((read - printed).rem_euclid(HOUR))
}
