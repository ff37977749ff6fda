//! A container's whole life, told step by step, with the programs that were just built.
//!
//! Every line that is shown as a command is run exactly so. Nothing is left behind, also after a failure.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{build, packages, sh};

pub(crate) fn run(_args: Vec<OsString>) -> Result<()> {
    packages::ensure_for_demo()?;
    let doors = build::doors()?;
    let stage = Stage::new(doors)?;
    let result = stage.story();
    stage.clean();
    result?;
    println!("\nDone; nothing is left behind.");
    Ok(())
}

/// Where the story plays: a temporary directory with a root file system and the shims' state.
struct Stage {
    doors: PathBuf,
    dir: PathBuf,
}

impl Stage {
    fn new(doors: PathBuf) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("pintle-demo-{}", std::process::id()));
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&dir)
            .with_context(|| format!("create {}", dir.display()))?;
        let stage = Self { doors, dir };
        if let Err(e) = stage.rootfs() {
            stage.clean();
            return Err(e);
        }
        Ok(stage)
    }

    /// A root file system of busybox and the names of its applets.
    fn rootfs(&self) -> Result<()> {
        let busybox = sh::which("busybox").context("busybox is missing")?;
        for name in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
            fs::create_dir_all(self.dir.join("rootfs").join(name))?;
        }
        let bin = self.dir.join("rootfs/bin");
        fs::copy(&busybox, bin.join("busybox"))?;
        for applet in sh::output(Command::new(&busybox).arg("--list"))?.split_whitespace() {
            if applet != "busybox" {
                symlink("busybox", bin.join(applet))?;
            }
        }
        Ok(())
    }

    fn pintle(&self) -> Command {
        let mut c = Command::new(self.doors.join("pintle"));
        c.env("PINTLE_DIR", self.dir.join("run"))
            .env("PINTLE_SHIM", self.doors.join("pintle-shim"))
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        c
    }

    /// Runs `pintle ARGS`, shows it and what it prints, and checks its exit status.
    fn tell(&self, status: i32, args: &[&str]) -> Result<String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,".contains(c);
        let shown: Vec<String> =
            args.iter()
                .map(|a| {
                    if a.chars().all(plain) { (*a).into() } else { format!("'{}'", a.replace('\'', r"'\''")) }
                })
                .collect();
        println!("  $ pintle {}", shown.join(" "));
        let out = sh::capture(self.pintle().args(args), Duration::from_secs(120))?;
        for line in out.output.lines() {
            println!("    {line}");
        }
        let code = out.status.and_then(|s| s.code());
        ensure!(code == Some(status), "exit status {code:?} instead of {status}");
        Ok(out.output)
    }

    fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.join("hello.log"))?)
    }

    fn story(&self) -> Result<()> {
        let oom = nix::unistd::geteuid().is_root();
        say("A container under its own shim, with a log in CRI format. It runs on when we go.");
        let script = "trap \"echo bye; exit 7\" TERM; n=0; \
                      while :; do n=$((n+1)); echo tick $n; sleep 0.3; done";
        self.tell(
            0,
            &[
                "run",
                "-d",
                "--id",
                "hello",
                "--rootfs",
                "rootfs",
                "--log",
                "hello.log",
                "--",
                "sh",
                "-c",
                script,
            ],
        )?;
        self.tell(0, &["ps"])?;

        say("What it writes is in the log: time, stream, whole (F) or partial (P) line.");
        wait("two lines in the log", || Ok(self.log()?.matches("tick").count() >= 2))?;
        println!("  $ cat hello.log");
        for line in self.log()?.lines().take(3) {
            println!("    {line}");
        }

        say("Attach: the same bytes, from now on. The client may come and go.");
        println!("  $ pintle attach --no-stdin hello   (for two lines)");
        let lines = self.attach_for_two_lines()?;
        ensure!(lines.iter().any(|l| l.starts_with("tick")), "attach showed {lines:?}");

        say("Exec: one more process in the container, with its own exit code.");
        self.tell(3, &["exec", "hello", "sh", "-c", "echo I am process $$ in here; exit 3"])?;
        println!("  (exit status 3)");
        println!("\n  A process that hangs is ended with all that it started:");
        self.tell(124, &["exec", "--timeout", "1", "hello", "sh", "-c", "sleep 1000 & sleep 1000"])?;
        println!("  (exit status 124)");

        say("Log reopen, as the kubelet does it: rename, reopen; no record is lost, split or written twice.");
        fs::rename(self.dir.join("hello.log"), self.dir.join("hello.log.1"))?;
        println!("  $ mv hello.log hello.log.1");
        self.tell(0, &["reopen-log", "hello"])?;
        wait("a line in the new log", || Ok(self.log()?.contains("tick")))?;
        let all = fs::read_to_string(self.dir.join("hello.log.1"))? + &self.log()?;
        let ticks: Vec<usize> = all.lines().filter_map(|l| l.rsplit_once("tick ")?.1.parse().ok()).collect();
        ensure!(ticks.iter().copied().eq(1..=ticks.len()), "the ticks in both files are {ticks:?}");
        println!("  hello.log.1 and hello.log together hold tick 1 to {} without a gap", ticks.len());

        say(
            "Stop: the container's own answer to the signal is its exit code; the record outlives everybody.",
        );
        self.tell(0, &["stop", "hello"])?;
        let code = self.tell(0, &["wait", "hello"])?;
        ensure!(code.trim() == "7", "wait printed {code}");
        self.tell(0, &["logs", "--tail", "2", "hello"])?;
        self.tell(0, &["events", "hello"])?;
        self.tell(0, &["rm", "hello"])?;

        if oom {
            say("A container that eats more memory than it may: the verdict is in its record.");
            let hog = "exec dd if=/dev/zero of=/dev/null bs=64M count=1";
            self.tell(
                137,
                &["run", "--id", "hog", "--rootfs", "rootfs", "--memory", "20M", "--", "sh", "-c", hog],
            )?;
            println!("  (exit status 137)");
            let end = self.tell(0, &["--json", "wait", "hog"])?;
            ensure!(end.contains("\"oom_killed\": true"), "no verdict of want of memory");
            self.tell(0, &["rm", "hog"])?;
        } else {
            println!("\n(the OOM verdict needs a memory cgroup, and so root: left out)");
        }

        say("And in one line: a program in a container, its output, its exit code.");
        self.tell(
            42,
            &["run", "--rm", "--rootfs", "rootfs", "--", "sh", "-c", "echo hello from $(hostname); exit 42"],
        )?;
        println!("  (exit status 42)");
        let left = self.tell(0, &["ps", "-q"])?;
        ensure!(left.trim().is_empty(), "left behind: {left}");
        Ok(())
    }

    fn attach_for_two_lines(&self) -> Result<Vec<String>> {
        use std::io::{BufRead, BufReader};
        let mut child = self
            .pintle()
            .args(["attach", "--no-stdin", "hello"])
            .stdout(Stdio::piped())
            .spawn()
            .context("attach")?;
        let out = child.stdout.take().context("no pipe")?;
        let reader = std::thread::spawn(move || {
            BufReader::new(out).lines().take(2).collect::<std::io::Result<Vec<_>>>()
        });
        let result = wait("two lines by attach", || Ok(reader.is_finished()));
        end(&mut child);
        result?;
        let lines = reader.join().map_err(|_| anyhow::anyhow!("the reader failed"))??;
        for line in &lines {
            println!("    {line}");
        }
        Ok(lines)
    }

    fn clean(&self) {
        for id in ["hello", "hog"] {
            let _ = sh::capture(self.pintle().args(["rm", "-f", id]), Duration::from_secs(30));
        }
        if let Ok(out) = sh::capture(self.pintle().args(["ps", "-q"]), Duration::from_secs(30)) {
            for id in out.output.split_whitespace() {
                let _ = sh::capture(self.pintle().args(["rm", "-f", id]), Duration::from_secs(30));
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn say(text: &str) {
    println!("\n* {text}");
}

fn wait(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match condition() {
            Ok(true) => return Ok(()),
            Ok(false) if Instant::now() > end => bail!("waited too long for {what}"),
            Err(e) if Instant::now() > end => return Err(e.context(format!("waited too long for {what}"))),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
