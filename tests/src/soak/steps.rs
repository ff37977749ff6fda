//! The things that happen in a life.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pintle_client::{ExecOptions, ExecSyncOptions, ExitReason, Monitor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::check;
use super::life::{Life, PATIENCE, Reader};
use super::plan::{End, Step};
use crate::{process_alive, shim};

impl Life {
    /// Makes one thing happen.
    pub(super) async fn step(&mut self, monitor: &mut Monitor, step: Step) -> Result<()> {
        match step {
            Step::Lines(count, length, stderr) => {
                let pad = "x".repeat(length as usize);
                let text: String = (0..count).map(|j| format!("{j} {pad}\n")).collect();
                self.wrote(stderr, text.as_bytes());
                self.tell(&format!("lines {count} {length} {}", 1 + u8::from(stderr))).await?;
            }
            Step::Piece(length, stderr) => {
                self.wrote(stderr, &vec![b'y'; length as usize]);
                self.tell(&format!("piece {length} - {}", 1 + u8::from(stderr))).await?;
            }
            Step::ExecSync(code, bytes) => self.exec_sync(monitor, code, bytes).await?,
            Step::ExecStorm(count) => {
                self.report.fault("exec storm");
                let mut all = tokio::task::JoinSet::new();
                for n in 0..count {
                    let monitor = monitor.clone();
                    all.spawn(async move {
                        let mut o = ExecSyncOptions::new(["/bin/sh", "-c", &format!("echo {n}; exit {n}")]);
                        o.timeout = Some(PATIENCE);
                        (n, monitor.exec_sync(&o).await)
                    });
                }
                while let Some(done) = all.join_next().await {
                    let (n, out) = done?;
                    let out = out.with_context(|| format!("exec {n} of the storm"))?;
                    self.report.execs += 1;
                    self.check(out.exit.reason == ExitReason::Code(n as i32), || {
                        format!("exec {n} ended with {:?}", out.exit.reason)
                    });
                    let text = format!("{n}\n");
                    self.check(out.stdout == text.as_bytes(), || format!("exec {n} said {:?}", out.stdout));
                }
            }
            Step::ExecCat(bytes) => self.exec_cat(monitor, bytes).await?,
            Step::ExecTimeout => {
                self.report.fault("exec timeout");
                let mut o =
                    ExecSyncOptions::new(["/bin/sh", "-c", "sleep 77777 & setsid sleep 77777 & wait"]);
                o.timeout = Some(Duration::from_millis(100));
                let out = monitor.exec_sync(&o).await?;
                self.report.execs += 1;
                self.check(out.timed_out, || format!("an exec that overran its time: {:?}", out.exit));
                self.await_none_of("sleep\u{0}77777").await?;
            }
            Step::ExecMissing => {
                self.report.fault("exec missing");
                let o = ExecSyncOptions::new(["/no/such/program"]);
                match monitor.exec_sync(&o).await {
                    Ok(out) => self.violate(format!("exec of nothing gave {:?}", out.exit)),
                    Err(e) => self.check(e.kind() == Some(pintle_client::ErrorKind::RuntimeFailed), || {
                        format!("exec of nothing: {e:?}")
                    }),
                }
            }
            Step::Attach => {
                let attached = monitor.attach(false).await?;
                let before = [self.expected[0].len(), self.expected[1].len()];
                let task = tokio::spawn(async move {
                    let (mut out, mut err) = (Vec::new(), Vec::new());
                    let (mut stdout, mut stderr) = (attached.stdio.stdout, attached.stdio.stderr);
                    tokio::try_join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err))?;
                    Ok([out, err])
                });
                self.readers.push(Reader { before, task });
            }
            Step::AttachStalled => {
                self.report.fault("stalled client");
                self.stalled.push(monitor.attach(false).await?);
            }
            Step::Feed => {
                let mut attached = monitor.attach(true).await?;
                self.wrote(false, b"fed word\n");
                attached.stdio.stdin.write_all(b"word\n").await?;
                self.tell("feed - - -").await?;
            }
            Step::Reopen => {
                self.report.fault("log reopened");
                let (log, aside) = (self.log(), self.dir.join(format!("log-{}", self.aside.len())));
                fs::rename(&log, &aside)?;
                monitor.reopen_log().await?;
                self.check(log.exists(), || "no log after reopen".into());
                let size = fs::metadata(&aside)?.len();
                self.aside.push((aside, size));
            }
            Step::Pause => {
                monitor.pause().await?;
                let state = monitor.state().await?;
                self.check(state.status == pintle_client::Status::Paused, || format!("{:?}", state.status));
                monitor.resume().await?;
            }
            Step::Stats => {
                let stats = monitor.stats().await?;
                self.check(stats.at != 0, || "stats without a time".into());
                self.measure(monitor).await?;
            }
            Step::Update => monitor.update(r#"{"pids":{"limit":500}}"#).await?,
            Step::Reconnect => {
                self.report.fault("client gone");
                *monitor = Monitor::connect(self.state_dir()).await?;
            }
            Step::Abandon => {
                self.report.fault("call abandoned");
                let other = Monitor::connect(self.state_dir()).await?;
                let o = ExecSyncOptions::new(["/bin/sh", "-c", "echo abandoned"]);
                let call = tokio::spawn(async move { other.exec_sync(&o).await.map(drop) });
                tokio::task::yield_now().await;
                call.abort();
                let _ = call.await;
            }
            Step::Garbage => {
                self.report.fault("garbage");
                self.garbage();
                monitor.info().await?;
            }
            Step::Signals => {
                self.report.fault("signal storm");
                let pid = monitor.info().await?.pid;
                for n in 0..200 {
                    let list = [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGCHLD];
                    kill(Pid::from_raw(pid), list[n % 4])?;
                }
                monitor.info().await?;
            }
            Step::KillShim => self.kill_shim(monitor).await?,
            Step::Upgrade => {
                self.report.fault("upgrade");
                let before = monitor.info().await?;
                monitor.upgrade(Some(&shim())).await?;
                let after = monitor.info().await?;
                self.check(before.pid == after.pid, || format!("pid {} became {}", before.pid, after.pid));
            }
            Step::OomChild => {
                self.report.fault("child OOM killed");
                self.oom_children += 1;
                self.hog(monitor).await?;
            }
        }
        Ok(())
    }

    /// A child hits the memory limit. Now and then the kernel's next victim is the first process.
    async fn hog(&mut self, monitor: &Monitor) -> Result<()> {
        let n = self.send("hog - - -").await?;
        let ack = self.dir.join(format!("ctl/ack.{n}"));
        let end = Instant::now() + PATIENCE;
        while !ack.exists() {
            ensure!(Instant::now() < end, "a child that takes all memory lives on");
            let state = monitor.state().await?;
            if state.exit.as_ref().is_some_and(|e| e.oom_killed) && !ack.exists() {
                self.report.fault("OOM killed both");
                self.plan.end = End::Oom;
                self.over = true;
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.wrote(false, b"hog 137\n");
        Ok(())
    }

    async fn exec_sync(&mut self, monitor: &Monitor, code: u8, bytes: u64) -> Result<()> {
        let script = format!("head -c {bytes} /dev/zero; echo err >&2; exit {code}");
        let mut o = ExecSyncOptions::new(["/bin/sh", "-c", &script]);
        o.timeout = Some(PATIENCE);
        let out = monitor.exec_sync(&o).await?;
        self.report.execs += 1;
        self.check(out.exit.reason == ExitReason::Code(code.into()), || {
            format!("an exec ended with {:?}", out.exit.reason)
        });
        self.check(out.stdout.len() as u64 == bytes && !out.truncated && !out.timed_out, || {
            format!("an exec gave {} bytes, truncated {}", out.stdout.len(), out.truncated)
        });
        self.check(out.stderr == b"err\n", || format!("stderr of an exec: {:?}", out.stderr));
        Ok(())
    }

    async fn exec_cat(&mut self, monitor: &Monitor, bytes: u64) -> Result<()> {
        let mut o = ExecOptions::new(["cat"]);
        (o.stdio, o.stdin) = (true, true);
        let exec = monitor.exec(&o).await?;
        self.report.execs += 1;
        self.execs += 1;
        let mut stdio = exec.stdio.context("an exec without stdio")?;
        let sent: Vec<u8> = (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect();
        let copy = sent.clone();
        let feed = tokio::spawn(async move {
            stdio.stdin.write_all(&copy).await?;
            stdio.stdin.shutdown().await
        });
        let mut got = Vec::new();
        tokio::time::timeout(PATIENCE, stdio.stdout.read_to_end(&mut got)).await.context("cat hangs")??;
        feed.await??;
        self.check(got == sent, || {
            let same = got.iter().zip(&sent).take_while(|(a, b)| a == b).count();
            format!("cat gave {} of {bytes} bytes, {same} of them right", got.len())
        });
        let exit = monitor.wait_exec(&exec.id, Some(PATIENCE)).await?;
        self.check(exit.reason == ExitReason::Code(0), || format!("cat ended with {:?}", exit.reason));
        monitor.delete_exec(&exec.id, false).await?;
        Ok(())
    }

    fn garbage(&self) {
        let dir = self.state_dir();
        let junk: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for bytes in [&junk[..], &[0xff; 64], &[0, 0, 0, 10, 0, 0, 0, 1, 1, 0, 1], b"GET / HTTP/1.0\r\n\r\n"]
        {
            if let Ok(mut s) = UnixStream::connect(dir.join("monitor.sock")) {
                let _ = s.set_write_timeout(Some(Duration::from_secs(1)));
                let _ = s.write_all(bytes);
            }
        }
        for size in [1, 15, 16, 17, 4096] {
            let Ok(s) = crate::connect_packets(&dir.join("stdio.sock")) else { continue };
            let _ = nix::unistd::write(&s, &junk[..size]);
        }
        // What comes here is stdin: nothing.
        drop(crate::connect_packets(&dir.join("attach.sock")));
    }

    async fn kill_shim(&mut self, monitor: &mut Monitor) -> Result<()> {
        self.report.fault("shim killed");
        self.lost_shims += 1;
        let pid = monitor.info().await?.pid;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        let end = Instant::now() + PATIENCE;
        while process_alive(pid as u32) {
            ensure!(Instant::now() < end, "the killed shim stays");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        let mut config = self.spawn_config();
        config.args.push("--adopt".into());
        *monitor = Monitor::spawn(config).await.context("adopt")?;
        let state = monitor.state().await?;
        self.check(state.status == pintle_client::Status::Running, || {
            format!("adopted as {:?}", state.status)
        });
        Ok(())
    }

    /// Waits until no process with this in its command line belongs to the container.
    async fn await_none_of(&mut self, words: &str) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let found = check::processes_of(&self.id, words);
            if found.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < end, "processes stay: {found:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
