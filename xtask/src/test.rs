//! Every test of the workspace, one test program after the other.
//!
//! The tests start real containers, so the programs do not run beside each other, each has a time
//! limit, and whatever a program left running is killed when it ends. A test that fails is run again,
//! alone, up to two times: when it then passes it is printed as FLAKY with what it said the first time
//! and counted in the summary, so that an overloaded machine does not hide a real failure and a real
//! weakness does not hide in a green line. The summary and the output of what failed come last.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{build, census, dist, newer, packages, sh};

/// How often a failed test is tried again, alone.
const RETRIES: u32 = 2;
/// The limit of one test that runs alone.
const ONE_TEST: Duration = Duration::from_secs(600);

/// Test programs that need a machine whose only cgroup tree is v2: elsewhere they run in a guest.
const GUEST: &[&str] = &["cgroup2"];
/// Test programs that break the machine they run on, its clock and its disks: always in a guest.
const GUEST_ONLY: &[&str] = &["machine"];

/// What `cargo xtask test` was asked for.
#[derive(Default)]
pub(crate) struct Options {
    /// Only these test programs; empty for all.
    targets: Vec<String>,
    /// Only tests whose name contains one of these.
    filters: Vec<String>,
    full: bool,
    /// The release programs are tested.
    dist: bool,
    list: bool,
}

struct Target {
    /// `package::target`, or the target's name alone for the end-to-end tests.
    name: String,
    program: PathBuf,
    directory: PathBuf,
}

/// What one test program came to.
#[derive(Default)]
struct Outcome {
    name: String,
    passed: usize,
    ignored: usize,
    failed: Vec<(String, String)>,
    flaky: Vec<(String, String)>,
    notices: Vec<String>,
    took: Duration,
}

