//! Collects results and writes them as JSON, as a table and as plots.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Result;
use plotters::prelude::*;
use serde::Serialize;

use crate::measure::{load, quantile};

/// Samples of one thing measured at one subject.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Series {
    pub group: &'static str,
    pub case: String,
    pub unit: &'static str,
    /// "pintle", "conmon", "go shim", "floor", ...
    pub who: &'static str,
    pub samples: Vec<f64>,
    /// More is better (throughput); otherwise less is.
    pub more_is_better: bool,
    /// One-minute load when it was measured.
    pub load: f64,
}

impl Series {
    fn best(&self) -> f64 {
        quantile(&self.samples, if self.more_is_better { 1.0 } else { 0.0 })
    }
}

/// One of the goals of the table, with what was reached.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Goal {
    pub what: String,
    pub goal: String,
    pub reached: String,
    pub met: bool,
}

/// Everything a run found.
#[derive(Default, Serialize)]
pub(crate) struct Report {
    pub machine: String,
    pub series: Vec<Series>,
    pub goals: Vec<Goal>,
    /// Groups that failed, with the reason.
    pub failed: Vec<(String, String)>,
}

impl Report {
    /// Adds samples of which less is better.
    pub(crate) fn add(
        &mut self,
        group: &'static str,
        case: impl Into<String>,
        unit: &'static str,
        who: &'static str,
        samples: Vec<f64>,
    ) {
        self.push(group, case.into(), unit, who, samples, false);
    }

    /// Adds samples of which more is better.
    pub(crate) fn add_more(
        &mut self,
        group: &'static str,
        case: impl Into<String>,
        unit: &'static str,
        who: &'static str,
        samples: Vec<f64>,
    ) {
        self.push(group, case.into(), unit, who, samples, true);
    }

    fn push(
        &mut self,
        group: &'static str,
        case: String,
        unit: &'static str,
        who: &'static str,
        samples: Vec<f64>,
        more_is_better: bool,
    ) {
        println!(
            "  {group:<9} {case:<34} {who:<8} p50 {:>10.3} best {:>10.3} p99 {:>10.3} {unit} ({})",
            quantile(&samples, 0.5),
            quantile(&samples, if more_is_better { 1.0 } else { 0.0 }),
            quantile(&samples, if more_is_better { 0.01 } else { 0.99 }),
            samples.len()
        );
        self.series.push(Series { group, case, unit, who, samples, more_is_better, load: load() });
    }

    /// The quantile of a series, if it was measured.
    pub(crate) fn value(&self, group: &str, case: &str, who: &str, part: f64) -> Option<f64> {
        let s = self.series.iter().find(|s| s.group == group && s.case == case && s.who == who)?;
        Some(quantile(&s.samples, part))
    }

    /// States a goal about a value: an upper (or, with `at_least`, a lower) limit.
    pub(crate) fn goal(
        &mut self,
        what: impl Into<String>,
        value: Option<f64>,
        limit: f64,
        at_least: bool,
        unit: &str,
    ) {
        let Some(value) = value else { return };
        let met = if at_least { value >= limit } else { value <= limit };
        let sign = if at_least { ">=" } else { "<=" };
        self.goals.push(Goal {
            what: what.into(),
            goal: format!("{sign} {} {unit}", plain(limit)),
            reached: format!("{} {unit}", plain(value)),
            met,
        });
    }

    /// Writes `results.json` and the plots beside it, and the table into `markdown`.
    pub(crate) fn write(&self, out: &Path, markdown: Option<&Path>) -> Result<()> {
        fs::create_dir_all(out)?;
        fs::write(out.join("results.json"), serde_json::to_vec_pretty(self)?)?;
        let table = self.table();
        fs::write(out.join("benchmarks.md"), &table)?;
        let mut groups: Vec<&str> = self.series.iter().map(|s| s.group).collect();
        groups.dedup();
        for group in groups {
            plot(&out.join(format!("{group}.svg")), group, &self.series)?;
            if let Some(markdown) = markdown {
                let plots = markdown.with_file_name("bench");
                fs::create_dir_all(&plots)?;
                fs::copy(out.join(format!("{group}.svg")), plots.join(format!("{group}.svg")))?;
            }
        }
        if let Some(markdown) = markdown {
            fs::write(markdown, table)?;
        }
        Ok(())
    }

    fn table(&self) -> String {
        let mut text = String::from(
            "# Benchmarks\n\nMade by `cargo xtask bench`; do not edit. How it is measured: [measuring.md](measuring.md).\n\n",
        );
        let _ = writeln!(text, "{}\n", self.machine);
        if !self.goals.is_empty() {
            text.push_str("## Goals\n\n| what | goal | reached | met |\n|---|---|---|---|\n");
            for g in &self.goals {
                let _ = writeln!(
                    text,
                    "| {} | {} | {} | {} |",
                    g.what,
                    g.goal,
                    g.reached,
                    if g.met { "yes" } else { "**no**" }
                );
            }
            text.push('\n');
        }
        let mut group = "";
        for s in &self.series {
            if s.group != group {
                group = s.group;
                let _ = writeln!(
                    text,
                    "## {group}\n\n![{group}](bench/{group}.svg)\n\n| case | who | median | best | p99 | unit | n | load |\n|---|---|---|---|---|---|---|---|"
                );
            }
            let worst = quantile(&s.samples, if s.more_is_better { 0.01 } else { 0.99 });
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {:.1} |",
                s.case,
                s.who,
                plain(quantile(&s.samples, 0.5)),
                plain(s.best()),
                plain(worst),
                s.unit,
                s.samples.len(),
                s.load
            );
        }
        for (group, why) in &self.failed {
            let _ = writeln!(text, "\nGroup {group} failed: {why}");
        }
        // A blank line before each heading.
        text.replace("\n## ", "\n\n## ").replace("\n\n\n", "\n\n")
    }
}

/// A figure with as many digits as it is worth.
fn plain(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Medians as horizontal bars, one row a case and subject.
fn plot(path: &Path, group: &str, all: &[Series]) -> Result<()> {
    let rows: Vec<&Series> = all.iter().filter(|s| s.group == group && !s.samples.is_empty()).collect();
    let height = 60 + 26 * rows.len() as u32;
    let area = SVGBackend::new(path, (900, height)).into_drawing_area();
    area.fill(&WHITE)?;
    area.titled(&format!("{group}: medians, each case to its own scale"), ("sans-serif", 16))?;
    for (i, s) in rows.iter().enumerate() {
        let most = rows
            .iter()
            .filter(|o| o.case == s.case)
            .map(|o| quantile(&o.samples, 0.5))
            .fold(f64::MIN, f64::max);
        let value = quantile(&s.samples, 0.5);
        let y = 36 + 26 * i as i32;
        let width = if most > 0.0 { (value / most * 380.0) as i32 } else { 0 };
        let colour = match s.who {
            "pintle" => RGBColor(31, 119, 180),
            "floor" => RGBColor(150, 150, 150),
            _ => RGBColor(214, 120, 60),
        };
        area.draw(&Text::new(format!("{} · {}", s.case, s.who), (8, y + 3), ("sans-serif", 13)))?;
        area.draw(&Rectangle::new([(390, y), (390 + width.max(1), y + 18)], colour.filled()))?;
        area.draw(&Text::new(
            format!("{} {}", plain(value), s.unit),
            (396 + width.max(1), y + 3),
            ("sans-serif", 13),
        ))?;
    }
    area.present()?;
    Ok(())
}