pub(crate) fn run(args: Vec<OsString>) -> Result<()> {
    let mut options = Options::default();
    let mut parser = lexopt::Parser::from_args(args);
    while let Some(arg) = parser.next()? {
        match arg {
            lexopt::Arg::Long("full") => options.full = true,
            lexopt::Arg::Long("dist") => options.dist = true,
            lexopt::Arg::Long("list") => options.list = true,
            lexopt::Arg::Long("vm") => {
                options.targets.extend(GUEST.iter().chain(GUEST_ONLY).map(|t| t.to_string()));
            }
            lexopt::Arg::Value(v) => {
                // Everything behind `--` is a filter: lexopt hands it out as plain values.
                options.targets.push(v.to_string_lossy().into_owned());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let raw: Vec<String> = std::env::args().skip(2).collect();
    if let Some(at) = raw.iter().position(|a| a == "--") {
        options.filters = raw[at + 1..].to_vec();
        let keep = options.targets.len().saturating_sub(options.filters.len());
        options.targets.truncate(keep);
    }
    packages::ensure_for_tests()?;
    all(&options)
}

/// Builds and runs; an error says how many tests failed, after all was printed.
pub(crate) fn all(options: &Options) -> Result<()> {
    let began = Instant::now();
    let doors = if options.dist { dist::with_next()? } else { build::doors()? };
    if let Err(e) = newer::ensure() {
        eprintln!("notice: no criu of a newer release: {e:#}");
    }
    let mut targets = compile()?;
    if !options.targets.is_empty() {
        for wanted in &options.targets {
            if !targets.iter().any(|t| matches(&t.name, wanted)) {
                bail!("no test target {wanted}; there are: {}", names(&targets));
            }
        }
        targets.retain(|t| options.targets.iter().any(|w| matches(&t.name, w)));
    }
    if options.list {
        println!("{}", names(&targets).replace(' ', "\n"));
        return Ok(());
    }
    let built = began.elapsed();

    let run = Run {
        doors,
        full: options.full,
        dist: options.dist,
        marker: format!("PINTLE_TEST_RUN={}", std::process::id()),
    };
    let mut outcomes = Vec::new();
    for target in &targets {
        let outcome = run.target(target, &options.filters)?;
        eprintln!("{}", line(&outcome));
        outcomes.push(outcome);
    }
    if options.targets.is_empty() && options.filters.is_empty() {
        let outcome = run.doctests()?;
        eprintln!("{}", line(&outcome));
        outcomes.push(outcome);
    }
    summary(&outcomes, built, began.elapsed())
}

fn matches(name: &str, wanted: &str) -> bool {
    name == wanted || name.split("::").any(|part| part == wanted)
}

fn names(targets: &[Target]) -> String {
    targets.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(" ")
}

fn line(o: &Outcome) -> String {
    let verdict = if o.failed.is_empty() { "ok" } else { "FAILED" };
    format!(
        "{:<32} {verdict:<6} {:>4} passed {:>3} failed {:>3} flaky {:>3} ignored {:>9}",
        o.name,
        o.passed,
        o.failed.len(),
        o.flaky.len(),
        o.ignored,
        sh::secs(o.took)
    )
}

fn summary(outcomes: &[Outcome], built: Duration, total: Duration) -> Result<()> {
    let sum = |f: fn(&Outcome) -> usize| outcomes.iter().map(f).sum::<usize>();
    for o in outcomes {
        for (name, output) in &o.flaky {
            eprintln!("\n-- FLAKY {} {name}: failed first with\n{}", o.name, sh::excerpt(output, 40));
        }
        for (name, output) in &o.failed {
            eprintln!("\n-- FAILED {} {name}\n{}", o.name, sh::excerpt(output, 100));
        }
    }
    eprintln!("\n-- summary");
    for o in outcomes {
        eprintln!("{}", line(o));
        for notice in &o.notices {
            eprintln!("    {notice}");
        }
        for (name, _) in &o.flaky {
            eprintln!("    FLAKY  {name}");
        }
        for (name, _) in &o.failed {
            eprintln!("    FAILED {name}");
        }
    }
    let failed = sum(|o| o.failed.len());
    eprintln!(
        "tests: {} passed, {failed} failed, {} flaky, {} ignored; {} with {} of building",
        sum(|o| o.passed),
        sum(|o| o.flaky.len()),
        sum(|o| o.ignored),
        sh::secs(total),
        sh::secs(built)
    );
    if failed > 0 {
        bail!("{failed} tests failed");
    }
    Ok(())
}

/// Compiles every test program and lists them: the pure ones first.
fn compile() -> Result<Vec<Target>> {
    let mut c = sh::cargo();
    c.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    eprintln!("$ {}", sh::show(&c));
    let out = c.stderr(std::process::Stdio::inherit()).output().context("run cargo test --no-run")?;
    if !out.status.success() {
        bail!("the tests do not compile");
    }
    let mut targets = Vec::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let Ok(v) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let (Some(program), Some(true)) = (v["executable"].as_str(), v["profile"]["test"].as_bool()) else {
            continue;
        };
        let manifest = Path::new(v["manifest_path"].as_str().unwrap_or_default());
        let directory = manifest.parent().unwrap_or(Path::new(".")).to_path_buf();
        let target = v["target"]["name"].as_str().unwrap_or_default();
        let end_to_end = v["target"]["kind"][0] == "test";
        let name = if end_to_end { target.to_string() } else { format!("unit::{target}") };
        targets.push((end_to_end, Target { name, program: program.into(), directory }));
    }
    targets.sort_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
    Ok(targets.into_iter().map(|t| t.1).collect())
}

struct Run {
    doors: PathBuf,
    full: bool,
    dist: bool,
    /// Put into the environment of the tests: what they leave running is known by it.
    marker: String,
}

/// Where a test program of [`GUEST`] or [`GUEST_ONLY`] runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guest {
    /// Here: it needs no guest, or this machine is what it needs.
    Here,
    /// In user-mode Linux.
    Uml,
    /// Nowhere: user-mode Linux or root is missing.
    Nowhere,
}

impl Guest {
    fn of(target: &str) -> Self {
        let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        let pure = || controllers.split_whitespace().any(|c| c == "memory");
        if !GUEST_ONLY.contains(&target) && (!GUEST.contains(&target) || pure()) {
            Self::Here
        } else if sh::which("linux.uml").is_some() && nix::unistd::geteuid().is_root() {
            Self::Uml
        } else {
            Self::Nowhere
        }
    }
}

impl Run {
    fn command(&self, target: &Target) -> Command {
        let mut c = if Guest::of(&target.name) == Guest::Uml {
            let mut c = Command::new(sh::root().join("tests/vm/run"));
            c.arg(&target.program);
            c
        } else {
            Command::new(&target.program)
        };
        // A backtrace would push the message out of what is shown.
        c.current_dir(&target.directory).env("PINTLE_DOORS", &self.doors).env("RUST_BACKTRACE", "0");
        if let Some((k, v)) = self.marker.split_once('=') {
            c.env(k, v);
        }
        if self.full {
            c.env("PINTLE_TEST_FULL", "1");
        }
        if self.dist {
            c.env("PINTLE_TEST_DIST", "1");
        }
        c
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(if self.full { 4 * 3600 } else { 1200 })
    }

    fn target(&self, target: &Target, filters: &[String]) -> Result<Outcome> {
        let mut outcome = Outcome { name: target.name.clone(), ..Outcome::default() };
        let began = Instant::now();
        if Guest::of(&target.name) == Guest::Nowhere {
            let what = "notice: left out: needs root and the package user-mode-linux (or, cgroup2, a cgroup v2 tree)";
            outcome.notices.push(what.into());
            return Ok(outcome);
        }
        let mut list = Command::new(&target.program);
        let listed = sh::capture(list.args(["--list", "--format", "terse"]).args(filters), ONE_TEST)?;
        let all: BTreeSet<String> =
            listed.output.lines().filter_map(|l| l.strip_suffix(": test")).map(str::to_string).collect();
        if all.is_empty() {
            return Ok(outcome);
        }

        let mut out = sh::capture(self.command(target).args(filters), self.limit())?;
        // What failed may leave something, and says so itself.
        if out.status.is_some_and(|s| s.success()) {
            let left = self.left_behind(out.pid);
            if !left.is_empty() {
                outcome.failed.push(("nothing is left behind".into(), left.join("\n")));
            }
        }
        self.kill_leftovers();
        // 125: the guest ended by itself. That says nothing about the tests in it.
        if out.status.and_then(|s| s.code()) == Some(125) {
            eprintln!("{}: the guest died; once more\n{}", target.name, sh::tail(&out.output, 10));
            out = sh::capture(self.command(target).args(filters), self.limit())?;
        }
        let mut seen = parse(&out.output, &all);
        if out.status.is_some_and(|s| s.success()) {
            // A line may be torn by what a child printed; the program's own verdict counts.
            seen.passed = all.difference(&seen.ignored).cloned().collect();
            seen.failed.clear();
        }
        outcome.notices =
            out.output.lines().filter(|l| l.starts_with("notice: ")).map(str::to_string).collect();
        outcome.passed = seen.passed.len();
        outcome.ignored = seen.ignored.len();
        let unfinished: Vec<String> = all
            .iter()
            .filter(|t| !seen.passed.contains(*t) && !seen.ignored.contains(*t) && !seen.failed.contains(*t))
            .cloned()
            .collect();
        if !unfinished.is_empty() {
            let why = match out.status {
                None => format!("stopped after {}", sh::secs(out.took)),
                Some(s) => format!("ended with {s}"),
            };
            eprintln!("{}: the test program {why} with {} tests unfinished", target.name, unfinished.len());
        }
        for test in seen.failed.iter().chain(&unfinished) {
            let first = section(&out.output, test).unwrap_or_else(|| sh::tail(&out.output, 60));
            match self.again(target, test)? {
                None => {
                    outcome.passed += 1;
                    outcome.flaky.push((test.clone(), first));
                }
                Some(last) => outcome.failed.push((test.clone(), format!("{first}\n-- alone:\n{last}"))),
            }
        }
        outcome.took = began.elapsed();
        Ok(outcome)
    }

    /// Runs one test alone until it passes (None) or has failed too often (its last output).
    fn again(&self, target: &Target, test: &str) -> Result<Option<String>> {
        let mut last = String::new();
        for attempt in 1..=RETRIES {
            eprintln!("{} {test} failed; alone, attempt {attempt}", target.name);
            let out = sh::capture(self.command(target).args(["--exact", test]), ONE_TEST)?;
            self.kill_leftovers();
            if out.status.is_some_and(|s| s.success()) {
                return Ok(None);
            }
            last = out.output;
        }
        Ok(Some(last))
    }

    fn doctests(&self) -> Result<Outcome> {
        let mut outcome = Outcome { name: "doc".into(), ..Outcome::default() };
        let mut c = sh::cargo();
        c.args(["test", "--workspace", "--doc", "--quiet"]).env("PINTLE_DOORS", &self.doors);
        let out = sh::capture(&mut c, Duration::from_secs(900))?;
        for l in out.output.lines().filter(|l| l.starts_with("test result:")) {
            let number = |word: &str| {
                let mut before = l.split([' ', ';']).filter(|w| !w.is_empty()).collect::<Vec<_>>();
                before.reverse();
                let at = before.iter().position(|w| *w == word);
                at.and_then(|i| before.get(i + 1)).and_then(|n| n.parse::<usize>().ok()).unwrap_or(0)
            };
            outcome.passed += number("passed");
            outcome.ignored += number("ignored");
        }
        if !out.status.is_some_and(|s| s.success()) {
            outcome.failed.push(("documentation examples".into(), out.output));
        }
        outcome.took = out.took;
        Ok(outcome)
    }

    /// What is left of a test program's containers and processes, once it has had time to go.
    fn left_behind(&self, pid: u32) -> Vec<String> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let mut left = census::left(pid);
            left.extend(self.running().into_iter().map(|(pid, what)| format!("process {pid} {what}")));
            if left.is_empty() || Instant::now() > end {
                return left;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills what the last test program left running.
    fn kill_leftovers(&self) {
        for (pid, what) in self.running() {
            eprintln!("left running, killed: {pid} {what}");
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    /// Processes that descend from a test program.
    fn running(&self) -> Vec<(i32, String)> {
        let mut found = Vec::new();
        let Ok(proc) = fs::read_dir("/proc") else { return found };
        for entry in proc.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
            if environment.split(|b| *b == 0).any(|v| v == self.marker.as_bytes()) {
                let what = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let what = String::from_utf8_lossy(&what).replace('\0', " ");
                found.push((pid, what.chars().take(160).collect()));
            }
        }
        found
    }
}

#[derive(Default)]
struct Seen {
    passed: BTreeSet<String>,
    failed: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

/// Reads the lines of libtest: `test NAME ... ok`, `... FAILED`, `... ignored`.
fn parse(output: &str, all: &BTreeSet<String>) -> Seen {
    let mut seen = Seen::default();
    for l in output.lines() {
        let Some(at) = l.find("test ") else { continue };
        let Some((name, verdict)) = l[at + 5..].split_once(" ... ") else { continue };
        let name = name.split(" - should panic").next().unwrap_or(name);
        if !all.contains(name) {
            continue;
        }
        let into = match verdict.split([' ', ',']).next() {
            Some("ok") => &mut seen.passed,
            Some("FAILED") => &mut seen.failed,
            Some("ignored") => &mut seen.ignored,
            _ => continue,
        };
        into.insert(name.to_string());
    }
    seen
}

/// What libtest captured from one failed test.
fn section(output: &str, test: &str) -> Option<String> {
    let head = format!("---- {test} stdout ----");
    let from = output.find(&head)?;
    let rest = &output[from + head.len()..];
    let to = rest.find("\n---- ").or_else(|| rest.find("\nfailures:\n")).unwrap_or(rest.len());
    Some(rest[..to].trim().to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{parse, section};

    const OUT: &str = "\
running 3 tests
test a ... ok
noise test b::c ... FAILED
test d ... ignored, only by hand

failures:

---- b::c stdout ----
it went wrong

failures:
    b::c
";

    #[test]
    fn verdicts() {
        let all: BTreeSet<String> = ["a", "b::c", "d", "e"].map(String::from).into();
        let seen = parse(OUT, &all);
        assert_eq!(seen.passed, BTreeSet::from(["a".to_string()]));
        assert_eq!(seen.failed, BTreeSet::from(["b::c".to_string()]));
        assert_eq!(seen.ignored, BTreeSet::from(["d".to_string()]));
        assert_eq!(section(OUT, "b::c").as_deref(), Some("it went wrong"));
        assert_eq!(section(OUT, "a"), None);
    }
}
